//! Two keys of one instance live at once, and traffic moves from one to the other without a gap.

use super::*;

fn second_key(world: &World, number: usize) -> (LocalKey, VerifiedPeer) {
    issue(&world.mesh, number, TunnelSecret::from_bytes([77 + number as u8; 32]), NOW.plus(DAY))
}

fn chat(world: &mut World, seconds: u64) {
    for second in 0..seconds {
        for (sender, receiver) in [(0, 1), (1, 0)] {
            let content = format!("second {second} of {}", world.now.monotonic.as_secs());
            world.send(sender, &content);
            world.settle();
            assert!(world.received(receiver, &content), "{content}");
        }
        world.run(Duration::from_secs(1));
    }
}

#[test]
fn a_new_key_takes_over_within_seconds_and_the_old_one_goes_without_a_gap() {
    let mut world = World::pair();
    chat(&mut world, 5);
    let before = world.session(0).expect("a session").local_index();
    let (key, verified) = second_key(&world, 0);
    world.nodes[0].keys.insert(0, key);
    world.nodes[0].verified.insert(0, verified);
    world.apply_all();
    chat(&mut world, 15);
    assert_ne!(world.session(0).expect("a session").local_index(), before, "a session under the new key");
    world.nodes[0].keys.truncate(1);
    world.nodes[0].verified.truncate(1);
    world.apply_all();
    chat(&mut world, 200);
    let down = |event: &&Event| matches!(event, Event::SessionDown { .. });
    assert_eq!(world.nodes.iter().flat_map(|node| &node.events).filter(down).count(), 0);
}

#[test]
fn both_sides_may_rotate_at_once() {
    let mut world = World::pair();
    chat(&mut world, 5);
    for of in 0..2 {
        let (key, verified) = second_key(&world, of);
        world.nodes[of].keys.insert(0, key);
        world.nodes[of].verified.insert(0, verified);
    }
    world.apply_all();
    chat(&mut world, 30);
    for of in 0..2 {
        world.nodes[of].keys.truncate(1);
        world.nodes[of].verified.truncate(1);
    }
    world.apply_all();
    chat(&mut world, 200);
}

#[test]
fn a_key_that_the_peer_has_not_heard_of_is_not_tried_first() {
    let mut world = World::pair();
    chat(&mut world, 5);
    let (key, _) = second_key(&world, 0);
    // Only its own node knows the new key yet; sessions go on under the old one.
    world.apply(0, |update| update.locals.insert(0, key));
    chat(&mut world, 300);
    assert!(world.nodes[1].engine.unknown_keys().is_empty());
}

#[test]
fn a_key_taken_away_takes_its_sessions_along_at_once() {
    let mut world = World::pair();
    chat(&mut world, 5);
    let (key, verified) = second_key(&world, 0);
    world.nodes[0].keys = vec![key];
    world.nodes[0].verified = vec![verified];
    world.generation += 1;
    for of in 0..2 {
        let update = world.update(of);
        let now = world.now;
        world.nodes[of].engine.apply(&update, now);
        assert_eq!(world.nodes[of].shared.tables().sessions.iter().count(), 0);
    }
    world.settle();
    chat(&mut world, 5);
}

#[test]
fn a_certificate_that_binds_another_key_gives_no_local_key() {
    let mut world = World::pair();
    let wrong = LocalKey { secret: TunnelSecret::from_bytes([5; 32]), ..world.nodes[1].keys[0].clone() };
    world.apply(1, |update| update.locals = vec![wrong]);
    world.send(0, "hello");
    world.run(Duration::from_secs(5));
    assert!(world.nodes[1].shared.tables().locals.is_empty());
    assert!(world.drops(1, Reason::BadMac) > 0);
}

#[test]
fn an_instance_that_becomes_another_identity_takes_neither_index_nor_session_along() {
    let mut world = World::pair();
    chat(&mut world, 3);
    let (_, before) = world.link(1);
    // The same instance id, key and addresses, but another workload stands behind them now.
    let secret = secrets()[0].clone();
    let peer = TestPeer::new(1, "bank/db", secret.public_key());
    let (_, verified) = issue_for(&world.mesh, &peer, secret);
    world.apply(1, |update| {
        let [web, api] = WORKLOADS;
        update.policy = crate::sim::policy(&[web, api, "bank/db"], &[("bank/db", api, 80), (web, api, 80)]);
        update.peers = vec![verified];
    });
    let (_, after) = world.link(1);
    assert_ne!(before, after);
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 0);
}

#[test]
fn a_private_key_never_shows_in_debug() {
    let secret = TunnelSecret::from_bytes([0xab; 32]);
    let key = LocalKey { secret, ..World::pair().nodes[0].keys[0].clone() };
    let shown = format!("{key:?} {:?}", EngineConfig::new([0xab; 32]));
    assert!(!shown.contains("171, 171") && !shown.contains("abab"), "{shown}");
}
