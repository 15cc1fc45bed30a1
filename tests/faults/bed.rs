//! A cluster of one tiny node that joins nothing, with strangers beside it: what a fault is tried on. A run that does not
//! end is a failure too. What is left and what was touched is asked of libvirt and the pool's directory.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bystanders::Strangers;
use crate::in_lab::{ssh, state, text};

/// No run of one tiny node takes longer, whatever fails.
const LIMIT: Duration = Duration::from_secs(240);

pub struct Bed {
    pub cluster: String,
    pub node: String,
    pub ip: String,
    pub dir: TempDir,
    pub uri: String,
    pub pool: &'static str,
    strangers: Strangers,
}

pub struct Ran {
    /// A signal that ended it is negative; `None` if it had to be ended at the limit.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    Up,
    Down,
}

/// What one fault came to. All empty is well.
#[derive(Default)]
pub struct Verdict {
    /// Runs that ended as they must not.
    pub wrong: Vec<String>,
    pub left: Vec<String>,
    pub touched: Vec<String>,
}

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests run inside the lab, by `make faults`")
    })
}

impl Bed {
    pub fn new(cluster: &str, ip: &str) -> Self {
        Self::on(
            cluster,
            ip,
            &variable("NODEGRAFT_LAB_URI"),
            "kvmimage",
            state().join("pool"),
        )
    }

    /// On another host, or in another pool.
    pub fn on(cluster: &str, ip: &str, uri: &str, pool: &'static str, target: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = format!("{cluster}-1");
        let spec = format!(
            "version: 1\ncluster: {{name: {cluster}, join: false}}\n\
             host:\n  uri: {uri}\n  pool: {pool}\n  network: {{bridge: br0}}\n  disk_cache: unsafe\n\
             defaults:\n  template: tiny.qcow2\n  cpus: 1\n  memory: 256MiB\n  disk: 1GiB\n  gateway: 192.168.3.1\n  dns: [192.168.3.1]\n  \
             deadlines: {{boot: 2m, login: 1m, step: 1m}}\n\
             nodes:\n  - {{name: {node}, address: {ip}/24}}\n"
        );
        fs::write(dir.path().join("cluster.yaml"), spec).unwrap();
        let strangers = Strangers::new(uri, target, cluster, &node);
        Self {
            cluster: cluster.into(),
            node,
            ip: ip.into(),
            dir,
            uri: uri.into(),
            pool,
            strangers,
        }
    }

    pub fn edit(&self, change: impl Fn(String) -> String) {
        let path = self.dir.path().join("cluster.yaml");
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// A profile of one step.
    pub fn step(&self, script: &str) {
        let profile = self.dir.path().join("templates/profiles/work");
        fs::create_dir_all(&profile).unwrap();
        fs::write(
            profile.join("profile.yaml"),
            "description: one step\nruntime: containerd\nsteps: [work]\n",
        )
        .unwrap();
        fs::write(profile.join("work.sh"), script).unwrap();
        self.edit(|spec| {
            if spec.contains("profile:") {
                spec
            } else {
                spec.replace("defaults:\n", "defaults:\n  profile: work\n")
            }
        });
    }

    pub fn command(&self, args: &[&str], env: &[(&'static str, String)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodegraft"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env_remove("RUST_BACKTRACE");
        command.env("NODEGRAFT_STATE_DIR", self.dir.path().join("state"));
        if self.dir.path().join("templates").exists() {
            command.env("NODEGRAFT_TEMPLATES", self.dir.path().join("templates"));
        }
        command.envs(env.iter().map(|(key, value)| (*key, value)));
        command.stdin(Stdio::null());
        command
    }

    pub fn start(&self, args: &[&str], env: &[(&'static str, String)]) -> Running {
        // Files, not pipes: a grandchild that keeps a pipe open would look like a run that does not end.
        let out = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(out.path().join(name)).unwrap();
        let child = self
            .command(args, env)
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Running { child, out }
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], env: &[(&'static str, String)]) -> Ran {
        self.start(args, env).end(LIMIT)
    }

    /// `up` through a fault, what follows, and what is true then. Nothing stays.
    pub fn up_through(&self, env: &[(&'static str, String)], follow: Follow) -> Verdict {
        let mut verdict = Verdict::default();
        let hit = self.run_with(&["up"], env);
        // Done, refused, failed, or killed; anything else is a bug of ours, or never ended.
        verdict.expect("up with the fault", &hit, &[0, 4, 5, -9]);
        self.after(follow, &mut verdict);
        verdict
    }

    /// From whatever state the node is in, by one road to where nothing of it is left.
    pub fn after(&self, follow: Follow, verdict: &mut Verdict) {
        if follow == Follow::Up {
            verdict.expect("the next up", &self.run(&["up"]), &[0]);
            verdict.left.extend(self.secrets());
        }
        let down = self.run(&["down"]);
        verdict.expect("down", &down, &[0]);
        verdict.left.extend(self.left());
        verdict.left.extend(self.secrets());
        verdict.touched.extend(self.strangers.touched());
        self.clear();
    }

    /// Whatever bears our mark or our names, as libvirt and the pool's directory tell.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .domains()
            .into_iter()
            .map(|name| format!("the domain {name} is left"))
            .collect();
        left.extend(
            self.files()
                .iter()
                .map(|path| format!("{} is left", path.display())),
        );
        left
    }

    fn domains(&self) -> Vec<String> {
        let names = virsh(&self.uri, &["list", "--all", "--name"]);
        let ours = |name: &&str| {
            let xml = virsh_output(&self.uri, &["dumpxml", name]);
            **name == self.node
                || xml.contains("nodegraft:node")
                    && xml.contains(&format!("cluster='{}'", self.cluster))
        };
        names
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .filter(ours)
            .map(str::to_owned)
            .collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let prefix = format!("nodegraft.{}.", self.cluster);
        let mut files: Vec<PathBuf> = fs::read_dir(&self.strangers.target)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.retain(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&prefix)
                && !self.strangers.owns(path)
        });
        files
    }

    /// Private keys and tokens where none may be: seeds that are left, logs, the marks and arguments of domains.
    pub fn secrets(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |place: String, bytes: &[u8]| {
            found.extend(secret(bytes).map(|what| format!("{what} is in {place}")))
        };
        for path in self
            .files()
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(".img"))
        {
            look(path.display().to_string(), &fs::read(path).unwrap());
        }
        for path in files_below(&self.dir.path().join("state")) {
            // The login key itself is kept there for the user.
            if path.file_name().is_some_and(|name| name != "id_ed25519") {
                look(path.display().to_string(), &fs::read(&path).unwrap());
            }
        }
        for name in self.domains() {
            look(
                format!("the XML of {name}"),
                virsh_output(&self.uri, &["dumpxml", "--security-info", &name]).as_bytes(),
            );
        }
        // The lab has a process namespace of its own: QEMU's arguments are seen here.
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path().join("cmdline");
            let arguments = fs::read(&path).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(&self.node) {
                look(path.display().to_string(), &arguments);
            }
        }
        found
    }

    /// By force, so that one failure does not spoil what comes after it.
    pub fn clear(&self) {
        for name in self.domains() {
            virsh_output(&self.uri, &["destroy", &name]);
            virsh_output(&self.uri, &["undefine", "--nvram", &name]);
        }
        for path in self.files() {
            fs::remove_file(path).unwrap();
        }
        virsh_output(&self.uri, &["pool-refresh", self.pool]);
        // The kernel remembers who had the address for some seconds more; the next fault finds it free.
        let _ = Command::new("ip")
            .args(["neigh", "flush", "to", &self.ip])
            .output();
    }

    /// Runs a command in the guest by the system's own ssh.
    pub fn guest(&self, command: &str) -> String {
        let output = ssh(
            &self
                .dir
                .path()
                .join("state")
                .join(&self.cluster)
                .join("id_ed25519"),
            &self.ip,
            command,
        );
        text(&output)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A nodegraft at work.
pub struct Running {
    pub child: Child,
    out: TempDir,
}

impl Running {
    pub fn end(mut self, limit: Duration) -> Ran {
        let begun = Instant::now();
        let mut status = self.child.try_wait().unwrap();
        while status.is_none() && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(20));
            status = self.child.try_wait().unwrap();
        }
        if status.is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        let code = status.map(|status| {
            status
                .code()
                .unwrap_or_else(|| -status.signal().unwrap_or(0))
        });
        let read = |name: &str| {
            String::from_utf8_lossy(&fs::read(self.out.path().join(name)).unwrap()).into_owned()
        };
        Ran {
            code,
            stdout: read("out"),
            stderr: read("err"),
        }
    }
}

impl Verdict {
    pub fn expect(&mut self, what: &str, ran: &Ran, codes: &[i32]) {
        match ran.code {
            Some(code) if codes.contains(&code) => {}
            Some(code) => self
                .wrong
                .push(format!("{what} exits {code}: {}", end_of(&ran.stderr))),
            None => self
                .wrong
                .push(format!("{what} does not end: {}", end_of(&ran.stderr))),
        }
        if let Some(what) = secret(ran.stdout.as_bytes()).or_else(|| secret(ran.stderr.as_bytes()))
        {
            self.left.push(format!("{what} is in what was printed"));
        }
    }
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(12)..].join("\n    ")
}

/// A private key's first line, or what looks like a bootstrap token: six and sixteen characters around a dot.
fn secret(bytes: &[u8]) -> Option<&'static str> {
    if bytes.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Some("a private key");
    }
    let of_token = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let around = |at: usize| {
        let before = bytes[..at]
            .iter()
            .rev()
            .take_while(|byte| of_token(byte))
            .count();
        let after = bytes[at + 1..]
            .iter()
            .take_while(|byte| of_token(byte))
            .count();
        before == 6 && after == 16
    };
    bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'.' && around(at))
        .then_some("a token")
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let entries = entries.map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

pub fn virsh_output(uri: &str, args: &[&str]) -> String {
    text(
        &Command::new("virsh")
            .arg("-q")
            .args(["-c", uri])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap(),
    )
}

pub fn virsh(uri: &str, args: &[&str]) -> String {
    let output = Command::new("virsh")
        .arg("-q")
        .args(["-c", uri])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "virsh {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn secrets_are_known_when_seen() {
    assert_eq!(
        secret(b"a\n-----BEGIN OPENSSH PRIVATE KEY-----\n"),
        Some("a private key")
    );
    assert_eq!(secret(b"token: abcdef.0123456789abcdef\n"), Some("a token"));
    assert_eq!(
        secret(b"nodegraft.example.qcow2 12.0123456789abcdef abcdef.0123456789abcdef0"),
        None
    );
}
