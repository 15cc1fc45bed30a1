//! Inject: puts our first-boot unit into the clone, for an image that has neither cloud-init nor that unit. The template
//! stays as it is.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use crate::error::{Error, Result};
use crate::first_boot;
use crate::guestfs;
use crate::journal::Journal;
use crate::pipeline::stage::{Check, Reporter, Stage};

pub struct Inject;

#[async_trait]
impl Stage<NodeRun> for Inject {
    fn name(&self) -> &'static str {
        "Inject"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        guestfs::LIMIT + Duration::from_secs(30)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        // Without a domain the volume is of this run; with one, an earlier run came past here.
        let done = on.injected.load(Ordering::Relaxed) || on.domain().await?.is_some();
        Ok(if done {
            Check::Done("first-boot unit".into())
        } else {
            Check::Needed("the first-boot unit is to be put into the clone".into())
        })
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let (pool, name) = (on.pool(), &on.node.volume);
        let volume = on.run.host.volume(pool, name).await?;
        let volume =
            volume.ok_or_else(|| Error::new(format!("{name} vanished from the pool {pool}")).with_help("run `nodegraft up` again"))?;
        let unit = first_boot::unit(&on.run.plan.templates)?;
        let kvm = on.run.virt_type.get().is_some_and(|kind| kind == "kvm");
        guestfs::add(Path::new(&volume.path), &unit, kvm, |line| report.progress(line)).await?;
        on.injected.store(true, Ordering::Relaxed);
        Ok(())
    }
}
