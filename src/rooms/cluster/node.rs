//! Kubernetes Nodes: whose they are, whether they are Ready, whether their kubelet lives, and how they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node as KubeNode, Taint as KubeTaint};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::{PATIENCE, delete, insist, within};
use super::difference::{read_labels, read_taints, write_labels, write_taints};
use super::error::is_forbidden;
use super::list::list;
use super::watch::watch_until;
use super::{Cluster, LABELS_ANNOTATION, TAINTS_ANNOTATION, TOKEN_ANNOTATION, annotations, owner};
use crate::core::error::{Error, Result};
use crate::core::ownership::Owner;
use crate::core::taint::{Effect, Taint};

/// A kubelet that renewed its lease within so many seconds lives: four times its usual period.
const FRESH: i64 = 40;
/// How far in the future a renewal may seem to be before the clocks are taken to differ.
const AHEAD: i64 = 5;
/// A kubelet that lives renews its lease within this time.
const RENEWAL: Duration = Duration::from_secs(15);

/// A Node as the API server tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub uid: String,
    pub ready: bool,
    /// Why it is not ready, in the kubelet's words.
    pub message: String,
    pub machine_id: String,
    pub boot_id: String,
    pub address: Option<String>,
    pub kubelet: String,
    pub runtime: String,
    /// As our annotations tell. They prove nothing: see [`Node::is_of`].
    pub owner: Option<Owner>,
    /// The id of the token it joined with.
    pub token: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// What we last gave it.
    pub applied_labels: BTreeMap<String, String>,
    pub applied_taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
}

impl Node {
    /// Whether it is this owner's, by its machine.
    pub fn is_of(&self, owner: &Owner) -> bool {
        owner.is_machine(&self.machine_id)
    }

    /// The network plugin is all that is missing.
    pub fn lacks_network(&self) -> bool {
        let text = self.message.to_lowercase();
        !self.ready
            && (text.contains("cni")
                || text.contains("network plugin")
                || text.contains("networkpluginnotready"))
    }
}

impl Cluster {
    pub(super) fn nodes(&self) -> Api<KubeNode> {
        Api::all(self.client.clone())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), "kube-node-lease")
    }

    pub async fn all_nodes(&self) -> Result<Vec<Node>> {
        let (api, all) = (self.nodes(), ListParams::default());
        list("listing the Nodes", &api, &all)
            .await
            .map(|nodes| nodes.iter().map(parse).collect())
    }

    pub async fn node(&self, name: &str) -> Result<Option<Node>> {
        let api = self.nodes();
        within(format!("looking for the Node {name}"), || api.get_opt(name))
            .await
            .map(|node| node.as_ref().map(parse))
    }

    /// Watches a Node until `until` holds, telling `seen` of each change. Has no deadline of its own.
    pub async fn watch_node(
        &self,
        name: &str,
        until: impl Fn(&Node) -> bool,
        mut seen: impl FnMut(&Node),
    ) -> Result<Node> {
        let only = format!("metadata.name={name}");
        watch_until(
            &self.nodes(),
            &format!("the Node {name}"),
            Some(&only),
            |object| {
                let node = parse(&object);
                seen(&node);
                until(&node).then_some(node)
            },
        )
        .await
    }

    /// Gives a Node its owner's annotations, its labels and its taints, in one update, and takes away those that we gave
    /// it once and that are not wanted any more. Returns what changed.
    pub async fn converge_node(
        &self,
        node: &Node,
        owner: &Owner,
        token: Option<&str>,
        labels: &BTreeMap<String, String>,
        taints: &[Taint],
    ) -> Result<Vec<String>> {
        const BETWEEN: Duration = Duration::from_millis(100);
        let (api, params, name) = (self.nodes(), PatchParams::default(), node.name.as_str());
        let what = format!("labelling the Node {name}");
        let until = Instant::now() + Duration::from_secs(60);
        // Of an update that may have been made, though its answer was lost.
        let mut perhaps = Vec::new();
        loop {
            let found = within(what.as_str(), || api.get_opt(name)).await?;
            let found = found.ok_or_else(|| Error::unfit(what.as_str()).because("it is gone"))?;
            if !parse(&found).is_of(owner) {
                return Err(
                    Error::unfit(what.as_str()).because("it is the Node of another machine now")
                );
            }
            let (patch, changes) = converged(&found, owner, token, labels, taints);
            if changes.is_empty() {
                return Ok(perhaps);
            }
            let patch = Patch::Merge(patch);
            let failure = match insist(PATIENCE, || api.patch(name, &params, &patch)).await {
                Ok(_) => return Ok(changes),
                Err(failure) => failure,
            };
            if failure.code() != Some(409) {
                return Err(failure.during(what));
            }
            if Instant::now() >= until {
                return Err(Error::unfit(what).because("somebody else changes it all the time"));
            }
            if failure.tried_before {
                perhaps = changes;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Deletes exactly this Node, and its lease. False if it was gone, or another bears its name now.
    pub async fn delete_node(&self, node: &Node) -> Result<bool> {
        let deleted = delete(
            &self.nodes(),
            &format!("the Node {}", node.name),
            &node.name,
            &node.uid,
        )
        .await?;
        match self.delete_lease(node, deleted).await {
            // Kubernetes itself removes the lease of a Node that is gone.
            Err(error) if !is_forbidden(&error) => Err(error),
            _ => Ok(deleted),
        }
    }

    /// The lease of a Node that is gone: one that names it as its owner, or that nobody owns if we deleted the Node.
    async fn delete_lease(&self, node: &Node, deleted: bool) -> Result<()> {
        let (api, name) = (self.leases(), node.name.as_str());
        let Some(lease) = within(format!("looking for the lease of {name}"), || {
            api.get_opt(name)
        })
        .await?
        else {
            return Ok(());
        };
        let owners = lease.metadata.owner_references.unwrap_or_default();
        let its =
            owners.iter().any(|owner| owner.uid == node.uid) || (deleted && owners.is_empty());
        if let (true, Some(uid)) = (its, lease.metadata.uid) {
            delete(&api, &format!("the lease of {name}"), name, &uid).await?;
        }
        Ok(())
    }

    /// Whether a Node's kubelet is at work, by its lease: a dead one stays Ready for most of a minute, and one that lives
    /// may not be. Takes up to 15 s where the lease was not renewed lately, or the clocks differ.
    pub async fn kubelet_lives(&self, node: &Node) -> Result<bool> {
        Ok(self.has_fresh_lease(node).await? || self.renews_lease(node).await?)
    }

    /// Whether a Node's lease was renewed lately, if our clocks agree.
    pub async fn has_fresh_lease(&self, node: &Node) -> Result<bool> {
        let renewed = match self.renewed(&node.name).await {
            Err(error) if is_forbidden(&error) => return self.is_ready(node).await,
            renewed => renewed?,
        };
        let age = renewed.map(|renewed| jiff::Timestamp::now().as_second() - renewed.as_second());
        Ok(age.is_some_and(|age| (-AHEAD..=FRESH).contains(&age)))
    }

    /// Whether a Node's lease is renewed while we watch it: the proof that its kubelet lives. Takes up to 15 s.
    pub async fn renews_lease(&self, node: &Node) -> Result<bool> {
        const LOOK: Duration = Duration::from_secs(1);
        let first = match self.renewed(&node.name).await {
            Err(error) if is_forbidden(&error) => return self.is_ready(node).await,
            first => first?,
        };
        let Some(first) = first else { return Ok(false) };
        let mut until = Instant::now() + RENEWAL;
        while Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            let asked = Instant::now();
            match self.renewed(&node.name).await? {
                None => return Ok(false),
                Some(now) if now != first => return Ok(true),
                // While the API server does not answer us it does not answer the kubelet either.
                Some(_) if asked.elapsed() > 2 * LOOK => until = Instant::now() + RENEWAL,
                Some(_) => {}
            }
        }
        Ok(false)
    }

    /// What is left to go by for who may not see leases: a Node stays Ready for a while.
    async fn is_ready(&self, node: &Node) -> Result<bool> {
        Ok(self
            .node(&node.name)
            .await?
            .is_some_and(|now| now.uid == node.uid && now.ready))
    }

    /// When a Node's lease was last renewed, by the kubelet's clock.
    async fn renewed(&self, name: &str) -> Result<Option<jiff::Timestamp>> {
        let api = self.leases();
        let lease = within(format!("looking at the lease of {name}"), || {
            api.get_opt(name)
        })
        .await?;
        Ok(lease
            .and_then(|lease| lease.spec?.renew_time)
            .map(|time| time.0))
    }
}

fn parse(node: &KubeNode) -> Node {
    let status = node.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .unwrap_or_default()
        .into_iter()
        .find(|c| c.type_ == "Ready");
    let info = status.node_info.unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let annotation = |key: &str| {
        node.metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(key))
    };
    Node {
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ready: ready.as_ref().is_some_and(|c| c.status == "True"),
        message: ready.and_then(|c| c.message).unwrap_or_default(),
        machine_id: info.machine_id,
        boot_id: info.boot_id,
        address: status
            .addresses
            .unwrap_or_default()
            .into_iter()
            .find(|a| a.type_ == "InternalIP")
            .map(|a| a.address),
        kubelet: info.kubelet_version,
        runtime: info.container_runtime_version,
        owner: owner(node.metadata.annotations.as_ref()),
        token: annotation(TOKEN_ANNOTATION).cloned(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: spec.taints.iter().flatten().filter_map(taint).collect(),
        applied_labels: annotation(LABELS_ANNOTATION)
            .map(|text| read_labels(text))
            .unwrap_or_default(),
        applied_taints: annotation(TAINTS_ANNOTATION)
            .map(|text| read_taints(text))
            .unwrap_or_default(),
        unschedulable: spec.unschedulable.unwrap_or(false),
    }
}

fn taint(taint: &KubeTaint) -> Option<Taint> {
    let effect = Effect::parse(&taint.effect)?;
    Some(Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect,
    })
}

/// The update that makes a Node what it should be, valid for exactly this version of it; and what it changes.
fn converged(
    found: &KubeNode,
    owner: &Owner,
    token: Option<&str>,
    labels: &BTreeMap<String, String>,
    taints: &[Taint],
) -> (Value, Vec<String>) {
    let node = parse(found);
    let mut changes = Vec::new();
    if node.owner.as_ref() != Some(owner) {
        changes.push(format!("marked as {owner}"));
    }
    changes.extend(
        node.differences(labels, taints)
            .into_iter()
            .map(|difference| match (difference.wanted, difference.is) {
                (Some(wanted), Some(is)) => format!("{}: {is} -> {wanted}", difference.key),
                (Some(wanted), None) => format!("{}: {wanted}", difference.key),
                (None, _) => format!("{}: taken away", difference.key),
            }),
    );

    let mut wanted = annotations(owner);
    wanted.extend(token.map(|id| (TOKEN_ANNOTATION.to_owned(), id.to_owned())));
    let mut marks: BTreeMap<String, Option<String>> = wanted
        .into_iter()
        .map(|(key, value)| (key, Some(value)))
        .collect();
    marks.insert(
        LABELS_ANNOTATION.to_owned(),
        Some(write_labels(labels)).filter(|text| !text.is_empty()),
    );
    marks.insert(
        TAINTS_ANNOTATION.to_owned(),
        Some(write_taints(taints)).filter(|text| !text.is_empty()),
    );
    let has = found.metadata.annotations.clone().unwrap_or_default();
    marks.retain(|key, value| has.get(key) != value.as_ref());
    if !marks.is_empty() && changes.is_empty() {
        changes.push("what nodegraft notes on it".to_owned());
    }

    let mut named: BTreeMap<&str, Option<&str>> = node
        .labels_to_drop(labels)
        .map(|(key, _)| (key.as_str(), None))
        .collect();
    named.extend(
        labels
            .iter()
            .filter(|(key, value)| node.labels.get(*key) != Some(*value))
            .map(|(key, value)| (key.as_str(), Some(value.as_str()))),
    );
    let mut patch = json!({
        "metadata": {"resourceVersion": found.metadata.resource_version, "annotations": marks, "labels": named},
    });
    let dropped: BTreeSet<&Taint> = node.taints_to_drop(taints).collect();
    if !dropped.is_empty() || taints.iter().any(|wanted| !node.taints.contains(wanted)) {
        patch["spec"] = json!({"taints": merged(found, &dropped, taints)});
    }
    (patch, changes)
}

/// The taints of others as they are, ours as they should be.
fn merged(found: &KubeNode, dropped: &BTreeSet<&Taint>, wanted: &[Taint]) -> Vec<KubeTaint> {
    let has = found
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let mut all: Vec<KubeTaint> = has
        .into_iter()
        .filter(|raw| {
            let Some(taint) = taint(raw) else { return true };
            !dropped.contains(&taint)
                && !wanted
                    .iter()
                    .any(|wanted| wanted.is_same(&taint) && *wanted != taint)
        })
        .collect();
    for taint in wanted {
        if !all.iter().filter_map(self::taint).any(|has| has == *taint) {
            let value = Some(taint.value.clone()).filter(|value| !value.is_empty());
            all.push(KubeTaint {
                key: taint.key.clone(),
                value,
                effect: taint.effect.as_str().to_owned(),
                time_added: None,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_network_plugin_is_told_from_other_reasons() {
        let node = |ready: bool, message: &str| Node {
            ready,
            message: message.into(),
            ..Node::default()
        };
        // What the kubelets of 1.18 and of 1.35 say.
        assert!(node(false, "runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:docker: network plugin is not ready: cni config uninitialized").lacks_network());
        assert!(node(false, "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized").lacks_network());
        assert!(!node(false, "PLEG is not healthy").lacks_network());
        assert!(!node(true, "cni").lacks_network());
    }

    #[test]
    fn a_node_is_of_an_instance_by_its_machine_id_and_by_nothing_else() {
        let mine = Owner::of("homelab", "n1", "abc");
        let node = |machine_id: &str| Node {
            machine_id: machine_id.into(),
            owner: Some(mine.clone()),
            ..Node::default()
        };
        assert!(node("abc").is_of(&mine));
        assert!(!node("xyz").is_of(&mine), "an annotation is no proof");
        assert!(
            !node("").is_of(&Owner::of("homelab", "n1", "")),
            "a kubelet that has not told its machine-id is nobody's"
        );
    }

    fn kube_node() -> KubeNode {
        serde_json::from_value(json!({
            "metadata": {
                "name": "n1", "uid": "u1", "resourceVersion": "7",
                "labels": {"os": "linux", "disk": "hdd", "old": "x"},
                "annotations": {"theirs": "y", LABELS_ANNOTATION: "disk=hdd,old=x", TAINTS_ANNOTATION: "old:NoSchedule"},
            },
            "spec": {"taints": [
                {"key": "theirs", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
                {"key": "old", "effect": "NoSchedule"},
                {"key": "gpu", "value": "a", "effect": "NoSchedule"},
            ]},
            "status": {"nodeInfo": {"machineID": "abc", "bootID": "b", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}},
        }))
        .unwrap()
    }

    #[test]
    fn one_update_makes_a_node_what_it_should_be_and_leaves_the_rest() {
        let owner = Owner::of("homelab", "n1", "abc");
        let labels = read_labels("disk=ssd");
        let taints = read_taints("gpu=b:NoSchedule");
        let (patch, changes) = converged(&kube_node(), &owner, Some("abcdef"), &labels, &taints);
        assert_eq!(
            patch,
            json!({
                "metadata": {
                    "resourceVersion": "7",
                    "labels": {"disk": "ssd", "old": null},
                    "annotations": {
                        "nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n1", "nodegraft.io/instance": "abc",
                        "nodegraft.io/token": "abcdef", "nodegraft.io/labels": "disk=ssd", "nodegraft.io/taints": "gpu=b:NoSchedule",
                    },
                },
                "spec": {"taints": [
                    {"key": "theirs", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
                    {"key": "gpu", "value": "b", "effect": "NoSchedule"},
                ]},
            })
        );
        assert_eq!(
            changes,
            [
                "marked as n1 of homelab",
                "labels.disk: hdd -> ssd",
                "labels.old: taken away",
                "taints.gpu=b:NoSchedule: gpu=a:NoSchedule -> gpu=b:NoSchedule",
                "taints.old:NoSchedule: taken away",
            ]
        );
    }

    #[test]
    fn a_node_that_is_as_it_should_be_is_not_written() {
        let owner = Owner::of("homelab", "n1", "abc");
        let mut node = kube_node();
        node.metadata
            .annotations
            .get_or_insert_default()
            .extend(annotations(&owner));
        let (labels, taints) = (read_labels("disk=hdd,old=x"), read_taints("old:NoSchedule"));
        assert_eq!(
            converged(&node, &owner, None, &labels, &taints).1,
            Vec::<String>::new()
        );
        // Nothing differs that anybody sees, but what is ours must be noted.
        let noted = converged(
            &node,
            &owner,
            None,
            &read_labels("disk=hdd,old=x,os=linux"),
            &taints,
        );
        assert_eq!(noted.1, ["what nodegraft notes on it"]);
        assert_eq!(
            noted.0["metadata"]["annotations"],
            json!({LABELS_ANNOTATION: "disk=hdd,old=x,os=linux"})
        );
        assert_eq!(noted.0.get("spec"), None);
    }

    #[test]
    fn a_node_is_read_whole() {
        let node = parse(&kube_node());
        assert_eq!(
            (
                node.uid.as_str(),
                node.machine_id.as_str(),
                node.boot_id.as_str()
            ),
            ("u1", "abc", "b")
        );
        assert_eq!(
            node.taints,
            read_taints("theirs:NoExecute,old:NoSchedule,gpu=a:NoSchedule")
        );
        assert_eq!(node.owner, None, "two annotations of three are none");
    }
}
