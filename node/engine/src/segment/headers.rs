//! Where the headers of a packet lie that may be split or merged: IPv4 without options or IPv6 without extension
//! headers, not a fragment, and TCP or UDP in it. Everything else passes through as it is.

use crate::packet::{TCP, UDP};

use super::checksum::Sum;

/// IPv6 and the longest TCP header.
pub(super) const MAX_HEADERS: usize = 40 + 60;

/// Offsets inside a TCP header.
pub(super) const TCP_SEQUENCE: usize = 4;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECKSUM: usize = 16;
/// Offsets inside a UDP header.
pub(super) const UDP_LENGTH: usize = 4;
pub(super) const UDP_CHECKSUM: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// The headers of one packet. A value says that the packet is as long as its IP header says, and longer than or as
/// long as its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) v6: bool,
    pub(super) protocol: Protocol,
    /// Bytes of IP header: where the transport header begins.
    pub(super) ip: usize,
    /// Bytes of both headers: where the payload begins.
    pub(super) all: usize,
}

impl Headers {
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (v6, ip, protocol) = match packet.first()? {
            0x45 => {
                let (header, _) = packet.split_first_chunk::<20>()?;
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                // More fragments, a fragment offset, or the reserved bit.
                let is_part = u16::from_be_bytes([header[6], header[7]]) & 0xbfff != 0;
                if length != packet.len() || is_part {
                    return None;
                }
                (false, 20, header[9])
            }
            first if first >> 4 == 6 => {
                let (header, rest) = packet.split_first_chunk::<40>()?;
                if usize::from(u16::from_be_bytes([header[4], header[5]])) != rest.len() {
                    return None;
                }
                (true, 40, header[6])
            }
            _ => return None,
        };
        let transport = packet.get(ip..)?;
        let (protocol, length) = match protocol {
            TCP => (Protocol::Tcp, usize::from(transport.split_first_chunk::<20>()?.0[12] >> 4) * 4),
            UDP => (Protocol::Udp, 8),
            _ => return None,
        };
        let is_long_enough = match protocol {
            Protocol::Tcp => length >= 20 && transport.len() >= length,
            Protocol::Udp => transport.len() >= length,
        };
        is_long_enough.then_some(Self { v6, protocol, ip, all: ip + length })
    }

    /// Where the checksum field of the transport header lies, from that header on.
    pub(super) const fn checksum_offset(&self) -> usize {
        match self.protocol {
            Protocol::Tcp => TCP_CHECKSUM,
            Protocol::Udp => UDP_CHECKSUM,
        }
    }

    /// The sum of the pseudo-header but for the transport length. `packet` is what was parsed, or its headers.
    pub(super) fn pseudo(&self, packet: &[u8]) -> Sum {
        let (addresses, protocol) = if self.v6 { (8..40, packet[6]) } else { (12..20, packet[9]) };
        Sum::default().bytes(&packet[addresses]).field(u16::from(protocol))
    }

    /// Writes the IP length field, and the IPv4 checksum, into headers of a packet of `length` bytes.
    pub(super) fn write_length(&self, headers: &mut [u8], length: u16) {
        if self.v6 {
            headers[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
        } else {
            headers[2..4].copy_from_slice(&length.to_be_bytes());
            headers[10..12].fill(0);
            let checksum = Sum::default().bytes(&headers[..20]).checksum();
            headers[10..12].copy_from_slice(&checksum);
        }
    }
}
