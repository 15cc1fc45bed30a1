//! Steps: the profile's scripts, one after the other. `templates/steps/run-step.sh` runs each in the guest, alone, and
//! leaves a marker with its digest when what it wrote is in effect; its whole output is in a log on this machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{NodeRun, locked};
use crate::core::digest::{hex, sha256};
use crate::core::error::{Context, Error, Result};
use crate::core::journal::Journal;
use crate::core::plain;
use crate::core::plan::{Node, Step, Upload};
use crate::core::stage_name::StageName;
use crate::core::template::{Templates, shell_quote};
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::files;
use crate::rooms::ssh::{self, Ended, Session};
use crate::rooms::state;

const DIR: &str = "/var/lib/nodegraft/steps";
const RUNNER: &str = "steps/run-step.sh";
const SHORT: Duration = Duration::from_secs(30);
const UPLOAD: Duration = Duration::from_secs(600);
/// What the runner takes beside a step: a service read anew, started, watched, and the end of what hangs.
const AROUND: Duration = Duration::from_secs(480);
/// A stopped run has little time left.
const STOP_LOGIN: Duration = Duration::from_secs(5);
const STOP: Duration = Duration::from_secs(13);
const SHOWN: usize = 15;
/// What the runner says to us, and not the step to people.
const TO_US: &str = "nodegraft-step:";

pub struct Steps;

/// What the steps of one run share, whatever the node.
pub struct Shared {
    /// Known to guests, so that a run ends its own step and nobody else's.
    run: String,
    /// Each file to upload, read once.
    files: tokio::sync::Mutex<HashMap<String, Content>>,
}

#[derive(Clone)]
struct Content {
    bytes: Arc<[u8]>,
    digest: String,
}

impl Shared {
    pub fn new() -> Result<Self> {
        Ok(Self {
            run: ssh::random_word()?,
            files: tokio::sync::Mutex::default(),
        })
    }

    async fn content(&self, file: &str) -> Result<Content> {
        let mut files = self.files.lock().await;
        if let Some(content) = files.get(file) {
            return Ok(content.clone());
        }
        let path = file.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            files::read_bytes(Path::new(&path)).map(|bytes| Content {
                digest: hex(&sha256(&bytes)),
                bytes: bytes.into(),
            })
        });
        let content = read
            .await
            .map_err(|_| Error::bug(format!("the thread that reads {file} panicked")))?
            .doing(format!("reading {file}"))?;
        files.insert(file.to_owned(), content.clone());
        Ok(content)
    }
}

#[async_trait]
impl Stage<NodeRun> for Steps {
    fn name(&self) -> StageName {
        StageName::Steps
    }

    fn plan(&self, node: &Node) -> String {
        let steps: Vec<&str> = node.steps.iter().map(|step| step.name.as_str()).collect();
        format!("{} of the profile {}", steps.join(", "), node.profile)
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        UPLOAD + whole(on) * u32::try_from(on.node.steps.len().max(1)).unwrap_or(u32::MAX)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        let session = on.open_session(SHORT).await.doing("logging in")?;
        let pending = pending(on, &session).await?;
        Ok(match pending.first() {
            None => Check::Done(
                on.node
                    .steps
                    .iter()
                    .map(|step| step.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            Some(Pending { step, .. }) => Check::Needed(place(on, step)),
        })
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let session = on.open_session(SHORT).await.doing("logging in")?;
        let cut = Cut(Some(session.clone()));
        let done = run_pending(on, &session, report).await;
        cut.keep();
        done
    }

    /// The connection is cut, but a script goes on without one.
    async fn stopped(&self, on: &NodeRun) {
        let Ok(runner) = runner(&on.run.plan.templates) else {
            return;
        };
        let Ok(session) = on.open_session(STOP_LOGIN).await else {
            return;
        };
        let runner = &runner.path;
        let _ = session
            .output(
                &format!("[ ! -e {runner} ] || sh {runner} stop {}", on.run.steps.run),
                STOP,
            )
            .await;
    }
}

/// As long as one step may take, after another run's step that it had to wait for.
fn whole(on: &NodeRun) -> Duration {
    on.node.deadlines.step * 2 + AROUND
}

fn place(on: &NodeRun, step: &Step) -> String {
    format!(
        "step {} of {}, {}",
        step.number,
        on.node.steps.len(),
        step.name
    )
}

/// The script that runs a step, under a name of its own content: a version of it that still works is never changed.
struct Runner {
    path: String,
    text: String,
}

fn runner(templates: &Templates) -> Result<Runner> {
    let text = templates
        .text(RUNNER)
        .ok_or_else(|| Error::bug(format!("the template {RUNNER} is missing")))?
        .to_owned();
    Ok(Runner {
        path: format!("{DIR}/run-step.{}.sh", hex(&sha256(&text)[..4])),
        text,
    })
}

/// A step to run, with what its marker will say, and the file that it needs.
struct Pending<'a> {
    step: &'a Step,
    digest: String,
    needs: Option<(&'a Upload, Content)>,
}

/// The steps whose marker in the guest is missing or of another digest.
async fn pending<'a>(on: &'a NodeRun, session: &Session) -> Result<Vec<Pending<'a>>> {
    let markers = session
        .output(
            &format!("cd {DIR} 2>/dev/null && grep -H . *.done 2>/dev/null || true"),
            SHORT,
        )
        .await
        .doing("reading the guest's markers")?;
    let mut pending = Vec::new();
    for step in &on.node.steps {
        let needs = match on
            .node
            .upload
            .as_ref()
            .filter(|upload| step.script.contains(&upload.to))
        {
            Some(upload) => Some((upload, on.run.steps.content(&upload.file).await?)),
            None => None,
        };
        let digest = marker(
            &step.digest,
            needs.as_ref().map(|(_, content)| content.digest.as_str()),
        );
        if !markers
            .lines()
            .any(|line| line.trim() == format!("{}.done:{digest}", file_name(step)))
        {
            pending.push(Pending {
                step,
                digest,
                needs,
            });
        }
    }
    Ok(pending)
}

/// The script's digest; with a file that it installs, of both.
fn marker(script: &str, file: Option<&str>) -> String {
    file.map_or_else(
        || script.to_owned(),
        |file| hex(&sha256(format!("{script}\n{file}"))[..16]),
    )
}

fn file_name(step: &Step) -> String {
    format!("{}-{}", step.number, step.name)
}

async fn run_pending(on: &NodeRun, session: &Session, report: &Reporter) -> Result<()> {
    let pending = pending(on, session).await?;
    let runner = runner(&on.run.plan.templates)?;
    session
        .write(
            &runner.path,
            runner.text.clone().into_bytes(),
            "0644",
            SHORT,
        )
        .await?;
    for step in pending {
        if let Some((upload, content)) = &step.needs {
            send(session, upload, content, report).await?;
        }
        run(on, session, &runner, &step, report).await?;
    }
    Ok(())
}

async fn run(
    on: &NodeRun,
    session: &Session,
    runner: &Runner,
    pending: &Pending<'_>,
    report: &Reporter,
) -> Result<()> {
    let step = pending.step;
    let place = place(on, step);
    report.progress(place.clone());
    let log = on
        .run
        .state
        .new_log(&on.node.name, &format!("steps/{}.log", file_name(step)))?;
    let file = files::create(&log).doing(format!("making {}", log.display()))?;
    // A new file each time: a shell that still reads an earlier one goes on with what it began.
    let script = format!(
        "{DIR}/{}.{}.{}.sh",
        file_name(step),
        &pending.digest[..8],
        ssh::random_word()?
    );
    session
        .write(&script, step.script.clone().into_bytes(), "0644", SHORT)
        .await?;
    let command = command(on, runner, pending, &script);
    let heard = Arc::new(Mutex::new(Heard::default()));
    let listener = Listener {
        node: on.node.name.clone(),
        place,
        file,
        heard: Arc::clone(&heard),
        report: report.clone(),
    };
    let ended = session
        .run(&command, Vec::new(), whole(on), listener.into_fn())
        .await?;
    if ended == Ended::Status(0) {
        return Ok(());
    }
    let heard = std::mem::take(&mut *locked(&heard));
    let failure = heard.failure(&ended, &step.name, on.node.deadlines.step);
    let detail = heard
        .memory
        .iter()
        .filter(|_| heard.late)
        .map(|line| format!("the guest's kernel: {line}"));
    Err(Error::failed(failure.what)
        .with_detail(detail)
        .with_detail([format!("its last lines, of {}:", log.display())])
        .with_detail(heard.tail.into_iter().map(|line| format!("  {line}")))
        .with_help(failure.remedy.help(on, &log)))
}

fn command(
    on: &NodeRun,
    runner: &Runner,
    Pending { step, digest, .. }: &Pending<'_>,
    script: &str,
) -> String {
    let (name, seconds, who) = (
        file_name(step),
        on.node.deadlines.step.as_secs().max(1).to_string(),
        state::who(),
    );
    let mut words = vec![
        "sh",
        &runner.path,
        "run",
        &name,
        script,
        digest,
        &on.run.steps.run,
        &seconds,
        &who,
    ];
    if let Some(service) = &step.service {
        words.push(&service.unit);
        words.extend(service.reads.iter().map(String::as_str));
    }
    words
        .into_iter()
        .map(shell_quote)
        .collect::<Vec<_>>()
        .join(" ")
}

/// What came out of a step and its runner.
#[derive(Default)]
struct Heard {
    tail: Vec<String>,
    /// The kernel's line of what it killed for want of memory.
    memory: Option<String>,
    /// The runner's own reason for a failure.
    fault: Option<String>,
    /// Another run's step that was waited for in vain.
    busy: Option<String>,
    late: bool,
}

/// Takes each line of a step, as it comes.
struct Listener {
    node: String,
    place: String,
    file: File,
    heard: Arc<Mutex<Heard>>,
    report: Reporter,
}

impl Listener {
    fn into_fn(mut self) -> impl FnMut(&str) + Send + 'static {
        move |line| self.line(line)
    }

    fn line(&mut self, raw: &str) {
        let _ = writeln!(self.file, "{raw}");
        let line = plain::line(raw);
        if let Some(told) = line.strip_prefix(TO_US) {
            return self.told(told);
        }
        self.report.output(&line);
        if !line.trim().is_empty() {
            self.report
                .progress(format!("{}: {}", self.place, line.trim()));
        }
        let mut heard = locked(&self.heard);
        heard.tail.push(line);
        if heard.tail.len() > SHOWN {
            heard.tail.remove(0);
        }
    }

    fn told(&self, told: &str) {
        let (word, text) = told.split_once(' ').unwrap_or((told, ""));
        let mut heard = locked(&self.heard);
        match word {
            "waiting" => self
                .report
                .progress(format!("{}: waiting for {text}", self.place)),
            "doing" => self.report.progress(format!("{}: {text}", self.place)),
            "ended" => self.report.warn(
                format!("in {}, ended {text}: its own run is gone", self.node),
                None,
            ),
            "memory" => heard.memory = Some(text.to_owned()),
            "fault" => heard.fault = Some(text.to_owned()),
            "busy" => heard.busy = Some(text.to_owned()),
            "late" => heard.late = true,
            _ => {}
        }
    }
}

/// Why a step failed, and what helps.
struct Failed {
    what: String,
    remedy: Remedy,
}

#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    Read,
    MoreTime,
    MoreMemory,
    OtherRun,
}

impl Heard {
    fn failure(&self, ended: &Ended, step: &str, deadline: Duration) -> Failed {
        let failed = |what: String, remedy: Remedy| Failed { what, remedy };
        if let Some(busy) = &self.busy {
            return failed(format!("the guest is busy with {busy}"), Remedy::OtherRun);
        }
        if self.late || *ended == Ended::TimedOut {
            return failed(
                format!(
                    "the step `{step}` was not done within {} s and was ended",
                    deadline.as_secs()
                ),
                Remedy::MoreTime,
            );
        }
        if let Some(memory) = &self.memory {
            return failed(
                format!("the guest ran out of memory in the step `{step}`: {memory}"),
                Remedy::MoreMemory,
            );
        }
        if let Some(fault) = &self.fault {
            return failed(format!("the step `{step}`: {fault}"), Remedy::Read);
        }
        let what = match ended {
            Ended::Status(status) => format!("the step `{step}` ended with exit status {status}"),
            Ended::Killed(signal) => format!(
                "the step `{step}`, or a program of it, was killed by {}",
                ssh::name(*signal)
            ),
            Ended::Lost(reason) => {
                format!("the connection to the guest broke during the step `{step}`: {reason}")
            }
            Ended::TimedOut => unreachable!("told above"),
        };
        failed(what, Remedy::Read)
    }
}

impl Remedy {
    fn help(&self, on: &NodeRun, log: &Path) -> String {
        let again = "`nodegraft up` goes on at this step";
        let name = &on.node.name;
        match self {
            Self::MoreTime => {
                format!("raise `deadlines: {{step: ..}}` in the spec if it needs longer; {again}")
            }
            Self::MoreMemory => format!(
                "give the node more `memory` in the spec, and make it anew: nodegraft down {name}, nodegraft up"
            ),
            Self::OtherRun => format!(
                "wait for that run to end, or stop it where it runs; if it is there no more: nodegraft exec {name} -- sh {} stop RUN, with its run; {again}",
                runner(&on.run.plan.templates)
                    .map(|runner| runner.path)
                    .unwrap_or_default()
            ),
            Self::Read => {
                format!(
                    "read {}, mend the cause or the template, and {again}; or look around: nodegraft ssh {name}",
                    log.display()
                )
            }
        }
    }
}

/// Breaks the connection when the future of the steps is dropped, so that nothing waits for their end.
struct Cut(Option<Session>);

impl Cut {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.cut();
        }
    }
}

async fn send(
    session: &Session,
    upload: &Upload,
    content: &Content,
    report: &Reporter,
) -> Result<()> {
    let there = session
        .output(
            &format!("sha256sum {} 2>/dev/null || true", upload.to),
            SHORT,
        )
        .await?;
    if there.starts_with(&content.digest) {
        return Ok(());
    }
    report.progress(format!(
        "uploading {}, {} MiB",
        upload.file,
        content.bytes.len() >> 20
    ));
    session
        .write(&upload.to, Arc::clone(&content.bytes), "0755", UPLOAD)
        .await
        .doing(format!("uploading {}", upload.file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uploaded_file_counts_by_its_content() {
        assert_eq!(marker("ab", None), "ab");
        assert_ne!(marker("ab", Some("1")), "ab");
        assert_ne!(marker("ab", Some("1")), marker("ab", Some("2")));
        assert_ne!(marker("ab", Some("1")), marker("cd", Some("1")));
    }

    #[tokio::test]
    async fn a_file_is_read_once_in_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet").display().to_string();
        std::fs::write(&path, "one").unwrap();
        let (first, second) = (Shared::new().unwrap(), Shared::new().unwrap());
        let before = first.content(&path).await.unwrap();
        std::fs::write(&path, "two").unwrap();
        assert_eq!(first.content(&path).await.unwrap().digest, before.digest);
        assert_ne!(second.content(&path).await.unwrap().digest, before.digest);
        assert_ne!(first.run, second.run);
        assert!(
            first
                .content("/nowhere")
                .await
                .err()
                .unwrap()
                .to_string()
                .contains("/nowhere")
        );
    }

    #[test]
    fn the_reason_is_told_and_not_the_number() {
        let failure =
            |heard: Heard, ended: Ended| heard.failure(&ended, "work", Duration::from_secs(8));
        let memory = Some("Out of memory: Killed process 7 (tail)".to_owned());
        let killed = failure(
            Heard {
                memory: memory.clone(),
                ..Heard::default()
            },
            Ended::Killed(9),
        );
        assert!(
            killed.what.contains("ran out of memory") && killed.what.contains("(tail)"),
            "{}",
            killed.what
        );
        assert_eq!(killed.remedy, Remedy::MoreMemory);
        // apt tells of a killed dpkg by a status of its own.
        assert_eq!(
            failure(
                Heard {
                    memory: memory.clone(),
                    ..Heard::default()
                },
                Ended::Status(100)
            )
            .remedy,
            Remedy::MoreMemory
        );
        let late = failure(
            Heard {
                memory,
                late: true,
                ..Heard::default()
            },
            Ended::Status(124),
        );
        assert!(
            late.what.contains("`work` was not done within 8 s"),
            "{}",
            late.what
        );
        assert!(
            failure(Heard::default(), Ended::Killed(15))
                .what
                .contains("killed by SIGTERM")
        );
        let busy = failure(
            Heard {
                busy: Some("the step 1-init of a@b".into()),
                ..Heard::default()
            },
            Ended::Status(75),
        );
        assert_eq!(
            (busy.what.as_str(), busy.remedy),
            (
                "the guest is busy with the step 1-init of a@b",
                Remedy::OtherRun
            )
        );
    }
}
