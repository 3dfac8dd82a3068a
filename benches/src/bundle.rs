//! The bundle that everybody launches: one static program, and what `runc spec` writes, without a terminal, with a cgroup
//! namespace and Docker's default seccomp profile.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cofferdam_isolators::capabilities::CapSet;
use cofferdam_isolators::seccomp::{Architecture, default};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Map, Value};
use tempfile::TempDir;

const CONFIGURATION: &str = include_str!("bundle/config.json");

/// The same without device rules: Debian's crun raises RLIMIT_MEMLOCK for the program that they become on v2, which a caller
/// without CAP_SYS_RESOURCE may not.
pub const WITHOUT_DEVICE_RULES: &str = "config-without-devices.json";

/// The folder of a bundle beside it, of the same root, whose program goes on until it is killed; and that program's name.
pub const HELD: &str = "sleep";

/// A bundle in a temporary folder, removed when dropped.
#[derive(Debug)]
pub struct Bundle(TempDir);

impl Bundle {
    /// Writes the rootfs and `config.json`.
    pub fn create() -> Result<Bundle> {
        let folder = tempfile::Builder::new().prefix("cofferdam-bench").tempdir()?;
        let rootfs = folder.path().join("rootfs");
        for name in ["proc", "dev", "sys"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let program = rootfs.join("true");
        fs::write(&program, cofferdam_guest::PROGRAM).context("writing the program")?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let mut configuration: Value =
            serde_json::from_str(CONFIGURATION).context("reading the configuration")?;
        configuration["linux"]["seccomp"] = serde_json::to_value(profile(&configuration)?)?;
        write(&folder, "config.json", &configuration)?;
        fs::hard_link(&program, rootfs.join(HELD))?;
        fs::create_dir(folder.path().join(HELD))?;
        let mut held = configuration.clone();
        held["process"]["args"] = Value::from(vec![format!("/{HELD}")]);
        held["root"]["path"] = Value::from(rootfs.to_string_lossy());
        write(&folder, &format!("{HELD}/config.json"), &held)?;
        configuration["linux"]["resources"] = Value::Object(Map::new());
        write(&folder, WITHOUT_DEVICE_RULES, &configuration)?;
        Ok(Bundle(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The effect of Docker's default profile, for the capabilities that the configuration grants.
pub fn seccomp() -> Result<LinuxSeccomp> {
    let configuration: Value = serde_json::from_str(CONFIGURATION).context("reading the configuration")?;
    profile(&configuration)
}

fn profile(configuration: &Value) -> Result<LinuxSeccomp> {
    let names =
        configuration["process"]["capabilities"]["effective"].as_array().context("no capabilities")?;
    let (granted, unknown) = CapSet::parse(names.iter().filter_map(Value::as_str));
    ensure!(unknown.is_empty(), "unknown capabilities: {unknown:?}");
    let native = Architecture::native().context("no system call table for this architecture")?;
    Ok(default::profile(default::Style::Docker, granted, native))
}

fn write(folder: &TempDir, name: &str, configuration: &Value) -> Result<()> {
    let path = folder.path().join(name);
    fs::write(&path, configuration.to_string()).with_context(|| format!("writing {}", path.display()))
}
