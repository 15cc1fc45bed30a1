//! The times of a run, gathered from its events: what each stage of each node took.

use crate::core::event::{Event, NodeResult};
use crate::core::stage_name::StageName;

#[derive(Debug, Default)]
pub struct Summary {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    node: String,
    stages: Vec<(StageName, f64)>,
    result: Option<(NodeResult, f64, String)>,
}

impl Summary {
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::RunStarted { nodes, .. } => {
                self.rows = nodes
                    .iter()
                    .map(|row| Row {
                        node: row.name.clone(),
                        stages: Vec::new(),
                        result: None,
                    })
                    .collect();
            }
            Event::StageFinished {
                node: Some(node),
                stage,
                seconds,
                ..
            }
            | Event::StageFailed {
                node: Some(node),
                stage,
                seconds,
                ..
            } => {
                // What `--on-failure undo` does to a stage is not that stage's time.
                if let Some(row) = self.rows.iter_mut().find(|row| row.node == *node)
                    && row.stages.iter().all(|(known, _)| known != stage)
                {
                    row.stages.push((*stage, *seconds));
                }
            }
            Event::NodeFinished {
                node,
                result,
                detail,
                seconds,
            } => {
                if let Some(row) = self.rows.iter_mut().find(|row| row.node == *node) {
                    row.result = Some((*result, *seconds, detail.clone()));
                }
            }
            _ => {}
        }
    }

    /// A line per node: its result, its time, and the stages that took long enough to matter.
    pub fn text(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|row| row.node.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for row in &self.rows {
            let Some((result, seconds, detail)) = &row.result else {
                continue;
            };
            let word = match result {
                NodeResult::Done => "done",
                NodeResult::Unchanged => "unchanged",
                NodeResult::Differs => "differs",
                NodeResult::Failed => "FAILED",
                NodeResult::Interrupted => "stopped",
            };
            let stages: Vec<String> = row
                .stages
                .iter()
                .filter(|(_, seconds)| *seconds >= 0.05)
                .map(|(stage, seconds)| format!("{stage} {seconds:.1}"))
                .collect();
            text.push_str(&format!(
                "  {:<width$}  {word:<9}  {seconds:>6.1} s  {}\n",
                row.node,
                stages.join(" · ")
            ));
            if !detail.is_empty() {
                text.push_str(&format!("  {:<width$}  {detail}\n", ""));
            }
        }
        text
    }
}
