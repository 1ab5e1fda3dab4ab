//! The projection of the registry to one node's scope, against hand-made cases and properties.

use std::sync::Arc;

use proptest::prelude::*;
use warren_proto::peer_map::{Revocation, RevocationTarget, decode_instances, decode_workloads};
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, Overlay, OverlayAddresses};

use super::*;
use crate::state::records::{
    Der, Hex32, Instance, MeshSettings, PolicyHead, PolicyTree, Record, StoredPolicy, TunnelCertificate,
};
use crate::state::{Change, Key, encode};
use crate::store::{Epoch, Revision};

const NOW: UnixTime = UnixTime(1_800_000_000);
const NODES: u8 = 5;
const WORKLOADS: [&str; 4] = ["shop/a", "shop/b", "shop/c", "shop/d"];

/// One change of the mesh, small enough for chance to find every pair.
#[derive(Debug, Clone)]
enum Step {
    /// An instance appears, or its certificate is another.
    Place { instance: u8, node: u8, workload: usize, certificate: u8 },
    /// An instance goes.
    Remove { instance: u8 },
    /// A tunnel key is revoked.
    Revoke { certificate: u8 },
    /// Which workloads may call which: bit `4 * source + destination`. Those whose bit of `declared` is not set have no Service
    /// document; with `wild` every one lets its whole namespace in.
    Policy { links: u16, declared: u8, wild: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, 0..NODES, 0..4_usize, 0..8_u8)
            .prop_map(|(instance, node, workload, certificate)| Step::Place { instance, node, workload, certificate }),
        1 => (0..6_u8).prop_map(|instance| Step::Remove { instance }),
        1 => (0..8_u8).prop_map(|certificate| Step::Revoke { certificate }),
        1 => (any::<u16>(), 0..16_u8, any::<bool>())
            .prop_map(|(links, declared, wild)| Step::Policy { links, declared, wild }),
    ]
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn put<T: Record>(key: &Key, record: &T, revision: u64) -> Change {
    Change { key: key.to_bytes(), value: Some(encode(record).expect("json").into()), modified: Revision(revision) }
}

fn instance(number: u8, on: u8, workload: usize, certificate: u8) -> Instance {
    Instance {
        id: InstanceId::from_bytes([number; 16]),
        node: node(on),
        workload: WORKLOADS[workload].parse().expect("name"),
        addresses: OverlayAddresses { v6: "fd12:3456:789a::1".parse().expect("address"), v4: None },
        registered_at: NOW,
        certificates: vec![TunnelCertificate {
            chain: vec![Der(vec![certificate; 40].into()), Der(vec![0; 40].into())],
            serial: vec![certificate],
            issuer_key_id: vec![1],
            tunnel_key: Hex32([certificate; 32]),
            key_sha256: Hex32([certificate; 32]),
            not_before: NOW,
            not_after: UnixTime(NOW.0 + 1000),
        }],
        revoked_at: None,
        device: None,
    }
}

fn policy(links: u16, declared: u8, wild: bool, revision: u64) -> Vec<Change> {
    let mut text = "kind: Mesh\nname: bank.example\n---\nkind: Namespace\nname: shop\n".to_owned();
    let is_declared = |at: usize| declared & (1 << at) != 0;
    for (at, destination) in WORKLOADS.iter().enumerate().filter(|(at, _)| is_declared(*at)) {
        text.push_str(&format!(
            "---\nkind: Service\nname: {destination}\nports: {{ p: {{ port: 80, protocol: tcp }} }}\n"
        ));
        let linked = (0..4).filter(|source| links & (1 << (4 * source + at)) != 0 && is_declared(*source));
        let mut sources: Vec<_> = linked.map(|source| WORKLOADS[source]).collect();
        if wild {
            sources = vec!["shop/*"];
        }
        if !sources.is_empty() {
            text.push_str(&format!("allow: {{ r: {{ from: [{}], ports: [p] }} }}\n", sources.join(", ")));
        }
    }
    let documents = Documents::from_files(&[SourceFile { name: "p.yaml".into(), text }]).expect("valid");
    let mut changes = Vec::new();
    let mut objects = Vec::new();
    for object in documents.objects() {
        let stored = StoredPolicy { set: "all".into(), object: object.clone() };
        let digest = object_digest(&encode(&stored).expect("json"));
        objects.push(Hex32(digest));
        changes.push(put(&Key::PolicyText(digest), &stored, revision));
    }
    let tree = PolicyTree { objects };
    let digest = object_digest(&encode(&tree).expect("json"));
    changes.push(put(&Key::PolicyTree(digest), &tree, revision));
    changes.push(put(&Key::PolicyHead, &PolicyHead { number: revision, trees: vec![Hex32(digest)] }, revision));
    changes
}

fn changes(step: &Step, revision: u64) -> Vec<Change> {
    match step {
        Step::Place { instance: number, node, workload, certificate } => {
            let instance = instance(*number, *node, *workload, *certificate);
            vec![put(&Key::Instance(instance.id), &instance, revision)]
        }
        Step::Remove { instance } => vec![Change {
            key: Key::Instance(InstanceId::from_bytes([*instance; 16])).to_bytes(),
            value: None,
            modified: Revision(revision),
        }],
        Step::Revoke { certificate } => {
            let revocation = Revocation {
                id: format!("r{certificate}"),
                target: RevocationTarget::TunnelKey([*certificate; 32]),
                revoked_at: NOW,
                expires_at: UnixTime(NOW.0 + 1000),
                reason: String::new(),
            };
            vec![put(&Key::Revocation(revocation.id.clone()), &revocation, revision)]
        }
        Step::Policy { links, declared, wild } => policy(*links, *declared, *wild, revision),
    }
}

fn mesh() -> State {
    let settings = MeshSettings {
        trust_domain: "bank.example".parse().expect("name"),
        overlay: Overlay { v6: ("fd12:3456:789a::".parse().expect("address"), 48), v4: None },
        tunnel_certificate_lifetime: 1000,
        node_certificate_lifetime: 1000,
        max_certificate_lifetime: 1000,
        stale_after: 600,
    };
    let mut state = State::empty(Epoch(1));
    state.apply(Revision(1), vec![put(&Key::Mesh, &settings, 1)]).expect("applied");
    state
}

/// The policy as a node makes it of what it is told; none when it is told of none.
fn compiled(scope: &Scope) -> Option<CompiledPolicy> {
    let of = |kind| scope.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(_, object)| &object.content);
    let documents: Vec<_> =
        of(ObjectKind::Policy).map(|content| warren_proto::codec::decode(content).expect("reads")).collect();
    if documents.is_empty() {
        return None;
    }
    let undeclared = of(ObjectKind::Undeclared).flat_map(|content| decode_workloads(content).expect("reads")).collect();
    let documents = Documents::from_wire(&documents).expect("valid");
    Some(CompiledPolicy::compile(&documents, Mode::Slice).expect("compiles").excluding(undeclared))
}

fn covered(scope: &Scope) -> BTreeSet<InstanceId> {
    let key = ObjectKey { kind: ObjectKind::Instances, name: String::new() };
    decode_instances(&scope.objects[&key].content).expect("reads")
}

fn scopes(state: &State) -> Vec<Scope> {
    let bundle = Bytes::from_static(b"bundle");
    (0..NODES).map(|number| project(state, node(number), &bundle, NOW)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The soundness of distribution: a node whose scope changed is always marked, under any history.
    #[test]
    fn whoever_a_change_touches_is_concerned(steps in proptest::collection::vec(step(), 1..24)) {
        let mut state = mesh();
        for (at, step) in steps.iter().enumerate() {
            let revision = at as u64 + 2;
            let before = scopes(&state);
            let touched = state.apply(Revision(revision), changes(step, revision)).expect("applied");
            let after = scopes(&state);
            let concerned = concerned(&state, &touched, NOW);
            for number in 0..NODES {
                let covers = covered(&after[usize::from(number)]);
                let instances = state.instances_on(node(number)).map(|instance| instance.id).collect();
                prop_assert_eq!(covers, instances, "what is told says for which instances it was chosen");
                let at = usize::from(number);
                let told = match &concerned {
                    Concerned::All => true,
                    Concerned::Nodes(nodes) => nodes.contains(&node(number)),
                };
                prop_assert!(told || before[at] == after[at], "node {number} after {step:?}");
                // What is sent turns the one into the other.
                let difference = before[at].difference(&after[at]);
                prop_assert_eq!(difference.is_empty(), before[at] == after[at]);
            }
        }
    }

    /// What a node is told lets in exactly whom the whole policy lets in, of all that have instances: those too that have lost
    /// their Service document.
    #[test]
    fn a_nodes_view_is_never_wider_than_the_whole(steps in proptest::collection::vec(step(), 1..24)) {
        let mut state = mesh();
        for (at, step) in steps.iter().enumerate() {
            let revision = at as u64 + 2;
            state.apply(Revision(revision), changes(step, revision)).expect("applied");
        }
        for number in 0..NODES {
            let scope = project(&state, node(number), &Bytes::new(), NOW);
            let Some(view) = compiled(&scope) else { continue };
            for destination in state.workloads_on(node(number)) {
                for source in state.workloads() {
                    let whole = state.policy.linked(source, &destination, NOW);
                    prop_assert_eq!(view.linked(source, &destination, NOW), whole, "{} -> {}", source, destination);
                }
            }
        }
    }

    /// A state built step by step is the one that a restart builds from the whole.
    #[test]
    fn a_restart_projects_the_same_scopes(steps in proptest::collection::vec(step(), 1..24)) {
        let mut state = mesh();
        let mut kept = std::collections::BTreeMap::new();
        for (at, step) in steps.iter().enumerate() {
            let revision = at as u64 + 2;
            for change in changes(step, revision) {
                kept.insert(change.key.clone(), change);
            }
            state.apply(Revision(revision), changes(step, revision)).expect("applied");
        }
        let mut again = mesh();
        again.apply(state.revision, kept.into_values().filter(|change| change.value.is_some()).collect()).expect("applied");
        prop_assert_eq!(scopes(&state), scopes(&again));
    }
}

#[test]
fn a_node_without_instances_holds_bundle_and_revocations_and_no_peer() {
    let mut state = mesh();
    let mut all = policy(u16::MAX, u8::MAX, false, 2);
    all.extend(changes(&Step::Place { instance: 1, node: 1, workload: 0, certificate: 1 }, 2));
    state.apply(Revision(2), all).expect("applied");
    let scope = project(&state, node(4), &Bytes::from_static(b"bundle"), NOW);
    assert!(scope.peers.is_empty());
    assert!(scope.objects.keys().any(|key| key.kind == ObjectKind::TrustBundle));
    assert!(scope.objects.keys().any(|key| key.kind == ObjectKind::Revocations));
    assert!(!scope.objects.keys().any(|key| key.name.starts_with("Service/")));
    let manifest = manifest(&state, node(4), &scope, NOW).expect("settings");
    assert!(scope.check_against(&manifest).is_ok());
}

#[test]
fn an_ended_or_revoked_certificate_is_handed_to_nobody() {
    let mut state = mesh();
    state.apply(Revision(2), policy(u16::MAX, u8::MAX, false, 2)).expect("applied");
    state
        .apply(Revision(3), changes(&Step::Place { instance: 1, node: 1, workload: 0, certificate: 1 }, 3))
        .expect("applied");
    state
        .apply(Revision(4), changes(&Step::Place { instance: 2, node: 2, workload: 1, certificate: 2 }, 4))
        .expect("applied");
    let peers = |state: &State, now| project(state, node(2), &Bytes::new(), now).peers.len();
    assert_eq!(peers(&state, NOW), 1);
    assert_eq!(peers(&state, UnixTime(NOW.0 + 1000)), 0);
    let state = Arc::new(state);
    let mut revoked = (*state).clone();
    revoked.apply(Revision(5), changes(&Step::Revoke { certificate: 1 }, 5)).expect("applied");
    assert_eq!((peers(&revoked, NOW), peers(&state, NOW)), (0, 1), "the old picture stays as it was");
}
