//! The profile that the executor and the command line give to every task that brings none.
//!
//! A list of what is allowed, computed from the capabilities the task holds: a call that needs a capability is allowed
//! exactly if the task has it. Everything else gets EPERM, and what is newer than this list gets ENOSYS.
//!
//! [`Style::Docker`] has the effect of Docker's default profile. [`Style::Strict`], our default, further
//!
//! - allows sockets of five families only: UNIX, INET, INET6, NETLINK, and PACKET with CAP_NET_RAW (AF_ALG gave away page
//!   cache in CVE-2026-31431, AF_VSOCK reaches the hypervisor; each year brings another family);
//! - refuses TIOCSTI and TIOCLINUX, which type into the terminal of whoever watches;
//! - compares arguments that the kernel reads as 32-bit integers by their low word only, so that noise in the high word
//!   neither passes a refusal nor fails an allowance (CVE-2019-7303);
//! - leaves x32 out: calls through it kill the process.
//!
//! io_uring, userfaultfd and the keyring calls are in neither: absent from the list is refused. `socketcall`, the door of
//! 32-bit x86, is allowed as in Docker: its arguments lie in memory where no filter sees them.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::architecture::Architecture;
use crate::capabilities::{CapSet, Capability};

/// How far the profile goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The effect of Docker's default profile.
    Docker,
    /// Docker's, and what the module describes.
    Strict,
}

/// The default profile for a task that holds `granted`, on a machine whose native architecture is `native`.
#[must_use]
pub fn profile(style: Style, granted: CapSet, native: Architecture) -> LinuxSeccomp {
    let mut rules = vec![allow(ALWAYS)];
    rules.extend(native_only(native).map(allow));
    rules.extend(
        WITH_CAPABILITY.iter().filter(|(needed, _)| granted.contains(*needed)).map(|(_, calls)| allow(calls)),
    );
    rules.extend(clone(granted, native));
    rules.extend(PERSONALITIES.map(|persona| allow_if("personality", &[word_is(style, 0, persona)])));
    rules.extend(sockets(style, granted));
    rules.extend(ioctl(style));

    let mut architectures = vec![native.to_oci()];
    let relatives =
        native.relatives().iter().filter(|abi| style == Style::Docker || **abi != Architecture::X32);
    architectures.extend(relatives.map(|abi| abi.to_oci()));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(rules));
    profile
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOTTY: u32 = 25;
const ENOSYS: u32 = 38;

/// The namespace flags of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Linux, Linux with 16-bit uids, both with reversed uname, and "tell me which".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const AF_PACKET: u64 = 17;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Without CAP_SYS_ADMIN: new namespaces by neither call. clone3 keeps its flags in memory, so it is said not to exist, and
/// every libc then falls back to clone.
fn clone(granted: CapSet, native: Architecture) -> Vec<LinuxSyscall> {
    if granted.contains(Capability::SYS_ADMIN) {
        return vec![];
    }
    let flags = if native == Architecture::S390x { 1 } else { 0 };
    let none = condition(flags, LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0));
    vec![allow_if("clone", &[none]), refuse_if("clone3", &[], ENOSYS)]
}

fn sockets(style: Style, granted: CapSet) -> Vec<LinuxSyscall> {
    if style == Style::Docker {
        // All families but ALG and VSOCK.
        let below = condition(0, LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None);
        let between = word_is(style, 0, AF_ALG + 1);
        let above = condition(0, LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK, None);
        return [below, between, above].map(|family| allow_if("socket", &[family])).to_vec();
    }
    let mut families = vec![AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];
    families.extend(granted.contains(Capability::NET_RAW).then_some(AF_PACKET));
    families.into_iter().map(|family| allow_if("socket", &[word_is(style, 0, family)])).collect()
}

/// TIOCSTI fails as on a kernel where it is switched off (EIO), TIOCLINUX as on a terminal that is no console (ENOTTY).
fn ioctl(style: Style) -> Vec<LinuxSyscall> {
    if style == Style::Docker {
        return vec![allow(&["ioctl"])];
    }
    let any = condition(1, LinuxSeccompOperator::ScmpCmpGe, 0, None);
    vec![
        refuse_if("ioctl", &[word_is(style, 1, TIOCSTI)], EIO),
        refuse_if("ioctl", &[word_is(style, 1, TIOCLINUX)], ENOTTY),
        allow_if("ioctl", &[any]),
    ]
}

/// An argument that the kernel reads as 32 bits equals `value`.
fn word_is(style: Style, index: usize, value: u64) -> LinuxSeccompArg {
    match style {
        Style::Docker => condition(index, LinuxSeccompOperator::ScmpCmpEq, value, None),
        Style::Strict => condition(index, LinuxSeccompOperator::ScmpCmpMaskedEq, 0xffff_ffff, Some(value)),
    }
}

fn condition(index: usize, op: LinuxSeccompOperator, value: u64, two: Option<u64>) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let arg = if let Some(two) = two { arg.value_two(two) } else { arg };
    arg.build().expect("every field is set")
}

fn allow(names: &[&str]) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow, None, &[])
}

fn allow_if(name: &str, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    rule(&[name], LinuxSeccompAction::ScmpActAllow, None, args)
}

fn refuse_if(name: &str, args: &[LinuxSeccompArg], errno: u32) -> LinuxSyscall {
    rule(&[name], LinuxSeccompAction::ScmpActErrno, Some(errno), args)
}

fn rule(
    names: &[&str],
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: &[LinuxSeccompArg],
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args((!args.is_empty()).then(|| args.to_vec()));
    rule
}

/// What only some machines have. arm's and s390x's calls have no meaning elsewhere; arch_prctl and modify_ldt have on x86.
fn native_only(native: Architecture) -> impl Iterator<Item = &'static [&'static str]> {
    let calls: &[&'static [&'static str]] = match native {
        Architecture::X86_64 | Architecture::X32 => &[&["arch_prctl", "modify_ldt"]],
        Architecture::X86 => &[&["modify_ldt"]],
        Architecture::Aarch64 | Architecture::Arm => &[&[
            "arm_fadvise64_64",
            "arm_sync_file_range",
            "sync_file_range2",
            "breakpoint",
            "cacheflush",
            "set_tls",
        ]],
        Architecture::Ppc64le => &[&["sync_file_range2", "swapcontext"]],
        Architecture::S390x => &[&["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"]],
        Architecture::Riscv64 => &[&["riscv_flush_icache"]],
        Architecture::Loongarch64 => &[],
    };
    calls.iter().copied()
}

/// Calls whose whole point is a privilege: allowed where the kernel would allow them.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DAC_READ_SEARCH, &["open_by_handle_at"]),
    (
        Capability::SYS_ADMIN,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SYS_BOOT, &["reboot"]),
    (Capability::SYS_CHROOT, &["chroot"]),
    (Capability::SYS_MODULE, &["delete_module", "finit_module", "init_module"]),
    (Capability::SYS_PACCT, &["acct"]),
    (Capability::SYS_PTRACE, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SYS_RAWIO, &["ioperm", "iopl"]),
    (Capability::SYS_TIME, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SYS_TTY_CONFIG, &["vhangup"]),
    (Capability::SYS_NICE, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SYSLOG, &["syslog"]),
    (Capability::BPF, &["bpf"]),
    (Capability::PERFMON, &["perf_event_open"]),
];

/// What every task may call, by what it is for. ptrace and its two memory calls are among them: since Linux 4.8 a tracer
/// can no longer slip past the filter of what it traces.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    // opening, reading and writing files
    "open", "openat", "openat2", "creat", "close", "close_range", "read", "pread64", "readv", "preadv", "preadv2", "write",
    "pwrite64", "writev", "pwritev", "pwritev2", "lseek", "_llseek", "dup", "dup2", "dup3", "fcntl", "fcntl64", "flock",
    "sendfile", "sendfile64", "copy_file_range", "splice", "tee", "vmsplice", "readahead", "fadvise64", "fadvise64_64",
    "fallocate", "truncate", "truncate64", "ftruncate", "ftruncate64", "fsync", "fdatasync", "sync", "syncfs",
    "sync_file_range", "cachestat", "pipe", "pipe2", "memfd_create", "memfd_secret", "umask",
    // names, attributes and directories
    "access", "faccessat", "faccessat2", "stat", "stat64", "lstat", "lstat64", "fstat", "fstat64", "fstatat64",
    "newfstatat", "statx", "statfs", "statfs64", "fstatfs", "fstatfs64", "statmount", "listmount", "chdir", "fchdir",
    "getcwd", "getdents", "getdents64", "mkdir", "mkdirat", "rmdir", "link", "linkat", "unlink", "unlinkat", "symlink",
    "symlinkat", "readlink", "readlinkat", "rename", "renameat", "renameat2", "mknod", "mknodat", "chmod", "fchmod",
    "fchmodat", "fchmodat2", "chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32", "utime", "utimes",
    "utimensat", "utimensat_time64", "futimesat", "name_to_handle_at", "getxattr", "getxattrat", "lgetxattr", "fgetxattr",
    "listxattr", "listxattrat", "llistxattr", "flistxattr", "setxattr", "setxattrat", "lsetxattr", "fsetxattr",
    "removexattr", "removexattrat", "lremovexattr", "fremovexattr", "inotify_init", "inotify_init1", "inotify_add_watch",
    "inotify_rm_watch", "fanotify_mark",
    // waiting for many things
    "select", "_newselect", "pselect6", "pselect6_time64", "poll", "ppoll", "ppoll_time64", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_wait_old", "epoll_pwait", "epoll_pwait2",
    "eventfd", "eventfd2", "signalfd", "signalfd4", "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents",
    "io_pgetevents", "io_pgetevents_time64",
    // sockets (socket itself is by family)
    "socketcall", "socketpair", "bind", "listen", "accept", "accept4", "connect", "shutdown", "getsockname", "getpeername",
    "getsockopt", "setsockopt", "send", "sendto", "sendmsg", "sendmmsg", "recv", "recvfrom", "recvmsg", "recvmmsg",
    "recvmmsg_time64",
    // memory
    "brk", "mmap", "mmap2", "munmap", "mremap", "remap_file_pages", "mprotect", "madvise", "mincore", "msync", "mlock",
    "mlock2", "mlockall", "munlock", "munlockall", "mseal", "membarrier", "map_shadow_stack", "pkey_alloc", "pkey_free",
    "pkey_mprotect", "process_mrelease",
    // processes and threads (clone is by its flags)
    "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "getpid", "getppid",
    "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "pidfd_open", "pidfd_send_signal", "prctl", "rseq",
    "set_tid_address", "set_robust_list", "get_robust_list", "get_thread_area", "set_thread_area", "futex",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "futex_requeue", "ptrace", "process_vm_readv",
    "process_vm_writev", "restart_syscall", "uretprobe",
    // who one is
    "getuid", "getuid32", "geteuid", "geteuid32", "getgid", "getgid32", "getegid", "getegid32", "getresuid",
    "getresuid32", "getresgid", "getresgid32", "getgroups", "getgroups32", "setuid", "setuid32", "setgid", "setgid32",
    "setreuid", "setreuid32", "setregid", "setregid32", "setresuid", "setresuid32", "setresgid", "setresgid32",
    "setfsuid", "setfsuid32", "setfsgid", "setfsgid32", "setgroups", "setgroups32", "capget", "capset", "seccomp",
    "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
    // signals
    "kill", "tkill", "tgkill", "pause", "sigaltstack", "sigprocmask", "sigreturn", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    // time
    "time", "times", "gettimeofday", "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres",
    "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "nanosleep",
    "alarm", "getitimer", "setitimer", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_gettime64", "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64",
    // scheduling and limits
    "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getattr", "sched_setattr", "sched_getparam",
    "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max", "sched_get_priority_min",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
    "getcpu", "getrlimit", "ugetrlimit", "setrlimit", "prlimit64", "getrusage",
    // System V and POSIX IPC
    "ipc", "semget", "semop", "semtimedop", "semtimedop_time64", "semctl", "shmget", "shmat", "shmdt", "shmctl", "msgget",
    "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedsend_time64", "mq_timedreceive",
    "mq_timedreceive_time64", "mq_notify", "mq_getsetattr",
    // the machine
    "uname", "sysinfo", "getrandom", "riscv_hwprobe",
];

#[cfg(test)]
mod tests {
    use super::super::{Action, Call, Filter, compile_for, simulate, syscalls};
    use super::*;

    const EPERM: Action = Action::errno(1);
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    fn filter(style: Style, granted: CapSet) -> Filter {
        compile_for(&profile(style, granted, Architecture::X86_64), Architecture::X86_64).unwrap()
    }

    fn answer(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> Action {
        let call = Call { number, architecture, arguments, ..Call::default() };
        simulate(&filter.program, &call).unwrap().0
    }

    fn answer_by_name(filter: &Filter, name: &str) -> Action {
        let number = syscalls::number(name, Architecture::X86_64).unwrap();
        answer(filter, X86_64, number, [0x7e02_0000, 0xffff, 0, 0, 0, 0])
    }

    #[test]
    fn every_name_of_the_profile_is_a_system_call() {
        for style in [Style::Docker, Style::Strict] {
            for native in
                [Architecture::X86_64, Architecture::Aarch64, Architecture::S390x, Architecture::Riscv64]
            {
                let filter = compile_for(&profile(style, CapSet::ALL, native), native).unwrap();
                assert!(filter.skipped.syscalls.is_empty(), "{:?}", filter.skipped);
            }
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names = ALWAYS.to_vec();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn dangerous_calls_are_refused_unless_the_capability_is_there() {
        use Capability as C;
        let table: &[(&str, Option<C>)] = &[
            ("mount", Some(C::SYS_ADMIN)),
            ("umount2", Some(C::SYS_ADMIN)),
            ("open_tree", Some(C::SYS_ADMIN)),
            ("fsopen", Some(C::SYS_ADMIN)),
            ("fsconfig", Some(C::SYS_ADMIN)),
            ("fsmount", Some(C::SYS_ADMIN)),
            ("move_mount", Some(C::SYS_ADMIN)),
            ("mount_setattr", Some(C::SYS_ADMIN)),
            ("setns", Some(C::SYS_ADMIN)),
            ("unshare", Some(C::SYS_ADMIN)),
            ("quotactl", Some(C::SYS_ADMIN)),
            ("lookup_dcookie", Some(C::SYS_ADMIN)),
            ("lsm_set_self_attr", Some(C::SYS_ADMIN)),
            ("sethostname", Some(C::SYS_ADMIN)),
            ("clone", Some(C::SYS_ADMIN)),
            ("bpf", Some(C::BPF)),
            ("perf_event_open", Some(C::PERFMON)),
            ("init_module", Some(C::SYS_MODULE)),
            ("finit_module", Some(C::SYS_MODULE)),
            ("open_by_handle_at", Some(C::DAC_READ_SEARCH)),
            ("syslog", Some(C::SYSLOG)),
            ("settimeofday", Some(C::SYS_TIME)),
            ("acct", Some(C::SYS_PACCT)),
            ("reboot", Some(C::SYS_BOOT)),
            ("iopl", Some(C::SYS_RAWIO)),
            ("ioperm", Some(C::SYS_RAWIO)),
            ("pidfd_getfd", Some(C::SYS_PTRACE)),
            ("kcmp", Some(C::SYS_PTRACE)),
            ("mbind", Some(C::SYS_NICE)),
            ("chroot", Some(C::SYS_CHROOT)),
            ("vhangup", Some(C::SYS_TTY_CONFIG)),
            ("pivot_root", None),
            ("keyctl", None),
            ("add_key", None),
            ("request_key", None),
            ("userfaultfd", None),
            ("io_uring_setup", None),
            ("io_uring_enter", None),
            ("io_uring_register", None),
            ("kexec_load", None),
            ("kexec_file_load", None),
            ("nfsservctl", None),
            ("swapon", None),
            ("swapoff", None),
            ("_sysctl", None),
            ("uselib", None),
            ("ustat", None),
            ("sysfs", None),
            ("move_pages", None),
            ("migrate_pages", None),
        ];
        for style in [Style::Docker, Style::Strict] {
            let without = filter(style, CapSet::EMPTY);
            let with_all = filter(style, CapSet::ALL);
            for (call, capability) in table {
                assert_eq!(answer_by_name(&without, call), EPERM, "{call}");
                let Some(capability) = capability else {
                    assert_eq!(answer_by_name(&with_all, call), EPERM, "{call} with every capability");
                    continue;
                };
                let with = filter(style, CapSet::EMPTY.with(*capability));
                assert_eq!(answer_by_name(&with, call), Action::ALLOW, "{call} with {capability}");
            }
            assert_eq!(answer_by_name(&without, "clone3"), Action::ENOSYS);
            assert_eq!(answer_by_name(&with_all, "clone3"), Action::ALLOW);
        }
    }

    #[test]
    fn what_is_newer_than_the_list_does_not_exist() {
        let filter = filter(Style::Strict, CapSet::DEFAULT);
        assert_eq!(answer(&filter, X86_64, 900, [0; 6]), Action::ENOSYS);
        assert_eq!(answer(&filter, I386, 900, [0; 6]), Action::ENOSYS);
        // A tracer's "skip this call" is no call through x32.
        assert_eq!(answer(&filter, X86_64, u32::MAX, [0; 6]), EPERM);
    }

    #[test]
    fn other_abis_are_killed() {
        let strict = filter(Style::Strict, CapSet::ALL);
        let docker = filter(Style::Docker, CapSet::ALL);
        for arch in [0xc000_00b7, 0x4000_0028, 0x0000_0008, 0, u32::MAX] {
            assert_eq!(answer(&strict, arch, 0, [0; 6]), Action::KILL_PROCESS);
        }
        assert_eq!(answer(&strict, X86_64, 0x4000_0000, [0; 6]), Action::KILL_PROCESS);
        assert_eq!(answer(&docker, X86_64, 0x4000_0000, [0; 6]), Action::ALLOW);
        assert_eq!(answer(&strict, I386, 3, [0; 6]), Action::ALLOW);
    }

    #[test]
    fn sockets_are_a_list_of_families() {
        let socket = 41;
        let family = |filter: &Filter, family: u64| answer(filter, X86_64, socket, [family, 1, 0, 0, 0, 0]);
        let strict = filter(Style::Strict, CapSet::DEFAULT);
        let docker = filter(Style::Docker, CapSet::DOCKER);
        for allowed in [1, 2, 10, 16] {
            assert_eq!(family(&strict, allowed), Action::ALLOW);
            assert_eq!(
                family(&strict, allowed | 0xdead_0000_0000),
                Action::ALLOW,
                "the kernel reads the low word"
            );
        }
        for refused in [0, 3, 17, 21, 38, 40, 44, 46, 1000] {
            assert_eq!(family(&strict, refused), EPERM, "family {refused}");
        }
        assert_eq!(family(&filter(Style::Strict, CapSet::DOCKER), 17), Action::ALLOW);
        for (number, expected) in [(17, Action::ALLOW), (38, EPERM), (40, EPERM), (44, Action::ALLOW)] {
            assert_eq!(family(&docker, number), expected, "family {number} in Docker's");
        }
    }

    #[test]
    fn typing_into_a_terminal_is_refused_whatever_the_high_word() {
        let strict = filter(Style::Strict, CapSet::ALL);
        for (abi, ioctl) in [(X86_64, 16), (I386, 54)] {
            for noise in [0, 0x1122_3344_0000_0000] {
                assert_eq!(answer(&strict, abi, ioctl, [0, noise | 0x5412, 0, 0, 0, 0]), Action::errno(5));
                assert_eq!(answer(&strict, abi, ioctl, [0, noise | 0x541c, 0, 0, 0, 0]), Action::errno(25));
                assert_eq!(answer(&strict, abi, ioctl, [0, noise | 0x5413, 0, 0, 0, 0]), Action::ALLOW);
            }
        }
    }

    #[test]
    fn threads_and_processes_can_be_made_but_no_namespaces() {
        let strict = filter(Style::Strict, CapSet::DEFAULT);
        let clone = |flags: u64| answer(&strict, X86_64, 56, [flags, 0, 0, 0, 0, 0]);
        assert_eq!(clone(0x0020_0011), Action::ALLOW);
        assert_eq!(clone(0x003d_0f00), Action::ALLOW);
        for namespace in
            [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            assert_eq!(clone(namespace | 17), EPERM, "{namespace:#x}");
        }
    }

    #[test]
    fn the_filter_is_short() {
        for style in [Style::Docker, Style::Strict] {
            let length = filter(style, CapSet::DEFAULT).program.len();
            assert!(length <= 750, "{style:?}: {length} instructions");
        }
    }
}
