//! The example configuration that `spec` writes, as runc's.

/// A `config.json` that runs a shell in `rootfs`.
pub const CONFIG: &str = include_str!("example.json");
