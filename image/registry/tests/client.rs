//! The client against a registry that misbehaves: authentication, redirects, retries, resumption, and an error for each
//! way to fail.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod fake;

use std::io::Read;
use std::time::{Duration, Instant};

use cofferdam_registry::{
    Client, ClientOptions, Credential, CredentialSource, Descriptor, Digest, Error, ImageRef, Kind,
    OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform, RetryPolicy, Secret,
};
use fake::{Auth, FakeRegistry, FaultKind};

fn client(credentials: CredentialSource) -> Client {
    let retry = RetryPolicy { first_delay: Duration::from_millis(5), ..RetryPolicy::default() };
    Client::new(ClientOptions { credentials, retry, ..ClientOptions::default() }).unwrap()
}

fn anonymous() -> Client {
    client(CredentialSource::Anonymous)
}

fn user(name: &str, password: &str) -> CredentialSource {
    CredentialSource::Given(Credential::Basic { user: name.into(), password: Secret::new(password) })
}

fn platform() -> Platform {
    Platform::parse("linux/amd64").unwrap()
}

/// A manifest with one blob of a megabyte that serves as its config.
fn image(registry: &FakeRegistry) -> (ImageRef, Descriptor, Vec<u8>) {
    let blob: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let digest = registry.add_blob(&blob);
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":{}}},"layers":[]}}"#,
        blob.len()
    );
    registry.add_manifest("a/b", "v1", OCI_MANIFEST, json.as_bytes());
    let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
    (reference, Descriptor::new(OCI_CONFIG, digest, blob.len() as u64), blob)
}

fn read(client: &Client, reference: &ImageRef, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match client.open(reference, blob).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast::<Error>().unwrap()),
    }
}

#[test]
fn every_form_of_authentication_works_with_one_token_for_all() {
    let bearer = |known: bool, post| Auth::Bearer {
        user: known.then(|| ("u".to_owned(), "p".to_owned())),
        post,
        uses: usize::MAX,
    };
    let cases = [
        ("anonymous token", bearer(false, None), CredentialSource::Anonymous, "GET"),
        ("password by POST", bearer(true, None), user("u", "p"), "POST"),
        ("GET after POST 404", bearer(true, Some(404)), user("u", "p"), "GET"),
        ("GET after POST 405", bearer(true, Some(405)), user("u", "p"), "GET"),
        ("GET after POST 401", bearer(true, Some(401)), user("u", "p"), "GET"),
        ("GET after POST 400", bearer(true, Some(400)), user("u", "p"), "GET"),
        ("basic", Auth::Basic("u".into(), "p".into()), user("u", "p"), ""),
    ];
    for (name, auth, credentials, method) in cases {
        let registry = FakeRegistry::start();
        let (reference, blob, bytes) = image(&registry);
        registry.set_auth(auth);
        let client = client(credentials);
        let resolved =
            client.resolve(&reference, &platform()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(resolved.manifest.config.digest, blob.digest);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(read(&client, &reference, &blob).unwrap(), bytes, "{name}"));
            }
        });
        let tokens = registry.seen("/token");
        if method.is_empty() {
            assert!(tokens.is_empty());
            continue;
        }
        let last = tokens.last().unwrap();
        assert_eq!(last.method, method, "{name}");
        assert_eq!(tokens.iter().filter(|seen| seen.method == method).count(), 1, "{name}");
        let asked = if method == "GET" { &last.path } else { &last.body };
        assert!(
            asked.contains("scope=repository%3Aa%2Fb%3Apull"),
            "only what is needed is asked for: {asked}"
        );
        assert!(asked.contains("service=fake"), "{asked}");
    }
}

#[test]
fn a_token_that_expires_is_fetched_again_once() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 1 });
    let client = anonymous();
    client.resolve(&reference, &platform()).unwrap();
    assert_eq!(read(&client, &reference, &blob).unwrap(), bytes);
    assert_eq!(registry.seen("/token").len(), 2);
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 0 });
    let error = client.resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
}

#[test]
fn wrong_or_missing_credentials_are_refused_without_showing_them() {
    let basic = Auth::Basic("u".into(), "p".into());
    let token = Auth::Bearer { user: Some(("u".into(), "p".into())), post: None, uses: 9 };
    for (auth, credentials, expected) in [
        (basic.clone(), CredentialSource::Anonymous, "log in first"),
        (basic, user("u", "hunter2"), "password of user u was not accepted"),
        (token.clone(), CredentialSource::Anonymous, "log in first"),
        (token, user("u", "hunter2"), "password of user u was not accepted"),
    ] {
        let registry = FakeRegistry::start();
        let (reference, ..) = image(&registry);
        registry.set_auth(auth);
        let error = client(credentials).resolve(&reference, &platform()).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn credentials_come_from_an_auth_file_and_from_helpers() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Basic("u".into(), "p".into()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auth.json");
    let host = reference.registry();
    std::fs::write(
        &path,
        format!(r#"{{"auths":{{"{host}":{{"auth":"bm86bm8="}},"{host}/a":{{"auth":"dTpw"}}}}}}"#),
    )
    .unwrap();
    client(CredentialSource::File(path.clone())).resolve(&reference, &platform()).unwrap();

    std::fs::write(&path, r#"{"auths": {"x": {"auth": "hunter2"#).unwrap();
    let error = client(CredentialSource::File(path.clone())).resolve(&reference, &platform()).unwrap_err();
    assert!(
        error.to_string().contains("invalid JSON at line 1") && !error.to_string().contains("hunter2"),
        "{error}"
    );

    std::fs::write(&path, format!(r#"{{"credHelpers":{{"{host}":"no-such-helper"}}}}"#)).unwrap();
    let error = client(CredentialSource::File(path)).resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::CredentialHelper { .. }), "{error}");
}

#[test]
fn each_way_to_fail_has_its_own_error() {
    let registry = FakeRegistry::start();
    let (reference, blob, _) = image(&registry);
    let client = anonymous();
    let resolve = |name: &str| client.resolve(&ImageRef::parse(name).unwrap(), &platform()).unwrap_err();

    let error = resolve("no-such-host.invalid/x");
    assert!(matches!(&error, Error::UnknownHost { host, .. } if host == "no-such-host.invalid"), "{error}");
    let error = resolve("127.0.0.1:1/x");
    assert!(matches!(&error, Error::Connect { .. }), "{error}");
    let error = resolve(&registry.name("no/such"));
    assert!(
        matches!(&error, Error::UnknownRepository { repository, .. } if repository == "no/such"),
        "{error}"
    );
    let error = resolve(&registry.name("a/b:v9"));
    assert!(error.to_string().contains("has no v9; it has v1"), "{error}");
    let missing = Digest::of(b"missing");
    let error = resolve(&registry.name(&format!("a/b@{missing}")));
    assert!(matches!(&error, Error::UnknownTag { .. }), "{error}");

    // The registry serves other bytes than the digest that pins them.
    registry
        .state
        .lock()
        .unwrap()
        .manifests
        .insert(format!("a/b:{missing}"), (OCI_MANIFEST.into(), b"{}".into()));
    let error = resolve(&registry.name(&format!("a/b@{missing}")));
    assert!(matches!(&error, Error::DigestMismatch { .. }), "{error}");

    let entry = format!(
        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{missing}","size":2,"platform":{{"os":"linux","architecture":"s390x"}}}}"#
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    registry.add_manifest("a/b", "foreign", OCI_INDEX, index.as_bytes());
    let error = resolve(&registry.name("a/b:foreign"));
    assert!(error.to_string().contains("for linux/amd64; available: linux/s390x"), "{error}");

    let cases: [(&str, &str, &str); 3] = [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#, "schema 1"),
        (
            OCI_MANIFEST,
            r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#,
            "not a runnable image",
        ),
        (OCI_MANIFEST, "nonsense", "invalid manifest"),
    ];
    for (media_type, json, expected) in cases {
        registry.add_manifest("a/b", "odd", media_type, json.as_bytes());
        let error = resolve(&registry.name("a/b:odd"));
        assert!(error.to_string().contains(expected), "{error}");
    }

    let lost = Descriptor::new(OCI_CONFIG, missing, 9);
    assert!(matches!(client.fetch(&reference, &lost, 100), Err(Error::UnknownBlob { .. })));
    assert!(matches!(client.fetch(&reference, &blob, 100), Err(Error::TooLarge { .. })));
    let longer = Descriptor::new(OCI_CONFIG, blob.digest.clone(), blob.size - 1);
    assert!(matches!(client.fetch(&reference, &longer, 1 << 30), Err(Error::SizeMismatch { .. })));
    assert!(matches!(read(&client, &reference, &longer), Err(Error::SizeMismatch { .. })));
    registry.fault("/blobs/", 1, FaultKind::Corrupt);
    assert!(matches!(client.fetch(&reference, &blob, 1 << 30), Err(Error::DigestMismatch { .. })));
    registry.fault(
        "/manifests/",
        1,
        FaultKind::Status(403, vec![], r#"{"errors":[{"code":"DENIED","message":"no"}]}"#.into()),
    );
    assert!(matches!(resolve(&registry.name("a/b:v1")), Error::Denied { reason, .. } if reason == "no"));
}

#[test]
fn nested_indexes_work_and_endless_ones_end() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let mut digest = anonymous().resolve(&reference, &platform()).unwrap().digest;
    let mut size = registry.state.lock().unwrap().manifests[&format!("a/b:{digest}")].1.len();
    let mut media_type = OCI_MANIFEST;
    for depth in 1..7 {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}]}}"#
        );
        digest = registry.add_manifest("a/b", "nested", OCI_INDEX, json.as_bytes());
        (size, media_type) = (json.len(), OCI_INDEX);
        let name = ImageRef::parse(&registry.name("a/b:nested")).unwrap();
        let result = anonymous().resolve(&name, &platform());
        assert_eq!(result.is_ok(), depth <= 4, "depth {depth}");
    }
}

#[test]
fn broken_transfers_are_resumed() {
    let cases: [(&str, &[FaultKind]); 4] = [
        (
            "cut again and again",
            &[FaultKind::CutAfter(100_000), FaultKind::CutAfter(200_000), FaultKind::CutAfter(1)],
        ),
        ("a server that ignores Range", &[FaultKind::CutAfter(300_000), FaultKind::IgnoreRange]),
        (
            "unavailable in between",
            &[FaultKind::CutAfter(300_000), FaultKind::Status(503, vec![], String::new())],
        ),
        ("headers without a body", &[FaultKind::CutAfter(0), FaultKind::CutAfter(0)]),
    ];
    for (name, faults) in cases {
        let registry = FakeRegistry::start();
        let (reference, blob, bytes) = image(&registry);
        for fault in faults {
            registry.fault("/blobs/", 1, fault.clone());
        }
        assert_eq!(
            read(&anonymous(), &reference, &blob).unwrap_or_else(|error| panic!("{name}: {error}")),
            bytes,
            "{name}"
        );
        let served = registry.state.lock().unwrap().served_blob_bytes;
        let again = if name.contains("ignores") { 300_000 } else { 0 };
        assert!(served <= bytes.len() + again, "{name}: {served} bytes served");
    }
    let registry = FakeRegistry::start();
    let (reference, blob, _) = image(&registry);
    registry.fault("/blobs/", 1, FaultKind::CutAfter(500));
    registry.fault("/blobs/", 1, FaultKind::WrongRange);
    let error = read(&anonymous(), &reference, &blob).unwrap_err();
    assert!(error.to_string().contains("Content-Range"), "{error}");
    registry.fault("/blobs/", usize::MAX, FaultKind::CutAfter(0));
    let error = read(&anonymous(), &reference, &blob).unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
}

#[test]
fn a_busy_registry_is_asked_again_later_and_not_forever() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    let busy =
        |after: &str| FaultKind::Status(429, vec![("Retry-After".into(), after.into())], String::new());
    registry.fault("/manifests/", 1, busy("1"));
    let start = Instant::now();
    anonymous().resolve(&reference, &platform()).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    registry.fault("/blobs/", 3, FaultKind::Status(503, vec![], String::new()));
    assert_eq!(read(&anonymous(), &reference, &blob).unwrap(), bytes);
    registry.fault("/manifests/", usize::MAX, busy("0"));
    let error = anonymous().resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::RateLimited { attempts: 5, .. }), "{error}");
}

#[test]
fn credentials_stay_with_their_origin_when_a_redirect_leaves_it() {
    let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    let (target, ..) = image(&other);
    registry.set_auth(Auth::Basic("u".into(), "p".into()));
    let location = format!("http://{}/v2/a/b/blobs/{}?X-Signature=hunter2", target.registry(), blob.digest);
    let client = client(user("u", "p"));
    client.resolve(&reference, &platform()).unwrap();
    let redirect = |to: &str| FaultKind::Status(307, vec![("Location".into(), to.into())], String::new());
    registry.fault("/blobs/", 1, redirect(&location));
    // The other side does not know the path with a query; what counts is what it was sent.
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let seen = other.seen("/blobs/");
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization") && !seen[0].headers.contains_key("cookie"));

    registry.fault("/blobs/", 1, redirect(location.split('?').next().unwrap()));
    assert_eq!(read(&client, &reference, &blob).unwrap(), bytes);

    registry.fault("/blobs/", usize::MAX, redirect(&format!("/v2/a/b/blobs/{}", blob.digest)));
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
}
