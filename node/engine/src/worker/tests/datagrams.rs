//! What arrives from the wire: forged, replayed, nobody's, for the slow half, from a new place.

use super::*;

#[test]
fn replayed_and_tampered_datagrams_enter_no_host() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let datagram = world.seal_raw(WEB, API, &there.udp(40_000, 53, b"once"));
    let mut outcome = Outcome::default();
    world.receive(WEB, API, &datagram, &mut outcome);
    assert_eq!(outcome.delivered.len(), 1);
    let mut again = Outcome::default();
    world.receive(WEB, API, &datagram, &mut again);
    assert_eq!(again, dropped(API, Reason::Replayed));
    let fresh = world.seal_raw(WEB, API, &there.udp(40_000, 53, b"twice"));
    for position in 0..fresh.len() {
        let mut tampered = fresh.clone();
        tampered[position] ^= 0x40;
        let mut outcome = Outcome::default();
        assert!(world.receive(WEB, API, &tampered, &mut outcome).is_empty(), "an answer to byte {position}");
        assert!(outcome.delivered.is_empty(), "byte {position}");
    }
}

#[test]
fn datagrams_that_are_nobodys_are_dropped_without_an_answer() {
    let mut world = World::new();
    let mut message = |datagram: &[u8]| {
        let mut outcome = Outcome::default();
        assert!(world.receive(WEB, API, datagram, &mut outcome).is_empty());
        outcome
    };
    let typed = |kind: u8, length: usize| [vec![kind, 0, 0, 0], vec![0; length - 4]].concat();
    for (datagram, reason) in [
        (vec![], Reason::DatagramTooShort),
        (vec![4], Reason::DatagramTooShort),
        (typed(4, 31), Reason::DatagramTooShort),
        (typed(4, 64), Reason::UnknownReceiver),
        (typed(0, 64), Reason::UnknownMessage),
        (typed(5, 64), Reason::UnknownMessage),
        (typed(1, 147), Reason::DatagramTooShort),
        (typed(1, 149), Reason::DatagramTooLong),
        (typed(2, 93), Reason::DatagramTooLong),
        (typed(3, 63), Reason::DatagramTooShort),
        ([vec![4, 0, 1, 0], vec![0; 60]].concat(), Reason::ReservedBits),
    ] {
        assert_eq!(message(&datagram), dropped(API, reason), "{datagram:?}");
    }
}

#[test]
fn handshakes_and_their_tunnels_messages_go_to_the_slow_half() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    node.tables.sessions.insert_handshake_prefix(0x00_1234);
    node.publish_next();
    let transport = [vec![4, 0, 0, 0], 0x0012_3456u32.to_le_bytes().to_vec(), vec![0; 40]].concat();
    let hinted = [vec![1, 9, 9, 9], vec![0; 144]].concat();
    for datagram in [transport, hinted] {
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_datagram(endpoint(WEB), &datagram, world.now, &mut node.outbox);
        let sent: Vec<_> = node.outbox.for_engine().collect();
        let [ForEngine::Datagram { source, datagram: passed, .. }] = &sent[..] else {
            panic!("one datagram: {sent:?}")
        };
        assert_eq!((*source, *passed), (endpoint(WEB), &datagram[..]));
    }
    node.tables.sessions.remove_handshake_prefix(0x00_1234);
    assert!(node.tables.sessions.receiver(0x0012_3456).is_none());
}

#[test]
fn a_packet_without_a_session_waits_in_the_slow_half() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let syn = there.tcp(40_000, 8080, SYN, b"");
    for expire in [false, true] {
        if expire {
            world.pass_time(Duration::from_secs(180));
        } else {
            world.nodes[WEB].link(API).set_egress(None);
        }
        assert!(world.seal(WEB, &syn).is_empty());
        let outbox = &world.nodes[WEB].outbox;
        let sent: Vec<_> = outbox.for_engine().collect();
        let [ForEngine::Unsent { under_way, packet }] = &sent[..] else { panic!("one packet: {sent:?}") };
        let link = under_way.link();
        assert_eq!((link.local(), link.peer(), *packet), (LOCAL, peer_index(API), &syn[..]));
        assert_eq!(under_way.judged(), world.nodes[WEB].tables.generation);
    }
}

#[test]
fn sessions_report_their_first_message_their_age_and_a_moved_peer_once() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let mut events = Vec::new();
    for port in 0..3 {
        let datagram = world.seal_raw(WEB, API, &there.udp(40_000 + port, 53, b""));
        let node = &mut world.nodes[API];
        node.outbox.clear();
        let owner = usize::from(super::owner(receiver(API, WEB), WORKERS));
        node.workers[owner].begin_batch(&mut node.outbox);
        node.workers[owner].handle_datagram(endpoint(BATCH), &datagram, world.now, &mut node.outbox);
        events.extend(node.outbox.events().iter().cloned());
    }
    assert_eq!(events.iter().filter(|event| matches!(event, WorkerEvent::Confirmed(_))).count(), 1);
    let moved: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            WorkerEvent::Moved(_, to) => Some(*to),
            _ => None,
        })
        .collect();
    assert_eq!(moved, [endpoint(BATCH)]);
    assert_eq!(world.nodes[API].link(WEB).endpoint(), Some(endpoint(WEB)), "the slow half decides");

    world.pass_time(REKEY_AFTER);
    let mut due = 0;
    for port in 0..3 {
        world.seal(WEB, &there.udp(50_000 + port, 53, b""));
        due +=
            world.nodes[WEB].outbox.events().iter().filter(|event| matches!(event, WorkerEvent::RekeyDue(_))).count();
    }
    assert_eq!(due, 1);
}

#[test]
fn a_peer_that_comes_from_elsewhere_with_every_packet_is_followed_a_few_times_a_second() {
    let mut world = World::new();
    let moves = |world: &mut World, peer: usize| {
        let [there, _] = between(peer, API);
        let owner = usize::from(super::owner(receiver(API, peer), WORKERS));
        let mut moved = 0;
        for port in 0..100 {
            let datagram = world.seal_raw(peer, API, &there.udp(40_000, 53, b""));
            let node = &mut world.nodes[API];
            node.outbox.clear();
            node.workers[owner].begin_batch(&mut node.outbox);
            let from = SocketAddr::new(endpoint(API).ip(), 1000 + port % 2);
            node.workers[owner].handle_datagram(from, &datagram, world.now, &mut node.outbox);
            moved += node.outbox.events().iter().filter(|event| matches!(event, WorkerEvent::Moved(..))).count();
        }
        moved
    };
    assert_eq!(moves(&mut world, WEB), 1);
    assert_eq!(moves(&mut world, BATCH), 1, "one peer does not hold another's moves up");
    world.pass_time(MOVE_INTERVAL);
    assert_eq!((moves(&mut world, WEB), moves(&mut world, BATCH)), (1, 1));
}
