//! Sealing and opening with both suites, key separation, and counters.

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(1_000 + seconds), unix: UnixTime(1_800_000_000 + seconds) }
}

fn pair(suite: Suite) -> (DataSession, DataSession) {
    let (a, b) = ([7; 32], [9; 32]);
    let end = |send_key, receive_key, local_index, remote_index| {
        DataSession::new(&SessionParameters {
            suite,
            send_key,
            receive_key,
            local_index,
            remote_index,
            local: LocalIndex(0),
            peer: PeerIndex(1),
            valid_until: UnixTime(1_800_000_000 + 3600),
            established: at(0),
        })
        .expect("keys")
    };
    (end(&a, &b, 0x1111, 0x2222), end(&b, &a, 0x2222, 0x1111))
}

/// Of a path that takes every packet here with its padding.
const MTU: usize = 4096;

fn seal(session: &DataSession, packet: &[u8], now: Now) -> Vec<u8> {
    let mut out = vec![0; sealed_length(packet.len())];
    let length = session.seal(packet, MTU, &mut out, now).expect("sealed");
    assert_eq!(length, out.len());
    out
}

fn open(session: &DataSession, datagram: &[u8], now: Now) -> Result<Vec<u8>, Reason> {
    let mut out = vec![0; datagram.len()];
    session.open(datagram, &mut out, now).map(|opened| opened.plaintext().to_vec())
}

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

#[test]
fn a_message_has_wireguards_layout_and_is_padded_to_sixteen() {
    for suite in SUITES {
        let (alice, bob) = pair(suite);
        let datagram = seal(&alice, &[1; 21], at(0));
        assert_eq!(datagram.len(), 16 + 32 + 16);
        assert_eq!(datagram[..8], [4, 0, 0, 0, 0x22, 0x22, 0, 0]);
        assert_eq!(datagram[8..16], [0; 8]);
        assert_eq!(seal(&alice, &[], at(0))[8], 1, "the second message has counter 1");
        let opened = open(&bob, &datagram, at(0)).expect("opened");
        assert_eq!(opened[..21], [1; 21]);
        assert_eq!(opened[21..], [0; 11], "padding is zero");
    }
}

#[test]
fn padding_ends_where_the_path_does() {
    let (alice, bob) = pair(Suite::Aes256Gcm);
    let mut out = [0; 2000];
    // 1420 bytes and what seals them make an IPv6 packet that Ethernet takes.
    for (packet, mtu, padded) in
        [(1420, 1420, 1420), (1410, 1420, 1420), (1408, 1420, 1408), (5, 1420, 16), (30, 8, 30)]
    {
        let length = alice.seal(&vec![1; packet], mtu, &mut out, at(0)).expect("sealed");
        assert_eq!(length, HEADER + padded + TAG);
        let opened = open(&bob, &out[..length], at(0)).expect("opened");
        assert_eq!((opened.len(), &opened[..packet]), (padded, &vec![1; packet][..]));
    }
    const { assert!(48 + HEADER + 1420 + TAG <= 1500) };
}

#[test]
fn a_replayed_message_is_refused() {
    let (alice, bob) = pair(Suite::Aes256Gcm);
    let datagram = seal(&alice, b"once", at(0));
    assert!(open(&bob, &datagram, at(0)).is_ok());
    assert_eq!(open(&bob, &datagram, at(0)), Err(Reason::Replayed));
}

#[test]
fn a_forged_counter_does_not_move_the_window() {
    let (alice, bob) = pair(Suite::ChaCha20Poly1305);
    let honest = seal(&alice, b"honest", at(0));
    let mut forged = honest.clone();
    forged[8..16].copy_from_slice(&(1u64 << 20).to_le_bytes());
    assert_eq!(open(&bob, &forged, at(0)), Err(Reason::BadAuthentication));
    assert!(open(&bob, &honest, at(0)).is_ok());
}

/// A1: counters near 2^64 would wrap the window if they reached it.
#[test]
fn counters_beyond_a_sessions_limit_are_refused_before_the_window_sees_them() {
    let (alice, bob) = pair(Suite::Aes256Gcm);
    let first = seal(&alice, b"first", at(0));
    assert!(open(&bob, &first, at(0)).is_ok());
    for counter in [REFUSE_AFTER_MESSAGES, u64::MAX - 8192, u64::MAX - 1, u64::MAX] {
        alice.next_counter.store(counter, Ordering::Relaxed);
        let mut out = [0; 64];
        assert_eq!(alice.seal(b"late", MTU, &mut out, at(0)), Err(Reason::SessionExpired));
        // What a peer that ignores the limit would send: authentic, under its own key.
        let mut message = vec![0; sealed_length(4)];
        message[..8].copy_from_slice(&first[..8]);
        message[8..16].copy_from_slice(&counter.to_le_bytes());
        let (ciphertext, rest) = message[HEADER..].split_at_mut(4);
        alice
            .seal_key
            .seal_out_of_place_scatter(nonce(counter), Aad::empty(), b"late", ciphertext, &[0; 12], rest)
            .expect("sealed");
        assert_eq!(open(&bob, &message, at(0)), Err(Reason::CounterExhausted));
    }
    assert_eq!(open(&bob, &first, at(0)), Err(Reason::Replayed), "the window still remembers");
}

#[test]
fn a_session_asks_for_a_rekey_once_and_ends_on_time() {
    let (alice, bob) = pair(Suite::Aes256Gcm);
    assert!(!alice.take_rekey_request(at(119)));
    assert!(alice.take_rekey_request(at(120)));
    assert!(!alice.take_rekey_request(at(121)));
    let late = seal(&alice, b"late", at(179));
    assert_eq!(alice.seal(b"", MTU, &mut [0; 64], at(180)), Err(Reason::SessionExpired));
    assert_eq!(open(&bob, &late, at(180)), Err(Reason::SessionExpired));
    assert!(open(&bob, &late, at(179)).is_ok());
}

#[test]
fn messages_are_counted_against_both_limits() {
    let (alice, _) = pair(Suite::Aes256Gcm);
    alice.next_counter.store(REKEY_AFTER_MESSAGES, Ordering::Relaxed);
    assert!(alice.is_rekey_due(at(1)) && !alice.is_over(at(1)));
    alice.next_counter.store(REFUSE_AFTER_MESSAGES, Ordering::Relaxed);
    assert!(alice.is_over(at(1)));
}

#[test]
fn a_session_ends_with_the_certificate() {
    let parameters = SessionParameters {
        suite: Suite::Aes256Gcm,
        send_key: &[1; 32],
        receive_key: &[1; 32],
        local_index: 1,
        remote_index: 1,
        local: LocalIndex(0),
        peer: PeerIndex(0),
        valid_until: UnixTime(1_800_000_010),
        established: at(0),
    };
    let session = DataSession::new(&parameters).expect("keys");
    let datagram = seal(&session, b"x", at(9));
    assert_eq!(session.seal(b"x", MTU, &mut [0; 64], at(10)), Err(Reason::CertificateExpired));
    assert_eq!(open(&session, &datagram, at(10)), Err(Reason::CertificateExpired));
}

#[test]
fn only_the_first_authentic_message_confirms() {
    let (alice, bob) = pair(Suite::Aes256Gcm);
    let mut out = [0; 64];
    let mut forged = seal(&alice, b"", at(0));
    forged[20] ^= 1;
    assert!(bob.open(&forged, &mut out, at(0)).is_err());
    assert!(!bob.is_confirmed());
    assert_eq!(bob.last_received(), None);
    assert!(bob.open(&seal(&alice, b"", at(0)), &mut out, at(1)).expect("opened").is_first());
    assert!(!bob.open(&seal(&alice, b"", at(0)), &mut out, at(2)).expect("opened").is_first());
    assert_eq!(bob.last_received(), Some(at(2).monotonic));
}

#[test]
fn headers_that_are_not_a_transport_message_are_named() {
    let (alice, _) = pair(Suite::Aes256Gcm);
    let datagram = seal(&alice, b"", at(0));
    assert_eq!(transport_header(&datagram), Ok((0x2222, 0)));
    assert_eq!(transport_header(&datagram[..31]), Err(Reason::DatagramTooShort));
    assert_eq!(transport_header(&[]), Err(Reason::DatagramTooShort));
    let mut reserved = datagram.clone();
    reserved[2] = 1;
    assert_eq!(transport_header(&reserved), Err(Reason::ReservedBits));
    let mut other = datagram;
    other[0] = 1;
    assert_eq!(transport_header(&other), Err(Reason::UnknownMessage));
}

#[test]
fn keys_never_show_in_debug() {
    let (alice, _) = pair(Suite::Aes256Gcm);
    let shown = format!("{alice:?}");
    assert!(!shown.contains("key") && shown.contains("aes-256-gcm"), "{shown}");
}

proptest! {
    #[test]
    fn what_is_sealed_opens_to_itself(packet in prop::collection::vec(any::<u8>(), 0..2000), aes in any::<bool>()) {
        let (alice, bob) = pair(if aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 });
        let opened = open(&bob, &seal(&alice, &packet, at(0)), at(0)).expect("opened");
        prop_assert_eq!(&opened[..packet.len()], &packet[..]);
        prop_assert!(opened[packet.len()..].iter().all(|byte| *byte == 0));
        prop_assert!(opened.len() - packet.len() < PADDING);
    }

    #[test]
    fn a_tampered_message_is_never_opened(
        packet in prop::collection::vec(any::<u8>(), 0..200), position in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let (alice, bob) = pair(Suite::Aes256Gcm);
        let mut datagram = seal(&alice, &packet, at(0));
        let position = position.index(datagram.len());
        datagram[position] ^= flip;
        // The receiver index only chooses the session; it is authentic through the choice of key.
        prop_assume!(!(4..8).contains(&position));
        prop_assert!(open(&bob, &datagram, at(0)).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_open_and_never_panic(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, bob) = pair(Suite::ChaCha20Poly1305);
        prop_assert!(open(&bob, &datagram, at(0)).is_err());
    }
}
