//! SHA-256, and how digests are written.

use sha2::{Digest, Sha256};

pub fn sha256(content: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(content).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        assert!(hex(&sha256("abc")).starts_with("ba7816bf8f01cfea"));
    }
}
