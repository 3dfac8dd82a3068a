//! A registry in this process that misbehaves on demand. Plain threads and sockets, so that it shares no code with the client.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test programs, each of which uses another part"
)]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_registry::Digest;

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
    pub at: Instant,
}

/// What happens instead of the proper answer to requests whose path contains `path`, `times` times.
#[derive(Clone, Debug)]
pub struct Fault {
    pub path: String,
    pub times: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Debug)]
pub enum FaultKind {
    /// A status with headers and a body.
    Status(u16, Vec<(String, String)>, String),
    /// Close after that many bytes of the body.
    CutAfter(usize),
    /// Reset the connection when the client has taken that many bytes of the body.
    ResetAfter(usize),
    /// Other bytes of the same length.
    Corrupt,
    /// One byte more than announced by the descriptor.
    Longer,
    /// Answer a Range request as if it were none.
    IgnoreRange,
    /// Answer a Range request with another range.
    WrongRange,
    /// Answer a Range request with a range of a blob of another size.
    WrongTotal,
    /// A body without end and without length.
    Endless,
    /// Say nothing for so long after that many bytes of the body.
    StallAfter(usize, Duration),
    /// Say nothing after half of the body until the path is released.
    Hold,
    /// Further headers beside the proper answer.
    Headers(Vec<(String, String)>),
}

#[derive(Clone, Debug, Default)]
pub enum Auth {
    #[default]
    None,
    /// User, password.
    Basic(String, String),
    /// Tokens are issued anonymously (`None`) or for a user and password; POST answers with the status.
    Bearer { user: Option<(String, String)>, post: Option<u16>, uses: usize },
    /// Tokens are issued for this refresh token.
    Identity(String),
    /// This very bearer token.
    Registry(String),
}

/// A slow and distant connection, shared by everybody who uses it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub round_trip: Duration,
    pub bytes_per_second: f64,
}

#[derive(Default)]
pub struct State {
    pub manifests: HashMap<String, (String, Vec<u8>)>,
    pub blobs: HashMap<String, Vec<u8>>,
    /// Which repository has which blob, where that is asked; see `scoped`.
    pub owned: HashSet<(String, String)>,
    /// Whether a blob is only there in repositories that it was put into.
    pub scoped: bool,
    /// What refers to a digest, as an index; served by the API if `has_referrers`.
    pub referrers: HashMap<String, Vec<u8>>,
    pub has_referrers: bool,
    /// How many tags one answer lists; all of them if `None`.
    pub tag_page: Option<usize>,
    pub auth: Auth,
    pub faults: Vec<Fault>,
    pub seen: Vec<Seen>,
    pub served_blob_bytes: usize,
    pub link: Option<Link>,
    /// Stands before `/v2`-less paths.
    pub base: Option<String>,
    /// Connections that were made.
    pub connections: usize,
    /// Paths whose answers go on; see `FaultKind::Hold`.
    released: HashSet<String>,
    line_free_at: Option<Instant>,
    line_users: usize,
    tokens: HashMap<String, usize>,
    issued: usize,
}

/// Both directions of a connection.
pub trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

pub type Shake = Arc<dyn Fn(TcpStream) -> Option<Box<dyn Duplex>> + Send + Sync>;

pub struct FakeRegistry {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl FakeRegistry {
    pub fn start() -> FakeRegistry {
        FakeRegistry::start_with(Arc::new(|stream| Some(Box::new(stream))))
    }

    /// `shake` makes of a TCP connection what requests are read from: TLS, say.
    pub fn start_with(shake: Shake) -> FakeRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, shake) = (Arc::clone(&shared), Arc::clone(&shake));
                thread::spawn(move || {
                    state.lock().unwrap().connections += 1;
                    let link = state.lock().unwrap().link;
                    if let Some(link) = link {
                        // What making a connection costs.
                        thread::sleep(link.round_trip);
                    }
                    let _ = stream.set_nodelay(true);
                    let tcp = stream.try_clone().unwrap();
                    if let Some(duplex) = shake(stream) {
                        drop(serve(duplex, &tcp, address, &state));
                    }
                });
            }
        });
        FakeRegistry { address, state }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn add_blob(&self, bytes: &[u8]) -> Digest {
        self.add_blob_as(Digest::of(bytes), bytes)
    }

    pub fn add_blob_as(&self, digest: Digest, bytes: &[u8]) -> Digest {
        self.state.lock().unwrap().blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Adds a manifest under `repository:tag` and its digest.
    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut state = self.state.lock().unwrap();
        for target in [tag.to_owned(), digest.to_string()] {
            state.manifests.insert(format!("{repository}:{target}"), (media_type.to_owned(), bytes.to_vec()));
        }
        digest
    }

    pub fn fault(&self, path: &str, times: usize, kind: FaultKind) {
        self.state.lock().unwrap().faults.push(Fault { path: path.to_owned(), times, kind });
    }

    pub fn clear_faults(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub fn set_auth(&self, auth: Auth) {
        self.state.lock().unwrap().auth = auth;
    }

    pub fn seen(&self, part: &str) -> Vec<Seen> {
        self.state.lock().unwrap().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    /// Lets the answer to a path go on that is held.
    pub fn release(&self, path: &str) {
        self.state.lock().unwrap().released.insert(path.to_owned());
    }

    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.seen.clear();
        state.served_blob_bytes = 0;
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    fault: Option<FaultKind>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into(), fault: None }
}

fn header(mut answer: Answer, name: &str, value: &str) -> Answer {
    answer.headers.push((name.to_owned(), value.to_owned()));
    answer
}

fn serve(
    duplex: Box<dyn Duplex>,
    tcp: &TcpStream,
    address: SocketAddr,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(duplex);
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [method @ ("GET" | "HEAD" | "POST" | "PUT"), path, _] = parts[..] else {
            // Most likely a TLS handshake.
            return reader.get_mut().write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        };
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let length = headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        // A proxy's client writes the whole URL.
        let path = match path.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => path,
        };
        let seen = Seen {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            at: Instant::now(),
        };
        let answer = respond(&seen, &body, address, state);
        if !send(reader.get_mut().as_mut(), tcp, &seen, &answer, state)? {
            return Ok(());
        }
    }
}

/// Sends an answer; returns whether the connection may be used again.
fn send(
    stream: &mut dyn Duplex,
    tcp: &TcpStream,
    seen: &Seen,
    answer: &Answer,
    state: &Mutex<State>,
) -> std::io::Result<bool> {
    let endless = matches!(answer.fault, Some(FaultKind::Endless));
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if endless {
        head += "Connection: close\r\n";
    } else if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    if let Some(link) = state.lock().unwrap().link {
        thread::sleep(link.round_trip);
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(true);
    }
    let body = &answer.body;
    match answer.fault {
        Some(FaultKind::Endless) => loop {
            stream.write_all(&[b'['; 4096])?;
        },
        Some(FaultKind::CutAfter(count)) => {
            write_paced(stream, &body[..count.min(body.len())], state)?;
            Ok(false)
        }
        Some(FaultKind::ResetAfter(count)) => {
            write_paced(stream, &body[..count.min(body.len())], state)?;
            wait_until_taken(tcp);
            rustix::net::sockopt::set_socket_linger(tcp, Some(Duration::ZERO))?;
            Ok(false)
        }
        Some(FaultKind::StallAfter(count, time)) => {
            write_paced(stream, &body[..count.min(body.len())], state)?;
            thread::sleep(time);
            Ok(false)
        }
        Some(FaultKind::Hold) => {
            let (first, rest) = body.split_at(body.len() / 2);
            write_paced(stream, first, state)?;
            while !state.lock().unwrap().released.contains(&seen.path) {
                thread::sleep(Duration::from_millis(1));
            }
            write_paced(stream, rest, state).map(|()| true)
        }
        _ => write_paced(stream, body, state).map(|()| true),
    }
}

/// At the link's speed, which everybody shares.
fn write_paced(stream: &mut dyn Duplex, body: &[u8], state: &Mutex<State>) -> std::io::Result<()> {
    let Some(link) = state.lock().unwrap().link else { return stream.write_all(body) };
    {
        let mut state = state.lock().unwrap();
        if state.line_users == 0 {
            state.line_free_at = state.line_free_at.max(Some(Instant::now()));
        }
        state.line_users += 1;
    }
    let mut result = Ok(());
    for piece in body.chunks(64 * 1024) {
        let until = {
            let mut state = state.lock().unwrap();
            let now = Instant::now();
            // A thread that wakes late does not leave the line idle: what is under way on it would have gone on.
            let start = state.line_free_at.map_or(now, |free| free.max(now - link.round_trip));
            let until = start + Duration::from_secs_f64(piece.len() as f64 / link.bytes_per_second);
            state.line_free_at = Some(until);
            until
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
        result = stream.write_all(piece);
        if result.is_err() {
            break;
        }
    }
    state.lock().unwrap().line_users -= 1;
    result
}

/// Until the other side has acknowledged everything: what is reset before that is lost on the way, not served.
fn wait_until_taken(tcp: &TcpStream) {
    let (Ok(local), Ok(peer)) = (tcp.local_addr(), tcp.peer_addr()) else { return };
    let key = format!(":{:04X} 0100007F:{:04X} 01 ", local.port(), peer.port());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
        let line = table.lines().find(|line| line.contains(&key)).unwrap_or_default();
        if line.is_empty() || line.contains(&format!("{key}00000000:")) {
            break;
        }
        thread::yield_now();
    }
}

fn respond(seen: &Seen, body: &[u8], address: SocketAddr, state: &Mutex<State>) -> Answer {
    let mut state = state.lock().unwrap();
    state.seen.push(seen.clone());
    let fault = state.faults.iter_mut().find(|fault| fault.times > 0 && seen.path.contains(&fault.path)).map(
        |fault| {
            fault.times -= 1;
            fault.kind.clone()
        },
    );
    if let Some(FaultKind::Status(status, headers, body)) = &fault {
        return Answer { headers: headers.clone(), ..answer(*status, body.as_bytes()) };
    }
    if seen.path.starts_with("/token") {
        return Answer {
            fault: fault.filter(|fault| matches!(fault, FaultKind::Endless)),
            ..token(seen, &mut state)
        };
    }
    if let Some(refusal) = check_auth(seen, address, &mut state) {
        return refusal;
    }
    let mut proper = proper(seen, body, &mut state, fault.as_ref());
    match &fault {
        Some(FaultKind::Corrupt) => {
            let middle = proper.body.len() / 2;
            proper.body[middle] ^= 0xff;
        }
        Some(FaultKind::Longer) => proper.body.push(0),
        Some(FaultKind::Headers(headers)) => proper.headers.extend(headers.iter().cloned()),
        _ => {}
    }
    if seen.path.contains("/blobs/") && seen.method == "GET" {
        let most = match &fault {
            Some(
                FaultKind::CutAfter(count) | FaultKind::ResetAfter(count) | FaultKind::StallAfter(count, _),
            ) => *count,
            _ => usize::MAX,
        };
        state.served_blob_bytes += most.min(proper.body.len());
    }
    proper.fault = fault;
    proper
}

fn proper(seen: &Seen, body: &[u8], state: &mut State, fault: Option<&FaultKind>) -> Answer {
    let (whole, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let base = state.base.clone().unwrap_or_else(|| "/v2/".to_owned());
    let path = whole.strip_prefix(base.as_str()).unwrap_or(whole);
    let parameter = |name: &str| {
        let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        found.map(|value| value.replace("%2F", "/").replace("%3A", ":"))
    };
    if let Some((repository, _)) = path.split_once("/tags/list") {
        return tags(repository, parameter("last"), state);
    }
    if let Some((_, digest)) = path.split_once("/referrers/") {
        return match state.referrers.get(digest) {
            _ if !state.has_referrers => answer(404, ""),
            Some(index) => {
                header(answer(200, index.clone()), "Content-Type", "application/vnd.oci.image.index.v1+json")
            }
            None => answer(200, r#"{"schemaVersion":2,"manifests":[]}"#),
        };
    }
    if let Some((repository, target)) = path.split_once("/manifests/") {
        if seen.method == "PUT" {
            let media_type = seen.headers.get("content-type").cloned().unwrap_or_default();
            for key in [target.to_owned(), Digest::of(body).to_string()] {
                state.manifests.insert(format!("{repository}:{key}"), (media_type.clone(), body.to_vec()));
            }
            return answer(201, "");
        }
        return match state.manifests.get(&format!("{repository}:{target}")) {
            Some((media_type, bytes)) => {
                let found = header(answer(200, bytes.clone()), "Content-Type", media_type);
                header(found, "Docker-Content-Digest", &Digest::of(bytes).to_string())
            }
            None => answer(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        };
    }
    if let Some((repository, _)) = path.split_once("/blobs/uploads/") {
        let repository = repository.to_owned();
        return upload(seen, body, &repository, parameter, state);
    }
    let unknown = || answer(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
    let Some((repository, digest)) = path.split_once("/blobs/") else { return unknown() };
    let owned = !state.scoped || state.owned.contains(&(repository.to_owned(), digest.to_owned()));
    let Some(bytes) = state.blobs.get(digest).filter(|_| owned) else { return unknown() };
    blob(seen, bytes, fault)
}

fn tags(repository: &str, last: Option<String>, state: &State) -> Answer {
    let prefix = format!("{repository}:");
    let keys = state.manifests.keys();
    let mut tags: Vec<&str> =
        keys.filter_map(|key| key.strip_prefix(&prefix)).filter(|tag| !tag.contains(':')).collect();
    tags.sort_unstable();
    if tags.is_empty() {
        return answer(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}"#);
    }
    tags.retain(|tag| last.as_deref().is_none_or(|last| *tag > last));
    let more = state.tag_page.filter(|page| tags.len() > *page);
    tags.truncate(more.unwrap_or(tags.len()));
    let list = answer(200, format!(r#"{{"tags":["{}"]}}"#, tags.join("\",\"")));
    match (more, tags.last()) {
        (Some(_), Some(last)) => {
            header(list, "Link", &format!("</v2/{repository}/tags/list?last={last}>; rel=\"next\""))
        }
        _ => list,
    }
}

fn upload(
    seen: &Seen,
    body: &[u8],
    repository: &str,
    parameter: impl Fn(&str) -> Option<String>,
    state: &mut State,
) -> Answer {
    if seen.method == "POST" {
        let mount = parameter("mount").zip(parameter("from"));
        if let Some((digest, from)) = mount
            && state.owned.contains(&(from, digest.clone()))
        {
            state.owned.insert((repository.to_owned(), digest));
            return answer(201, "");
        }
        let location = format!("/v2/{repository}/blobs/uploads/session?state=s3cret");
        return header(answer(202, ""), "Location", &location);
    }
    let digest = parameter("digest").unwrap_or_default();
    if Digest::of(body).to_string() != digest {
        return answer(400, r#"{"errors":[{"code":"DIGEST_INVALID","message":"not what it says"}]}"#);
    }
    state.blobs.insert(digest.clone(), body.to_vec());
    state.owned.insert((repository.to_owned(), digest));
    answer(201, "")
}

fn blob(seen: &Seen, bytes: &[u8], fault: Option<&FaultKind>) -> Answer {
    let range = seen.headers.get("range").and_then(|value| {
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().unwrap_or(usize::MAX)))
    });
    match (range, fault) {
        (None, _) | (_, Some(FaultKind::IgnoreRange)) => answer(200, bytes),
        (Some((first, last)), fault) => {
            let last = last.min(bytes.len() - 1);
            let shown = if matches!(fault, Some(FaultKind::WrongRange)) { first + 1 } else { first };
            let total = bytes.len() + usize::from(matches!(fault, Some(FaultKind::WrongTotal)));
            let range = format!("bytes {shown}-{last}/{total}");
            header(answer(206, &bytes[first..=last]), "Content-Range", &range)
        }
    }
}

fn check_auth(seen: &Seen, address: SocketAddr, state: &mut State) -> Option<Answer> {
    let sent = seen.headers.get("authorization").cloned().unwrap_or_default();
    let refused =
        || answer(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
    match &state.auth {
        Auth::None => None,
        Auth::Basic(user, password) if sent == basic(user, password) => None,
        Auth::Basic(..) => Some(header(refused(), "WWW-Authenticate", r#"Basic realm="fake""#)),
        Auth::Registry(token) if sent == format!("Bearer {token}") => None,
        Auth::Bearer { .. } | Auth::Identity(_) | Auth::Registry(_) => {
            let token = sent.strip_prefix("Bearer ").unwrap_or_default();
            if let Some(uses) = state.tokens.get_mut(token).filter(|uses| **uses > 0) {
                *uses -= 1;
                return None;
            }
            let realm = format!(
                r#"Bearer realm="http://{address}/token",service="fake",scope="repository:other:push""#
            );
            Some(header(refused(), "WWW-Authenticate", &realm))
        }
    }
}

fn token(seen: &Seen, state: &mut State) -> Answer {
    let sent = seen.headers.get("authorization").cloned().unwrap_or_default();
    let (known, uses) = match (&state.auth, seen.method.as_str()) {
        (Auth::Bearer { user: None, uses, .. }, _) => (true, *uses),
        (Auth::Bearer { post: Some(status), .. }, "POST") => return answer(*status, ""),
        (Auth::Bearer { user: Some((user, password)), uses, .. }, "POST") => {
            (seen.body.contains(&format!("username={user}&password={password}")), *uses)
        }
        (Auth::Bearer { user: Some((user, password)), uses, .. }, _) => {
            (sent == basic(user, password), *uses)
        }
        (Auth::Identity(token), "POST") => (
            seen.body.contains("grant_type=refresh_token")
                && seen.body.contains(&format!("refresh_token={token}&")),
            usize::MAX,
        ),
        _ => return answer(404, ""),
    };
    if !known {
        return answer(401, "");
    }
    state.issued += 1;
    let token = format!("token{}", state.issued);
    state.tokens.insert(token.clone(), uses);
    let field = if seen.method == "POST" { "access_token" } else { "token" };
    answer(200, format!(r#"{{"{field}":"{token}","expires_in":300}}"#))
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}
