//! Several instances on this node: each is its own, and what they may open towards each other is what policy says.

use warren_proto::policy::Openings;

use super::*;

const REPORTS: &str = "shop/reports";
/// banking-api and reports live here; web-frontend elsewhere may call reports and, through POLICY's rule, banking-api.
const BOTH: &str = "kind: Service\nname: shop/reports\nports:\n  pull: { port: 9100, protocol: tcp }\nallow:\n  pulls: { from: [bank/banking-api, shop/web-frontend], ports: [pull] }\n";

fn scope(rig: &Rig, policy: &str, revoked: Vec<Revocation>, covered: &[u8]) -> Scope {
    let mut scope = rig.mesh.scope(policy, revoked);
    let key = ObjectKey { kind: ObjectKind::Instances, name: String::new() };
    if let Some(object) = scope.objects.get_mut(&key) {
        object.content = encode_instances(covered.iter().map(|number| InstanceId::from_bytes([*number; 16])));
    }
    scope
}

fn both() -> String {
    format!("{POLICY}---\n{BOTH}")
}

/// What may be opened, as `from -> to port`.
fn openings(handle: &MeshHandle) -> Vec<String> {
    let view = handle.view().borrow().clone().expect("known");
    let told = |one: &LocalOpenings| {
        let Openings { tcp, udp, echo } = &one.allows;
        assert!(udp.is_empty() && *echo, "{one:?}");
        format!("{} -> {} {tcp:?}", one.from, one.to)
    };
    view.openings.iter().map(told).collect()
}

#[test]
fn each_instance_has_its_keys_its_peers_and_its_rules() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let (told, engine) = sync::channel();
    mesh.handle(Command::Attach(Box::new(move |update: MeshUpdate| drop(told.send(update)))));
    // web-frontend is linked to reports alone.
    let policy = both().replace("from: [shop/web-frontend], ports: [api]", "from: [shop/reports], ports: [api]");
    let (answer, _answered) = oneshot::channel();
    let update = rig.mesh.update(5, &scope(&rig, &policy, Vec::new(), &[9, 10]));
    mesh.handle(Command::Update(Box::new(update), answer));
    assert!(peers(&handle).is_empty(), "banking-api has nothing to do with web-frontend");
    mesh.handle(Command::Instance(Box::new(rig.mesh.instance_of(10, REPORTS))));
    assert_eq!(peers(&handle), [CALLER]);
    let newest = engine.try_iter().last().expect("told");
    assert_eq!(newest.locals.len(), 2);
    let view = handle.view().borrow().clone().expect("known");
    let own: Vec<_> = view.own.iter().map(|own| own.workload.as_str()).collect();
    assert_eq!(own, [OWN, REPORTS]);
    assert!(!view.awaits_rules());
    let second = view.own.last().expect("two");
    assert!(
        matches!(view.holder(second.addresses.v6.into()), Some(crate::mesh_view::Holder::Own(own)) if own == second)
    );
    // The coordinator has forgotten it and gave another in its place.
    mesh.handle(Command::Instance(Box::new(rig.mesh.instance_of(11, REPORTS))));
    let view = handle.view().borrow().clone().expect("known");
    assert_eq!(view.own.iter().map(|own| own.instance.as_bytes()[0]).collect::<Vec<_>>(), [9, 11]);
    assert!(view.awaits_rules(), "the rules of the new one have not come");
    assert_eq!(view.uncovered().map(|own| own.workload.as_str()).collect::<Vec<_>>(), [REPORTS]);
}

#[test]
fn instances_of_one_node_open_towards_each_other_what_policy_lets_and_no_more() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    mesh.handle(Command::Instance(Box::new(rig.mesh.instance_of(10, REPORTS))));
    give(&mut mesh, rig.mesh.update(5, &scope(&rig, &both(), Vec::new(), &[9]))).expect("accepted");
    assert!(openings(&handle).is_empty(), "the rules of one have not come");
    give(&mut mesh, rig.mesh.update(6, &scope(&rig, &both(), Vec::new(), &[9, 10]))).expect("accepted");
    assert_eq!(openings(&handle), [format!("{OWN} -> {REPORTS} [9100..=9100]")]);
    let denied = both().replace("allow:\n  pulls", "deny:\n  none: { from: [any], ports: [pull] }\nallow:\n  pulls");
    give(&mut mesh, rig.mesh.update(7, &scope(&rig, &denied, Vec::new(), &[9, 10]))).expect("accepted");
    assert!(openings(&handle).is_empty(), "a deny wins");
    give(&mut mesh, rig.mesh.update(8, &scope(&rig, &both(), Vec::new(), &[9, 10]))).expect("accepted");
    assert_eq!(openings(&handle).len(), 1);
    let revoked = vec![revocation(RevocationTarget::Instance(InstanceId::from_bytes([10; 16])))];
    give(&mut mesh, rig.mesh.update(9, &scope(&rig, &both(), revoked, &[9, 10]))).expect("accepted");
    assert!(openings(&handle).is_empty(), "nobody takes anything from one that is revoked");
}

#[test]
fn an_instance_whose_certificate_has_ended_opens_nothing() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    mesh.handle(Command::Instance(Box::new(rig.mesh.instance_of(10, REPORTS))));
    give(&mut mesh, rig.mesh.update(5, &scope(&rig, &both(), Vec::new(), &[9, 10]))).expect("accepted");
    assert_eq!(openings(&handle).len(), 1);
    pass(DAY + 1);
    mesh.tick(false);
    assert!(openings(&handle).is_empty());
}
