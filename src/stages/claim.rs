//! Claim: the domain, defined before anything else is made, from `templates/domain.xml`. libvirt refuses a second domain
//! of the same name, for every user and every run on that host, so from here on the node is ours and nobody else's. Its
//! mark lists the volumes before they exist: whatever stops us, the claim tells what there may be.

use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, not_ours};
use crate::error::{Error, Result};
use crate::journal::{Journal, Thing};
use crate::mark::{Claimed, Mark};
use crate::ownership::Owner;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::plan::HostFacts;
use crate::spec::Size;

pub struct Claim;

#[async_trait]
impl Stage<NodeRun> for Claim {
    fn name(&self) -> &'static str {
        "Claim"
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        Duration::from_secs(150)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        let Some(claim) = on.claim() else {
            // Whatever has the name was seen by Preflight, or came since.
            let taken = super::locked(&on.domain).is_some();
            return Ok(if taken { Check::Conflict(not_ours(&on.node.name)) } else { Check::Needed("it is to be defined".into()) });
        };
        let address = on.mark()?.address;
        if address != on.node.address {
            return Ok(Check::Conflict(
                Error::new(format!("address is {address}, the spec says {}: only a new VM can change that", on.node.address))
                    .with_help(format!("nodegraft up --recreate {}, or put the old address back", on.node.name)),
            ));
        }
        Ok(Check::Done(format!("{} cpus, {}", claim.cpus, Size(claim.memory))))
    }

    async fn apply(&self, on: &NodeRun, _: &Reporter, journal: &Journal) -> Result<()> {
        if on.claim().is_some() {
            return Ok(());
        }
        let (name, pool) = (&on.node.name, on.pool());
        let owner = Owner::new(&on.run.plan.cluster.name, name)?;
        let volumes = [owner.disk(), owner.seed()].map(|name| Claimed { pool: pool.to_owned(), name }).to_vec();
        let mark = Mark { made_with: on.node.made_with(), ..Mark::new(owner.clone(), &on.node.address, volumes) };
        let sight = on.run.sight.get().ok_or_else(|| Error::new("the host was not looked at"))?;
        let facts = HostFacts {
            virt_type: on.run.virt_type.get().cloned().unwrap_or_else(|| "qemu".into()),
            disk_path: sight.pool.path_of(&owner.disk()),
            seed_path: sight.pool.path_of(&owner.seed()),
        };
        let xml = on.run.plan.domain_xml(&on.node, &facts, &mark)?;
        journal.made(Thing::Domain { name: name.clone(), uuid: owner.uuid() });
        let defined = on.run.host.define_domain(name, xml).await;
        on.look().await?;
        match defined {
            // Somebody was faster.
            Err(error) if on.claim().is_none_or(|claim| claim.uuid != owner.uuid()) => Err(not_ours(name).because(error)),
            other => other,
        }
    }
}
