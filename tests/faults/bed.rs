//! A cluster of one tiny node that joins nothing, with strangers beside it: what a fault is tried on. A run that does not
//! end is a failure too. What is left and what was touched is asked of libvirt and the pool's directory.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::bystanders::Strangers;
use super::preload::fault;
use crate::fixture::{Draft, Exit, Home, Ran};
use crate::in_lab::libvirt::{POOL, domains, uri, virsh_output};
use crate::in_lab::world::tiny_spec;
use crate::in_lab::{ssh, state, text};

/// No run of one tiny node takes longer, whatever fails.
const LIMIT: Duration = Duration::from_secs(240);

pub struct Bed {
    home: Home,
    pub cluster: String,
    pub node: String,
    pub ip: String,
    pub uri: String,
    pool: &'static str,
    strangers: Strangers,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    Up,
    Down,
}

/// What one fault came to. All empty is well.
#[derive(Default)]
#[must_use = "it goes into a row"]
pub struct Verdict {
    /// Runs that ended as they must not.
    pub wrong: Vec<String>,
    pub left: Vec<String>,
    pub touched: Vec<String>,
}

impl Bed {
    pub fn new(cluster: &str, ip: &str) -> Self {
        Self::on(cluster, ip, &uri(), POOL, state().join("pool"))
    }

    /// On another host, or in another pool.
    pub fn on(cluster: &str, ip: &str, uri: &str, pool: &'static str, target: PathBuf) -> Self {
        let node = format!("{cluster}-1");
        let spec = tiny_spec(cluster, uri, pool)
            .add("defaults.dns", json!(["192.168.3.1"]))
            .add(
                "defaults.deadlines",
                json!({"boot": "2m", "login": "1m", "step": "1m"}),
            )
            .push(
                "nodes",
                json!({"name": node, "address": format!("{ip}/24")}),
            );
        let strangers = Strangers::new(uri, target, cluster, &node);
        Self {
            home: Home::of(&spec.text()).with_limit(LIMIT),
            cluster: cluster.into(),
            node,
            ip: ip.into(),
            uri: uri.into(),
            pool,
            strangers,
        }
    }

    /// With a change to its spec.
    #[track_caller]
    pub fn with(self, change: impl FnOnce(Draft) -> Draft) -> Self {
        self.edit(change);
        self
    }

    /// With a profile of one step.
    pub fn with_step(self, script: &str) -> Self {
        self.step(script);
        self.with(|spec| spec.add("defaults.profile", "work"))
    }

    /// A node whose `up` was killed as it was to be started: it is all there, and nobody waited for its boot.
    #[track_caller]
    pub fn claim(&self) {
        self.run_with(&["up"], &fault("kill@virDomainResume:1"))
            .is_killed();
    }

    /// `up` through a fault, what follows, and what is true then. Nothing stays.
    pub fn up_through(&self, env: &[(&'static str, String)], follow: Follow) -> Verdict {
        let mut verdict = Verdict::default();
        let hit = self.run_with(&["up"], env);
        // Anything else is a bug of ours, or never ended.
        verdict.may_be_killed(
            "up with the fault",
            &hit,
            &[Exit::Done, Exit::Unfit, Exit::NodesFailed],
        );
        self.after(follow, &mut verdict);
        verdict
    }

    /// From whatever state the node is in, by one road to where nothing of it is left.
    pub fn after(&self, follow: Follow, verdict: &mut Verdict) {
        if follow == Follow::Up {
            verdict.expect("the next up", &self.run(&["up"]), &[Exit::Done]);
            verdict.left.extend(self.secrets());
        }
        let down = self.run(&["down"]);
        verdict.expect("down", &down, &[Exit::Done]);
        verdict.left.extend(self.left());
        verdict.left.extend(self.secrets());
        verdict.touched.extend(self.strangers.touched());
        self.clear();
    }

    /// Taken down where no fault was: nothing is wrong then.
    #[track_caller]
    pub fn down(&self) {
        let mut verdict = Verdict::default();
        self.after(Follow::Down, &mut verdict);
        let Verdict {
            wrong,
            left,
            touched,
        } = verdict;
        assert_eq!([wrong, left, touched].concat(), [] as [String; 0]);
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
        let mut ours = domains(&self.uri);
        ours.retain(|name| {
            let xml = virsh_output(&self.uri, &["dumpxml", name]);
            *name == self.node
                || xml.contains("nodegraft:node")
                    && xml.contains(&format!("cluster='{}'", self.cluster))
        });
        ours
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
        for path in files_below(&self.path("state")) {
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

    /// What a command says in the guest, by the system's own ssh, or why it does not.
    pub fn guest(&self, command: &str) -> String {
        let key = self.state(&self.cluster).join("id_ed25519");
        text(&ssh(&key, &self.ip, command))
    }
}

impl Deref for Bed {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.home
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Verdict {
    /// A run that must have ended in one of these ways, and printed no secret.
    pub fn expect(&mut self, what: &str, ran: &Ran, exits: &[Exit]) {
        self.ended(what, ran, exits, false);
    }

    /// The same of one that the fault may have killed.
    pub fn may_be_killed(&mut self, what: &str, ran: &Ran, exits: &[Exit]) {
        self.ended(what, ran, exits, true);
    }

    fn ended(&mut self, what: &str, ran: &Ran, exits: &[Exit], or_killed: bool) {
        let how = match ran.code {
            Some(-9) if or_killed => None,
            Some(code) if exits.iter().any(|exit| *exit as i32 == code) => None,
            Some(code) => Some(format!("exits {code}")),
            None => Some("does not end".to_owned()),
        };
        self.wrong
            .extend(how.map(|how| format!("{what} {how}: {}", end_of(&ran.stderr))));
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
