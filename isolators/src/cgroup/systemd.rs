//! A container's cgroup as systemd is told of it: a transient scope and its properties.
//!
//! systemd writes the limits again whenever it is told to reload, so it has to know them in its own words; they are written
//! to the cgroup's files all the same, because it has no words for some. What it has none for is left to the files.
//! Properties: systemd.resource-control(5), and org.freedesktop.systemd1(5) for their types on the bus.

mod annotation;

use std::collections::HashMap;

use cofferdam_plan::host::{DeviceGroup, Systemd};
use cofferdam_plan::op::{UnitProperty, UnitValue};
use cofferdam_plan::{CgroupLayout, ContainerId, Refusal};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::cpu_list::CpuList;
use super::devices::{DeviceKind, DevicePolicy, Devices};
use super::path::CgroupPath;
use super::v2::weight_of_shares;

/// The word for "no limit".
const INFINITY: u64 = u64::MAX;

/// First version with CPUQuotaPeriodSec.
const QUOTA_PERIOD_VERSION: u32 = 242;
/// First version with AllowedCPUs and AllowedMemoryNodes.
const ALLOWED_CPUS_VERSION: u32 = 244;
/// First version that takes a weight of 0 for an idle group.
const IDLE_WEIGHT_VERSION: u32 = 252;

/// The kernel's default, when a quota comes without a period.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Where a scope is, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The unit's name, such as `libpod-1234.scope`.
    pub unit: String,
    /// The slice that it belongs to.
    pub slice: String,
    /// Its cgroup, below the root of the hierarchies.
    pub cgroup: String,
}

impl Scope {
    /// Reads `linux.cgroupsPath` as `slice:prefix:name`.
    ///
    /// # Errors
    /// As [`CgroupPath::systemd`]; names of slices, which hold other units and no processes.
    pub fn new(path: Option<&str>, id: &ContainerId, systemd: &Systemd) -> Result<Self, Refusal> {
        let parsed = CgroupPath::systemd(path, "cofferdam", id.as_str())?;
        let default = if systemd.user { "user.slice" } else { "system.slice" };
        let CgroupPath::Systemd { slice, name, .. } = &parsed else {
            return Err(Refusal::invalid("/linux/cgroupsPath", "is no path for systemd"));
        };
        if name.ends_with(".slice") {
            let problem = format!("names the slice {name}, which cannot hold a container's processes");
            return Err(Refusal::unsupported("/linux/cgroupsPath", problem));
        }
        let directory = parsed.directory(default);
        Ok(Self {
            unit: directory.rsplit('/').next().unwrap_or_default().to_owned(),
            slice: if slice.is_empty() { default.to_owned() } else { slice.clone() },
            cgroup: format!("{}{directory}", systemd.control_group.trim_end_matches('/')),
        })
    }
}

/// Everything that the unit is started with, but for the process in it.
///
/// # Errors
/// Device rules that cannot be expressed, annotations that are no values.
pub fn properties(
    scope: &Scope,
    id: &ContainerId,
    resources: Option<&LinuxResources>,
    annotations: Option<&HashMap<String, String>>,
    policy: &DevicePolicy,
    (systemd, layout): (&Systemd, &CgroupLayout),
) -> Result<Vec<UnitProperty>, Refusal> {
    let mut all = vec![
        property("Description", UnitValue::Text(format!("cofferdam container {id}"))),
        property("Slice", UnitValue::Text(scope.slice.clone())),
        property("Delegate", UnitValue::Boolean(true)),
        // Ordering after and conflicts with the machine's own targets are not a container's business.
        property("DefaultDependencies", UnitValue::Boolean(false)),
    ];
    let io = if layout.is_v2() { "IOAccounting" } else { "BlockIOAccounting" };
    for accounting in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io] {
        all.push(property(accounting, UnitValue::Boolean(true)));
    }
    all.extend(resources.map(|resources| limits(resources, systemd, layout)).unwrap_or_default());
    all.extend(devices(policy, &systemd.device_groups));
    let mut asked: Vec<_> = annotations.into_iter().flatten().collect();
    asked.sort();
    for (key, value) in asked {
        if let Some(name) = key.strip_prefix(annotation::PREFIX) {
            all.retain(|property| property.name != name);
            all.push(annotation::property(key, name, value)?);
        }
    }
    Ok(all)
}

/// The limits in systemd's words.
#[must_use]
pub fn limits(resources: &LinuxResources, systemd: &Systemd, layout: &CgroupLayout) -> Vec<UnitProperty> {
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        all.extend(cpu_properties(cpu, systemd, layout));
    }
    if let Some(memory) = resources.memory() {
        all.extend(memory_properties(memory, layout));
    }
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() == 0 { 1 } else { pids.limit() };
        all.push(property("TasksMax", UnitValue::Uint64(amount(limit))));
    }
    if let Some(weight) =
        resources.block_io().as_ref().and_then(|io| io.weight()).filter(|weight| *weight != 0)
    {
        let weight = u64::from(weight);
        // On version 2 the files know BFQ and the other schedulers apart, and systemd does not.
        if !layout.is_v2() {
            all.push(property("BlockIOWeight", UnitValue::Uint64(weight)));
        }
    }
    all.extend(unified(resources));
    all
}

fn property(name: &str, value: UnitValue) -> UnitProperty {
    UnitProperty { name: name.to_owned(), value }
}

fn amount(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(INFINITY)
}

fn cpu_properties(cpu: &LinuxCpu, systemd: &Systemd, layout: &CgroupLayout) -> Vec<UnitProperty> {
    let mut all = Vec::new();
    let shares = cpu.shares().filter(|shares| *shares != 0);
    match (shares, layout.is_v2()) {
        _ if cpu.idle() == Some(1) && layout.is_v2() => {
            if systemd.version >= IDLE_WEIGHT_VERSION {
                all.push(property("CPUWeight", UnitValue::Uint64(0)));
            }
        }
        (Some(shares), true) => all.push(property("CPUWeight", UnitValue::Uint64(weight_of_shares(shares)))),
        (Some(shares), false) => all.push(property("CPUShares", UnitValue::Uint64(shares))),
        (None, _) => {}
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if period != 0 && systemd.version >= QUOTA_PERIOD_VERSION {
        all.push(property("CPUQuotaPeriodUSec", UnitValue::Uint64(period)));
    }
    if quota != 0 || period != 0 {
        let value = quota_a_second(quota, if period == 0 { DEFAULT_PERIOD_US } else { period });
        all.push(property("CPUQuotaPerSecUSec", UnitValue::Uint64(value)));
    }
    if layout.is_v2() && systemd.version >= ALLOWED_CPUS_VERSION {
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            let list = list.as_ref().and_then(|text| CpuList::parse(text).ok());
            if let Some(list) = list.filter(|list| !list.is_empty()) {
                all.push(property(name, UnitValue::Bytes(list.mask())));
            }
        }
    }
    all
}

/// Microseconds of each second. systemd rounds down to a hundredth of a processor when it writes the file: rounded up here,
/// so that nobody gets less than was asked for.
fn quota_a_second(quota: i64, period: u64) -> u64 {
    const STEP_US: u64 = 10_000;
    match u64::try_from(quota) {
        Ok(quota) if quota > 0 => (quota.saturating_mul(1_000_000) / period).div_ceil(STEP_US) * STEP_US,
        _ => INFINITY,
    }
}

fn memory_properties(memory: &LinuxMemory, layout: &CgroupLayout) -> Vec<UnitProperty> {
    let mut all = Vec::new();
    let limit = memory.limit().filter(|limit| *limit != 0);
    if !layout.is_v2() {
        all.extend(limit.map(|limit| property("MemoryLimit", UnitValue::Uint64(amount(limit)))));
        return all;
    }
    all.extend(limit.map(|limit| property("MemoryMax", UnitValue::Uint64(amount(limit)))));
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        all.push(property("MemoryLow", UnitValue::Uint64(amount(reservation))));
    }
    let swap = match (limit, memory.swap().unwrap_or(0)) {
        (Some(-1), 0) | (_, -1) => Some(INFINITY),
        (Some(limit), swap) if swap >= limit => Some(amount(swap - limit)),
        _ => None,
    };
    all.extend(swap.map(|swap| property("MemorySwapMax", UnitValue::Uint64(swap))));
    all
}

/// Files of version 2 that systemd has a word for.
const UNIFIED: [(&str, &str); 7] = [
    ("cpu.weight", "CPUWeight"),
    ("memory.high", "MemoryHigh"),
    ("memory.low", "MemoryLow"),
    ("memory.max", "MemoryMax"),
    ("memory.min", "MemoryMin"),
    ("memory.swap.max", "MemorySwapMax"),
    ("pids.max", "TasksMax"),
];

fn unified(resources: &LinuxResources) -> Vec<UnitProperty> {
    let Some(files) = resources.unified() else { return Vec::new() };
    let known = UNIFIED.into_iter().filter_map(|(file, name)| {
        let text = files.get(file)?.trim();
        let value = if text == "max" { INFINITY } else { text.parse().ok()? };
        Some(property(name, UnitValue::Uint64(value)))
    });
    known.collect()
}

/// Device rules that systemd writes again at a reload: without them it would take what is ours away, or open everything.
#[must_use]
pub fn devices(policy: &DevicePolicy, groups: &[DeviceGroup]) -> Vec<UnitProperty> {
    if policy.allowed_by_default {
        return vec![
            property("DevicePolicy", UnitValue::Text("auto".into())),
            property("DeviceAllow", UnitValue::Pairs(Vec::new())),
        ];
    }
    let allowed = policy
        .exceptions
        .iter()
        .filter_map(|exception| Some((node(exception.devices, groups)?, exception.access.to_string())));
    vec![
        property("DevicePolicy", UnitValue::Text("strict".into())),
        property("DeviceAllow", UnitValue::Pairs(allowed.collect())),
    ]
}

/// A device as systemd names it: by number where there is one, by the driver's name where all of a driver's are meant.
/// Nothing for a driver that this host does not have: there are no such devices then.
fn node(devices: Devices, groups: &[DeviceGroup]) -> Option<String> {
    let (kind, block) = match devices.kind {
        DeviceKind::Character => ("char", false),
        DeviceKind::Block => ("block", true),
    };
    match (devices.major, devices.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => {
            let group = groups.iter().find(|group| group.block == block && group.major == major)?;
            Some(format!("{kind}-{}", group.name))
        }
        (None, None) => Some(format!("{kind}-*")),
        // One minor number of every driver cannot be said.
        (None, Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::Defaults;
    use cofferdam_plan::HostFeatures;
    use serde_json::{Value, json};

    fn systemd() -> Systemd {
        Systemd::sample()
    }

    fn lines(properties: &[UnitProperty]) -> Vec<String> {
        properties.iter().map(ToString::to_string).collect()
    }

    fn said(resources: Value, host: &HostFeatures) -> Vec<String> {
        lines(&limits(&serde_json::from_value(resources).unwrap(), &systemd(), &host.cgroups))
    }

    #[test]
    fn limits_have_systemds_words_for_each_version() {
        let (v1, v2) = (HostFeatures::sample_v1(), HostFeatures::sample());
        let all = json!({
            "cpu": { "shares": 1024, "quota": 15_000, "period": 100_000, "cpus": "0,9", "mems": "0" },
            "memory": { "limit": 100, "swap": 300, "reservation": 50 },
            "pids": { "limit": 20 }, "blockIO": { "weight": 500 },
        });
        assert_eq!(
            said(all.clone(), &v2),
            [
                "CPUWeight=100",
                "CPUQuotaPeriodUSec=100000",
                "CPUQuotaPerSecUSec=150000",
                "AllowedCPUs=[1, 2]",
                "AllowedMemoryNodes=[1]",
                "MemoryMax=100",
                "MemoryLow=50",
                "MemorySwapMax=200",
                "TasksMax=20",
            ]
        );
        assert_eq!(
            said(all, &v1),
            [
                "CPUShares=1024",
                "CPUQuotaPeriodUSec=100000",
                "CPUQuotaPerSecUSec=150000",
                "MemoryLimit=100",
                "TasksMax=20",
                "BlockIOWeight=500",
            ]
        );
        let none = json!({ "cpu": { "quota": -1 }, "memory": { "limit": -1 }, "pids": { "limit": -1 } });
        let max = u64::MAX;
        assert_eq!(
            said(none, &v2),
            [
                format!("CPUQuotaPerSecUSec={max}"),
                format!("MemoryMax={max}"),
                format!("MemorySwapMax={max}"),
                format!("TasksMax={max}"),
            ]
        );
        assert_eq!(
            said(json!({ "unified": { "memory.high": "7", "pids.max": "max", "x.y": "1" } }), &v2)[0],
            "MemoryHigh=7"
        );
        assert_eq!(said(json!({ "cpu": { "shares": 0, "idle": 1 } }), &v2), ["CPUWeight=0"]);
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_can_say() {
        for (quota, period, expected) in
            [(1001, 100_000, 20_000), (10_000, 100_000, 100_000), (5, 1_000_000, 10_000), (0, 1000, INFINITY)]
        {
            assert_eq!(quota_a_second(quota, period), expected);
        }
    }

    #[test]
    fn devices_are_named_by_number_or_by_driver() {
        let rules = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
            { "allow": true, "type": "b", "major": 8, "access": "r" },
            { "allow": true, "type": "b", "major": 99, "access": "r" },
        ]);
        let rules: Vec<_> = serde_json::from_value(rules).unwrap();
        let policy = DevicePolicy::new(&rules, Defaults::Compatible).unwrap();
        let lines = lines(&devices(&policy, &systemd().device_groups));
        assert_eq!(lines[0], "DevicePolicy=strict");
        let list = &lines[1];
        for part in [
            "/dev/char/10:229 rw",
            "block-sd r",
            "char-* m",
            "block-* m",
            "/dev/char/1:3 rwm",
            "char-pts rwm",
        ] {
            assert!(list.contains(part), "{part} in {list}");
        }
        let open = DevicePolicy { allowed_by_default: true, exceptions: Vec::new() };
        assert_eq!(devices(&open, &[])[0].to_string(), "DevicePolicy=auto");
    }

    #[test]
    fn a_scope_lies_below_its_slices_and_its_manager() {
        let id = ContainerId::parse("c1").unwrap();
        let scope = |path, systemd: &Systemd| Scope::new(path, &id, systemd);
        let plain = scope(Some("a-b.slice:libpod:x"), &systemd()).unwrap();
        assert_eq!(plain.unit, "libpod-x.scope");
        assert_eq!(plain.slice, "a-b.slice");
        assert_eq!(plain.cgroup, "/a.slice/a-b.slice/libpod-x.scope");
        let user = Systemd { control_group: "/user.slice/user@7.service".into(), user: true, ..systemd() };
        let scope_of_user = scope(None, &user).unwrap();
        assert_eq!(scope_of_user.cgroup, "/user.slice/user@7.service/user.slice/cofferdam-c1.scope");
        assert!(scope(Some("a.slice:x:y.slice"), &user).unwrap_err().to_string().contains("y.slice"));
        assert!(scope(Some("/a/b"), &user).is_err());
    }
}
