//! Preflight: refuses before anything is touched, with every reason at once. `doctor` shows the same findings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use super::join::taken;
use super::{Opened, Sight};
use crate::core::error::{Error, Result, one_line, system_words};
use crate::core::finding::{Finding, State};
use crate::core::journal::Journal;
use crate::core::mark::SeedState;
use crate::core::ownership::{Owner, may_be_template, whose};
use crate::core::plan::{Node, Plan};
use crate::core::server;
use crate::core::spec::{self, CloneMode, FirstBoot, Network, Size, VirtType};
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::cluster::access::Right;
use crate::rooms::cluster::{Cluster, is_forbidden};
use crate::rooms::guestfs;
use crate::rooms::libvirt::storage::Pool;
use crate::rooms::libvirt::{Host, NetworkState, domain::Domain, kvm_works_here};

/// What an overlay may grow to before anyone looks again.
const OVERLAY_ROOM: u64 = 1 << 30;
const PROBE: Duration = Duration::from_millis(800);

pub struct Preflight;

#[async_trait]
impl Stage<Opened> for Preflight {
    fn name(&self) -> StageName {
        StageName::Preflight
    }

    fn plan(&self, _: &Plan) -> String {
        "pool, network, templates, space, names and addresses are as they must be".into()
    }

    fn deadline(&self, _: &Opened) -> Duration {
        Duration::from_secs(60)
    }

    async fn check(&self, on: &mut Opened, report: &Reporter) -> Result<Check> {
        let domains = on.host.domains().await?;
        let pool = wanted_volumes(&on.host, &on.plan, &domains).await?;
        let (mut findings, virt_type) = host(&on.host, &on.plan.host, pool.as_ref()).await?;
        if let Some(found) = &on.cluster {
            findings.extend(cluster(found).await?);
            findings.extend(way(on
                .plan
                .cluster
                .server
                .as_ref()
                .unwrap_or(&found.server)));
        }
        if findings.iter().all(|finding| finding.state != State::Bad)
            && let Some(pool) = pool
        {
            let sight = Sight {
                domains,
                pool,
                virt_type,
            };
            findings.extend(nodes(on, &sight).await?);
            on.sight = Some(sight);
        }
        for finding in findings
            .iter()
            .filter(|finding| finding.state == State::Doubtful)
        {
            report.warn(finding.what.clone(), finding.help.clone());
        }
        let bad: Vec<&Finding> = findings
            .iter()
            .filter(|finding| finding.state == State::Bad)
            .collect();
        Ok(match bad.as_slice() {
            [] => Check::Done(format!("{} checks", findings.len())),
            [one] => Check::Conflict(
                Error::unfit(one.what.clone()).with_help(
                    one.help
                        .clone()
                        .unwrap_or_else(|| "nothing was created".into()),
                ),
            ),
            many => Check::Conflict(
                Error::unfit(format!("{} preflight checks failed", many.len()))
                    .with_detail(
                        many.iter()
                            .flat_map(|finding| {
                                [
                                    Some(format!("- {}", finding.what)),
                                    finding.help.as_ref().map(|help| format!("  {help}")),
                                ]
                            })
                            .flatten(),
                    )
                    .with_help("fix these; nothing was created"),
            ),
        })
    }

    async fn apply(&self, _: &mut Opened, _: &Reporter, _: &Journal) -> Result<()> {
        Ok(())
    }

    /// It changes nothing.
    async fn stopped(&self, _: &Opened) {}
}

/// The pool with what the plan needs to know of it: the templates, and the disks of nodes that exist.
async fn wanted_volumes(host: &Host, plan: &Plan, domains: &[Domain]) -> Result<Option<Pool>> {
    let mut wanted: BTreeSet<String> = plan
        .nodes
        .iter()
        .map(|node| node.template.clone())
        .collect();
    wanted.extend(
        domains
            .iter()
            .filter_map(Domain::owner)
            .filter(|owner| owner.is_of(&plan.cluster.name))
            .map(Owner::disk),
    );
    host.pool(&plan.host.pool, move |name| wanted.contains(name))
        .await
}

/// The host: pool, network, acceleration; and what guests will run under.
pub async fn host(
    host: &Host,
    spec: &spec::Host,
    found: Option<&Pool>,
) -> Result<(Vec<Finding>, String)> {
    let mut findings = vec![
        pool(host, &spec.pool, found).await?,
        network(host, &spec.network).await?,
    ];
    let (kind, doubt) = virt_type(host, spec.virt_type).await?;
    findings.push(doubt.unwrap_or_else(|| Finding::good(format!("guests run under {kind}"))));
    Ok((findings, kind))
}

async fn pool(host: &Host, name: &str, found: Option<&Pool>) -> Result<Finding> {
    Ok(match found {
        Some(pool) if pool.active => Finding::good(format!(
            "the pool {name} is active, {} free",
            Size(pool.available >> 20 << 20)
        )),
        Some(_) => Finding::bad(
            format!("the pool {name} is not active"),
            format!("virsh -c '{}' pool-start {name}", host.uri()),
        ),
        None => {
            let pools = host.pool_names().await?;
            let help = if pools.is_empty() {
                format!(
                    "the host has no pool; make one: virsh pool-define-as {name} dir --target /var/lib/libvirt/{name} && virsh pool-start {name}"
                )
            } else {
                format!(
                    "set `host.pool` in the spec to one of: {}",
                    pools.join(", ")
                )
            };
            Finding::bad(format!("the host has no pool {name}"), help)
        }
    })
}

async fn network(host: &Host, network: &Network) -> Result<Finding> {
    Ok(match network {
        Network::Network(name) => match host.network(name).await? {
            NetworkState::Active => Finding::good(format!("the network {name} is active")),
            NetworkState::Inactive => Finding::bad(
                format!("the network {name} is not active"),
                format!("virsh -c '{}' net-start {name}", host.uri()),
            ),
            NetworkState::Absent => Finding::bad(
                format!("the host has no network {name}"),
                "set `host.network` in the spec; see: virsh net-list --all",
            ),
        },
        Network::Bridge(name) if !host.is_local() => Finding::good(format!(
            "the bridge {name} is on another host and was not looked at"
        )),
        Network::Bridge(name)
            if Path::new("/sys/class/net")
                .join(name)
                .join("bridge")
                .is_dir() =>
        {
            Finding::good(format!("the bridge {name} exists"))
        }
        Network::Bridge(name) => Finding::bad(
            format!("the host has no bridge {name}"),
            "set `host.network` in the spec; see: ip link show type bridge",
        ),
    })
}

/// What guests will run under, and a doubt about it.
pub async fn virt_type(host: &Host, wanted: VirtType) -> Result<(String, Option<Finding>)> {
    let offered = host.offers_kvm().await?;
    let proven = !host.is_local()
        || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpuinfo| kvm_works_here(&cpuinfo));
    let slow = "guests boot in software emulation, many times slower; enable virtualization (nested, in a VM) if you can";
    Ok(match wanted {
        VirtType::Qemu => ("qemu".into(), None),
        VirtType::Kvm if !offered => (
            "kvm".into(),
            Some(Finding::bad(
                "libvirt offers no KVM on this host",
                "load the kvm module, or set `virt_type: auto` in the spec",
            )),
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
        VirtType::Auto if offered => (
            "qemu".into(),
            Some(Finding::doubtful(
                "KVM is offered, but the processor shows neither vmx nor svm",
                slow,
            )),
        ),
        VirtType::Auto => (
            "qemu".into(),
            Some(Finding::doubtful("there is no KVM on this host", slow)),
        ),
    })
}

/// The nodes of a plan: templates, space, names, addresses.
async fn nodes(on: &Opened, sight: &Sight) -> Result<Vec<Finding>> {
    let (host, plan) = (&on.host, &on.plan);
    let mut findings = templates(plan, sight);
    for path in plan
        .nodes
        .iter()
        .filter_map(|node| node.upload.as_ref())
        .map(|upload| &upload.file)
        .collect::<BTreeSet<_>>()
    {
        findings.push(match std::fs::metadata(path) {
            Ok(file) if file.is_file() => Finding::good(format!("{path} is there")),
            Ok(_) => Finding::bad(
                format!("{path} is not a file"),
                "correct `kubelet.file` in the spec",
            ),
            Err(error) => Finding::bad(
                format!("{path} cannot be read: {}", system_words(&error)),
                "correct `kubelet.file` in the spec",
            ),
        });
    }
    if plan
        .nodes
        .iter()
        .any(|node| node.first_boot == FirstBoot::Inject)
    {
        findings.push(injection(host));
    }
    let fresh: Vec<&Node> = plan
        .nodes
        .iter()
        .filter(|node| sight.claim(&plan.cluster.name, &node.name).is_none())
        .collect();
    findings.extend(
        fresh
            .iter()
            .filter_map(|node| name_taken(host, node, sight)),
    );
    if let Some(cluster) = on.cluster.as_ref().filter(|_| !fresh.is_empty()) {
        // The Node of a machine that is not here: of another host, or of a VM that is no more.
        let members = cluster.all_nodes().await?;
        for other in fresh
            .iter()
            .filter_map(|node| members.iter().find(|member| member.name == node.name))
        {
            let error = taken(&other.name, other.address.as_deref());
            findings.push(Finding::bad(
                error.to_string(),
                error.help().unwrap_or_default(),
            ));
        }
    }
    let moved = plan.nodes.iter().filter(|node| {
        moves(
            node,
            &on.recreate,
            sight.claim(&plan.cluster.name, &node.name),
        )
    });
    let arriving: Vec<&Node> = fresh.into_iter().chain(moved).collect();
    findings.extend(
        arriving
            .iter()
            .filter_map(|node| address_taken(node, &plan.cluster.name, sight)),
    );
    let probes = arriving.iter().map(|node| async {
        (
            node.name.clone(),
            node.ip,
            answers(node.ip, &node.mac).await,
        )
    });
    for (name, ip, answer) in futures_util::future::join_all(probes).await {
        findings.push(match answer {
            Some(how) => Finding::bad(
                format!("something already answers at {ip}, the address of {name} ({how})"),
                "give the node a free address",
            ),
            None => Finding::good(format!("nothing answers at {ip}")),
        });
    }
    Ok(findings)
}

fn name_taken(host: &Host, node: &Node, sight: &Sight) -> Option<Finding> {
    let domain = sight
        .domains
        .iter()
        .find(|domain| domain.name == node.name)?;
    Some(Finding::bad(
        format!(
            "the name {} is taken by a domain that is {}",
            node.name,
            whose(domain.owner())
        ),
        format!(
            "give the node another name, or look at that domain first: virsh -c '{}' dumpxml {}",
            host.uri(),
            node.name
        ),
    ))
}

/// Whether a node is to be made anew, at another address than it has now.
fn moves(node: &Node, recreate: &[String], claim: Option<&Domain>) -> bool {
    let never_ran = |claim: &Domain| {
        claim
            .proven_mark()
            .is_some_and(|mark| mark.seed == SeedState::Unwritten)
    };
    claim.is_some_and(|claim| {
        (recreate.contains(&node.name) || never_ran(claim)) && !is_at(claim, node.ip)
    })
}

/// Whether a domain of ours has an address.
fn is_at(domain: &Domain, ip: IpAddr) -> bool {
    domain
        .proven_mark()
        .is_some_and(|mark| mark.address.split('/').next() == Some(&ip.to_string()))
}

fn address_taken(node: &Node, cluster: &str, sight: &Sight) -> Option<Finding> {
    let other = sight
        .domains
        .iter()
        .find(|domain| is_at(domain, node.ip) && !domain.is_claim(cluster, &node.name))?;
    Some(Finding::bad(
        format!(
            "the address {} of {} is that of the domain {}",
            node.ip, node.name, other.name
        ),
        "give the node another address, or take that domain down first",
    ))
}

/// Whether the first-boot unit can be put into clones from here.
pub fn injection(host: &Host) -> Finding {
    if !host.is_local() {
        Finding::bad(
            "`first_boot: inject` edits the clone's file, which is on another host",
            "on that host: nodegraft image prepare TEMPLATE; then name what it made as `template`, without `first_boot`",
        )
    } else if !guestfs::is_installed() {
        Finding::bad(
            "virt-customize is not installed, and puts the first-boot unit into images",
            "apt-get install guestfs-tools",
        )
    } else {
        Finding::good("virt-customize is installed")
    }
}

fn templates(plan: &Plan, sight: &Sight) -> Vec<Finding> {
    let pool = &sight.pool;
    let mut findings = Vec::new();
    let mut by_template: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
    for node in &plan.nodes {
        by_template.entry(&node.template).or_default().push(node);
    }
    let mut wanted = 0;
    for (template, nodes) in by_template {
        let Some(volume) = pool.volume(template) else {
            let images: Vec<&str> = pool
                .names
                .iter()
                .map(String::as_str)
                .filter(|name| may_be_template(name))
                .collect();
            findings.push(Finding::bad(
                format!("the pool {} has no template volume {template}", pool.name),
                format!(
                    "it has: {}",
                    if images.is_empty() {
                        "nothing".into()
                    } else {
                        images.join(", ")
                    }
                ),
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
            if sight.claim(&plan.cluster.name, &node.name).is_none() {
                wanted += if node.clone == CloneMode::Full {
                    volume.allocation
                } else {
                    OVERLAY_ROOM
                };
            }
        }
        findings.push(Finding::good(format!(
            "the template {template} is there, {}",
            Size(volume.capacity)
        )));
    }
    if wanted > pool.available {
        findings.push(Finding::bad(
            format!(
                "the pool {} has {} free, the nodes need {}",
                pool.name,
                Size(pool.available >> 20 << 20),
                Size(wanted >> 20 << 20)
            ),
            "make room, or use another pool",
        ));
    }
    findings
}

/// How something shows itself at an address that should be free, if it does.
async fn answers(ip: IpAddr, own: &str) -> Option<String> {
    match tokio::time::timeout(
        PROBE,
        tokio::net::TcpStream::connect(SocketAddr::new(ip, 22)),
    )
    .await
    {
        Ok(Ok(_)) => return Some("SSH port open".into()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Some("it refuses connections".into());
        }
        _ => {}
    }
    // A machine that drops our packets still answered ARP for them.
    let table = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
    // The node's own MAC is remembered for a while after a `down`.
    arp_entry(&table, ip)
        .filter(|mac| !mac.eq_ignore_ascii_case(own))
        .map(|mac| format!("MAC {mac}"))
}

/// The complete entry of an address in the kernel's ARP table.
fn arp_entry(table: &str, ip: IpAddr) -> Option<&str> {
    const COMPLETE: u32 = 0x2;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(2)?.trim_start_matches("0x"), 16).ok()?;
        let mac = *fields.get(3)?;
        (fields[0].parse() == Ok(ip) && flags & COMPLETE != 0 && mac != "00:00:00:00:00:00")
            .then_some(mac)
    })
}

/// Something that is done in the cluster, and the rights it takes.
struct Need {
    purpose: &'static str,
    /// Verb, API group, resource, namespace.
    rights: &'static [(
        &'static str,
        &'static str,
        &'static str,
        Option<&'static str>,
    )],
    /// What happens without it; `None` where nothing works.
    without: Option<&'static str>,
}

const CERTIFICATES: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const SYSTEM: Option<&str> = Some("kube-system");
const LEASES: Option<&str> = Some("kube-node-lease");

const NEEDS: &[Need] = &[
    Need {
        purpose: "mint bootstrap tokens",
        rights: &[("create", "", "secrets", SYSTEM)],
        without: None,
    },
    Need {
        purpose: "find and delete bootstrap tokens",
        rights: &[
            ("list", "", "secrets", SYSTEM),
            ("delete", "", "secrets", SYSTEM),
        ],
        without: None,
    },
    Need {
        purpose: "see certificate requests",
        rights: &[
            ("list", CERTIFICATES, REQUESTS, None),
            ("watch", CERTIFICATES, REQUESTS, None),
        ],
        without: None,
    },
    Need {
        purpose: "approve certificate requests",
        rights: &[(
            "update",
            CERTIFICATES,
            "certificatesigningrequests/approval",
            None,
        )],
        // The cluster's own controllers may do it instead; if nobody does, the join says so.
        without: Some("somebody else must: nodegraft access grant lets the controllers"),
    },
    Need {
        purpose: "delete certificate requests",
        rights: &[("delete", CERTIFICATES, REQUESTS, None)],
        without: Some("Kubernetes removes them itself within a day"),
    },
    Need {
        purpose: "see Nodes",
        rights: &[
            ("get", "", "nodes", None),
            ("list", "", "nodes", None),
            ("watch", "", "nodes", None),
        ],
        without: None,
    },
    Need {
        purpose: "label Nodes",
        rights: &[("patch", "", "nodes", None)],
        without: None,
    },
    Need {
        purpose: "delete Nodes",
        rights: &[("delete", "", "nodes", None)],
        without: None,
    },
    Need {
        purpose: "see and delete the leases of Nodes",
        rights: &[
            ("get", "coordination.k8s.io", "leases", LEASES),
            ("delete", "coordination.k8s.io", "leases", LEASES),
        ],
        without: Some(
            "whether a kubelet lives is told by its Node's Ready, which is late; Kubernetes removes the leases itself",
        ),
    },
    Need {
        purpose: "drain Nodes",
        rights: &[
            ("list", "", "pods", None),
            ("create", "", "pods/eviction", None),
        ],
        without: Some("`nodegraft down` cannot drain: with --force the pods go with their node"),
    },
];

/// The cluster: its version, its certificates API, and what we may do there.
pub async fn cluster(cluster: &Cluster) -> Result<Vec<Finding>> {
    let mut findings = vec![
        Finding::good(format!(
            "the API server {} is {}",
            cluster.server, cluster.version
        )),
        Finding::good(format!(
            "it serves certificates.k8s.io/{}",
            cluster.certificates
        )),
    ];
    findings.extend(rights(cluster).await);
    findings.push(match cluster.may("system:node:any", &["system:nodes"], Right::RenewalApproval).await {
        Ok(true) => Finding::good("renewals of node certificates are approved"),
        Ok(false) => Finding::doubtful(
            "nothing approves the renewal of node certificates: nodes drop out when their first one ends",
            "kubectl create clusterrolebinding node-renewal --clusterrole=system:certificates.k8s.io:certificatesigningrequests:selfnodeclient --group=system:nodes",
        ),
        Err(error) if is_forbidden(&error) => Finding::doubtful(
            "this kubeconfig may not ask whether renewals of node certificates are approved",
            "if they are not, nodes drop out when their first one ends; an administrator's kubeconfig can tell: nodegraft doctor",
        ),
        Err(error) => return Err(error),
    });
    Ok(findings)
}

/// What is wrong with the API server's URL as guests are told it.
pub fn way(server: &str) -> Option<Finding> {
    server::check_way(server)
        .err()
        .map(|(what, help)| Finding::bad(what, help))
}

/// What this kubeconfig may do of what is done in a cluster.
async fn rights(cluster: &Cluster) -> Vec<Finding> {
    let asked = NEEDS.iter().map(|need| async move {
        let each = need
            .rights
            .iter()
            .map(|(verb, group, resource, namespace)| async move {
                let allowed = cluster.may_we(verb, group, resource, *namespace).await?;
                Ok((!allowed).then(|| format!("{verb} {resource}")))
            });
        let lacks: Result<Vec<Option<String>>> = futures_util::future::try_join_all(each).await;
        lacks.map(|lacks| need.finding(&lacks.into_iter().flatten().collect::<Vec<_>>()))
    });
    match futures_util::future::try_join_all(asked).await {
        Ok(findings) => findings,
        // They may all be there: what is missing shows when it is needed.
        Err(error) if is_forbidden(&error) => vec![Finding::doubtful(
            "this kubeconfig may not ask what it may do",
            "what it may not shows when it is needed; every user of a cluster may ask as a rule: kubectl auth can-i --list",
        )],
        Err(error) => vec![Finding::bad(one_line(&error), "is the API server well?")],
    }
}

impl Need {
    fn finding(&self, lacks: &[String]) -> Finding {
        if lacks.is_empty() {
            return Finding::good(format!("this kubeconfig may {}", self.purpose));
        }
        let what = format!(
            "this kubeconfig may not {}: it lacks {}",
            self.purpose,
            lacks.join(", ")
        );
        match self.without {
            Some(without) => Finding::doubtful(what, without),
            None => Finding::bad(what, "use an administrator's kubeconfig"),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_complete_arp_entries_count() {
        let table = "IP address HW type Flags HW address Mask Device\n\
                     10.0.0.2 0x1 0x2 52:54:00:00:00:01 * br0\n\
                     10.0.0.3 0x1 0x0 00:00:00:00:00:00 * br0\n";
        assert_eq!(
            super::arp_entry(table, "10.0.0.2".parse().unwrap()),
            Some("52:54:00:00:00:01")
        );
        assert_eq!(super::arp_entry(table, "10.0.0.3".parse().unwrap()), None);
        assert_eq!(super::arp_entry(table, "10.0.0.4".parse().unwrap()), None);
    }
}
