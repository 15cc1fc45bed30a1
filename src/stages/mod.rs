//! THE LIST. Start reading here.
//!
//! ```text
//! once per run :  Preflight  Access
//! once per node:  Volume  (Inject)  Seed  Domain  Boot  Login  Steps  Join  Ready
//! ```
//!
//! One file per stage. A stage may use the rooms and the core; it may not print, spawn a process, or call another stage.

mod access;
mod boot;
pub mod candidate;
mod domain;
mod facts;
mod inject;
mod join;
mod login;
pub mod preflight;
mod ready;
mod seed;
mod serving;
pub mod steps;
mod volume;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use candidate::{Candidate, Joining};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::libvirt::{Host, console::Console, domain::Domain};
use crate::pipeline::stage::Stage;
use crate::plan::{self, HostKey, Mark, Member, Plan};
use crate::spec::FirstBoot;
use crate::ssh::{Identity, Kept, OpenError, Session, Target, Trust};
use crate::state::{LoginKey, StateDir};

/// Once per run, in this order. `join` is false for machines that join no cluster.
pub fn run_stages(join: bool) -> Vec<Box<dyn Stage<Run>>> {
    let mut stages: Vec<Box<dyn Stage<Run>>> = vec![Box::new(preflight::Preflight)];
    if join {
        stages.extend(access_stages());
    }
    stages
}

/// Once per node, in this order; `down` walks it backward. Inject is there for a node that asks for it.
pub fn node_stages(node: &plan::Node, join: bool) -> Vec<Box<dyn Stage<NodeRun>>> {
    let mut stages: Vec<Box<dyn Stage<NodeRun>>> = vec![Box::new(volume::Volume)];
    if node.first_boot == FirstBoot::Inject {
        stages.push(Box::new(inject::Inject));
    }
    stages.push(Box::new(seed::Seed));
    stages.push(Box::new(domain::Domain));
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
    /// `kvm` or `qemu`: decided by Preflight.
    pub virt_type: OnceLock<String>,
    pub drain: Drain,
    pub steps: steps::Shared,
}

/// Whether nodes are drained before they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    Within(Duration),
    /// Pods go with the node, whatever their budgets say.
    No,
}

/// One node on its way, with what one stage leaves for the next.
pub struct NodeRun {
    pub run: Arc<Run>,
    pub node: plan::Node,
    member: Member,
    /// The volume was made by this run, so it is not somebody's leftover.
    volume_made: AtomicBool,
    /// Our first-boot unit was put into that volume.
    injected: AtomicBool,
    /// Made by Seed, recorded by Domain.
    pub host_key: Mutex<Option<HostKey>>,
    console: Mutex<Option<Console>>,
    session: Kept,
}

impl NodeRun {
    pub fn new(run: Arc<Run>, node: plan::Node) -> Self {
        let member = run.plan.member(&node);
        Self {
            run,
            node,
            member,
            volume_made: AtomicBool::new(false),
            injected: AtomicBool::new(false),
            host_key: Mutex::default(),
            console: Mutex::default(),
            session: Kept::default(),
        }
    }

    /// Whether anything of this node is left on the host. An unreachable host counts as "perhaps".
    pub async fn exists(&self) -> bool {
        let ours = self.domain().await.map(|domain| domain.is_some_and(|domain| is_ours(&domain, self)));
        let volume = self.run.host.volume(self.pool(), &self.node.volume).await.map(|volume| volume.is_some());
        ours.unwrap_or(true) || volume.unwrap_or(true)
    }

    fn pool(&self) -> &str {
        &self.run.plan.host.pool
    }

    fn ssh_address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip, 22)
    }

    /// The domain of this node's name, whoever made it.
    async fn domain(&self) -> Result<Option<Domain>> {
        self.run.host.domain(&self.node.name).await
    }

    /// The mark of our domain; an error if there is none or it is not ours.
    async fn mark(&self) -> Result<Mark> {
        let domain = self
            .domain()
            .await?
            .ok_or_else(|| Error::new(format!("there is no domain {}", self.node.name)).with_help("run `nodegraft up` again"))?;
        let ours = is_ours(&domain, self);
        domain.mark.filter(|_| ours).ok_or_else(|| not_ours(&self.node.name))
    }

    /// A session that works, opened anew if the last one broke.
    async fn open_session(&self, deadline: Duration) -> Result<Session, OpenError> {
        let target = async {
            let mark = self.mark().await.map_err(OpenError::Unreachable)?;
            Ok(Target {
                host: self.node.ip.to_string(),
                port: 22,
                user: self.node.user.clone(),
                trust: Trust::Pinned(mark.host_key),
                identity: Identity::Key { private: self.run.key.private.clone(), public: self.run.key.public.clone() },
            })
        };
        self.session.session(target, deadline).await
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a domain bears the mark of exactly this node.
fn is_ours(domain: &Domain, node: &NodeRun) -> bool {
    domain.mark.as_ref().is_some_and(|mark| mark.cluster == node.run.plan.cluster.name && mark.node == node.node.name)
}

fn not_ours(name: &str) -> Error {
    Error::new(format!("the name {name} is taken by a domain that is not ours"))
        .with_help(format!("give the node another name, or look at that domain first: virsh dumpxml {name}"))
}
