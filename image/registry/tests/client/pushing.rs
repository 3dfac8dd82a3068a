//! Pushing, and what refers to what was pushed.

use std::sync::Arc;

use cofferdam_registry::{BlobSource, Digest, OCI_INDEX, Pushed};

use super::fake::{Auth, FaultKind};
use super::*;

fn source(bytes: &[u8], mount_from: Option<&str>) -> BlobSource {
    let digest = Digest::of(bytes);
    let bytes: Arc<[u8]> = bytes.into();
    let size = bytes.len() as u64;
    let open = Arc::new(move || {
        let reader: Box<dyn Read> = Box::new(std::io::Cursor::new(Arc::clone(&bytes)));
        Ok(reader)
    });
    BlobSource { digest, size, open, mount_from: mount_from.map(str::to_owned) }
}

#[test]
fn a23_blobs_are_sent_once_and_mounted_where_they_can_be() {
    let registry = FakeRegistry::start();
    registry.state.lock().unwrap().scoped = true;
    let user_of = Some(("u".to_owned(), "hunter2".to_owned()));
    registry.set_auth(Auth::Bearer { user: user_of, post: None, uses: usize::MAX });
    let client = client(user("u", "hunter2"));
    let name = |text: &str| ImageRef::parse(&registry.name(text)).unwrap();
    let layer = bytes(3_000_000);
    assert_eq!(client.push_blob(&name("a/b"), &source(&layer, None)).unwrap(), Pushed::Sent);
    assert_eq!(client.push_blob(&name("a/b"), &source(&layer, None)).unwrap(), Pushed::Existed);
    assert_eq!(client.push_blob(&name("c"), &source(&layer, Some("a/b"))).unwrap(), Pushed::Mounted);
    assert_eq!(client.push_blob(&name("d"), &source(&layer, Some("no/such"))).unwrap(), Pushed::Sent);
    let scopes: Vec<String> = registry.seen("/token").iter().map(|seen| seen.body.clone()).collect();
    assert!(scopes[0].contains("scope=repository%3Aa%2Fb%3Apull%2Cpush"), "{scopes:?}");
    assert!(
        scopes.iter().any(|scope| scope.contains("repository%3Aa%2Fb%3Apull&")
            || scope.contains("%20repository%3Aa%2Fb%3Apull")),
        "{scopes:?}"
    );

    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":3000000}},"layers":[]}}"#,
        Digest::of(&layer)
    );
    let digest = client.push_manifest(&name("a/b:v7"), OCI_MANIFEST, manifest.as_bytes()).unwrap();
    let resolved = client.resolve(&name("a/b:v7"), &platform()).unwrap();
    assert_eq!((resolved.digest, &resolved.bytes[..]), (digest, manifest.as_bytes()));
    let blob = Descriptor::new(OCI_CONFIG, Digest::of(&layer), layer.len() as u64);
    assert!(read(&client, &name("c"), &blob).unwrap() == layer);
}

#[test]
fn a23_a_push_that_fails_says_why() {
    let registry = FakeRegistry::start();
    let name = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
    let client = anonymous();
    let denied = r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#;
    registry.fault("/uploads/", 1, FaultKind::Status(403, vec![], denied.into()));
    let error = client.push_blob(&name, &source(b"x", None)).unwrap_err();
    assert!(matches!(&error, Error::Denied { reason, .. } if reason.contains("read only")), "{error}");
    // A registry that does not answer whether it has a blob is sent it.
    registry.fault("/blobs/sha256:", 1, FaultKind::Status(405, vec![], String::new()));
    assert_eq!(client.push_blob(&name, &source(b"unasked", None)).unwrap(), Pushed::Sent);
    // Transient refusals are tried again, with the body from its beginning.
    registry.fault("session", 2, FaultKind::Status(503, vec![], String::new()));
    assert_eq!(client.push_blob(&name, &source(&bytes(600_000), None)).unwrap(), Pushed::Sent);
    // The session's URL may hold a secret.
    registry.fault("session", 1, FaultKind::Status(400, vec![], String::new()));
    let error = client.push_blob(&name, &source(b"y", None)).unwrap_err();
    assert!(!shown(&error).contains("s3cret"), "{error}");
    let mut short = source(b"zz", None);
    short.size = 3;
    assert!(client.push_blob(&name, &short).is_err());
    let pinned = name.at(Digest::of(b"other"));
    assert!(matches!(client.push_manifest(&pinned, OCI_MANIFEST, b"{}"), Err(Error::DigestMismatch { .. })));
}

#[test]
fn a20_referrers_are_found_by_the_api_and_by_tag() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let subject = Digest::of(b"subject");
    let entry = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{},"artifactType":"{kind}"}}"#,
            bytes.len()
        )
    };
    let entries = [entry("signature", b"one"), entry("sbom", b"two"), entry("signature", b"three")].join(",");
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#);
    let client = anonymous();
    let list = |kind: Option<&str>| client.referrers(&reference, &subject, kind).unwrap();
    assert!(list(None).is_empty(), "neither the API nor the tag");

    registry.add_manifest("a/b", &format!("sha256-{}", subject.hex()), OCI_INDEX, index.as_bytes());
    let by_tag = (list(None), list(Some("signature")));
    assert_eq!((by_tag.0.len(), by_tag.1.len()), (3, 2));

    {
        let mut state = registry.state.lock().unwrap();
        state.has_referrers = true;
        state.referrers.insert(subject.to_string(), index.into_bytes());
    }
    assert_eq!((list(None), list(Some("signature"))), by_tag);

    // A list without end is read to its limit, page after page or all at once.
    registry.fault("/referrers/", 1, FaultKind::Endless);
    let error = client.referrers(&reference, &subject, None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    registry.forget();
    let next = format!("</v2/a/b/referrers/{subject}?last=1>; rel=\"next\"");
    registry.fault("/referrers/", usize::MAX, FaultKind::Headers(vec![("Link".into(), next)]));
    list(None);
    assert_eq!(registry.seen("/referrers/").len(), 8);
}
