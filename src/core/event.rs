//! Everything that happens, as data. The pipeline sends events, the user interface turns them into
//! what people see; `--output json` prints them as they are. Step events are lossless and ordered for
//! each node; `Progress` and `Output` may be dropped by a renderer.
//!
//! When you add an event: add it to `ui/lines.rs`, `ui/bars.rs` and the recorded stream in their tests.

use serde::{Deserialize, Serialize};

use crate::core::error::Error;
use crate::core::stage_name::StageName;

/// Whom an event is about: a node's name, or `None` for the run as a whole.
pub type Subject = Option<String>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The whole list, before anything happens, so that a display is complete from the start.
    RunStarted {
        command: String,
        cluster: String,
        run_stages: Vec<StageName>,
        nodes: Vec<NodeRow>,
    },
    StageStarted {
        node: Subject,
        stage: StageName,
    },
    /// What a stage is waiting for or doing right now.
    Progress {
        node: Subject,
        stage: StageName,
        detail: String,
    },
    /// A line that a step printed in the guest.
    Output {
        node: Subject,
        stage: StageName,
        line: String,
    },
    Warning {
        node: Subject,
        message: String,
        help: Option<String>,
    },
    StageFinished {
        node: Subject,
        stage: StageName,
        outcome: Outcome,
        detail: String,
        seconds: f64,
    },
    StageFailed {
        node: Subject,
        stage: StageName,
        failure: Failure,
        seconds: f64,
    },
    NodeFinished {
        node: String,
        result: NodeResult,
        detail: String,
        seconds: f64,
    },
    RunFinished {
        command: String,
        done: usize,
        unchanged: usize,
        /// Up, and not as the spec says in something that only a new VM can change.
        differing: usize,
        failed: usize,
        stopped: usize,
        seconds: f64,
        next: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    pub name: String,
    pub stages: Vec<StageName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was true already; nothing was changed.
    Unchanged,
    Applied,
    Removed,
    Absent,
    Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeResult {
    Done,
    Unchanged,
    Differs,
    Failed,
    Interrupted,
}

/// An [`Error`] as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    pub causes: Vec<String>,
    pub detail: Vec<String>,
    pub help: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            message: error.to_string(),
            causes: error.causes(),
            detail: error.detail().into_iter().map(str::to_owned).collect(),
            help: error.help().map(str::to_owned),
        }
    }
}
