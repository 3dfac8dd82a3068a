//! Links of the host that belong to attachments: named by a hash of the mark, and carrying the mark itself as their alias.
//!
//! The name is for DEL, which finds the link without a result, without a namespace and after any crash. The alias is for GC,
//! which finds the links of attachments that nobody remembers. Both are there from the first moment, or the link is not.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};

use cofferdam_cni::{Code, PluginError, Request};
use cofferdam_linux::namespace::current_netns;
use cofferdam_linux::netlink::{Error, LinkChange, Socket};
use rustix::io::Errno;

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

/// What threads that delete at the same time tell one another.
#[derive(Default)]
struct Turn {
    waiting: Vec<(u64, String)>,
    done: HashMap<u64, Result<(), PluginError>>,
    is_served: bool,
}

/// One a network namespace, by its inode.
static TURNS: Mutex<Option<HashMap<u64, Turn>>> = Mutex::new(None);
static TURN_OVER: Condvar = Condvar::new();
static TICKET: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Deletes a link; a missing one is fine.
///
/// The kernel waits for RCU, 11 to 50 ms, as long for many links as for one: whoever comes while it waits is served by the
/// next request, together with all others who came.
pub(crate) fn delete(name: &str) -> Result<(), PluginError> {
    let place = place()?;
    let ticket = TICKET.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut all = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().entry(place).or_default().waiting.push((ticket, name.to_owned()));
    loop {
        let turns = all.get_or_insert_default();
        let turn = turns.entry(place).or_default();
        if let Some(result) = turn.done.remove(&ticket) {
            if turn.done.is_empty() && turn.waiting.is_empty() && !turn.is_served {
                turns.remove(&place);
            }
            return result;
        }
        if turn.is_served {
            all = TURN_OVER.wait(all).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        turn.is_served = true;
        let (tickets, names): (Vec<u64>, Vec<String>) = std::mem::take(&mut turn.waiting).into_iter().unzip();
        drop(all);
        let results = delete_together(&names);
        all = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = all.get_or_insert_default().entry(place).or_default();
        turn.is_served = false;
        turn.done.extend(tickets.into_iter().zip(results));
        TURN_OVER.notify_all();
    }
}

/// Which network namespace the calling thread is in.
fn place() -> Result<u64, PluginError> {
    let inode = current_netns().and_then(rustix::fs::fstat).map(|stat| stat.st_ino);
    inode.map_err(|errno| {
        PluginError::new(Code::INVALID_NETNS, format!("cannot look at the namespace: {errno}"))
    })
}

/// Deletes links by one request; what became of each. Missing ones are fine.
fn delete_together(names: &[String]) -> Vec<Result<(), PluginError>> {
    let one = |socket: &mut Socket, name: &str| gone(socket.delete_link(name));
    let mut socket = match Socket::route() {
        Ok(socket) => socket,
        Err(error) => {
            let error = PluginError::from(error);
            return names.iter().map(|_| Err(error.clone())).collect();
        }
    };
    if names.len() > 1 && by_group(&mut socket, names).is_ok() {
        return names.iter().map(|_| Ok(())).collect();
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
