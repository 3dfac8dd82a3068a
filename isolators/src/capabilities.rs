//! Capabilities: names, sets as bit masks, the sets an engine grants, and what of a request can really be granted.
//!
//! Everything ends in numbers, because the child that applies them must not allocate or look anything up. A capability that is
//! unknown or cannot be granted is a warning and not a failure (runtime-spec, config.md, "Linux Process": the runtime SHOULD
//! NOT fail): on a host where root itself lacks CAP_SYS_RESOURCE, a configuration that asks for everything still runs, with
//! one line in the log.

use std::fmt;

use oci_spec::runtime::{Capabilities, LinuxCapabilities};

/// A set of capabilities as the kernel's 64-bit mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

/// Names by number, `CAP_` left out (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability, by its kernel number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Capability { $($(#[$doc])* pub const $name: Self = Self($number);)* }
    };
}

capabilities! {
    /// Change owners of files.
    CHOWN = 0;
    /// Pass permission checks of files.
    DAC_OVERRIDE = 1;
    /// Read files and search directories without permission; open by handle.
    DAC_READ_SEARCH = 2;
    /// Act as the owner of any file.
    FOWNER = 3;
    /// Keep set-id bits on changed files.
    FSETID = 4;
    /// Send signals to any process.
    KILL = 5;
    /// Change group ids.
    SETGID = 6;
    /// Change user ids.
    SETUID = 7;
    /// Change capability sets and securebits.
    SETPCAP = 8;
    /// Bind ports below 1024.
    NET_BIND_SERVICE = 10;
    /// Configure the network.
    NET_ADMIN = 12;
    /// Raw and packet sockets.
    NET_RAW = 13;
    /// Load modules.
    SYS_MODULE = 16;
    /// Raw I/O ports.
    SYS_RAWIO = 17;
    /// Call chroot.
    SYS_CHROOT = 18;
    /// Trace any process.
    SYS_PTRACE = 19;
    /// Process accounting.
    SYS_PACCT = 20;
    /// Mounts, namespaces and much more.
    SYS_ADMIN = 21;
    /// Reboot.
    SYS_BOOT = 22;
    /// Raise priorities, set memory policies.
    SYS_NICE = 23;
    /// Exceed resource limits.
    SYS_RESOURCE = 24;
    /// Set clocks.
    SYS_TIME = 25;
    /// Hang up terminals.
    SYS_TTY_CONFIG = 26;
    /// Make device nodes.
    MKNOD = 27;
    /// Write to the audit log.
    AUDIT_WRITE = 29;
    /// Set file capabilities.
    SETFCAP = 31;
    /// Read and control the kernel log.
    SYSLOG = 34;
    /// Performance monitoring.
    PERFMON = 38;
    /// Load BPF programs.
    BPF = 39;
}

impl Capability {
    /// The highest number this table knows (CAP_CHECKPOINT_RESTORE).
    pub const LAST: Self = Self(40);

    /// The capability of this name: any case, with or without `CAP_`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase();
        let bare = name.strip_prefix("CAP_").unwrap_or(&name);
        let number = NAMES.iter().position(|known| *known == bare)?;
        u8::try_from(number).ok().map(Self)
    }

    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => write!(formatter, "CAP_{name}"),
            None => write!(formatter, "CAP_{}", self.0),
        }
    }
}

impl CapSet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// Every capability this table knows.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// Docker's default: 14.
    pub const DOCKER: Self = Self::of(&[
        Capability::CHOWN,
        Capability::DAC_OVERRIDE,
        Capability::FSETID,
        Capability::FOWNER,
        Capability::MKNOD,
        Capability::NET_RAW,
        Capability::SETGID,
        Capability::SETUID,
        Capability::SETFCAP,
        Capability::SETPCAP,
        Capability::NET_BIND_SERVICE,
        Capability::SYS_CHROOT,
        Capability::KILL,
        Capability::AUDIT_WRITE,
    ]);
    /// Our default for root: Docker's without MKNOD, NET_RAW, AUDIT_WRITE (as podman) and without SETPCAP: 10.
    /// SYS_CHROOT stays because dpkg and sshd need it; ping works without NET_RAW through ping_group_range.
    pub const DEFAULT: Self = Self::of(&[
        Capability::CHOWN,
        Capability::DAC_OVERRIDE,
        Capability::FSETID,
        Capability::FOWNER,
        Capability::SETGID,
        Capability::SETUID,
        Capability::SETFCAP,
        Capability::NET_BIND_SERVICE,
        Capability::SYS_CHROOT,
        Capability::KILL,
    ]);

    const fn of(list: &[Capability]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < list.len() {
            bits |= 1 << list[at].0;
            at += 1;
        }
        Self(bits)
    }

    /// The set with this mask.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The kernel's mask.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set holds no capability.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set holds `capability`.
    #[must_use]
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability.0) != 0
    }

    /// This set and `capability`.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | (1 << capability.0))
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The members in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        (0..64).map(Capability).filter(move |capability| self.contains(*capability))
    }

    /// The set that `names` spell; names that no kernel we know has come back beside it.
    #[must_use]
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> (Self, Vec<String>) {
        let mut set = Self::EMPTY;
        let mut unknown = Vec::new();
        for name in names {
            match Capability::parse(name) {
                Some(capability) => set = set.with(capability),
                None => unknown.push(name.to_owned()),
            }
        }
        (set, unknown)
    }

    /// This set after an operator's `--cap-add` and `--cap-drop`, `ALL` included, as Docker reads them: `ALL` dropped leaves
    /// what is added by name, `ALL` added takes away what is dropped by name, and a name in both is added.
    ///
    /// # Errors
    /// A name that is neither `ALL` nor a capability: here somebody typed it, so it is an error.
    pub fn adjust(self, add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        let by_name = |names: &[String]| {
            names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")).try_fold(
                Self::EMPTY,
                |set, name| {
                    Capability::parse(name)
                        .map(|one| set.with(one))
                        .ok_or_else(|| UnknownCapability { name: name.clone() })
                },
            )
        };
        let (added, dropped) = (by_name(add)?, by_name(drop)?);
        Ok(match (all(add), all(drop)) {
            (true, _) => Self::ALL.difference(dropped),
            (false, true) => added,
            (false, false) => self.difference(dropped).union(added),
        })
    }
}

impl FromIterator<Capability> for CapSet {
    fn from_iter<T: IntoIterator<Item = Capability>>(list: T) -> Self {
        list.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl From<&Capabilities> for CapSet {
    /// The runtime-spec's type, whose parser has already refused what it does not know.
    fn from(list: &Capabilities) -> Self {
        list.iter().filter_map(|capability| Capability::parse(&capability.to_string())).collect()
    }
}

impl fmt::Display for CapSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for capability in self.iter() {
            write!(formatter, "{separator}{capability}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// A name given by an operator that is no capability.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown capability {name:?}")]
pub struct UnknownCapability {
    /// The name as it was given.
    pub name: String,
}

/// The five sets of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What may ever be gained by executing a file.
    pub bounding: CapSet,
    /// What is in force.
    pub effective: CapSet,
    /// What may be put in force.
    pub permitted: CapSet,
    /// What survives execution together with a file's inheritable set.
    pub inheritable: CapSet,
    /// What survives execution of an ordinary file as a user other than root.
    pub ambient: CapSet,
}

impl CapabilitySets {
    /// What an engine gives a process: for root, `granted` in bounding, permitted and effective; for another user only the
    /// bounding set, so that nothing is held without a file that grants it (CVE-2016-8867). Inheritable and ambient stay
    /// empty (CVE-2022-24769).
    #[must_use]
    pub fn for_user(granted: CapSet, uid: u32) -> Self {
        let held = if uid == 0 { granted } else { CapSet::EMPTY };
        Self { bounding: granted, effective: held, permitted: held, ..Self::default() }
    }

    /// The sets of the runtime-spec's `process.capabilities`.
    #[must_use]
    pub fn from_oci(wanted: &LinuxCapabilities) -> Self {
        let set = |list: &Option<Capabilities>| list.as_ref().map(CapSet::from).unwrap_or_default();
        Self {
            bounding: set(wanted.bounding()),
            effective: set(wanted.effective()),
            permitted: set(wanted.permitted()),
            inheritable: set(wanted.inheritable()),
            ambient: set(wanted.ambient()),
        }
    }

    /// What of these sets the kernel will grant to a process that may draw on `available`, and what was taken away.
    ///
    /// `available` is the caller's bounding set cut down to what it holds; in a new user namespace it is every capability the
    /// kernel has.
    #[must_use]
    pub fn grantable(self, available: CapSet) -> (Self, Vec<Warning>) {
        let mut warnings = Vec::new();
        let mut cut = |which: &'static str, wanted: CapSet, limit: CapSet, reason: &'static str| {
            let lost = wanted.difference(limit);
            if !lost.is_empty() {
                warnings.push(Warning { which, lost, reason });
            }
            wanted.intersection(limit)
        };
        const HOST: &str = "not available to the runtime";
        let bounding = cut("bounding", self.bounding, available, HOST);
        let permitted = cut("permitted", self.permitted, available, HOST);
        let inheritable = cut("inheritable", self.inheritable, available, HOST);
        let effective = cut("effective", self.effective, available, HOST);
        let effective = cut("effective", effective, permitted, "not in the permitted set");
        let ambient = cut("ambient", self.ambient, available, HOST);
        let ambient = cut("ambient", ambient, permitted, "not in the permitted set");
        let ambient = cut("ambient", ambient, inheritable, NOT_INHERITABLE);
        (Self { bounding, effective, permitted, inheritable, ambient }, warnings)
    }
}

/// Why an ambient capability is left out: capabilities(7), "Ambient".
pub const NOT_INHERITABLE: &str = "not in the inheritable set";

/// Capabilities that were asked for and are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The set they were asked in.
    pub which: &'static str,
    /// What is left out.
    pub lost: CapSet,
    /// Why.
    pub reason: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.which == "ambient" {
            return write!(formatter, "can't raise ambient capability {}: {}", self.lost, self.reason);
        }
        write!(formatter, "{} left out of the {} capabilities: {}", self.lost, self.which, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        for (name, number) in
            [("CAP_CHOWN", 0), ("sys_admin", 21), ("Cap_Bpf", 39), ("CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(Capability::parse(name).map(Capability::number), Some(number), "{name}");
        }
        assert_eq!(Capability::parse("CAP_CAP_CHOWN"), None);
        assert_eq!(Capability::parse(""), None);
        assert_eq!(Capability::LAST.to_string(), "CAP_CHECKPOINT_RESTORE");
        for (constant, name) in [
            (Capability::SETFCAP, "SETFCAP"),
            (Capability::SYSLOG, "SYSLOG"),
            (Capability::MKNOD, "MKNOD"),
            (Capability::AUDIT_WRITE, "AUDIT_WRITE"),
            (Capability::PERFMON, "PERFMON"),
            (Capability::SYS_TTY_CONFIG, "SYS_TTY_CONFIG"),
            (Capability::NET_RAW, "NET_RAW"),
        ] {
            assert_eq!(Capability::parse(name), Some(constant));
        }
    }

    #[test]
    fn default_sets_have_the_documented_sizes() {
        assert_eq!(CapSet::DOCKER.iter().count(), 14);
        assert_eq!(CapSet::DEFAULT.iter().count(), 10);
        assert!(CapSet::DEFAULT.difference(CapSet::DOCKER).is_empty());
        assert_eq!(CapSet::ALL.iter().count(), 41);
    }

    #[test]
    fn unknown_names_are_reported_and_not_fatal() {
        let (set, unknown) = CapSet::parse(["CAP_KILL", "CAP_NOT_REAL", "chown"]);
        assert_eq!(set.to_string(), "CAP_CHOWN,CAP_KILL");
        assert_eq!(unknown, ["CAP_NOT_REAL"]);
    }

    #[test]
    fn add_and_drop_read_as_docker_reads_them() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (add, drop, expected) in [
            ("", "", "CAP_CHOWN,CAP_KILL"),
            ("NET_ADMIN", "", "CAP_CHOWN,CAP_KILL,CAP_NET_ADMIN"),
            ("", "kill", "CAP_CHOWN"),
            ("", "all", ""),
            ("cap_mknod", "ALL", "CAP_MKNOD"),
            ("KILL", "KILL", "CAP_CHOWN,CAP_KILL"),
        ] {
            let base = CapSet::EMPTY.with(Capability::CHOWN).with(Capability::KILL);
            assert_eq!(
                base.adjust(&names(add), &names(drop)).unwrap().to_string(),
                expected,
                "+{add} -{drop}"
            );
        }
        let all_but_one = CapSet::EMPTY.adjust(&names("ALL"), &names("SYS_ADMIN")).unwrap();
        assert_eq!(all_but_one.iter().count(), 40);
        let error = CapSet::EMPTY.adjust(&names("FLY"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "unknown capability \"FLY\"");
    }

    #[test]
    fn what_cannot_be_granted_is_left_out_with_a_warning() {
        let available = CapSet::ALL.difference(CapSet::EMPTY.with(Capability::SYS_RESOURCE));
        let all = CapSet::ALL;
        let wanted =
            CapabilitySets { bounding: all, effective: all, permitted: all, inheritable: all, ambient: all };
        let (granted, warnings) = wanted.grantable(available);
        assert_eq!(granted.ambient, available);
        assert_eq!(warnings.len(), 5);
        assert_eq!(
            warnings[0].to_string(),
            "CAP_SYS_RESOURCE left out of the bounding capabilities: not available to the runtime"
        );
    }

    #[test]
    fn ambient_and_effective_never_exceed_what_the_kernel_takes() {
        let kill = CapSet::EMPTY.with(Capability::KILL);
        let wanted =
            CapabilitySets { effective: kill, ambient: kill, inheritable: kill, ..CapabilitySets::default() };
        let (granted, warnings) = wanted.grantable(CapSet::ALL);
        assert!(granted.effective.is_empty() && granted.ambient.is_empty());
        assert_eq!(granted.inheritable, kill);
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn users_other_than_root_hold_nothing_by_default() {
        let sets = CapabilitySets::for_user(CapSet::DEFAULT, 1000);
        assert_eq!(sets.bounding, CapSet::DEFAULT);
        assert!(sets.effective.is_empty() && sets.permitted.is_empty() && sets.ambient.is_empty());
        assert_eq!(CapabilitySets::for_user(CapSet::DEFAULT, 0).effective, CapSet::DEFAULT);
    }

    #[test]
    fn the_specs_sets_are_read() {
        let wanted: LinuxCapabilities =
            serde_json::from_str(r#"{"bounding": ["CAP_KILL"], "effective": ["CAP_BPF", "CAP_KILL"]}"#)
                .unwrap();
        let sets = CapabilitySets::from_oci(&wanted);
        assert_eq!(sets.bounding.to_string(), "CAP_KILL");
        assert_eq!(sets.effective.to_string(), "CAP_KILL,CAP_BPF");
    }
}
