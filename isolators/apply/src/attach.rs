//! The attach stage: what the parent does to the child while the child builds its mounts.

use std::fmt::Write as _;
use std::os::fd::AsFd;

use cofferdam_linux::process::Child;
use cofferdam_plan::{Barrier, IdMapping, Op};
use rustix::io::Errno;

use crate::applied::Run;
use crate::channel::{self, Heard};
use crate::host::{self, Outcome, cgroup_words, plain};

/// Runs one step of the attach stage. `ECHILD` says that the child is gone and has recorded why.
pub(crate) fn run(run: &mut Run<'_>, child: &Child, op: &Op) -> Outcome {
    match op {
        Op::MapIds { uids, gids } => map_ids(child, uids, gids),
        Op::AttachCgroup => {
            let cgroup = run.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
            cgroup.attach(child.pid).map_err(cgroup_words)
        }
        Op::CreateCgroup { .. } | Op::OpenCgroup { .. } | Op::WriteCgroup(_) => host::run(run, op),
        Op::AdjustOomScore { value } => write_proc(child, "oom_score_adj", &value.to_string()),
        Op::MoveNetDevice { device, name, .. } => {
            let theirs = match run.lent_to.take() {
                Some(known) => known,
                None => crate::device::namespace(child).map_err(plain)?,
            };
            crate::device::lend(run.lent_to.insert(theirs), device, name)
        }
        Op::RunHooks { point } => {
            run.attendant.run_hooks(*point, child).map_err(|words| (Errno::CANCELED, Some(words)))
        }
        Op::Release(barrier) => channel::say(run.channel.as_fd(), barrier.token()).map_err(gone),
        Op::Await(barrier) => await_child(run, *barrier),
        _ => Err((Errno::NOSYS, Some("not an operation of the attach stage".into()))),
    }
}

fn gone(errno: Errno) -> (Errno, Option<String>) {
    plain(if errno == Errno::PIPE { Errno::CHILD } else { errno })
}

fn await_child(run: &Run<'_>, barrier: Barrier) -> Outcome {
    match channel::hear(run.channel.as_fd()).map_err(plain)? {
        Heard::Barrier(token) if token == barrier.token() => Ok(()),
        Heard::Closed => Err(plain(Errno::CHILD)),
        Heard::Barrier(_) | Heard::Created => Err(plain(Errno::PROTO)),
    }
}

fn write_proc(child: &Child, file: &str, text: &str) -> Outcome {
    let path = format!("/proc/{}/{file}", child.pid);
    std::fs::write(&path, text).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        (errno, Some(format!("writing {:?} to {path}", text.trim_end())))
    })
}

/// Writes the id maps, user_namespaces(7). A single mapping of the caller's own ids needs no privilege once setgroups is
/// denied; anything more needs CAP_SETUID and CAP_SETGID, or the helpers of the uidmap package.
fn map_ids(child: &Child, uids: &[IdMapping], gids: &[IdMapping]) -> Outcome {
    if !rustix::process::geteuid().is_root() && gids.len() == 1 && gids[0].count == 1 {
        write_proc(child, "setgroups", "deny")?;
    }
    if !gids.is_empty() {
        write_proc(child, "gid_map", &lines(gids))?;
    }
    if uids.is_empty() { Ok(()) } else { write_proc(child, "uid_map", &lines(uids)) }
}

/// An id map as the kernel takes it.
pub(crate) fn lines(map: &[IdMapping]) -> String {
    map.iter().fold(String::new(), |mut text, mapping| {
        let _ = writeln!(text, "{mapping}");
        text
    })
}
