//! Links of the host that belong to attachments: named by a hash of the mark, and carrying the mark itself as their alias.
//!
//! The name is for DEL, which finds the link without a result, without a namespace and after any crash. The alias is for GC,
//! which finds the links of attachments that nobody remembers. Both are there from the first moment, or the link is not.

use cofferdam_cni::{PluginError, Request};
use cofferdam_linux::netlink::{Error, LinkChange, Socket};
use rustix::io::Errno;

use crate::together::{self, Together};

/// The name of a link: a prefix of four bytes at most, and 44 bits of a hash (FNV-1a) of the attachment's mark.
pub(crate) fn name(prefix: &str, mark: &str) -> String {
    let hash = mark.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{prefix}{:011x}", (hash ^ (hash >> 44)) & 0xfff_ffff_ffff)
}

/// Deletes the links of attachments of the network that are not valid.
pub(crate) fn collect(request: &Request<'_>) -> Result<(), PluginError> {
    let (mark, valid) = (request.network_mark(), request.valid_owners()?);
    let links = Socket::route()?.links()?;
    let dead = links.into_iter().filter(|link| link.alias.starts_with(&mark) && !valid.contains(&link.alias));
    let names: Vec<String> = dead.map(|link| link.name).collect();
    delete_together(&names).into_iter().collect()
}

/// The kernel waits for RCU, 11 to 50 ms, as long for many links as for one.
static DELETIONS: Together<String> = Together::new(delete_together);

/// Deletes a link; a missing one is fine.
pub(crate) fn delete(name: &str) -> Result<(), PluginError> {
    DELETIONS.ask(name.to_owned())
}

/// Deletes links by one request; what became of each. Missing ones are fine.
fn delete_together(names: &[String]) -> Vec<Result<(), PluginError>> {
    let one = |socket: &mut Socket, name: &str| gone(socket.delete_link(name));
    let mut socket = match Socket::route() {
        Ok(socket) => socket,
        Err(error) => return together::all(names, &Err(error.into())),
    };
    if names.len() > 1 && by_group(&mut socket, names).is_ok() {
        return together::all(names, &Ok(()));
    }
    // Each for itself, so that each gets its own error.
    names.iter().map(|name| one(&mut socket, name)).collect()
}

fn by_group(socket: &mut Socket, names: &[String]) -> Result<(), PluginError> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::new("choose a group of links", errno))?;
    // Far from the small numbers that people use.
    let group = u32::from_ne_bytes(bytes) | 0x8000_0000;
    for name in names {
        let Some(link) = socket.find_link(name)? else { continue };
        gone(socket.change_link(link.index, &LinkChange { group: Some(group), ..LinkChange::default() }))?;
    }
    match socket.delete_group(group) {
        Err(error) if error.errno() == Errno::NODEV => Ok(()),
        deleted => Ok(deleted?),
    }
}

fn gone(result: Result<(), Error>) -> Result<(), PluginError> {
    match result {
        Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_the_host_has_a_name_of_its_own_that_the_kernel_takes() {
        let names: std::collections::BTreeSet<String> =
            (0..1000).map(|n| name("veth", &format!("bridge/container-{n}/eth0"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15));
    }
}
