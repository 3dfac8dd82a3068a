//! Port mappings: `-p [IP:]HOST:CONTAINER[/PROTOCOL]`.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Most mappings that one range may become.
const RANGE_LIMIT: u16 = 1024;

/// Transport protocol of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to a port of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Address of the host; `None` means all of them.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the task.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Reads `8080:80`, `127.0.0.1:8080:80/udp`, `[::1]:8080:80`, `8000-8009:9000-9009`, and `80`, which maps a
    /// port to the same port.
    pub fn parse(text: &str) -> Result<Vec<PortMapping>, Refusal> {
        let refuse = |problem: &str| Refusal::new("port mapping", text, problem);
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(refuse("the protocol is none of tcp, udp, sctp")),
        };
        let (ports, container) = ports.rsplit_once(':').unwrap_or((ports, ports));
        let (host_ip, host) = match ports.rsplit_once(':') {
            Some((ip, host)) => {
                (Some(parse_ip(ip).ok_or_else(|| refuse("the address is no IP address"))?), host)
            }
            None => (None, ports),
        };
        let range =
            |text: &str| parse_range(text).ok_or_else(|| refuse("a port is a number from 1 to 65535"));
        let (host, container) = (range(host)?, range(container)?);
        if host.1 - host.0 != container.1 - container.0 || host.1 - host.0 >= RANGE_LIMIT {
            return Err(refuse("the two ranges must be of the same length, at most 1024 ports"));
        }
        let pairs = (host.0..=host.1).zip(container.0..=container.1);
        Ok(pairs
            .map(|(host_port, container_port)| PortMapping { host_ip, host_port, container_port, protocol })
            .collect())
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

impl fmt::Display for PortMapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(out, "[{ip}]")?,
            Some(ip) => write!(out, "{ip}")?,
            None => write!(out, "0.0.0.0")?,
        }
        write!(out, ":{}->{}/{}", self.host_port, self.container_port, self.protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_docker_reads_them() {
        let one = |text| PortMapping::parse(text).unwrap()[0].to_string();
        assert_eq!(one("8080:80"), "0.0.0.0:8080->80/tcp");
        assert_eq!(one("127.0.0.1:53:5353/udp"), "127.0.0.1:53->5353/udp");
        assert_eq!(one("[::1]:8080:80"), "[::1]:8080->80/tcp");
        assert_eq!(one("80"), "0.0.0.0:80->80/tcp");
        assert_eq!(PortMapping::parse("8000-8009:9000-9009").unwrap().len(), 10);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "0:80",
            "80:0",
            "65536:1",
            "a:80",
            "1:2:3:4",
            "80/http",
            "1-3:1-2",
            "3-1:3-1",
            "1-2000:1-2000",
        ] {
            assert!(PortMapping::parse(text).is_err(), "{text:?}");
        }
    }
}
