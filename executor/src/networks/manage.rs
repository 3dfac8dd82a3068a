//! Networks themselves: listed, looked into, made, removed.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cofferdam_cni::{Caller, Interface, NetworkList, NetworkName, Networks, Prefix, Record, Valid};
use cofferdam_linux::netlink::Socket;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde_json::{Value, json};

use super::{caller, failed, invalid, load, state, unknown};
use crate::disk::Disk;
use crate::error::{Error, Kind};
use crate::id::TaskId;
use crate::release::Places;

/// The key of a list that says that it is ours to remove.
const MARK: &str = "cofferdam";
/// Subnets that networks get that ask for none: the first of these that nobody routes or has configured.
const CANDIDATES: std::ops::RangeInclusive<u8> = 0..=255;

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

/// A task's part in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkAttachment {
    /// The task's id.
    pub task: String,
    /// The task's name; none of a task that is about to end.
    pub name: Option<String>,
    /// Its interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Hardware address of its interface.
    pub mac: Option<String>,
    /// What others of the network may call it.
    pub aliases: Vec<String>,
    /// The host's ports that lead to it by this network.
    pub ports: Vec<String>,
}

/// Everything that is known of a network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkDetails {
    /// What a list shows of it.
    #[serde(flatten)]
    pub info: NetworkInfo,
    /// The configuration that the next launch uses.
    pub configuration: Value,
    /// Why it cannot serve a launch now, if its plugins say so.
    pub not_ready: Option<String>,
    /// Who uses it.
    pub attachments: Vec<NetworkAttachment>,
}

/// What reading the configurations anew brought.
#[derive(Clone, Debug, Serialize)]
pub struct Reloaded {
    /// The networks that there are.
    pub networks: Vec<NetworkInfo>,
    /// What is wrong with files, or odd about them.
    pub problems: Vec<String>,
}

/// What connects the tasks of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkDriver {
    /// A bridge of the host's own.
    #[default]
    Bridge,
    /// Interfaces with addresses of their own on a link of the host's.
    Macvlan,
    /// Interfaces that share the address of a link of the host's.
    Ipvlan,
}

impl FromStr for NetworkDriver {
    type Err = String;

    fn from_str(text: &str) -> Result<NetworkDriver, String> {
        match text {
            "bridge" => Ok(NetworkDriver::Bridge),
            "macvlan" => Ok(NetworkDriver::Macvlan),
            "ipvlan" => Ok(NetworkDriver::Ipvlan),
            _ => Err(format!("there is no driver {text:?}; there are bridge, macvlan, ipvlan")),
        }
    }
}

/// A network to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// What connects its tasks.
    pub driver: NetworkDriver,
    /// Subnets to allocate from, such as `10.1.0.0/24`, at most one a family; a free one is chosen if there is none.
    pub subnets: Vec<String>,
    /// Gateways, in the order of the subnets; the first address of each if none.
    pub gateways: Vec<IpAddr>,
    /// It leads nowhere but to itself and the host.
    pub internal: bool,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
    /// The host's link for macvlan and ipvlan.
    pub parent: Option<String>,
}

fn describe(list: &NetworkList) -> NetworkInfo {
    NetworkInfo {
        name: list.name.as_str().to_owned(),
        plugins: list.plugins.iter().map(|plugin| plugin.kind.clone()).collect(),
        file: list.source.clone(),
    }
}

/// Every network that tasks can be connected to.
pub(crate) fn list(places: &Places) -> Result<Vec<NetworkInfo>, Error> {
    Ok(load(places)?.iter().map(describe).collect())
}

pub(crate) fn reload(places: &Places) -> Result<Reloaded, Error> {
    let networks = load(places)?;
    let problems = networks.problems().iter().map(ToString::to_string).collect();
    Ok(Reloaded { networks: networks.iter().map(describe).collect(), problems })
}

pub(crate) fn inspect(places: &Places, disk: &Disk, name: &str) -> Result<NetworkDetails, Error> {
    let networks = load(places)?;
    let list = get(&networks, name)?;
    let caller = caller(places)?;
    let attachment = |record: &Record| attachment(disk, record);
    Ok(NetworkDetails {
        info: describe(list),
        configuration: serde_json::from_str(&list.to_text()).unwrap_or_default(),
        not_ready: caller.status(list).err().map(|error| error.to_string()),
        attachments: users(&caller, list)?.iter().map(attachment).collect(),
    })
}

fn attachment(disk: &Disk, record: &Record) -> NetworkAttachment {
    let id = TaskId::parse(record.container().as_str()).ok();
    let result = record.result().unwrap_or_default();
    let own =
        |interface: &&Interface| interface.name == record.if_name().as_str() && !interface.sandbox.is_empty();
    NetworkAttachment {
        task: record.container().to_string(),
        name: id.and_then(|id| disk.load_record(&id).ok()).map(|record| record.name.to_string()),
        interface: record.if_name().to_string(),
        addresses: result.container_ips().map(|ip| ip.address.address).collect(),
        mac: result.interfaces.iter().find(own).map(|interface| interface.mac.clone()),
        aliases: record.aliases(),
        ports: record.port_mappings().iter().map(ToString::to_string).collect(),
    }
}

fn get<'a>(networks: &'a Networks, name: &str) -> Result<&'a NetworkList, Error> {
    networks.get(name).ok_or_else(|| unknown(networks, name))
}

/// The attachments of a network.
fn users(caller: &Caller, list: &NetworkList) -> Result<Vec<Record>, Error> {
    let (mut records, _) = caller.records().map_err(|error| failed(&error))?;
    records.retain(|record| *record.network() == list.name);
    Ok(records)
}

pub(crate) fn create(places: &Places, spec: &NetworkSpec) -> Result<PathBuf, Error> {
    let name = NetworkName::parse(&spec.name).map_err(|error| invalid(error.to_string()))?;
    if matches!(name.as_str(), "none" | "host") {
        return Err(invalid(format!("the name {:?} has a meaning of its own", name.as_str())));
    }
    let directory = places.cni_config.first();
    let directory =
        directory.ok_or_else(|| invalid("there is no directory for network configurations".into()))?;
    let _turn = take_turn(places)?;
    let networks = load(places)?;
    if networks.get(name.as_str()).is_some() {
        let message = format!("there is a network {:?} already", name.as_str());
        return Err(Error::Network { kind: Kind::AlreadyExists, message });
    }
    let text = configuration(places, spec, &networks)?;
    // What nobody could read is not written.
    NetworkList::parse(&text, None).map_err(|error| invalid(error.to_string()))?;
    let path = directory.join(format!("{name}.conflist"));
    fs::create_dir_all(directory).map_err(Error::io("make the directory", directory))?;
    store(&path, &text).map_err(Error::io("write", &path))?;
    Ok(path)
}

/// Networks are made and removed one at a time: two would choose the same subnet.
fn take_turn(places: &Places) -> Result<fs::File, Error> {
    crate::disk::make_private(&state(places))?;
    let path = state(places).join("networks.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::io("open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|errno| Error::io("lock", &path)(errno.into()))?;
    Ok(file)
}

/// Under a name that no reader takes for a configuration until it is whole.
fn store(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("conflist.new");
    let mut file = fs::File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

fn configuration(places: &Places, spec: &NetworkSpec, networks: &Networks) -> Result<String, Error> {
    let subnets = subnets(spec, networks)?;
    let range = |(at, subnet): (usize, &Prefix)| {
        let mut range = json!({ "subnet": subnet });
        if let Some(gateway) = spec.gateways.get(at) {
            range["gateway"] = json!(gateway);
        }
        json!([range])
    };
    let anywhere =
        |subnet: &Prefix| json!({ "dst": if subnet.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
    let mut ipam = json!({
        "type": "host-local",
        "dataDir": state(places).join("leases"),
        "ranges": subnets.iter().enumerate().map(range).collect::<Vec<_>>(),
    });
    if !spec.internal {
        ipam["routes"] = subnets.iter().map(anywhere).collect();
    }
    let capabilities = json!({ "ips": true, "mac": true, "dns": true, "aliases": true });
    let mut first = match spec.driver {
        NetworkDriver::Bridge => json!({
            "type": "bridge", "bridge": bridge_name(networks)?, "isGateway": true, "ipMasq": !spec.internal, "hairpinMode": true,
        }),
        NetworkDriver::Macvlan => json!({ "type": "macvlan" }),
        NetworkDriver::Ipvlan => json!({ "type": "ipvlan" }),
    };
    (first["capabilities"], first["ipam"]) = (capabilities, ipam);
    match (&spec.parent, spec.driver) {
        (None, _) => {}
        (Some(_), NetworkDriver::Bridge) => return Err(invalid("a bridge has no parent link".into())),
        (Some(parent), _) => first["master"] = json!(parent),
    }
    if let Some(mtu) = spec.mtu {
        first["mtu"] = json!(mtu);
    }
    let mut plugins = vec![first];
    if spec.driver == NetworkDriver::Bridge {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
        plugins.push(json!({ "type": "firewall" }));
    }
    let list = json!({ "cniVersion": "1.1.0", "name": spec.name, MARK: true, "plugins": plugins });
    serde_json::to_string_pretty(&list).map_err(|error| Error::Worker(error.to_string()))
}

fn subnets(spec: &NetworkSpec, networks: &Networks) -> Result<Vec<Prefix>, Error> {
    let mut asked = Vec::new();
    for text in &spec.subnets {
        let prefix: Prefix = text.parse().map_err(invalid)?;
        asked.push(Prefix { address: prefix.network(), ..prefix });
    }
    let taken = taken(networks)?;
    if let Some((subnet, (other, whose))) = asked
        .iter()
        .find_map(|subnet| taken.iter().find(|(other, _)| subnet.overlaps(*other)).map(|it| (subnet, it)))
    {
        let message = format!("the subnet {subnet} overlaps with {other}, which {whose}");
        return Err(Error::Network { kind: Kind::Conflict, message });
    }
    if !asked.is_empty() {
        return Ok(asked);
    }
    let free = CANDIDATES.map(|third| Prefix { address: [10, 89, third, 0].into(), length: 24 });
    let mut free = free.filter(|subnet| !taken.iter().any(|(other, _)| subnet.overlaps(*other)));
    let message = "every subnet of 10.89.0.0/16 is in use: say which one to take with --subnet".to_owned();
    Ok(vec![free.next().ok_or(Error::Network { kind: Kind::Exhausted, message })?])
}

/// What the host routes and what networks allocate from, with words for each.
fn taken(networks: &Networks) -> Result<Vec<(Prefix, String)>, Error> {
    let routes = Socket::route().and_then(|mut socket| socket.routes());
    let routes =
        routes.map_err(|error| Error::Network { kind: Kind::Internal, message: error.to_string() })?;
    let mut taken: Vec<(Prefix, String)> = routes
        .iter()
        .filter(|route| route.destination.prefix > 0)
        .map(|route| Prefix { address: route.destination.address, length: route.destination.prefix })
        .map(|prefix| (prefix, "the host routes".to_owned()))
        .collect();
    for list in networks.iter() {
        let mut found = Vec::new();
        collect_subnets(&serde_json::from_str(&list.to_text()).unwrap_or_default(), &mut found);
        let whose = format!("the network {:?} allocates from", list.name.as_str());
        taken.extend(found.into_iter().map(|prefix| (prefix, whose.clone())));
    }
    Ok(taken)
}

fn collect_subnets(value: &Value, found: &mut Vec<Prefix>) {
    match value {
        Value::Object(object) => {
            found.extend(
                object.get("subnet").and_then(Value::as_str).and_then(|text| text.parse::<Prefix>().ok()),
            );
            object.values().for_each(|value| collect_subnets(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_subnets(value, found)),
        _ => {}
    }
}

/// The first name that neither the host nor a network has.
fn bridge_name(networks: &Networks) -> Result<String, Error> {
    let links = Socket::route().and_then(|mut socket| socket.links());
    let links = links.map_err(|error| Error::Network { kind: Kind::Internal, message: error.to_string() })?;
    let names = (1..).map(|number: u32| format!("cofferdam{number}"));
    let mut free = names.filter(|name| {
        let in_use = |list: &NetworkList| bridge_of(list).as_deref() == Some(name);
        !links.iter().any(|link| link.name == *name) && !networks.iter().any(in_use)
    });
    free.next().ok_or_else(|| Error::Worker("there is no name for another bridge".into()))
}

fn bridge_of(list: &NetworkList) -> Option<String> {
    list.plugins.iter().find_map(|plugin| plugin.object.get::<String>("bridge").ok().flatten())
}

/// The file of a network that [`create`] has made.
fn own_file(list: &NetworkList) -> Option<&Path> {
    let path = list.source.as_deref()?;
    let value: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    value.get(MARK).is_some().then_some(path)
}

pub(crate) fn remove(places: &Places, name: &str, force: bool) -> Result<(), Error> {
    let _turn = take_turn(places)?;
    let networks = load(places)?;
    let list = get(&networks, name)?;
    let Some(file) = own_file(list) else {
        let whose = list
            .source
            .as_ref()
            .map_or("built in".into(), |path| format!("{}, not made here", path.display()));
        return Err(invalid(format!("the network {name:?} is {whose}: it is not ours to remove")));
    };
    let caller = caller(places)?;
    let users = users(&caller, list)?;
    if let (Some(user), false) = (users.first(), force) {
        let message = format!("the network {name:?} is in use by task {}", user.container());
        return Err(Error::Network { kind: Kind::Conflict, message });
    }
    remove_one(places, &caller, list, file)?;
    // What the file said is forgotten with it.
    load(places).map(drop)
}

fn remove_one(places: &Places, caller: &Caller, list: &NetworkList, file: &Path) -> Result<(), Error> {
    caller.gc(list, &Valid::Nothing).map_err(|error| failed(&error))?;
    fs::remove_file(file).map_err(Error::io("remove", file))?;
    let leases = state(places).join("leases").join(list.name.as_str());
    crate::disk::remove_tree(&leases)?;
    caller.forget_network(&list.name).map_err(|error| failed(&error))?;
    if let Some(bridge) = bridge_of(list)
        && let Ok(mut socket) = Socket::route()
    {
        // It is there only if somebody was connected; nothing is left that would need it.
        let _ = socket.delete_link(&bridge);
    }
    Ok(())
}

pub(crate) fn prune(places: &Places) -> Result<Vec<String>, Error> {
    let _turn = take_turn(places)?;
    let networks = load(places)?;
    let caller = caller(places)?;
    let mut removed = Vec::new();
    for list in networks.iter() {
        let Some(file) = own_file(list) else { continue };
        if users(&caller, list)?.is_empty() {
            remove_one(places, &caller, list, file)?;
            removed.push(list.name.to_string());
        }
    }
    // Whose file somebody removed by hand: its lock, and its leases, which nobody holds.
    for name in caller.forget_networks_but(&networks).map_err(|error| failed(&error))? {
        crate::disk::remove_tree(&state(places).join("leases").join(name.as_str()))?;
    }
    load(places)?;
    Ok(removed)
}
