//! host-device: a link of the host moves into the container, and comes back.
//!
//! While it is away, the link's alias says whose it is and what it was called: `network/container/interface=NAME`. The alias
//! is set before the link moves and goes with it, so a crash at any point leaves a link that DEL knows.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use cofferdam_cni::{AddResult, Code, Object, Plugin, PluginError, Request, Verb};
use cofferdam_linux::namespace::current_netns;
use cofferdam_linux::netlink::{Link, LinkChange, MacAddress, Socket};
use rustix::io::Errno;
use serde::Deserialize;

use crate::bridge::described;
use crate::container::{Detection, Inside, Neighbours, already_there, inside, sandbox};
use crate::container_link::netns_if_there;
use crate::ipam::{self, Ipam, dns_of};
use crate::refuse_keys;

pub(crate) struct HostDevice;

/// Which link; the first that is said counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci_bus_id: String,
}

impl Plugin for HostDevice {
    fn kind(&self) -> &'static str {
        "host-device"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        refuse_keys(config, &["dpdkMode", "auxDevice"])
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let netns = request.open_netns()?;
        let mut host = Socket::route()?;
        let device = find(&mut host, request)?;
        ipam::allocate(self, request, |allocated| {
            connect(request, &mut host, netns.as_fd(), &device, allocated)
        })
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        disconnect(request)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let (netns, result) = ipam::begin_check(request)?;
        let link = interface(request).check(&mut Socket::route_in(netns.as_fd())?, &result)?;
        match original_name(&link, request) {
            Some(_) => Ok(()),
            None => {
                let message = format!("host-device: {} is not the link that was moved in", link.name);
                Err(PluginError::new(Code::CHECK_FAILED, message))
            }
        }
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let unwanted = crate::ruleset::unwanted(request)?;
        let mut host = Socket::route()?;
        for link in host.links()? {
            let owner = link.alias.split_once('=').map_or("", |(owner, _)| owner);
            if unwanted(owner) {
                restore(&mut host, &link)?;
            }
        }
        Ipam::of(request)?.call(request, Verb::Gc).map(drop)
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Ipam::of(request)?.call(request, Verb::Status).map(drop)
    }
}

fn interface<'a>(request: &'a Request<'_>) -> Inside<'a> {
    Inside {
        plugin: "host-device",
        name: request.if_name.as_str(),
        neighbours: Neighbours::Network,
        detection: Detection::Kernel,
    }
}

fn find(host: &mut Socket, request: &Request<'_>) -> Result<Link, PluginError> {
    let config: Config = request.settings()?;
    let pci: Option<String> = request.capability("deviceID")?;
    let pci = pci.filter(|id| !id.is_empty()).unwrap_or(config.pci_bus_id);
    let missing = |what: &str| PluginError::config(format!("host-device: the host has no link {what}"));
    if !config.device.is_empty() {
        return host.find_link(&config.device)?.ok_or_else(|| missing(&config.device));
    }
    if !config.hwaddr.is_empty() {
        let mac = MacAddress::parse(&config.hwaddr);
        let mac =
            mac.ok_or_else(|| PluginError::config(format!("{:?} is no hardware address", config.hwaddr)))?;
        let links = host.links()?;
        return links.into_iter().find(|link| link.mac == Some(mac)).ok_or_else(|| missing(&config.hwaddr));
    }
    let folder = match (config.kernelpath.as_str(), pci.as_str()) {
        ("", "") => {
            let keys = "device, hwaddr, kernelpath, pciBusID";
            return Err(PluginError::config(format!("host-device: none of {keys} says which link")));
        }
        ("", id) if id.contains('/') => return Err(PluginError::config(format!("{id:?} is no PCI address"))),
        ("", id) => PathBuf::from("/sys/bus/pci/devices").join(id),
        (path, _) => PathBuf::from(path),
    };
    let names = std::fs::read_dir(folder.join("net")).into_iter().flatten().flatten();
    let name = names.filter_map(|entry| entry.file_name().into_string().ok()).next();
    let name = name.ok_or_else(|| missing(&format!("at {}", folder.display())))?;
    Ok(host.link(&name)?)
}

fn connect(
    request: &Request<'_>,
    host: &mut Socket,
    netns: BorrowedFd<'_>,
    device: &Link,
    mut result: AddResult,
) -> Result<AddResult, PluginError> {
    let (name, alias) = (request.if_name.as_str(), format!("{}={}", request.owner(), device.name));
    let marked = LinkChange { up: Some(false), alias: Some(&alias), ..LinkChange::default() };
    host.change_link(device.index, &marked)?;
    host.move_link(device.index, netns, name).map_err(|error| match error.errno() {
        Errno::EXIST => already_there(name),
        _ => error.into(),
    })?;
    let interface = interface(request);
    let link = inside(netns, |socket| interface.configure(socket, &result))?;
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    result.dns = dns_of(request, result.dns)?;
    result.interfaces = vec![described(request, &link, sandbox(request))];
    Ok(result)
}

/// What the link was called on the host, if it is this attachment's.
fn original_name(link: &Link, request: &Request<'_>) -> Option<String> {
    let (owner, name) = link.alias.split_once('=')?;
    (owner == request.owner()).then(|| name.to_owned())
}

fn disconnect(request: &Request<'_>) -> Result<(), PluginError> {
    let back = bring_back(request);
    let ipam = Ipam::of(request).and_then(|ipam| ipam.call(request, Verb::Del).map(drop));
    back.and(ipam)
}

fn bring_back(request: &Request<'_>) -> Result<(), PluginError> {
    let home = current_netns()
        .map_err(|errno| PluginError::new(Code::INVALID_NETNS, format!("the host's namespace: {errno}")))?;
    let mut names = vec![request.if_name.to_string()];
    if let Some(netns) = netns_if_there(request) {
        let mut socket = Socket::route_in(netns.as_fd())?;
        // By alias alone: the kernel moves a link before it renames it, so one whose new name is taken is there by the old.
        for link in socket.links()? {
            let Some(name) = original_name(&link, request) else { continue };
            socket.change_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() })?;
            socket.move_link(link.index, home.as_fd(), &name)?;
            names.push(name);
        }
    }
    let mut host = Socket::route()?;
    // One that never left, or was back when somebody was killed. One that cannot be found is not here: GC looks at all.
    names.extend(find(&mut host, request).ok().map(|link| link.name));
    for name in names {
        let link = host.find_link(&name)?;
        if let Some(link) = link.filter(|link| original_name(link, request).is_some()) {
            restore(&mut host, &link)?;
        }
    }
    Ok(())
}

/// A link that is back, or never left: nobody's any more.
fn restore(host: &mut Socket, link: &Link) -> Result<(), PluginError> {
    Ok(host.change_link(link.index, &LinkChange { alias: Some(""), ..LinkChange::default() })?)
}
