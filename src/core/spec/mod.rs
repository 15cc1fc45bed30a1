//! What the user wrote: the YAML of `cluster.yaml`, parsed strictly and checked for everything that can be
//! known without a host or a cluster (`check.rs`). Pure; `commands` reads the file. Next: `plan.rs`.

mod check;
mod refusal;
mod value;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use self::check::{is_label, unnameable};
pub use self::check::{is_node_name, parse_address};
use self::refusal::{read, refuse};
pub use self::value::{Size, Span};
use crate::core::error::Result;

pub const VERSION: u32 = 1;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub version: Spanned<u32>,
    pub cluster: Cluster,
    #[serde(default)]
    pub host: Host,
    #[serde(default)]
    pub ssh: Ssh,
    #[serde(default)]
    pub defaults: Defaults,
    pub nodes: Vec<Node>,
}

/// The Kubernetes cluster that nodes join.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub name: Spanned<String>,
    /// Path of a kubeconfig on this machine, or `control_plane` to read admin.conf over SSH.
    pub kubeconfig: Option<String>,
    pub context: Option<String>,
    /// `user@host[:port]` whose /etc/kubernetes/admin.conf and pki/ca.crt are read.
    pub control_plane: Option<Spanned<String>>,
    /// The API server's URL as guests reach it; the kubeconfig's own by default.
    pub server: Option<Spanned<String>>,
    #[serde(default)]
    pub access: Access,
    /// Kubelets ask the cluster for their serving certificates, and we approve those for their own name and address.
    #[serde(default)]
    pub approve_serving: bool,
    /// False for machines that are made and left there: no kubeconfig, no Join, no Ready.
    #[serde(default = "yes")]
    pub join: bool,
}

fn yes() -> bool {
    true
}

/// What may be done so that our tokens are allowed to ask for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Bind our own group if nothing else lets our tokens in.
    #[default]
    Ensure,
    /// Bind nothing; refuse to start where access is missing.
    Require,
    /// Neither check nor bind.
    None,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    pub uri: String,
    pub pool: String,
    pub network: Network,
    pub virt_type: VirtType,
    /// The disks' cache mode, libvirt's word for it; the hypervisor's default if absent.
    pub disk_cache: Option<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".into(),
            pool: "default".into(),
            network: Network::Network("default".into()),
            virt_type: VirtType::Auto,
            disk_cache: None,
        }
    }
}

/// Where the guests' interface is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A bridge of the host, by name.
    Bridge(String),
    /// A libvirt network, by name.
    Network(String),
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Network(name) => write!(f, "network {name}"),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtType {
    /// KVM where it really works, software emulation otherwise.
    #[default]
    Auto,
    Kvm,
    Qemu,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The guests' login user; anyone but root needs password-less sudo.
    pub user: Option<Spanned<String>>,
    /// A private key of yours; by default nodegraft makes one for the cluster.
    pub key: Option<String>,
    /// More public keys to let in, each a line of an authorized_keys file.
    pub authorized_keys: Vec<Spanned<String>>,
}

/// Fields that `defaults` and each node share.
macro_rules! with_settings {
    ($(#[$meta:meta])* $name:ident { $($(#[$extra_meta:meta])* $extra:ident : $extra_type:ty),* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$extra_meta])* pub $extra: $extra_type,)*
            pub template: Option<String>,
            pub profile: Option<String>,
            pub cpus: Option<Spanned<u32>>,
            pub memory: Option<Spanned<Size>>,
            pub disk: Option<Spanned<Size>>,
            pub gateway: Option<Spanned<IpAddr>>,
            pub dns: Option<Vec<IpAddr>>,
            pub search: Option<Vec<String>>,
            pub mtu: Option<Spanned<u32>>,
            pub clone: Option<CloneMode>,
            pub first_boot: Option<FirstBoot>,
            pub kubelet: Option<Spanned<Kubelet>>,
            #[serde(default)]
            pub vars: BTreeMap<String, serde_json::Value>,
            #[serde(default)]
            pub labels: BTreeMap<String, Spanned<String>>,
            #[serde(default)]
            pub taints: Vec<Spanned<String>>,
            #[serde(default)]
            pub deadlines: Deadlines,
        }

        impl $name {
            pub fn settings(&self) -> Settings<'_> {
                Settings {
                    template: self.template.as_deref(), profile: self.profile.as_deref(),
                    cpus: self.cpus.as_ref(), memory: self.memory.as_ref(), disk: self.disk.as_ref(),
                    gateway: self.gateway.as_ref(), dns: self.dns.as_deref(), search: self.search.as_deref(),
                    mtu: self.mtu.as_ref(), clone: self.clone, first_boot: self.first_boot, kubelet: self.kubelet.as_ref(),
                    vars: &self.vars, labels: &self.labels, taints: &self.taints, deadlines: &self.deadlines,
                }
            }
        }
    };
}

with_settings!(
    /// What holds for every node that does not say otherwise.
    #[derive(Default)]
    Defaults {}
);
with_settings!(
    /// One VM that becomes one Kubernetes node.
    Node { name: Spanned<String>, address: Spanned<String>, #[serde(default)] mac: Option<Spanned<String>> }
);

/// A borrowed view of the shared fields, so that the merge is written once.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    pub template: Option<&'a str>,
    pub profile: Option<&'a str>,
    pub cpus: Option<&'a Spanned<u32>>,
    pub memory: Option<&'a Spanned<Size>>,
    pub disk: Option<&'a Spanned<Size>>,
    pub gateway: Option<&'a Spanned<IpAddr>>,
    pub dns: Option<&'a [IpAddr]>,
    pub search: Option<&'a [String]>,
    pub mtu: Option<&'a Spanned<u32>>,
    pub clone: Option<CloneMode>,
    pub first_boot: Option<FirstBoot>,
    pub kubelet: Option<&'a Spanned<Kubelet>>,
    pub vars: &'a BTreeMap<String, serde_json::Value>,
    pub labels: &'a BTreeMap<String, Spanned<String>>,
    pub taints: &'a [Spanned<String>],
    pub deadlines: &'a Deadlines,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloneMode {
    /// A thin qcow2 overlay on the template volume.
    #[default]
    Overlay,
    /// A copy of its own, resized.
    Full,
}

/// Who reads the seed volume in the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstBoot {
    /// What the image has: cloud-init, or our unit in a template that `image prepare` made.
    #[default]
    Image,
    /// Our unit, put into the clone before it boots.
    Inject,
}

impl FirstBoot {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the kubelet comes from. `version` decides which flags it is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubelet {
    pub version: String,
    pub package: Option<String>,
    pub url: Option<String>,
    pub sha256: Option<String>,
    /// A file on this machine, uploaded to the guest.
    pub file: Option<String>,
}

/// How long each wait may take. Every wait has one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    pub boot: Option<Span>,
    pub login: Option<Span>,
    pub step: Option<Span>,
    pub join: Option<Span>,
    pub ready: Option<Span>,
}

/// What a removal needs of a spec: which cluster, which host, which names. The rest may be wrong, or gone.
#[derive(Debug, Clone, Deserialize)]
pub struct Outline {
    pub cluster: Cluster,
    #[serde(default)]
    pub host: Host,
    #[serde(default)]
    pub nodes: Vec<Named>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Named {
    pub name: String,
}

/// A path, or a list of them as `KUBECONFIG` has it, taken as relative to a directory.
pub fn rooted(paths: &str, dir: &Path) -> String {
    let one = |path: &str| match path {
        "" => String::new(),
        _ if path.starts_with('~') => path.to_owned(),
        _ => dir.join(path).to_string_lossy().into_owned(),
    };
    paths.split(':').map(one).collect::<Vec<_>>().join(":")
}

impl Outline {
    /// The same as [`Spec::rooted`].
    pub fn rooted(mut self, dir: &Path) -> Self {
        self.cluster
            .kubeconfig
            .iter_mut()
            .for_each(|path| *path = rooted(path, dir));
        self
    }

    /// `file` only names it in messages.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let outline: Self = read(text, file)?;
        let name = &outline.cluster.name;
        if is_label(&name.value) {
            return Ok(outline);
        }
        Err(refuse(text, file, vec![unnameable(name)]))
    }
}

impl Spec {
    /// With the paths that it names taken as relative to a directory, that of the spec's file. `~` stays as it is.
    pub fn rooted(mut self, dir: &Path) -> Self {
        let root = |path: &mut String| *path = rooted(path, dir);
        self.cluster.kubeconfig.iter_mut().for_each(root);
        self.ssh.key.iter_mut().for_each(root);
        let kubelets = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.kubelet.as_mut());
        for kubelet in self.defaults.kubelet.iter_mut().chain(kubelets) {
            kubelet.value.file.iter_mut().for_each(root);
        }
        self
    }

    /// Parses and checks a spec. `file` only names it in messages.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let spec: Self = read(text, file)?;
        let problems = spec.problems();
        if problems.is_empty() {
            Ok(spec)
        } else {
            Err(refuse(text, file, problems))
        }
    }
}
