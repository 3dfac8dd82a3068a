//! One HTTP/1.1 exchange: connections that are kept alive, TLS, and a name for every time limit.
//!
//! Nothing here knows what a registry is. Redirects, authentication and retries are decided by [`crate::exchange`].

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::endpoint::TlsFiles;
use crate::error::Error;
use crate::payload::{Payload, PayloadBody};
use crate::proxy::{Proxies, Proxy};
use crate::trust::{self, Trust};

/// The time limits of one exchange. All are per operation, none is for a whole download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Looking a host name up.
    pub resolve: Duration,
    /// Making a TCP connection to one address.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// From the request to the response's headers; a registry may fetch from slow storage first.
    pub headers: Duration,
    /// Between two pieces of a body: a stalled transfer is cut off and resumed.
    pub stall: Duration,
    /// For a credential helper; it may be asking a keyring, not a person.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = Duration::from_secs;
        Timeouts {
            resolve: seconds(10),
            connect: seconds(10),
            tls: seconds(10),
            headers: seconds(60),
            stall: seconds(30),
            helper: seconds(30),
        }
    }
}

/// The name of the TLS time limit in messages.
pub(crate) const TLS_HANDSHAKE: &str = "the TLS handshake";
/// Idle connections kept for one origin; more than the layers that are fetched at once are not needed.
const IDLE_LIMIT: usize = 8;
/// The read buffer of a connection, in bytes: large enough for one system call per 256 KiB of a layer.
const READ_BUFFER_LIMIT_BYTES: usize = 256 * 1024;

/// Scheme, host and port: what a connection, a token and an Authorization header are valid for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) secure: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    /// The origin of a registry named `host[:port]`.
    pub(crate) fn of_registry(registry: &str, secure: bool) -> Origin {
        let default = if secure { 443 } else { 80 };
        let (host, port) = match registry.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
            _ => (registry, default),
        };
        Origin { secure, host: host.trim_matches(['[', ']']).to_owned(), port }
    }

    /// The origin of an absolute `http` or `https` URI.
    pub(crate) fn of_uri(uri: &Uri) -> Option<Origin> {
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let port = match authority.port_u16() {
            Some(port) => port,
            // A port that is none must not be taken for the usual one.
            None if authority.as_str().trim_end_matches(':').ends_with(authority.host()) => {
                if secure {
                    443
                } else {
                    80
                }
            }
            None => return None,
        };
        Some(Origin { secure, host: authority.host().trim_matches(['[', ']']).to_owned(), port })
    }

    /// `host:port`, as the Host header and messages write it.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.secure { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// Whether the host is this machine by its very name.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Whether the host is a link-local address, where clouds serve their instances' secrets.
    pub(crate) fn is_link_local(&self) -> bool {
        self.host.parse().is_ok_and(is_link_local)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// An origin, and how its certificates are dealt with: connections are shared by those who agree on both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) origin: Origin,
    pub(crate) tls: Arc<TlsFiles>,
    /// In place of the general time limit for a TCP connection.
    pub(crate) dial_timeout: Option<Duration>,
}

impl Peer {
    /// An origin that nothing is known of: where a redirect or a challenge leads.
    pub(crate) fn stranger(origin: Origin) -> Peer {
        Peer { origin, tls: Arc::default(), dial_timeout: None }
    }
}

/// A request that can be sent more than once.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
}

/// A connection that requests are sent on.
type Connection = SendRequest<PayloadBody>;

/// The largest answer to CONNECT, in bytes: a status line and a few headers.
const CONNECT_LIMIT_BYTES: usize = 8 * 1024;

/// Connections to every origin that was talked to.
pub(crate) struct Transport {
    timeouts: Timeouts,
    trust: Trust,
    proxies: Proxies,
    idle: Arc<Mutex<HashMap<Peer, Vec<Connection>>>>,
}

impl Transport {
    pub(crate) fn new(timeouts: Timeouts, trust: Trust, proxies: Proxies) -> Transport {
        Transport { timeouts, trust, proxies, idle: Arc::default() }
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sends one request and waits for the response's headers.
    pub(crate) async fn send(&self, peer: &Peer, outgoing: &Outgoing) -> Result<Response<Incoming>, Error> {
        // A kept connection may have been closed by the other side meanwhile: then, and only then, a fresh one is tried.
        while let Some(sender) = self.take_idle(peer) {
            match self.exchange(peer, sender, self.request(peer, outgoing)?).await {
                Err(Error::Transfer { .. }) => continue,
                other => return other,
            }
        }
        let sender = self.connect(peer).await?;
        self.exchange(peer, sender, self.request(peer, outgoing)?).await
    }

    /// Makes connections ahead of the requests that will need them. What fails here fails again, and is told, there.
    pub(crate) fn warm(self: &Arc<Self>, peer: &Peer, count: usize) {
        for _ in 0..count.min(IDLE_LIMIT) {
            let (transport, peer) = (Arc::clone(self), peer.clone());
            tokio::spawn(async move {
                if let Ok(sender) = transport.connect(&peer).await {
                    transport.keep(peer, sender);
                }
            });
        }
    }

    fn request(&self, peer: &Peer, outgoing: &Outgoing) -> Result<Request<PayloadBody>, Error> {
        let origin = &peer.origin;
        let refuse = |reason: String| Error::Protocol { host: origin.authority(), what: "request", reason };
        let proxy = self.proxies.for_origin(origin).filter(|_| !origin.secure);
        let uri = match proxy {
            Some(_) => format!("http://{}{}", origin.authority(), outgoing.path),
            None => outgoing.path.clone(),
        };
        let mut builder = Request::builder().method(outgoing.method.clone()).uri(uri);
        if let Some(headers) = builder.headers_mut() {
            headers.clone_from(&outgoing.headers);
            let host = origin.authority().parse().map_err(|_| refuse("not a host name".to_owned()))?;
            headers.insert(hyper::header::HOST, host);
            let value =
                proxy.and_then(|proxy| proxy.authorization.as_ref()).map(|secret| secret.expose().parse());
            if let Some(Ok(value)) = value {
                headers.insert(hyper::header::PROXY_AUTHORIZATION, value);
            }
        }
        let body = outgoing.payload.open().map_err(|error| refuse(error.to_string()))?;
        builder.body(body).map_err(|error| refuse(error.to_string()))
    }

    async fn exchange(
        &self,
        peer: &Peer,
        mut sender: Connection,
        request: Request<PayloadBody>,
    ) -> Result<Response<Incoming>, Error> {
        let origin = &peer.origin;
        let response =
            self.limit("the response", origin, self.timeouts.headers, sender.send_request(request));
        let response = response.await?.map_err(|error| transfer("the request", origin, &error))?;
        self.keep(peer.clone(), sender);
        Ok(response)
    }

    /// Puts the connection back once its response has been read; a response dropped half-read closes it instead.
    fn keep(&self, peer: Peer, mut sender: Connection) {
        let idle = Arc::clone(&self.idle);
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = idle.entry(peer).or_default();
            if kept.len() < IDLE_LIMIT {
                kept.push(sender);
            }
        });
    }

    fn take_idle(&self, peer: &Peer) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(peer)?;
        while let Some(sender) = kept.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self, peer: &Peer) -> Result<Connection, Error> {
        let origin = &peer.origin;
        let stream = self.reach(peer).await?;
        if !origin.secure {
            return self.handshake(origin, stream).await;
        }
        let connector = TlsConnector::from(self.trust.config_for(peer)?);
        let tls = |reason: String| Error::Tls { host: origin.authority(), reason };
        let name = ServerName::try_from(origin.host.clone()).map_err(|error| tls(error.to_string()))?;
        let stream = self.limit(TLS_HANDSHAKE, origin, self.timeouts.tls, connector.connect(name, stream));
        let stream = stream.await?.map_err(|error| match speaks_tls(&error) {
            true => tls(trust::explain(&error)),
            false => Error::PlainHttpRefused { host: origin.authority() },
        })?;
        self.handshake(origin, stream).await
    }

    /// A stream to the origin: a TCP connection, or a tunnel through a proxy.
    async fn reach(&self, peer: &Peer) -> Result<TcpStream, Error> {
        let limit = peer.dial_timeout.unwrap_or(self.timeouts.connect);
        let Some(proxy) = self.proxies.for_origin(&peer.origin) else {
            return self.connect_tcp(&peer.origin, limit).await;
        };
        let between = Origin { secure: false, host: proxy.host.clone(), port: proxy.port };
        let mut stream = self.connect_tcp(&between, limit).await?;
        if peer.origin.secure {
            let tunnel = tunnel(&mut stream, &peer.origin, proxy);
            self.limit("the proxy's tunnel", &between, self.timeouts.headers, tunnel).await??;
        }
        Ok(stream)
    }

    async fn connect_tcp(&self, origin: &Origin, limit: Duration) -> Result<TcpStream, Error> {
        let mut last = String::from("it has no address");
        for address in self.addresses(origin).await? {
            match tokio::time::timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small and complete: waiting to merge them with later ones only adds delay.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no answer within {limit:?}"),
            }
        }
        Err(Error::Connect { host: format!("{}:{}", origin.host, origin.port), reason: last })
    }

    /// The standard library's resolver, on a thread of its own: the resolver's interface blocks.
    async fn addresses(&self, origin: &Origin) -> Result<Vec<SocketAddr>, Error> {
        if let Ok(address) = origin.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, origin.port)]);
        }
        let lookup = tokio::net::lookup_host((origin.host.clone(), origin.port));
        match self.limit("the DNS lookup", origin, self.timeouts.resolve, lookup).await? {
            // A name whose owner points it at an instance's secrets is no registry.
            Ok(addresses) => Ok(addresses.filter(|address| !is_link_local(address.ip())).collect()),
            Err(error) => Err(Error::UnknownHost { host: origin.host.clone(), reason: error.to_string() }),
        }
    }

    async fn handshake<S>(&self, origin: &Origin, stream: S) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake =
            http1::Builder::new().max_buf_size(READ_BUFFER_LIMIT_BYTES).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| transfer("the connection", origin, &error))?;
        // Failures of the connection reach the request or the body that was using it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn limit<T>(
        &self,
        operation: &'static str,
        origin: &Origin,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let result = tokio::time::timeout(limit, future).await;
        result.map_err(|_| Error::Timeout { operation, host: origin.authority(), limit })
    }
}

/// Asks a proxy for a tunnel. It says nothing of its own after its answer, so what follows is the origin's.
async fn tunnel(stream: &mut TcpStream, origin: &Origin, proxy: &Proxy) -> Result<(), Error> {
    let host = if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.clone() };
    let target = format!("{host}:{}", origin.port);
    let failed = |reason: String| Error::Connect {
        host: target.clone(),
        reason: format!("the proxy {}:{} {reason}", proxy.host, proxy.port),
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(secret) = &proxy.authorization {
        request += &format!("Proxy-Authorization: {}\r\n", secret.expose());
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= CONNECT_LIMIT_BYTES {
            return Err(failed("answers without end".to_owned()));
        }
        answer.push(stream.read_u8().await.map_err(|error| failed(error.to_string()))?);
    }
    let line = String::from_utf8_lossy(&answer);
    match line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok()) {
        Some(status) if (200..300).contains(&status) => Ok(()),
        Some(status) => Err(failed(format!("refuses the tunnel with status {status}"))),
        None => Err(failed("does not answer in HTTP".to_owned())),
    }
}

/// Whether a failed handshake failed between two sides that both speak TLS.
fn speaks_tls(error: &std::io::Error) -> bool {
    use tokio_rustls::rustls;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => false,
        Some(_) => true,
        None => {
            !matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset)
        }
    }
}

/// A broken exchange, with the innermost cause, which is the one that says something.
pub(crate) fn transfer(operation: &'static str, origin: &Origin, error: &hyper::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    loop {
        // In TLS 1.3 a server refuses a client's certificate only after the handshake.
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.get_ref().is_some_and(|inner| inner.is::<tokio_rustls::rustls::Error>())
        {
            return Error::Tls { host: origin.authority(), reason: trust::explain(io) };
        }
        let Some(source) = cause.source() else { break };
        cause = source;
    }
    Error::Transfer { operation, host: origin.authority(), reason: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_of_registries_and_uris() {
        for (registry, secure, host, port, authority) in [
            ("ghcr.io", true, "ghcr.io", 443, "ghcr.io"),
            ("127.0.0.1:5000", false, "127.0.0.1", 5000, "127.0.0.1:5000"),
            ("[::1]:5000", true, "::1", 5000, "[::1]:5000"),
            ("[::1]", false, "::1", 80, "[::1]"),
        ] {
            let origin = Origin::of_registry(registry, secure);
            assert_eq!(origin, Origin { secure, host: host.into(), port });
            assert_eq!(origin.authority(), authority);
            let scheme = if secure { "https" } else { "http" };
            let uri: Uri = format!("{scheme}://{registry}/v2/").parse().unwrap();
            assert_eq!(Origin::of_uri(&uri), Some(origin));
        }
        for uri in ["ftp://x/y", "http://x:99999/y", "http://[::1]:0x50/"] {
            assert!(uri.parse().map_or(true, |uri| Origin::of_uri(&uri).is_none()), "{uri}");
        }
        assert!(Origin::of_registry("localhost:1", false).is_loopback());
        assert!(Origin::of_registry("169.254.169.254", false).is_link_local());
    }
}
