//! Live bars on a terminal: one line per node with its stage, what it does, and its time. Only what must stay readable
//! is printed above them.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::summary::Summary;
use super::{Renderer, lines};
use crate::core::event::{Event, NodeResult, Outcome, Subject};

pub struct Bars {
    verbose: bool,
    all: MultiProgress,
    bars: HashMap<Subject, ProgressBar>,
    summary: Summary,
    width: usize,
}

impl Bars {
    pub fn new(verbose: bool) -> Self {
        Self {
            verbose,
            all: MultiProgress::new(),
            bars: HashMap::new(),
            summary: Summary::default(),
            width: 0,
        }
    }

    fn add(&mut self, subject: Subject, name: &str, stages: usize) {
        let width = self.width;
        let template = format!(
            "{{spinner:.cyan}} {{prefix:<{width}.bold}} {{bar:8.cyan/dim}} {{pos:>2}}/{{len:<2}} {{elapsed:>4}}  {{wide_msg}}"
        );
        let bar = self.all.add(ProgressBar::new(stages as u64));
        bar.set_style(
            ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("━╸─"),
        );
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.bars.insert(subject, bar);
    }

    fn show(&self, subject: &Subject, stage: impl Display, detail: &str) {
        if let Some(bar) = self.bars.get(subject) {
            bar.set_message(format!("{}  {}", style(stage).cyan(), detail));
        }
    }

    fn print(&self, text: &str) {
        let _ = self.all.println(text.trim_end_matches('\n'));
    }
}

impl Renderer for Bars {
    fn event(&mut self, event: &Event) {
        self.summary.event(event);
        match event {
            Event::RunStarted {
                nodes, run_stages, ..
            } => {
                self.width = nodes
                    .iter()
                    .map(|row| row.name.chars().count())
                    .max()
                    .unwrap_or(0)
                    .max(7);
                if !run_stages.is_empty() {
                    self.add(None, "cluster", run_stages.len());
                }
                for row in nodes {
                    self.add(Some(row.name.clone()), &row.name, row.stages.len());
                    self.show(&Some(row.name.clone()), "", "waiting");
                }
            }
            Event::StageStarted { node, stage } => {
                // A node's time begins with its first stage, not while it waits for its turn.
                if let Some(bar) = self.bars.get(node).filter(|bar| bar.position() == 0) {
                    bar.reset_elapsed();
                }
                self.show(node, stage, "");
            }
            Event::Progress {
                node,
                stage,
                detail,
            } => self.show(node, stage, detail),
            Event::StageFinished {
                node,
                stage,
                outcome,
                detail,
                ..
            } => {
                if let Some(bar) = self.bars.get(node) {
                    bar.inc(1);
                }
                self.show(node, stage, detail);
                if *outcome == Outcome::Kept {
                    self.print(&lines::text(event, self.width).unwrap_or_default());
                }
                if node.is_none()
                    && self
                        .bars
                        .get(node)
                        .is_some_and(|bar| Some(bar.position()) == bar.length())
                {
                    self.finish(node, &style("ready to go").dim().to_string());
                }
            }
            Event::NodeFinished {
                node,
                result,
                detail,
                ..
            } => {
                let word = match result {
                    NodeResult::Done => style("done").green(),
                    NodeResult::Unchanged => style("unchanged").dim(),
                    NodeResult::Differs => style("differs").yellow(),
                    NodeResult::Failed => style("failed").red(),
                    NodeResult::Interrupted => style("stopped").yellow(),
                };
                self.finish(&Some(node.clone()), &format!("{word}  {detail}"));
            }
            Event::Output { .. } if !self.verbose => {}
            Event::Output { .. } | Event::Warning { .. } | Event::StageFailed { .. } => {
                self.print(&lines::text(event, self.width).unwrap_or_default())
            }
            Event::RunFinished { .. } => {
                // The summary takes the bars' place.
                self.print(&format!(
                    "\n{}{}",
                    self.summary.text(),
                    lines::text(event, self.width).unwrap_or_default()
                ));
                let _ = self.all.clear();
            }
        }
    }
}

impl Bars {
    fn finish(&self, subject: &Subject, message: &str) {
        if let Some(bar) = self.bars.get(subject) {
            // Where it stands stays as it is: a node that stopped half-way shows half a bar.
            bar.abandon_with_message(message.to_owned());
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in self.bars.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}
