//! Capability arguments: what one attachment asks of the plugins that declare they can. <https://www.cni.dev/docs/conventions/>

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::object::Object;
use crate::result::{Dns, Prefix};

/// Transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Reads the name in any case.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|known| known.name().eq_ignore_ascii_case(name))
    }

    /// The name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // An empty protocol means TCP to the reference plugins.
        if name.is_empty() {
            return Ok(Self::Tcp);
        }
        Self::parse(&name).ok_or_else(|| {
            serde::de::Error::custom(format!("unknown protocol {name:?}; known are tcp, udp, sctp"))
        })
    }
}

/// A port of the host that leads to a port of the container.
///
/// Written as the convention spells it; read in that spelling and in containerd's (`HostPort` …).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host, 1 to 65535.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// Port in the container, 1 to 65535.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// TCP unless said otherwise.
    #[serde(alias = "Protocol", default)]
    pub protocol: Protocol,
    /// Only this address of the host; absent, empty or unspecified means every address (of that family).
    #[serde(
        rename = "hostIP",
        alias = "HostIP",
        alias = "hostIp",
        default,
        deserialize_with = "empty_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(out, "[{address}]:")?,
            Some(address) => write!(out, "{address}:")?,
            None => {}
        }
        write!(out, "{}/{}", self.host_port, self.protocol)
    }
}

/// Rates in bits a second, bursts in bits; 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Rate towards the container.
    pub ingress_rate: u64,
    /// Burst towards the container.
    pub ingress_burst: u64,
    /// Rate from the container.
    pub egress_rate: u64,
    /// Burst from the container.
    pub egress_burst: u64,
}

/// A range of addresses to allocate from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The network the range lies in.
    pub subnet: Prefix,
    /// First address, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// Last address, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never allocated; absent means the first address of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// What one attachment asks for. Empty fields ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// Ports of the host that lead into the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Addresses to allocate, with or without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Hardware address of the container's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Further names of the container on this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Name service of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Limits of throughput.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Ranges to allocate from, one list for each address wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// Identifier of a device plugin's device.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Path of the container's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Arguments of capabilities that are not known here, by name.
    #[serde(flatten)]
    pub others: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Asking for one of these in vain is an error: the container would run without what was promised to its user.
const MUST_BE_DECLARED: [&str; 6] = ["portMappings", "bandwidth", "ips", "mac", "ipRanges", "deviceID"];

impl Capabilities {
    /// The arguments by capability, as JSON.
    pub(crate) fn to_object(&self) -> Object {
        // A struct of strings, numbers and lists of them always serialises, and to an object.
        serde_json::to_string(self).and_then(|text| serde_json::from_str(&text)).unwrap_or_default()
    }

    /// The arguments given that `declared` does not hold for, and whether their user would miss them.
    pub(crate) fn undeclared(&self, declared: impl Fn(&str) -> bool) -> Vec<(String, bool)> {
        let given = self.to_object();
        let missing = given.keys().filter(|name| !declared(name));
        missing.map(|name| (name.to_owned(), MUST_BE_DECLARED.contains(&name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s11_both_spellings_of_a_port_mapping_are_read_and_one_is_written() {
        let ours: PortMapping =
            serde_json::from_str(r#"{"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":""}"#)
                .unwrap();
        let theirs: PortMapping =
            serde_json::from_str(r#"{"HostPort":80,"ContainerPort":8080,"Protocol":"tcp","HostIP":""}"#)
                .unwrap();
        assert_eq!(ours, theirs);
        let text = serde_json::to_string(&ours).unwrap();
        assert_eq!(text, r#"{"hostPort":80,"containerPort":8080,"protocol":"tcp"}"#);
        assert!(serde_json::from_str::<PortMapping>(r#"{"hostPort":70000,"containerPort":1}"#).is_err());
        assert!(
            serde_json::from_str::<PortMapping>(r#"{"hostPort":1,"containerPort":1,"protocol":"x; drop"}"#)
                .is_err()
        );
    }

    #[test]
    fn a_port_mapping_prints_as_a_user_would_write_it() {
        let mapping = |host_ip: Option<&str>| PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        assert_eq!(mapping(None).to_string(), "8080/tcp");
        assert_eq!(mapping(Some("127.0.0.1")).to_string(), "127.0.0.1:8080/tcp");
        assert_eq!(mapping(Some("::1")).to_string(), "[::1]:8080/tcp");
    }

    #[test]
    fn a_promise_that_no_plugin_declares_is_found() {
        let capabilities =
            Capabilities { aliases: vec!["a".into()], mac: Some("x".into()), ..Default::default() };
        let undeclared = capabilities.undeclared(|_| false);
        assert_eq!(undeclared, [("mac".to_owned(), true), ("aliases".to_owned(), false)]);
        assert_eq!(capabilities.undeclared(|name| name == "mac"), [("aliases".to_owned(), false)]);
        assert_eq!(Capabilities::default().to_object().to_text(), "{}");
    }
}
