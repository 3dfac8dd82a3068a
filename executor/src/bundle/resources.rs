//! What the task may use, checked against what the host has.

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources};

use super::Ingredients;
use crate::request::Refusal;
use crate::request::size::{parse_cpu_list, show_bytes};
use crate::spec::DEFAULT_PIDS_LIMIT;

/// The scheduler's period: what everybody uses, and short enough that a throttled task still answers.
const CPU_PERIOD_US: u64 = 100_000;

/// Below this a container cannot even be set up: Docker's limit too.
const LEAST_MEMORY_BYTES: u64 = 6 << 20;

pub(super) fn resources(from: &Ingredients<'_>) -> Result<LinuxResources, Refusal> {
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(vec![deny_all_devices()]))
        .set_memory(memory(from)?)
        .set_cpu(cpu(from)?)
        .set_pids(Some(pids(from)?));
    Ok(resources)
}

/// The runtime adds the devices that every container may use.
fn deny_all_devices() -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(false).set_access(Some("rwm".to_owned()));
    rule
}

fn memory(from: &Ingredients<'_>) -> Result<Option<LinuxMemory>, Refusal> {
    let Some(bytes) = from.spec.resources.memory_bytes else { return Ok(None) };
    let refuse = |problem: String| Refusal::new("memory limit", &show_bytes(bytes), problem);
    if bytes < LEAST_MEMORY_BYTES {
        return Err(refuse(format!("the least is {}", show_bytes(LEAST_MEMORY_BYTES))));
    }
    if bytes > from.host.memory_bytes {
        return Err(refuse(format!("the host has only {}", show_bytes(from.host.memory_bytes))));
    }
    let limit = i64::try_from(bytes).map_err(|_| refuse("it is more than can be counted".to_owned()))?;
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit));
    Ok(Some(memory))
}

fn cpu(from: &Ingredients<'_>) -> Result<Option<LinuxCpu>, Refusal> {
    let mut cpu = LinuxCpu::default();
    if let Some(cpus) = from.spec.resources.cpus {
        let have = from.host.cpus.len() as u64 * 1000;
        if u64::from(cpus.0) > have {
            let text = format!("{}.{:03}", cpus.0 / 1000, cpus.0 % 1000);
            return Err(Refusal::new("number of CPUs", &text, format!("the host has only {}", have / 1000)));
        }
        let quota_us = u64::from(cpus.0) * CPU_PERIOD_US / 1000;
        cpu.set_period(Some(CPU_PERIOD_US)).set_quota(i64::try_from(quota_us).ok());
    }
    if let Some(list) = &from.spec.resources.cpuset {
        let wanted = parse_cpu_list(list)?;
        if let Some(missing) = wanted.iter().find(|cpu| !from.host.cpus.contains(cpu)) {
            return Err(Refusal::new("list of CPUs", list, format!("the host has no CPU {missing} online")));
        }
        cpu.set_cpus(Some(list.clone()));
    }
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

fn pids(from: &Ingredients<'_>) -> Result<LinuxPids, Refusal> {
    let limit = from.spec.resources.pids.unwrap_or(DEFAULT_PIDS_LIMIT);
    if limit == 0 || !(-1..=1 << 22).contains(&limit) {
        let problem = "expected a number from 1 to 4194304, or -1 for no limit";
        return Err(Refusal::new("limit of processes", &limit.to_string(), problem));
    }
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    Ok(pids)
}
