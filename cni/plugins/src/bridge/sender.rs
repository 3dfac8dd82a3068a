//! Frames that say they come from somebody else: the nft table `bridge cofferdam`.
//!
//! ```text
//! prerouting   from a port in @checked, port . sender not in @senders ─▶ drop
//! ```
//!
//! Two elements an attachment, marked as those of the table `inet cofferdam` are. The reference plugin makes two chains and
//! four rules for each.

use cofferdam_cni::{Code, PluginError, Request};
use cofferdam_linux::netlink::{Error, MacAddress, Socket};
use cofferdam_linux::nft::{
    Batch, ChainHook, Element, Expression, Family, Field, Hook, Key, Policy, Priority, Register, Set, Verdict,
};
use rustix::io::Errno;

use crate::ruleset::{TABLE, unwanted};
use crate::veth;

const CHECKED: &str = "checked";
const SENDERS: &str = "senders";
const CHAIN: &str = "prerouting";
/// The rule's comment: the number of this layout.
const RULE: &str = "1.0 prerouting";
/// Where the sender is in an Ethernet header.
const SENDER: (u32, u32) = (6, 6);
/// How often a transaction is tried that lost a race with another process.
const TRIES: usize = 8;

fn batch() -> Batch {
    Batch::new(Family::Bridge, TABLE)
}

fn table() -> Batch {
    let mut batch = batch();
    batch.create_table();
    for (name, key) in [(CHECKED, &[Field::Interface][..]), (SENDERS, &[Field::Interface, Field::Mac])] {
        batch.add_set(&Set { name, key, map: None, ranges: false });
    }
    let hook = ChainHook { hook: Hook::Prerouting, priority: Priority::Raw, policy: Policy::Accept };
    batch.add_chain(CHAIN, Some(hook));
    let (port, sender) = (Register(0), Register(Field::Interface.registers()));
    let rule = [
        Expression::Meta { key: Key::InputName, into: port },
        Expression::Lookup { set: CHECKED.into(), from: port, into: None },
        Expression::LinkHeader { offset: SENDER.0, length: SENDER.1, into: sender },
        Expression::NotIn { set: SENDERS.into(), from: port },
        Expression::verdict(Verdict::Drop),
    ];
    batch.add_rule(CHAIN, &rule, RULE);
    batch
}

fn elements(request: &Request<'_>, mac: MacAddress) -> [(&'static str, Element); 2] {
    let mut port = veth::host_name(request).into_bytes();
    port.resize(16, 0);
    let owner = request.owner();
    [
        (CHECKED, Element::set(&[port.clone()], &owner)),
        (SENDERS, Element::set(&[port, mac.0.to_vec()], &owner)),
    ]
}

/// From now on the container's port takes only frames that this address sent.
pub(super) fn guard(request: &Request<'_>, mac: MacAddress) -> Result<(), PluginError> {
    let mut socket = Socket::netfilter()?;
    // What a crash left under the port's name.
    remove_from(&mut socket, |found| found == request.owner())?;
    let mut batch = batch();
    for (set, element) in &elements(request, mac) {
        batch.add_element(set, element);
    }
    match socket.commit(&batch) {
        Err(error) if error.errno() == Errno::NOENT => {}
        done => return Ok(done?),
    }
    match socket.commit(&table()) {
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::OPNOTSUPP) => {
            let message = "bridge: this kernel has no nft tables for bridges, which macspoofchk needs (nft_meta_bridge)";
            return Err(PluginError::new(Code::KERNEL, message).with_details(error));
        }
        // Somebody else made it meanwhile.
        Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
        _ => {}
    }
    Ok(socket.commit(&batch)?)
}

/// Compares with what [`guard`] did.
pub(super) fn check(request: &Request<'_>, mac: MacAddress) -> Result<(), PluginError> {
    let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("bridge: {what}")));
    let mut socket = Socket::netfilter()?;
    for (set, element) in &elements(request, mac) {
        if socket.element(Family::Bridge, TABLE, set, element)?.as_ref() != Some(element) {
            return wrong(format!("the nft set {set} of the table bridge {TABLE} lacks {}", element.comment));
        }
    }
    let rules = socket.rules_of_table(Family::Bridge, TABLE)?;
    match &rules[..] {
        [only] if only.comment == RULE && only.chain == CHAIN => Ok(()),
        _ => wrong(format!("the rules of the nft table bridge {TABLE} were changed")),
    }
}

/// Deletes what belongs to the attachment.
pub(super) fn remove(request: &Request<'_>) -> Result<(), PluginError> {
    let owner = request.owner();
    Ok(remove_from(&mut Socket::netfilter()?, |found| found == owner)?)
}

/// Deletes what belongs to attachments of the network that are not valid.
pub(super) fn collect(request: &Request<'_>) -> Result<(), PluginError> {
    Ok(remove_from(&mut Socket::netfilter()?, unwanted(request)?)?)
}

/// Deletes the table.
pub(crate) fn delete_table() -> Result<(), PluginError> {
    let mut batch = batch();
    batch.delete_table();
    PluginError::unless_gone(Socket::netfilter()?.commit(&batch))
}

fn remove_from(socket: &mut Socket, unwanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    for _ in 0..TRIES {
        let mut batch = batch();
        for set in [CHECKED, SENDERS] {
            let elements = match socket.elements(Family::Bridge, TABLE, set) {
                Err(error) if error.errno() == Errno::NOENT => Vec::new(),
                elements => elements?,
            };
            for element in elements.iter().filter(|element| unwanted(&element.comment)) {
                batch.delete_element(set, element);
            }
        }
        match socket.commit(&batch) {
            // Somebody else deleted one of them meanwhile: look again.
            Err(error) if error.errno() == Errno::NOENT => {}
            done => return done,
        }
    }
    Err(Error::new(
        format!("nft: delete elements of table bridge {TABLE} (others change it all the time)"),
        Errno::BUSY,
    ))
}
