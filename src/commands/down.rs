//! `down`: looks once at the host and at the cluster, shows what will go, asks a terminal, and walks it. It needs neither
//! profile nor templates. What it cannot prove to be of this cluster it tells of, and leaves.

use std::time::Instant;

use futures_util::StreamExt;

use super::{Setting, Verdict, cluster_if_any, load_outline};
use crate::cli;
use crate::core::error::{Error, Kind, Result, one_line};
use crate::core::event::{Event, NodeResult, NodeRow};
use crate::core::plan;
use crate::core::spec::Outline;
use crate::rooms::cluster::Cluster;
use crate::rooms::cluster::access::{NeededBy, Released};
use crate::rooms::libvirt::Host;
use crate::stages::inventory::{Ask, Existing, Inventory};
use crate::stages::removal::{Drain, Remover};
use crate::ui::prompt::Prompt;

pub async fn run(args: &cli::Down, setting: &Setting) -> Result<Verdict> {
    let outline = load_outline(&args.spec.file)?;
    let terms = plan::ClusterPlan::of_spec(&outline.cluster)?;
    let _lock = crate::rooms::state::StateDir::open(&terms.name)?.lock()?;
    let _shared = crate::rooms::state::lock_host(&outline.host.uri, &terms.name)?;
    let host = Host::open(&outline.host.uri).await?;
    let cluster = if args.without_cluster {
        None
    } else {
        cluster(&terms).await?
    };
    let inventory = Inventory::take(&host, cluster.as_ref(), &terms.name, Ask::Everything).await?;
    let doomed = choose(&inventory, &outline, args)?;
    tell_of_the_rest(&inventory, &doomed, &outline, args, setting);
    let prompt = Prompt::new(args.yes);
    if !doomed.is_empty() && prompt.asks() {
        ask(
            &prompt,
            &lines(&doomed),
            &format!("Remove this from {}?", host.uri()),
            setting,
        )?;
    }
    // Nobody's time at the prompt.
    let begun = Instant::now();
    let drain = if args.force {
        Drain::No
    } else {
        Drain::Within(args.drain_timeout.0)
    };
    setting.events.send(Event::RunStarted {
        command: "down".into(),
        cluster: terms.name.clone(),
        run_stages: Vec::new(),
        nodes: doomed
            .iter()
            .map(|node| NodeRow {
                name: node.owner.node.clone(),
                stages: node.removal(drain).rows(),
            })
            .collect(),
    });
    let remover = Remover::new(
        &terms.name,
        Some(&host),
        cluster.as_ref(),
        setting.events.clone(),
        setting.stop.clone(),
    );
    let walks = doomed
        .iter()
        .map(|node| remove(node, drain, &remover, setting));
    let results: Vec<NodeResult> = futures_util::stream::iter(walks)
        .buffer_unordered(usize::from(args.parallel))
        .collect()
        .await;
    let count = |wanted| results.iter().filter(|result| **result == wanted).count();
    let mut failed = count(NodeResult::Failed);
    // The binding serves every node of the cluster, on whatever host: it goes with the last of them.
    let last = results.len() == inventory.nodes.len() && count(NodeResult::Done) == results.len();
    if last && let Some(cluster) = &cluster {
        failed += release(cluster, &terms.name, setting).await;
    }
    if args.without_cluster && terms.source.is_some() {
        tell_of_the_cluster(&doomed, &terms, setting);
    }
    let again = failed + count(NodeResult::Interrupted) > 0;
    setting.events.send(Event::RunFinished {
        command: "down".into(),
        done: count(NodeResult::Done),
        unchanged: 0,
        differing: 0,
        failed,
        stopped: count(NodeResult::Interrupted),
        seconds: begun.elapsed().as_secs_f64(),
        next: if again {
            vec![format!(
                "nodegraft down -f {}    tries the rest again",
                args.spec.file.display()
            )]
        } else {
            Vec::new()
        },
    });
    Ok(if setting.stop.is_cancelled() {
        Verdict::Reported(Kind::Interrupted)
    } else if failed > 0 {
        Verdict::Reported(Kind::Leftover)
    } else {
        Verdict::Done
    })
}

async fn cluster(terms: &plan::ClusterPlan) -> Result<Option<Cluster>> {
    cluster_if_any(terms).await.map_err(|error| {
        let help = error
            .help()
            .unwrap_or("the cluster cannot be asked")
            .to_owned();
        Error::unfit("nothing was removed, since the cluster does not answer")
            .because(error)
            .with_help(format!(
                "{help}; if the cluster is dead: nodegraft down --without-cluster"
            ))
    })
}

/// The nodes that are to go: those named, all there are, or those that the spec names.
fn choose<'a>(
    inventory: &'a Inventory,
    outline: &Outline,
    args: &cli::Down,
) -> Result<Vec<&'a Existing>> {
    let specified = |name: &str| outline.nodes.iter().any(|node| node.name == name);
    if let Some(unknown) = args
        .spec
        .nodes
        .iter()
        .find(|name| inventory.node(name).is_none() && !specified(name))
    {
        let mut known: Vec<&str> = inventory
            .nodes
            .iter()
            .map(|node| node.owner.node.as_str())
            .collect();
        known.extend(outline.nodes.iter().map(|node| node.name.as_str()));
        known.sort_unstable();
        known.dedup();
        return Err(Error::refused(format!(
            "neither the spec nor the host knows a node `{unknown}` of this cluster"
        ))
        .with_help(format!("its nodes are: {}", known.join(", "))));
    }
    let wanted = |node: &&Existing| {
        let name = &node.owner.node;
        if args.spec.nodes.is_empty() {
            args.all || specified(name)
        } else {
            args.spec.nodes.contains(name)
        }
    };
    Ok(inventory.nodes.iter().filter(wanted).collect())
}

/// What stays, and how it would go.
fn tell_of_the_rest(
    inventory: &Inventory,
    doomed: &[&Existing],
    outline: &Outline,
    args: &cli::Down,
    setting: &Setting,
) {
    let warn = |message: String, help: String| {
        setting.events.send(Event::Warning {
            node: None,
            message,
            help: Some(help),
        })
    };
    if args.spec.nodes.is_empty() {
        for stray in inventory
            .nodes
            .iter()
            .filter(|node| doomed.iter().all(|gone| gone.owner != node.owner))
        {
            let name = &stray.owner.node;
            warn(
                format!(
                    "{name} is a node of this cluster that the spec no longer names, and stays"
                ),
                format!(
                    "to remove it: nodegraft down -f {} {name}, or --all",
                    args.spec.file.display()
                ),
            );
        }
        for volume in &inventory.unclaimed {
            warn(
                format!(
                    "the volume {} of the pool {} has this cluster's prefix, but no domain claims it: it stays",
                    volume.name, volume.pool
                ),
                format!(
                    "if nobody needs it: virsh -c '{}' vol-delete --pool {} {}",
                    outline.host.uri, volume.pool, volume.name
                ),
            );
        }
    }
    let asked = |name: &String| {
        if args.spec.nodes.is_empty() {
            outline.nodes.iter().any(|node| node.name == *name)
        } else {
            args.spec.nodes.contains(name)
        }
    };
    for name in inventory.foreign_nodes().filter(|name| asked(name)) {
        warn(
            format!(
                "the cluster's Node {name} belongs to a machine that is not on {}, and stays",
                outline.host.uri
            ),
            format!(
                "run down on the host that has it; if that machine is gone: kubectl delete node {name}"
            ),
        );
    }
}

/// What will go, a line for each node.
pub(super) fn lines(doomed: &[&Existing]) -> String {
    doomed
        .iter()
        .map(|node| format!("  {}\n", node.describe()))
        .collect()
}

/// Asks, after the events so far were shown.
pub(super) fn ask(prompt: &Prompt, what: &str, question: &str, setting: &Setting) -> Result<()> {
    prompt.say(what.trim_end());
    if prompt.confirm(question, false)? && !setting.stop.is_cancelled() {
        return Ok(());
    }
    if setting.stop.is_cancelled() {
        return Err(Error::interrupted());
    }
    Err(Error::refused("nothing was removed"))
}

async fn remove(
    node: &Existing,
    drain: Drain,
    remover: &Remover<'_>,
    setting: &Setting,
) -> NodeResult {
    let begun = Instant::now();
    let name = node.owner.node.clone();
    let (result, detail) = match node.refusal() {
        Some(refusal) => (
            NodeResult::Failed,
            format!(
                "{}; {}",
                one_line(&refusal),
                refusal.help().unwrap_or_default()
            ),
        ),
        None => {
            let removed = remover.remove(&node.removal(drain)).await;
            match (removed.left.as_slice(), removed.stopped) {
                ([], false) => (NodeResult::Done, "gone".to_owned()),
                ([], true) => (
                    NodeResult::Interrupted,
                    "stopped at your request; what had not begun stays".to_owned(),
                ),
                (left, _) => (
                    NodeResult::Failed,
                    left.iter().map(one_line).collect::<Vec<_>>().join("; "),
                ),
            }
        }
    };
    setting.events.send(Event::NodeFinished {
        node: name,
        result,
        detail,
        seconds: begun.elapsed().as_secs_f64(),
    });
    result
}

/// How many things it left.
async fn release(cluster: &Cluster, name: &str, setting: &Setting) -> usize {
    let warn = |message: String, help: Option<String>| {
        setting.events.send(Event::Warning {
            node: None,
            message,
            help,
        })
    };
    match cluster
        .release_binding(name, NeededBy::NodesAndTokens)
        .await
    {
        Ok(Released::Removed(_) | Released::Absent) => 0,
        Ok(Released::Kept(why) | Released::Foreign(why)) => {
            warn(why, None);
            0
        }
        Err(error) => {
            warn(one_line(&error), error.help().map(str::to_owned));
            1
        }
    }
}

fn tell_of_the_cluster(doomed: &[&Existing], terms: &plan::ClusterPlan, setting: &Setting) {
    let names: Vec<&str> = doomed.iter().map(|node| node.owner.node.as_str()).collect();
    if names.is_empty() {
        return;
    }
    setting.events.send(Event::Warning {
        node: None,
        message: format!(
            "the cluster was not asked: the Nodes {} may still be there, with their leases and the cluster's binding",
            names.join(", ")
        ),
        help: Some(format!(
            "if it comes back: kubectl delete node {}; kubectl delete clusterrolebinding {}",
            names.join(" "),
            crate::rooms::cluster::access::binding_name(&terms.name)
        )),
    });
}
