//! The wrapper around boringtun: cookies, replays, low-order keys, limits.

use std::net::Ipv4Addr;

use super::*;

fn secret(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

fn doorway(seed: u8) -> Arc<Doorway> {
    Arc::new(Doorway::new(secret(seed)))
}

fn public(seed: u8) -> TunnelKey {
    *PublicKey::from(&secret(seed)).as_bytes()
}

fn pair() -> (HandshakeTunnel, HandshakeTunnel) {
    (HandshakeTunnel::new(doorway(1), public(2), 0xaa0001), HandshakeTunnel::new(doorway(2), public(1), 0xbb0001))
}

/// An inner IPv6 packet with `content` behind its header.
fn inner(content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, content.len() as u8, 253, 1];
    packet.resize(40, 0);
    packet.extend_from_slice(content);
    packet
}

fn establish(a: &mut HandshakeTunnel, b: &mut HandshakeTunnel) {
    let response = b.handle_initiation(&a.initiate().expect("initiation")).expect("response");
    let confirmation = a.handle_response(&response).expect("confirmation");
    assert_eq!(b.open(&confirmation), Ok(None));
}

#[test]
fn a_responder_is_established_by_the_first_transport_message_and_not_before() {
    let (mut a, mut b) = pair();
    let response = b.handle_initiation(&a.initiate().expect("initiation")).expect("response");
    assert!(!b.is_established());
    assert_eq!(b.seal(&inner(b"early")), None);
    let confirmation = a.handle_response(&response).expect("confirmation");
    assert!(a.is_established());
    assert_eq!(b.open(&confirmation), Ok(None));
    assert!(b.is_established());
    let sealed = b.seal(&inner(b"late")).expect("sealed");
    assert_eq!(a.open(&sealed), Ok(Some(inner(b"late"))));
}

#[test]
fn nothing_is_sealed_before_a_handshake() {
    let (mut a, _) = pair();
    assert_eq!(a.seal(&inner(b"x")), None);
}

#[test]
fn crossed_initiations_both_succeed() {
    let (mut a, mut b) = pair();
    let (from_a, from_b) = (a.initiate().expect("initiation"), b.initiate().expect("initiation"));
    let (to_a, to_b) =
        (b.handle_initiation(&from_a).expect("response"), a.handle_initiation(&from_b).expect("response"));
    assert!(a.handle_response(&to_a).is_ok());
    assert!(b.handle_response(&to_b).is_ok());
    let sealed = a.seal(&inner(b"x")).expect("sealed");
    assert_eq!(b.open(&sealed), Ok(Some(inner(b"x"))));
}

#[test]
fn a_repeated_or_older_initiation_is_stale_even_after_sessions_were_forgotten() {
    let (mut a, mut b) = pair();
    let first = a.initiate().expect("initiation");
    let second = a.initiate().expect("initiation");
    assert!(b.handle_initiation(&second).is_ok());
    assert_eq!(b.handle_initiation(&second), Err(Reason::StaleHandshake));
    assert_eq!(b.handle_initiation(&first), Err(Reason::StaleHandshake));
    b.forget_sessions();
    assert_eq!(b.handle_initiation(&second), Err(Reason::StaleHandshake));
}

#[test]
fn forgotten_sessions_open_and_seal_nothing() {
    let (mut a, mut b) = pair();
    establish(&mut a, &mut b);
    let sealed = a.seal(&inner(b"x")).expect("sealed");
    b.forget_sessions();
    assert_eq!(b.open(&sealed), Err(Reason::UnknownReceiver));
    assert_eq!(b.seal(&inner(b"y")), None);
    establish(&mut a, &mut b);
    let sealed = a.seal(&inner(b"z")).expect("sealed");
    assert_eq!(b.open(&sealed), Ok(Some(inner(b"z"))));
}

#[test]
fn answers_to_the_two_newest_initiations_are_taken() {
    let (mut a, mut b) = pair();
    let response = b.handle_initiation(&a.initiate().expect("initiation")).expect("response");
    let _retry = a.initiate().expect("initiation");
    assert!(a.handle_response(&response).is_ok());
}

#[test]
fn replayed_mutated_and_exhausted_transport_messages_are_refused_by_name() {
    let (mut a, mut b) = pair();
    establish(&mut a, &mut b);
    let sealed = a.seal(&inner(b"x")).expect("sealed");
    let mut mutated = sealed.clone();
    mutated[20] ^= 1;
    assert_eq!(b.open(&mutated), Err(Reason::BadAuthentication));
    assert!(b.open(&sealed).is_ok());
    assert_eq!(b.open(&sealed), Err(Reason::Replayed));
    for counter in [u64::MAX, REJECT_AFTER_COUNTER] {
        let mut exhausted = sealed.clone();
        exhausted[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(b.open(&exhausted), Err(Reason::CounterExhausted));
    }
}

#[test]
fn short_and_long_messages_of_every_type_never_panic() {
    let (mut a, mut b) = pair();
    establish(&mut a, &mut b);
    for kind in 0..=5 {
        for length in (0..200).chain([1500, 65_535]) {
            let mut message = vec![0; length];
            if let Some(first) = message.first_mut() {
                *first = kind;
            }
            assert!(b.open(&message).is_err());
            assert!(b.handle_initiation(&message).is_err());
            assert!(b.handle_response(&message).is_err());
            assert!(b.handle_cookie_reply(&message).is_err());
            assert!(!b.doorway.mac_is_valid(&message) || kind > 2);
        }
    }
}

#[test]
fn the_doorway_reads_the_initiator_and_checks_the_first_mac() {
    let (mut a, _) = pair();
    let message = a.initiate().expect("initiation");
    assert!(doorway(2).mac_is_valid(&message));
    assert!(!doorway(3).mac_is_valid(&message));
    assert_eq!(doorway(2).initiator(&message), Ok(public(1)));
    assert_eq!(doorway(3).initiator(&message), Err(Reason::BadHandshake));
}

#[test]
fn the_hint_names_the_responder_and_is_never_zero() {
    let (mut a, _) = pair();
    let message = a.initiate_hinted().expect("initiation");
    let hint = u32::from_le_bytes([message[1], message[2], message[3], 0]);
    assert_eq!(hint, key_hint(&public(2)));
    assert_ne!(hint, 0);
    let mut cleared = message;
    cleared[1..4].fill(0);
    assert!(doorway(2).mac_is_valid(&cleared));
}

#[test]
fn a_cookie_serves_its_own_address_and_port_only() {
    let from = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 4000));
    let (mut a, _) = pair();
    let responder = doorway(2);
    let message = a.initiate().expect("initiation");
    let Ok(Gate::Cookie(cookie)) = responder.check_cookie(from, &message) else { panic!("no cookie demanded") };
    a.handle_cookie_reply(&cookie).expect("taken");
    let message = a.initiate().expect("initiation");
    assert!(matches!(responder.check_cookie(from, &message), Ok(Gate::Pass)));
    for other in
        [SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 4001)), SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 4000))]
    {
        assert!(matches!(responder.check_cookie(other, &message), Ok(Gate::Cookie(_))), "{other}");
    }
    assert!(cookie.len() <= message.len(), "no amplification");
}

#[test]
fn spoofed_responses_and_cookies_leave_the_real_one_valid() {
    let (mut a, mut b) = pair();
    let response = b.handle_initiation(&a.initiate().expect("initiation")).expect("response");
    let mut spoofed = response.clone();
    spoofed[12..44].fill(9);
    assert!(a.handle_response(&spoofed).is_err());
    assert!(a.handle_cookie_reply(&[&[3, 0, 0, 0][..], &response[8..12], &[0; 56]].concat()).is_err());
    assert!(a.handle_response(&response).is_ok());
}
