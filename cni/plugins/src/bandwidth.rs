//! bandwidth: limits of throughput, one token bucket a direction.
//!
//! ```text
//! to the container     host's end: tbf
//! from the container   host's end: ingress ─▶ mirred ─▶ ifb: tbf
//! ```
//!
//! The ifb is a link of the host that is named after the attachment and carries its mark. The rest goes with the host's end.

use std::os::fd::AsFd;

use cofferdam_cni::{AddResult, Bandwidth as Limits, Code, Object, Plugin, PluginError, Request};
use cofferdam_linux::netlink::{Link, LinkKind, NewLink, Socket, TokenBucket};
use rustix::io::Errno;

use crate::{foreign, links, refuse_keys};

pub(crate) struct Bandwidth;

/// How long a packet may wait; what would wait longer is dropped.
const LATENCY_MS: u64 = 25;

impl Plugin for Bandwidth {
    fn kind(&self) -> &'static str {
        "bandwidth"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        refuse_keys(config, &["shapedSubnets", "unshapedSubnets"])
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let previous = request.previous.clone().ok_or_else(|| {
            PluginError::config("bandwidth must come after a plugin that makes an interface")
        })?;
        let limits = limits(request)?;
        if limits == Limits::default() {
            return Ok(previous);
        }
        let mut host = Socket::route()?;
        let end = host_end(&mut host, request)?;
        // Undoing a second ADD would take the first one's away.
        if host.find_link(&ifb_name(request))?.is_some() {
            let message = format!("bandwidth: {} is limited already", request.if_name);
            return Err(PluginError::new(Code::CONFLICT, message));
        }
        limit(&mut host, request, &end, limits).inspect_err(|_| {
            // The first failure is the one worth telling; the caller's DEL tries again.
            let _ = links::delete(&ifb_name(request));
        })?;
        Ok(previous)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        links::delete(&ifb_name(request))?;
        links::delete(&foreign::ifb_name(request))
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let limits = limits(request)?;
        if limits == Limits::default() {
            return Ok(());
        }
        let mut host = Socket::route()?;
        let end = host_end(&mut host, request)?;
        if let Some(bucket) = bucket(limits.ingress_rate, limits.ingress_burst) {
            check_bucket(&mut host, &end, bucket)?;
        }
        let Some(bucket) = bucket(limits.egress_rate, limits.egress_burst) else { return Ok(()) };
        let name = ifb_name(request);
        let wrong = |what: String| PluginError::new(Code::CHECK_FAILED, format!("bandwidth: {what}"));
        let ifb = host.find_link(&name)?.filter(|ifb| ifb.up);
        let ifb = ifb.ok_or_else(|| wrong(format!("{name} is gone or down")))?;
        check_bucket(&mut host, &ifb, bucket)?;
        if host.redirects_ingress(end.index, ifb.index)? {
            return Ok(());
        }
        Err(wrong(format!("what {} receives does not go through {name}", end.name)))
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        links::collect(request)
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(Socket::route().map(drop)?)
    }
}

/// The limits of the configuration, or those that the caller asks for.
fn limits(request: &Request<'_>) -> Result<Limits, PluginError> {
    let configured: Limits = request.settings()?;
    let limits = request.capability("bandwidth")?.unwrap_or(configured);
    let pairs = [
        ("ingress", limits.ingress_rate, limits.ingress_burst),
        ("egress", limits.egress_rate, limits.egress_burst),
    ];
    for (direction, rate, burst) in pairs {
        if (rate == 0) != (burst == 0) {
            return Err(PluginError::config(format!(
                "bandwidth: {direction}Rate and {direction}Burst only make sense together"
            )));
        }
    }
    Ok(limits)
}

fn bucket(rate_bits: u64, burst_bits: u64) -> Option<TokenBucket> {
    let rate_bytes = (rate_bits / 8).max(1);
    let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let limit = (u128::from(rate_bytes) * u128::from(LATENCY_MS) / 1000) + u128::from(burst_bits / 8);
    (rate_bits > 0).then(|| TokenBucket {
        rate_bytes,
        burst_bytes: narrow((burst_bits / 8).max(1)),
        limit_bytes: u32::try_from(limit).unwrap_or(u32::MAX),
    })
}

fn ifb_name(request: &Request<'_>) -> String {
    links::name("ifb", &request.owner())
}

/// The host's end of the pair whose other end is the container's interface.
fn host_end(host: &mut Socket, request: &Request<'_>) -> Result<Link, PluginError> {
    let netns = request.open_netns()?;
    let name = request.if_name.as_str();
    let inner = Socket::route_in(netns.as_fd())?.link(name)?;
    let index = inner.peer.filter(|_| inner.kind.as_deref() == Some("veth"));
    let index = index.ok_or_else(|| {
        PluginError::config(format!(
            "bandwidth: {name} is no end of a veth pair, so there is nothing to limit"
        ))
    })?;
    Ok(host.link_by_index(index)?)
}

fn limit(host: &mut Socket, request: &Request<'_>, end: &Link, limits: Limits) -> Result<(), PluginError> {
    if let Some(bucket) = bucket(limits.ingress_rate, limits.ingress_burst) {
        host.add_token_bucket(end.index, bucket)?;
    }
    let Some(bucket) = bucket(limits.egress_rate, limits.egress_burst) else { return Ok(()) };
    let (name, owner) = (ifb_name(request), request.owner());
    let new = NewLink { mtu: Some(end.mtu), alias: Some(&owner), ..NewLink::new(&name, LinkKind::Ifb) };
    match host.add_link(&new) {
        // What a crash left.
        Err(error) if error.errno() == Errno::EXIST => {
            links::delete(&name)?;
            host.add_link(&new)?;
        }
        made => made?,
    }
    let ifb = host.link(&name)?;
    host.add_token_bucket(ifb.index, bucket)?;
    Ok(host.redirect_ingress(end.index, ifb.index)?)
}

fn check_bucket(host: &mut Socket, link: &Link, bucket: TokenBucket) -> Result<(), PluginError> {
    let rate = host.token_bucket_rate(link.index)?;
    if rate == Some(bucket.rate_bytes) {
        return Ok(());
    }
    let found =
        rate.map_or("is not limited".to_owned(), |rate| format!("is limited to {rate} bytes a second"));
    let message = format!("bandwidth: {} {found} instead of {}", link.name, bucket.rate_bytes);
    Err(PluginError::new(Code::CHECK_FAILED, message))
}
