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
mod node_run;
pub mod preflight;
mod ready;
pub mod removal;
mod run;
mod seed;
mod serving;
pub mod steps;
mod volume;

use std::sync::{Mutex, PoisonError};

use candidate::{Candidate, Joining};

pub use node_run::NodeRun;
pub use run::{Opened, Run, Sight};

use crate::core::plan;
use crate::core::spec::FirstBoot;
use crate::pipeline::stage::Stage;

/// Once per run, in this order. `join` is false for machines that join no cluster.
pub fn run_stages(join: bool) -> Vec<Box<dyn Stage<Opened>>> {
    let mut stages: Vec<Box<dyn Stage<Opened>>> = vec![Box::new(preflight::Preflight)];
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

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
