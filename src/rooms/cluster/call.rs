//! One call to the API server: how long it may take, what is tried again, and what its failure is called. Trouble on the
//! way (a connection refused or cut, a server that is busy or starting) is waited out; an answer is returned at once,
//! whatever it says.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{Failure, Unanswered};
use crate::core::error::{Error, Result};

/// What one try may take.
const TRY: Duration = Duration::from_secs(10);

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

/// A call that failed, perhaps after several tries.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub(super) struct Tried {
    failure: Failure,
    /// Trouble was waited out for so long in vain.
    waited: Option<Duration>,
    /// A try before this one was cut off: the API server may have done it already.
    pub(super) tried_before: bool,
}

impl From<Failure> for Tried {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            waited: None,
            tried_before: false,
        }
    }
}

impl Tried {
    /// The HTTP status of an answer, such as 404.
    pub(super) fn code(&self) -> Option<u16> {
        self.failure.status()
    }

    /// Whether an eviction is refused for the sake of a disruption budget.
    pub(super) fn is_budget(&self) -> bool {
        matches!(self.failure, Failure::Budget(_))
    }

    /// Whether another try may go better.
    pub(super) fn passes(&self) -> bool {
        self.failure.passes()
    }

    /// How long to wait before the next try.
    pub(super) fn pause(&self, backoff: &mut Backoff) -> Duration {
        let usual = backoff.next();
        match self.failure {
            Failure::Busy {
                after: Some(after), ..
            } => usual.max(after),
            _ => usual,
        }
    }

    /// The error of what was being done.
    pub(super) fn during(self, what: impl Into<String>) -> Error {
        match self.waited {
            None => Error::during(what, self.failure),
            Some(waited) => Error::during(
                what,
                Unanswered {
                    seconds: waited.as_secs(),
                    last: self.failure,
                },
            ),
        }
    }
}

/// One try.
pub(super) async fn once<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Tried> {
    once_within(TRY, call).await
}

async fn once_within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Tried> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(|error| Failure::from(&error).into()),
        Err(_) => Err(Failure::Silent.into()),
    }
}

/// Tries until there is an answer, or `patience` has an end.
pub(super) async fn insist<T, F>(
    patience: Patience,
    mut call: impl FnMut() -> F,
) -> Result<T, Tried>
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
            Err(tried) => Tried {
                tried_before,
                ..tried
            },
        };
        if !failure.passes() || (failure.failure.is_nobody() && patience.nobody_is_an_answer) {
            return Err(failure);
        }
        let pause = failure.pause(&mut backoff);
        if Instant::now() + pause >= until {
            return Err(Tried {
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
            return Err(Error::leftover(what)
                .because(format!(
                    "{} s after its deletion it is still held by its finalizers: {finalizers}",
                    LIMIT.as_secs()
                ))
                .with_help("it goes as soon as whoever set them lets go of it"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::error::one_line;
    use kube::core::Status;
    use kube::core::response::StatusDetails;
    use std::collections::VecDeque;
    use std::io;

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
    ) -> (Result<u8, Tried>, Duration, usize) {
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
            let failure = Tried::from(Failure::from(&status(answer, "no")));
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
        assert_eq!(took, Duration::from_secs(1));
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
        assert_eq!(result.unwrap_err().to_string(), "the connection was cut");
        assert!(took <= Duration::from_secs(15), "{took:?}");
    }
}
