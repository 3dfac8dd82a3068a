//! host-local: addresses from ranges, leases as files that the reference plugin reads and writes too.
//!
//! ```text
//! dataDir/<network>/lock                  flock(2), exclusive
//!                  /10.88.0.5             "<container>\r\n<interface>"
//!                  /last_reserved_ip.0    where the search of range set 0 went on from
//! dataDir/.owners/<network>/<container>:<interface>   our own: the addresses, so that nobody reads every lease
//! ```

mod range;
mod store;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cofferdam_cni::{
    AddResult, Code, Dns, IpConfig, IpRange, Object, Plugin, PluginError, Prefix, Request, Route,
};
use serde::Deserialize;

use range::RangeSet;
use store::Store;

pub(crate) struct HostLocal;

/// Where the reference plugin keeps its leases.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    ranges: Vec<Vec<IpRange>>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    subnet: Option<Prefix>,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

impl Config {
    fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        request.get("ipam")?.ok_or_else(|| PluginError::config("the configuration has no \"ipam\""))
    }

    /// The range sets: the single range of old configurations, those of the caller, those of the configuration.
    fn range_sets(&self, request: &Request<'_>) -> Result<Vec<RangeSet>, PluginError> {
        let single = self.subnet.map(|subnet| {
            vec![IpRange {
                subnet,
                range_start: self.range_start,
                range_end: self.range_end,
                gateway: self.gateway,
            }]
        });
        let given: Vec<Vec<IpRange>> = request.capability("ipRanges")?.unwrap_or_default();
        let all = single.into_iter().chain(given).chain(self.ranges.iter().cloned());
        let sets: Result<Vec<RangeSet>, String> = all.map(|ranges| RangeSet::new(&ranges)).collect();
        let sets = sets.map_err(|why| PluginError::config(format!("host-local: {why}")))?;
        if sets.is_empty() {
            return Err(PluginError::config("host-local: no range to allocate from"));
        }
        Ok(sets)
    }

    fn data(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new(DEFAULT_DATA_DIR))
    }

    /// The network's leases, if there ever were any.
    fn store(&self, request: &Request<'_>) -> Result<Option<Store>, PluginError> {
        Store::open_existing(self.data(), request.network.as_str())
    }
}

/// Addresses asked for: by the capability, by `args.cni.ips`, by `IP=` of `CNI_ARGS`.
fn wanted_addresses(request: &Request<'_>) -> Result<Vec<IpAddr>, PluginError> {
    #[derive(Deserialize, Default)]
    struct Args {
        #[serde(default)]
        cni: CniArgs,
    }
    #[derive(Deserialize, Default)]
    struct CniArgs {
        #[serde(default)]
        ips: Vec<String>,
    }
    let mut texts: Vec<String> = request.capability("ips")?.unwrap_or_default();
    texts.extend(request.get::<Args>("args")?.unwrap_or_default().cni.ips);
    texts.extend(request.argument("IP").map(str::to_owned));
    let parse = |text: &String| {
        let address = text.split('/').next().unwrap_or(text);
        address.parse().map_err(|_| PluginError::config(format!("{text:?} is no address")))
    };
    texts.iter().map(parse).collect()
}

impl Plugin for HostLocal {
    fn kind(&self) -> &'static str {
        "host-local"
    }

    fn supports(&self, _config: &Object) -> Result<(), String> {
        Ok(())
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let config = Config::of(request)?;
        let sets = config.range_sets(request)?;
        let mut wanted = wanted_addresses(request)?;
        let mut result = AddResult { routes: config.routes.clone(), ..AddResult::default() };
        if let Some(path) = &config.resolv_conf {
            result.dns = read_resolv_conf(path)?;
        }
        let store = Store::open(config.data(), request.network.as_str())?;
        store.refuse_second(request)?;
        let allocated = sets.iter().enumerate().try_for_each(|(at, set)| {
            let asked =
                wanted.iter().position(|address| set.contains(*address)).map(|at| wanted.swap_remove(at));
            result.ips.push(allocate(&store, set, at, asked, request)?);
            Ok(())
        });
        let allocated = allocated.and_then(|()| match wanted.first() {
            Some(address) => {
                Err(PluginError::config(format!("host-local: {address} is in none of the ranges")))
            }
            None => Ok(()),
        });
        if allocated.is_err() {
            store.release(request, std::iter::empty())?;
        }
        allocated.map(|()| result)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let Some(store) = Config::of(request)?.store(request)? else { return Ok(()) };
        let known = request.previous.iter().flat_map(|result| &result.ips).map(|ip| ip.address.address);
        store.release(request, known)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("host-local: {what}")));
        let config = Config::of(request)?;
        let sets = config.range_sets(request)?;
        let Some(store) = config.store(request)? else { return wrong("there is no lease".into()) };
        let given = request.previous.iter().flat_map(|result| &result.ips).map(|ip| ip.address.address);
        // A chain may have further addresses that somebody else gave.
        let mut own = given.filter(|address| sets.iter().any(|set| set.contains(*address))).peekable();
        if own.peek().is_none() && store.leases_of(request)?.is_empty() {
            return wrong("there is no lease".into());
        }
        match own.find(|address| !store.is_leased_to(request, *address)) {
            Some(address) => wrong(format!("{address} is not leased to this attachment")),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let valid = request.valid_owners()?;
        let Some(store) = Config::of(request)?.store(request)? else { return Ok(()) };
        let mark = request.network_mark();
        store.release_where(|lease| {
            let owner = format!("{mark}{}/{}", lease.container, lease.interface);
            // A lease without an interface is any of the container's.
            !valid.iter().any(|one| *one == owner || (lease.interface.is_empty() && one.starts_with(&owner)))
        })
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        let sets = config.range_sets(request)?;
        let Some(store) = config.store(request)? else { return Ok(()) };
        for (number, set) in sets.iter().enumerate() {
            let last = store.last_reserved(number);
            if store.first_free(|| set.candidates(last))?.is_none() {
                return Err(PluginError::new(Code::NOT_AVAILABLE, exhausted(set)));
            }
        }
        Ok(())
    }
}

fn exhausted(set: &RangeSet) -> String {
    format!("host-local: no address is free in {set}")
}

fn allocate(
    store: &Store,
    set: &RangeSet,
    number: usize,
    asked: Option<IpAddr>,
    request: &Request<'_>,
) -> Result<IpConfig, PluginError> {
    let config = |(address, range): (IpAddr, &range::Range)| IpConfig {
        interface: None,
        address: Prefix { address, length: range.subnet.length },
        gateway: Some(range.gateway),
    };
    if let Some(address) = asked {
        let range =
            set.range_of(address).ok_or_else(|| PluginError::config(format!("{address} is in no range")))?;
        if range.gateway == address {
            return Err(PluginError::config(format!(
                "host-local: {address} is the gateway of {}",
                range.subnet
            )));
        }
        if !store.reserve(address, request)? {
            let message = format!("host-local: {address} is already leased{}", store.holder_text(address));
            return Err(PluginError::new(Code::CONFLICT, message));
        }
        return Ok(config((address, range)));
    }
    let last = store.last_reserved(number);
    let free = store.first_free(|| set.candidates(last))?;
    let free = free.ok_or_else(|| PluginError::new(Code::EXHAUSTED, exhausted(set)))?;
    store.reserve(free.0, request)?;
    store.note_last_reserved(number, free.0)?;
    Ok(config(free))
}

fn read_resolv_conf(path: &Path) -> Result<Dns, PluginError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| PluginError::new(Code::IO, format!("cannot read {}: {error}", path.display())))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
