//! Networks of a task: `--network NAME[:OPTION=VALUE,...]`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Bits a bucket holds at least: a few full frames, or nothing would ever pass.
const LEAST_BURST_BITS: u64 = 64 * 1024 * 8;
/// The reference plugin counts bursts in 32 bits.
const MOST_BURST_BITS: u64 = u32::MAX as u64;

/// Limits of throughput, in bits a second; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Towards the task.
    pub ingress: u64,
    /// From the task.
    pub egress: u64,
}

impl Rates {
    /// The burst that goes with a rate: a tenth of a second of it, within what plugins take.
    pub fn burst(rate: u64) -> u64 {
        if rate == 0 { 0 } else { (rate / 10).clamp(LEAST_BURST_BITS, MOST_BURST_BITS) }
    }
}

/// A network that a task is to be connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// Addresses that are asked for, at most one a family.
    pub ips: Vec<IpAddr>,
    /// Hardware address that is asked for.
    pub mac: Option<String>,
    /// Further names of the task on this network.
    pub aliases: Vec<String>,
    /// Name of the interface in the task; `eth0`, `eth1` … if none.
    pub if_name: Option<String>,
    /// How much may pass.
    pub rates: Rates,
}

/// As it may be on disk: before there were options, a network was its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Name(String),
    Whole {
        name: String,
        #[serde(default)]
        ips: Vec<IpAddr>,
        #[serde(default)]
        mac: Option<String>,
        #[serde(default)]
        aliases: Vec<String>,
        #[serde(default)]
        if_name: Option<String>,
        #[serde(default)]
        rates: Rates,
    },
}

impl From<Written> for NetworkRequest {
    fn from(written: Written) -> NetworkRequest {
        match written {
            Written::Name(name) => NetworkRequest::named(name),
            Written::Whole { name, ips, mac, aliases, if_name, rates } => {
                NetworkRequest { name, ips, mac, aliases, if_name, rates }
            }
        }
    }
}

impl NetworkRequest {
    /// A network of which nothing particular is asked.
    pub fn named(name: impl Into<String>) -> NetworkRequest {
        NetworkRequest { name: name.into(), ..NetworkRequest::default() }
    }

    /// Reads `bridge` and `blue:ip=10.1.0.5,mac=02:00:00:00:00:05,alias=web,alias=www,interface_name=blue0` and
    /// `slow:ingress_rate=10m,egress_rate=512k` (bits a second).
    pub fn parse(text: &str) -> Result<NetworkRequest, Refusal> {
        let refuse = |problem: String| Refusal::new("network", text, problem);
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(refuse("it has no name".into()));
        }
        let mut request = NetworkRequest::named(name);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            request.set(key, value).map_err(refuse)?;
        }
        Ok(request)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let address = || value.parse::<IpAddr>().map_err(|_| format!("{value:?} is no IP address"));
        match key {
            "ip" | "ip6" => self.ips.push(address()?),
            "mac" => self.mac = Some(mac(value)?),
            "alias" => self.aliases.push(host_name(value)?),
            "interface_name" => self.if_name = Some(value.to_owned()),
            "ingress_rate" => self.rates.ingress = rate(value)?,
            "egress_rate" => self.rates.egress = rate(value)?,
            _ => {
                return Err(format!(
                    "there is no option {key:?}; there are ip, ip6, mac, alias, interface_name, ingress_rate, egress_rate"
                ));
            }
        }
        Ok(())
    }
}

/// Checks a hardware address; returns it in lower case.
pub fn mac(text: &str) -> Result<String, String> {
    let octet = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let first = parts.first().and_then(|part| u8::from_str_radix(part, 16).ok()).unwrap_or(1);
    if parts.len() != 6 || !parts.iter().all(|part| octet(part)) {
        return Err(format!("{text:?} is no hardware address, such as 02:00:00:00:00:05"));
    }
    if first & 1 == 1 {
        return Err(format!("{text:?} is the address of a group; an interface's begins with an even octet"));
    }
    Ok(parts.join(":").to_ascii_lowercase())
}

/// A name that can stand in `/etc/hosts`.
fn host_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
        return Err(format!("{text:?} is no host name"));
    }
    Ok(text.to_owned())
}

/// Bits a second, with k, m or g for thousands of them.
fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no rate in bits a second, such as 10m");
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
        Some((at, 'g' | 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|bits| *bits >= 8).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_podman_reads_them() {
        assert_eq!(NetworkRequest::parse("bridge").unwrap(), NetworkRequest::named("bridge"));
        let text = "blue:ip=10.1.0.5,ip6=fd00::5,mac=02:00:00:00:00:AF,alias=web,alias=www,interface_name=b0,ingress_rate=10m,egress_rate=512k";
        let request = NetworkRequest::parse(text).unwrap();
        assert_eq!(request.ips, ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert_eq!(request.mac.as_deref(), Some("02:00:00:00:00:af"));
        assert_eq!(request.aliases, ["web", "www"]);
        assert_eq!(request.if_name.as_deref(), Some("b0"));
        assert_eq!(request.rates, Rates { ingress: 10_000_000, egress: 512_000 });
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ":ip=10.0.0.1",
            "n:ip=10.0.0",
            "n:mac=02:00",
            "n:mac=01:00:00:00:00:01",
            "n:alias=a b",
            "n:alias=",
            "n:speed=1",
            "n:ingress_rate=fast",
            "n:egress_rate=0",
        ] {
            assert!(NetworkRequest::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_record_from_before_there_were_options_is_read() {
        let old: Vec<NetworkRequest> = serde_json::from_str(r#"["bridge"]"#).unwrap();
        assert_eq!(old, [NetworkRequest::named("bridge")]);
        let new = serde_json::to_string(&NetworkRequest::parse("n:alias=a").unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<NetworkRequest>(&new).unwrap().aliases, ["a"]);
    }
}
