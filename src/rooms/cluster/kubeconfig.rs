//! A kubeconfig, as far as a connection needs it, and what may be wrong with it.

use std::path::Path;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};

use crate::core::error::{Cause, Kind, system_words};

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
    #[error("its proxy-url cannot be used: nodegraft knows no proxy")]
    Proxy,
    #[error("it has no certificate authority")]
    NoAuthority,
    #[error("its {what} cannot be read: {why}")]
    Part { what: &'static str, why: String },
    #[error("its {0}")]
    Credentials(&'static str),
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
            Self::Proxy => "reach the API server without a proxy, or by a tunnel of your own",
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
    /// The CA in DER.
    pub(super) ca: Vec<u8>,
}

/// Paths inside it are relative to it.
pub(super) fn read(path: &Path) -> Result<Kubeconfig, Failure> {
    Ok(Kubeconfig::read_from(path)?)
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
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = None;
    // What is tried again, and for how long, is `call.rs`'s to decide: to an eviction a 429 is an answer.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let ca = config
        .root_cert
        .clone()
        .and_then(|certificates| certificates.into_iter().next())
        .ok_or(Failure::NoAuthority)?;
    Ok(Access {
        client: Client::try_from(config)?,
        server: server.trim_end_matches('/').to_owned(),
        ca,
    })
}
