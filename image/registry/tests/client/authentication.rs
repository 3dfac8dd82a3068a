//! Tokens, passwords, and where they are not sent.

use cofferdam_registry::{Client, ClientOptions, Credential, CredentialSource, Error, Kind, Secret};

use super::fake::{Auth, FakeRegistry, FaultKind};
use super::*;

#[test]
fn a5_a6_every_form_of_authentication_works_with_one_token_for_all() {
    let bearer = |known: bool, post| Auth::Bearer {
        user: known.then(|| ("u".to_owned(), "p".to_owned())),
        post,
        uses: usize::MAX,
    };
    let identity = CredentialSource::Given(Credential::IdentityToken(Secret::new("refresh")));
    let ready = CredentialSource::Given(Credential::RegistryToken(Secret::new("ready")));
    let cases = [
        ("anonymous token", bearer(false, None), CredentialSource::Anonymous, "GET"),
        ("password by POST", bearer(true, None), user("u", "p"), "POST"),
        ("GET after POST 404", bearer(true, Some(404)), user("u", "p"), "GET"),
        ("GET after POST 405", bearer(true, Some(405)), user("u", "p"), "GET"),
        ("GET after POST 401", bearer(true, Some(401)), user("u", "p"), "GET"),
        ("GET after POST 400", bearer(true, Some(400)), user("u", "p"), "GET"),
        ("identity token", Auth::Identity("refresh".into()), identity, "POST"),
        ("registry token", Auth::Registry("ready".into()), ready, ""),
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
            "n5: only what is needed is asked for: {asked}"
        );
        assert!(asked.contains("service=fake"), "{asked}");
    }
}

#[test]
fn a6_a_token_that_expires_is_fetched_again_once_by_all_who_need_it() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    // Good for the manifest, then refused in the middle of everything.
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 1 });
    let client = anonymous();
    client.resolve(&reference, &platform()).unwrap();
    assert_eq!(registry.seen("/token").len(), 1);
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: usize::MAX });
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert_eq!(read(&client, &reference, &blob).unwrap(), bytes));
        }
    });
    assert_eq!(registry.seen("/token").len(), 2, "six readers, one new token");
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 0 });
    let fresh = anonymous();
    let error = fresh.resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
}

#[test]
fn a30_wrong_or_missing_credentials_are_refused_without_showing_them() {
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
        let text = shown(&error);
        assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a7_a_file_names_credentials_by_host_and_namespace() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Basic("u".into(), "p".into()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auth.json");
    let host = reference.registry();
    // The host's own is wrong, the namespace's is right.
    std::fs::write(
        &path,
        format!(r#"{{"auths":{{"{host}":{{"auth":"bm86bm8="}},"{host}/a":{{"auth":"dTpw"}}}}}}"#),
    )
    .unwrap();
    client(CredentialSource::File(path.clone())).resolve(&reference, &platform()).unwrap();

    std::fs::write(&path, r#"{"auths": {"x": {"auth": "hunter2"#).unwrap();
    let error = client(CredentialSource::File(path.clone())).resolve(&reference, &platform()).unwrap_err();
    let text = shown(&error);
    assert!(text.contains("invalid JSON at line 1") && !text.contains("hunter2"), "{text}");

    std::fs::write(&path, format!(r#"{{"credHelpers":{{"{host}":"no-such-helper"}}}}"#)).unwrap();
    let error = client(CredentialSource::File(path)).resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::CredentialHelper { .. }), "{error}");
}

#[test]
fn a17_n2_credentials_stay_with_their_origin_when_a_redirect_leaves_it() {
    let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, blob, bytes) = image(&registry);
    let (target, ..) = image(&other);
    registry.set_auth(Auth::Basic("u".into(), "p".into()));
    let location = format!("http://{}/v2/a/b/blobs/{}?X-Signature=hunter2", target.registry(), blob.digest);
    let client = client(user("u", "p"));
    client.resolve(&reference, &platform()).unwrap();
    let redirect = |to: &str| FaultKind::Status(307, vec![("Location".into(), to.into())], String::new());
    registry.fault("/blobs/", 1, redirect(&location));
    other.fault("X-Signature", 1, FaultKind::Status(403, vec![], "expired".into()));
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(!shown(&error).contains("hunter2"), "{error}");
    registry.fault("/blobs/", 1, redirect(&location));
    assert_eq!(read(&client, &reference, &blob).unwrap(), bytes);
    let seen = other.seen("/blobs/");
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert!(!request.headers.contains_key("authorization") && !request.headers.contains_key("cookie"));
    }
    // The other origin's own 401 is an answer, not a question.
    registry.fault("/blobs/", 1, redirect(&location));
    other.set_auth(Auth::Basic("u".into(), "p".into()));
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(matches!(error, Error::Status { status: 401, .. }), "{error}");
    assert!(other.seen("/blobs/").iter().all(|seen| !seen.headers.contains_key("authorization")));

    registry.fault("/blobs/", usize::MAX, redirect(&format!("/v2/a/b/blobs/{}", blob.digest)));
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
}

#[test]
fn a18_n1_foreign_layers_come_from_allowed_hosts_alone_and_without_credentials() {
    let (registry, attacker) = (FakeRegistry::start(), FakeRegistry::start());
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Basic("u".into(), "hunter2".into()));
    let layer = bytes(300_000);
    let digest = attacker.add_blob(&layer);
    let mut descriptor =
        Descriptor::new("application/vnd.oci.image.layer.nondistributable.v1.tar", digest.clone(), 300_000);
    descriptor.urls = vec![format!("http://{}/v2/x/blobs/{digest}", attacker.address)];
    let open = |foreign_hosts: &[&str]| {
        let foreign_hosts = foreign_hosts.iter().map(|host| (*host).to_owned()).collect();
        let options = ClientOptions { foreign_hosts, credentials: user("u", "hunter2"), ..options() };
        read(&Client::new(options).unwrap(), &reference, &descriptor)
    };
    let error = open(&[]).unwrap_err();
    assert!(matches!(&error, Error::Foreign { hosts, .. } if hosts == &["127.0.0.1"]), "{error}");
    assert!(attacker.seen("").is_empty(), "nothing was asked of a host that is not allowed");

    assert_eq!(open(&["127.0.0.1"]).unwrap(), layer);
    assert_eq!(open(&[&attacker.address.to_string()]).unwrap(), layer);
    assert!(matches!(open(&["127.0.0.1:1"]), Err(Error::Foreign { .. })), "another port is another host");
    for auth in [Auth::Basic("u".into(), "hunter2".into()), Auth::Bearer { user: None, post: None, uses: 9 }]
    {
        attacker.set_auth(auth);
        let error = open(&["127.0.0.1"]).unwrap_err();
        assert!(matches!(error, Error::Status { status: 401, .. }), "{error}");
    }
    for seen in attacker.seen("") {
        assert!(!seen.path.contains("token") && !seen.headers.contains_key("authorization"), "{seen:?}");
    }
}

#[test]
fn n4_a_token_server_must_be_as_safe_as_its_registry() {
    for (realm, expected) in [
        ("http://tokens.example/token", "does not use TLS"),
        ("https://user:hunter2@tokens.example/token", "user information"),
        ("ftp://tokens.example/token", "not an http or https URL"),
        ("no url at all", "not a URL"),
    ] {
        let registry = FakeRegistry::start();
        let (reference, ..) = image(&registry);
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
        let challenge = vec![("WWW-Authenticate".to_owned(), challenge)];
        registry.fault("/manifests/", usize::MAX, FaultKind::Status(401, challenge, String::new()));
        let error = client(user("u", "hunter2")).resolve(&reference, &platform()).unwrap_err();
        let text = shown(&error);
        assert!(text.contains(expected) && !text.contains("hunter2"), "{realm}: {text}");
    }
    // A token that is too large to be one.
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 1 });
    registry.fault("/token", 1, FaultKind::Endless);
    let error = anonymous().resolve(&reference, &platform()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Bearer { user: None, post: None, uses: 1 });
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(900_000));
    registry.fault("/token", usize::MAX, FaultKind::Status(200, vec![], huge));
    assert!(anonymous().resolve(&reference, &platform()).is_err(), "no server takes such a header");
}

#[test]
fn a5_a_token_server_that_is_busy_is_asked_again_and_an_empty_token_is_none() {
    for status in [429, 500, 503] {
        let registry = FakeRegistry::start();
        let (reference, ..) = image(&registry);
        registry.set_auth(Auth::Bearer { user: None, post: None, uses: 100 });
        registry.fault("/token", 2, FaultKind::Status(status, vec![], String::new()));
        anonymous().resolve(&reference, &platform()).unwrap_or_else(|error| panic!("{status}: {error}"));
        assert_eq!(registry.seen("/token").len(), 3, "{status}");
    }
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Registry("good".into()));
    let challenge = format!("Bearer realm=\"http://{}\"", registry.name("token"));
    let challenge = vec![("WWW-Authenticate".to_owned(), challenge)];
    registry.fault("/manifests/", 1, FaultKind::Status(401, challenge, String::new()));
    let both = r#"{"token":"","access_token":"good"}"#.to_owned();
    registry.fault("/token", 1, FaultKind::Status(200, vec![], both));
    anonymous().resolve(&reference, &platform()).unwrap();
}
