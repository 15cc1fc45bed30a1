//! Ready: the Node's own condition, watched, as the API server tells it.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::{Drain, NodeRun, locked};
use crate::error::{Error, Result};
use crate::pipeline::stage::{Check, Reporter, Stage, Undone};

pub struct Ready;

#[async_trait]
impl Stage<NodeRun> for Ready {
    fn name(&self) -> &'static str {
        "Ready"
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        on.node.deadlines.ready + Duration::from_secs(30)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        Ok(match on.run.cluster().node(&on.node.name).await? {
            Some(node) if node.ready => Check::Done(format!("{}, {}", node.kubelet, node.runtime)),
            Some(node) => Check::Needed(node.message),
            None => Check::Needed("the Node does not exist yet".into()),
        })
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter) -> Result<()> {
        let last = Mutex::new(None);
        let watch = on.run.cluster().watch_node(
            &on.node.name,
            |node| node.ready,
            |node| {
                report.progress(format!("waiting for Ready: {}", node.message));
                *locked(&last) = Some(node.clone());
            },
        );
        let limit = on.node.deadlines.ready;
        let Err(_) = tokio::time::timeout(limit, watch).await.map(|done| done.map(drop)) else { return Ok(()) };
        let last = locked(&last).clone();
        let seconds = limit.as_secs();
        Err(match last {
            Some(node) if node.lacks_network() => Error::new(format!("{} lacks only its network plugin after {seconds} s", on.node.name))
                .because(Error::new(node.message))
                .with_help("install the cluster's network plugin, or set the profile's `cni_subnet` for a plain bridge"),
            Some(node) => Error::new(format!("{} is not Ready after {seconds} s", on.node.name))
                .because(Error::new(node.message))
                .with_help(format!("look at the kubelet: nodegraft exec {} -- journalctl -u kubelet -n 50", on.node.name)),
            None => {
                Error::new(format!("the Node {} did not appear within {seconds} s", on.node.name)).with_help("was it deleted meanwhile?")
            }
        })
    }

    /// Leaving begins with a drain: pods are evicted as their budgets allow, and nothing goes on before they are gone.
    async fn undo(&self, on: &NodeRun, report: &Reporter) -> Result<Undone> {
        let (cluster, name) = (on.run.cluster(), &on.node.name);
        let Drain::Within(limit) = on.run.drain else { return Ok(Undone::Absent) };
        let Some(node) = cluster.node(name).await? else { return Ok(Undone::Absent) };
        if !node.belongs_to(&on.run.plan.cluster.name, name, &on.node.machine_id) {
            return Ok(Undone::Kept(format!("the Node {name} belongs to another machine")));
        }
        let evicted = cluster.drain(name, limit, node.ready, |what| report.progress(what)).await?;
        Ok(if evicted == 0 { Undone::Absent } else { Undone::Removed(format!("{evicted} pods evicted")) })
    }

    fn guards(&self) -> bool {
        true
    }

    fn undo_deadline(&self, on: &NodeRun) -> Duration {
        match on.run.drain {
            Drain::Within(limit) => limit + Duration::from_secs(60),
            Drain::No => Duration::from_secs(60),
        }
    }
}
