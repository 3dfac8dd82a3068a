//! Settings under /proc/sys/net of the calling thread's network namespace.

use cofferdam_cni::{Code, PluginError};

/// Sets a value unless it is set already; reading is allowed in places where writing is not.
pub(crate) fn set(key: &str, value: &str) -> Result<(), PluginError> {
    let path = path(key);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value)
        .map_err(|error| PluginError::new(Code::KERNEL, format!("cannot write {value} to {path}: {error}")))
}

/// As [`set`]; a kernel without the setting, as one without IPv6, is as good.
pub(crate) fn set_if_there(key: &str, value: &str) -> Result<(), PluginError> {
    if std::path::Path::new(&path(key)).exists() { set(key, value) } else { Ok(()) }
}

/// Reads a value.
pub(crate) fn get(key: &str) -> Result<String, PluginError> {
    let path = path(key);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| PluginError::new(Code::KERNEL, format!("cannot read {path}: {error}")))?;
    Ok(text.trim().to_owned())
}

fn path(key: &str) -> String {
    format!("/proc/sys/net/{key}")
}
