//! How operations print: one line each, like a strace of what will happen.

use std::fmt::Write;

use crate::op::{CgroupWrite, DeviceChange, FilesystemOption, Hierarchies, Op, Slot};
use crate::path::Text;
use crate::plan::Plan;
use crate::stack::{Folder, OverlayForm};

impl Plan {
    /// The name of a slot.
    pub fn slot_name(&self, slot: Slot) -> &str {
        self.slots.get(usize::from(slot.0)).map_or("?", String::as_str)
    }

    /// One operation in words, with slot names filled in.
    pub fn describe(&self, op: &Op) -> String {
        self.opening(op)
    }

    /// What is opened and made before there is a process.
    fn opening(&self, op: &Op) -> String {
        use Op::*;
        let n = |slot: &Slot| self.slot_name(*slot).to_owned();
        match op {
            OpenDirectory { path, into } => format!("open-directory {} <- {path}", n(into)),
            CloneTree { source, recursive, no_follow, into } => {
                format!(
                    "clone-tree {} <- {source}{}{}",
                    n(into),
                    flag(*recursive, " recursive"),
                    flag(*no_follow, " nofollow")
                )
            }
            CloneInside { root, source, recursive, no_follow, into } => {
                format!(
                    "clone-inside {} <- {}:{source}{}{}",
                    n(into),
                    n(root),
                    flag(*recursive, " recursive"),
                    flag(*no_follow, " nofollow")
                )
            }
            OpenDevice { path, kind, major, minor, into } => {
                format!("open-device {} <- {path} {} {major}:{minor}", n(into), letter(*kind))
            }
            BindDevice { root, device, at } => format!("bind-device {} onto {}:{at}", n(device), n(root)),
            OpenNamespace { kind, path, foreign, into } => {
                let word = if *foreign { "foreign " } else { "" };
                format!("open-namespace {} <- {word}{} {path}", n(into), kind.file())
            }
            CreateCgroup { path, delegated, within } => {
                let part = match within {
                    Hierarchies::All => "",
                    Hierarchies::Unified => " of version 2",
                    Hierarchies::Legacy => " of version 1",
                };
                format!("create-cgroup {path}{part}{}", flag(*delegated, " where delegated"))
            }
            OpenCgroup { path, below } => {
                let below = below.iter().map(|(controller, path)| format!(" {controller}:{path}"));
                format!("open-cgroup {path}{}", below.collect::<String>())
            }
            WriteCgroup(w) | ChangeCgroup(w) => {
                let verb = if matches!(op, ChangeCgroup(_)) { "change" } else { "write" };
                let dot = if w.controller.is_empty() { "" } else { ":" };
                format!(
                    "{verb}-cgroup {}{dot}{} {:?}{}",
                    w.controller,
                    w.file,
                    w.value,
                    flag(w.optional, " optional")
                )
            }
            _ => self.arranging(op),
        }
    }

    /// What the parent makes and does for the process.
    fn arranging(&self, op: &Op) -> String {
        use Op::*;
        let n = |slot: &Slot| self.slot_name(*slot).to_owned();
        match op {
            StartUnit { unit, properties } => format!("start-unit {unit} {}", list(properties)),
            ReplaceDevices(DeviceChange::Program { now, .. }) => {
                format!("replace-devices {} instructions", now.len())
            }
            ReplaceDevices(DeviceChange::List { now, .. }) => {
                let line = |w: &CgroupWrite| format!("{} {:?}", w.file, w.value);
                format!("replace-devices [{}]", now.iter().map(line).collect::<Vec<_>>().join(", "))
            }
            EnterClass { root: _, class, own, make, schemata } => {
                let words = flag(*own, " own").to_owned() + flag(*make, " make");
                format!("enter-class {class}{words} [{}]", list(schemata))
            }
            ChangeClass { root: _, class, schemata } => format!("change-class {class} [{}]", list(schemata)),
            MakeMonitor { group } => format!("make-monitor {group}"),
            AttachClass { root: _, groups } => format!("attach-class {}", list(groups)),
            FilterDevices { program } => format!("filter-devices {} instructions", program.len()),
            DelegateCgroup { uid, gid } => format!("delegate-cgroup to {uid}:{gid}"),
            ListenGate { path, into } => format!("listen-gate {} <- {path}", n(into)),
            BeginOn { cpus } => format!("begin-on {cpus:?}"),
            MakeUserNamespace { uids, gids, into } => {
                format!("make-user-namespace {} <- uid [{}] gid [{}]", n(into), list(uids), list(gids))
            }
            MountImage { kind, path, into } => format!("mount-image {} <- {kind} {path}", n(into)),
            MapTree { tree, user, recursive } => {
                format!("map-tree {} through {}{}", n(tree), n(user), flag(*recursive, " recursive"))
            }
            Clone { namespaces, first, user_namespace, pid_namespace, between, into_cgroup } => {
                let mut line = String::from("clone");
                for namespace in namespaces {
                    let _ = write!(line, " {}", namespace.file());
                }
                for (kind, slot) in first {
                    let _ = write!(line, " join-{}={}", kind.file(), n(slot));
                }
                if let Some(slot) = user_namespace {
                    let _ = write!(line, " inside-user={}", n(slot));
                }
                if let Some(slot) = pid_namespace {
                    let _ = write!(line, " join-pid={}", n(slot));
                }
                line + flag(*between, " between") + flag(*into_cgroup, " into-cgroup")
            }
            MapIds { uids, uid_mapper, gids, gid_mapper } => {
                format!("map-ids uid [{}]{uid_mapper} gid [{}]{gid_mapper}", list(uids), list(gids))
            }
            AttachCgroup => "attach-cgroup".into(),
            AdjustOomScore { value } => format!("adjust-oom-score {value}"),
            MoveNetDevice { device, name, into } => {
                let into = into.map(|slot| format!(" into {}", n(&slot))).unwrap_or_default();
                format!("move-net-device {device} as {name}{into}")
            }
            RunHooks { point } => format!("run-hooks {}", point.key()),
            Release(barrier) => format!("release {barrier:?}"),
            Await(barrier) => format!("await {barrier:?}"),
            Pass(barrier) => format!("pass {barrier:?}"),
            Announce(barrier) => format!("announce {barrier:?}"),
            _ => self.mounting(op),
        }
    }

    /// What the child makes of its root.
    fn mounting(&self, op: &Op) -> String {
        use Op::*;
        let n = |slot: &Slot| self.slot_name(*slot).to_owned();
        match op {
            NewFilesystem { kind, source, covers, options: o, attributes, into } => {
                let attributes = crate::op::MountAttributes { set: *attributes, ..Default::default() };
                let source = source.as_ref().map(|s| format!(" source={s}")).unwrap_or_default();
                let mode = if covers.is_some() { " mode of what it covers" } else { "" };
                format!("new-filesystem {} <- {kind}{source}{} [{attributes}]{mode}", n(into), options(o))
            }
            Overlay { form, lower, upper, work, into } => {
                let folder = |folder: &Folder| match folder {
                    Folder::Path(path) => path.to_string(),
                    Folder::Tree(slot) => n(slot),
                    Folder::Within(slot, name) => format!("{}/{name}", n(slot)),
                };
                let lower = lower.iter().map(folder).collect::<Vec<_>>().join(":");
                let form = match form {
                    OverlayForm::Descriptors => String::new(),
                    OverlayForm::Names => " by name".to_owned(),
                    OverlayForm::OptionString { at } => format!(" at {at}"),
                };
                format!(
                    "overlay {} lower={lower} upper={} work={}{form} [nodev]",
                    n(into),
                    folder(upper),
                    folder(work)
                )
            }
            SetAttributes { tree, attributes } => format!("set-attributes {} [{attributes}]", n(tree)),
            SetUnlocked { tree, attributes } => format!("set-unlocked {} [{attributes}]", n(tree)),
            AttachRoot { tree, onto } => format!("attach-root {} onto {}", n(tree), n(onto)),
            CopyUp { tree, root, at } => format!("copy-up {} <- {}:{at}", n(tree), n(root)),
            FillEmpty { tree, root, at } => format!("fill-empty {} <- {}:{at}", n(tree), n(root)),
            Place { tree, root, at, create } => {
                format!("place {} in {} at {at} create={create:?}", n(tree), n(root))
            }
            SetAttributesAt { root, at, attributes } => {
                format!("set-attributes-at {}:{at} [{attributes}]", n(root))
            }
            MakeNode { root, at, kind, mode, major, minor, uid, gid } => {
                let letter = letter(*kind);
                format!("make-node {}:{at} {letter} {major}:{minor} {mode:04o} {uid}:{gid}", n(root))
            }
            MakeSymlink { root, target, at } => format!("make-symlink {}:{at} -> {target}", n(root)),
            MakeDirectory { root, at } => format!("make-directory {}:{at}", n(root)),
            MakeTerminal { root, devpts, send, console: _, fronted, rows, columns, uid } => {
                let fronted = if *fronted { ", line ends left alone" } else { "" };
                format!(
                    "make-terminal {}:{devpts} {columns}x{rows} owner {uid}, master to {}{fronted}",
                    n(root),
                    n(send)
                )
            }
            TakeTerminal => "take-terminal".into(),
            SetStdio { stdin, stdout, stderr } => {
                format!("set-stdio {} {} {}", n(stdin), n(stdout), n(stderr))
            }
            Mask { root, at, .. } => format!("mask {}:{at}", n(root)),
            MakeReadOnly { root, at } => format!("make-read-only {}:{at}", n(root)),
            WriteSysctl { key, value, .. } => format!("write-sysctl {key} {value}"),
            Pivot { root } => format!("pivot {}", n(root)),
            MoveRoot { root } => format!("move-root {}", n(root)),
            ChangeRoot { path } => format!("change-root {path}"),
            SetRootAttributes { attributes } => format!("set-root-attributes [{attributes}]"),
            _ => self.becoming(op),
        }
    }

    /// What the child makes of itself. An operation without words of its own prints as it is written.
    fn becoming(&self, op: &Op) -> String {
        use Op::*;
        let n = |slot: &Slot| self.slot_name(*slot).to_owned();
        match op {
            Join { kind, from } => format!("join {} from {}", kind.file(), n(from)),
            Unshare { kind } => format!("unshare {}", kind.file()),
            EnterTime { offsets } => format!("enter-time {offsets}"),
            BecomeRoot => "become-root".into(),
            SetExecLabel { module, label } => format!("set-exec-label {module:?} {label}"),
            NewSession => "new-session".into(),
            NewKeyring { name } => format!("new-keyring {name}"),
            SetHostname { name } => format!("set-hostname {name}"),
            SetDomainname { name } => format!("set-domainname {name}"),
            RaiseLoopback => "raise-loopback".into(),
            ReopenNull => "reopen-null".into(),
            GiveStdio { uid, gid } => format!("give-stdio to {uid}:{gid}"),
            SetRootPropagation { propagation } => format!("set-root-propagation {propagation:?} recursive"),
            ForbidDump => "forbid-dump".into(),
            SetLimit(l) => format!(
                "set-limit {} {}:{}",
                crate::print::limit_name(l.resource),
                amount(l.soft),
                amount(l.hard)
            ),
            SetScheduler { policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns } => {
                let mut line = format!("set-scheduler policy={policy} nice={nice} priority={priority}");
                if *flags != 0 {
                    let _ = write!(line, " flags={flags:#x}");
                }
                if *runtime_ns != 0 {
                    let _ = write!(line, " {runtime_ns}/{deadline_ns}/{period_ns} ns");
                }
                line
            }
            SetIoPriority { class, level } => format!("set-io-priority class={class} level={level}"),
            ResetAffinity => "reset-affinity".into(),
            SetAffinity { cpus } => format!("set-affinity {cpus:?}"),
            SetMemoryPolicy { mode, nodes } => format!("set-memory-policy {mode:#x} nodes {nodes:x?}"),
            SetPersonality { domain } => format!("set-personality {domain:#x}"),
            SetUmask { mask } => format!("set-umask {mask:04o}"),
            BoundCapabilities { keep } => format!("bound-capabilities {keep:#x}"),
            SetIds { uid, gid, groups: Some(groups) } => format!("set-ids {uid}:{gid} groups {groups:?}"),
            SetIds { uid, gid, groups: None } => format!("set-ids {uid}:{gid} groups of the caller"),
            SetCapabilities { effective, permitted, inheritable, ambient } => {
                format!(
                    "set-capabilities e={effective:#x} p={permitted:#x} i={inheritable:#x} a={ambient:#x}"
                )
            }
            ForbidNewPrivileges => "forbid-new-privileges".into(),
            ChangeDirectory { path } => format!("change-directory {path}"),
            FindHome { uid } => format!("find-home of {uid}"),
            FindProgram { name, candidates } => format!("find-program {name} among {}", list(candidates)),
            CloseDescriptors { first } => format!("close-descriptors from {first}"),
            ResetSignals => "reset-signals".into(),
            LoadFilter { program, flags, handover, ahead } => {
                let ahead = flag(*ahead, " ahead");
                let mut line = format!("load-filter {} instructions flags={flags:#x}{ahead}", program.len());
                if let Some(handover) = handover {
                    let message =
                        handover.message.iter().map(Text::to_string).collect::<Vec<_>>().join("PID");
                    let _ = write!(line, " handed to {} with {message}", n(&handover.socket));
                    if handover.close_by_range {
                        line.push_str(" close-by-range");
                    }
                }
                line
            }
            ConnectListener { path, into } => format!("connect-listener {} <- {path}", n(into)),
            EnterPidNamespace => "enter-pid-namespace".into(),
            WaitStart { gate, lends } => {
                let lends = lends.iter().map(|slot| format!(" {}", n(slot))).collect::<String>();
                format!("wait-start {}{}{lends}", n(gate), flag(!lends.is_empty(), " lends"))
            }
            Exec { arguments, environment } => {
                format!("exec {} with {} variables", list(arguments), environment.len())
            }
            _ => format!("{op:?}"),
        }
    }
}

/// The kind of a special file as ls(1) and the specification write it.
fn letter(kind: u32) -> char {
    match kind & 0o170_000 {
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        _ => '?',
    }
}

fn flag(on: bool, word: &'static str) -> &'static str {
    if on { word } else { "" }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn options(options: &[FilesystemOption]) -> String {
    options.iter().fold(String::new(), |mut line, (key, value)| {
        let _ = match value {
            Some(value) => write!(line, " {key}={value}"),
            None => write!(line, " {key}"),
        };
        line
    })
}

fn amount(value: u64) -> String {
    if value == u64::MAX { "unlimited".into() } else { value.to_string() }
}

/// The names of the resource limits by `RLIMIT_*` number, getrlimit(2).
pub const LIMIT_NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn limit_name(resource: u32) -> &'static str {
    LIMIT_NAMES.get(resource as usize).copied().unwrap_or("?")
}
