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

use crate::core::error::{Error, Exit, Result};

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
pub(super) const PATIENCE: Patience = Patience {
    limit: Duration::from_secs(60),
    nobody_is_an_answer: false,
};
/// Of the first call: who wrote a wrong address must hear at once.
pub(super) const FIRST_CALL: Patience = Patience {
    limit: Duration::from_secs(15),
    nobody_is_an_answer: true,
};

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
        Self {
            clause: clause.into(),
            kind,
            waited: None,
            tried_before: false,
        }
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
        let error = Error::new(what).with_exit(Exit::Unfit);
        match self.waited {
            None => error.because(self),
            Some(waited) => error
                .because(
                    Error::new(format!(
                        "the API server did not answer within {} s",
                        waited.as_secs()
                    ))
                    .because(self),
                )
                .with_help("is the API server well? run the same command again when it answers"),
        }
    }
}

/// Whether the API server answered that we may not.
pub fn is_forbidden(error: &Error) -> bool {
    chain(error).any(|cause| {
        cause
            .downcast_ref::<Failure>()
            .is_some_and(|failure| failure.code() == Some(403))
    })
}

/// One try.
pub(super) async fn once<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failure> {
    once_within(TRY, call).await
}

async fn once_within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(_) => Err(Failure::new(
            Kind::Passing { after: None },
            "no answer in time",
        )),
    }
}

/// Tries until there is an answer, or `patience` has an end.
pub(super) async fn insist<T, F>(
    patience: Patience,
    mut call: impl FnMut() -> F,
) -> Result<T, Failure>
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
            Err(failure) => Failure {
                tried_before,
                ..failure
            },
        };
        if !failure.passes() || (failure.kind == Kind::Nobody && patience.nobody_is_an_answer) {
            return Err(failure);
        }
        let pause = failure.pause(&mut backoff);
        if Instant::now() + pause >= until {
            return Err(Failure {
                waited: Some(patience.limit),
                ..failure
            });
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
    insist(PATIENCE, call)
        .await
        .map_err(|failure| failure.during(what))
}

/// Deletes exactly the object that was looked at, and waits for whoever holds it by a finalizer. False if it is gone, or if
/// another bears its name now.
pub(super) async fn delete<K>(api: &Api<K>, what: &str, name: &str, uid: &str) -> Result<bool>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let what = format!("deleting {what}");
    let exactly = Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    };
    let params = DeleteParams::default().preconditions(exactly);
    let mut backoff = Backoff::new();
    let mut tried_before = false;
    let until = Instant::now() + PATIENCE.limit;
    loop {
        let failure = match insist(PATIENCE, || api.delete(name, &params)).await {
            Ok(deleted) => {
                let held = deleted
                    .left()
                    .map(|object| object.finalizers().join(", "))
                    .filter(|finalizers| !finalizers.is_empty());
                return match held {
                    Some(finalizers) => released(api, &what, name, uid, &finalizers)
                        .await
                        .map(|()| true),
                    None => Ok(true),
                };
            }
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

/// Waits until a deleted object is let go.
async fn released<K>(
    api: &Api<K>,
    what: &str,
    name: &str,
    uid: &str,
    finalizers: &str,
) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    const LIMIT: Duration = Duration::from_secs(30);
    const LOOK: Duration = Duration::from_millis(500);
    let until = Instant::now() + LIMIT;
    while within(what, || api.get_opt(name))
        .await?
        .is_some_and(|found| found.uid().as_deref() == Some(uid))
    {
        if Instant::now() >= until {
            return Err(Error::new(what)
                .because(Error::new(format!(
                    "{} s after its deletion it is still held by its finalizers: {finalizers}",
                    LIMIT.as_secs()
                )))
                .with_help("it goes as soon as whoever set them lets go of it"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => answer(status),
        kube::Error::SerdeError(error) if error.is_eof() => {
            Failure::new(Kind::Passing { after: None }, CUT)
        }
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
            trouble(error)
        }
        _ => Failure::new(Kind::Lasting, one_clause(&deepest(error).to_string())),
    }
}

const CUT: &str = "the connection was cut";

/// What the API server, or a proxy before it, answers.
fn answer(status: &kube::core::Status) -> Failure {
    let told = one_clause(&status.message);
    // A proxy's page is no clause.
    let told = if told.starts_with('<') {
        String::new()
    } else {
        told
    };
    let passing = |after| {
        let clause = if told.is_empty() {
            format!("HTTP {}", status.code)
        } else {
            format!("HTTP {}: {told}", status.code)
        };
        Failure::new(Kind::Passing { after }, clause)
    };
    let asked = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|seconds| *seconds > 0);
    let asked = asked.map(|seconds| Duration::from_secs(seconds.into()));
    // The cause names the budget and counts its pods; older API servers have only the message.
    let budget = status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .find(|cause| cause.reason == "DisruptionBudget");
    match status.code {
        429 if budget.is_some() || told.contains("disruption budget") => Failure::new(
            Kind::Budget,
            budget.map_or(told, |cause| one_clause(&cause.message)),
        ),
        429 => passing(Some(asked.unwrap_or(BUSY))),
        500 | 502 | 503 | 504 => passing(asked),
        code => Failure::new(
            Kind::Answer(code),
            if told.is_empty() {
                format!("HTTP {code}")
            } else {
                told
            },
        ),
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
    let kind = chain(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last()
        .map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => nobody("connection refused"),
        Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof,
        ) => passing(CUT),
        Some(io::ErrorKind::TimedOut) if connecting => nobody("no connection within 5 s"),
        Some(io::ErrorKind::TimedOut) => passing("no answer in time"),
        _ if connecting => nobody(&one_clause(&text)),
        None => passing(CUT),
        Some(_) => passing(&one_clause(&text)),
    }
}

fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        (**error).source()
    })
}

pub fn deepest<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    chain(error).last().unwrap_or(error)
}

/// The first line that says something, without its full stop.
pub fn one_clause(text: &str) -> String {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let clause: String = line
        .strip_suffix('.')
        .unwrap_or(line)
        .chars()
        .take(400)
        .collect();
    clause
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::error::one_line;
    use kube::core::Status;
    use kube::core::response::StatusDetails;
    use std::collections::VecDeque;

    fn status(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "Reason").with_code(code).boxed())
    }

    fn later(code: u16, seconds: u32) -> kube::Error {
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: seconds,
        };
        kube::Error::Api(
            Status {
                details: Some(details),
                ..Status::failure("later", "").with_code(code)
            }
            .boxed(),
        )
    }

    fn io(kind: io::ErrorKind) -> kube::Error {
        kube::Error::Service(Box::new(io::Error::from(kind)))
    }

    /// Gives these answers, then the last one for ever. Returns what came of it, after how long, and how many tries.
    async fn tried(
        patience: Patience,
        answers: Vec<fn() -> Result<u8, kube::Error>>,
    ) -> (Result<u8, Failure>, Duration, usize) {
        let begun = Instant::now();
        let mut answers = VecDeque::from(answers);
        let mut tries = 0;
        let result = insist(patience, || {
            tries += 1;
            let answer = if answers.len() > 1 {
                answers.pop_front().unwrap()
            } else {
                answers[0]
            };
            async move { answer() }
        })
        .await;
        (result, begun.elapsed(), tries)
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_waited_out_and_an_answer_is_not() {
        let (result, took, tries) = tried(
            PATIENCE,
            vec![
                || Err(status(503, "")),
                || Err(io(io::ErrorKind::ConnectionRefused)),
                || Ok(1),
            ],
        )
        .await;
        assert_eq!(
            (result.unwrap(), took, tries),
            (1, Duration::from_millis(750), 3)
        );
        for answer in [401, 403, 404, 409, 410, 422] {
            let failure = failure(&status(answer, "no"));
            assert_eq!((failure.code(), failure.passes()), (Some(answer), false));
        }
        let (result, took, tries) = tried(
            PATIENCE,
            vec![|| Err(status(500, "")), || Err(status(404, "gone")), || {
                Ok(1)
            }],
        )
        .await;
        let failure = result.unwrap_err();
        assert_eq!(
            (failure.code(), failure.tried_before, tries),
            (Some(404), true, 2)
        );
        assert_eq!(took, Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_says_when_to_come_again() {
        let (_, took, _) = tried(PATIENCE, vec![|| Err(later(429, 7)), || Ok(1)]).await;
        assert_eq!(took, Duration::from_secs(7));
        let (_, took, _) = tried(
            PATIENCE,
            vec![
                || Err(status(429, "Too many requests, please try again later.")),
                || Ok(1),
            ],
        )
        .await;
        assert_eq!(took, BUSY);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_names_what_was_waited_for_and_what_was_in_the_way() {
        let (result, took, tries) = tried(
            PATIENCE,
            vec![|| Err(status(503, "etcdserver: leader changed\n{trace}"))],
        )
        .await;
        assert!(
            took <= Duration::from_secs(60) && took > Duration::from_secs(50),
            "{took:?}"
        );
        assert!(tries > 10, "{tries}");
        let error = result.unwrap_err().during("listing the Nodes");
        assert_eq!(
            one_line(&error),
            "listing the Nodes: the API server did not answer within 60 s: HTTP 503: etcdserver: leader changed"
        );
        // Who asks for more time than there is gets none.
        let (result, took, tries) = tried(PATIENCE, vec![|| Err(later(429, 600))]).await;
        assert!(result.is_err());
        assert_eq!((took, tries), (Duration::ZERO, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_gets_no_answer_is_given_up() {
        let begun = Instant::now();
        let error = within(
            "listing the Nodes",
            std::future::pending::<Result<(), kube::Error>>,
        )
        .await
        .unwrap_err();
        assert_eq!(
            one_line(&error),
            "listing the Nodes: the API server did not answer within 60 s: no answer in time"
        );
        assert!(begun.elapsed() <= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_first_call_nobody_is_an_answer_and_a_cut_is_not() {
        let (result, took, _) = tried(
            FIRST_CALL,
            vec![|| Err(io(io::ErrorKind::ConnectionRefused))],
        )
        .await;
        assert_eq!(
            (result.unwrap_err().to_string().as_str(), took),
            ("connection refused", Duration::ZERO)
        );
        let (result, _, tries) = tried(
            FIRST_CALL,
            vec![|| Err(io(io::ErrorKind::ConnectionReset)), || Ok(1)],
        )
        .await;
        assert_eq!((result.unwrap(), tries), (1, 2));
        let (result, took, _) =
            tried(FIRST_CALL, vec![|| Err(io(io::ErrorKind::UnexpectedEof))]).await;
        assert_eq!(result.unwrap_err().to_string(), CUT);
        assert!(took <= Duration::from_secs(15), "{took:?}");
    }

    #[test]
    fn failures_are_told_in_one_clause() {
        let untrusted = io::Error::new(
            io::ErrorKind::InvalidData,
            "invalid peer certificate: UnknownIssuer",
        );
        let cases = [
            (
                status(403, "nodes is forbidden: User \"x\" cannot list"),
                "nodes is forbidden: User \"x\" cannot list",
                false,
            ),
            (status(503, ""), "HTTP 503", true),
            (
                status(502, "<html>\n<h1>Bad gateway</h1>"),
                "HTTP 502",
                true,
            ),
            (
                status(429, "Too many requests, please try again later."),
                "HTTP 429: Too many requests, please try again later",
                true,
            ),
            (
                kube::Error::Service(Box::new(untrusted)),
                "invalid peer certificate: UnknownIssuer",
                false,
            ),
            (io(io::ErrorKind::ConnectionReset), CUT, true),
            (
                io(io::ErrorKind::ConnectionRefused),
                "connection refused",
                true,
            ),
            (
                kube::Error::SerdeError(serde_json::from_str::<u8>("").unwrap_err()),
                CUT,
                true,
            ),
            (
                kube::Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err()),
                "expected value at line 1 column 1",
                false,
            ),
        ];
        for (error, clause, passes) in cases {
            let failure = failure(&error);
            assert_eq!(
                (failure.to_string().as_str(), failure.passes()),
                (clause, passes)
            );
        }
    }

    #[test]
    fn a_budget_is_told_from_a_busy_server() {
        assert!(
            failure(&status(
                429,
                "Cannot evict pod as it would violate the pod's disruption budget."
            ))
            .is_budget()
        );
        assert!(!failure(&status(429, "Too many requests")).is_budget());
    }
}
