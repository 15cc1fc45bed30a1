//! Tests against the real thing: libvirtd, guests, sshd, API servers. Each has a cluster name and addresses of its own,
//! so they run side by side. What is true is asked of libvirt, the guest and the API server.

mod centos7;
mod chapters;
mod effect;
mod first_boot;
mod machines;
pub mod ownership;
mod refusals;
mod roads;
mod troubles;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The seed's own version, and the one people run today.
pub const OLD: &str = "v1.18.3";
pub const NEW: &str = "v1.35.4";

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: lab tests run inside the lab, by `make test`")
    })
}

pub fn state() -> PathBuf {
    PathBuf::from(variable("NODEGRAFT_LAB_STATE"))
}

pub fn kubernetes(version: &str) -> PathBuf {
    state().join("kubernetes").join(version)
}

pub fn kubelet(version: &str) -> PathBuf {
    PathBuf::from(variable("NODEGRAFT_LAB_KUBERNETES"))
        .join(version)
        .join("kubelet")
}

/// Held by a test that changes, or looks at, what `access grant` makes: there is one of it in each cluster.
pub static GRANTS: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A cluster of one test: its spec, its state directory, its home. Taken down when dropped.
pub struct World {
    pub name: String,
    pub dir: TempDir,
    pub version: &'static str,
    nodes: Vec<String>,
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    /// A spec with this lab's host and defaults; `nodes` are lines of the list, `change` edits the text.
    pub fn new(
        name: &str,
        version: &'static str,
        nodes: &[&str],
        change: impl Fn(String) -> String,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (profile, template) = if version == OLD {
            ("debian-docker", "debian12")
        } else {
            ("debian-containerd", "debian13")
        };
        // The older image has no cloud-init.
        let first_boot = if version == OLD {
            "  first_boot: inject\n"
        } else {
            ""
        };
        let sum = Command::new("sha256sum")
            .arg(kubelet(version))
            .output()
            .unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        let text = format!(
            "version: 1\n\
             cluster:\n  name: {name}\n  kubeconfig: {}\n\
             host:\n  uri: {}\n  pool: kvmimage\n  network: {{bridge: br0}}\n  disk_cache: unsafe\n\
             defaults:\n  template: {template}.qcow2\n  profile: {profile}\n  cpus: 1\n  memory: 2GiB\n  disk: 8GiB\n  \
             gateway: 192.168.3.1\n  dns: [192.168.3.1]\n{first_boot}  deadlines: {{boot: 10m, login: 10m, join: 10m, ready: 10m}}\n  \
             kubelet:\n    version: {}\n    url: http://192.168.3.1/kubernetes/{version}/kubelet\n    sha256: {}\n\
             nodes:\n{}",
            kubernetes(version).join("admin.conf").display(),
            variable("NODEGRAFT_LAB_URI"),
            version.trim_start_matches('v'),
            sum.split_whitespace().next().unwrap(),
            nodes
                .iter()
                .map(|node| format!("  - {node}\n"))
                .collect::<String>(),
        );
        fs::write(dir.path().join("cluster.yaml"), change(text)).unwrap();
        let names = nodes
            .iter()
            .map(|node| {
                node.split("name: ")
                    .nth(1)
                    .unwrap()
                    .split([',', '}'])
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        Self {
            name: name.to_owned(),
            dir,
            version,
            nodes: names,
        }
    }

    /// VMs of the tiny image that join nothing: they boot in seconds, and have no kubelet. `nodes` are names and last bytes of
    /// addresses.
    pub fn tiny(name: &str, nodes: &[(&str, u8)], change: impl Fn(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let list: String = nodes
            .iter()
            .map(|(name, byte)| format!("  - {{name: {name}, address: 192.168.3.{byte}/24}}\n"))
            .collect();
        let text = format!(
            "version: 1\ncluster:\n  name: {name}\n  join: false\nhost:\n  uri: {}\n  pool: kvmimage\n  network: {{bridge: br0}}\n  disk_cache: unsafe\n\
             defaults:\n  template: tiny.qcow2\n  cpus: 1\n  memory: 256MiB\n  disk: 1GiB\n  gateway: 192.168.3.1\nnodes:\n{list}",
            variable("NODEGRAFT_LAB_URI"),
        );
        fs::write(dir.path().join("cluster.yaml"), change(text)).unwrap();
        let names = nodes.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self {
            name: name.to_owned(),
            dir,
            version: NEW,
            nodes: names,
        }
    }

    /// The spec with today's cluster in it: `down` needs no more than that, and what it says of nodes may be anything.
    pub fn joins(&self) {
        let kubeconfig = kubernetes(NEW).join("admin.conf");
        self.edit(|spec| {
            spec.replace(
                "  join: false\n",
                &format!("  kubeconfig: {}\n", kubeconfig.display()),
            )
        });
    }

    pub fn edit(&self, change: impl Fn(String) -> String) {
        let path = self.dir.path().join("cluster.yaml");
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// A template of this test's own.
    pub fn template(&self, name: &str, text: &str) {
        let path = self.dir.path().join("templates").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodegraft"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("NODEGRAFT_STATE_DIR", self.dir.path().join("state"))
            .env_remove("RUST_BACKTRACE");
        if self.dir.path().join("templates").exists() {
            command.env("NODEGRAFT_TEMPLATES", self.dir.path().join("templates"));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(&self, args: &[&str]) -> Child {
        eprintln!("[{}] $ nodegraft {}", self.name, args.join(" "));
        self.command(args).spawn().unwrap()
    }

    /// The same in an environment with more in it, such as a fault.
    pub fn run_with(&self, args: &[&str], env: &[(&'static str, String)]) -> Ran {
        eprintln!(
            "[{}] $ nodegraft {} with {env:?}",
            self.name,
            args.join(" ")
        );
        self.end(
            self.command(args)
                .envs(env.iter().map(|(key, value)| (*key, value)))
                .spawn()
                .unwrap(),
        )
    }

    /// Runs nodegraft to its end, its story shown as it comes.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.end(self.start(args))
    }

    pub fn end(&self, mut child: Child) -> Ran {
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let name = self.name.clone();
        let told = std::thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                eprintln!("[{name}] {line}");
                all.push_str(&line);
                all.push('\n');
            }
            all
        });
        let mut stdout = String::new();
        BufReader::new(out)
            .lines()
            .map_while(Result::ok)
            .for_each(|line| {
                stdout.push_str(&line);
                stdout.push('\n');
            });
        let status = child.wait().unwrap();
        Ran {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: told.join().unwrap(),
        }
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        kubectl(self.version, args)
    }

    /// Runs a command in a guest by the system's own ssh.
    pub fn guest(&self, ip: &str, command: &str) -> String {
        let output = ssh(
            &self
                .dir
                .path()
                .join("state")
                .join(&self.name)
                .join("id_ed25519"),
            ip,
            command,
        );
        assert!(
            output.status.success(),
            "`{command}` in {ip}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Nothing of this cluster is left, as libvirt and the API server tell it.
    pub fn assert_nothing_left(&self) {
        let domains = virsh(&["list", "--all", "--name"]);
        let volumes = virsh(&["vol-list", "kvmimage"]);
        for node in &self.nodes {
            assert!(
                domains.lines().all(|line| line.trim() != node),
                "the domain {node} is left"
            );
            let found = kubectl_output(
                self.version,
                &["get", "--raw", &format!("/api/v1/nodes/{node}")],
            );
            assert!(
                text(&found).contains("NotFound") || text(&found).contains("not found"),
                "the Node {node} is left: {}",
                text(&found)
            );
            let lease = kubectl_output(
                self.version,
                &[
                    "get",
                    "--raw",
                    &format!(
                        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"
                    ),
                ],
            );
            assert!(
                text(&lease).contains("NotFound") || text(&lease).contains("not found"),
                "the lease of {node} is left"
            );
            let csrs = self.csrs();
            assert!(
                !csrs.contains(&format!("\"username\":\"system:node:{node}\"")),
                "a request of {node} is left"
            );
        }
        assert!(
            !volumes.contains(&format!("nodegraft.{}.", self.name)),
            "volumes are left:\n{volumes}"
        );
        let tokens =
            self.kubectl(&["get", "--raw", "/api/v1/namespaces/kube-system/secrets?labelSelector=app.kubernetes.io/managed-by=nodegraft"]);
        assert!(
            !tokens.contains(&format!("\"nodegraft.io/cluster\":\"{}\"", self.name)),
            "tokens are left: {tokens}"
        );
        let binding = kubectl_output(
            self.version,
            &[
                "get",
                "--raw",
                &format!(
                    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:{}:node-bootstrapper",
                    self.name
                ),
            ],
        );
        assert!(!binding.status.success(), "our role binding is left");
    }

    pub fn csrs(&self) -> String {
        let version = if self.version == OLD { "v1beta1" } else { "v1" };
        self.kubectl(&[
            "get",
            "--raw",
            &format!("/apis/certificates.k8s.io/{version}/certificatesigningrequests"),
        ])
    }

    /// Makes a certificate request in a node's name by openssl; `more` are arguments of that, `by` of kubectl.
    pub fn request(
        &self,
        name: &str,
        node: &str,
        signer: &str,
        usages: &str,
        more: &[&str],
        by: &[&str],
    ) {
        use base64::Engine as _;
        let path = |end: &str| {
            self.dir
                .path()
                .join(format!("{name}.{end}"))
                .display()
                .to_string()
        };
        let (key, csr, subject) = (
            path("key"),
            path("csr"),
            format!("/O=system:nodes/CN=system:node:{node}"),
        );
        must(
            "openssl",
            &[
                &[
                    "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &csr, "-subj",
                    &subject,
                ],
                more,
            ]
            .concat(),
        );
        let request = base64::engine::general_purpose::STANDARD.encode(fs::read(&csr).unwrap());
        let manifest = format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  request: {request}\n  \
             signerName: {signer}\n  usages: {usages}\n"
        );
        fs::write(path("yaml"), manifest).unwrap();
        self.kubectl(&[by, &["create", "-f", &path("yaml")]].concat());
    }

    /// The Node's Ready condition, as the API server tells it.
    pub fn ready(&self, node: &str) -> bool {
        let output = kubectl_output(
            self.version,
            &["get", "--raw", &format!("/api/v1/nodes/{node}")],
        );
        let Ok(node) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            return false;
        };
        node["status"]["conditions"]
            .as_array()
            .is_some_and(|conditions| {
                conditions
                    .iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A world's own `down` is part of its test; this one is for tests that failed half-way.
        let _ = self.command(&["down"]).output();
    }
}

/// A kubeconfig for a user of today's cluster who has these rules and no others. The role goes when it is dropped.
pub struct Limited {
    dir: TempDir,
    name: &'static str,
}

impl Limited {
    pub fn new(name: &'static str, rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let ca = |name: &str| kubernetes(NEW).join(name).display().to_string();
        let (key, csr, crt, extensions) =
            (path("key"), path("csr"), path("crt"), path("extensions"));
        must(
            "openssl",
            &[
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                &key,
                "-out",
                &csr,
                "-subj",
                &format!("/CN={name}"),
            ],
        );
        fs::write(&extensions, "extendedKeyUsage=clientAuth\n").unwrap();
        let sign = format!(
            "x509 -req -in {csr} -CA {} -CAkey {} -set_serial 4711 -days 2 -extfile {extensions} -out {crt}",
            ca("pki/ca.crt"),
            ca("ca.key")
        );
        must("openssl", &sign.split(' ').collect::<Vec<_>>());
        let role = format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {name}}}\nrules:\n{rules}---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {name}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}\nsubjects: [{{kind: User, name: {name}, apiGroup: rbac.authorization.k8s.io}}]\n"
        );
        fs::write(path("role.yaml"), role).unwrap();
        kubectl(NEW, &["apply", "-f", &path("role.yaml")]);
        // Paths relative to the kubeconfig, as kubectl reads them.
        fs::copy(ca("pki/ca.crt"), path("ca.crt")).unwrap();
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: https://192.168.3.101:6443\n    certificate-authority: ca.crt\n\
                    users:\n- name: u\n  user:\n    client-certificate: crt\n    client-key: key\ncontexts:\n- name: c\n  context: {cluster: c, user: u}\n";
        fs::write(path("limited.conf"), text).unwrap();
        Self { dir, name }
    }

    pub fn kubeconfig(&self) -> String {
        self.dir.path().join("limited.conf").display().to_string()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        kubectl_output(
            NEW,
            &[
                "delete",
                &format!("clusterrole/{}", self.name),
                &format!("clusterrolebinding/{}", self.name),
            ],
        );
    }
}

/// A command in a guest, by the system's own ssh.
pub fn ssh(key: &Path, ip: &str, command: &str) -> Output {
    Command::new("ssh")
        .arg("-i")
        .arg(key)
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=20",
        ])
        .arg(format!("root@{ip}"))
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn virsh(args: &[&str]) -> String {
    let output = Command::new("virsh")
        .arg("-q")
        .args(["-c", &variable("NODEGRAFT_LAB_URI")])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "virsh {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub fn kubectl_output(version: &str, args: &[&str]) -> Output {
    let kubectl = PathBuf::from(variable("NODEGRAFT_LAB_KUBERNETES"))
        .join(NEW)
        .join("kubectl");
    Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(kubernetes(version).join("admin.conf"))
        .args(args)
        .output()
        .unwrap()
}

pub fn kubectl(version: &str, args: &[&str]) -> String {
    let output = kubectl_output(version, args);
    assert!(
        output.status.success(),
        "kubectl {args:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed.
pub fn must(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        text(&output)
    );
}

/// Waits for something to become true.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < limit,
            "waited {} s for {what}",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
