//! ed25519 keys in OpenSSH's text forms. The only user of `ssh-key`.

use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

use crate::core::error::{Cause, Kind};
use crate::core::host_key::HostKey;

/// Why a key cannot be had, or used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("it is not a private key in OpenSSH's form")]
    NotPrivate,
    #[error("it is encrypted with a passphrase, which nobody could type while nodegraft works")]
    Encrypted,
    #[error("the server shows a host key of an unknown kind")]
    UnknownKind,
    #[error("no ed25519 key could be generated")]
    NotGenerated,
    #[error("the key cannot be written in OpenSSH's form")]
    NotWritten,
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::NotPrivate | Self::Encrypted => Kind::Refused,
            Self::UnknownKind | Self::NotGenerated => Kind::Unfit,
            Self::NotWritten => Kind::Bug,
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::NotPrivate => Some(
                "is it the private half, without .pub? ssh-keygen -p -f KEY rewrites an older form"
                    .to_owned(),
            ),
            Self::Encrypted => Some("ssh-keygen -p -f KEY takes the passphrase away".to_owned()),
            Self::UnknownKind | Self::NotGenerated | Self::NotWritten => None,
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// A new key pair from the system's random source.
pub fn generate(comment: &str) -> Result<HostKey> {
    let mut key =
        PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(|_| Failure::NotGenerated)?;
    key.set_comment(comment);
    let private = key
        .to_openssh(LineEnding::LF)
        .map_err(|_| Failure::NotWritten)?
        .to_string();
    let public = written(key.public_key())?;
    Ok(HostKey {
        public,
        private: Some(private),
    })
}

/// The public half of a private key in OpenSSH's form, which must be usable without a passphrase.
pub fn public_of(private: &str) -> Result<String> {
    let key = PrivateKey::from_openssh(private).map_err(|_| Failure::NotPrivate)?;
    if key.is_encrypted() {
        return Err(Failure::Encrypted);
    }
    written(key.public_key())
}

/// `SHA256:...`, as ssh and ssh-keygen print it.
pub fn fingerprint(public: &str) -> String {
    PublicKey::from_openssh(public).map_or_else(
        |_| "unknown".to_owned(),
        |key| key.fingerprint(ssh_key::HashAlg::Sha256).to_string(),
    )
}

/// The line of a public key from its wire form, as a server shows it.
pub fn from_wire(bytes: &[u8]) -> Result<String> {
    let key = PublicKey::from_bytes(bytes).map_err(|_| Failure::UnknownKind)?;
    written(&key)
}

fn written(key: &PublicKey) -> Result<String> {
    key.to_openssh().map_err(|_| Failure::NotWritten)
}

/// Whether two public keys are the same, whatever their comments.
pub fn same(one: &str, other: &str) -> bool {
    let parts = |line: &str| {
        line.split_whitespace()
            .take(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    parts(one) == parts(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_whole() {
        let key = generate("test").unwrap();
        assert!(same(
            &public_of(key.private.as_deref().unwrap()).unwrap(),
            &key.public
        ));
        assert!(fingerprint(&key.public).starts_with("SHA256:"));
        assert!(!same(&key.public, &generate("test").unwrap().public));
    }
}
