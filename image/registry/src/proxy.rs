//! Proxies: which one stands between this machine and an origin, by the variables that everything else reads.
//!
//! `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, lower case before upper case. Loopback is never proxied. A proxy
//! is `http://[user:password@]host[:port]`: plain requests are sent through it whole, TLS through a tunnel that it makes
//! (CONNECT, RFC 9110 §9.3.6) and cannot look into.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::credentials::Secret;
use crate::transport::Origin;

/// The port of a proxy that names none.
const DEFAULT_PORT: u16 = 80;

/// The proxies in use, and what is reached without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    plain: Option<Arc<Proxy>>,
    secure: Option<Arc<Proxy>>,
    direct: Vec<Direct>,
}

/// One proxy. Its password never prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The Proxy-Authorization header's value.
    pub(crate) authorization: Option<Secret>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {}:{}", self.host, self.port)
    }
}

/// Why a text is not a proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid proxy: {reason}")]
pub struct InvalidProxy {
    /// The rule that it breaks; the text itself may hold a password.
    pub reason: &'static str,
}

/// One entry of no_proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    /// A domain with everything below it, or only what is below it; and perhaps one port alone.
    Domain {
        name: String,
        below_only: bool,
        port: Option<u16>,
    },
    Network {
        address: IpAddr,
        bits: u32,
    },
}

impl Proxies {
    /// What the environment says. A proxy variable that cannot be read is an error: going around a proxy unasked may be
    /// what must not happen.
    pub fn from_environment() -> Result<Proxies, InvalidProxy> {
        let variable = |name: &str| {
            [name.to_owned(), name.to_ascii_uppercase()]
                .iter()
                .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        };
        let all = variable("all_proxy");
        let plain = variable("http_proxy").or_else(|| all.clone());
        let secure = variable("https_proxy").or(all);
        Proxies::new(plain.as_deref(), secure.as_deref(), &variable("no_proxy").unwrap_or_default())
    }

    /// A proxy for plain HTTP, one for TLS, and a list in the form of `no_proxy`: hosts, `.domains`, addresses, networks,
    /// `*`; separated by commas, perhaps with ports.
    pub fn new(plain: Option<&str>, secure: Option<&str>, direct: &str) -> Result<Proxies, InvalidProxy> {
        Ok(Proxies {
            plain: plain.map(Proxy::parse).transpose()?.map(Arc::new),
            secure: secure.map(Proxy::parse).transpose()?.map(Arc::new),
            direct: direct.split([',', ' ']).filter(|entry| !entry.is_empty()).map(Direct::parse).collect(),
        })
    }

    /// The proxy for an origin; `None` to connect directly.
    pub(crate) fn for_origin(&self, origin: &Origin) -> Option<&Arc<Proxy>> {
        let proxy = if origin.secure { &self.secure } else { &self.plain };
        if origin.is_loopback() || self.direct.iter().any(|direct| direct.covers(origin)) {
            return None;
        }
        proxy.as_ref()
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Proxy, InvalidProxy> {
        let refuse = |reason| InvalidProxy { reason };
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => {
                return Err(refuse("only http:// proxies are supported; TLS goes through their tunnel"));
            }
            None => text,
        };
        let rest = rest.split('/').next().unwrap_or_default();
        let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        let origin = Origin::of_registry(host, false);
        let uri: Result<hyper::Uri, _> = format!("http://{host}/").parse();
        if origin.host.is_empty() || uri.is_err() {
            return Err(refuse("expected http://[user:password@]host[:port]"));
        }
        let port = if uri.is_ok_and(|uri| uri.port().is_none()) { DEFAULT_PORT } else { origin.port };
        let authorization = user.map(|pair| {
            let pair = if pair.contains(':') { decode(pair) } else { [&decode(pair)[..], b":"].concat() };
            Secret::new(format!("Basic {}", STANDARD.encode(pair)))
        });
        Ok(Proxy { host: origin.host, port, authorization })
    }
}

impl Direct {
    fn parse(entry: &str) -> Direct {
        if entry == "*" {
            return Direct::Everything;
        }
        if let Some((address, bits)) = entry.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse(), bits.parse())
        {
            return Direct::Network { address, bits };
        }
        let bare = entry.trim_matches(['[', ']']);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Direct::Network { address, bits: if address.is_ipv4() { 32 } else { 128 } };
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
            _ => (entry, None),
        };
        let below_only = name.starts_with('.');
        let name = name.trim_start_matches("*").trim_start_matches('.').to_ascii_lowercase();
        Direct::Domain { name: name.trim_matches(['[', ']']).to_owned(), below_only, port }
    }

    fn covers(&self, origin: &Origin) -> bool {
        match self {
            Direct::Everything => true,
            Direct::Network { address, bits } => {
                origin.host.parse().is_ok_and(|host: IpAddr| same_network(host, *address, *bits))
            }
            Direct::Domain { name, below_only, port } => {
                let host = origin.host.to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                port.is_none_or(|port| port == origin.port) && (below || (!below_only && host == *name))
            }
        }
    }
}

fn same_network(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let differ = one.to_bits() ^ other.to_bits();
            bits <= 32 && differ.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let differ = one.to_bits() ^ other.to_bits();
            bits <= 128 && differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// Undoes `%xx`.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a19_what_no_proxy_lists_and_loopback_are_reached_directly() {
        let list = "example.com,.sub.org, 10.0.0.0/8,192.168.1.7,port.io:5000,[fd00::1],fe80::/10";
        let proxies = Proxies::new(Some("http://p:1"), Some("http://p:2"), list).unwrap();
        for (host, direct) in [
            ("example.com", true),
            ("a.example.com", true),
            ("notexample.com", false),
            ("sub.org", false),
            ("x.sub.org", true),
            ("10.200.3.4:5000", true),
            ("11.0.0.1", false),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
            ("port.io:5000", true),
            ("port.io", false),
            ("[fd00::1]", true),
            ("[fd00::2]", false),
            ("[fe80::9]:80", true),
            ("localhost:5000", true),
            ("127.3.2.1", true),
            ("EXAMPLE.com", true),
        ] {
            for secure in [false, true] {
                let found = proxies.for_origin(&Origin::of_registry(host, secure));
                assert_eq!(found.is_none(), direct, "{host}");
                assert!(found.is_none_or(|proxy| proxy.port == if secure { 2 } else { 1 }));
            }
        }
        let all = Proxies::new(Some("p"), None, "*").unwrap();
        assert!(all.for_origin(&Origin::of_registry("x.io", false)).is_none());
    }

    #[test]
    fn proxies_are_read_without_showing_their_password() {
        let proxies =
            Proxies::new(Some("http://us%40er:hunter2@proxy.io:3128/"), Some("plain.io"), "").unwrap();
        let plain = proxies.plain.clone().unwrap();
        assert_eq!((plain.host.as_str(), plain.port), ("proxy.io", 3128));
        let sent = plain.authorization.clone().unwrap();
        assert_eq!(sent.expose(), format!("Basic {}", STANDARD.encode("us@er:hunter2")));
        assert_eq!(proxies.secure.clone().unwrap().port, 80);
        assert!(!format!("{proxies:?}").contains("hunter2"));
        for bad in ["socks5://x", "https://x:1", "http://", "http://u:p@"] {
            assert!(Proxies::new(Some(bad), None, "").is_err(), "{bad}");
        }
    }
}
