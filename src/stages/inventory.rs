//! The inventory: what exists of a cluster on a host, asked of libvirt and of the API server once. `down`, `status`, what
//! `up` tells of strays and every removal are computed from it. It needs neither profile nor templates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::removal::{Drain, Removal};
use crate::rooms::cluster::pod::Pod;
use tokio::time::Instant;

use crate::core::difference::Machine;
use crate::core::error::{Error, Result};
use crate::core::journal::Thing;
use crate::core::mark::{Claimed, Mark};
use crate::core::ownership::{Owner, SEED_SUFFIX, unclaimed};
use crate::rooms::cluster::token::OurToken;
use crate::rooms::cluster::{Cluster, node::Node};
use crate::rooms::libvirt::storage::Pool;
use crate::rooms::libvirt::{Host, domain::Domain};

/// Symbolic links are looked up in this time, or not at all.
const LINKS: Duration = Duration::from_secs(10);

/// What there is of a cluster on one host.
pub struct Inventory {
    pub nodes: Vec<Existing>,
    /// Volumes that have the cluster's prefix and that no claim lists: whose they are cannot be proven.
    pub unclaimed: Vec<Claimed>,
    /// Of all domains of the host.
    pub names: Vec<String>,
    /// All Nodes of the cluster, ours or not; none where it was not asked.
    members: Vec<Node>,
}

/// A node that exists: its claim, and what belongs to it.
pub struct Existing {
    pub domain: Domain,
    pub owner: Owner,
    pub mark: Mark,
    /// The volumes of its claim that are there.
    volumes: Vec<Claimed>,
    /// Bytes of its disk, which the claim lists first.
    disk: Option<u64>,
    /// Pools of its volumes that could not be looked into.
    inactive: Vec<String>,
    /// Why its files must stay: somebody else uses them.
    pub in_use: Option<String>,
    pub member: Option<Membership>,
    looked: Instant,
}

/// What the API server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// For a comparison.
    Nodes,
    /// Tokens and pods, too: what a removal needs to know.
    Everything,
}

/// What the cluster has of a node.
pub struct Membership {
    pub node: Option<Node>,
    pub tokens: Vec<OurToken>,
    /// On its Node, but for those that stay or are over.
    pub pods: Vec<Pod>,
}

impl Inventory {
    /// One look at libvirt, and one at the API server where there is one.
    pub async fn take(
        host: &Host,
        cluster: Option<&Cluster>,
        name: &str,
        ask: Ask,
    ) -> Result<Self> {
        let looked = Instant::now();
        let domains = host.domains().await?;
        let claims: Vec<(&Domain, &Owner, &Mark)> = domains
            .iter()
            .filter_map(|domain| Some((domain, domain.owner()?, domain.proven_mark()?)))
            .filter(|(_, owner, _)| owner.is_of(name))
            .collect();
        let used: BTreeSet<String> = claims
            .iter()
            .flat_map(|(_, _, mark)| &mark.volumes)
            .map(|volume| volume.pool.clone())
            .collect();
        // A seed volume is raw: it stands on nothing.
        let pools = host
            .pools(used, |name| !name.ends_with(SEED_SUFFIX))
            .await?;
        let pools: BTreeMap<String, Pool> = pools
            .into_iter()
            .map(|pool| (pool.name.clone(), pool))
            .collect();
        let files = Files {
            links: links(host, &domains, &pools).await,
            domains: &domains,
            pools: &pools,
        };
        let members = Members::ask(cluster, ask).await?;
        let mut nodes = Vec::new();
        for (domain, owner, mark) in claims {
            let listed = |volume: &&Claimed| {
                pools
                    .get(&volume.pool)
                    .is_some_and(|pool| pool.has(&volume.name))
            };
            nodes.push(Existing {
                volumes: mark.volumes.iter().filter(listed).cloned().collect(),
                inactive: inactive(mark, &pools),
                disk: mark.volumes.iter().find_map(|volume| {
                    Some(pools.get(&volume.pool)?.volume(&volume.name)?.capacity)
                }),
                in_use: files.in_use(domain, mark),
                looked,
                member: members.of(owner, cluster).await?,
                domain: domain.clone(),
                owner: owner.clone(),
                mark: mark.clone(),
            });
        }
        nodes.sort_by(|one: &Existing, other| one.owner.node.cmp(&other.owner.node));
        Ok(Self {
            nodes,
            unclaimed: unclaimed(
                name,
                pools.values().flat_map(present),
                domains.iter().filter_map(Domain::proven_mark),
            ),
            names: domains.iter().map(|domain| domain.name.clone()).collect(),
            members: members.nodes,
        })
    }

    pub fn node(&self, name: &str) -> Option<&Existing> {
        self.nodes
            .iter()
            .find(|existing| existing.owner.node == name)
    }

    /// Nodes that the cluster has of machines which are not on this host.
    pub fn foreign_nodes(&self) -> impl Iterator<Item = &String> {
        let here = |node: &&Node| {
            self.nodes
                .iter()
                .all(|existing| !node.is_of(&existing.owner))
        };
        self.members.iter().filter(here).map(|node| &node.name)
    }

    /// The cluster's Node of that name, whoever's.
    pub fn member(&self, name: &str) -> Option<&Node> {
        self.members.iter().find(|node| node.name == name)
    }
}

impl Existing {
    /// Everything there is of it, in the order in which it goes: the claim last, so that what was interrupted is found
    /// again.
    pub fn removal(&self, drain: Drain) -> Removal {
        let mut things = Vec::new();
        let mut drained = None;
        if let Some(member) = &self.member {
            // Asked for even where there is none: it may register until its VM is frozen.
            things.push(Thing::Node {
                name: self.owner.node.clone(),
            });
            things.extend(member.tokens.iter().map(|token| Thing::Token {
                id: token.id.clone(),
            }));
            if let (Drain::Within(limit), Some(node)) = (drain, &member.node) {
                drained = Some((node.clone(), limit));
            }
        }
        if self.domain.running {
            things.push(Thing::Running);
        }
        let unseen = self
            .mark
            .volumes
            .iter()
            .filter(|volume| self.inactive.contains(&volume.pool));
        things.extend(
            self.volumes
                .iter()
                .chain(unseen)
                .map(|volume| Thing::Volume {
                    pool: volume.pool.clone(),
                    name: volume.name.clone(),
                }),
        );
        things.push(Thing::Domain {
            name: self.domain.name.clone(),
            uuid: self.domain.uuid.clone(),
        });
        Removal {
            owner: self.owner.clone(),
            uuid: Some(self.domain.uuid.clone()),
            things,
            drain: drained,
            looked: Some(self.looked),
        }
    }

    /// As the spec is compared with it.
    pub fn machine(&self) -> Machine<'_> {
        Machine {
            mark: &self.mark,
            cpus: self.domain.cpus,
            memory: self.domain.memory,
            disk: self.disk,
        }
    }

    /// What a person is asked about: what goes, and what may be lost with it.
    pub fn describe(&self) -> String {
        let vm = if self.domain.running {
            "VM running"
        } else {
            "VM off"
        };
        let mut text = format!("{}: {vm}, {} volumes", self.owner.node, self.volumes.len());
        if self.domain.name != self.owner.node {
            text.push_str(&format!(" (the domain is called {} now)", self.domain.name));
        }
        let Some(member) = &self.member else {
            return text;
        };
        match &member.node {
            None => text.push_str("; no Node"),
            Some(node) => text.push_str(if node.ready {
                "; Node Ready"
            } else {
                "; Node not Ready"
            }),
        }
        let named = |which: &dyn Fn(&Pod) -> bool| {
            let names: Vec<String> = member
                .pods
                .iter()
                .filter(|pod| which(pod))
                .map(|pod| format!("{}/{}", pod.namespace, pod.name))
                .collect();
            names.join(", ")
        };
        if !member.pods.is_empty() {
            text.push_str(&format!(", {} pods leave", member.pods.len()));
        }
        for (names, why) in [
            (named(&|pod| !pod.controller), "nothing makes these anew"),
            (named(&|pod| pod.local_data), "these lose their local data"),
        ] {
            if !names.is_empty() {
                text.push_str(&format!("; {why}: {names}"));
            }
        }
        text
    }

    /// Why it may not be removed.
    pub fn refusal(&self) -> Option<Error> {
        let why = self.in_use.as_ref()?;
        Some(Error::leftover(format!("{} stays as it is: {why}", self.owner.node)).with_help(format!(
            "nodegraft did not make that: merge or delete the snapshot, or detach the file there, then run the same command again; see: virsh domblklist {}",
            self.domain.name
        )))
    }
}

/// What the API server has of a cluster's nodes.
struct Members {
    ask: Option<Ask>,
    nodes: Vec<Node>,
    tokens: Vec<OurToken>,
}

impl Members {
    async fn ask(cluster: Option<&Cluster>, ask: Ask) -> Result<Self> {
        let Some(cluster) = cluster else {
            return Ok(Self {
                ask: None,
                nodes: Vec::new(),
                tokens: Vec::new(),
            });
        };
        let tokens = if ask == Ask::Everything {
            cluster.our_tokens().await?
        } else {
            Vec::new()
        };
        Ok(Self {
            ask: Some(ask),
            nodes: cluster.all_nodes().await?,
            tokens,
        })
    }

    async fn of(&self, owner: &Owner, cluster: Option<&Cluster>) -> Result<Option<Membership>> {
        let (Some(cluster), Some(ask)) = (cluster, self.ask) else {
            return Ok(None);
        };
        let node = self.nodes.iter().find(|node| node.is_of(owner)).cloned();
        let tokens = self
            .tokens
            .iter()
            .filter(|token| token.owner == *owner)
            .cloned()
            .collect();
        let pods = match &node {
            Some(node) if ask == Ask::Everything => cluster
                .pods_on(&node.name)
                .await?
                .into_iter()
                .filter(Pod::must_leave)
                .collect(),
            _ => Vec::new(),
        };
        Ok(Some(Membership { node, tokens, pods }))
    }
}

fn inactive(mark: &Mark, pools: &BTreeMap<String, Pool>) -> Vec<String> {
    let pools = mark
        .volumes
        .iter()
        .map(|volume| &volume.pool)
        .filter(|pool| pools.get(*pool).is_none_or(|pool| !pool.active));
    pools
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Every file that a domain of the host, or a volume of its pools, stands on.
struct Files<'a> {
    /// What paths with symbolic links in them really are.
    links: BTreeMap<String, String>,
    domains: &'a [Domain],
    pools: &'a BTreeMap<String, Pool>,
}

impl Files<'_> {
    /// Who besides its own claim uses a node's files: another domain, a volume that is an overlay on one, or the domain itself
    /// through a file that is not of the claim, as an external snapshot leaves it.
    fn in_use(&self, domain: &Domain, mark: &Mark) -> Option<String> {
        let own: BTreeSet<String> = mark
            .volumes
            .iter()
            .filter_map(|volume| self.path(volume))
            .collect();
        for other in self
            .domains
            .iter()
            .filter(|other| other.uuid != domain.uuid)
        {
            if let Some(file) = self.used_by(other).find(|file| own.contains(file)) {
                return Some(format!("the domain {} uses {file}", other.name));
            }
        }
        let overlays = self
            .pools
            .values()
            .flat_map(|pool| &pool.volumes)
            .filter(|volume| !own.contains(&self.real(&volume.path)));
        for overlay in overlays {
            if let Some(base) = overlay
                .backing
                .as_ref()
                .filter(|base| own.contains(&self.real(base)))
            {
                return Some(format!(
                    "{} is an overlay on {base}, such as a snapshot",
                    overlay.path
                ));
            }
        }
        // Of a VM that is off libvirt does not tell the files below: a disk that is not its own is enough.
        let disk = mark.volumes.first().and_then(|volume| self.path(volume))?;
        let present: Vec<String> = domain.disks.iter().map(|file| self.real(file)).collect();
        let foreign = present
            .iter()
            .find(|file| !own.contains(*file))
            .filter(|_| !present.contains(&disk));
        foreign.map(|file| format!("its disk is {file} now, as an external snapshot leaves it"))
    }

    fn used_by<'d>(&'d self, domain: &'d Domain) -> impl Iterator<Item = String> + 'd {
        let volumes = domain.volumes.iter().filter_map(|volume| self.path(volume));
        domain
            .disks
            .iter()
            .chain(&domain.backing)
            .map(|file| self.real(file))
            .chain(volumes)
    }

    fn path(&self, volume: &Claimed) -> Option<String> {
        let pool = self.pools.get(&volume.pool)?;
        let path = pool
            .volume(&volume.name)
            .map_or_else(|| pool.path_of(&volume.name), |known| known.path.clone());
        Some(self.real(&path))
    }

    /// Without symbolic links.
    fn real(&self, path: &str) -> String {
        self.links
            .get(path)
            .map_or_else(|| path.to_owned(), Clone::clone)
    }
}

/// The symbolic links among all paths, where the files are this machine's. What does not answer in a while is taken as it is
/// written: an image may lie on storage that hangs.
async fn links(
    host: &Host,
    domains: &[Domain],
    pools: &BTreeMap<String, Pool>,
) -> BTreeMap<String, String> {
    if !host.is_local() {
        return BTreeMap::new();
    }
    let of_domains = domains
        .iter()
        .flat_map(|domain| domain.disks.iter().chain(&domain.backing));
    let of_pools = pools
        .values()
        .flat_map(|pool| &pool.volumes)
        .flat_map(|volume| std::iter::once(&volume.path).chain(&volume.backing));
    let mut paths: BTreeSet<String> = of_domains.chain(of_pools).cloned().collect();
    paths.extend(
        pools
            .values()
            .flat_map(|pool| pool.names.iter().map(|name| pool.path_of(name))),
    );
    let real = move || {
        let real = |path: String| {
            std::fs::canonicalize(&path)
                .ok()
                .map(|real| (path, real.display().to_string()))
        };
        paths
            .into_iter()
            .filter_map(real)
            .filter(|(path, real)| path != real)
            .collect()
    };
    match tokio::time::timeout(LINKS, tokio::task::spawn_blocking(real)).await {
        Ok(Ok(links)) => links,
        _ => BTreeMap::new(),
    }
}

/// Every volume of a pool.
fn present(pool: &Pool) -> impl Iterator<Item = Claimed> {
    pool.names.iter().map(|name| Claimed {
        pool: pool.name.clone(),
        name: name.clone(),
    })
}
