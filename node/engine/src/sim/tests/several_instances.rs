//! Two instances on one node, each with its own key, address and rules.
//!
//! ```text
//!   host 0: web and db          host 1: api
//!     web -- may call ----------> api
//!     db  <--------- may call --- api
//! ```

use super::*;

const WEB: usize = 0;
const API: usize = 1;
const DB: usize = 2;

/// web calls api and api calls db, whose instance lives on web's host.
fn two_on_one_host(seed: u64) -> World {
    let mut world = World::new(seed, &chain());
    world.lives_on[DB] = WEB;
    world.apply();
    world
}

/// The pairs between which a session came up, as host `of` names them: its own instance first.
fn sessions(world: &World, of: usize) -> BTreeSet<(usize, usize)> {
    let number = |instance| world.hosts.iter().position(|host| host.verified.instance() == instance).expect("known");
    let up = world.hosts[of].events.iter().filter_map(|event| match event {
        Event::SessionUp { local, peer, .. } => Some((number(*local), number(*peer))),
        _ => None,
    });
    up.collect()
}

#[test]
fn each_of_two_instances_on_a_node_has_its_own_rules_and_sessions() {
    let mut world = two_on_one_host(1);
    check_reachability(&mut world);
    assert_eq!(sessions(&world, WEB), [(WEB, API), (DB, API)].into());
    assert_eq!(sessions(&world, API), [(API, WEB), (API, DB)].into());
    let dropped: u64 = [WEB, API].into_iter().flat_map(|of| world.drops(of).into_values()).sum();
    let arrived: usize = (0..3).map(|of| world.arrived(of).len()).sum();
    assert_eq!(world.calls.len(), arrived + dropped as usize, "every drop has its reason");
    // web's own grant does not serve db, which may call nobody; and between the two the engine carries nothing.
    let drops = world.drops(WEB);
    assert!(drops.contains_key(&Reason::NoGrant) && drops.contains_key(&Reason::LocalLoop), "{drops:?}");
}

#[test]
fn on_a_hostile_wire_neither_of_two_instances_gets_what_is_the_others() {
    for seed in 0..4 {
        let mut world = two_on_one_host(seed);
        world.wire = Wire::HOSTILE;
        for _ in 0..100 {
            let (from, to, port) = all_calls().nth(world.random.random_range(0..12)).expect("twelve");
            world.call(from, to, port);
            let pause = Duration::from_millis(world.random.random_range(0..3000));
            world.run(pause);
        }
        check_deliveries(&world, |call| chain().contains(&(call.from, call.to, call.port)));
        world.wire = Wire::CLEAN;
        find_back(&mut world);
        check_reachability(&mut world);
    }
}

#[test]
fn a_rule_that_one_of_two_instances_loses_costs_the_other_nothing() {
    let mut world = two_on_one_host(5);
    find_back(&mut world);
    world.rules.remove(&(API, DB, PORT));
    world.apply();
    world.run(seconds(1));
    let (web, db) = (world.call(WEB, API, PORT), world.call(API, DB, PORT));
    world.run(seconds(1));
    assert!(world.has_arrived(web) && !world.has_arrived(db), "web's session stands");
    let downs = world.hosts[WEB].events.iter().filter(|event| matches!(event, Event::SessionDown { .. }));
    assert_eq!(downs.count(), 1, "db's alone has ended");
}

#[test]
fn an_instance_that_leaves_its_node_takes_its_sessions_along_and_no_others() {
    let mut world = two_on_one_host(6);
    find_back(&mut world);
    world.lives_on[DB] = DB;
    world.apply();
    world.run(seconds(1));
    let web = world.call(WEB, API, PORT);
    world.run(seconds(1));
    assert!(world.has_arrived(web));
    let gone = world.hosts[WEB].events.iter().filter_map(|event| match event {
        Event::SessionDown { local, .. } => Some(*local),
        _ => None,
    });
    assert_eq!(gone.collect::<Vec<_>>(), [world.hosts[DB].verified.instance()]);
    find_back(&mut world);
    let db = world.call(API, DB, PORT);
    world.run(seconds(1));
    assert!(world.has_arrived(db), "it is reached where it is now");
}
