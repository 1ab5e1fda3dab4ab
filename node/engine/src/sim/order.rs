//! Order: what a flow carries arrives in the order in which it was sent, across whatever moves meanwhile. The wire
//! keeps order here, and workers sleep for a time of their own while packets wait for them, so that a flow which
//! changes its worker is seen to overtake itself.

use super::*;

const PORT: u16 = 8080;

const FIFO: Wire = Wire { delay: Duration::from_millis(1), ..Wire::CLEAN };

fn world(seed: u64, steering: Steering, workers: u16) -> World {
    let mut world = World::new(seed, &[(0, 1, PORT), (1, 2, PORT)]);
    for of in 0..3 {
        world.restart_with(of, workers);
    }
    world.wire = FIFO;
    world.steering = steering;
    // A first exchange sets the sessions up: what waits for one is sealed by the slow half.
    world.call_in_a_train(0, 1, PORT, 1);
    world.call_in_a_train(1, 2, PORT, 1);
    world.run(Duration::from_secs(1));
    world.sleep = Duration::from_millis(5);
    world
}

/// Both flows, each millisecond a train of a few packets; how many packets of each.
fn load(world: &mut World, milliseconds: u64) -> u64 {
    let mut sent = 0;
    for _ in 0..milliseconds {
        let count = world.random.random_range(1..=6);
        world.call_in_a_train(0, 1, PORT, count);
        world.call_in_a_train(1, 2, PORT, count);
        world.run(Duration::from_millis(1));
        sent += count;
    }
    sent
}

/// Each of the two flows arrived in order; how many packets of each did.
fn check_order(world: &mut World) -> [usize; 2] {
    world.run(Duration::from_secs(1));
    [1, 2].map(|of| {
        let arrived = world.arrived(of);
        for pair in arrived.windows(2) {
            assert!(pair[0].1.id < pair[1].1.id, "{:?} was overtaken by {:?}", pair[1], pair[0]);
        }
        arrived.len()
    })
}

fn rekeys(world: &World, of: usize) -> usize {
    let rekey = |event: &&Event| matches!(event, Event::SessionUp { rekey: true, .. });
    world.hosts[of].events.iter().filter(rekey).count()
}

#[test]
fn no_flow_overtakes_itself_across_rekeys() {
    for (seed, workers) in [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4)] {
        for steering in [Steering::ByReceiver, Steering::BySource] {
            let mut world = world(seed, steering, workers);
            let mut sent = 1;
            for _ in 0..4 {
                // Old enough to be renewed by the next packet.
                world.run(Duration::from_secs(121));
                sent += load(&mut world, 100);
            }
            let arrived = check_order(&mut world);
            assert!(rekeys(&world, 0) >= 4 && rekeys(&world, 1) >= 4, "the load ran across rekeys");
            assert_eq!(arrived, [sent as usize; 2], "and lost nothing: {workers} workers, {steering:?}");
            assert!(workers == 1 || world.merged > 50, "super-packets were merged: {}", world.merged);
        }
    }
}

/// Packets come all the while, before the session and after, and those for the slow half lie in its mailbox for a time.
#[test]
fn no_flow_overtakes_itself_when_a_session_begins() {
    for (seed, workers) in [(41, 1), (42, 2), (43, 4)] {
        let mut world = World::new(seed, &[(0, 1, PORT), (1, 2, PORT)]);
        for of in 0..3 {
            world.restart_with(of, workers);
        }
        (world.wire, world.steering) = (FIFO, Steering::ByReceiver);
        (world.sleep, world.queueing) = (Duration::from_micros(600), Duration::from_micros(900));
        let mut sent = 0;
        for _ in 0..5 {
            // Each session is over, and nobody has asked for the next.
            world.run(Duration::from_secs(200));
            sent += load(&mut world, 100);
        }
        let up = world.hosts[0].events.iter().filter(|event| matches!(event, Event::SessionUp { .. })).count();
        assert_eq!(up, 5, "each load began without a session");
        let slow = world.drops(0).get(&Reason::QueueFull).copied().unwrap_or_default();
        let arrived = check_order(&mut world);
        assert_eq!(arrived, [sent as usize; 2], "and lost nothing with {workers} workers; {slow} dropped");
        assert!(world.hosts[0].sealed_by_workers > 4 * sent as usize / 5, "workers did not wait for ever");
    }
}

/// More packets than the slow half seals: workers get the session all the same, after some packets were dropped.
#[test]
fn workers_get_a_session_under_a_load_that_never_ends() {
    let mut world = world(44, Steering::ByReceiver, 2);
    world.run(Duration::from_secs(200));
    // A packet every 100 microseconds, and each lies there longer.
    world.queueing = Duration::from_millis(20);
    world.sleep = Duration::ZERO;
    let mut sent = 0;
    for _ in 0..500 {
        world.call_in_a_train(0, 1, PORT, 10);
        world.run(Duration::from_millis(1));
        sent += 10;
    }
    let [arrived, _] = check_order(&mut world);
    let dropped = world.drops(0).get(&Reason::QueueFull).copied().unwrap_or_default();
    assert_eq!(arrived as u64 - 1 + dropped, sent, "what is lost is counted");
    assert!(dropped > 0 && dropped < sent / 10, "{dropped} of {sent} dropped");
    assert!(world.hosts[0].sealed_by_workers > sent as usize / 2, "most went straight");
}

#[test]
fn no_flow_overtakes_itself_when_a_host_moves() {
    for (seed, workers) in [(11, 2), (12, 4)] {
        let mut world = world(seed, Steering::ByReceiver, workers);
        let mut sent = 1;
        for step in 1..=6_u8 {
            sent += load(&mut world, 50);
            // The sender of one flow, then the one in the middle, which both sends and receives.
            let of = usize::from(step % 2);
            world.hosts[of].address = SocketAddr::from(([198, 51, 100, step], 4000 + u16::from(step)));
            // Answers show where it is now.
            world.call_in_a_train(of, of + 1, PORT, 1);
            sent += load(&mut world, 50);
        }
        let [first, second] = check_order(&mut world);
        assert!(second as u64 >= sent, "who sends is followed at once: {second} of {sent}");
        assert!(first > 100, "{first} arrived at the host that moves");
    }
}

#[test]
fn no_flow_overtakes_itself_when_the_number_of_workers_changes() {
    for (seed, of) in [(21, 0), (22, 1), (23, 2)] {
        let mut world = world(seed, Steering::ByReceiver, 2);
        for workers in [4, 1, 3, 2] {
            load(&mut world, 50);
            world.restart_with(of, workers);
            world.run(Duration::from_secs(1));
            // What still waits in the restarted host's queues is gone, as sockets of a process are.
            find_back(&mut world);
            load(&mut world, 50);
        }
        let arrived = check_order(&mut world);
        assert!(arrived.iter().all(|count| *count > 400), "{arrived:?}");
    }
}

/// Enough traffic for a restarted host to be found by both of its neighbours, with sequenced packets only.
fn find_back(world: &mut World) {
    for _ in 0..25 {
        world.call_in_a_train(0, 1, PORT, 1);
        world.call_in_a_train(1, 2, PORT, 1);
        world.run(Duration::from_secs(1));
    }
}

#[test]
fn super_packets_on_a_hostile_wire_arrive_unchanged_and_at_most_once() {
    for seed in 31..35 {
        let mut world = World::new(seed, &[(0, 1, PORT)]);
        world.sleep = Duration::from_millis(20);
        for round in 0..60 {
            world.wire = if round % 10 == 9 { Wire::CLEAN } else { Wire::HOSTILE };
            let count = world.random.random_range(1..=60);
            world.call_in_a_train(0, 1, PORT, count);
            // Nobody may call there.
            world.call_in_a_train(0, 1, PORT + 1, 3);
            let pause = Duration::from_millis(world.random.random_range(0..2000));
            world.run(pause);
        }
        world.run(Duration::from_secs(1));
        let arrived = world.arrived(1);
        let different: HashSet<_> = arrived.iter().map(|(_, call)| call.id).collect();
        assert_eq!(different.len(), arrived.len(), "none twice");
        assert!(arrived.iter().all(|(_, call)| call.port == PORT));
        assert!(arrived.len() > 300 && world.merged > 10, "{} arrived, {} merged", arrived.len(), world.merged);
    }
}
