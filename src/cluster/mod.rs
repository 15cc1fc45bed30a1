//! The Kubernetes room, the only user of `kube`. `token.rs` has bootstrap tokens, `access.rs` what they may do,
//! `csr.rs` certificate requests of either API version, `node.rs` Nodes and their leases, `drain.rs` how pods leave them.

pub mod access;
pub mod csr;
pub mod drain;
pub mod node;
pub mod token;

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt;
use kube::Client;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Exit, Result};

const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// The label on everything we make in the cluster.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "nodegraft");
/// Annotations that tell whose a token or a Node is.
pub const CLUSTER_ANNOTATION: &str = "nodegraft.io/cluster";
pub const NODE_ANNOTATION: &str = "nodegraft.io/node";

/// A connection to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Asks once. The other one waits out a 429, which for an eviction is the answer.
    once: Client,
    /// As in the kubeconfig.
    pub server: String,
    /// The CA in PEM, base64, as kubeconfigs carry it.
    pub ca_base64: String,
    pub ca_pem: String,
    /// Such as `v1.35.4`.
    pub version: String,
    /// `v1`, or `v1beta1` before 1.19.
    pub certificates: String,
}

impl Cluster {
    /// Connects with a kubeconfig file; paths inside it are relative to it.
    pub async fn from_file(path: &Path, context: Option<&str>) -> Result<Self> {
        Self::connect(Kubeconfig::read_from(path), &path.display().to_string(), context).await
    }

    /// Connects with a kubeconfig's text; `origin` names it in messages.
    pub async fn from_text(text: &str, origin: &str, context: Option<&str>) -> Result<Self> {
        Self::connect(Kubeconfig::from_yaml(text), origin, context).await
    }

    /// Connects, and asks the API server for its version: wrong CA, wrong credentials and a server that is down show
    /// here.
    async fn connect(kubeconfig: Result<Kubeconfig, KubeconfigError>, origin: &str, context: Option<&str>) -> Result<Self> {
        let unfit = |error: Error| error.with_exit(Exit::Unfit);
        let parsed = kubeconfig
            .doing(format!("reading the kubeconfig {origin}"))
            .map_err(|e| unfit(e.with_help("correct `cluster.kubeconfig`; does it work with: kubectl --kubeconfig FILE get nodes")))?;
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(parsed, &options)
            .await
            .doing(format!("using the kubeconfig {origin}"))
            .map_err(|e| unfit(e.with_help("check its current-context, its file paths and its credentials")))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = None;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let ca = config.root_cert.clone().and_then(|certs| certs.into_iter().next()).ok_or_else(|| {
            unfit(
                Error::new(format!("the kubeconfig {origin} has no certificate authority"))
                    .with_help("nodes pin the cluster's CA: use a kubeconfig with certificate-authority or certificate-authority-data"),
            )
        })?;
        let ca_pem = pem(&ca);
        let mut impatient = config.clone();
        impatient.default_retry = false;
        let once = Client::try_from(impatient).doing(format!("using the kubeconfig {origin}")).map_err(unfit)?;
        let client = Client::try_from(config).doing(format!("using the kubeconfig {origin}")).map_err(unfit)?;
        let version = within(format!("asking {server} for its version"), client.apiserver_version()).await.map_err(|error| {
            let text = crate::error::one_line(&error).to_lowercase();
            let help = if text.contains("certificate") || text.contains("unknownissuer") {
                "the server's certificate is not signed by the CA in this kubeconfig: take a fresh kubeconfig from the control plane"
            } else if text.contains("unauthorized") || text.contains("401") {
                "the credentials in this kubeconfig are not accepted: take a fresh one from the control plane"
            } else {
                "is the API server up, and is its address right in the kubeconfig?"
            };
            unfit(Error::new(format!("the API server {server} cannot be used")).because(error).with_help(help))
        })?;
        let groups = within("listing the API groups", client.list_api_groups()).await.map_err(unfit)?;
        let served: Vec<String> = groups
            .groups
            .into_iter()
            .find(|group| group.name == "certificates.k8s.io")
            .map(|group| group.versions.into_iter().map(|v| v.version).collect())
            .unwrap_or_default();
        let certificates = ["v1", "v1beta1"].into_iter().find(|v| served.iter().any(|s| s == v)).ok_or_else(|| {
            unfit(
                Error::new(format!("{server} serves neither v1 nor v1beta1 of certificates.k8s.io"))
                    .with_help("a kubelet cannot get a certificate from this cluster"),
            )
        })?;
        Ok(Self {
            client,
            once,
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
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// One call to the API server, with a deadline and a gerund for its error.
async fn within<T>(what: impl Into<String>, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T> {
    let what = what.into();
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(result) => result.doing(what),
        Err(_) => Err(Error::new(what).because(Error::new(format!("no answer within {} s", CALL_DEADLINE.as_secs())))),
    }
}

/// Lists, then watches, until `look` finds what it wants in an object. Has no deadline of its own.
async fn watch_until<K, T>(api: &Api<K>, what: &str, fields: Option<&str>, mut look: impl FnMut(K) -> Option<T>) -> Result<T>
where
    K: Clone + DeserializeOwned + Debug,
{
    loop {
        let only = fields.map_or_else(ListParams::default, |fields| ListParams::default().fields(fields));
        let list = within(format!("listing {what}"), api.list(&only)).await?;
        let from = list.metadata.resource_version.clone().unwrap_or_default();
        for object in list.items {
            if let Some(found) = look(object) {
                return Ok(found);
            }
        }
        // Bookmarks would need a progress request that etcd before 3.4.25 does not have.
        let mut params = WatchParams::default().timeout(120).disable_bookmarks();
        params.field_selector = fields.map(str::to_owned);
        let events = within(format!("watching {what}"), api.watch(&params, &from)).await?;
        futures_util::pin_mut!(events);
        // A watch that ended or broke is begun again from a fresh list.
        while let Some(Ok(event)) = events.next().await {
            let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else {
                if matches!(event, WatchEvent::Error(_)) { break } else { continue }
            };
            if let Some(found) = look(object) {
                return Ok(found);
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The status code of an API error, such as 404.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Turns "there is no such object" into `None`.
fn absent_as_none<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if code(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
