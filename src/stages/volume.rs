//! Volume: the node's own disk in the pool, a thin overlay on the template or a full copy of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::libvirt::storage;
use crate::pipeline::stage::{Check, Reporter, Stage, Undone};
use crate::spec::{Clone as CloneMode, Size};

pub struct Volume;

#[async_trait]
impl Stage<NodeRun> for Volume {
    fn name(&self) -> &'static str {
        "Volume"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        // A full copy of a large template on a slow disk.
        Duration::from_secs(3600)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        let Some(volume) = on.run.host.volume(on.pool(), &on.node.volume).await? else {
            return Ok(Check::Needed(format!("{} is to be made", on.node.volume)));
        };
        if on.domain().await?.is_none() && !on.volume_made.load(Ordering::Relaxed) {
            return Ok(Check::Needed("a volume left by an interrupted run is to be made anew".into()));
        }
        if on.node.clone == CloneMode::Overlay {
            let template = template(on).await?;
            if volume.backing.as_deref() != Some(template.path.as_str()) {
                let base = volume.backing.as_deref().unwrap_or("nothing");
                return Ok(Check::Conflict(
                    Error::new(format!("{} is an overlay on {base}, not on {}", volume.name, template.path)).with_help(format!(
                        "the node was made from another template or clone mode: `nodegraft down {}` first",
                        on.node.name
                    )),
                ));
            }
        }
        if volume.capacity < on.node.disk {
            return Ok(Check::Needed(format!("it has {} of {}", Size(volume.capacity), Size(on.node.disk))));
        }
        Ok(Check::Done(format!("{} {}", kind(on.node.clone), Size(volume.capacity))))
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let host = &on.run.host;
        let (pool, name) = (on.pool(), &on.node.volume);
        if on.domain().await?.is_none() && !on.volume_made.load(Ordering::Relaxed) {
            host.delete_volume(pool, name).await?;
        }
        let template = template(on).await?;
        if template.capacity > on.node.disk {
            return Err(Error::new(format!("the template is {}, larger than the disk of {}", Size(template.capacity), Size(on.node.disk)))
                .with_help("ask for a larger `disk`"));
        }
        if host.volume(pool, name).await?.is_none() {
            match on.node.clone {
                CloneMode::Overlay => host.create_overlay(pool, name, &template, on.node.disk).await?,
                CloneMode::Full => {
                    report.progress(format!("copying {}", template.name));
                    host.copy_volume(pool, name, &template.name).await?;
                }
            }
        }
        let made = host.volume(pool, name).await?.ok_or_else(|| Error::new(format!("{name} vanished from the pool {pool}")))?;
        if made.capacity < on.node.disk {
            if on.domain().await?.is_some_and(|domain| domain.running) {
                return Err(Error::new(format!("the disk of the running {} would have to grow", on.node.name))
                    .with_help(format!("shut it down first, or `nodegraft down {}` and `up`", on.node.name)));
            }
            host.resize_volume(pool, name, on.node.disk).await?;
        }
        on.volume_made.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn undo(&self, on: &NodeRun, _: &Reporter) -> Result<Undone> {
        let (host, pool, name) = (&on.run.host, on.pool(), &on.node.volume);
        if host.pool(pool).await?.is_none_or(|p| !p.active) {
            return Ok(Undone::Kept(format!("the pool {pool} is not active")));
        }
        let Some(volume) = host.volume(pool, name).await? else { return Ok(Undone::Absent) };
        if on.domain().await?.is_some() {
            return Ok(Undone::Kept(format!("the domain {} still uses it", on.node.name)));
        }
        // libvirt would delete it under its overlays without a word.
        for other in host.volume_names(pool).await? {
            if host.volume(pool, &other).await?.is_some_and(|o| o.backing.as_deref() == Some(volume.path.as_str())) {
                return Ok(Undone::Kept(format!("{other} is an overlay on it")));
            }
        }
        host.delete_volume(pool, name).await?;
        Ok(Undone::Removed(name.clone()))
    }
}

async fn template(on: &NodeRun) -> Result<storage::Volume> {
    on.run.host.volume(on.pool(), &on.node.template).await?.ok_or_else(|| {
        Error::new(format!("the pool {} has no template volume {}", on.pool(), on.node.template))
            .with_help(format!("see what it has: virsh vol-list {}", on.pool()))
    })
}

fn kind(clone: CloneMode) -> &'static str {
    match clone {
        CloneMode::Overlay => "overlay",
        CloneMode::Full => "full copy",
    }
}
