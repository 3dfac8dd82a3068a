//! An error for each way to fail, and nested indexes.

use cofferdam_registry::{Digest, OCI_INDEX};

use super::fake::FaultKind;
use super::*;

#[test]
fn a26_d1_d2_each_way_to_fail_has_its_own_error() {
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

    let cases: [(&str, &str, &str); 2] = [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#, "schema 1"),
        (OCI_MANIFEST, "nonsense", "invalid manifest"),
    ];
    for (media_type, json, expected) in cases {
        registry.add_manifest("a/b", "odd", media_type, json.as_bytes());
        let error = resolve(&registry.name("a/b:odd"));
        assert!(error.to_string().contains(expected), "{error}");
    }

    // An artifact is none: whoever wants an image refuses it.
    let artifact = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    registry.add_manifest("a/b", "artifact", OCI_MANIFEST, artifact.as_bytes());
    let name = ImageRef::parse(&registry.name("a/b:artifact")).unwrap();
    let resolved = client.resolve(&name, &platform()).unwrap();
    assert_eq!(resolved.manifest.artifact.as_deref(), Some("application/vnd.oci.empty.v1+json"));

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
fn a3_d10_nested_indexes_work_and_endless_ones_end() {
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
fn a1_every_tag_is_found_however_few_a_page_lists() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let bytes = registry.state.lock().unwrap().manifests["a/b:v1"].1.clone();
    for tag in ["v2", "v3", "v4", "v5"] {
        registry.add_manifest("a/b", tag, OCI_MANIFEST, &bytes);
    }
    for page in [None, Some(1), Some(2), Some(5), Some(9)] {
        registry.state.lock().unwrap().tag_page = page;
        let tags = anonymous().tags(&reference).unwrap();
        let tags: Vec<_> = tags.iter().map(|name| name.tag().unwrap()).collect();
        assert_eq!(tags, ["v1", "v2", "v3", "v4", "v5"], "{page:?}");
    }
    let unknown = ImageRef::parse(&registry.name("no/such")).unwrap();
    assert!(matches!(anonymous().tags(&unknown), Err(Error::UnknownRepository { .. })));
}
