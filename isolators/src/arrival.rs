//! When a joining process comes to be among those of the container.
//!
//! Whoever is in a pid namespace can name whoever else is in it, and a process that joins is the runtime until it executes
//! its program: with the runtime's memory, and at first with its privileges. Not being dumpable keeps it from being looked
//! into, except by those who hold CAP_SYS_PTRACE where its memory belongs: in the host's user namespace (CVE-2016-9962).
//! Where such may be inside, the process enters the pid namespace last: a second clone, after everything is given up.

use cofferdam_plan::{Builder, HostFeatures, Namespace, Refusal};
use oci_spec::runtime::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Process};

use crate::capabilities::{CapSet, Capability, CapabilitySets};
use crate::container::Joining;
use crate::namespaces::Membership;
use crate::seccomp::Filter;

/// The flags of the second clone: CLONE_PARENT, CLONE_PARENT_SETTID, and SIGCHLD at its end.
pub const CLONE_FLAGS: u64 = 0x8000 | 0x0010_0000 | 17;

/// TIOCSCTTY of ioctl_tty(2).
const TAKE_TERMINAL: u64 = 0x540e;

/// When a joining process enters the container's pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is cloned into it.
    First,
    /// Just before it executes its program, when it is confined.
    Last,
}

impl Arrival {
    /// When a process enters; warns where it would have to be last and cannot.
    pub(crate) fn of(
        joining: &Joining<'_>,
        host: &HostFeatures,
        filter: Option<&Filter>,
        builder: &mut Builder,
    ) -> Result<Self, Refusal> {
        let members = Membership::of(joining.spec)?;
        let watched = members.has(Namespace::Pid)
            && !members.has(Namespace::User)
            && CapSet::from_bits(host.capabilities).contains(Capability::SYS_PTRACE)
            && (joining.tracers || joining.spec.process().as_ref().is_some_and(may_trace));
        if !watched {
            return Ok(Self::First);
        }
        let Some(obstacle) = obstacle(joining.process, filter) else { return Ok(Self::Last) };
        builder.warn(format!(
            "the container may trace (CAP_SYS_PTRACE) and can see this process before it is confined, since {obstacle}"
        ));
        Ok(Self::First)
    }
}

/// Whether a process with this configuration may look into others.
pub fn may_trace(process: &Process) -> bool {
    let sets = process.capabilities().as_ref().map(CapabilitySets::from_oci).unwrap_or_default();
    let CapabilitySets { bounding, effective, permitted, inheritable, ambient } = sets;
    let any = [effective, permitted, inheritable, ambient].into_iter().fold(bounding, CapSet::union);
    any.contains(Capability::SYS_PTRACE)
}

/// What does not survive a second clone under the container's filter.
fn obstacle(process: &Process, filter: Option<&Filter>) -> Option<&'static str> {
    if let Some(filter) = filter {
        if filter.notify.is_some() {
            return Some("a supervisor of its system calls is told its pid first");
        }
        let terminal = process.terminal().unwrap_or(false);
        let calls = [
            Some(("clone", [CLONE_FLAGS, 0, 0, 0, 0, 0])),
            Some(("setsid", [0; 6])),
            terminal.then_some(("ioctl", [0, TAKE_TERMINAL, 0, 0, 0, 0])),
        ];
        if !calls.into_iter().flatten().all(|(name, arguments)| filter.permits(name, arguments)) {
            return Some("its system call filter forbids clone, setsid or the terminal's ioctl");
        }
    }
    let scheduler = process.scheduler().as_ref()?;
    let resets = scheduler.flags().iter().flatten().any(|flag| *flag == LinuxSchedulerFlag::SchedResetOnFork);
    let deadline = *scheduler.policy() == LinuxSchedulerPolicy::SchedDeadline;
    (resets || deadline).then_some("its scheduling policy does not outlive a clone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile_joining;
    use cofferdam_plan::{ContainerId, Op};
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    /// Whether a process of this container enters last, and what is said about it.
    fn arrives_last(change: impl FnOnce(&mut Value), tracers: bool) -> (bool, Vec<String>) {
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true },
            "linux": { "namespaces": [{ "type": "pid" }] }
        });
        change(&mut config);
        let spec: Spec = serde_json::from_value(config).unwrap();
        let id = ContainerId::parse("c").unwrap();
        let joining = Joining {
            spec: &spec,
            id: &id,
            init_pid: 2,
            lent: false,
            bundle: std::path::Path::new("/bundle"),
            process: spec.process().as_ref().unwrap(),
            program: None,
            console: crate::Console::None,
            stdio: false,
            preserve_fds: 0,
            cgroup: None,
            tracers,
            below: &[],
        };
        let plan = compile_joining(&joining, &HostFeatures::sample()).unwrap();
        let last = plan.find(|op| (*op == Op::EnterPidNamespace).then_some(())).is_some();
        let first = plan.find(|op| match op {
            Op::Clone { pid_namespace, .. } => *pid_namespace,
            _ => None,
        });
        assert!(!(last && first.is_some()), "entered twice: {plan}");
        (last, plan.warnings)
    }

    fn tracing(config: &mut Value) {
        config["process"]["capabilities"] = json!({ "bounding": ["CAP_SYS_PTRACE"] });
    }

    #[test]
    fn a_process_enters_last_where_others_may_trace_it() {
        assert_eq!(arrives_last(|_| (), false), (false, vec![]));
        assert_eq!(arrives_last(tracing, false), (true, vec![]));
        assert_eq!(arrives_last(|_| (), true), (true, vec![]), "by an earlier exec");
        let shared = |config: &mut Value| {
            tracing(config);
            config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
        };
        assert_eq!(arrives_last(shared, false), (false, vec![]), "they see every process of the host");
        let own_users = |config: &mut Value| {
            tracing(config);
            let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
            config["linux"] = json!({ "namespaces": [{ "type": "pid" }, { "type": "user" }],
                "uidMappings": map, "gidMappings": map });
        };
        assert_eq!(arrives_last(own_users, false), (false, vec![]), "not being dumpable is enough");
    }

    #[test]
    fn what_does_not_outlive_a_clone_is_said() {
        for (calls, last) in
            [(&["swapon"][..], true), (&["clone"], false), (&["setsid"], false), (&["ioctl"], true)]
        {
            let filtered = |config: &mut Value| {
                tracing(config);
                config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO" }] });
            };
            let (is_last, warnings) = arrives_last(filtered, false);
            assert_eq!((is_last, warnings.is_empty()), (last, last), "{calls:?}: {warnings:?}");
        }
        let scheduled = |config: &mut Value| {
            tracing(config);
            config["process"]["scheduler"] =
                json!({ "policy": "SCHED_FIFO", "priority": 1, "flags": ["SCHED_RESET_ON_FORK"] });
        };
        let (is_last, warnings) = arrives_last(scheduled, false);
        assert!(!is_last && warnings[0].contains("does not outlive a clone"), "{warnings:?}");
    }
}
