//! A cluster of one test: its spec, its state directory, its home; names and addresses of its own.

use std::fs;
use std::ops::Deref;
use std::process::Command;

use serde_json::{Value, json};

use super::kubernetes::{self, NEW, OLD};
use super::libvirt::{self, POOL};
use super::{must, ssh, text};
use crate::fixture::{Draft, Exit, Home};

pub struct World {
    home: Home,
    pub name: String,
    pub version: &'static str,
    nodes: Vec<String>,
    over: bool,
}

impl World {
    /// A cluster of this version on the Debian guests that can run its kubelet, with no node yet.
    pub fn on(version: &'static str, name: &str) -> Self {
        let (profile, template) = if version == OLD {
            ("debian-docker", "debian12")
        } else {
            ("debian-containerd", "debian13")
        };
        let sum = Command::new("sha256sum")
            .arg(kubernetes::program(version, "kubelet"))
            .output()
            .unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        let spec = format!(
            "version: 1\n\
             cluster: {{name: {name}, kubeconfig: {kubeconfig}}}\n\
             host: {{uri: '{uri}', pool: {POOL}, network: {{bridge: br0}}, disk_cache: unsafe}}\n\
             defaults:\n  template: {template}.qcow2\n  profile: {profile}\n  cpus: 1\n  memory: 2GiB\n  disk: 8GiB\n  \
             gateway: 192.168.3.1\n  dns: [192.168.3.1]\n  deadlines: {{boot: 10m, login: 10m, join: 10m, ready: 10m}}\n  \
             kubelet:\n    version: {number}\n    url: http://192.168.3.1/kubernetes/{version}/kubelet\n    sha256: {sum}\n\
             nodes: []\n",
            kubeconfig = kubernetes::admin(version),
            uri = libvirt::uri(),
            number = version.trim_start_matches('v'),
            sum = sum.split_whitespace().next().unwrap(),
        );
        let world = Self::of(name, version, Draft::parse(&spec));
        if version == OLD {
            // The older image has no cloud-init.
            return world.add("defaults.first_boot", "inject");
        }
        world
    }

    /// VMs of the tiny image that join nothing: they boot in seconds, and have no kubelet.
    pub fn tiny(name: &str) -> Self {
        Self::of(name, NEW, tiny_spec(name, &libvirt::uri(), POOL))
    }

    fn of(name: &str, version: &'static str, spec: Draft) -> Self {
        Self {
            home: Home::of(&spec.text()).shown_as(name),
            name: name.to_owned(),
            version,
            nodes: Vec::new(),
            over: false,
        }
    }

    /// One node more, at 192.168.3.`byte`.
    pub fn node(mut self, name: &str, byte: u8) -> Self {
        self.edit(|spec| {
            let address = format!("192.168.3.{byte}/24");
            spec.push("nodes", json!({"name": name, "address": address}))
        });
        self.nodes.push(name.to_owned());
        self
    }

    #[track_caller]
    pub fn set(self, path: &str, value: impl Into<Value>) -> Self {
        self.edit(|spec| spec.set(path, value));
        self
    }

    #[track_caller]
    pub fn add(self, path: &str, value: impl Into<Value>) -> Self {
        self.edit(|spec| spec.add(path, value));
        self
    }

    #[track_caller]
    pub fn remove(self, path: &str) -> Self {
        self.edit(|spec| spec.remove(path));
        self
    }

    /// The tiny VMs' spec with today's cluster in it: `down` needs no more than that, and what it says of nodes may be anything.
    pub fn joins(&self) {
        self.joins_by(&kubernetes::admin(NEW));
    }

    pub fn joins_by(&self, kubeconfig: &str) {
        self.edit(|spec| {
            spec.remove("cluster.join")
                .add("cluster.kubeconfig", kubeconfig)
        });
    }

    /// The UUID of each node's domain. Other tests work on the same host.
    pub fn instances(&self) -> Vec<String> {
        let uuid = |node: &String| libvirt::virsh(&["domuuid", node]);
        self.nodes.iter().map(uuid).collect()
    }

    /// A second `up` with nothing to do.
    #[track_caller]
    pub fn is_unchanged(&self) {
        self.run(&["up"]).exits(Exit::Done).says("nothing to do");
    }

    /// The end of a test: `down` removes all of it.
    #[track_caller]
    pub fn down(mut self) {
        self.run(&["down"]).exits(Exit::Done);
        self.assert_nothing_left();
        self.over = true;
    }

    /// Nothing of this cluster is left, as libvirt and the API server tell it.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = self.machines_left();
        assert!(left.is_empty(), "{}", left.join("\n"));
        let requests = kubernetes::requests(self.version);
        for node in &self.nodes {
            for (what, path) in [
                ("Node", format!("/api/v1/nodes/{node}")),
                (
                    "lease",
                    format!(
                        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"
                    ),
                ),
            ] {
                assert!(
                    !kubernetes::exists(self.version, &path),
                    "the {what} of {node} is left"
                );
            }
            let user = format!("system:node:{node}");
            assert!(
                requests
                    .iter()
                    .all(|request| request["spec"]["username"] != *user),
                "a request of {node} is left"
            );
        }
        assert_eq!(
            kubernetes::tokens_of(self.version, &self.name),
            [] as [Value; 0]
        );
        let binding = format!(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:{}:node-bootstrapper",
            self.name
        );
        assert!(
            !kubernetes::exists(self.version, &binding),
            "our role binding is left"
        );
    }

    /// Its domains and volumes on the first host.
    pub fn machines_left(&self) -> Vec<String> {
        let domains = libvirt::domains(&libvirt::uri());
        let mut left: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| domains.contains(node))
            .map(|node| format!("the domain {node} is left"))
            .collect();
        let prefix = format!("nodegraft.{}.", self.name);
        let volumes = libvirt::volumes(POOL);
        let ours = volumes.iter().filter(|volume| volume.starts_with(&prefix));
        left.extend(ours.map(|volume| format!("the volume {volume} is left")));
        left
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        kubernetes::kubectl(self.version, args)
    }

    /// What this path of a Node holds, such as `{.metadata.uid}`.
    #[track_caller]
    pub fn of_node(&self, node: &str, path: &str) -> String {
        self.kubectl(&["get", "node", node, "-o", &format!("jsonpath={path}")])
    }

    /// The Node's Ready condition, as the API server tells it.
    pub fn ready(&self, node: &str) -> bool {
        let path = format!("/api/v1/nodes/{node}");
        if !kubernetes::exists(self.version, &path) {
            return false;
        }
        let node = kubernetes::get(self.version, &path);
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
    }

    /// What a command in a guest says, by the system's own ssh.
    #[track_caller]
    pub fn guest(&self, ip: &str, command: &str) -> String {
        let output = ssh(&self.key(), ip, command);
        assert!(
            output.status.success(),
            "`{command}` in {ip}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same in a guest that may not be there yet; `None` if it fails.
    pub fn guest_if_up(&self, ip: &str, command: &str) -> Option<String> {
        let output = self.key().exists().then(|| ssh(&self.key(), ip, command))?;
        let said = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(said)
    }

    /// Whether a file is in a guest.
    pub fn guest_has(&self, ip: &str, file: &str) -> bool {
        self.guest(ip, &format!("[ ! -e {file} ] || echo there"))
            .contains("there")
    }

    fn key(&self) -> std::path::PathBuf {
        self.state(&self.name).join("id_ed25519")
    }

    /// The log of a step, as it is kept on this machine.
    pub fn log(&self, node: &str, step: &str) -> String {
        let path = self.state(&self.name).join(node).join("steps").join(step);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
        let path = |end: &str| self.file(&format!("{name}.{end}"));
        let (key, csr) = (path("key"), path("csr"));
        let subject = format!("/O=system:nodes/CN=system:node:{node}");
        let request = [
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &csr, "-subj",
            &subject,
        ];
        must("openssl", &[&request, more].concat());
        let request = base64::engine::general_purpose::STANDARD.encode(fs::read(&csr).unwrap());
        let manifest = format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  request: {request}\n  \
             signerName: {signer}\n  usages: {usages}\n"
        );
        fs::write(path("yaml"), manifest).unwrap();
        self.kubectl(&[by, &["create", "-f", &path("yaml")]].concat());
    }
}

/// A cluster of tiny VMs that joins nothing, with no node yet.
pub fn tiny_spec(name: &str, uri: &str, pool: &str) -> Draft {
    Draft::parse(&format!(
        "version: 1\ncluster: {{name: {name}, join: false}}\n\
         host: {{uri: '{uri}', pool: {pool}, network: {{bridge: br0}}, disk_cache: unsafe}}\n\
         defaults: {{template: tiny.qcow2, cpus: 1, memory: 256MiB, disk: 1GiB, gateway: 192.168.3.1}}\nnodes: []\n"
    ))
}

impl Deref for World {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.home
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A test that failed half-way; its own words count, not those of this.
            let down = |args: &[&str]| self.command(args).output().unwrap().status.success();
            if !down(&["down"]) {
                down(&["down", "--all", "--without-cluster"]);
            }
        } else if !self.over {
            // A test that made nothing, or has seen to it itself.
            let left = self.machines_left();
            if !left.is_empty() {
                let _ = self.command(&["down"]).output();
                panic!("{} was not taken down: {left:?}", self.name);
            }
        }
    }
}
