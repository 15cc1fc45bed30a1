//! Draining a Node: no new pods, and the old ones evicted as their disruption budgets allow. Pods of DaemonSets and
//! mirror pods stay: they go with the node. A drain that is given up leaves the Node as schedulable as it was.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::call::{PATIENCE, insist, once, within};
use super::node::Node;
use super::pod::Pod;
use crate::core::error::{Error, Result, one_line};

const BETWEEN_TRIES: Duration = Duration::from_millis(500);
/// How often a kubelet that is waited for is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// What the way back may take.
const WAY_BACK: Duration = Duration::from_secs(20);

/// How far a drain came, for whoever has to say why it ended.
#[derive(Default)]
struct Course {
    /// It was schedulable, and we changed that.
    cordoned: bool,
    /// UIDs of all pods that had to leave.
    seen: BTreeSet<String>,
    /// UIDs of those whose eviction was accepted.
    accepted: BTreeSet<String>,
    left: Vec<Pod>,
    /// A pod that is not let go, and why.
    held: Option<String>,
}

/// What the API server makes of an eviction.
enum Eviction {
    Accepted,
    /// A budget does not allow it now.
    Held(String),
    /// It is to be asked again.
    Unclear(String),
}

impl Cluster {
    /// Marks exactly this Node unschedulable, or schedulable again. False if it is gone, or another bears its name now.
    pub async fn cordon(&self, node: &Node, unschedulable: bool) -> Result<bool> {
        let api = self.nodes();
        let patch = Patch::Merge(
            json!({"metadata": {"uid": node.uid}, "spec": {"unschedulable": unschedulable}}),
        );
        let params = PatchParams::default();
        let what = format!(
            "{} the Node {}",
            if unschedulable {
                "cordoning"
            } else {
                "uncordoning"
            },
            node.name
        );
        let until = Instant::now() + WAY_BACK;
        loop {
            let failure = match insist(PATIENCE, || api.patch(&node.name, &params, &patch)).await {
                Ok(_) => return Ok(true),
                Err(failure) => failure,
            };
            match failure.code() {
                Some(404) => return Ok(false),
                // A UID cannot be changed: an update that names another object's is refused as invalid.
                Some(409 | 422)
                    if self
                        .node(&node.name)
                        .await?
                        .is_none_or(|now| now.uid != node.uid) =>
                {
                    return Ok(false);
                }
                // Others were writing it.
                Some(409) if Instant::now() < until => tokio::time::sleep(BETWEEN_TRIES).await,
                _ => return Err(failure.during(what)),
            }
        }
    }

    /// Evicts every pod that must go and waits until it is gone; `progress` is told what is left. Returns how many left.
    ///
    /// A kubelet that is dead confirms no pod's end: then an accepted eviction is enough. If the drain fails, takes longer
    /// than `limit`, or `stop` fires, a Node that was schedulable before is made so again. 0 if the Node is gone.
    pub async fn drain(
        &self,
        node: &Node,
        limit: Duration,
        stop: &CancellationToken,
        progress: impl Fn(String),
    ) -> Result<usize> {
        let mut course = Course::default();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Some(Err(Error::interrupted())),
            ended = self.empty(node, &mut course, &progress) => Some(ended),
            () = tokio::time::sleep(limit) => None,
        };
        let error = match ended {
            Some(Ok(count)) => return Ok(count),
            Some(Err(error)) => error,
            None => not_drained(&node.name, limit, &course),
        };
        if !course.cordoned {
            return Err(error);
        }
        progress("making the Node schedulable again".to_owned());
        let still = match tokio::time::timeout(WAY_BACK, self.cordon(node, false)).await {
            Ok(Ok(_)) => return Err(error),
            Ok(Err(failure)) => one_line(&failure),
            Err(_) => format!(
                "uncordoning it got no answer within {} s",
                WAY_BACK.as_secs()
            ),
        };
        Err(error.with_detail([
            format!("{} is still unschedulable: {still}", node.name),
            format!("mend it: kubectl uncordon {}", node.name),
        ]))
    }

    async fn empty(
        &self,
        node: &Node,
        course: &mut Course,
        progress: &impl Fn(String),
    ) -> Result<usize> {
        let name = node.name.as_str();
        let now = self.node(name).await?.filter(|now| now.uid == node.uid);
        let Some(now) = now else { return Ok(0) };
        // Set before it is true: the way back is harmless where nothing was changed.
        course.cordoned = !now.unschedulable;
        if !self.cordon(node, true).await? {
            course.cordoned = false;
            return Ok(0);
        }
        let policy = self.eviction_version().await?;
        let mut lives = self.kubelet_lives(node).await?;
        let mut looked = Instant::now();
        loop {
            let pods: Vec<Pod> = self
                .pods_on(name)
                .await?
                .into_iter()
                .filter(Pod::must_leave)
                .collect();
            course.seen.extend(pods.iter().map(|pod| pod.uid.clone()));
            course.accepted.extend(
                pods.iter()
                    .filter(|pod| pod.ending)
                    .map(|pod| pod.uid.clone()),
            );
            if lives && looked.elapsed() > LOOK {
                lives = self.kubelet_lives(node).await?;
                looked = Instant::now();
            }
            course.left = pods
                .iter()
                .filter(|pod| lives || !course.accepted.contains(&pod.uid))
                .cloned()
                .collect();
            if course.left.is_empty() {
                return Ok(course.seen.len());
            }
            course.held = None;
            for pod in pods.iter().filter(|pod| !pod.ending) {
                if course.accepted.contains(&pod.uid) {
                    continue;
                }
                let held = match self.evict(pod, &policy).await? {
                    Eviction::Accepted => {
                        course.accepted.insert(pod.uid.clone());
                        continue;
                    }
                    Eviction::Held(why) => format!(
                        "the eviction of {}/{} is held back: {why}",
                        pod.namespace, pod.name
                    ),
                    Eviction::Unclear(why) => format!(
                        "the eviction of {}/{} gets no clear answer: {why}",
                        pod.namespace, pod.name
                    ),
                };
                progress(held.clone());
                course.held = Some(held);
            }
            if course.held.is_none() {
                progress(format!(
                    "waiting for {} to end",
                    pods_in_words(course.left.len())
                ));
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    /// `policy/v1`, or `policy/v1beta1` before 1.22: as the API server describes the eviction of pods.
    async fn eviction_version(&self) -> Result<String> {
        let core = within("asking how pods are evicted", || {
            self.client.list_core_api_resources("v1")
        })
        .await?;
        let eviction = core
            .resources
            .into_iter()
            .find(|resource| resource.name == "pods/eviction");
        let version = eviction.and_then(|e| Some(format!("{}/{}", e.group?, e.version?)));
        version.ok_or_else(|| {
            Error::failed("the API server knows no eviction of pods")
                .with_help("go on without a drain: --force")
        })
    }

    /// Asks once: a 429 is an answer here, and whatever is unclear is asked again after a look at the pods.
    async fn evict(&self, pod: &Pod, policy: &str) -> Result<Eviction> {
        let api: Api<KubePod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let eviction = json!({
            "apiVersion": policy,
            "kind": "Eviction",
            "metadata": {"namespace": pod.namespace, "name": pod.name},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        });
        let params = PostParams::default();
        let failure =
            match once(api.create_subresource::<_, serde_json::Value>(
                "eviction", &pod.name, &params, &eviction,
            ))
            .await
            {
                Ok(_) => return Ok(Eviction::Accepted),
                Err(failure) => failure,
            };
        match failure.code() {
            Some(404) => Ok(Eviction::Accepted),
            Some(409) => Ok(Eviction::Unclear(failure.to_string())),
            _ if failure.is_budget() => Ok(Eviction::Held(failure.to_string())),
            _ if failure.passes() => Ok(Eviction::Unclear(failure.to_string())),
            _ => Err(failure.during(format!("evicting the pod {}/{}", pod.namespace, pod.name))),
        }
    }
}

fn pods_in_words(count: usize) -> String {
    if count == 1 {
        "1 pod".to_owned()
    } else {
        format!("{count} pods")
    }
}

fn not_drained(node: &str, limit: Duration, course: &Course) -> Error {
    let left = pods_in_words(course.left.len());
    let error = Error::failed(format!(
        "{node} was not drained within {} s, with {left} left",
        limit.as_secs()
    ))
    .with_detail(
        course
            .left
            .iter()
            .take(10)
            .map(|pod| format!("{}/{}", pod.namespace, pod.name)),
    );
    match &course.held {
        Some(held) => error
            .because(held.clone())
            .with_help("give its PodDisruptionBudget room elsewhere, raise `--drain-timeout`, or go on regardless with `--force`"),
        None => error.with_help("they take long to end: raise `--drain-timeout`, or go on regardless with `--force`"),
    }
}
