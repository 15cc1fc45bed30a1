//! Preflight: refuses before anything is touched, with every reason at once. `doctor` shows the same findings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use super::Run;
use super::join::taken;
use crate::cluster::Cluster;
use crate::cluster::access::Right;
use crate::error::{Error, Exit, Result, one_line};
use crate::guestfs;
use crate::journal::Journal;
use crate::libvirt::{Host, NetworkState, kvm_works_here};
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::plan::{Node, Plan};
use crate::spec::{self, Clone as CloneMode, FirstBoot, Network, Size, VirtType};

/// What an overlay may grow to before anyone looks again.
const OVERLAY_ROOM: u64 = 1 << 30;
const PROBE: Duration = Duration::from_millis(800);

pub struct Preflight;

#[async_trait]
impl Stage<Run> for Preflight {
    fn name(&self) -> &'static str {
        "Preflight"
    }

    fn deadline(&self, _: &Run) -> Duration {
        Duration::from_secs(60)
    }

    async fn check(&self, on: &Run, report: &Reporter) -> Result<Check> {
        let mut findings = host(&on.host, &on.plan.host).await?;
        if let Some(found) = &on.cluster {
            findings.extend(cluster(found).await?);
        }
        if findings.iter().all(|finding| finding.state != State::Bad) {
            findings.extend(nodes(&on.host, on.cluster.as_ref(), &on.plan).await?);
        }
        let _ = on.virt_type.set(virt_type(&on.host, on.plan.host.virt_type).await?.0);
        for finding in findings.iter().filter(|finding| finding.state == State::Doubtful) {
            report.warn(finding.what.clone(), finding.help.clone());
        }
        let bad: Vec<&Finding> = findings.iter().filter(|finding| finding.state == State::Bad).collect();
        Ok(match bad.as_slice() {
            [] => Check::Done(format!("{} checks", findings.len())),
            [one] => Check::Conflict(unfit(one.what.clone()).with_help(one.help.clone().unwrap_or_else(|| "nothing was created".into()))),
            many => Check::Conflict(
                unfit(format!("{} things are in the way", many.len()))
                    .with_detail(
                        many.iter()
                            .flat_map(|finding| {
                                [Some(format!("- {}", finding.what)), finding.help.as_ref().map(|help| format!("  {help}"))]
                            })
                            .flatten(),
                    )
                    .with_help("mend these; nothing was created"),
            ),
        })
    }

    async fn apply(&self, _: &Run, _: &Reporter, _: &Journal) -> Result<()> {
        Ok(())
    }
}

fn unfit(what: String) -> Error {
    Error::new(what).with_exit(Exit::Unfit)
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub state: State,
    pub what: String,
    pub help: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    Doubtful,
    Bad,
}

impl Finding {
    pub fn good(what: impl Into<String>) -> Self {
        Self { state: State::Good, what: what.into(), help: None }
    }

    pub fn doubtful(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { state: State::Doubtful, what: what.into(), help: Some(help.into()) }
    }

    pub fn bad(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { state: State::Bad, what: what.into(), help: Some(help.into()) }
    }
}

/// The host: pool, network, acceleration.
pub async fn host(host: &Host, spec: &spec::Host) -> Result<Vec<Finding>> {
    let mut findings = vec![pool(host, &spec.pool).await?, network(host, &spec.network).await?];
    let (kind, doubt) = virt_type(host, spec.virt_type).await?;
    findings.push(doubt.unwrap_or_else(|| Finding::good(format!("guests run under {kind}"))));
    Ok(findings)
}

async fn pool(host: &Host, name: &str) -> Result<Finding> {
    Ok(match host.pool(name).await? {
        Some(pool) if pool.active => Finding::good(format!("the pool {name} is active, {} free", Size(pool.available >> 20 << 20))),
        Some(_) => Finding::bad(format!("the pool {name} is not active"), format!("virsh -c '{}' pool-start {name}", host.uri())),
        None => {
            let pools = host.pool_names().await?;
            let help = if pools.is_empty() {
                format!(
                    "the host has no pool; make one: virsh pool-define-as {name} dir --target /var/lib/libvirt/{name} && virsh pool-start {name}"
                )
            } else {
                format!("set `host.pool` in the spec to one of: {}", pools.join(", "))
            };
            Finding::bad(format!("the host has no pool {name}"), help)
        }
    })
}

async fn network(host: &Host, network: &Network) -> Result<Finding> {
    Ok(match network {
        Network::Network(name) => match host.network(name).await? {
            NetworkState::Active => Finding::good(format!("the network {name} is active")),
            NetworkState::Inactive => {
                Finding::bad(format!("the network {name} is not active"), format!("virsh -c '{}' net-start {name}", host.uri()))
            }
            NetworkState::Absent => {
                Finding::bad(format!("the host has no network {name}"), "set `host.network` in the spec; see: virsh net-list --all")
            }
        },
        Network::Bridge(name) if !host.is_local() => Finding::good(format!("the bridge {name} is on another host and was not looked at")),
        Network::Bridge(name) if Path::new("/sys/class/net").join(name).join("bridge").is_dir() => {
            Finding::good(format!("the bridge {name} exists"))
        }
        Network::Bridge(name) => {
            Finding::bad(format!("the host has no bridge {name}"), "set `host.network` in the spec; see: ip link show type bridge")
        }
    })
}

/// What guests will run under, and a doubt about it.
pub async fn virt_type(host: &Host, wanted: VirtType) -> Result<(String, Option<Finding>)> {
    let offered = host.offers_kvm().await?;
    let proven = !host.is_local() || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpuinfo| kvm_works_here(&cpuinfo));
    let slow = "guests boot in software emulation, many times slower; enable virtualization (nested, in a VM) if you can";
    Ok(match wanted {
        VirtType::Qemu => ("qemu".into(), None),
        VirtType::Kvm if !offered => (
            "kvm".into(),
            Some(Finding::bad("libvirt offers no KVM on this host", "load the kvm module, or set `virt_type: auto` in the spec")),
        ),
        VirtType::Kvm if !proven => (
            "kvm".into(),
            Some(Finding::doubtful(
                "KVM is offered, but the processor shows neither vmx nor svm: guests may hang before their first line",
                "set `virt_type: qemu` if they do",
            )),
        ),
        VirtType::Kvm => ("kvm".into(), None),
        VirtType::Auto if offered && proven => ("kvm".into(), None),
        VirtType::Auto if offered => {
            ("qemu".into(), Some(Finding::doubtful("KVM is offered, but the processor shows neither vmx nor svm", slow)))
        }
        VirtType::Auto => ("qemu".into(), Some(Finding::doubtful("there is no KVM on this host", slow))),
    })
}

/// The nodes of a plan: templates, space, names, addresses.
async fn nodes(host: &Host, cluster: Option<&Cluster>, plan: &Plan) -> Result<Vec<Finding>> {
    let mut findings = templates(host, plan).await?;
    for path in plan.nodes.iter().filter_map(|node| node.upload.as_ref()).map(|upload| &upload.file).collect::<BTreeSet<_>>() {
        findings.push(match std::fs::metadata(path) {
            Ok(file) if file.is_file() => Finding::good(format!("{path} is there")),
            Ok(_) => Finding::bad(format!("{path} is not a file"), "correct `kubelet.file` in the spec"),
            Err(error) => Finding::bad(format!("{path} cannot be read: {error}"), "correct `kubelet.file` in the spec"),
        });
    }
    if plan.nodes.iter().any(|node| node.first_boot == FirstBoot::Inject) {
        findings.push(injection(host));
    }
    let marked = host.marked_domains().await?;
    let mut fresh = Vec::new();
    for node in &plan.nodes {
        let domain = host.domain(&node.name).await?;
        let ours = domain.as_ref().is_some_and(|d| d.mark.as_ref().is_some_and(|m| m.cluster == plan.cluster.name && m.node == node.name));
        match domain {
            Some(_) if ours => continue,
            Some(domain) => {
                let whose = domain.mark.map_or_else(|| "not ours".to_owned(), |m| format!("of the cluster {}", m.cluster));
                findings.push(Finding::bad(
                    format!("the name {} is taken by a domain that is {whose}", node.name),
                    format!("give the node another name, or look at that domain first: virsh -c '{}' dumpxml {}", host.uri(), node.name),
                ));
                continue;
            }
            None => fresh.push(node),
        }
        if let Some(other) =
            marked.iter().find(|d| d.mark.as_ref().is_some_and(|m| m.address.split('/').next() == Some(&node.ip.to_string())))
        {
            findings.push(Finding::bad(
                format!("the address {} of {} is that of the domain {}", node.ip, node.name, other.name),
                "give the node another address, or take that domain down first",
            ));
        }
        if let Some(cluster) = cluster
            && let Some(other) = cluster.node(&node.name).await?
            && !other.is_of(&node.machine_id)
        {
            let error = taken(&node.name, other.address.as_deref());
            findings.push(Finding::bad(error.to_string(), error.help().unwrap_or_default()));
        }
    }
    let probes = fresh.iter().map(|node| async { (node.name.clone(), node.ip, answers(node.ip).await) });
    for (name, ip, answer) in futures_util::future::join_all(probes).await {
        findings.push(match answer {
            Some(how) => {
                Finding::bad(format!("something already answers at {ip}, the address of {name} ({how})"), "give the node a free address")
            }
            None => Finding::good(format!("nothing answers at {ip}")),
        });
    }
    Ok(findings)
}

/// Whether the first-boot unit can be put into clones from here.
pub fn injection(host: &Host) -> Finding {
    if !host.is_local() {
        Finding::bad(
            "`first_boot: inject` edits the clone's file, which is on another host",
            "on that host: nodegraft image prepare TEMPLATE; then name what it made as `template`, without `first_boot`",
        )
    } else if !guestfs::is_installed() {
        Finding::bad("virt-customize is not installed, and puts the first-boot unit into images", "apt-get install guestfs-tools")
    } else {
        Finding::good("virt-customize is installed")
    }
}

async fn templates(host: &Host, plan: &Plan) -> Result<Vec<Finding>> {
    let pool = &plan.host.pool;
    let mut findings = Vec::new();
    let mut by_template: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
    for node in &plan.nodes {
        by_template.entry(&node.template).or_default().push(node);
    }
    let mut wanted = 0;
    for (template, nodes) in by_template {
        let Some(volume) = host.volume(pool, template).await? else {
            let images: Vec<String> = host.volume_names(pool).await?.into_iter().filter(|name| !name.starts_with("nodegraft.")).collect();
            findings.push(Finding::bad(
                format!("the pool {pool} has no template volume {template}"),
                format!("it has: {}", if images.is_empty() { "nothing".into() } else { images.join(", ") }),
            ));
            continue;
        };
        if volume.format != "qcow2" {
            findings.push(Finding::bad(
                format!("the template {template} is {}, not qcow2", volume.format),
                "convert it: qemu-img convert -O qcow2",
            ));
        }
        for node in &nodes {
            if volume.capacity > node.disk {
                findings.push(Finding::bad(
                    format!(
                        "the template {template} is {}, larger than the disk of {} ({})",
                        Size(volume.capacity),
                        node.name,
                        Size(node.disk)
                    ),
                    format!("ask for `disk: {}` or more", Size(volume.capacity)),
                ));
            }
            if host.volume(pool, &node.volume).await?.is_none() {
                wanted += if node.clone == CloneMode::Full { volume.allocation } else { OVERLAY_ROOM };
            }
        }
        findings.push(Finding::good(format!("the template {template} is there, {}", Size(volume.capacity))));
    }
    let available = host.pool(pool).await?.map_or(0, |pool| pool.available);
    if wanted > available {
        findings.push(Finding::bad(
            format!("the pool {pool} has {} free, the nodes need {}", Size(available >> 20 << 20), Size(wanted >> 20 << 20)),
            "make room, or use another pool",
        ));
    }
    Ok(findings)
}

/// How something shows itself at an address that should be free, if it does.
async fn answers(ip: IpAddr) -> Option<String> {
    match tokio::time::timeout(PROBE, tokio::net::TcpStream::connect(SocketAddr::new(ip, 22))).await {
        Ok(Ok(_)) => return Some("SSH port open".into()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Some("it refuses connections".into()),
        _ => {}
    }
    // A machine that drops our packets still answered ARP for them.
    let table = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
    arp_entry(&table, ip).map(|mac| format!("MAC {mac}"))
}

/// The complete entry of an address in the kernel's ARP table.
fn arp_entry(table: &str, ip: IpAddr) -> Option<&str> {
    const COMPLETE: u32 = 0x2;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(2)?.trim_start_matches("0x"), 16).ok()?;
        let mac = *fields.get(3)?;
        (fields[0].parse() == Ok(ip) && flags & COMPLETE != 0 && mac != "00:00:00:00:00:00").then_some(mac)
    })
}

const APPROVE: &str = "approve certificate requests";

/// The cluster: its version, its certificates API, and what we may do there.
pub async fn cluster(cluster: &Cluster) -> Result<Vec<Finding>> {
    let mut findings = vec![
        Finding::good(format!("the API server {} is {}", cluster.server, cluster.version)),
        Finding::good(format!("it serves certificates.k8s.io/{}", cluster.certificates)),
    ];
    let needed = [
        ("create", "", "secrets", Some("kube-system"), "mint bootstrap tokens"),
        ("delete", "", "secrets", Some("kube-system"), "delete bootstrap tokens"),
        ("list", "certificates.k8s.io", "certificatesigningrequests", None, "see certificate requests"),
        ("update", "certificates.k8s.io", "certificatesigningrequests/approval", None, APPROVE),
        ("delete", "", "nodes", None, "delete Nodes"),
    ];
    for (verb, group, resource, namespace, purpose) in needed {
        findings.push(match cluster.may_we(verb, group, resource, namespace).await {
            Ok(true) => Finding::good(format!("this kubeconfig may {purpose}")),
            // The cluster's own controllers may do it instead; if nobody does, the join says so.
            Ok(false) if purpose == APPROVE => Finding::doubtful(
                format!("this kubeconfig may not {purpose}"),
                "somebody else must: nodegraft access grant lets the controllers",
            ),
            Ok(false) => Finding::bad(format!("this kubeconfig may not {purpose}"), "use an administrator's kubeconfig"),
            Err(error) => Finding::bad(one_line(&error), "is the API server well?"),
        });
    }
    findings.push(if cluster.may("system:node:any", &["system:nodes"], Right::RenewalApproval).await? {
        Finding::good("renewals of node certificates are approved")
    } else {
        Finding::doubtful(
            "nothing approves the renewal of node certificates: nodes drop out when their first one ends",
            "kubectl create clusterrolebinding node-renewal --clusterrole=system:certificates.k8s.io:certificatesigningrequests:selfnodeclient --group=system:nodes",
        )
    });
    Ok(findings)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_complete_arp_entries_count() {
        let table = "IP address HW type Flags HW address Mask Device\n\
                     10.0.0.2 0x1 0x2 52:54:00:00:00:01 * br0\n\
                     10.0.0.3 0x1 0x0 00:00:00:00:00:00 * br0\n";
        assert_eq!(super::arp_entry(table, "10.0.0.2".parse().unwrap()), Some("52:54:00:00:00:01"));
        assert_eq!(super::arp_entry(table, "10.0.0.3".parse().unwrap()), None);
        assert_eq!(super::arp_entry(table, "10.0.0.4".parse().unwrap()), None);
    }
}
