//! How large a packet may be, found out from the path itself.

use super::*;

/// The inner packet size that every test begins with.
const FULL: u32 = 1420;

/// Host 0 calls host 1 with packets of full size every 50 ms.
fn call_for(world: &mut World, time: Duration) -> Vec<Call> {
    let every = Duration::from_millis(50);
    let mut calls = Vec::new();
    for _ in 0..time.as_millis() / every.as_millis() {
        calls.push(world.call_sized(0, 1, 1, FULL as usize));
        world.run(every);
    }
    calls
}

fn talking() -> World {
    let mut world = World::new(7, &[(0, 1, 1)]);
    world.call(0, 1, 1);
    world.run(seconds(2));
    let calls = call_for(&mut world, seconds(1));
    assert!(calls.iter().all(|call| world.has_arrived(*call)));
    assert_eq!(mtu(&world), FULL);
    world
}

fn mtu(world: &World) -> u32 {
    let tables = world.hosts[0].shared.tables();
    let peer = tables.peers.values().find(|peer| peer.instance == world.hosts[1].verified.instance());
    peer.expect("the peer").links[0].link.mtu()
}

/// How often host 0's programs were told that their packets are too big (ICMPv6 type 2).
fn told(world: &World) -> usize {
    let packets = world.hosts[0].delivered.iter();
    packets.filter(|(_, packet)| matches!(packet[..], [0x60, ..] if packet[6] == 58 && packet[40] == 2)).count()
}

#[test]
fn a_path_that_silently_drops_large_datagrams_is_found_out_within_a_second_and_what_fits_is_used() {
    let mut world = talking();
    world.widest = 1400;
    call_for(&mut world, seconds(1));
    assert!(mtu(&world) < FULL, "one second later");
    assert!(told(&world) > 0, "and whoever sends too much hears of it");
    world.run(seconds(5));
    let found = mtu(&world);
    assert!((1400 - 32 - 32..=1400 - 32).contains(&found), "{found}");
    let call = world.call_sized(0, 1, 1, found as usize);
    world.run(seconds(1));
    assert!(world.has_arrived(call));
}

#[test]
fn a_path_on_which_large_datagrams_arrive_in_fragments_is_found_out_and_nothing_is_lost_meanwhile() {
    let mut world = talking();
    world.widest_whole = 1400;
    let calls = call_for(&mut world, Duration::from_millis(400));
    assert!(calls.iter().all(|call| world.has_arrived(*call)));
    call_for(&mut world, seconds(1));
    world.run(seconds(5));
    assert!((1400 - 32 - 32..=1400 - 32).contains(&mtu(&world)), "{}", mtu(&world));
}

#[test]
fn a_path_that_drops_everything_says_nothing_about_size() {
    let mut world = talking();
    world.cut.insert((0, 1));
    call_for(&mut world, seconds(10));
    assert_eq!(mtu(&world), FULL);
}

#[test]
fn random_loss_leaves_the_size_at_what_fits_but_for_a_grain() {
    let mut world = talking();
    world.wire.loss = 0.1;
    call_for(&mut world, seconds(120));
    world.wire.loss = 0.0;
    call_for(&mut world, seconds(5));
    assert!(mtu(&world) >= FULL - 32, "{}", mtu(&world));
}

#[test]
fn a_path_that_has_become_wide_again_is_used_again_after_ten_minutes_and_not_before() {
    let mut world = talking();
    world.widest = 1400;
    call_for(&mut world, seconds(5));
    let narrow = mtu(&world);
    world.widest = usize::MAX;
    let send = |world: &mut World, time| {
        for _ in 0..time {
            world.call_sized(0, 1, 1, narrow as usize);
            world.run(seconds(1));
        }
    };
    send(&mut world, 500);
    assert_eq!(mtu(&world), narrow);
    send(&mut world, 110);
    assert_eq!(mtu(&world), FULL);
}

#[test]
fn what_the_kernel_knows_of_the_path_counts_at_once_and_needs_no_search() {
    let mut world = talking();
    let (to, now) = (world.hosts[1].address, world.now);
    world.hosts[0].engine.handle_path_mtu(to, 1400, now);
    assert_eq!(mtu(&world), 1360);
    call_for(&mut world, seconds(5));
    assert_eq!(mtu(&world), 1360);
    let changes = world.hosts[0].events.iter().filter(|event| matches!(event, Event::PathMtu { .. })).count();
    world.pump(0);
    let said = world.hosts[0].events.iter().filter(|event| matches!(event, Event::PathMtu { mtu: 1360, .. })).count();
    assert_eq!((changes, said), (1, 1));
}

#[test]
fn small_packets_cost_no_probes() {
    let mut world = World::new(7, &[(0, 1, 1)]);
    for _ in 0..100 {
        world.call(0, 1, 1);
        world.run(Duration::from_millis(100));
    }
    let before = world.recorded.iter().filter(|(.., datagram)| datagram.len() > 1400).count();
    assert_eq!(before, 0);
    call_for(&mut world, seconds(10));
    let probes = world.recorded.iter().filter(|(.., datagram)| datagram.len() == 32 + 1424).count();
    // The calls are of this length too: 200 of them, and two probes a second.
    assert!((210..=225).contains(&probes), "{probes}");
}
