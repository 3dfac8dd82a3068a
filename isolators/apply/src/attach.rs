//! The attach stage: what the parent does to the child while the child builds its mounts.

use std::fmt::Write as _;
use std::os::fd::AsFd;

use cofferdam_linux::process::Child;
use cofferdam_plan::{Barrier, IdMapping, Mapper, Op};
use rustix::io::Errno;

use crate::applied::Run;
use crate::channel::{self, Heard};
use crate::host::{self, Outcome, cgroup_words, plain};

/// Runs one step of the attach stage. `ECHILD` says that the child is gone and has recorded why.
pub(crate) fn run(run: &mut Run<'_>, child: &Child, op: &Op) -> Outcome {
    match op {
        Op::MapIds { uids, uid_mapper, gids, gid_mapper } => {
            // Groups first: once the uids are mapped, the maps are no longer ours to write.
            if *gid_mapper == Mapper::Own {
                write_proc(child, "setgroups", "deny")?;
            }
            map_ids(child, GROUPS, gids, *gid_mapper)?;
            map_ids(child, USERS, uids, *uid_mapper)
        }
        Op::AttachClass { root, groups } => crate::resctrl::attach(root, groups, child.pid),
        Op::AttachCgroup => {
            let cgroup = run.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
            if !run.born_inside {
                cgroup.attach_unified(child.pid).map_err(cgroup_words)?;
            }
            run.doors = cgroup.doors().map_err(cgroup_words)?;
            Ok(())
        }
        Op::CreateCgroup { .. }
        | Op::OpenCgroup { .. }
        | Op::WriteCgroup(_)
        | Op::FilterDevices { .. }
        | Op::DelegateCgroup { .. } => host::run(run, op),
        Op::StartUnit { unit, properties } => {
            run.attendant.start_unit(unit, properties, child).map_err(|words| (Errno::CANCELED, Some(words)))
        }
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
        Op::Release(barrier) => {
            let doors =
                if *barrier == Barrier::Attached { std::mem::take(&mut run.doors) } else { Vec::new() };
            channel::release(run.channel.as_fd(), *barrier, &doors).map_err(gone)
        }
        Op::Await(barrier) => await_child(run, *barrier),
        _ => Err((Errno::NOSYS, Some("not an operation of the attach stage".into()))),
    }
}

fn gone(errno: Errno) -> (Errno, Option<String>) {
    plain(if errno == Errno::PIPE { Errno::CHILD } else { errno })
}

fn await_child(run: &Run<'_>, barrier: Barrier) -> Outcome {
    match channel::hear(run.channel.as_fd(), run.patience).map_err(plain)? {
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

/// A map's file below /proc/PID, and the program that writes what we may not.
type Map = (&'static str, &'static str);

const USERS: Map = ("uid_map", "newuidmap");
const GROUPS: Map = ("gid_map", "newgidmap");

/// Writes one id map, user_namespaces(7).
fn map_ids(child: &Child, (file, helper): Map, map: &[IdMapping], mapper: Mapper) -> Outcome {
    if mapper == Mapper::Helper {
        let numbers = map.iter().flat_map(|line| [line.inside, line.outside, line.count]);
        let arguments =
            std::iter::once(child.pid.to_string()).chain(numbers.map(|number| number.to_string()));
        return crate::helper::run(helper, arguments).map_err(|(errno, words)| (errno, Some(words)));
    }
    write_proc(child, file, &lines(map))
}

/// An id map as the kernel takes it.
pub(crate) fn lines(map: &[IdMapping]) -> String {
    map.iter().fold(String::new(), |mut text, mapping| {
        let _ = writeln!(text, "{mapping}");
        text
    })
}
