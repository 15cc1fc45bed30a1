//! Volume: the node's own disk in the pool, a thin overlay on the template or a full copy of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, locked};
use crate::core::error::{Error, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::mark::Claimed;
use crate::core::spec::{Clone as CloneMode, Size};
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::libvirt::storage::{self, COPY_DEADLINE};

pub struct Volume;

#[async_trait]
impl Stage<NodeRun> for Volume {
    fn name(&self) -> &'static str {
        "Volume"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        COPY_DEADLINE + Duration::from_secs(120)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        let Some(volume) = on.seen_disk().await? else {
            return Ok(if on.is_sealed() {
                Check::Conflict(vanished(on)?)
            } else {
                Check::Needed("it is to be made".into())
            });
        };
        // Until the seed is written the VM never ran: a disk that another run left may be half a copy.
        if !on.is_sealed() && !on.disk_made.load(Ordering::Relaxed) {
            return Ok(Check::Needed(
                "a disk left by an interrupted run is to be made anew".into(),
            ));
        }
        if volume.capacity < on.node.disk && !on.claimed()?.running {
            return Ok(Check::Needed(format!(
                "it has {} of {}",
                Size(volume.capacity),
                Size(on.node.disk)
            )));
        }
        Ok(Check::Done(format!(
            "{} {}",
            kind(volume.backing.is_some()),
            Size(volume.capacity)
        )))
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter, journal: &Journal) -> Result<()> {
        let host = &on.host;
        let disk = on.claimed_disk()?;
        let Claimed { pool, name } = &disk;
        if !on.is_sealed() && !on.disk_made.load(Ordering::Relaxed) {
            if on.seen_disk().await?.is_some() {
                on.demand_untouched().await?;
                host.delete_volume(pool, name).await?;
            }
            make(on, &disk, report, journal).await?;
        }
        let made = host
            .volume(pool, name)
            .await?
            .ok_or_else(|| Error::failed(format!("{name} vanished from the pool {pool}")))?;
        let small = made.capacity < on.node.disk;
        if small {
            host.resize_volume(pool, name, on.node.disk).await?;
        }
        let seen = if small {
            host.volume(pool, name).await?
        } else {
            Some(made)
        };
        *locked(&on.disk) = seen;
        on.disk_made.store(true, Ordering::Relaxed);
        Ok(())
    }
}

async fn make(on: &NodeRun, disk: &Claimed, report: &Reporter, journal: &Journal) -> Result<()> {
    let host = &on.host;
    let Claimed { pool, name } = disk;
    let template = template(on)?;
    if template.capacity > on.node.disk {
        return Err(Error::failed(format!(
            "the template is {}, larger than the disk of {}",
            Size(template.capacity),
            Size(on.node.disk)
        ))
        .with_help("ask for a larger `disk`"));
    }
    journal.made(Thing::Volume {
        pool: pool.clone(),
        name: name.clone(),
    });
    match on.node.clone {
        CloneMode::Overlay => {
            host.create_overlay(pool, name, &template, on.node.disk)
                .await
        }
        CloneMode::Full => {
            report.progress(format!("copying {}", template.name));
            host.copy_volume(pool, name, &template.name).await
        }
    }
}

fn vanished(on: &NodeRun) -> Result<Error> {
    let Claimed { pool, name } = on.claimed_disk()?;
    Ok(
        Error::failed(format!("its disk {name} is gone from the pool {pool}")).with_help(format!(
            "if it cannot be brought back: nodegraft up --recreate {}",
            on.node.name
        )),
    )
}

/// As Preflight saw it.
fn template(on: &NodeRun) -> Result<storage::Volume> {
    let found = on
        .run
        .sight
        .get()
        .and_then(|sight| sight.pool.volume(&on.node.template).cloned());
    found.ok_or_else(|| {
        Error::failed(format!(
            "the pool {} has no template volume {}",
            on.node.pool, on.node.template
        ))
        .with_help(format!("see what it has: virsh vol-list {}", on.node.pool))
    })
}

fn kind(overlay: bool) -> &'static str {
    if overlay { "overlay" } else { "full copy" }
}
