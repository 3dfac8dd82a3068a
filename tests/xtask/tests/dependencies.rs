//! Every direct dependency has a sentence of reason in deny.toml, and nothing else has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The names in `[workspace.dependencies]` that are not crates of ours.
fn dependencies() -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()))
        .filter(|name| !name.starts_with('#') && !name.starts_with("cofferdam"))
        .map(str::to_owned)
        .collect()
}

/// The names in lines `# - name: reason`.
fn reasons() -> BTreeSet<String> {
    let policy = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let entries = policy.lines().filter_map(|line| line.strip_prefix("# - ")?.split_once(": "));
    entries.filter(|(_, reason)| reason.len() > 10).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_direct_dependency_has_a_reason() {
    let (dependencies, reasons) = (dependencies(), reasons());
    assert!(dependencies.contains("rustix"), "the manifest was read: {dependencies:?}");
    let unexplained: Vec<_> = dependencies.difference(&reasons).collect();
    assert!(unexplained.is_empty(), "add a line `# - name: reason` to deny.toml for {unexplained:?}");
    let stale: Vec<_> = reasons.difference(&dependencies).collect();
    assert!(stale.is_empty(), "deny.toml explains what nobody depends on: {stale:?}");
}
