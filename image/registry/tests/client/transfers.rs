//! Blobs on their way: broken, busy, slow, in several ranges.

use std::time::Instant;

use cofferdam_registry::{BlobOptions, Digest, Hasher, Kind, RangePolicy, Timeouts};

use super::fake::FaultKind;
use super::*;

#[test]
fn a13_a15_broken_transfers_are_resumed() {
    let cases: [(&str, &[FaultKind]); 5] = [
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
        (
            "a server that ignores Range once it was asked for one",
            &[FaultKind::CutAfter(300_000), FaultKind::Status(416, vec![], String::new())],
        ),
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
    for (fault, expected) in [
        (FaultKind::WrongRange, "Content-Range"),
        (FaultKind::WrongTotal, "Content-Range"),
        (FaultKind::CutAfter(0), "end of file"),
    ] {
        let registry = FakeRegistry::start();
        let (reference, blob, _) = image(&registry);
        registry.fault("/blobs/", 1, FaultKind::CutAfter(500));
        registry.fault("/blobs/", usize::MAX, fault);
        let error = read(&anonymous(), &reference, &blob).unwrap_err();
        assert!(error.to_string().contains(expected), "n8: {error}");
    }
}

#[test]
fn a13_a_connection_that_is_reset_every_mebibyte_costs_next_to_nothing() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image_of(&registry, 12 << 20);
    registry.fault("/blobs/", 10, FaultKind::ResetAfter(1 << 20));
    assert!(read(&anonymous(), &reference, &blob).unwrap() == bytes);
    let served = registry.state.lock().unwrap().served_blob_bytes;
    assert_eq!(registry.seen("/blobs/").len(), 11);
    assert!(served <= bytes.len() + 10 * 64 * 1024, "{served} bytes served for {}", bytes.len());
}

#[test]
fn a12_n13_a_busy_registry_is_left_alone_by_all_layers_for_as_long_as_it_asks() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    let busy =
        |after: &str| FaultKind::Status(429, vec![("Retry-After".into(), after.into())], String::new());
    let client = anonymous();
    client.resolve(&reference, &platform()).unwrap();
    registry.fault("/blobs/", 1, busy("2"));
    let start = Instant::now();
    // The first one is told, and the gate that it closes is everybody's.
    let (told, others) = (read_in_background(&client, &reference, &blob), 4);
    while registry.seen("/blobs/").is_empty() {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(200));
    let rest: Vec<_> = (0..others).map(|_| read_in_background(&client, &reference, &blob)).collect();
    for reader in rest.into_iter().chain([told]) {
        assert!(reader.join().unwrap() == bytes);
    }
    let seen = registry.seen("/blobs/");
    assert_eq!(seen.len(), 1 + 1 + others);
    for later in &seen[1..] {
        let waited = later.at - seen[0].at;
        assert!(waited >= Duration::from_millis(1950) && waited < Duration::from_millis(2500), "{waited:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(4));

    // Without a time that can be understood, the delays are the client's own, and they end.
    for after in ["-1", "soon", ""] {
        let registry = FakeRegistry::start();
        let (reference, ..) = image(&registry);
        registry.fault("/manifests/", usize::MAX, busy(after));
        let error = anonymous().resolve(&reference, &platform()).unwrap_err();
        assert!(matches!(error, Error::RateLimited { attempts: 5, .. }), "{error}");
        assert_eq!(registry.seen("/manifests/").len(), 5);
    }
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    registry.fault("/blobs/", 3, FaultKind::Status(503, vec![], String::new()));
    assert!(read(&anonymous(), &reference, &blob).unwrap() == bytes);
}

fn read_in_background(
    client: &Client,
    reference: &ImageRef,
    blob: &Descriptor,
) -> std::thread::JoinHandle<Vec<u8>> {
    let mut reader = client.open(reference, blob);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn a16_several_ranges_at_once_give_the_same_bytes_within_their_buffer() {
    let policy = RangePolicy { piece_bytes: 256 * 1024, buffer_bytes: 1 << 20 };
    let ranged = |from: u64| BlobOptions { from, ranges: Some(policy), ..BlobOptions::default() };
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image_of(&registry, (16 << 20) + 12_345);
    let client = anonymous();
    let whole = |from: u64| {
        let mut found = Vec::new();
        client.open_with(&reference, &blob, ranged(from)).read_to_end(&mut found).map(|_| found)
    };
    assert!(whole(0).unwrap() == bytes);
    let ranges = registry.seen("/blobs/");
    // Three of growing size, then 62 whole ones and the rest.
    assert_eq!(ranges.len(), 66, "each range once");
    assert!(ranges.iter().all(|seen| seen.headers.contains_key("range")));
    assert!(whole(5_000_001).unwrap() == bytes[5_000_001..], "from the middle on");

    // Ranges that break are resumed each for itself; a host without ranges is read in one stream.
    registry.forget();
    registry.fault("/blobs/", 9, FaultKind::CutAfter(100_000));
    assert!(whole(0).unwrap() == bytes);
    let served = registry.state.lock().unwrap().served_blob_bytes;
    assert_eq!(served, bytes.len());
    registry.forget();
    registry.fault("/blobs/", 1, FaultKind::IgnoreRange);
    assert!(whole(0).unwrap() == bytes);
    assert_eq!(registry.seen("/blobs/").len(), 1);
    registry.fault("/blobs/", 1, FaultKind::WrongRange);
    assert!(whole(0).unwrap_err().to_string().contains("Content-Range"));

    // A reader that does not read: what the client takes in is what it may hold.
    registry.clear_faults();
    registry.forget();
    let mut idle = client.open_with(&reference, &blob, ranged(0));
    idle.read_exact(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let asked = registry.seen("/blobs/").len() as u64 * policy.piece_bytes;
    // The window, and the pieces that have passed it and wait for the reader.
    let held = policy.buffer_bytes + 8 * 256 * 1024 + policy.piece_bytes;
    assert!(asked <= held, "{asked} bytes asked for, {held} may be held");
}

#[test]
fn a16_whoever_watches_sees_every_byte_once_and_in_order() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image_of(&registry, 3 << 20);
    registry.fault("/blobs/", 3, FaultKind::CutAfter(700_000));
    let policy = RangePolicy { piece_bytes: 512 * 1024, buffer_bytes: 2 << 20 };
    for ranges in [None, Some(policy)] {
        let (sender, pieces) = std::sync::mpsc::channel::<Vec<u8>>();
        let tap = Box::new(move |piece: &[u8]| drop(sender.send(piece.to_vec())));
        let options = BlobOptions { from: 10, ranges, tap: Some(tap) };
        let mut found = Vec::new();
        anonymous().open_with(&reference, &blob, options).read_to_end(&mut found).unwrap();
        let watched: Vec<u8> = pieces.iter().flatten().collect();
        assert!(found == bytes[10..] && watched == found);
    }
}

#[test]
fn a22_content_may_be_named_by_sha512() {
    let registry = FakeRegistry::start();
    let (reference, _, bytes) = image(&registry);
    let mut hasher = Hasher::new(cofferdam_registry::Algorithm::Sha512);
    hasher.update(&bytes);
    let digest = registry.add_blob_as(hasher.finish(), &bytes);
    let blob = Descriptor::new(OCI_CONFIG, digest, bytes.len() as u64);
    assert!(anonymous().fetch(&reference, &blob, 1 << 30).unwrap() == bytes);
    registry.fault("/blobs/", 1, FaultKind::Corrupt);
    let error = anonymous().fetch(&reference, &blob, 1 << 30).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[test]
fn n9_what_stalls_is_resumed_and_what_never_arrives_ends() {
    let registry = FakeRegistry::start();
    let (reference, blob, bytes) = image(&registry);
    let timeouts = Timeouts { stall: Duration::from_millis(300), ..Timeouts::default() };
    let client = Client::new(ClientOptions { timeouts, ..options() }).unwrap();
    let stall = |count| FaultKind::StallAfter(count, Duration::from_secs(20));
    registry.fault("/blobs/", 2, stall(200_000));
    let start = Instant::now();
    assert!(read(&client, &reference, &blob).unwrap() == bytes);
    assert!(start.elapsed() < Duration::from_secs(10));
    registry.fault("/blobs/", usize::MAX, stall(1));
    let error = read(&client, &reference, &blob).unwrap_err();
    assert!(matches!(&error, Error::Timeout { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Interrupted);
}

#[test]
fn a25_a_client_that_is_stopped_answers_at_once() {
    let registry = FakeRegistry::start();
    let (reference, blob, _) = image(&registry);
    registry.fault("/blobs/", usize::MAX, FaultKind::StallAfter(1, Duration::from_secs(20)));
    let client = anonymous();
    let stopper = client.stopper();
    let mut reader = client.open(&reference, &blob);
    reader.read_exact(&mut [0]).unwrap();
    let start = Instant::now();
    let waiting = std::thread::spawn(move || reader.read(&mut [0]).unwrap_err());
    stopper.stop();
    let error = waiting.join().unwrap().downcast::<Error>().unwrap();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(matches!(client.fetch(&reference, &blob, 1 << 30), Err(Error::Cancelled)));
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
}

#[test]
fn content_within_its_descriptor_costs_no_request() {
    let registry = FakeRegistry::start();
    let digest = Digest::of(b"{}");
    let config = format!(r#"{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":2,"data":"e30="}}"#);
    let json = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
    registry.add_manifest("a/b", "v1", OCI_MANIFEST, json.as_bytes());
    let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
    let client = anonymous();
    let resolved = client.resolve(&reference, &platform()).unwrap();
    assert_eq!(client.fetch(&reference, &resolved.manifest.config, 100).unwrap(), "{}");
    assert!(registry.seen("/blobs/").is_empty());
}
