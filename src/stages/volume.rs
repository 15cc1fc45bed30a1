//! Volume: the node's own disk in the pool, a thin overlay on the template or a full copy of it.

use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use super::node_run::{Disk, DiskState};
use crate::core::error::{Error, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::mark::Claimed;
use crate::core::plan::Node;
use crate::core::spec::{CloneMode, Size};
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::libvirt::Host;
use crate::rooms::libvirt::storage::{self, COPY_DEADLINE};

pub struct Volume;

#[async_trait]
impl Stage<NodeRun> for Volume {
    fn name(&self) -> StageName {
        StageName::Volume
    }

    fn plan(&self, node: &Node) -> String {
        let how = match node.clone {
            CloneMode::Overlay => "a thin overlay on",
            CloneMode::Full => "a full copy of",
        };
        format!(
            "in {}: {how} {}, {}",
            node.pool,
            node.template,
            Size(node.disk)
        )
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        COPY_DEADLINE + Duration::from_secs(120)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        let sealed = on.is_sealed();
        let Some(Disk { volume, state }) = on.seen_disk().await? else {
            return Ok(if sealed {
                Check::Conflict(vanished(on)?)
            } else {
                Check::Needed("it is to be made".into())
            });
        };
        // Until the seed is written the VM never ran: a disk that another run left may be half a copy.
        if !sealed && *state == DiskState::Found {
            return Ok(Check::Needed(
                "a disk left by an interrupted run is to be made anew".into(),
            ));
        }
        let (capacity, overlay) = (volume.capacity, volume.backing.is_some());
        if capacity < on.node.disk && !on.claimed()?.running {
            return Ok(Check::Needed(format!(
                "it has {} of {}",
                Size(capacity),
                Size(on.node.disk)
            )));
        }
        Ok(Check::Done(format!("{} {}", kind(overlay), Size(capacity))))
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, journal: &Journal) -> Result<()> {
        let disk = on.claimed_disk()?;
        let Claimed { pool, name } = &disk;
        let mut state = on.disk.as_ref().map_or(DiskState::Found, |disk| disk.state);
        if !on.is_sealed() && state == DiskState::Found {
            if on.seen_disk().await?.is_some() {
                on.demand_untouched().await?;
                on.host.delete_volume(pool, name).await?;
            }
            make(on, &disk, report, journal).await?;
            state = DiskState::Made;
        }
        let mut volume = whole(&on.host, &disk).await?;
        if volume.capacity < on.node.disk {
            on.host.resize_volume(pool, name, on.node.disk).await?;
            volume = whole(&on.host, &disk).await?;
        }
        on.disk = Some(Disk { volume, state });
        Ok(())
    }

    /// What libvirt still copies the next run does not take for a disk: the seed is not written.
    async fn stopped(&self, _: &NodeRun) {}
}

async fn whole(host: &Host, Claimed { pool, name }: &Claimed) -> Result<storage::Volume> {
    host.volume(pool, name)
        .await?
        .ok_or_else(|| Error::failed(format!("{name} vanished from the pool {pool}")))
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
    let found = on.run.sight.pool.volume(&on.node.template);
    found.cloned().ok_or_else(|| {
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
