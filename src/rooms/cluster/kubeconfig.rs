//! A kubeconfig, as far as a connection needs it, and what may be wrong with it.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};

use super::error::credentials;
use crate::core::error::{Cause, Kind, system_words};
use crate::core::no_proxy;

/// Why a kubeconfig cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("it is not a kubeconfig{}", place(*.at))]
    Malformed { at: Option<(u64, u64)> },
    #[error("it has no current context")]
    NoContext,
    #[error("it has no context `{0}`")]
    UnknownContext(String),
    #[error("it has no cluster `{0}`, which its context names")]
    UnknownCluster(String),
    #[error("its cluster has no server")]
    NoServer,
    #[error("its server is not a URL")]
    BadServer,
    #[error("the URL of its proxy cannot be read")]
    Proxy,
    #[error("NO_PROXY holds an item that cannot be read")]
    NoProxy,
    #[error("it has no certificate authority")]
    NoAuthority,
    #[error("its {what} cannot be read: {why}")]
    Part { what: &'static str, why: String },
    #[error("its {0}")]
    Credentials(&'static str),
    /// As a sentence: the program or the file that should give them does not.
    #[error("{0}")]
    NoCredentials(&'static str),
    /// Of several files.
    #[error("{file}: {why}")]
    In { file: String, why: Box<Self> },
}

fn place(at: Option<(u64, u64)>) -> String {
    at.map(|(line, column)| format!(": line {line}, column {column} is not as it should be"))
        .unwrap_or_default()
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        Kind::Unfit
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Unreadable(_) | Self::Malformed { .. } => {
                "correct `cluster.kubeconfig`; does it work with: kubectl --kubeconfig FILE get nodes"
            }
            Self::NoContext | Self::UnknownContext(_) => {
                "name one of its contexts; see: kubectl --kubeconfig FILE config get-contexts"
            }
            Self::UnknownCluster(_) | Self::NoServer | Self::BadServer => {
                "take a fresh kubeconfig from the control plane"
            }
            Self::In { why, .. } => return why.help(),
            Self::NoProxy => "separate its items by single commas, without empty ones",
            Self::NoCredentials(_) => "does it work with: kubectl --kubeconfig FILE get nodes",
            Self::Proxy => {
                "write it as in http://proxy.lan:3128, in the cluster's proxy-url or in HTTPS_PROXY"
            }
            Self::NoAuthority => {
                "nodes pin the cluster's CA: use a kubeconfig with certificate-authority or certificate-authority-data"
            }
            Self::Part { .. } | Self::Credentials(_) => {
                "check its current-context, its file paths and its credentials"
            }
        };
        Some(help.to_owned())
    }
}

impl From<KubeconfigError> for Failure {
    fn from(error: KubeconfigError) -> Self {
        let part = |what, error: LoadDataError| Self::Part {
            what,
            why: match error {
                LoadDataError::DecodeBase64(_) => "it is not base64".to_owned(),
                LoadDataError::ReadFile(error, path) => {
                    format!("{}: {}", path.display(), system_words(&error))
                }
                LoadDataError::NoBase64DataOrFile => "there is none".to_owned(),
            },
        };
        match error {
            KubeconfigError::CurrentContextNotSet => Self::NoContext,
            KubeconfigError::LoadContext(name) if name.is_empty() => Self::NoContext,
            KubeconfigError::LoadContext(name) => Self::UnknownContext(name),
            KubeconfigError::LoadClusterOfContext(name) => Self::UnknownCluster(name),
            KubeconfigError::FindPath => Self::Unreadable("there is none".to_owned()),
            KubeconfigError::ReadConfig(error, _) => Self::Unreadable(system_words(&error)),
            KubeconfigError::Parse(error) => Self::Malformed {
                at: error
                    .location()
                    .map(|at| (at.line(), at.column()))
                    .filter(|(line, _)| *line > 0),
            },
            KubeconfigError::MissingClusterUrl => Self::NoServer,
            KubeconfigError::ParseClusterUrl(_) => Self::BadServer,
            KubeconfigError::ParseProxyUrl(_) => Self::Proxy,
            KubeconfigError::ParseNoProxy(_) => Self::NoProxy,
            KubeconfigError::LoadCertificateAuthority(error) => {
                part("certificate authority", error)
            }
            KubeconfigError::LoadClientCertificate(error) => part("client certificate", error),
            KubeconfigError::LoadClientKey(error) => part("client key", error),
            KubeconfigError::ParseCertificates(_) => Self::Part {
                what: "certificate authority",
                why: "it is not PEM".to_owned(),
            },
            KubeconfigError::KindMismatch | KubeconfigError::ApiVersionMismatch => {
                Self::Malformed { at: None }
            }
        }
    }
}

/// Of making a client, which reads the rest of it.
impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::InferKubeconfig(error) => error.into(),
            kube::Error::Auth(error) => Self::NoCredentials(credentials(&error)),
            kube::Error::RustlsTls(_) => {
                Self::Credentials("client certificate or key is not as it should be")
            }
            kube::Error::ProxyProtocolUnsupported { .. }
            | kube::Error::ProxyProtocolDisabled { .. } => Self::Proxy,
            _ => Self::Credentials("credentials cannot be used"),
        }
    }
}

/// Everything of a kubeconfig that matters.
pub(super) struct Access {
    pub(super) client: Client,
    pub(super) server: String,
    /// Each certificate of the CA in DER.
    pub(super) ca: Vec<Vec<u8>>,
}

/// Of several files the first that says something wins, and those that do not exist are passed over. Paths inside a file are
/// relative to it.
pub(super) fn read(paths: &[PathBuf]) -> Result<Kubeconfig, Failure> {
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
            Err(error) if paths.len() > 1 => {
                return Err(Failure::In {
                    file: path.display().to_string(),
                    why: Box::new(error.into()),
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    match (whole, missing) {
        (Some(whole), _) => Ok(whole),
        (None, Some(missing)) => Err(missing.into()),
        (None, None) => Err(KubeconfigError::FindPath.into()),
    }
}

pub(super) fn parse(text: &str) -> Result<Kubeconfig, Failure> {
    Ok(Kubeconfig::from_yaml(text)?)
}

pub(super) async fn access(
    kubeconfig: Kubeconfig,
    context: Option<&str>,
) -> Result<Access, Failure> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let own_proxy = own_proxy(&kubeconfig, context);
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // The library asks whether the proxy, and not the server, is in NO_PROXY.
    let host = config.cluster_url.host().unwrap_or_default();
    let port = config.cluster_url.port_u16().unwrap_or(443);
    let proxy = own_proxy.or_else(|| proxy_of_environment(host, port));
    config.proxy_url = proxy
        .map(|proxy| proxy.parse().map_err(|_| Failure::Proxy))
        .transpose()?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = None;
    // What is tried again, and for how long, is `call.rs`'s to decide: to an eviction a 429 is an answer.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let ca = config.root_cert.clone().unwrap_or_default();
    if ca.is_empty() {
        return Err(Failure::NoAuthority);
    }
    Ok(Access {
        client: Client::try_from(config)?,
        server: server.trim_end_matches('/').to_owned(),
        ca,
    })
}

/// The `proxy-url` of a context's cluster: it holds whatever the environment says.
fn own_proxy(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(kubeconfig.current_context.as_deref());
    let mut named = kubeconfig.contexts.iter();
    let named = named.find(|named| Some(named.name.as_str()) == context)?;
    let cluster = &named.context.as_ref()?.cluster;
    let mut found = kubeconfig.clusters.iter();
    let found = found.find(|named| named.name == *cluster)?;
    let proxy = found.cluster.as_ref()?.proxy_url.clone();
    proxy.filter(|proxy| !proxy.is_empty())
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
