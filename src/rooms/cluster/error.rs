//! What goes wrong with the API server, in words. What it answers is told as it says it; what happens on the way is known
//! by the types of `kube`, `hyper`, `rustls` and the system, never by their texts.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use hyper_util::client::legacy;
use kube::client::AuthError;
use kube::core::Status;
use rustls::{AlertDescription, CertificateError};

use crate::core::error::{Cause, Error, Kind, system_words};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The API server's own word, by its HTTP status.
    #[error("{said}")]
    Answer { status: u16, said: String },
    /// A pod's disruption budget forbids its eviction.
    #[error("{0}")]
    Budget(String),
    /// It says that it cannot now, and perhaps when it can.
    #[error("{said}")]
    Busy {
        said: String,
        after: Option<Duration>,
    },
    #[error("the connection was cut")]
    Cut,
    #[error("no answer in time")]
    Silent,
    #[error("connection refused")]
    Refused,
    #[error("no connection within 5 s")]
    NoConnection,
    #[error("this machine does not know the name in its address")]
    UnknownName,
    /// Nobody there, in the system's words.
    #[error("{0}")]
    Unreachable(String),
    /// The connection failed on the way, in the system's words.
    #[error("{0}")]
    Broken(String),
    #[error("the server's certificate is not signed by the CA in this kubeconfig")]
    UnknownIssuer,
    #[error("the server's certificate has expired, or is not valid yet by this machine's clock")]
    Expired,
    #[error("the server's certificate is not for the address in this kubeconfig")]
    OtherName,
    #[error("the server's certificate is not valid")]
    BadCertificate,
    #[error("the server does not accept the client certificate of this kubeconfig")]
    ClientCertificate,
    #[error("what answers there does not speak TLS")]
    NotTls,
    #[error("what answers there does not speak TLS as an API server does")]
    OtherTls,
    #[error("what answers there is not an API server")]
    Nonsense,
    #[error("the credentials of this kubeconfig cannot be had: {0}")]
    Credentials(&'static str),
    #[error("the request cannot be written")]
    Unwritten,
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::Unwritten => Kind::Bug,
            _ => Kind::Unfit,
        }
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Answer { status: 401, .. } => {
                "the credentials in this kubeconfig are not accepted: take a fresh one from the control plane"
            }
            Self::Answer { status: 403, .. } => {
                "this kubeconfig's user has no permission for that: use another, or have an administrator grant it"
            }
            Self::UnknownIssuer | Self::ClientCertificate => {
                "take a fresh kubeconfig from the control plane"
            }
            Self::Expired => {
                "is the clock of this machine right? if so, renew the API server's certificate"
            }
            Self::OtherName => "use an address that the API server's certificate names",
            Self::Refused
            | Self::NoConnection
            | Self::Unreachable(_)
            | Self::UnknownName
            | Self::Cut
            | Self::Silent
            | Self::Busy { .. }
            | Self::Broken(_) => {
                "is the API server up, and is its address right in the kubeconfig?"
            }
            Self::NotTls | Self::OtherTls | Self::Nonsense | Self::BadCertificate => {
                "is the address in the kubeconfig that of the API server?"
            }
            Self::Credentials(_) => "does it work with: kubectl --kubeconfig FILE get nodes",
            Self::Answer { .. } | Self::Budget(_) | Self::Unwritten => return None,
        };
        Some(help.to_owned())
    }
}

impl Failure {
    /// The HTTP status of an answer, such as 404.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Nobody answers at the address.
    pub(super) fn is_nobody(&self) -> bool {
        matches!(
            self,
            Self::Refused | Self::NoConnection | Self::UnknownName | Self::Unreachable(_)
        )
    }

    /// Whether another try may go better. A certificate that is not trusted stays so, and an answer is one.
    pub(super) fn passes(&self) -> bool {
        self.is_nobody()
            || matches!(
                self,
                Self::Busy { .. } | Self::Cut | Self::Silent | Self::Broken(_)
            )
    }
}

/// Trouble was waited out in vain.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {seconds} s")]
pub(super) struct Unanswered {
    pub(super) seconds: u64,
    #[source]
    pub(super) last: Failure,
}

impl Cause for Unanswered {
    fn kind(&self) -> Kind {
        self.last.kind()
    }

    fn help(&self) -> Option<String> {
        Some("is the API server well? run the same command again when it answers".to_owned())
    }
}

/// Whether the API server answered that we may not.
pub fn is_forbidden(error: &Error) -> bool {
    error
        .cause::<Failure>()
        .is_some_and(|failure| failure.status() == Some(403))
}

impl From<&kube::Error> for Failure {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => answer(status),
            kube::Error::SerdeError(error) if error.is_eof() => Self::Cut,
            kube::Error::SerdeError(_)
            | kube::Error::FromUtf8(_)
            | kube::Error::LinesCodecMaxLineLengthExceeded => Self::Nonsense,
            kube::Error::HyperError(_)
            | kube::Error::Service(_)
            | kube::Error::ReadEvents(_)
            | kube::Error::Auth(_) => on_the_way(error),
            _ => Self::Unwritten,
        }
    }
}

/// What the API server, or a proxy before it, answers.
fn answer(status: &Status) -> Failure {
    /// The shortest pause after a 429 that names none; the API server's own header says the same.
    const BUSY: Duration = Duration::from_secs(1);
    // A proxy's page is no clause.
    let told = Some(one_clause(&status.message)).filter(|told| !told.starts_with('<'));
    let told = told.unwrap_or_default();
    let numbered = if told.is_empty() {
        format!("HTTP {}", status.code)
    } else {
        format!("HTTP {}: {told}", status.code)
    };
    let details = status.details.as_ref();
    let asked = details
        .map(|details| Duration::from_secs(details.retry_after_seconds.into()))
        .filter(|asked| !asked.is_zero());
    let budget = details
        .into_iter()
        .flat_map(|details| &details.causes)
        .find(|cause| cause.reason == "DisruptionBudget")
        .map(|cause| one_clause(&cause.message))
        .filter(|_| status.code == 429);
    match (status.code, budget) {
        (_, Some(budget)) => Failure::Budget(budget),
        // Older API servers name the budget in the message alone.
        (429, None) if told.contains("disruption budget") => Failure::Budget(told),
        (429, None) => Failure::Busy {
            said: numbered,
            after: Some(asked.unwrap_or(BUSY)),
        },
        (500 | 502 | 503 | 504, None) => Failure::Busy {
            said: numbered,
            after: asked,
        },
        (status, None) => Failure::Answer {
            status,
            said: if told.is_empty() { numbered } else { told },
        },
    }
}

fn on_the_way(error: &kube::Error) -> Failure {
    if let Some(error) = find::<rustls::Error>(error) {
        return untrusted(error);
    }
    if let Some(error) = find::<AuthError>(error) {
        return Failure::Credentials(credentials(error));
    }
    let connecting = find::<legacy::Error>(error).is_some_and(legacy::Error::is_connect);
    let Some(error) = chain(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last()
    else {
        return if connecting {
            Failure::Unreachable("no connection".to_owned())
        } else {
            Failure::Cut
        };
    };
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Failure::Cut,
        io::ErrorKind::TimedOut if connecting => Failure::NoConnection,
        io::ErrorKind::TimedOut => Failure::Silent,
        // Of all that a connection needs only the resolver has errors without a number of the system's.
        _ if connecting && error.raw_os_error().is_none() => Failure::UnknownName,
        _ if connecting => Failure::Unreachable(system_words(error)),
        _ => Failure::Broken(system_words(error)),
    }
}

fn untrusted(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Failure::UnknownIssuer
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Failure::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Failure::OtherName
            }
            _ => Failure::BadCertificate,
        },
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate,
        ) => Failure::ClientCertificate,
        rustls::Error::InvalidMessage(_) => Failure::NotTls,
        _ => Failure::OtherTls,
    }
}

pub(super) fn credentials(error: &AuthError) -> &'static str {
    match error {
        AuthError::AuthExecStart(_) | AuthError::MissingCommand => {
            "its exec plugin cannot be started"
        }
        AuthError::ExecPluginFailed
        | AuthError::AuthExecRun { .. }
        | AuthError::AuthExecParse(_)
        | AuthError::AuthExecSerialize(_)
        | AuthError::AuthExec(_) => "its exec plugin failed",
        AuthError::ReadTokenFile(..) => "its token file cannot be read",
        _ => "its token is not one",
    }
}

/// The nearest error of a type, at any depth.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and what is below it, also what an `io::Error` wraps and leaves out of its sources.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => (**error).source(),
        }
    })
}

/// The first line that says something, without its full stop.
fn one_clause(text: &str) -> String {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let clause = line.strip_suffix('.').unwrap_or(line);
    clause.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "Reason").with_code(code).boxed())
    }

    fn io(kind: io::ErrorKind) -> kube::Error {
        kube::Error::Service(Box::new(io::Error::from(kind)))
    }

    fn tls(error: rustls::Error) -> kube::Error {
        kube::Error::Service(Box::new(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    fn json(text: &str) -> kube::Error {
        kube::Error::SerdeError(serde_json::from_str::<u8>(text).unwrap_err())
    }

    #[test]
    fn failures_are_told_in_one_clause() {
        use CertificateError as Bad;
        let invalid = |why| tls(rustls::Error::InvalidCertificate(why));
        let cases = [
            (
                status(403, "nodes is forbidden: User \"x\" cannot list"),
                "nodes is forbidden: User \"x\" cannot list",
                false,
            ),
            (status(503, ""), "HTTP 503", true),
            (
                status(502, "<html>\n<h1>Bad gateway</h1>"),
                "HTTP 502",
                true,
            ),
            (
                status(429, "Too many requests, please try again later."),
                "HTTP 429: Too many requests, please try again later",
                true,
            ),
            (
                invalid(Bad::UnknownIssuer),
                "the server's certificate is not signed by the CA in this kubeconfig",
                false,
            ),
            (
                invalid(Bad::Expired),
                "the server's certificate has expired, or is not valid yet by this machine's clock",
                false,
            ),
            (
                invalid(Bad::NotValidForName),
                "the server's certificate is not for the address in this kubeconfig",
                false,
            ),
            (
                tls(rustls::Error::AlertReceived(
                    AlertDescription::BadCertificate,
                )),
                "the server does not accept the client certificate of this kubeconfig",
                false,
            ),
            (
                io(io::ErrorKind::ConnectionReset),
                "the connection was cut",
                true,
            ),
            (
                io(io::ErrorKind::ConnectionRefused),
                "connection refused",
                true,
            ),
            (json(""), "the connection was cut", true),
            (json("x"), "what answers there is not an API server", false),
        ];
        for (error, clause, passes) in cases {
            let failure = Failure::from(&error);
            assert_eq!(
                (failure.to_string().as_str(), failure.passes()),
                (clause, passes)
            );
        }
    }

    #[test]
    fn a_budget_is_told_from_a_busy_server() {
        let of = |message| Failure::from(&status(429, message));
        assert!(matches!(
            of("Cannot evict pod as it would violate the pod's disruption budget."),
            Failure::Budget(_)
        ));
        assert!(matches!(of("Too many requests"), Failure::Busy { .. }));
    }

    #[test]
    fn a_refusal_is_found_below_what_was_being_done() {
        let forbidden = Failure::from(&status(403, "no"));
        let error = Error::during("listing the Nodes", forbidden);
        assert!(is_forbidden(&Error::during("looking", error)));
        let gone = Error::during("reading", Failure::from(&status(404, "no")));
        assert!(!is_forbidden(&gone));
    }
}
