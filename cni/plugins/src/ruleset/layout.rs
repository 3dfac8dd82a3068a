//! The fixed part of the table: sets, chains, rules.

use cofferdam_linux::nft::{
    Batch, ChainHook, Expression, Family, Field, Hook, Key, MapOf, Policy, Priority, Register, Set, Verdict,
};

use super::TABLE;

/// Where source and destination lie in an IP header, and what tells the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    family: Family,
    number: u8,
    field: Field,
    source: u32,
    destination: u32,
    length: u32,
    suffix: char,
}

pub(crate) const IPV4: Ip = Ip {
    family: Family::Ipv4,
    number: 2,
    field: Field::Ipv4,
    source: 12,
    destination: 16,
    length: 4,
    suffix: '4',
};
pub(crate) const IPV6: Ip = Ip {
    family: Family::Ipv6,
    number: 10,
    field: Field::Ipv6,
    source: 8,
    destination: 24,
    length: 16,
    suffix: '6',
};

impl Ip {
    pub(crate) fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// How many bytes an address has.
    pub(super) fn bytes(self) -> usize {
        usize::from(self.registers()) * 4
    }

    /// How many registers an address takes.
    fn registers(self) -> u8 {
        self.field.registers()
    }
}

/// What a set is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// protocol . port → address . port
    Ports,
    /// address . protocol . port → address . port
    AddressPorts,
    /// source range . destination
    Hairpin,
    /// source . interface
    Local,
    /// source
    Masquerade,
    /// address
    Forward,
    /// address
    Guarded,
    /// digest of the attachment's mark . number → address . which map . protocol . port
    Owned,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Ports,
        Self::AddressPorts,
        Self::Hairpin,
        Self::Local,
        Self::Masquerade,
        Self::Forward,
        Self::Guarded,
        Self::Owned,
    ];

    pub(crate) fn set(self, ip: Ip) -> SetName {
        SetName { kind: self, ip }
    }

    /// Whether its elements follow from an address that the attachment holds alone.
    pub(crate) fn is_by_address(self) -> bool {
        !matches!(self, Self::Ports | Self::AddressPorts)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::AddressPorts => "address_ports",
            Self::Hairpin => "hairpin",
            Self::Local => "local",
            Self::Masquerade => "masquerade",
            Self::Forward => "forward",
            Self::Guarded => "guarded",
            Self::Owned => "owned",
        }
    }
}

/// One set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetName {
    pub(crate) kind: Kind,
    pub(super) ip: Ip,
}

impl SetName {
    pub(crate) fn text(self) -> String {
        format!("{}{}", self.kind.text(), self.ip.suffix)
    }
}

/// `IPS_DST_NAT` of the connection's status, host order.
const DESTINATION_CHANGED: u32 = 1 << 5;
/// The state bits "established" and "related", host order.
const ESTABLISHED_OR_RELATED: u32 = (1 << 1) | (1 << 2);
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// Offset of the destination port in the headers of TCP, UDP and SCTP.
const DESTINATION_PORT: u32 = 2;

const R0: Register = Register(0);

/// The number of this layout. Whoever changes a rule counts it up: tables of another number are made anew.
const LAYOUT: u32 = 2;

/// What becomes of a table that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// The transaction fails with `EEXIST`.
    Refuse,
    /// Its fixed part is made anew, its elements stay.
    Repair,
}

/// The transaction that makes the table, and the comments of its rules.
pub(super) fn table(existing: Existing) -> (Batch, Vec<String>) {
    let mut batch = Batch::new(Family::Inet, TABLE);
    match existing {
        Existing::Refuse => batch.create_table(),
        Existing::Repair => batch.add_table(),
    }
    for kind in Kind::ALL {
        for ip in [IPV4, IPV6] {
            add_set(&mut batch, kind, ip);
        }
    }
    let hook = |hook, priority| Some(ChainHook { hook, priority, policy: Policy::Accept });
    let chains = [
        ("mapped", None),
        ("raw", hook(Hook::Prerouting, Priority::Raw)),
        ("prerouting", hook(Hook::Prerouting, Priority::DestinationNat)),
        ("output", hook(Hook::Output, Priority::DestinationNat)),
        ("forward", hook(Hook::Forward, Priority::Filter)),
        ("postrouting", hook(Hook::Postrouting, Priority::SourceNat)),
    ];
    for (name, hook) in chains {
        batch.add_chain(name, hook);
        if existing == Existing::Repair {
            batch.flush_chain(name);
        }
    }
    let mut comments = Vec::new();
    for (at, (chain, rule)) in rules().into_iter().enumerate() {
        let comment = format!("{LAYOUT}.{at} {chain}");
        batch.add_rule(chain, &rule, &comment);
        comments.push(comment);
    }
    (batch, comments)
}

/// Every fixed rule and its chain, in order.
fn rules() -> Vec<(&'static str, Vec<Expression>)> {
    let to_dnat = || vec![Expression::verdict(Verdict::Jump("mapped".into()))];
    let mut rules = vec![("raw", loopback_guard()), ("prerouting", to_dnat()), ("output", to_dnat())];
    for ip in [IPV4, IPV6] {
        rules.push(("mapped", dnat_by_address(ip)));
        rules.push(("mapped", dnat_to_local(ip)));
        rules.push(("forward", forward_replies(ip)));
        rules.push(("forward", guard(ip)));
        rules.push(("forward", forward_from(ip)));
        rules.push(("postrouting", hairpin(ip)));
        if ip == IPV4 {
            rules.push(("postrouting", from_loopback()));
        }
        rules.push(("postrouting", stay_local(ip)));
        rules.push(("postrouting", masquerade(ip)));
    }
    rules
}

fn add_set(batch: &mut Batch, kind: Kind, ip: Ip) {
    let address = ip.field;
    let key: &[Field] = match kind {
        Kind::Ports => &[Field::Protocol, Field::Port],
        Kind::AddressPorts => &[address, Field::Protocol, Field::Port],
        Kind::Hairpin => &[address, address],
        Kind::Local => &[address, Field::Interface],
        Kind::Masquerade | Kind::Forward | Kind::Guarded => &[address],
        Kind::Owned => &[Field::Ipv6, Field::Port],
    };
    let data = [address, Field::Port, Field::Protocol, Field::Port];
    let map = match kind {
        Kind::Ports | Kind::AddressPorts => Some(MapOf(&data[..2])),
        Kind::Owned => Some(MapOf(&data)),
        _ => None,
    };
    batch.add_set(&Set { name: &kind.set(ip).text(), key, map, ranges: kind == Kind::Hairpin });
}

fn is_family(ip: Ip) -> [Expression; 2] {
    [Expression::Meta { key: Key::Family, into: R0 }, Expression::equal(R0, [ip.number])]
}

fn source(ip: Ip, into: Register) -> Expression {
    Expression::NetworkHeader { offset: ip.source, length: ip.length, into }
}

fn destination(ip: Ip, into: Register) -> Expression {
    Expression::NetworkHeader { offset: ip.destination, length: ip.length, into }
}

fn lookup(kind: Kind, ip: Ip, into: Option<Register>) -> Expression {
    Expression::Lookup { set: kind.set(ip).text(), from: R0, into }
}

/// Goes on if the bits are set in a number of the connection.
fn has_bits(load: Expression, bits: u32) -> [Expression; 3] {
    [
        load,
        Expression::Mask { register: R0, mask: bits.to_ne_bytes().into() },
        Expression::unequal(R0, [0; 4]),
    ]
}

fn was_dnated() -> [Expression; 3] {
    has_bits(Expression::ConnectionStatus { into: R0 }, DESTINATION_CHANGED)
}

fn loopback_guard() -> Vec<Expression> {
    let mut rule = is_family(IPV4).to_vec();
    let mut lo = b"lo".to_vec();
    lo.resize(16, 0);
    rule.extend([
        Expression::Meta { key: Key::InputName, into: R0 },
        Expression::unequal(R0, lo),
        destination(IPV4, R0),
        Expression::Mask { register: R0, mask: vec![255, 0, 0, 0] },
        Expression::equal(R0, [127, 0, 0, 0]),
        Expression::verdict(Verdict::Drop),
    ]);
    rule
}

/// Loads protocol and port from register `at` on, looks the key up, and rewrites the destination.
fn dnat(rule: &mut Vec<Expression>, kind: Kind, ip: Ip, at: u8) {
    let address = Register(8);
    let port = Register(8 + ip.registers());
    rule.extend([
        Expression::Meta { key: Key::Protocol, into: Register(at) },
        Expression::TransportHeader { offset: DESTINATION_PORT, length: 2, into: Register(at + 1) },
        lookup(kind, ip, Some(address)),
        Expression::DestinationNat { family: ip.family, address, port },
    ]);
}

fn dnat_by_address(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.push(destination(ip, R0));
    dnat(&mut rule, Kind::AddressPorts, ip, ip.registers());
    rule
}

fn dnat_to_local(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    if ip == IPV6 {
        // The kernel has no route_localnet for IPv6: a packet from ::1 can never leave, so leave it alone.
        let mut one = [0; 16];
        one[15] = 1;
        rule.extend([destination(ip, R0), Expression::unequal(R0, one)]);
    }
    rule.extend([Expression::DestinationType { into: R0 }, Expression::equal(R0, LOCAL.to_ne_bytes())]);
    dnat(&mut rule, Kind::Ports, ip, 0);
    rule
}

fn forward_replies(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.extend(has_bits(Expression::ConnectionState { into: R0 }, ESTABLISHED_OR_RELATED));
    rule.extend([destination(ip, R0), lookup(Kind::Forward, ip, None), Expression::verdict(Verdict::Accept)]);
    rule
}

fn forward_from(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.extend([source(ip, R0), lookup(Kind::Forward, ip, None), Expression::verdict(Verdict::Accept)]);
    rule
}

/// Keeps containers of other bridges away from addresses that want it. A mapped port is there for everybody.
fn guard(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    let interface = Expression::Meta { key: Key::InputName, into: Register(ip.registers()) };
    rule.extend([destination(ip, R0), lookup(Kind::Guarded, ip, None)]);
    rule.extend([source(ip, R0), interface, lookup(Kind::Local, ip, None)]);
    rule.extend([destination(ip, R0), Expression::NotIn { set: Kind::Local.set(ip).text(), from: R0 }]);
    rule.extend([
        Expression::ConnectionStatus { into: R0 },
        Expression::Mask { register: R0, mask: DESTINATION_CHANGED.to_ne_bytes().into() },
        Expression::equal(R0, [0; 4]),
        Expression::verdict(Verdict::Drop),
    ]);
    rule
}

fn hairpin(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.extend(was_dnated());
    rule.extend([
        source(ip, R0),
        destination(ip, Register(ip.registers())),
        lookup(Kind::Hairpin, ip, None),
        Expression::Masquerade,
    ]);
    rule
}

fn from_loopback() -> Vec<Expression> {
    let mut rule = is_family(IPV4).to_vec();
    rule.extend(was_dnated());
    rule.extend([
        source(IPV4, R0),
        Expression::Mask { register: R0, mask: vec![255, 0, 0, 0] },
        Expression::equal(R0, [127, 0, 0, 0]),
        Expression::Masquerade,
    ]);
    rule
}

fn stay_local(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.extend([
        source(ip, R0),
        Expression::Meta { key: Key::OutputName, into: Register(ip.registers()) },
        lookup(Kind::Local, ip, None),
        Expression::verdict(Verdict::Accept),
    ]);
    rule
}

fn masquerade(ip: Ip) -> Vec<Expression> {
    let mut rule = is_family(ip).to_vec();
    rule.extend([source(ip, R0), lookup(Kind::Masquerade, ip, None), destination(ip, R0)]);
    // 224.0.0.0/4, ff00::/8
    let (first_mask, first) = if ip == IPV4 { (0xf0, 0xe0) } else { (0xff, 0xff) };
    let mut mask = vec![0; usize::from(ip.registers()) * 4];
    let mut multicast = mask.clone();
    (mask[0], multicast[0]) = (first_mask, first);
    rule.extend([
        Expression::Mask { register: R0, mask },
        Expression::unequal(R0, multicast),
        Expression::Masquerade,
    ]);
    rule
}
