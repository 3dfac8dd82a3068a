//! What the host has: the bounds that requests are checked against.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::process::{Resource, getrlimit};

use crate::request::size::parse_cpu_list;
use crate::request::ulimit::UNLIMITED;

/// What the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Memory.
    pub memory_bytes: u64,
    /// The CPUs that are online.
    pub cpus: Vec<u32>,
    /// Hard limits of this process by the names of [`crate::request::ulimit::NAMES`]. Without CAP_SYS_RESOURCE, which
    /// root in a container or a virtual machine often lacks, no task can have more.
    pub hard_limits: BTreeMap<&'static str, u64>,
    /// Whether this process may raise hard limits.
    pub may_raise_limits: bool,
}

const RESOURCES: [(&str, Resource); 16] = [
    ("cpu", Resource::Cpu),
    ("fsize", Resource::Fsize),
    ("data", Resource::Data),
    ("stack", Resource::Stack),
    ("core", Resource::Core),
    ("rss", Resource::Rss),
    ("nproc", Resource::Nproc),
    ("nofile", Resource::Nofile),
    ("memlock", Resource::Memlock),
    ("as", Resource::As),
    ("locks", Resource::Locks),
    ("sigpending", Resource::Sigpending),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
];

impl HostLimits {
    /// Asks the host.
    pub fn probe() -> io::Result<HostLimits> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let hard = |resource| getrlimit(resource).maximum.unwrap_or(UNLIMITED);
        Ok(HostLimits {
            memory_bytes: parse_mem_total(&meminfo).ok_or(io::ErrorKind::InvalidData)?,
            cpus: parse_cpu_list(&online)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
            hard_limits: RESOURCES.iter().map(|(name, resource)| (*name, hard(*resource))).collect(),
            may_raise_limits: may_raise_limits(),
        })
    }
}

fn parse_mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn may_raise_limits() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory_and_cpus() {
        let host = HostLimits::probe().unwrap();
        assert!(host.memory_bytes > 1 << 20);
        assert!(!host.cpus.is_empty());
        assert_eq!(host.hard_limits.len(), 16);
    }
}
