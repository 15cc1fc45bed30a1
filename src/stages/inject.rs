//! Inject: puts our first-boot unit into the clone, for an image that has neither cloud-init nor that unit. The template
//! stays as it is.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use super::node_run::DiskState;
use crate::core::error::{Error, Result};
use crate::core::first_boot;
use crate::core::journal::Journal;
use crate::core::plan::Node;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::guestfs;

pub struct Inject;

#[async_trait]
impl Stage<NodeRun> for Inject {
    fn name(&self) -> StageName {
        StageName::Inject
    }

    fn plan(&self, _: &Node) -> String {
        "the first-boot unit, offline, by virt-customize".into()
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        guestfs::LIMIT + Duration::from_secs(30)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        // A disk whose seed is not written is of this run; else an earlier one came past here.
        let injected = on
            .disk
            .as_ref()
            .is_some_and(|disk| disk.state == DiskState::Injected);
        let done = injected || on.is_sealed();
        Ok(if done {
            Check::Done("first-boot unit".into())
        } else {
            Check::Needed("the first-boot unit is to be put into the clone".into())
        })
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let disk = on.disk.as_mut().ok_or_else(|| {
            Error::failed("there is no disk to put the first-boot unit into")
                .with_help("run `nodegraft up` again")
        })?;
        let unit = first_boot::unit(&on.run.plan.templates)?;
        guestfs::add(
            Path::new(&disk.volume.path),
            &unit,
            on.run.sight.has_kvm(),
            |line| report.progress(line),
        )
        .await?;
        disk.state = DiskState::Injected;
        Ok(())
    }

    /// virt-customize ends with its future; a disk it has half edited the next run makes anew.
    async fn stopped(&self, _: &NodeRun) {}
}
