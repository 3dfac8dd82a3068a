//! What a cgroup has used: one shape for both versions, in bytes, nanoseconds and counts.
//!
//! What a version does not tell, or a controller that is off, is `None` or empty, never zero.

use std::collections::BTreeMap;

use super::Cgroup;
use super::place::Place;

/// All figures of a cgroup at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Processor time.
    pub cpu: CpuStatistics,
    /// Memory; `None` where nothing counts it.
    pub memory: Option<MemoryStatistics>,
    /// Processes and threads; `None` where nothing counts them.
    pub pids: Option<PidsStatistics>,
    /// Block devices, by number.
    pub io: Vec<BlockIo>,
    /// Huge pages, by size.
    pub hugetlb: Vec<HugetlbStatistics>,
    /// Time spent waiting for each resource (version 2).
    pub pressure: Pressure,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuStatistics {
    /// All of it.
    pub usage_ns: Option<u64>,
    /// In user mode.
    pub user_ns: Option<u64>,
    /// In kernel mode.
    pub system_ns: Option<u64>,
    /// By processor (version 1).
    pub per_cpu_ns: Vec<u64>,
    /// Enforcement periods that passed while it was runnable.
    pub periods: Option<u64>,
    /// Those in which it was held back.
    pub throttled_periods: Option<u64>,
    /// For how long altogether.
    pub throttled_ns: Option<u64>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// In use now, page cache included.
    pub usage_bytes: u64,
    /// The most ever in use.
    pub peak_bytes: Option<u64>,
    /// The limit; `None` is no limit.
    pub limit_bytes: Option<u64>,
    /// Swap in use; on version 1 memory and swap together.
    pub swap_usage_bytes: Option<u64>,
    /// The most swap ever in use, counted like the usage.
    pub swap_peak_bytes: Option<u64>,
    /// Swap's limit, counted like the usage; `None` is no limit.
    pub swap_limit_bytes: Option<u64>,
    /// Page cache.
    pub cache_bytes: Option<u64>,
    /// Anonymous memory.
    pub rss_bytes: Option<u64>,
    /// Usage without file pages that nobody used of late: what the kubelet calls the working set.
    pub working_set_bytes: u64,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Processes that the out-of-memory killer ended.
    pub oom_kills: Option<u64>,
    /// Kernel memory (version 1; version 2 tells it in `detail`).
    pub kernel_usage_bytes: Option<u64>,
    /// Kernel memory of TCP (version 1).
    pub kernel_tcp_usage_bytes: Option<u64>,
    /// The kernel's `memory.stat`, as it is.
    pub detail: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStatistics {
    /// Now.
    pub current: u64,
    /// The limit; `None` is no limit.
    pub limit: Option<u64>,
}

/// What went to and from one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIo {
    /// Device number, major part.
    pub major: u32,
    /// Device number, minor part.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbStatistics {
    /// The size as files name it, such as `2MB`.
    pub page_size: String,
    /// In use now.
    pub usage_bytes: u64,
    /// The most ever in use (version 1).
    pub peak_bytes: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
}

/// Pressure stall information of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Waiting for a processor.
    pub cpu: Vec<PressureLine>,
    /// Waiting for memory.
    pub memory: Vec<PressureLine>,
    /// Waiting for block devices.
    pub io: Vec<PressureLine>,
}

/// One line of a pressure file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PressureLine {
    /// `some` task waited, or the `full` group did.
    pub kind: String,
    /// Share of the last 10, 60 and 300 seconds, in hundredths of a percent.
    pub average_hundredths: [u64; 3],
    /// Time altogether.
    pub total_us: u64,
}

impl Cgroup {
    /// Reads all figures. A file that is missing leaves its field empty: controllers differ from host to host.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut all = Statistics::default();
        if let Some(place) = self.place("cpuacct") {
            all.cpu = cpu_v1(place, self.place("cpu"));
        }
        if let Some(place) = self.place("memory") {
            all.memory = memory_v1(place);
        }
        if let Some(place) = self.place("blkio") {
            all.io = blkio_v1(place);
        }
        if let Some(place) = self.place("") {
            if all.cpu.usage_ns.is_none() {
                all.cpu = cpu_v2(&text(place, "cpu.stat"));
            }
            all.memory = all.memory.or_else(|| memory_v2(place));
            if all.io.is_empty() {
                all.io = io_v2(&text(place, "io.stat"));
            }
            all.pressure = Pressure {
                cpu: pressure(&text(place, "cpu.pressure")),
                memory: pressure(&text(place, "memory.pressure")),
                io: pressure(&text(place, "io.pressure")),
            };
        }
        all.pids = self.place("pids").or_else(|| self.place("")).and_then(pids);
        all.hugetlb = self.hugetlb();
        all
    }

    fn hugetlb(&self) -> Vec<HugetlbStatistics> {
        let v1 = self.place("hugetlb");
        let Some(place) = v1.or_else(|| self.place("")) else { return Vec::new() };
        let (usage, hits) = if v1.is_some() { ("usage_in_bytes", "failcnt") } else { ("current", "events") };
        // The sizes that x86, ARM and POWER have; asking is cheaper than listing the directory.
        const SIZES: [&str; 8] = ["64KB", "512KB", "1MB", "2MB", "16MB", "32MB", "512MB", "1GB"];
        let of = |size: &&str| {
            let file = |name: &str| format!("hugetlb.{size}.{name}");
            let usage_bytes = number(place, &file(usage))?;
            let events = text(place, &file(hits));
            let limit_hits = events.trim().parse().ok().or_else(|| keyed(&events).get("max").copied());
            let peak_bytes = number(place, &file("max_usage_in_bytes"));
            Some(HugetlbStatistics { page_size: (*size).to_owned(), usage_bytes, peak_bytes, limit_hits })
        };
        SIZES.iter().filter_map(of).collect()
    }
}

fn cpu_v1(accounting: &Place, throttling: Option<&Place>) -> CpuStatistics {
    /// `USER_HZ`: what the kernel calls a tick towards user space.
    const TICK_NS: u64 = 10_000_000;
    let ticks = keyed(&text(accounting, "cpuacct.stat"));
    let throttle = throttling.map(|place| keyed(&text(place, "cpu.stat"))).unwrap_or_default();
    let per_cpu = text(accounting, "cpuacct.usage_percpu");
    CpuStatistics {
        usage_ns: number(accounting, "cpuacct.usage"),
        user_ns: ticks.get("user").map(|ticks| ticks.saturating_mul(TICK_NS)),
        system_ns: ticks.get("system").map(|ticks| ticks.saturating_mul(TICK_NS)),
        per_cpu_ns: per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        periods: throttle.get("nr_periods").copied(),
        throttled_periods: throttle.get("nr_throttled").copied(),
        throttled_ns: throttle.get("throttled_time").copied(),
    }
}

fn cpu_v2(stat: &str) -> CpuStatistics {
    let stat = keyed(stat);
    let time = |key: &str| stat.get(key).map(|us| us.saturating_mul(1000));
    CpuStatistics {
        usage_ns: time("usage_usec"),
        user_ns: time("user_usec"),
        system_ns: time("system_usec"),
        per_cpu_ns: Vec::new(),
        periods: stat.get("nr_periods").copied(),
        throttled_periods: stat.get("nr_throttled").copied(),
        throttled_ns: time("throttled_usec"),
    }
}

fn memory_v1(place: &Place) -> Option<MemoryStatistics> {
    /// Version 1 writes "no limit" as the largest multiple of the page size; sizes of pages differ.
    const NO_LIMIT: u64 = 0x7fff_ffff_0000_0000;
    let limit = |file| number(place, file).filter(|limit| *limit < NO_LIMIT);
    let usage_bytes = number(place, "memory.usage_in_bytes")?;
    let detail = keyed(&text(place, "memory.stat"));
    let inactive = detail.get("total_inactive_file").copied().unwrap_or(0);
    Some(MemoryStatistics {
        usage_bytes,
        peak_bytes: number(place, "memory.max_usage_in_bytes"),
        limit_bytes: limit("memory.limit_in_bytes"),
        swap_usage_bytes: number(place, "memory.memsw.usage_in_bytes"),
        swap_peak_bytes: number(place, "memory.memsw.max_usage_in_bytes"),
        swap_limit_bytes: limit("memory.memsw.limit_in_bytes"),
        cache_bytes: detail.get("total_cache").copied(),
        rss_bytes: detail.get("total_rss").copied(),
        working_set_bytes: usage_bytes.saturating_sub(inactive),
        limit_hits: number(place, "memory.failcnt"),
        oom_kills: keyed(&text(place, "memory.oom_control")).get("oom_kill").copied(),
        kernel_usage_bytes: number(place, "memory.kmem.usage_in_bytes"),
        kernel_tcp_usage_bytes: number(place, "memory.kmem.tcp.usage_in_bytes"),
        detail,
    })
}

fn memory_v2(place: &Place) -> Option<MemoryStatistics> {
    let usage_bytes = number(place, "memory.current")?;
    let detail = keyed(&text(place, "memory.stat"));
    let events = keyed(&text(place, "memory.events"));
    let inactive = detail.get("inactive_file").copied().unwrap_or(0);
    Some(MemoryStatistics {
        usage_bytes,
        peak_bytes: number(place, "memory.peak"),
        limit_bytes: number(place, "memory.max"),
        swap_usage_bytes: number(place, "memory.swap.current"),
        swap_peak_bytes: number(place, "memory.swap.peak"),
        swap_limit_bytes: number(place, "memory.swap.max"),
        cache_bytes: detail.get("file").copied(),
        rss_bytes: detail.get("anon").copied(),
        working_set_bytes: usage_bytes.saturating_sub(inactive),
        limit_hits: events.get("max").copied(),
        oom_kills: events.get("oom_kill").copied(),
        kernel_usage_bytes: None,
        kernel_tcp_usage_bytes: None,
        detail,
    })
}

fn pids(place: &Place) -> Option<PidsStatistics> {
    Some(PidsStatistics { current: number(place, "pids.current")?, limit: number(place, "pids.max") })
}

fn blkio_v1(place: &Place) -> Vec<BlockIo> {
    let first = |files: [&str; 2]| {
        files.into_iter().map(|file| text(place, file)).find(|text| !text.is_empty()).unwrap_or_default()
    };
    let mut devices = BTreeMap::new();
    let bytes = first(["blkio.throttle.io_service_bytes_recursive", "blkio.bfq.io_service_bytes_recursive"]);
    for (device, operation, count) in v1_lines(&bytes) {
        let entry: &mut BlockIo = devices.entry(device).or_default();
        match operation {
            "Read" => entry.read_bytes = count,
            "Write" => entry.write_bytes = count,
            "Discard" => entry.discard_bytes = count,
            _ => {}
        }
    }
    let counts = first(["blkio.throttle.io_serviced_recursive", "blkio.bfq.io_serviced_recursive"]);
    for (device, operation, count) in v1_lines(&counts) {
        let entry = devices.entry(device).or_default();
        match operation {
            "Read" => entry.reads = count,
            "Write" => entry.writes = count,
            _ => {}
        }
    }
    numbered(devices)
}

/// `8:0 Read 4096`
fn v1_lines(text: &str) -> impl Iterator<Item = ((u32, u32), &str, u64)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((device(words.next()?)?, words.next()?, words.next()?.parse().ok()?))
    })
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
fn io_v2(stat: &str) -> Vec<BlockIo> {
    let mut devices = BTreeMap::new();
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(device) else { continue };
        let entry: &mut BlockIo = devices.entry(device).or_default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.write_bytes = value,
                "rios" => entry.reads = value,
                "wios" => entry.writes = value,
                "dbytes" => entry.discard_bytes = value,
                _ => {}
            }
        }
    }
    numbered(devices)
}

fn numbered(devices: BTreeMap<(u32, u32), BlockIo>) -> Vec<BlockIo> {
    devices.into_iter().map(|((major, minor), io)| BlockIo { major, minor, ..io }).collect()
}

fn device(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `some avg10=0.00 avg60=0.12 avg300=1.00 total=17`
fn pressure(text: &str) -> Vec<PressureLine> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let mut parsed = PressureLine { kind: words.next()?.to_owned(), ..PressureLine::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => parsed.average_hundredths[0] = hundredths(value)?,
                "avg60" => parsed.average_hundredths[1] = hundredths(value)?,
                "avg300" => parsed.average_hundredths[2] = hundredths(value)?,
                "total" => parsed.total_us = value.parse().ok()?,
                _ => {}
            }
        }
        Some(parsed)
    };
    text.lines().filter_map(line).collect()
}

fn hundredths(value: &str) -> Option<u64> {
    let (whole, fraction) = value.split_once('.')?;
    let fraction: u64 = fraction.get(..2)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(fraction)
}

fn text(place: &Place, file: &str) -> String {
    place.read(file).unwrap_or_default()
}

/// A file with one number; `max` is none.
fn number(place: &Place, file: &str) -> Option<u64> {
    text(place, file).trim().parse().ok()
}

/// Lines of a word and a number; others are passed over.
fn keyed(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_files_are_read() {
        let cpu = cpu_v2(
            "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\n",
        );
        assert_eq!(cpu.usage_ns, Some(1_500_000));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (Some(3), Some(1), Some(9000)));
        let io = io_v2(
            "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 rbytes=90\nrubbish\n",
        );
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].minor, io[0].read_bytes), (0, 90));
        assert_eq!((io[1].write_bytes, io[1].reads), (314_773_504, 192));
    }

    #[test]
    fn version_1_lines_are_read() {
        let lines: Vec<_> = v1_lines("8:0 Read 4096\n8:0 Write 1\nTotal 4097\n").collect();
        assert_eq!(lines, [((8, 0), "Read", 4096), ((8, 0), "Write", 1)]);
    }

    #[test]
    fn pressure_is_kept_in_whole_numbers() {
        let lines = pressure(
            "some avg10=0.12 avg60=3.40 avg300=100.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        );
        assert_eq!(lines[0].average_hundredths, [12, 340, 10_000]);
        assert_eq!((lines[0].total_us, lines[1].kind.as_str()), (77, "full"));
        assert!(pressure("some avg10=x").is_empty());
    }

    #[test]
    fn rubbish_is_passed_over() {
        assert!(keyed("\nx\ny z\nlow -1\n").is_empty());
        assert!(io_v2("8:0\n:\n8: x=1").len() <= 1);
    }
}
