//! What is not ours and looks as if it were: it must be byte for byte as before, whatever fails and whatever is removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::in_lab::kubernetes::{kubectl, kubectl_output};
use crate::in_lab::libvirt::{virsh_on, virsh_output};
use crate::in_lab::text;

/// On a libvirt host: a domain and volumes with confusing names.
pub struct Strangers {
    uri: String,
    /// The pool's directory.
    pub target: PathBuf,
    domain: String,
    before: String,
    volumes: Vec<PathBuf>,
}

impl Strangers {
    /// `target` is the directory of the pool.
    pub fn new(uri: &str, target: PathBuf, cluster: &str, node: &str) -> Self {
        let domain = format!("{node}-old");
        virsh_output(uri, &["undefine", &domain]);
        let volumes: Vec<PathBuf> = [
            format!("nodegraft.{cluster}.{node}-old.qcow2"),
            format!("nodegraft.{cluster}.{node}.12345678.qcow2"),
            format!("nodegraft.{cluster}.{node}.12345678.seed.img"),
            format!("nodegraft.{cluster}-old.{node}.qcow2"),
        ]
        .iter()
        .map(|name| target.join(name))
        .collect();
        let mut strangers = Self {
            uri: uri.into(),
            target,
            domain,
            before: String::new(),
            volumes,
        };
        for path in &strangers.volumes {
            fs::write(path, content(path)).unwrap();
        }
        let xml = format!(
            "<domain type='qemu'><name>{}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
            strangers.domain,
            strangers.volumes[0].display()
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), xml).unwrap();
        virsh_on(uri, &["define", &file.path().display().to_string()]);
        strangers.before = strangers.look();
        strangers
    }

    pub fn owns(&self, path: &Path) -> bool {
        self.volumes.iter().any(|volume| volume == path)
    }

    /// What is not as it was.
    pub fn touched(&self) -> Vec<String> {
        let mut touched = Vec::new();
        if self.look() != self.before {
            touched.push(format!("the stranger's domain {} was touched", self.domain));
        }
        for path in &self.volumes {
            if fs::read(path).ok().as_deref() != Some(&content(path)[..]) {
                touched.push(format!(
                    "the stranger's volume {} was touched",
                    path.display()
                ));
                // The next fault finds it again.
                fs::write(path, content(path)).unwrap();
            }
        }
        touched
    }

    fn look(&self) -> String {
        virsh_output(&self.uri, &["dumpxml", "--inactive", &self.domain])
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        virsh_output(&self.uri, &["undefine", &self.domain]);
        for path in &self.volumes {
            let _ = fs::remove_file(path);
        }
    }
}

/// Bytes that no other volume has.
fn content(path: &Path) -> Vec<u8> {
    Sha256::digest(path.to_string_lossy().as_bytes()).repeat(64)
}

/// In a cluster: a Node, a request, a token and a binding with confusing names. Made and compared with kubectl.
pub struct ClusterStrangers {
    version: &'static str,
    objects: Vec<String>,
    before: Vec<String>,
}

impl ClusterStrangers {
    pub fn new(version: &'static str, cluster: &str, node: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("strangers.yaml");
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}-old\n  labels: {{kubernetes.io/hostname: {node}, app.kubernetes.io/managed-by: nodegraft}}\n  \
             annotations: {{nodegraft.io/cluster: {cluster}, nodegraft.io/node: {node}}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata:\n  name: bootstrap-token-{token}\n  namespace: kube-system\n  labels: {{app.kubernetes.io/managed-by: nodegraft}}\n  \
             annotations: {{nodegraft.io/cluster: {cluster}-old, nodegraft.io/node: {node}}}\ntype: bootstrap.kubernetes.io/token\n\
             stringData: {{token-id: '{token}', token-secret: '0123456789abcdef', usage-bootstrap-authentication: 'true'}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: 'nodegraft:{cluster}-old:node-bootstrapper', labels: {{app.kubernetes.io/managed-by: nodegraft}}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:node-bootstrapper}}\n\
             subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:bootstrappers:nodegraft:{cluster}-old'}}]\n",
            token = token_id(cluster),
        );
        fs::write(&manifest, text).unwrap();
        let objects = [
            format!("/api/v1/nodes/{node}-old"),
            format!(
                "/api/v1/namespaces/kube-system/secrets/bootstrap-token-{}",
                token_id(cluster)
            ),
            format!(
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:{cluster}-old:node-bootstrapper"
            ),
            format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{node}-old"),
        ];
        let mut strangers = Self {
            version,
            objects: objects.to_vec(),
            before: Vec::new(),
        };
        strangers.remove();
        kubectl(version, &["create", "-f", &manifest.display().to_string()]);
        // In the node's own name, by somebody else, for a signer whom nobody serves: it stays as it is.
        let csr = dir.path().join("csr.yaml");
        fs::write(&csr, request(&format!("{node}-old"), node)).unwrap();
        kubectl(version, &["create", "-f", &csr.display().to_string()]);
        strangers.before = strangers.look();
        strangers
    }

    pub fn touched(&self) -> Vec<String> {
        let changed = self
            .objects
            .iter()
            .zip(self.look())
            .zip(&self.before)
            .filter(|((_, now), before)| now != *before);
        changed
            .map(|((path, now), _)| format!("the stranger {path} was touched: it is {now}"))
            .collect()
    }

    /// What nobody but a person changes: controllers write to a Node's status, taints and annotations.
    fn look(&self) -> Vec<String> {
        let kept = |path: &String| {
            let output = kubectl_output(self.version, &["get", "--raw", path]);
            let Ok(mut object) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
                return text(&output);
            };
            if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                annotations.retain(|key, _| key.starts_with("nodegraft.io/"));
            }
            let metadata = &object["metadata"];
            let spec = if object["kind"] == "Node" {
                &object["spec"]["unschedulable"]
            } else {
                &object["spec"]
            };
            let parts = [
                &metadata["uid"],
                &metadata["labels"],
                &metadata["annotations"],
                spec,
                &object["data"],
                &object["subjects"],
            ];
            format!(
                "{parts:?} {}",
                if object["kind"] == "Node" {
                    String::new()
                } else {
                    object["status"].to_string()
                }
            )
        };
        self.objects.iter().map(kept).collect()
    }

    fn remove(&self) {
        for path in &self.objects {
            kubectl_output(self.version, &["delete", "--raw", path]);
        }
    }
}

impl Drop for ClusterStrangers {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Six characters that depend on the name, so that tests do not share one.
fn token_id(cluster: &str) -> String {
    Sha256::digest(cluster)
        .iter()
        .take(3)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn request(name: &str, node: &str) -> String {
    use base64::Engine as _;
    let subject = format!("/O=system:nodes/CN=system:node:{node}");
    let made = Command::new("openssl")
        .args([
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "/dev/null",
            "-subj",
            &subject,
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  request: {}\n  \
         signerName: example.com/nobody\n  usages: [digital signature, client auth]\n",
        base64::engine::general_purpose::STANDARD.encode(made.stdout)
    )
}
