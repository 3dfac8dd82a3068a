//! Reading back: elements, rules, chains, tables.

use rustix::io::Errno;

use super::attribute::{Attributes, Reader, comment_of, user_data_of};
use super::batch::{Header, Policy, encode};
use super::expression::Family;
use super::message;
use crate::netlink::{DUMP_TRIES, Dump, Error, Next, Socket, refusal};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const GENERIC_HEADER_BYTES: usize = 4;

/// The full type of a message of the nf_tables subsystem.
fn nft(kind: u16) -> u16 {
    (message::SUBSYSTEM << 8) | kind
}

/// An element of a set or map, its fields joined and padded as the kernel keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key, or the lower end of the range.
    pub key: Vec<u8>,
    /// The upper end of the range, for a set of ranges.
    pub key_end: Option<Vec<u8>>,
    /// The data, for a map.
    pub data: Option<Vec<u8>>,
    /// The comment in its user data; empty if there is none.
    pub comment: String,
}

impl Element {
    /// An element of a set.
    pub fn set<F: AsRef<[u8]>>(key: &[F], comment: &str) -> Self {
        Self { key: join(key), comment: comment.into(), ..Self::default() }
    }

    /// An element of a map.
    pub fn map<F: AsRef<[u8]>, D: AsRef<[u8]>>(key: &[F], data: &[D], comment: &str) -> Self {
        Self { data: Some(join(data)), ..Self::set(key, comment) }
    }

    /// An element of a set of ranges; both ends belong to it.
    pub fn range<F: AsRef<[u8]>>(first: &[F], last: &[F], comment: &str) -> Self {
        Self { key_end: Some(join(last)), ..Self::set(first, comment) }
    }

    pub(super) fn encode_key(&self, list: &mut Attributes) {
        list.nest(1, |element| self.key_attributes(element));
    }

    pub(super) fn encode(&self, list: &mut Attributes) {
        list.nest(1, |element| {
            self.key_attributes(element);
            if let Some(data) = &self.data {
                element.nest(2, |value| _ = value.bytes(1, data));
            }
            if !self.comment.is_empty() {
                element.bytes(6, &user_data_of(&self.comment));
            }
        });
    }

    fn key_attributes(&self, element: &mut Attributes) {
        element.nest(1, |value| _ = value.bytes(1, &self.key));
        if let Some(end) = &self.key_end {
            element.nest(10, |value| _ = value.bytes(1, end));
        }
    }

    fn read(attributes: &[u8]) -> Option<Self> {
        let reader = Reader(attributes);
        let value = |kind| Reader(reader.find(kind)?).find(1).map(<[u8]>::to_vec);
        Some(Self {
            key: value(1)?,
            key_end: value(10),
            data: value(2),
            comment: reader.find(6).map(comment_of).unwrap_or_default(),
        })
    }
}

/// Joins fields, each padded to a register if there are several.
fn join<F: AsRef<[u8]>>(fields: &[F]) -> Vec<u8> {
    let mut joined = Vec::new();
    for field in fields {
        joined.extend(field.as_ref());
        if fields.len() > 1 {
            joined.resize(joined.len().next_multiple_of(4), 0);
        }
    }
    joined
}

/// A rule as found in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is in.
    pub chain: String,
    /// What it is deleted by.
    pub handle: u64,
    /// The comment in its user data; empty if there is none.
    pub comment: String,
    /// The chain that it jumps or goes to.
    pub jump: Option<String>,
}

/// A chain as found in some table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The table it is in.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The policy, for a base chain.
    pub policy: Option<Policy>,
}

impl Socket {
    /// Every element of a set; `ENOENT` if set or table are missing.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table).text(2, set);
        let operation = format!("nft: list the elements of {table} {set}");
        self.dump_all(nft(message::GET_ELEMENT), family, &attributes, &operation, read_elements)
    }

    /// The element with the key of `like`, if it is there.
    pub fn element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        like: &Element,
    ) -> Result<Option<Element>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table).text(2, set).nest(3, |list| like.encode_key(list));
        let mut elements = Vec::new();
        let operation = format!("nft: look up an element of {table} {set}");
        let asked =
            self.ask(nft(message::GET_ELEMENT), message::ACK, family, &attributes, &operation, |part| {
                read_elements(part, &mut elements);
            });
        match asked {
            Err(error) if error.errno() == Errno::NOENT => Ok(None),
            asked => asked.map(|_| elements.pop()),
        }
    }

    /// Every rule of a chain in order; `ENOENT` if chain or table are missing.
    pub fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table).text(2, chain);
        let operation = format!("nft: list the rules of {table} {chain}");
        let mut rules = self.dump_rules(family, table, &attributes, &operation)?;
        // An older kernel dumps every chain whatever was asked.
        rules.retain(|rule| rule.chain == chain);
        Ok(rules)
    }

    /// Every rule of a table, those of a chain in order; none if there is no table.
    pub fn rules_of_table(&mut self, family: Family, table: &str) -> Result<Vec<Rule>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        match self.dump_rules(family, table, &attributes, &format!("nft: list the rules of {table}")) {
            Err(error) if error.errno() == Errno::NOENT => Ok(Vec::new()),
            rules => rules,
        }
    }

    fn dump_rules(
        &mut self,
        family: Family,
        table: &str,
        attributes: &Attributes,
        operation: &str,
    ) -> Result<Vec<Rule>, Error> {
        self.dump_all(nft(message::GET_RULE), family, attributes, operation, |part, rules| {
            let comment = part.find(7).map(comment_of).unwrap_or_default();
            if let (Some(handle), Some(chain)) = (part.long(3), part.text(2))
                && part.text(1).as_deref() == Some(table)
            {
                let jump = part.find(4).and_then(|list| Reader(list).find_map(|(_, one)| jump(Reader(one))));
                rules.push(Rule { chain, handle, comment, jump });
            }
        })
    }

    /// Every chain of a family.
    pub fn chains(&mut self, family: Family) -> Result<Vec<Chain>, Error> {
        let nothing = Attributes::default();
        self.dump_all(nft(message::GET_CHAIN), family, &nothing, "nft: list chains", |part, chains| {
            let policy = match part.number(5) {
                Some(0) => Some(Policy::Drop),
                Some(_) => Some(Policy::Accept),
                None => None,
            };
            if let (Some(table), Some(name)) = (part.text(1), part.text(3)) {
                chains.push(Chain { table, name, policy });
            }
        })
    }

    /// Whether the chain exists.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table).text(3, chain);
        let operation = format!("nft: look up the chain {chain} of {table}");
        match self.ask(nft(message::GET_CHAIN), message::ACK, family, &attributes, &operation, |_| {}) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Errno::NOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the table exists.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        match self.ask(
            nft(message::GET_TABLE),
            message::ACK,
            family,
            &attributes,
            "nft: look up a table",
            |_| {},
        ) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Errno::NOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Dumps; begins again if what is dumped changed meanwhile, for a rule that was missed would never be deleted.
    pub(super) fn dump_all<T>(
        &mut self,
        kind: u16,
        family: Family,
        attributes: &Attributes,
        operation: &str,
        mut read: impl FnMut(Reader<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut all = Vec::new();
            let flags = message::DUMP;
            let dump = self.ask(kind, flags, family, attributes, operation, |part| read(part, &mut all))?;
            if dump == Dump::Whole {
                return Ok(all);
            }
        }
        Err(Error::new(operation, Errno::BUSY))
    }

    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        attributes: &Attributes,
        operation: &str,
        mut part: impl FnMut(Reader<'_>),
    ) -> Result<Dump, Error> {
        let sequence = self.next_sequence();
        let header =
            Header { kind, flags: message::REQUEST | flags, sequence, family: family.number(), resource: 0 };
        let mut bytes = Vec::new();
        encode(&mut bytes, header, &attributes.0);
        self.send(&bytes).map_err(|errno| Error::new(operation, errno))?;
        let (mut refused, mut dump) = (None, Dump::Whole);
        self.receive_until(|received| {
            if received.sequence != sequence {
                return Ok(Next::More);
            }
            dump = dump.and(&received);
            match received.kind {
                NLMSG_DONE => return Ok(Next::Stop),
                NLMSG_ERROR => {
                    refused = refusal(&received);
                    return Ok(Next::Stop);
                }
                _ => part(Reader(received.payload.get(GENERIC_HEADER_BYTES..).unwrap_or_default())),
            }
            Ok(Next::More)
        })
        .map_err(|errno| Error::new(operation, errno))?;
        refused.map_or(Ok(dump), |(errno, _)| Err(Error::new(operation, errno)))
    }
}

/// The chain that an expression, an immediate verdict, leads to.
fn jump(expression: Reader<'_>) -> Option<String> {
    if expression.text(1).as_deref() != Some("immediate") {
        return None;
    }
    // NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN.
    let data = Reader(Reader(expression.find(2)?).find(2)?);
    Reader(data.find(2)?).text(2)
}

fn read_elements(part: Reader<'_>, elements: &mut Vec<Element>) {
    let list = part.find(3).unwrap_or_default();
    elements.extend(Reader(list).filter_map(|(_, attributes)| Element::read(attributes)));
}
