//! A registry in this process that misbehaves on demand. Plain threads and sockets, so that it shares no code with the client.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test programs, each of which uses another part"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use cofferdam_registry::Digest;

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
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
    /// Other bytes of the same length.
    Corrupt,
    /// One byte more than announced by the descriptor.
    Longer,
    /// Answer a Range request as if it were none.
    IgnoreRange,
    /// Answer a Range request with another range.
    WrongRange,
}

#[derive(Clone, Debug, Default)]
pub enum Auth {
    #[default]
    None,
    /// User, password.
    Basic(String, String),
    /// Tokens are issued anonymously (`None`) or for a user and password; POST answers with the status.
    Bearer { user: Option<(String, String)>, post: Option<u16>, uses: usize },
}

#[derive(Default)]
pub struct State {
    pub manifests: HashMap<String, (String, Vec<u8>)>,
    pub blobs: HashMap<String, Vec<u8>>,
    pub auth: Auth,
    pub faults: Vec<Fault>,
    pub seen: Vec<Seen>,
    pub served_blob_bytes: usize,
    tokens: HashMap<String, usize>,
    issued: usize,
}

pub struct FakeRegistry {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl FakeRegistry {
    pub fn start() -> FakeRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || drop(serve(&stream, address, &state)));
            }
        });
        FakeRegistry { address, state }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn add_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
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

    pub fn set_auth(&self, auth: Auth) {
        self.state.lock().unwrap().auth = auth;
    }

    pub fn seen(&self, part: &str) -> Vec<Seen> {
        self.state.lock().unwrap().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into(), cut: None }
}

fn header(mut answer: Answer, name: &str, value: &str) -> Answer {
    answer.headers.push((name.to_owned(), value.to_owned()));
    answer
}

fn serve(stream: &TcpStream, address: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    // Head and body are written apart: without this the second waits for the first one's acknowledgement, 40 ms.
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [method @ ("GET" | "HEAD" | "POST"), path, _] = parts[..] else {
            // Most likely a TLS handshake.
            return (&*stream).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
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
        let seen = Seen {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let answer = respond(&seen, address, state);
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", answer.body.len());
        }
        (&*stream).write_all(format!("{head}\r\n").as_bytes())?;
        if method == "HEAD" {
            continue;
        }
        match answer.cut {
            Some(cut) => return (&*stream).write_all(&answer.body[..cut.min(answer.body.len())]),
            None => (&*stream).write_all(&answer.body)?,
        }
    }
}

fn respond(seen: &Seen, address: SocketAddr, state: &Mutex<State>) -> Answer {
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
        return token(seen, &mut state);
    }
    if let Some(refusal) = check_auth(seen, address, &mut state) {
        return refusal;
    }
    let mut proper = proper(seen, &mut state, fault.as_ref());
    match fault {
        Some(FaultKind::CutAfter(count)) => proper.cut = Some(count),
        Some(FaultKind::Corrupt) => {
            let middle = proper.body.len() / 2;
            proper.body[middle] ^= 0xff;
        }
        Some(FaultKind::Longer) => proper.body.push(0),
        _ => {}
    }
    if seen.path.contains("/blobs/") && seen.method == "GET" {
        state.served_blob_bytes += proper.cut.unwrap_or(usize::MAX).min(proper.body.len());
    }
    proper
}

fn proper(seen: &Seen, state: &mut State, fault: Option<&FaultKind>) -> Answer {
    let path = seen.path.strip_prefix("/v2/").unwrap_or(&seen.path);
    if let Some((repository, _)) = path.split_once("/tags/list") {
        let prefix = format!("{repository}:");
        let mut tags: Vec<&str> = state
            .manifests
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .filter(|t| !t.contains(':'))
            .collect();
        tags.sort_unstable();
        if tags.is_empty() {
            return answer(
                404,
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}"#,
            );
        }
        return answer(200, format!(r#"{{"tags":["{}"]}}"#, tags.join("\",\"")));
    }
    if let Some((repository, target)) = path.split_once("/manifests/") {
        return match state.manifests.get(&format!("{repository}:{target}")) {
            Some((media_type, bytes)) => {
                let found = header(answer(200, bytes.clone()), "Content-Type", media_type);
                header(found, "Docker-Content-Digest", &Digest::of(bytes).to_string())
            }
            None => answer(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        };
    }
    let Some(bytes) = path.split_once("/blobs/").and_then(|(_, digest)| state.blobs.get(digest)) else {
        return answer(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
    };
    let range = seen
        .headers
        .get("range")
        .and_then(|value| value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match (range, fault) {
        (None, _) | (_, Some(FaultKind::IgnoreRange)) => answer(200, bytes.clone()),
        (Some(start), fault) => {
            let start: usize = start;
            let shown = if matches!(fault, Some(FaultKind::WrongRange)) { start + 1 } else { start };
            let range = format!("bytes {shown}-{}/{}", bytes.len() - 1, bytes.len());
            header(answer(206, &bytes[start..]), "Content-Range", &range)
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
        Auth::Bearer { .. } => {
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
    let Auth::Bearer { user, post, uses } = state.auth.clone() else { return answer(404, "") };
    let sent = seen.headers.get("authorization").cloned().unwrap_or_default();
    let known = match (&user, seen.method.as_str()) {
        (None, _) => true,
        (Some(_), "POST") if post.is_some() => return answer(post.unwrap_or(404), ""),
        (Some((user, password)), "POST") => {
            seen.body.contains(&format!("username={user}&password={password}"))
        }
        (Some((user, password)), _) => sent == basic(user, password),
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
