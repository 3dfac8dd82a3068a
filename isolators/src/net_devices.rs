//! Network devices of the host that are lent to the container. runtime-spec config-linux.md, "Network Devices".

use std::collections::BTreeMap;

use cofferdam_plan::{Barrier, Builder, Namespace, Op, Refusal, Stage};

use crate::compile::{Context, pass};

/// Longest interface name, `IFNAMSIZ` without the NUL.
const NAME_MAX_BYTES: usize = 15;

/// One move a device, before any hook sees the container's network.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let listed = context.linux().and_then(|linux| linux.net_devices().as_ref());
    let sorted: BTreeMap<_, _> = listed.into_iter().flatten().collect();
    let mut names = Vec::new();
    for (device, settings) in sorted {
        let pointer = format!("/linux/netDevices/{}", device.replace('~', "~0").replace('/', "~1"));
        if !context.membership.has(Namespace::Network) {
            let problem = "a network device is moved into a network namespace, and linux.namespaces has none";
            return Err(Refusal::invalid(pointer, problem));
        }
        let name = settings.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(device);
        for (name, pointer) in [(device, pointer.clone()), (name, format!("{pointer}/name"))] {
            if !is_name(name) {
                return Err(Refusal::invalid(pointer, format!("{name:?} is not an interface name")));
            }
        }
        if names.contains(&name) {
            return Err(Refusal::invalid(format!("{pointer}/name"), format!("{name} is used twice")));
        }
        names.push(name);
        // A namespace that is joined is entered by the child in its own time; its descriptor is there already.
        let joined = builder.find(|op| match op {
            Op::OpenNamespace { kind: Namespace::Network, into, .. } => Some(*into),
            _ => None,
        });
        let op = Op::MoveNetDevice { device: device.clone(), name: name.clone(), into: joined };
        builder.step(Stage::Attach, pointer, op);
    }
    if !names.is_empty() {
        // The program must find them, with their addresses, even where nobody has to start it.
        pass(builder, "/linux/netDevices", Barrier::Connected);
    }
    Ok(())
}

/// The kernel's own rule, `dev_valid_name`.
fn is_name(name: &str) -> bool {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    !name.is_empty() && name.len() <= NAME_MAX_BYTES && name != "." && name != ".." && !name.bytes().any(bad)
}
