//! What the reference plugins made for an attachment that we are asked to delete: on hosts where both are used, or were.
//!
//! Their rules for masquerading and for ports are in iptables' nft table `nat`, in chains of the attachment's own, whose names
//! are hashes of network and container. Such a chain is nobody else's and can be deleted without asking. Their rules in
//! the shared chain `CNI-FORWARD` are known by address alone, and the address may have a new holder: they stay. So do tables
//! of iptables-legacy. Their link that limits what a container sends has such a name, too.

use std::os::fd::AsFd;

use cofferdam_cni::{NetnsFate, PluginError, Request};
use cofferdam_linux::netlink::{Error, Socket};
use cofferdam_linux::nft::{Batch, Family};
use rustix::io::Errno;
use sha2::{Digest, Sha512};

use crate::container_link::netns_if_there;

const TABLE: &str = "nat";
/// As long as names of chains may be in iptables.
const LONGEST_NAME: usize = 28;
/// As long as names of links may be.
const LONGEST_LINK_NAME: usize = 15;
/// Masquerading, by bridge and ptp.
pub(crate) const MASQUERADE: &[&str] = &["CNI-"];
/// Ports to the container and, in older versions, from it, by portmap.
pub(crate) const PORTS: &[&str] = &["CNI-DN-", "CNI-SN-"];
/// How often a transaction is tried that lost a race with another process.
const TRIES: usize = 8;

/// Deletes the attachment's chains of these kinds, and the rules that lead to them.
///
/// Only those of the plugin that is asked: one of the reference plugins in the same chain fails if its own is gone.
pub(crate) fn remove_chains(request: &Request<'_>, kinds: &[&str]) -> Result<(), PluginError> {
    let mut socket = Socket::netfilter()?;
    for chain in chain_names(request.network.as_str(), request.container.as_str(), kinds) {
        for family in [Family::Ipv4, Family::Ipv6] {
            if socket.has_chain(family, TABLE, &chain)? {
                remove_chain(&mut socket, family, &chain)?;
            }
        }
    }
    Ok(())
}

/// Deletes the container's end of a pair that somebody else made, if it is the one of the result that we were given.
pub(crate) fn remove_link(request: &Request<'_>) -> Result<(), PluginError> {
    let Some(previous) = request.previous.as_ref().filter(|_| request.netns_fate == NetnsFate::Stays) else {
        return Ok(());
    };
    let name = request.if_name.as_str();
    let described = previous
        .interfaces
        .iter()
        .find(|one| one.name == name && !one.sandbox.is_empty() && !one.mac.is_empty());
    let (Some(described), Some(netns)) = (described, netns_if_there(request)) else { return Ok(()) };
    let mut socket = Socket::route_in(netns.as_fd())?;
    match socket.find_link(name)? {
        Some(link) if link.mac.is_some_and(|mac| mac.to_string() == described.mac.to_lowercase()) => {
            PluginError::unless_gone(socket.delete_link(name))
        }
        _ => Ok(()),
    }
}

/// The name of the link through which what the attachment sends is led.
pub(crate) fn ifb_name(request: &Request<'_>) -> String {
    let hash = hash(request.network.as_str(), request.container.as_str());
    format!("bwp{hash}")[..LONGEST_LINK_NAME].to_owned()
}

fn chain_names(network: &str, container: &str, kinds: &[&str]) -> impl Iterator<Item = String> {
    let hash = hash(network, container);
    kinds.iter().map(move |prefix| format!("{prefix}{hash}")[..LONGEST_NAME].to_owned())
}

fn hash(network: &str, container: &str) -> String {
    let digest = Sha512::digest(format!("{network}{container}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn remove_chain(socket: &mut Socket, family: Family, chain: &str) -> Result<(), Error> {
    for _ in 0..TRIES {
        let mut batch = Batch::new(family, TABLE);
        let rules = socket.rules_of_table(family, TABLE)?;
        for rule in rules.iter().filter(|rule| rule.jump.as_deref() == Some(chain)) {
            batch.delete_rule(&rule.chain, rule.handle);
        }
        batch.flush_chain(chain);
        batch.delete_chain(chain);
        match socket.commit(&batch) {
            // Somebody else deleted one of them meanwhile: look again, unless all is gone.
            Err(error) if error.errno() == Errno::NOENT => {
                if !socket.has_chain(family, TABLE, chain)? {
                    return Ok(());
                }
            }
            done => return done,
        }
    }
    Err(Error::new(
        format!("nft: delete the chain {chain} (others change the table all the time)"),
        Errno::BUSY,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_have_the_names_that_the_reference_plugins_give_them() {
        let names: Vec<String> =
            chain_names("conformance", "container-2", &[MASQUERADE, PORTS].concat()).collect();
        assert_eq!(
            names,
            ["CNI-52923952096abbff0fde85b9", "CNI-DN-52923952096abbff0fde8", "CNI-SN-52923952096abbff0fde8"]
        );
    }
}
