//! What operations are made of: descriptors by name, namespaces, id maps, mount attributes, limits, cgroup writes, hooks.

use std::fmt;

use crate::path::Text;

/// The name of a descriptor between operations: an index into the interpreter's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

/// The kernel's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the kernel's own names, namespaces(7)
pub enum Namespace {
    User,
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl Namespace {
    /// All eight, in the order in which a process without privilege joins them: user first, so that its capabilities open the
    /// others; mount last, so that host paths still mean something. Whoever has privilege outside joins user after the others.
    pub const ALL: [Namespace; 8] = {
        use Namespace::*;
        [User, Pid, Network, Ipc, Uts, Cgroup, Time, Mount]
    };

    /// The `CLONE_NEW*` bit, clone(2).
    pub const fn flag(self) -> u64 {
        match self {
            Self::User => 0x1000_0000,
            Self::Pid => 0x2000_0000,
            Self::Network => 0x4000_0000,
            Self::Mount => 0x0002_0000,
            Self::Ipc => 0x0800_0000,
            Self::Uts => 0x0400_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => 0x0000_0080,
        }
    }

    /// The file name below `/proc/PID/ns`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Mount => "mnt",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// A rendezvous between the waiting child and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// The parent has written the id maps.
    Mapped,
    /// The parent has put the child into its class of service.
    Allocated,
    /// The parent has lent the child its network devices.
    Connected,
    /// The parent has attached the child to its cgroups.
    Attached,
    /// Whoever started the plan has noted the child, which is found from here on although its parent should end.
    Noted,
    /// The child has built the mount tree, not yet pivoted.
    Mounted,
    /// The parent has run the hooks that wait for the mount tree.
    Hooked,
}

impl Barrier {
    /// The byte that announces this barrier on the channel.
    pub const fn token(self) -> u8 {
        match self {
            Self::Mapped => b'm',
            Self::Allocated => b'r',
            Self::Connected => b'n',
            Self::Attached => b'a',
            Self::Noted => b'i',
            Self::Mounted => b't',
            Self::Hooked => b'h',
        }
    }
}

/// One line of an id map, user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many ids.
    pub count: u32,
}

impl fmt::Display for IdMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Who writes an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapper {
    /// We do, with CAP_SETUID or CAP_SETGID over our own namespace.
    Caller,
    /// We do, without privilege: a single line that maps our own id, and for groups `setgroups` denied first.
    Own,
    /// `newuidmap` or `newgidmap`, setuid programs that know what /etc/subuid and /etc/subgid allow.
    Helper,
}

impl fmt::Display for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caller => "",
            Self::Own => " own",
            Self::Helper => " helper",
        })
    }
}

/// Mount propagation, mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the kernel's own names
pub enum Propagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

impl Propagation {
    /// The `MS_*` bit that mount_setattr(2) takes.
    pub const fn flag(self) -> u64 {
        match self {
            Self::Private => 1 << 18,
            Self::Slave => 1 << 19,
            Self::Shared => 1 << 20,
            Self::Unbindable => 1 << 17,
        }
    }
}

/// What mount_setattr(2) is asked to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// Propagation to give.
    pub propagation: Option<Propagation>,
    /// Apply to the whole tree of mounts.
    pub recursive: bool,
}

impl MountAttributes {
    /// `MOUNT_ATTR_RDONLY`.
    pub const READ_ONLY: u64 = 0x1;
    /// `MOUNT_ATTR_NOSUID`.
    pub const NO_SUID: u64 = 0x2;
    /// `MOUNT_ATTR_NODEV`.
    pub const NO_DEV: u64 = 0x4;
    /// `MOUNT_ATTR_NOEXEC`.
    pub const NO_EXEC: u64 = 0x8;
    /// `MOUNT_ATTR__ATIME`, the mask of the access-time modes.
    pub const ATIME_MASK: u64 = 0x70;
    /// `MOUNT_ATTR_NOATIME`.
    pub const NO_ATIME: u64 = 0x10;
    /// `MOUNT_ATTR_STRICTATIME`.
    pub const STRICT_ATIME: u64 = 0x20;
    /// `MOUNT_ATTR_NODIRATIME`.
    pub const NO_DIR_ATIME: u64 = 0x80;
    /// `MOUNT_ATTR_NOSYMFOLLOW`.
    pub const NO_SYMLINK_FOLLOW: u64 = 0x20_0000;

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation.is_none()
    }
}

impl fmt::Display for MountAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u64, &str); 7] = [
            (MountAttributes::READ_ONLY, "ro"),
            (MountAttributes::NO_SUID, "nosuid"),
            (MountAttributes::NO_DEV, "nodev"),
            (MountAttributes::NO_EXEC, "noexec"),
            (MountAttributes::NO_ATIME, "noatime"),
            (MountAttributes::STRICT_ATIME, "strictatime"),
            (MountAttributes::NO_DIR_ATIME, "nodiratime"),
        ];
        let mut first = true;
        let mut word = |f: &mut fmt::Formatter<'_>, sign: &str, word: &str| {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            write!(f, "{comma}{sign}{word}")
        };
        // The access-time modes are one field: all of it is cleared to set one of them.
        let clear = self.clear & !Self::ATIME_MASK;
        for (bit, name) in NAMES {
            if self.set & bit != 0 {
                word(f, "", name)?;
            } else if clear & bit != 0 {
                word(f, "-", name)?;
            }
        }
        if self.set & Self::NO_SYMLINK_FOLLOW != 0 {
            word(f, "", "nosymfollow")?;
        }
        if self.clear & Self::ATIME_MASK == Self::ATIME_MASK && self.set & Self::ATIME_MASK == 0 {
            word(f, "", "relatime")?;
        }
        match self.propagation {
            Some(Propagation::Private) => word(f, "", "private")?,
            Some(Propagation::Slave) => word(f, "", "slave")?,
            Some(Propagation::Shared) => word(f, "", "shared")?,
            Some(Propagation::Unbindable) => word(f, "", "unbindable")?,
            None => {}
        }
        if self.recursive { write!(f, " recursive") } else { Ok(()) }
    }
}

/// What to make at a mount point that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// A directory.
    Directory,
    /// What the tree's root is: a directory for a directory, an empty file for anything else.
    LikeTree,
    /// A directory that no symbolic link may lead to: the mount points of kernel file systems.
    RealDirectory,
    /// As [`Create::LikeTree`], on the link itself where the last component is one.
    LikeTreeUnfollowed,
    /// As [`Create::LikeTree`], but a tree that is a symbolic link is made anew as one instead of being mounted.
    LinkOrTree,
}

/// The security modules that change who a process is when it executes a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // their own names
pub enum SecurityModule {
    AppArmor,
    Selinux,
}

/// A resource limit, setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// One classic BPF instruction, seccomp(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // struct sock_filter
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// How the child hands the descriptor of its filter's notifications over: in one `sendmsg`, with this message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The connected socket.
    pub socket: Slot,
    /// The message; the child's pid, which only the clone tells, goes between the parts. At most [`Handover::PARTS`].
    pub message: Vec<Text>,
    /// Whether the child closes the socket and its copy of the descriptor by close_range(2): the filter asks about close(2),
    /// and a copy that is left keeps the kernel from answering for a supervisor that is gone.
    pub close_by_range: bool,
}

impl Handover {
    /// Most parts of a message.
    pub const PARTS: usize = 3;
}

/// Hierarchies of a host that has version 1 ones and perhaps a version 2 one beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchies {
    /// All of them.
    All,
    /// The version 2 one.
    Unified,
    /// The version 1 ones.
    Legacy,
}

impl Hierarchies {
    /// Which of the two kinds are among them: version 1, version 2.
    #[must_use]
    pub fn kinds(self) -> (bool, bool) {
        (self != Self::Unified, self != Self::Legacy)
    }
}

/// One write to a cgroup file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupWrite {
    /// Controller whose hierarchy is meant on v1; empty on v2.
    pub controller: String,
    /// File name, such as `memory.max`.
    pub file: String,
    /// Text to write.
    pub value: String,
    /// Go on when the kernel lacks the file.
    pub optional: bool,
}

/// A property of a systemd unit, as its bus interface takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitProperty {
    /// Its name, such as `MemoryMax`.
    pub name: String,
    /// Its value.
    pub value: UnitValue,
}

/// A value in one of the types that properties have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the types of the D-Bus specification
pub enum UnitValue {
    Boolean(bool),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    Pairs(Vec<(String, String)>),
}

impl fmt::Display for UnitProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        match &self.value {
            UnitValue::Boolean(value) => write!(f, "{value}"),
            UnitValue::Int32(value) => write!(f, "{value}"),
            UnitValue::Uint32(value) => write!(f, "{value}"),
            UnitValue::Int64(value) => write!(f, "{value}"),
            UnitValue::Uint64(value) => write!(f, "{value}"),
            UnitValue::Text(value) => f.write_str(value),
            UnitValue::Texts(value) => write!(f, "{value:?}"),
            UnitValue::Bytes(value) => write!(f, "{value:?}"),
            UnitValue::Pairs(pairs) => {
                let pairs: Vec<_> = pairs.iter().map(|(one, other)| format!("{one} {other}")).collect();
                write!(f, "[{}]", pairs.join(", "))
            }
        }
    }
}

/// Other device rules for a cgroup, and those that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // both are whole sets of rules
pub enum DeviceChange {
    /// Version 2: a program takes the place of another, in one step.
    Program { now: Vec<u64>, before: Vec<u64> },
    /// Version 1: writes to the list.
    List { now: Vec<CgroupWrite>, before: Vec<CgroupWrite> },
}

impl DeviceChange {
    /// The way back.
    pub fn reversed(&self) -> Self {
        match self.clone() {
            Self::Program { now, before } => Self::Program { now: before, before: now },
            Self::List { now, before } => Self::List { now: before, before: now },
        }
    }
}

/// When a hook runs, runtime-spec config.md, POSIX-platform hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the specification's own names
pub enum HookPoint {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookPoint {
    /// All of them, in the order of a container's life.
    pub const ALL: [HookPoint; 6] = {
        use HookPoint::*;
        [Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart, Poststop]
    };

    /// The key in `hooks`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A key of fsconfig(2) with its value; a key without one is a flag.
pub type FilesystemOption = (Text, Option<Text>);
