//! Inject: puts our first-boot unit into the clone, for an image that has neither cloud-init nor that unit. The template
//! stays as it is.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, locked};
use crate::core::error::{Error, Result};
use crate::core::first_boot;
use crate::core::journal::Journal;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::guestfs;

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
        // A disk whose seed is not written is of this run; else an earlier one came past here.
        let done = on.injected.load(Ordering::Relaxed) || on.is_sealed();
        Ok(if done {
            Check::Done("first-boot unit".into())
        } else {
            Check::Needed("the first-boot unit is to be put into the clone".into())
        })
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let path = locked(&on.disk).as_ref().map(|disk| disk.path.clone());
        let path = path.ok_or_else(|| {
            Error::failed("there is no disk to put the first-boot unit into")
                .with_help("run `nodegraft up` again")
        })?;
        let unit = first_boot::unit(&on.run.plan.templates)?;
        let kvm = on.run.virt_type.get().is_some_and(|kind| kind == "kvm");
        guestfs::add(Path::new(&path), &unit, kvm, |line| report.progress(line)).await?;
        on.injected.store(true, Ordering::Relaxed);
        Ok(())
    }
}
