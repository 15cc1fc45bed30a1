//! Who joins: a VM of ours, or any machine that SSH reaches. Access, Join and Ready work on either.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::core::error::Result;
use crate::core::ownership::Owner;
use crate::core::plan::{self, Member};
use crate::core::taint::Taint;
use crate::core::template::Templates;
use crate::pipeline::stage::Work;
use crate::rooms::cluster::{Cluster, node::Node};
use crate::rooms::ssh::{Kept, OpenError, Session, Target};

/// The cluster that is joined, and on which terms.
pub trait Joining: Work {
    fn cluster(&self) -> &Cluster;
    fn terms(&self) -> &plan::ClusterPlan;
    fn templates(&self) -> &Templates;
}

/// A machine on its way into the cluster.
#[async_trait]
pub trait Candidate: Joining<Planned = plan::Node> {
    fn member(&self) -> &Member;

    /// The machine-id: what its Node is known by.
    fn instance(&self) -> Result<String>;

    /// A session that works.
    async fn session(&self, deadline: Duration) -> Result<Session, OpenError>;

    /// The labels and taints that its Node is to have. `node` is as it is now.
    fn wanted(&self, _node: &Node) -> (BTreeMap<String, String>, Vec<Taint>) {
        (self.member().labels.clone(), self.member().taints.clone())
    }

    /// What to do with an identity the machine has from before.
    fn earlier(&self) -> Earlier;

    /// The join was done: nothing from before is left.
    fn grafted(&mut self) {}

    /// Whose its Node, its token and its requests are.
    fn membership(&self) -> Result<Owner> {
        Ok(Owner::of(
            &self.terms().name,
            &self.member().name,
            self.instance()?,
        ))
    }
}

/// What an identity from before means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// We made it: it is gone on with.
    Continued,
    /// Somebody else's: nothing is touched.
    Respected,
    /// The user asked to have it cleared.
    Cleared,
}

/// A machine that was there before, with a kubelet on it.
pub struct Machine {
    pub member: Member,
    /// Its own machine-id.
    pub machine_id: String,
    pub target: Target,
    pub cluster: Cluster,
    pub terms: plan::ClusterPlan,
    pub templates: Templates,
    /// What it was before is to be cleared.
    reset: bool,
    session: Kept,
}

impl Machine {
    /// `session` is one to `target`.
    pub fn new(
        member: Member,
        machine_id: String,
        (target, session): (Target, Session),
        cluster: Cluster,
        terms: plan::ClusterPlan,
        templates: Templates,
        reset: bool,
    ) -> Self {
        Self {
            member,
            machine_id,
            target,
            cluster,
            terms,
            templates,
            reset,
            session: Kept::of(session),
        }
    }
}

/// Nobody plans one; where somebody did, it would be as a node.
impl Work for Machine {
    type Planned = plan::Node;
}

impl Joining for Machine {
    fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn terms(&self) -> &plan::ClusterPlan {
        &self.terms
    }

    fn templates(&self) -> &Templates {
        &self.templates
    }
}

#[async_trait]
impl Candidate for Machine {
    fn member(&self) -> &Member {
        &self.member
    }

    /// No spec says what it should have: a command adds to what an earlier one gave.
    fn wanted(&self, node: &Node) -> (BTreeMap<String, String>, Vec<Taint>) {
        let mut labels = node.applied_labels.clone();
        labels.extend(self.member.labels.clone());
        (labels, node.applied_taints.clone())
    }

    fn instance(&self) -> Result<String> {
        Ok(self.machine_id.clone())
    }

    async fn session(&self, deadline: Duration) -> Result<Session, OpenError> {
        self.session
            .session(async { Ok(self.target.clone()) }, deadline)
            .await
    }

    fn earlier(&self) -> Earlier {
        if self.reset {
            Earlier::Cleared
        } else {
            Earlier::Respected
        }
    }

    fn grafted(&mut self) {
        self.reset = false;
    }
}
