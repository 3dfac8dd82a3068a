//! The bundle that everybody launches: one static program, and what `runc spec` writes, without a terminal, with a cgroup
//! namespace.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tempfile::TempDir;

const CONFIGURATION: &str = include_str!("bundle/config.json");

/// The same without device rules: Debian's crun raises RLIMIT_MEMLOCK for the program that they become on v2, which a caller
/// without CAP_SYS_RESOURCE may not.
pub const WITHOUT_DEVICE_RULES: &str = "config-without-devices.json";

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
        write(&folder, "config.json", &configuration)?;
        configuration["linux"]["resources"] = Value::Object(Map::new());
        write(&folder, WITHOUT_DEVICE_RULES, &configuration)?;
        Ok(Bundle(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn write(folder: &TempDir, name: &str, configuration: &Value) -> Result<()> {
    let path = folder.path().join(name);
    fs::write(&path, configuration.to_string()).with_context(|| format!("writing {}", path.display()))
}
