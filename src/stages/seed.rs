//! Seed: the small volume with the node's identity, from which the guest's first boot takes its network, its host
//! name, its keys. It holds the private host key until Login blanks it.

use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, locked};
use crate::error::Result;
use crate::journal::Journal;
use crate::keys;
use crate::pipeline::stage::{Check, Reporter, Stage, Undone};
use crate::seed;

pub struct Seed;

#[async_trait]
impl Stage<NodeRun> for Seed {
    fn name(&self) -> &'static str {
        "Seed"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        Duration::from_secs(120)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        if let Some(domain) = on.domain().await? {
            // Its host key is the one the domain was defined with; another would lock us out.
            let key = domain.mark.map(|mark| keys::fingerprint(&mark.host_key)).unwrap_or_default();
            return Ok(Check::Done(format!("host key {key}")));
        }
        let written = on.run.host.volume(on.pool(), &on.node.seed).await?.is_some();
        Ok(match &*locked(&on.host_key) {
            Some(key) if written => Check::Done(format!("host key {}", keys::fingerprint(&key.public))),
            _ => Check::Needed("network, host name and keys are to be written".into()),
        })
    }

    async fn apply(&self, on: &NodeRun, _: &Reporter, _: &Journal) -> Result<()> {
        let key = keys::generate(&on.node.hostname)?;
        let files = on.run.plan.seed_files(&on.node, &key, &on.run.authorized_keys)?;
        on.run.host.write_raw(on.pool(), &on.node.seed, seed::image(&files)?).await?;
        *locked(&on.host_key) = Some(key);
        Ok(())
    }

    async fn undo(&self, on: &NodeRun, _: &Reporter) -> Result<Undone> {
        if on.run.host.pool(on.pool()).await?.is_none_or(|pool| !pool.active) {
            return Ok(Undone::Kept(format!("the pool {} is not active", on.pool())));
        }
        if on.domain().await?.is_some() {
            return Ok(Undone::Kept(format!("the domain {} still uses it", on.node.name)));
        }
        Ok(if on.run.host.delete_volume(on.pool(), &on.node.seed).await? { Undone::Removed(on.node.seed.clone()) } else { Undone::Absent })
    }
}
