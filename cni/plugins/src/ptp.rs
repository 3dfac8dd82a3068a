//! ptp: a veth pair and nothing else. The host is the only neighbour, and routes to each container by its address.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_cni::{AddResult, Code, Object, Plugin, PluginError, Request, Verb};
use cofferdam_linux::netlink::{Address, Link, Route, Socket};
use cofferdam_linux::nft::Element;

use crate::bridge::{described, disconnect};
use crate::container::{Detection, Inside, Neighbours, full_length, inside, sandbox};
use crate::ipam::{self, Ipam, dns_of};
use crate::ruleset::{Entry, Ip, Kind, Ruleset, octets};
use crate::veth::Carrier;
use crate::{gateway, links, veth};

pub(crate) struct Ptp;

impl Plugin for Ptp {
    fn kind(&self) -> &'static str {
        "ptp"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        crate::refuse_backend(config, "ipMasqBackend")
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let netns = request.open_netns()?;
        if !Ipam::of(request)?.is_wanted() {
            return Err(PluginError::config(
                "ptp: there is no \"ipam\", and without an address there is no route",
            ));
        }
        ipam::allocate(self, request, |allocated| connect(request, netns.as_fd(), allocated))
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        disconnect(request)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let (netns, result) = ipam::begin_check(request)?;
        check_host(request, &result)?;
        interface(request).check(&mut Socket::route_in(netns.as_fd())?, &result).map(drop)
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let all = [Ruleset::collect(request), links::collect(request)];
        let ipam = Ipam::of(request)?.call(request, Verb::Gc).map(drop);
        all.into_iter().chain([ipam]).collect()
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Socket::route()?;
        Ipam::of(request)?.call(request, Verb::Status).map(drop)
    }
}

fn interface<'a>(request: &'a Request<'_>) -> Inside<'a> {
    Inside {
        plugin: "ptp",
        name: request.if_name.as_str(),
        neighbours: Neighbours::Gateway,
        detection: Detection::Kernel,
    }
}

fn connect(
    request: &Request<'_>,
    netns: BorrowedFd<'_>,
    allocated: AddResult,
) -> Result<AddResult, PluginError> {
    let mut host = Socket::route()?;
    let mtu: Option<u32> = request.get("mtu")?;
    let end = veth::add(&mut host, request, netns, None, mtu.filter(|mtu| *mtu > 0))?;
    let mut result = gateway::complete(allocated, true, false);
    gateway::put_on(&mut host, &end, &gateways(&result))?;
    for route in routes(&result, &end) {
        host.replace_route(&route)?;
    }
    let interface = interface(request);
    let carrier = Carrier::watch()?;
    let inner = inside(netns, |socket| {
        let carrier = Carrier::watch()?;
        let link = interface.configure(socket, &result)?;
        carrier.wait(&link)?;
        Ok(link)
    })?;
    carrier.wait(&end)?;
    Ruleset::open()?.add(&elements(request, &result)?).map_err(PluginError::from)?;

    for ip in &mut result.ips {
        ip.interface = Some(1);
    }
    result.dns = dns_of(request, result.dns)?;
    result.interfaces =
        vec![described(request, &end, String::new()), described(request, &inner, sandbox(request))];
    Ok(result)
}

fn alone(address: IpAddr) -> Address {
    Address { address, prefix: full_length(address) }
}

/// The gateways, each an address of the host's end without a network.
fn gateways(result: &AddResult) -> Vec<Address> {
    gateway::gateways(result).into_iter().map(|gateway| alone(gateway.address)).collect()
}

/// The host's routes to the container.
fn routes(result: &AddResult, end: &Link) -> Vec<Route> {
    let addresses = result.container_ips().map(|ip| ip.address.address);
    addresses.map(|address| Route::new(alone(address), None, end.index)).collect()
}

fn elements(request: &Request<'_>, result: &AddResult) -> Result<Vec<Entry>, PluginError> {
    if !request.get("ipMasq")?.unwrap_or(false) {
        return Ok(Vec::new());
    }
    let owner = request.owner();
    let addresses = result.container_ips().map(|ip| ip.address.address);
    Ok(addresses
        .map(|address| (Kind::Masquerade.set(Ip::of(address)), Element::set(&[octets(address)], &owner)))
        .collect())
}

fn check_host(request: &Request<'_>, result: &AddResult) -> Result<(), PluginError> {
    let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("ptp: {what}")));
    let mut host = Socket::route()?;
    let name = veth::host_name(request);
    let Some(end) = host.find_link(&name)?.filter(|end| end.up) else {
        return wrong(format!("the host's end {name} is gone or down"));
    };
    gateway::check_on("ptp", &mut host, &end, &gateways(result))?;
    for route in routes(result, &end) {
        // The way that the kernel would go, and not a list of all: the host has a route for each container.
        let address = route.destination.address;
        if !host.route_to(address).is_ok_and(|way| way.link == route.link) {
            return wrong(format!("the host's route to {address} is gone"));
        }
    }
    Ruleset::open()?.check("ptp", &elements(request, result)?)
}
