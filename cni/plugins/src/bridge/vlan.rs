//! VLANs of a bridge: the container's port, and the host's way into a VLAN.
//!
//! ```text
//! bridge cni0 ──┬── veth…   port of a container: VLAN 100 untagged, a trunk tagged
//!               └── vgw…    port of the pair whose other end, cni0.100, has the gateways' addresses
//! ```
//!
//! A pair, as the reference plugin has it, and not a link of the kind vlan on the bridge: that would need a further module.

use std::os::fd::AsFd;

use cofferdam_cni::{Code, PluginError};
use cofferdam_linux::namespace::current_netns;
use cofferdam_linux::netlink::{self, Link, LinkKind, MacAddress, NewLink, PortVlans, Socket, VethPeer};
use rustix::io::Errno;

use super::config::Config;
use crate::links;

/// Refuses a bridge that does not keep VLANs apart: whoever asks for one would be on everybody's.
pub(super) fn ensure_filtering(bridge: &Link, config: &Config) -> Result<(), PluginError> {
    if config.vlans().is_none() || bridge.filters_vlans {
        return Ok(());
    }
    Err(PluginError::config(format!(
        "bridge: {0} was there and does not keep VLANs apart; ip link set {0} type bridge vlan_filtering 1 would change that",
        bridge.name
    )))
}

pub(super) fn unknown_to_the_kernel() -> PluginError {
    PluginError::new(
        Code::KERNEL,
        "bridge: bridges of this kernel have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)",
    )
}

/// Puts the container's port into its VLANs. Nothing passes it yet: the container's end is down.
pub(super) fn join(host: &mut Socket, port: &Link, config: &Config) -> Result<(), PluginError> {
    match config.vlans() {
        Some(vlans) => set(host, port, config, &vlans),
        None => Ok(()),
    }
}

fn set(host: &mut Socket, port: &Link, config: &Config, vlans: &PortVlans) -> Result<(), PluginError> {
    if !config.preserve_default_vlan {
        host.clear_port_vlans(port.index)?;
    }
    Ok(host.add_port_vlans(port.index, vlans)?)
}

/// Compares with what [`join`] did.
pub(super) fn check(host: &mut Socket, port: &Link, config: &Config) -> Result<(), PluginError> {
    let Some(wanted) = config.vlans() else { return Ok(()) };
    let found = host.port_vlans(port.index)?;
    if is_joined(&found, &wanted, config) {
        return Ok(());
    }
    let message = format!("bridge: {} is in the VLANs {found:?} instead of {wanted:?}", port.name);
    Err(PluginError::new(Code::CHECK_FAILED, message))
}

/// A preserved default VLAN is one more.
fn is_joined(found: &PortVlans, wanted: &PortVlans, config: &Config) -> bool {
    if !config.preserve_default_vlan {
        return found == wanted;
    }
    let has = |id: u16| found.tagged.iter().any(|range| range.contains(&id));
    found.untagged == wanted.untagged && wanted.tagged.iter().cloned().flatten().all(has)
}

/// The link that has the gateways' addresses, if it is not the bridge: found, or made.
pub(super) fn ensure_gateway(host: &mut Socket, bridge: &Link, config: &Config) -> Result<Link, PluginError> {
    let Some(id) = config.vlan() else { return Ok(bridge.clone()) };
    let name = config.gateway_link();
    let port_name = links::name("vgw", &name);
    if host.find_link(&name)?.is_none() {
        make_pair(host, bridge, config, &port_name, &name)?;
    }
    let link = host.link(&name)?;
    if let Some(port) = host.find_link(&port_name)? {
        // Whoever made it may have been killed before it was in its VLAN.
        let vlans = PortVlans { untagged: Some(id), tagged: Vec::new() };
        if !is_joined(&host.port_vlans(port.index)?, &vlans, config) {
            set(host, &port, config, &vlans)?;
        }
    }
    host.set_up(link.index)?;
    Ok(link)
}

fn make_pair(
    host: &mut Socket,
    bridge: &Link,
    config: &Config,
    port: &str,
    name: &str,
) -> Result<(), PluginError> {
    let failed = |what: &'static str| move |errno| netlink::Error::new(what, errno);
    let home = current_netns().map_err(failed("open the host's namespace"))?;
    let mac = MacAddress::random().map_err(failed("choose an address"))?;
    let peer = VethPeer { name, netns: home.as_fd(), mac: Some(mac) };
    let pair =
        NewLink { master: Some(bridge.index), mtu: config.mtu(), ..NewLink::new(port, LinkKind::Veth(peer)) };
    match host.add_link(&pair) {
        // Of many that make it at once one succeeds.
        Err(error) if error.errno() != Errno::EXIST => Err(error.into()),
        _ => Ok(()),
    }
}
