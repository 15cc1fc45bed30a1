//! Walks a list of stages: check, apply, check again. Knows no stage by name.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stage::{Check, Events, Reporter, Stage, Work};
use crate::core::error::{Error, Result};
use crate::core::event::{Event, Failure, Outcome, Subject};
use crate::core::journal::Journal;
use crate::core::stage_name::StageName;

/// A check is a few calls, each with a patience of its own that says more; this is for one that hangs.
const CHECK_DEADLINE: Duration = Duration::from_secs(180);
/// What a stopped stage is given to end what would go on without it.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A list, and about whom it is.
pub struct Walk<'a, C> {
    pub stages: &'a [Box<dyn Stage<C>>],
    pub on: &'a mut C,
    pub subject: Subject,
    pub events: Events,
    pub stop: CancellationToken,
    pub journal: &'a Journal,
}

/// The rows that a display has for a list.
pub fn names<C: Work>(stages: &[Box<dyn Stage<C>>]) -> Vec<StageName> {
    stages.iter().map(|stage| stage.name()).collect()
}

/// How far a walk came.
#[derive(Debug)]
pub struct Walked {
    /// Indices of the stages that were applied, or begun, in this walk.
    pub applied: Vec<usize>,
    pub result: Result<()>,
}

impl<C: Work> Walk<'_, C> {
    /// Forward through the list until the end or the first failure.
    pub async fn forward(mut self) -> Walked {
        let mut applied = Vec::new();
        let stages = self.stages;
        for (index, stage) in stages.iter().enumerate() {
            if self.stop.is_cancelled() {
                return Walked {
                    applied,
                    result: Err(Error::interrupted()),
                };
            }
            let begun = Instant::now();
            let name = stage.name();
            self.events.send(Event::StageStarted {
                node: self.subject.clone(),
                stage: name,
            });
            let report = Reporter::new(self.events.clone(), self.subject.clone(), name);
            match self
                .advance(stage.as_ref(), &report, || applied.push(index))
                .await
            {
                Ok((outcome, detail)) => self.events.send(Event::StageFinished {
                    node: self.subject.clone(),
                    stage: name,
                    outcome,
                    detail,
                    seconds: begun.elapsed().as_secs_f64(),
                }),
                Err(error) => {
                    if !error.is_interruption() {
                        self.events.send(Event::StageFailed {
                            node: self.subject.clone(),
                            stage: name,
                            failure: Failure::from(&error),
                            seconds: begun.elapsed().as_secs_f64(),
                        });
                    }
                    return Walked {
                        applied,
                        result: Err(error),
                    };
                }
            }
        }
        Walked {
            applied,
            result: Ok(()),
        }
    }

    async fn advance(
        &mut self,
        stage: &dyn Stage<C>,
        report: &Reporter,
        begun: impl FnOnce(),
    ) -> Result<(Outcome, String)> {
        match self.check(stage, report).await? {
            Check::Done(detail) => return Ok((Outcome::Unchanged, detail)),
            Check::Conflict(error) => return Err(error),
            Check::Needed(why) => report.progress(why),
        }
        begun();
        let limit = stage.deadline(self.on);
        // The event loop's stop drops the stage's future: the call under way ends by itself, the next is not made.
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                let _ = tokio::time::timeout(STOP_DEADLINE, stage.stopped(self.on)).await;
                return Err(Error::interrupted());
            }
            done = tokio::time::timeout(limit, stage.apply(self.on, report, self.journal)) => done.unwrap_or_else(|_| {
                Err(Error::failed(format!("{} was not done within {} s", stage.name(), limit.as_secs())).with_help("raise its deadline in the spec, or look at the node's logs"))
            })?,
        }
        match self.check(stage, report).await? {
            Check::Done(detail) => Ok((Outcome::Applied, detail)),
            Check::Needed(why) => Err(Error::failed(format!(
                "{} ran without error, but {why}",
                stage.name()
            ))
            .with_help("run `nodegraft up` again; if it stays so, this is a bug")),
            Check::Conflict(error) => Err(error),
        }
    }

    async fn check(&mut self, stage: &dyn Stage<C>, report: &Reporter) -> Result<Check> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::interrupted()),
            found = tokio::time::timeout(CHECK_DEADLINE, stage.check(self.on, report)) => found.unwrap_or_else(|_| {
                Err(Error::failed(format!("looking at {} took more than {} s", stage.name(), CHECK_DEADLINE.as_secs())))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// A stage that follows a script and writes down what is asked of it.
    struct Scripted {
        name: StageName,
        done: AtomicBool,
        takes: Duration,
        fails: bool,
        conflicts: bool,
        ineffective: bool,
    }

    type Log = Mutex<Vec<String>>;

    impl Work for Log {
        type Planned = ();
    }

    #[async_trait]
    impl Stage<Log> for Scripted {
        fn name(&self) -> StageName {
            self.name
        }
        fn plan(&self, (): &()) -> String {
            "nothing".into()
        }
        fn deadline(&self, _: &Log) -> Duration {
            Duration::from_secs(10)
        }
        async fn check(&self, _: &mut Log, _: &Reporter) -> Result<Check> {
            Ok(match (self.conflicts, self.done.load(Ordering::Relaxed)) {
                (true, _) => Check::Conflict(Error::failed("in the way")),
                (_, true) => Check::Done("so it is".into()),
                _ => Check::Needed("not yet".into()),
            })
        }
        async fn apply(&self, log: &mut Log, _: &Reporter, _: &Journal) -> Result<()> {
            log.get_mut().unwrap().push(format!("apply {}", self.name));
            tokio::time::sleep(self.takes).await;
            if self.fails {
                return Err(Error::failed("broken"));
            }
            self.done.store(!self.ineffective, Ordering::Relaxed);
            Ok(())
        }
        async fn stopped(&self, log: &Log) {
            log.lock().unwrap().push(format!("stopped {}", self.name));
        }
    }

    /// Three stages of any names.
    const A: StageName = StageName::Claim;
    const B: StageName = StageName::Volume;
    const C: StageName = StageName::Seed;

    fn scripted(name: StageName) -> Scripted {
        Scripted {
            name,
            done: AtomicBool::new(false),
            takes: Duration::ZERO,
            fails: false,
            conflicts: false,
            ineffective: false,
        }
    }

    struct Ran {
        walked: Walked,
        log: Vec<String>,
    }

    async fn forward(stages: Vec<Scripted>, stop: CancellationToken) -> Ran {
        let stages: Vec<Box<dyn Stage<Log>>> = stages
            .into_iter()
            .map(|s| Box::new(s) as Box<dyn Stage<Log>>)
            .collect();
        let mut log = Log::default();
        let walk = Walk {
            stages: &stages,
            on: &mut log,
            subject: None,
            events: Events::new(unbounded_channel().0),
            stop,
            journal: &Journal::default(),
        };
        let walked = walk.forward().await;
        Ran {
            walked,
            log: log.into_inner().unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn done_stages_are_not_applied() {
        let mut first = scripted(A);
        first.done = true.into();
        let ran = forward(vec![first, scripted(B)], CancellationToken::new()).await;
        assert!(ran.walked.result.is_ok());
        assert_eq!(ran.walked.applied, [1]);
        assert_eq!(ran.log, ["apply Volume"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_and_a_conflict_end_the_walk() {
        for broken in [
            Scripted {
                fails: true,
                ..scripted(B)
            },
            Scripted {
                conflicts: true,
                ..scripted(B)
            },
        ] {
            let conflicts = broken.conflicts;
            let ran = forward(
                vec![scripted(A), broken, scripted(C)],
                CancellationToken::new(),
            )
            .await;
            assert!(ran.walked.result.is_err());
            assert_eq!(
                ran.log.last().unwrap(),
                if conflicts {
                    "apply Claim"
                } else {
                    "apply Volume"
                }
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_apply_did_not_reach_is_an_error() {
        let ran = forward(
            vec![Scripted {
                ineffective: true,
                ..scripted(A)
            }],
            CancellationToken::new(),
        )
        .await;
        assert!(
            ran.walked
                .result
                .unwrap_err()
                .to_string()
                .contains("but not yet")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_hangs_is_given_up_at_its_deadline() {
        let begun = Instant::now();
        let ran = forward(
            vec![Scripted {
                takes: Duration::from_secs(3600),
                ..scripted(A)
            }],
            CancellationToken::new(),
        )
        .await;
        assert!(
            ran.walked
                .result
                .unwrap_err()
                .to_string()
                .contains("within 10 s")
        );
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_stage_under_way_and_remembers_that_it_was_begun() {
        let stop = CancellationToken::new();
        let soon = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            soon.cancel();
        });
        let ran = forward(
            vec![
                Scripted {
                    takes: Duration::from_secs(5),
                    ..scripted(A)
                },
                scripted(B),
            ],
            stop,
        )
        .await;
        assert!(ran.walked.result.unwrap_err().is_interruption());
        assert_eq!(
            (ran.walked.applied, ran.log),
            (
                vec![0],
                vec!["apply Claim".to_owned(), "stopped Claim".to_owned()]
            )
        );
    }
}
