//! Steps: the profile's scripts, one after the other in one session. Each leaves a marker with its digest in the guest,
//! so that a step which ran is not run again, and its whole output in a log on this machine.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::{NodeRun, locked};
use crate::error::{Context, Error, Result};
use crate::journal::Journal;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::plan::{Step, Upload, hex};
use crate::ssh::{Ended, Session};

const DIR: &str = "/var/lib/nodegraft/steps";
const SHORT: Duration = Duration::from_secs(30);
const SHOWN: usize = 15;

pub struct Steps;

#[async_trait]
impl Stage<NodeRun> for Steps {
    fn name(&self) -> &'static str {
        "Steps"
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        (on.node.deadlines.step + Duration::from_secs(90)) * u32::try_from(on.node.steps.len().max(1)).unwrap_or(u32::MAX)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        let session = on.open_session(SHORT).await.doing("logging in")?;
        let pending = pending(on, &session).await?;
        Ok(match pending.first() {
            None => Check::Done(on.node.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(", ")),
            Some(step) => Check::Needed(format!("step {} of {}, {}", step.number, on.node.steps.len(), step.name)),
        })
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let session = on.open_session(SHORT).await.doing("logging in")?;
        for step in pending(on, &session).await? {
            if let Some(upload) = on.node.upload.as_ref().filter(|upload| step.script.contains(&upload.to)) {
                send(&session, upload, report).await?;
            }
            run(on, &session, step, report).await?;
        }
        Ok(())
    }
}

/// The steps whose marker in the guest is missing or of another digest.
async fn pending<'a>(on: &'a NodeRun, session: &Session) -> Result<Vec<&'a Step>> {
    let markers = session
        .output(&format!("cd {DIR} 2>/dev/null && grep -H . *.done 2>/dev/null || true"), SHORT)
        .await
        .doing("reading the guest's markers")?;
    Ok(on
        .node
        .steps
        .iter()
        .filter(|step| !markers.lines().any(|line| line.trim() == format!("{}.done:{}", file_name(step), step.digest)))
        .collect())
}

fn file_name(step: &Step) -> String {
    format!("{}-{}", step.number, step.name)
}

async fn run(on: &NodeRun, session: &Session, step: &Step, report: &Reporter) -> Result<()> {
    let place = format!("step {} of {}, {}", step.number, on.node.steps.len(), step.name);
    report.progress(place.clone());
    let log = on.run.state.log(&on.node.name, &format!("steps/{}.log", file_name(step)))?;
    let file = Mutex::new(File::create(&log).doing(format!("making {}", log.display()))?);
    let tail = Arc::new(Mutex::new(Vec::<String>::new()));
    let name = file_name(step);
    // The script is kept where a person may read it. Its own shell writes the marker, so that a run whose connection
    // broke counts if it ended well; the lock keeps a second run out until the first has ended.
    let command = format!(
        "mkdir -p {DIR} && cat > {DIR}/{name}.sh && rm -f {DIR}/{name}.done && \
         flock {DIR}/lock bash {DIR}/{name}.sh </dev/null && echo {} > {DIR}/{name}.done",
        step.digest
    );
    let on_line = {
        let (tail, report, place) = (Arc::clone(&tail), report.clone(), place.clone());
        move |line: &str| {
            let _ = writeln!(locked(&file), "{line}");
            report.output(line);
            if !line.trim().is_empty() {
                report.progress(format!("{place}: {}", line.trim()));
            }
            let mut tail = locked(&tail);
            tail.push(line.to_owned());
            if tail.len() > SHOWN {
                tail.remove(0);
            }
        }
    };
    let cut = Cut(Some(session.clone()));
    let ended = session.run(&command, step.script.clone().into_bytes(), on.node.deadlines.step, on_line).await?;
    cut.keep();
    if ended == Ended::Status(0) {
        return Ok(());
    }
    let what = match &ended {
        Ended::Status(status) => format!("the step `{}` ended with exit status {status}", step.name),
        Ended::TimedOut => format!("the step `{}` was not done within {} s and was ended", step.name, on.node.deadlines.step.as_secs()),
        Ended::Lost(reason) => format!("the connection to the guest broke during the step `{}`: {reason}", step.name),
    };
    let tail = locked(&tail).clone();
    Err(Error::new(what)
        .with_detail([format!("its last lines, of {}:", log.display())])
        .with_detail(tail.into_iter().map(|line| format!("  {line}")))
        .with_help(help(&ended, on, &log)))
}

fn help(ended: &Ended, on: &NodeRun, log: &Path) -> String {
    let again = "`nodegraft up` goes on at this step";
    match ended {
        Ended::TimedOut => format!("raise `deadlines: {{step: ..}}` in the spec if it needs longer; {again}"),
        _ => format!("read {}, mend the cause or the template, and {again}; or look around: nodegraft ssh {}", log.display(), on.node.name),
    }
}

/// Breaks the connection when a step's future is dropped, so that nothing waits for its end.
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

async fn send(session: &Session, upload: &Upload, report: &Reporter) -> Result<()> {
    let bytes = tokio::fs::read(&upload.file).await.doing(format!("reading {}", upload.file))?;
    let digest = hex(&Sha256::digest(&bytes));
    let there = session.output(&format!("sha256sum {} 2>/dev/null || true", upload.to), SHORT).await?;
    if there.starts_with(&digest) {
        return Ok(());
    }
    report.progress(format!("uploading {}, {} MiB", upload.file, bytes.len() >> 20));
    session.write(&upload.to, bytes, "0755", Duration::from_secs(600)).await.doing(format!("uploading {}", upload.file))
}
