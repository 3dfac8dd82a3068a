//! An update of a running container's limits: the configuration's `linux.resources` with what the caller gives laid over it,
//! and the steps that bring the cgroup there.
//!
//! Values that share a kernel file or a rule are completed from the configuration: a quota alone keeps the period, a memory
//! limit alone keeps the figure for memory and swap together. Zero and the empty text mean "leave as it is", as for every
//! caller whose language cannot tell them from "not said".

use cofferdam_plan::host::Systemd;
use cofferdam_plan::op::{CgroupWrite, DeviceChange, UnitProperty};
use cofferdam_plan::{Builder, CgroupLayout, HostFeatures, Op, Plan, Refusal, Stage, Standing};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxIntelRdt, LinuxResources};
use serde_json::{Map, Value};

use crate::cgroup::devices::{Defaults, DevicePolicy};
use crate::cgroup::{self, Current, Occasion, systemd};
use crate::cgroups::translation_host;
use crate::intel_rdt;
pub use crate::intel_rdt::ClassChange;

/// A container whose limits are to change.
#[derive(Debug, Clone)]
pub struct Updating<'a> {
    /// Its cgroup, as its state says.
    pub cgroup: &'a str,
    /// The limits it has.
    pub resources: Option<&'a LinuxResources>,
    /// What is to be different.
    pub change: &'a LinuxResources,
    /// What is in force.
    pub current: Current,
    /// `devices.list` of version 1, where there is one.
    pub devices_list: Option<&'a str>,
    /// What is to become of its class of service.
    pub class: Option<ClassChange<'a>>,
}

/// How the limits change.
#[derive(Debug, Clone)]
pub struct Update {
    /// The steps, all of the host stage.
    pub plan: Plan,
    /// What systemd is told, where it made the container's cgroup.
    pub properties: UnitChange,
    /// The container's limits afterwards.
    pub resources: LinuxResources,
    /// Its class of service afterwards, where that changes.
    pub class: Option<LinuxIntelRdt>,
    /// `memory.checkBeforeUpdate`: nothing may be changed if more than this is in use.
    pub usage_must_be_below_bytes: Option<u64>,
}

/// Properties of a unit, and those that it had.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // both are all that say something about limits
pub struct UnitChange {
    pub now: Vec<UnitProperty>,
    pub before: Vec<UnitProperty>,
}

/// Plans an update. Pure, like [`crate::compile()`].
pub fn compile_update(updating: &Updating<'_>, host: &HostFeatures) -> Result<Update, Refusal> {
    let value = |resources: &LinuxResources| {
        serde_json::to_value(resources).map_err(|error| Refusal::invalid(BASE, error.to_string()))
    };
    let configured = updating.resources.map(value).transpose()?.unwrap_or_else(|| Value::Object(Map::new()));
    let change = said(value(updating.change)?).unwrap_or_else(|| Value::Object(Map::new()));
    let completed = completed(change.clone(), &configured);
    let merged = merge(configured, change);
    let resources = |value: Value| -> Result<LinuxResources, Refusal> {
        serde_json::from_value(value).map_err(|error| Refusal::invalid(BASE, error.to_string()))
    };
    let (wanted, merged) = (resources(completed)?, resources(merged)?);

    let mut builder = Builder::default();
    builder.step(
        Stage::Host,
        "update",
        Op::OpenCgroup { path: updating.cgroup.to_owned(), below: Vec::new() },
    );
    let occasion = Occasion::Update(updating.current);
    let translation = cgroup::translate(&wanted, &translation_host(host, &host.cgroups), occasion)?;
    for ignored in translation.ignored {
        builder.warn(format!("{}: {}", ignored.pointer, ignored.reason));
    }
    for write in &translation.writes {
        builder.step(Stage::Host, write.why.as_str(), Op::ChangeCgroup(write.into()));
    }
    let class = updating.class.as_ref().map(|class| intel_rdt::plan_update(class, host, &mut builder));
    // Only root filters devices, as for create.
    let filters = host.standing == Standing::Host;
    if let Some(rules) = wanted.devices().as_deref().filter(|rules| filters && !rules.is_empty()) {
        let before = updating.resources.and_then(|resources| resources.devices().as_deref());
        devices(rules, before.unwrap_or_default(), updating.devices_list, host, &mut builder)?;
    }
    let properties = host.systemd.as_ref().map(|systemd| unit_change(updating, &merged, systemd, host));
    Ok(Update {
        plan: builder.finish(),
        properties: properties.transpose()?.unwrap_or_default(),
        resources: merged,
        class: class.transpose()?.flatten(),
        usage_must_be_below_bytes: translation.usage_must_be_below_bytes,
    })
}

fn unit_change(
    updating: &Updating<'_>,
    merged: &LinuxResources,
    unit: &Systemd,
    host: &HostFeatures,
) -> Result<UnitChange, Refusal> {
    let all = |resources: Option<&LinuxResources>| -> Result<Vec<UnitProperty>, Refusal> {
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        let limits = resources.map(|resources| systemd::limits(resources, unit, &host.cgroups));
        let devices = systemd::devices(&DevicePolicy::new(rules, Defaults::Compatible)?, &unit.device_groups);
        Ok(limits.into_iter().flatten().chain(devices).collect())
    };
    let (now, before) = (all(Some(merged))?, all(updating.resources)?);
    let other = |these: &[UnitProperty], those: &[UnitProperty]| {
        these.iter().filter(|property| !those.contains(property)).cloned().collect()
    };
    Ok(UnitChange { now: other(&now, &before), before: other(&before, &now) })
}

/// Where every pointer of this module begins.
const BASE: &str = "/linux/resources";

/// The rules given take the place of those the container has. Last of all, so that what fails before leaves them alone.
fn devices(
    rules: &[LinuxDeviceCgroup],
    before: &[LinuxDeviceCgroup],
    devices_list: Option<&str>,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let policy = DevicePolicy::new(rules, Defaults::Compatible)?;
    let before = DevicePolicy::new(before, Defaults::Compatible)?;
    let change = match &host.cgroups {
        CgroupLayout::V2 { .. } => DeviceChange::Program { now: policy.program(), before: before.program() },
        CgroupLayout::V1 { .. } => {
            let writes = |writes: Vec<cgroup::Write>| writes.iter().map(CgroupWrite::from).collect();
            DeviceChange::List {
                now: writes(devices_list.map_or_else(|| policy.v1_writes(), |list| policy.v1_changes(list))),
                before: writes(before.v1_writes()),
            }
        }
        CgroupLayout::None => return Ok(()),
    };
    builder.step(Stage::Host, "/linux/resources/devices", Op::ReplaceDevices(change));
    Ok(())
}

/// Figures for which zero is something to say.
const ZERO_SAYS: [&str; 9] =
    ["idle", "burst", "swappiness", "major", "minor", "rate", "hcaHandles", "hcaObjects", "priority"];

/// The object in which zero always says something: since 1.3 no limit of processes is said by saying none. config-linux.md,
/// "PIDs".
const OF_PROCESSES: &str = "pids";

/// Without what says nothing: null, zero where it means "not set", empty texts, lists and objects.
fn said(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Object(fields) => {
            let says = |(key, value): (String, Value)| {
                let zero = value.as_i64() == Some(0) && !ZERO_SAYS.contains(&key.as_str());
                let value = if key == OF_PROCESSES { Some(value) } else { said(value) };
                Some((key, value.filter(|value| !zero && !value.is_null())?))
            };
            let fields: Map<_, _> = fields.into_iter().filter_map(says).collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        Value::Array(entries) if entries.is_empty() => None,
        other => Some(other),
    }
}

/// Figures that mean something together only.
const TOGETHER: [(&str, &str, &str); 6] = [
    ("/cpu/quota", "cpu", "period"),
    ("/cpu/period", "cpu", "quota"),
    ("/cpu/quota", "cpu", "burst"),
    ("/memory/limit", "memory", "swap"),
    ("/memory/swap", "memory", "limit"),
    ("/memory/limit", "memory", "checkBeforeUpdate"),
];

/// What was said, with the missing halves of pairs from the configuration.
fn completed(mut change: Value, configured: &Value) -> Value {
    for (said, object, other) in TOGETHER {
        // Lifting the memory limit lifts the other one; and a limit that is none needs no partner.
        let lifts = object == "memory" && change.pointer(said).and_then(Value::as_i64) == Some(-1);
        let known = configured.get(object).and_then(|object| object.get(other)).cloned();
        if let (Some(_), Some(known), false) = (change.pointer(said), known, lifts)
            && let Some(object) = change.get_mut(object).and_then(Value::as_object_mut)
        {
            object.entry(other).or_insert(known);
        }
    }
    change
}

/// `change` laid over `value`. Lists of entries that have a key are merged by it, as the kernel does; other lists, and the
/// device rules, are replaced.
fn merge(value: Value, change: Value) -> Value {
    match (value, change) {
        (Value::Object(mut fields), Value::Object(changes)) => {
            for (key, change) in changes {
                let merged = match fields.remove(&key) {
                    Some(value) if key != "devices" => merge(value, change),
                    _ => change,
                };
                fields.insert(key, merged);
            }
            Value::Object(fields)
        }
        (Value::Array(mut entries), Value::Array(changes))
            if changes.iter().all(|entry| key(entry).is_some()) =>
        {
            entries.retain(|entry| !changes.iter().any(|change| key(change) == key(entry)));
            entries.extend(changes);
            Value::Array(entries)
        }
        (_, change) => change,
    }
}

/// What tells an entry of a list from the others.
fn key(entry: &Value) -> Option<[Option<&Value>; 2]> {
    [["major", "minor"], ["pageSize", ""], ["name", ""]]
        .map(|names| names.map(|name| entry.get(name)))
        .into_iter()
        .find(|key| key[0].is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(host: &HostFeatures, configured: Value, change: Value) -> Result<Update, Refusal> {
        let configured: LinuxResources = serde_json::from_value(configured).unwrap();
        let change: LinuxResources = serde_json::from_value(change).unwrap();
        let list = (!host.cgroups.is_v2()).then_some("c 1:3 rwm\nb *:* m\n");
        let updating = Updating {
            cgroup: "/c",
            resources: Some(&configured),
            change: &change,
            current: Current { memory_and_swap_bytes: Some(1 << 30), realtime_period_us: Some(1_000_000) },
            devices_list: list,
            class: None,
        };
        compile_update(&updating, host)
    }

    fn steps(host: &HostFeatures, configured: Value, change: Value) -> Vec<String> {
        let update = update(host, configured, change).unwrap();
        update.plan.steps.iter().skip(1).map(|step| update.plan.describe(&step.op)).collect()
    }

    #[test]
    fn halves_of_pairs_are_completed_from_the_configuration() {
        let (v1, v2) = (HostFeatures::sample_v1(), HostFeatures::sample());
        let cpu = json!({ "cpu": { "quota": 50_000, "period": 200_000 } });
        let quota = json!({ "cpu": { "quota": 20_000 } });
        assert_eq!(steps(&v2, cpu.clone(), quota.clone()), ["change-cgroup cpu.max \"20000 200000\""]);
        assert_eq!(
            steps(&v1, cpu, quota),
            [
                "change-cgroup cpu:cpu.cfs_quota_us \"-1\"",
                "change-cgroup cpu:cpu.cfs_period_us \"200000\"",
                "change-cgroup cpu:cpu.cfs_quota_us \"20000\"",
            ]
        );
        let memory = json!({ "memory": { "limit": 100 << 20, "swap": 300 << 20 } });
        let limit = json!({ "memory": { "limit": 200 << 20 } });
        assert_eq!(
            steps(&v2, memory.clone(), limit),
            ["change-cgroup memory.swap.max \"104857600\"", "change-cgroup memory.max \"209715200\""]
        );
        let swap = json!({ "memory": { "swap": 150 << 20 } });
        assert_eq!(
            steps(&v2, memory.clone(), swap),
            ["change-cgroup memory.swap.max \"52428800\"", "change-cgroup memory.max \"104857600\""]
        );
        let lifted = json!({ "memory": { "limit": -1 } });
        assert_eq!(
            steps(&v2, memory.clone(), lifted),
            ["change-cgroup memory.swap.max \"max\" optional", "change-cgroup memory.max \"max\""]
        );
        // Above the configured figure for both: refused here, and not by the kernel half-way.
        let refusal = update(&v1, memory, json!({ "memory": { "limit": 400 << 20 } })).unwrap_err();
        assert!(refusal.to_string().starts_with("/linux/resources/memory/swap: "), "{refusal}");
    }

    #[test]
    fn what_says_nothing_changes_nothing() {
        let host = HostFeatures::sample();
        let configured = json!({ "cpu": { "shares": 512 }, "pids": { "limit": 20 } });
        // As Docker sends it.
        let zeros = json!({
            "memory": { "limit": 0, "reservation": 0, "swap": 0 },
            "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "" },
            "blockIO": { "weight": 0 }, "devices": [],
        });
        let same = update(&host, configured.clone(), zeros).unwrap();
        assert_eq!(same.plan.steps.len(), 1, "{}", same.plan);
        assert_eq!(serde_json::to_value(&same.resources).unwrap(), configured);
        let none = json!({ "pids": { "limit": 0 } });
        assert_eq!(steps(&host, configured, none), ["change-cgroup pids.max \"1\""]);
    }

    #[test]
    fn the_configuration_knows_the_change() {
        let host = HostFeatures::sample();
        let configured = json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "memory": { "limit": 100, "reservation": 50 },
            "blockIO": { "throttleReadBpsDevice": [
                { "major": 8, "minor": 0, "rate": 100 }, { "major": 8, "minor": 16, "rate": 100 }
            ] },
        });
        let change = json!({
            "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }],
            "memory": { "limit": 200 },
            "cpu": { "idle": 0, "burst": 0 },
            "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 0 }] },
        });
        let update = update(&host, configured, change).unwrap();
        let expected = json!({
            "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }],
            "memory": { "limit": 200, "reservation": 50 },
            "cpu": { "idle": 0, "burst": 0 },
            "blockIO": { "throttleReadBpsDevice": [
                { "major": 8, "minor": 16, "rate": 100 }, { "major": 8, "minor": 0, "rate": 0 }
            ] },
        });
        assert_eq!(serde_json::to_value(&update.resources).unwrap(), expected);
        let words: Vec<_> = update.plan.steps.iter().map(|step| update.plan.describe(&step.op)).collect();
        assert!(words.last().unwrap().starts_with("replace-devices "), "{words:?}");
        assert!(words.contains(&"change-cgroup cpu.max.burst \"0\"".to_owned()), "{words:?}");
        assert!(words.contains(&"change-cgroup io.max \"8:0 rbps=max\"".to_owned()), "{words:?}");
    }

    #[test]
    fn device_lists_change_by_their_differences() {
        let host = HostFeatures::sample_v1();
        let change =
            json!({ "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }] });
        let update = update(&host, json!({}), change).unwrap();
        let Op::ReplaceDevices(DeviceChange::List { now, before }) = &update.plan.steps[1].op else {
            panic!("{}", update.plan)
        };
        assert!(now.iter().all(|write| write.value != "a"), "never without the old list: {now:?}");
        assert!(now.iter().any(|write| write.value == "c 10:229 rw"));
        assert!(now.iter().all(|write| write.value != "c 1:3 rwm"), "in the list already");
        assert_eq!(before[0].value, "a");
    }
}
