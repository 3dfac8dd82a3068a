//! Registries that lie: what they say is bounded, compared with its digest, and refused by name.

use cofferdam_registry::{Digest, OCI_INDEX};

use super::fake::FaultKind;
use super::*;

fn entry(media_type: &str, platform: &str, bytes: &[u8]) -> String {
    let parts: Vec<&str> = platform.split('/').collect();
    let variant = parts.get(2).map(|variant| format!(r#","variant":"{variant}""#)).unwrap_or_default();
    let (digest, size) = (Digest::of(bytes), bytes.len());
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"platform":{{"os":"{}","architecture":"{}"{variant}}}}}"#,
        parts[0], parts[1]
    )
}

fn manifest(marker: &str, config_type: &str) -> String {
    let config = Digest::of(marker.as_bytes());
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{config}","size":{}}},"layers":[]}}"#,
        marker.len()
    )
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[test]
fn a2_the_best_variant_that_the_host_can_run_is_taken() {
    let registry = FakeRegistry::start();
    let offer = |platforms: &[&str]| {
        let mut entries = Vec::new();
        for platform in platforms {
            let text = manifest(platform, OCI_CONFIG);
            registry.add_manifest("a/b", "x", OCI_MANIFEST, text.as_bytes());
            entries.push(entry(OCI_MANIFEST, platform, text.as_bytes()));
        }
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        registry.add_manifest("a/b", "v1", OCI_INDEX, index.as_bytes());
    };
    let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
    let chosen = |host: &str| {
        let resolved = anonymous().resolve(&reference, &Platform::parse(host).unwrap())?;
        Ok::<Digest, Error>(resolved.manifest.config.digest)
    };
    let mut amd64 = vec!["linux/amd64", "linux/amd64/v2", "linux/amd64/v4", "linux/amd64/v3", "linux/arm64"];
    for expected in ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"] {
        offer(&amd64);
        assert_eq!(chosen("linux/amd64/v3").unwrap(), Digest::of(expected.as_bytes()), "{expected}");
        amd64.retain(|platform| *platform != expected);
    }
    offer(&amd64);
    let error = chosen("linux/amd64/v3").unwrap_err();
    assert!(
        error.to_string().contains("available: linux/amd64/v4, linux/arm64"),
        "a miss lists what there is: {error}"
    );
    offer(&[]);
    let error = chosen("linux/amd64").unwrap_err();
    assert!(error.to_string().ends_with("available: none"), "{error}");
    offer(&["linux/arm/v6", "linux/arm/v5", "unknown/unknown"]);
    assert_eq!(chosen("linux/arm/v7").unwrap(), Digest::of(b"linux/arm/v6"));
    assert!(!chosen("linux/s390x").unwrap_err().to_string().contains("unknown/unknown"));
}

#[test]
fn a4_media_types_of_both_families_mix_and_schema_1_is_named() {
    let registry = FakeRegistry::start();
    let docker = manifest("docker", DOCKER_CONFIG);
    let oci = manifest("oci", OCI_CONFIG);
    registry.add_manifest("a/b", "x", DOCKER_MANIFEST, docker.as_bytes());
    registry.add_manifest("a/b", "x", OCI_MANIFEST, oci.as_bytes());
    let entries = [
        entry(DOCKER_MANIFEST, "linux/amd64", docker.as_bytes()),
        entry(OCI_MANIFEST, "linux/arm64", oci.as_bytes()),
    ];
    for media_type in [OCI_INDEX, DOCKER_LIST] {
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{}]}}"#,
            entries.join(",")
        );
        registry.add_manifest("a/b", "v1", media_type, index.as_bytes());
        let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
        for (host, marker) in [("linux/amd64", "docker"), ("linux/arm64", "oci")] {
            let resolved = anonymous().resolve(&reference, &Platform::parse(host).unwrap()).unwrap();
            assert_eq!(resolved.manifest.config.digest, Digest::of(marker.as_bytes()));
            assert_ne!(resolved.target, resolved.digest);
        }
    }
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.add_manifest("a/b", "v0", old, br#"{"schemaVersion":1}"#);
    let reference = ImageRef::parse(&registry.name("a/b:v0")).unwrap();
    let error = anonymous().resolve(&reference, &platform()).unwrap_err().to_string();
    assert!(error.contains("schema 1") && error.contains(old), "{error}");
}

#[test]
fn a26_d5_a_digest_that_is_none_causes_no_request() {
    let registry = FakeRegistry::start();
    let upper = "A".repeat(64);
    let short = "a".repeat(63);
    let odd = ["sha256:../../../../etc/passwd", "sha1:aaaa", "md5:aaaa", "sha256:", ""];
    let all =
        odd.map(str::to_owned).into_iter().chain([format!("sha256:{upper}"), format!("sha256:{short}")]);
    for digest in all {
        assert!(ImageRef::parse(&registry.name(&format!("a/b@{digest}"))).is_err(), "{digest}");
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":2}},"layers":[]}}"#
        );
        registry.add_manifest("a/b", "v1", OCI_MANIFEST, json.as_bytes());
        let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
        let error = anonymous().resolve(&reference, &platform()).unwrap_err();
        assert!(matches!(error, Error::InvalidManifest { .. }), "{digest}: {error}");
    }
    assert!(registry.seen("/blobs/").is_empty() && registry.seen("passwd").is_empty());
}

#[test]
fn a26_d6_a_document_is_what_it_was_said_to_be() {
    let registry = FakeRegistry::start();
    let inner = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    registry.add_manifest("a/b", "x", OCI_INDEX, inner.as_bytes());
    // The index says that it is a manifest, which a mirror then serves as an index.
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entry(OCI_MANIFEST, "linux/amd64", inner.as_bytes())
    );
    registry.add_manifest("a/b", "v1", OCI_INDEX, index.as_bytes());
    let resolve = |name: &str| {
        anonymous().resolve(&ImageRef::parse(&registry.name(name)).unwrap(), &platform()).unwrap_err()
    };
    assert!(resolve("a/b:v1").to_string().contains("served as"));
    let both = manifest("x", OCI_CONFIG).replace("\"layers\":[]", "\"layers\":[],\"manifests\":[]");
    registry.add_manifest("a/b", "v2", OCI_MANIFEST, both.as_bytes());
    assert!(resolve("a/b:v2").to_string().contains("both a manifest and an index"));
    registry.add_manifest("a/b", "v3", OCI_INDEX, manifest("x", OCI_CONFIG).as_bytes());
    assert!(resolve("a/b:v3").to_string().contains("calls itself"));
}

#[test]
fn a26_d8_n10_nothing_is_read_without_end() {
    let registry = FakeRegistry::start();
    let (reference, blob, _) = image(&registry);
    let client = anonymous();
    let resolve = |tag: &str| {
        let name = ImageRef::parse(&registry.name(&format!("a/b:{tag}"))).unwrap();
        client.resolve(&name, &platform()).unwrap_err()
    };
    registry.fault("/manifests/", 1, FaultKind::Endless);
    assert!(matches!(resolve("v1"), Error::TooLarge { .. }));
    // An error's body too, and the list of tags that a missing tag asks for.
    registry.fault("/manifests/none", 1, FaultKind::Endless);
    registry.fault("/tags/", 1, FaultKind::Endless);
    assert!(matches!(resolve("none"), Error::UnknownTag { .. }));
    let huge = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(5 << 20));
    registry.add_manifest("a/b", "huge", OCI_MANIFEST, huge.as_bytes());
    assert!(matches!(resolve("huge"), Error::TooLarge { .. }));
    registry.fault("/blobs/", 1, FaultKind::Endless);
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "d1: {error}");
    let announced = Descriptor::new(OCI_CONFIG, blob.digest.clone(), 100 << 20);
    assert!(matches!(client.fetch(&reference, &announced, 4 << 20), Err(Error::TooLarge { .. })));
    let many = vec![entry(OCI_MANIFEST, "linux/amd64", b"x"); 1001].join(",");
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#);
    registry.add_manifest("a/b", "many", OCI_INDEX, index.as_bytes());
    assert!(resolve("many").to_string().contains("more than 1000"), "d10");
    let headers = (0..500).map(|n| (format!("X-Header-{n}"), "x".repeat(200))).collect();
    registry.fault("/manifests/", usize::MAX, FaultKind::Headers(headers));
    assert!(matches!(resolve("v1"), Error::Transfer { .. }));
    registry.clear_faults();
    let encoded = vec![("Content-Encoding".to_owned(), "gzip".to_owned())];
    registry.fault("/manifests/", 1, FaultKind::Headers(encoded));
    assert!(resolve("v1").to_string().contains("Content-Encoding"));
}

#[test]
fn a26_d9_the_digest_is_of_the_bytes_whatever_a_header_says() {
    let registry = FakeRegistry::start();
    let text = manifest("x", OCI_CONFIG);
    let lie = Digest::of(b"lie").to_string();
    let headers = vec![
        ("Content-Type".to_owned(), OCI_MANIFEST.to_owned()),
        ("Docker-Content-Digest".to_owned(), lie.clone()),
    ];
    registry.fault("/manifests/", usize::MAX, FaultKind::Status(200, headers, text.clone()));
    let name = |rest: &str| ImageRef::parse(&registry.name(rest)).unwrap();
    let resolved = anonymous().resolve(&name("a/b:v1"), &platform()).unwrap();
    assert_eq!(resolved.digest, Digest::of(text.as_bytes()), "a1");
    let error = anonymous().resolve(&name(&format!("a/b:v1@{lie}")), &platform()).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[test]
fn a1_tag_and_digest_together_mean_the_digest() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let by_tag = anonymous().resolve(&reference, &platform()).unwrap();
    registry.forget();
    let both = ImageRef::parse(&registry.name(&format!("a/b:moved@{}", by_tag.digest))).unwrap();
    let resolved = anonymous().resolve(&both, &platform()).unwrap();
    assert_eq!(resolved.digest, by_tag.digest);
    assert!(registry.seen("moved").is_empty());
}

/// The platforms of entries that name none are in the images' configurations, and in the indexes that they lead to.
#[test]
fn a2_a3_entries_without_a_platform_are_looked_into_until_one_suits() {
    let registry = FakeRegistry::start();
    let add = |media_type: &str, json: &str| {
        let digest = registry.add_manifest("a/b", "x", media_type, json.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, json.len())
    };
    let image = |architecture: &str| {
        let config = format!(r#"{{"os":"linux","architecture":"{architecture}"}}"#);
        registry.add_blob(config.as_bytes());
        add(OCI_MANIFEST, &manifest(&config, OCI_CONFIG))
    };
    let index = |entries: &[&str]| {
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        add(OCI_INDEX, &json)
    };
    let (wanted, other) = (image("amd64"), image("s390x"));
    let platform = |os: &str, architecture: &str, rest: &str, entry: &str| {
        let platform = format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"{rest}}}}}"#);
        entry.replacen('}', &platform, 1)
    };
    let needy = platform("linux", "amd64", r#","os.features":["unheard-of"]"#, &other);
    let foreign = index(&[&platform("linux", "s390x", "", &other)]);
    let (lone, nested) = (index(&[&wanted]), index(&[&index(&[&other]), &wanted]));
    let cases: [(&str, &[&str]); 4] = [
        ("images", &[&other, &wanted]),
        ("indexes", &[&foreign, &lone]),
        ("a nested one", &[&nested]),
        ("a feature that no host has", &[&needy, &wanted]),
    ];
    let name = ImageRef::parse(&registry.name("a/b:x")).unwrap();
    let amd64 = Digest::of(br#"{"os":"linux","architecture":"amd64"}"#);
    for (case, entries) in cases {
        index(entries);
        let resolved = anonymous().resolve(&name, &Platform::parse("linux/amd64").unwrap());
        assert_eq!(
            resolved.unwrap_or_else(|e| panic!("{case}: {e}")).manifest.config.digest,
            amd64,
            "{case}"
        );
    }
    index(&[&other, &index(&[&other]), &other]);
    let error = anonymous().resolve(&name, &Platform::parse("linux/arm64").unwrap());
    let said = error.map(|found| found.manifest.config.digest);
    // The last one is left to whoever reads its configuration anyway.
    assert_eq!(said.unwrap(), Digest::of(br#"{"os":"linux","architecture":"s390x"}"#));
}

#[test]
fn n10_what_is_encoded_though_nobody_asked_is_decoded_before_it_is_compared() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    let (_, manifest) = registry.state.lock().unwrap().manifests["a/b:v1"].clone();
    registry.add_manifest("a/b", "v1", OCI_MANIFEST, &gzip(&manifest));
    registry.add_blob_as(blob.digest.clone(), &gzip(&bytes));
    let encoded = FaultKind::Headers(vec![("Content-Encoding".to_owned(), "gzip".to_owned())]);
    registry.fault("/v2/", usize::MAX, encoded);
    let resolved = anonymous().resolve(&reference, &platform()).unwrap();
    assert_eq!(resolved.bytes, manifest);
    assert_eq!(read(&anonymous(), &reference, &blob).unwrap(), bytes);
    // A bomb ends where the blob should.
    registry.add_blob_as(blob.digest.clone(), &gzip(&vec![0; 64 << 20]));
    let error = read(&anonymous(), &reference, &blob).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
}
