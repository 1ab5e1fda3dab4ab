//! Segmentation offload: super-packets, which the host's IP stack hands over and takes in place of up to 64 KiB of
//! ordinary packets of one flow. Crossing the stack once for many packets is what makes a userspace tunnel fast.
//!
//! ```text
//! Out:  TUN -> super-packet -> [Split] -> packets, each sealed where it lies -> UDP
//! In:   UDP -> opened, admitted packets -> [Merger] -> a header and the payloads where they lie -> TUN
//! ```
//!
//! Both directions are described by a [`VirtioNetHeader`] in front of the packet (virtio 1.2, section 5.1.6;
//! linux/virtio_net.h). Neither copies payload.
//!
//! **Checksums.** A split packet has a right transport checksum of its own. A merged one is marked as wanting its
//! checksum still, so the host does not verify it, and a wrong one inside would go unseen. So only packets whose
//! checksums are right are merged; a wrong one passes alone, and the host sees it.

use warren_proto::Reason;

mod checksum;
mod headers;
mod merge;
mod split;

pub use merge::{MAX_PREFIX, MAX_SEGMENTS, Merge, Merged, Merger};
pub use split::Split;

/// Which protocol's segments a super-packet stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    TcpV4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    TcpV6,
    /// UDP datagrams over either (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// `struct virtio_net_hdr` as a TUN with `IFF_VNET_HDR` has it: 10 bytes in the host's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetHeader {
    /// The transport checksum is still to be computed from [`Self::checksum_start`] on; its field holds the sum of
    /// the pseudo-header, folded and not inverted.
    pub needs_checksum: bool,
    /// Set for a super-packet.
    pub offload: Option<Offload>,
    /// Bytes of headers in a super-packet. The kernel's word for it is wrong on forwarded packets.
    pub header_length: u16,
    /// Payload bytes in each segment of a super-packet but the last, which may have fewer.
    pub segment_size: u16,
    /// Where the transport header begins.
    pub checksum_start: u16,
    /// Where the checksum field lies, from [`Self::checksum_start`] on.
    pub checksum_offset: u16,
}

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Marks a TCP super-packet with congestion bits. It says nothing that the segments' own headers do not.
const GSO_ECN: u8 = 0x80;

impl VirtioNetHeader {
    /// Its length on the device.
    pub const LENGTH: usize = 10;

    /// Reads a header. Refused as `malformed` is a kind of super-packet that warren never asks the kernel for.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Reason> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let offload = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Offload::TcpV4),
            GSO_TCPV6 => Some(Offload::TcpV6),
            GSO_UDP_L4 => Some(Offload::Udp),
            _ => return Err(Reason::Malformed),
        };
        Ok(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            offload,
            header_length: u16::from_ne_bytes([h0, h1]),
            segment_size: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let kind = match self.offload {
            None => GSO_NONE,
            Some(Offload::TcpV4) => GSO_TCPV4,
            Some(Offload::TcpV6) => GSO_TCPV6,
            Some(Offload::Udp) => GSO_UDP_L4,
        };
        let [h0, h1] = self.header_length.to_ne_bytes();
        let [s0, s1] = self.segment_size.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [u8::from(self.needs_checksum) * NEEDS_CHECKSUM, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests;
