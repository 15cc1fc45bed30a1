//! Collects the facts of a join that is stuck, for `diagnosis.rs` to explain.

use std::time::Duration;

use super::candidate::Candidate;
use crate::diagnosis::{Explanation, Facts, Guest, SKEW, TokenState, Waited, explain};
use crate::error::{Error, Result};
use crate::ssh::Session;

const SHORT: Duration = Duration::from_secs(30);
const SHOWN: usize = 8;

/// A line `key=value` for each fact. A runtime counts as down if its unit is there and does not run.
const LOOK: &str = "\
echo \"kubelet=$(systemctl is-active kubelet 2>/dev/null)\"
[ -s /var/lib/kubelet/config.yaml ] || echo config=missing
[ \"$(wc -l </proc/swaps)\" -le 1 ] || echo swap=on
for unit in containerd docker; do
  [ \"$(systemctl show $unit -p LoadState 2>/dev/null)\" != LoadState=loaded ] || systemctl is-active -q $unit || echo runtime=$unit
done";

/// The machine's clock when its join began, and how far it is off.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// Seconds since 1970, by the machine's own clock.
    pub at: i64,
    /// Seconds by which that clock is ahead of the API server's.
    pub skew: Option<i64>,
}

impl Begun {
    /// Reads the machine's clock. `server` is the API server's, asked just before.
    pub async fn now(session: &Session, server: Option<i64>) -> Result<Self> {
        let at = session.output("date +%s", SHORT).await?.trim().parse().unwrap_or(0);
        Ok(Self { at, skew: server.map(|server| at - server) })
    }

    /// The same clock, some time earlier.
    pub fn before(self, earlier: Duration) -> Self {
        Self { at: self.at - i64::try_from(earlier.as_secs()).unwrap_or(0), ..self }
    }

    pub fn is_off(&self) -> bool {
        self.skew.is_some_and(|skew| skew.abs() >= SKEW)
    }
}

/// What the API server knows of a token: its state, its user, its groups, whether it may ask.
pub struct Known {
    pub token: TokenState,
    pub user: String,
    pub groups: Vec<String>,
    pub may_request: bool,
}

impl Known {
    /// For a join whose token has done its work.
    pub fn nothing() -> Self {
        Self { token: TokenState::Alive, user: String::new(), groups: Vec::new(), may_request: true }
    }
}

/// How often systemd restarted the kubelet since somebody last started it. 0 where systemd does not count.
pub async fn restarts(session: &Session) -> u32 {
    let shown = session.output("systemctl show kubelet -p NRestarts", SHORT).await.unwrap_or_default();
    shown.trim().strip_prefix("NRestarts=").and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Looks at the machine.
pub async fn guest(session: &Session, begun: Begun) -> Guest {
    let found = session.output(LOOK, SHORT).await.unwrap_or_default();
    let value = |key: &str| found.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    Guest {
        kubelet: value("kubelet").unwrap_or_default(),
        restarts: restarts(session).await,
        config_missing: value("config").is_some(),
        swap: value("swap").is_some(),
        runtime_down: value("runtime"),
        skew: begun.skew,
        log: log(session, begun).await,
    }
}

/// The kubelet's last errors; an old one repeats `node not found` ten times a second, which helps nobody.
async fn log(session: &Session, begun: Begun) -> Vec<String> {
    let errors = format!(
        "journalctl -u kubelet --since @{} -n 1000 --no-pager -o cat 2>/dev/null | grep -E '^[EF][0-9]{{4}} |[Ee]rror|panic|failed' | grep -v 'not found$' | tail -n {SHOWN} || true",
        begun.at
    );
    let log = session.output(&errors, SHORT).await.unwrap_or_default();
    log.lines().map(|line| line.chars().take(400).collect()).collect()
}

/// Everything, put together.
pub async fn facts<C: Candidate>(on: &C, session: &Session, begun: Begun, waited: Waited, known: Known) -> Facts {
    Facts {
        waited,
        server: server(on).to_owned(),
        token: known.token,
        user: known.user,
        groups: known.groups,
        may_request: known.may_request,
        shell: on.member().shell.clone(),
        guest: guest(session, begun).await,
    }
}

/// The error that tells it.
pub fn error(what: String, facts: &Facts) -> Error {
    let Explanation { because, help, .. } = explain(facts);
    let mut error = Error::new(what).with_help(help);
    if let Some(because) = because {
        error = error.because(Error::new(because));
    }
    if facts.guest.log.is_empty() {
        return error;
    }
    error.with_detail(std::iter::once("the kubelet's last lines:".to_owned()).chain(facts.guest.log.iter().map(|line| format!("  {line}"))))
}

/// The API server's URL as the machine is told it.
pub fn server<C: Candidate>(on: &C) -> &str {
    on.terms().server.as_deref().unwrap_or(&on.cluster().server)
}
