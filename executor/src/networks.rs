//! The task's network: a pinned namespace, and the networks that it is attached to.
//!
//! The namespace is made before the task and outlives a restart of it. What is attached is on record (by the network crate)
//! before the first plugin runs, under the task's id: so detaching needs nothing but that id, and can be done by whoever
//! comes after us.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cofferdam_cni::{
    AddResult, Attachment, Caller, ContainerId, Dns, IfName, Kind as NetworkKind, NetnsFate, NetworkList,
    Networks, Options, PortMapping as CniPort, Protocol as CniProtocol, merge_dns,
};
use cofferdam_cni_plugins::{BUILTINS, DefaultNetwork, bring_loopback_up};
use cofferdam_linux::namespace;
use serde::Serialize;

use crate::disk::{Disk, make_private};
use crate::error::{Error, Kind};
use crate::etc::Resolver;
use crate::id::TaskId;
use crate::release::Places;
use crate::request::port::{PortMapping, Protocol};
use crate::spec::{NetworkChoice, TaskSpec};

/// What connecting a task brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attached {
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// How it resolves names, if its networks say so.
    pub(crate) resolver: Option<Resolver>,
}

/// A network that tasks can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its plugins, in order.
    pub plugins: Vec<String>,
    /// The file it comes from; none for the built-in one.
    pub file: Option<PathBuf>,
}

/// Every network that tasks can be connected to.
pub(crate) fn list(places: &Places) -> Result<Vec<NetworkInfo>, Error> {
    let describe = |list: &NetworkList| NetworkInfo {
        name: list.name.as_str().to_owned(),
        plugins: list.plugins.iter().map(|plugin| plugin.kind.clone()).collect(),
        file: list.source.clone(),
    };
    Ok(load(places)?.iter().map(describe).collect())
}

/// Makes the task's network namespace and connects it. Undo: [`detach`].
pub(crate) fn attach(places: &Places, disk: &Disk, id: &TaskId, spec: &TaskSpec) -> Result<Attached, Error> {
    let names = match &spec.network {
        NetworkChoice::Host => return refuse_ports(spec).map(|()| Attached::default()),
        NetworkChoice::None => {
            refuse_ports(spec)?;
            &[][..]
        }
        NetworkChoice::Networks(names) => names,
    };
    // What cannot be had is said before anything is made.
    let lists = if names.is_empty() { Vec::new() } else { find(&load(places)?, names)? };
    spec.ports.iter().try_for_each(check_port)?;
    let netns = make_namespace(disk, id)?;
    let mut results = Vec::new();
    for (number, list) in lists.iter().enumerate() {
        results.push(attach_one(places, id, &netns, number, list, spec)?);
    }
    Ok(attached(&results))
}

fn refuse_ports(spec: &TaskSpec) -> Result<(), Error> {
    let Some(port) = spec.ports.first() else { return Ok(()) };
    let message = format!(
        "the port mapping {port} needs a network of the task's own; --network host and none have none"
    );
    Err(Error::Network { kind: Kind::InvalidInput, message })
}

fn find(networks: &Networks, names: &[String]) -> Result<Vec<NetworkList>, Error> {
    let mut lists = Vec::new();
    for (number, name) in names.iter().enumerate() {
        if names[..number].contains(name) {
            let message = format!("the network {name:?} is asked for twice");
            return Err(Error::Network { kind: Kind::InvalidInput, message });
        }
        lists.push(networks.get(name).cloned().ok_or_else(|| unknown(networks, name))?);
    }
    Ok(lists)
}

fn unknown(networks: &Networks, name: &str) -> Error {
    let known: Vec<_> = networks.iter().map(|list| list.name.as_str()).collect();
    let mut message = format!("there is no network {name:?}; there are none, host, {}", known.join(", "));
    for problem in networks.problems() {
        message.push_str(&format!("; {problem}"));
    }
    Error::Network { kind: Kind::NotFound, message }
}

fn load(places: &Places) -> Result<Networks, Error> {
    let mut networks = Networks::load(&places.cni_config);
    let built_in = DefaultNetwork::probe(state(places).join("leases")).map_err(|error| Error::Network {
        kind: Kind::Internal,
        message: format!("cannot choose a subnet for the network \"bridge\": {error}"),
    })?;
    let list = built_in.list().map_err(|error| Error::Worker(format!("the built-in network: {error}")))?;
    networks.add_default(list);
    Ok(networks)
}

fn state(places: &Places) -> PathBuf {
    places.state.join("network")
}

fn caller(places: &Places) -> Result<Caller, Error> {
    let directory = state(places);
    make_private(&directory)?;
    let options = Options {
        plugin_path: places.cni_plugins.clone(),
        builtins: BUILTINS,
        ..Options::new(directory.join("attachments"))
    };
    Caller::open(options).map_err(|error| failed(&error))
}

fn failed(error: &cofferdam_cni::Error) -> Error {
    let kind = match error.kind() {
        NetworkKind::NotFound => Kind::NotFound,
        NetworkKind::AlreadyExists => Kind::AlreadyExists,
        NetworkKind::InvalidInput => Kind::InvalidInput,
        NetworkKind::Unsupported => Kind::Unsupported,
        NetworkKind::Conflict => Kind::Conflict,
        NetworkKind::Denied => Kind::Denied,
        NetworkKind::Exhausted => Kind::Exhausted,
        NetworkKind::Interrupted => Kind::Interrupted,
        _ => Kind::Internal,
    };
    Error::Network { kind, message: error.to_string() }
}

/// Whether a port of the host is free. Somebody may take it a moment later; then the mapping wins, because it comes before
/// any socket, which is why we look at all.
fn check_port(port: &PortMapping) -> Result<(), Error> {
    let address = SocketAddr::new(port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host_port);
    let tried = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        Protocol::Sctp => Ok(()),
    };
    tried.map_err(|error| Error::Network {
        kind: if error.kind() == std::io::ErrorKind::AddrInUse { Kind::Conflict } else { Kind::InvalidInput },
        message: format!("cannot lead {port}: port {} of the host cannot be taken: {error}", port.host_port),
    })
}

fn make_namespace(disk: &Disk, id: &TaskId) -> Result<PathBuf, Error> {
    let path = disk.netns(id);
    let wrong = |what: &str, errno: &dyn std::fmt::Display| Error::Network {
        kind: Kind::Internal,
        message: format!("cannot {what} the network namespace {}: {errno}", path.display()),
    };
    namespace::create_pinned_netns(&path).map_err(|errno| wrong("make", &errno))?;
    let fd = namespace::open_netns(&path).map_err(|errno| wrong("open", &errno))?;
    bring_loopback_up(fd.as_fd()).map_err(|error| wrong("bring up the loopback of", &error))?;
    Ok(path)
}

fn attach_one(
    places: &Places,
    id: &TaskId,
    netns: &Path,
    number: usize,
    list: &NetworkList,
    spec: &TaskSpec,
) -> Result<AddResult, Error> {
    let if_name = IfName::parse(&format!("eth{number}")).map_err(|error| Error::Worker(error.to_string()))?;
    let mut attachment = Attachment::new(container(id)?, netns, if_name);
    // Ports lead to the first network, and the addresses asked for are in the order of the networks.
    if number == 0 {
        attachment.capabilities.port_mappings = spec.ports.iter().map(cni_port).collect();
    }
    attachment.capabilities.ips = spec.ips.get(number).iter().map(ToString::to_string).collect();
    attachment.capabilities.aliases = spec.name.iter().map(ToString::to_string).collect();
    caller(places)?.attach(list, &attachment).map_err(|error| failed(&error))
}

fn container(id: &TaskId) -> Result<ContainerId, Error> {
    ContainerId::parse(id.as_str()).map_err(|error| Error::Worker(error.to_string()))
}

fn cni_port(port: &PortMapping) -> CniPort {
    CniPort {
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: match port.protocol {
            Protocol::Tcp => CniProtocol::Tcp,
            Protocol::Udp => CniProtocol::Udp,
            Protocol::Sctp => CniProtocol::Sctp,
        },
        host_ip: port.host_ip,
    }
}

fn attached(results: &[AddResult]) -> Attached {
    let addresses = results.iter().flat_map(|result| &result.ips).map(|ip| ip.address.address).collect();
    let dns: Dns = merge_dns(results.iter().map(|result| &result.dns));
    let resolver = Resolver {
        servers: dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect(),
        search: dns.search,
        options: dns.options,
    };
    let resolver = (!resolver.servers.is_empty()).then(|| resolver.checked());
    Attached { addresses, resolver }
}

/// Disconnects the task and removes its namespace. What is not there is disconnected already.
pub(crate) fn detach(places: &Places, disk: &Disk, id: &TaskId) -> Result<(), Vec<Error>> {
    let mut failures = Vec::new();
    if state(places).join("attachments").exists() {
        // The namespace goes with the task, and takes what is inside along: nobody waits for a link to be deleted.
        let detached = caller(places).and_then(|caller| {
            caller.detach_all(&container(id)?, NetnsFate::Ends).map_err(|error| failed(&error))
        });
        failures.extend(detached.err());
    }
    let path = disk.netns(id);
    let removed = namespace::remove_pinned_netns(&path);
    failures
        .extend(removed.err().map(|errno| Error::io("remove the network namespace", &path)(errno.into())));
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}
