//! The nft table `inet cofferdam`: fixed rules, and sets whose elements belong to attachments.
//!
//! ```text
//! prerouting raw   not from lo, to 127/8 ─▶ drop              (route_localnet would let containers reach the host's lo)
//! prerouting nat ─┐
//! output nat ─────┴▶ dnat:  address . protocol . port  in address_ports4/6 ─▶ dnat
//!                            to a local address: protocol . port  in ports4/6 ─▶ dnat
//! forward          established, to @forward4/6 ─▶ accept
//!                  from another bridge, not dnat'ed, to @guarded4/6 ─▶ drop
//!                  from @forward4/6 ─▶ accept
//! postrouting nat  dnat'ed, source . destination in @hairpin4/6 ─▶ masquerade   (a neighbour came by the host's port)
//!                  dnat'ed, from 127/8 ─▶ masquerade                            (the host came by 127.0.0.1)
//!                  source . interface in @local4/6 ─▶ accept                    (stays on its own bridge)
//!                  source in @masquerade4/6, not to multicast ─▶ masquerade
//! ```
//!
//! An attachment only adds and deletes elements, one transaction each way, and every element carries the attachment's mark
//! as its comment. Lookups, ADD and DEL cost the same with one attachment and with thousands (`owned.rs`). The table is made with its rules in
//! one transaction by whoever needs it first. Each rule carries its place in the layout as its comment, so CHECK sees whether
//! somebody took one away, and whoever finds a set missing puts everything back without touching an element.

mod layout;
mod owned;

use std::net::IpAddr;

use cofferdam_cni::{Code, PluginError, Request};
use cofferdam_linux::netlink::{Error, Socket};
use cofferdam_linux::nft::{Batch, Element, Family};
use rustix::io::Errno;

use crate::together::{self, Together};

pub(crate) use layout::{IPV4, IPV6, Ip, Kind, SetName};

/// Name of the table.
pub(crate) const TABLE: &str = "cofferdam";
/// How often a transaction is tried that lost a race with another process.
const TRIES: usize = 8;

/// A connection to the table.
pub(crate) struct Ruleset {
    socket: Socket,
}

/// An element and where it belongs.
pub(crate) type Entry = (SetName, Element);

impl Ruleset {
    pub(crate) fn open() -> Result<Self, PluginError> {
        Ok(Self { socket: Socket::netfilter()? })
    }

    /// Adds elements of one attachment in one transaction, making the table if it is missing, and pointers to its ports.
    ///
    /// An address that the sets still know from an attachment that is gone is taken over: whoever holds the lease is right.
    /// A port is not: `EEXIST` says it is somebody's.
    pub(crate) fn add(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let entries = &[entries, &owned::pointers(entries)].concat();
        let mut stale = Vec::new();
        for _ in 0..TRIES {
            let mut batch = Batch::new(Family::Inet, TABLE);
            for (set, element) in &stale {
                let (set, element): (&SetName, &Element) = (set, element);
                batch.delete_element(&set.text(), element);
            }
            for (set, element) in entries {
                batch.add_element(&set.text(), element);
            }
            match self.socket.commit(&batch) {
                Err(error) if error.errno() == Errno::NOENT => {
                    self.make_table()?;
                    stale = self.stale(entries)?;
                }
                Err(error) if error.errno() == Errno::EXIST => {
                    let found = self.stale(entries)?;
                    if found.is_empty() {
                        return Err(error);
                    }
                    stale = found;
                }
                done => return done,
            }
        }
        Err(contended("add elements to"))
    }

    /// Makes the table. Somebody else having made it is as good, if it is whole.
    fn make_table(&mut self) -> Result<(), Error> {
        match self.socket.commit(&layout::table(layout::Existing::Refuse).0) {
            Err(error) if error.errno() == Errno::EXIST && self.is_whole()? => Ok(()),
            Err(error) if error.errno() == Errno::EXIST => {
                self.socket.commit(&layout::table(layout::Existing::Repair).0)
            }
            made => made,
        }
    }

    /// Whether every fixed rule is in its place and there is no other.
    fn is_whole(&mut self) -> Result<bool, Error> {
        let rules = self.socket.rules_of_table(Family::Inet, TABLE)?;
        let mut found: Vec<&str> = rules.iter().map(|rule| rule.comment.as_str()).collect();
        let in_chains = rules.iter().all(|rule| rule.comment.contains(&rule.chain));
        let mut expected = layout::table(layout::Existing::Refuse).1;
        found.sort_unstable();
        expected.sort_unstable();
        Ok(in_chains && found == expected)
    }

    /// Compares the table with what ADD made: the fixed rules, and these elements.
    pub(crate) fn check(&mut self, plugin: &str, entries: &[Entry]) -> Result<(), PluginError> {
        let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("{plugin}: {what}")));
        for (set, element) in entries {
            match self.find(*set, element)? {
                Some(found) if found == *element => {}
                Some(found) if found.comment != element.comment => {
                    return wrong(format!(
                        "the nft set {} has an element of {} in the place of {}'s",
                        set.text(),
                        found.comment,
                        element.comment
                    ));
                }
                Some(_) => return wrong(format!("the nft map {} leads elsewhere", set.text())),
                None => return wrong(format!("the nft set {} lacks {}", set.text(), element.comment)),
            }
        }
        if !entries.is_empty() && !self.is_whole()? {
            return wrong(format!("the rules of the nft table inet {TABLE} were changed"));
        }
        Ok(())
    }

    fn stale(&mut self, entries: &[Entry]) -> Result<Vec<Entry>, Error> {
        let mut stale = Vec::new();
        for (set, element) in entries.iter().filter(|(set, _)| set.kind.is_by_address()) {
            stale.extend(self.find(*set, element)?.map(|found| (*set, found)));
        }
        Ok(stale)
    }

    /// The element with the key of `like`, if it is there.
    pub(crate) fn find(&mut self, set: SetName, like: &Element) -> Result<Option<Element>, Error> {
        self.socket.element(Family::Inet, TABLE, &set.text(), like)
    }

    /// Every element of a set; none if there is no table.
    pub(crate) fn elements(&mut self, set: SetName) -> Result<Vec<Element>, Error> {
        match self.socket.elements(Family::Inet, TABLE, &set.text()) {
            Err(error) if error.errno() == Errno::NOENT => Ok(Vec::new()),
            elements => elements,
        }
    }

    /// Deletes every element whose mark is `unwanted`, in one transaction.
    ///
    /// Whichever plugin of a chain is asked first deletes for all of them: a transaction that deletes waits 10 to 15 ms
    /// for RCU if another has just done so.
    pub(crate) fn remove(&mut self, unwanted: impl Fn(&str) -> bool) -> Result<(), Error> {
        self.remove_elements(|element| unwanted(&element.comment))
    }

    /// Deletes the ports of those who had this entry's address before its owner, and were never detached here: what came in
    /// by them would reach somebody else now. Whoever holds the lease is right.
    pub(crate) fn remove_ports_of_former(&mut self, entry: &Entry, address: IpAddr) -> Result<(), Error> {
        let (set, element) = entry;
        let Some(former) = self.find(*set, element)?.filter(|found| found.comment != element.comment) else {
            return Ok(());
        };
        let address = octets(address);
        self.remove_elements(|element| {
            element.comment == former.comment
                && element.data.as_ref().is_some_and(|data| data.starts_with(&address))
        })
    }

    fn remove_elements(&mut self, unwanted: impl Fn(&Element) -> bool) -> Result<(), Error> {
        for _ in 0..TRIES {
            let mut batch = Batch::new(Family::Inet, TABLE);
            for set in Kind::ALL.iter().flat_map(|kind| [kind.set(IPV4), kind.set(IPV6)]) {
                for element in self.elements(set)?.iter().filter(|element| unwanted(element)) {
                    batch.delete_element(&set.text(), element);
                }
            }
            match self.socket.commit(&batch) {
                // Somebody else deleted one of them meanwhile: look again.
                Err(error) if error.errno() == Errno::NOENT => {}
                done => return done,
            }
        }
        Err(contended("delete elements of"))
    }

    /// Deletes what belongs to the attachment, `known` among it.
    pub(crate) fn remove_of(request: &Request<'_>, known: Vec<Entry>) -> Result<(), PluginError> {
        let known = owned::by_address(request).map(|found| [found, known].concat());
        REMOVALS.ask(Removal { owner: request.owner(), known })
    }

    /// Deletes what carries the attachment's mark, wherever that is: everybody's elements are listed.
    pub(crate) fn remove_marked(request: &Request<'_>) -> Result<(), PluginError> {
        REMOVALS.ask(Removal { owner: request.owner(), known: None })
    }

    /// Deletes what belongs to these attachments, in one transaction.
    fn remove_together(&mut self, removals: &[Removal]) -> Result<(), Error> {
        if removals.iter().any(|removal| removal.known.is_none()) {
            return self.remove(|found| removals.iter().any(|removal| removal.owner == found));
        }
        for _ in 0..TRIES {
            let mut found = Vec::new();
            for removal in removals {
                self.find_of(removal, &mut found)?;
            }
            let mut batch = Batch::new(Family::Inet, TABLE);
            found.iter().for_each(|(set, element)| batch.delete_element(&set.text(), element));
            match self.socket.commit(&batch) {
                // Somebody else deleted one of them meanwhile: look again.
                Err(error) if error.errno() == Errno::NOENT => {}
                done => return done,
            }
        }
        Err(contended("delete elements of"))
    }

    /// Finds every element of an attachment that is known or pointed at.
    fn find_of(&mut self, removal: &Removal, found: &mut Vec<Entry>) -> Result<(), Error> {
        let mut candidates = removal.known.clone().unwrap_or_default();
        for ip in [IPV4, IPV6] {
            for at in 0.. {
                let (set, key) = owned::nth(ip, &removal.owner, at);
                let Some(pointer) = self.find(set, &key)? else { break };
                candidates.extend(owned::target(ip, &pointer));
                candidates.push((set, pointer));
            }
        }
        for (set, like) in candidates {
            let is_new = !found.iter().any(|(other, element)| *other == set && element.key == like.key);
            let element = self.find(set, &like)?.filter(|element| is_new && element.comment == removal.owner);
            found.extend(element.map(|element| (set, element)));
        }
        Ok(())
    }

    /// Deletes what belongs to attachments of the network that are not valid.
    pub(crate) fn collect(request: &Request<'_>) -> Result<(), PluginError> {
        Ok(Self::open()?.remove(unwanted(request)?)?)
    }

    /// Forgets flows to a port that were seen before it was mapped.
    pub(crate) fn forget_flows_to(&mut self, protocol: u8, port: u16) -> Result<(), Error> {
        self.socket.forget_flows_to(protocol, port)
    }

    /// Deletes the table.
    pub(crate) fn delete_table(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new(Family::Inet, TABLE);
        batch.delete_table();
        match self.socket.commit(&batch) {
            Err(error) if error.errno() == Errno::NOENT => Ok(()),
            done => done,
        }
    }
}

/// What is to be deleted of one attachment.
struct Removal {
    owner: String,
    /// Keys of its elements, those that pointers lead to apart; absent if there is no word of its addresses.
    known: Option<Vec<Entry>>,
}

/// A transaction that deletes waits 10 to 15 ms for RCU if another has just done so, whatever it deletes.
static REMOVALS: Together<Removal> = Together::new(|removals| {
    let removed = Ruleset::open().and_then(|mut ruleset| Ok(ruleset.remove_together(removals)?));
    together::all(removals, &removed)
});

/// Others were always faster.
fn contended(what: &str) -> Error {
    Error::new(format!("nft: {what} table {TABLE} (others change it all the time)"), Errno::BUSY)
}

/// Tells marks of attachments of the network that are not valid.
pub(crate) fn unwanted(request: &Request<'_>) -> Result<impl Fn(&str) -> bool, PluginError> {
    let (mark, valid) = (request.network_mark(), request.valid_owners()?);
    Ok(move |owner: &str| owner.starts_with(&mark) && !valid.iter().any(|one| one == owner))
}

/// The bytes of an address in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
