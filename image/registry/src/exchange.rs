//! One request to a repository, with everything that may happen on its way: hosts, scheme, authentication, redirects,
//! retries.
//!
//! ```text
//! get ─▶ each host that may answer (mirrors once each; a mirror that fails or asks for patience is passed over)
//!          └▶ the last host, retried (429, 5xx, broken connections; one gate per host)
//!               └▶ authenticated (401 → token, at most one refresh)
//!                    └▶ redirected (≤ 10 hops; Authorization stays at its origin)
//!                         └▶ Transport::send
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    USER_AGENT,
};
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};
use tokio::sync::watch;

use crate::auth::{Access, AuthState, Scope};
use crate::body;
use crate::client::{ClientOptions, PlainHttp};
use crate::encoding::Decoding;
use crate::endpoint::{self, Endpoint, Need, Scheme};
use crate::error::Error;
use crate::payload::Payload;
use crate::proxy::Proxies;
use crate::reference::ImageRef;
use crate::retry::is_transient;
use crate::transport::{Origin, Outgoing, Peer, TLS_HANDSHAKE, Transport};
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
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) reference: ImageRef,
    pub(crate) need: Need,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) accept: Option<&'static str>,
    /// The bytes wanted, the last one excluded; all of them if `None`.
    pub(crate) range: Option<(u64, Option<u64>)>,
    pub(crate) content_type: Option<String>,
    pub(crate) payload: Payload,
    /// A repository of the same registry that blobs are mounted from.
    pub(crate) source: Option<String>,
}

/// What a request is for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Something below the repository, such as `blobs/sha256:…`.
    Below(String),
    /// An upload session: where the registry said that it is.
    At(Peer, String),
}

/// A response, and who it finally came from.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) peer: Peer,
    /// The path that was asked for, with its query.
    pub(crate) path: String,
    /// Without the query, which may hold a signature.
    pub(crate) url: String,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.peer.origin
    }

    /// A header's value, if it is text.
    pub(crate) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }
}

/// Locked while a token is fetched: requests that need the same token wait for it.
type SharedAuth = Arc<tokio::sync::Mutex<AuthState>>;

/// What all requests of a client share.
pub(crate) struct Exchange {
    pub(crate) transport: Arc<Transport>,
    options: ClientOptions,
    /// By registry and repository.
    routes: Mutex<HashMap<String, Arc<Vec<Endpoint>>>>,
    /// Hosts that were found not to speak TLS, where that is allowed.
    plain: Mutex<HashSet<String>>,
    auth: Mutex<HashMap<(String, Scope), SharedAuth>>,
    /// Hosts that asked to be left alone until some time.
    gates: Mutex<HashMap<String, Instant>>,
    /// Mirrors that could not be reached: not tried again by this client.
    away: Mutex<HashSet<String>>,
    /// Turns true when the caller wants no more answers.
    pub(crate) stopped: watch::Sender<bool>,
}

impl Exchange {
    pub(crate) fn new(options: ClientOptions) -> Result<Exchange, Error> {
        let trust = Trust::new(options.ca_files.clone(), options.hosts.certificates.clone());
        let proxies = match &options.proxies {
            Some(proxies) => proxies.clone(),
            None => Proxies::from_environment()?,
        };
        Ok(Exchange {
            transport: Arc::new(Transport::new(options.timeouts, trust, proxies)),
            options,
            routes: Mutex::default(),
            plain: Mutex::default(),
            auth: Mutex::default(),
            gates: Mutex::default(),
            away: Mutex::default(),
            stopped: watch::Sender::new(false),
        })
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// The hosts for a repository, in order.
    pub(crate) fn route(&self, reference: &ImageRef) -> Result<Arc<Vec<Endpoint>>, Error> {
        let name = reference.name();
        let mut routes = locked(&self.routes);
        if let Some(route) = routes.get(&name) {
            return Ok(Arc::clone(route));
        }
        let route = Arc::new(endpoint::route(&self.options.hosts, reference)?);
        routes.insert(name, Arc::clone(&route));
        Ok(route)
    }

    /// Whether a host was found, or is known, to speak plain HTTP.
    pub(crate) fn is_plain(&self, endpoint: &Endpoint) -> bool {
        endpoint.scheme == Scheme::Plain || locked(&self.plain).contains(&endpoint.host)
    }

    /// Sends a request until it is answered by something that no further host and no retry would change.
    pub(crate) async fn get(&self, ask: &Ask) -> Result<Answer, Error> {
        let route = self.route(&ask.reference)?;
        let able: Vec<&Endpoint> = route.iter().filter(|endpoint| endpoint.covers(ask.need)).collect();
        let Some((last, others)) = able.split_last() else {
            let what = match ask.need {
                Need::Resolve => "resolve a tag",
                Need::Pull => "serve content",
                Need::Referrers => "list referrers",
                Need::Push => "take content",
            };
            return Err(Error::NoHost { registry: ask.reference.registry().to_owned(), what });
        };
        for other in others {
            if let Some(answer) = self.try_once(ask, other).await {
                return Ok(answer);
            }
        }
        self.persist(ask, last).await
    }

    /// A mirror gets one chance a request, and none while it cannot be reached or asks for patience.
    async fn try_once(&self, ask: &Ask, endpoint: &Endpoint) -> Option<Answer> {
        let gated = locked(&self.gates).get(&endpoint.host).is_some_and(|until| *until > Instant::now());
        if gated || locked(&self.away).contains(&endpoint.host) {
            return None;
        }
        match self.authenticated(ask, endpoint).await {
            Ok(answer) if answer.status().is_success() => return Some(answer),
            Ok(answer) => {
                if answer.status() == StatusCode::TOO_MANY_REQUESTS {
                    let asked = answer.header(RETRY_AFTER);
                    let asked =
                        asked.and_then(|text| self.options.retry.retry_after(text, SystemTime::now()));
                    self.close_gate(&endpoint.host, asked.unwrap_or_else(|| self.options.retry.delay(1)));
                }
                self.drain(answer).await;
            }
            Err(Error::Connect { .. } | Error::UnknownHost { .. } | Error::Timeout { .. }) => {
                locked(&self.away).insert(endpoint.host.clone());
            }
            // Whatever else a mirror fails by, the next host is asked; the last one's failure is told.
            Err(_) => {}
        }
        None
    }

    async fn persist(&self, ask: &Ask, endpoint: &Endpoint) -> Result<Answer, Error> {
        let retry = &self.options.retry;
        let mut attempt = 1;
        loop {
            self.wait_at_gate(&endpoint.host).await;
            let delay = match self.authenticated(ask, endpoint).await {
                Ok(answer) if is_transient(answer.status().as_u16()) => {
                    let asked = answer.header(RETRY_AFTER);
                    let asked = asked.and_then(|text| retry.retry_after(text, SystemTime::now()));
                    if attempt >= retry.attempts {
                        return Err(self.give_up(answer, attempt).await);
                    }
                    if answer.status() == StatusCode::TOO_MANY_REQUESTS {
                        self.close_gate(&endpoint.host, asked.unwrap_or_else(|| retry.delay(attempt)));
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
            return Error::RateLimited { host: answer.origin().authority(), attempts };
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
        let origin = answer.peer.origin;
        let bytes =
            body::collect(&self.transport, &origin, answer.response, "an error", ERROR_LIMIT_BYTES).await;
        let Ok(bytes) = bytes else { return (String::new(), canonical) };
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let first = &json["errors"][0];
        let code = first["code"].as_str().unwrap_or_default();
        let message = first["message"].as_str().filter(|text| !text.is_empty()).unwrap_or(&canonical);
        let shown = message.chars().filter(|c| !c.is_control()).take(ERROR_SHOWN_CHARS).collect::<String>();
        (code.to_owned(), redact(&shown))
    }

    async fn authenticated(&self, ask: &Ask, endpoint: &Endpoint) -> Result<Answer, Error> {
        let scope = scope_of(ask, endpoint);
        let state = self.auth_state(endpoint, &scope);
        let source = &self.options.credentials;
        // The administrator's own header for a host stands in place of ours.
        let own = endpoint.headers.get(AUTHORIZATION).cloned();
        for _ in 0..AUTH_ROUNDS {
            let header = match &own {
                Some(header) => Some(header.clone()),
                None => state.lock().await.header(&self.transport, source, &scope).await?,
            };
            let (peer, answer) = self.either_scheme(ask, endpoint, header.as_ref()).await?;
            // A 401 from where a redirect led is not the registry's: no credential goes there.
            if answer.status() != StatusCode::UNAUTHORIZED
                || answer.peer.origin != peer.origin
                || own.is_some()
            {
                return Ok(answer);
            }
            let headers = answer.response.headers().clone();
            self.drain(answer).await;
            let mut state = state.lock().await;
            state.respond(&self.transport, source, &scope, &peer, header.as_ref(), &headers).await?;
        }
        Err(Error::Unauthorised {
            registry: scope.registry,
            repository: scope.repository,
            reason: "it does not exist there, or a fresh token for it was not accepted".to_owned(),
        })
    }

    fn auth_state(&self, endpoint: &Endpoint, scope: &Scope) -> SharedAuth {
        Arc::clone(locked(&self.auth).entry((endpoint.host.clone(), scope.clone())).or_default())
    }

    /// The scheme that a host is spoken to in. TLS first where it is to be found out; plain HTTP only where the other side
    /// was found not to speak TLS, and only if it is this machine or that is allowed.
    async fn either_scheme(
        &self,
        ask: &Ask,
        endpoint: &Endpoint,
        auth: Option<&HeaderValue>,
    ) -> Result<(Peer, Answer), Error> {
        let (secure, plain) = (endpoint.peer(true), endpoint.peer(false));
        if !self.is_plain(endpoint) {
            match self.redirected(&secure, ask, endpoint, auth).await {
                Err(error) if self.may_be_plain(endpoint, &secure.origin, &error) => {}
                result => return Ok((secure, result?)),
            }
        }
        let answer = self.redirected(&plain, ask, endpoint, auth).await?;
        locked(&self.plain).insert(endpoint.host.clone());
        Ok((plain, answer))
    }

    fn may_be_plain(&self, endpoint: &Endpoint, secure: &Origin, error: &Error) -> bool {
        let allowed = match endpoint.scheme {
            Scheme::Tls => return false,
            Scheme::Insecure => true,
            Scheme::Probe | Scheme::Plain => self.options.plain_http == PlainHttp::Allowed,
        };
        match error {
            Error::Connect { .. } => allowed,
            // A plain server may also wait for the rest of what it takes for a request line.
            Error::PlainHttpRefused { .. } | Error::Timeout { operation: TLS_HANDSHAKE, .. } => {
                allowed || secure.is_loopback()
            }
            _ => false,
        }
    }

    async fn redirected(
        &self,
        start: &Peer,
        ask: &Ask,
        endpoint: &Endpoint,
        auth: Option<&HeaderValue>,
    ) -> Result<Answer, Error> {
        let (mut peer, mut path) = match &ask.target {
            Target::Below(below) => (start.clone(), endpoint.path(below)),
            Target::At(peer, path) => (peer.clone(), path.clone()),
        };
        for _ in 0..=REDIRECT_LIMIT {
            let at_home = peer.origin == start.origin;
            let outgoing = outgoing(ask, endpoint, &path, auth, at_home);
            let response = self.transport.send(&peer, &outgoing).await?;
            let scheme = if peer.origin.secure { "https" } else { "http" };
            let url = format!("{scheme}://{}{}", peer.origin.authority(), path_only(&path));
            let answer = Answer { response, peer: peer.clone(), path: path.clone(), url };
            refuse_encoded(&answer)?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = answer.response.headers().get(LOCATION).cloned();
            self.drain(answer).await;
            let (origin, next) = follow(&start.origin, &peer.origin, &path, location.as_ref())?;
            peer = if origin == start.origin { start.clone() } else { Peer::stranger(origin) };
            path = next;
        }
        Err(Error::Redirect {
            host: start.origin.authority(),
            target: path_only(&path),
            rule: "more than 10 redirects",
        })
    }

    /// Fetches from a URL that is none of the registry's: no credential, no header, no certificate of ours goes there.
    pub(crate) async fn get_foreign(&self, ask: &Ask, url: &str) -> Result<Answer, Error> {
        let refuse = |rule| Error::Redirect {
            host: ask.reference.registry().to_owned(),
            target: path_only(url),
            rule,
        };
        let uri: Uri = url.parse().map_err(|_| refuse("it is not a URL"))?;
        let origin = Origin::of_uri(&uri).ok_or_else(|| refuse("only http and https are followed"))?;
        let registry = Origin::of_registry(ask.reference.endpoint(), true);
        if origin.is_link_local() || (origin.is_loopback() && !registry.is_loopback()) {
            return Err(refuse("it leads to an address of this machine"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let stranger = Peer::stranger(origin);
        let bare = Endpoint::of(&ask.reference);
        let ask = Ask { target: Target::At(stranger.clone(), path), ..ask.clone() };
        self.redirected(&stranger, &ask, &bare, None).await
    }

    /// Reads what is left of a small body, so that its connection can be used again.
    pub(crate) async fn drain(&self, answer: Answer) {
        let origin = answer.peer.origin;
        let rest = body::collect(&self.transport, &origin, answer.response, "a body", ERROR_LIMIT_BYTES);
        // A body that is too large or breaks costs its connection, nothing else.
        drop(rest.await);
    }

    async fn wait_at_gate(&self, host: &str) {
        let until = locked(&self.gates).get(host).copied();
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    fn close_gate(&self, host: &str, delay: Duration) {
        let until = Instant::now() + delay;
        let mut gates = locked(&self.gates);
        let gate = gates.entry(host.to_owned()).or_insert(until);
        *gate = (*gate).max(until);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scope_of(ask: &Ask, endpoint: &Endpoint) -> Scope {
    Scope {
        registry: endpoint.credentials.clone(),
        repository: endpoint.repository.clone(),
        access: if ask.need == Need::Push { Access::Push } else { Access::Pull },
        source: ask.source.clone(),
        is_mirror: endpoint.is_mirror,
    }
}

/// `at_home` is whether this goes to the host that was configured: only it gets credentials and headers.
fn outgoing(
    ask: &Ask,
    endpoint: &Endpoint,
    path: &str,
    auth: Option<&HeaderValue>,
    at_home: bool,
) -> Outgoing {
    let mut headers = if at_home { endpoint.headers.clone() } else { HeaderMap::new() };
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    // Digests are of the bytes as they are stored: nothing on the way may encode them.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(accept) = ask.accept {
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
    }
    if let Some(Ok(kind)) = ask.content_type.as_deref().map(HeaderValue::from_str) {
        headers.insert(CONTENT_TYPE, kind);
    }
    if let Some(auth) = auth.filter(|_| at_home) {
        headers.insert(AUTHORIZATION, auth.clone());
    }
    let range = match ask.range {
        Some((0, None)) | None => None,
        Some((from, None)) => Some(format!("bytes={from}-")),
        Some((from, Some(to))) => Some(format!("bytes={from}-{}", to.saturating_sub(1))),
    };
    if let Some(Ok(range)) = range.map(HeaderValue::try_from) {
        headers.insert(RANGE, range);
    }
    Outgoing { method: ask.method.clone(), path: path.to_owned(), headers, payload: ask.payload.clone() }
}

/// Nobody asked for an encoding. One that is known is taken off as the body is read; ranges are of the encoded bytes, which
/// nobody has digests of.
fn refuse_encoded(answer: &Answer) -> Result<(), Error> {
    let decoding = Decoding::of(answer.response.headers());
    let is_whole = answer.status() != StatusCode::PARTIAL_CONTENT;
    if !answer.status().is_success() || decoding.is_some_and(|known| is_whole || known.is_identity()) {
        return Ok(());
    }
    Err(Error::Protocol {
        host: answer.origin().authority(),
        what: "Content-Encoding",
        reason: "identity was asked for".to_owned(),
    })
}

/// Where a Location header leads, if it may be followed.
pub(crate) fn follow(
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
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    let absolute = if text.contains("://") {
        text.to_owned()
    } else if first.contains(':') {
        // A scheme of its own, such as `unix:`; a relative target could not have a colon there (RFC 3986 §4.2).
        return Err(refuse("only http and https are followed"));
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

/// A registry's words without what may be a secret in them: queries of URLs, and what follows the names of schemes.
fn redact(text: &str) -> String {
    let mut hide_next = false;
    let words = text.split(' ').map(|word| {
        let hide = std::mem::replace(
            &mut hide_next,
            ["bearer", "basic", "token", "password"]
                .iter()
                .any(|name| word.trim_end_matches([':', '=']).eq_ignore_ascii_case(name)),
        );
        match word.split_once('?') {
            _ if hide => "…".to_owned(),
            Some((url, _)) if url.contains("://") => format!("{url}?…"),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n3_redirects_are_resolved_and_bad_ones_refused() {
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
            "https://[fe80::1]/x",
            "file:///etc/passwd",
            "unix:///run/x.sock",
            "unix:/run/x.sock",
            "https://cdn.io:99999/x",
            "https://localhost/",
            "",
        ] {
            let error = go(bad).unwrap_err();
            assert!(matches!(error, Error::Redirect { .. }), "{bad}: {error}");
        }
        let error = go("http://cdn.io/x?secret=1").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn n7_a_registrys_words_are_shown_without_secrets() {
        for (said, shown) in [
            ("no such tag", "no such tag"),
            ("bad token: Bearer abc.def", "bad token: … …"),
            ("see https://x/y?sig=hunter2 for more", "see https://x/y?… for more"),
        ] {
            assert_eq!(redact(said), shown);
        }
    }
}
