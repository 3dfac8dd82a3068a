//! What refers to an image: signatures, attestations and the like (distribution-spec 1.1 "Listing Referrers").
//!
//! Registries that do not have the API answer 404; there, clients keep the same list as an index under a tag made of the
//! digest.

use hyper::{Method, StatusCode};

use crate::body;
use crate::client::{MANIFEST_LIMIT_BYTES, ask};
use crate::digest::Digest;
use crate::endpoint::Need;
use crate::error::Error;
use crate::exchange::{Ask, Exchange};
use crate::manifest::{Descriptor, Document, OCI_INDEX};
use crate::reference::ImageRef;

/// The most pages of a list that are read.
const PAGE_LIMIT: usize = 8;

/// The referrers of `digest`, those of `artifact_type` alone if one is given.
pub(crate) async fn list(
    exchange: &Exchange,
    reference: &ImageRef,
    digest: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, Error> {
    let mut found = Vec::new();
    let mut path = Some(format!("referrers/{digest}"));
    for _ in 0..PAGE_LIMIT {
        let Some(current) = path.take() else { break };
        match page(exchange, reference, current).await? {
            Some((descriptors, next)) => {
                found.extend(descriptors);
                path = next;
            }
            None => found.extend(by_tag(exchange, reference, digest).await?),
        }
    }
    found.retain(|descriptor| artifact_type.is_none_or(|wanted| descriptor.artifact_type == wanted));
    Ok(found)
}

/// One page of the API, and the path of the next; `None` if the registry does not have the API.
async fn page(
    exchange: &Exchange,
    reference: &ImageRef,
    path: String,
) -> Result<Option<(Vec<Descriptor>, Option<String>)>, Error> {
    let request = Ask { accept: Some(OCI_INDEX), ..ask(reference, Need::Referrers, Method::GET, path) };
    let answer = exchange.get(&request).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        _ => return Err(exchange.refusal(answer).await),
    }
    let next = answer.header("link").and_then(|header| next_page(header, "/referrers/"));
    let origin = answer.peer.origin.clone();
    let what = "the list of referrers";
    let bytes =
        body::collect(&exchange.transport, &origin, answer.response, what, MANIFEST_LIMIT_BYTES).await?;
    Ok(Some((index(&bytes, reference)?, next)))
}

async fn by_tag(
    exchange: &Exchange,
    reference: &ImageRef,
    digest: &Digest,
) -> Result<Vec<Descriptor>, Error> {
    let tag = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
    let path = format!("manifests/{tag}");
    let request = Ask { accept: Some(OCI_INDEX), ..ask(reference, Need::Resolve, Method::GET, path) };
    let answer = exchange.get(&request).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(Vec::new()),
        _ => return Err(exchange.refusal(answer).await),
    }
    let origin = answer.peer.origin.clone();
    let what = "the list of referrers";
    let bytes =
        body::collect(&exchange.transport, &origin, answer.response, what, MANIFEST_LIMIT_BYTES).await?;
    index(&bytes, reference)
}

fn index(bytes: &[u8], reference: &ImageRef) -> Result<Vec<Descriptor>, Error> {
    let name = format!("the referrers of {reference}");
    match Document::parse(bytes, "", &name)? {
        Document::Index(index) => Ok(index.manifests),
        Document::Manifest(_) => {
            Err(Error::InvalidManifest { reference: name, reason: "it is not an index".to_owned() })
        }
    }
}

/// `<url>; rel="next"`, of which only what follows the repository counts: the list stays with its registry.
pub(crate) fn next_page(header: &str, list: &str) -> Option<String> {
    let (url, parameters) = header.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.contains("rel=\"next\"") && !parameters.contains("rel=next") {
        return None;
    }
    let at = url.find(list)?;
    let path = url[at + 1..].to_owned();
    path.bytes().all(|byte| byte.is_ascii_graphic()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_page_is_found_below_the_same_repository() {
        for (header, expected) in [
            (r#"</v2/a/referrers/sha256:x?n=1&last=y>; rel="next""#, Some("referrers/sha256:x?n=1&last=y")),
            ("<https://evil.io/v2/a/referrers/z>; rel=next", Some("referrers/z")),
            (r#"</v2/a/referrers/z>; rel="prev""#, None),
            (r#"</v2/a/tags/list>; rel="next""#, None),
            ("nonsense", None),
        ] {
            assert_eq!(next_page(header, "/referrers/").as_deref(), expected, "{header}");
        }
    }
}
