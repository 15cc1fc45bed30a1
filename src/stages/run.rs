//! A run: what all its stages share, and the host as Preflight saw it.

use super::candidate::Joining;
use super::steps;
use crate::core::error::{Error, Result};
use crate::core::plan::{self, Plan};
use crate::core::template::Templates;
use crate::pipeline::stage::Work;
use crate::rooms::cluster::Cluster;
use crate::rooms::libvirt::{Host, domain::Domain, storage};
use crate::rooms::state::{LoginKey, StateDir};

/// `S` is what was seen of the host. Nodes walk only with one that has looked.
pub struct Run<S = Sight> {
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
    pub steps: steps::Shared,
    /// One look serves all nodes.
    pub sight: S,
}

/// A run at its beginning: what Preflight and Access work on.
pub type Opened = Run<Option<Sight>>;

impl Opened {
    /// The run that nodes walk with, after Preflight.
    pub fn sighted(self) -> Result<Run> {
        let sight = self
            .sight
            .ok_or_else(|| Error::bug("the host was not looked at"))?;
        Ok(Run {
            plan: self.plan,
            host: self.host,
            cluster: self.cluster,
            state: self.state,
            key: self.key,
            authorized_keys: self.authorized_keys,
            recreate: self.recreate,
            steps: self.steps,
            sight,
        })
    }
}

impl<S: Send + Sync> Work for Run<S> {
    type Planned = Plan;
}

impl<S: Send + Sync> Joining for Run<S> {
    fn cluster(&self) -> &Cluster {
        self.cluster
            .as_ref()
            .expect("Access, Join and Ready are not in the list of machines that join nothing")
    }

    fn terms(&self) -> &plan::ClusterPlan {
        &self.plan.cluster
    }

    fn templates(&self) -> &Templates {
        &self.plan.templates
    }
}

/// A host at one moment.
#[derive(Debug, Clone)]
pub struct Sight {
    /// All of them, ours or not.
    pub domains: Vec<Domain>,
    /// The pool that new volumes go to.
    pub pool: storage::Pool,
    /// What guests run under: `kvm` or `qemu`.
    pub virt_type: String,
}

impl Sight {
    /// The claim on a node: the domain whose mark proves it, whatever its name is by now.
    pub fn claim(&self, cluster: &str, node: &str) -> Option<&Domain> {
        self.domains
            .iter()
            .find(|domain| domain.is_claim(cluster, node))
    }

    pub fn has_kvm(&self) -> bool {
        self.virt_type == "kvm"
    }
}
