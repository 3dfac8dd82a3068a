//! Every Rust file of the workspace, parsed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// One parsed file.
pub(super) struct Source {
    /// The crate that it belongs to.
    pub(super) package: String,
    /// Relative to the workspace's root.
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) syntax: syn::File,
    /// Whether it is compiled into what ships, or only into tests, benches and tools.
    pub(super) role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Product,
    Support,
}

/// Crates that do not ship.
const SUPPORT: &[&str] = &["cofferdam-tests", "cofferdam-benches", "xtask"];

/// Folders of a package that hold Rust code, and whether it ships.
const FOLDERS: &[(&str, Role)] = &[
    ("src", Role::Product),
    ("program", Role::Product),
    ("tests", Role::Support),
    ("examples", Role::Support),
    ("benches", Role::Support),
];

pub(super) fn read(workspace: &Workspace) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for package in workspace.members() {
        for (folder, role) in FOLDERS {
            let role = if SUPPORT.contains(&package.name.as_str()) { Role::Support } else { *role };
            for path in rust_files(&package.folder.join(folder))? {
                sources.push(parse(workspace, &package.name, path, role)?);
            }
        }
    }
    Ok(sources)
}

fn parse(workspace: &Workspace, package: &str, path: PathBuf, role: Role) -> Result<Source> {
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let syntax = syn::parse_file(&text).with_context(|| format!("parsing {}", path.display()))?;
    let path = path.strip_prefix(workspace.root()).unwrap_or(&path).to_owned();
    Ok(Source { package: package.to_owned(), path, text, syntax, role })
}

/// All Rust files below a folder, in order; a nested package is another package's business.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("listing {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}
