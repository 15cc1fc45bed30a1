//! The contract of a stage: `check` changes nothing, `apply` is harmless when repeated and writes down what it makes. How
//! that goes again is `stages/removal.rs`. A stage reports through its [`Reporter`] and may not print.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;

use crate::core::error::{Error, Result};
use crate::core::event::{Event, Subject};
use crate::core::journal::Journal;
use crate::core::stage_name::StageName;

/// What `check` found.
#[derive(Debug)]
pub enum Check {
    /// Nothing to do; the detail says what is true.
    Done(String),
    /// `apply` has work, and why.
    Needed(String),
    /// Something is in the way that is not ours to change.
    Conflict(Error),
}

/// What a stage works on: a run, a node, a machine. A walk has it to itself, and what a stage learns or makes it leaves
/// there for the next.
pub trait Work: Send + Sync {
    /// It before anything is touched.
    type Planned;
}

/// A row of the list. Nothing here has a default: what a stage forgets to say does not compile.
#[async_trait]
pub trait Stage<C: Work>: Send + Sync {
    fn name(&self) -> StageName;

    /// What it will do, in the words of `nodegraft plan`.
    fn plan(&self, planned: &C::Planned) -> String;

    /// After this long the runner itself gives up on `apply`. The stage's own waits end earlier and say more.
    fn deadline(&self, on: &C) -> Duration;

    /// Looks. It may leave what it saw in `on`, and changes nothing else.
    async fn check(&self, on: &mut C, report: &Reporter) -> Result<Check>;

    /// What it makes goes into the journal as soon as it may exist.
    async fn apply(&self, on: &mut C, report: &Reporter, journal: &Journal) -> Result<()>;

    /// The run was stopped while `apply` was under way, and its future is gone: ends what would go on by itself. Where
    /// nothing does, the stage says why.
    async fn stopped(&self, on: &C);
}

/// Where events go. Never blocks; a closed receiver is nobody listening.
#[derive(Clone)]
pub struct Events(UnboundedSender<Event>);

impl Events {
    pub fn new(sender: UnboundedSender<Event>) -> Self {
        Self(sender)
    }

    pub fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

/// A stage's voice: it knows about whom and from where it speaks.
#[derive(Clone)]
pub struct Reporter {
    events: Events,
    node: Subject,
    stage: StageName,
}

impl Reporter {
    pub fn new(events: Events, node: Subject, stage: StageName) -> Self {
        Self {
            events,
            node,
            stage,
        }
    }

    pub fn progress(&self, detail: impl Into<String>) {
        self.events.send(Event::Progress {
            node: self.node.clone(),
            stage: self.stage,
            detail: detail.into(),
        });
    }

    pub fn output(&self, line: impl Into<String>) {
        self.events.send(Event::Output {
            node: self.node.clone(),
            stage: self.stage,
            line: line.into(),
        });
    }

    pub fn warn(&self, message: impl Into<String>, help: Option<String>) {
        self.events.send(Event::Warning {
            node: self.node.clone(),
            message: message.into(),
            help,
        });
    }
}
