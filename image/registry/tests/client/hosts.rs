//! Mirrors and their rules, as hosts.toml and registries.conf lay them out.

use std::time::Instant;

use tempfile::TempDir;

use super::fake::{Auth, FaultKind};
use super::*;

/// A client that reads this hosts.toml for every registry.
fn with_hosts(text: &str, credentials: CredentialSource) -> (TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("_default");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("hosts.toml"), text).unwrap();
    let hosts = HostFiles { hosts: vec![folder.path().to_owned()], ..HostFiles::none() };
    let client = Client::new(ClientOptions { hosts, credentials, ..options() }).unwrap();
    (folder, client)
}

fn with_registries(text: &str) -> (TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.conf");
    std::fs::write(&path, text).unwrap();
    let hosts = HostFiles { registries: Some(path), ..HostFiles::none() };
    (folder, Client::new(ClientOptions { hosts, ..options() }).unwrap())
}

#[test]
fn a9_hosts_are_asked_in_order_with_their_namespace_headers_and_paths() {
    let (registry, first, second) = (FakeRegistry::start(), FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    image(&second);
    second.state.lock().unwrap().base = Some("/cache/".to_owned());
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}/cache\"]\noverride_path = true\n\
         [host.\"http://{}/cache\".header]\nx-team = [\"a\", \"b\"]\nx-key = \"hunter2\"",
        registry.address, first.address, second.address, second.address
    );
    let (_folder, client) = with_hosts(&text, CredentialSource::Anonymous);
    client.resolve(&reference, &platform()).unwrap();
    assert!(read(&client, &reference, &blob).unwrap() == bytes);
    // The first has nothing, the second has all, the registry is never asked.
    assert_eq!((first.seen("").len(), registry.seen("").len()), (2, 0));
    let seen = second.seen("");
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert!(request.path.starts_with("/cache/a/b/"), "{}", request.path);
        let namespace = reference.registry().replace(':', "%3A");
        assert!(request.path.ends_with(&format!("?ns={namespace}")), "{}", request.path);
        assert_eq!(request.headers["x-key"], "hunter2");
    }
    // A header of one host goes to no other, and into no message.
    second.fault(
        "/blobs/",
        1,
        FaultKind::Status(
            307,
            vec![("Location".into(), format!("http://{}/v2/a/b/blobs/{}", registry.address, blob.digest))],
            String::new(),
        ),
    );
    assert!(read(&client, &reference, &blob).unwrap() == bytes);
    assert!(!registry.seen("/blobs/")[0].headers.contains_key("x-key"));
}

#[test]
fn a10_n6_a_mirror_for_content_alone_never_hears_of_a_tag() {
    let (registry, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    image(&mirror);
    // What the mirror would say of the tag is old.
    mirror.add_manifest("a/b", "v1", OCI_MANIFEST, b"{}");
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        registry.address, mirror.address
    );
    let (_folder, client) = with_hosts(&text, CredentialSource::Anonymous);
    let resolved = client.resolve(&reference, &platform()).unwrap();
    client.target(&reference).unwrap();
    assert!(read(&client, &reference, &blob).unwrap() == bytes);
    let by_digest = reference.at(resolved.digest.clone());
    client.resolve(&by_digest, &platform()).unwrap();
    assert!(mirror.seen("v1").is_empty(), "{:?}", mirror.seen("v1"));
    assert_eq!(mirror.seen("").len(), 2, "the blob, and the manifest by digest");
    assert_eq!(registry.seen("/blobs/").len(), 0);

    let text = format!("server = \"http://{}\"\ncapabilities = [\"pull\"]", registry.address);
    let (_folder, client) = with_hosts(&text, CredentialSource::Anonymous);
    let error = client.resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::NoHost { .. }), "{error}");
}

#[test]
fn a9_a_mirror_that_fails_is_passed_over_and_not_asked_again_if_it_is_away() {
    let (registry, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    image(&mirror);
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]",
        registry.address, mirror.address
    );
    let wrong = CredentialSource::Given(Credential::Basic { user: "u".into(), password: Secret::new("p") });
    let (_folder, client) = with_hosts(&text, wrong);
    let headers = vec![("Retry-After".to_owned(), "60".to_owned())];
    mirror.fault("/manifests/", 1, FaultKind::Status(429, headers, String::new()));
    let start = Instant::now();
    client.resolve(&reference, &platform()).unwrap();
    assert!(read(&client, &reference, &blob).unwrap() == bytes);
    assert!(start.elapsed() < Duration::from_secs(5), "nobody waits for a mirror that is busy");
    assert_eq!(mirror.seen("").len(), 1, "a busy mirror is left alone");
    assert_eq!(registry.seen("").len(), 2);

    // A mirror that wants a password does not get the registry's.
    let mirror = FakeRegistry::start();
    image(&mirror);
    mirror.set_auth(Auth::Basic("u".into(), "p".into()));
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", registry.address, mirror.address);
    let (_folder, client) = with_hosts(&text, user("u", "p"));
    client.resolve(&reference, &platform()).unwrap();
    assert!(mirror.seen("").iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[test]
fn a9_a_dial_timeout_is_the_hosts_own() {
    // A listener whose queue is full answers no further connection.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        queued.push(stream);
    }
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{address}\"]\ndial_timeout = \"200ms\"",
        registry.address
    );
    let (_folder, client) = with_hosts(&text, CredentialSource::Anonymous);
    let start = Instant::now();
    client.resolve(&reference, &platform()).unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(190) && waited < Duration::from_secs(3), "{waited:?}");
}

#[test]
fn a9_registries_conf_rewrites_mirrors_and_blocks() {
    let (registry, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    let (moved, ..) = image(&mirror);
    let host = reference.registry();
    let text = format!(
        "[[registry]]\nprefix = \"old.example/team\"\nlocation = \"{host}/a\"\n\
         [[registry.mirror]]\nlocation = \"{}/a\"\npull-from-mirror = \"digest-only\"\n\
         [[registry]]\nprefix = \"old.example/team/secret\"\nblocked = true",
        moved.registry()
    );
    let (_folder, client) = with_registries(&text);
    let old = ImageRef::parse("old.example/team/b:v1").unwrap();
    client.resolve(&old, &platform()).unwrap();
    assert!(read(&client, &old, &blob).unwrap() == bytes);
    assert_eq!((registry.seen("/v2/a/b/").len(), mirror.seen("/v2/a/b/blobs/").len()), (1, 1));
    assert!(mirror.seen("v1").is_empty());
    let secret = ImageRef::parse("old.example/team/secret:v1").unwrap();
    let error = client.resolve(&secret, &platform()).unwrap_err();
    assert!(matches!(error, Error::Blocked { .. }), "{error}");
}

#[test]
fn a9_a_file_that_cannot_be_read_stops_the_pull() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let (_folder, client) =
        with_hosts("server = \"http://x\"\nskip-verify = true", CredentialSource::Anonymous);
    let error = client.resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(&error, Error::HostFile { path, .. } if path.ends_with("hosts.toml")), "{error}");
    let (_folder, client) = with_registries("[[registry]\n");
    assert!(matches!(client.resolve(&reference, &platform()), Err(Error::HostFile { .. })));
    assert!(registry.seen("").is_empty());
}
