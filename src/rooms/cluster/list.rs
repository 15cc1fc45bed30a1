//! Lists, page by page: that of a large cluster does not come whole through a slow line in the time of one try.

use std::fmt::Debug;

use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;

use super::call::{PATIENCE, Tried, insist};
use crate::core::error::Result;

/// Objects in one page: about 4 MB of Nodes.
const PAGE: u32 = 250;
/// How often a list is begun whose place the API server has forgotten.
const BEGINNINGS: usize = 5;

/// What a list found, and the version of the cluster that it shows.
pub(super) struct Listed<K> {
    pub(super) items: Vec<K>,
    pub(super) version: String,
}

/// All objects of a kind that `wanted` selects, with a gerund for the error.
pub(super) async fn list<K>(
    what: impl Into<String>,
    api: &Api<K>,
    wanted: &ListParams,
) -> Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    paged(api, wanted)
        .await
        .map(|listed| listed.items)
        .map_err(|failure| failure.during(what))
}

/// The pages put together. All of them show one moment; if that is too long ago for the API server, it is begun anew.
pub(super) async fn paged<K>(api: &Api<K>, wanted: &ListParams) -> Result<Listed<K>, Tried>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut beginnings = 1;
    let mut params = wanted.clone().limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = match insist(PATIENCE, || api.list(&params)).await {
            Ok(page) => page,
            Err(failure)
                if failure.code() == Some(410)
                    && params.continue_token.is_some()
                    && beginnings < BEGINNINGS =>
            {
                beginnings += 1;
                params.continue_token = None;
                items.clear();
                continue;
            }
            Err(failure) => return Err(failure),
        };
        items.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(Listed {
                items,
                version: page.metadata.resource_version.unwrap_or_default(),
            });
        }
    }
}
