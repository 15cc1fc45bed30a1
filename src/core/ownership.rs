//! Whose a thing is. A name proves nothing: two hosts, two users and two specs may all say `worker-1`. What is ours is
//! known by its instance, one life of one node: the domain's UUID, the guest's machine-id, the mark on the domain, the
//! annotations of its Node and token. Pure; the rooms only report what they see. `mark.rs` is how a domain says it.

use serde::Serialize;

use crate::core::error::Result;
use crate::core::mark::Mark;
use crate::core::random;

/// What the name of a seed volume ends in.
pub const SEED_SUFFIX: &str = ".seed.img";

/// Of which cluster, which node and which life of it a thing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    pub cluster: String,
    pub node: String,
    /// 32 hex digits: the machine-id. Random for a VM of ours; a machine that was there before has its own.
    pub instance: String,
}

impl Owner {
    /// A new life of a node.
    pub fn new(cluster: &str, node: &str) -> Result<Self> {
        let mut bytes = [0_u8; 16];
        random::fill(&mut bytes)?;
        // As a random UUID (RFC 9562, version 4), which is what a domain and a machine-id may both be.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            instance: crate::core::plan::hex(&bytes),
        })
    }

    /// The domain's UUID.
    pub fn uuid(&self) -> String {
        uuid_of(&self.instance)
    }

    /// The name of its disk. No two lives share one, so what an earlier one left is in nobody's way.
    pub fn disk(&self) -> String {
        format!("{}.qcow2", self.stem())
    }

    /// The name of its seed volume.
    pub fn seed(&self) -> String {
        format!("{}{SEED_SUFFIX}", self.stem())
    }

    fn stem(&self) -> String {
        let short: String = self.instance.chars().take(8).collect();
        format!("{}{}.{short}", volume_prefix(&self.cluster), self.node)
    }
}

/// What the names of a cluster's volumes begin with. It tells where to look, and proves nothing.
pub fn volume_prefix(cluster: &str) -> String {
    format!("nodegraft.{cluster}.")
}

/// An instance as libvirt writes UUIDs.
fn uuid_of(instance: &str) -> String {
    let part = |from: usize, to: usize| instance.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// The owner of a domain, if its mark proves one: a mark that was copied to another domain, as clones copy it, is of no
/// worth there, since the UUID is the instance.
pub fn owner<'a>(mark: Option<&'a Mark>, uuid: &str) -> Option<&'a Owner> {
    mark.map(|mark| &mark.owner)
        .filter(|owner| owner.uuid() == uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_has_an_instance_that_is_uuid_and_machine_id_and_names_its_volumes() {
        let (one, other) = (
            Owner::new("lab", "n1").unwrap(),
            Owner::new("lab", "n1").unwrap(),
        );
        assert_ne!(one.instance, other.instance);
        assert_eq!(one.instance.len(), 32);
        assert_eq!(one.uuid().replace('-', ""), one.instance);
        assert_eq!(
            one.uuid().split('-').map(str::len).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert_eq!(
            one.disk(),
            format!("nodegraft.lab.n1.{}.qcow2", &one.instance[..8])
        );
        assert_ne!(one.seed(), other.seed());
    }

    #[test]
    fn a_mark_that_was_copied_proves_nothing() {
        let mark = Mark::new(Owner::new("lab", "n1").unwrap(), "10.0.0.2/24", Vec::new());
        assert_eq!(owner(Some(&mark), &mark.owner.uuid()), Some(&mark.owner));
        assert_eq!(
            owner(Some(&mark), &Owner::new("lab", "n1").unwrap().uuid()),
            None
        );
        assert_eq!(owner(None, &mark.owner.uuid()), None);
    }
}
