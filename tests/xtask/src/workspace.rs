//! The workspace as cargo sees it: packages, dependency edges, folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ci::Extent;
use crate::command;

/// Tells tests that the slow ones are wanted too.
const FULL_VARIABLE: &str = "COFFERDAM_FULL";

/// The workspace's members and everything they depend on.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    packages: BTreeMap<String, Package>,
    members: Vec<String>,
    extent: Extent,
}

/// One package of the dependency graph.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Where its manifest is.
    pub(crate) folder: PathBuf,
    /// The identities of the packages that it links, build and development dependencies left out.
    pub(crate) links: Vec<String>,
}

/// Something that cargo linked.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) package: String,
    /// Where the package's manifest is: tests expect it to be the current folder.
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Test,
    Program,
}

/// Programs and tests share one development build.
pub(crate) const BUILD: &str = "build --quiet --workspace --all-targets";
const BUILD_JSON: &str = "build --quiet --workspace --all-targets --message-format json";

impl Workspace {
    /// Asks cargo for the dependency graph of the workspace in which xtask was built.
    pub(crate) fn open() -> Result<Workspace> {
        let text = command::read(&mut cargo("metadata --format-version 1 --quiet"))?;
        let metadata: Value = serde_json::from_str(&text).context("output of cargo metadata")?;
        let mut packages = BTreeMap::new();
        for package in array(&metadata["packages"]) {
            let manifest = Path::new(string(&package["manifest_path"]));
            let folder = manifest.parent().unwrap_or(manifest).to_owned();
            let name = string(&package["name"]).to_owned();
            packages.insert(string(&package["id"]).to_owned(), Package { name, folder, links: Vec::new() });
        }
        for node in array(&metadata["resolve"]["nodes"]) {
            if let Some(package) = packages.get_mut(string(&node["id"])) {
                package.links = array(&node["deps"]).filter(|edge| is_linked(edge)).map(target).collect();
            }
        }
        Ok(Workspace {
            root: string(&metadata["workspace_root"]).into(),
            target: string(&metadata["target_directory"]).into(),
            members: array(&metadata["workspace_members"]).map(|id| string(id).to_owned()).collect(),
            packages,
            extent: Extent::default(),
        })
    }

    /// The same, with tests to this extent.
    pub(crate) fn with(self, extent: Extent) -> Workspace {
        Workspace { extent, ..self }
    }

    /// Whether the slow tests are to run.
    pub(crate) fn runs_slow_tests(&self) -> bool {
        self.extent == Extent::Full
    }

    /// The folder that holds the workspace's manifest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder, wherever the environment puts it.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where cargo puts the programs of the development build: the workspace's configuration names an explicit target.
    pub(crate) fn programs(&self) -> PathBuf {
        self.target.join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join("debug")
    }

    /// Builds everything in the development profile and returns the executables, tests and programs.
    pub(crate) fn executables(&self) -> Result<Vec<Executable>> {
        let text = command::read(&mut self.cargo(BUILD_JSON))?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| self.executable(&message))
            .collect())
    }

    fn executable(&self, message: &Value) -> Option<Executable> {
        Some(Executable {
            package: self.packages.get(string(&message["package_id"]))?.name.clone(),
            folder: self.packages.get(string(&message["package_id"]))?.folder.clone(),
            name: string(&message["target"]["name"]).to_owned(),
            path: message["executable"].as_str()?.into(),
            kind: if message["profile"]["test"] == true { Kind::Test } else { Kind::Program },
        })
    }

    /// The packages of the workspace itself.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.members.iter().filter_map(|id| self.packages.get(id))
    }

    /// The package that an edge of [`Package::links`] leads to.
    pub(crate) fn package(&self, id: &str) -> Option<&Package> {
        self.packages.get(id)
    }

    /// A cargo command that runs at the workspace's root; `arguments` are split at spaces.
    pub(crate) fn cargo(&self, arguments: &str) -> Command {
        let mut command = cargo(arguments);
        command.current_dir(&self.root);
        if self.runs_slow_tests() {
            command.env(FULL_VARIABLE, "1");
        }
        command
    }
}

fn cargo(arguments: &str) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    command::command(&program, arguments)
}

fn is_linked(edge: &Value) -> bool {
    array(&edge["dep_kinds"]).any(|kind| kind["kind"].is_null())
}

fn target(edge: &Value) -> String {
    string(&edge["pkg"]).to_owned()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
