//! Network devices lent to a container: moved with their addresses, and back when the container cannot be made.
//! runtime-spec config-linux.md, "Network Devices".

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_linux::namespace::{current_netns, same_namespace};
use cofferdam_linux::netlink::{Address, Error, LinkChange, Socket};
use cofferdam_linux::process::Child;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::host::{Outcome, plain};

/// The child's network namespace.
pub(crate) fn namespace(child: &Child) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{}/ns/net", child.pid);
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Moves our device `device` into a network namespace as `name`.
pub(crate) fn lend(theirs: &OwnedFd, device: &str, name: &str) -> Outcome {
    let own = current_netns().map_err(plain)?;
    if same_namespace(own.as_fd(), theirs.as_fd()).map_err(plain)? {
        return Err((Errno::INVAL, Some("the container has the runtime's own network namespace".into())));
    }
    carry((own.as_fd(), device), (theirs.as_fd(), name)).map_err(words)
}

/// Moves it back; a device that is not there any more was not moved.
pub(crate) fn fetch(theirs: &OwnedFd, device: &str, name: &str) -> Result<(), String> {
    let own = current_netns().map_err(|errno| errno.to_string())?;
    match carry((theirs.as_fd(), name), (own.as_fd(), device)) {
        Err(error) if error.errno() == Errno::NODEV => Ok(()),
        result => result.map_err(|error| error.to_string()),
    }
}

fn words(error: Error) -> (Errno, Option<String>) {
    (error.errno(), Some(error.to_string()))
}

/// Down, over, addresses, up: moving takes a device down and its addresses off. The kernel makes link-local ones anew.
fn carry(from: (BorrowedFd<'_>, &str), to: (BorrowedFd<'_>, &str)) -> Result<(), Error> {
    let (mut here, mut there) = (Socket::route_in(from.0)?, Socket::route_in(to.0)?);
    let link = here.link(from.1)?;
    let addresses: Vec<Address> =
        here.addresses(link.index)?.into_iter().filter(|address| !is_link_local(address.address)).collect();
    here.change_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() })?;
    if let Err(error) = here.move_link(link.index, to.0, to.1) {
        // As it was, as far as that goes: the failure of the move is the one worth telling.
        if link.up {
            let _ = here.set_up(link.index);
        }
        return Err(error);
    }
    // The index may have been taken in the other namespace.
    let moved = there.link(to.1)?.index;
    for address in addresses {
        match there.add_address(moved, address) {
            Err(error) if error.errno() == Errno::EXIST => {}
            result => result?,
        }
    }
    there.set_up(moved)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
