//! What is known of a plugin before it is tested: a configuration, and what applies to it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_cni::{NetworkList, Plugin};
use serde::Deserialize;
use serde_json::Value;

/// Why nothing could be tested at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not root.
    #[error("the conformance tests make network namespaces and need root")]
    NotRoot,
    /// Not a program.
    #[error("{} is not an executable file", .0.display())]
    NoProgram(PathBuf),
    /// Does not answer VERSION.
    #[error("{} does not answer VERSION as a CNI plugin does; it said: {answer}", program.display())]
    NoPlugin {
        /// The program.
        program: PathBuf,
        /// What it printed.
        answer: String,
    },
    /// The kernel lacks what the plugin needs.
    #[error("the plugin {kind} cannot be tested on this kernel: {said}")]
    Kernel {
        /// The plugin.
        kind: String,
        /// What the probe printed.
        said: String,
    },
    /// Nobody knows how to configure it.
    #[error("how is the plugin {0:?} configured? Say so with --config or --profile; profiles are shipped for {known}", known = Profile::known().join(" "))]
    NoProfile(String),
    /// No case is called so.
    #[error("no case's id begins with {0:?}: --list shows them")]
    NoCase(String),
    /// Not a configuration.
    #[error("{what}: {source}")]
    Config {
        /// Which file.
        what: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Not a network that a plugin can come after.
    #[error("{what} is no network to come after: {why}")]
    Before {
        /// Which file.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The stage could not be set.
    #[error("cannot {operation}: {source}")]
    Stage {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn stage<E: Into<std::io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Stage { operation, source: source.into() }
    }
}

/// How a plugin is configured in the tests. In every text `@DATA@` stands for a folder of the case, `@MASTER@` for the
/// host's uplink, `@NET@` for 0 or, in the second network of a case, 1, and `"@PORT@"` for a number that no other container
/// has.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// The plugin's object, without name and version.
    pub config: Value,
    /// What a runtime would put into `runtimeConfig`.
    #[serde(default)]
    pub runtime_config: Option<Value>,
    /// Whether it comes after a plugin that makes an interface; the tests then make one.
    #[serde(default)]
    pub chained: bool,
    /// The interface's name, if it has to be a certain one.
    #[serde(default = "eth0")]
    pub ifname: String,
    /// Shell lines, run in the host's namespace of every case: devices that it needs.
    #[serde(default)]
    pub setup: Option<String>,
    /// Shell lines that fail where the kernel lacks what the plugin needs: then nothing is tested.
    #[serde(default)]
    pub probe: Option<String>,
    /// Names of the manipulations that CHECK has to see.
    #[serde(default)]
    pub tampers: Vec<String>,
    /// Cases (by the beginning of their id) that do not apply, each with the reason.
    #[serde(default)]
    pub excused: BTreeMap<String, String>,
}

fn eth0() -> String {
    "eth0".into()
}

macro_rules! profiles {
    ($($kind:literal)*) => {
        &[$(($kind, include_str!(concat!("../profiles/", $kind, ".json")))),*]
    };
}

/// What is shipped, by the plugin's name.
const KNOWN: &[(&str, &str)] = profiles![
    "bandwidth" "bridge" "dummy" "firewall" "host-device" "host-local" "ipvlan" "loopback" "macvlan" "portmap" "ptp"
    "sbr" "static" "tap" "tuning" "vlan" "vrf"
];

impl Profile {
    /// The profile shipped for a plugin of this name.
    pub fn shipped(kind: &str) -> Result<Self, Error> {
        let text = KNOWN.iter().find(|(name, _)| *name == kind).map(|(_, text)| *text);
        Self::parse(text.ok_or_else(|| Error::NoProfile(kind.into()))?, kind)
    }

    /// Reads a profile. `what` names it in errors.
    pub fn parse(text: &str, what: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|source| Error::Config { what: what.into(), source })
    }

    /// The profile of a plugin of which only its configuration is known.
    pub fn of_config(text: &str, what: &str) -> Result<Self, Error> {
        let config: Value =
            serde_json::from_str(text).map_err(|source| Error::Config { what: what.into(), source })?;
        let tampers = ["link-down", "address-removed", "mtu-changed", "default-route-removed"];
        Ok(Self {
            config,
            runtime_config: None,
            chained: false,
            ifname: eth0(),
            setup: None,
            probe: None,
            tampers: tampers.map(str::to_owned).to_vec(),
            excused: BTreeMap::new(),
        })
    }

    /// The names that [`Profile::shipped`] knows.
    pub fn known() -> Vec<&'static str> {
        KNOWN.iter().map(|(name, _)| *name).collect()
    }

    /// The plugin of the profile's address manager, if it has one.
    pub(crate) fn ipam(&self) -> Option<&str> {
        self.config["ipam"]["type"].as_str().filter(|kind| !kind.is_empty())
    }
}

/// A plugin under test.
#[derive(Clone)]
pub struct Subject {
    /// The program.
    pub program: PathBuf,
    /// How it is configured.
    pub profile: Profile,
    /// Where plugins are looked for that it calls; the program's own folder comes first.
    pub plugin_path: Vec<PathBuf>,
    /// `CNI_ARGS`.
    pub args: String,
    /// A network whose plugins make what a chained plugin finds, as configuration list; else the tests make an interface.
    pub after: Option<Value>,
    /// Plugins of this process that such a network may use.
    pub builtins: &'static [&'static dyn Plugin],
    /// A call that takes longer is ended, and has failed.
    pub limit: Duration,
}

/// Calls that take longer than this hang: the slowest plugins wait for an address server, some ten seconds.
const LIMIT: Duration = Duration::from_secs(30);

impl std::fmt::Debug for Subject {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Subject").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Subject {
    /// A plugin with the profile that is shipped for its file name.
    pub fn known(program: impl Into<PathBuf>) -> Result<Self, Error> {
        let program = program.into();
        let kind = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self::new(program, Profile::shipped(&kind)?))
    }

    /// A plugin with a profile.
    pub fn new(program: impl Into<PathBuf>, profile: Profile) -> Self {
        Self {
            program: program.into(),
            profile,
            plugin_path: Vec::new(),
            args: String::new(),
            after: None,
            builtins: &[],
            limit: LIMIT,
        }
    }

    /// The same plugin behind the plugins of a network, a list or a single configuration. `what` names it in errors.
    pub fn after(mut self, text: &str, what: &str) -> Result<Self, Error> {
        let wrong = |source: String| Error::Before { what: what.into(), why: source };
        let list = NetworkList::parse(text, None).or_else(|error| {
            // Which of the two it was meant to be shows in whether there are plugins.
            NetworkList::parse_single(text)
                .map_err(|other| if text.contains("\"plugins\"") { error } else { other })
        });
        let list = list.map_err(|error| wrong(error.to_string()))?.to_text();
        self.after = Some(serde_json::from_str(&list).map_err(|error| wrong(error.to_string()))?);
        self.profile.chained = true;
        Ok(self)
    }

    pub(crate) fn refuse_unusable(&self) -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let meta = std::fs::metadata(&self.program).ok();
        let is_program = meta.is_some_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if is_program { Ok(()) } else { Err(Error::NoProgram(self.program.clone())) }
    }

    /// `CNI_PATH`.
    pub(crate) fn path(&self) -> String {
        let own = self.program.parent().map(PathBuf::from);
        let all = own.into_iter().chain(self.plugin_path.iter().cloned());
        all.map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_is_one() {
        for kind in Profile::known() {
            let profile = Profile::shipped(kind).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(profile.config["type"], kind);
            for tamper in &profile.tampers {
                assert!(crate::tamper::find(tamper).is_some(), "{kind}: {tamper}");
            }
            for begin in profile.excused.keys() {
                assert!(
                    crate::cases().iter().any(|case| case.id.starts_with(begin.as_str())),
                    "{kind}: {begin}"
                );
            }
        }
    }
}
