//! Kernel parameters: only those that a namespace of the container owns. runtime-spec config-linux.md, "Sysctl".

use std::collections::BTreeMap;

use cofferdam_plan::{Builder, Namespace, Op, Refusal, Stage, Text};

use crate::compile::Context;

/// Parameters of the ipc namespace, ipc_namespaces(7).
const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// One write a parameter, through the container's own procfs.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let listed = context.linux().and_then(|linux| linux.sysctl().as_ref());
    let sorted: BTreeMap<_, _> = listed.into_iter().flatten().collect();
    let mounted = context.has_root()
        && context.spec().mounts().iter().flatten().any(|mount| {
            mount.typ().as_deref() == Some("proc") && mount.destination().as_os_str() == "/proc"
        });
    if !sorted.is_empty() && !mounted {
        // None is mounted in the container: one of our own, which nobody else ever sees.
        let kind = Text::new("proc", "/linux/sysctl")?;
        let (options, into) = (Vec::new(), context.proc);
        let op = Op::NewFilesystem { kind, source: None, covers: None, options, attributes: 0, into };
        builder.step(Stage::Enter, "/linux/sysctl", op);
    }
    for (name, value) in sorted {
        let pointer = format!("/linux/sysctl/{}", name.replace('~', "~0").replace('/', "~1"));
        let path = path(name, &pointer)?;
        check_owner(context, &dotted(&path), &pointer)?;
        check_names(context, (&dotted(&path), value), &pointer)?;
        let (key, value) = (Text::new(path, &pointer)?, Text::new(value.as_str(), &pointer)?);
        builder.step(Stage::Enter, pointer, Op::WriteSysctl { proc: context.proc, key, value });
    }
    Ok(())
}

/// The path below /proc/sys. The first separator decides which one is used, sysctl(8): `net/ipv4/conf/eth0.100/x` keeps
/// its dot.
fn path(name: &str, pointer: &str) -> Result<String, Refusal> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    let path = if separator == '.' {
        // In the dotted form a `/` stands for a dot inside a component.
        name.chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect()
    } else {
        name.to_owned()
    };
    let strange = |part: &str| part.is_empty() || part == "." || part == "..";
    if path.split('/').any(strange) || path.contains(['\n', '\0']) {
        return Err(Refusal::invalid(pointer, format!("{name:?} is not the name of a kernel parameter")));
    }
    Ok(path)
}

fn dotted(path: &str) -> String {
    path.replace('/', ".")
}

/// The kind of namespace that a parameter belongs to.
fn owner(name: &str) -> Option<Namespace> {
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some(Namespace::Ipc)
    } else if name.starts_with("net.") {
        Some(Namespace::Network)
    } else if name == "kernel.domainname" || name == "kernel.hostname" {
        Some(Namespace::Uts)
    } else if name.starts_with("user.") {
        Some(Namespace::User)
    } else {
        None
    }
}

/// Whether a parameter of this kind of namespace is set.
pub(crate) fn changes(context: &Context<'_>, kind: Namespace) -> bool {
    let listed = context.linux().and_then(|linux| linux.sysctl().as_ref());
    let path = |name: &String| path(name, "/linux/sysctl").ok();
    listed
        .into_iter()
        .flatten()
        .filter_map(|(name, _)| path(name))
        .any(|path| owner(&dotted(&path)) == Some(kind))
}

/// What has a field of its own is set there: two answers to one question would depend on the order of the steps.
fn check_names(context: &Context<'_>, (name, value): (&str, &str), pointer: &str) -> Result<(), Refusal> {
    let differs = |domain: &String| !domain.is_empty() && domain != value;
    let field = match name {
        "kernel.hostname" => "hostname",
        "kernel.domainname" if context.spec().domainname().as_ref().is_some_and(differs) => "domainname",
        _ => return Ok(()),
    };
    Err(Refusal::invalid(pointer, format!("{name} is set by the field {field} of the configuration")))
}

fn check_owner(context: &Context<'_>, name: &str, pointer: &str) -> Result<(), Refusal> {
    let with_user = |owner: &Namespace| *owner != Namespace::User || context.membership.has(Namespace::User);
    let Some(owner) = owner(name).filter(with_user) else {
        return Err(Refusal::invalid(
            pointer,
            format!("{name} is not in a namespace of its own: it would change the host"),
        ));
    };
    if context.membership.has(owner) {
        return Ok(());
    }
    Err(Refusal::invalid(
        pointer,
        format!("{name} belongs to the {} namespace, which the container shares with the host", owner.file()),
    ))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn names_become_paths() {
        for (name, expected) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.100/forwarding", Some("net/ipv4/conf/eth0.100/forwarding")),
            ("net.ipv4.conf.eth0/100.forwarding", Some("net/ipv4/conf/eth0.100/forwarding")),
            ("../kernel", None),
            ("net..ipv4", None),
            ("net/../kernel", None),
            ("", None),
            ("net.x\n", None),
        ] {
            assert_eq!(path(name, "/p").ok().as_deref(), expected, "{name:?}");
        }
    }
}
