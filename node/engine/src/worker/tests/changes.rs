//! Policy changes, revocations and restarts: when a generation is reached and what it cuts.

use super::*;

/// A10: a live flow ends with the rule that let it in, and neither side can revive it.
#[test]
fn a_policy_change_cuts_live_flows_and_resets_both_ends() {
    for family in 0..2 {
        let mut world = World::new();
        let there = between(WEB, API)[family];
        let back = there.reversed();
        assert_eq!(world.send(WEB, &there.tcp_at(40_000, 8080, SYN, 100, 0, b"")).drops, []);
        assert_eq!(world.send(API, &back.tcp_at(8080, 40_000, SYN | ACK, 500, 101, b"")).drops, []);
        assert_eq!(world.send(WEB, &there.tcp_at(40_000, 8080, ACK, 101, 501, b"hello")).drops, []);
        world.publish(CLOSED);
        let node = &mut world.nodes[API];
        let generation = node.tables.generation;
        assert!(!node.shared.reached(generation), "a running worker has not loaded it yet");
        node.outbox.clear();
        for worker in &mut node.workers {
            worker.begin_batch(&mut node.outbox);
        }
        assert!(node.shared.reached(generation));
        let cuts = node.shared.sweep(world.now);
        let [cut] = cuts[..] else { panic!("one flow is cut: {cuts:?}") };
        assert_eq!((cut.local_next, cut.peer_next), (106, 501));
        assert!(node.shared.sweep(world.now).is_empty(), "a flow is cut once");

        node.outbox.clear();
        node.workers[0].handle_cut(&cut, world.now, &mut node.outbox);
        let local: Vec<_> = node.outbox.deliveries().map(|admitted| tcp_of(admitted.packet())).collect();
        assert_eq!((local[0].flags & RST, local[0].sequence, local[0].destination), (RST, 106, 8080));
        let wire = node.wire(API);
        let mut outcome = Outcome::default();
        world.receive(API, WEB, &wire[0].2, &mut outcome);
        let [reset] = outcome.delivered_at(WEB)[..] else { panic!("the peer is reset too: {outcome:?}") };
        assert_eq!((tcp_of(reset).flags & RST, tcp_of(reset).sequence), (RST, 501));

        // Neither what the peer still sends nor what the server still sends revives it.
        let late = world.send(WEB, &there.tcp_at(40_000, 8080, ACK, 106, 501, b"more"));
        assert!(late.drops.contains(&(API, Reason::PolicyChanged)) && late.delivered_at(API).is_empty(), "{late:?}");
        let late = world.send(API, &back.tcp_at(8080, 40_000, ACK, 501, 106, b"data"));
        assert_eq!(late.drops, [(API, Reason::PolicyChanged)]);
        assert_eq!(tcp_of(late.delivered_at(API)[0]).flags & RST, RST, "the server's socket is reset");
        let anew = world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
        assert!(anew.drops.contains(&(API, Reason::NoRule)), "a new attempt is told the rule's reason: {anew:?}");
        let logged = world.records(API);
        assert!(logged.iter().any(|record| record.verdict == Err(Reason::NoRule)));
    }
}

/// A busy flow's next packet comes between a worker's loading of the new tables and the sweep.
#[test]
fn a_connection_in_use_is_reset_at_both_ends_even_where_its_next_packet_is_refused_before_the_sweep() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.tcp_at(40_000, 8080, SYN, 100, 0, b""));
    world.send(API, &there.reversed().tcp_at(8080, 40_000, SYN | ACK, 500, 101, b""));
    world.publish(CLOSED);
    let late = world.send(WEB, &there.tcp_at(40_000, 8080, ACK, 101, 501, b"hello"));
    assert!(late.drops.contains(&(API, Reason::PolicyChanged)), "{late:?}");
    let node = &mut world.nodes[API];
    for worker in &mut node.workers {
        worker.begin_batch(&mut node.outbox);
    }
    assert_eq!(node.shared.sweep(world.now).len(), 1, "the server's own socket must learn of it");
}

#[test]
fn a_cut_udp_flow_stays_cut_while_the_server_goes_on_sending() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.udp(40_000, 53, b"subscribe"));
    world.publish(CLOSED);
    for _ in 0..20 {
        world.pass_time(Duration::from_secs(5));
        assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"news")).drops, [(API, Reason::PolicyChanged)]);
        assert!(world.inject(WEB, API, &there.udp(40_000, 53, b"ack")).delivered_at(API).is_empty());
    }
}

/// A11: before the first policy nothing passes, whatever sessions there are.
#[test]
fn workers_deny_everything_until_a_policy_is_there() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    node.tables.policy = None;
    node.publish_next();
    let [there, _] = between(WEB, API);
    assert_eq!(world.send(WEB, &there.udp(40_000, 53, b"")), dropped(API, Reason::NotReady));
    assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"")), dropped(API, Reason::NotReady));

    let shared = Arc::new(Shared::new(1));
    let mut worker = Worker::new(0, Arc::clone(&shared));
    let mut outbox = Outbox::new(OutboxLimits::default());
    let datagram = world.seal_raw(WEB, API, &there.udp(40_000, 53, b""));
    worker.begin_batch(&mut outbox);
    worker.handle_datagram(endpoint(WEB), &datagram, world.now, &mut outbox);
    worker.handle_outbound(&there.udp(1, 53, b""), world.now, &mut outbox);
    assert_eq!(worker.counters().dropped(Reason::UnknownReceiver), 1);
    assert_eq!(worker.counters().dropped(Reason::NotReady), 1);
    assert_eq!(outbox.deliveries().count() + outbox.transmits().count() + outbox.for_engine().count(), 0);
}

#[test]
fn a_generation_is_reached_when_every_running_worker_has_loaded_it() {
    let mut world = World::new();
    let Node { shared, workers, outbox, tables, .. } = &mut world.nodes[API];
    assert!(shared.reached(tables.generation), "parked workers load before their first packet");
    workers[0].begin_batch(outbox);
    tables.generation += 1;
    shared.publish(Arc::new(tables.clone()));
    assert!(!shared.reached(tables.generation), "worker 0 may still write what it judged before");
    workers[0].begin_batch(outbox);
    assert!(shared.reached(tables.generation));
    workers[0].park();
    tables.generation += 1;
    shared.publish(Arc::new(tables.clone()));
    assert!(shared.reached(tables.generation));
    workers[0].begin_batch(outbox);
    assert_eq!(workers[0].generation(), tables.generation);
    let loaded = outbox.events().iter().filter(|event| matches!(event, WorkerEvent::Loaded(_))).count();
    assert_eq!(loaded, 3, "each generation is reported once");
}

#[test]
fn a_flow_of_ones_own_ends_with_the_grant() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    assert_eq!(world.send(WEB, &query), delivered(API, &query));
    world.nodes[WEB].change_peer(API, |peer| peer.links[0].may_call = false);
    assert_eq!(world.nodes[WEB].shared.sweep(world.now).len(), 1, "it is cut");
    let answer = there.reversed().udp(53, 40_000, b"a");
    let outcome = world.inject(API, WEB, &answer);
    assert_eq!(outcome.delivered_at(WEB).len(), 0, "api is told, web hears nothing");
    assert_eq!(outcome.drops, [(WEB, Reason::PolicyChanged)]);
}

#[test]
fn a_peer_whose_certificate_ended_is_cut_off_in_both_directions() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"");
    world.send(WEB, &query);
    let end = world.now.unix;
    world.nodes[API].change_peer(WEB, |peer| peer.valid_until = end);
    assert_eq!(world.inject(WEB, API, &query), dropped(API, Reason::CertificateExpired));
    assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"")).drops, [(API, Reason::NoPeer)]);
    let cuts = world.nodes[API].shared.sweep(world.now);
    assert_eq!(cuts.iter().map(|cut| cut.reason).collect::<Vec<_>>(), [Reason::CertificateExpired]);
}

#[test]
fn a_revoked_peers_flows_are_cut_and_its_packets_refused() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"");
    world.send(WEB, &query);
    let node = &mut world.nodes[API];
    node.tables.peers.remove(peer_index(WEB).0);
    node.publish_next();
    assert_eq!(world.inject(WEB, API, &query), dropped(API, Reason::PeerRevoked));
    let cuts = world.nodes[API].shared.sweep(world.now);
    assert_eq!(cuts.iter().map(|cut| cut.reason).collect::<Vec<_>>(), [Reason::PeerRevoked]);
}

/// A12: an address that changes hands brings nothing along.
#[test]
fn an_address_given_to_another_instance_inherits_no_flow() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    assert_eq!(world.send(WEB, &query), delivered(API, &query));
    let node = &mut world.nodes[WEB];
    let mut routes = (*node.tables.routes).clone();
    routes.insert(addresses(API).v6.into(), 128, peer_index(BATCH));
    node.tables.routes = Arc::new(routes);
    node.publish_next();
    let answer = there.reversed().udp(53, 40_000, b"a");
    assert_eq!(world.inject(API, WEB, &answer), dropped(WEB, Reason::SourceNotPeers));
    let outcome = world.inject(BATCH, WEB, &answer);
    assert!(outcome.delivered_at(WEB).is_empty(), "{outcome:?}");
    assert_eq!(world.nodes[WEB].shared.sweep(world.now).len(), 1, "the old owner's flow is cut");
}

/// The generation protocol between threads: one worker works without pause, one waits between batches, and the
/// slow half closes the door a hundred times.
#[test]
fn nothing_judged_by_an_older_generation_is_written_once_the_newer_is_reached() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    let mut world = World::new();
    let now = world.now;
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"query");
    let (open, closed) = (policy(ALLOW), policy(CLOSED));
    let node = &mut world.nodes[API];
    let (shut, done, passed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    // Judged without a session, which would be another's to open.
    node.change_peer(WEB, |peer| peer.is_plain = true);
    let workers = std::mem::take(&mut node.workers);
    std::thread::scope(|scope| {
        for (mut worker, rests) in workers.into_iter().zip([false, true]) {
            let (query, shut, done, passed) = (&query, &shut, &done, &passed);
            scope.spawn(move || {
                let mut outbox = Outbox::new(OutboxLimits::default());
                while !done.load(SeqCst) {
                    outbox.clear();
                    worker.begin_batch(&mut outbox);
                    for _ in 0..64 {
                        worker.handle_plain(&from_plain(WEB, query), now, &mut outbox);
                    }
                    // Here the shell writes.
                    std::thread::yield_now();
                    let count = outbox.deliveries().count() as u64;
                    assert!(count == 0 || !shut.load(SeqCst), "written after the door was shut");
                    passed.fetch_add(count, SeqCst);
                    if rests {
                        worker.park();
                        std::thread::yield_now();
                    }
                }
                worker.park();
            });
        }
        let wait = |reached: &dyn Fn() -> bool| {
            while !reached() {
                std::thread::yield_now()
            }
        };
        for _ in 0..100 {
            let before = passed.load(SeqCst);
            wait(&|| passed.load(SeqCst) > before);
            node.apply(&closed);
            wait(&|| node.shared.reached(node.tables.generation));
            shut.store(true, SeqCst);
            (0..20).for_each(|_| std::thread::yield_now());
            shut.store(false, SeqCst);
            node.apply(&open);
        }
        done.store(true, SeqCst);
    });
    assert!(passed.load(SeqCst) > 100);
}
