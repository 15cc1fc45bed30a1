//! Everything decided before the first effect: the spec merged with its defaults, every name derived, every
//! step rendered. Pure: the same spec and templates give the same plan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::core::digest::{hex, sha256};
use crate::core::error::{Context, Error, Result};
use crate::core::kubelet::{self, Choice, Version};
use crate::core::nearest::nearest;
use crate::core::profile::{Profile, Service};
use crate::core::spec::{self, CloneMode, FirstBoot, Kubelet, Network, Spec};
use crate::core::taint::Taint;
use crate::core::template::Templates;

#[derive(Debug, Clone)]
pub struct Plan {
    pub cluster: ClusterPlan,
    pub host: spec::Host,
    pub ssh_key: Option<String>,
    pub authorized_keys: Vec<String>,
    pub nodes: Vec<Node>,
    /// Of all nodes of the spec, planned or not.
    pub names: Vec<String>,
    pub templates: Templates,
}

/// The cluster part of the spec, as the pipeline needs it.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    pub name: String,
    /// `None` for machines that join nothing.
    pub source: Option<ClusterSource>,
    /// Overrides the kubeconfig's server in what guests are given.
    pub server: Option<String>,
    pub access: spec::Access,
    /// Kubelets ask for serving certificates, and get them.
    pub serving: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterSource {
    Kubeconfig {
        path: String,
        context: Option<String>,
    },
    /// `user@host[:port]`.
    ControlPlane(String),
}

impl ClusterPlan {
    pub fn of_spec(spec: &spec::Cluster) -> Result<Self> {
        let source = match (&spec.kubeconfig, &spec.control_plane) {
            _ if !spec.join => None,
            (Some(path), _) => Some(ClusterSource::Kubeconfig {
                path: path.clone(),
                context: spec.context.clone(),
            }),
            (None, Some(host)) => Some(ClusterSource::ControlPlane(host.value.clone())),
            (None, None) => {
                return Err(Error::refused("the spec names no cluster"));
            }
        };
        Ok(Self {
            name: spec.name.value.clone(),
            source,
            server: spec.server.as_ref().map(|server| server.value.clone()),
            access: spec.access,
            serving: spec.approve_serving,
        })
    }

    /// A cluster that no spec describes.
    pub fn of_kubeconfig(path: &str, context: Option<String>) -> Self {
        Self {
            name: "default".into(),
            source: Some(ClusterSource::Kubeconfig {
                path: path.to_owned(),
                context,
            }),
            server: None,
            access: spec::Access::default(),
            serving: false,
        }
    }

    /// The group our tokens carry where nothing else lets them in.
    pub fn group(&self) -> String {
        format!("system:bootstrappers:nodegraft:{}", self.name)
    }
}

/// One node, fully decided.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// The domain's and the Kubernetes Node's name.
    pub name: String,
    /// The guest's own host name, made valid from `name`.
    pub hostname: String,
    /// With its prefix length.
    pub address: String,
    pub ip: IpAddr,
    pub ipv6: bool,
    pub gateway: IpAddr,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
    pub mtu: Option<u32>,
    pub mac: String,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub disk: u64,
    /// Where new volumes of it go, and its template is.
    #[serde(skip)]
    pub pool: String,
    pub template: String,
    pub clone: CloneMode,
    #[serde(skip_serializing_if = "FirstBoot::is_default")]
    pub first_boot: FirstBoot,
    pub network: Network,
    pub user: String,
    pub profile: String,
    pub labels: BTreeMap<String, String>,
    /// The version of its kubelet.
    pub kubelet: Option<String>,
    #[serde(skip)]
    pub taints: Vec<Taint>,
    #[serde(skip)]
    pub steps: Vec<Step>,
    pub upload: Option<Upload>,
    #[serde(skip)]
    pub deadlines: Deadlines,
}

/// A machine as the cluster will know it: a node of the plan, or one that was there before.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// The Kubernetes Node's name.
    pub name: String,
    /// The machine's own host name.
    pub hostname: String,
    pub ip: IpAddr,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// The version that its kubelet must report, such as `v1.35.4` or `v1.35`; `None` where nobody says.
    pub kubelet: Option<String>,
    /// Its requests for a serving certificate are approved too.
    pub serving: bool,
    /// How a person runs a command there: `nodegraft exec n1 --`.
    #[serde(skip)]
    pub shell: String,
    #[serde(skip)]
    pub deadlines: Deadlines,
}

impl Plan {
    pub fn member(&self, node: &Node) -> Member {
        Member {
            name: node.name.clone(),
            hostname: node.hostname.clone(),
            ip: node.ip,
            labels: node.labels.clone(),
            taints: node.taints.clone(),
            kubelet: node
                .kubelet
                .as_ref()
                .map(|version| format!("v{}", kubelet::bare(version))),
            serving: self.cluster.serving,
            shell: format!("nodegraft exec {} --", node.name),
            deadlines: node.deadlines,
        }
    }
}

/// A script that runs in the guest.
#[derive(Debug, Clone)]
pub struct Step {
    /// Counted from 1.
    pub number: usize,
    pub name: String,
    pub script: String,
    /// Of the script; with that of an uploaded file, what a guest's marker says if it has run it.
    pub digest: String,
    /// What reads what it writes.
    pub service: Option<Service>,
}

/// A file of this machine that a step needs in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upload {
    pub file: String,
    pub to: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub boot: Duration,
    pub login: Duration,
    pub step: Duration,
    pub join: Duration,
    pub ready: Duration,
}

/// Generous enough for software emulation on a busy machine; a wait that is over in time costs nothing.
pub const DEADLINES: Deadlines = Deadlines {
    boot: Duration::from_secs(600),
    login: Duration::from_secs(300),
    step: Duration::from_secs(1200),
    join: Duration::from_secs(300),
    ready: Duration::from_secs(300),
};

/// Where uploads land in the guest.
const GUEST_DIR: &str = "/var/lib/nodegraft";

impl Plan {
    /// Decides everything. `only` restricts it to nodes of these names; empty means all.
    pub fn new(spec: &Spec, templates: Templates, only: &[String]) -> Result<Self> {
        if let Some(unknown) = only
            .iter()
            .find(|name| spec.nodes.iter().all(|n| n.name.value != **name))
        {
            let known: Vec<_> = spec.nodes.iter().map(|n| n.name.value.as_str()).collect();
            return Err(
                Error::refused(format!("the spec has no node `{unknown}`")).with_help(
                    match nearest(unknown, known.iter().copied()) {
                        Some(near) => {
                            format!("did you mean `{near}`? its nodes: {}", known.join(", "))
                        }
                        None => format!("its nodes are: {}", known.join(", ")),
                    },
                ),
            );
        }
        let cluster = ClusterPlan::of_spec(&spec.cluster)?;
        let nodes = spec
            .nodes
            .iter()
            .filter(|node| only.is_empty() || only.contains(&node.name.value))
            .map(|node| {
                plan_node(spec, node, &templates)
                    .doing(format!("planning node {}", node.name.value))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            cluster,
            names: spec
                .nodes
                .iter()
                .map(|node| node.name.value.clone())
                .collect(),
            host: spec.host.clone(),
            ssh_key: spec.ssh.key.clone(),
            authorized_keys: spec
                .ssh
                .authorized_keys
                .iter()
                .map(|key| key.value.clone())
                .collect(),
            nodes,
            templates,
        })
    }
}

fn plan_node(spec: &Spec, node: &spec::Node, templates: &Templates) -> Result<Node> {
    let (own, defaults) = (node.settings(), spec.defaults.settings());
    let net = spec::parse_address(&node.address.value).map_err(Error::refused)?;
    let cluster = &spec.cluster.name.value;
    let name = &node.name.value;
    let profile = match own.profile.or(defaults.profile) {
        Some(profile) => Profile::load(profile, templates)?,
        None => Profile::empty(),
    };
    let labels = defaults
        .labels
        .iter()
        .chain(own.labels)
        .map(|(key, value)| (key.clone(), value.value.clone()))
        .collect();
    let taints = if own.taints.is_empty() {
        defaults.taints
    } else {
        own.taints
    };
    let taints = taints
        .iter()
        .map(|taint| taint.value.parse())
        .collect::<Result<Vec<Taint>, String>>()
        .map_err(Error::refused)?;
    let mut planned = Node {
        name: name.clone(),
        hostname: hostname(name),
        address: net.to_string(),
        ip: net.addr(),
        ipv6: net.addr().is_ipv6(),
        gateway: own
            .gateway
            .or(defaults.gateway)
            .map(|g| g.value)
            .ok_or_else(|| Error::refused(format!("node {name} has no gateway")))?,
        dns: own.dns.or(defaults.dns).unwrap_or_default().to_vec(),
        search: own.search.or(defaults.search).unwrap_or_default().to_vec(),
        mtu: own.mtu.or(defaults.mtu).map(|m| m.value),
        mac: node
            .mac
            .as_ref()
            .map_or_else(|| mac(cluster, name), |m| m.value.to_lowercase()),
        cpus: own.cpus.or(defaults.cpus).map_or(2, |c| c.value),
        memory: whole_mib(
            own.memory
                .or(defaults.memory)
                .map_or(2 << 30, |m| m.value.0),
        ),
        disk: whole_mib(own.disk.or(defaults.disk).map_or(20 << 30, |d| d.value.0)),
        pool: spec.host.pool.clone(),
        template: own
            .template
            .or(defaults.template)
            .ok_or_else(|| Error::refused(format!("node {name} has no template")))?
            .to_owned(),
        clone: own.clone.or(defaults.clone).unwrap_or_default(),
        first_boot: own.first_boot.or(defaults.first_boot).unwrap_or_default(),
        network: spec.host.network.clone(),
        user: spec
            .ssh
            .user
            .as_ref()
            .map_or_else(|| "root".into(), |user| user.value.clone()),
        profile: profile.name.clone(),
        labels,
        taints,
        kubelet: own
            .kubelet
            .or(defaults.kubelet)
            .map(|kubelet| kubelet.value.version.clone()),
        steps: Vec::new(),
        upload: None,
        deadlines: deadlines(own.deadlines, defaults.deadlines),
    };
    let kubelet = own.kubelet.or(defaults.kubelet).map(|k| &k.value);
    let vars = profile.vars([defaults.vars, own.vars])?;
    planned.upload = kubelet.and_then(|k| k.file.clone()).map(|file| Upload {
        file,
        to: format!("{GUEST_DIR}/files/kubelet"),
    });
    planned.steps = steps(
        &planned,
        &profile,
        kubelet,
        spec.cluster.approve_serving,
        &vars,
        templates,
    )?;
    Ok(planned)
}

/// What step templates see.
#[derive(Serialize)]
struct StepValues<'a> {
    node: &'a Node,
    vars: &'a BTreeMap<String, serde_json::Value>,
    kubelet: Option<KubeletValues<'a>>,
}

#[derive(Serialize)]
struct KubeletValues<'a> {
    version: Version,
    /// As the kubelet itself says it, without `v`: `1.35.4`.
    release: &'a str,
    package: Option<&'a str>,
    url: Option<&'a str>,
    sha256: Option<&'a str>,
    uploaded: Option<&'a str>,
    flags: Vec<String>,
    config: Vec<kubelet::Setting>,
}

fn steps(
    node: &Node,
    profile: &Profile,
    kubelet: Option<&Kubelet>,
    serving: bool,
    vars: &BTreeMap<String, serde_json::Value>,
    templates: &Templates,
) -> Result<Vec<Step>> {
    let kubelet = kubelet
        .map(|kubelet| kubelet_values(node, profile, kubelet, serving, vars))
        .transpose()?;
    if kubelet.is_none() && profile.steps.iter().any(|step| step == "kubelet") {
        return Err(Error::refused(format!("the profile `{}` installs a kubelet, but the spec does not say which", profile.name))
            .with_help("add under defaults: `kubelet: {version: 1.35.4, package: kubelet}`, or `url` with `sha256`, or `file`"));
    }
    let values = StepValues {
        node,
        vars,
        kubelet,
    };
    profile
        .steps
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let script = templates.render(&profile.script(name), &values)?;
            let digest = hex(&sha256(&script)[..16]);
            Ok(Step {
                number: index + 1,
                name: name.clone(),
                script,
                digest,
                service: profile.services.get(name).cloned(),
            })
        })
        .collect()
}

fn kubelet_values<'a>(
    node: &'a Node,
    profile: &Profile,
    kubelet: &'a Kubelet,
    serving: bool,
    vars: &BTreeMap<String, serde_json::Value>,
) -> Result<KubeletValues<'a>> {
    let version = Version::parse(&kubelet.version)
        .ok_or_else(|| Error::refused(format!("`{}` is not a version", kubelet.version)))?;
    if let Some(reason) = kubelet::mismatch(version, profile.runtime) {
        return Err(Error::refused(format!(
            "the profile `{}` does not go with kubelet {}",
            profile.name, kubelet.version
        ))
        .with_help(reason));
    }
    let text = |key: &str| {
        vars.get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
    };
    let taints: Vec<String> = node.taints.iter().map(ToString::to_string).collect();
    let ip = node.ip.to_string();
    let choice = Choice {
        version,
        runtime: profile.runtime,
        node_name: &node.name,
        node_ip: &ip,
        pause_image: text("pause_image"),
        cni: true,
        serving,
        taints: &taints,
    };
    Ok(KubeletValues {
        version,
        release: kubelet::bare(&kubelet.version),
        package: kubelet.package.as_deref(),
        url: kubelet.url.as_deref(),
        sha256: kubelet.sha256.as_deref(),
        uploaded: node.upload.as_ref().map(|upload| upload.to.as_str()),
        flags: choice.flags(),
        config: choice.config(),
    })
}

fn deadlines(own: &spec::Deadlines, defaults: &spec::Deadlines) -> Deadlines {
    let pick = |own: Option<spec::Span>, default: Option<spec::Span>, built_in| {
        own.or(default).map_or(built_in, |span| span.0)
    };
    Deadlines {
        boot: pick(own.boot, defaults.boot, DEADLINES.boot),
        login: pick(own.login, defaults.login, DEADLINES.login),
        step: pick(own.step, defaults.step, DEADLINES.step),
        join: pick(own.join, defaults.join, DEADLINES.join),
        ready: pick(own.ready, defaults.ready, DEADLINES.ready),
    }
}

/// What can be had: libvirt rounds memory and disks up to KiB, and qemu aligns memory to MiB when the VM starts.
fn whole_mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20) << 20
}

/// A host name the guest accepts: `192.168.3.104` is one node's name and nobody's host name.
fn hostname(name: &str) -> String {
    if name.parse::<IpAddr>().is_ok() {
        format!("node-{}", name.replace(['.', ':'], "-"))
    } else {
        name.to_owned()
    }
}

/// A MAC in QEMU's range that depends on nothing but the names, so that a re-made node keeps it.
fn mac(cluster: &str, node: &str) -> String {
    let hash = sha256(format!("nodegraft mac\n{cluster}\n{node}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}
