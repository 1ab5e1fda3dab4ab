//! The parser of inner packets: any bytes give a view or a reason, a view shows what stands in the bytes and nothing
//! else, and what is built from a view (refusals) is well formed and never answers what must not be answered.

use std::net::IpAddr;

use warren_engine::packet::{Fragment, Icmp, Inner, Quoted, Transport};
use warren_engine::refusals::{self, MAX_REFUSAL, Refusal};

use super::{Input, Parts, checksum, checksums_are_right};

/// See the module. The first byte says whether the rest is a packet as it is, or damage to a good one.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.byte();
    let packet = if mode & 1 == 0 { input.rest().to_vec() } else { damaged(mode, &mut input) };
    let _ = Quoted::parse(&packet);
    let Ok(inner) = Inner::parse(&packet) else { return };
    check_view(&inner, &packet);
    let transport = inner.transport();
    if matches!(inner.fragment, Fragment::Later { .. }) {
        assert!(transport.is_err(), "a later fragment shows no ports");
    }
    if let Ok(transport) = transport {
        check_transport(&inner, transport);
    }
    for refusal in [Refusal::Prohibited, Refusal::TooBig(1280)] {
        check_refusal(&inner, refusal);
    }
}

/// A good packet with bytes changed, perhaps made a fragment, perhaps with an end that is not there.
fn damaged(mode: u8, input: &mut Input<'_>) -> Vec<u8> {
    let length = usize::from(input.byte()) * 8;
    let parts = Parts {
        v6: mode & 2 != 0,
        tcp: mode & 4 != 0,
        service: 0,
        hops: 64,
        dont_fragment: mode & 8 != 0,
        id: 7,
        host: 2,
        ports: (input.word(), input.word()),
        sequence: input.long(),
        flags: input.byte(),
        options: input.byte() % 11,
        payload: vec![7; length],
    };
    let mut packet = parts.bytes();
    if parts.v6 && mode & 16 != 0 {
        // An extension header of the input's choice.
        let next = packet[6];
        packet[6] = input.byte();
        let extension = [next, input.byte(), input.byte(), input.byte(), 0, 0, 0, input.byte()];
        packet.splice(40..40, extension);
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
    if mode & 32 != 0 {
        // ICMP that quotes it.
        let kind = input.byte();
        let (at, protocol) = if parts.v6 { (40, 58) } else { (20, 1) };
        let mut outer = packet[..at].to_vec();
        outer[if parts.v6 { 6 } else { 9 }] = protocol;
        outer.extend([kind, 0, 0, 0, 0, 1, 0, 2]);
        outer.extend(&packet);
        let length = (outer.len() - if parts.v6 { 40 } else { 0 }) as u16;
        outer[if parts.v6 { 4..6 } else { 2..4 }].copy_from_slice(&length.to_be_bytes());
        packet = outer;
    }
    while !input.is_empty() {
        let (at, value) = (usize::from(input.byte()), input.byte());
        if at == 255 {
            packet.truncate(packet.len().saturating_sub(usize::from(value)));
        } else if let Some(byte) = packet.get_mut(at) {
            *byte = value;
        }
    }
    packet
}

fn check_view(inner: &Inner<'_>, packet: &[u8]) {
    let bytes = inner.bytes();
    assert_eq!(bytes, &packet[..bytes.len()], "a view is the front of what was given");
    assert_eq!(Inner::parse(bytes), Ok(*inner), "what follows the packet changes nothing");
    let (v6, payload_at) = (bytes[0] >> 4 == 6, bytes.len() - inner.payload().len());
    assert_eq!(v6, inner.is_v6());
    let (source, destination) = if v6 {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16 bytes"));
        assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) + 40, bytes.len());
        (address(8), address(24))
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("4 bytes"));
        assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len());
        assert_eq!(payload_at, 20, "IPv4 options are refused");
        (address(12), address(16))
    };
    assert_eq!((inner.source, inner.destination), (source, destination));
    assert!(matches!((v6, inner.protocol), (_, 6 | 17) | (false, 1) | (true, 58)), "nothing else is carried");
    match inner.fragment {
        Fragment::Whole => {}
        Fragment::First { .. } => assert!(!inner.payload().is_empty() && inner.payload().len().is_multiple_of(8)),
        Fragment::Later { offset, last, .. } => {
            assert!(offset >= 8 && offset.is_multiple_of(8) && !inner.payload().is_empty());
            assert!(usize::from(offset) + inner.payload().len() <= 65_535);
            assert!(last || inner.payload().len().is_multiple_of(8));
        }
    }
}

fn check_transport(inner: &Inner<'_>, transport: Transport<'_>) {
    let payload = inner.payload();
    let word = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let ports = match transport {
        Transport::Tcp(tcp) => {
            assert_eq!((inner.protocol, tcp.flags), (6, payload[13]));
            assert!(usize::from(tcp.data) <= payload.len());
            (tcp.source, tcp.destination)
        }
        Transport::Udp(udp) => {
            assert_eq!(inner.protocol, 17);
            (udp.source, udp.destination)
        }
        Transport::Icmp(icmp) => {
            assert!(matches!(inner.protocol, 1 | 58));
            match icmp {
                Icmp::Request { id } | Icmp::Reply { id } => assert_eq!(id, word(4)),
                Icmp::Error { quoted } => assert_eq!(quoted, &payload[8..]),
                Icmp::Other => {}
            }
            return;
        }
    };
    assert_eq!(ports, (word(0), word(2)));
    // Its receiver, quoting it in an error, is understood to mean this very packet.
    let quoted = Quoted::parse(inner.bytes()).expect("a packet that shows ports can be quoted");
    assert_eq!((quoted.source, quoted.destination), (inner.source, inner.destination));
    assert_eq!((quoted.protocol, quoted.ports), (inner.protocol, ports));
}

fn check_refusal(inner: &Inner<'_>, refusal: Refusal) {
    let mut out = [0; MAX_REFUSAL];
    let Some(length) = refusals::build(inner, refusal, &mut out) else { return };
    let answer = Inner::parse(&out[..length]).expect("a refusal is a packet");
    assert_eq!(answer.bytes().len(), length);
    assert_eq!((answer.source, answer.destination), (inner.destination, inner.source));
    match (inner.transport().expect("what is answered was understood"), answer.transport().expect("as is the answer")) {
        (Transport::Tcp(tcp), Transport::Tcp(reset)) => {
            assert!(tcp.flags & 4 == 0 && reset.flags & 4 != 0, "a RST answers, and is never answered");
            assert_eq!((reset.source, reset.destination), (tcp.destination, tcp.source));
            assert!(checksums_are_right(answer.bytes()));
            assert_eq!(
                refusals::build(&answer, refusal, &mut [0; MAX_REFUSAL]).filter(|_| refusal == Refusal::Prohibited),
                None
            );
        }
        (offending, Transport::Icmp(Icmp::Error { quoted })) => {
            assert!(!matches!(offending, Transport::Icmp(Icmp::Error { .. } | Icmp::Reply { .. } | Icmp::Other)));
            assert!(inner.bytes().starts_with(quoted));
            if !inner.is_v6() {
                assert_eq!(checksum(&[answer.payload()]), 0);
            }
            assert_eq!(refusals::build(&answer, refusal, &mut [0; MAX_REFUSAL]), None, "an error is never answered");
        }
        (offending, answer) => panic!("{offending:?} was answered with {answer:?}"),
    }
}
