//! Resets and ICMP answers are well-formed, true and limited.

use proptest::prelude::*;

use super::*;
use crate::packet::{FIN, Quoted, SYN, UDP};
use crate::testing::{self, Build};

const FAMILIES: [fn() -> Build; 2] = [Build::v4, Build::v6];

fn refuse(packet: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
    let mut out = [0; MAX_REFUSAL];
    let length = build(&Inner::parse(packet).expect("parsed"), refusal, &mut out)?;
    Some(out[..length].to_vec())
}

/// A checksum over data that includes the right checksum comes out as zero.
fn assert_checksums(packet: &[u8]) {
    let inner = Inner::parse(packet).expect("parsed");
    assert_eq!(transport_checksum(inner.source, inner.destination, inner.protocol, inner.payload()), 0);
    if let Some((header, _)) = packet.split_first_chunk::<20>().filter(|_| !inner.is_v6()) {
        assert_eq!(checksum_v4_header(header), 0);
    }
}

#[test]
fn a_syn_is_answered_with_a_rst_that_acknowledges_it() {
    for family in FAMILIES {
        let syn = family().tcp_at(40_000, 5432, SYN, 77, 0, b"");
        let answer = refuse(&syn, Refusal::Prohibited).expect("answered");
        assert_checksums(&answer);
        let inner = Inner::parse(&answer).expect("parsed");
        assert_eq!((inner.source, inner.destination), (family().destination, family().source));
        let Ok(Transport::Tcp(tcp)) = inner.transport() else { panic!("TCP") };
        assert_eq!((tcp.source, tcp.destination, tcp.flags), (5432, 40_000, RST | ACK));
        assert_eq!((tcp.sequence, tcp.acknowledgement), (0, 78));
    }
}

#[test]
fn a_rst_in_mid_connection_takes_its_sequence_from_the_acknowledgement() {
    let segment = Build::v4().tcp_at(40_000, 5432, ACK | FIN, 500, 900, b"data");
    let answer = refuse(&segment, Refusal::Prohibited).expect("answered");
    let Ok(Transport::Tcp(tcp)) = Inner::parse(&answer).expect("parsed").transport() else { panic!("TCP") };
    assert_eq!((tcp.flags, tcp.sequence), (RST, 900));
}

#[test]
fn udp_is_answered_with_an_icmp_that_quotes_it() {
    for (family, kind) in [(Build::v4(), [3, 13]), (Build::v6(), [1, 1])] {
        let packet = family.udp(40_000, 53, &[9; 1300]);
        let answer = refuse(&packet, Refusal::Prohibited).expect("answered");
        assert_checksums(&answer);
        let inner = Inner::parse(&answer).expect("parsed");
        assert_eq!(inner.payload()[..2], kind);
        let Ok(Transport::Icmp(Icmp::Error { quoted })) = inner.transport() else { panic!("an error") };
        assert_eq!(Quoted::parse(quoted).expect("quoted").ports, (40_000, 53));
        assert!(answer.len() <= if inner.is_v6() { 1280 } else { 576 });
    }
}

#[test]
fn packet_too_big_names_the_mtu() {
    for (family, kind) in [(Build::v4(), [3, 4]), (Build::v6(), [2, 0])] {
        let answer = refuse(&family.tcp(1, 2, ACK, &[0; 1400]), Refusal::TooBig(1300)).expect("answered");
        assert_checksums(&answer);
        let payload = Inner::parse(&answer).expect("parsed").payload().to_vec();
        assert_eq!((&payload[..2], &payload[4..8]), (&kind[..], &[0, 0, 5, 20][..]));
    }
}

#[test]
fn rst_replies_errors_and_later_fragments_are_never_answered() {
    for family in FAMILIES {
        let family = family();
        let udp = family.reversed().udp(53, 40_000, b"x");
        let long = family.udp(1, 2, &[0; 64]);
        for packet in [
            family.tcp(1, 2, RST, b""),
            family.tcp(1, 2, RST | ACK, b""),
            family.unreachable(&udp),
            family.echo(false, 7),
            family.icmp(&[if family.source.is_ipv6() { 137 } else { 5 }, 0, 0, 0, 0, 0, 0, 0]),
            testing::fragment(&long, 1, 16, true, 16),
        ] {
            assert_eq!(refuse(&packet, Refusal::Prohibited), None, "{packet:?}");
        }
        assert!(refuse(&testing::fragment(&long, 1, 0, true, 16), Refusal::Prohibited).is_some());
        assert!(refuse(&family.echo(true, 7), Refusal::Prohibited).is_some());
    }
}

#[test]
fn too_short_packets_for_a_transport_header_are_never_answered() {
    let packet = Build::v4().ip(UDP, vec![1, 2, 3], 100);
    assert_eq!(refuse(&packet, Refusal::Prohibited), None);
}

#[test]
fn one_sender_is_answered_fifty_times_and_then_a_hundred_times_a_second() {
    let mut limit = RefusalLimit::default();
    let at = Duration::from_secs(10);
    assert_eq!((0..1000).filter(|_| limit.take(1, at)).count(), 50);
    assert!(limit.take(2, at), "another sender has a bucket of its own");
    assert!(limit.take(1, at + Duration::from_millis(10)));
    assert!(!limit.take(1, at + Duration::from_millis(10)));
    assert_eq!((0..1000).filter(|_| limit.take(1, at + Duration::from_secs(3600))).count(), 50);
}

proptest! {
    /// Whatever is refused, the answer is a packet that parses, goes back to the sender and is not itself answered
    /// when refused (no two nodes can be made to answer each other for ever).
    #[test]
    fn an_answer_goes_back_to_the_sender_and_ends_there(
        payload in prop::collection::vec(any::<u8>(), 0..1500), v6 in any::<bool>(), kind in 0usize..3, mtu in any::<u16>(),
    ) {
        let family = if v6 { Build::v6() } else { Build::v4() };
        let protocol = [TCP, UDP, if v6 { ICMPV6 } else { ICMP }][kind];
        let packet = family.ip(protocol, payload, 2000);
        for refusal in [Refusal::Prohibited, Refusal::TooBig(mtu)] {
            let Some(answer) = refuse(&packet, refusal) else { continue };
            assert_checksums(&answer);
            let inner = Inner::parse(&answer).expect("parsed");
            prop_assert_eq!((inner.source, inner.destination), (family.destination, family.source));
            prop_assert_eq!(refuse(&answer, Refusal::Prohibited), None);
        }
    }
}
