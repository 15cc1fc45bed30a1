//! What goes wrong over SSH, in words. libssh2 tells by number what it met; its own texts name its internals.

use std::io;

use ssh2::ErrorCode;

use super::{Ended, name};
use crate::core::error::{Cause, Error, Kind, system_words};

/// What was met on the way to the other end, or there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("this machine does not know that name")]
    UnknownName,
    #[error("connection refused: nothing listens there")]
    Nobody,
    #[error("there is no route to it")]
    NoRoute,
    #[error("the other end did not answer in time")]
    Silent,
    #[error("the other end closed the connection before it said that it speaks SSH")]
    NoBanner,
    #[error("it answers, but not as an SSH server")]
    NotSsh,
    #[error("the connection broke while sending")]
    Sending,
    #[error("the connection broke while receiving")]
    Receiving,
    #[error("the other end closed the connection")]
    Closed,
    #[error("what arrived is not valid SSH: something on the way disturbs the connection")]
    Garbled,
    #[error("no keys could be agreed on: the other end closed, or both share no algorithm")]
    NoCommonKeys,
    #[error("the server showed no host key")]
    NoHostKey,
    #[error("it is encrypted with a passphrase, or of a form that is not understood")]
    KeyForm,
    #[error(
        "it does not sign: it is encrypted with a passphrase, of a form that is not understood, or not the half of its public key"
    )]
    KeyMismatch,
    #[error("both ends share no way to log in")]
    NoCommonLogin,
    #[error("the other end refused the login")]
    LoginRefused,
    #[error("the other end refused to start the command: it may allow no more sessions")]
    NoMoreSessions,
    #[error("the other end closed the command's channel")]
    ChannelClosed,
    #[error("the connection closed before the command's end was seen")]
    NoEnd,
    #[error("the session was busy with another command until the deadline")]
    Occupied,
    #[error("a text for the other end holds a NUL character")]
    Nul,
    #[error("the SSH agent does not answer as one")]
    Agent,
    #[error("the file of known hosts cannot be read")]
    KnownHosts,
    #[error("the thread of the session panicked")]
    Panicked,
    /// In the system's words.
    #[error("{0}")]
    System(String),
    #[error("the SSH library gave up, with its error {0}")]
    Other(i32),
}

impl Cause for Trouble {
    fn kind(&self) -> Kind {
        match self {
            Self::Nul | Self::Panicked => Kind::Bug,
            _ => Kind::Unfit,
        }
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::UnknownName => {
                "is that its name, and does this machine know it? an address does, too"
            }
            Self::Nobody => "does sshd run there, and on that port?",
            Self::NoRoute | Self::Silent => "is the machine up, and is that its address?",
            Self::NoBanner | Self::NotSsh => "is that the port of its sshd?",
            Self::NoCommonKeys => "does its sshd offer a host key and a cipher of this decade?",
            Self::KnownHosts => "is ~/.ssh/known_hosts there, and readable?",
            _ => return None,
        };
        Some(help.to_owned())
    }
}

impl From<&ssh2::Error> for Trouble {
    fn from(error: &ssh2::Error) -> Self {
        let (ErrorCode::Session(code) | ErrorCode::SFTP(code)) = error.code();
        match code {
            -9 | -30 | -37 => Self::Silent,
            -2 => Self::NoBanner,
            -3 | -7 => Self::Sending,
            -43 => Self::Receiving,
            -1 | -13 | -45 => Self::Closed,
            -4 | -12 | -14 | -41 | -44 => Self::Garbled,
            -5 | -8 | -10 | -11 | -51 => Self::NoCommonKeys,
            -16 | -48 => Self::KeyForm,
            -17 | -33 => Self::NoCommonLogin,
            -18 => Self::LoginRefused,
            -19 => Self::KeyMismatch,
            -21 | -22 | -32 => Self::NoMoreSessions,
            -26 | -27 => Self::ChannelClosed,
            -34 => Self::Nul,
            -42 => Self::Agent,
            -46 => Self::KnownHosts,
            code => Self::Other(code),
        }
    }
}

impl From<&io::Error> for Trouble {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Nobody,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::NoRoute,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::System(system_words(error)),
        }
    }
}

impl Trouble {
    /// A broken connection, as against a refusal.
    pub(super) fn is_network(&self) -> bool {
        matches!(
            self,
            Self::Sending | Self::Receiving | Self::Silent | Self::Closed
        )
    }

    /// The fault is the key's own, here.
    pub(super) fn is_key(&self) -> bool {
        matches!(self, Self::KeyForm | Self::KeyMismatch)
    }
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there yet, or it went away: worth another try.
    #[error(transparent)]
    Unreachable(Error),
    #[error("the guest at {host} shows the host key {shown}, not {expected}")]
    WrongHostKey {
        host: String,
        expected: String,
        shown: String,
    },
    #[error("{user}@{host} refused the key {key}")]
    Refused {
        user: String,
        host: String,
        key: String,
    },
    #[error("the private key of {public} cannot be used: {why}")]
    UnusableKey { public: String, why: Trouble },
}

impl OpenError {
    pub(super) fn during(what: impl Into<String>, trouble: impl Into<Trouble>) -> Self {
        Self::Unreachable(Error::during(what, trouble.into()))
    }
}

impl Cause for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unreachable(error) => error.kind(),
            Self::WrongHostKey { .. } | Self::Refused { .. } | Self::UnusableKey { .. } => {
                Kind::Unfit
            }
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Unreachable(error) => error.help().map(str::to_owned),
            _ => None,
        }
    }
}

impl Ended {
    pub fn describe(&self) -> String {
        match self {
            Self::Status(status) => format!("exit status {status}"),
            Self::Killed(signal) => format!("killed by {}", name(*signal)),
            Self::TimedOut => "killed at its deadline".into(),
            Self::Lost(trouble) => format!("connection lost: {trouble}"),
        }
    }

    /// The error of a command that was expected to succeed.
    pub(super) fn error(self, command: &str, seconds: u64) -> Error {
        match self {
            Self::Status(status) => Error::unfit(format!("`{command}` ended with status {status}")),
            Self::Killed(signal) => {
                Error::unfit(format!("`{command}` was killed by {}", name(signal)))
            }
            Self::TimedOut => Error::unfit(format!("`{command}` did not end within {seconds} s")),
            Self::Lost(trouble) => Error::during(
                format!("the SSH connection broke during `{command}`"),
                trouble,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_library_is_told_in_words() {
        for code in -60..0 {
            let raw = ssh2::Error::from_errno(ErrorCode::Session(code));
            let text = Trouble::from(&raw).to_string();
            assert!(
                !text.contains('[') && !text.contains("Session"),
                "{code}: {text}"
            );
            let own = raw.message();
            assert!(
                !text.to_lowercase().contains(&own.to_lowercase()) || own.is_empty(),
                "{code} surfaces as `{own}`"
            );
        }
        let encrypted = ssh2::Error::new(
            ErrorCode::Session(-16),
            "Unable to extract public key from private key",
        );
        assert!(Trouble::from(&encrypted).to_string().contains("passphrase"));
    }
}
