//! Built-in CNI plugins, called in-process: no `ip`, `nft` or `iptables` is ever started.
//!
//! | plugin | what it makes | where it is |
//! |---|---|---|
//! | loopback | `lo` up | container |
//! | bridge | bridge, veth pair, addresses, routes, masquerade | host and container |
//! | host-local | leases, files shared with the reference plugin | disk |
//! | portmap | destination NAT from ports of the host | nft table `cofferdam` |
//! | firewall | forwarding allowed where the host drops it | nft table `cofferdam`, `filter` |
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

mod bridge;
mod default_network;
mod firewall;
mod host_local;
mod loopback;
mod portmap;
mod ruleset;
mod sysctl;

use cofferdam_cni::Plugin;

pub use default_network::{DefaultNetwork, remove_host_parts};
pub use loopback::bring_loopback_up;

/// Every built-in plugin, for [`cofferdam_cni::Options::builtins`].
pub static BUILTINS: &[&dyn Plugin] =
    &[&bridge::Bridge, &firewall::Firewall, &host_local::HostLocal, &loopback::Loopback, &portmap::Portmap];

/// Refuses a configuration that sets one of these keys to anything but nothing.
fn refuse_keys(config: &cofferdam_cni::Object, keys: &[&str]) -> Result<(), String> {
    for key in keys {
        let raw = config.raw(key).map_or("null", |raw| raw.get());
        if !matches!(raw, "null" | "false" | "0" | "\"\"" | "[]" | "{}") {
            return Err(format!("the built-in plugin does not know {key:?}"));
        }
    }
    Ok(())
}
