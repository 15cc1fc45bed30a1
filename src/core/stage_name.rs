//! What a display has a row for, by name: each stage of the list, and each thing that a removal takes away.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Serialized as it is spelled here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageName {
    // The list, in its order.
    Preflight,
    Access,
    Claim,
    Volume,
    Inject,
    Seed,
    Boot,
    Login,
    Steps,
    Join,
    Ready,
    // A removal; a volume goes under the name under which it came.
    Drain,
    Node,
    Token,
    Kubelet,
    Power,
    Domain,
    Binding,
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::StageName;

    #[test]
    fn a_name_is_written_as_it_is_serialized_and_takes_a_width() {
        for name in [StageName::Preflight, StageName::Join, StageName::Kubelet] {
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<StageName>(&json).unwrap(), name);
        }
        assert_eq!(format!("{:<9}|", StageName::Join), "Join     |");
    }
}
