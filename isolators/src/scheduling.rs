//! How the kernel schedules the process and places its memory: policies, input and output priority, processors, NUMA
//! nodes, personality. runtime-spec config.md, "Linux Process"; config-linux.md, "Memory Policy" and "Personality".

use cofferdam_plan::{Builder, HostFeatures, Op, Refusal, Stage};
use oci_spec::runtime::{
    IOPriorityClass, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler, Spec,
};

use crate::cgroup::cpu_list::CpuList;

/// Scheduling policies: (name, number), sched(7).
pub const POLICIES: &[(&str, LinuxSchedulerPolicy, u32)] = &[
    ("SCHED_OTHER", LinuxSchedulerPolicy::SchedOther, 0),
    ("SCHED_FIFO", LinuxSchedulerPolicy::SchedFifo, 1),
    ("SCHED_RR", LinuxSchedulerPolicy::SchedRr, 2),
    ("SCHED_BATCH", LinuxSchedulerPolicy::SchedBatch, 3),
    ("SCHED_ISO", LinuxSchedulerPolicy::SchedIso, 4),
    ("SCHED_IDLE", LinuxSchedulerPolicy::SchedIdle, 5),
    ("SCHED_DEADLINE", LinuxSchedulerPolicy::SchedDeadline, 6),
];

/// Flags of a scheduling policy, sched_setattr(2): (name, bit).
pub const SCHEDULER_FLAGS: &[(&str, LinuxSchedulerFlag, u64)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", LinuxSchedulerFlag::SchedResetOnFork, 0x01),
    ("SCHED_FLAG_RECLAIM", LinuxSchedulerFlag::SchedFlagReclaim, 0x02),
    ("SCHED_FLAG_DL_OVERRUN", LinuxSchedulerFlag::SchedFlagDLOverrun, 0x04),
    ("SCHED_FLAG_KEEP_POLICY", LinuxSchedulerFlag::SchedFlagKeepPolicy, 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", LinuxSchedulerFlag::SchedFlagKeepParams, 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", LinuxSchedulerFlag::SchedFlagUtilClampMin, 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", LinuxSchedulerFlag::SchedFlagUtilClampMax, 0x40),
];

/// Classes of input and output priority, ioprio_set(2): (name, number).
pub const IO_CLASSES: &[(&str, IOPriorityClass, u32)] = &[
    ("IOPRIO_CLASS_RT", IOPriorityClass::IoprioClassRt, 1),
    ("IOPRIO_CLASS_BE", IOPriorityClass::IoprioClassBe, 2),
    ("IOPRIO_CLASS_IDLE", IOPriorityClass::IoprioClassIdle, 3),
];

/// A mode of a memory policy: (name, itself, number, first kernel, what it does with nodes).
pub type MemoryMode = (&'static str, MemoryPolicyModeType, u32, (u32, u32), Nodes);

/// Modes of a memory policy, set_mempolicy(2).
pub const MEMORY_MODES: &[MemoryMode] = &[
    ("MPOL_DEFAULT", MemoryPolicyModeType::MpolDefault, 0, (2, 6), Nodes::None),
    ("MPOL_PREFERRED", MemoryPolicyModeType::MpolPreferred, 1, (2, 6), Nodes::Optional),
    ("MPOL_BIND", MemoryPolicyModeType::MpolBind, 2, (2, 6), Nodes::Needed),
    ("MPOL_INTERLEAVE", MemoryPolicyModeType::MpolInterleave, 3, (2, 6), Nodes::Needed),
    ("MPOL_LOCAL", MemoryPolicyModeType::MpolLocal, 4, (3, 8), Nodes::None),
    ("MPOL_PREFERRED_MANY", MemoryPolicyModeType::MpolPreferredMany, 5, (5, 15), Nodes::Needed),
    ("MPOL_WEIGHTED_INTERLEAVE", MemoryPolicyModeType::MpolWeightedInterleave, 6, (6, 9), Nodes::Needed),
];

/// Flags of a memory policy: (name, bit).
pub const MEMORY_FLAGS: &[(&str, MemoryPolicyFlagType, u32)] = &[
    ("MPOL_F_NUMA_BALANCING", MemoryPolicyFlagType::MpolFNumaBalancing, NUMA_BALANCING),
    ("MPOL_F_RELATIVE_NODES", MemoryPolicyFlagType::MpolFRelativeNodes, RELATIVE_NODES),
    ("MPOL_F_STATIC_NODES", MemoryPolicyFlagType::MpolFStaticNodes, STATIC_NODES),
];

/// Execution domains, personality(2): (name, number).
pub const PERSONALITIES: &[(&str, LinuxPersonalityDomain, u32)] =
    &[("LINUX", LinuxPersonalityDomain::PerLinux, 0), ("LINUX32", LinuxPersonalityDomain::PerLinux32, 8)];

/// What a memory policy does with its list of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// It takes none.
    None,
    /// It takes some or none.
    Optional,
    /// It needs some.
    Needed,
}

const NUMA_BALANCING: u32 = 1 << 13;
const RELATIVE_NODES: u32 = 1 << 14;
const STATIC_NODES: u32 = 1 << 15;

/// Highest number of a NUMA node, `MAX_NUMNODES` of the largest kernels.
const NODES_MAX: u32 = 1024;
/// Highest number of a processor that an affinity takes here.
const CPUS_MAX: u32 = 1024;

/// CAP_SYS_NICE: may have real time and negative nice values.
const SYS_NICE: u32 = 23;
/// `RLIMIT_NICE` and `RLIMIT_RTPRIO`, which give a share of that.
const LIMITS_OF_NICE: [usize; 2] = [13, 14];

/// The steps of a process, while it still has its capabilities.
pub(crate) fn plan(
    spec: &Spec,
    process: &Process,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let linux = spec.linux().as_ref();
    if let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) {
        builder.step(Stage::Confine, "/linux/memoryPolicy", memory_policy(policy, host)?);
    }
    if let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) {
        let domain = number(PERSONALITIES, personality.domain());
        builder.step(Stage::Confine, "/linux/personality", Op::SetPersonality { domain });
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            builder.warn("/linux/personality/flags: the specification knows none, they are ignored");
        }
    }
    if let Some(priority) = process.io_priority() {
        let class = number(IO_CLASSES, priority.class());
        let level = u32::try_from(priority.priority()).ok().filter(|level| *level < 8);
        let level = level.ok_or_else(|| {
            Refusal::invalid("/process/ioPriority/priority", format!("{} is not 0 to 7", priority.priority()))
        })?;
        builder.step(Stage::Confine, "/process/ioPriority", Op::SetIoPriority { class, level });
    }
    if let Some(asked) = process.scheduler() {
        builder.step(Stage::Confine, "/process/scheduler", scheduler(asked, host)?);
        if asked.nice().is_some_and(|nice| nice != 0) && !is_fair(*asked.policy()) {
            let policy = POLICIES.iter().find(|(_, policy, _)| policy == asked.policy());
            let name = policy.map_or("this policy", |(name, ..)| *name);
            builder.warn(format!("/process/scheduler/nice: means nothing to {name} and is ignored"));
        }
    }
    Ok(())
}

/// The processors of a joining process: before it is in the container's cgroup, and after; all that the cgroup gives where
/// nothing is said. config.md, `execCPUAffinity`.
pub(crate) fn plan_affinity(process: &Process, builder: &mut Builder) -> Result<(), Refusal> {
    let Some(affinity) = process.exec_cpu_affinity() else {
        reset_affinity(builder);
        return Ok(());
    };
    if let Some(cpus) = cpus(affinity.initial(), "/process/execCPUAffinity/initial")? {
        builder.step(Stage::Host, "/process/execCPUAffinity/initial", Op::BeginOn { cpus });
    }
    if let Some(cpus) = cpus(affinity.cpu_affinity_final(), "/process/execCPUAffinity/final")? {
        builder.step(Stage::Confine, "/process/execCPUAffinity/final", Op::SetAffinity { cpus });
    }
    Ok(())
}

/// What the caller was held to, by taskset(1) or by its service manager, is not the container's: its limit is its cgroup.
pub(crate) fn reset_affinity(builder: &mut Builder) {
    builder.step(Stage::Confine, "every container", Op::ResetAffinity);
}

fn cpus(list: &Option<String>, pointer: &str) -> Result<Option<Vec<u32>>, Refusal> {
    let Some(text) = list.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let list = CpuList::parse(text).map_err(|problem| Refusal::invalid(pointer, problem))?;
    if let Some(above) = list.iter().find(|cpu| *cpu >= CPUS_MAX) {
        return Err(Refusal::invalid(pointer, format!("{above} is not a processor below {CPUS_MAX}")));
    }
    Ok(Some(list.iter().collect()))
}

/// The number beside a value in a table that has all of them.
fn number<T: PartialEq, N: Copy + Default>(table: &[(&str, T, N)], wanted: T) -> N {
    table.iter().find(|(_, value, _)| *value == wanted).map_or_else(N::default, |(_, _, number)| *number)
}

fn scheduler(asked: &Scheduler, host: &HostFeatures) -> Result<Op, Refusal> {
    use LinuxSchedulerPolicy::{SchedDeadline, SchedFifo, SchedIso, SchedRr};
    let refuse =
        |field: &str, problem: String| Err(Refusal::invalid(format!("/process/scheduler{field}"), problem));
    let policy = *asked.policy();
    let (nice, priority) = (asked.nice().unwrap_or(0), asked.priority().unwrap_or(0));
    let nanoseconds = [*asked.runtime(), *asked.deadline(), *asked.period()].map(Option::unwrap_or_default);
    let [runtime_ns, deadline_ns, period_ns] = nanoseconds;
    if policy == SchedIso {
        return Err(Refusal::unsupported(
            "/process/scheduler/policy",
            "Linux reserves SCHED_ISO and has none",
        ));
    }
    if !(-20..=19).contains(&nice) {
        return refuse("/nice", format!("{nice}: -20 to 19"));
    }
    // sched_setattr(2): of every other policy the kernel passes it over.
    let nice = if is_fair(policy) { nice } else { 0 };
    let real_time = matches!(policy, SchedFifo | SchedRr);
    let priorities = if real_time { 1..=99 } else { 0..=0 };
    if !priorities.contains(&priority) {
        return refuse("/priority", format!("{priority}: 1 to 99 with SCHED_FIFO and SCHED_RR, else none"));
    }
    if policy == SchedDeadline {
        // sched(7): runtime <= deadline <= period, and a period of 0 is the deadline.
        if runtime_ns == 0 || runtime_ns > deadline_ns || period_ns != 0 && deadline_ns > period_ns {
            return refuse("", "SCHED_DEADLINE needs 0 < runtime <= deadline <= period".to_owned());
        }
    } else if nanoseconds != [0; 3] {
        return refuse("", "runtime, deadline and period are for SCHED_DEADLINE only".to_owned());
    }
    let lenient = LIMITS_OF_NICE.iter().any(|limit| host.hard_limits[*limit] > 0) && policy != SchedDeadline;
    if (real_time || policy == SchedDeadline || nice < 0) && !host.holds(SYS_NICE) && !lenient {
        return Err(Refusal::unsupported(
            "/process/scheduler",
            "needs CAP_SYS_NICE, which the runtime lacks",
        ));
    }
    let flags = asked.flags().iter().flatten().fold(0, |bits, flag| bits | number(SCHEDULER_FLAGS, *flag));
    Ok(Op::SetScheduler {
        policy: number(POLICIES, policy),
        flags,
        nice,
        priority: priority.unsigned_abs(),
        runtime_ns,
        deadline_ns,
        period_ns,
    })
}

/// Whether a policy shares by nice values, sched(7).
fn is_fair(policy: LinuxSchedulerPolicy) -> bool {
    matches!(policy, LinuxSchedulerPolicy::SchedOther | LinuxSchedulerPolicy::SchedBatch)
}

fn memory_policy(asked: &LinuxMemoryPolicy, host: &HostFeatures) -> Result<Op, Refusal> {
    let refuse = |field: &str, problem: String| {
        Err(Refusal::invalid(
            format!("/linux/memoryPolicy/{field}"),
            format!("invalid memory policy {field}: {problem}"),
        ))
    };
    let Some((name, _, number_of_mode, since, nodes_of_mode)) =
        MEMORY_MODES.iter().find(|(_, mode, ..)| *mode == asked.mode())
    else {
        return refuse("mode", format!("unknown mode {}", asked.mode()));
    };
    if host.online_nodes.is_empty() {
        return Err(Refusal::unsupported("/linux/memoryPolicy", "this kernel has no memory policies"));
    }
    if host.kernel < *since {
        let problem = format!("{name} is from Linux {}.{}", since.0, since.1);
        return Err(Refusal::unsupported("/linux/memoryPolicy/mode", problem));
    }
    let flags = asked.flags().iter().flatten().fold(0, |bits, flag| bits | number(MEMORY_FLAGS, *flag));
    if flags & RELATIVE_NODES != 0 && flags & STATIC_NODES != 0 {
        return refuse("flags", "MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other".into());
    }
    if flags & NUMA_BALANCING != 0 && asked.mode() != MemoryPolicyModeType::MpolBind {
        return refuse("flags", "MPOL_F_NUMA_BALANCING goes with MPOL_BIND only".into());
    }
    let listed = asked.nodes().as_deref().unwrap_or_default();
    let listed = match CpuList::parse(listed) {
        Ok(listed) => listed,
        Err(problem) => return refuse("nodes", problem),
    };
    match nodes_of_mode {
        Nodes::None if !listed.is_empty() => {
            return refuse(
                "nodes",
                format!("{name} mode requires 0 nodes but got {}", listed.iter().count()),
            );
        }
        Nodes::None | Nodes::Optional if listed.is_empty() && flags != 0 => {
            return refuse("flags", format!("{name} without nodes takes no flags"));
        }
        Nodes::Needed if listed.is_empty() => return refuse("nodes", format!("{name} needs nodes")),
        _ => {}
    }
    if let Some(above) = listed.iter().find(|node| *node >= NODES_MAX) {
        return refuse("nodes", format!("{above} is not a node below {NODES_MAX}"));
    }
    if flags & (RELATIVE_NODES | STATIC_NODES) == 0
        && let Ok(online) = CpuList::parse(&host.online_nodes)
        && !listed.without(&online).is_empty()
    {
        let problem = format!("nodes {} are not online", listed.without(&online));
        return Err(Refusal::unsupported("/linux/memoryPolicy/nodes", problem));
    }
    let words = listed.iter().max().map_or(0, |highest| highest as usize / 64 + 1);
    let mut nodes = vec![0; words];
    listed.iter().for_each(|node| nodes[node as usize / 64] |= 1 << (node % 64));
    Ok(Op::SetMemoryPolicy { mode: number_of_mode | flags, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFeatures {
        HostFeatures { online_nodes: "0-1".into(), ..HostFeatures::sample() }
    }

    fn refusal(result: Result<Op, Refusal>) -> String {
        result.unwrap_err().to_string()
    }

    /// config.md, "scheduler"; sched(7).
    #[test]
    fn a_policy_takes_what_belongs_to_it() {
        let plan = |json| scheduler(&serde_json::from_value(json).unwrap(), &host());
        let op = |policy, nice, priority, flags, [runtime_ns, deadline_ns, period_ns]: [u64; 3]| {
            Ok(Op::SetScheduler { policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns })
        };
        let json = serde_json::json!({"policy": "SCHED_BATCH", "nice": 10});
        assert_eq!(plan(json), op(3, 10, 0, 0, [0; 3]));
        let json =
            serde_json::json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_RESET_ON_FORK"]});
        assert_eq!(plan(json), op(1, 0, 5, 1, [0; 3]));
        let json =
            serde_json::json!({"policy": "SCHED_DEADLINE", "runtime": 10, "deadline": 20, "period": 30});
        assert_eq!(plan(json), op(6, 0, 0, 0, [10, 20, 30]));
        let json = serde_json::json!({"policy": "SCHED_DEADLINE", "nice": 19, "runtime": 10, "deadline": 20});
        assert_eq!(plan(json), op(6, 0, 0, 0, [10, 20, 0]));
        for (json, expected) in [
            (serde_json::json!({"policy": "SCHED_ISO"}), "SCHED_ISO"),
            (serde_json::json!({"policy": "SCHED_OTHER", "nice": 20}), "/process/scheduler/nice"),
            (
                serde_json::json!({"policy": "SCHED_RR", "nice": -21, "priority": 1}),
                "/process/scheduler/nice",
            ),
            (serde_json::json!({"policy": "SCHED_RR"}), "/process/scheduler/priority"),
            (serde_json::json!({"policy": "SCHED_OTHER", "priority": 1}), "/process/scheduler/priority"),
            (serde_json::json!({"policy": "SCHED_OTHER", "runtime": 1}), "SCHED_DEADLINE only"),
            (
                serde_json::json!({"policy": "SCHED_DEADLINE", "runtime": 2, "deadline": 1}),
                "runtime <= deadline",
            ),
        ] {
            let words = refusal(plan(json.clone()));
            assert!(words.contains(expected), "{json}: {words}");
        }
        let weak = HostFeatures { capabilities: 0, hard_limits: [0; 16], ..host() };
        let json = serde_json::json!({"policy": "SCHED_FIFO", "priority": 5});
        let words = refusal(scheduler(&serde_json::from_value(json).unwrap(), &weak));
        assert!(words.contains("CAP_SYS_NICE"), "{words}");
    }

    /// config-linux.md, "Memory Policy"; set_mempolicy(2).
    #[test]
    fn a_memory_policy_takes_what_belongs_to_it() {
        let plan = |json| memory_policy(&serde_json::from_value(json).unwrap(), &host());
        let op = |mode, nodes| Ok(Op::SetMemoryPolicy { mode, nodes });
        let json = serde_json::json!({"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]});
        assert_eq!(plan(json), op(2 | 1 << 15, vec![3]));
        assert_eq!(plan(serde_json::json!({"mode": "MPOL_LOCAL"})), op(4, vec![]));
        assert_eq!(plan(serde_json::json!({"mode": "MPOL_PREFERRED", "nodes": "1"})), op(1, vec![2]));
        for (json, expected) in [
            (serde_json::json!({"mode": "MPOL_BIND"}), "needs nodes"),
            (serde_json::json!({"mode": "MPOL_DEFAULT", "nodes": "0"}), "requires 0 nodes but got 1"),
            (serde_json::json!({"mode": "MPOL_BIND", "nodes": "7"}), "not online"),
            (serde_json::json!({"mode": "MPOL_BIND", "nodes": "x"}), "invalid memory policy"),
            (
                serde_json::json!({"mode": "MPOL_BIND", "nodes": "0",
                    "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
                "exclude each other",
            ),
            (
                serde_json::json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}),
                "MPOL_BIND only",
            ),
        ] {
            let words = refusal(plan(json.clone()));
            assert!(words.contains(expected), "{json}: {words}");
        }
        let old = HostFeatures { kernel: (5, 10), ..host() };
        let json = serde_json::json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"});
        let words = refusal(memory_policy(&serde_json::from_value(json).unwrap(), &old));
        assert!(words.contains("Linux 5.15"), "{words}");
    }
}
