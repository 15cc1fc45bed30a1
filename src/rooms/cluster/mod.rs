//! The Kubernetes room, the only user of `kube`. `call.rs`, `list.rs` and `watch.rs` have the patience, `token.rs` bootstrap tokens,
//! `access.rs` what they may do, `csr.rs` certificate requests of either API version, `node.rs` Nodes and their leases,
//! `difference.rs` what a Node should bear, `pod.rs` and `drain.rs` how pods leave it.
//! A name proves nothing here: what is deleted is named by its UID as well.

pub mod access;
mod call;
pub mod csr;
pub mod difference;
pub mod drain;
mod error;
mod kubeconfig;
mod list;
pub mod node;
pub mod pod;
pub mod token;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use kube::Client;
use kube::config::Kubeconfig;

use self::call::{FIRST_CALL, insist};
pub use self::error::{Failure, is_forbidden};
use self::kubeconfig::Access;
use crate::core::error::{Context, Error, Result};
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

impl Cluster {
    /// Connects with a kubeconfig file, or several as `KUBECONFIG` lists them.
    pub async fn from_files(paths: &[PathBuf], context: Option<&str>) -> Result<Self> {
        let origin: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Self::connect(kubeconfig::read(paths), &origin.join(":"), context).await
    }

    /// Connects with a kubeconfig's text; `origin` names it in messages.
    pub async fn from_text(text: &str, origin: &str, context: Option<&str>) -> Result<Self> {
        Self::connect(kubeconfig::parse(text), origin, context).await
    }

    /// Connects, and asks the API server for its version: wrong CA, wrong credentials and a server that is down show
    /// here.
    async fn connect(
        kubeconfig: Result<Kubeconfig, kubeconfig::Failure>,
        origin: &str,
        context: Option<&str>,
    ) -> Result<Self> {
        let kubeconfig = kubeconfig.doing(format!("reading the kubeconfig {origin}"))?;
        let Access { client, server, ca } = kubeconfig::access(kubeconfig, context)
            .await
            .doing(format!("using the kubeconfig {origin}"))?;
        let version = insist(FIRST_CALL, || client.apiserver_version())
            .await
            .map_err(|tried| tried.during(format!("asking {server} for its version")))
            .doing(format!("the API server {server} cannot be used"))?;
        let groups = insist(FIRST_CALL, || client.list_api_groups())
            .await
            .map_err(|tried| tried.during("listing the API groups"))?;
        let served: Vec<String> = groups
            .groups
            .into_iter()
            .find(|group| group.name == "certificates.k8s.io")
            .map(|group| group.versions.into_iter().map(|v| v.version).collect())
            .unwrap_or_default();
        let certificates = ["v1", "v1beta1"]
            .into_iter()
            .find(|v| served.iter().any(|s| s == v))
            .ok_or_else(|| {
                Error::unfit(format!(
                    "{server} serves neither v1 nor v1beta1 of certificates.k8s.io"
                ))
                .with_help("a kubelet cannot get a certificate from this cluster")
            })?;
        let ca_pem: String = ca.iter().map(|der| pem(der)).collect();
        Ok(Self {
            client,
            server,
            ca_base64: base64::engine::general_purpose::STANDARD.encode(&ca_pem),
            ca_pem,
            version: version.git_version,
            certificates: certificates.to_owned(),
        })
    }
}

fn pem(der: &[u8]) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// The annotations that tell whose something is.
fn annotations(owner: &Owner) -> BTreeMap<String, String> {
    [CLUSTER_ANNOTATION, NODE_ANNOTATION, INSTANCE_ANNOTATION]
        .into_iter()
        .zip(owner.parts())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Whose something is by its annotations, if all of them are there.
fn owner(annotations: Option<&BTreeMap<String, String>>) -> Option<Owner> {
    let text = |key: &str| annotations?.get(key).cloned();
    Some(Owner::of(
        text(CLUSTER_ANNOTATION)?,
        text(NODE_ANNOTATION)?,
        text(INSTANCE_ANNOTATION)?,
    ))
}

/// Whether something bears the label of all that we make.
fn is_managed(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels
        .and_then(|labels| labels.get(MANAGED_BY.0))
        .is_some_and(|by| by == MANAGED_BY.1)
}
