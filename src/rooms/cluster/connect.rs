//! The way to the API server: which kubeconfig, which proxy, and whether it answers as it should.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::Cluster;
use super::call::{FIRST_CALL, deepest, insist, one_clause};
use crate::core::error::{Context, Error, Exit, Result};
use crate::core::no_proxy;

impl Cluster {
    /// Connects with a kubeconfig file, or several as `KUBECONFIG` lists them: the first that says something wins, and those
    /// that do not exist are passed over. Paths inside a file are relative to it.
    pub async fn from_files(paths: &[PathBuf], context: Option<&str>) -> Result<Self> {
        let origin: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Self::connect(merged(paths), &origin.join(":"), context).await
    }

    /// Connects with a kubeconfig's text; `origin` names it in messages.
    pub async fn from_text(text: &str, origin: &str, context: Option<&str>) -> Result<Self> {
        Self::connect(Kubeconfig::from_yaml(text), origin, context).await
    }

    /// Connects, and asks the API server for its version: wrong CA, wrong credentials and a server that is down show
    /// here.
    async fn connect(
        kubeconfig: Result<Kubeconfig, KubeconfigError>,
        origin: &str,
        context: Option<&str>,
    ) -> Result<Self> {
        let unfit = |error: Error| error.with_exit(Exit::Unfit);
        let parsed = kubeconfig
            .map_err(|error| words(&error))
            .doing(format!("reading the kubeconfig {origin}"))
            .map_err(|e| unfit(e.with_help("correct `cluster.kubeconfig`; does it work with: kubectl --kubeconfig FILE get nodes")))?;
        let own_proxy = own_proxy(&parsed, context);
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let mut config = Config::from_custom_kubeconfig(parsed, &options)
            .await
            .map_err(|error| words(&error))
            .doing(format!("using the kubeconfig {origin}"))
            .map_err(|e| {
                unfit(e.with_help("check its current-context, its file paths and its credentials"))
            })?;
        // The library asks whether the proxy, and not the server, is in NO_PROXY.
        let host = config.cluster_url.host().unwrap_or_default();
        let port = config.cluster_url.port_u16().unwrap_or(443);
        let proxy = own_proxy.or_else(|| proxy_of_environment(host, port));
        config.proxy_url = proxy
            .map(|proxy| proxy.parse())
            .transpose()
            .map_err(|_| unfit(Error::new("the proxy's URL is not one").with_help(
                "write it as in http://proxy.lan:3128, in proxy-url of the kubeconfig or in HTTPS_PROXY",
            )))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = None;
        // What is tried again, and for how long, is `call.rs`'s to decide: to an eviction a 429 is an answer.
        config.default_retry = false;
        let server = config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned();
        let ca_pem: String = config
            .root_cert
            .iter()
            .flatten()
            .map(|der| pem(der))
            .collect();
        if ca_pem.is_empty() {
            return Err(unfit(
                Error::new(format!("the kubeconfig {origin} has no certificate authority"))
                    .with_help("nodes pin the cluster's CA: use a kubeconfig with certificate-authority or certificate-authority-data"),
            ));
        }
        let client = Client::try_from(config)
            .doing(format!("using the kubeconfig {origin}"))
            .map_err(unfit)?;
        let version = insist(FIRST_CALL, || client.apiserver_version()).await.map_err(|failure| {
            let text = failure.to_string().to_lowercase();
            let help = if text.contains("certificate") || text.contains("unknownissuer") {
                "the server's certificate is not signed by the CA in this kubeconfig: take a fresh kubeconfig from the control plane"
            } else if failure.code() == Some(401) {
                "the credentials in this kubeconfig are not accepted: take a fresh one from the control plane"
            } else {
                "is the API server up, and is its address right in the kubeconfig?"
            };
            let error = failure.during(format!("asking {server} for its version"));
            unfit(Error::new(format!("the API server {server} cannot be used")).because(error).with_help(help))
        })?;
        let groups = insist(FIRST_CALL, || client.list_api_groups())
            .await
            .map_err(|failure| unfit(failure.during("listing the API groups")))?;
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
                unfit(
                    Error::new(format!(
                        "{server} serves neither v1 nor v1beta1 of certificates.k8s.io"
                    ))
                    .with_help("a kubelet cannot get a certificate from this cluster"),
                )
            })?;
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

/// What is wrong with a kubeconfig, without the library's own way to say it.
fn words(error: &KubeconfigError) -> Error {
    Error::new(match error {
        KubeconfigError::CurrentContextNotSet => "it has no current-context".to_owned(),
        KubeconfigError::LoadContext(name) => format!("it has no context `{name}`"),
        KubeconfigError::LoadClusterOfContext(name) => format!("it has no cluster `{name}`"),
        KubeconfigError::ReadConfig(error, path) => {
            format!("{}: {}", path.display(), plainly(error))
        }
        _ => one_clause(&deepest(error).to_string()),
    })
}

/// Without the number of the system's error.
fn plainly(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_lowercase()
}

fn merged(paths: &[PathBuf]) -> Result<Kubeconfig, KubeconfigError> {
    let mut whole: Option<Kubeconfig> = None;
    let mut missing = None;
    for path in paths {
        match Kubeconfig::read_from(path) {
            Ok(next) => {
                whole = Some(match whole {
                    Some(before) => before.merge(next)?,
                    None => next,
                });
            }
            Err(KubeconfigError::ReadConfig(error, at)) if error.kind() == ErrorKind::NotFound => {
                missing.get_or_insert(KubeconfigError::ReadConfig(error, at));
            }
            Err(error) => return Err(error),
        }
    }
    match (whole, missing) {
        (Some(whole), _) => Ok(whole),
        (None, Some(missing)) => Err(missing),
        (None, None) => Ok(Kubeconfig::default()),
    }
}

/// The `proxy-url` of a context's cluster: it holds whatever the environment says.
fn own_proxy(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(kubeconfig.current_context.as_deref());
    let named = kubeconfig
        .contexts
        .iter()
        .find(|named| Some(named.name.as_str()) == context)?;
    let cluster = &named.context.as_ref()?.cluster;
    let found = kubeconfig
        .clusters
        .iter()
        .find(|named| named.name == *cluster)?;
    found
        .cluster
        .as_ref()?
        .proxy_url
        .clone()
        .filter(|proxy| !proxy.is_empty())
}

/// The proxy by which the environment says to reach a server.
fn proxy_of_environment(host: &str, port: u16) -> Option<String> {
    let variable = |names: [&str; 2]| {
        let set = names.into_iter().find_map(|name| std::env::var(name).ok());
        set.filter(|value| !value.is_empty())
    };
    let proxy = variable(["HTTPS_PROXY", "https_proxy"])?;
    let exceptions = variable(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    (!no_proxy::bypasses(&exceptions, host, port)).then_some(proxy)
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
