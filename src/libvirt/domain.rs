//! Domains, and our mark in their metadata. A domain without our mark is never changed.

use roxmltree::Document;
use virt::domain::{Domain as VirtDomain, DomainState};
use virt::error::ErrorNumber;
use virt::sys;

use super::{Host, absent_as_none, storage::escape};
use crate::error::{Error, Result};
use crate::plan::{MARK_NAMESPACE, Mark, SeedState};

/// A domain as libvirt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub running: bool,
    pub paused: bool,
    /// Absent on domains that are not ours.
    pub mark: Option<Mark>,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
}

impl Host {
    /// `None` if there is no domain of this name.
    pub async fn domain(&self, name: &str) -> Result<Option<Domain>> {
        let wanted = name.to_owned();
        self.call(format!("looking for the domain {name}"), move |conn| {
            absent_as_none(conn.lookup_domain_by_name(&wanted), ErrorNumber::NoDomain)?.map(|domain| describe(&domain)).transpose()
        })
        .await
    }

    /// All domains that bear our mark, whatever their cluster.
    pub async fn marked_domains(&self) -> Result<Vec<Domain>> {
        self.call("listing the domains", |conn| {
            let mut marked = Vec::new();
            for domain in conn.list_all_domains(0)? {
                // One may go while we look.
                if let Some(domain) = absent_as_none(describe(&domain), ErrorNumber::NoDomain)?
                    && domain.mark.is_some()
                {
                    marked.push(domain);
                }
            }
            Ok(marked)
        })
        .await
    }

    pub async fn define_domain(&self, name: &str, xml: String) -> Result<()> {
        self.call(format!("defining the domain {name}"), move |conn| {
            conn.define_domain_xml_flags(&xml, sys::VIR_DOMAIN_DEFINE_VALIDATE).map(drop)
        })
        .await
    }

    /// Replaces our mark, in the stored configuration and in the running domain.
    pub async fn set_mark(&self, name: &str, mark: &Mark) -> Result<()> {
        let element = format!(
            "<node cluster='{}' node='{}' address='{}' plan='{}' host_key='{}' seed='{}'/>",
            escape(&mark.cluster),
            escape(&mark.node),
            escape(&mark.address),
            escape(&mark.plan),
            escape(&mark.host_key),
            match mark.seed {
                SeedState::Full => "full",
                SeedState::Blank => "blank",
            }
        );
        let wanted = name.to_owned();
        self.call(format!("marking the domain {name}"), move |conn| {
            let domain = conn.lookup_domain_by_name(&wanted)?;
            let mut flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
            if domain.is_active()? {
                flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
            }
            domain.set_metadata(sys::VIR_DOMAIN_METADATA_ELEMENT as i32, Some(&element), Some("nodegraft"), Some(MARK_NAMESPACE), flags)
        })
        .await
    }

    /// Starts it paused, so that the console can be opened before the first line.
    pub async fn start_paused(&self, name: &str) -> Result<()> {
        let wanted = name.to_owned();
        self.call(format!("starting the domain {name}"), move |conn| {
            conn.lookup_domain_by_name(&wanted)?.create_with_flags(sys::VIR_DOMAIN_START_PAUSED)
        })
        .await
    }

    pub async fn resume(&self, name: &str) -> Result<()> {
        let wanted = name.to_owned();
        self.call(format!("resuming the domain {name}"), move |conn| conn.lookup_domain_by_name(&wanted)?.resume()).await
    }

    /// Freezes a running domain. False if there is none or it does not run.
    pub async fn suspend(&self, name: &str) -> Result<bool> {
        let wanted = name.to_owned();
        self.call(format!("suspending the domain {name}"), move |conn| {
            let Some(domain) = absent_as_none(conn.lookup_domain_by_name(&wanted), ErrorNumber::NoDomain)? else { return Ok(false) };
            if !domain.is_active()? {
                return Ok(false);
            }
            domain.suspend().map(|()| true)
        })
        .await
    }

    /// Powers it off, as pulling the plug does. False if it was off or absent.
    pub async fn power_off(&self, name: &str) -> Result<bool> {
        let wanted = name.to_owned();
        self.call(format!("powering off the domain {name}"), move |conn| {
            let Some(domain) = absent_as_none(conn.lookup_domain_by_name(&wanted), ErrorNumber::NoDomain)? else { return Ok(false) };
            match domain.destroy() {
                Ok(()) => Ok(true),
                Err(error) if error.code().is(ErrorNumber::OperationInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Removes its definition with all that libvirt would refuse to leave: NVRAM, snapshots, managed save.
    pub async fn undefine(&self, name: &str) -> Result<bool> {
        let wanted = name.to_owned();
        self.call(format!("undefining the domain {name}"), move |conn| {
            let Some(domain) = absent_as_none(conn.lookup_domain_by_name(&wanted), ErrorNumber::NoDomain)? else { return Ok(false) };
            let full = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
            match domain.undefine_flags(full) {
                Ok(()) => Ok(true),
                // Drivers without NVRAM refuse the whole set of flags.
                Err(error) if error.code().is_any(vec![ErrorNumber::InvalidArg, ErrorNumber::NoSupport]) => domain
                    .undefine_flags(sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
                    .map(|()| true),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

fn describe(domain: &VirtDomain) -> Result<Domain, virt::error::Error> {
    let info = domain.info()?;
    let metadata = domain.metadata(sys::VIR_DOMAIN_METADATA_ELEMENT as i32, Some(MARK_NAMESPACE), 0);
    let mark = absent_as_none(metadata, ErrorNumber::NoDomainMetadata)?.and_then(|xml| parse_mark(&xml).ok());
    Ok(Domain {
        name: domain.name()?,
        running: domain.is_active()?,
        paused: info.state.is(DomainState::Paused),
        mark,
        cpus: info.nr_virt_cpu,
        memory: info.max_mem * 1024,
    })
}

fn parse_mark(xml: &str) -> Result<Mark> {
    let document = Document::parse(xml).map_err(|error| Error::new("the mark is not XML").because(error))?;
    let root = document.root_element();
    let text = |key: &str| root.attribute(key).map(str::to_owned).ok_or_else(|| Error::new(format!("the mark has no {key}")));
    Ok(Mark {
        namespace: MARK_NAMESPACE,
        cluster: text("cluster")?,
        node: text("node")?,
        address: text("address")?,
        plan: text("plan")?,
        host_key: text("host_key")?,
        seed: if text("seed")? == "blank" { SeedState::Blank } else { SeedState::Full },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let xml = "<nodegraft:node xmlns:nodegraft='urn:nodegraft:domain:1' cluster='c' node='n' address='10.0.0.2/24' plan='p' host_key='ssh-ed25519 A' seed='blank'/>";
        let mark = parse_mark(xml).unwrap();
        assert_eq!((mark.cluster.as_str(), mark.seed), ("c", SeedState::Blank));
        assert!(parse_mark("<node cluster='c'/>").is_err());
    }
}
