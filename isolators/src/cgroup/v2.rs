//! Version 2: one function a controller, with the conversions that runc and crun agreed on.

use std::collections::HashMap;

use cofferdam_plan::Refusal;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxRdma};

use super::v1::{
    check_cpu, checked_weight, cpuset_writes, device_number, free_quota, page_size, throttles,
    weight_device_number,
};
use super::{Occasion, Writer, at, invalid, unsupported};

/// Every write of this file goes to the one tree.
const TREE: &str = "";

pub(super) fn cpu(out: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Refusal> {
    check_cpu(cpu)?;
    for (asked, pointer) in [
        (cpu.realtime_period().is_some_and(|period| period != 0), "/cpu/realtimePeriod"),
        (cpu.realtime_runtime().is_some_and(|runtime| runtime != 0), "/cpu/realtimeRuntime"),
    ] {
        if asked {
            return Err(unsupported(pointer, "cgroup version 2 has no real-time shares"));
        }
    }
    if cpu.idle() == Some(0) {
        out.put(TREE, "cpu.idle", 0, "/cpu/idle");
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
        out.put(TREE, "cpu.weight", weight_of_shares(shares), "/cpu/shares");
    }
    free_quota(out, cpu, TREE, "cpu.max.burst");
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        let period = if period == 0 { DEFAULT_PERIOD_US } else { period };
        let pointer = if cpu.quota().is_some() { "/cpu/quota" } else { "/cpu/period" };
        out.put(TREE, "cpu.max", format!("{quota} {period}"), pointer);
    }
    if let Some(burst) = cpu.burst().filter(|burst| *burst != 0 || out.occasion != Occasion::Create) {
        out.put(TREE, "cpu.max.burst", burst, "/cpu/burst");
    }
    if cpu.idle() == Some(1) {
        out.put(TREE, "cpu.idle", 1, "/cpu/idle");
    }
    Ok(())
}

const DEFAULT_PERIOD_US: u64 = 100_000;

/// Shares of 2, 1024 and 262144 (least, default, most) are weights of 1, 100 and 10000. The curve through these three points
/// on a double logarithmic scale is what runc 1.3 and crun 1.23 use; the straight line before it made the default share 39.
#[must_use]
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        // Exact in a double: below 2^18.
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

pub(super) fn cpuset(out: &mut Writer<'_>, cpu: &LinuxCpu) -> Result<(), Refusal> {
    cpuset_writes(out, TREE, cpu)
}

#[allow(deprecated)] // kernel: read in order to say that it is ignored
pub(super) fn memory(out: &mut Writer<'_>, memory: &LinuxMemory) -> Result<(), Refusal> {
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    // Lifting the limit lifts that on swap: they were one figure in the configuration.
    let swap_max = match (limit, swap) {
        (-1, 0) | (_, -1) => Some("max".to_owned()),
        (_, 0) => None,
        (limit, swap) if limit > 0 => Some((swap - limit).to_string()),
        _ => return Err(invalid("/memory/swap", "counts memory and swap together and needs a memory limit")),
    };
    if let Some(value) = swap_max {
        // Without swap in the kernel there is nothing to limit; a limit of zero is kept then.
        let pointer = if swap == 0 { "/memory/limit" } else { "/memory/swap" };
        out.push(TREE, "memory.swap.max", value.clone(), pointer, value == "max" || value == "0");
    }
    if limit != 0 {
        out.put(TREE, "memory.max", amount(limit), "/memory/limit");
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        out.put(TREE, "memory.low", amount(reservation), "/memory/reservation");
    }
    for (asked, pointer, reason) in [
        (memory.kernel().is_some(), "/memory/kernel", "version 2 counts kernel memory with the rest"),
        (memory.kernel_tcp().is_some(), "/memory/kernelTCP", "version 2 counts kernel memory with the rest"),
        (memory.swappiness().is_some(), "/memory/swappiness", "version 2 has no swappiness of a cgroup"),
        (
            memory.disable_oom_killer() == Some(true),
            "/memory/disableOOMKiller",
            "version 2 cannot switch the out-of-memory killer off",
        ),
    ] {
        if asked {
            out.ignore(pointer, reason);
        }
    }
    Ok(())
}

fn amount(bytes: i64) -> String {
    if bytes < 0 { "max".to_owned() } else { bytes.to_string() }
}

/// Weights may be missing: they need BFQ or the cost model, and are shares, not limits.
pub(super) fn block_io(out: &mut Writer<'_>, io: &LinuxBlockIo) -> Result<(), Refusal> {
    if let Some(weight) = checked_weight(io.weight(), "/blockIO/weight")? {
        out.put_optional(TREE, "io.bfq.weight", weight, "/blockIO/weight");
        out.put_optional(TREE, "io.weight", weight_of_blkio(weight), "/blockIO/weight");
    }
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        out.ignore("/blockIO/leafWeight", "version 2 has no processes beside child cgroups");
    }
    for (index, entry) in io.weight_device().iter().flatten().enumerate() {
        let pointer = format!("/blockIO/weightDevice/{index}");
        let device = weight_device_number(entry, &pointer)?;
        if let Some(weight) = checked_weight(entry.weight(), &pointer)? {
            out.put_optional(TREE, "io.bfq.weight", format!("{device} {weight}"), &pointer);
            out.put_optional(TREE, "io.weight", format!("{device} {}", weight_of_blkio(weight)), &pointer);
        }
    }
    for (_, (key, name), list) in throttles(io) {
        for (index, entry) in list.iter().enumerate() {
            let pointer = format!("/blockIO/{name}/{index}");
            let device = device_number(entry.major(), entry.minor(), &pointer)?;
            // Zero lifted the limit in version 1; here it would be one that nothing passes.
            let rate = if entry.rate() == 0 { "max".to_owned() } else { entry.rate().to_string() };
            out.put(TREE, "io.max", format!("{device} {key}={rate}"), &pointer);
        }
    }
    Ok(())
}

/// 10 to 1000 becomes 1 to 10000.
fn weight_of_blkio(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

pub(super) fn hugepages(out: &mut Writer<'_>, limits: &[LinuxHugepageLimit]) -> Result<(), Refusal> {
    for (index, limit) in limits.iter().enumerate() {
        let pointer = format!("/hugepageLimits/{index}");
        let size = page_size(limit, &pointer)?;
        out.put(TREE, &format!("hugetlb.{size}.max"), amount(limit.limit()), &pointer);
        out.put_optional(TREE, &format!("hugetlb.{size}.rsvd.max"), amount(limit.limit()), &pointer);
    }
    Ok(())
}

/// One file and one format in both versions. Sorted: a plan is the same every time.
pub(super) fn rdma(
    out: &mut Writer<'_>,
    controller: &str,
    devices: &HashMap<String, LinuxRdma>,
) -> Result<(), Refusal> {
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_by_key(|(name, _)| *name);
    for (name, limits) in devices {
        let pointer = format!("/rdma/{}", escape(name));
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(invalid(&pointer, "is no device name"));
        }
        let amount = |limit: Option<u32>| limit.map_or("max".to_owned(), |limit| limit.to_string());
        let (handles, objects) = (amount(limits.hca_handles()), amount(limits.hca_objects()));
        out.put(
            controller,
            "rdma.max",
            format!("{name} hca_handle={handles} hca_object={objects}"),
            &pointer,
        );
    }
    Ok(())
}

/// Files named by the configuration itself. Sorted, and after everything else: they have the last word.
pub(super) fn unified(out: &mut Writer<'_>, files: &HashMap<String, String>) -> Result<(), Refusal> {
    if !out.host.controllers.is_v2() {
        return Err(unsupported("/unified", "needs a host with cgroup version 2 alone"));
    }
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    for (file, value) in files {
        let pointer = format!("/unified/{}", escape(file));
        let Some((controller, _)) = file.split_once('.') else {
            return Err(invalid(&pointer, "is not a file name such as memory.high"));
        };
        if file.contains('/') || file.chars().any(char::is_control) {
            return Err(invalid(&pointer, "is not a file name"));
        }
        if controller != "cgroup" && !out.host.controllers.v2.contains(controller) {
            let problem = format!("this host has no {controller} controller");
            return Err(Refusal::unsupported(at(&pointer), problem));
        }
        // Files with one line a device take one line a write.
        for line in value.lines() {
            out.put(TREE, file, line, &pointer);
        }
    }
    Ok(())
}

/// RFC 6901.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_in_runc() {
        for (shares, weight) in
            [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (999_999, 10_000), (512, 59), (2048, 174)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let weights: Vec<u64> = (2..262_144).step_by(97).map(weight_of_shares).collect();
        assert!(weights.windows(2).all(|pair| pair[0] <= pair[1]), "more shares are never less weight");
    }

    #[test]
    fn block_weights_span_the_whole_range() {
        assert_eq!([10, 500, 1000].map(weight_of_blkio), [1, 4950, 10_000]);
    }
}
