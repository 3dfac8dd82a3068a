//! The program that runs *inside* a task, as bytes to put into a root file system.
//!
//! It is one static executable without dependencies that plays several parts, chosen by the name it is started under or by
//! its first argument: `demo` looks at its own isolation and says whether each wall holds, `init` is a process 1 that
//! forwards signals and reaps, and the rest are probes for tests ([`APPLETS`]). Its sources are in `program/`; it is compiled
//! by `build.rs`. This library runs nothing and needs no privileges.

/// The executable: static, position independent, for the target that this crate was compiled for.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// The parts that [`PROGRAM`] can play, as its name (`argv[0]`) or as its first argument.
pub const APPLETS: &[&str] = &[
    "args", "cat", "connect", "demo", "env", "exit", "false", "forks", "hog", "hold", "id", "init", "listen",
    "parent", "signals", "sleep", "spin", "true", "tty", "write",
];

/// The environment variable that tells `demo` which namespaces the host's own processes are in, so that it can tell whether
/// its own differ: `pid:4026531836,net:4026531840,…`, the numbers of `/proc/self/ns/*`. See [`host_namespaces`].
pub const HOST_NAMESPACES_VARIABLE: &str = "COFFERDAM_HOST_NS";

/// The value for [`HOST_NAMESPACES_VARIABLE`] as seen by the calling process.
///
/// Namespaces that cannot be read are left out; `demo` then says that it cannot tell.
pub fn host_namespaces() -> String {
    let mut known = Vec::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        if let Ok(target) = std::fs::read_link(format!("/proc/self/ns/{kind}"))
            && let Some(inode) = namespace_inode(&target.to_string_lossy())
        {
            known.push(format!("{kind}:{inode}"));
        }
    }
    known.join(",")
}

/// The number in `pid:[4026531836]`.
fn namespace_inode(link: &str) -> Option<u64> {
    link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_small_elf_file() {
        assert_eq!(&PROGRAM[..4], b"\x7fELF");
        assert!(PROGRAM.len() < 2 * 1024 * 1024, "{} bytes", PROGRAM.len());
    }

    #[test]
    fn host_namespaces_are_listed_as_kind_and_number() {
        let listed = host_namespaces();
        assert!(listed.split(',').any(|entry| entry.starts_with("pid:402653")), "{listed}");
    }

    #[test]
    fn a_namespace_link_that_is_not_one_gives_nothing() {
        assert_eq!(namespace_inode("pid:[4026531836]"), Some(4_026_531_836));
        assert_eq!(namespace_inode("pid:4026531836"), None);
        assert_eq!(namespace_inode("pid:[x]"), None);
    }
}
