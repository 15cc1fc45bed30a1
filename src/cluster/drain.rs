//! Draining a Node: no new pods, and the old ones evicted as their disruption budgets allow. Pods of DaemonSets and
//! mirror pods stay: they go with the node.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use super::{Cluster, code, within};
use crate::error::{Error, Result};

const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// A pod, by namespace and name.
type Name = (String, String);

impl Cluster {
    /// Marks a Node unschedulable, or schedulable again.
    pub async fn cordon(&self, node: &str, unschedulable: bool) -> Result<()> {
        let patch = json!({"spec": {"unschedulable": unschedulable}});
        within(format!("cordoning the Node {node}"), self.nodes().patch(node, &PatchParams::default(), &Patch::Merge(&patch)))
            .await
            .map(drop)
    }

    /// Evicts every pod that must go and waits until it is gone; `progress` is told what is left. Returns how many left.
    ///
    /// A kubelet that is dead confirms no pod's end: with `confirmed` false an accepted eviction is enough.
    pub async fn drain(&self, node: &str, limit: Duration, confirmed: bool, progress: impl Fn(String)) -> Result<usize> {
        self.cordon(node, true).await?;
        let policy = self.eviction_version().await?;
        let until = Instant::now() + limit;
        let mut accepted = BTreeSet::new();
        let mut seen = BTreeSet::new();
        loop {
            let pods = self.evictable_pods(node).await?;
            seen.extend(pods.iter().cloned());
            let left: Vec<&Name> = pods.iter().filter(|pod| confirmed || !accepted.contains(*pod)).collect();
            if left.is_empty() {
                return Ok(seen.len());
            }
            let mut held = None;
            let asked: Vec<&Name> = pods.iter().filter(|pod| !accepted.contains(*pod)).collect();
            for pod in asked {
                match self.evict(pod, &policy).await? {
                    None => {
                        accepted.insert(pod.clone());
                    }
                    Some(reason) => held = Some((pod.clone(), reason)),
                }
            }
            progress(match &held {
                Some(((namespace, name), reason)) => format!("waiting to evict {namespace}/{name}: {reason}"),
                None => format!("waiting for {} pods to end", left.len()),
            });
            if Instant::now() > until {
                return Err(not_drained(node, limit, &pods, held));
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// `policy/v1`, or `policy/v1beta1` before 1.22: as the API server describes the eviction of pods.
    async fn eviction_version(&self) -> Result<String> {
        let core = within("asking how pods are evicted", self.client.list_core_api_resources("v1")).await?;
        let eviction = core.resources.into_iter().find(|resource| resource.name == "pods/eviction");
        let version = eviction.and_then(|e| Some(format!("{}/{}", e.group?, e.version?)));
        version.ok_or_else(|| Error::new("the API server knows no eviction of pods").with_help("go on without a drain: --force"))
    }

    async fn evictable_pods(&self, node: &str) -> Result<Vec<Name>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let list = within(format!("listing the pods on {node}"), pods.list(&here)).await?;
        Ok(list.items.into_iter().filter(must_leave).filter_map(|pod| Some((pod.metadata.namespace?, pod.metadata.name?))).collect())
    }

    /// `None` if the eviction was accepted; else why the API server holds it back.
    async fn evict(&self, (namespace, name): &Name, policy: &str) -> Result<Option<String>> {
        let pods: Api<Pod> = Api::namespaced(self.once.clone(), namespace);
        let eviction = json!({"apiVersion": policy, "kind": "Eviction", "metadata": {"namespace": namespace, "name": name}});
        let what = format!("evicting the pod {namespace}/{name}");
        let params = PostParams::default();
        within(what, async {
            match pods.create_subresource::<_, serde_json::Value>("eviction", name, &params, &eviction).await {
                Ok(_) => Ok(None),
                Err(error) if code(&error) == Some(404) => Ok(None),
                Err(kube::Error::Api(status)) if status.code == 429 => Ok(Some(status.message)),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// Neither a DaemonSet's, nor a mirror of a file on the node, nor ended already.
fn must_leave(pod: &Pod) -> bool {
    let daemon = pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet");
    let mirror = pod.metadata.annotations.iter().flatten().any(|(key, _)| key == "kubernetes.io/config.mirror");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !daemon && !mirror && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn not_drained(node: &str, limit: Duration, pods: &[Name], held: Option<(Name, String)>) -> Error {
    let error = Error::new(format!("{node} was not drained within {} s: {} pods are left", limit.as_secs(), pods.len()))
        .with_detail(pods.iter().take(10).map(|(namespace, name)| format!("{namespace}/{name}")));
    match held {
        Some(((namespace, name), reason)) => error
            .because(Error::new(format!("the eviction of {namespace}/{name} is held back: {reason}")))
            .with_help("give its PodDisruptionBudget room elsewhere, raise `--drain-timeout`, or go on regardless with `--force`"),
        None => error.with_help("they take long to end: raise `--drain-timeout`, or go on regardless with `--force`"),
    }
}
