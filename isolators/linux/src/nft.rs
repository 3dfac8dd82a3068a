//! nf_tables over netlink: batches of changes and dumps, without a process. nft(8), libnftnl is not used.
//!
//! ```text
//! Batch::new(family, table)   one transaction: all of it holds, or none
//!   .add_table .add_chain .add_set .add_rule .add_element .delete_element .delete_rule
//! Socket::commit(batch)
//! Socket::elements(…), Socket::rules(…), Socket::has_table(…)   reading back
//! Socket::forget_flows_to(…)   connection tracking
//! ```
//!
//! What is ours is marked by a comment in the user data of an element or rule; nft(8) prints it. Only the expressions that
//! the network plugins need are here ([`Expression`]). Needs CAP_NET_ADMIN; the socket comes from
//! [`Socket::netfilter`](crate::netlink::Socket::netfilter).

mod attribute;
mod batch;
mod conntrack;
mod dump;
mod expression;

pub use batch::{Batch, ChainHook, Hook, MapOf, Policy, Priority, Set};
pub use dump::{Chain, Element, Rule};
pub use expression::{Compare, Expression, Family, Field, Key, Register, Verdict};

/// Message types of the nf_tables subsystem, linux/netfilter/nf_tables.h.
pub(crate) mod message {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DELETE_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const DELETE_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const DELETE_RULE: u16 = 8;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DELETE_ELEMENT: u16 = 14;

    /// `NFNL_SUBSYS_NFTABLES`, the high byte of the message type.
    pub(crate) const SUBSYSTEM: u16 = 10;
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;

    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::with_new_netns;
    use crate::netlink::Socket;
    use rustix::io::Errno;

    const TABLE: &str = "cofferdam-test";

    fn in_new_netns(work: impl FnOnce(&mut Socket) + Send) {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        with_new_netns(|| work(&mut Socket::netfilter().unwrap())).unwrap();
    }

    fn layout() -> Batch {
        let mut batch = Batch::new(Family::Inet, TABLE);
        batch.create_table();
        batch.add_set(&Set {
            name: "ports",
            key: &[Field::Protocol, Field::Port],
            map: Some(MapOf(&[Field::Ipv4, Field::Port])),
            ranges: false,
        });
        batch.add_set(&Set { name: "pairs", key: &[Field::Ipv4, Field::Ipv4], map: None, ranges: true });
        let nat =
            ChainHook { hook: Hook::Prerouting, priority: Priority::DestinationNat, policy: Policy::Accept };
        batch.add_chain("dnat", None);
        batch.add_chain("prerouting", Some(nat));
        batch.add_rule("prerouting", &[Expression::verdict(Verdict::Jump("dnat".into()))], "jump");
        batch
    }

    #[test]
    fn a_layout_is_made_once_and_elements_carry_their_comment() {
        in_new_netns(|socket| {
            assert!(!socket.has_table(Family::Inet, TABLE).unwrap());
            socket.commit(&layout()).unwrap();
            assert!(socket.has_table(Family::Inet, TABLE).unwrap());
            assert_eq!(socket.commit(&layout()).unwrap_err().errno(), Errno::EXIST);

            let key = [vec![6], 8080u16.to_be_bytes().to_vec()];
            let data = [vec![10, 0, 0, 2], 80u16.to_be_bytes().to_vec()];
            let mut batch = Batch::new(Family::Inet, TABLE);
            batch.add_element("ports", &Element::map(&key, &data, "net/one/eth0"));
            batch.add_element(
                "pairs",
                &Element::range(&[[10, 0, 0, 0], [10, 0, 0, 2]], &[[10, 0, 0, 255], [10, 0, 0, 2]], "x"),
            );
            socket.commit(&batch).unwrap();

            let elements = socket.elements(Family::Inet, TABLE, "ports").unwrap();
            assert_eq!(elements, [Element::map(&key, &data, "net/one/eth0")]);
            let mut again = Batch::new(Family::Inet, TABLE);
            again
                .add_element("ports", &Element::map(&key, &[vec![10, 0, 0, 3], vec![0, 81]], "net/two/eth0"));
            assert_eq!(socket.commit(&again).unwrap_err().errno(), Errno::EXIST);
            let holder = socket.element(Family::Inet, TABLE, "ports", &elements[0]).unwrap().unwrap();
            assert_eq!(holder.comment, "net/one/eth0");

            let pairs = socket.elements(Family::Inet, TABLE, "pairs").unwrap();
            assert_eq!(pairs.len(), 1);
            let mut delete = Batch::new(Family::Inet, TABLE);
            delete.delete_element("ports", &elements[0]);
            delete.delete_element("pairs", &pairs[0]);
            socket.commit(&delete).unwrap();
            assert!(socket.elements(Family::Inet, TABLE, "ports").unwrap().is_empty());
            assert!(socket.elements(Family::Inet, TABLE, "pairs").unwrap().is_empty());
            assert!(socket.element(Family::Inet, TABLE, "ports", &elements[0]).unwrap().is_none());
        });
    }

    #[test]
    fn a_failing_batch_changes_nothing() {
        in_new_netns(|socket| {
            let mut batch = layout();
            batch.add_rule("no-such-chain", &[Expression::verdict(Verdict::Accept)], "");
            assert_eq!(socket.commit(&batch).unwrap_err().errno(), Errno::NOENT);
            assert!(!socket.has_table(Family::Inet, TABLE).unwrap());
        });
    }

    #[test]
    fn rules_are_found_by_comment_and_deleted_by_handle() {
        in_new_netns(|socket| {
            socket.commit(&layout()).unwrap();
            let rules = socket.rules(Family::Inet, TABLE, "prerouting").unwrap();
            assert_eq!(rules.len(), 1);
            assert_eq!(rules[0].comment, "jump");
            let mut batch = Batch::new(Family::Inet, TABLE);
            batch.delete_rule("prerouting", rules[0].handle);
            socket.commit(&batch).unwrap();
            assert!(socket.rules(Family::Inet, TABLE, "prerouting").unwrap().is_empty());
            let chains = socket.chains(Family::Inet).unwrap();
            assert!(
                chains.iter().any(|chain| chain.name == "prerouting" && chain.policy == Some(Policy::Accept))
            );
        });
    }
}
