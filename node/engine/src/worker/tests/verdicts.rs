//! What may pass and what is refused, by name, with the answer its sender gets.

use super::*;

#[test]
fn what_policy_allows_arrives_and_its_replies_return() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let back = there.reversed();
        for (from, packet) in [
            (WEB, there.tcp(40_000, 8080, SYN, b"")),
            (API, back.tcp(8080, 40_000, SYN | ACK, b"")),
            (WEB, there.tcp(40_000, 8080, ACK, b"GET /")),
            (API, back.tcp(8080, 40_000, ACK | FIN, b"200")),
            (WEB, there.udp(40_001, 53, b"query")),
            (API, back.udp(53, 40_001, b"answer")),
            (WEB, there.echo(true, 5)),
            (API, back.echo(false, 5)),
        ] {
            assert_eq!(world.send(from, &packet), delivered(WEB + API - from, &packet));
        }
    }
}

#[test]
fn a_caller_without_a_rule_is_refused_by_name_and_told() {
    let mut world = World::new();
    for there in between(BATCH, API) {
        let outcome = world.send(BATCH, &there.tcp_at(40_000, 8080, SYN, 9, 0, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        let [answer] = outcome.delivered_at(BATCH)[..] else { panic!("one RST: {outcome:?}") };
        let rst = tcp_of(answer);
        assert_eq!((rst.flags, rst.acknowledgement, rst.source), (RST | ACK, 10, 8080));

        let outcome = world.send(BATCH, &there.udp(40_000, 53, b"query"));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        let [answer] = outcome.delivered_at(BATCH)[..] else { panic!("one ICMP error: {outcome:?}") };
        let answer = Inner::parse(answer).expect("parsed");
        assert!(matches!(answer.transport(), Ok(Transport::Icmp(Icmp::Error { .. }))));

        let outcome = world.send(BATCH, &there.echo(true, 1));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        assert!(outcome.delivered_at(API).is_empty());
    }
    assert!(world.nodes[API].shared.flows().is_empty(), "a refused flow leaves nothing behind");
}

#[test]
fn what_passes_a_link_is_counted_there_at_both_ends_and_what_does_not_under_its_reason() {
    let mut world = World::new();
    let there = &between(WEB, API)[0];
    let packet = there.udp(40_001, 53, b"query");
    for _ in 0..3 {
        world.send(WEB, &packet);
    }
    world.send(WEB, &there.tcp(40_000, 22, SYN, b""));
    let of = |at: usize, to: usize| world.nodes[at].link(to);
    let (sent, received) = (of(WEB, API).counters().volume(), of(API, WEB).counters().volume());
    let length = packet.len() as u64;
    // The refused SYN was sent as well, and its refusal came back.
    assert_eq!((sent.packets_out, sent.packets_in, received.packets_in, received.packets_out), (4, 1, 3, 1));
    assert_eq!(received.bytes_in, 3 * length);
    assert_eq!(of(API, WEB).counters().drops().collect::<Vec<_>>(), [(Reason::NoService, 1)]);
    assert_eq!(of(API, BATCH).counters().volume(), crate::counters::Volume::default());
    let all: Vec<_> = world.nodes[API].workers.iter().map(|worker| worker.counters().traffic()).collect();
    assert_eq!(all.iter().map(|worker| worker.bytes_in).sum::<u64>(), received.bytes_in);
}

#[test]
fn what_is_refused_before_it_leaves_is_counted_at_its_link() {
    let mut world = World::new();
    let packet = between(WEB, API)[0].udp(40_000, 53, &[0; 1500]);
    assert_eq!(world.send(WEB, &packet).drops, [(WEB, Reason::PacketTooBig)]);
    let drops: Vec<_> = world.nodes[WEB].link(API).counters().drops().collect();
    assert_eq!(drops, [(Reason::PacketTooBig, 1)]);
}

#[test]
fn an_undeclared_port_is_no_service() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let outcome = world.send(WEB, &there.tcp(40_000, 22, SYN, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoService)]);
        assert!(outcome.delivered_at(API).is_empty());
    }
}

#[test]
fn a_refusal_reaches_the_flow_log_with_identities_and_a_flood_is_one_record() {
    let mut world = World::new();
    let [there, _] = between(BATCH, API);
    for port in 0..5000 {
        world.inject(BATCH, API, &there.tcp(10_000 + port, 8080, SYN, b""));
    }
    let denied = world.records(API);
    let [record] = &denied[..] else { panic!("one record, not {}", denied.len()) };
    assert_eq!(record.count, 5000);
    assert_eq!((record.verdict, record.sender), (Err(Reason::NoRule), Side::Peer));
    assert_eq!(record.source.as_ref().and_then(|id| id.workload()), Some(&name(BATCH)));
    assert_eq!(record.destination.as_ref().and_then(|id| id.workload()), Some(&name(API)));
    assert_eq!(record.destination_address.port(), 8080);
    assert!(record.rule.is_none());
    let nearest = record.nearest.as_ref().expect("the rule that lacked only the caller");
    assert_eq!((nearest.rule.id.as_str(), nearest.failed.as_str()), ("bank/api:web-calls", "from"));
    assert_eq!(record.place, Some(Place { file: "policy.yaml".into(), line: nearest.rule.line }));
    world.inject(WEB, API, &between(WEB, API)[0].tcp(40_000, 22, SYN, b""));
    let undeclared = world.records(API);
    assert_eq!(undeclared[0].verdict, Err(Reason::NoService));
    assert!(undeclared[0].place.as_ref().is_some_and(|place| place.file == "policy.yaml"), "the service's document");
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
    let allowed = world.records(API);
    let [record] = &allowed[..] else { panic!("one record, not {}", allowed.len()) };
    let rule = record.rule.as_ref().expect("a rule");
    assert_eq!((record.verdict, rule.id.as_str(), rule.file.as_str()), (Ok(()), "bank/api:web-calls", "policy.yaml"));
    assert!(world.records(API).is_empty(), "each record is handed out once");
}

/// A9: nothing that looks like an answer passes without its question.
#[test]
fn replies_without_a_flow_are_refused() {
    let mut world = World::new();
    for there in between(BATCH, WEB) {
        for flags in [SYN | ACK, ACK, RST, RST | ACK, FIN | ACK, 0, SYN | RST, SYN | FIN] {
            let outcome = world.inject(BATCH, WEB, &there.tcp(8080, 40_000, flags, b""));
            assert_eq!(outcome.drops.first(), Some(&(WEB, Reason::NotAReply)), "{flags:#x}");
            assert!(outcome.delivered_at(WEB).is_empty());
        }
        assert!(world.inject(BATCH, WEB, &there.udp(53, 40_000, b"x")).delivered_at(WEB).is_empty());
        assert_eq!(world.inject(BATCH, WEB, &there.echo(false, 1)), dropped(WEB, Reason::NotAReply));
    }
}

#[test]
fn a_flow_opened_here_lets_no_connection_in_the_other_way() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let syn = there.tcp(40_000, 8080, SYN, b"");
        assert_eq!(world.send(WEB, &syn), delivered(API, &syn));
        let outcome = world.inject(API, WEB, &there.reversed().tcp(8080, 40_000, SYN, b""));
        assert!(outcome.delivered_at(WEB).is_empty(), "a simultaneous open needs a rule");
    }
}

#[test]
fn a_udp_reply_after_the_flow_went_idle_is_refused() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let (query, answer) = (there.udp(40_000, 53, b"q"), there.reversed().udp(53, 40_000, b"a"));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        assert_eq!(world.inject(API, WEB, &answer), delivered(WEB, &answer));
    }
    // A session would be over by then: judge without one.
    let Node { workers, outbox, .. } = &mut world.nodes[WEB];
    world.now.monotonic += Duration::from_secs(180);
    for there in between(WEB, API) {
        let answer = there.reversed().udp(53, 40_000, b"a");
        workers[0].begin_batch(outbox);
        let (desk, moment) = workers[0].parts(world.now);
        let judged = desk.judge(moment, LOCAL, peer_index(API), &answer);
        assert_eq!(judged.judgement.verdict, Err(Reason::NoService));
    }
}

#[test]
fn an_allowed_connection_survives_a_restart_of_the_destination() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
    world.nodes[API].shared.flows().sweep(0, Duration::from_secs(1 << 30), |_| Ok(()));
    assert!(world.nodes[API].shared.flows().is_empty());
    let data = there.tcp(40_000, 8080, ACK, b"data");
    assert_eq!(world.inject(WEB, API, &data), delivered(API, &data));
}

#[test]
fn the_server_may_speak_first_after_a_restart() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let syn = there.tcp(40_000, 8080, SYN, b"");
    world.send(WEB, &syn);
    world.nodes[API].shared.flows().sweep(0, Duration::from_secs(1 << 30), |_| Ok(()));
    let data = there.reversed().tcp(8080, 40_000, ACK, b"data");
    assert_eq!(world.send(API, &data), delivered(WEB, &data));
}

/// A5: whose address it is decides the longest match over all peers.
#[test]
fn inner_sources_that_are_not_the_peers_are_silently_refused() {
    let mut world = World::new();
    let mut routes = (*world.nodes[API].tables.routes).clone();
    // A covering prefix must not let web speak as batch.
    routes.insert(Ipv4Addr::new(10, 77, 0, 0).into(), 16, peer_index(WEB));
    routes.insert(Ipv4Addr::UNSPECIFIED.into(), 0, peer_index(WEB));
    routes.insert(Ipv6Addr::UNSPECIFIED.into(), 0, peer_index(WEB));
    world.nodes[API].tables.routes = Arc::new(routes);
    world.nodes[API].publish_next();
    let (v4, v6) = (addresses(API).v4.expect("v4"), addresses(API).v6);
    for source in ["10.77.0.3", "10.77.0.2", "224.0.0.1", "0.1.2.3", "127.0.0.1", "255.255.255.255", "169.254.1.1"] {
        let packet = Build::between(source.parse::<Ipv4Addr>().expect("v4"), v4).tcp(1, 8080, SYN, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::SourceNotPeers), "{source}");
    }
    for source in ["fd00::3", "fd00::2", "ff02::1", "::1", "::", "::ffff:10.77.0.1", "::10.77.0.1", "fe80::1"] {
        let packet = Build::between(source.parse::<Ipv6Addr>().expect("v6"), v6).tcp(1, 8080, SYN, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::SourceNotPeers), "{source}");
    }
}

/// A6: a node forwards nothing.
#[test]
fn inner_destinations_that_are_not_local_are_silently_refused() {
    let mut world = World::new();
    for destination in ["fd00::3", "fd00::9", "ff02::1", "::1", "2001:db8::1"] {
        let destination: Ipv6Addr = destination.parse().expect("v6");
        let packet = Build::between(addresses(WEB).v6, destination).udp(1, 53, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::DestinationNotLocal), "{destination}");
    }
}

/// A session is between two instances: it reaches no other instance of the same node.
#[test]
fn inner_destinations_of_another_local_instance_are_silently_refused() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    let first = node.tables.locals[0].clone();
    let other: OverlayAddresses = addresses(5);
    let second = Local { index: LocalIndex(LOCAL.0 + 1), addresses: other, ..first.clone() };
    node.tables.locals = Arc::new([first, second]);
    node.publish_next();
    let packet = Build::between(addresses(WEB).v6, other.v6).udp(1, 53, b"");
    assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::DestinationNotLocal));
}

#[test]
fn a_local_program_without_a_grant_is_refused_at_once() {
    let mut world = World::new();
    for there in between(API, WEB) {
        // The link exists, since web may call api; api may not call web.
        let outcome = world.send(API, &there.tcp(40_000, 80, SYN, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoGrant)]);
        assert_eq!(tcp_of(outcome.delivered_at(API)[0]).flags, RST | ACK);
    }
    for there in [
        Build::between(addresses(API).v6, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99)),
        Build::between(addresses(API).v4.expect("v4"), Ipv4Addr::new(10, 77, 9, 9)),
    ] {
        let outcome = world.send(API, &there.udp(40_000, 80, b"x"));
        assert_eq!(outcome.drops, [(API, Reason::NoGrant)]);
        let answer = Inner::parse(outcome.delivered_at(API)[0]).expect("parsed");
        assert!(matches!(answer.transport(), Ok(Transport::Icmp(Icmp::Error { .. }))));
    }
    let records = world.records(API);
    assert_eq!(records.len(), 4);
    for record in records {
        assert_eq!((record.verdict, record.sender), (Err(Reason::NoGrant), Side::Local));
        assert_eq!(record.source.as_ref().and_then(|id| id.workload()), Some(&name(API)));
    }
}

#[test]
fn the_hosts_own_multicast_is_dropped_in_silence() {
    let mut world = World::new();
    let solicitation = Build::between(addresses(API).v6, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
    assert_eq!(world.send(API, &solicitation.icmp(&[133, 0, 0, 0, 0, 0, 0, 0])), dropped(API, Reason::NotUnicast));
    let foreign = Build::between(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), addresses(WEB).v6);
    assert_eq!(world.send(API, &foreign.udp(1, 53, b"")), dropped(API, Reason::NotAttributed));
    let own = Build::between(addresses(API).v6, addresses(API).v6);
    assert_eq!(world.send(API, &own.udp(1, 53, b"")).drops, [(API, Reason::LocalLoop)]);
}

#[test]
fn fragments_share_the_verdict_of_their_first() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let whole = there.udp(40_000, 53, &[7; 3000]);
        let parts = [(0, true, 1200), (1200, true, 1200), (2400, false, 608)];
        for (offset, more, length) in parts {
            let part = fragment(&whole, 77, offset, more, length);
            assert_eq!(world.send(WEB, &part), delivered(API, &part), "{offset}");
        }
        let part = |id, offset| fragment(&whole, id, offset, true, 1200);
        assert_eq!(world.inject(WEB, API, &part(78, 1200)), dropped(API, Reason::UnknownFragment));
        assert_eq!(world.send(WEB, &part(79, 1200)), dropped(WEB, Reason::UnknownFragment));
        assert_eq!(world.inject(BATCH, API, &part(77, 1200)), dropped(API, Reason::SourceNotPeers));
        let refused = there.udp(40_000, 54, &[7; 3000]);
        let first = fragment(&refused, 80, 0, true, 1200);
        assert!(world.inject(WEB, API, &first).delivered_at(API).is_empty());
        let later = fragment(&refused, 80, 1200, true, 1200);
        assert_eq!(world.inject(WEB, API, &later), dropped(API, Reason::UnknownFragment));
    }
}

#[test]
fn packets_that_do_not_parse_are_refused_by_name() {
    let mut world = World::new();
    let [v6, v4] = between(WEB, API);
    let mut extended = v6.udp(1, 53, &[0; 64]);
    extended[6] = 0;
    let sctp = v4.ip(132, vec![0; 32], 100);
    for (packet, reason) in [
        (extended, Reason::UnsupportedHeader),
        (sctp, Reason::UnsupportedProtocol),
        (vec![0x45; 10], Reason::Malformed),
        (vec![0; 64], Reason::Malformed),
        (fragment(&v4.tcp(1, 8080, SYN, &[0; 64]), 1, 0, true, 8), Reason::TinyFragment),
        (fragment(&v4.tcp(1, 8080, SYN, &[0; 64]), 1, 8, true, 8), Reason::UnknownFragment),
    ] {
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, reason));
    }
}

#[test]
fn a_plain_peers_packets_are_judged_like_any_others() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    let plain = |world: &mut World, packet: &[u8]| {
        let now = world.now;
        let node = &mut world.nodes[API];
        node.outbox.clear();
        node.workers[1].begin_batch(&mut node.outbox);
        node.workers[1].handle_plain(&from_plain(WEB, packet), now, &mut node.outbox);
        world.collect(API)
    };
    assert_eq!(plain(&mut world, &query), dropped(API, Reason::ProtectionMismatch), "a warren peer has data sessions");
    world.nodes[API].change_peer(WEB, |peer| peer.is_plain = true);
    assert_eq!(plain(&mut world, &query), delivered(API, &query));
    assert_eq!(plain(&mut world, &there.udp(1, 54, b"")).drops, [(API, Reason::NoService)]);
    let refusals: Vec<_> = world.nodes[API].outbox.for_engine().collect();
    assert!(matches!(refusals[..], [ForEngine::Unsent { .. }]), "the answer goes by the handshake tunnel");
    let answer = there.reversed().udp(53, 40_000, b"a");
    assert!(world.seal(API, &answer).is_empty());
    let sent: Vec<_> = world.nodes[API].outbox.for_engine().collect();
    assert!(matches!(&sent[..], [ForEngine::Unsent { packet, .. }] if *packet == answer));
}

#[test]
fn what_audit_mode_lets_through_is_marked_and_ends_on_its_date() {
    let mut world =
        World::with_policy(&format!("{}audit: {{ until: \"2027-01-16\", ports: all }}\n", ALLOW.trim_start()));
    let node = &mut world.nodes[API];
    // Longer than a session lives: through the handshake tunnel.
    let years = world.now.unix.plus(Duration::from_secs(1 << 28));
    node.change_peer(BATCH, |peer| {
        peer.is_plain = true;
        peer.valid_until = years;
    });
    let [there, _] = between(BATCH, API);
    let arrive = |world: &mut World, flags: u8| {
        let (now, packet) = (world.now, there.tcp(40_000, 8080, flags, b""));
        let node = &mut world.nodes[API];
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_plain(&from_plain(BATCH, &packet), now, &mut node.outbox);
        let outcome = world.collect(API);
        (outcome.delivered.len(), outcome.drops)
    };
    assert_eq!(arrive(&mut world, SYN), (1, vec![]));
    assert_eq!(world.seal(API, &there.reversed().tcp(8080, 40_000, SYN | ACK, b"")).len(), 0);
    let records = world.records(API);
    assert!(records[0].audit && records[0].verdict.is_ok(), "{records:?}");
    assert_eq!(arrive(&mut world, ACK), (1, vec![]));
    world.pass_time(Duration::from_secs(2 * 86_400));
    assert_eq!(arrive(&mut world, ACK), (0, vec![(API, Reason::PolicyChanged)]), "without any publication");
    assert_eq!(arrive(&mut world, SYN), (0, vec![(API, Reason::NoRule)]));
}

#[test]
fn records_beyond_the_limit_are_counted_as_lost() {
    let mut world = World::new();
    let [there, _] = between(BATCH, API);
    let limit = u16::try_from(records::MAX_RECORDS).expect("small");
    for port in 0..limit + 100 {
        world.inject(BATCH, API, &there.udp(40_000, 10_000 + port, b""));
    }
    assert_eq!(world.records(API).len(), records::MAX_RECORDS);
    let lost: u64 = world.nodes[API].workers.iter().map(|worker| worker.counters().traffic().records_lost).sum();
    assert_eq!(lost, 100);
    world.inject(BATCH, API, &there.udp(40_000, 1, b""));
    assert_eq!(world.records(API).len(), 1, "there is room again");
}

#[test]
fn a_cache_hit_takes_no_lock() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let (data, query) = (there.tcp(40_000, 8080, ACK, b"data"), there.udp(40_000, 53, b"query"));
        let syn = there.tcp(40_000, 8080, SYN, b"");
        assert_eq!(world.send(WEB, &syn), delivered(API, &syn));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        let shared: Vec<_> = world.nodes.iter().map(|node| Arc::clone(&node.shared)).collect();
        let held: Vec<_> = shared.iter().map(|shared| hold_every_lock(shared.flows())).collect();
        // A second lock on this thread would never return.
        assert_eq!(world.send(WEB, &data), delivered(API, &data));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        drop(held);
    }
}
