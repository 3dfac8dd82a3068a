//! Where the product's programs are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names the folder that holds the programs; set by `cargo xtask ci` and in the virtual machine.
pub const FOLDER_VARIABLE: &str = "COFFERDAM_BIN_DIR";

/// Where a program of the workspace is. Builds them, once, unless [`FOLDER_VARIABLE`] says where they are.
///
/// # Panics
/// If they do not build.
pub fn path(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os(FOLDER_VARIABLE).map_or_else(build, PathBuf::from)).join(name)
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bins"])
        .current_dir(workspace)
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "building the programs: {status:?}"
    );
    // Test executables are in `deps`, beside which cargo puts the programs.
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}
