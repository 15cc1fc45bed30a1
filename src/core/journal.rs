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
