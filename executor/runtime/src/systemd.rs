//! The service manager, over its bus interface: org.freedesktop.systemd1(5).
//!
//! ```text
//! create   StartTransientUnit(scope with the child in it) ─▶ job ─▶ JobRemoved "done" ─▶ limits into the files
//! update   SetUnitProperties(runtime) ─▶ limits into the files
//! delete   everything killed ─▶ StopUnit ─▶ ResetFailedUnit
//! ```
//!
//! The machine's manager is reached by the system bus, or by its own socket where there is no bus; a user's by the session
//! bus or its own socket. Read first: this file, then `bus` (the connection), `wire` (messages as bytes).

mod bus;
mod wire;

use cofferdam_plan::host::{DeviceGroup, Systemd as Facts};
use cofferdam_plan::op::UnitProperty;

use crate::state::Record;
use bus::Bus;
use wire::{Call, Message, Writer};

/// How long systemd may take to start or stop a scope, in seconds. It moves one process; runc waits as long.
const JOB_SECONDS: u64 = 30;

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Why the service manager did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No address answers.
    #[error("systemd cannot be reached: {tried}")]
    Unreachable {
        /// Each address and what came of it.
        tried: String,
    },
    /// A connection failed.
    #[error("{address}: {problem}")]
    Connection {
        /// Where.
        address: String,
        /// How.
        problem: String,
    },
    /// No answer came in time.
    #[error("{address}: no answer to {what} in {seconds} s")]
    Silent {
        /// What was waited for.
        what: String,
        /// Where.
        address: String,
        /// How long.
        seconds: u64,
    },
    /// The call was answered by an error.
    #[error("{call}: {words} ({name})")]
    Refused {
        /// The method.
        call: String,
        /// The error's name on the bus.
        name: String,
        /// And its words.
        words: String,
    },
    /// The job that a call began came to another end.
    #[error("starting or stopping {unit} ended as {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word for the end.
        result: String,
    },
}

/// A connection to the manager.
pub(crate) struct Systemd {
    bus: Bus,
    user: bool,
}

impl Systemd {
    /// Connects to the manager of the machine, or to the user's where we are not root in the initial user namespace.
    pub(crate) fn connect() -> Result<Self, Problem> {
        let user = !rustix::process::geteuid().is_root() || in_user_namespace();
        let bus = Bus::connect(&if user { user_addresses() } else { system_addresses() })?;
        let mut systemd = Self { bus, user };
        // By a bus, signals come to those who asked; straight from systemd they come unasked, and this is refused.
        let rule = format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'");
        let mut arguments = Writer::default();
        arguments.text(&rule);
        let wants = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "AddMatch",
            signature: "s",
        };
        refusal_is_well(systemd.bus.call(wants, arguments))?;
        refusal_is_well(systemd.manager("Subscribe", "", Writer::default()))?;
        Ok(systemd)
    }

    /// What a plan has to know of it.
    pub(crate) fn facts(&mut self) -> Result<Facts, Problem> {
        let version = self.property("Version")?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Ok(Facts {
            control_group: self.property("ControlGroup")?.trim_end_matches('/').to_owned(),
            user: self.user,
            version: digits.parse().unwrap_or(0),
            device_groups: device_groups(&std::fs::read_to_string("/proc/devices").unwrap_or_default()),
        })
    }

    /// Makes a scope with a process in it, and waits until it is there. A scope of that name that has failed is forgotten
    /// first; one that lives is not touched.
    pub(crate) fn start(&mut self, unit: &str, properties: &[UnitProperty], pid: u32) -> Result<(), Problem> {
        let start = |systemd: &mut Self| {
            let mut arguments = unit_arguments(unit, "replace");
            arguments.properties(properties, &[pid]);
            arguments.list(8, |_| {});
            systemd.job(unit, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        };
        match start(self) {
            Err(Problem::Refused { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
                self.forget(unit)?;
                start(self)
            }
            result => result,
        }
    }

    /// Stops a unit, waits for that, and forgets how it ended. One that is gone is well.
    pub(crate) fn stop(&mut self, unit: &str) -> Result<(), Problem> {
        let stopped = self.job(unit, "StopUnit", "ss", unit_arguments(unit, "replace"));
        gone_is_well(stopped)?;
        self.forget(unit)
    }

    /// Changes the limits of a unit until the next boot.
    pub(crate) fn set(&mut self, unit: &str, properties: &[UnitProperty]) -> Result<(), Problem> {
        let mut arguments = Writer::default();
        arguments.text(unit);
        arguments.uint32(u32::from(true));
        arguments.properties(properties, &[]);
        self.manager("SetUnitProperties", "sba(sv)", arguments).map(drop)
    }

    fn forget(&mut self, unit: &str) -> Result<(), Problem> {
        let mut arguments = Writer::default();
        arguments.text(unit);
        gone_is_well(self.manager("ResetFailedUnit", "s", arguments).map(drop))
    }

    fn manager(&mut self, member: &str, signature: &str, arguments: Writer) -> Result<Message, Problem> {
        let call = Call { destination: SERVICE, path: OBJECT, interface: MANAGER, member, signature };
        self.bus.call(call, arguments)
    }

    /// Calls a method that begins a job, and waits for the job's end.
    fn job(&mut self, unit: &str, member: &str, signature: &str, arguments: Writer) -> Result<(), Problem> {
        let job = self.manager(member, signature, arguments)?.body().text().unwrap_or_default();
        let ended = |message: &Message| {
            if message.interface != MANAGER || message.member != "JobRemoved" {
                return None;
            }
            let mut body = message.body();
            let (_id, path, _unit, result) = (body.uint32()?, body.text()?, body.text()?, body.text()?);
            (path == job).then_some(result)
        };
        let result = self.bus.wait(&format!("{member} of {unit}"), JOB_SECONDS, ended)?;
        if result == "done" { Ok(()) } else { Err(Problem::Job { unit: unit.to_owned(), result }) }
    }

    fn property(&mut self, name: &str) -> Result<String, Problem> {
        let mut arguments = Writer::default();
        arguments.text(MANAGER);
        arguments.text(name);
        let call = Call {
            destination: SERVICE,
            path: OBJECT,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            signature: "ss",
        };
        let answer = self.bus.call(call, arguments)?;
        let mut body = answer.body();
        let text = body.signature().filter(|signature| signature == "s").and_then(|_| body.text());
        text.ok_or_else(|| Problem::Refused {
            call: "Get".into(),
            name: name.to_owned(),
            words: "the answer is no text".into(),
        })
    }
}

/// Stops the scope of a container whose processes are gone.
pub(crate) fn end(record: &Record) -> Result<(), Problem> {
    match &record.unit {
        Some(unit) => Systemd::connect()?.stop(unit),
        None => Ok(()),
    }
}

fn unit_arguments(unit: &str, mode: &str) -> Writer {
    let mut arguments = Writer::default();
    arguments.text(unit);
    arguments.text(mode);
    arguments
}

fn refusal_is_well(result: Result<Message, Problem>) -> Result<(), Problem> {
    match result {
        Ok(_) | Err(Problem::Refused { .. }) => Ok(()),
        Err(problem) => Err(problem),
    }
}

fn gone_is_well(result: Result<(), Problem>) -> Result<(), Problem> {
    match result {
        Err(Problem::Refused { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
        result => result,
    }
}

fn in_user_namespace() -> bool {
    // The initial one maps every number to itself.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// D-Bus specification, "System message bus"; and the manager's own socket, for a machine whose bus is not up.
fn system_addresses() -> Vec<String> {
    let bus = variable("DBUS_SYSTEM_BUS_ADDRESS");
    let bus = bus.unwrap_or_else(|| "unix:path=/run/dbus/system_bus_socket".into());
    vec![bus, "unix:path=/run/systemd/private".into()]
}

fn user_addresses() -> Vec<String> {
    let folder = variable("XDG_RUNTIME_DIR")
        .unwrap_or_else(|| format!("/run/user/{}", rustix::process::getuid().as_raw()));
    let socket = |name: &str| format!("unix:path={folder}/{name}");
    variable("DBUS_SESSION_BUS_ADDRESS")
        .into_iter()
        .chain([socket("bus"), socket("systemd/private")])
        .collect()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `/proc/devices`: the drivers by kind and number.
fn device_groups(text: &str) -> Vec<DeviceGroup> {
    let mut block = false;
    let mut groups = Vec::new();
    for line in text.lines() {
        match line.trim() {
            "Character devices:" => block = false,
            "Block devices:" => block = true,
            line => {
                let Some((major, name)) = line.split_once(' ') else { continue };
                let Ok(major) = major.parse() else { continue };
                groups.push(DeviceGroup { block, major, name: name.trim().to_owned() });
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_read_by_kind() {
        let groups =
            device_groups("Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n259 blkext\n");
        let group = |block, major, name: &str| DeviceGroup { block, major, name: name.into() };
        let expected = [
            group(false, 1, "mem"),
            group(false, 136, "pts"),
            group(true, 8, "sd"),
            group(true, 259, "blkext"),
        ];
        assert_eq!(groups, expected);
    }
}
