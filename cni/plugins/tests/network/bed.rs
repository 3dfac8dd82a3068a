//! A bed for network tests: a namespace plays the host, others are containers and the world outside.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_cni::{
    AddResult, Attachment, Caller, ContainerId, Deadlines, IfName, NetworkList, Options, Prefer,
};
use cofferdam_cni_plugins::{BUILTINS, DefaultNetwork, bring_loopback_up};
use cofferdam_linux::namespace::{
    create_pinned_netns, current_netns, open_netns, remove_pinned_netns, with_netns, with_new_netns,
};
use cofferdam_linux::netlink::{Address, LinkKind, NewLink, Route, Socket, VethPeer};
use cofferdam_linux::nft::Family;

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a test in a namespace that plays the host; says so if it cannot.
pub(crate) fn on_a_host(test: impl FnOnce(&Bed) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    with_new_netns(|| test(&Bed::new())).unwrap();
}

pub(crate) struct Bed {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: OwnedFd,
}

pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) path: PathBuf,
    pub(crate) netns: OwnedFd,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = remove_pinned_netns(&self.path);
    }
}

impl Bed {
    fn new() -> Self {
        let host = current_netns().unwrap();
        bring_loopback_up(host.as_fd()).unwrap();
        // Where state is kept in earnest: a tmpfs, so that a busy disk does not speak in the timings.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir, host }
    }

    pub(crate) fn caller(&self, prefer: Prefer) -> Caller {
        self.caller_in("state", prefer)
    }

    /// A caller with records of its own.
    pub(crate) fn caller_in(&self, state: &str, prefer: Prefer) -> Caller {
        let plugin_path = vec![self.dir.path().join("bin"), "/usr/lib/cni".into()];
        let deadlines = Deadlines { add: Duration::from_secs(20), ..Deadlines::default() };
        let options = Options::new(self.dir.path().join(state));
        Caller::open(Options { plugin_path, builtins: BUILTINS, prefer, deadlines, ..options }).unwrap()
    }

    pub(crate) fn default_network(&self) -> NetworkList {
        let mut network = DefaultNetwork::probe(self.leases()).unwrap();
        network.subnets.push("fd00:88::/64".parse().unwrap());
        network.list().unwrap()
    }

    /// A network of these plugins. `LEASES` in the text is the folder of the leases.
    pub(crate) fn network(&self, name: &str, plugins: serde_json::Value) -> NetworkList {
        let text = serde_json::json!({ "cniVersion": "1.1.0", "name": name, "plugins": plugins }).to_string();
        list(&text.replace("LEASES", &self.leases().display().to_string()))
    }

    /// Every fact of the host and of a container that an attachment may change: links, addresses, routes, rules, nft, files.
    pub(crate) fn facts(&self, container: &Container) -> String {
        let mut facts = String::new();
        for netns in [&self.host, &container.netns] {
            let mut socket = Socket::route_in(netns.as_fd()).unwrap();
            let mut routes: Vec<_> = routes(&mut socket).iter().map(|route| format!("{route:?}")).collect();
            routes.sort();
            let (mut links, mut addresses) = (socket.links().unwrap(), socket.addresses(0).unwrap());
            addresses.retain(|one| !is_the_kernels(one.address));
            links.iter_mut().for_each(|link| link.operational = false);
            let rules = socket.rules_by_source().unwrap();
            facts.push_str(&format!("{links:#?}\n{addresses:#?}\n{routes:#?}\n{rules:#?}\n"));
        }
        let ruleset = std::process::Command::new("nft").args(["--handle", "list", "ruleset"]).output();
        facts.push_str(
            &ruleset.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default(),
        );
        facts.push_str(&files(self.dir.path()).join("\n"));
        facts
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.dir.path().join("leases")
    }

    /// The addresses leased of a network.
    pub(crate) fn leased(&self, network: &str) -> Vec<IpAddr> {
        let entries = std::fs::read_dir(self.leases().join(network)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    pub(crate) fn container(&self, id: &str) -> Container {
        let path = self.dir.path().join(format!("netns-{id}"));
        create_pinned_netns(&path).unwrap();
        let netns = open_netns(&path).unwrap();
        bring_loopback_up(netns.as_fd()).unwrap();
        Container { id: ContainerId::parse(id).unwrap(), path, netns }
    }

    /// A plugin that is a shell script.
    pub(crate) fn script(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join("bin").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Names of the veth links of the host.
    pub(crate) fn veths(&self) -> Vec<String> {
        let links = Socket::route().unwrap().links().unwrap();
        links.into_iter().filter(|link| link.kind.as_deref() == Some("veth")).map(|link| link.name).collect()
    }

    /// How many elements and marked rules the attachments left in nft.
    pub(crate) fn nft_marks(&self) -> Vec<String> {
        let mut socket = Socket::netfilter().unwrap();
        let mut marks = Vec::new();
        for set in ["ports", "address_ports", "hairpin", "local", "masquerade", "forward", "guarded", "owned"]
        {
            for family in ['4', '6'] {
                let elements = socket.elements(Family::Inet, "cofferdam", &format!("{set}{family}"));
                marks.extend(elements.unwrap_or_default().into_iter().map(|element| element.comment));
            }
        }
        for family in [Family::Ipv4, Family::Ipv6] {
            let rules = socket.rules(family, "filter", "FORWARD").unwrap_or_default();
            marks.extend(rules.into_iter().map(|rule| rule.comment).filter(|comment| comment.contains('/')));
        }
        marks
    }

    pub(crate) fn assert_clean(&self, network: &str) {
        assert_eq!(self.veths(), Vec::<String>::new());
        assert_eq!(self.nft_marks(), Vec::<String>::new());
        assert_eq!(self.leased(network), Vec::<IpAddr>::new());
        for folder in [self.leases().join(network), self.leases().join(".owners").join(network)] {
            assert!(!folder.join(".new").exists(), "half a lease is left in {}", folder.display());
        }
        assert!(self.caller(Prefer::Auto).records().unwrap().0.is_empty());
    }

    /// A machine outside, 203.0.113.2 and fd00:113::2, for which the host is 203.0.113.1 and fd00:113::1.
    pub(crate) fn outside(&self) -> Container {
        let outside = self.container("outside");
        let peer = VethPeer { name: "up", netns: outside.netns.as_fd(), mac: None };
        let mut host = Socket::route().unwrap();
        host.add_link(&NewLink::new("down", LinkKind::Veth(peer))).unwrap();
        let down = host.link("down").unwrap().index;
        host.add_address(down, address("203.0.113.1", 24)).unwrap();
        host.add_address(down, address("fd00:113::1", 64)).unwrap();
        let mut out = Socket::route_in(outside.netns.as_fd()).unwrap();
        let up = out.link("up").unwrap().index;
        out.add_address(up, address("203.0.113.2", 24)).unwrap();
        out.add_address(up, address("fd00:113::2", 64)).unwrap();
        out.set_up(up).unwrap();
        // So that what is not masqueraded would find back, and the test sees who asked.
        for (to, length, via) in [("10.0.0.0", 8, "203.0.113.1"), ("fd00:88::", 64, "fd00:113::1")] {
            out.add_route(&Route::new(address(to, length), Some(via.parse().unwrap()), up)).unwrap();
        }
        outside
    }
}

pub(crate) fn address(text: &str, prefix: u8) -> Address {
    Address { address: text.parse().unwrap(), prefix }
}

impl Container {
    pub(crate) fn attachment(&self) -> Attachment {
        Attachment::new(self.id.clone(), &self.path, eth0())
    }

    /// Listens on a port in the container and tells everybody who calls from where they came.
    pub(crate) fn serve(&self, address: &str) {
        serve(&self.netns, address);
    }
}

/// The kernel gives links addresses of their own, some time after they came up.
fn is_the_kernels(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast())
}

/// Every route but those that the kernel makes some time after a link came up.
pub(crate) fn routes(socket: &mut Socket) -> Vec<Route> {
    let mut routes = socket.all_routes().unwrap();
    routes.retain(|route| !is_the_kernels(route.destination.address));
    routes
}

/// Every file of a folder with its content, but locks.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("locks") {
            found.extend(files(&path));
        } else if path.is_file() && !path.to_string_lossy().contains("netns-") {
            let content = std::fs::read(&path).unwrap_or_default();
            found.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&content)));
        }
    }
    found.sort();
    found
}

/// Whether the kernel has links of a kind; says so if not.
pub(crate) fn have_kind(name: &str, kind: LinkKind<'static>) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    let made = with_new_netns(|| {
        let mut socket = Socket::route().unwrap();
        // Not the loopback, which refuses tags with the same error.
        socket.add_link(&NewLink::new("below", LinkKind::BRIDGE)).unwrap();
        let below = socket.link("below").unwrap().index;
        let parent =
            matches!(kind, LinkKind::Vlan { .. } | LinkKind::Ipvlan { .. } | LinkKind::Macvlan { .. });
        socket.add_link(&NewLink { parent: parent.then_some(below), ..NewLink::new("probe", kind) })
    });
    // Whatever else is wrong with it, the kernel knows the kind.
    let missing = made.unwrap().is_err_and(|error| error.errno() == rustix::io::Errno::OPNOTSUPP);
    if missing {
        println!("skipped: this kernel has no links of the kind {name}");
    }
    !missing
}

pub(crate) fn interface(name: &str) -> IfName {
    IfName::parse(name).unwrap()
}

pub(crate) fn eth0() -> IfName {
    IfName::parse("eth0").unwrap()
}

pub(crate) fn serve(netns: &OwnedFd, address: &str) {
    let listener = with_netns(netns.as_fd(), || TcpListener::bind(address).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = write!(stream, "{}", stream.peer_addr().unwrap().ip());
        }
    });
}

/// Whether nobody answers, for which it waits less long than for an answer that is expected.
pub(crate) fn is_cut_off(netns: &OwnedFd, address: &str) -> bool {
    ask_for(netns, address, Duration::from_secs(1)).is_err()
}

/// Calls from a namespace and returns the address that the server saw.
pub(crate) fn ask(netns: &OwnedFd, address: &str) -> Result<IpAddr, String> {
    ask_for(netns, address, PATIENCE)
}

fn ask_for(netns: &OwnedFd, address: &str, patience: Duration) -> Result<IpAddr, String> {
    let address: SocketAddr = address.parse().unwrap();
    with_netns(netns.as_fd(), || {
        let mut stream = TcpStream::connect_timeout(&address, patience).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
        text.parse().map_err(|_| format!("{text:?}"))
    })
    .unwrap()
}

pub(crate) fn ip(result: &AddResult, v4: bool) -> IpAddr {
    result.container_ips().map(|ip| ip.address.address).find(|ip| ip.is_ipv4() == v4).unwrap()
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE * 2, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn list(text: &str) -> NetworkList {
    NetworkList::parse(text, None).unwrap()
}

pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
