//! Device nodes, the links of /dev, and the terminal. runtime-spec config-linux.md, "Default Devices".

use std::path::Path;

use cofferdam_plan::{Builder, ContainerPath, HostPath, Namespace, Op, Refusal, Slot, Stage, Standing, Text};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Process};

use crate::compile::{CONSOLE, Context};
use crate::container::Console;
use crate::mount_options;

/// The devices that every container has: (name, major, minor).
pub const DEFAULTS: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The links of /dev: (name, target).
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// `S_IFCHR`.
pub(crate) const CHARACTER: u32 = 0o020_000;
const BLOCK: u32 = 0o060_000;
const FIFO: u32 = 0o010_000;

/// Nodes, links, terminal, standard descriptors.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    if context.has_root() && !host_dev(context)? {
        let listed = context.linux().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
        // What the configuration says of a default device goes: its mode, its owner.
        let is_listed =
            |name: &str| listed.iter().any(|device| device.path() == &Path::new("/dev").join(name));
        for (name, major, minor) in DEFAULTS.iter().filter(|(name, _, _)| !is_listed(name)) {
            node(
                context,
                builder,
                "every container",
                &format!("/dev/{name}"),
                Node::default_device(*major, *minor),
            )?;
        }
        for (index, device) in listed.iter().enumerate() {
            let pointer = format!("/linux/devices/{index}");
            let path = device.path().to_string_lossy();
            node(context, builder, &pointer, &path, Node::listed(device, &pointer)?)?;
        }
        for (at, target) in LINKS {
            link(context, builder, at, target)?;
        }
        link(context, builder, "/dev/ptmx", "pts/ptmx")?;
    }
    terminal(context, builder)
}

/// Whether /dev is the host's, or somebody else's: then nothing is made in it.
fn host_dev(context: &Context<'_>) -> Result<bool, Refusal> {
    let mounts = context.spec().mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate() {
        let pointer = format!("/mounts/{index}");
        let options = mount_options::parse(mount.options().as_deref().unwrap_or_default());
        let bound = options.bind.is_some() || mount.typ().as_deref() == Some("bind");
        if bound && ContainerPath::new(mount.destination(), &pointer)?.as_bytes() == b"/dev" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A node to be made.
struct Node {
    kind: u32,
    mode: u32,
    major: u32,
    minor: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    fn default_device(major: u32, minor: u32) -> Self {
        Self { kind: CHARACTER, mode: 0o666, major, minor, uid: 0, gid: 0 }
    }

    fn listed(device: &LinuxDevice, pointer: &str) -> Result<Self, Refusal> {
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => CHARACTER,
            LinuxDeviceType::B => BLOCK,
            LinuxDeviceType::P => FIFO,
            other => {
                return Err(Refusal::invalid(format!("{pointer}/type"), format!("device type {other:?}")));
            }
        };
        // Linux device numbers: 12 bits of major, 20 of minor, makedev(3).
        let number = |value: i64, bits: u32, name: &str| {
            let fits = u32::try_from(value).ok().filter(|value| value >> bits == 0);
            match fits {
                Some(value) => Ok(value),
                None if kind == FIFO => Ok(0),
                None => Err(Refusal::invalid(
                    format!("{pointer}/{name}"),
                    format!("{value} is not a device number"),
                )),
            }
        };
        let id = |value: Option<u32>, name: &str| match value {
            Some(u32::MAX) => Err(Refusal::invalid(format!("{pointer}/{name}"), "4294967295 is not an id")),
            value => Ok(value.unwrap_or(0)),
        };
        Ok(Self {
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            major: number(device.major(), 12, "major")?,
            minor: number(device.minor(), 20, "minor")?,
            uid: id(device.uid(), "uid")?,
            gid: id(device.gid(), "gid")?,
        })
    }
}

/// A node is made, or, in a user namespace, which may not, bound from the host.
fn node(
    context: &Context<'_>,
    builder: &mut Builder,
    why: &str,
    path: &str,
    node: Node,
) -> Result<(), Refusal> {
    let at = ContainerPath::new(path, why)?;
    let root = context.root;
    let bound = context.membership.has(Namespace::User) || context.host.standing != Standing::Host;
    if bound && node.kind != FIFO {
        let device = builder.slot(path);
        let path = HostPath::new(path, why)?;
        builder.step(
            Stage::Enter,
            why,
            Op::OpenDevice { path, kind: node.kind, major: node.major, minor: node.minor, into: device },
        );
        builder.step(Stage::Enter, why, Op::BindDevice { root, device, at });
        return Ok(());
    }
    let Node { kind, mode, major, minor, uid, gid } = node;
    builder.step(Stage::Enter, why, Op::MakeNode { root, at, kind, mode, major, minor, uid, gid });
    Ok(())
}

fn link(context: &Context<'_>, builder: &mut Builder, at: &str, target: &str) -> Result<(), Refusal> {
    let (at, target) = (ContainerPath::new(at, "every container")?, Text::new(target, "every container")?);
    builder.step(Stage::Enter, "every container", Op::MakeSymlink { root: context.root, target, at });
    Ok(())
}

/// A terminal of the container's own devpts for `process`; as `/dev/console` too, for the first one.
pub(crate) fn make_terminal(
    process: &Process,
    root: Slot,
    master: Console,
    console: bool,
) -> Result<Op, Refusal> {
    let small = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let size = process.console_size();
    let (rows, columns) = size.map_or((0, 0), |size| (small(size.height()), small(size.width())));
    let uid = process.user().uid();
    let devpts = ContainerPath::new("/dev/pts", "/process/terminal")?;
    let fronted = master == Console::Fronted;
    Ok(Op::MakeTerminal { root, devpts, send: CONSOLE, console, fronted, rows, columns, uid })
}

/// The pty of the container's own devpts, or the caller's descriptors.
fn terminal(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let asked = context.process().and_then(|process| process.terminal()).unwrap_or(false);
    let master = context.container.console;
    match (asked, master != Console::None) {
        (true, false) => Err(Refusal::invalid("/process/terminal", "a terminal needs a console socket")),
        (false, true) => Err(Refusal::invalid(
            "/process/terminal",
            "a console socket was given, but no terminal is asked for",
        )),
        (true, true) => {
            let Some(process) = context.process() else { return Ok(()) };
            let own = context.has_root();
            if !own {
                // Nothing is mounted for it: the terminal is one of the host's.
                let path = HostPath::new("/", "/process/terminal")?;
                builder.step(
                    Stage::Enter,
                    "/process/terminal",
                    Op::OpenDirectory { path, into: context.root },
                );
            }
            let terminal = make_terminal(process, context.root, master, own)?;
            builder.step(Stage::Enter, "/process/terminal", terminal);
            builder.step(Stage::Enter, "/process/terminal", Op::TakeTerminal);
            Ok(())
        }
        (false, false) => {
            crate::process::stdio(context.container.stdio, builder);
            Ok(())
        }
    }
}
