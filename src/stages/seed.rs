//! Seed: the small volume with the node's identity, from which the guest's first boot takes its network, its host
//! name, its keys. It holds the private host key until Login blanks it.

use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use crate::core::error::{Context, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::mark::{Claimed, SeedState};
use crate::core::plan::Node;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::keys;
use crate::rooms::seed;

pub struct Seed;

#[async_trait]
impl Stage<NodeRun> for Seed {
    fn name(&self) -> StageName {
        StageName::Seed
    }

    fn plan(&self, node: &Node) -> String {
        let dns: Vec<String> = node.dns.iter().map(ToString::to_string).collect();
        format!(
            "{} via {}, DNS {}, MAC {}, host name {}",
            node.address,
            node.gateway,
            if dns.is_empty() {
                "none".into()
            } else {
                dns.join(" ")
            },
            node.mac,
            node.hostname
        )
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        Duration::from_secs(180)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        Ok(if on.is_sealed() {
            Check::Done(format!(
                "host key {}",
                keys::fingerprint(&on.mark()?.host_key)
            ))
        } else {
            Check::Needed("network, host name and keys are to be written".into())
        })
    }

    /// The mark comes last: until it says so, nothing that was made counts.
    async fn apply(&self, on: &mut NodeRun, _: &Reporter, journal: &Journal) -> Result<()> {
        on.demand_untouched().await?;
        let mut mark = on.mark()?;
        let Claimed { pool, name } = on.claimed_seed()?;
        let key = keys::generate(&on.node.hostname).doing("making the host key")?;
        let files = on.run.plan.seed_files(
            &on.node,
            mark.owner.machine_id(),
            &key,
            &on.run.authorized_keys,
        )?;
        journal.made(Thing::Volume {
            pool: pool.clone(),
            name: name.clone(),
        });
        on.host
            .write_raw(&pool, &name, seed::image(&files)?)
            .await?;
        mark.host_key = key.public;
        mark.seed = SeedState::Full;
        mark.by = None;
        on.set_mark(&mark).await
    }

    /// Until the mark says so, what was written does not count.
    async fn stopped(&self, _: &NodeRun) {}
}
