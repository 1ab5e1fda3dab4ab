//! Packets for a plain device: it has no node to judge them, so the one that they leave does.

use super::*;
use crate::tables::Ingress;

/// A world in which bank/api is a plain device to shop/web's node.
fn world() -> World {
    let mut world = World::new();
    make_device(&mut world, ALLOW);
    world
}

fn make_device(world: &mut World, service: &str) {
    let policy = policy(service);
    let ingress =
        Ingress { caller: policy.identities().index(&name(WEB)), ports: Arc::new(policy.port_table(&name(API))) };
    world.nodes[WEB].change_peer(API, |peer| {
        peer.is_plain = true;
        peer.links[0].ingress = Some(ingress);
    });
}

fn for_the_device(world: &World) -> usize {
    world.nodes[WEB].outbox.for_engine().filter(|sent| matches!(sent, ForEngine::Unsent { .. })).count()
}

#[test]
fn what_the_devices_allow_list_names_leaves_and_nothing_else_does() {
    let mut world = world();
    for there in between(WEB, API) {
        for packet in [there.tcp(40_000, 8080, SYN, b""), there.udp(40_000, 53, b"q"), there.echo(true, 7)] {
            assert_eq!(world.send(WEB, &packet), Outcome::default());
            assert_eq!(for_the_device(&world), 1);
        }
        let outcome = world.send(WEB, &there.tcp(40_000, 22, SYN, b""));
        assert_eq!(outcome.drops, [(WEB, Reason::NoService)]);
        assert_eq!(outcome.delivered_at(WEB).len(), 1, "the program is told");
        assert_eq!(for_the_device(&world), 0);
    }
    let refused: Vec<_> = world.records(WEB).into_iter().filter(|record| record.verdict.is_err()).collect();
    let [record, ..] = &refused[..] else { panic!("a record of the refusal") };
    assert_eq!((record.verdict, record.sender), (Err(Reason::NoService), Side::Local));
    assert_eq!(record.destination.as_ref().and_then(|id| id.workload()), Some(&name(API)));
}

#[test]
fn a_flow_to_a_device_ends_with_the_rule_that_let_it_out() {
    let mut world = world();
    let [there, _] = between(WEB, API);
    let packet = there.udp(40_000, 53, b"q");
    assert_eq!(world.send(WEB, &packet), Outcome::default());
    make_device(&mut world, CLOSED);
    assert_eq!(world.nodes[WEB].shared.sweep(world.now).len(), 1, "the flow is cut");
    assert_eq!(world.send(WEB, &packet).drops, [(WEB, Reason::PolicyChanged)]);
    assert_eq!(world.send(WEB, &there.udp(40_001, 53, b"q")).drops, [(WEB, Reason::NoRule)]);
    assert_eq!(for_the_device(&world), 0);
}
