//! Rules: which routing table decides for a packet.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Socket};

/// A rule that packets from one address are routed by one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The source address.
    pub source: IpAddr,
    /// The table.
    pub table: u32,
}

impl Socket {
    /// The rules about one source address each, both families.
    pub fn rules_by_source(&mut self) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answer = self.dump(RouteNetlinkMessage::GetRule(message), "list rules")?;
            rules.extend(answer.into_iter().filter_map(read));
        }
        Ok(rules)
    }

    /// Adds a rule; `EEXIST` if it is there.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRule(message_of(rule));
        self.acknowledge(message, NLM_F_CREATE | NLM_F_EXCL, &format!("add rule {rule:?}"))
    }

    /// Deletes a rule; `ENOENT` if it is not there.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRule(message_of(rule));
        self.acknowledge(message, 0, &format!("delete rule {rule:?}"))
    }
}

fn message_of(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (family, length) =
        if rule.source.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    message.header.family = family;
    message.header.src_len = length;
    message.header.action = RuleAction::ToTable;
    // A number that does not fit is only in the attribute.
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.attributes = vec![RuleAttribute::Source(rule.source), RuleAttribute::Table(rule.table)];
    message
}

fn read(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let (mut source, mut table) = (None, u32::from(message.header.table));
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(address),
            RuleAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    let source =
        source.filter(|source: &IpAddr| message.header.src_len == if source.is_ipv4() { 32 } else { 128 });
    Some(Rule { source: source?, table })
}
