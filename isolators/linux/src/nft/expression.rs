//! Expressions: what a rule loads, compares and does. One variant per kernel expression in use.

use super::attribute::Attributes;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Frames on their way through a bridge.
    Bridge,
}

impl Family {
    /// `NFPROTO_*`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
            Self::Bridge => 7,
        }
    }
}

/// One of the sixteen registers of four bytes (`NFT_REG32_00` …). A longer value fills the following ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        const NFT_REG32_00: u32 = 8;
        NFT_REG32_00 + u32::from(self.0)
    }
}

/// The type of a field of a set's key or a map's data: its width, and how nft(8) prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Four bytes.
    Ipv4,
    /// Sixteen bytes.
    Ipv6,
    /// Ethernet address, six bytes.
    Mac,
    /// Transport protocol, one byte.
    Protocol,
    /// Port, two bytes in network order.
    Port,
    /// Interface name, sixteen bytes, NUL-padded.
    Interface,
}

impl Field {
    pub(super) fn type_number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Interface => 41,
        }
    }

    pub(super) fn width_bytes(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Mac => 6,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// How many registers the field takes in a concatenation.
    pub fn registers(self) -> u8 {
        u8::try_from(self.width_bytes().div_ceil(4)).unwrap_or(4)
    }
}

/// A property of the packet that is not in its bytes, `NFT_META_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Name of the interface it came in by.
    InputName,
    /// Name of the interface it leaves by.
    OutputName,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    Family,
    /// Transport protocol, one byte.
    Protocol,
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Not equal.
    Unequal,
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done with this hook's chain.
    Accept,
    /// Thrown away.
    Drop,
    /// On in another chain, then back.
    Jump(String),
    /// Back to the chain that jumped here.
    Return,
}

/// One expression of a rule. Registers named `into` are written, `from` read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Loads a property of the packet.
    Meta {
        /// Which.
        key: Key,
        /// Where to.
        into: Register,
    },
    /// Loads bytes of the Ethernet header.
    LinkHeader {
        /// First byte.
        offset: u32,
        /// How many.
        length: u32,
        /// Where to.
        into: Register,
    },
    /// Loads bytes of the network header.
    NetworkHeader {
        /// First byte.
        offset: u32,
        /// How many.
        length: u32,
        /// Where to.
        into: Register,
    },
    /// Loads bytes of the transport header.
    TransportHeader {
        /// First byte.
        offset: u32,
        /// How many.
        length: u32,
        /// Where to.
        into: Register,
    },
    /// Loads the connection's status bits, `IPS_*`, host order.
    ConnectionStatus {
        /// Where to.
        into: Register,
    },
    /// Loads the connection's state bit, host order.
    ConnectionState {
        /// Where to.
        into: Register,
    },
    /// Loads the type of the destination address (`RTN_LOCAL` = 2), host order.
    DestinationType {
        /// Where to.
        into: Register,
    },
    /// Keeps the bits of `mask`.
    Mask {
        /// Source and destination.
        register: Register,
        /// As many bytes as are masked.
        mask: Vec<u8>,
    },
    /// Goes on only if the comparison holds.
    Compare {
        /// What is compared.
        from: Register,
        /// How.
        compare: Compare,
        /// With what.
        value: Vec<u8>,
    },
    /// Goes on only if the key is in the set.
    Lookup {
        /// The set.
        set: String,
        /// First register of the key.
        from: Register,
        /// First register the map's data goes to; absent for a set.
        into: Option<Register>,
    },
    /// Goes on only if the key is not in the set.
    NotIn {
        /// The set.
        set: String,
        /// First register of the key.
        from: Register,
    },
    /// Rewrites the destination.
    DestinationNat {
        /// IPv4 or IPv6.
        family: Family,
        /// Register of the address.
        address: Register,
        /// Register of the port.
        port: Register,
    },
    /// Rewrites the source to the address of the outgoing interface.
    Masquerade,
    /// Counts packets and bytes.
    Counter,
    /// A match of xtables, for rules in chains that iptables(8) reads too.
    XtablesMatch {
        /// Its name.
        name: &'static str,
        /// The revision of its data.
        revision: u32,
        /// Its data, padded to eight bytes.
        data: Vec<u8>,
    },
    /// Decides.
    Verdict(Verdict),
}

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

impl Expression {
    /// Decides.
    pub fn verdict(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }

    /// Goes on only if the register equals the value.
    pub fn equal(from: Register, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare { from, compare: Compare::Equal, value: value.into() }
    }

    /// Goes on only if the register differs from the value.
    pub fn unequal(from: Register, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare { from, compare: Compare::Unequal, value: value.into() }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::LinkHeader { .. } | Self::NetworkHeader { .. } | Self::TransportHeader { .. } => "payload",
            Self::ConnectionStatus { .. } | Self::ConnectionState { .. } => "ct",
            Self::DestinationType { .. } => "fib",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::NotIn { .. } => "lookup",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Counter => "counter",
            Self::XtablesMatch { .. } => "match",
            Self::Verdict(_) => "immediate",
        }
    }

    /// Writes the expression as an element of a rule's list.
    pub(super) fn encode(&self, list: &mut Attributes) {
        const NFTA_LIST_ELEM: u16 = 1;
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        list.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, self.name());
            element.nest(NFTA_EXPR_DATA, |data| self.encode_data(data));
        });
    }

    fn encode_data(&self, out: &mut Attributes) {
        match self {
            Self::Meta { key, into } => {
                out.number(1, into.number()).number(2, meta_key(*key));
            }
            Self::LinkHeader { offset, length, into } => payload(out, LINK_HEADER, *offset, *length, *into),
            Self::NetworkHeader { offset, length, into } => {
                payload(out, NETWORK_HEADER, *offset, *length, *into)
            }
            Self::TransportHeader { offset, length, into } => {
                payload(out, TRANSPORT_HEADER, *offset, *length, *into)
            }
            Self::ConnectionState { into } => {
                out.number(1, into.number()).number(2, 0);
            }
            Self::ConnectionStatus { into } => {
                out.number(1, into.number()).number(2, 2);
            }
            Self::DestinationType { into } => {
                // Result: address type (3); flags: look at the destination (2).
                out.number(1, into.number()).number(2, 3).number(3, 2);
            }
            Self::Mask { register, mask } => {
                let length = u32::try_from(mask.len()).unwrap_or(0);
                out.number(1, register.number()).number(2, register.number()).number(3, length);
                out.nest(4, |value| _ = value.bytes(NFTA_DATA_VALUE, mask));
                out.nest(5, |value| _ = value.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Compare { from, compare, value } => {
                out.number(1, from.number()).number(2, u32::from(*compare == Compare::Unequal));
                out.nest(3, |data| _ = data.bytes(NFTA_DATA_VALUE, value));
            }
            Self::Lookup { set, from, into } => {
                out.text(1, set).number(2, from.number());
                if let Some(into) = into {
                    out.number(3, into.number());
                }
            }
            Self::NotIn { set, from } => {
                const NFT_LOOKUP_F_INV: u32 = 1;
                out.text(1, set).number(2, from.number()).number(5, NFT_LOOKUP_F_INV);
            }
            Self::DestinationNat { family, address, port } => {
                const NFT_NAT_DNAT: u32 = 1;
                out.number(1, NFT_NAT_DNAT).number(2, family.number().into());
                out.number(3, address.number()).number(5, port.number());
            }
            Self::Masquerade | Self::Counter => {}
            Self::XtablesMatch { name, revision, data } => {
                out.text(1, name).number(2, *revision).bytes(3, data);
            }
            Self::Verdict(verdict) => encode_verdict(out, verdict),
        }
    }
}

fn meta_key(key: Key) -> u32 {
    match key {
        Key::InputName => 6,
        Key::OutputName => 7,
        Key::Family => 15,
        Key::Protocol => 16,
    }
}

fn payload(out: &mut Attributes, base: u32, offset: u32, length: u32, into: Register) {
    out.number(1, into.number()).number(2, base).number(3, offset).number(4, length);
}

fn encode_verdict(out: &mut Attributes, verdict: &Verdict) {
    const VERDICT_REGISTER: u32 = 0;
    let (code, chain) = match verdict {
        Verdict::Drop => (0i32, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Return => (-5, None),
    };
    out.number(1, VERDICT_REGISTER);
    out.nest(2, |data| {
        data.nest(NFTA_DATA_VERDICT, |inner| {
            inner.number(1, code.cast_unsigned());
            if let Some(chain) = chain {
                inner.text(2, chain);
            }
        });
    });
}
