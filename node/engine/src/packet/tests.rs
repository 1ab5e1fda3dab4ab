//! The checked packet view against arbitrary and damaged bytes.

use proptest::prelude::*;

use super::*;
use crate::testing::{self, Build};

fn parse(bytes: &[u8]) -> Result<Fragment, Reason> {
    let inner = Inner::parse(bytes)?;
    inner.transport().map(|_| inner.fragment)
}

#[test]
fn padding_behind_the_packet_is_cut_off() {
    for build in [Build::v4(), Build::v6()] {
        let packet = build.udp(1000, 53, b"query");
        let mut padded = packet.clone();
        padded.extend([0; 11]);
        assert_eq!(Inner::parse(&padded).expect("parsed").bytes(), packet);
    }
}

#[test]
fn lengths_that_lie_are_malformed() {
    for build in [Build::v4(), Build::v6()] {
        let packet = build.tcp(1000, 80, SYN, b"");
        for cut in 0..packet.len() {
            assert_eq!(parse(&packet[..cut]), Err(Reason::Malformed), "cut to {cut}");
        }
    }
    let mut short_header = Build::v4().udp(1, 2, b"");
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), Err(Reason::Malformed));
    let mut offset = Build::v4().tcp(1, 2, SYN, b"");
    offset[32] = 0x40;
    assert_eq!(parse(&offset), Err(Reason::Malformed), "a data offset below 5");
    offset[32] = 0xf0;
    assert_eq!(parse(&offset), Err(Reason::Malformed), "a data offset beyond the packet");
    let mut length = Build::v6().udp(1, 2, b"abc");
    length[45] = 200;
    assert_eq!(parse(&length), Err(Reason::Malformed), "a UDP length beyond the packet");
}

#[test]
fn ip_options_and_the_reserved_flag_are_refused() {
    let mut options = Build::v4().udp(1, 2, &[0; 8]);
    options[0] = 0x46;
    assert_eq!(parse(&options), Err(Reason::UnsupportedHeader));
    let mut evil = Build::v4().udp(1, 2, b"");
    evil[6] |= 0x80;
    assert_eq!(parse(&evil), Err(Reason::Malformed));
}

#[test]
fn extension_headers_are_never_skipped() {
    let packet = Build::v6().udp(1, 2, &[0; 64]);
    for header in EXTENSION_HEADERS {
        let mut extended = packet.clone();
        extended[6] = header;
        assert_eq!(parse(&extended), Err(Reason::UnsupportedHeader), "{header}");
    }
    for protocol in [41, 47, 50, 51, 59, 132, ICMP] {
        let mut other = packet.clone();
        other[6] = protocol;
        assert_eq!(parse(&other), Err(Reason::UnsupportedProtocol), "{protocol}");
    }
    let mut jumbo = packet.clone();
    jumbo[4..6].copy_from_slice(&[0, 0]);
    assert_eq!(parse(&jumbo), Err(Reason::Malformed), "a jumbogram's length is zero");
    let mut nested = testing::fragment_v6(&packet, 7, 0, true, 32);
    nested[40] = FRAGMENT_HEADER;
    assert_eq!(parse(&nested), Err(Reason::UnsupportedHeader), "a fragment in a fragment");
    nested[40] = 60;
    assert_eq!(parse(&nested), Err(Reason::UnsupportedHeader), "options behind a fragment header");
}

#[test]
fn icmp_of_the_other_family_is_refused() {
    let mut packet = Build::v4().udp(1, 2, b"");
    packet[9] = ICMPV6;
    assert_eq!(parse(&packet), Err(Reason::UnsupportedProtocol));
}

#[test]
fn fragments_are_told_apart() {
    for build in [Build::v4(), Build::v6()] {
        let whole = build.udp(1000, 53, &[7; 64]);
        assert_eq!(parse(&whole), Ok(Fragment::Whole));
        let part = |offset, more, length| testing::fragment(&whole, 0x99, offset, more, length);
        assert_eq!(parse(&part(0, true, 32)), Ok(Fragment::First { id: 0x99 }));
        let later = part(32, false, 40);
        assert_eq!(
            Inner::parse(&later).expect("parsed").fragment,
            Fragment::Later { id: 0x99, offset: 32, last: true }
        );
        assert_eq!(parse(&later), Err(Reason::UnknownFragment), "a later fragment shows no ports");
        assert_eq!(parse(&part(0, true, 30)), Err(Reason::Malformed), "all but the last are multiples of 8");
    }
}

#[test]
fn an_atomic_fragment_is_whole() {
    let whole = Build::v6().udp(1000, 53, &[7; 64]);
    let atomic = testing::fragment(&whole, 5, 0, false, 72);
    let inner = Inner::parse(&atomic).expect("parsed");
    assert_eq!(inner.fragment, Fragment::Whole);
    assert_eq!(inner.transport(), Ok(Transport::Udp(Udp { source: 1000, destination: 53 })));
}

/// A7: RFC 1858's tiny fragment hides the flags in the second part.
#[test]
fn a_first_fragment_without_its_whole_header_is_refused() {
    for build in [Build::v4(), Build::v6()] {
        let whole = build.tcp(1000, 80, SYN, &[0; 64]);
        for length in [8, 16] {
            assert_eq!(parse(&testing::fragment(&whole, 1, 0, true, length)), Err(Reason::TinyFragment));
        }
        assert!(parse(&testing::fragment(&whole, 1, 0, true, 24)).is_ok());
    }
}

#[test]
fn a_quotation_shows_its_ports_or_nothing() {
    for build in [Build::v4(), Build::v6()] {
        let packet = build.udp(1000, 53, b"query");
        let quoted = Quoted::parse(&packet).expect("quoted");
        assert_eq!((quoted.protocol, quoted.ports), (UDP, (1000, 53)));
        let transport = if quoted.source.is_ipv6() { 40 } else { 20 };
        assert_eq!(Quoted::parse(&packet[..transport + 8]), Some(quoted), "eight bytes are enough");
        assert_eq!(Quoted::parse(&packet[..transport + 7]), None);
        let echo = Quoted::parse(&build.echo(true, 77)).expect("quoted");
        assert_eq!((echo.ports, echo.is_request), ((77, 77), true));
        let later = testing::fragment(&build.udp(1, 2, &[0; 64]), 3, 16, false, 16);
        assert_eq!(Quoted::parse(&later), None);
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..160), version in 0u8..3) {
        if let Some(first) = bytes.first_mut() {
            match version { 0 => *first = 0x45, 1 => *first = 0x60, _ => {} }
        }
        if let Ok(inner) = Inner::parse(&bytes) {
            prop_assert!(inner.bytes().len() <= bytes.len());
            let _ = inner.transport();
            let _ = inner.payload();
        }
        let _ = Quoted::parse(&bytes);
    }

    /// Mutations of a good packet reach further than noise.
    #[test]
    fn parsing_mutated_packets_never_panics(
        v6 in any::<bool>(), position in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let build = if v6 { Build::v6() } else { Build::v4() };
        let mut packet = testing::fragment(&build.tcp(1, 2, SYN, &[0; 40]), 1, 0, true, 40);
        let position = position.index(packet.len());
        packet[position] = value;
        let cut = cut.index(packet.len() + 1);
        if let Ok(inner) = Inner::parse(&packet[..cut]) {
            let _ = inner.transport();
        }
        let _ = Quoted::parse(&packet[..cut]);
    }
}
