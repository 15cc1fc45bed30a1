//! Login: an authenticated session with the pinned host key, the first boot's own work finished, and the private key
//! gone from the seed volume.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::NodeRun;
use crate::core::error::{Context, Error, Result, one_line};
use crate::core::host_key::HostKey;
use crate::core::journal::Journal;
use crate::core::mark::{Claimed, SeedState};
use crate::core::plan::Node;
use crate::core::spec::Size;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::seed;
use crate::rooms::ssh::{OpenError, Session};

const ATTEMPT: Duration = Duration::from_secs(20);
const SYNC: Duration = Duration::from_secs(60);
/// Prints `done`, or what the first boot is still doing.
const FIRST_BOOT: &str = "if ! command -v cloud-init >/dev/null || [ -e /run/cloud-init/result.json ] || [ -e /etc/cloud/cloud-init.disabled ]; then echo done; else echo cloud-init is at work; fi";

pub struct Login;

#[async_trait]
impl Stage<NodeRun> for Login {
    fn name(&self) -> StageName {
        StageName::Login
    }

    fn plan(&self, node: &Node) -> String {
        format!(
            "as {}, host key pinned, first boot over; then the key is blanked in the seed",
            node.user
        )
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        on.node.deadlines.login + Duration::from_secs(60)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        let session = match on.open_session(ATTEMPT).await {
            Ok(session) => session,
            Err(error @ OpenError::WrongHostKey { .. }) => {
                return Ok(Check::Conflict(wrong_key(on, error)));
            }
            Err(error) => return Ok(Check::Needed(error.to_string())),
        };
        match first_boot(&session).await {
            Ok(state) if state == "done" => {}
            Ok(state) => return Ok(Check::Needed(state)),
            Err(error) => return Ok(Check::Needed(one_line(&error))),
        }
        if on.mark()?.seed == SeedState::Full {
            return Ok(Check::Needed("the seed still holds the host key".into()));
        }
        Ok(Check::Done(format!("{}@{}", on.node.user, on.node.ip)))
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, _: &Journal) -> Result<()> {
        let until = Instant::now() + on.node.deadlines.login;
        let mut session = log_in(on, report, until).await?;
        loop {
            // The first boot may restart sshd, or keep a slow guest too busy to answer.
            let unfinished = match first_boot(&session).await {
                Ok(state) if state == "done" => break,
                Ok(state) => state,
                Err(error) => {
                    session = log_in(on, report, until).await?;
                    one_line(&error)
                }
            };
            if Instant::now() > until {
                return Err(Error::failed(format!(
                    "the first boot did not finish within {} s: {unfinished}",
                    on.node.deadlines.login.as_secs()
                ))
                .with_help(format!(
                    "look at it in the guest: ssh -i {} {}@{} cloud-init status --long",
                    on.run.key.path.display(),
                    on.node.user,
                    on.node.ip
                )));
            }
            report.progress(unfinished);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        warn_of_first_boot(on, &session, report).await?;
        // From here on its disk is the only place that has the host key: a power cut must not take it.
        session
            .output("sync", SYNC)
            .await
            .doing("writing the guest's files to its disk")?;
        blank_seed(on).await
    }

    /// It only waits, until it blanks the seed in one write.
    async fn stopped(&self, _: &NodeRun) {}
}

async fn log_in(on: &NodeRun, report: &Reporter, until: Instant) -> Result<Session> {
    loop {
        let error = match on.open_session(ATTEMPT).await {
            Ok(session) => return Ok(session),
            Err(error @ OpenError::WrongHostKey { .. }) => return Err(wrong_key(on, error)),
            Err(error @ OpenError::UnusableKey { .. }) => {
                return Err(Error::failed("the login key cannot be used")
                    .because(error)
                    .with_help("correct `ssh.key` in the spec, or leave it out"));
            }
            Err(error) => error,
        };
        if Instant::now() > until {
            let help = match &error {
                OpenError::Refused { .. } => {
                    "the guest does not let our key in: does the template run cloud-init (if not: `first_boot: inject`), and does `ssh.user` exist there?"
                }
                _ => "the guest's sshd does not stay up: look at its console",
            };
            return Err(Error::failed(format!(
                "no login as {} at {} within {} s",
                on.node.user,
                on.node.ip,
                on.node.deadlines.login.as_secs()
            ))
            .because(error)
            .with_help(help));
        }
        report.progress(format!("waiting for a login: {error}"));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn wrong_key(on: &NodeRun, error: OpenError) -> Error {
    Error::failed(error.to_string()).with_help(format!(
        "another machine may answer at {}, or the guest made new host keys; if the guest is no longer yours: nodegraft down {}",
        on.node.ip, on.node.name
    ))
}

async fn first_boot(session: &Session) -> Result<String> {
    session
        .output(FIRST_BOOT, ATTEMPT)
        .await
        .doing("asking whether the first boot is over")
}

/// What the first boot got wrong without failing: errors of its own, a root file system that did not grow.
async fn warn_of_first_boot(on: &NodeRun, session: &Session, report: &Reporter) -> Result<()> {
    let result = session
        .output("cat /run/cloud-init/result.json 2>/dev/null || echo '{}'; echo; df -B1 --output=size / | tail -n 1", ATTEMPT)
        .await?;
    let (json, size) = result
        .trim_end()
        .rsplit_once('\n')
        .unwrap_or((&result, "0"));
    let errors = serde_json::from_str::<serde_json::Value>(json)
        .ok()
        .and_then(|v| v["v1"]["errors"].as_array().cloned())
        .unwrap_or_default();
    for error in errors {
        report.warn(
            format!(
                "cloud-init in {} says: {}",
                on.node.name,
                error.as_str().unwrap_or_default()
            ),
            None,
        );
    }
    let size: u64 = size.trim().parse().unwrap_or(0);
    // File systems keep some for themselves; a root that did not grow has far less.
    if size < on.node.disk / 100 * 85 {
        report.warn(
            format!(
                "the root file system of {} has {} of its disk's {}",
                on.node.name,
                Size(size / (1 << 20) * (1 << 20)),
                Size(on.node.disk)
            ),
            Some("the image cannot grow it: it needs growpart (cloud-guest-utils) and its file system's own tools".into()),
        );
    }
    Ok(())
}

/// The same seed without the private key. The instance id stays, or cloud-init would take it for a new machine.
async fn blank_seed(on: &mut NodeRun) -> Result<()> {
    let mut mark = on.mark()?;
    let key = HostKey {
        public: mark.host_key.clone(),
        private: None,
    };
    let files = on.run.plan.seed_files(
        &on.node,
        mark.owner.machine_id(),
        &key,
        &on.run.authorized_keys,
    )?;
    let Claimed { pool, name } = on.claimed_seed()?;
    on.host
        .write_raw(&pool, &name, seed::image(&files)?)
        .await
        .doing("blanking the seed volume")?;
    mark.seed = SeedState::Blank;
    on.set_mark(&mark).await
}
