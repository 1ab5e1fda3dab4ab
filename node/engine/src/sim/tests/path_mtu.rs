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
    // Up to the verdict; whoever sends too much after it is told.
    let mut calls = Vec::new();
    while mtu(&world) == FULL {
        calls.extend(call_for(&mut world, Duration::from_millis(50)));
        assert!(calls.len() < 40, "found out within two seconds");
    }
    let last = calls.pop();
    assert!(calls.iter().all(|call| world.has_arrived(*call)));
    assert!(last.is_some_and(|call| world.has_arrived(call)) || told(&world) > 0);
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
    assert_eq!(mtu(&world), 1368);
    call_for(&mut world, seconds(5));
    assert_eq!(mtu(&world), 1368);
    let changes = world.hosts[0].events.iter().filter(|event| matches!(event, Event::PathMtu { .. })).count();
    world.pump(0);
    let said = world.hosts[0].events.iter().filter(|event| matches!(event, Event::PathMtu { mtu: 1368, .. })).count();
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
    let probes = world.recorded.iter().filter(|(.., datagram)| datagram.len() == 32 + FULL as usize).count();
    // The calls are of this length too: 200 of them, and less than four probes a second.
    assert!((230..=245).contains(&probes), "{probes}");
}

/// How long a TCP stream from host 0 to host 1 stands still when the path becomes narrower `after` some moment at which it
/// runs, by the times of RFC 6298 and RFC 8985 as Linux keeps them: what is lost is sent again after a round trip and 200 ms,
/// then after twice that, and so on, until an answer says what fits. A tail loss probe, two round trips after the loss, begins
/// that anew.
fn stands_still(round_trip: Duration, after: Duration, has_tail_loss_probe: bool) -> Duration {
    let mut world = World::new(7, &[(0, 1, 1)]);
    (world.wire.least, world.wire.delay) = (round_trip / 2, round_trip / 2);
    world.call(0, 1, 1);
    world.run(seconds(4));
    let begun = world.now.monotonic;
    call_for(&mut world, seconds(3));
    assert_eq!(mtu(&world), FULL);
    let until = world.now.monotonic + after;
    while world.now.monotonic < until {
        world.call_sized(0, 1, 1, FULL as usize);
        world.run(Duration::from_millis(5));
    }
    world.widest = 1400;
    world.call_sized(0, 1, 1, FULL as usize);
    if has_tail_loss_probe {
        world.run(round_trip * 2);
        world.call_sized(0, 1, 1, FULL as usize);
    }
    let mut timeout = round_trip + Duration::from_millis(200);
    while told(&world) == 0 {
        assert!(timeout < seconds(60), "never told");
        world.run(timeout);
        timeout *= 2;
        world.call_sized(0, 1, 1, FULL as usize);
    }
    let call = world.call_sized(0, 1, 1, mtu(&world) as usize);
    world.run(round_trip);
    assert!(world.has_arrived(call));
    let times: Vec<Duration> = world.arrived(1).iter().map(|(at, _)| *at).filter(|at| *at > begun).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("arrivals")
}

#[test]
fn a_stream_stands_still_for_less_than_three_seconds_whenever_its_path_becomes_narrower() {
    for round_trip in [2, 20, 80, 200, 400].map(Duration::from_millis) {
        let mut longest = Duration::ZERO;
        for phase in 0..12 {
            for has_tail_loss_probe in [false, true] {
                let after = Duration::from_millis(300 + phase * 67);
                longest = longest.max(stands_still(round_trip, after, has_tail_loss_probe));
            }
        }
        println!("round trip {round_trip:?}: stands still for {longest:?} at most");
        assert!(longest < seconds(3), "{longest:?} at a round trip of {round_trip:?}");
    }
}

#[test]
fn a_sender_that_falls_silent_when_its_packets_are_lost_has_the_path_asked_before_it_sends_again() {
    let mut world = talking();
    world.widest = 1400;
    let call = world.call_sized(0, 1, 1, FULL as usize);
    world.run(Duration::from_millis(550));
    assert!(!world.has_arrived(call));
    assert!(mtu(&world) < FULL, "before TCP's second retransmission");
}
