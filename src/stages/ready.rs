//! Ready: the Node's own condition, watched, as the API server tells it.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::candidate::Candidate;
use super::facts::{self, Begun, Known};
use super::locked;
use crate::core::diagnosis::Waited;
use crate::core::error::{Error, Result};
use crate::core::journal::Journal;
use crate::core::kubelet::is_release;
use crate::core::plan;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::cluster::node::Node;

const SHORT: Duration = Duration::from_secs(60);

pub struct Ready;

#[async_trait]
impl<C: Candidate> Stage<C> for Ready {
    fn name(&self) -> StageName {
        StageName::Ready
    }

    fn plan(&self, node: &plan::Node) -> String {
        format!(
            "the Node is Ready within {} s",
            node.deadlines.ready.as_secs()
        )
    }

    fn deadline(&self, on: &C) -> Duration {
        on.member().deadlines.ready + Duration::from_secs(30)
    }

    async fn check(&self, on: &mut C, _: &Reporter) -> Result<Check> {
        Ok(match on.cluster().node(&on.member().name).await? {
            Some(node) if node.ready && !runs(on, &node) => {
                Check::Needed(format!("the kubelet still reports {}", node.kubelet))
            }
            Some(node) if node.ready => Check::Done(format!("{}, {}", node.kubelet, node.runtime)),
            Some(node) => Check::Needed(node.message),
            None => Check::Needed("the Node does not exist yet".into()),
        })
    }

    async fn apply(&self, on: &mut C, report: &Reporter, _: &Journal) -> Result<()> {
        let on: &C = on;
        let last = Mutex::new(None);
        let watch = on.cluster().watch_node(
            &on.member().name,
            |node| node.ready && runs(on, node),
            |node| {
                if !node.ready {
                    report.progress(format!("waiting for Ready: {}", node.message));
                } else if !runs(on, node) {
                    report.progress(format!(
                        "waiting for the kubelet of the spec: the Node reports {}",
                        node.kubelet
                    ));
                }
                *locked(&last) = Some(node.clone());
            },
        );
        let limit = on.member().deadlines.ready;
        if let Ok(seen) = tokio::time::timeout(limit, watch).await {
            return seen.map(drop);
        }
        let last = locked(&last).clone();
        let seconds = limit.as_secs();
        Err(match last {
            Some(node) if node.ready => Error::failed(format!(
                "{} reports kubelet {} after {seconds} s, the spec says {}",
                on.member().name,
                node.kubelet,
                on.member().kubelet.as_deref().unwrap_or_default()
            ))
            .with_help("was the kubelet restarted? in the guest: kubelet --version; systemctl status kubelet"),
            Some(node) if node.lacks_network() => {
                Error::failed(format!("{} lacks only its network plugin after {seconds} s", on.member().name))
                    .because(node.message)
                    .with_help("install the cluster's network plugin, or set the profile's `cni_subnet` for a plain bridge")
            }
            Some(node) => not_ready(on, node.message, limit).await,
            None => Error::failed(format!("the Node {} did not appear within {seconds} s", on.member().name))
                .with_help("was it deleted meanwhile?"),
        })
    }

    /// It only waits.
    async fn stopped(&self, _: &C) {}
}

/// Whether the kubelet that runs is the one that the spec asks for.
fn runs<C: Candidate>(on: &C, node: &Node) -> bool {
    on.member()
        .kubelet
        .as_ref()
        .is_none_or(|asked| is_release(&node.kubelet, asked))
}

/// The Node's own message, and what the machine shows besides.
async fn not_ready<C: Candidate>(on: &C, message: String, limit: Duration) -> Error {
    let what = format!(
        "{} is not Ready after {} s: {message}",
        on.member().name,
        limit.as_secs()
    );
    let look = async {
        let session = on.session(SHORT).await.ok()?;
        let begun = Begun::now(&session, None).await.ok()?.before(limit);
        Some(facts::facts(on, &session, begun, Waited::Ready, Known::nothing()).await)
    };
    match look.await {
        Some(facts) => facts::error(what, &facts),
        None => Error::failed(what)
            .with_help("the machine does not let us in any more: look at its console"),
    }
}
