//! What holds in every run, whatever the wire does.

use super::*;
use crate::mesh::Stage;

mod path_mtu;
mod several_instances;

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 9090;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// web calls api, api calls db.
fn chain() -> Vec<(usize, usize, u16)> {
    vec![(0, 1, PORT), (1, 2, PORT)]
}

/// Every pair at every port.
fn all_calls() -> impl Iterator<Item = (usize, usize, u16)> {
    let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).filter(|(from, to)| from != to);
    pairs.flat_map(|(from, to)| [PORT, OTHER_PORT].map(move |port| (from, to, port)))
}

/// The reference model's verdict on what was delivered: allowed by some rule set in force since it was sent, and
/// at most once.
fn check_deliveries(world: &World, allowed_then: impl Fn(Call) -> bool) {
    for of in 0..3 {
        let mut seen = HashSet::new();
        for (_, call) in world.arrived(of) {
            assert!(allowed_then(call), "{call:?} was delivered");
            assert!(seen.insert(call.id), "{call:?} was delivered twice");
        }
    }
}

/// Traffic for as long as it takes to find a lost session or a path led astray: 15 s of silence, then handshakes to every
/// known address.
fn find_back(world: &mut World) {
    for _ in 0..25 {
        for (from, to, port) in world.rules.clone() {
            world.call(from, to, port);
        }
        world.run(seconds(1));
    }
}

/// Every pair that policy links gets through, everything else does not.
fn check_reachability(world: &mut World) {
    for (from, to, port) in all_calls() {
        let call = world.call(from, to, port);
        world.run(seconds(20));
        let allowed = world.rules.contains(&(from, to, port));
        assert_eq!(world.has_arrived(call), allowed, "{call:?}");
    }
}

#[test]
fn on_a_clean_wire_policy_alone_decides_and_every_drop_has_its_reason() {
    let mut world = World::new(1, &chain());
    check_reachability(&mut world);
    let dropped: u64 = (0..3).flat_map(|of| world.drops(of).into_values()).sum();
    let arrived: usize = (0..3).map(|of| world.arrived(of).len()).sum();
    assert_eq!(world.calls.len(), arrived + dropped as usize, "{:?}", [0, 1, 2].map(|of| world.drops(of)));
}

#[test]
fn on_a_hostile_wire_nothing_forbidden_or_twice_is_delivered_and_healing_brings_the_rest() {
    for seed in 0..8 {
        let mut world = World::new(seed, &chain());
        world.wire = Wire::HOSTILE;
        for _ in 0..150 {
            let (from, to, port) = all_calls().nth(world.random.random_range(0..12)).expect("twelve");
            world.call(from, to, port);
            let pause = Duration::from_millis(world.random.random_range(0..3000));
            world.run(pause);
        }
        let rules = world.rules.clone();
        check_deliveries(&world, |call| rules.contains(&(call.from, call.to, call.port)));
        world.wire = Wire::CLEAN;
        find_back(&mut world);
        check_reachability(&mut world);
        check_deliveries(&world, |call| rules.contains(&(call.from, call.to, call.port)));
    }
}

#[test]
fn a_partition_ends_nothing_for_good() {
    for seed in 0..6 {
        let mut world = World::new(seed, &chain());
        for round in 0..6 {
            let pair = [(0, 1), (1, 2), (0, 2)][world.random.random_range(0..3)];
            world.cut.insert(pair);
            for _ in 0..20 {
                world.call(0, 1, PORT);
                world.call(1, 2, PORT);
                let pause = Duration::from_millis(world.random.random_range(0..10_000));
                world.run(pause);
            }
            world.cut.clear();
            // Silence is noticed after 15 s, initiations come every 5 s at the latest.
            world.call(0, 1, PORT);
            world.call(1, 2, PORT);
            world.run(seconds(30));
            let (a, b) = (world.call(0, 1, PORT), world.call(1, 2, PORT));
            world.run(seconds(1));
            assert!(world.has_arrived(a) && world.has_arrived(b), "seed {seed}, round {round}");
        }
    }
}

#[test]
fn sessions_rekey_for_hours_and_lose_nothing() {
    let mut world = World::new(3, &chain());
    let mut calls = Vec::new();
    for _ in 0..4 * 60 * 12 {
        calls.push(world.call(0, 1, PORT));
        calls.push(world.call(1, 2, PORT));
        world.run(seconds(5));
    }
    let arrived: usize = (0..3).map(|of| world.arrived(of).len()).sum();
    assert_eq!(arrived, calls.len());
    let renewals =
        world.hosts[0].events.iter().filter(|event| matches!(event, Event::SessionUp { rekey: true, .. })).count();
    assert!((100..=125).contains(&renewals), "{renewals} renewals in four hours");
    for host in &world.hosts {
        assert!(host.shared.tables().sessions.iter().count() <= 6);
    }
}

#[test]
fn rekeys_on_a_lossy_wire_leave_no_gap_behind() {
    for seed in 0..4 {
        let mut world = World::new(seed, &chain());
        world.wire = Wire { loss: 0.1, doubled: 0.1, overtaken: 0.0, ..Wire::HOSTILE };
        for _ in 0..20 * 60 {
            world.call(0, 1, PORT);
            world.run(seconds(1));
        }
        let arrived = world.arrived(1).len();
        assert!(arrived > 1000, "seed {seed}: {arrived} of 1200");
        let down = |event: &&Event| matches!(event, Event::SessionDown { .. });
        assert_eq!(world.hosts[0].events.iter().filter(down).count(), 0);
    }
}

#[test]
fn a_rule_withdrawn_cuts_its_flow_before_the_change_counts_as_applied() {
    let mut world = World::new(5, &chain());
    for _ in 0..5 {
        world.call(0, 1, PORT);
        world.run(seconds(1));
    }
    let before = world.arrived(1).len();
    assert_eq!(before, 5);
    world.rules.remove(&(0, 1, PORT));
    world.apply();
    assert!((0..3).all(|of| world.has_applied(of)));
    for _ in 0..5 {
        world.call(0, 1, PORT);
        world.run(seconds(1));
    }
    assert_eq!(world.arrived(1).len(), before);
    world.rules.insert((0, 1, PORT));
    world.apply();
    let call = world.call(0, 1, PORT);
    world.run(seconds(5));
    assert!(world.has_arrived(call));
}

#[test]
fn packets_that_wait_for_a_session_do_not_outlive_the_policy_that_let_them() {
    let mut world = World::new(11, &chain());
    world.cut.insert((0, 1));
    let early = world.call(0, 1, PORT);
    world.run(seconds(1));
    // The link stays: another port is open. The same policy told again changes nothing.
    world.apply();
    assert!(!world.drops(0).contains_key(&Reason::PolicyChanged));
    world.rules.insert((0, 1, OTHER_PORT));
    world.apply();
    assert_eq!(world.drops(0)[&Reason::PolicyChanged], 1);
    world.cut.clear();
    world.run(seconds(10));
    let late = world.call(0, 1, PORT);
    world.run(seconds(1));
    assert!(!world.has_arrived(early) && world.has_arrived(late));
}

#[test]
fn a_flow_is_judged_anew_at_the_receiver_even_if_the_caller_was_not_told() {
    let mut world = World::new(6, &chain());
    world.call(0, 1, PORT);
    world.run(seconds(1));
    assert_eq!(world.arrived(1).len(), 1);
    // The port closes, another opens: the link stays, the flow does not.
    world.rules.remove(&(0, 1, PORT));
    world.rules.insert((0, 1, OTHER_PORT));
    world.apply();
    let (closed, open) = (world.call(0, 1, PORT), world.call(0, 1, OTHER_PORT));
    world.run(seconds(5));
    assert!(!world.has_arrived(closed) && world.has_arrived(open));
}

#[test]
fn a_revoked_peer_gets_no_packet_in_or_out() {
    let mut world = World::new(7, &chain());
    world.call(0, 1, PORT);
    world.run(seconds(1));
    assert_eq!(world.arrived(1).len(), 1);
    world.removed.insert(0);
    world.apply();
    assert!(world.has_applied(1));
    assert_eq!(world.hosts[1].shared.tables().sessions.iter().count(), 0);
    for _ in 0..30 {
        world.call(0, 1, PORT);
        world.run(seconds(5));
    }
    assert_eq!(world.arrived(1).len(), 1);
    assert!(world.drops(1).contains_key(&Reason::UnknownKey));
    let unknown = world.hosts[1].engine.unknown_keys();
    assert_eq!(unknown.len(), 1);
    let call = world.call(1, 2, PORT);
    world.run(seconds(5));
    assert!(world.has_arrived(call), "others are not touched");
}

#[test]
fn a_restarted_node_is_met_again_at_once() {
    for seed in 0..4 {
        let mut world = World::new(seed, &chain());
        world.call(0, 1, PORT);
        world.run(seconds(2));
        world.restart(1);
        // The caller still holds the old session; its first packet shows the restarted node that somebody does.
        world.call(0, 1, PORT);
        world.run(seconds(1));
        let call = world.call(0, 1, PORT);
        world.run(seconds(1));
        assert!(world.has_arrived(call), "seed {seed}");
    }
}

#[test]
fn a_node_that_moves_is_followed_when_it_speaks() {
    let mut world = World::new(9, &chain());
    world.call(0, 1, PORT);
    world.run(seconds(2));
    world.hosts[0].address = SocketAddr::from(([198, 51, 100, 7], 4242));
    world.call(0, 1, PORT);
    world.run(seconds(1));
    let endpoint = world.hosts[1]
        .engine
        .peers(world.now)
        .into_iter()
        .find_map(|peer| (peer.peer == world.hosts[0].verified.instance()).then_some(peer.endpoint));
    assert_eq!(endpoint.flatten(), Some(world.hosts[0].address));
}

#[test]
fn replays_from_elsewhere_move_no_endpoint() {
    for seed in 0..4 {
        let mut world = World::new(seed, &chain());
        world.wire = Wire { replayed: 0.8, ..Wire::CLEAN };
        for _ in 0..60 {
            world.call(0, 1, PORT);
            world.run(seconds(3));
        }
        for of in 0..2 {
            for peer in world.hosts[of].engine.peers(world.now) {
                let known = peer.endpoint.is_none_or(|at| world.hosts.iter().any(|host| host.address == at));
                assert!(known, "{:?}", peer.endpoint);
            }
        }
        assert_eq!(world.arrived(1).len(), 60);
    }
}

#[test]
fn a_neighbour_who_overtakes_costs_seconds_and_never_the_path() {
    for seed in 0..4 {
        let mut world = World::new(seed, &chain());
        world.wire = Wire { overtaken: 0.3, ..Wire::CLEAN };
        for _ in 0..40 {
            world.call(0, 1, PORT);
            world.run(seconds(3));
        }
        world.wire = Wire::CLEAN;
        find_back(&mut world);
        let call = world.call(0, 1, PORT);
        world.run(seconds(1));
        assert!(world.has_arrived(call), "seed {seed}");
        let rules = world.rules.clone();
        check_deliveries(&world, |call| rules.contains(&(call.from, call.to, call.port)));
    }
}

#[test]
fn a_quiet_mesh_holds_no_session_and_no_timer() {
    let mut world = World::new(10, &chain());
    check_reachability(&mut world);
    world.run(seconds(400));
    for host in &world.hosts {
        assert_eq!(host.shared.tables().sessions.iter().count(), 0);
        assert_eq!(host.engine.poll_timeout(), None);
        assert!(host.engine.peers(world.now).iter().all(|peer| peer.stage == Stage::Idle && peer.waiting == 0));
    }
}
