//! The device rules as one state, and how version 1 is brought to it.
//!
//! The semantics are those of the version 1 controller (kernel, cgroup-v1/devices.rst): a default and a list of exceptions.
//! Rules are applied in order. A rule for everything resets; with everything denied, an allowance adds an exception and a
//! denial takes away the exception with exactly its type and numbers. A denial that would leave a hole in a wildcard cannot
//! be expressed, and the kernel ignores it without a word: here it is refused.
//!
//! Version 2 enforces the same state by a program, see [`super::device_program`]; the two cannot differ.

use std::fmt;

use cofferdam_plan::Refusal;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Write;

/// Character or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
}

/// What may be done with a device node, as a mask of [`Access::MKNOD`], [`Access::READ`] and [`Access::WRITE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access(pub u8);

impl Access {
    /// Make it.
    pub const MKNOD: Self = Self(1);
    /// Read from it.
    pub const READ: Self = Self(2);
    /// Write to it.
    pub const WRITE: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    fn parse(text: &str) -> Option<Self> {
        text.chars().try_fold(Self(0), |access, letter| {
            let one = match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MKNOD,
                _ => return None,
            };
            Some(Self(access.0 | one.0))
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MKNOD, 'm')] {
            if self.0 & bit.0 != 0 {
                write!(formatter, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Which devices an exception speaks of; `None` is every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Devices {
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
}

impl Devices {
    fn overlaps(self, other: Self) -> bool {
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meets(self.major, other.major) && meets(self.minor, other.minor)
    }
}

/// An exception from the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which devices.
    pub devices: Devices,
    /// What of it.
    pub access: Access,
    /// JSON pointer of the last rule that shaped it.
    pub why: String,
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.devices.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(
            formatter,
            "{kind} {}:{} {}",
            number(self.devices.major),
            number(self.devices.minor),
            self.access
        )
    }
}

/// Which device nodes a container has without being asked (runtime-spec, config-linux.md, "Default Devices").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// The default devices, and making nodes of any kind: what runc allows, and image builds rely on.
    Compatible,
    /// The default devices only.
    Strict,
}

/// null, zero, full, random, urandom, tty, console, ptmx, and the pseudo-terminals.
const DEFAULT_DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Above this a list is refused: the kernel walks version 1's for every open.
const RULES_LIMIT: usize = 4000;

/// The state that the rules lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePolicy {
    /// Whether what no exception speaks of is allowed.
    pub allowed_by_default: bool,
    /// The exceptions, in the order in which they were made.
    pub exceptions: Vec<Exception>,
}

impl DevicePolicy {
    /// Applies `rules` (the spec's `resources.devices`) to a state in which everything is denied, and then the defaults.
    ///
    /// # Errors
    /// Types and numbers that the controller does not know, denials that cannot be expressed, too many rules.
    pub fn new(rules: &[LinuxDeviceCgroup], defaults: Defaults) -> Result<Self, Refusal> {
        const POINTER: &str = "/linux/resources/devices";
        if rules.len() > RULES_LIMIT {
            return Err(Refusal::invalid(
                POINTER,
                format!("has {} rules, at most {RULES_LIMIT} are taken", rules.len()),
            ));
        }
        let mut policy = Self { allowed_by_default: false, exceptions: Vec::new() };
        for (index, rule) in rules.iter().enumerate() {
            policy.apply(rule, &format!("{POINTER}/{index}"))?;
        }
        if !policy.allowed_by_default {
            policy.add_defaults(defaults);
        }
        Ok(policy)
    }

    fn add_defaults(&mut self, defaults: Defaults) {
        let why = "default devices";
        if defaults == Defaults::Compatible {
            for kind in [DeviceKind::Character, DeviceKind::Block] {
                self.add(Devices { kind, major: None, minor: None }, Access::MKNOD, why);
            }
        }
        for (major, minor) in DEFAULT_DEVICES {
            self.add(Devices { kind: DeviceKind::Character, major: Some(major), minor }, Access::ALL, why);
        }
    }

    fn apply(&mut self, rule: &LinuxDeviceCgroup, pointer: &str) -> Result<(), Refusal> {
        let access = match rule.access().as_deref().unwrap_or_default() {
            "" => Access::ALL,
            text => Access::parse(text).ok_or_else(|| {
                Refusal::invalid(format!("{pointer}/access"), "holds other letters than r, w and m")
            })?,
        };
        let major = device_number(rule.major(), &format!("{pointer}/major"))?;
        let minor = device_number(rule.minor(), &format!("{pointer}/minor"))?;
        let kinds: &[DeviceKind] = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A if major.is_none() && minor.is_none() && access == Access::ALL => {
                self.allowed_by_default = rule.allow();
                self.exceptions.clear();
                return Ok(());
            }
            // The kernel would take "a" with numbers for everything. What is meant is both kinds.
            LinuxDeviceType::A => &[DeviceKind::Character, DeviceKind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[DeviceKind::Character],
            LinuxDeviceType::B => &[DeviceKind::Block],
            LinuxDeviceType::P => {
                return Err(Refusal::invalid(
                    format!("{pointer}/type"),
                    "a FIFO is no device that could be controlled",
                ));
            }
        };
        for kind in kinds {
            let devices = Devices { kind: *kind, major, minor };
            if rule.allow() == self.allowed_by_default {
                self.take_away(devices, access, pointer)?;
            } else {
                self.add(devices, access, pointer);
            }
        }
        Ok(())
    }

    fn add(&mut self, devices: Devices, access: Access, why: &str) {
        match self.exceptions.iter_mut().find(|exception| exception.devices == devices) {
            Some(exception) => exception.access.0 |= access.0,
            None => self.exceptions.push(Exception { devices, access, why: why.to_owned() }),
        }
    }

    fn take_away(&mut self, devices: Devices, access: Access, pointer: &str) -> Result<(), Refusal> {
        let wider = self.exceptions.iter().find(|exception| {
            exception.devices != devices
                && exception.devices.overlaps(devices)
                && exception.access.0 & access.0 != 0
                && !covers(devices, exception.devices)
        });
        if let Some(wider) = wider {
            let problem = format!(
                "would leave a hole in the earlier rule {wider}, which no device controller can express"
            );
            return Err(Refusal::invalid(pointer, problem));
        }
        for exception in &mut self.exceptions {
            if covers(devices, exception.devices) {
                exception.access.0 &= !access.0;
            }
        }
        self.exceptions.retain(|exception| exception.access.0 != 0);
        Ok(())
    }

    /// The writes that bring a new version 1 cgroup, which begins as a copy of its parent, to this state.
    #[must_use]
    pub fn v1_writes(&self) -> Vec<Write> {
        let (reset, file) = match self.allowed_by_default {
            false => ("devices.deny", "devices.allow"),
            true => ("devices.allow", "devices.deny"),
        };
        let mut writes = vec![write(reset, "a", "/linux/resources/devices")];
        writes.extend(
            self.exceptions.iter().map(|exception| write(file, &exception.to_string(), &exception.why)),
        );
        writes
    }

    /// The writes that bring a version 1 cgroup from what its `devices.list` says to this state: only the differences, and
    /// what is new before what goes, so that at no moment more or less is allowed than before or after.
    #[must_use]
    pub fn v1_changes(&self, devices_list: &str) -> Vec<Write> {
        let Some(current) = Self::parse_list(devices_list) else { return self.v1_writes() };
        if current.allowed_by_default || self.allowed_by_default {
            // The list of a cgroup that allows by default does not tell its exceptions.
            return self.v1_writes();
        }
        let missing = |from: &Self, to: &Self, file: &str| -> Vec<Write> {
            let without = |exception: &Exception| {
                let held = from.exceptions.iter().find(|other| other.devices == exception.devices);
                let access = Access(exception.access.0 & !held.map_or(0, |held| held.access.0));
                (access.0 != 0).then(|| Exception { access, ..exception.clone() })
            };
            let differences = to.exceptions.iter().filter_map(without);
            differences.map(|exception| write(file, &exception.to_string(), &exception.why)).collect()
        };
        let mut writes = missing(&current, self, "devices.allow");
        writes.extend(missing(self, &current, "devices.deny"));
        writes
    }

    /// Reads a `devices.list`; `None` for what no kernel writes.
    #[must_use]
    pub fn parse_list(text: &str) -> Option<Self> {
        let mut policy = Self { allowed_by_default: false, exceptions: Vec::new() };
        for line in text.lines() {
            let [kind, numbers, access] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let kind = match kind {
                "a" => {
                    policy.allowed_by_default = true;
                    continue;
                }
                "c" => DeviceKind::Character,
                "b" => DeviceKind::Block,
                _ => return None,
            };
            let (major, minor) = numbers.split_once(':')?;
            let number = |text: &str| match text {
                "*" => Some(None),
                digits => digits.parse().ok().map(Some),
            };
            let devices = Devices { kind, major: number(major)?, minor: number(minor)? };
            policy.add(devices, Access::parse(access)?, "/linux/resources/devices");
        }
        Some(policy)
    }

    /// Whether an access is allowed: all of it, as the kernel asks for an open to read and write.
    #[must_use]
    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        let device = Devices { kind, major: Some(major), minor: Some(minor) };
        let mut about = self.exceptions.iter().filter(|exception| exception.devices.overlaps(device));
        if self.allowed_by_default {
            !about.any(|exception| exception.access.0 & access.0 != 0)
        } else {
            about.any(|exception| access.0 & !exception.access.0 == 0)
        }
    }
}

/// Whether every device of `narrow` is one of `wide`.
fn covers(wide: Devices, narrow: Devices) -> bool {
    let within = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    wide.kind == narrow.kind && within(wide.major, narrow.major) && within(wide.minor, narrow.minor)
}

/// -1 is Go's word for every number.
fn device_number(number: Option<i64>, pointer: &str) -> Result<Option<u32>, Refusal> {
    match number {
        None | Some(-1) => Ok(None),
        // The kernel keeps all bits set for "every number".
        Some(number) => match u32::try_from(number) {
            Ok(number) if number < u32::MAX => Ok(Some(number)),
            _ => Err(Refusal::invalid(pointer, format!("{number} is no device number"))),
        },
    }
}

fn write(file: &str, value: &str, why: &str) -> Write {
    let (controller, file, value) = ("devices".to_owned(), file.to_owned(), value.to_owned());
    Write { controller, file, value, why: why.to_owned(), optional: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(text).unwrap()
    }

    fn policy(text: &str) -> Result<DevicePolicy, Refusal> {
        DevicePolicy::new(&rules(text), Defaults::Strict)
    }

    fn lines(writes: &[Write]) -> Vec<String> {
        writes
            .iter()
            .map(|write| format!("{} {}", write.file.trim_start_matches("devices."), write.value))
            .collect()
    }

    const MIXED: &str = r#"[
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        {"allow": true, "type": "b", "major": 8, "minor": 20, "access": "rw"},
        {"allow": true, "type": "b", "major": 8, "access": "r"},
        {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "m"}
    ]"#;

    #[test]
    fn rules_are_written_one_by_one_as_they_were_given() {
        let written = lines(&policy(MIXED).unwrap().v1_writes());
        assert_eq!(
            written[..5],
            ["deny a", "allow c 10:229 rwm", "allow b 8:20 rw", "allow b 8:* r", "allow c 10:200 m"]
        );
        assert_eq!(written[5], "allow c 1:3 rwm");
        assert_eq!(written.len(), 14);
    }

    #[test]
    fn without_rules_everything_but_the_defaults_is_denied() {
        let strict = DevicePolicy::new(&[], Defaults::Strict).unwrap();
        let compatible = DevicePolicy::new(&[], Defaults::Compatible).unwrap();
        let (null, disk, mknod) = ((DeviceKind::Character, 1, 3), (DeviceKind::Block, 8, 0), Access::MKNOD);
        for policy in [&strict, &compatible] {
            assert!(policy.allows(null.0, null.1, null.2, Access::ALL));
            assert!(!policy.allows(disk.0, disk.1, disk.2, Access::READ));
            assert!(policy.allows(DeviceKind::Character, 136, 77, Access::ALL));
        }
        assert!(!strict.allows(disk.0, disk.1, disk.2, mknod));
        assert!(compatible.allows(disk.0, disk.1, disk.2, mknod));
    }

    #[test]
    fn a_rule_for_everything_resets() {
        let all =
            policy(r#"[{"allow": true, "type": "c", "major": 1, "access": "r"}, {"allow": true}]"#).unwrap();
        assert!(all.allowed_by_default && all.exceptions.is_empty());
        assert_eq!(lines(&all.v1_writes()), ["allow a"]);
        let but_one =
            policy(r#"[{"allow": true}, {"allow": false, "type": "b", "major": 8, "access": "w"}]"#).unwrap();
        assert_eq!(lines(&but_one.v1_writes()), ["allow a", "deny b 8:* w"]);
        assert!(!but_one.allows(DeviceKind::Block, 8, 1, Access(6)));
        assert!(but_one.allows(DeviceKind::Block, 8, 1, Access::READ));
    }

    #[test]
    fn both_kinds_with_a_number_is_not_everything() {
        let policy = policy(r#"[{"allow": true, "type": "a", "major": 7, "access": "rw"}]"#).unwrap();
        assert!(!policy.allowed_by_default);
        assert_eq!(lines(&policy.v1_writes())[1..3], ["allow c 7:* rw", "allow b 7:* rw"]);
    }

    #[test]
    fn a_denial_takes_away_what_it_names_and_never_leaves_a_hole() {
        let start = r#"{"allow": true, "type": "c", "major": 10, "access": "rw"}"#;
        let after = |rule: &str| policy(&format!("[{start}, {rule}]"));
        let exact = after(r#"{"allow": false, "type": "c", "major": 10, "access": "w"}"#).unwrap();
        assert_eq!(exact.exceptions[0].to_string(), "c 10:* r");
        let wider = after(r#"{"allow": false, "type": "c", "access": "rwm"}"#).unwrap();
        assert!(!wider.allows(DeviceKind::Character, 10, 1, Access::READ));
        let elsewhere =
            after(r#"{"allow": false, "type": "c", "major": 11, "minor": 1, "access": "rwm"}"#).unwrap();
        assert_eq!(elsewhere.exceptions[0].to_string(), "c 10:* rw");
        let hole =
            after(r#"{"allow": false, "type": "c", "major": 10, "minor": 1, "access": "r"}"#).unwrap_err();
        assert_eq!(
            hole.to_string(),
            "/linux/resources/devices/1: would leave a hole in the earlier rule c 10:* rw, which no device controller can express"
        );
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (rule, pointer) in [
            (r#"{"allow": true, "type": "p", "access": "r"}"#, "/0/type"),
            (r#"{"allow": true, "type": "c", "access": "x"}"#, "/0/access"),
            (r#"{"allow": true, "type": "c", "major": -2, "access": "r"}"#, "/0/major"),
            (r#"{"allow": true, "type": "c", "minor": 4294967295, "access": "r"}"#, "/0/minor"),
        ] {
            let refusal = policy(&format!("[{rule}]")).unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("/linux/resources/devices{pointer}: ")), "{refusal}");
        }
        let many = vec![LinuxDeviceCgroup::default(); RULES_LIMIT + 1];
        assert!(DevicePolicy::new(&many, Defaults::Strict).is_err());
    }

    #[test]
    fn an_update_writes_differences_only_and_adds_before_it_takes_away() {
        let current = "c 1:3 rwm\nb 8:0 rw\nc 10:200 r\n";
        let target = DevicePolicy::parse_list("c 1:3 rwm\nb 8:0 r\nc 10:229 rw\n").unwrap();
        assert_eq!(
            lines(&target.v1_changes(current)),
            ["allow c 10:229 rw", "deny b 8:0 w", "deny c 10:200 r"]
        );
        assert!(target.v1_changes("c 1:3 rwm\nb 8:0 r\nc 10:229 rw\n").is_empty());
        assert_eq!(lines(&target.v1_changes("a *:* rwm\n"))[0], "deny a");
        assert_eq!(DevicePolicy::parse_list("x"), None);
    }
}
