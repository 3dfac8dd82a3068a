//! Built-in CNI plugins, called in-process: no `ip`, `nft` or `iptables` is ever started.
//!
//! | plugin | what it makes | where it is |
//! |---|---|---|
//! | bridge | bridge, veth pair, addresses, routes, masquerade | host and container |
//! | ptp | veth pair, addresses, routes, masquerade | host and container |
//! | macvlan, ipvlan, vlan, dummy, tap | one link (`container_link.rs`), addresses, routes | container |
//! | host-device | a link of the host moved in, addresses, routes | container |
//! | loopback | `lo` up | container |
//! | host-local | leases, files shared with the reference plugin | disk |
//! | static | addresses out of the configuration | nowhere |
//! | portmap | destination NAT from ports of the host | nft table `cofferdam` |
//! | firewall | forwarding allowed where the host drops it; isolation of bridges and ports | nft tables `cofferdam`, `filter` |
//! | bandwidth | token buckets | host's end of the pair, an ifb |
//! | tuning | settings under /proc/sys/net, mtu, hardware address … | container |
//! | sbr | rules and tables by source address | container |
//! | vrf | a routing domain | container |
//!
//! Read first: `ruleset.rs` (the one nft table all share), then `bridge.rs`. Everything that a plugin leaves on the host
//! carries the mark of its attachment, `network/container/interface`, and is deleted only by that mark. The bridge and the
//! empty table stay when the last attachment goes; [`remove_host_parts`] takes them away. Needs CAP_NET_ADMIN, and
//! CAP_SYS_ADMIN to enter namespaces.
//!
//! ```no_run
//! use cofferdam_cni::{Attachment, Caller, ContainerId, IfName, NetnsFate, Networks, Options};
//! use cofferdam_cni_plugins::{BUILTINS, DefaultNetwork, bring_loopback_up};
//! use cofferdam_linux::namespace::{create_pinned_netns, open_netns, remove_pinned_netns};
//! use std::os::fd::AsFd;
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut networks = Networks::load(&["/etc/cni/net.d"]);
//! networks.add_default(DefaultNetwork::probe("/run/cofferdam/cni/leases")?.list()?);
//! let mut options = Options::new("/run/cofferdam/cni");
//! options.plugin_path = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()];
//! options.builtins = BUILTINS;
//! let caller = Caller::open(options)?;
//!
//! let path = Path::new("/run/cofferdam/netns/task-1");
//! create_pinned_netns(path)?;
//! bring_loopback_up(open_netns(path)?.as_fd())?;
//! let (id, eth0) = (ContainerId::parse("task-1")?, IfName::parse("eth0")?);
//! let bridge = networks.get("bridge").ok_or("no network of this name")?;
//! let result = caller.attach(bridge, &Attachment::new(id.clone(), path, eth0))?;
//! println!("{:?}", result.ips);
//!
//! caller.detach_all(&id, NetnsFate::Ends)?;
//! remove_pinned_netns(path)?;
//! # Ok(())
//! # }
//! ```

mod announcement;
mod bandwidth;
mod bridge;
mod container;
mod container_link;
mod default_network;
mod dummy;
mod firewall;
mod foreign;
mod gateway;
mod host_device;
mod host_local;
mod ipam;
mod ipvlan;
mod links;
mod loopback;
mod macvlan;
mod portmap;
mod ptp;
mod ruleset;
mod sbr;
mod static_addresses;
mod sysctl;
mod tap;
mod together;
mod tuning;
mod veth;
mod vlan;
mod vrf;

use cofferdam_cni::{Object, Plugin, PluginError, Request};

pub use announcement::finish_announcements;
pub use default_network::{DefaultNetwork, remove_host_parts};
pub use loopback::bring_loopback_up;

/// Every built-in plugin, for [`cofferdam_cni::Options::builtins`].
pub static BUILTINS: &[&dyn Plugin] = &[
    &bandwidth::Bandwidth,
    &bridge::Bridge,
    &dummy::DUMMY,
    &firewall::Firewall,
    &host_device::HostDevice,
    &host_local::HostLocal,
    &ipvlan::IPVLAN,
    &loopback::Loopback,
    &macvlan::MACVLAN,
    &portmap::Portmap,
    &ptp::Ptp,
    &sbr::Sbr,
    &static_addresses::Static,
    &tap::TAP,
    &tuning::Tuning,
    &vlan::VLAN,
    &vrf::Vrf,
];

/// A value of `args.cni`, where the caller puts what it wants of one attachment besides capabilities.
fn arguments<T: serde::de::DeserializeOwned>(
    request: &Request<'_>,
    key: &str,
) -> Result<Option<T>, PluginError> {
    let args: Object = request.get("args")?.unwrap_or_default();
    let decode = |error| PluginError::new(cofferdam_cni::Code::DECODE, format!("args.cni.{key}: {error}"));
    let cni: Object = args.get("cni").map_err(decode)?.unwrap_or_default();
    let value = cni.raw(key).map(|raw| serde_json::from_str(raw.get())).transpose();
    Ok(value.map_err(decode)?.flatten())
}

/// The value of a key that names one of a few; absent or empty means the first.
fn one_of<T: Copy>(request: &Request<'_>, key: &str, known: &[(&str, T)]) -> Result<T, PluginError> {
    let said: Option<String> = request.get(key)?;
    let said = said.filter(|text| !text.is_empty()).unwrap_or_else(|| known[0].0.to_owned());
    let found = known.iter().find(|(name, _)| *name == said).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        PluginError::config(format!("{key} {said:?} is none of {}", names.join(", ")))
    })
}

/// Refuses a backend that cannot be meant by what is done here: rules are always nft's, whichever program would have made
/// them, so both names of programs that make rules will do.
fn refuse_backend(config: &Object, key: &str) -> Result<(), String> {
    let said: Option<String> = config.get(key).map_err(|error| format!("{key}: {error}"))?;
    match said.as_deref() {
        None | Some("" | "nftables" | "iptables") => Ok(()),
        Some(other) => Err(format!("the built-in plugin has no {key} {other:?}, only its own nft table")),
    }
}

/// Refuses a configuration that sets one of these keys to anything but nothing.
fn refuse_keys(config: &Object, keys: &[&str]) -> Result<(), String> {
    for key in keys {
        let raw = config.raw(key).map_or("null", |raw| raw.get());
        if !matches!(raw, "null" | "false" | "0" | "\"\"" | "[]" | "{}") {
            return Err(format!("the built-in plugin does not know {key:?}"));
        }
    }
    Ok(())
}
