//! Where the state is kept when nobody says: `/run/cofferdam/runtime` for the host's root, the user's own runtime folder for
//! everybody else, as with runc.

use std::path::PathBuf;

/// The state root of whoever calls.
pub(crate) fn default_root() -> PathBuf {
    let user = std::env::var("USER").ok();
    let uid = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    if uid == 0 && (runs_on_host() || user.as_deref() == Some("root")) {
        return PathBuf::from("/run/cofferdam/runtime");
    }
    // Without the variable this is what it would say; where that folder is missing, the error names it.
    runtime.unwrap_or_else(|| PathBuf::from(format!("/run/user/{uid}"))).join("cofferdam")
}

/// Whether this is the initial user namespace: every id is mapped onto itself, user_namespaces(7).
fn runs_on_host() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.is_empty() || map.split_whitespace().eq(["0", "0", "4294967295"])
}
