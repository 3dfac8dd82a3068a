//! Everything that can be asked of the kernel for a container, as data.
//!
//! An operation carries values that were resolved beforehand: the interpreter never looks at a configuration. Descriptors
//! that one operation makes and another uses are named by [`Slot`]s.

use crate::path::{ContainerPath, HostPath, Text};
use crate::stack::{Folder, ImageKind, OverlayForm};
use crate::step::Undo;

pub use crate::parts::{
    Barrier, CgroupWrite, Create, DeviceChange, FilesystemOption, Handover, Hierarchies, HookPoint,
    IdMapping, Instruction, Limit, Mapper, MountAttributes, Namespace, Propagation, SecurityModule, Slot,
    UnitProperty, UnitValue,
};

/// One operation. The comment of each variant names the system calls it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the variants say what they do; their fields are the arguments of the calls they name
pub enum Op {
    // ---- host: before the process exists
    /// Make a detached copy of a mount tree. `open_tree(OPEN_TREE_CLONE)`
    CloneTree { source: HostPath, recursive: bool, no_follow: bool, into: Slot },
    /// Make a detached copy of what the container's own mounts show at a path, in the child. `openat2(RESOLVE_IN_ROOT)`,
    /// `open_tree(OPEN_TREE_CLONE)`
    CloneInside { root: Slot, source: ContainerPath, recursive: bool, no_follow: bool, into: Slot },
    /// Open a namespace file and check its kind; with `foreign`, also that it is not the one we are in. The child opens its
    /// own. `open`, `ioctl(NS_GET_NSTYPE)`, `fstat`
    OpenNamespace { kind: Namespace, path: HostPath, foreign: bool, into: Slot },
    /// Make the container's cgroup in these hierarchies, or only in those of them that are delegated to us. `mkdir`
    CreateCgroup { path: String, delegated: bool, within: Hierarchies },
    /// Open the cgroup that a container was created in.
    OpenCgroup { path: String, below: Vec<(String, String)> },
    /// Write one cgroup file.
    WriteCgroup(CgroupWrite),
    /// Write one file of a cgroup in use, having read what it held.
    ChangeCgroup(CgroupWrite),
    /// Give a cgroup in use other device rules. `bpf(BPF_PROG_ATTACH)` with `BPF_F_REPLACE`, or writes to the list
    ReplaceDevices(DeviceChange),
    /// Have systemd make a transient scope with the child in it, and wait until it is there. D-Bus, `StartTransientUnit`
    StartUnit { unit: String, properties: Vec<UnitProperty> },
    /// Make a class of service of resctrl with these limits, unless it is there: then the limits must be its own, except for
    /// the container's `own` class. Without `make` it must be there. `mkdir`, `write(schemata)`
    EnterClass { root: HostPath, class: HostPath, own: bool, make: bool, schemata: Vec<Text> },
    /// Give a class of service in use other limits, having read those it had. `write(schemata)`
    ChangeClass { root: HostPath, class: HostPath, schemata: Vec<Text> },
    /// Make a monitoring group of resctrl. `mkdir`
    MakeMonitor { group: HostPath },
    /// Attach the device program to the v2 cgroup. `bpf(BPF_PROG_LOAD)`, `bpf(BPF_PROG_ATTACH)`
    FilterDevices { program: Vec<u64> },
    /// Connect to whoever supervises the container's system calls. `socket`, `connect`
    ConnectListener { path: HostPath, into: Slot },
    /// Give the v2 cgroup and the files of it that may be delegated to the container's root. `fchown`, `fchownat`
    DelegateCgroup { uid: u32, gid: u32 },
    /// Make the socket on which `start` will knock. `socket`, `bind`, `listen`
    ListenGate { path: HostPath, into: Slot },
    /// Start the child on these processors, before it is in the container's cgroup. `sched_setaffinity`, and back
    BeginOn { cpus: Vec<u32> },
    /// Make a user namespace for nothing but its id maps. `clone3(CLONE_NEWUSER)`
    MakeUserNamespace { uids: Vec<IdMapping>, gids: Vec<IdMapping>, into: Slot },
    /// Mount the file system in a file, detached. `fsopen`, and `LOOP_CONFIGURE` where the kernel wants a block device
    MountImage { kind: ImageKind, path: HostPath, into: Slot },
    /// Show the owners of a detached tree through a user namespace's id maps. `mount_setattr(MOUNT_ATTR_IDMAP)`
    MapTree { tree: Slot, user: Slot, recursive: bool },

    // ---- clone
    /// Clone the child, straight into the cgroup2 hierarchy where there is one; with a user namespace to join, from inside
    /// it, so that what is cloned belongs to it. A user namespace is joined by a process between us and the child, and so is
    /// a pid namespace when `between`: for those who could not point their children back to their own. It joins `first`
    /// before all others: namespaces that the user namespace need not own. `clone3(CLONE_PIDFD | namespaces)`
    Clone {
        namespaces: Vec<Namespace>,
        first: Vec<(Namespace, Slot)>,
        user_namespace: Option<Slot>,
        pid_namespace: Option<Slot>,
        between: bool,
        into_cgroup: bool,
    },

    // ---- attach: the parent acts on the child
    /// Write the id maps of the child's user namespace.
    MapIds { uids: Vec<IdMapping>, uid_mapper: Mapper, gids: Vec<IdMapping>, gid_mapper: Mapper },
    /// Have the child move itself into the container's version 1 cgroups as it passes [`Barrier::Attached`], through files
    /// that come to it with that; it was cloned into the version 2 one. `SCM_RIGHTS`, `write(tasks)`
    AttachCgroup,
    /// Put the child into groups of resctrl. `write(tasks)`
    AttachClass { root: HostPath, groups: Vec<HostPath> },
    /// Write the child's `oom_score_adj`.
    AdjustOomScore { value: i32 },
    /// Move a network device of ours into the child's network namespace, or the one joined, under this name and with its
    /// addresses.
    /// `RTM_NEWLINK(IFLA_NET_NS_FD, IFLA_IFNAME)`
    MoveNetDevice { device: String, name: String, into: Option<Slot> },
    /// Run the configuration's hooks of one point, in order.
    RunHooks { point: HookPoint },
    /// Let the child pass a barrier.
    Release(Barrier),
    /// Wait until the child announces a barrier.
    Await(Barrier),

    // ---- enter: the child
    /// Wait until the parent releases a barrier.
    Pass(Barrier),
    /// Tell the parent that a barrier is reached.
    Announce(Barrier),
    /// Join a namespace. `setns`
    Join { kind: Namespace, from: Slot },
    /// Leave a namespace for a new one. `unshare`
    Unshare { kind: Namespace },
    /// Make a time namespace with these clock offsets and enter it. `unshare`, `write(timens_offsets)`, `setns`
    EnterTime { offsets: Text },
    /// Become root inside the new user namespace. `setresgid`, `setresuid`
    BecomeRoot,
    /// Say as what a security module is to treat the process after exec. `write(/proc/thread-self/attr/…exec)`
    SetExecLabel { module: SecurityModule, label: Text },
    /// Open a host directory as a handle, in the child's own copy of the mount tree. `open(O_PATH | O_DIRECTORY)`
    OpenDirectory { path: HostPath, into: Slot },
    /// Open a host device that masks and devices are bound from, and check what it is. `open(O_PATH)`, `fstat`
    OpenDevice { path: HostPath, kind: u32, major: u32, minor: u32, into: Slot },
    /// New session without a controlling terminal. `setsid`
    NewSession,
    /// New session keyring. `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`
    NewKeyring { name: Text },
    /// `sethostname`
    SetHostname { name: Text },
    /// `setdomainname`
    SetDomainname { name: Text },
    /// Bring up the loopback of the new network namespace. `ioctl(SIOCSIFFLAGS)`
    RaiseLoopback,
    /// Detach the whole tree of mounts from the host's. `mount_setattr("/", AT_RECURSIVE)`
    SetRootPropagation { propagation: Propagation },
    /// Make a new instance of a file system, detached; with the mode of the directory that it is to cover, where there is
    /// one. `fsopen`, `fsconfig`, `fsmount`
    NewFilesystem {
        kind: Text,
        source: Option<Text>,
        covers: Option<(Slot, ContainerPath)>,
        options: Vec<FilesystemOption>,
        attributes: u64,
        into: Slot,
    },
    /// Stack the layers of an image, uppermost first; nodev. Detached, by `fsopen("overlay")`; or, where the kernel takes
    /// layers as one string only, by `mount` at a host path, in the child's own mount namespace
    Overlay { form: OverlayForm, lower: Vec<Folder>, upper: Folder, work: Folder, into: Slot },
    /// Change a detached or attached tree's mount attributes. `mount_setattr(AT_EMPTY_PATH)`
    SetAttributes { tree: Slot, attributes: MountAttributes },
    /// The same, refused where it takes from the tree's first mount what a mount namespace of a user namespace may not take:
    /// `EPERM`, as the kernel would say if the tree came from there. `fstatfs`, `mount_setattr(AT_EMPTY_PATH)`, `fstatfs`
    SetUnlocked { tree: Slot, attributes: MountAttributes },
    /// Attach the rootfs where it lies, making it a mount of its own. `move_mount`
    AttachRoot { tree: Slot, onto: Slot },
    /// Copy what lies at a path of the rootfs into a detached tree, mode and owner of the directory too. Skips what is
    /// missing.
    CopyUp { tree: Slot, root: Slot, at: ContainerPath },
    /// Copy what the rootfs itself has at a path into a directory that is empty, mode and owner of the directory too. Skips
    /// what is missing, and what is mounted over the rootfs. `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_XDEV)`
    FillEmpty { tree: Slot, root: Slot, at: ContainerPath },
    /// Attach a tree inside the rootfs. `openat2(RESOLVE_IN_ROOT)`, `move_mount`
    Place { tree: Slot, root: Slot, at: ContainerPath, create: Create },
    /// Change the attributes of whatever is mounted at a path.
    SetAttributesAt { root: Slot, at: ContainerPath, attributes: MountAttributes },
    /// Make a device node, FIFO or socket-free special file. `mknodat`, `fchownat`, `fchmodat`
    MakeNode {
        root: Slot,
        at: ContainerPath,
        kind: u32,
        mode: u32,
        major: u32,
        minor: u32,
        uid: u32,
        gid: u32,
    },
    /// Bind a host device onto a path, for user namespaces that may not make nodes. `open_tree`, `move_mount`
    BindDevice { root: Slot, device: Slot, at: ContainerPath },
    /// Make a symbolic link unless something is there. `symlinkat`
    MakeSymlink { root: Slot, target: Text, at: ContainerPath },
    /// Make a directory and its parents unless it is there. `mkdirat`
    MakeDirectory { root: Slot, at: ContainerPath },
    /// Open the pty pair inside the container's devpts, hand the master out, and make the slave the standard descriptors;
    /// `fronted`, it leaves line ends to the terminal in front of it.
    MakeTerminal {
        root: Slot,
        devpts: ContainerPath,
        send: Slot,
        console: bool,
        fronted: bool,
        rows: u16,
        columns: u16,
        uid: u32,
    },
    /// Make standard input the session's controlling terminal. `ioctl(TIOCSCTTY)`
    TakeTerminal,
    /// Make descriptors 0, 1 and 2. `dup3`
    SetStdio { stdin: Slot, stdout: Slot, stderr: Slot },
    /// Open the container's null device anew for each standard descriptor that is one, for reading and writing: the caller's
    /// may be open one way only, and its node is the host's. Skips what is no null device. `fstat`, `openat2`, `dup3`
    ReopenNull,
    /// Give the standard descriptors that are pipes, files or terminals to the program's user, who may then open them again
    /// under `/proc/self/fd`. Skips what it may not give away. `fstat`, `fchown`
    GiveStdio { uid: u32, gid: u32 },
    /// Hide a path: a directory under an empty read-only one, anything else under the null device. Skips what is missing.
    Mask { root: Slot, at: ContainerPath, directory: Slot, file: Slot },
    /// Make a path read-only. Skips what is missing. `open_tree`, `mount_setattr`, `move_mount`
    MakeReadOnly { root: Slot, at: ContainerPath },
    /// Write a kernel parameter through a private procfs. `openat2(RESOLVE_BENEATH)`, `write`
    WriteSysctl { proc: Slot, key: Text, value: Text },
    /// Make the rootfs the root and drop the old one. `pivot_root`, `umount2(MNT_DETACH)`
    Pivot { root: Slot },
    /// `chroot` where pivot_root cannot work (`--no-pivot`): the rootfs is moved over `/`.
    MoveRoot { root: Slot },
    /// Make a directory of the host's tree the root, for a container without a mount tree of its own. `chdir`, `chroot`
    ChangeRoot { path: HostPath },
    /// Set the mount attributes of the container's root.
    SetRootAttributes { attributes: MountAttributes },

    // ---- confine: the child gives up what the task may not have
    /// `prctl(PR_SET_DUMPABLE, 0)`: from here on nobody in the container may look into the child.
    ForbidDump,
    /// `prlimit64`
    SetLimit(Limit),
    /// `sched_setattr`
    SetScheduler {
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime_ns: u64,
        deadline_ns: u64,
        period_ns: u64,
    },
    /// `ioprio_set`
    SetIoPriority { class: u32, level: u32 },
    /// `sched_setaffinity`
    SetAffinity { cpus: Vec<u32> },
    /// Take every processor that the cgroup gives, whatever the caller was held to. `sched_setaffinity`
    ResetAffinity,
    /// `set_mempolicy`
    SetMemoryPolicy { mode: u32, nodes: Vec<u64> },
    /// `personality`
    SetPersonality { domain: u32 },
    /// `umask`
    SetUmask { mask: u32 },
    /// Drop everything but these from the bounding set. `prctl(PR_CAPBSET_DROP)`
    BoundCapabilities { keep: u64 },
    /// `setgroups`, `setresgid`, `setresuid`, keeping capabilities across the change; without a list, the caller's groups
    /// stay
    SetIds { uid: u32, gid: u32, groups: Option<Vec<u32>> },
    /// `capset`, `prctl(PR_CAP_AMBIENT)`
    SetCapabilities { effective: u64, permitted: u64, inheritable: u64, ambient: u64 },
    /// `prctl(PR_SET_NO_NEW_PRIVS)`
    ForbidNewPrivileges,
    /// `chdir`
    ChangeDirectory { path: ContainerPath },
    /// Take HOME from the container's `/etc/passwd`, `/` where it says nothing. `openat2(RESOLVE_IN_ROOT)`, `read`
    FindHome { uid: u32 },
    /// Find the program among these candidates and check that it may be executed.
    FindProgram { name: Text, candidates: Vec<Text> },
    /// Mark every descriptor above the preserved ones close-on-exec. `close_range(CLOSE_RANGE_CLOEXEC)`
    CloseDescriptors { first: u32 },
    /// Put the signal dispositions and the mask back to their defaults. `rt_sigaction`, `rt_sigprocmask`
    ResetSignals,
    /// `seccomp(SECCOMP_SET_MODE_FILTER)`; `ahead`, it is done at the gate, after the container was said to be created and
    /// before `start` is waited for, and what came of it is told in its place.
    LoadFilter { program: Vec<Instruction>, flags: u32, handover: Option<Handover>, ahead: bool },

    // ---- gate, exec
    /// Go on in a process of the pid namespace that was joined: nobody there could see the child until now, and all that
    /// it is to give up it has given up. `clone(CLONE_PARENT)`
    EnterPidNamespace,
    /// Tell the parent that the container is created, and wait for `start`. Whoever else knocks is lent these namespaces.
    /// `accept4`, `SCM_RIGHTS`
    WaitStart { gate: Slot, lends: Vec<Slot> },
    /// `execve`
    Exec { arguments: Vec<Text>, environment: Vec<Text> },
}

impl Op {
    /// How the operation is undone. The match is exhaustive on purpose: a new operation does not compile until this is
    /// answered (ARCHITECTURE.md, invariant 7).
    pub fn undo(&self) -> Undo {
        use Op::*;
        match self {
            CloneTree { .. }
            | MountImage { .. }
            | OpenNamespace { .. }
            | ConnectListener { .. }
            | MakeUserNamespace { .. }
            | MapTree { .. } => Undo::Nothing("a descriptor, closed with its table"),
            BeginOn { .. } => Undo::Nothing("the caller's own processors are restored right after the clone"),
            MoveNetDevice { device, name, .. } => {
                Undo::ReturnNetDevice { device: device.clone(), name: name.clone() }
            }
            CreateCgroup { .. } => Undo::RemoveCgroup,
            OpenCgroup { .. } => Undo::Nothing("the cgroup belongs to the container"),
            WriteCgroup(_) | FilterDevices { .. } | DelegateCgroup { .. } => {
                Undo::Nothing("goes with the cgroup")
            }
            StartUnit { unit, .. } => Undo::StopUnit(unit.clone()),
            ChangeCgroup(_) => Undo::RestoreCgroupFile,
            ChangeClass { class, .. } => Undo::RestoreSchemata(class.clone()),
            ReplaceDevices(change) => Undo::ReplaceDevices(change.reversed()),
            ListenGate { path, .. } => Undo::RemoveFile(path.clone()),
            Clone { .. } => Undo::KillChild,
            EnterClass { class, own: true, .. } => Undo::RemoveDirectory(class.clone()),
            EnterClass { .. } => Undo::Nothing("a class with a name of its own is for others too"),
            MakeMonitor { group } => Undo::RemoveDirectory(group.clone()),
            MapIds { .. }
            | AttachClass { .. }
            | AttachCgroup
            | AdjustOomScore { .. }
            | Release(_)
            | Await(_) => Undo::Nothing("goes with the child"),
            RunHooks { .. } => {
                Undo::Nothing("the specification gives hooks no undo; poststop hooks run on delete")
            }
            _ => Undo::Nothing("changes the child and its own namespaces only, and goes with them"),
        }
    }
}
