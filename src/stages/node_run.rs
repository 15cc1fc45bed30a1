//! One node on its way, with what one stage leaves for the next. A walk has it to itself: what is here was seen or made by
//! the stages before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::candidate::{Candidate, Earlier, Joining};
use super::run::Run;
use crate::core::error::{Error, Result};
use crate::core::mark::{Claimed, Mark, SeedState};
use crate::core::ownership::Owner;
use crate::core::plan::{self, Member};
use crate::core::template::Templates;
use crate::pipeline::stage::Work;
use crate::rooms::cluster::Cluster;
use crate::rooms::libvirt::{Host, domain::Domain, storage};
use crate::rooms::process;
use crate::rooms::ssh::{Identity, Kept, OpenError, Session, Target, Trust};

pub struct NodeRun {
    pub run: Arc<Run>,
    /// The run's, with this node's calls told apart from those of others.
    pub host: Host,
    pub node: plan::Node,
    member: Member,
    /// The claim, or whatever else has the node's name, as it was last seen.
    pub(super) domain: Option<Domain>,
    /// As it was last seen.
    pub(super) disk: Option<Disk>,
    session: Kept,
}

/// A node's disk, and how far this run has come with it.
pub(super) struct Disk {
    pub(super) volume: storage::Volume,
    pub(super) state: DiskState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskState {
    /// An earlier run made it. Until the seed is written it may be half a copy.
    Found,
    /// This run made it, whole.
    Made,
    /// This run made it, and put the first-boot unit into it.
    Injected,
}

impl NodeRun {
    /// Begins with nothing: whatever Preflight saw of it was removed since.
    pub fn anew(run: Arc<Run>, node: plan::Node) -> Self {
        Self {
            host: run.host.told_apart(),
            member: run.plan.member(&node),
            run,
            node,
            domain: None,
            disk: None,
            session: Kept::default(),
        }
    }

    /// Begins with what Preflight saw.
    pub fn new(run: Arc<Run>, node: plan::Node) -> Self {
        let sight = &run.sight;
        let named = || sight.domains.iter().find(|domain| domain.name == node.name);
        let domain = sight
            .claim(&run.plan.cluster.name, &node.name)
            .or_else(named)
            .cloned();
        let disk = domain
            .as_ref()
            .and_then(Domain::proven_mark)
            .and_then(|mark| mark.volume(&mark.owner.disk()))
            .filter(|claimed| claimed.pool == sight.pool.name)
            .and_then(|claimed| sight.pool.volume(&claimed.name).cloned())
            .map(Disk::found);
        Self {
            domain,
            disk,
            ..Self::anew(run, node)
        }
    }

    /// Bytes.
    pub fn disk_capacity(&self) -> Option<u64> {
        self.disk.as_ref().map(|disk| disk.volume.capacity)
    }

    pub(super) fn ssh_address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip, 22)
    }

    /// The node's domain as it was last seen, if it is our claim.
    pub fn claim(&self) -> Option<Domain> {
        self.domain
            .clone()
            .filter(|domain| domain.is_claim(&self.run.plan.cluster.name, &self.node.name))
    }

    /// Asks libvirt anew: for the claim by its UUID, where there is none for what bears the node's name.
    pub(super) async fn look(&mut self) -> Result<Option<Domain>> {
        let uuid = match self.claim() {
            Some(claim) => Some(claim.uuid),
            None => self.host.uuid_of(&self.node.name).await?,
        };
        self.domain = match uuid {
            Some(uuid) => self.host.domain(&uuid).await?,
            None => None,
        };
        Ok(self.domain.clone())
    }

    /// The claim; an error if there is none.
    pub(super) fn claimed(&self) -> Result<Domain> {
        self.claim().ok_or_else(|| {
            Error::failed(format!("there is no domain of {}", self.node.name))
                .with_help("run `nodegraft up` again")
        })
    }

    fn owner(&self) -> Result<Owner> {
        self.mark().map(|mark| mark.owner)
    }

    /// Its disk as the claim lists it. The spec may name another pool by now: that is for new ones.
    pub(super) fn claimed_disk(&self) -> Result<Claimed> {
        self.claimed_volume(Owner::disk)
    }

    pub(super) fn claimed_seed(&self) -> Result<Claimed> {
        self.claimed_volume(Owner::seed)
    }

    fn claimed_volume(&self, name: impl Fn(&Owner) -> String) -> Result<Claimed> {
        let mark = self.mark()?;
        let name = name(&mark.owner);
        mark.volume(&name).cloned().ok_or_else(|| {
            Error::failed(format!(
                "the mark of {} does not list {name}",
                self.node.name
            ))
        })
    }

    /// The disk as it was last seen. What Preflight saw is the spec's pool; in another one it is looked up here.
    pub(super) async fn seen_disk(&mut self) -> Result<Option<&Disk>> {
        let claimed = self.claimed_disk()?;
        if self.disk.is_none() && self.run.sight.pool.name != claimed.pool {
            let found = self.host.volume(&claimed.pool, &claimed.name).await?;
            self.disk = found.map(Disk::found);
        }
        Ok(self.disk.as_ref())
    }

    pub(super) fn mark(&self) -> Result<Mark> {
        self.claimed()?
            .mark
            .ok_or_else(|| not_ours(&self.node.name))
    }

    /// Writes the mark and reads it back.
    pub(super) async fn set_mark(&mut self, mark: &Mark) -> Result<()> {
        self.host.set_mark(&self.claimed()?.uuid, mark).await?;
        self.look().await.map(drop)
    }

    /// The seed is written: from then on the VM may have run, and its disk is not made anew.
    pub(super) fn is_sealed(&self) -> bool {
        self.claim()
            .and_then(|claim| claim.mark)
            .is_some_and(|mark| mark.seed != SeedState::Unwritten)
    }

    /// Asks anew whether what an earlier run left may be replaced: the VM never ran, and nobody but us works on it. Another
    /// operator may have gone on with the node from elsewhere since it was last seen.
    pub(super) async fn demand_untouched(&mut self) -> Result<()> {
        self.look().await?;
        let claim = self.claimed()?;
        let by = self.mark()?.by.unwrap_or_default();
        let why = if claim.running {
            "its VM runs".to_owned()
        } else if self.is_sealed() {
            "another run has finished its seed".to_owned()
        } else if by != process::this() {
            format!("another run works on it (host, process and start: {by})")
        } else {
            return Ok(());
        };
        Err(Error::failed(format!("{} is not ours alone: {why}", self.node.name))
            .with_help("nothing of it was deleted; see that one run at a time works on a node, then run `nodegraft up` again"))
    }

    /// A session that works, opened anew if the last one broke.
    pub(super) async fn open_session(&self, deadline: Duration) -> Result<Session, OpenError> {
        let target = async {
            let mark = self.mark().map_err(OpenError::Unreachable)?;
            Ok(Target {
                host: self.node.ip.to_string(),
                port: 22,
                user: self.node.user.clone(),
                trust: Trust::Pinned(mark.host_key),
                identity: Identity::Key {
                    private: self.run.key.private.clone(),
                    public: self.run.key.public.clone(),
                },
            })
        };
        self.session.session(target, deadline).await
    }
}

impl Disk {
    fn found(volume: storage::Volume) -> Self {
        Self {
            volume,
            state: DiskState::Found,
        }
    }
}

impl Work for NodeRun {
    type Planned = plan::Node;
}

impl Joining for NodeRun {
    fn cluster(&self) -> &Cluster {
        self.run.cluster()
    }

    fn terms(&self) -> &plan::ClusterPlan {
        self.run.terms()
    }

    fn templates(&self) -> &Templates {
        self.run.templates()
    }
}

#[async_trait]
impl Candidate for NodeRun {
    fn member(&self) -> &Member {
        &self.member
    }

    fn instance(&self) -> Result<String> {
        self.owner().map(|owner| owner.machine_id().to_owned())
    }

    async fn session(&self, deadline: Duration) -> Result<Session, OpenError> {
        self.open_session(deadline).await
    }

    fn earlier(&self) -> Earlier {
        Earlier::Continued
    }
}

pub(super) fn not_ours(name: &str) -> Error {
    Error::failed(format!(
        "the name {name} is taken by a domain that is not a node of this cluster"
    ))
    .with_help(format!(
        "give the node another name, or look at that domain first: virsh dumpxml {name}"
    ))
}
