//! Claim: the domain, defined before anything else is made, from `templates/domain.xml`. libvirt refuses a second domain
//! of the same name, for every user and every run on that host, so from here on the node is ours and nobody else's. Its
//! mark lists the volumes before they exist: whatever stops us, the claim tells what there may be. Until the seed is
//! written the VM never ran: a claim that an interrupted run left is defined anew, as the spec says by now.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::NodeRun;
use super::node_run::not_ours;
use crate::core::difference::{Difference, sentence};
use crate::core::domain_xml::HostFacts;
use crate::core::error::{Error, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::mark::{Claimed, Mark};
use crate::core::ownership::Owner;
use crate::core::plan::Node;
use crate::core::spec::Size;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::libvirt::domain::Domain;
use crate::rooms::process;

pub struct Claim;

#[async_trait]
impl Stage<NodeRun> for Claim {
    fn name(&self) -> StageName {
        StageName::Claim
    }

    fn plan(&self, node: &Node) -> String {
        format!(
            "{}: {} cpus, {}, {}",
            node.name,
            node.cpus,
            Size(node.memory),
            node.network
        )
    }

    fn deadline(&self, _: &NodeRun) -> Duration {
        Duration::from_secs(240)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        let Some(claim) = on.claim() else {
            // Whatever has the name was seen by Preflight, or came since.
            let taken = on.domain.is_some();
            return Ok(if taken {
                Check::Conflict(not_ours(&on.node.name))
            } else {
                Check::Needed("it is to be defined".into())
            });
        };
        let mark = on.mark()?;
        if !on.is_sealed() {
            if let Some(conflict) = held(on, &claim, &mark) {
                return Ok(Check::Conflict(conflict));
            }
            if let Some(why) = outdated(on, &mark) {
                return Ok(Check::Needed(why));
            }
        } else if mark.address != on.node.address {
            return Ok(Check::Conflict(
                Error::failed(format!(
                    "address is {}, the spec says {}: only a new VM can change that",
                    mark.address, on.node.address
                ))
                .with_help(format!(
                    "nodegraft up --recreate {}, or put the old address back",
                    on.node.name
                )),
            ));
        }
        Ok(Check::Done(format!(
            "{} cpus, {}",
            claim.cpus,
            Size(claim.memory)
        )))
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, journal: &Journal) -> Result<()> {
        if on.claim().is_none() {
            return define(on, journal).await;
        }
        let mark = on.mark()?;
        if on.is_sealed() || outdated(on, &mark).is_none() {
            return Ok(());
        }
        define_anew(on, &mark, report).await
    }

    /// libvirt has defined a domain, or not.
    async fn stopped(&self, _: &NodeRun) {}
}

/// A new life of the node.
async fn define(on: &mut NodeRun, journal: &Journal) -> Result<()> {
    let name = on.node.name.clone();
    let owner = Owner::new(&on.run.plan.cluster.name, &name)?;
    let xml = xml(on, &on.node, &mark(on, &owner))?;
    journal.made(Thing::Domain {
        name: name.clone(),
        uuid: owner.uuid(),
    });
    let defined = on.host.define_domain(&name, xml).await;
    on.look().await?;
    match defined {
        // Somebody was faster.
        Err(error)
            if on
                .domain
                .as_ref()
                .is_some_and(|domain| domain.uuid != owner.uuid()) =>
        {
            Err(not_ours(&name).because(error))
        }
        other => other,
    }
}

/// The same claim, by UUID and instance, with the present spec's domain. It tells of volumes in another pool until these
/// are gone.
async fn define_anew(on: &mut NodeRun, before: &Mark, report: &Reporter) -> Result<()> {
    on.look().await?;
    let (claim, seen) = (on.claimed()?, on.mark()?);
    if on.is_sealed() || claim.running || seen.by != before.by {
        return Err(Error::failed(format!(
            "another run has gone on with {} just now",
            on.node.name
        ))
        .with_help("wait for it; then run `nodegraft up` again"));
    }
    if let Some(by) = seen.by.as_ref().filter(|by| !process::is_here(by)) {
        report.warn(
            format!(
                "a run from another machine began {} and did not finish it (host, process and start: {by}); this one goes on with it",
                on.node.name
            ),
            Some("if it still runs there, stop it: two runs on one node get in each other's way".into()),
        );
    }
    let mark = mark(on, &seen.owner);
    for left in seen
        .volumes
        .iter()
        .filter(|volume| !mark.volumes.contains(volume))
    {
        on.host.delete_volume(&left.pool, &left.name).await?;
        on.disk = None;
    }
    // libvirt finds it by its UUID and lets nobody rename it so.
    let node = Node {
        name: claim.name.clone(),
        ..on.node.clone()
    };
    on.host
        .define_domain(&claim.name, xml(on, &node, &mark)?)
        .await?;
    on.look().await.map(drop)
}

/// Why a claim that never ran is not for this run to go on with.
fn held(on: &NodeRun, claim: &Domain, mark: &Mark) -> Option<Error> {
    let name = &on.node.name;
    if claim.running {
        return Some(
            Error::failed(format!(
                "{name} runs, but its seed was never written: somebody else started it"
            ))
            .with_help(format!(
                "power it off, virsh destroy {}; or remove it: nodegraft down {name}",
                claim.name
            )),
        );
    }
    let by = mark
        .by
        .as_ref()
        .filter(|by| **by != process::this() && process::is_here(by) && process::may_live(by))?;
    Some(
        Error::failed(format!(
            "another run is making {name} (host, process and start: {by})"
        ))
        .with_help("wait for it, or stop it"),
    )
}

/// Why a claim that never ran is to be defined anew. What its mark says is compared: that is how it was defined.
fn outdated(on: &NodeRun, before: &Mark) -> Option<String> {
    let wanted = mark(on, &before.owner);
    let settings = |mark: &Mark| {
        mark.made_with
            .clone()
            .into_iter()
            .chain([("address".to_owned(), mark.address.clone())])
            .collect::<BTreeMap<_, _>>()
    };
    let was = settings(before);
    let differences: Vec<Difference> = settings(&wanted)
        .into_iter()
        .map(|(key, wanted)| Difference {
            is: was.get(&key).cloned(),
            key,
            wanted: Some(wanted),
        })
        .filter(|difference| difference.is != difference.wanted)
        .collect();
    if !differences.is_empty() {
        return Some(format!(
            "it never ran, and is to be defined as the spec says by now: {}",
            sentence(&differences)
        ));
    }
    (wanted.by != before.by).then(|| "it is taken over from an interrupted run".to_owned())
}

/// The mark of a claim whose VM this run is about to make.
fn mark(on: &NodeRun, owner: &Owner) -> Mark {
    let volumes = [owner.disk(), owner.seed()]
        .map(|name| Claimed {
            pool: on.node.pool.clone(),
            name,
        })
        .to_vec();
    Mark {
        made_with: made_with(on),
        by: Some(process::this()),
        ..Mark::new(owner.clone(), &on.node.address, volumes)
    }
}

/// Everything that its domain is defined with.
fn made_with(on: &NodeRun) -> BTreeMap<String, String> {
    let mut settings = on.node.made_with();
    settings.extend([
        ("cpus".to_owned(), on.node.cpus.to_string()),
        ("memory".to_owned(), Size(on.node.memory).to_string()),
        ("virt_type".to_owned(), on.run.sight.virt_type.clone()),
        (
            "disk_cache".to_owned(),
            on.run.plan.host.disk_cache.clone().unwrap_or_default(),
        ),
    ]);
    settings
}

fn xml(on: &NodeRun, node: &Node, mark: &Mark) -> Result<String> {
    let sight = &on.run.sight;
    let facts = HostFacts {
        virt_type: sight.virt_type.clone(),
        disk_path: sight.pool.path_of(&mark.owner.disk()),
        seed_path: sight.pool.path_of(&mark.owner.seed()),
    };
    on.run.plan.domain_xml(node, &facts, mark)
}
