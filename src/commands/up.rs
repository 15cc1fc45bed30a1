//! `up`: every node through the whole list, several at a time, each independent of the others' failures.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use super::down::{ask, lines};
use super::{Setting, Verdict, open};
use crate::cli::{self, AccessMode, OnFailure};
use crate::core::difference::{self, Difference, sentence};
use crate::core::error::{Error, Kind, Result, one_line};
use crate::core::event::{Event, NodeResult, NodeRow};
use crate::core::journal::{Journal, Thing};
use crate::core::ownership::Owner;
use crate::core::plan::{Node, Plan};
use crate::core::spec::Access;
use crate::pipeline::runner::{Walked, names};
use crate::rooms::cluster::access::NeededBy;
use crate::stages::inventory::{Ask, Inventory};
use crate::stages::removal::{Drain, Removal, Remover};
use crate::stages::{NodeRun, Opened, Run, node_stages, run_stages};
use crate::ui::prompt::Prompt;

/// How a plan is brought up.
pub struct Manner<'a> {
    pub parallel: u16,
    pub on_failure: OnFailure,
    /// Nodes to remove first, one at a time.
    pub recreate: &'a [String],
    pub drain: Drain,
    pub yes: bool,
}

impl Manner<'_> {
    pub fn one(on_failure: OnFailure) -> Self {
        Self {
            parallel: 1,
            on_failure,
            recreate: &[],
            drain: Drain::No,
            yes: true,
        }
    }
}

pub async fn run(args: &cli::Up, setting: &Setting) -> Result<Verdict> {
    let mut plan = setting.plan(&args.spec)?;
    plan.cluster.access = args.access.map_or(plan.cluster.access, access);
    if let Some(unknown) = args
        .recreate
        .iter()
        .find(|name| plan.nodes.iter().all(|node| node.name != **name))
    {
        return Err(
            Error::refused(format!("--recreate {unknown}: this run has no such node")).with_help(
                format!(
                    "its nodes are: {}",
                    plan.nodes
                        .iter()
                        .map(|node| node.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
        );
    }
    let manner = Manner {
        parallel: args.parallel,
        on_failure: args.on_failure,
        recreate: &args.recreate,
        drain: Drain::Within(args.drain_timeout.0),
        yes: args.yes,
    };
    run_plan(plan, &manner, &args.spec.file, setting).await
}

pub(super) fn access(mode: AccessMode) -> Access {
    match mode {
        AccessMode::Ensure => Access::Ensure,
        AccessMode::Require => Access::Require,
        AccessMode::None => Access::None,
    }
}

/// Brings a plan's nodes up. `file` is where its spec is, for what to do next.
pub async fn run_plan(
    plan: Plan,
    manner: &Manner<'_>,
    file: &Path,
    setting: &Setting,
) -> Result<Verdict> {
    let begun = Instant::now();
    let _lock = crate::rooms::state::StateDir::open(&plan.cluster.name)?.lock()?;
    let _shared = crate::rooms::state::lock_host(&plan.host.uri, &plan.cluster.name)?;
    let mut run = open(plan, manner.recreate.to_vec()).await?;
    agree(&run, manner, setting).await?;
    setting.events.send(Event::RunStarted {
        command: story(&run).into(),
        cluster: run.plan.cluster.name.clone(),
        run_stages: names(&run_stages(joins(&run))),
        nodes: rows(&run.plan),
    });
    let journal = Journal::default();
    if let Err(error) = prepare(&mut run, setting, &journal).await {
        if manner.on_failure == OnFailure::Undo {
            undo_access(&run, &journal, setting).await;
        }
        return Err(error);
    }
    let run = Arc::new(run.sighted()?);
    tell_of_strays(&run, file, setting);
    let mut results = Vec::new();
    let (anew, rest): (Vec<&Node>, Vec<&Node>) = run
        .plan
        .nodes
        .iter()
        .partition(|node| manner.recreate.contains(&node.name));
    for node in anew {
        // One that did not come back is enough: the others still run.
        if results
            .iter()
            .any(|result| matches!(result, NodeResult::Failed | NodeResult::Interrupted))
        {
            let detail = "left as it was, since the one before it did not come back".to_owned();
            setting.events.send(Event::NodeFinished {
                node: node.name.clone(),
                result: NodeResult::Interrupted,
                detail,
                seconds: 0.0,
            });
            results.push(NodeResult::Interrupted);
        } else {
            results.push(recreate(&run, node, manner, &journal, setting).await);
        }
    }
    let walks = rest.into_iter().map(|node| {
        graft(
            NodeRun::new(Arc::clone(&run), node.clone()),
            manner.on_failure,
            &journal,
            setting,
        )
    });
    results.extend(
        futures_util::stream::iter(walks)
            .buffer_unordered(usize::from(manner.parallel))
            .collect::<Vec<NodeResult>>()
            .await,
    );
    let count = |wanted| results.iter().filter(|result| **result == wanted).count();
    if manner.on_failure == OnFailure::Undo
        && count(NodeResult::Failed) + count(NodeResult::Interrupted) > 0
    {
        undo_access(&run, &journal, setting).await;
    }
    setting.events.send(Event::RunFinished {
        command: story(&run).into(),
        done: count(NodeResult::Done),
        unchanged: count(NodeResult::Unchanged),
        differing: count(NodeResult::Differs),
        failed: count(NodeResult::Failed),
        stopped: count(NodeResult::Interrupted),
        seconds: begun.elapsed().as_secs_f64(),
        next: next_steps(&run, &results, file),
    });
    Ok(if setting.stop.is_cancelled() {
        Verdict::Reported(Kind::Interrupted)
    } else if count(NodeResult::Failed) > 0 {
        Verdict::Reported(Kind::Failed)
    } else {
        Verdict::Done
    })
}

/// What the run is called in its events: machines that join nothing are only created.
fn story<S>(run: &Run<S>) -> &'static str {
    if joins(run) { "up" } else { "create" }
}

/// Whether these machines join a cluster.
fn joins<S>(run: &Run<S>) -> bool {
    run.cluster.is_some()
}

fn rows(plan: &Plan) -> Vec<NodeRow> {
    let stages = |node| names(&node_stages(node, plan.cluster.source.is_some()));
    plan.nodes
        .iter()
        .map(|node| NodeRow {
            name: node.name.clone(),
            stages: stages(node),
        })
        .collect()
}

/// A terminal is asked before nodes are removed to be made anew.
async fn agree(run: &Opened, manner: &Manner<'_>, setting: &Setting) -> Result<()> {
    let prompt = Prompt::new(manner.yes);
    if manner.recreate.is_empty() || !prompt.asks() {
        return Ok(());
    }
    let inventory = Inventory::take(
        &run.host,
        run.cluster.as_ref(),
        &run.plan.cluster.name,
        Ask::Everything,
    )
    .await?;
    let doomed: Vec<_> = inventory
        .nodes
        .iter()
        .filter(|node| manner.recreate.contains(&node.owner.node))
        .collect();
    if doomed.is_empty() {
        return Ok(());
    }
    ask(
        &prompt,
        &lines(&doomed),
        "Remove this, and make it anew?",
        setting,
    )
}

/// What is true for all nodes, before any of them is touched.
async fn prepare(run: &mut Opened, setting: &Setting, journal: &Journal) -> Result<()> {
    let stages = run_stages(joins(run));
    let walk = setting.walk(&stages, run, None, journal);
    walk.forward().await.result.map_err(|error| {
        let told = !error.is_interruption();
        let error = match error.kind() {
            Kind::Failed => Error::unfit("the run cannot begin").because(error),
            _ => error,
        };
        if told { error.shown() } else { error }
    })
}

/// Nodes of this cluster that the spec no longer names go on running until somebody says so.
fn tell_of_strays(run: &Run, file: &Path, setting: &Setting) {
    let owners = run
        .sight
        .domains
        .iter()
        .filter_map(|domain| domain.owner())
        .filter(|owner| owner.is_of(&run.plan.cluster.name));
    for stray in owners.filter(|owner| !run.plan.names.contains(&owner.node)) {
        setting.events.send(Event::Warning {
            node: None,
            message: format!(
                "{} is a node of this cluster that the spec no longer names",
                stray.node
            ),
            help: Some(format!(
                "to remove it: nodegraft down -f {} {}",
                file.display(),
                stray.node
            )),
        });
    }
}

/// Removes a node as `down` does, and brings it up as a new one.
async fn recreate(
    run: &Arc<Run>,
    node: &Node,
    manner: &Manner<'_>,
    shared: &Journal,
    setting: &Setting,
) -> NodeResult {
    let begun = Instant::now();
    let failed = |result, detail: String| {
        setting.events.send(Event::NodeFinished {
            node: node.name.clone(),
            result,
            detail,
            seconds: begun.elapsed().as_secs_f64(),
        });
        result
    };
    let cluster = run.cluster.as_ref();
    let inventory =
        match Inventory::take(&run.host, cluster, &run.plan.cluster.name, Ask::Everything).await {
            Ok(inventory) => inventory,
            Err(error) => return failed(NodeResult::Failed, one_line(&error)),
        };
    if let Some(existing) = inventory.node(&node.name) {
        if let Some(refusal) = existing.refusal() {
            return failed(NodeResult::Failed, one_line(&refusal));
        }
        let remover = Remover::new(
            &run.plan.cluster.name,
            Some(&run.host),
            cluster,
            setting.events.clone(),
            setting.stop.clone(),
        );
        let removed = remover.remove(&existing.removal(manner.drain)).await;
        if removed.stopped {
            return failed(NodeResult::Interrupted, "stopped at your request".into());
        }
        if let Some(error) = removed.left.first() {
            return failed(NodeResult::Failed, one_line(error));
        }
    }
    graft(
        NodeRun::anew(Arc::clone(run), node.clone()),
        manner.on_failure,
        shared,
        setting,
    )
    .await
}

/// `shared` is the journal of the run: what serves more than this node goes there.
async fn graft(
    mut on: NodeRun,
    on_failure: OnFailure,
    shared: &Journal,
    setting: &Setting,
) -> NodeResult {
    let begun = Instant::now();
    let name = on.node.name.clone();
    let journal = Journal::default();
    let stages = node_stages(&on.node, joins(&on.run));
    let walk = setting.walk(&stages, &mut on, Some(name.clone()), &journal);
    let Walked { applied, result } = walk.forward().await;
    for thing in journal.shared() {
        shared.made(thing);
    }
    let (result, detail) = match result {
        Ok(()) => arrived(&on, &applied),
        Err(error) => {
            let kind = if error.is_interruption() {
                NodeResult::Interrupted
            } else {
                NodeResult::Failed
            };
            let undone = if on_failure == OnFailure::Undo {
                undo(&on, &journal, setting).await
            } else {
                String::new()
            };
            (kind, format!("{error}{undone}"))
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

/// The node is up: as the spec says, or with what only a new VM can change.
fn arrived(on: &NodeRun, applied: &[usize]) -> (NodeResult, String) {
    let differing = differences(on);
    if !differing.is_empty() {
        return (
            NodeResult::Differs,
            format!(
                "{}; to make it anew: nodegraft up --recreate {}",
                sentence(&differing),
                on.node.name
            ),
        );
    }
    match applied {
        [] => (NodeResult::Unchanged, String::new()),
        _ => (
            NodeResult::Done,
            format!(
                "ssh -i {} {}@{}",
                on.run.key.path.display(),
                on.node.user,
                on.node.ip
            ),
        ),
    }
}

fn differences(on: &NodeRun) -> Vec<Difference> {
    let Some(claim) = on.claim() else {
        return Vec::new();
    };
    let Some(mark) = &claim.mark else {
        return Vec::new();
    };
    let machine = difference::Machine {
        mark,
        cpus: claim.cpus,
        memory: claim.memory,
        disk: on.disk_capacity(),
    };
    difference::of_machine(&on.node, &machine)
}

/// Removes what this run made of the node, and nothing else: a node that was there before stays as it was.
async fn undo(on: &NodeRun, journal: &Journal, setting: &Setting) -> String {
    let things = journal.backward();
    if things.is_empty() {
        return "; this run had made nothing of it".into();
    }
    let made = things.iter().find_map(|thing| match thing {
        Thing::Domain { uuid, .. } => Some(uuid.clone()),
        _ => None,
    });
    let Some(uuid) = made.or_else(|| on.claim().map(|claim| claim.uuid)) else {
        return "; its claim is gone, and with it the proof of what this run made".into();
    };
    // What was under way when the run ended may yet make something.
    on.host.settle().await;
    let removal = Removal {
        owner: Owner::of_domain(&on.run.plan.cluster.name, &on.node.name, &uuid),
        uuid: Some(uuid),
        things,
        drain: None,
        looked: None,
    };
    // A stop that ended the run does not end its undoing.
    let stop = tokio_util::sync::CancellationToken::new();
    let remover = Remover::new(
        &on.run.plan.cluster.name,
        Some(&on.host),
        on.run.cluster.as_ref(),
        setting.events.clone(),
        stop,
    );
    let removed = remover.undo_all(&removal, on).await;
    if removed.left.is_empty() {
        "; what this run made was removed".into()
    } else {
        format!(
            "; some of what this run made is left: {}",
            removed
                .left
                .iter()
                .map(one_line)
                .collect::<Vec<_>>()
                .join("; ")
        )
    }
}

/// The binding that this run made, unless somebody needs it by now.
async fn undo_access<S>(run: &Run<S>, journal: &Journal, setting: &Setting) {
    let bound = !journal.shared().is_empty();
    if let (true, Some(cluster)) = (bound, &run.cluster)
        && let Err(error) = cluster
            .release_binding(&run.plan.cluster.name, NeededBy::NodesAndTokens)
            .await
    {
        setting.events.send(Event::Warning {
            node: None,
            message: one_line(&error),
            help: error.help().map(str::to_owned),
        });
    }
}

fn next_steps(run: &Run, results: &[NodeResult], file: &Path) -> Vec<String> {
    let file = file.display();
    let failed = results
        .iter()
        .any(|result| matches!(result, NodeResult::Failed | NodeResult::Interrupted));
    if failed {
        return vec![
            format!("nodegraft up -f {file}      goes on where it stopped"),
            format!("nodegraft down -f {file}    removes what was made"),
        ];
    }
    let node = &run.plan.nodes[0].name;
    vec![
        format!("nodegraft status -f {file}"),
        format!("nodegraft ssh -f {file} {node}"),
        format!("nodegraft down -f {file}"),
    ]
}
