//! Waiting for an object to become what it should be: a list, then a watch from there. A watch that ends, breaks, is
//! refused for a moment, or falls silent is begun again from a fresh list, so that nothing is missed.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;

use super::call::{Backoff, once};
use super::list::paged;
use crate::core::error::Result;

/// After so many seconds the API server itself ends a watch.
const SERVER: u32 = 25;
/// A watch that is silent for longer than that is dead, though nothing says so.
const SILENCE: Duration = Duration::from_secs(30);

/// Lists, then watches, until `look` finds what it wants in an object. Waits out trouble for as long as it is let:
/// whoever calls it sets the deadline.
pub(super) async fn watch_until<K, T>(
    api: &Api<K>,
    what: &str,
    fields: Option<&str>,
    mut look: impl FnMut(K) -> Option<T>,
) -> Result<T>
where
    K: Clone + DeserializeOwned + Debug,
{
    let only = fields.map_or_else(ListParams::default, |fields| {
        ListParams::default().fields(fields)
    });
    // Bookmarks would need a progress request that etcd before 3.4.25 does not have.
    let mut params = WatchParams::default().timeout(SERVER).disable_bookmarks();
    params.field_selector = fields.map(str::to_owned);
    let mut backoff = Backoff::new();
    loop {
        let list = match paged(api, &only).await {
            Ok(list) => list,
            Err(failure) if failure.passes() => {
                tokio::time::sleep(failure.pause(&mut backoff)).await;
                continue;
            }
            Err(failure) => return Err(failure.during(format!("listing {what}"))),
        };
        for object in list.items {
            if let Some(found) = look(object) {
                return Ok(found);
            }
        }
        match once(api.watch(&params, &list.version)).await {
            Ok(events) => {
                let told = |object| {
                    backoff = Backoff::new();
                    look(object)
                };
                if let Some(found) = follow(events, told).await {
                    return Ok(found);
                }
                tokio::time::sleep(backoff.next()).await;
            }
            // The list is too old already, or this was no good moment.
            Err(failure) if failure.passes() || failure.code() == Some(410) => {
                tokio::time::sleep(failure.pause(&mut backoff)).await
            }
            Err(failure) => return Err(failure.during(format!("watching {what}"))),
        }
    }
}

/// Follows a watch. `None` when it has ended, broken, or fallen silent.
async fn follow<K, T>(
    events: impl Stream<Item = Result<WatchEvent<K>, kube::Error>>,
    mut look: impl FnMut(K) -> Option<T>,
) -> Option<T> {
    futures_util::pin_mut!(events);
    while let Ok(Some(Ok(event))) = tokio::time::timeout(SILENCE, events.next()).await {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                if let Some(found) = look(object) {
                    return Some(found);
                }
            }
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_given_up_and_one_that_speaks_is_not() {
        let begun = Instant::now();
        assert_eq!(
            follow(stream::pending(), |object: u32| Some(object)).await,
            None
        );
        assert_eq!(begun.elapsed(), SILENCE);

        let begun = Instant::now();
        let speaks = stream::iter(1..=5).then(|number| async move {
            tokio::time::sleep(SILENCE - Duration::from_secs(1)).await;
            Ok(WatchEvent::Modified(number))
        });
        assert_eq!(
            follow(speaks, |number: u32| (number == 5).then_some("five")).await,
            Some("five")
        );
        assert_eq!(begun.elapsed(), 5 * (SILENCE - Duration::from_secs(1)));
    }
}
