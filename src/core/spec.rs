//! What the user wrote: the YAML of `cluster.yaml`, parsed strictly and checked for everything that can be
//! known without a host or a cluster. Pure; `commands` reads the file. Next: `plan.rs`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_saphyr::{Location, Spanned};

use crate::core::error::{Error, Result};
use crate::core::label;
use crate::core::taint::Taint;

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
    pub server: Option<String>,
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
    /// Neither check nor bind (the experiment of the seed's chapter 9).
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
    pub user: Option<String>,
    /// A private key of yours; by default nodegraft makes one for the cluster.
    pub key: Option<String>,
    /// More public keys to let in, each a line of an authorized_keys file.
    pub authorized_keys: Vec<String>,
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
            pub clone: Option<Clone>,
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
    pub clone: Option<Clone>,
    pub first_boot: Option<FirstBoot>,
    pub kubelet: Option<&'a Spanned<Kubelet>>,
    pub vars: &'a BTreeMap<String, serde_json::Value>,
    pub labels: &'a BTreeMap<String, Spanned<String>>,
    pub taints: &'a [Spanned<String>],
    pub deadlines: &'a Deadlines,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clone {
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

/// A duration written as `90s`, `10m` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|d| Duration::try_from(d).ok())
            .filter(|d| !d.is_zero())
            .map(Span)
            .ok_or_else(|| format!("`{text}` is not a duration; write for example 90s or 10m"))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A size in bytes, written with its unit: `4GiB`, `512MiB`. `G` and `M` are the binary units, as in libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        if trimmed.ends_with(|c: char| c.is_ascii_digit()) || trimmed.is_empty() {
            return Err(format!(
                "`{text}` has no unit; write for example 4GiB or 512MiB"
            ));
        }
        // A bare G means what it means to libvirt and qemu-img: 1024³.
        let spelled = match trimmed.chars().last() {
            Some('K' | 'M' | 'G' | 'T') => format!("{trimmed}iB"),
            _ => trimmed.to_owned(),
        };
        match spelled.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(Self(size.as_u64())),
            _ => Err(format!(
                "`{text}` is not a size; write for example 4GiB or 512MiB"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mut unit, mut value) = (0, self.0);
        while unit < 4 && value != 0 && value.is_multiple_of(1024) {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value}{}", ["B", "KiB", "MiB", "GiB", "TiB"][unit])
    }
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

impl Outline {
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

fn read<T: de::DeserializeOwned>(text: &str, file: &str) -> Result<T> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().unwrap_or(Location::UNKNOWN);
        let message = error.to_string();
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or(&message)
            .to_owned();
        refuse(
            text,
            file,
            vec![Problem {
                at,
                message,
                help: "see the README for every key a spec may have".into(),
            }],
        )
    })
}

fn unnameable(cluster: &Spanned<String>) -> Problem {
    Problem {
        at: cluster.referenced,
        message: format!("`{}` cannot name a cluster", cluster.value),
        help: "use lower-case letters, digits and `-`, 40 at most".into(),
    }
}

/// Something the spec says that cannot be, and where it says so.
#[derive(Debug)]
struct Problem {
    at: Location,
    message: String,
    help: String,
}

impl Spec {
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

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !is_label(&self.cluster.name.value) {
            problems.push(unnameable(&self.cluster.name));
        }
        let mut problem = |at: Location, message: String, help: &str| {
            problems.push(Problem {
                at,
                message,
                help: help.to_owned(),
            });
        };
        if self.version.value != VERSION {
            problem(
                self.version.referenced,
                format!(
                    "version {} is not known to this nodegraft",
                    self.version.value
                ),
                "write `version: 1`",
            );
        }
        match (&self.cluster.kubeconfig, &self.cluster.control_plane) {
            (Some(_), Some(at)) => problem(
                at.referenced,
                "both `kubeconfig` and `control_plane` are given".into(),
                "keep one: a kubeconfig on this machine, or a host to read admin.conf from",
            ),
            (None, None) if self.cluster.join => problem(
                self.cluster.name.referenced,
                "the cluster has neither `kubeconfig` nor `control_plane`".into(),
                "add `kubeconfig: ~/.kube/config`, or `control_plane: root@192.168.3.101`, or `join: false` for machines only",
            ),
            _ => {}
        }
        if self.nodes.is_empty() {
            problem(
                self.cluster.name.referenced,
                "the spec has no nodes".into(),
                "list at least one under `nodes:`",
            );
        }
        for duplicate in duplicates(self.nodes.iter().map(|n| &n.name)) {
            problem(
                duplicate.referenced,
                format!("the name `{}` is given twice", duplicate.value),
                "names are unique in a spec: change one",
            );
        }
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|n| {
                Some(Spanned::new(
                    parse_address(&n.address.value).ok()?.addr(),
                    n.address.referenced,
                    n.address.defined,
                ))
            })
            .collect();
        for duplicate in duplicates(addresses.iter()) {
            problem(
                duplicate.referenced,
                format!("the address {} is given to two nodes", duplicate.value),
                "every node needs an address of its own",
            );
        }
        let macs: Vec<_> = self.nodes.iter().filter_map(|n| n.mac.as_ref()).collect();
        for duplicate in duplicates(macs.into_iter()) {
            problem(
                duplicate.referenced,
                format!("the MAC {} is given twice", duplicate.value),
                "leave `mac` out: one is derived from the name",
            );
        }
        for settings in
            std::iter::once(self.defaults.settings()).chain(self.nodes.iter().map(Node::settings))
        {
            mark_problems(settings, &mut problem);
        }
        for node in &self.nodes {
            self.node_problems(node, &mut problem);
        }
        problems
    }

    fn node_problems(&self, node: &Node, problem: &mut impl FnMut(Location, String, &str)) {
        if !is_node_name(&node.name.value) {
            problem(
                node.name.referenced,
                format!("`{}` cannot name a Kubernetes node", node.name.value),
                "use lower-case letters, digits, `-` and `.`, starting and ending with a letter or digit",
            );
        }
        let (own, defaults) = (node.settings(), self.defaults.settings());
        let gateway = own.gateway.or(defaults.gateway);
        match parse_address(&node.address.value) {
            Err(message) => problem(
                node.address.referenced,
                message,
                "write the address with its prefix length, for example 192.168.3.104/24",
            ),
            Ok(net)
                if net.addr() == net.network() && net.prefix_len() < net.max_prefix_len() - 1 =>
            {
                problem(
                    node.address.referenced,
                    format!("{} is the address of the network itself", net.addr()),
                    "give the node an address inside the network",
                )
            }
            Ok(IpNet::V4(net)) if net.addr() == net.broadcast() && net.prefix_len() < 31 => {
                problem(
                    node.address.referenced,
                    format!("{} is the broadcast address of {}", net.addr(), net.trunc()),
                    "give the node an address inside the network",
                )
            }
            Ok(net) => match gateway {
                None => problem(
                    node.address.referenced,
                    format!("node {} has no gateway", node.name.value),
                    "set `gateway` under `defaults`, or for this node",
                ),
                Some(gateway) if !net.contains(&gateway.value) => problem(
                    node.address.referenced,
                    format!(
                        "{} is outside the network of its gateway {}: {} does not hold it",
                        net.addr(),
                        gateway.value,
                        net.trunc()
                    ),
                    "correct the address, its prefix length, or the gateway",
                ),
                Some(gateway) if net.addr() == gateway.value => problem(
                    node.address.referenced,
                    format!("{} is the gateway's own address", net.addr()),
                    "give the node an address of its own",
                ),
                Some(_) => {}
            },
        }
        if let Some(mac) = &node.mac
            && !is_mac(&mac.value)
        {
            problem(
                mac.referenced,
                format!("`{}` is not a unicast MAC address", mac.value),
                "write six pairs of hex digits, for example 52:54:00:12:34:56, quoted",
            );
        }
        for (key, present) in [
            ("template", own.template.or(defaults.template).is_some()),
            (
                "profile",
                own.profile.or(defaults.profile).is_some() || !self.cluster.join,
            ),
        ] {
            if !present {
                problem(
                    node.name.referenced,
                    format!("node {} has no `{key}`", node.name.value),
                    "set it under `defaults`, or for this node",
                );
            }
        }
        let limits = [
            (
                "cpus",
                own.cpus
                    .or(defaults.cpus)
                    .map(|s| (s.referenced, u64::from(s.value))),
                1,
            ),
            (
                "memory",
                own.memory
                    .or(defaults.memory)
                    .map(|s| (s.referenced, s.value.0)),
                256 << 20,
            ),
            (
                "disk",
                own.disk
                    .or(defaults.disk)
                    .map(|s| (s.referenced, s.value.0)),
                1 << 30,
            ),
            (
                "mtu",
                own.mtu
                    .or(defaults.mtu)
                    .map(|s| (s.referenced, u64::from(s.value))),
                576,
            ),
        ];
        for (key, value, least) in limits {
            if let Some((at, value)) = value
                && value < least
            {
                let (value, least) = if key == "memory" || key == "disk" {
                    (Size(value).to_string(), Size(least).to_string())
                } else {
                    (value.to_string(), least.to_string())
                };
                problem(
                    at,
                    format!("{key} {value} is less than {least}"),
                    "ask for more",
                );
            }
        }
        if let Some(kubelet) = own.kubelet.or(defaults.kubelet)
            && let Err((message, help)) = check_kubelet(&kubelet.value)
        {
            problem(kubelet.referenced, message, help);
        }
    }
}

/// Labels and taints that Kubernetes would not take.
fn mark_problems(settings: Settings<'_>, problem: &mut impl FnMut(Location, String, &str)) {
    for (key, value) in settings.labels {
        if let Err(message) = label::check_key(key) {
            problem(
                value.referenced,
                format!("`{key}` cannot be a label's key: {message}"),
                "write it as in `disk` or `example.com/disk`",
            );
        }
        if let Err(message) = label::check_value(&value.value) {
            problem(
                value.referenced,
                format!(
                    "`{}` cannot be the value of the label `{key}`: {message}",
                    value.value
                ),
                "shorten it, or write `-` for what it may not have",
            );
        }
    }
    let mut seen: Vec<Taint> = Vec::new();
    for text in settings.taints {
        match text.value.parse::<Taint>() {
            Err(message) => problem(
                text.referenced,
                format!("`{}` is not a taint: {message}", text.value),
                "write it as `key=value:Effect` or `key:Effect`; effects are NoSchedule, PreferNoSchedule and NoExecute",
            ),
            Ok(taint) if seen.iter().any(|other| other.is_same(&taint)) => problem(
                text.referenced,
                format!(
                    "the taint `{}` with the effect {} is given twice",
                    taint.key,
                    taint.effect.as_str()
                ),
                "a Node has one taint of a key and an effect: keep one",
            ),
            Ok(taint) => seen.push(taint),
        }
    }
}

fn check_kubelet(kubelet: &Kubelet) -> Result<(), (String, &'static str)> {
    if crate::core::kubelet::Version::parse(&kubelet.version).is_none() {
        return Err((
            format!("`{}` is not a kubelet version", kubelet.version),
            "write it as in 1.35.4",
        ));
    }
    match (&kubelet.package, &kubelet.url, &kubelet.file) {
        (Some(_), None, None) | (None, None, Some(_)) if kubelet.sha256.is_none() => Ok(()),
        (None, Some(_), None) => match &kubelet.sha256 {
            Some(sum) if sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit()) => Ok(()),
            Some(_) => Err((
                "the kubelet's sha256 is not 64 hex digits".into(),
                "run `sha256sum` on the file",
            )),
            None => Err((
                "a kubelet from a URL needs its sha256".into(),
                "add `sha256:` beside `url:`",
            )),
        },
        (None, None, None) => Err((
            "the kubelet has no source".into(),
            "give one of `package`, `url` with `sha256`, or `file`",
        )),
        _ => Err((
            "the kubelet has more than one source".into(),
            "give one of `package`, `url` with `sha256`, or `file`",
        )),
    }
}

/// An address with its prefix length; a bare address is refused, since a guessed netmask costs an evening.
pub fn parse_address(text: &str) -> Result<IpNet, String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text} has no prefix length"));
    }
    text.parse::<IpNet>()
        .map_err(|_| format!("`{text}` is not an address with a prefix length"))
}

fn is_label(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Kubernetes' rule for node names: a DNS subdomain of labels of up to 63 characters.
pub fn is_node_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 200
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.starts_with(edge)
                && label.ends_with(edge)
                && label.chars().all(|c| edge(c) || c == '-')
        })
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<_> = text
        .split(':')
        .map(|pair| (pair.len(), u8::from_str_radix(pair, 16)))
        .collect();
    pairs.len() == 6
        && pairs.iter().all(|(len, value)| *len == 2 && value.is_ok())
        && matches!(pairs[0].1, Ok(first) if first & 1 == 0)
}

/// The second and later occurrences of each value.
fn duplicates<'a, T: std::hash::Hash + Eq + 'a>(
    values: impl Iterator<Item = &'a Spanned<T>>,
) -> Vec<&'a Spanned<T>> {
    let mut seen: HashMap<&T, ()> = HashMap::new();
    values
        .filter(|value| seen.insert(&value.value, ()).is_some())
        .collect()
}

/// One error out of all problems, each with `file:line:column` and a caret under the place.
fn refuse(text: &str, file: &str, problems: Vec<Problem>) -> Error {
    let count = problems.len();
    let help = problems[0].help.clone();
    let mut detail = Vec::new();
    for (index, problem) in problems.into_iter().enumerate() {
        let (line, column) = (problem.at.line() as usize, problem.at.column() as usize);
        detail.push(if line == 0 {
            format!("{file}: {}", problem.message)
        } else {
            format!("{file}:{line}:{column}: {}", problem.message)
        });
        if let Some(source) = line
            .checked_sub(1)
            .and_then(|index| text.lines().nth(index))
        {
            detail.push(format!("{line:>5} | {source}"));
            detail.push(format!("      | {}^", " ".repeat(column.saturating_sub(1))));
        }
        if index > 0 || count > 1 {
            detail.push(format!("        {}", problem.help));
        }
    }
    let what = if count == 1 {
        format!("{file} was refused")
    } else {
        format!("{file} was refused for {count} reasons")
    };
    let error = Error::refused(what).with_detail(detail);
    if count == 1 {
        error.with_help(help)
    } else {
        error.with_help("mend these; nothing was touched")
    }
}
