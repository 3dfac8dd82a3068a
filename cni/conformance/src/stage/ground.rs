//! The ground that a stage stands on: namespaces, overlays over what plugins write to, links.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_linux::namespace::{create_pinned_netns, open_netns};
use cofferdam_linux::netlink::{self, Address, LinkKind, NewLink, Route, Socket, VethPeer};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};

use super::Container;
use crate::profile::{Error, Subject};

/// The host's way to the world, for plugins that need a master or a default route.
pub(crate) const UPLINK: &str = "up0";
/// The bridge below the interfaces that are made for chained plugins.
const BRIDGE: &str = "given0";
/// Folders in which plugins keep things. What they write there goes with the case.
const COVERED: [&str; 3] = ["/etc", "/run", "/var"];
/// What the mounts of a case are known by in a table of mounts.
const NAME: &str = "cofferdam-cni-test";
const CLONE_NEWNS: u64 = 0x2_0000;
const CLONE_NEWNET: u64 = 0x4000_0000;

/// Folders that hosts have and that plugins are not in. A case covers one in a mount namespace of its own and keeps there
/// what it needs: so not even an empty folder is left by a runner that is killed.
const PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/dev/shm", "/tmp"];

/// The first of the places that hides nothing that the case needs.
pub(super) fn choose_folder(subject: &Subject) -> Result<PathBuf, Error> {
    let needed = || [&subject.program].into_iter().chain(&subject.plugin_path);
    let is_free = |place: &&&str| {
        let real = std::fs::symlink_metadata(place).is_ok_and(|meta| meta.is_dir());
        real && !needed().any(|path| path.starts_with(place))
    };
    let found = PLACES.iter().find(is_free).map(PathBuf::from);
    found.ok_or_else(|| Error::Stage {
        operation: format!("find a folder to cover among {}", PLACES.join(" ")),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Moves the calling thread to a host of its own: network, mounts, and overlays over the folders that plugins write to.
pub(super) fn enter(folder: &Path) -> Result<(), Error> {
    cofferdam_linux::process::unshare(CLONE_NEWNET | CLONE_NEWNS).map_err(Error::stage("make namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(Error::stage("make mounts private"))?;
    mount(NAME, folder, "tmpfs", MountFlags::empty(), c"mode=0700").map_err(Error::stage("mount a tmpfs"))?;
    if !is_own_proc() {
        // The first process of a process namespace still sees its parent's.
        mount("proc", "/proc", "proc", MountFlags::empty(), None).map_err(Error::stage("mount /proc"))?;
    }
    for covered in COVERED {
        cover(folder, Path::new(covered)).map_err(Error::stage(format!("cover {covered}")))?;
    }
    Ok(())
}

/// Whether the numbers in `/proc` are those that processes here know themselves by.
fn is_own_proc() -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    std::fs::read_link("/proc/self").is_ok_and(|told| told.as_os_str() == own.as_str())
}

fn cover(folder: &Path, covered: &Path) -> std::io::Result<()> {
    let name = covered.file_name().unwrap_or_default();
    let (written, work) = (folder.join("written").join(name), folder.join("work").join(name));
    std::fs::create_dir_all(&written)?;
    std::fs::create_dir_all(&work)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", covered.display(), written.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    Ok(mount("overlay", covered, "overlay", MountFlags::empty(), options.as_c_str())?)
}

/// Loopback, and an uplink with a default route.
pub(super) fn set_up_links(folder: &Path) -> Result<(), Error> {
    let outside = folder.join("outside");
    create_pinned_netns(&outside).map_err(Error::stage("make a namespace"))?;
    let outside = open_netns(&outside).map_err(Error::stage("open a namespace"))?;
    let set = || {
        let mut host = Socket::route()?;
        let lo = host.link("lo")?.index;
        host.set_up(lo)?;
        let peer = VethPeer { name: "down0", netns: outside.as_fd(), mac: None };
        host.add_link(&NewLink::new(UPLINK, LinkKind::Veth(peer)))?;
        let up = host.link(UPLINK)?.index;
        host.add_address(up, address("203.0.113.1", 24))?;
        let mut out = Socket::route_in(outside.as_fd())?;
        let down = out.link("down0")?.index;
        out.set_up(down)?;
        host.add_route(&Route::new(address("0.0.0.0", 0), "203.0.113.2".parse().ok(), up))
    };
    set().map_err(|error: netlink::Error| Error::Stage {
        operation: "set up the host's links".into(),
        source: std::io::Error::other(error.to_string()),
    })
}

/// Makes an interface as a plugin before would have: on a bridge, with an address and a default route; returns the result.
pub(super) fn make_interface(container: &Container, host_part: u32) -> Result<Value, netlink::Error> {
    let mut host = Socket::route()?;
    if host.find_link(BRIDGE)?.is_none() {
        host.add_link(&NewLink::new(BRIDGE, LinkKind::BRIDGE))?;
        let bridge = host.link(BRIDGE)?.index;
        host.add_address(bridge, address("10.99.0.1", 24))?;
    }
    let bridge = host.link(BRIDGE)?;
    let netns =
        open_netns(&container.netns).map_err(|errno| netlink::Error::new("open the namespace", errno))?;
    let name = format!("given{}-{}", container.number, container.ifname);
    let peer = VethPeer { name: &container.ifname, netns: netns.as_fd(), mac: None };
    let veth = NewLink::new(&name, LinkKind::Veth(peer));
    host.add_link(&NewLink { master: Some(bridge.index), ..veth })?;
    let own = format!("10.99.0.{}", host_part + 1);
    let mut inside = Socket::route_in(netns.as_fd())?;
    let link = inside.link(&container.ifname)?;
    inside.add_address(link.index, address(&own, 24))?;
    inside.set_up(link.index)?;
    let gateway = Route::new(address("0.0.0.0", 0), "10.99.0.1".parse().ok(), link.index);
    // A second interface leaves the first one's default route.
    let _ = inside.add_route(&gateway);
    let veth = host.link(&name)?;
    let mac = |link: &netlink::Link| link.mac.map(|mac| mac.to_string());
    Ok(json!({
        "interfaces": [
            { "name": BRIDGE, "mac": mac(&bridge) },
            { "name": name, "mac": mac(&veth) },
            { "name": container.ifname, "mac": mac(&link), "sandbox": container.netns },
        ],
        "ips": [{ "interface": 2, "address": format!("{own}/24"), "gateway": "10.99.0.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": { "nameservers": ["10.99.0.1"] },
    }))
}

/// Sets a link of a namespace up.
pub(super) fn up(netns: &OwnedFd, name: &str) -> Result<(), netlink::Error> {
    let mut socket = Socket::route_in(netns.as_fd())?;
    let link = socket.link(name)?.index;
    socket.set_up(link)
}

fn address(text: &str, prefix: u8) -> Address {
    let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
    Address { address: text.parse().unwrap_or(unspecified), prefix }
}
