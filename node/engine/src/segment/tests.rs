//! Splitting and merging are each other's inverse, and nothing wrong is hidden by them.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::packet::{ACK, FIN, RST, SYN, TCP, UDP};
use crate::refusals::{checksum_v4_header, transport_checksum};
use crate::testing::{Build, fragment};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A packet's parts, from which the naive model below makes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    v6: bool,
    tcp: bool,
    service: u8,
    ttl: u8,
    dont_fragment: bool,
    id: u16,
    ports: (u16, u16),
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    urgent: u16,
    /// Words of TCP options.
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Parts {
    fn tcp(payload: usize) -> Self {
        Self {
            v6: false,
            tcp: true,
            service: 0,
            ttl: 64,
            dont_fragment: false,
            id: 7,
            ports: (40_000, 8080),
            sequence: 1000,
            acknowledgement: 2000,
            flags: ACK,
            window: 500,
            urgent: 0,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: (0..payload).map(|at| u8::try_from(at % 251).expect("small")).collect(),
        }
    }

    fn udp(payload: usize) -> Self {
        Self { tcp: false, flags: 0, options: vec![], sequence: 0, ..Self::tcp(payload) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            let words = u8::try_from((20 + self.options.len()) / 4).expect("short");
            transport.extend([words << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.options);
        } else {
            transport.extend(u16::try_from(8 + self.payload.len()).expect("short").to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(&self.payload);
        let build = if self.v6 { Build::v6() } else { Build::v4() };
        let protocol = if self.tcp { TCP } else { UDP };
        let at = if self.tcp { 16 } else { 6 };
        let sum = transport_checksum(build.source, build.destination, protocol, &transport);
        let sum = if !self.tcp && sum == 0 { 0xffff } else { sum };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(transport.len()).expect("short");
        let mut packet = match (build.source, build.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = [0; 20];
                header[0] = 0x45;
                header[1] = self.service;
                header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                header[4..6].copy_from_slice(&self.id.to_be_bytes());
                header[6] = if self.dont_fragment { 0x40 } else { 0 };
                header[8] = self.ttl;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum_v4_header(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header.to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60 | self.service >> 4, self.service << 4, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([protocol, self.ttl]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => unreachable!("one family"),
        };
        packet.extend(transport);
        packet
    }

    fn transport_at(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn offload(&self) -> Offload {
        match (self.tcp, self.v6) {
            (true, false) => Offload::TcpV4,
            (true, true) => Offload::TcpV6,
            (false, _) => Offload::Udp,
        }
    }

    /// As a TUN hands it over: a checksum that is yet to be computed, a header length that is wrong.
    fn super_packet(&self, size: u16) -> (VirtioNetHeader, Vec<u8>) {
        let mut packet = self.bytes();
        let start = self.transport_at();
        let offset = if self.tcp { 16 } else { 6 };
        packet[start + offset..start + offset + 2].copy_from_slice(&[0xab, 0xcd]);
        let header = VirtioNetHeader {
            needs_checksum: true,
            offload: Some(self.offload()),
            header_length: 9999,
            segment_size: size,
            checksum_start: u16::try_from(start).expect("small"),
            checksum_offset: offset.try_into().expect("small"),
        };
        (header, packet)
    }

    /// The naive model of segmentation: every packet built from its parts.
    fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size).max(1);
        (0..count)
            .map(|position| {
                let start = position * size;
                let end = (start + size).min(self.payload.len());
                let mut part = self.clone();
                part.payload = self.payload[start..end].to_vec();
                part.id = self.id.wrapping_add(u16::try_from(position).expect("few"));
                if self.tcp {
                    part.sequence = self.sequence.wrapping_add(u32::try_from(start).expect("small"));
                }
                if position > 0 {
                    part.flags &= !CWR;
                }
                if position + 1 < count {
                    part.flags &= !(FIN | PSH);
                }
                part.bytes()
            })
            .collect()
    }
}

fn split(header: VirtioNetHeader, packet: &mut [u8]) -> Result<Vec<Vec<u8>>, Reason> {
    let mut split = Split::new(header, packet)?;
    let (longest, expected) = (split.longest(), split.remaining());
    let mut segments = Vec::new();
    while let Some(segment) = split.next_segment() {
        assert!(segment.len() <= longest, "no segment is longer than announced");
        segments.push(segment.to_vec());
    }
    assert_eq!(segments.len(), expected);
    assert_eq!(split.remaining(), 0);
    Ok(segments)
}

const ALL: Merge = Merge { tcp: true, udp: true };

/// What a batch becomes: for each written packet, the numbers of those in it and its bytes behind the device's
/// header, with that header.
fn merge(packets: &[Vec<u8>]) -> Vec<(Vec<usize>, VirtioNetHeader, Vec<u8>)> {
    let mut merger = Merger::new(ALL, packets.len());
    merge_with(&mut merger, packets)
}

fn merge_with(merger: &mut Merger, packets: &[Vec<u8>]) -> Vec<(Vec<usize>, VirtioNetHeader, Vec<u8>)> {
    merger.clear();
    for packet in packets {
        merger.push(packet);
    }
    merger
        .merged()
        .map(|merged| {
            let numbers: Vec<usize> = merged.packets().collect();
            assert_eq!(numbers.len(), merged.count());
            let mut out = [0; MAX_PREFIX];
            let prefix = merged.prefix(&packets[numbers[0]], &mut out);
            let (device, head) = prefix.split_first_chunk::<{ VirtioNetHeader::LENGTH }>().expect("a header");
            let header = VirtioNetHeader::decode(device).expect("a header");
            assert_eq!(header.offload, merged.offload());
            let mut bytes = head.to_vec();
            for number in &numbers {
                bytes.extend(&packets[*number][merged.payload_at()..]);
            }
            (numbers, header, bytes)
        })
        .collect()
}

fn groups(packets: &[Vec<u8>]) -> Vec<Vec<usize>> {
    merge(packets).into_iter().map(|(numbers, ..)| numbers).collect()
}

/// The identification of an IPv4 packet that may not be fragmented means nothing: zero it, checksum included.
fn without_moot_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet.first() == Some(&0x45) && packet.len() >= 20 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn parts() -> impl Strategy<Value = Parts> {
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), 0u8..4, 63u8..65);
    let words = (0usize..=10, any::<u16>(), prop_oneof![any::<u32>(), u32::MAX - 5000..=u32::MAX]);
    let flags = prop_oneof![
        4 => Just(ACK),
        2 => Just(ACK | PSH),
        1 => Just(ACK | FIN | PSH | CWR | ECE),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![proptest::collection::vec(any::<u8>(), 0..5000), Just(vec![0; 3000])];
    (shape, words, flags, payload).prop_map(
        |((v6, tcp, dont_fragment, service, ttl), (options, id, sequence), flags, payload)| {
            let mut parts = if tcp { Parts::tcp(0) } else { Parts::udp(0) };
            parts.v6 = v6;
            parts.dont_fragment = dont_fragment;
            parts.service = service;
            parts.ttl = ttl;
            parts.id = id;
            if tcp {
                parts.options = vec![1; options * 4];
                parts.sequence = sequence;
                parts.flags = flags;
            }
            parts.payload = payload;
            parts
        },
    )
}

#[test]
fn the_device_header_survives_a_round_trip() {
    for offload in [None, Some(Offload::TcpV4), Some(Offload::TcpV6), Some(Offload::Udp)] {
        let header = VirtioNetHeader {
            needs_checksum: true,
            offload,
            header_length: 1,
            segment_size: 2,
            checksum_start: 3,
            checksum_offset: 4,
        };
        assert_eq!(VirtioNetHeader::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn the_congestion_bit_of_a_super_packet_is_masked_and_an_unknown_kind_refused() {
    let mut bytes = Parts::tcp(10).super_packet(5).0.encode();
    bytes[1] |= 0x80;
    assert_eq!(VirtioNetHeader::decode(&bytes).map(|header| header.offload), Ok(Some(Offload::TcpV4)));
    for kind in [2, 3, 6, 0x7f, 0x83] {
        bytes[1] = kind;
        assert_eq!(VirtioNetHeader::decode(&bytes), Err(Reason::Malformed), "kind {kind}");
    }
}

#[test]
fn fin_and_push_are_on_the_last_segment_only_and_cwr_on_the_first() {
    let mut whole = Parts::tcp(2500);
    whole.flags = ACK | FIN | PSH | CWR | ECE;
    let (header, mut packet) = whole.super_packet(1000);
    let flags: Vec<u8> = split(header, &mut packet).expect("splits").iter().map(|segment| segment[33]).collect();
    assert_eq!(flags, [ACK | CWR | ECE, ACK | ECE, ACK | ECE | FIN | PSH]);
}

#[test]
fn sequence_numbers_and_identifications_wrap_around() {
    let whole = Parts { sequence: u32::MAX - 10, id: u16::MAX, ..Parts::tcp(65_000) };
    let (header, mut packet) = whole.super_packet(1000);
    assert_eq!(split(header, &mut packet).expect("splits"), whole.segments(1000));
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_written_as_ffff() {
    // Two payload bytes that make up for the sum of all else.
    let mut whole = Parts::udp(4);
    whole.payload = vec![0, 0, 9, 9];
    let plain = whole.segments(2)[0].clone();
    whole.payload[..2].copy_from_slice(&plain[26..28]);
    let (header, mut packet) = whole.super_packet(2);
    let segments = split(header, &mut packet).expect("splits");
    assert_eq!(segments[0][26..28], [0xff, 0xff]);
    assert_eq!(segments, whole.segments(2));
}

#[test]
fn a_single_packet_gets_the_checksum_that_the_kernel_left_out() {
    for parts in [Parts::tcp(101), Parts::udp(101), Parts { v6: true, ..Parts::tcp(7) }] {
        let whole = parts.bytes();
        let (header, mut packet) = parts.super_packet(0);
        let at = parts.transport_at() + usize::from(header.checksum_offset);
        // What the kernel leaves there: the folded sum of the pseudo-header.
        let headers = headers::Headers::parse(&whole).expect("plain");
        let length = u16::try_from(whole.len() - headers.ip).expect("short");
        packet[at..at + 2].copy_from_slice(&headers.pseudo(&whole).field(length).folded());
        let header = VirtioNetHeader { offload: None, ..header };
        assert_eq!(split(header, &mut packet), Ok(vec![whole]));
    }
}

#[test]
fn a_description_that_does_not_fit_the_packet_is_refused() {
    let (header, packet) = Parts::tcp(3000).super_packet(1000);
    let lies = [
        VirtioNetHeader { offload: Some(Offload::TcpV6), ..header },
        VirtioNetHeader { offload: Some(Offload::Udp), ..header },
        VirtioNetHeader { segment_size: 0, ..header },
        VirtioNetHeader { checksum_start: 24, ..header },
        VirtioNetHeader { offload: None, checksum_start: u16::MAX, ..header },
        VirtioNetHeader { offload: None, checksum_offset: 3039, ..header },
        VirtioNetHeader { offload: None, checksum_offset: u16::MAX, ..header },
    ];
    for lie in lies {
        assert_eq!(split(lie, &mut packet.clone()), Err(Reason::Malformed), "{lie:?}");
    }
    for length in 0..52 {
        assert_eq!(split(header, &mut packet.clone()[..length]), Err(Reason::Malformed), "cut to {length}");
    }
}

#[test]
fn segments_of_one_flow_become_one_super_packet_and_its_last_may_be_shorter() {
    let whole = Parts { flags: ACK | PSH, ..Parts::tcp(4500) };
    let packets = whole.segments(1000);
    let merged = merge(&packets);
    let (numbers, header, bytes) = &merged[0];
    assert_eq!((merged.len(), numbers.len()), (1, 5));
    assert_eq!(header.header_length, 52);
    assert_eq!((header.segment_size, header.checksum_start, header.checksum_offset), (1000, 20, 16));
    // But for the transport checksum it is the packet that was never split.
    let mut expected = whole.bytes();
    expected[36..38].copy_from_slice(&bytes[36..38]);
    assert_eq!(*bytes, expected);
    let headers = headers::Headers::parse(bytes).expect("plain");
    let length = u16::try_from(bytes.len() - 20).expect("short");
    assert_eq!(bytes[36..38], headers.pseudo(bytes).field(length).folded(), "folded, not inverted");
}

#[test]
fn a_packet_that_differs_where_the_kernel_looks_is_not_merged() {
    let first = Parts { dont_fragment: false, ..Parts::tcp(100) };
    let second = Parts { sequence: 1100, id: 8, ..first.clone() };
    assert_eq!(groups(&[first.bytes(), second.bytes()]), [vec![0, 1]]);
    let others = [
        Parts { sequence: 1101, ..second.clone() },
        Parts { acknowledgement: 2001, ..second.clone() },
        Parts { window: 501, ..second.clone() },
        Parts { urgent: 1, ..second.clone() },
        Parts { options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3], ..second.clone() },
        Parts { options: vec![], ..second.clone() },
        Parts { ttl: 63, ..second.clone() },
        Parts { service: 1, ..second.clone() },
        Parts { dont_fragment: true, ..second.clone() },
        Parts { id: 9, ..second.clone() },
        Parts { ports: (40_000, 8081), ..second.clone() },
        Parts { flags: ACK | ECE, ..second.clone() },
        Parts { flags: ACK | CWR, ..second.clone() },
        Parts { flags: ACK | FIN, ..second.clone() },
        Parts { flags: ACK | RST, ..second.clone() },
        Parts { flags: ACK | SYN, ..second.clone() },
        Parts { flags: ACK | URG, ..second.clone() },
        Parts { flags: 0, ..second.clone() },
        Parts { payload: vec![1; 101], ..second.clone() },
        Parts { payload: vec![], ..second.clone() },
        Parts { tcp: false, ..second.clone() },
        Parts { v6: true, ..second.clone() },
    ];
    for other in others {
        assert_eq!(groups(&[first.bytes(), other.bytes()]), [vec![0], vec![1]], "{other:?}");
    }
}

#[test]
fn with_dont_fragment_the_identification_does_not_matter() {
    let first = Parts { dont_fragment: true, id: 0, ..Parts::tcp(100) };
    let second = Parts { sequence: 1100, ..first.clone() };
    assert_eq!(groups(&[first.bytes(), second.bytes()]), [vec![0, 1]]);
}

#[test]
fn a_wrong_checksum_is_never_merged_away() {
    for parts in [Parts::tcp(3000), Parts::udp(3000), Parts { v6: true, ..Parts::tcp(3000) }] {
        let packets = parts.segments(1000);
        assert_eq!(groups(&packets), [[0, 1, 2]]);
        let last = packets[1].len() - 1;
        let header = if parts.v6 { last } else { 10 };
        for (damaged, at, expected) in [
            (0, last, vec![vec![0], vec![1, 2]]),
            (1, last, vec![vec![0], vec![1], vec![2]]),
            (2, last, vec![vec![0, 1], vec![2]]),
            (2, parts.transport_at() + if parts.tcp { 17 } else { 7 }, vec![vec![0, 1], vec![2]]),
            (2, header, vec![vec![0, 1], vec![2]]),
        ] {
            let mut packets = packets.clone();
            packets[damaged][at] ^= 1;
            assert_eq!(groups(&packets), expected, "{parts:?}");
        }
    }
}

#[test]
fn a_push_or_a_short_segment_ends_a_super_packet() {
    let part = |sequence, payload, flags, id| Parts { sequence, flags, id, ..Parts::tcp(payload) }.bytes();
    let pushed = [part(1000, 100, ACK, 7), part(1100, 100, ACK | PSH, 8), part(1200, 100, ACK, 9)];
    assert_eq!(groups(&pushed), [vec![0, 1], vec![2]]);
    let short = [part(1000, 100, ACK, 7), part(1100, 99, ACK, 8), part(1199, 99, ACK, 9)];
    assert_eq!(groups(&short), [vec![0, 1], vec![2]]);
    let first = [part(1000, 100, ACK | PSH, 7), part(1100, 100, ACK, 8)];
    assert_eq!(groups(&first), [vec![0], vec![1]]);
}

#[test]
fn flows_merge_side_by_side_and_keep_their_own_order() {
    let part = |flow: u16, position: u16| {
        let sequence = 1000 + 100 * u32::from(position);
        Parts { ports: (flow, 1), sequence, id: position, ..Parts::tcp(100) }.bytes()
    };
    let packets: Vec<Vec<u8>> = (0..3).flat_map(|position| (0..3).map(move |flow| part(flow, position))).collect();
    assert_eq!(groups(&packets), [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5, 8]]);
    // More flows than places: the oldest run gives way, and a flow is never written out of order.
    let packets: Vec<Vec<u8>> = (0..2).flat_map(|position| (0..9).map(move |flow| part(flow, position))).collect();
    let groups = groups(&packets);
    assert!(groups.iter().all(|group| group.is_sorted()));
    assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 18);
}

#[test]
fn an_acknowledgement_between_two_segments_is_not_overtaken() {
    let part =
        |sequence, payload, acknowledgement, id| Parts { sequence, acknowledgement, id, ..Parts::tcp(payload) }.bytes();
    let packets = [part(1000, 100, 1, 7), part(1100, 0, 2, 8), part(1100, 100, 1, 8), part(1200, 100, 1, 9)];
    assert_eq!(groups(&packets), [vec![0], vec![1], vec![2, 3]]);
}

#[test]
fn a_fragment_is_never_merged_nor_overtaken() {
    let whole = Parts::udp(96);
    let part = fragment(&whole.bytes(), 7, 0, true, 48);
    let packets = [whole.bytes(), part, Parts { id: 8, ..whole.clone() }.bytes()];
    assert_eq!(groups(&packets), [vec![0], vec![1], vec![2]]);
}

#[test]
fn a_udp_datagram_without_checksum_stays_without() {
    let with = Parts { dont_fragment: true, ..Parts::udp(100) }.bytes();
    let mut without = with.clone();
    without[26..28].fill(0);
    assert_eq!(groups(&[with.clone(), without.clone(), with.clone()]), [vec![0], vec![1], vec![2]]);
    assert_eq!(groups(&[without.clone(), without]), [vec![0], vec![1]]);
    assert_eq!(groups(&[with.clone(), with.clone()]), [vec![0, 1]]);
}

#[test]
fn a_super_packet_has_at_most_64_segments_and_65535_bytes() {
    let small = vec![Parts { dont_fragment: true, ..Parts::udp(1) }.bytes(); 65];
    assert_eq!(groups(&small).iter().map(Vec::len).collect::<Vec<_>>(), [64, 1]);
    let whole = Parts { dont_fragment: true, ..Parts::tcp(64_000) };
    let mut packets = whole.segments(8000);
    packets.extend(Parts { sequence: 65_000, ..whole }.segments(8000));
    let merged = merge(&packets);
    assert!(merged.iter().all(|(_, _, bytes)| bytes.len() <= 65_535));
    assert_eq!(merged.iter().map(|(numbers, ..)| numbers.len()).collect::<Vec<_>>(), [8, 8]);
}

#[test]
fn what_is_not_to_be_merged_passes_alone() {
    let packets = Parts::tcp(300).segments(100);
    let mut merger = Merger::new(Merge::default(), 3);
    let merged = merge_with(&mut merger, &packets);
    assert_eq!(merged.len(), 3);
    for (merged, packet) in merged.iter().zip(&packets) {
        assert_eq!((&merged.1, &merged.2), (&VirtioNetHeader::default(), packet));
    }
}

proptest! {
    #[test]
    fn split_segments_are_those_of_the_naive_model(parts in parts(), size in 1u16..3000) {
        let (header, mut packet) = parts.super_packet(size);
        let segments = split(header, &mut packet);
        prop_assert_eq!(segments, Ok(parts.segments(usize::from(size))));
    }

    #[test]
    fn what_was_split_and_merged_is_split_the_same_again(parts in parts(), size in 1u16..3000) {
        let (header, mut packet) = parts.super_packet(size);
        let packets = split(header, &mut packet).expect("splits");
        let mut again = Vec::new();
        for (_, header, mut bytes) in merge(&packets) {
            again.extend(split(header, &mut bytes).expect("merged packets split"));
        }
        let moot = |packets: Vec<Vec<u8>>| packets.into_iter().map(without_moot_id).collect::<Vec<_>>();
        prop_assert_eq!(moot(again), moot(packets));
    }

    #[test]
    fn every_packet_of_a_batch_comes_out_once_and_in_the_order_of_its_flow(
        flows in proptest::collection::vec((parts(), 200u16..1500), 1..12),
        order in proptest::collection::vec(any::<usize>(), 0..200),
    ) {
        // Interleave the flows' segments at random, each flow's in order.
        let mut queues: Vec<Vec<Vec<u8>>> = flows.iter().enumerate().map(|(flow, (parts, size))| {
            let ports = (u16::try_from(flow).expect("few"), 1);
            Parts { ports, ..parts.clone() }.segments(usize::from(*size))
        }).collect();
        let mut packets = Vec::new();
        for pick in order {
            let flow = pick % queues.len();
            if !queues[flow].is_empty() {
                packets.push(queues[flow].remove(0));
            }
        }
        let merged = merge(&packets);
        let mut numbers: Vec<usize> = merged.iter().flat_map(|(numbers, ..)| numbers.clone()).collect();
        for (numbers, header, bytes) in &merged {
            let mut bytes = bytes.clone();
            let segments = split(*header, &mut bytes).expect("merged packets split");
            let sent: Vec<_> = numbers.iter().map(|number| without_moot_id(packets[*number].clone())).collect();
            let seen: Vec<_> = segments.into_iter().map(without_moot_id).collect();
            prop_assert_eq!(seen, sent);
        }
        let flow_of = |packet: &[u8]| {
            let at = if packet[0] >> 4 == 6 { 40 } else { 20 };
            (packet[0], packet[if at == 40 { 6 } else { 9 }], packet[at..at + 4].to_vec())
        };
        for (position, number) in numbers.iter().enumerate() {
            for later in &numbers[position + 1..] {
                prop_assert!(number < later || flow_of(&packets[*number]) != flow_of(&packets[*later]));
            }
        }
        numbers.sort_unstable();
        prop_assert_eq!(numbers, (0..packets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_splitting_panic(
        header in any::<[u8; 10]>(),
        mut packet in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok(header) = VirtioNetHeader::decode(&header) {
            let _ = split(header, &mut packet);
        }
    }

    #[test]
    fn no_damage_to_a_super_packet_makes_splitting_panic(
        parts in parts(),
        size in 0u16..3000,
        damage in proptest::collection::vec((0usize..120, any::<u8>()), 1..4),
        cut in 0usize..200,
    ) {
        let (header, packet) = parts.super_packet(size);
        let mut all = [header.encode().to_vec(), packet].concat();
        for (at, value) in damage {
            if let Some(byte) = all.get_mut(at) {
                *byte = value;
            }
        }
        let length = all.len() - cut.min(all.len() - 10);
        let (header, packet) = all[..length].split_first_chunk_mut::<10>().expect("a header");
        if let Ok(header) = VirtioNetHeader::decode(header) {
            let _ = split(header, packet);
        }
    }

    #[test]
    fn no_bytes_make_merging_panic_or_lose_a_packet(
        noise in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10),
        parts in parts(),
        damage in proptest::collection::vec((any::<usize>(), 0usize..100, any::<u8>()), 0..10),
    ) {
        let mut packets = parts.segments(300);
        packets.extend(noise);
        for (packet, at, value) in damage {
            let number = packet % packets.len();
            if let Some(byte) = packets[number].get_mut(at) {
                *byte = value;
            }
        }
        let mut numbers: Vec<usize> = merge(&packets).into_iter().flat_map(|(numbers, ..)| numbers).collect();
        numbers.sort_unstable();
        prop_assert_eq!(numbers, (0..packets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_fast_sum_is_the_sum_of_the_words(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let naive = transport_checksum(IpAddr::from([0, 0, 0, 0]), IpAddr::from([0; 4]), crate::packet::ICMP, &bytes);
        prop_assert_eq!(checksum::Sum::default().bytes(&bytes).checksum(), naive.to_be_bytes());
    }
}
