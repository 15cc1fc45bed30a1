//! The Kubernetes room, the only user of `kube`. `connect.rs` is the way in, `call.rs`, `list.rs` and `watch.rs` have the patience, `token.rs` bootstrap tokens,
//! `access.rs` what they may do, `csr.rs` certificate requests of either API version, `node.rs` Nodes and their leases,
//! `difference.rs` what a Node should bear, `pod.rs` and `drain.rs` how pods leave it.
//! A name proves nothing here: what is deleted is named by its UID as well.

pub mod access;
mod call;
mod connect;
pub mod csr;
pub mod difference;
pub mod drain;
mod list;
pub mod node;
pub mod pod;
pub mod token;
mod watch;

use std::collections::BTreeMap;

use kube::Client;

pub use self::call::is_forbidden;
use crate::core::ownership::Owner;

/// The label on everything we make in the cluster.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "nodegraft");
/// Annotations that tell whose a token or a Node is. On a Node they tell, and prove nothing: its machine-id does.
pub const CLUSTER_ANNOTATION: &str = "nodegraft.io/cluster";
pub const NODE_ANNOTATION: &str = "nodegraft.io/node";
pub const INSTANCE_ANNOTATION: &str = "nodegraft.io/instance";
/// On a Node: the id of the token it joined with.
pub const TOKEN_ANNOTATION: &str = "nodegraft.io/token";
/// On a Node: the labels and taints that we last gave it, so that those no longer wanted are known as ours.
pub const LABELS_ANNOTATION: &str = "nodegraft.io/labels";
pub const TAINTS_ANNOTATION: &str = "nodegraft.io/taints";

/// A connection to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// As in the kubeconfig.
    pub server: String,
    /// All certificates of the CA in PEM, base64, as kubeconfigs carry them.
    pub ca_base64: String,
    pub ca_pem: String,
    /// Such as `v1.35.4`.
    pub version: String,
    /// `v1`, or `v1beta1` before 1.19.
    pub certificates: String,
}

/// The annotations that tell whose something is.
fn annotations(owner: &Owner) -> BTreeMap<String, String> {
    let pairs = [
        (CLUSTER_ANNOTATION, &owner.cluster),
        (NODE_ANNOTATION, &owner.node),
        (INSTANCE_ANNOTATION, &owner.instance),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect()
}

/// Whose something is by its annotations, if all of them are there.
fn owner(annotations: Option<&BTreeMap<String, String>>) -> Option<Owner> {
    let text = |key: &str| annotations?.get(key).cloned();
    Some(Owner {
        cluster: text(CLUSTER_ANNOTATION)?,
        node: text(NODE_ANNOTATION)?,
        instance: text(INSTANCE_ANNOTATION)?,
    })
}

/// Whether something bears the label of all that we make.
fn is_managed(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels
        .and_then(|labels| labels.get(MANAGED_BY.0))
        .is_some_and(|by| by == MANAGED_BY.1)
}
