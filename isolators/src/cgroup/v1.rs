//! Version 1: one function a controller. Zero means "not set" where the Go types could not tell the two apart.

use cofferdam_plan::Refusal;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxThrottleDevice,
    LinuxWeightDevice,
};

use super::cpu_list::CpuList;
use super::{Occasion, Writer, invalid, unsupported};

/// Whether anything of the cpu controller is asked for.
pub(super) fn needs_cpu(cpu: &LinuxCpu) -> bool {
    set(cpu.shares())
        || set(cpu.period())
        || cpu.burst().is_some()
        || cpu.quota().is_some_and(|quota| quota != 0)
        || cpu.idle().is_some()
        || cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
        || set(cpu.realtime_period())
}

pub(super) fn set(value: Option<u64>) -> bool {
    value.is_some_and(|value| value != 0)
}

pub(super) fn cpu(out: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Refusal> {
    check_cpu(cpu)?;
    realtime(out, cpu);
    // The kernel refuses shares to an idle cgroup: out of idleness first, into it last.
    if cpu.idle() == Some(0) {
        out.put("cpu", "cpu.idle", 0, "/cpu/idle");
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
        out.put("cpu", "cpu.shares", shares, "/cpu/shares");
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() && period.is_some() && out.occasion != Occasion::Create {
        // One of the two alone may pass the parent's ratio in between; without a quota there is no ratio.
        out.put("cpu", "cpu.cfs_quota_us", -1, "/cpu/quota");
    }
    free_quota(out, cpu, "cpu", "cpu.cfs_burst_us");
    if let Some(period) = period {
        out.put("cpu", "cpu.cfs_period_us", period, "/cpu/period");
    }
    if let Some(quota) = quota {
        out.put("cpu", "cpu.cfs_quota_us", quota.max(-1), "/cpu/quota");
    }
    if let Some(burst) = cpu.burst().filter(|burst| *burst != 0 || out.occasion != Occasion::Create) {
        out.put("cpu", "cpu.cfs_burst_us", burst, "/cpu/burst");
    }
    if cpu.idle() == Some(1) {
        out.put("cpu", "cpu.idle", 1, "/cpu/idle");
    }
    Ok(())
}

/// The kernel holds runtime ≤ period, and the ratio below the parent's, so the order depends on the direction.
fn realtime(out: &mut Writer<'_>, cpu: &LinuxCpu) {
    let period = cpu.realtime_period().filter(|period| *period != 0);
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let lowers = match out.occasion {
        Occasion::Create => false,
        Occasion::Update(current) => period.is_some_and(|period| Some(period) < current.realtime_period_us),
    };
    let mut writes = [
        ("cpu.rt_period_us", period.map(|period| period.to_string()), "/cpu/realtimePeriod"),
        ("cpu.rt_runtime_us", runtime.map(|runtime| runtime.to_string()), "/cpu/realtimeRuntime"),
    ];
    if lowers {
        writes.reverse();
    }
    for (file, value, pointer) in writes {
        if let Some(value) = value {
            out.put("cpu", file, value, pointer);
        }
    }
}

/// The kernel holds burst ≤ quota: where both change, the old burst must not be in the new quota's way.
pub(super) fn free_quota(out: &mut Writer<'_>, cpu: &LinuxCpu, controller: &str, file: &str) {
    let both = cpu.quota().is_some_and(|quota| quota > 0) && set(cpu.burst());
    if both && out.occasion != Occasion::Create {
        out.put(controller, file, 0, "/cpu/burst");
    }
}

/// The kernel's bounds: quota and period of a millisecond at least, a period of a second at most.
pub(super) fn check_cpu(cpu: &LinuxCpu) -> Result<(), Refusal> {
    if cpu.quota().is_some_and(|quota| (1..1000).contains(&quota)) {
        return Err(invalid("/cpu/quota", "is below the kernel's least, 1000 microseconds; -1 is no limit"));
    }
    if cpu.period().is_some_and(|period| period != 0 && !(1000..=1_000_000).contains(&period)) {
        return Err(invalid("/cpu/period", "is not between 1000 and 1000000 microseconds"));
    }
    if let (Some(burst), Some(quota)) = (cpu.burst(), cpu.quota().and_then(|quota| u64::try_from(quota).ok()))
        && quota != 0
        && burst > quota
    {
        return Err(invalid("/cpu/burst", "is above the quota"));
    }
    if cpu.idle().is_some_and(|idle| !matches!(idle, 0 | 1)) {
        return Err(invalid("/cpu/idle", "is neither 0 nor 1"));
    }
    Ok(())
}

/// Whether processors or memory nodes are chosen.
pub(super) fn needs_cpuset(cpu: &LinuxCpu) -> bool {
    let chosen = |list: &Option<String>| list.as_ref().is_some_and(|list| !list.is_empty());
    chosen(cpu.cpus()) || chosen(cpu.mems())
}

pub(super) fn cpuset(out: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Refusal> {
    cpuset_writes(out, "cpuset", cpu)
}

/// The files have one name in both versions.
pub(super) fn cpuset_writes(out: &mut Writer<'_>, controller: &str, cpu: &LinuxCpu) -> Result<(), Refusal> {
    let online = (out.host.cpus.clone(), out.host.memory_nodes.clone());
    for (file, pointer, list, online) in [
        ("cpuset.cpus", "/cpu/cpus", cpu.cpus(), online.0),
        ("cpuset.mems", "/cpu/mems", cpu.mems(), online.1),
    ] {
        let Some(text) = list.as_ref().filter(|text| !text.is_empty()) else { continue };
        let list = CpuList::parse(text).map_err(|problem| invalid(pointer, problem))?;
        if list.is_empty() {
            return Err(invalid(pointer, "names nothing"));
        }
        let missing = online.map(|online| list.without(&online)).unwrap_or_default();
        if !missing.is_empty() {
            return Err(invalid(pointer, format!("this host has no {missing}")));
        }
        out.put(controller, file, text.trim(), pointer);
    }
    Ok(())
}

/// Whether anything of the memory controller is asked for.
#[allow(deprecated)] // kernel: read in order to say that it is ignored
pub(super) fn needs_memory(memory: &LinuxMemory) -> bool {
    let asked = |value: Option<i64>| value.is_some_and(|value| value != 0);
    asked(memory.limit())
        || asked(memory.reservation())
        || asked(memory.swap())
        || asked(memory.kernel())
        || asked(memory.kernel_tcp())
        || memory.swappiness().is_some()
        || memory.disable_oom_killer() == Some(true)
        || memory.use_hierarchy() == Some(true)
}

#[allow(deprecated)] // kernel: written for the kernels that still have it
pub(super) fn memory(out: &mut Writer<'_>, memory: &LinuxMemory) -> Result<(), Refusal> {
    if memory.use_hierarchy() == Some(true) {
        out.put_optional("memory", "memory.use_hierarchy", 1, "/memory/useHierarchy");
    }
    limit_and_swap(out, memory);
    for (value, file, pointer) in [
        (memory.reservation(), "memory.soft_limit_in_bytes", "/memory/reservation"),
        (memory.kernel_tcp(), "memory.kmem.tcp.limit_in_bytes", "/memory/kernelTCP"),
    ] {
        if let Some(value) = value.filter(|value| *value != 0) {
            out.put("memory", file, value, pointer);
        }
    }
    if let Some(kernel) = memory.kernel().filter(|kernel| *kernel != 0) {
        out.put_optional("memory", "memory.kmem.limit_in_bytes", kernel, "/memory/kernel");
        out.ignore("/memory/kernel", "kernel memory limits are gone since Linux 5.16");
    }
    if let Some(swappiness) = memory.swappiness() {
        out.put("memory", "memory.swappiness", swappiness, "/memory/swappiness");
    }
    if memory.disable_oom_killer() == Some(true) {
        out.put("memory", "memory.oom_control", 1, "/memory/disableOOMKiller");
    }
    Ok(())
}

/// The kernel holds limit ≤ limit with swap at every moment, so the order depends on the direction.
fn limit_and_swap(out: &mut Writer<'_>, memory: &LinuxMemory) {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let mut swap = memory.swap().filter(|swap| *swap != 0);
    // No limit on memory leaves none on memory and swap together.
    let implied = limit == Some(-1) && swap.is_none();
    if implied {
        swap = Some(-1);
    }
    let raises = match (out.occasion, swap) {
        (Occasion::Create, _) | (_, None) => false,
        (Occasion::Update(_), Some(-1)) => true,
        (Occasion::Update(current), Some(swap)) => {
            let known = current.memory_and_swap_bytes;
            known.is_some_and(|known| u64::try_from(swap).is_ok_and(|swap| swap > known))
        }
    };
    let write_limit = |out: &mut Writer<'_>| {
        if let Some(limit) = limit {
            out.put("memory", "memory.limit_in_bytes", limit, "/memory/limit");
        }
    };
    let write_swap = |out: &mut Writer<'_>| {
        if let Some(swap) = swap {
            let pointer = if implied { "/memory/limit" } else { "/memory/swap" };
            // Without swap accounting there is no limit to lift.
            out.push("memory", "memory.memsw.limit_in_bytes", swap.to_string(), pointer, swap == -1);
        }
    };
    if raises {
        write_swap(out);
        write_limit(out);
    } else {
        write_limit(out);
        write_swap(out);
    }
}

/// Whether anything of the block controller is asked for.
pub(super) fn needs_io(io: &LinuxBlockIo) -> bool {
    let weight = |weight: Option<u16>| weight.is_some_and(|weight| weight != 0);
    let throttled = throttles(io).iter().any(|(_, _, list)| !list.is_empty());
    let weighted = io.weight_device().as_ref().is_some_and(|list| !list.is_empty());
    weight(io.weight()) || weight(io.leaf_weight()) || weighted || throttled
}

/// The four throttles: version 1 file, version 2 key, JSON name with its entries.
pub(super) type Throttle<'a> = (&'static str, (&'static str, &'static str), &'a [LinuxThrottleDevice]);

pub(super) fn throttles(io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    fn list(list: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        list.as_deref().unwrap_or_default()
    }
    [
        (
            "blkio.throttle.read_bps_device",
            ("rbps", "throttleReadBpsDevice"),
            list(io.throttle_read_bps_device()),
        ),
        (
            "blkio.throttle.write_bps_device",
            ("wbps", "throttleWriteBpsDevice"),
            list(io.throttle_write_bps_device()),
        ),
        (
            "blkio.throttle.read_iops_device",
            ("riops", "throttleReadIOPSDevice"),
            list(io.throttle_read_iops_device()),
        ),
        (
            "blkio.throttle.write_iops_device",
            ("wiops", "throttleWriteIOPSDevice"),
            list(io.throttle_write_iops_device()),
        ),
    ]
}

/// Weights exist where a scheduler knows them: CFQ's files on old kernels, BFQ's on newer ones where it is built in. Being a
/// share and no limit, they may be missing.
pub(super) fn block_io(out: &mut Writer<'_>, io: &LinuxBlockIo) -> Result<(), Refusal> {
    if let Some(weight) = checked_weight(io.weight(), "/blockIO/weight")? {
        out.put_optional("blkio", "blkio.weight", weight, "/blockIO/weight");
        out.put_optional("blkio", "blkio.bfq.weight", weight, "/blockIO/weight");
    }
    if let Some(weight) = checked_weight(io.leaf_weight(), "/blockIO/leafWeight")? {
        out.put_optional("blkio", "blkio.leaf_weight", weight, "/blockIO/leafWeight");
    }
    for (index, entry) in io.weight_device().iter().flatten().enumerate() {
        let pointer = format!("/blockIO/weightDevice/{index}");
        let device = weight_device_number(entry, &pointer)?;
        if let Some(weight) = checked_weight(entry.weight(), &pointer)? {
            let value = format!("{device} {weight}");
            out.put_optional("blkio", "blkio.weight_device", &value, &pointer);
            out.put_optional("blkio", "blkio.bfq.weight_device", &value, &pointer);
        }
        if let Some(weight) = checked_weight(entry.leaf_weight(), &pointer)? {
            out.put_optional("blkio", "blkio.leaf_weight_device", format!("{device} {weight}"), &pointer);
        }
    }
    for (file, (_, name), list) in throttles(io) {
        for (index, entry) in list.iter().enumerate() {
            let pointer = format!("/blockIO/{name}/{index}");
            let device = device_number(entry.major(), entry.minor(), &pointer)?;
            out.put("blkio", file, format!("{device} {}", entry.rate()), &pointer);
        }
    }
    Ok(())
}

pub(super) fn checked_weight(weight: Option<u16>, pointer: &str) -> Result<Option<u16>, Refusal> {
    match weight.filter(|weight| *weight != 0) {
        Some(weight) if !(10..=1000).contains(&weight) => Err(invalid(pointer, "is not between 10 and 1000")),
        weight => Ok(weight),
    }
}

pub(super) fn weight_device_number(entry: &LinuxWeightDevice, pointer: &str) -> Result<String, Refusal> {
    device_number(entry.major(), entry.minor(), pointer)
}

/// `major:minor`, within the kernel's 12 and 20 bits.
pub(super) fn device_number(major: i64, minor: i64, pointer: &str) -> Result<String, Refusal> {
    if !(0..1 << 12).contains(&major) || !(0..1 << 20).contains(&minor) {
        return Err(invalid(pointer, format!("{major}:{minor} is no device number")));
    }
    Ok(format!("{major}:{minor}"))
}

pub(super) fn hugepages(out: &mut Writer<'_>, limits: &[LinuxHugepageLimit]) -> Result<(), Refusal> {
    for (index, limit) in limits.iter().enumerate() {
        let pointer = format!("/hugepageLimits/{index}");
        let size = page_size(limit, &pointer)?;
        let value = limit.limit().max(-1);
        out.put("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), value, &pointer);
        out.put_optional("hugetlb", &format!("hugetlb.{size}.rsvd.limit_in_bytes"), value, &pointer);
    }
    Ok(())
}

/// Part of a file name: exactly a number and KB, MB or GB.
pub(super) fn page_size<'a>(limit: &'a LinuxHugepageLimit, pointer: &str) -> Result<&'a str, Refusal> {
    let size = limit.page_size();
    let number = ["KB", "MB", "GB"].into_iter().find_map(|unit| size.strip_suffix(unit));
    match number {
        Some(number) if !number.starts_with('0') && number.parse::<u32>().is_ok_and(|number| number > 0) => {
            Ok(size)
        }
        _ => Err(invalid(&format!("{pointer}/pageSize"), "is not a size such as 2MB")),
    }
}

/// Only version 1 has these controllers, and few hosts mount them.
pub(super) fn network(out: &mut Writer<'_>, network: &LinuxNetwork) -> Result<(), Refusal> {
    let has = |out: &Writer<'_>, controller: &str| out.host.controllers.v1.contains(controller);
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        if !has(out, "net_cls") {
            return Err(unsupported("/network/classID", "this host has no net_cls controller"));
        }
        out.put("net_cls", "net_cls.classid", class, "/network/classID");
    }
    for (index, priority) in network.priorities().iter().flatten().enumerate() {
        let pointer = format!("/network/priorities/{index}");
        if !has(out, "net_prio") {
            return Err(unsupported("/network/priorities", "this host has no net_prio controller"));
        }
        if priority.name().is_empty() || priority.name().contains(char::is_whitespace) {
            return Err(invalid(&pointer, "is no interface name"));
        }
        out.put(
            "net_prio",
            "net_prio.ifpriomap",
            format!("{} {}", priority.name(), priority.priority()),
            &pointer,
        );
    }
    Ok(())
}
