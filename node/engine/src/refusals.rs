//! Refusals: what tells the sender of a refused packet that it was refused, instead of leaving it to a timeout.
//!
//! TCP gets a RST made from the offending segment (RFC 9293, section 3.5.2), so it works in the middle of a
//! connection. Everything else gets ICMP: administratively prohibited, or packet too big. Never answered are a
//! RST, an ICMP error, a reply, and a fragment other than the first (RFC 1122, section 3.2.2; RFC 4443,
//! section 2.4). Answers are limited per sender.

use std::net::IpAddr;
use std::time::Duration;

use crate::packet::{ACK, Fragment, ICMP, ICMPV6, Icmp, Inner, RST, TCP, Tcp, Transport};

/// The largest refusal: an ICMPv6 error fits IPv6's minimum MTU.
pub const MAX_REFUSAL: usize = 1280;
/// How much of the offending IPv4 packet is quoted (RFC 1812, section 4.3.2.3: at most 576 bytes in all).
const QUOTE_V4: usize = 576 - 28;
const QUOTE_V6: usize = MAX_REFUSAL - 48;
const HOP_LIMIT: u8 = 64;

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// RST, or ICMP administratively prohibited.
    Prohibited,
    /// The path takes inner packets of this many bytes.
    TooBig(u16),
}

/// Writes the refusal of `inner` into `out` and returns its length; none where no answer is due.
pub fn build(inner: &Inner<'_>, refusal: Refusal, out: &mut [u8; MAX_REFUSAL]) -> Option<usize> {
    if matches!(inner.fragment, Fragment::Later { .. }) {
        return None;
    }
    let transport = inner.transport().ok()?;
    match (transport, refusal) {
        (Transport::Tcp(tcp), Refusal::Prohibited) => reset(inner, tcp, out),
        (Transport::Icmp(Icmp::Error { .. } | Icmp::Reply { .. } | Icmp::Other), _) => None,
        (Transport::Tcp(_) | Transport::Udp(_) | Transport::Icmp(Icmp::Request { .. }), _) => {
            error(inner, refusal, out)
        }
    }
}

/// The RST that ends `tcp`'s connection for its sender.
fn reset(inner: &Inner<'_>, tcp: Tcp, out: &mut [u8; MAX_REFUSAL]) -> Option<usize> {
    if tcp.flags & RST != 0 {
        return None;
    }
    let (sequence, acknowledgement, flags) =
        if tcp.flags & ACK != 0 { (tcp.acknowledgement, 0, RST) } else { (0, tcp.end(), RST | ACK) };
    let segment = Segment { from_port: tcp.destination, to_port: tcp.source, sequence, acknowledgement, flags };
    segment.write(inner.destination, inner.source, out)
}

/// A TCP segment without data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
}

impl Segment {
    /// Writes the packet that carries it and returns its length.
    pub(crate) fn write(&self, from: IpAddr, to: IpAddr, out: &mut [u8; MAX_REFUSAL]) -> Option<usize> {
        let mut header = [0; 20];
        header[..2].copy_from_slice(&self.from_port.to_be_bytes());
        header[2..4].copy_from_slice(&self.to_port.to_be_bytes());
        header[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        header[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = self.flags;
        let sum = transport_checksum(from, to, TCP, &header);
        header[16..18].copy_from_slice(&sum.to_be_bytes());
        write_ip(from, to, TCP, &[&header], out)
    }
}

fn error(inner: &Inner<'_>, refusal: Refusal, out: &mut [u8; MAX_REFUSAL]) -> Option<usize> {
    let v6 = inner.is_v6();
    let (kind, code, mtu) = match (v6, refusal) {
        (false, Refusal::Prohibited) => (3, 13, 0),
        (true, Refusal::Prohibited) => (1, 1, 0),
        (false, Refusal::TooBig(mtu)) => (3, 4, mtu),
        (true, Refusal::TooBig(mtu)) => (2, 0, mtu),
    };
    let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
    // RFC 1191, section 4 and RFC 4443, section 3.2 agree on where the MTU's low half stands.
    header[6..8].copy_from_slice(&mtu.to_be_bytes());
    let bytes = inner.bytes();
    let quote = &bytes[..bytes.len().min(if v6 { QUOTE_V6 } else { QUOTE_V4 })];
    let (from, to) = (inner.destination, inner.source);
    let sum = if v6 {
        let length = u32::try_from(header.len() + quote.len()).ok()?;
        Sum::pseudo(from, to, ICMPV6, length).add(&header).add(quote).finish()
    } else {
        Sum::default().add(&header).add(quote).finish()
    };
    header[2..4].copy_from_slice(&sum.to_be_bytes());
    write_ip(from, to, if v6 { ICMPV6 } else { ICMP }, &[&header, quote], out)
}

fn write_ip(from: IpAddr, to: IpAddr, protocol: u8, parts: &[&[u8]], out: &mut [u8; MAX_REFUSAL]) -> Option<usize> {
    let length = u16::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).ok()?;
    let mut at = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            header[6] = 0x40;
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..].copy_from_slice(&to.octets());
            let sum = checksum_v4_header(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            out[..20].copy_from_slice(&header);
            20
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            out[4..6].copy_from_slice(&length.to_be_bytes());
            out[6..8].copy_from_slice(&[protocol, HOP_LIMIT]);
            out[8..24].copy_from_slice(&from.octets());
            out[24..40].copy_from_slice(&to.octets());
            40
        }
        _ => return None,
    };
    for part in parts {
        out.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    Some(at)
}

/// The Internet checksum (RFC 1071), taken part by part. Every part but the last has an even length.
#[derive(Debug, Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: u32) -> Self {
        let sum = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Self::default().add(&from.octets()).add(&to.octets()),
            (IpAddr::V6(from), IpAddr::V6(to)) => Self::default().add(&from.octets()).add(&to.octets()),
            _ => Self::default(),
        };
        sum.add(&length.to_be_bytes()).add(&[0, protocol])
    }

    fn add(self, bytes: &[u8]) -> Self {
        let mut chunks = bytes.chunks_exact(2);
        let mut sum = self.0;
        for pair in &mut chunks {
            sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        if let [last] = chunks.remainder() {
            sum += u64::from(*last) << 8;
        }
        Self(sum)
    }

    fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap_or(0)
    }
}

/// The checksum of an IPv4 header whose checksum field is zero.
pub(crate) fn checksum_v4_header(header: &[u8; 20]) -> u16 {
    Sum::default().add(header).finish()
}

/// The checksum of a transport payload whose checksum field is zero: with the pseudo-header, but for ICMP.
pub(crate) fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let start = if protocol == ICMP { Sum::default() } else { Sum::pseudo(from, to, protocol, length) };
    start.add(payload).finish()
}

/// How many refusals one sender gets: a burst, then so many per second.
const BURST: u32 = 50;
const PER_SECOND: u32 = 100;
const BUCKETS: usize = 256;

/// Token buckets, one per sender hash. Senders that collide share one, which only makes them quieter.
#[derive(Debug)]
pub(crate) struct RefusalLimit {
    buckets: Box<[Bucket]>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a refusal.
    tokens: u32,
    filled: Duration,
}

impl Default for RefusalLimit {
    fn default() -> Self {
        Self { buckets: vec![Bucket { tokens: BURST * 1000, filled: Duration::ZERO }; BUCKETS].into() }
    }
}

impl RefusalLimit {
    /// Whether `sender` may get one more answer now.
    pub(crate) fn take(&mut self, sender: u32, now: Duration) -> bool {
        let bucket = &mut self.buckets[sender as usize % BUCKETS];
        let earned = now.saturating_sub(bucket.filled).as_millis().min(1_000_000);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
        bucket.tokens = bucket.tokens.saturating_add(earned).min(BURST * 1000);
        bucket.filled = now;
        match bucket.tokens.checked_sub(1000) {
            Some(rest) => {
                bucket.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
