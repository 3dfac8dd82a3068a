//! Processes that a plugin has started and that outlive it. They may have left its process group and its session; what they
//! are known by is the mount namespace of the case, or its network namespace.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often they are looked for: one killed may have started another just before.
const SWEEPS: usize = 3;

/// How long the kernel may take to end one that was killed.
const END: Duration = Duration::from_secs(5);

/// A process of the case.
pub(super) struct Stray {
    pid: Pid,
    pub(super) name: String,
}

/// The processes in a namespace of the calling thread's, other than this one.
pub(super) fn find() -> Vec<Stray> {
    let own = |kind: &str| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).ok();
    let (mounts, network) = (own("mnt"), own("net"));
    let us = rustix::process::getpid();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().parse().ok();
        let Some(pid) = number.and_then(Pid::from_raw).filter(|pid| *pid != us) else { continue };
        let is_in = |kind: &str, ours: &Option<PathBuf>| {
            ours.is_some() && std::fs::read_link(entry.path().join("ns").join(kind)).ok() == *ours
        };
        if is_in("mnt", &mounts) || is_in("net", &network) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(Stray { pid, name: name.trim_end().to_owned() });
        }
    }
    found
}

/// Ends them: a case leaves nothing running.
pub(super) fn end_all() {
    for _ in 0..SWEEPS {
        let found = find();
        if found.is_empty() {
            return;
        }
        for stray in found {
            if let Ok(process) = pidfd_open(stray.pid, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&process, Signal::KILL);
                let _ = cofferdam_linux::wait::readable(&process, END);
            }
        }
    }
}
