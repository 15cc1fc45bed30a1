//! The lab's Kubernetes, asked by kubectl: two versions, each with an API server of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use super::{must, state, text, variable};

/// The seed's own version, and the one people run today.
pub const OLD: &str = "v1.18.3";
pub const NEW: &str = "v1.35.4";

pub fn kubernetes(version: &str) -> PathBuf {
    state().join("kubernetes").join(version)
}

/// The administrator's kubeconfig, as an argument.
pub fn admin(version: &str) -> String {
    kubernetes(version).join("admin.conf").display().to_string()
}

pub fn server(version: &str) -> &'static str {
    if version == OLD {
        "https://192.168.3.102:6443"
    } else {
        "https://192.168.3.101:6443"
    }
}

/// A program of that version's, such as the kubelet.
pub fn program(version: &str, name: &str) -> PathBuf {
    PathBuf::from(variable("NODEGRAFT_LAB_KUBERNETES"))
        .join(version)
        .join(name)
}

/// Held by a test that changes, or looks at, what `access grant` makes: there is one of it in each cluster.
pub fn grants() -> MutexGuard<'static, ()> {
    static GRANTS: Mutex<()> = Mutex::new(());
    GRANTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// kubectl of today for whichever version, with another user's kubeconfig.
pub fn kubectl_as(kubeconfig: &str, args: &[&str]) -> Output {
    Command::new(program(NEW, "kubectl"))
        .args(["--kubeconfig", kubeconfig])
        .args(args)
        .output()
        .unwrap()
}

pub fn kubectl_output(version: &str, args: &[&str]) -> Output {
    kubectl_as(&admin(version), args)
}

#[track_caller]
pub fn kubectl(version: &str, args: &[&str]) -> String {
    let output = kubectl_output(version, args);
    assert!(
        output.status.success(),
        "kubectl {args:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes what a manifest says.
#[track_caller]
pub fn create(version: &str, manifest: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), manifest).unwrap();
    let path = file.path().display().to_string();
    kubectl(version, &["create", "--validate=false", "-f", &path]);
}

/// Whether something is at this path of the API.
pub fn exists(version: &str, path: &str) -> bool {
    let output = kubectl_output(version, &["get", "--raw", path]);
    let said = text(&output);
    assert!(
        output.status.success() || said.contains("NotFound") || said.contains("not found"),
        "{path}: {said}"
    );
    output.status.success()
}

#[track_caller]
pub fn get(version: &str, path: &str) -> Value {
    serde_json::from_str(&kubectl(version, &["get", "--raw", path])).unwrap()
}

/// The bootstrap tokens that nodegraft made and nobody removed.
pub fn tokens(version: &str) -> Vec<Value> {
    let list = get(
        version,
        "/api/v1/namespaces/kube-system/secrets?labelSelector=app.kubernetes.io/managed-by=nodegraft",
    );
    list["items"].as_array().unwrap().clone()
}

/// Those of them for this cluster.
pub fn tokens_of(version: &str, cluster: &str) -> Vec<Value> {
    let mut tokens = tokens(version);
    tokens.retain(|token| token["metadata"]["annotations"]["nodegraft.io/cluster"] == cluster);
    tokens
}

/// All certificate requests.
pub fn requests(version: &str) -> Vec<Value> {
    let api = if version == OLD { "v1beta1" } else { "v1" };
    let list = get(
        version,
        &format!("/apis/certificates.k8s.io/{api}/certificatesigningrequests"),
    );
    list["items"].as_array().unwrap().clone()
}

/// Those that nobody has decided on, made by tokens of this group.
pub fn pending(version: &str, group: &str) -> Vec<Value> {
    let mut requests = requests(version);
    requests.retain(|csr| {
        csr["status"]["conditions"].is_null() && csr["spec"]["groups"].to_string().contains(group)
    });
    requests
}

pub fn uid(node: &str) -> String {
    kubectl(
        NEW,
        &["get", "node", node, "-o", "jsonpath={.metadata.uid}"],
    )
}

/// A Node as the kubelet of a machine would have registered it, in today's cluster. It goes when dropped.
pub struct Node {
    name: &'static str,
    pub uid: String,
}

impl Node {
    pub fn of(name: &'static str, machine_id: &str) -> Self {
        // Made before anything can fail, so that it goes whatever becomes of the test.
        let mut node = Self {
            name,
            uid: String::new(),
        };
        node.register(machine_id);
        node
    }

    /// The same again, after it went.
    pub fn register(&mut self, machine_id: &str) {
        let name = self.name;
        create(NEW, &manifest(name).to_string());
        let mut info: serde_json::Map<String, Value> = [
            "bootID",
            "kernelVersion",
            "osImage",
            "containerRuntimeVersion",
            "kubeletVersion",
            "kubeProxyVersion",
            "operatingSystem",
            "architecture",
            "systemUUID",
        ]
        .map(|key| (key.to_owned(), "x".into()))
        .into_iter()
        .collect();
        info.insert("machineID".into(), machine_id.into());
        let mut whole = manifest(name);
        whole["status"] = serde_json::json!({
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "it says"}],
            "nodeInfo": info,
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), whole.to_string()).unwrap();
        let path = file.path().display().to_string();
        let status = format!("/api/v1/nodes/{name}/status");
        kubectl(NEW, &["replace", "--raw", &status, "-f", &path]);
        self.uid = uid(name);
    }
}

/// A Node of that name and no more.
pub fn manifest(name: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

impl Drop for Node {
    fn drop(&mut self) {
        kubectl_output(NEW, &["delete", "node", self.name, "--ignore-not-found"]);
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
        let request =
            format!("req -newkey rsa:2048 -nodes -keyout {key} -out {csr} -subj /CN={name}");
        must("openssl", &request.split(' ').collect::<Vec<_>>());
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
        let (role, binding) = (
            format!("clusterrole/{}", self.name),
            format!("clusterrolebinding/{}", self.name),
        );
        kubectl_output(NEW, &["delete", &role, &binding]);
    }
}
