//! Domains, and our mark in their metadata. What is changed is addressed by UUID: a name may be somebody else's by then.

use std::collections::BTreeSet;

use roxmltree::Document;
use virt::connect::Connect;
use virt::domain::{Domain as VirtDomain, DomainState};
use virt::error::{Error as VirtError, ErrorNumber};
use virt::sys;

use super::{Failure, Host, absent_as_none};
use crate::core::error::{Context, Result};
use crate::core::mark::{self, Claimed, Mark};
use crate::core::ownership::{self, Owner};

/// A domain as libvirt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub uuid: String,
    pub running: bool,
    pub paused: bool,
    /// Absent on domains that nodegraft did not make. Whether it proves anything, [`Domain::owner`] says.
    pub mark: Option<Mark>,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Paths of its disks, each the file that is written to now.
    pub disks: Vec<String>,
    /// Paths of the files below these, as far as libvirt tells.
    pub backing: Vec<String>,
    /// Disks, and what is below them, that its XML names by pool and volume instead of by path.
    pub volumes: Vec<Claimed>,
}

impl Domain {
    /// Whose it is, if it is one of ours.
    pub fn owner(&self) -> Option<&Owner> {
        ownership::owner(self.mark.as_ref(), &self.uuid)
    }

    /// Whether it is the claim on a node.
    pub fn is_claim(&self, cluster: &str, node: &str) -> bool {
        self.owner()
            .is_some_and(|owner| owner.is_node(cluster, node))
    }

    /// The mark of a domain of ours.
    pub fn proven_mark(&self) -> Option<&Mark> {
        self.mark.as_ref().filter(|_| self.owner().is_some())
    }
}

impl Host {
    /// Every domain of the host, ours or not: two lists and a description each.
    pub async fn domains(&self) -> Result<Vec<Domain>> {
        let described = self
            .call("listing the domains", |conn| {
                let paused = paused(conn)?;
                let mut described = Vec::new();
                for domain in conn.list_all_domains(0)? {
                    // One may go while we look.
                    if let Some(xml) = absent_as_none(domain.xml_desc(0), ErrorNumber::NoDomain)? {
                        let name = domain.name()?;
                        described.push((paused.contains(&name), xml));
                    }
                }
                Ok(described)
            })
            .await?;
        described
            .iter()
            .map(|(paused, xml)| parse(xml, *paused))
            .collect::<Result<_, _>>()
            .doing("listing the domains")
    }

    /// The domain with this UUID, or `None`.
    pub async fn domain(&self, uuid: &str) -> Result<Option<Domain>> {
        let wanted = uuid.to_owned();
        let found = self
            .call(format!("looking for the domain {uuid}"), move |conn| {
                let Some(domain) = by_uuid(conn, &wanted)? else {
                    return Ok(None);
                };
                let Some(xml) = absent_as_none(domain.xml_desc(0), ErrorNumber::NoDomain)? else {
                    return Ok(None);
                };
                // `state()` of this crate says Ok on failure.
                let paused = domain.is_active()? && domain.info()?.state.is(DomainState::Paused);
                Ok(Some((paused, xml)))
            })
            .await?;
        found
            .map(|(paused, xml)| parse(&xml, paused))
            .transpose()
            .doing(format!("looking for the domain {uuid}"))
    }

    /// The UUID of whatever domain bears a name.
    pub async fn uuid_of(&self, name: &str) -> Result<Option<String>> {
        let wanted = name.to_owned();
        self.call(format!("looking for the domain {name}"), move |conn| {
            absent_as_none(conn.lookup_domain_by_name(&wanted), ErrorNumber::NoDomain)?
                .map(|domain| domain.uuid_string())
                .transpose()
        })
        .await
    }

    /// libvirt refuses a second domain of the same name, whoever asks: of several who define it one wins.
    pub async fn define_domain(&self, name: &str, xml: String) -> Result<()> {
        self.call(format!("defining the domain {name}"), move |conn| {
            conn.define_domain_xml_flags(&xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)
                .map(drop)
        })
        .await
    }

    /// Replaces our mark, in the stored configuration and in the running domain.
    pub async fn set_mark(&self, uuid: &str, mark: &Mark) -> Result<()> {
        let element = mark.bare_element();
        let wanted = uuid.to_owned();
        self.call(
            format!("marking the domain of {}", mark.owner.node),
            move |conn| {
                let domain = conn.lookup_domain_by_uuid_string(&wanted)?;
                let mut flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
                if domain.is_active()? {
                    flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
                }
                domain.set_metadata(
                    sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
                    Some(&element),
                    Some(mark::PREFIX),
                    Some(mark::NAMESPACE),
                    flags,
                )
            },
        )
        .await
    }

    /// Starts it paused, so that the console can be opened before the first line.
    pub async fn start_paused(&self, uuid: &str) -> Result<()> {
        let wanted = uuid.to_owned();
        self.call("starting the domain", move |conn| {
            let domain = conn.lookup_domain_by_uuid_string(&wanted)?;
            if domain.is_active()? {
                return Ok(());
            }
            // It may have been started since: by an earlier try whose answer was lost, or by somebody else.
            domain
                .create_with_flags(sys::VIR_DOMAIN_START_PAUSED)
                .or_else(|error| match domain.is_active() {
                    Ok(true) => Ok(()),
                    _ => Err(error),
                })
        })
        .await
    }

    /// One that runs already is well: an earlier try may have done it whose answer was lost.
    pub async fn resume(&self, uuid: &str) -> Result<()> {
        let wanted = uuid.to_owned();
        self.call("resuming the domain", move |conn| {
            let domain = conn.lookup_domain_by_uuid_string(&wanted)?;
            domain.resume().or_else(|error| match domain.info() {
                Ok(info) if info.state.is(DomainState::Running) => Ok(()),
                _ => Err(error),
            })
        })
        .await
    }

    /// Freezes a running domain. False if there is none, or it does not run.
    pub async fn suspend(&self, uuid: &str) -> Result<bool> {
        let wanted = uuid.to_owned();
        self.call("suspending the domain", move |conn| {
            let Some(domain) = by_uuid(conn, &wanted)? else {
                return Ok(false);
            };
            // One that somebody paused is not ours to let run again.
            if !domain.is_active()? || domain.info()?.state.is(DomainState::Paused) {
                return Ok(false);
            }
            domain.suspend().map(|()| true)
        })
        .await
    }

    /// Powers it off, as pulling the plug does. False if it was off or absent.
    pub async fn power_off(&self, uuid: &str) -> Result<bool> {
        let wanted = uuid.to_owned();
        self.call("powering off the domain", move |conn| {
            let Some(domain) = by_uuid(conn, &wanted)? else {
                return Ok(false);
            };
            match domain.destroy() {
                Ok(()) => Ok(true),
                Err(error) if error.code().is(ErrorNumber::OperationInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Removes its definition with all that libvirt would refuse to leave: NVRAM, snapshots, managed save. False if it was
    /// gone.
    pub async fn undefine(&self, uuid: &str) -> Result<bool> {
        let wanted = uuid.to_owned();
        self.call("undefining the domain", move |conn| {
            let Some(domain) = by_uuid(conn, &wanted)? else {
                return Ok(false);
            };
            let usual =
                sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
            match domain.undefine_flags(usual) {
                Ok(()) => Ok(true),
                // It has NVRAM or checkpoints besides; a driver without these refuses their flags.
                Err(error) if error.code().is(ErrorNumber::OperationInvalid) => domain
                    .undefine_flags(
                        usual
                            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                            | sys::VIR_DOMAIN_UNDEFINE_NVRAM,
                    )
                    .map(|()| true),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

fn by_uuid(conn: &Connect, uuid: &str) -> Result<Option<VirtDomain>, VirtError> {
    absent_as_none(
        conn.lookup_domain_by_uuid_string(uuid),
        ErrorNumber::NoDomain,
    )
}

/// Names of the domains that are paused.
fn paused(conn: &Connect) -> Result<BTreeSet<String>, VirtError> {
    conn.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_PAUSED)?
        .iter()
        .map(VirtDomain::name)
        .collect()
}

fn parse(xml: &str, paused: bool) -> Result<Domain, Failure> {
    let document =
        Document::parse(xml).map_err(|_| Failure::Strange("a domain in what is not XML".into()))?;
    let root = document.root_element();
    let text = |tag: &str| {
        root.children()
            .find(|child| child.has_tag_name(tag))
            .and_then(|child| child.text())
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    let disks = root
        .descendants()
        .filter(|element| element.has_tag_name("disk"));
    let source = |element: roxmltree::Node<'_, '_>| {
        let source = element
            .children()
            .find(|child| child.has_tag_name("source"))?;
        ["file", "dev"]
            .iter()
            .find_map(|key| source.attribute(*key))
            .map(str::to_owned)
    };
    let named = |element: roxmltree::Node<'_, '_>| {
        let by = |key: &str| element.attribute(key).map(str::to_owned);
        Some(Claimed {
            pool: by("pool")?,
            name: by("volume")?,
        })
    };
    Ok(Domain {
        name: text("name"),
        uuid: text("uuid"),
        running: root.has_attribute("id"),
        paused,
        mark: Mark::find(&document),
        cpus: text("vcpu").parse().unwrap_or(0),
        memory: memory(root),
        backing: disks
            .clone()
            .flat_map(|disk| {
                disk.descendants()
                    .filter(|e| e.has_tag_name("backingStore"))
            })
            .filter_map(source)
            .collect(),
        volumes: disks
            .clone()
            .flat_map(|disk| disk.descendants().filter(|e| e.has_tag_name("source")))
            .filter_map(named)
            .collect(),
        disks: disks.filter_map(source).collect(),
    })
}

/// Bytes of `<memory unit='KiB'>`; libvirt writes KiB, whatever it was given.
fn memory(root: roxmltree::Node<'_, '_>) -> u64 {
    let element = root.children().find(|child| child.has_tag_name("memory"));
    let number: u64 = element
        .and_then(|e| e.text())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    match element.and_then(|e| e.attribute("unit")).unwrap_or("KiB") {
        "b" | "bytes" => number,
        "MiB" | "M" => number << 20,
        "GiB" | "G" => number << 30,
        _ => number << 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_read_with_all_files_it_uses() {
        let mark = Mark::new(Owner::new("lab", "n1").unwrap(), "10.0.0.2/24", Vec::new());
        let xml = format!(
            "<domain type='kvm' id='3'><name>renamed</name><uuid>{}</uuid><metadata>{}</metadata><memory unit='KiB'>2097152</memory><vcpu placement='static'>2</vcpu>\
             <devices><disk type='file'><source file='/pool/top.snap'/><backingStore type='file'><source file='/pool/disk'/><backingStore type='file'>\
             <source file='/pool/base'/></backingStore></backingStore></disk><disk type='block'><source dev='/dev/vg/lv'/></disk>\
             <disk type='volume'><source pool='images' volume='top.qcow2'/><backingStore type='volume'>\
             <source pool='images' volume='base.qcow2'/></backingStore></disk></devices></domain>",
            mark.owner.uuid(),
            mark.element()
        );
        let domain = parse(&xml, true).unwrap();
        assert_eq!(
            (
                domain.name.as_str(),
                domain.running,
                domain.paused,
                domain.cpus,
                domain.memory
            ),
            ("renamed", true, true, 2, 2 << 30)
        );
        assert_eq!(domain.owner(), Some(&mark.owner));
        assert_eq!(domain.disks, ["/pool/top.snap", "/dev/vg/lv"]);
        assert_eq!(domain.backing, ["/pool/disk", "/pool/base"]);
        let named = |name: &str| Claimed {
            pool: "images".into(),
            name: name.into(),
        };
        assert_eq!(domain.volumes, [named("top.qcow2"), named("base.qcow2")]);
    }
}
