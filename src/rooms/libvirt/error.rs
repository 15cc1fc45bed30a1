//! What goes wrong at libvirt, by its error numbers. Its messages are kept: they are the host's answer, and name what a
//! person finds there with virsh.

use virt::error::{Error as VirtError, ErrorDomain, ErrorNumber};

use crate::core::error::{Cause, Kind};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Forbidden(String),
    /// It does not go together with what is there, or under way.
    #[error("{0}")]
    Conflict(String),
    /// This libvirt, or its driver, cannot do that.
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer from libvirt at {uri} within {seconds} s")]
    Silent { uri: String, seconds: u64 },
    #[error("the connection to libvirt at {uri} was lost, and does not come back: {why}")]
    Lost { uri: String, why: String },
    /// What it describes is not as libvirt describes such a thing.
    #[error("libvirt described {0}")]
    Strange(String),
    #[error("a name holds a NUL character")]
    Nul,
    #[error("the thread of the call panicked")]
    Panicked,
    #[error("{0}")]
    Other(String),
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::Panicked => Kind::Bug,
            _ => Kind::Unfit,
        }
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Forbidden(_) => {
                "do you have permission? join the group libvirt there, and log in again"
            }
            Self::Silent { .. } => "is libvirtd there well? run the same command again",
            Self::Lost { .. } => "is libvirtd running there? run the same command again",
            Self::Unsupported(_) => {
                "see what this host can do: virsh capabilities; virsh domcapabilities"
            }
            _ => return None,
        };
        Some(help.to_owned())
    }
}

impl From<VirtError> for Failure {
    fn from(error: VirtError) -> Self {
        let said = error.message().trim().to_owned();
        if error.code().is(ErrorNumber::InvalidArg) && error.domain().is(ErrorDomain::None) {
            return Self::Nul;
        }
        // A number that this version of the crate does not know has no more to say than its text.
        match error.code().unwrap_or(ErrorNumber::InternalError) {
            ErrorNumber::NoDomain
            | ErrorNumber::NoNetwork
            | ErrorNumber::NoStoragePool
            | ErrorNumber::NoStorageVolume => Self::Absent(said),
            ErrorNumber::DomExist | ErrorNumber::NetworkExist | ErrorNumber::StorageVolExist => {
                Self::Exists(said)
            }
            ErrorNumber::AccessDenied
            | ErrorNumber::AuthCancelled
            | ErrorNumber::AuthFailed
            | ErrorNumber::AuthUnavailable
            | ErrorNumber::OperationDenied => Self::Forbidden(said),
            ErrorNumber::BlockCopyActive
            | ErrorNumber::OperationInvalid
            | ErrorNumber::OperationTimeout
            | ErrorNumber::ResourceBusy => Self::Conflict(said),
            ErrorNumber::ArgumentUnsupported
            | ErrorNumber::ConfigUnsupported
            | ErrorNumber::NoSupport
            | ErrorNumber::OperationUnsupported => Self::Unsupported(said),
            ErrorNumber::GnutlsError
            | ErrorNumber::InvalidConn
            | ErrorNumber::Libssh
            | ErrorNumber::NoConnect
            | ErrorNumber::Rpc
            | ErrorNumber::Ssh
            | ErrorNumber::UnknownHost => Self::Unreachable(said),
            _ => Self::Other(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use virt::connect::Connect;

    use super::*;

    #[test]
    fn what_libvirt_refuses_is_known_by_its_number() {
        virt::error::clear_error_callback();
        let conn = Connect::open(Some("test:///default")).unwrap();
        let no_pool = conn.lookup_storage_pool_by_name("nope").map(drop);
        let domain = conn.lookup_domain_by_name("test").unwrap();
        let _ = domain.destroy();
        let off = domain.destroy();
        let nul = conn.lookup_domain_by_name("a\0b").map(drop);
        let found = [no_pool, off, nul].map(|failed| Failure::from(failed.unwrap_err()));
        assert!(matches!(found[0], Failure::Absent(_)), "{found:?}");
        assert!(matches!(found[1], Failure::Conflict(_)), "{found:?}");
        assert_eq!(found[2], Failure::Nul);
        for failure in found {
            let text = failure.to_string();
            assert!(
                !text.contains("code=") && !text.contains("domain="),
                "{text}"
            );
        }
    }
}
