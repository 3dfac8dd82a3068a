//! What a task's network is made of. Links and tables are tried in a network namespace that ends with its thread.

use std::path::Path;
use std::thread;

use cofferdam_linux::process::unshare;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use super::{Check, kernel_text};

const AREA: &str = "network";

/// `CLONE_NEWNET`.
const NEW_NETWORK: u64 = 0x4000_0000;

/// Kind of link, and what is lost without it.
const LINKS: [(&str, &str); 5] = [
    ("bridge", "the built-in network cannot be made"),
    ("veth", "no network but none, host and macvlan"),
    ("macvlan", "networks of the macvlan plugin are refused"),
    ("ipvlan", "networks of the ipvlan plugin are refused"),
    ("vlan", "networks of the vlan plugin are refused"),
];

/// `NETLINK_ROUTE` is protocol 0, which is no protocol to rustix.
const ROUTE: Option<Protocol> = None;

/// Where CNI configuration and plugins are looked for.
const CONFIGURATION: &str = "/etc/cni/net.d";
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

pub(super) fn examine() -> Vec<Check> {
    let mut checks = tables_and_links();
    checks.push(forwarding());
    checks.push(resolver());
    checks.push(plugins());
    checks
}

fn tables_and_links() -> Vec<Check> {
    // A thread of its own: a network namespace belongs to a thread, and goes with it.
    type Probes = (Result<(), Errno>, Vec<Result<(), Errno>>);
    let probes =
        thread::Builder::new().name("doctor-network".to_owned()).spawn(|| -> Result<Probes, Errno> {
            unshare(NEW_NETWORK)?;
            let links: Vec<_> = LINKS.iter().map(|(kind, _)| add_link(kind)).collect();
            Ok((ask_nf_tables(), links))
        });
    let probes = match probes.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(probes))) => probes,
        Ok(Ok(Err(errno))) => return vec![untried(format!("no network namespace: {errno}"))],
        Ok(Err(_)) | Err(_) => return vec![untried("the probe's thread did not run".to_owned())],
    };
    let (tables, links) = probes;
    let mut checks =
        vec![tried("nf_tables", tables, "no masquerading, no published ports").remedy("load nf_tables")];
    for ((kind, costs), result) in LINKS.into_iter().zip(links) {
        checks.push(tried(kind, result, costs).remedy(format!("load the {kind} module")));
    }
    checks
}

fn untried(found: String) -> Check {
    Check::missing(AREA, "links and tables", found, "tasks get no network but the host's")
}

fn tried(subject: &str, result: Result<(), Errno>, costs: &str) -> Check {
    match result {
        Ok(()) => Check::works(AREA, subject, "works"),
        Err(errno) => Check::missing(AREA, subject, errno.to_string(), costs),
    }
}

/// Asks for the generation of the rule set: nfnetlink(7) answers EINVAL where nobody serves the subsystem.
fn ask_nf_tables() -> Result<(), Errno> {
    const NFT_MSG_GETGEN: u16 = 10 << 8 | 16;
    let family_and_version = [0_u8; 4];
    exchange(Some(netlink::NETFILTER), NFT_MSG_GETGEN, 0, &family_and_version)
}

/// Makes a link of this kind. Those that stand on another link get none, so that being refused for it shows that they exist.
fn add_link(kind: &str) -> Result<(), Errno> {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const CREATE_EXCLUSIVELY: u16 = 0x400 | 0x200;
    const INTERFACE_MESSAGE_BYTES: usize = 16;
    let mut payload = vec![0; INTERFACE_MESSAGE_BYTES];
    payload.extend(attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, kind.as_bytes())));
    match exchange(ROUTE, RTM_NEWLINK, CREATE_EXCLUSIVELY, &payload) {
        Err(Errno::OPNOTSUPP) => Err(Errno::OPNOTSUPP),
        Ok(()) | Err(Errno::INVAL | Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 4;
    let length = u16::try_from(HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one request and reads how it ended. netlink(7)
fn exchange(protocol: Option<Protocol>, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
    const REQUEST_AND_ACKNOWLEDGE: u16 = 0x1 | 0x4;
    const HEADER_BYTES: usize = 16;
    const ERROR: u16 = 2;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let length = u32::try_from(HEADER_BYTES + payload.len()).map_err(|_| Errno::MSGSIZE)?;
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | REQUEST_AND_ACKNOWLEDGE).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0_u8; 4096];
    let (received, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let answer = answer.get(..received).unwrap_or_default();
    let is_error = answer.get(4..6).is_some_and(|kind| kind == ERROR.to_ne_bytes());
    match answer.get(HEADER_BYTES..HEADER_BYTES + 4) {
        Some(code) if is_error => match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
            0 => Ok(()),
            code => Err(Errno::from_raw_os_error(-code)),
        },
        // Anything but an error is the answer that was asked for.
        _ => Ok(()),
    }
}

fn forwarding() -> Check {
    const SUBJECT: &str = "IPv4 forwarding";
    match kernel_text("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Check::works(AREA, SUBJECT, "on"),
        Some(_) => Check::degraded(
            AREA,
            SUBJECT,
            "off",
            "tasks reach each other but not the world until it is on; the built-in network switches it on when it is first used",
        )
        .remedy("sysctl net.ipv4.ip_forward=1"),
        None => Check::missing(AREA, SUBJECT, "unreadable", "tasks on a bridge do not reach the world"),
    }
}

fn resolver() -> Check {
    const SUBJECT: &str = "name resolution";
    let text = kernel_text("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim).collect();
    match servers.as_slice() {
        [] => Check::degraded(
            AREA,
            SUBJECT,
            "no nameserver in /etc/resolv.conf",
            "tasks resolve no names, pulls by name fail",
        ),
        _ => Check::works(AREA, SUBJECT, servers.join(", ")),
    }
}

fn plugins() -> Check {
    const SUBJECT: &str = "CNI plugins";
    let found: Vec<&str> = PLUGINS.into_iter().filter(|path| Path::new(path).is_dir()).collect();
    let configurations = std::fs::read_dir(CONFIGURATION).map_or(0, Iterator::count);
    match found.as_slice() {
        [] => Check::missing(
            AREA,
            SUBJECT,
            format!("neither {} nor {}", PLUGINS[0], PLUGINS[1]),
            "only the built-in networks; they need no plugin",
        )
        .remedy("apt install containernetworking-plugins"),
        _ => Check::works(
            AREA,
            SUBJECT,
            format!("{}; {configurations} files in {CONFIGURATION}", found.join(", ")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        assert_eq!(attribute(1, b"veth"), [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"veth"].concat());
        assert_eq!(attribute(1, b"vlan5").len(), 12);
        assert_eq!(&attribute(1, b"vlan5")[..2], 9_u16.to_ne_bytes());
    }
}
