//! THE LIST. Start reading here.
//!
//! ```text
//! once per run :  Preflight  Access
//! once per node:  Claim  Volume  (Inject)  Seed  Boot  Login  Steps  Join  Ready
//! ```
//!
//! One file per stage. A stage may use the rooms and the core; it may not print, spawn a process, or call another stage.

mod access;
mod boot;
pub mod candidate;
mod claim;
mod facts;
mod inject;
pub mod inventory;
mod join;
mod login;
pub mod preflight;
mod ready;
pub mod removal;
mod seed;
mod serving;
pub mod steps;
mod volume;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use candidate::{Candidate, Joining};

use crate::core::error::{Error, Result};
use crate::core::mark::{Claimed, Mark, SeedState};
use crate::core::ownership::Owner;
use crate::core::plan::{self, Member, Plan};
use crate::core::spec::FirstBoot;
use crate::pipeline::stage::Stage;
use crate::rooms::cluster::Cluster;
use crate::rooms::libvirt::{Host, console::Console, domain::Domain, storage};
use crate::rooms::process;
use crate::rooms::ssh::{Identity, Kept, OpenError, Session, Target, Trust};
use crate::rooms::state::{LoginKey, StateDir};

/// Once per run, in this order. `join` is false for machines that join no cluster.
pub fn run_stages(join: bool) -> Vec<Box<dyn Stage<Run>>> {
    let mut stages: Vec<Box<dyn Stage<Run>>> = vec![Box::new(preflight::Preflight)];
    if join {
        stages.extend(access_stages());
    }
    stages
}

/// Once per node, in this order. Inject is there for a node that asks for it.
pub fn node_stages(node: &plan::Node, join: bool) -> Vec<Box<dyn Stage<NodeRun>>> {
    let mut stages: Vec<Box<dyn Stage<NodeRun>>> =
        vec![Box::new(claim::Claim), Box::new(volume::Volume)];
    if node.first_boot == FirstBoot::Inject {
        stages.push(Box::new(inject::Inject));
    }
    stages.push(Box::new(seed::Seed));
    stages.push(Box::new(boot::Boot));
    stages.push(Box::new(login::Login));
    stages.push(Box::new(steps::Steps));
    if join {
        stages.extend(join_stages());
    }
    stages
}

/// The end of the list: the join alone, of a VM or of a machine that was there before.
pub fn join_stages<C: Candidate>() -> Vec<Box<dyn Stage<C>>> {
    vec![Box::new(join::Join), Box::new(ready::Ready)]
}

/// What a join needs of the cluster, once per run.
pub fn access_stages<C: Joining>() -> Vec<Box<dyn Stage<C>>> {
    vec![Box::new(access::Access)]
}

/// What all stages of a run share.
pub struct Run {
    pub plan: Plan,
    pub host: Host,
    /// `None` where nothing joins.
    pub cluster: Option<Cluster>,
    pub state: StateDir,
    pub key: LoginKey,
    /// Public keys that guests let in.
    pub authorized_keys: Vec<String>,
    /// Nodes that are removed first, and made anew.
    pub recreate: Vec<String>,
    /// `kvm` or `qemu`: decided by Preflight.
    pub virt_type: OnceLock<String>,
    /// The host as Preflight saw it: one look serves all nodes.
    pub sight: OnceLock<Sight>,
    pub steps: steps::Shared,
}

/// A host at one moment.
#[derive(Debug, Clone)]
pub struct Sight {
    /// All of them, ours or not.
    pub domains: Vec<Domain>,
    /// The pool that new volumes go to.
    pub pool: storage::Pool,
}

impl Sight {
    /// The claim on a node: the domain whose mark proves it, whatever its name is by now.
    pub fn claim(&self, cluster: &str, node: &str) -> Option<&Domain> {
        self.domains
            .iter()
            .find(|domain| is_claim(domain, cluster, node))
    }
}

/// Whether a domain is the claim on a node.
pub fn is_claim(domain: &Domain, cluster: &str, node: &str) -> bool {
    domain
        .owner()
        .is_some_and(|owner| owner.cluster == cluster && owner.node == node)
}

/// One node on its way, with what one stage leaves for the next.
pub struct NodeRun {
    pub run: Arc<Run>,
    /// The run's, with this node's calls told apart from those of others.
    pub host: Host,
    pub node: plan::Node,
    member: Member,
    /// The claim, or whatever else has the node's name, as it was last seen.
    domain: Mutex<Option<Domain>>,
    /// The disk as it was last seen.
    disk: Mutex<Option<storage::Volume>>,
    /// The disk was made by this run: it is whole, if Volume says so.
    disk_made: AtomicBool,
    /// Our first-boot unit was put into that disk.
    injected: AtomicBool,
    console: Mutex<Option<Console>>,
    session: Kept,
}

impl NodeRun {
    /// Begins with nothing: whatever Preflight saw of it was removed since.
    pub fn anew(run: Arc<Run>, node: plan::Node) -> Self {
        let on = Self::new(run, node);
        *locked(&on.domain) = None;
        *locked(&on.disk) = None;
        on
    }

    /// Bytes.
    pub fn disk_capacity(&self) -> Option<u64> {
        locked(&self.disk).as_ref().map(|disk| disk.capacity)
    }

    /// Begins with what Preflight saw.
    pub fn new(run: Arc<Run>, node: plan::Node) -> Self {
        let member = run.plan.member(&node);
        let sight = run.sight.get();
        let domain = sight.and_then(|sight| {
            let named = || sight.domains.iter().find(|domain| domain.name == node.name);
            sight
                .claim(&run.plan.cluster.name, &node.name)
                .or_else(named)
                .cloned()
        });
        let disk = domain
            .as_ref()
            .and_then(Domain::proven_mark)
            .and_then(|mark| {
                let claimed = mark.volume(&mark.owner.disk())?;
                sight
                    .filter(|sight| sight.pool.name == claimed.pool)?
                    .pool
                    .volume(&claimed.name)
                    .cloned()
            });
        Self {
            host: run.host.told_apart(),
            run,
            node,
            member,
            domain: Mutex::new(domain),
            disk: Mutex::new(disk),
            disk_made: AtomicBool::new(false),
            injected: AtomicBool::new(false),
            console: Mutex::default(),
            session: Kept::default(),
        }
    }

    fn ssh_address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip, 22)
    }

    /// The node's domain as it was last seen, if it is our claim.
    pub fn claim(&self) -> Option<Domain> {
        locked(&self.domain)
            .clone()
            .filter(|domain| is_claim(domain, &self.run.plan.cluster.name, &self.node.name))
    }

    /// Asks libvirt anew: for the claim by its UUID, where there is none for what bears the node's name.
    async fn look(&self) -> Result<Option<Domain>> {
        let host = &self.host;
        let uuid = match self.claim() {
            Some(claim) => Some(claim.uuid),
            None => host.uuid_of(&self.node.name).await?,
        };
        let found = match uuid {
            Some(uuid) => host.domain(&uuid).await?,
            None => None,
        };
        locked(&self.domain).clone_from(&found);
        Ok(found)
    }

    /// The claim; an error if there is none.
    fn claimed(&self) -> Result<Domain> {
        self.claim().ok_or_else(|| {
            Error::failed(format!("there is no domain of {}", self.node.name))
                .with_help("run `nodegraft up` again")
        })
    }

    fn owner(&self) -> Result<Owner> {
        self.mark().map(|mark| mark.owner)
    }

    /// Its disk as the claim lists it. The spec may name another pool by now: that is for new ones.
    fn claimed_disk(&self) -> Result<Claimed> {
        self.claimed_volume(Owner::disk)
    }

    fn claimed_seed(&self) -> Result<Claimed> {
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
    async fn seen_disk(&self) -> Result<Option<storage::Volume>> {
        let seen = locked(&self.disk).clone();
        let claimed = self.claimed_disk()?;
        if seen.is_some()
            || self
                .run
                .sight
                .get()
                .is_some_and(|sight| sight.pool.name == claimed.pool)
        {
            return Ok(seen);
        }
        let found = self.host.volume(&claimed.pool, &claimed.name).await?;
        locked(&self.disk).clone_from(&found);
        Ok(found)
    }

    fn mark(&self) -> Result<Mark> {
        self.claimed()?
            .mark
            .ok_or_else(|| not_ours(&self.node.name))
    }

    /// Writes the mark and reads it back.
    async fn set_mark(&self, mark: &Mark) -> Result<()> {
        self.host.set_mark(&self.claimed()?.uuid, mark).await?;
        self.look().await.map(drop)
    }

    /// The seed is written: from then on the VM may have run, and its disk is not made anew.
    fn is_sealed(&self) -> bool {
        self.claim()
            .and_then(|claim| claim.mark)
            .is_some_and(|mark| mark.seed != SeedState::Unwritten)
    }

    /// Asks anew whether what an earlier run left may be replaced: the VM never ran, and nobody but us works on it. Another
    /// operator may have gone on with the node from elsewhere since it was last seen.
    async fn demand_untouched(&self) -> Result<()> {
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
    async fn open_session(&self, deadline: Duration) -> Result<Session, OpenError> {
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

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_ours(name: &str) -> Error {
    Error::failed(format!(
        "the name {name} is taken by a domain that is not a node of this cluster"
    ))
    .with_help(format!(
        "give the node another name, or look at that domain first: virsh dumpxml {name}"
    ))
}
