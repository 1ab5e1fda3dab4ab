//! Checked views of inner packets. Parsing is total: any bytes give a view or a reason, and a view never shows
//! what was not checked. The filter and the refusals share this one parser.
//!
//! Accepted is what hosts send to each other: IPv4 without options, IPv6 whose only extension header is one
//! Fragment header (RFC 8200, section 4.5), and in them TCP, UDP and ICMP. All else is refused, since a rule
//! must never match what was not parsed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_proto::Reason;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// Transmission Control Protocol.
pub const TCP: u8 = 6;
/// User Datagram Protocol.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;

const FRAGMENT_HEADER: u8 = 44;
/// Headers that a sender may put before the transport header, and that a filter must not skip.
const EXTENSION_HEADERS: [u8; 6] = [0, 43, 60, 135, 139, 140];

/// The parts of an IP header that warren judges by, and where the payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner<'a> {
    bytes: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of [`Self::payload`].
    pub protocol: u8,
    /// What part of a datagram this is.
    pub fragment: Fragment,
    payload_at: usize,
}

/// What part of a datagram a packet is. Offsets and lengths are in bytes of the datagram's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it. An IPv6 atomic fragment (RFC 6946) counts as whole.
    Whole,
    /// The part that shows the ports.
    First {
        /// Identification.
        id: u32,
    },
    /// A part without ports.
    Later {
        /// Identification.
        id: u32,
        /// Where it begins; a multiple of 8, at least 8.
        offset: u16,
        /// No part follows it.
        last: bool,
    },
}

impl<'a> Inner<'a> {
    /// Parses the packet at the front of `bytes`; what follows it (padding) is cut off.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Reason> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(Reason::Malformed),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, _) = bytes.split_first_chunk::<20>().ok_or(Reason::Malformed)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < 20 || length < header_length || length > bytes.len() {
            return Err(Reason::Malformed);
        }
        if header_length > 20 {
            return Err(Reason::UnsupportedHeader);
        }
        let flags = u16::from_be_bytes([header[6], header[7]]);
        if flags & 0x8000 != 0 {
            return Err(Reason::Malformed);
        }
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let inner = Self {
            bytes: &bytes[..length],
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            fragment: fragment(id, offset, more, length - 20)?,
            payload_at: 20,
        };
        inner.check_protocol(ICMP)
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Reason> {
        let (header, rest) = bytes.split_first_chunk::<40>().ok_or(Reason::Malformed)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > rest.len() {
            return Err(Reason::Malformed);
        }
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let (mut protocol, mut payload_at, mut part) = (header[6], 40, Fragment::Whole);
        if protocol == FRAGMENT_HEADER {
            let (extension, _) = rest[..length].split_first_chunk::<8>().ok_or(Reason::Malformed)?;
            let field = u16::from_be_bytes([extension[2], extension[3]]);
            let id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
            (protocol, payload_at) = (extension[0], 48);
            part = fragment(id, usize::from(field & 0xfff8), field & 1 != 0, length - 8)?;
        }
        let inner = Self {
            bytes: &bytes[..40 + length],
            source: address(8),
            destination: address(24),
            protocol,
            fragment: part,
            payload_at,
        };
        inner.check_protocol(ICMPV6)
    }

    fn check_protocol(self, icmp: u8) -> Result<Self, Reason> {
        match self.protocol {
            TCP | UDP => Ok(self),
            protocol if protocol == icmp => Ok(self),
            FRAGMENT_HEADER => Err(Reason::UnsupportedHeader),
            protocol if EXTENSION_HEADERS.contains(&protocol) && self.is_v6() => Err(Reason::UnsupportedHeader),
            _ => Err(Reason::UnsupportedProtocol),
        }
    }

    /// The packet from its IP header on, exactly as long as that header says.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the IP headers.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_at..]
    }

    /// Whether it is an IPv6 packet.
    #[must_use]
    pub const fn is_v6(&self) -> bool {
        matches!(self.source, IpAddr::V6(_))
    }

    /// The transport header of a whole packet or a first fragment. A later fragment has none.
    pub fn transport(&self) -> Result<Transport<'a>, Reason> {
        let short = match self.fragment {
            Fragment::Whole => Reason::Malformed,
            Fragment::First { .. } => Reason::TinyFragment,
            Fragment::Later { .. } => return Err(Reason::UnknownFragment),
        };
        let payload = self.payload();
        match self.protocol {
            TCP => Tcp::parse(payload, self.fragment).map(Transport::Tcp).ok_or(short),
            UDP => Udp::parse(payload, self.fragment).map(Transport::Udp).ok_or(short),
            _ => Icmp::parse(payload, self.is_v6()).map(Transport::Icmp).ok_or(short),
        }
    }
}

fn fragment(id: u32, offset: usize, more: bool, length: usize) -> Result<Fragment, Reason> {
    let is_part = more || offset > 0;
    if (is_part && length == 0) || (more && !length.is_multiple_of(8)) || offset + length > 65_535 {
        return Err(Reason::Malformed);
    }
    Ok(match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First { id },
        (offset, more) => {
            Fragment::Later { id, offset: u16::try_from(offset).map_err(|_| Reason::Malformed)?, last: !more }
        }
    })
}

/// A checked transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport<'a> {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP or ICMPv6.
    Icmp(Icmp<'a>),
}

/// What is judged of a TCP header (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Acknowledgement number, meaningful with ACK.
    pub acknowledgement: u32,
    /// The flag byte.
    pub flags: u8,
    /// Payload bytes behind the header in this packet.
    pub data: u16,
}

/// TCP's FIN flag.
pub const FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's RST flag.
pub const RST: u8 = 0x04;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

impl Tcp {
    fn parse(payload: &[u8], fragment: Fragment) -> Option<Self> {
        let (header, _) = payload.split_first_chunk::<20>()?;
        let header_length = usize::from(header[12] >> 4) * 4;
        if header_length < 20 || (header_length > payload.len() && fragment == Fragment::Whole) {
            return None;
        }
        Some(Self {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            flags: header[13],
            data: u16::try_from(payload.len().saturating_sub(header_length)).unwrap_or(u16::MAX),
        })
    }

    /// Whether it asks for a new connection: SYN without ACK, RST or FIN.
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// The sequence number behind this segment.
    #[must_use]
    pub const fn end(&self) -> u32 {
        let control = (self.flags & SYN != 0) as u32 + (self.flags & FIN != 0) as u32;
        self.sequence.wrapping_add(self.data as u32).wrapping_add(control)
    }
}

/// UDP's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Udp {
    fn parse(payload: &[u8], fragment: Fragment) -> Option<Self> {
        let (header, _) = payload.split_first_chunk::<8>()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length < 8 || (length > payload.len() && fragment == Fragment::Whole) {
            return None;
        }
        Some(Self {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
        })
    }
}

/// The ICMP messages that a tunnel may carry (RFC 792, RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp<'a> {
    /// Echo request.
    Request {
        /// Identifier.
        id: u16,
    },
    /// Echo reply.
    Reply {
        /// Identifier.
        id: u16,
    },
    /// Unreachable, packet too big, time exceeded or parameter problem.
    Error {
        /// The beginning of the packet it is about.
        quoted: &'a [u8],
    },
    /// Anything else: redirects, router and neighbour discovery, timestamps.
    Other,
}

impl<'a> Icmp<'a> {
    fn parse(payload: &'a [u8], v6: bool) -> Option<Self> {
        let (header, quoted) = payload.split_first_chunk::<8>()?;
        let id = u16::from_be_bytes([header[4], header[5]]);
        Some(match (v6, header[0]) {
            (false, 8) | (true, 128) => Self::Request { id },
            (false, 0) | (true, 129) => Self::Reply { id },
            (false, 3 | 11 | 12) | (true, 1..=4) => Self::Error { quoted },
            _ => Self::Other,
        })
    }
}

/// The packet that an ICMP error quotes, seen by who sent it. Truncation is normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// TCP, UDP or the family's ICMP.
    pub protocol: u8,
    /// Its source and destination port; an echo's identifier twice.
    pub ports: (u16, u16),
    /// For ICMP: an echo request (`true`) or a reply.
    pub is_request: bool,
}

impl Quoted {
    /// Parses a quotation that shows ports or an echo identifier. Quoted later fragments, ICMP errors and
    /// extension headers show none and give nothing.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, payload): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
            4 => {
                let (header, payload) = bytes.split_first_chunk::<20>()?;
                if header[0] & 0x0f != 5 || u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
                    return None;
                }
                let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
                let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
                (source.into(), destination.into(), header[9], payload)
            }
            6 => {
                let (header, mut payload) = bytes.split_first_chunk::<40>()?;
                let mut protocol = header[6];
                if protocol == FRAGMENT_HEADER {
                    let (extension, rest) = payload.split_first_chunk::<8>()?;
                    if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                        return None;
                    }
                    (protocol, payload) = (extension[0], rest);
                }
                let source: [u8; 16] = header[8..24].try_into().ok()?;
                let destination: [u8; 16] = header[24..40].try_into().ok()?;
                (IpAddr::from(source), IpAddr::from(destination), protocol, payload)
            }
            _ => return None,
        };
        let (shown, _) = payload.split_first_chunk::<8>()?;
        let first = u16::from_be_bytes([shown[0], shown[1]]);
        let second = u16::from_be_bytes([shown[2], shown[3]]);
        let id = u16::from_be_bytes([shown[4], shown[5]]);
        let (ports, is_request) = match (protocol, source.is_ipv6(), shown[0]) {
            (TCP | UDP, _, _) => ((first, second), false),
            (ICMP, false, 8) | (ICMPV6, true, 128) => ((id, id), true),
            (ICMP, false, 0) | (ICMPV6, true, 129) => ((id, id), false),
            _ => return None,
        };
        Some(Self { source, destination, protocol, ports, is_request })
    }
}

#[cfg(test)]
mod tests;
