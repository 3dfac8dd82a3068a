//! events: a container's use of resources, as runc prints it and go-runc reads it.

use std::time::{Duration, Instant};

use cofferdam_runtime::{Statistics, Status};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::{Value, json};

use super::Call;
use crate::failed::Failed;

/// Time between two statistics when nobody says otherwise.
const INTERVAL: Duration = Duration::from_secs(5);

/// Cgroup v1 tells that memory has run out before anything is killed for it, and the count follows: it is looked at so
/// many times more, so far apart.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) fn events(call: &Call<'_>) -> Result<i32, Failed> {
    let (runtime, id) = (call.global.runtime()?, call.said.id()?);
    let running = || runtime.state(&id).map(|state| !matches!(state.status, Status::Stopped));
    if !running()? {
        return Err(Failed::new(format!("container with id {id} is not running")));
    }
    let tell = |kind: &str, data: Option<Value>| {
        let mut event = json!({ "type": kind, "id": id.as_str() });
        if let Some(data) = data {
            event["data"] = data;
        }
        println!("{event}");
    };
    let statistics = || runtime.stats(&id).map(|statistics| tell("stats", Some(shape(&statistics))));
    if call.said.has("stats") {
        statistics()?;
        return Ok(0);
    }
    let interval = interval(call)?;
    let watch = runtime.cgroup(&id)?.watch_oom().ok();
    let mut known = watch.as_ref().and_then(|watch| watch.kills().ok().flatten()).unwrap_or(0);
    let mut next = Instant::now();
    let mut looks = 0_u32;
    while running().unwrap_or(false) {
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // It may end between the question and the answer.
            let _ = statistics();
            next = Instant::now() + interval;
            continue;
        }
        let left = if looks > 0 { left.min(LOOK_AGAIN) } else { left };
        let limit =
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        match &watch {
            Some(watch) => {
                let descriptor = watch.descriptor();
                let woken = poll(&mut [PollFd::from_borrowed_fd(descriptor, watch.interest())], Some(&limit));
                looks = if woken.is_ok_and(|count| count > 0) { LOOKS } else { looks.saturating_sub(1) };
                let Ok(Some(kills)) = watch.kills() else { break };
                (known..kills).for_each(|_| tell("oom", None));
                known = kills;
            }
            None => std::thread::sleep(left),
        }
    }
    Ok(0)
}

/// Go's notation of a duration, one number and one unit.
fn interval(call: &Call<'_>) -> Result<Duration, Failed> {
    let Some(text) = call.said.text("interval") else { return Ok(INTERVAL) };
    parse(&text)
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Failed::new(format!("duration interval must be greater than 0: {text:?}")))
}

fn parse(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

/// No limit, as runc writes it.
fn or_none(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

/// The shape of runc's `data`. What is not known is left out or zero, as there.
fn shape(statistics: &Statistics) -> Value {
    let cpu = &statistics.cpu;
    let entry = |usage: Option<u64>, max: Option<u64>, limit: Option<u64>| json!({ "usage": usage.unwrap_or(0), "max": max.unwrap_or(0), "limit": or_none(limit), "failcnt": 0 });
    let memory = statistics.memory.as_ref().map_or(json!({}), |memory| {
        let mut usage = entry(Some(memory.usage_bytes), memory.peak_bytes, memory.limit_bytes);
        usage["failcnt"] = memory.limit_hits.unwrap_or(0).into();
        json!({
            "cache": memory.cache_bytes.unwrap_or(0),
            "usage": usage,
            "swap": entry(memory.swap_usage_bytes, memory.swap_peak_bytes, memory.swap_limit_bytes),
            "kernel": entry(memory.kernel_usage_bytes, None, None),
            "kernelTCP": entry(memory.kernel_tcp_usage_bytes, None, None),
            "raw": memory.detail,
        })
    });
    let pids = statistics
        .pids
        .map_or(json!({}), |pids| json!({ "current": pids.current, "limit": pids.limit.unwrap_or(0) }));
    let hugetlb = statistics.hugetlb.iter().map(|pages| {
        let hits = pages.limit_hits.unwrap_or(0);
        let figures =
            json!({ "usage": pages.usage_bytes, "max": pages.peak_bytes.unwrap_or(0), "failcnt": hits });
        (pages.page_size.clone(), figures)
    });
    json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_ns.unwrap_or(0),
                "percpu": cpu.per_cpu_ns,
                "kernel": cpu.system_ns.unwrap_or(0),
                "user": cpu.user_ns.unwrap_or(0),
            },
            "throttling": {
                "periods": cpu.periods.unwrap_or(0),
                "throttledPeriods": cpu.throttled_periods.unwrap_or(0),
                "throttledTime": cpu.throttled_ns.unwrap_or(0),
            },
        },
        "memory": memory,
        "pids": pids,
        "blkio": {
            "ioServiceBytesRecursive": blocks(statistics, |io| [io.read_bytes, io.write_bytes]),
            "ioServicedRecursive": blocks(statistics, |io| [io.reads, io.writes]),
        },
        "hugetlb": hugetlb.collect::<serde_json::Map<_, _>>(),
        "network_interfaces": null,
    })
}

fn blocks(statistics: &Statistics, figures: impl Fn(&cofferdam_runtime::BlockIo) -> [u64; 2]) -> Vec<Value> {
    let entry = |io: &cofferdam_runtime::BlockIo| {
        let named = ["Read", "Write"].into_iter().zip(figures(io));
        let (major, minor) = (io.major, io.minor);
        named.map(move |(op, value)| json!({ "major": major, "minor": minor, "op": op, "value": value }))
    };
    statistics.io.iter().flat_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, expected) in
            [("5s", Some(5000)), ("100ms", Some(100)), ("1.5m", Some(90_000)), ("5", None), ("x", None)]
        {
            assert_eq!(parse(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn an_empty_cgroup_has_runc_s_keys() {
        let shaped = shape(&Statistics::default());
        for key in ["cpu", "memory", "pids", "blkio", "hugetlb", "network_interfaces"] {
            assert!(shaped.get(key).is_some(), "{key}");
        }
    }
}
