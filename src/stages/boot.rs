//! Boot: starts the VM with its console followed from the first line, and waits for the SSH banner at the known address.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::NodeRun;
use crate::core::dead_end::{Shown, Watch};
use crate::core::error::{Error, Result, one_line};
use crate::core::journal::{Journal, Thing};
use crate::core::plan::Node;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::libvirt::console::Console;
use crate::rooms::ssh;

/// A probe that gets no answer is given up after this long; the next follows at once.
const PROBE: Duration = Duration::from_millis(700);
/// A guest that is up may be busy; only one that is not costs this much.
const PATIENT: Duration = Duration::from_secs(15);
const BETWEEN_PROBES: Duration = Duration::from_millis(75);
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
const CONSOLE_TAIL: usize = 15;

pub struct Boot;

#[async_trait]
impl Stage<NodeRun> for Boot {
    fn name(&self) -> StageName {
        StageName::Boot
    }

    fn plan(&self, node: &Node) -> String {
        format!(
            "start it, SSH answers at {} within {} s",
            node.ip,
            node.deadlines.boot.as_secs()
        )
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        on.node.deadlines.boot + Duration::from_secs(30)
    }

    async fn check(&self, on: &mut NodeRun, _: &Reporter) -> Result<Check> {
        match on.claim() {
            Some(domain) if domain.running && !domain.paused => {}
            _ => return Ok(Check::Needed("it is to be started".into())),
        }
        Ok(match patiently(on).await {
            Ok(banner) => Check::Done(banner),
            Err(error) => Check::Needed(format!("it runs, but {}", one_line(&error))),
        })
    }

    async fn apply(&self, on: &mut NodeRun, report: &Reporter, journal: &Journal) -> Result<()> {
        // Somebody may have started it since: then it is not ours to stop.
        on.look().await?;
        let domain = on.claimed()?;
        if !domain.running {
            journal.made(Thing::Running);
            on.host.start_paused(&domain.uuid).await?;
        }
        // Without a console the wait only has less to tell.
        let console = on
            .host
            .open_console(
                &domain.uuid,
                on.run.state.log(&on.node.name, "console.log")?,
            )
            .await
            .ok();
        if !domain.running || domain.paused {
            on.host.resume(&domain.uuid).await?;
        }
        let waited = wait_for_banner(on, console.as_ref(), report).await;
        drop(console);
        on.look().await?;
        waited
    }

    /// A VM that was started is in the journal, and runs on.
    async fn stopped(&self, _: &NodeRun) {}
}

/// The banner of a guest that runs. It may be busy, and its first boot may restart sshd just now.
async fn patiently(on: &NodeRun) -> Result<String> {
    let until = Instant::now() + PATIENT;
    loop {
        match ssh::banner(on.ssh_address(), PATIENT).await {
            Err(_) if Instant::now() < until => tokio::time::sleep(BETWEEN_PROBES).await,
            heard => return heard,
        }
    }
}

async fn wait_for_banner(
    on: &mut NodeRun,
    console: Option<&Console>,
    report: &Reporter,
) -> Result<()> {
    let begun = Instant::now();
    let (mut told, mut looked, mut watch) = (begun, begun, Watch::default());
    loop {
        let last = match ssh::banner(on.ssh_address(), PROBE).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let shown = console.map(Console::shown).unwrap_or_default();
        let tail = tail(&shown);
        if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            let line = tail
                .last()
                .map_or_else(String::new, |line| format!(": {line}"));
            report.progress(format!("waiting for SSH at {}{line}", on.node.ip));
        }
        // The console ends with the VM. Without one libvirt has to be asked now and then.
        let ended = console.map_or(looked.elapsed() > BETWEEN_LOOKS, Console::ended);
        if ended && looked.elapsed() > Duration::from_secs(1) {
            looked = Instant::now();
            if on.look().await?.is_none_or(|domain| !domain.running) {
                return Err(Error::failed(format!(
                    "the VM stopped while it booted, after {} s",
                    begun.elapsed().as_secs()
                ))
                .with_detail(console_detail(&tail))
                .with_help(format!(
                    "the host's log may say why: /var/log/libvirt/qemu/{}.log",
                    on.node.name
                )));
            }
        }
        if let Some(end) = watch.look(&shown) {
            return Err(
                Error::failed(format!("the guest does not boot: {}", end.what))
                    .with_detail(console_detail(&tail))
                    .with_help(end.help),
            );
        }
        if begun.elapsed() > on.node.deadlines.boot {
            return Err(never_booted(on, last, &tail));
        }
        tokio::time::sleep(BETWEEN_PROBES).await;
    }
}

/// Its last lines that say something.
fn tail(shown: &Shown) -> Vec<String> {
    let said: Vec<&String> = shown
        .lines
        .iter()
        .filter(|line| !line.trim().is_empty())
        .collect();
    said[said.len().saturating_sub(CONSOLE_TAIL)..]
        .iter()
        .map(|line| (*line).clone())
        .collect()
}

fn never_booted(on: &NodeRun, last: Error, console: &[String]) -> Error {
    let help = if console.is_empty() && on.run.sight.has_kvm() {
        "it printed nothing under KVM: acceleration may not work here; set `virt_type: qemu` under `host` in the spec".to_owned()
    } else if console.is_empty() {
        "it printed nothing: is the template bootable, and does its kernel use console=ttyS0?"
            .to_owned()
    } else {
        format!(
            "if it did boot, its network did not come up: is {} right for this network, and does the template have cloud-init (if not: `first_boot: inject`)? raise `deadlines: {{boot: ..}}` for a slow host",
            on.node.address
        )
    };
    Error::failed(format!(
        "no SSH at {} within {} s",
        on.node.ip,
        on.node.deadlines.boot.as_secs()
    ))
    .because(last)
    .with_detail(console_detail(console))
    .with_help(help)
}

fn console_detail(console: &[String]) -> Vec<String> {
    if console.is_empty() {
        return vec!["the serial console showed nothing".into()];
    }
    std::iter::once("the serial console's last lines:".to_owned())
        .chain(console.iter().map(|line| format!("  {line}")))
        .collect()
}
