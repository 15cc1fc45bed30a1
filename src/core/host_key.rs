//! A guest's host key. Its private half is a secret until the guest has it, and is never printed.

use std::fmt;

/// ed25519, in OpenSSH's two text forms.
#[derive(Clone)]
pub struct HostKey {
    pub public: String,
    /// `None` in the blanked seed, and wherever the key must not be shown.
    pub private: Option<String>,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_private_half_is_never_printed() {
        let key = HostKey {
            public: "ssh-ed25519 AAAA".into(),
            private: Some("secret".into()),
        };
        let printed = format!("{key:?}");
        assert!(printed.contains("AAAA") && !printed.contains("secret"));
    }
}
