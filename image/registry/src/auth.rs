//! Authentication for one repository: Basic, or a bearer token from the registry's token server.
//!
//! ```text
//! request ──401──▶ challenge ──▶ Bearer: POST (OAuth2, when there is a secret) ──400/401/404/405──▶ GET ──▶ token ──▶ request
//!                            └─▶ Basic: user and password ──▶ request
//! ```
//! The state is one per host, repository and kind of access, and locked while a token is fetched, so that six layers cause
//! one token request. Only what is needed is ever asked for, whatever scope a challenge suggests.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;

use crate::body;
use crate::challenge::Challenge;
use crate::credentials::{Credential, CredentialSource};
use crate::endpoint::TlsFiles;
use crate::error::Error;
use crate::exchange::USER_AGENT_VALUE;
use crate::payload::Payload;
use crate::retry::is_transient;
use crate::transport::{Origin, Outgoing, Peer, Transport};

/// The largest answer of a token server, in bytes.
const TOKEN_LIMIT_BYTES: u64 = 1024 * 1024;
/// The lifetime that the specification gives a token whose server names none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is renewed this long before it expires.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// What is to be done in a repository, and for whom credentials are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// The registry as credentials are filed and messages name it.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) access: Access,
    /// A repository of the same registry to take blobs from.
    pub(crate) source: Option<String>,
    /// Whether this host stands in for another: credentials that were given for a registry are not for its mirrors.
    pub(crate) is_mirror: bool,
}

/// What is done in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Scope {
    /// The scopes of the token protocol.
    fn words(&self) -> Vec<String> {
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let own = format!("repository:{}:{actions}", self.repository);
        let source = self.source.as_ref().map(|name| format!("repository:{name}:pull"));
        std::iter::once(own).chain(source).collect()
    }
}

/// How requests for one repository are authenticated, as far as it is known.
#[derive(Default)]
pub(crate) struct AuthState {
    credential: Option<Option<Credential>>,
    bearer: Option<Bearer>,
    header: Option<Header>,
}

#[derive(Clone)]
struct Bearer {
    realm: Uri,
    peer: Peer,
    service: Option<String>,
}

#[derive(Clone)]
struct Header {
    value: HeaderValue,
    renew_at: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl AuthState {
    /// The Authorization header to send, renewed if it is about to expire.
    pub(crate) async fn header(
        &mut self,
        transport: &Transport,
        source: &CredentialSource,
        scope: &Scope,
    ) -> Result<Option<HeaderValue>, Error> {
        let expiring =
            self.header.as_ref().and_then(|header| header.renew_at).is_some_and(|at| at <= Instant::now());
        if let (true, Some(bearer)) = (expiring, self.bearer.clone()) {
            self.fetch_token(transport, source, scope, bearer).await?;
        }
        Ok(self.header.as_ref().map(|header| header.value.clone()))
    }

    /// Answers a 401. `sent` is the header that was refused; if another request replaced it meanwhile, that one is used.
    /// `peer` is the registry's own: a token server may be without TLS only where the registry is.
    pub(crate) async fn respond(
        &mut self,
        transport: &Transport,
        source: &CredentialSource,
        scope: &Scope,
        peer: &Peer,
        sent: Option<&HeaderValue>,
        response: &HeaderMap,
    ) -> Result<(), Error> {
        if self.header.as_ref().is_some_and(|header| Some(&header.value) != sent) {
            return Ok(());
        }
        let headers = response.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = headers.flat_map(Challenge::parse_all).collect();
        if let Some(challenge) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let bearer = bearer_of(challenge, peer, scope)?;
            self.bearer = Some(bearer.clone());
            return self.fetch_token(transport, source, scope, bearer).await;
        }
        if !challenges.iter().any(|challenge| challenge.scheme == "basic") {
            return Err(unauthorised(scope, "it asks for neither Bearer nor Basic authentication"));
        }
        match self.credential(transport, source, scope).await? {
            Some(Credential::Basic { user, password }) => {
                let value = basic(&user, password.expose());
                if sent == Some(&value) {
                    return Err(unauthorised(
                        scope,
                        &format!("the password of user {user} was not accepted"),
                    ));
                }
                self.header = Some(Header { value, renew_at: None });
                Ok(())
            }
            Some(_) => Err(unauthorised(scope, "it asks for a password, but the credential is a token")),
            None => {
                Err(unauthorised(scope, "it asks for a password, and no credential was found (log in first)"))
            }
        }
    }

    async fn credential(
        &mut self,
        transport: &Transport,
        source: &CredentialSource,
        scope: &Scope,
    ) -> Result<Option<Credential>, Error> {
        if self.credential.is_none() {
            let given = matches!(source, CredentialSource::Given(_));
            self.credential = Some(match scope.is_mirror && given {
                true => None,
                false => source.find(&scope.registry, &scope.repository, transport.timeouts().helper).await?,
            });
        }
        Ok(self.credential.clone().flatten())
    }

    async fn fetch_token(
        &mut self,
        transport: &Transport,
        source: &CredentialSource,
        scope: &Scope,
        bearer: Bearer,
    ) -> Result<(), Error> {
        let credential = self.credential(transport, source, scope).await?;
        if let Some(Credential::RegistryToken(token)) = &credential {
            self.header = Some(Header { value: bearer_header(token.expose(), scope)?, renew_at: None });
            return Ok(());
        }
        let answer = match &credential {
            Some(secret) => match oauth2(transport, &bearer, scope, secret).await? {
                Some(answer) => answer,
                None => plain_get(transport, &bearer, scope, Some(secret)).await?,
            },
            None => plain_get(transport, &bearer, scope, None).await?,
        };
        let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).max(DEFAULT_LIFETIME);
        // One of them may be there and empty.
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| unusable_token(&bearer, "it holds neither token nor access_token"))?;
        let renew_at = Instant::now() + lifetime.saturating_sub(RENEWAL_MARGIN);
        self.header = Some(Header { value: bearer_header(&token, scope)?, renew_at: Some(renew_at) });
        Ok(())
    }
}

fn bearer_of(challenge: &Challenge, peer: &Peer, scope: &Scope) -> Result<Bearer, Error> {
    let origin = &peer.origin;
    let refuse = |reason: &str| unauthorised(scope, reason);
    let realm = challenge.parameter("realm").ok_or_else(|| refuse("its challenge names no token server"))?;
    let realm: Uri = realm.parse().map_err(|_| refuse("its token server is not a URL"))?;
    let server =
        Origin::of_uri(&realm).ok_or_else(|| refuse("its token server is not an http or https URL"))?;
    if realm.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(refuse("its token server's URL holds user information"));
    }
    if !server.secure && (origin.secure || server.is_loopback() != origin.is_loopback()) {
        return Err(refuse("its token server does not use TLS"));
    }
    // The authority that signs a private registry's certificate signs its token server's; the client's own certificate
    // is shown to the registry alone.
    let same_host = server.host == origin.host;
    let client = peer.tls.client.clone().filter(|_| same_host);
    let tls = TlsFiles { client, unchecked: peer.tls.unchecked && same_host, ..(*peer.tls).clone() };
    let peer = Peer { origin: server, tls: tls.into(), dial_timeout: peer.dial_timeout };
    Ok(Bearer { realm, peer, service: challenge.parameter("service").map(str::to_owned) })
}

/// OAuth2 (distribution `docs/spec/auth/oauth.md`). `None` if the server does not offer it.
async fn oauth2(
    transport: &Transport,
    bearer: &Bearer,
    scope: &Scope,
    credential: &Credential,
) -> Result<Option<TokenAnswer>, Error> {
    let mut form = Form::default();
    match credential {
        Credential::Basic { user, password } => {
            form.add("grant_type", "password").add("username", user).add("password", password.expose());
        }
        Credential::IdentityToken(token) | Credential::RegistryToken(token) => {
            form.add("grant_type", "refresh_token").add("refresh_token", token.expose());
        }
    }
    form.add("client_id", "cofferdam").add("scope", &scope.words().join(" "));
    if let Some(service) = &bearer.service {
        form.add("service", service);
    }
    let mut outgoing = outgoing(Method::POST, path_of(&bearer.realm, ""));
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    outgoing.headers.insert(CONTENT_TYPE, kind);
    outgoing.payload = Payload::Bytes(form.text.into());
    let offered = [400, 401, 404, 405];
    let (status, bytes) = ask(transport, bearer, &outgoing).await?;
    if offered.contains(&status.as_u16()) {
        return Ok(None);
    }
    read_token(bearer, scope, status, &bytes, Some(credential)).map(Some)
}

async fn plain_get(
    transport: &Transport,
    bearer: &Bearer,
    scope: &Scope,
    credential: Option<&Credential>,
) -> Result<TokenAnswer, Error> {
    let mut query = Form::default();
    if let Some(service) = &bearer.service {
        query.add("service", service);
    }
    for word in scope.words() {
        query.add("scope", &word);
    }
    let mut outgoing = outgoing(Method::GET, path_of(&bearer.realm, &query.text));
    match credential {
        Some(Credential::Basic { user, password }) => {
            outgoing.headers.insert(AUTHORIZATION, basic(user, password.expose()));
        }
        Some(Credential::IdentityToken(_) | Credential::RegistryToken(_)) => {
            return Err(unauthorised(scope, "its token server did not accept the identity token"));
        }
        None => {}
    }
    let (status, bytes) = ask(transport, bearer, &outgoing).await?;
    read_token(bearer, scope, status, &bytes, credential)
}

fn outgoing(method: Method, path: String) -> Outgoing {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    Outgoing { method, path, headers, payload: Payload::Empty }
}

async fn ask(
    transport: &Transport,
    bearer: &Bearer,
    outgoing: &Outgoing,
) -> Result<(StatusCode, Bytes), Error> {
    let response = transport.send(&bearer.peer, outgoing).await?;
    let status = response.status();
    let bytes =
        body::collect(transport, &bearer.peer.origin, response, "the token", TOKEN_LIMIT_BYTES).await?;
    Ok((status, bytes))
}

fn read_token(
    bearer: &Bearer,
    scope: &Scope,
    status: StatusCode,
    bytes: &[u8],
    credential: Option<&Credential>,
) -> Result<TokenAnswer, Error> {
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        return Err(unauthorised(
            scope,
            &match credential {
                Some(Credential::Basic { user, .. }) => {
                    format!("the password of user {user} was not accepted")
                }
                Some(_) => "the identity token was not accepted".to_owned(),
                None => "anonymous access was not granted (log in first)".to_owned(),
            },
        ));
    }
    if is_transient(status.as_u16()) {
        // Like a broken connection, not like an answer: whoever waits for the token tries again.
        return Err(Error::Transfer {
            operation: "the token request",
            host: bearer.peer.origin.authority(),
            reason: format!("it was answered with status {}", status.as_u16()),
        });
    }
    if !status.is_success() {
        return Err(unusable_token(bearer, &format!("status {}", status.as_u16())));
    }
    serde_json::from_slice(bytes)
        .map_err(|_| unusable_token(bearer, "it is not the JSON that the protocol asks for"))
}

fn unusable_token(bearer: &Bearer, reason: &str) -> Error {
    let host = bearer.realm.authority().map(ToString::to_string).unwrap_or_default();
    Error::Protocol { host, what: "token", reason: reason.to_owned() }
}

fn unauthorised(scope: &Scope, reason: &str) -> Error {
    Error::Unauthorised {
        registry: scope.registry.clone(),
        repository: scope.repository.clone(),
        reason: reason.to_owned(),
    }
}

fn path_of(realm: &Uri, query: &str) -> String {
    match (realm.query(), query) {
        (None, "") => realm.path().to_owned(),
        (Some(own), "") => format!("{}?{own}", realm.path()),
        (None, added) => format!("{}?{added}", realm.path()),
        (Some(own), added) => format!("{}?{own}&{added}", realm.path()),
    }
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    sensitive(HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("Basic")))
}

fn bearer_header(token: &str, scope: &Scope) -> Result<HeaderValue, Error> {
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    value.map(sensitive).map_err(|_| unauthorised(scope, "its token does not fit into a header"))
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// `application/x-www-form-urlencoded`.
#[derive(Default)]
struct Form {
    text: String,
}

impl Form {
    fn add(&mut self, name: &str, value: &str) -> &mut Form {
        use std::fmt::Write;
        if !self.text.is_empty() {
            self.text.push('&');
        }
        self.text.push_str(name);
        self.text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.text.push(byte as char);
            } else {
                // Writing to a String cannot fail.
                let _ = write!(self.text, "%{byte:02X}");
            }
        }
        self
    }
}
