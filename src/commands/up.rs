//! `up`: every node through the whole list, several at a time, each independent of the others' failures.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use super::{Setting, open};
use crate::cli::{self, AccessMode, OnFailure};
use crate::error::{Error, Exit, Result};
use crate::event::{Event, NodeResult, NodeRow};
use crate::journal::Journal;
use crate::pipeline::runner::{Walk, Walked};
use crate::plan::{Node, Plan};
use crate::spec::Access;
use crate::stages::{Drain, NodeRun, Run, node_stages, run_stages};

pub async fn run(args: &cli::Up, setting: &Setting) -> Result<Exit> {
    let mut plan = setting.plan(&args.spec)?;
    plan.cluster.access = args.access.map_or(plan.cluster.access, access);
    run_plan(plan, args.parallel, args.on_failure, &args.spec.file, setting).await
}

pub(super) fn access(mode: AccessMode) -> Access {
    match mode {
        AccessMode::Ensure => Access::Ensure,
        AccessMode::Require => Access::Require,
        AccessMode::None => Access::None,
    }
}

/// Brings a plan's nodes up. `file` is where its spec is, for what to do next.
pub async fn run_plan(plan: Plan, parallel: u16, on_failure: OnFailure, file: &Path, setting: &Setting) -> Result<Exit> {
    let begun = Instant::now();
    let _lock = crate::state::StateDir::open(&plan.cluster.name)?.lock()?;
    let run = open(plan, Drain::No).await?;
    setting.events.send(Event::RunStarted {
        command: story(&run).into(),
        cluster: run.plan.cluster.name.clone(),
        run_stages: run_stages(joins(&run)).iter().map(|stage| stage.name().to_owned()).collect(),
        nodes: rows(&run.plan),
    });
    prepare(&run, setting).await?;
    let walks = run.plan.nodes.iter().map(|node| graft(Arc::clone(&run), node.clone(), on_failure, setting));
    let results: Vec<NodeResult> = futures_util::stream::iter(walks).buffer_unordered(usize::from(parallel)).collect().await;
    let count = |wanted| results.iter().filter(|result| **result == wanted).count();
    setting.events.send(Event::RunFinished {
        command: story(&run).into(),
        done: count(NodeResult::Done),
        unchanged: count(NodeResult::Unchanged),
        failed: count(NodeResult::Failed),
        stopped: count(NodeResult::Interrupted),
        seconds: begun.elapsed().as_secs_f64(),
        next: next_steps(&run, &results, file),
    });
    Ok(if setting.stop.is_cancelled() {
        Exit::Interrupted
    } else if count(NodeResult::Failed) > 0 {
        Exit::NodesFailed
    } else {
        Exit::Done
    })
}

/// What the run is called in its events: machines that join nothing are only created.
fn story(run: &Run) -> &'static str {
    if joins(run) { "up" } else { "create" }
}

/// Whether these machines join a cluster.
pub(super) fn joins(run: &Run) -> bool {
    run.cluster.is_some()
}

pub(super) fn rows(plan: &Plan) -> Vec<NodeRow> {
    let stages = |node| node_stages(node, plan.cluster.source.is_some()).iter().map(|stage| stage.name().to_owned()).collect();
    plan.nodes.iter().map(|node| NodeRow { name: node.name.clone(), stages: stages(node) }).collect()
}

/// What is true for all nodes, before any of them is touched.
async fn prepare(run: &Arc<Run>, setting: &Setting) -> Result<()> {
    let journal = Journal::default();
    let stages = run_stages(joins(run));
    let walk = Walk {
        stages: &stages,
        on: run.as_ref(),
        subject: None,
        events: setting.events.clone(),
        stop: setting.stop.clone(),
        journal: &journal,
    };
    walk.forward().await.result.map_err(|error| {
        let told = !error.is_interruption();
        let error = if error.exit().is_some() { error } else { Error::new("the run cannot begin").because(error).with_exit(Exit::Unfit) };
        if told { error.shown() } else { error }
    })
}

async fn graft(run: Arc<Run>, node: Node, on_failure: OnFailure, setting: &Setting) -> NodeResult {
    let begun = Instant::now();
    let name = node.name.clone();
    let node_run = NodeRun::new(run, node);
    let journal = Journal::default();
    let stages = node_stages(&node_run.node, joins(&node_run.run));
    let walk = Walk {
        stages: &stages,
        on: &node_run,
        subject: Some(name.clone()),
        events: setting.events.clone(),
        stop: setting.stop.clone(),
        journal: &journal,
    };
    let Walked { applied, result } = walk.forward().await;
    let (result, detail) = match result {
        Ok(()) if applied.is_empty() => (NodeResult::Unchanged, String::new()),
        Ok(()) => (NodeResult::Done, format!("ssh -i {} {}@{}", node_run.run.key.path.display(), node_run.node.user, node_run.node.ip)),
        Err(error) => {
            let kind = if error.is_interruption() { NodeResult::Interrupted } else { NodeResult::Failed };
            let mut detail = error.to_string();
            if on_failure == OnFailure::Undo && !applied.is_empty() {
                let left = walk.backward(|index| applied.contains(&index)).await;
                detail = if left.is_empty() {
                    format!("{detail}; what this run made was removed")
                } else {
                    format!("{detail}; some of what this run made could not be removed")
                };
            }
            (kind, detail)
        }
    };
    setting.events.send(Event::NodeFinished { node: name, result, detail, seconds: begun.elapsed().as_secs_f64() });
    result
}

fn next_steps(run: &Run, results: &[NodeResult], file: &Path) -> Vec<String> {
    let file = file.display();
    let failed = results.iter().any(|result| matches!(result, NodeResult::Failed | NodeResult::Interrupted));
    if failed {
        return vec![
            format!("nodegraft up -f {file}      goes on where it stopped"),
            format!("nodegraft down -f {file}    removes what was made"),
        ];
    }
    let node = &run.plan.nodes[0].name;
    vec![format!("nodegraft status -f {file}"), format!("nodegraft ssh -f {file} {node}"), format!("nodegraft down -f {file}")]
}
