//! The task's network: a pinned namespace, and the networks that it is attached to.
//!
//! The namespace is made before the task and outlives a restart of it. What is attached is on record (by the network crate)
//! before the first plugin runs, under the task's id: so detaching needs nothing but that id, and can be done by whoever
//! comes after us.

mod connect;
mod manage;
pub(crate) mod names;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cofferdam_cni::{
    AddResult, Attachment, Bandwidth, Caller, ContainerId, Dns, IfName, Kind as NetworkKind, NetnsFate,
    NetworkList, Networks, Object, Options, PluginConfig, PortMapping as CniPort, Protocol as CniProtocol,
    merge_dns,
};
use cofferdam_cni_plugins::{BUILTINS, DefaultNetwork, bring_loopback_up};
use cofferdam_linux::namespace;

pub(crate) use self::connect::{connect, disconnect};
pub use self::manage::{
    NetworkAttachment, NetworkDetails, NetworkDriver, NetworkInfo, NetworkSpec, Reloaded,
};
pub(crate) use self::manage::{create, inspect, list, prune, reload, remove};
use crate::containers::InterfaceStats;
use crate::disk::{Disk, TaskRecord, make_private};
use crate::error::{Error, Kind};
use crate::etc::{Address, Resolver};
use crate::id::TaskId;
use crate::release::Places;
use crate::request::network::{NetworkRequest, Rates};
use crate::request::port::{PortMapping, Protocol};
use crate::request::userns::lines;
use crate::spec::{DnsRequest, NetworkChoice, TaskSpec};
use crate::subordinate::IdMaps;

/// The capability of networks that lead ports of the host to a task.
const PORTS: &str = "portMappings";

/// What connecting a task brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attached {
    /// Its addresses.
    pub(crate) addresses: Vec<Address>,
    /// How it resolves names, as far as itself and its networks say.
    pub(crate) resolver: Resolver,
}

/// Makes the task's network namespace and connects it. Undo: [`detach`].
pub(crate) fn attach(places: &Places, disk: &Disk, record: &TaskRecord) -> Result<Attached, Error> {
    let (id, spec) = (&record.id, &record.spec);
    let requests = match &spec.network {
        NetworkChoice::Host => return refuse_ports(spec).map(|()| attached(&[], &spec.dns)),
        NetworkChoice::None => {
            refuse_ports(spec)?;
            &[][..]
        }
        NetworkChoice::Networks(requests) => requests,
    };
    // What cannot be had is said before anything is made.
    let lists = if requests.is_empty() { Vec::new() } else { find(&load(places)?, requests)? };
    let names = interface_names(requests, &[])?;
    spec.ports.iter().try_for_each(check_port)?;
    let netns = make_namespace(disk, id)?;
    let mut results = Vec::new();
    // A port leads to the first network that can lead any; one that cannot says so if there is no other.
    let leading = lists.iter().position(|list| list.declares(PORTS)).unwrap_or(0);
    for (number, ((request, list), if_name)) in requests.iter().zip(&lists).zip(names).enumerate() {
        let ports = if number == leading { spec.ports.as_slice() } else { &[] };
        let mut request = request.clone();
        request.aliases.push(record.name.to_string());
        let result = attach_one(places, id, &netns, if_name, list, &request, ports)?;
        results.push((result, request.aliases));
    }
    Ok(attached(&results, &spec.dns))
}

fn refuse_ports(spec: &TaskSpec) -> Result<(), Error> {
    let Some(port) = spec.ports.first() else { return Ok(()) };
    Err(invalid(format!(
        "the port mapping {port} needs a network of the task's own; --network host and none have none"
    )))
}

fn invalid(message: String) -> Error {
    Error::Network { kind: Kind::InvalidInput, message }
}

fn find(networks: &Networks, requests: &[NetworkRequest]) -> Result<Vec<NetworkList>, Error> {
    let mut lists = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let name = &request.name;
        if requests[..number].iter().any(|other| other.name == *name) {
            return Err(invalid(format!("the network {name:?} is asked for twice")));
        }
        let list = networks.get(name).ok_or_else(|| unknown(networks, name))?;
        lists.push(with_rates(list, request.rates)?);
    }
    Ok(lists)
}

/// The built-in network limits nobody unless somebody is to be limited; a configured one is as it was configured.
fn with_rates(list: &NetworkList, rates: Rates) -> Result<NetworkList, Error> {
    let mut list = list.clone();
    if rates != Rates::default() && list.source.is_none() && !list.declares("bandwidth") {
        let broken = |error: serde_json::Error| Error::Worker(format!("the built-in network: {error}"));
        let mut object = Object::new();
        object.set("type", "bandwidth").map_err(broken)?;
        object.set("capabilities", &serde_json::json!({ "bandwidth": true })).map_err(broken)?;
        list.plugins.push(PluginConfig { kind: "bandwidth".into(), object });
    }
    Ok(list)
}

/// The interfaces' names, in the order of the networks: those asked for, and `eth0`, `eth1` … as far as they are free.
fn interface_names(requests: &[NetworkRequest], taken: &[IfName]) -> Result<Vec<IfName>, Error> {
    let parse = |name: &str| IfName::parse(name).map_err(|error| invalid(error.to_string()));
    let asked = requests.iter().filter_map(|request| request.if_name.as_deref());
    let mut used: Vec<IfName> = taken.to_vec();
    for name in asked {
        let name = parse(name)?;
        if used.contains(&name) {
            return Err(invalid(format!("the interface name {:?} is asked for twice", name.as_str())));
        }
        used.push(name);
    }
    let mut numbers = 0..;
    let mut next = || -> Result<IfName, Error> {
        loop {
            let name = parse(&format!("eth{}", numbers.next().unwrap_or(0)))?;
            if !used.contains(&name) {
                return Ok(name);
            }
        }
    };
    requests.iter().map(|request| request.if_name.as_deref().map_or_else(&mut next, parse)).collect()
}

fn unknown(networks: &Networks, name: &str) -> Error {
    let known: Vec<_> = networks.iter().map(|list| list.name.as_str()).collect();
    let mut message = format!("there is no network {name:?}; there are none, host, {}", known.join(", "));
    for problem in networks.problems() {
        message.push_str(&format!("; {problem}"));
    }
    Error::Network { kind: Kind::NotFound, message }
}

/// Every network as it is configured now: files are read at each use, and one that is bad at this moment stands for what it
/// said before.
fn load(places: &Places) -> Result<Networks, Error> {
    make_private(&state(places))?;
    let mut networks = Networks::load_keeping(&places.cni_config, &state(places).join("configurations"));
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
    // One with a user namespace has its network namespace already.
    if !disk.userns(id).exists() {
        namespace::create_pinned_netns(&path).map_err(|errno| wrong("make", &errno))?;
    }
    let fd = namespace::open_netns(&path).map_err(|errno| wrong("open", &errno))?;
    bring_loopback_up(fd.as_fd()).map_err(|error| wrong("bring up the loopback of", &error))?;
    Ok(path)
}

/// Makes and pins the task's user namespace, and unless it has the host's network, a network namespace that belongs to it:
/// what the task's root may do to its network is decided by whose it is. Undo: [`detach`].
pub(crate) fn make_user_namespace(
    disk: &Disk,
    id: &TaskId,
    maps: &IdMaps,
    spec: &TaskSpec,
) -> Result<(), Error> {
    let (path, netns) = (disk.userns(id), disk.netns(id));
    let netns = (spec.network != NetworkChoice::Host).then_some(netns.as_path());
    let (uids, gids) = (lines(&maps.uids), lines(&maps.gids));
    namespace::create_pinned_user_namespace(&path, netns, &uids, &gids)
        .map_err(|errno| Error::io("make the user namespace", &path)(errno.into()))
}

fn attach_one(
    places: &Places,
    id: &TaskId,
    netns: &Path,
    if_name: IfName,
    list: &NetworkList,
    request: &NetworkRequest,
    ports: &[PortMapping],
) -> Result<AddResult, Error> {
    let mut attachment = Attachment::new(container(id)?, netns, if_name);
    let asked = &mut attachment.capabilities;
    asked.port_mappings = ports.iter().map(cni_port).collect();
    asked.ips = request.ips.iter().map(ToString::to_string).collect();
    asked.mac.clone_from(&request.mac);
    asked.aliases.clone_from(&request.aliases);
    asked.bandwidth = bandwidth(request.rates);
    caller(places)?.attach(list, &attachment).map_err(|error| failed(&error))
}

fn bandwidth(rates: Rates) -> Option<Bandwidth> {
    (rates != Rates::default()).then(|| Bandwidth {
        ingress_rate: rates.ingress,
        ingress_burst: Rates::burst(rates.ingress),
        egress_rate: rates.egress,
        egress_burst: Rates::burst(rates.egress),
    })
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

/// What attachments brought, with the aliases of each. What the task itself says of name service goes first.
fn attached(results: &[(AddResult, Vec<String>)], own: &DnsRequest) -> Attached {
    let mut addresses = Vec::new();
    for (result, aliases) in results {
        let aliases: Vec<String> = aliases.clone();
        addresses.extend(
            result.container_ips().map(|ip| Address { ip: ip.address.address, aliases: aliases.clone() }),
        );
    }
    let own = Dns {
        nameservers: own.servers.iter().map(ToString::to_string).collect(),
        domain: None,
        search: own.search.clone(),
        options: own.options.clone(),
    };
    // The last of an option counts, and so the task's own come once more at the end.
    let own_options = Dns { options: own.options.clone(), ..Dns::default() };
    let networks = results.iter().map(|(result, _)| &result.dns);
    let dns = merge_dns([&own].into_iter().chain(networks).chain([&own_options]));
    let resolver = Resolver {
        servers: dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect(),
        // A domain is a search list of one.
        search: if dns.search.is_empty() { dns.domain.into_iter().collect() } else { dns.search },
        options: dns.options,
    };
    Attached { addresses, resolver }
}

/// What passed the task's interfaces. A task without a namespace of its own, or whose namespace is gone, has none.
pub(crate) fn statistics(disk: &Disk, id: &TaskId) -> Vec<InterfaceStats> {
    let Ok(netns) = namespace::open_netns(&disk.netns(id)) else { return Vec::new() };
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    parse_statistics(&namespace::with_netns(netns.as_fd(), read).unwrap_or_default())
}

/// Reads `/proc/net/dev`, proc_pid_net(5): two lines of titles, then sixteen numbers an interface.
fn parse_statistics(text: &str) -> Vec<InterfaceStats> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some(InterfaceStats {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    text.lines().skip(2).filter_map(interface).filter(|interface| interface.name != "lo").collect()
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
    for (what, path) in
        [("remove the network namespace", disk.netns(id)), ("remove the user namespace", disk.userns(id))]
    {
        let removed = namespace::remove_pinned_netns(&path);
        failures.extend(removed.err().map(|errno| Error::io(what, &path)(errno.into())));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(dns: &str) -> (AddResult, Vec<String>) {
        let text = format!(r#"{{"cniVersion":"1.0.0","dns":{dns}}}"#);
        (AddResult::parse(&text, cofferdam_cni::Version::NEWEST).unwrap(), Vec::new())
    }

    #[test]
    fn r7_the_name_services_of_two_networks_become_one_file_written_in_one_step() {
        let results = [
            result(
                r#"{"nameservers":["10.0.0.1","10.0.0.2"],"domain":"d.one","search":["one.example","both.example"],"options":["ndots:1","rotate"]}"#,
            ),
            result(
                r#"{"nameservers":["10.0.0.2","10.1.0.1"],"domain":"d.two","search":["both.example","two.example"],"options":["ndots:5"]}"#,
            ),
        ];
        let own = DnsRequest {
            servers: vec!["10.1.0.1".parse().unwrap()],
            search: vec!["own.example".into()],
            options: vec!["rotate".into(), "timeout:1".into()],
        };
        let printed = |results: &[(AddResult, Vec<String>)], own: &DnsRequest| {
            let dir = tempfile::tempdir().unwrap();
            let network = NetworkChoice::bridge();
            let resolver = Resolver::choose(attached(results, own).resolver, &network);
            // Whoever has the file before has the old one whole.
            std::fs::write(dir.path().join("resolv.conf"), "old").unwrap();
            let old = std::fs::File::open(dir.path().join("resolv.conf")).unwrap();
            let files = crate::etc::write(dir.path(), "web", &[], &resolver).unwrap();
            assert_eq!(std::io::read_to_string(old).unwrap(), "old");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
            std::fs::read_to_string(files.resolv_conf).unwrap()
        };
        assert_eq!(
            printed(&results, &DnsRequest::default()),
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.1.0.1\n\
             search one.example both.example two.example\noptions rotate ndots:5\n"
        );
        assert_eq!(
            printed(&results, &own),
            "nameserver 10.1.0.1\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n\
             search own.example one.example both.example two.example\noptions ndots:5 rotate timeout:1\n"
        );
        let only_domain = [result(r#"{"nameservers":["10.0.0.1"],"domain":"d.one"}"#)];
        assert_eq!(printed(&only_domain, &DnsRequest::default()), "nameserver 10.0.0.1\nsearch d.one\n");
    }

    #[test]
    fn interfaces_are_named_as_asked_and_else_by_number() {
        let named = |texts: &[&str], taken: &[&str]| {
            let requests: Vec<_> = texts.iter().map(|text| NetworkRequest::parse(text).unwrap()).collect();
            let taken: Vec<_> = taken.iter().map(|name| IfName::parse(name).unwrap()).collect();
            let names = interface_names(&requests, &taken)?;
            Ok::<_, Error>(names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(named(&["a", "b", "c"], &[]).unwrap(), "eth0 eth1 eth2");
        assert_eq!(named(&["a", "b:interface_name=eth0", "c"], &[]).unwrap(), "eth1 eth0 eth2");
        assert_eq!(named(&["a"], &["eth0", "eth2"]).unwrap(), "eth1");
        assert!(named(&["a:interface_name=x", "b:interface_name=x"], &[]).is_err());
        assert!(named(&["a:interface_name=eth0"], &["eth0"]).is_err());
        assert!(named(&["a:interface_name=a/b"], &[]).is_err());
    }

    #[test]
    fn what_passed_an_interface_is_read_from_the_kernels_table() {
        let text = "Inter-|   Receive                   |  Transmit\n face |bytes packets ...\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                    eth0:  100  2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n junk\n";
        let [eth0] = &parse_statistics(text)[..] else { panic!() };
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_dropped), ("eth0", 100, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (50, 6, 7, 8));
    }
}
