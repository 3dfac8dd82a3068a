//! Reading and printing results in every version.
//!
//! ```text
//! 0.1.0 0.2.0   ip4 {ip, gateway, routes}, ip6 {…}, dns            one address a family
//! 0.3.0 – 0.4.0 interfaces, ips [{version, address, …}], routes, dns (always printed)
//! 1.0.0         as above without ips[].version, dns only if not empty
//! 1.1.0         interfaces[].{mtu,socketPath,pciID}, routes[].{mtu,advmss,priority,table,scope}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{AddResult, Dns, IpConfig, Prefix, ResultError, Route};
use crate::object::Object;
use crate::version::Version;

/// The result of versions below 0.3.0.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Legacy {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    dns: Dns,
}

#[derive(Debug, Serialize, Deserialize)]
struct LegacyIp {
    ip: Prefix,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<std::net::IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl AddResult {
    /// Reads a result. Without a version of its own it is taken to be in `assumed`.
    ///
    /// Empty text and `null` are an empty result; fields nobody knows are passed over.
    pub fn parse(text: &str, assumed: Version) -> Result<Self, ResultError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // Through our own object: of a key that occurs twice the last counts, and a plugin's own numbers may be of any size.
        let Some(object) = serde_json::from_str::<Option<Object>>(text)? else { return Ok(Self::default()) };
        let version = match object.get::<String>("cniVersion")?.as_deref() {
            None | Some("") => assumed,
            Some(text) => Version::parse(text)
                .filter(|version| version.is_supported())
                .ok_or_else(|| ResultError::Version(text.into()))?,
        };
        let text = object.to_text();
        if version < Version::V0_3_0 {
            return Ok(serde_json::from_str::<Legacy>(&text)?.into());
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Prints the result in a version.
    pub fn to_text(&self, version: Version) -> Result<String, ResultError> {
        let mut out = json!({ "cniVersion": version.to_string() });
        let body = if version < Version::V0_3_0 {
            serde_json::to_value(self.to_legacy(version)?)?
        } else {
            let mut body = serde_json::to_value(self)?;
            self.age(&mut body, version);
            body
        };
        if let (Value::Object(out), Value::Object(body)) = (&mut out, body) {
            out.extend(body);
        }
        Ok(out.to_string())
    }

    /// Takes away what the version does not know and adds what it wants.
    fn age(&self, body: &mut Value, version: Version) {
        if version < Version::V1_1_0 {
            strip(&mut body["interfaces"], &["mtu", "socketPath", "pciID"]);
            strip(&mut body["routes"], &["mtu", "advmss", "priority", "table", "scope"]);
        }
        if version < Version::V1_0_0 {
            for (at, ip) in self.ips.iter().enumerate() {
                body["ips"][at]["version"] = if ip.address.address.is_ipv4() { "4" } else { "6" }.into();
            }
            if self.dns.is_empty() {
                body["dns"] = json!({});
            }
        }
        if let Value::Object(body) = body {
            body.retain(|_, value| !value.is_null());
        }
    }

    fn to_legacy(&self, version: Version) -> Result<Legacy, ResultError> {
        let family = |v4: bool| {
            let ip = self.ips.iter().find(|ip| ip.address.address.is_ipv4() == v4)?;
            let routes = self.routes.iter().filter(|route| route.dst.address.is_ipv4() == v4);
            let routes = routes.map(|route| Route::new(route.dst, route.gw)).collect();
            Some(LegacyIp { ip: ip.address, gateway: ip.gateway, routes })
        };
        let legacy = Legacy { ip4: family(true), ip6: family(false), dns: self.dns.clone() };
        if legacy.ip4.is_none() && legacy.ip6.is_none() {
            return Err(ResultError::NoAddress(version));
        }
        Ok(legacy)
    }
}

fn strip(list: &mut Value, keys: &[&str]) {
    for item in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        item.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

impl From<Legacy> for AddResult {
    fn from(legacy: Legacy) -> Self {
        let mut result = Self { dns: legacy.dns, ..Self::default() };
        for ip in [legacy.ip4, legacy.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: ip.ip, gateway: ip.gateway });
            result.routes.extend(ip.routes);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST: &str = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1400,"sandbox":"/n"}],"ips":[{"interface":0,"address":"10.1.2.3/16","gateway":"10.1.0.1"},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0","mtu":1300},{"dst":"::/0","gw":"fd00::1"}]}"#;

    fn printed(version: &str) -> String {
        let result = AddResult::parse(NEWEST, Version::NEWEST).unwrap();
        result.to_text(Version::parse(version).unwrap()).unwrap()
    }

    #[test]
    fn the_newest_version_reads_back_as_it_was() {
        assert_eq!(printed("1.1.0"), NEWEST);
    }

    #[test]
    fn older_versions_lose_and_gain_what_they_must() {
        assert_eq!(
            printed("1.0.0"),
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.1.2.3/16","gateway":"10.1.0.1"},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}]}"#
        );
        let old = printed("0.4.0");
        assert!(old.contains(r#""version":"4""#) && old.contains(r#""version":"6""#), "{old}");
        assert!(old.contains(r#""dns":{}"#), "{old}");
        assert_eq!(
            printed("0.2.0"),
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/16","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}"#
        );
    }

    #[test]
    fn every_version_can_be_read_back() {
        for version in Version::SUPPORTED {
            let result = AddResult::parse(&printed(&version.to_string()), Version::NEWEST).unwrap();
            assert_eq!(result.ips.len(), 2, "{version}");
            assert_eq!(result.routes.len(), 2, "{version}");
        }
    }

    #[test]
    fn what_others_print_is_tolerated() {
        let version = Version::V1_0_0;
        for empty in ["", "null", "{}", r#"{"ips":null,"interfaces":null,"dns":null}"#] {
            assert_eq!(AddResult::parse(empty, version).unwrap(), AddResult::default(), "{empty}");
        }
        let odd = r#"{"cniVersion":"","ips":[{"interface":-1,"address":"10.0.0.2/24","gateway":""}],"x":1}"#;
        let result = AddResult::parse(odd, version).unwrap();
        assert_eq!(result.ips[0].interface, None);
        assert_eq!(result.container_ips().count(), 1);
        assert!(matches!(
            AddResult::parse(r#"{"cniVersion":"7.0.0"}"#, version),
            Err(ResultError::Version(_))
        ));
        assert!(matches!(AddResult::default().to_text(Version::OLDEST), Err(ResultError::NoAddress(_))));
    }
}
