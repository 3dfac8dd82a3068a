//! OCI bundles made in code: a busybox root file system and a configuration that a test changes where it matters.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::world::succeed;

/// What Docker keeps of root's capabilities.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A folder with `config.json` and `rootfs`.
#[derive(Clone, Debug)]
pub struct Bundle {
    folder: PathBuf,
}

impl Bundle {
    /// Makes a bundle that runs `arguments`, isolated as Docker would; `change` may alter the configuration.
    ///
    /// The folder must not exist. Its name becomes part of the cgroup's.
    pub fn make(folder: &Path, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Result<Bundle> {
        let rootfs = folder.join("rootfs");
        std::fs::create_dir_all(&rootfs).with_context(|| format!("making {}", rootfs.display()))?;
        busybox(&rootfs)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut config = configuration(arguments, &format!("/cofferdam-suite-{}-{name}", std::process::id()));
        change(&mut config);
        let bundle = Bundle { folder: folder.to_owned() };
        bundle.configure(&config)?;
        Ok(bundle)
    }

    /// Where the bundle is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Its root file system, as the host sees it.
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Replaces the configuration.
    pub fn configure(&self, config: &Value) -> Result<()> {
        std::fs::write(self.folder.join("config.json"), serde_json::to_vec_pretty(config)?)
            .context("writing config.json")
    }
}

fn busybox(rootfs: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        std::fs::create_dir(rootfs.join(folder))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("copying busybox-static")?;
    for applet in succeed(std::process::Command::new("/bin/busybox").arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\n").context("writing etc/group")
}

fn configuration(arguments: &[&str], cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES
            },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "isolated",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] }
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }
            ],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
