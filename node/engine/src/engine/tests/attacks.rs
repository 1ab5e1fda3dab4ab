//! What an outsider, a neighbour on the wire or a rogue peer may try.

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use proptest::prelude::*;
use x25519_dalek::StaticSecret;

use super::*;
use crate::handshake::HandshakeTunnel;
use crate::key_exchange::parts::{self, split};
use crate::key_exchange::{Kind, Offering, Parties, Party};
use crate::output::{Outbox, OutboxLimits};
use crate::worker::Worker;

/// A tunnel made by hand towards node 1, with any key.
fn tunnel_to(world: &World, secret: &TunnelSecret) -> HandshakeTunnel {
    let doorway = Arc::new(Doorway::new(secret.secret().clone()));
    HandshakeTunnel::new(doorway, world.nodes[1].keys[0].secret.public_key(), 0x11_1111)
}

fn stranger(world: &World) -> HandshakeTunnel {
    tunnel_to(world, &TunnelSecret::from_bytes([66; 32]))
}

/// A rogue node 0: it holds the admitted key and says what it likes in an established handshake tunnel.
fn rogue(world: &mut World) -> HandshakeTunnel {
    let mut tunnel = tunnel_to(world, &secrets()[0]);
    let initiation = tunnel.initiate_hinted().expect("initiation");
    let answers = knock(world, address(0), &initiation);
    let confirmation = tunnel.handle_response(&answers[0]).expect("a response");
    assert!(knock(world, address(0), &confirmation).is_empty());
    tunnel
}

/// Node 1's answers to a datagram.
fn knock(world: &mut World, from: SocketAddr, datagram: &[u8]) -> Vec<Vec<u8>> {
    let now = world.now;
    world.nodes[1].engine.handle_datagram(from, datagram, now);
    std::iter::from_fn(|| world.nodes[1].engine.poll_transmit()).map(|transmit| transmit.datagram).collect()
}

#[test]
fn under_a_flood_strangers_get_cookies_only_and_an_admitted_peer_gets_through() {
    let mut world = World::pair();
    let mut stranger = stranger(&world);
    let mut cookies = 0;
    for round in 0..40 {
        for number in 0..50_u16 {
            let from = SocketAddr::from(([203, 0, 113, (number % 7) as u8], 1000 + number));
            let initiation = stranger.initiate_hinted().expect("initiation");
            for answer in knock(&mut world, from, &initiation) {
                assert_eq!((answer[0], answer.len()), (3, 64), "a cookie, shorter than what it answers");
                cookies += 1;
            }
        }
        if round == 20 {
            world.send(0, "hello");
        }
        world.run(Duration::from_millis(50));
    }
    assert!(world.received(1, "hello"), "by a cookie, while the flood goes on");
    assert!(cookies > 1000);
    let agreements = world.nodes[1].engine.unknown_keys()[0].count;
    assert!(agreements <= 250, "{agreements} key agreements for strangers");
    assert!(world.drops(1, Reason::CookieRequired) > cookies);
}

#[test]
fn a_source_with_a_cookie_is_still_limited() {
    let mut world = World::pair();
    let mut stranger = stranger(&world);
    let from = SocketAddr::from(([203, 0, 113, 1], 1000));
    for _ in 0..1000 {
        let initiation = stranger.initiate_hinted().expect("initiation");
        if let [cookie] = &knock(&mut world, from, &initiation)[..] {
            stranger.handle_cookie_reply(cookie).expect("taken");
        }
    }
    assert!(world.drops(1, Reason::HandshakeRateLimited) > 700);
    assert!(world.nodes[1].engine.unknown_keys()[0].count <= 260);
}

/// An initiation with this ephemeral key and a first mac that is right: anybody who knows the public key can make it
/// (WireGuard whitepaper, 5.4.4).
fn initiation_with(world: &World, ephemeral: [u8; 32]) -> [u8; 148] {
    let key = world.nodes[1].keys[0].secret.public_key();
    let mut message = stranger(world).initiate_hinted().expect("initiation");
    message[8..40].copy_from_slice(&ephemeral);
    let mut cleared = message;
    cleared[1..4].fill(0);
    let mut mac_key = Blake2s256::default();
    Update::update(&mut mac_key, b"mac1----");
    Update::update(&mut mac_key, &key);
    let mac_key = mac_key.finalize_fixed();
    let mut mac: Blake2sMac<blake2::digest::consts::U16> = KeyInit::new_from_slice(&mac_key).expect("a key");
    Update::update(&mut mac, &cleared[..116]);
    message[116..132].copy_from_slice(&mac.finalize_fixed());
    message
}

#[test]
fn a_low_order_ephemeral_key_is_refused_before_any_agreement() {
    let mut world = World::pair();
    let mut one = [0; 32];
    one[0] = 1;
    for low in [[0; 32], one] {
        let message = initiation_with(&world, low);
        assert!(knock(&mut world, address(0), &message).is_empty());
    }
    assert_eq!(world.drops(1, Reason::LowOrderPoint), 2);
}

/// Agreements with it are what costs: under load a cookie comes before whatever an ephemeral key may be.
#[test]
fn under_load_nothing_is_computed_with_an_ephemeral_key_before_a_cookie() {
    let mut world = World::pair();
    let message = initiation_with(&world, [0; 32]);
    let cookies = (0..1000).filter(|_| !knock(&mut world, address(0), &message).is_empty()).count() as u64;
    assert!(world.drops(1, Reason::LowOrderPoint) <= 250);
    assert_eq!(cookies, 1000 - world.drops(1, Reason::LowOrderPoint));
    assert_eq!(cookies, world.drops(1, Reason::CookieRequired));
}

/// Its holder's trust has ended, whether or not the mesh has taken the record away: it is met with silence.
#[test]
fn a_key_whose_certificate_has_ended_gets_no_answer() {
    let mut world = World::pair_until(NOW.plus(Duration::from_secs(60)));
    let mut tunnel = tunnel_to(&world, &secrets()[0]);
    world.set_time(world.now.monotonic + Duration::from_secs(59));
    let initiation = tunnel.initiate_hinted().expect("initiation");
    assert_eq!(knock(&mut world, address(0), &initiation).len(), 1);
    world.set_time(world.now.monotonic + Duration::from_secs(1));
    let initiation = tunnel.initiate_hinted().expect("initiation");
    assert!(knock(&mut world, address(0), &initiation).is_empty());
    assert_eq!(world.drops(1, Reason::CertificateExpired), 1);
}

#[test]
fn strangers_with_a_new_key_each_are_counted_and_seldom_said() {
    let mut world = World::pair();
    for number in 100..200 {
        let mut stranger = tunnel_to(&world, &TunnelSecret::from_bytes([number; 32]));
        let initiation = stranger.initiate_hinted().expect("initiation");
        assert!(knock(&mut world, address(0), &initiation).is_empty());
    }
    world.collect(1);
    let said = world.nodes[1].events.iter().filter(|event| matches!(event, Event::UnknownKey(_))).count();
    assert_eq!((world.drops(1, Reason::UnknownKey), said), (100, 1));
    assert_eq!(world.nodes[1].engine.unknown_keys().len(), 100);
}

#[test]
fn an_initiation_for_another_key_or_with_a_wrong_hint_is_a_bad_mac() {
    let mut world = World::pair();
    let mut message = stranger(&world).initiate_hinted().expect("initiation");
    message[1] ^= 1;
    assert!(knock(&mut world, address(0), &message).is_empty());
    message[1..4].fill(0);
    // The second mac is not looked at without load.
    message[140] ^= 1;
    knock(&mut world, address(0), &message);
    assert_eq!((world.drops(1, Reason::BadMac), world.drops(1, Reason::UnknownKey)), (1, 1));
}

/// A plain device sends no hint either: it is let in as soon as it has shown by a cookie where it is.
#[test]
fn initiations_without_a_hint_have_a_limit_of_their_own_that_a_cookie_opens() {
    let mut world = World::pair();
    let mut stranger = stranger(&world);
    for _ in 0..1000 {
        let initiation = stranger.initiate().expect("initiation");
        knock(&mut world, address(0), &initiation);
    }
    assert_eq!(world.drops(1, Reason::UnknownKey), 50, "so many cost a key agreement");
    assert_eq!(world.drops(1, Reason::CookieRequired), 100, "so many were answered by a cookie");
    assert_eq!(world.drops(1, Reason::HandshakeRateLimited), 850);
    let mut admitted = tunnel_to(&world, &secrets()[0]);
    world.set_time(world.now.monotonic + Duration::from_millis(2));
    let initiation = admitted.initiate().expect("initiation");
    let answers = knock(&mut world, address(0), &initiation);
    let [cookie] = &answers[..] else { panic!("{} answers", answers.len()) };
    assert_eq!((cookie[0], cookie.len()), (3, 64));
    admitted.handle_cookie_reply(cookie).expect("taken");
    let initiation = admitted.initiate().expect("initiation");
    let answers = knock(&mut world, address(0), &initiation);
    assert_eq!(answers.iter().map(|answer| answer[0]).collect::<Vec<_>>(), [2], "a response");
    world.send(0, "hello");
    world.run(Duration::from_secs(5));
    assert!(world.received(1, "hello"), "hinted messages are not touched");
}

/// Each address of a peer's asks for a cookie of its own.
#[test]
fn a_cookie_is_used_towards_the_address_that_it_came_from() {
    let mut world = World::pair();
    let (first, second) = (SocketAddr::from(([198, 51, 100, 1], 1)), SocketAddr::from(([198, 51, 100, 2], 2)));
    let peer = world.nodes[1].verified[0].instance();
    world.apply(0, |update| update.endpoints = [(peer, vec![first, second])].into_iter().collect());
    let (local, index) = world.link(0);
    let now = world.now;
    world.nodes[0].unsent(local, index, b"hello", now);
    let sent = world.nodes[0].engine.poll_transmit().expect("an initiation");
    assert_eq!(sent.to, first);
    // Load is declared by what somebody else sends.
    let mut stranger = stranger(&world);
    for _ in 0..1000 {
        let initiation = stranger.initiate_hinted().expect("initiation");
        knock(&mut world, address(5), &initiation);
    }
    let answers = knock(&mut world, address(0), &sent.datagram);
    assert_eq!(answers[0][0], 3, "a cookie");
    world.nodes[0].engine.handle_datagram(first, &answers[0], now);
    world.set_time(now.monotonic + Duration::from_millis(100));
    let now = world.now;
    world.nodes[0].engine.handle_timeout(now);
    let again = world.nodes[0].engine.poll_transmit().expect("another");
    assert_eq!(again.to, first, "the second address would ask for a cookie of its own, and so on");
    assert_eq!(knock(&mut world, address(0), &again.datagram)[0][0], 2, "a response");
}

#[test]
fn a_replayed_initiation_is_stale_and_moves_no_endpoint() {
    let mut world = World::pair();
    let initiation = tunnel_to(&world, &secrets()[0]).initiate_hinted().expect("initiation");
    assert_eq!(knock(&mut world, address(0), &initiation).len(), 1);
    world.run(Duration::from_secs(1));
    let elsewhere = SocketAddr::from(([203, 0, 113, 1], 1000));
    assert!(knock(&mut world, elsewhere, &initiation).is_empty());
    assert_eq!(world.drops(1, Reason::StaleHandshake), 1);
    assert_eq!(world.nodes[1].engine.peers(world.now)[0].endpoint, None);
}

#[test]
fn an_application_packet_in_a_warren_peers_handshake_tunnel_is_dropped_by_name() {
    let mut world = World::pair();
    let mut tunnel = rogue(&mut world);
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.resize(48, 0);
    let datagram = tunnel.seal(&packet).expect("established");
    assert!(knock(&mut world, address(0), &datagram).is_empty());
    assert!(world.nodes[1].engine.poll_plain().is_none());
    assert_eq!(world.drops(1, Reason::ProtectionMismatch), 1);
}

#[test]
fn an_offer_of_another_version_is_rejected_and_answers_out_of_place_are_dropped() {
    let mut world = World::pair();
    let mut tunnel = rogue(&mut world);
    let mut offer = split(Kind::Offer, 9, &[0; 1300], 1420).remove(0);
    offer[40] = 2;
    let datagram = tunnel.seal(&offer).expect("established");
    let answers = knock(&mut world, address(0), &datagram);
    let reject = tunnel.open(&answers[0]).expect("opens").expect("a packet");
    assert_eq!(parts::parse(&reject).map(|part| (part.kind, part.exchange)), Ok((Kind::Reject, 9)));
    for kind in [Kind::Accept, Kind::Reject] {
        let datagram = tunnel.seal(&split(kind, 9, &[1], 1420)[0]).expect("established");
        assert!(knock(&mut world, address(0), &datagram).is_empty());
    }
    let reasons = [Reason::ExchangeVersion, Reason::ExchangeUnexpected].map(|reason| world.drops(1, reason));
    assert_eq!(reasons, [1, 2]);
}

#[test]
fn a_malformed_offer_leaves_no_session() {
    let mut world = World::pair();
    let mut tunnel = rogue(&mut world);
    for length in [1, 35, 1219, 1220, 1400] {
        for packet in split(Kind::Offer, 9, &vec![7; length], 1420) {
            let datagram = tunnel.seal(&packet).expect("established");
            knock(&mut world, address(0), &datagram);
        }
    }
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 0);
    assert!(world.drops(1, Reason::ExchangeMalformed) + world.drops(1, Reason::ExchangeCertificates) == 5);
}

/// An offer as the true node 0 would make it.
fn true_offer(world: &World) -> Offering {
    let parties = Parties {
        offerer: Party::of(&world.nodes[0].keys[0].certificate),
        acceptor: Party::of(&world.nodes[1].keys[0].certificate),
    };
    Offering::new(9, parties).expect("randomness")
}

/// The control messages in datagrams that a tunnel opens.
fn messages(tunnel: &mut HandshakeTunnel, datagrams: &[Vec<u8>]) -> Vec<(Kind, Vec<u8>)> {
    let mut assembly = parts::Assembly::default();
    let mut whole = Vec::new();
    for datagram in datagrams.iter().filter(|datagram| datagram[0] == 4) {
        let Ok(Some(packet)) = tunnel.open(datagram) else { continue };
        let part = parts::parse(&packet).expect("a control datagram");
        whole.extend(assembly.add(&part).map(|message| (part.kind, message)));
    }
    whole
}

#[test]
fn an_accept_is_computed_once_and_repeated_byte_for_byte_until_it_is_given_up() {
    let mut world = World::pair();
    let mut tunnel = rogue(&mut world);
    let offer = split(Kind::Offer, 9, true_offer(&world).message(), 1420).remove(0);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let datagram = tunnel.seal(&offer).expect("established");
        answers.extend(knock(&mut world, address(0), &datagram));
    }
    let begun = world.now.monotonic;
    let mut moments = Vec::new();
    while let Some(next) = world.nodes[1].engine.poll_timeout()
        && next <= begun + Duration::from_secs(20)
    {
        world.set_time(next);
        let now = world.now;
        world.nodes[1].engine.handle_timeout(now);
        let sent: Vec<_> = std::iter::from_fn(|| world.nodes[1].engine.poll_transmit()).collect();
        if !sent.is_empty() {
            moments.push((next - begun).as_millis());
        }
        answers.extend(sent.into_iter().map(|transmit| transmit.datagram));
    }
    assert_eq!(moments, [250, 750, 1750, 3750]);
    let accepts = messages(&mut tunnel, &answers);
    assert_eq!(accepts.len(), 6, "at once, on the offer's repetition, and four times by the clock");
    assert!(accepts.iter().all(|accept| *accept == accepts[0] && accept.0 == Kind::Accept));
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 0, "given up");
}

#[test]
fn one_handshake_brings_one_exchange() {
    let mut world = World::pair();
    let mut tunnel = rogue(&mut world);
    for expected in [1, 0] {
        let offer = split(Kind::Offer, 9, true_offer(&world).message(), 1420).remove(0);
        let datagram = tunnel.seal(&offer).expect("established");
        assert_eq!(knock(&mut world, address(0), &datagram).len(), expected);
    }
    assert_eq!(world.drops(1, Reason::ExchangeUnexpected), 1);
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 1);
}

#[test]
fn a_narrow_path_gets_the_offer_in_parts_that_fit() {
    let mut world = World::pair();
    // Nothing longer than an IPv6 minimum path takes arrives.
    world.largest = 1280 - 48;
    world.send(0, "hello");
    world.run(Duration::from_secs(5));
    assert!(world.received(1, "hello"));
}

#[test]
fn sides_that_mean_different_certificates_reject_the_exchange_by_name() {
    let mut world = World::pair();
    // The same key of node 0 in another certificate, one that node 0 itself does not hold.
    let (_, other) = issue(&world.mesh, 0, secrets()[0].clone(), NOW.plus(DAY));
    world.apply(1, |update| update.peers = vec![other]);
    world.send(0, "hello");
    world.run(Duration::from_secs(2));
    let unreachable = |event: &Event| matches!(event, Event::Unreachable { reason: Reason::ExchangeCertificates, .. });
    assert!(world.nodes[0].events.iter().any(unreachable), "{:?}", world.nodes[0].events);
    assert_eq!(world.drops(0, Reason::ExchangeCertificates), 1, "the packet that waited");
    assert_eq!(world.drops(1, Reason::ExchangeCertificates), 1, "the offer");
}

#[test]
fn the_oldest_of_too_many_waiting_packets_gives_way_and_the_rest_end_with_the_handshake() {
    let mut world = World::pair();
    world.fate = Box::new(|_| 0);
    for number in 0..100 {
        world.send(0, &format!("packet {number}"));
    }
    assert_eq!(world.drops(0, Reason::QueueFull), 36);
    world.run(Duration::from_secs(100));
    assert_eq!(world.drops(0, Reason::HandshakeTimeout), 64);
    let unreachable = |event: &&Event| matches!(event, Event::Unreachable { reason: Reason::HandshakeTimeout, .. });
    assert_eq!(world.nodes[0].events.iter().filter(unreachable).count(), 1);
}

/// It was judged before the change and reaches the slow half behind it.
#[test]
fn a_packet_that_another_policy_judged_is_not_sent_by_the_next() {
    let mut world = World::pair();
    let (local, peer) = world.link(0);
    let late = world.nodes[0].under_way(local, peer);
    let [web, api] = WORKLOADS;
    world.apply(0, |update| update.policy = crate::sim::policy(&WORKLOADS, &[(web, api, 81), (api, web, 80)]));
    let now = world.now;
    world.nodes[0].engine.handle_unsent(late, b"late", now);
    assert_eq!(world.drops(0, Reason::PolicyChanged), 1);
    assert!(world.nodes[0].engine.poll_transmit().is_none(), "nothing waits for a session");
}

#[test]
fn waiting_packets_keep_their_order() {
    let mut world = World::pair();
    for number in 0..20 {
        world.send(0, &format!("packet {number:02}"));
    }
    world.settle();
    let order: Vec<_> = world.nodes[1].inbox.iter().map(|packet| packet[..9].to_vec()).collect();
    assert_eq!(order, (0..20).map(|number| format!("packet {number:02}").into_bytes()).collect::<Vec<_>>());
}

#[test]
fn an_update_counts_as_applied_only_when_every_worker_has_loaded_it() {
    let mut world = World::pair();
    let mut outbox = Outbox::new(OutboxLimits::default());
    let mut worker = Worker::new(1, Arc::clone(&world.nodes[0].shared));
    worker.begin_batch(&mut outbox);
    let before = world.nodes[0].events.len();
    world.apply(0, |_| ());
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].events.len(), before, "a worker is in the middle of a batch");
    worker.begin_batch(&mut outbox);
    world.run(Duration::from_millis(50));
    assert!(matches!(world.nodes[0].events[before..], [Event::Applied { generation: 2 }]));
}

#[test]
fn after_shutting_down_nothing_answers_and_nothing_is_held() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    let now = world.now;
    world.nodes[1].engine.shut_down(now);
    let tables = world.nodes[1].shared.tables();
    assert!(tables.policy.is_none() && tables.locals.is_empty() && tables.sessions.iter().count() == 0);
    assert_eq!(world.nodes[1].engine.poll_timeout(), None);
    let initiation = stranger(&world).initiate_hinted().expect("initiation");
    assert!(knock(&mut world, address(0), &initiation).is_empty());
}

#[test]
fn of_hundreds_of_local_keys_the_hint_names_the_one_that_is_meant() {
    let mut world = World::pair();
    let locals: Vec<_> = (0..200_u8)
        .map(|number| {
            let secret = TunnelSecret::from_bytes([number.wrapping_add(100); 32]);
            let peer = TestPeer::new(1000 + u16::from(number), WORKLOADS[1], secret.public_key());
            issue_for(&world.mesh, &peer, secret).0
        })
        .collect();
    world.apply(1, |update| update.locals.extend(locals.iter().cloned()));
    let links = world.nodes[1].engine.peers(world.now).len();
    assert_eq!(links, 201);
    for key in locals.iter().step_by(40) {
        let doorway = Arc::new(Doorway::new(StaticSecret::from([66; 32])));
        let mut tunnel = HandshakeTunnel::new(doorway, key.secret.public_key(), 0x22_2222);
        let initiation = tunnel.initiate_hinted().expect("initiation");
        knock(&mut world, address(0), &initiation);
    }
    assert_eq!(world.drops(1, Reason::UnknownKey), 5);
}

#[test]
fn a_narrow_path_lowers_the_largest_packet_of_the_peers_behind_it() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    let mtu = |world: &World| {
        let (local, peer) = world.link(0);
        world.nodes[0].shared.tables().peer(peer).and_then(|peer| peer.link(local)).map(|link| link.link.mtu())
    };
    let now = world.now;
    assert_eq!(mtu(&world), Some(1420));
    world.nodes[0].engine.handle_path_mtu(address(7), 1380, now);
    assert_eq!(mtu(&world), Some(1420));
    world.nodes[0].engine.handle_path_mtu(address(1), 1380, now);
    assert_eq!(mtu(&world), Some(1348));
    world.nodes[0].engine.handle_path_mtu(address(1), 1440, now);
    assert_eq!(mtu(&world), Some(1348), "a larger word raises nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn arbitrary_datagrams_never_panic_and_are_never_answered(
        kind in 0_u8..6,
        length in prop_oneof![Just(148_usize), Just(92), Just(64), 0_usize..200],
        bytes in proptest::collection::vec(any::<u8>(), 200),
    ) {
        let mut world = World::pair();
        let mut datagram = bytes;
        datagram[0] = kind;
        datagram[1..4].fill(0);
        datagram.truncate(length);
        prop_assert!(knock(&mut world, address(0), &datagram).is_empty());
    }
}
