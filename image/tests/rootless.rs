//! A store in a user namespace of 65,536 ids: what it can hold, and what it says of the rest.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use cofferdam_image::{ImageBuilder, ImportOptions, Store, StoreOptions, UnmappedOwners};
use support::*;

/// The folder of the run inside the namespace.
const INSIDE: &str = "COFFERDAM_TEST_INSIDE";

fn image(uid: u32) -> Vec<u8> {
    let builder = ImageBuilder::new().file("bin/tool", 0o4755, "tool").file("data/file", 0o600, "words");
    builder.owner("data/file", uid, 5).build().unwrap()
}

fn import(folder: &Path, uid: u32, unmapped_owners: UnmappedOwners) -> Result<u32, String> {
    use std::os::unix::fs::MetadataExt;
    let root = folder.join(format!("{uid}-{unmapped_owners:?}"));
    let store = Store::open_with(&root, StoreOptions { unmapped_owners, ..StoreOptions::default() }).unwrap();
    let imported = store.import(&mut &image(uid)[..], &ImportOptions::default(), &|_| {});
    let image = imported.map_err(|error| error.to_string())?.remove(0);
    let snapshot = store.prepare("key", &image).unwrap();
    let tool = snapshot.lower[0].path().join("bin/tool").metadata().unwrap();
    assert_eq!((tool.uid(), tool.mode() & 0o7777), (0, 0o4755));
    Ok(snapshot.lower[0].path().join("data/file").metadata().unwrap().uid())
}

#[test]
fn a74_a_store_of_65536_ids_says_which_owner_it_cannot_give() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        let folder = Path::new(&folder);
        assert_eq!(import(folder, 1000, UnmappedOwners::Refuse), Ok(1000));
        let refused = import(folder, 70_000, UnmappedOwners::Refuse).unwrap_err();
        for word in ["data/file", "uid 70000", "0-65535", "squash"] {
            assert!(refused.contains(word), "{word}: {refused}");
        }
        assert_eq!(import(folder, 70_000, UnmappedOwners::Squash), Ok(0));
        println!("was inside");
        return;
    }
    if !is_root() || !has_program("nsenter") {
        return;
    }
    let folder = temporary_folder();
    std::os::unix::fs::chown(folder.path(), Some(100_000), Some(100_000)).unwrap();
    let map = "0 100000 65536\n";
    let namespace = cofferdam_linux::namespace::new_user_namespace(map, map).unwrap();
    let path = format!("--user=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let output = Command::new("nsenter")
        .args([&path, "--setuid=0", "--setgid=0", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a74_a_store_of_65536_ids_says_which_owner_it_cannot_give", "--nocapture"])
        .env(INSIDE, folder.path())
        .output()
        .unwrap();
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(output.status.success() && words.contains("was inside"), "{words}");
}
