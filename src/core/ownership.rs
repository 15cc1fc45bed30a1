//! Whose a thing is: the one place that answers for domains, volumes, Nodes, tokens and bindings. A name proves nothing:
//! two hosts, two users and two specs may all say `worker-1`. What is ours is known by its instance, one life of one node:
//! the domain's UUID, the guest's machine-id, the mark on the domain, the annotations of its Node and token. Pure; the rooms
//! only report what they see. `mark.rs` is how a domain says it.

use std::collections::BTreeSet;
use std::fmt;

use crate::core::digest::hex;
use crate::core::error::Result;
use crate::core::mark::{Claimed, Mark};
use crate::core::random;

/// What the name of a seed volume ends in.
pub const SEED_SUFFIX: &str = ".seed.img";

/// Of which cluster, which node and which life of it a thing is. Equal owners are one life. Nobody else looks at a cluster or
/// an instance: they ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    cluster: String,
    pub node: String,
    /// 32 hex digits: the machine-id. Random for a VM of ours; a machine that was there before has its own.
    instance: String,
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
            instance: hex(&bytes),
        })
    }

    /// As a mark or annotations say, or of a machine that has an id of its own.
    pub fn of(
        cluster: impl Into<String>,
        node: impl Into<String>,
        instance: impl Into<String>,
    ) -> Self {
        Self {
            cluster: cluster.into(),
            node: node.into(),
            instance: instance.into(),
        }
    }

    /// Of a domain that this run defined, whether or not it was seen since.
    pub fn of_domain(cluster: &str, node: &str, uuid: &str) -> Self {
        Self::of(cluster, node, uuid.replace('-', ""))
    }

    /// Cluster, node and instance, for who writes them down.
    pub fn parts(&self) -> [&str; 3] {
        [&self.cluster, &self.node, &self.instance]
    }

    pub fn machine_id(&self) -> &str {
        &self.instance
    }

    /// Whether it is of this cluster.
    pub fn is_of(&self, cluster: &str) -> bool {
        self.cluster == cluster
    }

    /// Whether it is this node of this cluster, in whatever life.
    pub fn is_node(&self, cluster: &str, node: &str) -> bool {
        self.is_of(cluster) && self.node == node
    }

    /// Whether a Node is this one's: its kubelet runs on the machine with that machine-id. Its name and its annotations
    /// prove nothing.
    pub fn is_machine(&self, machine_id: &str) -> bool {
        !machine_id.is_empty() && self.instance == machine_id
    }

    /// Whether the other is another machine under the same name.
    pub fn is_rival_of(&self, other: &Self) -> bool {
        self.node == other.node && self.instance != other.instance
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

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.node, self.cluster)
    }
}

/// What the names of our volumes begin with.
const VOLUME_PREFIX: &str = "nodegraft.";

/// What the names of a cluster's volumes begin with. It tells where to look, and proves nothing.
fn volume_prefix(cluster: &str) -> String {
    format!("{VOLUME_PREFIX}{cluster}.")
}

/// Whether a volume may be a template: none of ours is.
pub fn may_be_template(volume: &str) -> bool {
    !volume.starts_with(VOLUME_PREFIX)
}

/// Volumes with the cluster's prefix that no claim of the host lists: whose they are cannot be proven.
pub fn unclaimed<'a>(
    cluster: &str,
    present: impl Iterator<Item = Claimed>,
    claims: impl Iterator<Item = &'a Mark>,
) -> Vec<Claimed> {
    let prefix = volume_prefix(cluster);
    let listed: BTreeSet<&Claimed> = claims.flat_map(|mark| &mark.volumes).collect();
    present
        .filter(|volume| volume.name.starts_with(&prefix) && !listed.contains(volume))
        .collect()
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

/// Whose a domain is, for people.
pub fn whose(owner: Option<&Owner>) -> String {
    owner.map_or_else(
        || "not ours".to_owned(),
        |owner| format!("of the cluster {}", owner.cluster),
    )
}

/// Whose a role binding is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound<'a> {
    /// Made by us for this cluster.
    Ours,
    /// It does not bear our label.
    Unlabelled,
    /// Made by us for another cluster.
    Other(&'a str),
    /// Made by us, and it does not say for which cluster.
    Unnamed,
}

/// Whether a role binding was made for a cluster: our label says by whom, its annotation for which.
pub fn bound<'a>(cluster: &str, labelled: bool, says: Option<&'a str>) -> Bound<'a> {
    match says {
        _ if !labelled => Bound::Unlabelled,
        Some(of) if of == cluster => Bound::Ours,
        Some(of) => Bound::Other(of),
        None => Bound::Unnamed,
    }
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

    #[test]
    fn a_domain_or_a_token_is_of_its_cluster_and_of_its_node_there() {
        let owner = Owner::of("lab", "n1", "abc");
        assert!(owner.is_of("lab") && owner.is_node("lab", "n1"));
        for (cluster, node) in [("other", "n1"), ("lab", "n2")] {
            assert!(!owner.is_node(cluster, node));
        }
        assert!(!owner.is_of("other"));
        assert_eq!(whose(Some(&owner)), "of the cluster lab");
        assert_eq!(whose(None), "not ours");
    }

    #[test]
    fn a_node_is_its_machines_and_no_names() {
        let owner = Owner::of("lab", "n1", "abc");
        assert!(owner.is_machine("abc") && !owner.is_machine("def"));
        let unknown = Owner::of("lab", "n1", "");
        assert!(!unknown.is_machine(""), "none of two is not the same");
        assert!(owner.is_rival_of(&Owner::of("lab", "n1", "def")));
        assert!(!owner.is_rival_of(&owner));
        assert!(!owner.is_rival_of(&Owner::of("lab", "n2", "def")));
    }

    #[test]
    fn the_owner_of_a_domain_is_told_by_its_uuid() {
        let owner = Owner::new("lab", "n1").unwrap();
        assert_eq!(Owner::of_domain("lab", "n1", &owner.uuid()), owner);
    }

    #[test]
    fn a_volume_is_whose_claim_lists_it() {
        let volume = |name: &str| Claimed {
            pool: "p".into(),
            name: name.into(),
        };
        let mine = volume("nodegraft.lab.n1.qcow2");
        let mark = Mark::new(Owner::of("lab", "n1", "abc"), "", vec![mine.clone()]);
        let left = volume("nodegraft.lab.n2.qcow2");
        let present = [
            mine,
            left.clone(),
            volume("nodegraft.other.n1.qcow2"),
            volume("debian.qcow2"),
        ];
        assert_eq!(
            unclaimed("lab", present.into_iter(), [&mark].into_iter()),
            std::slice::from_ref(&left)
        );
        assert!(may_be_template("debian.qcow2") && !may_be_template(&left.name));
    }

    #[test]
    fn a_binding_is_ours_by_its_label_and_of_the_cluster_that_it_names() {
        assert_eq!(bound("lab", true, Some("lab")), Bound::Ours);
        assert_eq!(bound("lab", true, Some("other")), Bound::Other("other"));
        assert_eq!(bound("lab", true, None), Bound::Unnamed);
        assert_eq!(bound("lab", false, Some("lab")), Bound::Unlabelled);
    }
}
