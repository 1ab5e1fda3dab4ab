//! Splitting: whatever the device says of a packet, what comes out is what the kernel's own segmentation would have
//! sent, or nothing; and merging it gives back the stream.

use warren_engine::packet::{Inner, Transport};
use warren_engine::segment::{Merge, Merger, Offload, Split, VirtioNetHeader};

use super::{Input, Parts, checksums_are_right, transport_of};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// See the module. The first byte says whether the rest is a header and a packet as they are, or what to build them from.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.byte();
    if mode & 1 == 0 {
        let Some((header, packet)) = input.rest().split_first_chunk::<{ VirtioNetHeader::LENGTH }>() else { return };
        return check_one(header, packet, false);
    }
    let parts = Parts {
        v6: mode & 2 != 0,
        tcp: mode & 4 != 0,
        dont_fragment: mode & 8 != 0,
        service: input.byte(),
        hops: 64,
        id: input.word(),
        host: 2,
        ports: (input.word(), 8080),
        sequence: input.long(),
        flags: input.byte(),
        options: input.byte() % 11,
        payload: {
            // A pattern: content decides nothing but checksums, length decides much.
            let (length, seed) = (usize::from(input.word()) % 65_440, input.byte());
            (0..length).map(|at| (at as u8).wrapping_mul(seed)).collect()
        },
    };
    let size = input.word();
    let mut packet = parts.bytes();
    let (at, _) = transport_of(&packet).expect("what was built is a packet");
    let header = VirtioNetHeader {
        needs_checksum: true,
        offload: Some(match (parts.tcp, parts.v6) {
            (true, false) => Offload::TcpV4,
            (true, true) => Offload::TcpV6,
            (false, _) => Offload::Udp,
        }),
        header_length: input.word(),
        segment_size: size,
        checksum_start: at as u16,
        checksum_offset: if parts.tcp { 16 } else { 6 },
    };
    let mut header = header.encode();
    // Lies, one byte each, in the header or in the first bytes of the packet; or an end that is not there.
    let mut lies = 0;
    while !input.is_empty() && lies < 4 {
        let (place, value) = (usize::from(input.byte()), input.byte());
        lies += 1;
        match place {
            0..10 => header[place] = value,
            255 => packet.truncate(packet.len().saturating_sub(usize::from(value))),
            _ => {
                if let Some(byte) = packet.get_mut(place - 10) {
                    *byte = value;
                }
            }
        }
    }
    check_one(&header, &packet, lies == 0 && size > 0);
}

fn check_one(header: &[u8; VirtioNetHeader::LENGTH], original: &[u8], must_split: bool) {
    let Ok(header) = VirtioNetHeader::decode(header) else { return };
    assert_eq!(VirtioNetHeader::decode(&header.encode()), Ok(header), "a header survives a round trip");
    let mut packet = original.to_vec();
    let Ok(mut split) = Split::new(header, &mut packet) else {
        return assert!(!must_split, "a true super-packet was refused");
    };
    let (longest, announced) = (split.longest(), split.remaining());
    assert!(longest <= original.len() && announced >= 1);
    let mut segments = Vec::new();
    while let Some(segment) = split.next_segment() {
        assert!(segment.len() <= longest, "a segment is longer than announced");
        segments.push(segment.to_vec());
    }
    assert_eq!(segments.len(), announced);
    assert_eq!(split.remaining(), 0);
    if header.offload.is_none() {
        assert_eq!(segments.len(), 1);
        return check_single(header, original, &segments[0]);
    }
    check_segments(header, original, &segments);
    check_merged(&segments);
}

/// A packet that is no super-packet leaves as it is, but for the checksum that was to be completed.
fn check_single(header: VirtioNetHeader, original: &[u8], packet: &[u8]) {
    assert_eq!(packet.len(), original.len());
    let field = usize::from(header.checksum_start) + usize::from(header.checksum_offset);
    for (at, (before, after)) in original.iter().zip(packet).enumerate() {
        let may_differ = header.needs_checksum && (field..field + 2).contains(&at);
        assert!(before == after || may_differ, "byte {at} changed");
    }
}

fn check_segments(header: VirtioNetHeader, original: &[u8], segments: &[Vec<u8>]) {
    let (at, protocol) = transport_of(original).expect("only packets that are what they say are split");
    let all = at + if protocol == 6 { usize::from(original[at + 12] >> 4) * 4 } else { 8 };
    let size = usize::from(header.segment_size);
    let sequence = |packet: &[u8]| u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]]);
    let mut payload: Vec<u8> = Vec::new();
    for (position, segment) in segments.iter().enumerate() {
        let is_last = position + 1 == segments.len();
        assert!(checksums_are_right(segment), "segment {position} has a wrong checksum");
        let inner = Inner::parse(segment).expect("segments are packets");
        assert_eq!(inner.bytes().len(), segment.len());
        let transport = inner.transport().expect("segments show their ports");
        // What is the flow's stays: addresses, ports, service, hops, options.
        assert_eq!(segment[at..at + 4], original[at..at + 4]);
        assert_eq!(segment[1], original[1]);
        if at == 20 {
            assert_eq!(segment[6..10], original[6..10]);
            assert_eq!(segment[12..20], original[12..20]);
            let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
            assert_eq!(id(segment), id(original).wrapping_add(position as u16));
        } else {
            assert_eq!((&segment[..4], &segment[6..40]), (&original[..4], &original[6..40]));
        }
        if let Transport::Tcp(tcp) = transport {
            assert_eq!(sequence(segment), sequence(original).wrapping_add(payload.len() as u32));
            let mut flags = original[at + 13];
            flags &= if is_last { !0 } else { !(FIN | PSH) };
            flags &= if position == 0 { !0 } else { !CWR };
            assert_eq!(tcp.flags, flags);
            assert_eq!(
                (&segment[at + 8..at + 13], &segment[at + 14..at + 16]),
                (&original[at + 8..at + 13], &original[at + 14..at + 16])
            );
            assert_eq!(segment[at + 18..all], original[at + 18..all]);
        }
        assert!(segment.len() == all + size || is_last, "only the last may be shorter");
        payload.extend(&segment[all..]);
    }
    assert_eq!(payload, original[all..], "the segments' payloads are the stream");
}

/// Merging the segments and splitting what comes of it gives the segments again.
fn check_merged(segments: &[Vec<u8>]) {
    let mut merger = Merger::new(Merge { tcp: true, udp: true }, segments.len());
    segments.iter().for_each(|segment| merger.push(segment));
    super::merge::check_merger(&merger, segments);
}
