//! One request to a registry, with everything that may happen on its way: scheme, authentication, redirects, retries.
//!
//! ```text
//! get ─▶ retried (429, 5xx, broken connections; one gate per registry)
//!          └▶ authenticated (401 → token, at most one refresh)
//!               └▶ redirected (≤ 10 hops; Authorization stays at its origin)
//!                    └▶ Transport::send
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};

use crate::auth::{AuthState, Scope};
use crate::body;
use crate::client::{ClientOptions, PlainHttp};
use crate::error::Error;
use crate::retry::is_transient;
use crate::transport::{Origin, TLS_HANDSHAKE, Transport};
use crate::trust::Trust;

/// How this program names itself to registries.
pub(crate) const USER_AGENT_VALUE: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));
/// The most redirects that one request follows.
const REDIRECT_LIMIT: usize = 10;
/// How often one request may be answered by 401: unauthenticated, with a stale token, with a fresh one.
const AUTH_ROUNDS: usize = 3;
/// The most of an error's body that is read, in bytes.
const ERROR_LIMIT_BYTES: u64 = 64 * 1024;
/// The most of an error's body that is shown, in characters.
const ERROR_SHOWN_CHARS: usize = 300;

/// A request, in the registry's terms.
pub(crate) struct Ask {
    pub(crate) scope: Scope,
    /// The host to talk to, which for Docker Hub is not the registry's name.
    pub(crate) endpoint: String,
    pub(crate) method: Method,
    /// The path from `/v2/` on.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// The first byte wanted; 0 asks for all.
    pub(crate) from: u64,
}

/// A response, and who it finally came from.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) origin: Origin,
    /// Without the query, which may hold a signature.
    pub(crate) url: String,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// Locked while a token is fetched: requests that need the same token wait for it.
type SharedAuth = Arc<tokio::sync::Mutex<AuthState>>;

/// What all requests of a client share.
pub(crate) struct Exchange {
    pub(crate) transport: Transport,
    options: ClientOptions,
    /// Registries that were found not to speak TLS, where that is allowed.
    plain: Mutex<HashMap<String, bool>>,
    auth: Mutex<HashMap<(String, String), SharedAuth>>,
    /// Registries that asked to be left alone until some time.
    gates: Mutex<HashMap<String, Instant>>,
}

impl Exchange {
    pub(crate) fn new(options: ClientOptions) -> Exchange {
        let transport = Transport::new(options.timeouts, Trust::new(options.ca_files.clone()));
        Exchange {
            transport,
            options,
            plain: Mutex::default(),
            auth: Mutex::default(),
            gates: Mutex::default(),
        }
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Sends a request until it is answered by something that no retry would change.
    pub(crate) async fn get(&self, ask: &Ask) -> Result<Answer, Error> {
        let retry = &self.options.retry;
        let mut attempt = 1;
        loop {
            self.wait_at_gate(&ask.endpoint).await;
            let delay = match self.authenticated(ask).await {
                Ok(answer) if is_transient(answer.status().as_u16()) => {
                    let asked =
                        answer.response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                    let asked = asked.and_then(|text| retry.retry_after(text, SystemTime::now()));
                    if attempt >= retry.attempts {
                        return Err(self.give_up(answer, attempt).await);
                    }
                    if answer.status() == StatusCode::TOO_MANY_REQUESTS {
                        self.close_gate(&ask.endpoint, asked.unwrap_or_else(|| retry.delay(attempt)));
                        Duration::ZERO
                    } else {
                        asked.unwrap_or_else(|| retry.delay(attempt))
                    }
                }
                Ok(answer) => return Ok(answer),
                Err(error) if retry.covers(&error, attempt) => retry.delay(attempt),
                Err(error) => return Err(error),
            };
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }

    async fn give_up(&self, answer: Answer, attempts: u32) -> Error {
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return Error::RateLimited { host: answer.origin.authority(), attempts };
        }
        self.refusal(answer).await
    }

    /// The error for an unexpected status, in the registry's own words.
    pub(crate) async fn refusal(&self, answer: Answer) -> Error {
        let (url, status) = (answer.url.clone(), answer.status());
        let (_, reason) = self.read_error(answer).await;
        Error::Status { url, status: status.as_u16(), reason }
    }

    /// The code and message of an error body (distribution-spec "Error Codes").
    pub(crate) async fn read_error(&self, answer: Answer) -> (String, String) {
        let canonical = answer.status().canonical_reason().unwrap_or("an unknown status").to_owned();
        let bytes =
            body::collect(&self.transport, &answer.origin, answer.response, "an error", ERROR_LIMIT_BYTES);
        let Ok(bytes) = bytes.await else { return (String::new(), canonical) };
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let first = &json["errors"][0];
        let code = first["code"].as_str().unwrap_or_default();
        let message = first["message"].as_str().filter(|text| !text.is_empty()).unwrap_or(&canonical);
        let shown = message.chars().filter(|c| !c.is_control()).take(ERROR_SHOWN_CHARS).collect();
        (code.to_owned(), shown)
    }

    async fn authenticated(&self, ask: &Ask) -> Result<Answer, Error> {
        let state = self.auth_state(&ask.scope);
        let source = &self.options.credentials;
        for _ in 0..AUTH_ROUNDS {
            let header = state.lock().await.header(&self.transport, source, &ask.scope).await?;
            let (origin, answer) = self.either_scheme(ask, header.as_ref()).await?;
            // A 401 from where a redirect led is not the registry's: no credential goes there.
            if answer.status() != StatusCode::UNAUTHORIZED || answer.origin != origin {
                return Ok(answer);
            }
            let headers = answer.response.headers().clone();
            self.drain(answer).await;
            let mut state = state.lock().await;
            state.respond(&self.transport, source, &ask.scope, &origin, header.as_ref(), &headers).await?;
        }
        Err(Error::Unauthorised {
            registry: ask.scope.registry.clone(),
            repository: ask.scope.repository.clone(),
            reason: "it does not exist there, or a fresh token for it was not accepted".to_owned(),
        })
    }

    fn auth_state(&self, scope: &Scope) -> SharedAuth {
        let mut states = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(states.entry((scope.registry.clone(), scope.repository.clone())).or_default())
    }

    /// TLS first, always. Plain HTTP only where the other side was found not to speak TLS, and only if it is this machine
    /// or the caller allowed it.
    async fn either_scheme(&self, ask: &Ask, auth: Option<&HeaderValue>) -> Result<(Origin, Answer), Error> {
        let known_plain =
            self.plain.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&ask.endpoint);
        let secure = Origin::of_registry(&ask.endpoint, true);
        if !known_plain {
            match self.redirected(&secure, ask, auth).await {
                Err(error) if self.may_be_plain(&secure, &error) => {}
                result => return Ok((secure, result?)),
            }
        }
        let plain = Origin::of_registry(&ask.endpoint, false);
        let answer = self.redirected(&plain, ask, auth).await?;
        self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(ask.endpoint.clone(), true);
        Ok((plain, answer))
    }

    fn may_be_plain(&self, secure: &Origin, error: &Error) -> bool {
        match (self.options.plain_http, error) {
            (PlainHttp::Allowed, Error::PlainHttpRefused { .. } | Error::Connect { .. }) => true,
            (PlainHttp::LoopbackOnly, Error::PlainHttpRefused { .. }) => secure.is_loopback(),
            // A plain server may also wait for the rest of what it takes for a request line.
            (_, Error::Timeout { operation: TLS_HANDSHAKE, .. }) => {
                secure.is_loopback() || self.options.plain_http == PlainHttp::Allowed
            }
            _ => false,
        }
    }

    async fn redirected(
        &self,
        start: &Origin,
        ask: &Ask,
        auth: Option<&HeaderValue>,
    ) -> Result<Answer, Error> {
        let (mut origin, mut path) = (start.clone(), ask.path.clone());
        for _ in 0..=REDIRECT_LIMIT {
            let auth = auth.filter(|_| origin == *start);
            let response = self.transport.send(&origin, request(ask, &origin, &path, auth)?).await?;
            let bare_path = path.split('?').next().unwrap_or_default();
            let scheme = if origin.secure { "https" } else { "http" };
            let url = format!("{scheme}://{}{bare_path}", origin.authority());
            let answer = Answer { response, origin: origin.clone(), url };
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = answer.response.headers().get(LOCATION).cloned();
            self.drain(answer).await;
            (origin, path) = follow(start, &origin, &path, location.as_ref())?;
        }
        Err(Error::Redirect {
            host: start.authority(),
            target: path_only(&path),
            rule: "more than 10 redirects",
        })
    }

    /// Reads what is left of a small body, so that its connection can be used again.
    async fn drain(&self, answer: Answer) {
        let rest =
            body::collect(&self.transport, &answer.origin, answer.response, "a body", ERROR_LIMIT_BYTES);
        // A body that is too large or breaks costs its connection, nothing else.
        drop(rest.await);
    }

    async fn wait_at_gate(&self, endpoint: &str) {
        let until = self.gates.lock().unwrap_or_else(PoisonError::into_inner).get(endpoint).copied();
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    fn close_gate(&self, endpoint: &str, delay: Duration) {
        let until = Instant::now() + delay;
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(endpoint.to_owned()).or_insert(until);
        *gate = (*gate).max(until);
    }
}

fn request(
    ask: &Ask,
    origin: &Origin,
    path: &str,
    auth: Option<&HeaderValue>,
) -> Result<Request<Full<hyper::body::Bytes>>, Error> {
    let mut builder = Request::builder()
        .method(ask.method.clone())
        .uri(path)
        .header(USER_AGENT, USER_AGENT_VALUE)
        // Digests are of the bytes as they are stored: nothing on the way may encode them.
        .header(ACCEPT_ENCODING, "identity");
    if let Some(accept) = ask.accept {
        builder = builder.header(ACCEPT, accept);
    }
    if let Some(auth) = auth {
        builder = builder.header(AUTHORIZATION, auth.clone());
    }
    if ask.from > 0 {
        builder = builder.header(RANGE, format!("bytes={}-", ask.from));
    }
    builder.body(Full::default()).map_err(|error| Error::Protocol {
        host: origin.authority(),
        what: "redirect",
        reason: error.to_string(),
    })
}

/// Where a Location header leads, if it may be followed.
fn follow(
    start: &Origin,
    from: &Origin,
    path: &str,
    location: Option<&HeaderValue>,
) -> Result<(Origin, String), Error> {
    let text = location.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let refuse = |rule| Error::Redirect { host: from.authority(), target: path_only(text), rule };
    if text.is_empty() {
        return Err(refuse("it names no target"));
    }
    let scheme = if from.secure { "https" } else { "http" };
    let absolute = if text.contains("://") {
        text.to_owned()
    } else if let Some(rest) = text.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if text.starts_with('/') {
        format!("{scheme}://{}{text}", from.authority())
    } else {
        let bare = path_only(path);
        let folder = bare.rfind('/').map_or("/", |slash| &bare[..=slash]);
        format!("{scheme}://{}{folder}{text}", from.authority())
    };
    let uri: Uri = absolute.parse().map_err(|_| refuse("it is not a URL"))?;
    let target = Origin::of_uri(&uri).ok_or_else(|| refuse("only http and https are followed"))?;
    if from.secure && !target.secure {
        return Err(refuse("it would leave TLS"));
    }
    if target.is_link_local() || (target.is_loopback() && !start.is_loopback()) {
        return Err(refuse("it leads to an address of this machine"));
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((target, path.to_owned()))
}

fn path_only(text: &str) -> String {
    text.split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_bad_ones_refused() {
        let start = Origin::of_registry("r.io", true);
        let go = |location: &str| {
            let value = HeaderValue::from_str(location).unwrap();
            follow(&start, &start, "/v2/a/blobs/x?y=z", Some(&value))
                .map(|(o, p)| format!("{}{p}", o.authority()))
        };
        assert_eq!(go("https://cdn.io/x?sig=1").unwrap(), "cdn.io/x?sig=1");
        assert_eq!(go("//cdn.io:8443/x").unwrap(), "cdn.io:8443/x");
        assert_eq!(go("/other").unwrap(), "r.io/other");
        assert_eq!(go("other").unwrap(), "r.io/v2/a/blobs/other");
        for bad in [
            "http://cdn.io/x",
            "https://127.0.0.1/x",
            "https://169.254.169.254/x",
            "file:///etc/passwd",
            "https://localhost/",
            "",
        ] {
            let error = go(bad).unwrap_err();
            assert!(matches!(error, Error::Redirect { .. }), "{bad}: {error}");
        }
        let error = go("http://cdn.io/x?secret=1").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
