//! Events as lines of text, for logs and pipes; `bars.rs` uses the same words.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use console::style;

use super::summary::Summary;
use super::{Renderer, failure_text};
use crate::core::event::{Event, Outcome, Subject};

/// A quiet wait shows itself this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

pub struct Lines {
    verbose: bool,
    summary: Summary,
    width: usize,
    spoke: HashMap<Subject, Instant>,
    phases: HashMap<Subject, String>,
}

impl Lines {
    pub fn new(verbose: bool) -> Self {
        Self {
            verbose,
            summary: Summary::default(),
            width: 0,
            spoke: HashMap::new(),
            phases: HashMap::new(),
        }
    }

    /// The text of an event, or nothing. Pure but for the clock of the heartbeat.
    fn text(&mut self, event: &Event) -> Option<String> {
        self.summary.event(event);
        if let Event::RunStarted { nodes, .. } = event {
            self.width = nodes
                .iter()
                .map(|row| row.name.chars().count())
                .max()
                .unwrap_or(0);
        }
        if let Event::Progress { node, detail, .. } = event {
            // What stands before the colon is the phase; what follows changes all the time.
            let phase = detail.split(':').next().unwrap_or_default();
            let known = self
                .phases
                .insert(node.clone(), phase.to_owned())
                .is_some_and(|last| last == phase);
            let quiet = self
                .spoke
                .get(node)
                .is_some_and(|at| at.elapsed() < HEARTBEAT);
            if known && quiet && !self.verbose {
                return None;
            }
        }
        if let Event::Output { .. } = event
            && !self.verbose
        {
            return None;
        }
        let text = match event {
            Event::RunFinished { .. } => Some(format!(
                "\n{}{}",
                self.summary.text(),
                text(event, self.width)?
            )),
            _ => text(event, self.width),
        }?;
        if let Event::StageStarted { node, .. }
        | Event::StageFinished { node, .. }
        | Event::Progress { node, .. } = event
        {
            self.spoke.insert(node.clone(), Instant::now());
        }
        Some(text)
    }
}

impl Renderer for Lines {
    fn event(&mut self, event: &Event) {
        if let Some(text) = self.text(event) {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
    }
}

/// The words for an event; every line ends with a newline. `width` is that of the longest node name.
pub fn text(event: &Event, width: usize) -> Option<String> {
    let who = |node: &Subject| format!("{:<width$}", node.as_deref().unwrap_or("·"));
    Some(match event {
        Event::RunStarted {
            command,
            cluster,
            nodes,
            ..
        } => {
            format!(
                "{command}: {} of cluster {cluster}\n",
                count(nodes.len(), "node")
            )
        }
        Event::StageStarted { .. } => return None,
        Event::Progress {
            node,
            stage,
            detail,
        } => format!(
            "{}  {stage:<9}  {}\n",
            who(node),
            style(detail).for_stderr().dim()
        ),
        Event::Output { node, line, .. } => format!("{}  | {line}\n", who(node)),
        Event::Warning { message, help, .. } => {
            let help = help
                .as_ref()
                .map(|help| format!("  -> {help}\n"))
                .unwrap_or_default();
            format!(
                "{}: {message}\n{help}",
                style("warning").for_stderr().yellow()
            )
        }
        Event::StageFinished {
            node,
            stage,
            outcome,
            detail,
            seconds,
        } => {
            let sign = match outcome {
                Outcome::Unchanged => style("=").for_stderr().dim(),
                Outcome::Applied => style("✓").for_stderr().green(),
                Outcome::Removed => style("-").for_stderr().green(),
                Outcome::Absent => return None,
                Outcome::Kept => style("!").for_stderr().yellow(),
            };
            let kept = if *outcome == Outcome::Kept {
                "kept: "
            } else {
                ""
            };
            format!(
                "{}  {stage:<9}  {sign} {kept}{detail}  {}\n",
                who(node),
                style(format!("{seconds:.1} s")).for_stderr().dim()
            )
        }
        Event::StageFailed {
            node,
            stage,
            failure,
            ..
        } => {
            let head = node
                .as_ref()
                .map_or_else(|| stage.to_string(), |node| format!("{node} {stage}"));
            failure_text(&head, failure)
        }
        Event::NodeFinished { .. } => return None,
        Event::RunFinished {
            command,
            done,
            unchanged,
            differing,
            failed,
            stopped,
            seconds,
            next,
        } => {
            let mut text = match (command.as_str(), done, failed + stopped) {
                ("up" | "create", _, 0) if *differing > 0 => {
                    let others = done + unchanged;
                    let others = if others == 0 {
                        String::new()
                    } else {
                        format!("; {} as the spec says", are(others))
                    };
                    let who = if *differing == 1 {
                        "1 node differs".to_owned()
                    } else {
                        format!("{differing} nodes differ")
                    };
                    format!(
                        "{who} from the spec in what only a new VM can change{others} ({seconds:.1} s)\n"
                    )
                }
                ("up" | "create", 0, 0) => format!(
                    "nothing to do: {} as the spec says ({seconds:.1} s)\n",
                    are(*unchanged)
                ),
                ("join", 0, 0) => format!(
                    "nothing to do: {} in the cluster and Ready ({seconds:.1} s)\n",
                    are(*unchanged)
                ),
                ("up" | "join", _, 0) => {
                    format!("{} Ready in {seconds:.1} s\n", are(done + unchanged))
                }
                ("create", _, 0) => format!("{} up after {seconds:.1} s\n", are(done + unchanged)),
                ("down", 0, 0) => format!("nothing to remove ({seconds:.1} s)\n"),
                ("down", _, 0) => format!("{} gone after {seconds:.1} s\n", are(*done)),
                _ => {
                    let parts = [
                        (failed, "failed"),
                        (stopped, "stopped"),
                        (done, "done"),
                        (unchanged, "unchanged"),
                        (differing, "differing"),
                    ];
                    let parts: Vec<String> = parts
                        .iter()
                        .filter(|(n, _)| **n > 0)
                        .map(|(n, word)| format!("{n} {word}"))
                        .collect();
                    format!("nodes: {}, after {seconds:.1} s\n", parts.join(", "))
                }
            };
            if !next.is_empty() {
                text.push_str("\nnext:\n");
                next.iter()
                    .for_each(|line| text.push_str(&format!("  {line}\n")));
            }
            text
        }
    })
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

fn are(number: usize) -> String {
    if number == 1 {
        "1 node is".to_owned()
    } else {
        format!("{number} nodes are")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Failure, NodeResult, NodeRow};
    use crate::core::stage_name::StageName;

    /// A run as it was recorded: every kind of event.
    fn recorded() -> Vec<Event> {
        let node = || Some("n1".to_owned());
        vec![
            Event::RunStarted {
                command: "up".into(),
                cluster: "lab".into(),
                run_stages: vec![StageName::Preflight],
                nodes: vec![
                    NodeRow {
                        name: "n1".into(),
                        stages: vec![StageName::Volume, StageName::Steps],
                    },
                    NodeRow {
                        name: "node-2".into(),
                        stages: vec![StageName::Volume],
                    },
                ],
            },
            Event::StageFinished {
                node: None,
                stage: StageName::Preflight,
                outcome: Outcome::Unchanged,
                detail: "9 checks".into(),
                seconds: 0.42,
            },
            Event::Warning {
                node: None,
                message: "there is no KVM on this host".into(),
                help: Some("enable it".into()),
            },
            Event::StageStarted {
                node: node(),
                stage: StageName::Volume,
            },
            Event::Progress {
                node: node(),
                stage: StageName::Volume,
                detail: "to be made".into(),
            },
            Event::StageFinished {
                node: node(),
                stage: StageName::Volume,
                outcome: Outcome::Applied,
                detail: "overlay 8GiB".into(),
                seconds: 0.11,
            },
            Event::StageStarted {
                node: node(),
                stage: StageName::Steps,
            },
            Event::Output {
                node: node(),
                stage: StageName::Steps,
                line: "E: no such package".into(),
            },
            Event::StageFailed {
                node: node(),
                stage: StageName::Steps,
                failure: Failure {
                    message: "the step `runtime` ended with exit status 7".into(),
                    causes: vec![],
                    detail: vec!["  E: no such package".into()],
                    help: Some("read the log".into()),
                },
                seconds: 3.25,
            },
            Event::NodeFinished {
                node: "n1".into(),
                result: NodeResult::Failed,
                detail: "the step `runtime` ended with exit status 7".into(),
                seconds: 3.6,
            },
            Event::NodeFinished {
                node: "node-2".into(),
                result: NodeResult::Unchanged,
                detail: String::new(),
                seconds: 0.2,
            },
            Event::RunFinished {
                command: "up".into(),
                done: 0,
                unchanged: 1,
                differing: 0,
                failed: 1,
                stopped: 0,
                seconds: 4.0,
                next: vec!["nodegraft up".into()],
            },
        ]
    }

    #[test]
    fn a_recorded_run_reads_well() {
        console::set_colors_enabled_stderr(false);
        let mut lines = Lines::new(false);
        let text: String = recorded()
            .iter()
            .filter_map(|event| lines.text(event))
            .collect();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn events_survive_a_trip_through_json() {
        for event in recorded() {
            let json = serde_json::to_string(&event).unwrap();
            assert!(!json.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        }
    }
}
