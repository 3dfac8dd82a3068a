//! Connection tracking: forgetting flows that were seen before a port was mapped.
//!
//! A flow is translated as its first packet was. A peer that keeps sending UDP from one port to a port that is mapped
//! meanwhile would go on reaching the host, for as long as it does not pause for half a minute.

use rustix::io::Errno;

use super::attribute::{Attributes, Reader};
use super::expression::Family;
use super::message;
use crate::netlink::{Error, Socket};

/// `NFNL_SUBSYS_CTNETLINK` and its messages.
const SUBSYSTEM: u16 = 1;
const GET: u16 = (SUBSYSTEM << 8) | 1;
const DELETE: u16 = (SUBSYSTEM << 8) | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;

impl Socket {
    /// Forgets every tracked flow of this protocol that was sent to this port. Flows that end meanwhile are fine.
    pub fn forget_flows_to(&mut self, protocol: u8, port: u16) -> Result<(), Error> {
        for family in [Family::Ipv4, Family::Ipv6] {
            let operation = "conntrack: list flows";
            let flows =
                self.dump_all(GET, family, &Attributes::default(), operation, |part, flows: &mut Vec<_>| {
                    flows.extend(
                        part.find(CTA_TUPLE_ORIG)
                            .filter(|flow| is_to(flow, protocol, port))
                            .map(<[u8]>::to_vec),
                    );
                })?;
            for flow in flows {
                let mut tuple = Attributes::default();
                tuple.bytes(CTA_TUPLE_ORIG | NESTED, &flow);
                let deleted =
                    self.ask(DELETE, message::ACK, family, &tuple, "conntrack: forget a flow", |_| {});
                match deleted {
                    Err(error) if error.errno() != Errno::NOENT => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn is_to(tuple: &[u8], protocol: u8, port: u16) -> bool {
    let Some(transport) = Reader(tuple).find(CTA_TUPLE_PROTO).map(Reader) else { return false };
    transport.find(CTA_PROTO_NUM) == Some(&[protocol])
        && transport.find(CTA_PROTO_DST_PORT) == Some(&port.to_be_bytes())
}
