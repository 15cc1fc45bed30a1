//! Kubernetes Nodes: whose they are, whether they are Ready, and how they leave.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::token::annotations;
use super::{Cluster, NODE_ANNOTATION, absent_as_none, watch_until, within};
use crate::error::Result;

/// A Node as the API server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub ready: bool,
    /// Why it is not ready, in the kubelet's words.
    pub message: String,
    pub machine_id: String,
    pub address: Option<String>,
    pub kubelet: String,
    pub runtime: String,
    /// The cluster and node of our annotation.
    pub owner: Option<(String, String)>,
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// Whether it is the Node of this guest: by our annotation, or by the machine-id we gave it.
    pub fn belongs_to(&self, cluster: &str, node: &str, machine_id: &str) -> bool {
        self.machine_id == machine_id || self.owner.as_ref().is_some_and(|(c, n)| c == cluster && n == node)
    }

    /// The network plugin is all that is missing.
    pub fn lacks_network(&self) -> bool {
        let text = self.message.to_lowercase();
        !self.ready && (text.contains("cni") || text.contains("network plugin") || text.contains("networkpluginnotready"))
    }
}

impl Cluster {
    pub(super) fn nodes(&self) -> Api<KubeNode> {
        Api::all(self.client.clone())
    }

    pub async fn node(&self, name: &str) -> Result<Option<Node>> {
        within(format!("looking for the Node {name}"), self.nodes().get_opt(name)).await.map(|node| node.as_ref().map(parse))
    }

    /// Watches a Node until `until` holds, telling `seen` of each change.
    pub async fn watch_node(&self, name: &str, until: impl Fn(&Node) -> bool, mut seen: impl FnMut(&Node)) -> Result<Node> {
        let only = format!("metadata.name={name}");
        watch_until(&self.nodes(), &format!("the Node {name}"), Some(&only), |object| {
            let node = parse(&object);
            seen(&node);
            until(&node).then_some(node)
        })
        .await
    }

    /// Writes our annotation and the spec's labels on a Node.
    pub async fn mark_node(&self, name: &str, cluster: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let patch = json!({"metadata": {"annotations": annotations(cluster, name), "labels": labels}});
        within(format!("labelling the Node {name}"), self.nodes().patch(name, &PatchParams::default(), &Patch::Merge(&patch)))
            .await
            .map(drop)
    }

    /// Deletes a Node and its lease; false if neither was there.
    pub async fn delete_node(&self, name: &str) -> Result<bool> {
        let node = within(format!("deleting the Node {name}"), async {
            absent_as_none(self.nodes().delete(name, &DeleteParams::default()).await).map(|found| found.is_some())
        })
        .await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let lease = within(format!("deleting the lease of {name}"), async {
            absent_as_none(leases.delete(name, &DeleteParams::default()).await).map(|found| found.is_some())
        })
        .await?;
        Ok(node || lease)
    }
}

fn parse(node: &KubeNode) -> Node {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == "Ready");
    let info = status.node_info.unwrap_or_default();
    let annotations = node.metadata.annotations.clone().unwrap_or_default();
    Node {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: ready.as_ref().is_some_and(|c| c.status == "True"),
        message: ready.and_then(|c| c.message).unwrap_or_default(),
        machine_id: info.machine_id,
        address: status.addresses.unwrap_or_default().into_iter().find(|a| a.type_ == "InternalIP").map(|a| a.address),
        kubelet: info.kubelet_version,
        runtime: info.container_runtime_version,
        owner: annotations.get(super::CLUSTER_ANNOTATION).cloned().zip(annotations.get(NODE_ANNOTATION).cloned()),
        labels: node.metadata.labels.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: bool, message: &str) -> Node {
        Node {
            name: "n1".into(),
            ready,
            message: message.into(),
            machine_id: "abc".into(),
            address: None,
            kubelet: String::new(),
            runtime: String::new(),
            owner: Some(("homelab".into(), "n1".into())),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_missing_network_plugin_is_told_from_other_reasons() {
        // What the kubelets of 1.18 and of 1.35 say.
        assert!(node(false, "runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:docker: network plugin is not ready: cni config uninitialized").lacks_network());
        assert!(node(false, "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized").lacks_network());
        assert!(!node(false, "PLEG is not healthy").lacks_network());
        assert!(!node(true, "cni").lacks_network());
    }

    #[test]
    fn a_node_is_ours_by_its_machine_id_or_by_our_annotation() {
        assert!(node(true, "").belongs_to("other", "n2", "abc"));
        assert!(node(true, "").belongs_to("homelab", "n1", "xyz"));
        assert!(!node(true, "").belongs_to("homelab", "n2", "xyz"));
        assert!(!Node { machine_id: String::new(), owner: None, ..node(true, "") }.belongs_to("homelab", "n1", "abc"));
    }
}
