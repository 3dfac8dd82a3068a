//! static: the addresses that the configuration or the caller names, and nothing is remembered.

use std::net::IpAddr;

use cofferdam_cni::{AddResult, Code, Dns, IpConfig, Object, Plugin, PluginError, Prefix, Request, Route};
use serde::Deserialize;

pub(crate) struct Static;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    addresses: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: Prefix,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

impl Plugin for Static {
    fn kind(&self) -> &'static str {
        "static"
    }

    fn supports(&self, _config: &Object) -> Result<(), String> {
        Ok(())
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let config: Config = request.get("ipam")?.unwrap_or_default();
        let ips = addresses(request, config.addresses)?;
        if ips.is_empty() {
            return Err(PluginError::config("static: no address is configured, and none was asked for"));
        }
        Ok(AddResult { ips, routes: config.routes, dns: config.dns, ..AddResult::default() })
    }

    fn del(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config: Config = request.get("ipam")?.unwrap_or_default();
        let given: Vec<Prefix> =
            request.previous.iter().flat_map(|result| &result.ips).map(|ip| ip.address).collect();
        match addresses(request, config.addresses)?.iter().find(|ip| !given.contains(&ip.address)) {
            Some(ip) => {
                let message = format!("static: the result lacks {}", ip.address);
                Err(PluginError::new(Code::CHECK_FAILED, message))
            }
            None => Ok(()),
        }
    }

    fn gc(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

/// The capability `ips` comes first, then `args.cni.ips`, then `IP=` and `GATEWAY=` of `CNI_ARGS`, then the configuration.
fn addresses(request: &Request<'_>, configured: Vec<Address>) -> Result<Vec<IpConfig>, PluginError> {
    let capability: Vec<String> = request.capability("ips")?.unwrap_or_default();
    let arguments = crate::arguments::<Vec<String>>(request, "ips")?.unwrap_or_default();
    let list = |key| request.argument(key).unwrap_or_default().split(',').filter(|text| !text.is_empty());
    let environment: Vec<String> = list("IP").map(str::to_owned).collect();
    let asked = [capability, arguments, environment].into_iter().find(|texts| !texts.is_empty());
    let Some(asked) = asked else {
        let config = |one: Address| IpConfig { interface: None, address: one.address, gateway: one.gateway };
        return Ok(configured.into_iter().map(config).collect());
    };
    let gateways: Vec<IpAddr> = list("GATEWAY").filter_map(|text| text.parse().ok()).collect();
    let parse = |text: String| {
        let address: Prefix =
            text.parse().map_err(|why: String| PluginError::config(format!("static: {why}")))?;
        let gateway = gateways.iter().copied().find(|gateway| address.contains(*gateway));
        let known = configured.iter().find(|one| one.address == address).and_then(|one| one.gateway);
        Ok(IpConfig { interface: None, address, gateway: gateway.or(known) })
    };
    asked.into_iter().map(parse).collect()
}
