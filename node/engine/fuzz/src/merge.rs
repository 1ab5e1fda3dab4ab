//! Merging: every packet of a batch comes out once, in the order of its flow, inside the limits, and a super-packet is
//! split again into exactly the packets that it stands for, so that nothing about them was hidden, a wrong checksum
//! least of all.

use std::collections::HashMap;

use warren_engine::segment::{MAX_PREFIX, MAX_SEGMENTS, Merge, Merger, Offload, Split, VirtioNetHeader};

use super::{Input, Parts, checksums_are_right, make_checksums_right, transport_of};

/// Payload lengths that a small input can ask for.
const LENGTHS: [usize; 8] = [1368, 1, 0, 64, 1200, 4, 8948, 1369];

/// See the module. Reads which merging is on, then packet after packet.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.byte();
    let merge = Merge { tcp: switches & 1 == 0, udp: switches & 2 == 0 };
    let mut packets = Vec::new();
    let mut sent: HashMap<u8, (u32, u16)> = HashMap::new();
    while !input.is_empty() && packets.len() < 200 {
        let kind = input.byte();
        if kind == 0xff {
            let length = usize::from(input.byte());
            packets.push(input.take(length).to_vec());
            continue;
        }
        // Bits: 0-2 the flow, which says family and protocol too; 3-5 the length; 6 something is odd; 7 again and again.
        let (flow, length) = (kind & 7, LENGTHS[usize::from(kind >> 3 & 7)]);
        let repeats = if kind & 0x80 != 0 { usize::from(input.byte()) % 80 } else { 1 };
        for _ in 0..repeats {
            let (sequence, id) = sent.entry(flow).or_insert((u32::MAX - 4000, u16::MAX - 3));
            let mut parts = Parts {
                v6: flow & 1 != 0,
                tcp: flow & 2 != 0,
                service: 0,
                hops: 64,
                dont_fragment: flow & 4 != 0,
                id: *id,
                host: 2,
                ports: (40_000 + u16::from(flow & 4), 8080),
                sequence: *sequence,
                flags: 0x10,
                options: 3,
                payload: (0..length).map(|at| at as u8).collect(),
            };
            *sequence = sequence.wrapping_add(length as u32);
            *id = id.wrapping_add(1);
            let packet = if kind & 0x40 != 0 { odd(&mut parts, &mut input) } else { parts.bytes() };
            packets.push(packet);
        }
    }
    let mut merger = Merger::new(merge, packets.len());
    packets.iter().for_each(|packet| merger.push(packet));
    check_merger(&merger, &packets);
    // Memory is kept from batch to batch, and nothing else is.
    merger.clear();
    packets.iter().for_each(|packet| merger.push(packet));
    check_merger(&merger, &packets);
}

/// The flow's next packet, but not quite.
fn odd(parts: &mut Parts, input: &mut Input<'_>) -> Vec<u8> {
    let (what, value) = (input.byte(), input.byte());
    match what & 15 {
        0 => parts.flags = value,
        1 => parts.service = value,
        2 => parts.hops = value,
        3 => parts.id = u16::from(value),
        4 => parts.sequence = parts.sequence.wrapping_add(u32::from(value)),
        5 => parts.options = value % 11,
        6 => parts.dont_fragment = value & 1 != 0,
        7 => parts.payload.truncate(usize::from(value)),
        8 => parts.ports.0 = u16::from(value),
        9 => parts.payload.fill(value),
        _ => {}
    }
    let mut packet = parts.bytes();
    match what & 15 {
        // A byte changed, the checksums as they were.
        10 => flip(&mut packet, usize::from(value)),
        // The same far behind the headers.
        11 => {
            let at = packet.len() - 1 - usize::from(value) % packet.len();
            flip(&mut packet, at);
        }
        // A byte changed and the checksums made to fit.
        12 => {
            flip(&mut packet, usize::from(value));
            make_checksums_right(&mut packet);
        }
        13 => packet.truncate(packet.len().saturating_sub(usize::from(value))),
        14 => packet.extend(vec![0; usize::from(value)]),
        // No UDP checksum, or a wrong TCP one.
        15 => {
            if let Some((at, protocol)) = transport_of(&packet) {
                let field = at + if protocol == 6 { 16 } else { 6 };
                packet[field..field + 2].fill(0);
            }
        }
        _ => {}
    }
    packet
}

fn flip(packet: &mut [u8], at: usize) {
    if let Some(byte) = packet.get_mut(at) {
        *byte ^= 1 << (at % 8);
    }
}

/// Checks what `merger` made of `packets`.
pub(crate) fn check_merger(merger: &Merger, packets: &[Vec<u8>]) {
    let mut seen = vec![false; packets.len()];
    let mut newest: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut last_first = None;
    for merged in merger.merged() {
        let numbers: Vec<usize> = merged.packets().collect();
        assert_eq!(numbers.len(), merged.count());
        assert!((1..=MAX_SEGMENTS).contains(&numbers.len()));
        assert!(last_first < numbers.first().copied(), "super-packets lie in the order of their first packets");
        last_first = numbers.first().copied();
        for number in &numbers {
            assert!(!std::mem::replace(&mut seen[*number], true), "packet {number} came out twice");
            let flow = flow_of(&packets[*number]);
            let before = newest.insert(flow, *number);
            assert!(before < Some(*number), "packet {number} was overtaken by {before:?} of its flow");
        }
        let mut prefix = [0; MAX_PREFIX];
        let prefix = merged.prefix(&packets[numbers[0]], &mut prefix);
        let (device, head) = prefix.split_first_chunk::<{ VirtioNetHeader::LENGTH }>().expect("a header");
        let header = VirtioNetHeader::decode(device).expect("a header");
        assert_eq!(header.offload, merged.offload());
        if numbers.len() == 1 {
            // As it came: the host checks it, whatever it is.
            assert_eq!((header, head.len(), merged.payload_at()), (VirtioNetHeader::default(), 0, 0));
            continue;
        }
        let tcp = matches!(header.offload, Some(Offload::TcpV4 | Offload::TcpV6));
        assert!(if tcp { merger.merge().tcp } else { merger.merge().udp }, "what is switched off is not merged");
        let mut bytes = head.to_vec();
        for number in &numbers {
            assert!(checksums_are_right(&packets[*number]), "packet {number} had a wrong checksum, and it was hidden");
            bytes.extend(&packets[*number][merged.payload_at()..]);
        }
        assert!(bytes.len() <= 65_535);
        assert!(header.needs_checksum);
        check_pseudo_checksum(&bytes, header);
        let mut split = Split::new(header, &mut bytes).expect("a super-packet of ours is one");
        for number in &numbers {
            let segment = split.next_segment().expect("as many as were merged");
            assert_eq!(without_moot_id(segment), without_moot_id(&packets[*number]), "packet {number}");
        }
        assert_eq!(split.remaining(), 0);
    }
    assert!(seen.iter().all(|seen| *seen), "a packet was lost");
}

/// The host computes the rest of the checksum from what stands in its field: the sum of the pseudo-header, not inverted.
fn check_pseudo_checksum(packet: &[u8], header: VirtioNetHeader) {
    let (at, protocol) = transport_of(packet).expect("a super-packet is as long as it says");
    assert_eq!(usize::from(header.checksum_start), at);
    let addresses = if at == 20 { &packet[12..20] } else { &packet[8..40] };
    let length = ((packet.len() - at) as u32).to_be_bytes();
    let field = at + usize::from(header.checksum_offset);
    let pseudo = !super::checksum(&[addresses, &length, &[0, protocol]]);
    assert_eq!(packet[field..field + 2], pseudo.to_be_bytes());
    if at == 20 {
        assert_eq!(super::checksum(&[&packet[..20]]), 0, "the IPv4 header's checksum");
    }
}

/// What packets have in common that must not pass each other. What shows no flow might be of any, and is of its own here.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    let Some((at, protocol)) = transport_of(packet) else { return packet.to_vec() };
    let addresses = if at == 20 { &packet[12..20] } else { &packet[8..40] };
    [&[protocol], addresses, &packet[at..at + 4]].concat()
}

/// The identification of an IPv4 packet that may not be fragmented means nothing (RFC 6864): zero, with its checksum.
fn without_moot_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}
