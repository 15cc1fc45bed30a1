//! What a run made, in the order in which it made it. `--on-failure undo` and a failed `join` remove exactly that,
//! newest first.

use std::sync::{Mutex, PoisonError};

/// A thing that exists because nodegraft made it, with what it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    /// The claim: a domain of ours.
    Domain {
        name: String,
        uuid: String,
    },
    Volume {
        pool: String,
        name: String,
    },
    /// A domain that runs, and was off before.
    Running,
    /// A bootstrap token.
    Token {
        id: String,
    },
    /// What a join leaves in the guest: the kubelet started, its identity, the bootstrap kubeconfig.
    Membership,
    /// A Node of the cluster, with its lease and its requests.
    Node {
        name: String,
    },
    /// A role binding of the cluster's group.
    Binding {
        name: String,
    },
}

/// Where a thing is, which decides when it may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The VM, as libvirt has it: the last proof of all the rest.
    Host,
    /// Inside the machine: it goes with the VM.
    Guest,
    /// In the cluster, of one node.
    Cluster,
    /// In the cluster, for all its nodes: it goes after the last of them.
    Shared,
}

impl Thing {
    pub fn place(&self) -> Place {
        match self {
            Self::Domain { .. } | Self::Volume { .. } | Self::Running => Place::Host,
            Self::Membership => Place::Guest,
            Self::Token { .. } | Self::Node { .. } => Place::Cluster,
            Self::Binding { .. } => Place::Shared,
        }
    }
}

/// Things as they were made. Written as soon as a thing may exist, so that nothing is missing after a failure.
#[derive(Debug, Default)]
pub struct Journal(Mutex<Vec<Thing>>);

impl Journal {
    pub fn made(&self, thing: Thing) {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !things.contains(&thing) {
            things.push(thing);
        }
    }

    /// What outlives a node: the run's journal has it, too.
    pub fn shared(&self) -> Vec<Thing> {
        let mut things = self.backward();
        things.retain(|thing| thing.place() == Place::Shared);
        things
    }

    /// Newest first, as they are to be removed.
    pub fn backward(&self) -> Vec<Thing> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .rev()
            .cloned()
            .collect()
    }
}
