//! The pods of a Node, as far as its leaving concerns them.

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::api::{Api, ListParams};
use serde::Serialize;

use super::Cluster;
use super::list::list;
use crate::core::error::Result;

/// A pod, with what people want to know before it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Something will make another elsewhere.
    pub controller: bool,
    /// It has an emptyDir, whose data goes with it.
    pub local_data: bool,
    /// A DaemonSet's: it goes with the node.
    pub daemon: bool,
    /// It mirrors a file on the node: it goes with the node.
    pub mirror: bool,
    /// It has ended already.
    pub finished: bool,
    /// Its end was asked for already.
    pub ending: bool,
}

impl Pod {
    /// Whether a drain evicts it.
    pub fn must_leave(&self) -> bool {
        !self.daemon && !self.mirror && !self.finished
    }
}

impl Cluster {
    /// The pods that are, or are to be, on a Node.
    pub async fn pods_on(&self, node: &str) -> Result<Vec<Pod>> {
        let api: Api<KubePod> = Api::all(self.client.clone());
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        Ok(list(format!("listing the pods on {node}"), &api, &here)
            .await?
            .iter()
            .map(parse)
            .collect())
    }
}

fn parse(pod: &KubePod) -> Pod {
    let meta = &pod.metadata;
    let controller = meta
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    Pod {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: controller.is_some(),
        local_data: volumes
            .into_iter()
            .flatten()
            .any(|volume| volume.empty_dir.is_some()),
        daemon: controller.is_some_and(|owner| owner.kind == "DaemonSet"),
        mirror: meta
            .annotations
            .iter()
            .flatten()
            .any(|(key, _)| key == "kubernetes.io/config.mirror"),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        ending: meta.deletion_timestamp.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pods_are_told_apart_as_kubectl_drain_tells_them() {
        let pod = |metadata: Value, spec: Value, phase: &str| {
            parse(
                &serde_json::from_value(
                    json!({"metadata": metadata, "spec": spec, "status": {"phase": phase}}),
                )
                .unwrap(),
            )
        };
        let plain = json!({"containers": []});
        let owned = |kind: &str, controller: bool| json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": controller}]});
        let bare = pod(
            json!({"name": "a", "namespace": "b", "uid": "c"}),
            plain.clone(),
            "Running",
        );
        let expected = Pod {
            namespace: "b".into(),
            name: "a".into(),
            uid: "c".into(),
            ..Pod::default()
        };
        assert_eq!(bare, expected);
        assert!(bare.must_leave());
        let replicated = pod(owned("ReplicaSet", true), plain.clone(), "Running");
        assert!(replicated.controller && replicated.must_leave());
        let daemon = pod(owned("DaemonSet", true), plain.clone(), "Running");
        assert!(daemon.daemon && !daemon.must_leave());
        let mentioned = pod(owned("DaemonSet", false), plain.clone(), "Running");
        assert!(!mentioned.daemon && !mentioned.controller && mentioned.must_leave());
        let mirror = pod(
            json!({"annotations": {"kubernetes.io/config.mirror": "x"}}),
            plain.clone(),
            "Running",
        );
        assert!(mirror.mirror && !mirror.must_leave());
        let data = pod(
            json!({}),
            json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}),
            "Pending",
        );
        assert!(data.local_data && data.must_leave());
        assert!(!pod(json!({}), plain.clone(), "Succeeded").must_leave());
        let ending = pod(
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            plain,
            "Running",
        );
        assert!(ending.ending && ending.must_leave());
    }
}
