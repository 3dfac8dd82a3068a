//! The layer table (ARCHITECTURE.md, "Layers") and the edges that break it.

use std::collections::BTreeSet;

use crate::workspace::{Package, Workspace};

/// Every crate and its layer. Tools sit above all layers: nothing may link them.
const LAYERS: &[(&str, u8)] = &[
    ("regex", 0),
    ("cofferdam-plan", 0),
    ("cofferdam-linux", 0),
    ("cofferdam-apply", 1),
    ("cofferdam-isolators", 1),
    ("cofferdam-runtime", 2),
    ("cofferdam-registry", 2),
    ("cofferdam-image", 2),
    ("cofferdam-cni", 2),
    ("cofferdam-cni-plugins", 2),
    ("cofferdam-cni-conformance", 2),
    ("cofferdam-shim", 3),
    ("cofferdam-executor", 3),
    ("cofferdam-cri", 4),
    ("cofferdam-mesos", 4),
    ("cofferdam", 5),
    ("cofferdam-oci", 5),
    ("cofferdam-guest", 0),
    ("cofferdam-benches", TOOLS),
    ("cofferdam-tests", TOOLS),
    ("xtask", TOOLS),
];

const TOOLS: u8 = 6;

/// The edges allowed between crates of one layer.
const WITHIN_A_LAYER: &[(&str, &str)] = &[
    ("cofferdam-image", "cofferdam-registry"),
    ("cofferdam-cni-plugins", "cofferdam-cni"),
    ("cofferdam-cni-conformance", "cofferdam-cni"),
    ("cofferdam-executor", "cofferdam-shim"),
    ("cofferdam-benches", "cofferdam-tests"),
];

/// Crates that must stay synchronous: they may not reach an async runtime, except through the registry client.
const SYNCHRONOUS_BELOW: u8 = 3;

/// Above that layer, and synchronous all the same: it is started anew for every operation, and has to be small.
const SYNCHRONOUS_PROGRAM: &str = "cofferdam-oci";

/// The one crate below the executor that may link an async runtime.
const ASYNC_CLIENT: &str = "cofferdam-registry";

/// Dependencies that go up, or sideways without being allowed to.
pub(super) fn upward_edges(workspace: &Workspace) -> Vec<String> {
    let mut violations = Vec::new();
    for from in workspace.members() {
        let Some(from_layer) = layer(&from.name) else {
            violations.push(format!("{} is in no layer: add it to the table", from.name));
            continue;
        };
        for to in from.links.iter().filter_map(|id| workspace.package(id)) {
            let Some(to_layer) = layer(&to.name) else { continue };
            let is_allowed =
                to_layer < from_layer || WITHIN_A_LAYER.contains(&(from.name.as_str(), to.name.as_str()));
            if !is_allowed {
                violations
                    .push(format!("{} (L{from_layer}) depends on {} (L{to_layer})", from.name, to.name));
            }
        }
    }
    violations
}

/// Synchronous crates that reach tokio.
pub(super) fn async_runtimes(workspace: &Workspace) -> Vec<String> {
    workspace
        .members()
        .filter(|package| is_synchronous(&package.name))
        .filter_map(|package| path_to_tokio(workspace, package, &mut BTreeSet::new()))
        .map(|path| path.join(" → "))
        .collect()
}

fn is_synchronous(name: &str) -> bool {
    let is_low = layer(name).is_some_and(|layer| layer < SYNCHRONOUS_BELOW);
    name == SYNCHRONOUS_PROGRAM || (is_low && name != ASYNC_CLIENT)
}

fn path_to_tokio<'a>(
    workspace: &'a Workspace,
    from: &'a Package,
    seen: &mut BTreeSet<&'a str>,
) -> Option<Vec<&'a str>> {
    if from.name == "tokio" {
        return Some(vec!["tokio"]);
    }
    if from.name == ASYNC_CLIENT {
        return None;
    }
    for id in &from.links {
        if !seen.insert(id) {
            continue;
        }
        let Some(to) = workspace.package(id) else { continue };
        if let Some(mut path) = path_to_tokio(workspace, to, seen) {
            path.insert(0, &from.name);
            return Some(path);
        }
    }
    None
}

fn layer(name: &str) -> Option<u8> {
    LAYERS.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, layer)| *layer)
}
