//! Datagrams of every shape are told apart or refused, within their limits.

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;

const LINK: LinkId = (LocalIndex(1), PeerIndex(2));

fn datagram(kind: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[0] = kind;
    bytes[4..12].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    bytes
}

#[test]
fn each_type_has_its_length_and_its_receiver() {
    for (kind, length, message) in [
        (1, 148, Message::Initiation { hint: 0 }),
        (2, 92, Message::Response { receiver: 0x0807_0605 }),
        (3, 64, Message::CookieReply { receiver: 0x0403_0201 }),
        (4, 32, Message::Transport { receiver: 0x0403_0201 }),
    ] {
        assert_eq!(classify(&datagram(kind, length)), Ok(message));
        assert_eq!(classify(&datagram(kind, length - 1)), Err(Reason::DatagramTooShort));
        let longer = classify(&datagram(kind, length + 1));
        assert_eq!(longer, if kind == 4 { Ok(message) } else { Err(Reason::DatagramTooLong) });
    }
    for kind in [0, 5, 255] {
        assert_eq!(classify(&datagram(kind, 148)), Err(Reason::UnknownMessage));
    }
}

#[test]
fn only_an_initiation_may_use_the_reserved_bytes() {
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
        let mut bytes = datagram(kind, length);
        bytes[1..4].copy_from_slice(&[1, 2, 3]);
        let expected = if kind == 1 { Ok(Message::Initiation { hint: 0x03_0201 }) } else { Err(Reason::ReservedBits) };
        assert_eq!(classify(&bytes), expected);
    }
}

#[test]
fn every_session_of_a_link_belongs_to_the_same_worker() {
    for workers in [1, 2, 4] {
        let mut indices = Indices::new(workers);
        let mut random = StdRng::seed_from_u64(2);
        for peer in 0..20 {
            let mut owner = || indices.take_index((LocalIndex(1), PeerIndex(peer)), &mut random) % u32::from(workers);
            let first = owner();
            assert!((0..50).all(|_| owner() == first), "peer {peer} of {workers} workers");
        }
    }
}

#[test]
fn data_indices_lie_outside_live_prefixes_and_spread_evenly_over_workers() {
    for workers in [1, 2, 3, 7] {
        let mut indices = Indices::new(workers);
        let mut random = StdRng::seed_from_u64(1);
        let prefixes: Vec<_> = (0..200).map(|_| indices.take_prefix(LINK, &mut random)).collect();
        let mut per_worker = vec![0; usize::from(workers)];
        for peer in 0..700 {
            let index = indices.take_index((LocalIndex(1), PeerIndex(peer)), &mut random);
            assert!(!prefixes.contains(&(index >> 8)));
            per_worker[(index % u32::from(workers)) as usize] += 1;
        }
        let (least, most) = (per_worker.iter().min().expect("one"), per_worker.iter().max().expect("one"));
        assert!(most - least <= 1, "{per_worker:?}");
        assert_eq!(indices.tunnel(prefixes[3] << 8 | 77), Some(LINK));
        indices.release_prefix(prefixes[3]);
        assert_eq!(indices.tunnel(prefixes[3] << 8), None);
    }
}

#[test]
fn a_flood_brings_load_for_at_least_a_second() {
    let mut gate = LoadGate::new(10);
    let mut now = Duration::from_secs(100);
    assert!((0..10).all(|_| !gate.is_under_load(now)));
    assert!(gate.is_under_load(now));
    now += Duration::from_millis(999);
    assert!(gate.is_under_load(now));
    now += Duration::from_secs(1);
    assert!(!gate.is_under_load(now));
}

#[test]
fn a_source_is_limited_and_a_flood_of_sources_bounded() {
    let mut gate = LoadGate::new(0);
    let now = Duration::from_secs(5);
    let from = SocketAddr::from(([192, 0, 2, 1], 1));
    let other_port = SocketAddr::from(([192, 0, 2, 1], 2));
    assert_eq!((0..20).filter(|_| gate.allow_source(from, now)).count(), 5);
    assert!(!gate.allow_source(other_port, now));
    assert!(gate.allow_source(from, now + Duration::from_millis(50)));
    let flood = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(n), 1));
    assert_eq!((0..2 * MAX_SOURCES as u32).filter(|n| gate.allow_source(flood(*n), now)).count(), MAX_SOURCES - 1);
    assert!(gate.allow_source(flood(u32::MAX), now + Duration::from_secs(2)));
}

#[test]
fn initiations_without_a_hint_cost_a_bounded_number_of_hashes_however_many_keys_there_are() {
    let second = Duration::from_secs(1);
    for keys in [1, 100, 10_000] {
        let mut gate = LoadGate::new(0);
        let tried = (0..400_000).filter(|_| gate.allow_trial(keys, second)).count();
        assert_eq!(tried * keys, 75_000 / keys * keys);
        let later = (0..400_000).filter(|_| gate.allow_trial(keys, 2 * second)).count();
        assert_eq!(later, tried, "a burst is all that is saved up");
    }
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = classify(&bytes);
    }
}
