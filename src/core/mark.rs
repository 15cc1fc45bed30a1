//! The mark: what a domain of ours says about itself in its metadata. One writer, one reader. No secret is in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use roxmltree::{Document, Node};

use crate::core::error::{Error, Result};
use crate::core::ownership::Owner;

/// Its XML namespace.
pub const NAMESPACE: &str = "urn:nodegraft:domain:1";
/// The prefix that libvirt writes for it.
pub const PREFIX: &str = "nodegraft";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub owner: Owner,
    /// With its prefix length.
    pub address: String,
    /// The public host key that the guest must show: `ssh-ed25519 AAAA...`. Empty until the seed is written.
    pub host_key: String,
    pub seed: SeedState,
    /// Every volume that goes with the domain. Listed before it is made.
    pub volumes: Vec<Claimed>,
    /// The settings that only a new VM can change, as they were.
    pub made_with: BTreeMap<String, String>,
    /// The process that works on a claim until its seed is written, as `process.rs` names it.
    pub by: Option<String>,
}

/// A volume that a claim lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimed {
    pub pool: String,
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedState {
    /// Not written as a whole yet: the VM never ran, and its disk may be half a copy.
    Unwritten,
    /// The seed volume still holds the private host key.
    Full,
    /// The guest is up; the key was blanked.
    Blank,
}

impl SeedState {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Unwritten, "unwritten"),
        (Self::Full, "full"),
        (Self::Blank, "blank"),
    ];

    fn word(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(state, _)| *state == self)
            .map_or("unwritten", |(_, word)| word)
    }
}

impl Mark {
    /// Of a claim: nothing is made yet.
    pub fn new(owner: Owner, address: &str, volumes: Vec<Claimed>) -> Self {
        Self {
            owner,
            address: address.to_owned(),
            host_key: String::new(),
            seed: SeedState::Unwritten,
            volumes,
            made_with: BTreeMap::new(),
            by: None,
        }
    }

    /// The volume of this name, with the pool that it is in, whatever the spec says by now.
    pub fn volume(&self, name: &str) -> Option<&Claimed> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The whole element, namespace included, for a domain's XML.
    pub fn element(&self) -> String {
        self.xml(PREFIX, &format!(" xmlns:{PREFIX}='{NAMESPACE}'"))
    }

    /// The element as virDomainSetMetadata takes it: libvirt adds the namespace.
    pub fn bare_element(&self) -> String {
        self.xml("", "")
    }

    fn xml(&self, prefix: &str, namespace: &str) -> String {
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}:")
        };
        let [cluster, node, instance] = self.owner.parts();
        let attributes = [
            ("cluster", cluster),
            ("node", node),
            ("instance", instance),
            ("address", &self.address),
            ("host_key", &self.host_key),
            ("seed", self.seed.word()),
        ];
        let mut xml = format!("<{prefix}node{namespace}");
        for (key, value) in attributes {
            let _ = write!(xml, " {key}='{}'", escape(value));
        }
        if let Some(by) = &self.by {
            let _ = write!(xml, " by='{}'", escape(by));
        }
        xml.push('>');
        for volume in &self.volumes {
            let _ = write!(
                xml,
                "<{prefix}volume pool='{}' name='{}'/>",
                escape(&volume.pool),
                escape(&volume.name)
            );
        }
        for (key, value) in &self.made_with {
            let _ = write!(
                xml,
                "<{prefix}setting key='{}' value='{}'/>",
                escape(key),
                escape(value)
            );
        }
        let _ = write!(xml, "</{prefix}node>");
        xml
    }

    /// Reads the element alone.
    pub fn parse(xml: &str) -> Result<Self> {
        let document = Document::parse(xml).map_err(|_| Error::unfit("the mark is not XML"))?;
        Self::read(document.root_element())
    }

    /// Reads it where it stands in a domain's XML; `None` if the domain has none that can be read.
    pub fn find(domain: &Document<'_>) -> Option<Self> {
        let element = domain
            .descendants()
            .find(|element| element.has_tag_name((NAMESPACE, "node")))?;
        Self::read(element).ok()
    }

    fn read(element: Node<'_, '_>) -> Result<Self> {
        let text = |element: Node<'_, '_>, key: &str| {
            element
                .attribute(key)
                .map(str::to_owned)
                .ok_or_else(|| Error::unfit(format!("the mark has no {key}")))
        };
        let children = |tag: &'static str| {
            element
                .children()
                .filter(move |child| child.is_element() && child.tag_name().name() == tag)
        };
        let seed = text(element, "seed")?;
        let owner = Owner::of(
            text(element, "cluster")?,
            text(element, "node")?,
            text(element, "instance")?,
        );
        let volumes = children("volume").map(|volume| {
            Ok(Claimed {
                pool: text(volume, "pool")?,
                name: text(volume, "name")?,
            })
        });
        let settings =
            children("setting").map(|setting| Ok((text(setting, "key")?, text(setting, "value")?)));
        Ok(Self {
            owner,
            address: text(element, "address")?,
            host_key: text(element, "host_key")?,
            seed: SeedState::ALL
                .iter()
                .find(|(_, word)| *word == seed)
                .map(|(state, _)| *state)
                .ok_or_else(|| Error::unfit(format!("the mark says `{seed}` of its seed")))?,
            volumes: volumes.collect::<Result<_>>()?,
            made_with: settings.collect::<Result<_>>()?,
            by: element.attribute("by").map(str::to_owned),
        })
    }
}

/// Text for an XML element or attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_is_read_back_as_it_was_written(
            words in proptest::collection::vec("[ -~é]{0,20}", 8),
            by in proptest::option::of("[ -~é]{0,20}"),
            seed in proptest::sample::select(SeedState::ALL.map(|(state, _)| state).to_vec()),
        ) {
            let word = |at: usize| words[at].clone();
            let mark = Mark {
                owner: Owner::of(word(0), word(1), word(2)),
                address: word(3),
                host_key: word(4),
                seed,
                volumes: vec![Claimed { pool: word(5), name: word(6) }, Claimed { pool: word(6), name: word(5) }],
                made_with: [("memory".to_owned(), word(7))].into(),
                by,
            };
            prop_assert_eq!(&Mark::parse(&mark.element()).unwrap(), &mark);
            prop_assert_eq!(&Mark::parse(&mark.bare_element()).unwrap(), &mark);
            let domain = format!("<domain><name>x</name><metadata>{}</metadata></domain>", mark.element());
            prop_assert_eq!(Mark::find(&Document::parse(&domain).unwrap()), Some(mark));
        }
    }

    #[test]
    fn half_a_mark_is_none() {
        assert!(Mark::parse("<node cluster='c'/>").is_err());
        let other =
            "<domain><metadata><x:node xmlns:x='urn:other' cluster='c'/></metadata></domain>";
        assert_eq!(Mark::find(&Document::parse(other).unwrap()), None);
    }
}
