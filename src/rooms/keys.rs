//! ed25519 keys in OpenSSH's text forms. The only user of `ssh-key`.

use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

use crate::core::error::{Context, Error, Result};
use crate::core::plan::HostKey;

/// A new key pair from the system's random source.
pub fn generate(comment: &str) -> Result<HostKey> {
    let mut key =
        PrivateKey::random(&mut OsRng, Algorithm::Ed25519).doing("generating an ed25519 key")?;
    key.set_comment(comment);
    let private = key
        .to_openssh(LineEnding::LF)
        .doing("encoding an ed25519 key")?
        .to_string();
    let public = key
        .public_key()
        .to_openssh()
        .doing("encoding an ed25519 key")?;
    Ok(HostKey {
        public,
        private: Some(private),
    })
}

/// The public half of a private key in OpenSSH's form, which must be usable without a passphrase.
pub fn public_of(private: &str) -> Result<String> {
    let key = PrivateKey::from_openssh(private).map_err(|error| {
        Error::new("this is not a private key in OpenSSH's form").because(error)
    })?;
    if key.is_encrypted() {
        return Err(Error::new(
            "the key is encrypted with a passphrase, which nobody could type while nodegraft works",
        ));
    }
    key.public_key().to_openssh().doing("encoding a public key")
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
    let key = PublicKey::from_bytes(bytes).map_err(|error| {
        Error::new("the server shows a host key of an unknown kind").because(error)
    })?;
    key.to_openssh().doing("encoding a public key")
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
