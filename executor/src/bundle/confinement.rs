//! What the task may not do: capabilities, system calls, hidden and read-only parts of `/proc` and `/sys`.

use cofferdam_isolators::capabilities::{CapSet, CapabilitySets};
use cofferdam_isolators::seccomp::Architecture;
use cofferdam_isolators::seccomp::default::{Style, profile};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp};

use super::{Ingredients, docker_profile, is_host_rootfs};
use crate::passwd::Identity;
use crate::request::Refusal;
use crate::spec::SeccompChoice;

/// Parts of the kernel's file systems that tell or allow too much. Those that a host lacks are passed over.
const MASKED: [&str; 29] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/dev/block",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
    "/sys/kernel/vmcoreinfo",
    "/sys/power",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What root in a task may do: podman's set without SETPCAP.
const DEFAULT_CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn masked_paths(from: &Ingredients<'_>) -> Vec<String> {
    if is_host_rootfs(from) { Vec::new() } else { MASKED.map(str::to_owned).to_vec() }
}

pub(super) fn readonly_paths(from: &Ingredients<'_>) -> Vec<String> {
    if is_host_rootfs(from) { Vec::new() } else { READ_ONLY.map(str::to_owned).to_vec() }
}

fn granted(from: &Ingredients<'_>) -> Result<CapSet, Refusal> {
    let security = &from.spec.security;
    let (defaults, _) = CapSet::parse(DEFAULT_CAPABILITIES);
    defaults
        .adjust(&security.capabilities_add, &security.capabilities_drop)
        .map_err(|unknown| Refusal::new("capability", &unknown.name, "the kernel has none of this name"))
}

pub(super) fn capabilities(
    from: &Ingredients<'_>,
    identity: &Identity,
) -> Result<LinuxCapabilities, Refusal> {
    let sets = CapabilitySets::for_user(granted(from)?, identity.uid);
    let list = |set: CapSet| -> Capabilities {
        set.iter()
            .filter_map(|capability| capability.to_string().trim_start_matches("CAP_").parse().ok())
            .collect()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(list(sets.bounding))
        .effective(list(sets.effective))
        .permitted(list(sets.permitted))
        .inheritable(list(sets.inheritable))
        .ambient(list(sets.ambient))
        .build()
        .map_err(|error| Refusal::new("capability", "", error.to_string()))
}

pub(super) fn seccomp(from: &Ingredients<'_>) -> Result<Option<LinuxSeccomp>, Refusal> {
    match &from.spec.security.seccomp {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::Default => {
            let native = Architecture::native().ok_or_else(|| {
                Refusal::new("seccomp profile", "default", "there is none for this architecture")
            })?;
            Ok(Some(profile(Style::Strict, granted(from)?, native)))
        }
        SeccompChoice::Profile(text) => docker_profile::parse(text, granted(from)?).map(Some),
    }
}
