//! `hosts.toml`: the hosts that serve a registry, in containerd's format.
//!
//! `<folder>/<host[:port]>/hosts.toml`, then `<folder>/<host>_<port>_/hosts.toml`, then `<folder>/_default/hosts.toml`. Hosts
//! are tried in the order of the file, the `server` last. What this reader does not know is refused by name: a setting that
//! is silently dropped may be the one that keeps a secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::endpoint::{Capabilities, Endpoint, Scheme, TlsFiles};
use crate::error::Error;
use crate::reference::ImageRef;

/// The largest file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;
/// The most hosts that one file may list: each is asked in turn.
const HOST_LIMIT: usize = 32;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: toml::map::Map<String, toml::Value>,
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Option<OneOrMany>,
    #[serde(default)]
    client: Option<toml::Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: toml::map::Map<String, toml::Value>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: bool,
    header: toml::map::Map<String, toml::Value>,
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The endpoints that the first file for this reference's registry lists; `None` if there is no file.
pub(crate) fn find(folders: &[PathBuf], reference: &ImageRef) -> Result<Option<Vec<Endpoint>>, Error> {
    let registry = reference.registry();
    let spelled = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), spelled, Some("_default".to_owned())];
    // A folder's own entry for the host goes before any folder's default.
    for name in names.into_iter().flatten() {
        for folder in folders {
            let path = folder.join(&name).join("hosts.toml");
            if let Some(text) = read(&path)? {
                return parse(&text, &path, reference).map(Some);
            }
        }
    }
    Ok(None)
}

/// Reads a small configuration file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_LIMIT_BYTES => return Err(refuse(path, "larger than 1 MiB")),
        Ok(metadata) if !metadata.is_file() => return Err(refuse(path, "not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(refuse(path, &error.to_string())),
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| refuse(path, &error.to_string()))
}

pub(crate) fn refuse(path: &Path, reason: &str) -> Error {
    Error::HostFile { path: path.to_owned(), reason: reason.to_owned() }
}

/// Where in a TOML text something is wrong, without the text itself: headers may hold secrets.
pub(crate) fn refuse_toml(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    refuse(path, &format!("line {line}: {}", error.message()))
}

/// The endpoints of one file.
pub(crate) fn parse(text: &str, path: &Path, reference: &ImageRef) -> Result<Vec<Endpoint>, Error> {
    let file: File = toml::from_str(text).map_err(|error| refuse_toml(path, text, &error))?;
    if file.host.len() > HOST_LIMIT {
        return Err(refuse(path, &format!("it lists more than {HOST_LIMIT} hosts")));
    }
    let mut endpoints = Vec::new();
    for (url, value) in file.host {
        let host: Host = value
            .try_into()
            .map_err(|error: toml::de::Error| refuse(path, &format!("host {url:?}: {}", error.message())))?;
        endpoints.push(endpoint(Some(&url), host, path, reference)?);
    }
    let server = Host {
        capabilities: file.capabilities,
        ca: file.ca,
        client: file.client,
        skip_verify: file.skip_verify,
        header: file.header,
        override_path: file.override_path,
        dial_timeout: file.dial_timeout,
    };
    let last = endpoint(file.server.as_deref(), server, path, reference)?;
    // The server may be listed as a host too, with settings of its own; it is not asked twice.
    if !endpoints.iter().any(|endpoint| endpoint.host == last.host && endpoint.base == last.base) {
        endpoints.push(last);
    }
    Ok(endpoints)
}

fn endpoint(url: Option<&str>, host: Host, path: &Path, reference: &ImageRef) -> Result<Endpoint, Error> {
    let mut endpoint = Endpoint::of(reference);
    if let Some(url) = url {
        place(&mut endpoint, url, host.override_path, path, reference)?;
    }
    if let Some(names) = &host.capabilities {
        endpoint.capabilities = capabilities(names, path)?;
    }
    endpoint.headers = headers(&host.header, path)?;
    endpoint.dial_timeout = host.dial_timeout.as_deref().map(|text| duration(text, path)).transpose()?;
    endpoint.tls = Arc::new(TlsFiles {
        authorities: match host.ca {
            None => Vec::new(),
            Some(OneOrMany::One(file)) => vec![absolute(path, &file)],
            Some(OneOrMany::Many(files)) => files.iter().map(|file| absolute(path, file)).collect(),
        },
        client: host.client.map(|value| client(&value, path)).transpose()?.flatten(),
        unchecked: host.skip_verify,
    });
    Ok(endpoint)
}

/// Puts the host and path of a URL into an endpoint.
fn place(
    endpoint: &mut Endpoint,
    url: &str,
    override_path: bool,
    path: &Path,
    reference: &ImageRef,
) -> Result<(), Error> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Tls, rest),
        Some(("http", rest)) => (Scheme::Plain, rest),
        Some(_) => return Err(refuse(path, &format!("host {url:?}: neither http nor https"))),
        None => (Scheme::Probe, url),
    };
    let (host, own_path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let own_path = own_path.trim_end_matches('/');
    if host.is_empty() || host.contains('@') || rest.contains(['?', '#', ' ']) {
        return Err(refuse(path, "a host is written scheme://host[:port][/path]"));
    }
    let uri = format!("https://{host}/{own_path}").parse::<hyper::Uri>();
    if uri.is_err() {
        return Err(refuse(path, &format!("host {host:?} is not a host name")));
    }
    endpoint.base = match own_path {
        "" if override_path => String::new(),
        own if override_path || own == "v2" || own.ends_with("/v2") => format!("/{own}"),
        "" => "/v2".to_owned(),
        own => format!("/{own}/v2"),
    };
    endpoint.scheme = scheme;
    host.clone_into(&mut endpoint.host);
    if host != reference.endpoint() && host != reference.registry() {
        endpoint.is_mirror = true;
        endpoint.namespace = Some(reference.registry().to_owned());
        host.clone_into(&mut endpoint.credentials);
    }
    Ok(())
}

fn capabilities(names: &[String], path: &Path) -> Result<Capabilities, Error> {
    let mut found = Capabilities { resolve: false, pull: false, referrers: false, push: false };
    for name in names {
        match name.as_str() {
            "resolve" => found.resolve = true,
            "pull" => found.pull = true,
            "referrers" => found.referrers = true,
            "push" => found.push = true,
            other => return Err(refuse(path, &format!("unknown capability {other:?}"))),
        }
    }
    Ok(found)
}

fn headers(map: &toml::map::Map<String, toml::Value>, path: &Path) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in map {
        let bad = || refuse(path, &format!("header {name:?} is not a header of text"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let values = match value {
            toml::Value::Array(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        for value in values {
            let text = value.as_str().ok_or_else(bad)?;
            let mut value = HeaderValue::from_str(text).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// `client` is a file with certificate and key, or a pair of files; of a list of either, the first is shown.
fn client(value: &toml::Value, path: &Path) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    let file = |value: &toml::Value| value.as_str().map(|text| absolute(path, Path::new(text)));
    let bad = || refuse(path, "client is a file, a list of files, or a list of pairs of certificate and key");
    match value {
        toml::Value::String(_) => Ok(file(value).map(|both| (both.clone(), both))),
        toml::Value::Array(values) => match values.as_slice() {
            [] => Ok(None),
            [toml::Value::Array(pair), ..] => match pair.as_slice() {
                [certificate, key] => {
                    Ok(Some((file(certificate).ok_or_else(bad)?, file(key).ok_or_else(bad)?)))
                }
                [both] => Ok(Some((file(both).ok_or_else(bad)?, file(both).ok_or_else(bad)?))),
                _ => Err(bad()),
            },
            [first, ..] => {
                let both = file(first).ok_or_else(bad)?;
                Ok(Some((both.clone(), both)))
            }
        },
        _ => Err(bad()),
    }
}

/// Go's durations, as far as anyone writes them here: a number with `ms`, `s`, `m` or `h`, or several of them.
fn duration(text: &str, path: &Path) -> Result<Duration, Error> {
    let bad = || refuse(path, &format!("dial_timeout {text:?} is not a time such as 500ms or 10s"));
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, after) = rest.split_at(digits);
        let unit = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        rest = after;
    }
    if total.is_zero() || total > Duration::from_secs(3600) { Err(bad()) } else { Ok(total) }
}

fn absolute(file: &Path, relative: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("/")).join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> Result<Vec<Endpoint>, Error> {
        let reference = ImageRef::parse("docker.io/library/busybox:1").unwrap();
        parse(text, Path::new("/etc/x/docker.io/hosts.toml"), &reference)
    }

    #[test]
    fn a9_hosts_are_read_in_order_with_everything_that_may_be_said_of_them() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."http://10.0.0.1:5000/cache"]
              capabilities = ["pull"]
              override_path = true
              dial_timeout = "1m500ms"
            [host."https://mirror.io/v2"]
              capabilities = ["pull", "resolve"]
              ca = "ca.pem"
              client = [["/c.pem", "k.pem"]]
              [host."https://mirror.io/v2".header]
                x-one = ["a", "b"]
                authorization = "Basic c2VjcmV0"
            [host."third.io/sub"]
              ca = ["/a", "b"]
              client = "both.pem"
              skip_verify = true
        "#;
        let found = endpoints(text).unwrap();
        let summary: Vec<_> = found
            .iter()
            .map(|e| (e.host.as_str(), e.base.as_str(), e.scheme, e.namespace.as_deref(), e.is_mirror))
            .collect();
        assert_eq!(
            summary,
            [
                ("10.0.0.1:5000", "/cache", Scheme::Plain, Some("docker.io"), true),
                ("mirror.io", "/v2", Scheme::Tls, Some("docker.io"), true),
                ("third.io", "/sub/v2", Scheme::Probe, Some("docker.io"), true),
                ("registry-1.docker.io", "/v2", Scheme::Tls, None, false),
            ]
        );
        assert!(found[0].capabilities.pull && !found[0].capabilities.resolve);
        assert_eq!(found[0].dial_timeout, Some(Duration::from_millis(60_500)));
        assert_eq!(found[1].tls.authorities, [Path::new("/etc/x/docker.io/ca.pem")]);
        let pair = ("/c.pem".into(), "/etc/x/docker.io/k.pem".into());
        assert_eq!(found[1].tls.client, Some(pair));
        assert_eq!(found[1].headers.get_all("x-one").iter().count(), 2);
        assert!(!format!("{found:?}").contains("c2VjcmV0"), "a header's value never prints");
        assert!(found[2].tls.unchecked && found[3].capabilities == Capabilities::ALL);
        assert_eq!(found[1].path("blobs/x"), "/v2/library/busybox/blobs/x?ns=docker.io");
        assert_eq!(endpoints("").unwrap().len(), 1, "without a server, the registry itself");
    }

    #[test]
    fn hosts_that_cannot_be_read_are_refused_by_line_and_name() {
        for (text, expected) in [
            ("\nserver = 1", "line 2"),
            ("sever = \"x\"", "unknown field"),
            ("[host.\"ftp://x\"]", "neither http nor https"),
            ("[host.\"https://u:hunter2@x\"]", "scheme://host"),
            ("[host.\"https://x\"]\ncapabilities = [\"pul\"]", "unknown capability"),
            ("[host.\"https://x\"]\nskip-verify = true", "unknown field"),
            ("[host.\"https://x\"]\ndial_timeout = \"soon\"", "not a time"),
            ("[host.\"https://x\"]\nclient = 3", "client is"),
            ("[host.\"https://x\".header]\na = 3", "not a header"),
            ("x = [", "line 1"),
        ] {
            let error = endpoints(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
