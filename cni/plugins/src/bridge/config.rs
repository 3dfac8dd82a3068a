//! What the configuration of a bridge says.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use cofferdam_cni::{AddResult, PluginError, Request};
use cofferdam_linux::netlink::{Address, BridgePort, PortVlans};
use serde::Deserialize;

use crate::container::{Detection, Inside, Neighbours};
use crate::gateway;
use crate::ipam::Ipam;

/// What the reference plugin calls its bridge.
const DEFAULT_BRIDGE: &str = "cni0";
/// The highest VLAN that is not reserved.
const LAST_VLAN: u16 = 4094;
/// The VLAN of untagged frames on a trunk that names none, as the reference plugin has it.
const NATIVE_VLAN: u16 = 1;
/// What a name of a link holds.
const LONGEST_NAME: usize = 15;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    /// Whether addresses of the bridge that are in the way of the gateways' go.
    pub(super) force_address: bool,
    pub(super) ip_masq: bool,
    hairpin_mode: bool,
    pub(super) promisc_mode: bool,
    port_isolation: bool,
    mtu: u32,
    vlan: Option<u16>,
    vlan_trunk: Option<Vec<Trunk>>,
    pub(super) preserve_default_vlan: bool,
    /// Whether frames with another sender than the container's are dropped.
    #[serde(rename = "macspoofchk")]
    pub(super) check_sender: bool,
    #[serde(rename = "enabledad")]
    look_for_duplicates: bool,
    pub(super) disable_container_interface: bool,
}

/// One VLAN of a trunk, or a range of them, or both.
#[derive(Debug, Deserialize)]
struct Trunk {
    #[serde(rename = "minID")]
    first: Option<u16>,
    #[serde(rename = "maxID")]
    last: Option<u16>,
    id: Option<u16>,
}

impl Trunk {
    fn ranges(&self) -> Result<Vec<RangeInclusive<u16>>, String> {
        let range = match (self.first, self.last) {
            (Some(first), Some(last)) if first > last => {
                return Err(format!("minID {first} is greater than maxID {last}"));
            }
            (Some(first), Some(last)) => Some(first..=last),
            (None, None) => None,
            (None, Some(_)) => return Err("minID is missing beside maxID".into()),
            (Some(_), None) => return Err("maxID is missing beside minID".into()),
        };
        let ranges: Vec<_> = range.into_iter().chain(self.id.map(|id| id..=id)).collect();
        let wrong = ranges.iter().flat_map(|range| [*range.start(), *range.end()]).find(|id| !is_vlan(*id));
        match wrong {
            Some(id) => Err(format!("{id} is not between 1 and {LAST_VLAN}")),
            None => Ok(ranges),
        }
    }
}

fn is_vlan(id: u16) -> bool {
    (1..=LAST_VLAN).contains(&id)
}

impl Config {
    pub(super) fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        let config: Self = request.settings()?;
        let wrong = |what: String| Err(PluginError::config(format!("bridge: {what}")));
        if config.hairpin_mode && config.promisc_mode {
            return wrong("hairpinMode and promiscMode exclude each other".into());
        }
        if config.disable_container_interface && Ipam::of(request)?.is_wanted() {
            return wrong("disableContainerInterface excludes \"ipam\": who is down needs no address".into());
        }
        if let Some(id) = config.vlan().filter(|id| !is_vlan(*id)) {
            return wrong(format!("vlan {id} is not between 0 and {LAST_VLAN}"));
        }
        if let Err(why) = config.trunk() {
            return wrong(format!("vlanTrunk: {why}"));
        }
        if config.is_gateway() && config.gateway_link().len() > LONGEST_NAME {
            return wrong(format!(
                "the gateway's link would be called {}, which is longer than {LONGEST_NAME} bytes",
                config.gateway_link()
            ));
        }
        Ok(config)
    }

    pub(super) fn bridge(&self) -> &str {
        self.bridge.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE)
    }

    pub(super) fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu > 0)
    }

    pub(super) fn port(&self) -> BridgePort {
        BridgePort { hairpin: self.hairpin_mode, isolated: self.port_isolation }
    }

    pub(super) fn vlan(&self) -> Option<u16> {
        self.vlan.filter(|id| *id != 0)
    }

    fn trunk(&self) -> Result<BTreeSet<u16>, String> {
        let trunks = self.vlan_trunk.iter().flatten();
        let ranges: Vec<Vec<RangeInclusive<u16>>> = trunks.map(Trunk::ranges).collect::<Result<_, _>>()?;
        Ok(ranges.into_iter().flatten().flatten().collect())
    }

    /// The VLANs of the container's port; nothing if there is no word of any.
    pub(super) fn vlans(&self) -> Option<PortVlans> {
        let mut ids = self.trunk().unwrap_or_default();
        let untagged = self.vlan().or((!ids.is_empty()).then_some(NATIVE_VLAN))?;
        ids.remove(&untagged);
        let mut tagged: Vec<RangeInclusive<u16>> = Vec::new();
        for id in ids {
            match tagged.last_mut().filter(|range| range.end() + 1 == id) {
                Some(range) => *range = *range.start()..=id,
                None => tagged.push(id..=id),
            }
        }
        Some(PortVlans { untagged: Some(untagged), tagged })
    }

    pub(super) fn is_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }

    pub(super) fn is_default_gateway(&self) -> bool {
        self.is_default_gateway
    }

    /// The link of the host that has the gateways' addresses: the bridge, or one in the containers' VLAN.
    pub(super) fn gateway_link(&self) -> String {
        match self.vlan() {
            Some(id) => format!("{}.{id}", self.bridge()),
            None => self.bridge().to_owned(),
        }
    }

    /// The addresses that the host has for its containers.
    pub(super) fn gateways(&self, result: &AddResult) -> Vec<Address> {
        if self.is_gateway() { gateway::gateways(result) } else { Vec::new() }
    }

    pub(super) fn interface<'a>(&self, request: &'a Request<'_>) -> Inside<'a> {
        let detection = if self.look_for_duplicates { Detection::On } else { Detection::Off };
        Inside {
            plugin: "bridge",
            name: request.if_name.as_str(),
            neighbours: Neighbours::Network,
            detection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_ports_vlans_follow_from_its_own_and_its_trunk() {
        let vlans = |text: &str| config(text).vlans().map(|vlans| (vlans.untagged, vlans.tagged));
        assert_eq!(vlans("{}"), None);
        assert_eq!(vlans(r#"{"vlan":0,"vlanTrunk":[]}"#), None);
        assert_eq!(vlans(r#"{"vlan":100}"#), Some((Some(100), vec![])));
        assert_eq!(
            vlans(r#"{"vlanTrunk":[{"minID":10,"maxID":12},{"id":13},{"id":20,"minID":1,"maxID":2}]}"#),
            Some((Some(1), vec![2..=2, 10..=13, 20..=20]))
        );
        assert_eq!(
            vlans(r#"{"vlan":11,"vlanTrunk":[{"minID":10,"maxID":12}]}"#),
            Some((Some(11), vec![10..=10, 12..=12]))
        );
    }

    #[test]
    fn a_trunk_that_makes_no_sense_is_refused() {
        for (trunk, says) in [
            (r#"{"minID":3}"#, "maxID is missing"),
            (r#"{"maxID":3}"#, "minID is missing"),
            (r#"{"minID":5,"maxID":3}"#, "greater"),
            (r#"{"minID":0,"maxID":3}"#, "between"),
            (r#"{"id":4095}"#, "between"),
        ] {
            let error = config(&format!(r#"{{"vlanTrunk":[{trunk}]}}"#)).trunk().unwrap_err();
            assert!(error.contains(says), "{trunk}: {error}");
        }
    }
}
