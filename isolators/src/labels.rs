//! Security modules: AppArmor profiles and SELinux labels, used where the module is enabled. runtime-spec config.md,
//! `apparmorProfile` and `selinuxLabel`; config-linux.md, "Mount Label".
//!
//! Where a module is off its labels are ignored with a warning, as crun does: engines write them into every configuration.

use cofferdam_plan::op::FilesystemOption;
use cofferdam_plan::{Builder, HostFeatures, Op, Refusal, SecurityModule, Stage, Text};
use oci_spec::runtime::{Process, Spec};

/// File systems that take no label of ours: the kernel labels what is in them, or they have no room for labels.
const UNLABELLED: &[&str] = &["proc", "sysfs", "mqueue", "cgroup", "cgroup2", "overlay"];

/// What the process is to become at exec. The first thing that the child does: it writes to its own files in the host's
/// procfs, which nothing of the container can have changed.
pub(crate) fn plan(process: &Process, host: &HostFeatures, builder: &mut Builder) -> Result<(), Refusal> {
    use SecurityModule::{AppArmor, Selinux};
    for (module, name, enabled, wanted, pointer) in [
        (AppArmor, "AppArmor", host.apparmor, process.apparmor_profile(), "/process/apparmorProfile"),
        (Selinux, "SELinux", host.selinux, process.selinux_label(), "/process/selinuxLabel"),
    ] {
        let Some(wanted) = wanted.as_ref().filter(|wanted| !wanted.is_empty()) else { continue };
        if enabled {
            // aa_change_onexec(2) is this word before the profile's name.
            let verb = if module == AppArmor { "exec " } else { "" };
            let label = Text::new(format!("{verb}{wanted}"), pointer)?;
            builder.step(Stage::Enter, pointer, Op::SetExecLabel { module, label });
        } else {
            builder.warn(format!("{pointer}: {name} is not enabled on this host, {wanted:?} is ignored"));
        }
    }
    Ok(())
}

/// The option that labels a new file system of this kind, `linux.mountLabel`.
pub(crate) fn mount_option(
    spec: &Spec,
    host: &HostFeatures,
    kind: &str,
    builder: &mut Builder,
) -> Result<Option<FilesystemOption>, Refusal> {
    const WHY: &str = "/linux/mountLabel";
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_ref());
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(None) };
    if !host.selinux {
        if !builder.marked(WHY) {
            builder.warn(format!("{WHY}: SELinux is not enabled on this host, {label:?} is ignored"));
        }
        return Ok(None);
    }
    if UNLABELLED.contains(&kind) {
        return Ok(None);
    }
    Ok(Some((Text::new("context", WHY)?, Some(Text::new(label.as_str(), WHY)?))))
}
