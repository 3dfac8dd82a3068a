//! The tags of a repository (distribution-spec 1.1 "Listing Tags").

use hyper::{Method, StatusCode};
use serde::Deserialize;

use crate::body;
use crate::client::{MANIFEST_LIMIT_BYTES, ask};
use crate::endpoint::Need;
use crate::error::Error;
use crate::exchange::{Answer, Exchange};
use crate::reference::ImageRef;
use crate::referrers::next_page;

/// How many tags an "unknown tag" message lists.
const SHOWN: usize = 8;
/// How many tags are asked for at once. Registries may give fewer.
const PAGE_TAGS: usize = 1000;
/// The most pages that are read: a registry that never ends its list is not followed for ever.
const PAGE_LIMIT: usize = 1000;

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// Some tags of the repository, for a message; `None` if there is no such repository.
pub(crate) async fn some(exchange: &Exchange, reference: &ImageRef) -> Option<Vec<String>> {
    let path = format!("tags/list?n={SHOWN}");
    let answer = match exchange.get(&ask(reference, Need::Resolve, Method::GET, path)).await {
        Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return None,
        Ok(answer) if answer.status() == StatusCode::OK => answer,
        _ => return Some(Vec::new()),
    };
    let mut tags = read(exchange, reference, answer).await.unwrap_or_default();
    tags.truncate(SHOWN);
    Some(tags)
}

/// Every tag of the repository.
pub(crate) async fn all(exchange: &Exchange, reference: &ImageRef) -> Result<Vec<ImageRef>, Error> {
    let mut found = Vec::new();
    let mut path = Some(format!("tags/list?n={PAGE_TAGS}"));
    for _ in 0..PAGE_LIMIT {
        let Some(current) = path.take() else { break };
        let answer = exchange.get(&ask(reference, Need::Resolve, Method::GET, current)).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let (registry, repository) = (reference.registry(), reference.repository());
                let (registry, repository) = (registry.to_owned(), repository.to_owned());
                return Err(Error::UnknownRepository { registry, repository });
            }
            _ => return Err(exchange.refusal(answer).await),
        }
        path = answer.header("link").and_then(|header| next_page(header, "/tags/"));
        for tag in read(exchange, reference, answer).await? {
            found.push(ImageRef::parse(&format!("{}:{tag}", reference.name()))?);
        }
    }
    Ok(found)
}

async fn read(exchange: &Exchange, reference: &ImageRef, answer: Answer) -> Result<Vec<String>, Error> {
    let origin = answer.peer.origin.clone();
    let what = format!("the tags of {}", reference.name());
    let bytes =
        body::collect(&exchange.transport, &origin, answer.response, &what, MANIFEST_LIMIT_BYTES).await?;
    let list: List = serde_json::from_slice(&bytes)
        .map_err(|error| Error::InvalidManifest { reference: what, reason: error.to_string() })?;
    Ok(list.tags.unwrap_or_default())
}
