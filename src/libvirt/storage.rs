//! Pools and volumes. Sizes are bytes. libvirt does not refuse to delete a base volume that has overlays, nor an
//! overlay smaller than its base: the stages do.

use roxmltree::Document;
use virt::connect::Connect;
use virt::error::{Error as VirtError, ErrorNumber};
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

use super::{Host, absent_as_none};
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub active: bool,
    /// Free bytes, as the pool last saw them.
    pub available: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub path: String,
    pub format: String,
    pub capacity: u64,
    pub allocation: u64,
    /// Path of the volume this one is an overlay on.
    pub backing: Option<String>,
}

impl Host {
    /// `None` if the host has no such pool.
    pub async fn pool(&self, pool: &str) -> Result<Option<Pool>> {
        let name = pool.to_owned();
        self.call(format!("looking for the pool {pool}"), move |conn| {
            let Some(pool) = absent_as_none(conn.lookup_storage_pool_by_name(&name), ErrorNumber::NoStoragePool)? else { return Ok(None) };
            let active = pool.is_active()?;
            if active {
                refresh(&pool)?;
            }
            Ok(Some(Pool { active, available: pool.info()?.available }))
        })
        .await
    }

    pub async fn pool_names(&self) -> Result<Vec<String>> {
        self.call("listing the pools", |conn| conn.list_all_storage_pools(0)?.iter().map(StoragePool::name).collect()).await
    }

    pub async fn volume_names(&self, pool: &str) -> Result<Vec<String>> {
        let name = pool.to_owned();
        self.call(format!("listing the volumes of {pool}"), move |conn| conn.lookup_storage_pool_by_name(&name)?.list_volumes()).await
    }

    /// `None` if the pool has no such volume.
    pub async fn volume(&self, pool: &str, volume: &str) -> Result<Option<Volume>> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        let found = self
            .call(format!("looking for the volume {volume} in {pool}"), move |conn| {
                let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
                let Some(volume) = absent_as_none(pool.lookup_storage_vol_by_name(&name), ErrorNumber::NoStorageVolume)? else {
                    return Ok(None);
                };
                Ok(Some((volume.name()?, volume.xml_desc(0)?)))
            })
            .await?;
        found.map(|(name, xml)| parse_volume(name, &xml)).transpose()
    }

    /// A thin qcow2 overlay, made on the host (virStorageVolCreateXML); `capacity` must not be below the base's.
    pub async fn create_overlay(&self, pool: &str, name: &str, base: &Volume, capacity: u64) -> Result<()> {
        // The capacity in the XML spares a resize; compat 1.1, since libvirt's default is qemu's of 2010.
        let xml = format!(
            "<volume><name>{}</name><capacity unit='bytes'>{capacity}</capacity>\
             <target><format type='qcow2'/><compat>1.1</compat></target>\
             <backingStore><path>{}</path><format type='{}'/></backingStore></volume>",
            escape(name),
            escape(&base.path),
            escape(&base.format)
        );
        let pool_name = pool.to_owned();
        self.call(format!("making the overlay {name} on {}", base.name), move |conn| {
            StorageVol::create_xml(&conn.lookup_storage_pool_by_name(&pool_name)?, &xml, 0).map(drop)
        })
        .await
    }

    /// A full copy (virStorageVolCreateXMLFrom). It keeps the base's capacity: resize it after.
    pub async fn copy_volume(&self, pool: &str, name: &str, base: &str) -> Result<()> {
        let xml = format!(
            "<volume><name>{}</name><capacity>0</capacity><target><format type='qcow2'/><compat>1.1</compat></target></volume>",
            escape(name)
        );
        let (pool_name, base_name) = (pool.to_owned(), base.to_owned());
        self.call(format!("copying {base} to {name}"), move |conn| {
            let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
            let base = pool.lookup_storage_vol_by_name(&base_name)?;
            StorageVol::create_xml_from(&pool, &xml, &base, 0).map(drop)
        })
        .await
    }

    pub async fn resize_volume(&self, pool: &str, volume: &str, capacity: u64) -> Result<()> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        self.call(format!("resizing {volume} to {capacity} bytes"), move |conn| {
            conn.lookup_storage_pool_by_name(&pool_name)?.lookup_storage_vol_by_name(&name)?.resize(capacity, 0).map(drop)
        })
        .await
    }

    /// Writes a raw volume, making it if it is not there.
    pub async fn write_raw(&self, pool: &str, volume: &str, bytes: Vec<u8>) -> Result<()> {
        let xml = format!(
            "<volume><name>{}</name><capacity unit='bytes'>{}</capacity><target><format type='raw'/></target></volume>",
            escape(volume),
            bytes.len()
        );
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        self.call(format!("writing the volume {volume}"), move |conn| {
            let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
            let volume = match absent_as_none(pool.lookup_storage_vol_by_name(&name), ErrorNumber::NoStorageVolume)? {
                Some(volume) => volume,
                None => StorageVol::create_xml(&pool, &xml, 0)?,
            };
            upload(conn, &volume, &bytes)
        })
        .await
    }

    /// False if it was not there.
    pub async fn delete_volume(&self, pool: &str, volume: &str) -> Result<bool> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        self.call(format!("deleting the volume {volume}"), move |conn| {
            let Some(pool) = absent_as_none(conn.lookup_storage_pool_by_name(&pool_name), ErrorNumber::NoStoragePool)? else {
                return Ok(false);
            };
            let Some(volume) = absent_as_none(pool.lookup_storage_vol_by_name(&name), ErrorNumber::NoStorageVolume)? else {
                return Ok(false);
            };
            match volume.delete(0) {
                Ok(()) => Ok(true),
                // The file went behind libvirt's back: the refresh makes its list true again.
                Err(error) => {
                    refresh(&pool)?;
                    match absent_as_none(pool.lookup_storage_vol_by_name(&name), ErrorNumber::NoStorageVolume)? {
                        None => Ok(false),
                        Some(_) => Err(error),
                    }
                }
            }
        })
        .await
    }
}

/// Lets the pool see files that came or went behind libvirt's back. While a copy is under way libvirt refuses, and what
/// the pool knows already must do.
fn refresh(pool: &StoragePool) -> Result<(), VirtError> {
    match pool.refresh(0) {
        Err(error) if error.code().is_any(vec![ErrorNumber::InternalError, ErrorNumber::OperationInvalid]) => Ok(()),
        other => other.map(drop),
    }
}

fn upload(conn: &Connect, volume: &StorageVol, bytes: &[u8]) -> Result<(), VirtError> {
    let stream = Stream::new(conn, 0)?;
    volume.upload(&stream, 0, bytes.len() as u64, 0)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(256 << 10)];
        match stream.send(chunk) {
            Ok(sent) => rest = &rest[usize::try_from(sent).unwrap_or(0)..],
            Err(error) => {
                let _ = stream.abort();
                return Err(error);
            }
        }
    }
    stream.finish()
}

fn parse_volume(name: String, xml: &str) -> Result<Volume> {
    let strange = |what: &str| Error::new(format!("libvirt described the volume {name} without its {what}"));
    let document = Document::parse(xml).map_err(|error| Error::new("libvirt's description of a volume is not XML").because(error))?;
    let root = document.root_element();
    let child = |node: roxmltree::Node<'_, '_>, tag: &str| node.children().find(|c| c.has_tag_name(tag)).map(|c| c.id());
    let at = |id: Option<roxmltree::NodeId>| id.and_then(|id| document.get_node(id));
    let target = at(child(root, "target")).ok_or_else(|| strange("target"))?;
    let number = |tag: &str| at(child(root, tag)).and_then(|n| n.text()).and_then(|t| t.trim().parse().ok());
    Ok(Volume {
        path: at(child(target, "path")).and_then(|n| n.text()).ok_or_else(|| strange("path"))?.to_owned(),
        format: at(child(target, "format")).and_then(|n| n.attribute("type")).unwrap_or("raw").to_owned(),
        capacity: number("capacity").ok_or_else(|| strange("capacity"))?,
        allocation: number("allocation").unwrap_or(0),
        backing: at(child(root, "backingStore")).and_then(|b| at(child(b, "path"))).and_then(|n| n.text()).map(str::to_owned),
        name,
    })
}

/// Text for an XML element.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}
