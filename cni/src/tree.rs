//! The processes of an operation's plugins, all of them: in a cgroup of their own where the host has one to give.
//!
//! A plugin may start others, and those may leave its process group and its session; out of the cgroup they cannot. It is
//! named after the lock under which the operation runs. So whoever takes that lock next finds what a killed caller left
//! running, and ends it before it does anything else: a plugin that goes on adding while its DEL runs would leak.
//!
//! Without a cgroup (no version 2 tree, no privileges, a read-only mount) the process group and the living descendants
//! are killed; what has detached itself from both is out of reach then.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use cofferdam_linux::cgroup::{Cgroup, Layout};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// What the name of every such cgroup begins with.
const PREFIX: &str = "/cofferdam-cni-";
/// How often descendants are looked for: one killed may have started another just before.
const SWEEPS: usize = 3;

/// The cgroup of one operation, made when the first program is to be started in it.
#[derive(Debug)]
pub(crate) struct Tree {
    path: String,
    cgroup: Mutex<Option<Cgroup>>,
}

impl Tree {
    /// For whoever holds the lock of this name. Ends what a killed holder left running.
    pub(crate) fn new(name: &str) -> Self {
        let tree = Self { path: format!("{PREFIX}{name}"), cgroup: Mutex::default() };
        if let Some(left) = layout().and_then(|layout| Cgroup::open_in(layout, &tree.path).ok()) {
            // What resists hangs in the kernel, and would be in nobody's way to make it so.
            let _ = left.kill();
            let _ = left.remove();
        }
        tree
    }

    /// The directory to start a program in.
    pub(crate) fn directory(&self) -> Option<OwnedFd> {
        let mut cgroup = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        if cgroup.is_none() {
            *cgroup = Cgroup::create_in(layout()?, &self.path).ok();
        }
        cgroup.as_ref()?.directory().ok()
    }

    /// Kills `leader`, its process group, and everything that descends from it.
    pub(crate) fn kill(&self, leader: Pid) {
        let _ = kill_process_group(leader, Signal::KILL);
        match self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(cgroup) => {
                let _ = cgroup.kill();
                // Kernels compare the number of kills of the cgroup that a process is born in with that of its parent's, and
                // kill who is born into one that was killed before: the next program gets another cgroup.
                let _ = cgroup.remove();
            }
            None => kill_descendants(leader),
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let Some(cgroup) = self.cgroup.get_mut().unwrap_or_else(PoisonError::into_inner) else { return };
        // Some plugins start a daemon (a name server, for instance): it stays, where the caller is.
        if let Some(own) = layout().and_then(|layout| layout.unified.as_ref()) {
            let procs = own.mount_point.join(own.own_path.trim_start_matches('/')).join("cgroup.procs");
            for pid in cgroup.processes().unwrap_or_default() {
                let _ = std::fs::write(&procs, pid.to_string());
            }
        }
        // An empty cgroup that stays is found by the next holder of the lock.
        let _ = cgroup.remove();
    }
}

/// The version 2 tree alone, without controllers: nothing is limited or counted here.
fn layout() -> Option<&'static Layout> {
    static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();
    LAYOUT
        .get_or_init(|| {
            let mut unified = Layout::probe().ok()?.unified?;
            unified.controllers.clear();
            Some(Layout { v1: Vec::new(), unified: Some(unified) })
        })
        .as_ref()
}

fn kill_descendants(leader: Pid) {
    for _ in 0..SWEEPS {
        let found = descendants(leader);
        if found.is_empty() {
            return;
        }
        for pid in found {
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }
}

fn descendants(leader: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut parents = vec![leader];
    while let Some(parent) = parents.pop() {
        let tasks = format!("/proc/{}/task", parent.as_raw_nonzero());
        for task in std::fs::read_dir(Path::new(&tasks)).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
            for child in children {
                parents.push(child);
                found.push(child);
            }
        }
    }
    found
}
