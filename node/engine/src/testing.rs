//! Packets for this crate's tests: built from parts, with right lengths and checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{ICMP, ICMPV6, TCP, UDP};
use crate::refusals::{checksum_v4_header, transport_checksum};

/// Source and destination of the packets to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl Build {
    pub(crate) fn v4() -> Self {
        Self::between(Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 1))
    }

    pub(crate) fn v6() -> Self {
        Self::between(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))
    }

    pub(crate) fn between(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        Self { source: source.into(), destination: destination.into() }
    }

    pub(crate) fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }

    pub(crate) fn udp(&self, source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend(source.to_be_bytes());
        payload.extend(destination.to_be_bytes());
        payload.extend(u16::try_from(data.len() + 8).expect("short").to_be_bytes());
        payload.extend([0, 0]);
        payload.extend(data);
        self.ip(UDP, payload, 6)
    }

    pub(crate) fn tcp(&self, source: u16, destination: u16, flags: u8, data: &[u8]) -> Vec<u8> {
        self.tcp_at(source, destination, flags, 1000, 2000, data)
    }

    pub(crate) fn tcp_at(&self, source: u16, destination: u16, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend(source.to_be_bytes());
        payload.extend(destination.to_be_bytes());
        payload.extend(seq.to_be_bytes());
        payload.extend(ack.to_be_bytes());
        payload.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        payload.extend(data);
        self.ip(TCP, payload, 16)
    }

    pub(crate) fn echo(&self, request: bool, id: u16) -> Vec<u8> {
        let kind = match (self.source.is_ipv6(), request) {
            (false, true) => 8,
            (false, false) => 0,
            (true, true) => 128,
            (true, false) => 129,
        };
        let id = id.to_be_bytes();
        self.icmp(&[kind, 0, 0, 0, id[0], id[1], 0, 1, b'p', b'i', b'n', b'g'])
    }

    pub(crate) fn unreachable(&self, quoted: &[u8]) -> Vec<u8> {
        let mut message =
            if self.source.is_ipv6() { vec![1, 4, 0, 0, 0, 0, 0, 0] } else { vec![3, 3, 0, 0, 0, 0, 0, 0] };
        message.extend(quoted);
        self.icmp(&message)
    }

    pub(crate) fn icmp(&self, message: &[u8]) -> Vec<u8> {
        self.ip(if self.source.is_ipv6() { ICMPV6 } else { ICMP }, message.to_vec(), 2)
    }

    pub(crate) fn ip(&self, protocol: u8, mut payload: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        let sum = transport_checksum(self.source, self.destination, protocol, &payload);
        if payload.len() >= checksum_at + 2 {
            payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let length = u16::try_from(payload.len()).expect("short");
        let mut packet = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum_v4_header(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header.to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([protocol, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("one family"),
        };
        packet.extend(payload);
        packet
    }
}

/// A part of `whole`: `length` bytes of its payload from `offset` on.
pub(crate) fn fragment(whole: &[u8], id: u16, offset: u16, more: bool, length: usize) -> Vec<u8> {
    if whole[0] >> 4 == 6 {
        return fragment_v6(whole, u32::from(id), offset, more, length);
    }
    let mut packet = whole[..20].to_vec();
    packet.extend(&whole[20 + usize::from(offset)..][..length]);
    packet[2..4].copy_from_slice(&u16::try_from(length + 20).expect("short").to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

pub(crate) fn fragment_v6(whole: &[u8], id: u32, offset: u16, more: bool, length: usize) -> Vec<u8> {
    let mut packet = whole[..40].to_vec();
    packet[4..6].copy_from_slice(&u16::try_from(length + 8).expect("short").to_be_bytes());
    packet[6] = 44;
    packet.extend([whole[6], 0]);
    packet.extend((offset | u16::from(more)).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(&whole[40 + usize::from(offset)..][..length]);
    packet
}
