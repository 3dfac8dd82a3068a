//! A batch: changes to one table that the kernel commits together or not at all.

use rustix::io::Errno;

use super::attribute::{Attributes, user_data_of};
use super::dump::Element;
use super::expression::{Expression, Family, Field};
use super::message;
use crate::netlink::{Error, Next, Socket, refusal};

/// `NLMSG_ERROR`, which is also the acknowledgement.
const NLMSG_ERROR: u16 = 2;
const GENERIC_HEADER_BYTES: usize = 4;
const HEADER_BYTES: usize = 16;

/// Where a base chain sits in the path of a packet, `NF_INET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the routing decision.
    Prerouting,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After the routing decision.
    Postrouting,
}

/// When a base chain runs among those of its hook; implies the chain's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Type filter, -300: before connection tracking.
    Raw,
    /// Type filter, 0.
    Filter,
    /// Type nat, -100.
    DestinationNat,
    /// Type nat, 100.
    SourceNat,
}

/// What becomes of a packet that reaches the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is thrown away.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHook {
    /// Where.
    pub hook: Hook,
    /// When, and of which type.
    pub priority: Priority,
    /// The default.
    pub policy: Policy,
}

/// The type of a map's data: a concatenation of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapOf<'a>(pub &'a [Field]);

/// A set or map to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Its name.
    pub name: &'a str,
    /// The fields of its key.
    pub key: &'a [Field],
    /// The fields of its data, if it is a map.
    pub map: Option<MapOf<'a>>,
    /// Whether elements are ranges (Linux 5.6 for keys of several fields); otherwise a hash table.
    pub ranges: bool,
}

/// Changes to one table, made in order and committed as one.
#[derive(Debug, Clone)]
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<(u16, u16, Attributes)>,
    sets: u32,
}

impl Batch {
    /// An empty batch for a table.
    pub fn new(family: Family, table: &str) -> Self {
        Self { family, table: table.into(), messages: Vec::new(), sets: 0 }
    }

    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut attributes = Attributes::default();
        attributes.text(1, &self.table);
        fill(&mut attributes);
        self.messages.push((kind, flags, attributes));
    }

    /// Makes the table; the commit fails with `EEXIST` if it is there, so that a layout is made by one process only.
    pub fn create_table(&mut self) {
        self.push(message::NEW_TABLE, message::CREATE | message::EXCLUSIVE, |_| {});
    }

    /// Makes the table unless it is there.
    pub fn add_table(&mut self) {
        self.push(message::NEW_TABLE, message::CREATE, |_| {});
    }

    /// Deletes the table with all that is in it.
    pub fn delete_table(&mut self) {
        self.push(message::DELETE_TABLE, 0, |_| {});
    }

    /// Makes a chain; with a hook, a base chain.
    pub fn add_chain(&mut self, name: &str, hook: Option<ChainHook>) {
        self.push(message::NEW_CHAIN, message::CREATE, |out| {
            out.text(3, name);
            let Some(base) = hook else { return };
            let (priority, kind) = base.priority.number_and_type();
            out.nest(4, |hook| _ = hook.number(1, base.hook.number()).number(2, priority.cast_unsigned()));
            out.number(5, base.policy.number()).text(7, kind);
        });
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, set: &Set<'_>) {
        const RANGES: u32 = 0x4;
        const MAP: u32 = 0x8;
        const CONCATENATION: u32 = 0x80;
        self.sets += 1;
        let id = self.sets;
        self.push(message::NEW_SET, message::CREATE, |out| {
            let several = set.key.len() > 1;
            let mut flags = if set.map.is_some() { MAP } else { 0 };
            if set.ranges {
                flags |= if several { RANGES | CONCATENATION } else { RANGES };
            }
            out.text(2, set.name).number(3, flags).number(4, types(set.key)).number(5, width(set.key));
            if let Some(MapOf(data)) = set.map {
                out.number(6, types(data)).number(7, width(data));
            }
            if set.ranges && several {
                out.nest(9, |description| _ = description.nest(2, |fields| concatenation(fields, set.key)));
            }
            out.number(10, id);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expression], comment: &str) {
        self.rule(chain, expressions, comment, message::APPEND);
    }

    /// Puts a rule before all others of its chain.
    pub fn insert_rule(&mut self, chain: &str, expressions: &[Expression], comment: &str) {
        self.rule(chain, expressions, comment, 0);
    }

    fn rule(&mut self, chain: &str, expressions: &[Expression], comment: &str, place: u16) {
        self.push(message::NEW_RULE, message::CREATE | place, |out| {
            out.text(2, chain);
            out.nest(4, |list| expressions.iter().for_each(|expression| expression.encode(list)));
            if !comment.is_empty() {
                out.bytes(7, &user_data_of(comment));
            }
        });
    }

    /// Deletes a chain, which must be empty and jumped to by nobody when its turn comes.
    pub fn delete_chain(&mut self, name: &str) {
        self.push(message::DELETE_CHAIN, 0, |out| _ = out.text(3, name));
    }

    /// Deletes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &str) {
        self.push(message::DELETE_RULE, 0, |out| _ = out.text(2, chain));
    }

    /// Deletes the rule with this handle.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.push(message::DELETE_RULE, 0, |out| _ = out.text(2, chain).long(3, handle));
    }

    /// Adds an element; the commit fails with `EEXIST` if its key is there.
    pub fn add_element(&mut self, set: &str, element: &Element) {
        self.push(message::NEW_ELEMENT, message::CREATE | message::EXCLUSIVE, |out| {
            out.text(2, set);
            out.nest(3, |list| element.encode(list));
        });
    }

    /// Deletes the element with this key; the commit fails with `ENOENT` if it is not there.
    pub fn delete_element(&mut self, set: &str, element: &Element) {
        self.push(message::DELETE_ELEMENT, 0, |out| {
            out.text(2, set);
            out.nest(3, |list| element.encode_key(list));
        });
    }
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl Priority {
    fn number_and_type(self) -> (i32, &'static str) {
        match self {
            Self::Raw => (-300, "filter"),
            Self::Filter => (0, "filter"),
            Self::DestinationNat => (-100, "nat"),
            Self::SourceNat => (100, "nat"),
        }
    }
}

impl Policy {
    pub(super) fn number(self) -> u32 {
        u32::from(self == Self::Accept)
    }
}

fn types(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| (all << 6) | field.type_number())
}

/// Each field of a concatenation is padded to a register.
fn width(fields: &[Field]) -> u32 {
    match fields {
        [one] => one.width_bytes(),
        several => several.iter().map(|field| u32::from(field.registers()) * 4).sum(),
    }
}

fn concatenation(out: &mut Attributes, fields: &[Field]) {
    for field in fields {
        out.nest(1, |element| _ = element.number(1, field.width_bytes()));
    }
}

/// Writes one message with its generic netfilter header.
pub(super) fn encode(out: &mut Vec<u8>, header: Header, attributes: &[u8]) {
    let length = u32::try_from(HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.len()).unwrap_or(u32::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(header.kind.to_ne_bytes());
    out.extend(header.flags.to_ne_bytes());
    out.extend(header.sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([header.family, 0]);
    out.extend(header.resource.to_be_bytes());
    out.extend(attributes);
}

/// The two headers of a netfilter message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) family: u8,
    pub(super) resource: u16,
}

impl Socket {
    /// Commits a batch: all of it, or nothing and the first error.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let operation = || format!("nft: change table {}", batch.table);
        let (bytes, last) = self.encode_batch(batch);
        self.send(&bytes).map_err(|errno| Error::new(operation(), errno))?;
        let mut refused: Option<(Errno, Option<String>)> = None;
        // Only the last change asks for an acknowledgement, but every failing one is reported, in order.
        self.receive_until(|received| {
            if received.kind == NLMSG_ERROR && refused.is_none() {
                refused = refusal(&received);
            }
            Ok(if received.sequence == last { Next::Stop } else { Next::More })
        })
        .map_err(|errno| Error::new(operation(), errno))?;
        match refused {
            None => Ok(()),
            Some((errno, None)) => Err(Error::new(operation(), errno)),
            Some((errno, Some(words))) => Err(Error::new(format!("{}: {words}", operation()), errno)),
        }
    }

    fn encode_batch(&mut self, batch: &Batch) -> (Vec<u8>, u32) {
        let mut bytes = Vec::with_capacity(4096);
        let border = |kind, sequence| Header {
            kind,
            flags: message::REQUEST,
            sequence,
            family: 0,
            resource: message::SUBSYSTEM,
        };
        encode(&mut bytes, border(message::BATCH_BEGIN, self.next_sequence()), &[]);
        let mut last = 0;
        for (at, (kind, flags, attributes)) in batch.messages.iter().enumerate() {
            last = self.next_sequence();
            let ack = if at + 1 == batch.messages.len() { message::ACK } else { 0 };
            let header = Header {
                kind: (message::SUBSYSTEM << 8) | kind,
                flags: message::REQUEST | ack | flags,
                sequence: last,
                family: batch.family.number(),
                resource: 0,
            };
            encode(&mut bytes, header, &attributes.0);
        }
        encode(&mut bytes, border(message::BATCH_END, self.next_sequence()), &[]);
        (bytes, last)
    }
}
