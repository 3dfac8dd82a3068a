//! The network "bridge": what a task gets that asks for no network of its own.

use std::path::PathBuf;

use cofferdam_cni::{ConfigError, NetworkList, PluginError, Prefix};
use cofferdam_linux::netlink::Socket;
use rustix::io::Errno;
use serde_json::json;

use crate::ruleset::Ruleset;

/// The network "bridge", made in code.
#[derive(Debug, Clone)]
pub struct DefaultNetwork {
    /// Name of the bridge.
    pub bridge: String,
    /// Subnets to allocate from, one a family.
    pub subnets: Vec<Prefix>,
    /// Directory of the leases. On a tmpfs they end with the boot, as the containers do.
    pub data_dir: PathBuf,
    /// Maximum transmission unit in bytes; absent means the kernel's, 1500.
    pub mtu: Option<u32>,
}

/// Subnets are tried in this order: what podman uses, its neighbours, then others seldom routed.
const CANDIDATES: [(u8, u8); 9] =
    [(10, 88), (10, 89), (10, 90), (10, 123), (10, 201), (172, 29), (172, 30), (192, 168), (10, 254)];

impl DefaultNetwork {
    /// The name tasks know it by.
    pub const NAME: &'static str = "bridge";
    /// The bridge unless said otherwise.
    pub const BRIDGE: &'static str = "cofferdam0";

    /// The default network of this host: bridge `cofferdam0`, with the subnet that the bridge has already, or else with the
    /// first of a list of subnets that the host does not route.
    pub fn probe(data_dir: impl Into<PathBuf>) -> Result<Self, PluginError> {
        let subnet = choose_subnet(&mut Socket::route()?, Self::BRIDGE)?;
        Ok(Self { bridge: Self::BRIDGE.into(), subnets: vec![subnet], data_dir: data_dir.into(), mtu: None })
    }

    /// The network as a configuration list.
    pub fn list(&self) -> Result<NetworkList, ConfigError> {
        let anywhere = |subnet: &Prefix| if subnet.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let mut bridge = json!({
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "capabilities": { "ips": true, "mac": true, "dns": true, "aliases": true },
            "ipam": {
                "type": "host-local",
                "dataDir": self.data_dir,
                "ranges": self.subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect::<Vec<_>>(),
                "routes": self.subnets.iter().map(|subnet| json!({ "dst": anywhere(subnet) })).collect::<Vec<_>>(),
            },
        });
        if let Some(mtu) = self.mtu {
            bridge["mtu"] = mtu.into();
        }
        let list = json!({
            "cniVersion": "1.1.0",
            "name": Self::NAME,
            "plugins": [
                bridge,
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "firewall" },
            ],
        });
        NetworkList::parse(&list.to_string(), None)
    }
}

fn choose_subnet(socket: &mut Socket, bridge: &str) -> Result<Prefix, PluginError> {
    let link = socket.find_link(bridge)?;
    if let Some(link) = &link {
        let addresses = socket.addresses(link.index)?;
        if let Some(own) = addresses.iter().find(|address| address.address.is_ipv4()) {
            let prefix = Prefix { address: own.address, length: own.prefix };
            return Ok(Prefix { address: prefix.network(), ..prefix });
        }
    }
    let routes = socket.routes()?;
    let taken: Vec<Prefix> = routes
        .iter()
        .filter(|route| {
            route.destination.prefix > 0 && link.as_ref().is_none_or(|link| route.link != Some(link.index))
        })
        .map(|route| Prefix { address: route.destination.address, length: route.destination.prefix })
        .collect();
    let candidates = CANDIDATES.map(|(a, b)| Prefix { address: [a, b, 0, 0].into(), length: 16 });
    let free = candidates.into_iter().find(|candidate| !taken.iter().any(|other| other.overlaps(*candidate)));
    free.ok_or_else(|| {
        PluginError::config(
            "every subnet that the default network would use is routed by this host: configure one",
        )
    })
}

/// Takes away what outlives the last attachment: the nft table, and the bridge if one is named.
///
/// Only for a host without attachments: nobody checks.
pub fn remove_host_parts(bridge: Option<&str>) -> Result<(), PluginError> {
    Ruleset::open()?.delete_table()?;
    crate::bridge::delete_sender_table()?;
    let Some(bridge) = bridge else { return Ok(()) };
    match Socket::route()?.delete_link(bridge) {
        Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
        _ => Ok(()),
    }
}
