//! Domain: the VM's definition, from `templates/domain.xml`, with our mark in its metadata.

use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, is_ours, locked, not_ours};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::pipeline::stage::{Check, Reporter, Stage, Undone};
use crate::plan::{HostFacts, SeedState};
use crate::spec::Size;

pub struct Domain;

#[async_trait]
impl Stage<NodeRun> for Domain {
    fn name(&self) -> &'static str {
        "Domain"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        Duration::from_secs(60)
    }

    async fn check(&self, on: &NodeRun, report: &Reporter) -> Result<Check> {
        let Some(domain) = on.domain().await? else { return Ok(Check::Needed("it is to be defined".into())) };
        if !is_ours(&domain, on) {
            return Ok(Check::Conflict(not_ours(&on.node.name)));
        }
        let mark = domain.mark.as_ref();
        if let Some(mark) = mark.filter(|mark| mark.address != on.node.address) {
            return Ok(Check::Conflict(
                Error::new(format!("the domain was made with the address {}, the spec says {}", mark.address, on.node.address))
                    .with_help(format!("`nodegraft down {}` first, or put the old address back", on.node.name)),
            ));
        }
        if mark.is_some_and(|mark| mark.plan != on.node.digest) {
            report.warn(
                format!("{} was made from an earlier version of the spec and is left as it is", on.node.name),
                Some(format!("to make it anew: nodegraft down {0} && nodegraft up {0}", on.node.name)),
            );
        }
        Ok(Check::Done(format!("{} cpus, {}", domain.cpus, Size(domain.memory))))
    }

    async fn apply(&self, on: &NodeRun, _: &Reporter, _: &Journal) -> Result<()> {
        let host = &on.run.host;
        // libvirt refuses a second definition of the same name.
        if on.domain().await?.is_some_and(|domain| is_ours(&domain, on)) {
            return Ok(());
        }
        let path = async |name: &str| {
            let volume = host.volume(on.pool(), name).await?;
            volume.map(|v| v.path).ok_or_else(|| {
                Error::new(format!("the volume {name} vanished from the pool {}", on.pool())).with_help("run `nodegraft up` again")
            })
        };
        let facts = HostFacts {
            virt_type: on.run.virt_type.get().cloned().unwrap_or_else(|| "qemu".into()),
            disk_path: path(&on.node.volume).await?,
            seed_path: path(&on.node.seed).await?,
        };
        let key = locked(&on.host_key).as_ref().map(|key| key.public.clone()).ok_or_else(|| Error::new("the seed has no host key yet"))?;
        let mark = on.run.plan.mark(&on.node, &key, SeedState::Full);
        host.define_domain(&on.node.name, on.run.plan.domain_xml(&on.node, &facts, &mark)?).await
    }

    async fn undo(&self, on: &NodeRun, _: &Reporter) -> Result<Undone> {
        let Some(domain) = on.domain().await? else { return Ok(Undone::Absent) };
        if !is_ours(&domain, on) {
            return Ok(Undone::Kept("it is not ours".into()));
        }
        on.run.host.undefine(&on.node.name).await?;
        Ok(Undone::Removed(on.node.name.clone()))
    }
}
