//! Control datagrams: IPv6 packets between two fixed link-local addresses with next header 253 (RFC 3692,
//! experimentation) that carry one part of one message. A message that does not fit the path is split here, so that
//! no IP fragment is ever needed, and put together again on the other side.
//!
//! ```text
//! 0       1       2               4               6               8
//! | ver   | kind  | total length  | offset        | zero          | exchange (32)  | part ...
//! ```

use warren_proto::Reason;

use super::{Kind, MAX_MESSAGE, VERSION};

/// Next header of control datagrams.
const NEXT_HEADER: u8 = 253;
const IPV6_LEN: usize = 40;
const HEADER_LEN: usize = 12;

/// Both ends of every control datagram: fe80::7761:7272:656e and the next one ("warren" in ASCII). They never reach a
/// host, so they need not differ between peers.
const SOURCE: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x61, 0x72, 0x72, 0x65, 0x6e];
const DESTINATION: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x61, 0x72, 0x72, 0x65, 0x6f];

/// Inner packets of this size fit every path of 1500 bytes: less IPv6, UDP and WireGuard's overhead.
pub(crate) const ETHERNET_LIMIT: usize = 1500 - 48 - 32;
/// Inner packets of this size fit every path that IPv6 allows (1280 bytes).
pub(crate) const MINIMUM_LIMIT: usize = 1280 - 48 - 32;

/// Splits `message` into inner packets of at most `limit` bytes each.
pub(crate) fn split(kind: Kind, exchange: u32, message: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let room = limit.saturating_sub(IPV6_LEN + HEADER_LEN).max(256);
    let total = message.len() as u16;
    let chunk = |(number, part): (usize, &[u8])| {
        let mut packet = Vec::with_capacity(IPV6_LEN + HEADER_LEN + part.len());
        packet.extend_from_slice(&[0x60, 0, 0, 0]);
        packet.extend_from_slice(&((HEADER_LEN + part.len()) as u16).to_be_bytes());
        packet.extend_from_slice(&[NEXT_HEADER, 1]);
        packet.extend_from_slice(&SOURCE);
        packet.extend_from_slice(&DESTINATION);
        packet.extend_from_slice(&[VERSION, kind as u8]);
        packet.extend_from_slice(&total.to_be_bytes());
        packet.extend_from_slice(&((number * room) as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(&exchange.to_be_bytes());
        packet.extend_from_slice(part);
        packet
    };
    message.chunks(room).enumerate().map(chunk).collect()
}

/// Largest inner packet that a probe asks about: a device's MTU is 9000 at most.
const MAX_PROBE: usize = 9216;
/// The smallest probe.
pub(crate) const PROBE_MIN: usize = IPV6_LEN + HEADER_LEN + 4;

/// A probe, or its answer: one inner packet of `length` bytes, at least [`PROBE_MIN`]. Its number stands where other
/// messages name their exchange; the rest is zero.
pub(crate) fn probe(kind: Kind, number: u32, length: usize) -> Vec<u8> {
    let length = length.clamp(PROBE_MIN, MAX_PROBE);
    let padding = [0; MAX_PROBE];
    let filled = &padding[..length - IPV6_LEN - HEADER_LEN];
    split(kind, number, filled, MAX_PROBE).pop().unwrap_or_default()
}

/// Whether an inner packet has the addresses and next header of a control datagram. Anything else in a warren
/// peer's handshake tunnel is an application packet out of place.
pub(crate) fn is_control(packet: &[u8]) -> bool {
    matches!(packet, [0x60, 0, 0, 0, _, _, NEXT_HEADER, ..])
        && packet.get(8..24) == Some(&SOURCE)
        && packet.get(24..40) == Some(&DESTINATION)
}

/// One part of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) kind: Kind,
    /// The offerer's receiver index: all messages of one exchange carry it.
    pub(crate) exchange: u32,
    total: usize,
    offset: usize,
    bytes: &'a [u8],
}

/// Reads one control datagram for which [`is_control`] holds. An error of [`Reason::ExchangeVersion`] comes with
/// the exchange it concerns: version, kind and exchange keep their places in every version.
pub(crate) fn parse(packet: &[u8]) -> Result<Part<'_>, (Reason, Option<u32>)> {
    let malformed = (Reason::ExchangeMalformed, None);
    let payload = packet.get(IPV6_LEN..).ok_or(malformed)?;
    let stated = packet.get(4..6).and_then(|field| field.try_into().ok()).map(u16::from_be_bytes).ok_or(malformed)?;
    let (header, bytes) = payload.split_first_chunk::<HEADER_LEN>().ok_or(malformed)?;
    let [version, kind, total_high, total_low, offset_high, offset_low, zero_a, zero_b, e0, e1, e2, e3] = *header;
    let exchange = u32::from_be_bytes([e0, e1, e2, e3]);
    if version != VERSION {
        return Err((Reason::ExchangeVersion, (kind == Kind::Offer as u8).then_some(exchange)));
    }
    let kind = match kind {
        1 => Kind::Offer,
        2 => Kind::Accept,
        3 => Kind::Reject,
        4 => Kind::Probe,
        5 => Kind::ProbeAnswer,
        _ => return Err(malformed),
    };
    let total = usize::from(u16::from_be_bytes([total_high, total_low]));
    let offset = usize::from(u16::from_be_bytes([offset_high, offset_low]));
    let fits = match kind {
        // In one piece: its size is what it is for.
        Kind::Probe | Kind::ProbeAnswer => packet.len() <= MAX_PROBE && offset == 0 && bytes.len() == total,
        Kind::Offer | Kind::Accept | Kind::Reject => total <= MAX_MESSAGE && offset + bytes.len() <= total,
    };
    let fits = fits && !bytes.is_empty();
    if usize::from(stated) != payload.len() || !fits || [zero_a, zero_b] != [0, 0] {
        return Err(malformed);
    }
    Ok(Part { kind, exchange, total, offset, bytes })
}

/// Puts the parts of one message at a time together. Parts of another message start over; the sender's retries
/// make up for it.
#[derive(Default)]
pub(crate) struct Assembly {
    current: Option<Partial>,
}

struct Partial {
    kind: Kind,
    exchange: u32,
    bytes: Vec<u8>,
    present: Vec<bool>,
}

impl Assembly {
    /// Adds a part; the whole message once no byte is missing.
    pub(crate) fn add(&mut self, part: &Part<'_>) -> Option<Vec<u8>> {
        if part.bytes.len() == part.total {
            self.current = None;
            return Some(part.bytes.to_vec());
        }
        let same =
            |held: &Partial| held.kind == part.kind && held.exchange == part.exchange && held.bytes.len() == part.total;
        if !self.current.as_ref().is_some_and(same) {
            self.current = Some(Partial {
                kind: part.kind,
                exchange: part.exchange,
                bytes: vec![0; part.total],
                present: vec![false; part.total],
            });
        }
        let held = self.current.as_mut()?;
        let range = part.offset..part.offset + part.bytes.len();
        held.bytes.get_mut(range.clone())?.copy_from_slice(part.bytes);
        held.present.get_mut(range)?.fill(true);
        if held.present.iter().all(|present| *present) { self.current.take().map(|held| held.bytes) } else { None }
    }
}
