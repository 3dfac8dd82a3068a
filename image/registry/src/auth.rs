//! Authentication for one repository: Basic, or a bearer token from the registry's token server.
//!
//! ```text
//! request ──401──▶ challenge ──▶ Bearer: POST (OAuth2, when there is a secret) ──400/401/404/405──▶ GET ──▶ token ──▶ request
//!                            └─▶ Basic: user and password ──▶ request
//! ```
//! The state is one per repository and locked while a token is fetched, so that six layers cause one token request. Only
//! `repository:<name>:pull` is ever asked for, whatever scope a challenge suggests.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

use crate::body;
use crate::challenge::Challenge;
use crate::credentials::{Credential, CredentialSource};
use crate::error::Error;
use crate::exchange::USER_AGENT_VALUE;
use crate::transport::{Origin, Transport};

/// The largest answer of a token server, in bytes.
const TOKEN_LIMIT_BYTES: u64 = 1024 * 1024;
/// The lifetime that the specification gives a token whose server names none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is renewed this long before it expires.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// What a repository is named by, in requests and in messages.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) registry: String,
    pub(crate) repository: String,
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
    /// `origin` is the registry's own: a token server may be without TLS only where the registry is.
    pub(crate) async fn respond(
        &mut self,
        transport: &Transport,
        source: &CredentialSource,
        scope: &Scope,
        origin: &Origin,
        sent: Option<&HeaderValue>,
        response: &HeaderMap,
    ) -> Result<(), Error> {
        if self.header.as_ref().is_some_and(|header| Some(&header.value) != sent) {
            return Ok(());
        }
        let headers = response.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = headers.flat_map(Challenge::parse_all).collect();
        if let Some(challenge) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let bearer = bearer_of(challenge, origin, scope)?;
            self.bearer = Some(bearer.clone());
            return self.fetch_token(transport, source, scope, bearer).await;
        }
        if !challenges.iter().any(|challenge| challenge.scheme == "basic") {
            return Err(unauthorised(scope, "it asks for neither Bearer nor Basic authentication"));
        }
        match self.credential(source, scope).await? {
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
        source: &CredentialSource,
        scope: &Scope,
    ) -> Result<Option<Credential>, Error> {
        if self.credential.is_none() {
            self.credential = Some(source.find(&scope.registry, &scope.repository).await?);
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
        let credential = self.credential(source, scope).await?;
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
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| unusable_token(&bearer, "it holds neither token nor access_token"))?;
        let renew_at = Instant::now() + lifetime.saturating_sub(RENEWAL_MARGIN);
        self.header = Some(Header { value: bearer_header(&token, scope)?, renew_at: Some(renew_at) });
        Ok(())
    }
}

fn bearer_of(challenge: &Challenge, origin: &Origin, scope: &Scope) -> Result<Bearer, Error> {
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
    Ok(Bearer { realm, service: challenge.parameter("service").map(str::to_owned) })
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
    form.add("client_id", "cofferdam").add("scope", &pull_scope(scope));
    if let Some(service) = &bearer.service {
        form.add("service", service);
    }
    let request = request(Method::POST, path_of(&bearer.realm, ""))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form.text)));
    let offered = [400, 401, 404, 405];
    let (status, bytes) = ask(transport, bearer, scope, request).await?;
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
    query.add("scope", &pull_scope(scope));
    let mut request = request(Method::GET, path_of(&bearer.realm, &query.text));
    match credential {
        Some(Credential::Basic { user, password }) => {
            request = request.header(AUTHORIZATION, basic(user, password.expose()));
        }
        Some(Credential::IdentityToken(_) | Credential::RegistryToken(_)) => {
            return Err(unauthorised(scope, "its token server did not accept the identity token"));
        }
        None => {}
    }
    let (status, bytes) = ask(transport, bearer, scope, request.body(Full::default())).await?;
    read_token(bearer, scope, status, &bytes, credential)
}

fn request(method: Method, path: String) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(USER_AGENT, USER_AGENT_VALUE)
        .header(ACCEPT, "application/json")
}

async fn ask(
    transport: &Transport,
    bearer: &Bearer,
    scope: &Scope,
    request: Result<Request<Full<Bytes>>, hyper::http::Error>,
) -> Result<(StatusCode, Bytes), Error> {
    let request = request.map_err(|error| unauthorised(scope, &error.to_string()))?;
    let Some(origin) = Origin::of_uri(&bearer.realm) else {
        return Err(unauthorised(scope, "its token server is not an http or https URL"));
    };
    let response = transport.send(&origin, request).await?;
    let status = response.status();
    let bytes = body::collect(transport, &origin, response, "the token", TOKEN_LIMIT_BYTES).await?;
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

fn pull_scope(scope: &Scope) -> String {
    format!("repository:{}:pull", scope.repository)
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
