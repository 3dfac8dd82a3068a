//! Programs and devices that some tasks want and most do not.

use std::path::Path;

use super::{Check, State};

/// A program, what wants it, and the package that has it.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("newuidmap", "unprivileged users cannot map their subordinate ids", "uidmap"),
    ("newgidmap", "unprivileged users cannot map their subordinate ids", "uidmap"),
];

/// A device node or folder of the host, and what tasks cannot have without it.
const DEVICES: [(&str, &str, &str); 5] = [
    ("FUSE", "/dev/fuse", "no --device /dev/fuse: tasks cannot mount file systems of their own making"),
    ("tun", "/dev/net/tun", "no --device /dev/net/tun: no tunnels in tasks"),
    ("KVM", "/dev/kvm", "no --device /dev/kvm: virtual machines in tasks are slow"),
    ("GPU, DRM", "/dev/dri", "no graphics cards for tasks"),
    ("GPU, NVIDIA", "/dev/nvidiactl", "no NVIDIA cards for tasks"),
];

pub(super) fn examine() -> Vec<Check> {
    let mut checks: Vec<Check> = PROGRAMS.into_iter().map(program).collect();
    checks.extend(DEVICES.into_iter().map(device));
    checks
}

fn program((name, costs, package): (&str, &str, &str)) -> Check {
    let found = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .into_iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file());
    match found {
        Some(path) => Check::works("tools", name, path.display().to_string()),
        None => {
            Check::missing("tools", name, "not installed", costs).remedy(format!("apt install {package}"))
        }
    }
}

fn device((subject, path, costs): (&str, &str, &str)) -> Check {
    let state = if Path::new(path).exists() { State::Works } else { State::Missing };
    match state {
        State::Works => Check::works("devices", subject, path),
        _ => Check::missing("devices", subject, format!("no {path}"), costs),
    }
}
