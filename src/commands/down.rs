//! `down`: undo over the same list, backward. Absence is success, every error is collected, nothing of others is touched.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use super::up::joins;
use super::{Setting, open};
use crate::cli;
use crate::error::{Exit, Result, one_line};
use crate::event::{Event, NodeResult, NodeRow};
use crate::journal::Journal;
use crate::pipeline::runner::Walk;
use crate::plan::Node;
use crate::stages::{Drain, NodeRun, Run, node_stages, run_stages};

pub async fn run(args: &cli::Down, setting: &Setting) -> Result<Exit> {
    let begun = Instant::now();
    let plan = setting.plan(&args.spec)?;
    let _lock = crate::state::StateDir::open(&plan.cluster.name)?.lock()?;
    let run = open(plan, if args.force { Drain::No } else { Drain::Within(args.drain_timeout.0) }).await?;
    let whole = args.spec.nodes.is_empty();
    let backward = |mut names: Vec<String>| {
        names.reverse();
        names
    };
    setting.events.send(Event::RunStarted {
        command: "down".into(),
        cluster: run.plan.cluster.name.clone(),
        run_stages: if whole {
            backward(run_stages(joins(&run)).iter().map(|stage| stage.name().to_owned()).collect())
        } else {
            Vec::new()
        },
        nodes: super::up::rows(&run.plan).into_iter().map(|row| NodeRow { name: row.name, stages: backward(row.stages) }).collect(),
    });
    let walks = run.plan.nodes.iter().map(|node| remove(Arc::clone(&run), node.clone(), setting));
    let results: Vec<NodeResult> = futures_util::stream::iter(walks).buffer_unordered(usize::from(args.parallel)).collect().await;
    let mut failed = results.iter().filter(|result| **result == NodeResult::Failed).count();
    // The binding serves every node of the cluster: it goes with the last of them.
    if whole && failed == 0 && !others_remain(&run).await? {
        let journal = Journal::default();
        let stages = run_stages(joins(&run));
        let walk = Walk {
            stages: &stages,
            on: run.as_ref(),
            subject: None,
            events: setting.events.clone(),
            stop: setting.stop.clone(),
            journal: &journal,
        };
        failed += walk.backward(|_| true).await.len();
    }
    setting.events.send(Event::RunFinished {
        command: "down".into(),
        done: results.iter().filter(|result| **result == NodeResult::Done).count(),
        unchanged: results.iter().filter(|result| **result == NodeResult::Unchanged).count(),
        failed,
        stopped: 0,
        seconds: begun.elapsed().as_secs_f64(),
        next: if failed > 0 { vec![format!("nodegraft down -f {}    tries the rest again", args.spec.file.display())] } else { Vec::new() },
    });
    Ok(if failed > 0 { Exit::Leftover } else { Exit::Done })
}

async fn remove(run: Arc<Run>, node: Node, setting: &Setting) -> NodeResult {
    let begun = Instant::now();
    let name = node.name.clone();
    let node_run = NodeRun::new(run, node);
    let existed = node_run.exists().await;
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
    let errors = walk.backward(|_| true).await;
    let (result, detail) = match (errors.as_slice(), existed) {
        ([], false) => (NodeResult::Unchanged, "there was nothing of it".to_owned()),
        ([], true) => (NodeResult::Done, "gone".to_owned()),
        (errors, _) => (NodeResult::Failed, errors.iter().map(one_line).collect::<Vec<_>>().join("; ")),
    };
    setting.events.send(Event::NodeFinished { node: name, result, detail, seconds: begun.elapsed().as_secs_f64() });
    result
}

/// Domains of this cluster that another spec, or an earlier version of this one, made.
async fn others_remain(run: &Run) -> Result<bool> {
    let marked = run.host.marked_domains().await?;
    Ok(marked.iter().any(|domain| domain.mark.as_ref().is_some_and(|mark| mark.cluster == run.plan.cluster.name)))
}
