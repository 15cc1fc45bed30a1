//! One call to the API server: how long it may take, what is tried again, and what its failure is called. Trouble on the
//! way (a connection refused or cut, a server that is busy or starting) is waited out; an answer is returned at once,
//! whatever it says.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::io;
use std::time::Duration;

use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// What one try may take.
const TRY: Duration = Duration::from_secs(10);
/// The shortest pause after a 429 that names none; the API server's own header says the same.
const BUSY: Duration = Duration::from_secs(1);

/// How long trouble is waited out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    limit: Duration,
    /// Nobody at that address is an answer, too.
    nobody_is_an_answer: bool,
}

/// Of a cluster that has answered before.
pub(super) const PATIENCE: Patience = Patience { limit: Duration::from_secs(60), nobody_is_an_answer: false };
/// Of the first call: who wrote a wrong address must hear at once.
pub(super) const FIRST_CALL: Patience = Patience { limit: Duration::from_secs(15), nobody_is_an_answer: true };

/// Pauses between tries, each twice as long as the one before.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(4);

    pub(super) fn new() -> Self {
        Self(Duration::from_millis(250))
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(Self::LONGEST);
        pause
    }
}

/// Why a call failed, in one clause.
#[derive(Debug, thiserror::Error)]
#[error("{clause}")]
pub(super) struct Failure {
    clause: String,
    kind: Kind,
    /// Trouble was waited out for so long in vain.
    waited: Option<Duration>,
    /// A try before this one was cut off: the API server may have done it already.
    pub(super) tried_before: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The API server's own word, by its HTTP status.
    Answer(u16),
    /// A pod's disruption budget forbids its eviction.
    Budget,
    /// Nothing that another try would change: a certificate that is not trusted, an answer that makes no sense.
    Lasting,
    /// Nobody answers at the address.
    Nobody,
    /// It passes.
    Passing { after: Option<Duration> },
}

impl Failure {
    fn new(kind: Kind, clause: impl Into<String>) -> Self {
        Self { clause: clause.into(), kind, waited: None, tried_before: false }
    }

    /// The HTTP status of an answer, such as 404.
    pub(super) fn code(&self) -> Option<u16> {
        match self.kind {
            Kind::Answer(code) => Some(code),
            _ => None,
        }
    }

    /// Whether an eviction is refused for the sake of a disruption budget.
    pub(super) fn is_budget(&self) -> bool {
        self.kind == Kind::Budget
    }

    /// Whether another try may go better.
    pub(super) fn passes(&self) -> bool {
        matches!(self.kind, Kind::Passing { .. } | Kind::Nobody)
    }

    /// How long to wait before the next try.
    pub(super) fn pause(&self, backoff: &mut Backoff) -> Duration {
        let usual = backoff.next();
        match self.kind {
            Kind::Passing { after: Some(after) } => usual.max(after),
            _ => usual,
        }
    }

    /// The error of what was being done.
    pub(super) fn during(self, what: impl Into<String>) -> Error {
        match self.waited {
            None => Error::new(what).because(self),
            Some(waited) => Error::new(what)
                .because(Error::new(format!("the API server did not answer within {} s", waited.as_secs())).because(self))
                .with_help("is the API server well? run the same command again when it answers"),
        }
    }
}

/// One try.
pub(super) async fn once<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    once_within(TRY, call).await
}

async fn once_within<T>(limit: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(_) => Err(Failure::new(Kind::Passing { after: None }, format!("no answer within {} s", limit.as_secs().max(1)))),
    }
}

/// Tries until there is an answer, or `patience` has an end.
pub(super) async fn insist<T, F>(patience: Patience, mut call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let until = Instant::now() + patience.limit;
    let mut backoff = Backoff::new();
    let mut tried_before = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let failure = match once_within(TRY.min(left), call()).await {
            Ok(value) => return Ok(value),
            Err(failure) => Failure { tried_before, ..failure },
        };
        if !failure.passes() || (failure.kind == Kind::Nobody && patience.nobody_is_an_answer) {
            return Err(failure);
        }
        let pause = failure.pause(&mut backoff);
        if Instant::now() + pause >= until {
            return Err(Failure { waited: Some(patience.limit), ..failure });
        }
        tried_before = true;
        tokio::time::sleep(pause).await;
    }
}

/// A call that may be repeated, as most may, with a gerund for its error.
pub(super) async fn within<T, F>(what: impl Into<String>, call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    insist(PATIENCE, call).await.map_err(|failure| failure.during(what))
}

/// Deletes exactly the object that was looked at. False if it is gone, or if another bears its name now.
pub(super) async fn delete<K>(api: &Api<K>, what: &str, name: &str, uid: &str) -> Result<bool>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let what = format!("deleting {what}");
    let exactly = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams::default().preconditions(exactly);
    let mut backoff = Backoff::new();
    let mut tried_before = false;
    let until = Instant::now() + PATIENCE.limit;
    loop {
        let failure = match insist(PATIENCE, || api.delete(name, &params)).await {
            Ok(_) => return Ok(true),
            Err(failure) => failure,
        };
        tried_before |= failure.tried_before;
        match failure.code() {
            Some(404) => return Ok(tried_before),
            Some(409) if Instant::now() < until => {}
            _ => return Err(failure.during(what)),
        }
        // Another object's UID, as a rule; else the object was just being written.
        let found = within(what.as_str(), || api.get_opt(name)).await?;
        if found.is_none_or(|found| found.uid().as_deref() != Some(uid)) {
            return Ok(tried_before);
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => answer(status),
        kube::Error::SerdeError(error) if error.is_eof() => Failure::new(Kind::Passing { after: None }, CUT),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => trouble(error),
        _ => Failure::new(Kind::Lasting, one_clause(&deepest(error).to_string())),
    }
}

const CUT: &str = "the connection was cut";

/// What the API server, or a proxy before it, answers.
fn answer(status: &kube::core::Status) -> Failure {
    let told = one_clause(&status.message);
    // A proxy's page is no clause.
    let told = if told.starts_with('<') { String::new() } else { told };
    let passing = |after| {
        let clause = if told.is_empty() { format!("HTTP {}", status.code) } else { format!("HTTP {}: {told}", status.code) };
        Failure::new(Kind::Passing { after }, clause)
    };
    let asked = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
    let asked = asked.map(|seconds| Duration::from_secs(seconds.into()));
    // The cause names the budget and counts its pods; older API servers have only the message.
    let budget = status.details.iter().flat_map(|details| &details.causes).find(|cause| cause.reason == "DisruptionBudget");
    match status.code {
        429 if budget.is_some() || told.contains("disruption budget") => {
            Failure::new(Kind::Budget, budget.map_or(told, |cause| one_clause(&cause.message)))
        }
        429 => passing(Some(asked.unwrap_or(BUSY))),
        500 | 502 | 503 | 504 => passing(asked),
        code => Failure::new(Kind::Answer(code), if told.is_empty() { format!("HTTP {code}") } else { told }),
    }
}

/// What happened on the way.
fn trouble(error: &kube::Error) -> Failure {
    let passing = |clause: &str| Failure::new(Kind::Passing { after: None }, clause);
    let nobody = |clause: &str| Failure::new(Kind::Nobody, clause);
    let text = deepest(error).to_string();
    if text.contains("certificate") {
        return Failure::new(Kind::Lasting, one_clause(&text));
    }
    // hyper-util's errors have no public kinds, but say where they happened.
    let connecting = chain(error).any(|error| error.to_string().contains("(Connect)"));
    let kind = chain(error).filter_map(|error| error.downcast_ref::<io::Error>()).last().map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => nobody("connection refused"),
        Some(
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof,
        ) => passing(CUT),
        Some(io::ErrorKind::TimedOut) if connecting => nobody("no connection within 5 s"),
        Some(io::ErrorKind::TimedOut) => passing("no answer in time"),
        _ if connecting => nobody(&one_clause(&text)),
        None => passing(CUT),
        Some(_) => passing(&one_clause(&text)),
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (**error).source())
}

fn deepest<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    chain(error).last().unwrap_or(error)
}

/// The first line that says something, without its full stop.
fn one_clause(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let clause: String = line.strip_suffix('.').unwrap_or(line).chars().take(400).collect();
    clause
}
