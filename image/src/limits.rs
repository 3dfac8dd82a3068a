//! The named limits of one layer, each with its unit and its reason.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How much a layer may ask of the host. The same structure for embedders, the command line and the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of the uncompressed tar. The largest known layers (models, toolchains) are below a third of it.
    pub uncompressed_bytes: u64,
    /// Uncompressed bytes for each compressed one, counted past `ratio_free_bytes`. Real layers stay below 20.
    pub ratio: u64,
    /// Uncompressed bytes that are free of the ratio: a small blob of zeros is no attack.
    pub ratio_free_bytes: u64,
    /// Entries of the archive. A Debian desktop has half a million files.
    pub entries: u64,
    /// Bytes of a sparse file's apparent size: what ext4 with 4 KiB blocks can hold.
    pub sparse_bytes: u64,
    /// Gzip members or zstd frames of one blob; parallel compressors write one for each 128 KiB.
    pub members: u64,
    /// Bytes of one entry's extended attributes altogether: ext4 holds less.
    pub xattr_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            uncompressed_bytes: 64 << 30,
            ratio: 200,
            ratio_free_bytes: 64 << 20,
            entries: 5_000_000,
            sparse_bytes: 16 << 40,
            members: 65_536,
            xattr_bytes: 1 << 20,
        }
    }
}

impl Limits {
    /// None: for what was made here, from a layer that was within the limits.
    pub(crate) const NONE: Limits = Limits {
        uncompressed_bytes: u64::MAX,
        ratio: u64::MAX,
        ratio_free_bytes: u64::MAX,
        entries: u64::MAX,
        sparse_bytes: u64::MAX,
        members: u64::MAX,
        xattr_bytes: u64::MAX,
    };

    /// Sets the limit of that name, as it is called in the configuration file.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), Error> {
        let names = [
            ("uncompressed-bytes", &mut self.uncompressed_bytes),
            ("ratio", &mut self.ratio),
            ("ratio-free-bytes", &mut self.ratio_free_bytes),
            ("entries", &mut self.entries),
            ("sparse-bytes", &mut self.sparse_bytes),
            ("members", &mut self.members),
            ("xattr-bytes", &mut self.xattr_bytes),
        ];
        let known = names.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
        match names.into_iter().find(|(known, _)| *known == name) {
            Some((_, limit)) => *limit = value,
            None => {
                let reason = format!("there are {known}");
                return Err(Error::InvalidInput { what: "limit", input: name.to_owned(), reason });
            }
        }
        Ok(())
    }
}

/// How a limit of that name is raised; nothing for those that are fixed.
pub(crate) fn remedy(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| {
        format!("; if the image is trusted, raise it with --limit {name}=NUMBER")
    })
}

/// The longest path of an entry, in bytes: PATH_MAX without its NUL.
pub(crate) const PATH_LIMIT_BYTES: u32 = 4095;
/// Sparse regions of one file (CVE-2025-58183).
pub(crate) const SPARSE_REGION_LIMIT: usize = 10_000;
/// Bytes of PAX records and long names before one entry.
pub(crate) const METADATA_LIMIT_BYTES: u32 = 1 << 20;
/// The largest zstd window, as a power of two: 128 MiB, which `zstd --ultra --long=27` needs.
pub(crate) const ZSTD_WINDOW_LOG_LIMIT: u32 = 27;
/// The largest window of zstd's levels up to 19; wider ones are decoded one at a time.
pub(crate) const ZSTD_COMMON_WINDOW_LOG: u32 = 23;
/// Blobs up to this size, in bytes, are verified before they are decoded. Six of them at once fit the memory of a pull.
pub(crate) const VERIFIED_BLOB_LIMIT_BYTES: u64 = 4 << 20;
/// Memory for what a layer says of directories, deletions and links to lower layers, in bytes: half a million of usual names.
pub(crate) const TREE_LIMIT_BYTES: usize = 64 << 20;
/// Runs of zeros that become holes, in bytes and in multiples of it: a file system's block is not larger.
pub(crate) const HOLE_BYTES: usize = 64 * 1024;
/// Symbolic links followed while resolving one path, as in the kernel.
pub(crate) const SYMLINK_LIMIT: u32 = 40;
/// Warnings kept of one layer; the rest is counted.
pub(crate) const WARNING_LIMIT: usize = 32;
