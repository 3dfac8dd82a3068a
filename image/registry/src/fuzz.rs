//! Every parser of what others send, given what nobody would: the same mutations every time, in slices that fit a merge.
//!
//! Nothing is asserted but that each returns, and a few things that must hold of whatever it accepts.

use std::path::Path;

use crate::blob::ContentRange;
use crate::challenge::Challenge;
use crate::manifest::Document;
use crate::reference::ImageRef;
use crate::{hosts, registries};

/// Mutations of each seed.
const ROUNDS: usize = 3_000;

/// xorshift64*: the same inputs every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// What parsers trip over.
const PIECES: &[&str] = &[
    "\"",
    "\\",
    "=",
    ",",
    "{",
    "}",
    "[",
    "]",
    "\0",
    "\n",
    "\u{feff}",
    "é",
    "-1",
    "99999999999999999999",
    "1e999",
    "bytes ",
    "/",
    "-",
    "*",
    "sha256:",
    "null",
    "true",
    "[[",
    "]]",
    "'''",
    "\"\"\"",
    "#",
    "Bearer ",
    "realm=",
    "..",
];

fn mutate(random: &mut Random, seeds: &[&str]) -> String {
    let mut bytes = seeds[random.below(seeds.len())].as_bytes().to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            2 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..end, piece.bytes());
            }
            3 => bytes.truncate(at),
            4 => {
                let piece = PIECES[random.below(PIECES.len())].repeat(random.below(400));
                bytes.splice(at..at, piece.bytes());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn each(seed: u64, seeds: &[&str], mut check: impl FnMut(&str)) {
    let mut random = Random(seed);
    for seed in seeds {
        check(seed);
    }
    for _ in 0..ROUNDS {
        check(&mutate(&mut random, seeds));
    }
}

#[test]
fn a49_challenges() {
    let seeds = [
        r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull""#,
        r#"Negotiate, Basic realm="a \"b\", c", BEARER realm=x"#,
    ];
    each(1, &seeds, |text| {
        for challenge in Challenge::parse_all(text) {
            assert!(
                !challenge.scheme.is_empty() && challenge.scheme == challenge.scheme.to_ascii_lowercase()
            );
        }
    });
}

#[test]
fn a49_content_ranges() {
    each(2, &["bytes 0-9/10", "bytes 5-18446744073709551614/18446744073709551615"], |text| {
        if let Some(range) = ContentRange::parse(text) {
            assert!(range.first <= range.last && range.last < range.total, "{text:?}");
        }
    });
}

#[test]
fn a49_hosts_toml() {
    let seeds = [
        "server = \"https://r.io\"\n[host.\"https://m.io:5000/x\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = [\"a\"]\n\
         client = [[\"c\", \"k\"]]\noverride_path = true\ndial_timeout = \"1m2s\"\n[host.\"https://m.io:5000/x\".header]\n\
         a = [\"b\"]",
        "[host.\"http://[::1]:5000\"]\nskip_verify = true\nclient = \"x\"",
    ];
    let reference = ImageRef::parse("r.io/a/b:c").unwrap();
    each(3, &seeds, |text| {
        if let Ok(endpoints) = hosts::parse(text, Path::new("/x/hosts.toml"), &reference) {
            assert!(!endpoints.is_empty());
            for endpoint in endpoints {
                let peer = endpoint.peer(true);
                assert!(!peer.origin.host.contains(['/', '@', '?']), "{text:?}");
                endpoint.path("blobs/x");
            }
        }
    });
}

#[test]
fn a49_registries_conf() {
    let seeds = [
        "unqualified-search-registries = [\"x\"]\n[[registry]]\nprefix = \"a.io/b\"\nlocation = \"c.io:5000/d\"\n\
         [[registry.mirror]]\nlocation = \"m.io/e\"\ninsecure = true\npull-from-mirror = \"digest-only\"",
        "[[registry]]\nprefix = \"*.a.io\"\nblocked = true\n[aliases]\n\"x\" = \"y\"",
    ];
    let names = ["a.io/b/c", "x.a.io/b", "busybox"].map(|name| ImageRef::parse(name).unwrap());
    each(4, &seeds, |text| {
        if let Ok(registries) = registries::parse_all(text, Path::new("/x/registries.conf")) {
            for name in &names {
                drop(registries.refuse_blocked(name));
                assert!(!registries.endpoints(name).is_empty());
            }
        }
    });
}

#[test]
fn a49_d7_manifests() {
    let hex = "0".repeat(64);
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{hex}","size":2,"urls":["http://x"],"data":"e30=","annotations":{{"a":"b"}}}}"#
    );
    let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{descriptor}]}}"#
    );
    each(5, &[&manifest, &index], |text| {
        for content_type in ["", "application/vnd.oci.image.manifest.v1+json"] {
            if let Ok(Document::Manifest(manifest)) = Document::parse(text.as_bytes(), content_type, "x") {
                assert!(manifest.layers.len() <= crate::LAYER_LIMIT);
                drop(manifest.config.embedded());
            }
        }
    });
}

#[test]
fn a49_references() {
    each(6, &["docker.io/library/busybox:1.36", "[::1]:5000/a/b@sha256:0", "a__b/c-d:e_f"], |text| {
        if let Ok(reference) = ImageRef::parse(text) {
            let again = ImageRef::parse(&reference.to_string());
            assert_eq!(again.as_ref(), Ok(&reference), "{text:?} reads back as what it was written from");
        }
    });
}
