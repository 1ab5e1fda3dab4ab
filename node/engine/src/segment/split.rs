//! Splitting: a packet from the host, which may be a super-packet, into the packets that travel.
//!
//! Nothing is copied but headers: each segment's header is stamped in front of its payload, over the end of the
//! segment before, which has been sealed by then.

use warren_proto::Reason;

use crate::packet::FIN;

use super::checksum::Sum;
use super::headers::{Headers, MAX_HEADERS, Protocol, TCP_CHECKSUM, TCP_FLAGS, TCP_SEQUENCE, UDP_CHECKSUM, UDP_LENGTH};
use super::{Offload, VirtioNetHeader};

/// TCP's PSH flag.
const PSH: u8 = 0x08;
/// TCP's CWR flag (RFC 3168).
const CWR: u8 = 0x80;

/// A packet from the host on its way to becoming packets that fit the tunnel.
#[derive(Debug)]
pub struct Split<'b> {
    packet: &'b mut [u8],
    /// None: the packet leaves as it is.
    stamp: Option<Stamp>,
    next: usize,
    segments: usize,
}

/// What every segment's header is made from.
#[derive(Debug)]
struct Stamp {
    headers: Headers,
    template: [u8; MAX_HEADERS],
    size: usize,
    /// Of the IPv4 header without length, identification and checksum.
    ip_sum: Sum,
    /// Of pseudo-header and transport header without what differs between segments.
    transport_sum: Sum,
    id: u16,
    sequence: u32,
    flags: u8,
}

impl<'b> Split<'b> {
    /// Takes `packet` as the device described it. A packet that is no super-packet gets its checksum completed
    /// where that is still to be done.
    ///
    /// Refused as `malformed` is what the description does not fit: these are the kernel's words, so it is a defect
    /// of one of the two, and the packet is better lost than guessed at.
    pub fn new(header: VirtioNetHeader, packet: &'b mut [u8]) -> Result<Self, Reason> {
        let Some(offload) = header.offload else {
            if header.needs_checksum {
                complete_checksum(header, packet)?;
            }
            return Ok(Self { packet, stamp: None, next: 0, segments: 1 });
        };
        let headers = Headers::parse(packet).ok_or(Reason::Malformed)?;
        let fits = match offload {
            Offload::TcpV4 => headers.protocol == Protocol::Tcp && !headers.v6,
            Offload::TcpV6 => headers.protocol == Protocol::Tcp && headers.v6,
            Offload::Udp => headers.protocol == Protocol::Udp,
        };
        let size = usize::from(header.segment_size);
        // The device's word for the header length is not asked: it is wrong for forwarded packets. Where the
        // transport header begins is known twice, and must agree.
        if !fits || size == 0 || usize::from(header.checksum_start) != headers.ip {
            return Err(Reason::Malformed);
        }
        let segments = (packet.len() - headers.all).div_ceil(size).max(1);
        let stamp = Some(Stamp::new(headers, packet, size));
        Ok(Self { packet, stamp, next: 0, segments })
    }

    /// The packet as it came, for one judgement on all its segments; its transport checksum may be incomplete.
    /// Whole only before the first [`Self::next_segment`].
    #[must_use]
    pub const fn whole(&self) -> &[u8] {
        self.packet
    }

    /// The length of the longest packet it becomes.
    #[must_use]
    pub fn longest(&self) -> usize {
        let longest = self.stamp.as_ref().map_or(usize::MAX, |stamp| stamp.headers.all + stamp.size);
        longest.min(self.packet.len())
    }

    /// How many packets are still to come.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.segments - self.next
    }

    /// The next packet, with lengths and checksums of its own. It must be used up before the next call, which
    /// writes over its end.
    pub fn next_segment(&mut self) -> Option<&[u8]> {
        if self.next == self.segments {
            return None;
        }
        let position = self.next;
        self.next += 1;
        let Some(stamp) = &self.stamp else { return Some(self.packet) };
        let start = position * stamp.size;
        let end = (start + stamp.headers.all + stamp.size).min(self.packet.len());
        let segment = self.packet.get_mut(start..end)?;
        stamp.write(segment, position, position + 1 == self.segments);
        Some(segment)
    }
}

impl Stamp {
    fn new(headers: Headers, packet: &[u8], size: usize) -> Self {
        let mut template = [0; MAX_HEADERS];
        template[..headers.all].copy_from_slice(&packet[..headers.all]);
        let transport = headers.ip;
        let (id, ip_sum) = if headers.v6 {
            (0, Sum::default())
        } else {
            let id = u16::from_be_bytes([template[4], template[5]]);
            // Type of service; flags, time to live and protocol; addresses.
            let sum = Sum::default().bytes(&template[..2]).bytes(&template[6..10]).bytes(&template[12..20]);
            (id, sum)
        };
        let pseudo = headers.pseudo(&template);
        let (mut sequence, mut flags) = (0, 0);
        let transport_sum = match headers.protocol {
            Protocol::Tcp => {
                let at = transport + TCP_SEQUENCE;
                sequence = u32::from_be_bytes([template[at], template[at + 1], template[at + 2], template[at + 3]]);
                flags = template[transport + TCP_FLAGS];
                template[at..at + 4].fill(0);
                template[transport + TCP_CHECKSUM..][..2].fill(0);
                template[transport + TCP_FLAGS] = 0;
                pseudo.bytes(&template[transport..headers.all])
            }
            // The ports; length and checksum are each datagram's own.
            Protocol::Udp => pseudo.bytes(&template[transport..transport + UDP_LENGTH]),
        };
        Self { headers, template, size, ip_sum, transport_sum, id, sequence, flags }
    }

    /// Writes the header of segment number `position` in front of its payload, which lies in `segment` already.
    fn write(&self, segment: &mut [u8], position: usize, is_last: bool) {
        let Headers { v6, protocol, ip, all } = self.headers;
        let length = narrow(segment.len());
        let transport_length = narrow(segment.len() - ip);
        let (head, payload) = segment.split_at_mut(all);
        head.copy_from_slice(&self.template[..all]);
        if v6 {
            head[4..6].copy_from_slice(&transport_length.to_be_bytes());
        } else {
            let id = self.id.wrapping_add(narrow(position & 0xffff));
            head[2..4].copy_from_slice(&length.to_be_bytes());
            head[4..6].copy_from_slice(&id.to_be_bytes());
            head[10..12].copy_from_slice(&self.ip_sum.field(length).field(id).checksum());
        }
        let sum = self.transport_sum.field(transport_length).bytes(payload);
        let transport = &mut head[ip..];
        match protocol {
            Protocol::Tcp => {
                let mut flags = self.flags;
                if !is_last {
                    flags &= !(FIN | PSH);
                }
                if position > 0 {
                    flags &= !CWR;
                }
                let offset = u32::try_from(position * self.size).unwrap_or(0);
                let sequence = self.sequence.wrapping_add(offset);
                let checksum = sum.wide_field(sequence).field(u16::from(flags)).checksum();
                transport[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
                transport[TCP_FLAGS] = flags;
                transport[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&checksum);
            }
            Protocol::Udp => {
                // The length counts twice: in the pseudo-header and in its own field.
                let checksum = sum.field(transport_length).nonzero_checksum();
                transport[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&transport_length.to_be_bytes());
                transport[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&checksum);
            }
        }
    }
}

/// Lengths here are those of an IP packet, at most 65,535.
fn narrow(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// Computes the checksum that the kernel left to the device. Its field holds the pseudo-header's sum.
fn complete_checksum(header: VirtioNetHeader, packet: &mut [u8]) -> Result<(), Reason> {
    let covered = packet.get_mut(usize::from(header.checksum_start)..).ok_or(Reason::Malformed)?;
    let at = usize::from(header.checksum_offset);
    if at % 2 != 0 || at + 2 > covered.len() {
        return Err(Reason::Malformed);
    }
    let checksum = Sum::default().bytes(covered).nonzero_checksum();
    covered[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}
