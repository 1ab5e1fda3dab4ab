//! The hybrid key exchange: both sides agree, and no altered message is taken.

use proptest::prelude::*;

use super::parts::{self, Assembly, ETHERNET_LIMIT, MINIMUM_LIMIT};
use super::*;

fn party(name: &str, aes: bool) -> Party {
    Party {
        identity: format!("spiffe://mesh.test/ns/default/sa/{name}"),
        key: [name.len() as u8; 32],
        issuer: vec![7; 20],
        serial: name.as_bytes().to_vec(),
        aes,
    }
}

fn parties() -> Parties {
    Parties { offerer: party("web", true), acceptor: party("orders", true) }
}

#[test]
fn both_ends_derive_the_same_keys_and_the_directions_differ() {
    let offering = Offering::new(11, parties()).expect("randomness");
    let (accept, acceptor) = accept(offering.message(), 22, &parties()).expect("accepted");
    let offerer = offering.complete(&accept).expect("completed");
    assert_eq!((offerer.local_index, offerer.remote_index), (11, 22));
    assert_eq!((acceptor.local_index, acceptor.remote_index), (22, 11));
    assert_eq!(*offerer.seal, *acceptor.open);
    assert_eq!(*offerer.open, *acceptor.seal);
    assert_ne!(*offerer.seal, *offerer.open);
    assert_eq!(offerer.suite, Suite::Aes256Gcm);
}

#[test]
fn the_suite_follows_from_both_certificates() {
    for (offerer, acceptor, suite) in [
        (true, true, Suite::Aes256Gcm),
        (true, false, Suite::ChaCha20Poly1305),
        (false, true, Suite::ChaCha20Poly1305),
        (false, false, Suite::ChaCha20Poly1305),
    ] {
        let parties = Parties { offerer: party("web", offerer), acceptor: party("orders", acceptor) };
        assert_eq!(parties.suite(), suite);
    }
}

#[test]
fn another_certificate_on_either_side_is_refused_by_name() {
    let offering = Offering::new(1, parties()).expect("randomness");
    let mut other = parties();
    other.offerer.serial = vec![9];
    assert_eq!(accept(offering.message(), 2, &other).err(), Some(Reason::ExchangeCertificates));
    let mut other = parties();
    other.acceptor.issuer = vec![9; 20];
    assert_eq!(accept(offering.message(), 2, &other).err(), Some(Reason::ExchangeCertificates));
    let (mut reply, _) = accept(offering.message(), 2, &parties()).expect("accepted");
    *reply.last_mut().expect("bytes") ^= 1;
    assert_eq!(offering.complete(&reply).err(), Some(Reason::ExchangeCertificates));
}

#[test]
fn a_changed_bit_or_another_identity_or_key_gives_other_keys_on_the_two_sides() {
    let offering = Offering::new(1, parties()).expect("randomness");
    for position in [0, 4, 36] {
        let mut changed = offering.message().to_vec();
        changed[position] ^= 1;
        let Ok((reply, acceptor)) = accept(&changed, 2, &parties()) else { continue };
        let offerer = offering.complete(&reply).expect("it parses");
        assert_ne!(*offerer.seal, *acceptor.open, "byte {position}");
    }
    for change in [(|p: &mut Party| p.identity.push('x')) as fn(&mut Party), |p: &mut Party| p.key[0] ^= 1] {
        let mut other = parties();
        change(&mut other.offerer);
        let (reply, acceptor) = accept(offering.message(), 2, &other).expect("accepted");
        let offerer = offering.complete(&reply).expect("it parses");
        assert_ne!(*offerer.seal, *acceptor.open);
    }
}

#[test]
fn an_encapsulation_key_outside_the_field_is_refused() {
    let offering = Offering::new(1, parties()).expect("randomness");
    let mut message = offering.message().to_vec();
    message[36..36 + 384].fill(0xff); // coefficients not below q (FIPS 203, section 7.2)
    assert_eq!(accept(&message, 2, &parties()).err(), Some(Reason::ExchangeMalformed));
}

#[test]
fn messages_fit_an_ethernet_path_whole_and_every_ipv6_path_in_two_parts() {
    let offering = Offering::new(1, parties()).expect("randomness");
    let (reply, _) = accept(offering.message(), 2, &parties()).expect("accepted");
    for (kind, message) in [(Kind::Offer, offering.message()), (Kind::Accept, &reply[..])] {
        assert_eq!(parts::split(kind, 1, message, ETHERNET_LIMIT).len(), 1);
        let small = parts::split(kind, 1, message, MINIMUM_LIMIT);
        assert_eq!(small.len(), 2);
        assert!(small.iter().all(|packet| packet.len() <= MINIMUM_LIMIT));
    }
}

#[test]
fn parts_in_any_order_and_doubled_give_the_message_once() {
    let message: Vec<u8> = (0..1300u32).map(|n| n as u8).collect();
    let packets = parts::split(Kind::Offer, 77, &message, 400);
    assert!(packets.len() > 2);
    let mut assembly = Assembly::default();
    let mut whole = Vec::new();
    for packet in packets.iter().rev().chain(&packets[1..]) {
        assert!(parts::is_control(packet));
        let part = parts::parse(packet).expect("a part");
        assert_eq!((part.kind, part.exchange), (Kind::Offer, 77));
        whole.extend(assembly.add(&part));
    }
    assert_eq!(whole, [message]);
}

#[test]
fn a_part_of_another_exchange_starts_over() {
    let first = parts::split(Kind::Offer, 1, &[1; 600], 300);
    let second = parts::split(Kind::Offer, 2, &[2; 600], 300);
    let mut assembly = Assembly::default();
    let mut give = |packet: &[u8]| assembly.add(&parts::parse(packet).expect("a part"));
    assert_eq!(give(&first[0]), None);
    assert_eq!(give(&second[0]), None);
    for packet in &first[1..] {
        assert_eq!(give(packet), None, "the first part of this exchange was given up");
    }
}

#[test]
fn another_version_is_named_with_the_exchange_of_its_offer() {
    let mut packet = parts::split(Kind::Offer, 5, &[0; 10], 300).remove(0);
    packet[40] = 2;
    assert_eq!(parts::parse(&packet), Err((Reason::ExchangeVersion, Some(5))));
    packet[41] = Kind::Reject as u8;
    assert_eq!(parts::parse(&packet), Err((Reason::ExchangeVersion, None)));
}

proptest! {
    #[test]
    fn arbitrary_control_datagrams_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        header in any::<bool>(),
    ) {
        let mut packet = bytes;
        if header {
            let real = parts::split(Kind::Offer, 5, &[0; 10], 300).remove(0);
            packet = [&real[..40], &packet[..]].concat();
        }
        if parts::is_control(&packet) && let Ok(part) = parts::parse(&packet) {
            let _ = Assembly::default().add(&part);
        }
    }

    #[test]
    fn arbitrary_messages_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
        let _ = accept(&bytes, 2, &parties());
        let offering = Offering::new(1, parties()).expect("randomness");
        prop_assert!(offering.complete(&bytes).is_err());
    }
}
