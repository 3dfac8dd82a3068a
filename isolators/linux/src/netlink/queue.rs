//! Queues: a token bucket before a link, and what a link receives sent through another. tc-tbf(8), tc-mirred(8).

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rustix::io::Errno;

use super::{Error, Received, Socket, align, read_u16, read_u32};

/// A limit of throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate_bytes: u64,
    /// Bytes that may go at once.
    pub burst_bytes: u32,
    /// Bytes that may wait; what is more is dropped.
    pub limit_bytes: u32,
}

/// The handle of the token bucket, `1:`.
const ROOT: TcHandle = TcHandle { major: 1, minor: 0 };
/// The handle of the queue for what is received, `ffff:`.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// `TC_H_INGRESS`.
const INGRESS_PARENT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
/// `struct tcmsg`.
const HEADER_BYTES: usize = 20;

const NESTED: u16 = 0x8000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const ETH_P_ALL_BE: u32 = 0x0300;

impl Socket {
    /// Limits what leaves by a link; `EEXIST` if it is limited already.
    pub fn add_token_bucket(&mut self, link: u32, bucket: TokenBucket) -> Result<(), Error> {
        let mut message = message_to(link, TcHandle::ROOT, ROOT);
        message.attributes.push(TcAttribute::Kind("tbf".into()));
        message.attributes.push(options(bucket.encode()));
        let operation = format!("limit link number {link} to {bucket:?}");
        self.acknowledge(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &operation,
        )
    }

    /// Takes away every limit and redirection of a link; one that has none is fine.
    pub fn delete_queues(&mut self, link: u32) -> Result<(), Error> {
        let both = [
            message_to(link, TcHandle::ROOT, TcHandle::default()),
            message_to(link, INGRESS_PARENT, INGRESS),
        ];
        for message in both {
            let operation = format!("delete queues of link number {link}");
            match self.acknowledge(RouteNetlinkMessage::DelQueueDiscipline(message), 0, &operation) {
                Err(error) if !matches!(error.errno(), Errno::NOENT | Errno::INVAL) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The rate in bytes a second that leaves by a link at most, if it is limited.
    pub fn token_bucket_rate(&mut self, link: u32) -> Result<Option<u64>, Error> {
        let mut rate = None;
        self.each_queue(link, |kind, parent, options| {
            if kind == b"tbf\0" && parent == u32::from(TcHandle::ROOT) {
                rate = read_rate(options);
            }
        })?;
        Ok(rate)
    }

    /// Sends what a link receives through the queue of another.
    pub fn redirect_ingress(&mut self, link: u32, through: u32) -> Result<(), Error> {
        let mut queue = message_to(link, INGRESS_PARENT, INGRESS);
        queue.attributes.push(TcAttribute::Kind("ingress".into()));
        let operation = format!("redirect what link number {link} receives to link number {through}");
        self.acknowledge(
            RouteNetlinkMessage::NewQueueDiscipline(queue),
            NLM_F_CREATE | NLM_F_EXCL,
            &operation,
        )?;
        let mut filter = message_to(link, INGRESS, TcHandle::default());
        // Priority 1, every protocol.
        filter.header.info = (1 << 16) | ETH_P_ALL_BE;
        filter.attributes.push(TcAttribute::Kind("u32".into()));
        filter.attributes.push(options(redirect_everything(through)));
        self.acknowledge(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL, &operation)
    }

    /// Whether a link has a filter that sends what it receives through the queue of another.
    pub fn redirects_ingress(&mut self, link: u32, through: u32) -> Result<bool, Error> {
        let message = message_to(link, INGRESS, TcHandle::default());
        let needle = mirred(through);
        let mut found = false;
        let asked = self.exchange_raw(
            RouteNetlinkMessage::GetTrafficFilter(message),
            netlink_packet_core::NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP,
            &format!("list filters of link number {link}"),
            |received| {
                // The counts of references within differ; what is done and where to does not.
                let tail = &needle[needle.len() - 8..];
                found |= received.payload.windows(tail.len()).any(|window| window == tail);
                Ok(())
            },
        );
        match asked {
            // No queue to have filters.
            Err(error) if matches!(error.errno(), Errno::INVAL | Errno::NOENT) => Ok(false),
            asked => asked.map(|_| found),
        }
    }

    /// Calls with kind, parent and options of each queue of a link.
    fn each_queue(&mut self, link: u32, mut visit: impl FnMut(&[u8], u32, &[u8])) -> Result<(), Error> {
        let message = message_to(link, TcHandle::default(), TcHandle::default());
        let operation = format!("list queues of link number {link}");
        self.exchange_raw(
            RouteNetlinkMessage::GetQueueDiscipline(message),
            netlink_packet_core::NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP,
            &operation,
            |received| {
                // Old kernels list those of every link.
                if read_u32(received.payload, 4) == Some(link) {
                    let parent = read_u32(received.payload, 12).unwrap_or_default();
                    visit(attribute(received, TCA_KIND), parent, attribute(received, TCA_OPTIONS));
                }
                Ok(())
            },
        )
        .map(drop)
    }
}

impl TokenBucket {
    fn encode(self) -> Vec<u8> {
        const ETHERNET: u8 = 1;
        // 64 ns is a tick of the scheduler's clock, PSCHED_SHIFT.
        let nanoseconds = u64::from(self.burst_bytes).saturating_mul(1_000_000_000) / self.rate_bytes.max(1);
        let ticks = nanoseconds >> 6;
        let rate = u32::try_from(self.rate_bytes).unwrap_or(u32::MAX);
        let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        parameters.extend(rate.to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(self.limit_bytes.to_ne_bytes());
        parameters.extend(u32::try_from(ticks).unwrap_or(u32::MAX).to_ne_bytes());
        parameters.extend([0; 4]);
        let mut out = nla(TCA_TBF_PARMS, &parameters);
        out.extend(nla(TCA_TBF_BURST, &self.burst_bytes.to_ne_bytes()));
        if rate == u32::MAX {
            out.extend(nla(TCA_TBF_RATE64, &self.rate_bytes.to_ne_bytes()));
        }
        out
    }
}

fn read_rate(options: &[u8]) -> Option<u64> {
    if let Some(long) = find(options, TCA_TBF_RATE64) {
        return long.try_into().ok().map(u64::from_ne_bytes);
    }
    read_u32(find(options, TCA_TBF_PARMS)?, 8).map(u64::from)
}

fn message_to(link: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

fn options(bytes: Vec<u8>) -> TcAttribute {
    TcAttribute::Other(DefaultNla::new(TCA_OPTIONS | NESTED, bytes))
}

/// A u32 filter whose only key fits every packet.
fn redirect_everything(through: u32) -> Vec<u8> {
    const TERMINAL: u8 = 1;
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.extend([0; 12]);
    selector.extend([0; 16]);
    let mut action = nla(TCA_ACT_KIND, b"mirred\0");
    action.extend(nla(TCA_ACT_OPTIONS | NESTED, &nla(TCA_MIRRED_PARMS, &mirred(through))));
    let mut out = nla(TCA_U32_CLASSID, &0x1_0001_u32.to_ne_bytes());
    out.extend(nla(TCA_U32_ACT | NESTED, &nla(1 | NESTED, &action)));
    out.extend(nla(TCA_U32_SEL, &selector));
    out
}

/// `struct tc_mirred`: the packet is taken and leaves by another link.
fn mirred(through: u32) -> Vec<u8> {
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, through].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(align(out.len()), 0);
    out
}

fn attribute<'a>(received: &Received<'a>, kind: u16) -> &'a [u8] {
    received.payload.get(HEADER_BYTES..).and_then(|attributes| find(attributes, kind)).unwrap_or_default()
}

fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(read_u16(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if read_u16(attributes, 2)? & !NESTED == kind {
            return Some(value);
        }
        attributes = attributes.get(align(length)..)?;
    }
}
