//! Pools and volumes. Sizes are bytes. libvirt does not refuse to delete a base volume that has overlays, nor an
//! overlay smaller than its base: the stages do.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roxmltree::Document;
use virt::connect::Connect;
use virt::error::{Error as VirtError, ErrorNumber};
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

use super::{CALL_DEADLINE, Failure, Host, Try, absent_as_none, connect};
use crate::core::error::{Context, Error, Result};
use crate::core::mark::escape;

/// Of a copy on the host: a large template on a slow disk.
pub const COPY_DEADLINE: Duration = Duration::from_secs(3600);
/// Of a look into everything: a call for each volume.
const LOOK_DEADLINE: Duration = Duration::from_secs(300);
/// Of a look into a pool that is not ours, which may lie on storage that hangs.
const FOREIGN_DEADLINE: Duration = Duration::from_secs(20);
/// What is uploaded beyond the last byte that is not zero: what an earlier, longer content may have left there.
const MARGIN: usize = 64 << 10;

/// A pool, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub active: bool,
    /// Free bytes, as the pool last saw them.
    pub available: u64,
    /// The directory, or what else its volumes lie below.
    pub path: String,
    /// Names of its volumes; none where it is not active.
    pub names: Vec<String>,
    /// Those that were asked for, described.
    pub volumes: Vec<Volume>,
}

impl Pool {
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Where a volume of this name lies, or will lie.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.path.trim_end_matches('/'))
    }
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
    /// A pool with the names of its volumes, and a description of each that `wanted` names: one call for each of these.
    /// `None` if the host has no such pool.
    pub async fn pool(
        &self,
        pool: &str,
        wanted: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<Option<Pool>> {
        let name = pool.to_owned();
        let found = self
            .call(format!("looking for the pool {pool}"), move |conn| {
                let Some(pool) = absent_as_none(
                    conn.lookup_storage_pool_by_name(&name),
                    ErrorNumber::NoStoragePool,
                )?
                else {
                    return Ok(None);
                };
                look(&pool, true, &wanted).map(Some)
            })
            .await?;
        found
            .map(|seen| seen.describe(pool.to_owned()))
            .transpose()
            .doing(format!("looking for the pool {pool}"))
    }

    /// Every pool of the host. Those in `needed` are refreshed, and what is wrong with them is an error; of others what can
    /// be seen in a short while is enough.
    pub async fn pools(
        &self,
        needed: BTreeSet<String>,
        wanted: fn(&str) -> bool,
    ) -> Result<Vec<Pool>> {
        let listed = self.call("listing the pools", |conn| {
            conn.list_all_storage_pools(0)?
                .into_iter()
                .map(|pool| Ok((pool.name()?, pool)))
                .collect::<Result<Vec<_>, VirtError>>()
        });
        let mut pools = Vec::new();
        for (name, pool) in listed.await? {
            let must = needed.contains(&name);
            let limit = if must {
                LOOK_DEADLINE
            } else {
                FOREIGN_DEADLINE
            };
            let what = format!("looking into the pool {name}");
            let seen = self
                .call_within(limit, what.as_str(), move |_, _| look(&pool, must, &wanted))
                .await;
            match seen.and_then(|seen| seen.describe(name).doing(what)) {
                Ok(pool) => pools.push(pool),
                Err(error) if must => return Err(error),
                Err(_) => {}
            }
        }
        Ok(pools)
    }

    pub async fn pool_names(&self) -> Result<Vec<String>> {
        self.call("listing the pools", |conn| {
            conn.list_all_storage_pools(0)?
                .iter()
                .map(StoragePool::name)
                .collect()
        })
        .await
    }

    /// `None` if the pool has no such volume.
    pub async fn volume(&self, pool: &str, volume: &str) -> Result<Option<Volume>> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        let found = self
            .call(
                format!("looking for the volume {volume} in {pool}"),
                move |conn| {
                    let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
                    let Some(volume) = absent_as_none(
                        pool.lookup_storage_vol_by_name(&name),
                        ErrorNumber::NoStorageVolume,
                    )?
                    else {
                        return Ok(None);
                    };
                    Ok(Some((volume.name()?, volume.xml_desc(0)?)))
                },
            )
            .await?;
        found
            .map(|(name, xml)| parse_volume(name, &xml))
            .transpose()
            .doing(format!("looking for the volume {volume} in {pool}"))
    }

    /// A thin qcow2 overlay, made on the host (virStorageVolCreateXML); `capacity` must not be below the base's.
    pub async fn create_overlay(
        &self,
        pool: &str,
        name: &str,
        base: &Volume,
        capacity: u64,
    ) -> Result<()> {
        // The capacity in the XML spares a resize; compat 1.1, since libvirt's default is qemu's of 2010.
        let xml = format!(
            "<volume><name>{}</name><capacity unit='bytes'>{capacity}</capacity>\
             <target><format type='qcow2'/><compat>1.1</compat></target>\
             <backingStore><path>{}</path><format type='{}'/></backingStore></volume>",
            escape(name),
            escape(&base.path),
            escape(&base.format)
        );
        let (pool_name, name, base) = (pool.to_owned(), name.to_owned(), base.clone());
        self.call_within(
            CALL_DEADLINE,
            format!("making the overlay {name} on {}", base.name),
            move |conn, which| {
                let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
                overlay(&pool, &xml, which, || {
                    is_overlay(&pool, &name, &base, capacity)
                })
            },
        )
        .await
    }

    /// A full copy (virStorageVolCreateXMLFrom). It keeps the base's capacity: resize it after. Minutes long, so it has a
    /// connection of its own. Where that is lost nobody can tell half a copy from a whole one: what the first try left goes,
    /// and the copy is made anew.
    pub async fn copy_volume(&self, pool: &str, name: &str, base: &str) -> Result<()> {
        let xml = format!(
            "<volume><name>{}</name><capacity>0</capacity><target><format type='qcow2'/><compat>1.1</compat></target></volume>",
            escape(name)
        );
        let (pool_name, base_name, name) = (pool.to_owned(), base.to_owned(), name.to_owned());
        let was_free = AtomicBool::new(false);
        let what = format!("copying {base} to {name}");
        let own = Self {
            under_way: self.under_way.clone(),
            ..Self::new(connect(&self.uri).await.doing(what.as_str())?, &self.uri)
        };
        own.call_within(COPY_DEADLINE, what, move |conn, which| {
            let pool = conn.lookup_storage_pool_by_name(&pool_name)?;
            clear_half(&pool, &name, which, &was_free)?;
            let base = pool.lookup_storage_vol_by_name(&base_name)?;
            StorageVol::create_xml_from(&pool, &xml, &base, 0).map(drop)
        })
        .await
    }

    pub async fn resize_volume(&self, pool: &str, volume: &str, capacity: u64) -> Result<()> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        self.call(
            format!("resizing {volume} to {capacity} bytes"),
            move |conn| {
                conn.lookup_storage_pool_by_name(&pool_name)?
                    .lookup_storage_vol_by_name(&name)?
                    .resize(capacity, 0)
                    .map(drop)
            },
        )
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
            let volume = match absent_as_none(
                pool.lookup_storage_vol_by_name(&name),
                ErrorNumber::NoStorageVolume,
            )? {
                Some(volume) => volume,
                None => StorageVol::create_xml(&pool, &xml, 0)?,
            };
            upload(conn, &volume, &bytes)
        })
        .await
    }

    /// False if it was not there. A pool that is not there is no such answer: a transient pool goes with a restart of its
    /// host, and its volumes are still there when it comes back.
    pub async fn delete_volume(&self, pool: &str, volume: &str) -> Result<bool> {
        let (pool_name, name) = (pool.to_owned(), volume.to_owned());
        let what = format!("deleting the volume {volume}");
        let deleted = self.call(what.clone(), move |conn| {
            let Some(pool) = absent_as_none(
                conn.lookup_storage_pool_by_name(&pool_name),
                ErrorNumber::NoStoragePool,
            )?
            else {
                return Ok(None);
            };
            let Some(volume) = absent_as_none(
                pool.lookup_storage_vol_by_name(&name),
                ErrorNumber::NoStorageVolume,
            )?
            else {
                return Ok(Some(false));
            };
            match volume.delete(0) {
                Ok(()) => Ok(Some(true)),
                // The file went behind libvirt's back: the refresh makes its list true again. While others of the pool come
                // and go a refresh can fail for them; then the first error stands.
                Err(error) => match refresh(&pool).and_then(|()| {
                    absent_as_none(
                        pool.lookup_storage_vol_by_name(&name),
                        ErrorNumber::NoStorageVolume,
                    )
                }) {
                    Ok(None) => Ok(Some(false)),
                    _ => Err(error),
                },
            }
        });
        deleted.await?.ok_or_else(|| {
            Error::unfit(what)
                .because(format!("the host has no pool {pool} now, and the volume may lie there still"))
                .with_help(format!(
                    "define and start the pool again, as it was; then run the same command again; see: virsh -c '{}' pool-list --all",
                    self.uri
                ))
        })
    }
}

/// A pool as libvirt told of it.
struct Seen {
    active: bool,
    xml: String,
    names: Vec<String>,
    described: Vec<(String, String)>,
}

impl Seen {
    fn describe(self, name: String) -> Result<Pool, Failure> {
        let (path, available) = parse_pool(&self.xml)?;
        let volumes = self
            .described
            .into_iter()
            .map(|(name, xml)| parse_volume(name, &xml))
            .collect::<Result<_, _>>()?;
        Ok(Pool {
            name,
            active: self.active,
            available,
            path,
            names: self.names,
            volumes,
        })
    }
}

fn look(pool: &StoragePool, anew: bool, wanted: &impl Fn(&str) -> bool) -> Result<Seen, VirtError> {
    let active = pool.is_active()?;
    let (mut names, mut described) = (Vec::new(), Vec::new());
    if active {
        if anew {
            refresh(pool)?;
        }
        for volume in pool.list_all_volumes(0)? {
            let name = volume.name()?;
            // One may go while we look.
            if wanted(&name) {
                match absent_as_none(volume.xml_desc(0), ErrorNumber::NoStorageVolume)? {
                    Some(xml) => described.push((name.clone(), xml)),
                    None => continue,
                }
            }
            names.push(name);
        }
    }
    Ok(Seen {
        active,
        xml: pool.xml_desc(0)?,
        names,
        described,
    })
}

/// Makes an overlay. Where the first try made it, and only its answer was lost, it is there.
fn overlay(
    pool: &StoragePool,
    xml: &str,
    which: Try,
    is_there: impl Fn() -> bool,
) -> Result<(), VirtError> {
    match StorageVol::create_xml(pool, xml, 0) {
        Err(_) if which == Try::Again && is_there() => Ok(()),
        made => made.map(drop),
    }
}

/// Removes what the first try left of a copy. What was there before that try is somebody else's, and stays.
fn clear_half(
    pool: &StoragePool,
    name: &str,
    which: Try,
    was_free: &AtomicBool,
) -> Result<(), VirtError> {
    let found = absent_as_none(
        pool.lookup_storage_vol_by_name(name),
        ErrorNumber::NoStorageVolume,
    )?;
    match (which, found) {
        (Try::First, found) => was_free.store(found.is_none(), Ordering::Relaxed),
        (Try::Again, Some(half)) if was_free.load(Ordering::Relaxed) => half.delete(0)?,
        (Try::Again, _) => {}
    }
    Ok(())
}

/// Whether a volume is what `create_overlay` was asked for.
fn is_overlay(pool: &StoragePool, name: &str, base: &Volume, capacity: u64) -> bool {
    let described = pool
        .lookup_storage_vol_by_name(name)
        .and_then(|made| made.xml_desc(0))
        .ok();
    let described = described.and_then(|xml| parse_volume(name.to_owned(), &xml).ok());
    described
        .is_some_and(|made| made.capacity == capacity && made.backing.as_ref() == Some(&base.path))
}

/// Lets the pool see files that came or went behind libvirt's back. While a copy is under way libvirt refuses, and what
/// the pool knows already must do.
fn refresh(pool: &StoragePool) -> Result<(), VirtError> {
    match pool.refresh(0) {
        Err(error)
            if error.code().is_any(vec![
                ErrorNumber::InternalError,
                ErrorNumber::OperationInvalid,
            ]) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Writes from the volume's beginning. What lies behind the last byte that is not zero needs no sending: the volume was made
/// of zeros.
fn upload(conn: &Connect, volume: &StorageVol, bytes: &[u8]) -> Result<(), VirtError> {
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let mut rest = &bytes[..bytes.len().min(used + MARGIN)];
    let stream = Stream::new(conn, 0)?;
    volume.upload(&stream, 0, rest.len() as u64, 0)?;
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

/// Where its volumes lie, and how many bytes are free.
fn parse_pool(xml: &str) -> Result<(String, u64), Failure> {
    let document =
        Document::parse(xml).map_err(|_| Failure::Strange("a pool in what is not XML".into()))?;
    let root = document.root_element();
    let path = root
        .children()
        .find(|child| child.has_tag_name("target"))
        .and_then(|target| {
            target
                .children()
                .find(|child| child.has_tag_name("path"))
                .and_then(|path| path.text())
                .map(str::trim)
        });
    let available = root
        .children()
        .find(|child| child.has_tag_name("available"))
        .and_then(|child| child.text());
    Ok((
        path.unwrap_or_default().to_owned(),
        available
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0),
    ))
}

fn parse_volume(name: String, xml: &str) -> Result<Volume, Failure> {
    let strange = |what: &str| Failure::Strange(format!("the volume {name} without its {what}"));
    let document = Document::parse(xml)
        .map_err(|_| Failure::Strange(format!("the volume {name} in what is not XML")))?;
    let root = document.root_element();
    let child = |node: roxmltree::Node<'_, '_>, tag: &str| {
        node.children()
            .find(|c| c.has_tag_name(tag))
            .map(|c| c.id())
    };
    let at = |id: Option<roxmltree::NodeId>| id.and_then(|id| document.get_node(id));
    let target = at(child(root, "target")).ok_or_else(|| strange("target"))?;
    let number = |tag: &str| {
        at(child(root, tag))
            .and_then(|n| n.text())
            .and_then(|t| t.trim().parse().ok())
    };
    Ok(Volume {
        path: at(child(target, "path"))
            .and_then(|n| n.text())
            .ok_or_else(|| strange("path"))?
            .to_owned(),
        format: at(child(target, "format"))
            .and_then(|n| n.attribute("type"))
            .unwrap_or("raw")
            .to_owned(),
        capacity: number("capacity").ok_or_else(|| strange("capacity"))?,
        allocation: number("allocation").unwrap_or(0),
        backing: at(child(root, "backingStore"))
            .and_then(|b| at(child(b, "path")))
            .and_then(|n| n.text())
            .map(str::to_owned),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> (Connect, StoragePool) {
        let conn = Connect::open(Some("test:///default")).unwrap();
        let pool = conn.lookup_storage_pool_by_name("default-pool").unwrap();
        (conn, pool)
    }

    fn xml(name: &str, base: &str) -> String {
        format!(
            "<volume><name>{name}</name><capacity>1048576</capacity><target><format type='qcow2'/></target>\
             <backingStore><path>{base}</path><format type='qcow2'/></backingStore></volume>"
        )
    }

    #[test]
    fn an_overlay_that_the_first_try_made_is_made() {
        let (_conn, pool) = pool();
        let base = |path: &str| Volume {
            name: "base".into(),
            path: path.into(),
            format: "qcow2".into(),
            capacity: 1 << 20,
            allocation: 0,
            backing: None,
        };
        let make = |which: Try, path: &str| {
            overlay(&pool, &xml("twice", path), which, || {
                is_overlay(&pool, "twice", &base(path), 1 << 20)
            })
        };
        make(Try::First, "/base").unwrap();
        assert!(
            make(Try::First, "/base").is_err(),
            "a volume that was there is somebody else's"
        );
        make(Try::Again, "/base").unwrap();
        assert!(
            make(Try::Again, "/other").is_err(),
            "it is not what was asked for"
        );
    }

    #[test]
    fn half_a_copy_goes_and_what_was_there_before_stays() {
        let (_conn, pool) = pool();
        let was_free = AtomicBool::new(false);
        clear_half(&pool, "half", Try::First, &was_free).unwrap();
        let make = || StorageVol::create_xml(&pool, &xml("half", "/base"), 0).unwrap();
        make();
        clear_half(&pool, "half", Try::Again, &was_free).unwrap();
        assert!(pool.lookup_storage_vol_by_name("half").is_err());
        make();
        for which in [Try::First, Try::Again] {
            clear_half(&pool, "half", which, &was_free).unwrap();
        }
        assert!(pool.lookup_storage_vol_by_name("half").is_ok());
    }
}
