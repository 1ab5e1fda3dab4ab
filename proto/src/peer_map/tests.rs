//! Manifests, scopes and deltas: digests hold and lies are refused.

use proptest::prelude::*;
use prost::Message;

use super::manifest::NamedDigest;
use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: ObjectKind::Policy, name: name.to_owned() }
}

fn scope(objects: &[(&str, &str)], peers: &[u8]) -> Scope {
    let object = |text: &str| Object { content: Bytes::copy_from_slice(text.as_bytes()), min_reader: 1 };
    let record = |id: u8| PeerRecord {
        instance: InstanceId::from_bytes([id; 16]),
        chains: vec![vec![Bytes::from(vec![id; 100])]],
    };
    Scope {
        objects: objects.iter().map(|(name, text)| (key(name), object(text))).collect(),
        peers: peers.iter().map(|id| (InstanceId::from_bytes([*id; 16]), record(*id))).collect(),
    }
}

fn manifest(scope: &Scope) -> Manifest {
    Manifest {
        trust_domain: "bank.example".parse().expect("domain"),
        node: NodeId::from_bytes([7; 16]),
        generation: Generation { epoch: 1, revision: 9 },
        issued_at: UnixTime(1000),
        not_after: UnixTime(2000),
        overlay: Overlay { v6: ("fd00:1:2::".parse().expect("address"), 48), v4: None },
        stale_after_seconds: 600,
        max_certificate_lifetime_seconds: 86_400,
        policy_revision: 3,
        objects: scope
            .objects
            .iter()
            .map(|(key, object)| {
                (key.clone(), NamedDigest { sha256: object_digest(&object.content), min_reader: object.min_reader })
            })
            .collect(),
    }
}

fn update(difference: Difference, from: u64) -> wire::Update {
    wire::Update {
        from_revision: from,
        objects: difference.objects,
        peers: difference.peers,
        tombstones: difference.tombstones,
        ..Default::default()
    }
}

#[test]
fn instances_survive_a_round_trip_and_ids_of_another_length_are_refused() {
    let ids: BTreeSet<_> = (0..5).map(|id| InstanceId::from_bytes([id; 16])).collect();
    assert_eq!(decode_instances(&encode_instances(ids.iter().copied())), Ok(ids));
    assert_eq!(decode_instances(&[]), Ok(BTreeSet::new()));
    let short = wire::InstanceList { instance_ids: vec![vec![1; 15]] }.encode_to_vec();
    assert_eq!(decode_instances(&short).expect_err("short").reason, Reason::FrameMalformed);
}

#[test]
fn workloads_survive_a_round_trip_and_what_is_no_name_is_refused() {
    let names: BTreeSet<WorkloadName> =
        ["shop/a", "bank/b"].into_iter().map(|name| name.parse().expect("name")).collect();
    assert_eq!(decode_workloads(&encode_workloads(&names)), Ok(names));
    let wrong = wire::WorkloadList { workloads: vec!["no name".to_owned()] }.encode_to_vec();
    assert_eq!(decode_workloads(&wrong).expect_err("no name").reason, Reason::FrameMalformed);
}

#[test]
fn a_manifest_survives_a_round_trip() {
    let manifest = manifest(&scope(&[("a", "x"), ("b", "y")], &[]));
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
}

#[test]
fn a_withheld_object_refuses_the_whole_update() {
    let full = scope(&[("Service/a", "allow"), ("Mesh/m", "deny")], &[]);
    let without_deny = scope(&[("Service/a", "allow")], &[]);
    let refusal = without_deny.check_against(&manifest(&full)).expect_err("incomplete");
    assert_eq!(refusal.reason, Reason::ManifestIncomplete);
}

#[test]
fn a_surplus_or_altered_object_is_refused() {
    let named = manifest(&scope(&[("a", "x")], &[]));
    let surplus = scope(&[("a", "x"), ("b", "y")], &[]).check_against(&named).expect_err("surplus");
    assert_eq!(surplus.reason, Reason::ManifestSurplus);
    let altered = scope(&[("a", "z")], &[]).check_against(&named).expect_err("altered");
    assert_eq!(altered.reason, Reason::ManifestDigest);
}

#[test]
fn an_object_above_the_reader_version_is_refused_not_ignored() {
    let mut scope = scope(&[("a", "x")], &[]);
    scope.objects.get_mut(&key("a")).expect("present").min_reader = crate::READER_VERSION + 1;
    let refusal = scope.check_against(&manifest(&scope)).expect_err("too new");
    assert_eq!(refusal.reason, Reason::ReaderTooOld);
}

#[test]
fn a_manifest_for_another_node_or_mesh_or_rolled_back_or_ended_is_refused() {
    let manifest = manifest(&Scope::default());
    let (domain, node) = (manifest.trust_domain.clone(), manifest.node);
    let at = |revision| Generation { epoch: 1, revision };
    let check = |domain: &str, node, floor, now| {
        let domain = domain.parse().expect("domain");
        manifest.check_for(&domain, node, floor, UnixTime(now)).map_err(|refusal| refusal.reason)
    };
    let domain = domain.as_str();
    assert_eq!(check(domain, node, at(9), 1500), Ok(()));
    assert_eq!(check(domain, node, at(10), 1500), Err(Reason::ManifestRolledBack));
    assert_eq!(check(domain, node, Generation { epoch: 2, revision: 1 }, 1500), Err(Reason::ManifestRolledBack));
    assert_eq!(check(domain, NodeId::from_bytes([8; 16]), at(1), 1500), Err(Reason::ManifestWrongNode));
    assert_eq!(check("evil.example", node, at(1), 1500), Err(Reason::ManifestWrongNode));
    assert_eq!(check(domain, node, at(1), 2001), Err(Reason::ManifestExpired));
}

#[test]
fn an_empty_delta_deletes_nothing() {
    let before = scope(&[("a", "x")], &[1, 2]);
    let (after, refused) = before.apply(update(Difference::default(), 8)).expect("applies");
    assert_eq!((after, refused), (before, vec![]));
}

#[test]
fn an_oversized_record_is_refused_singly_and_replaces_nothing_with_itself() {
    let before = scope(&[("a", "x")], &[1, 2]);
    let mut difference = Difference::default();
    difference.peers.push(wire::PeerRecord {
        instance_id: vec![1; 16],
        certificates: vec![wire::CertificateChain { certificates: vec![vec![0; MAX_CERTIFICATE + 1]] }],
    });
    let (after, refused) = before.apply(update(difference, 8)).expect("applies");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].reason, Reason::RecordTooLarge);
    assert_eq!(after, scope(&[("a", "x")], &[2]));
}

#[test]
fn a_revocation_once_seen_outlives_a_list_without_it() {
    let revocation = |id: u8, expires: u64| Revocation {
        id: format!("r{id}"),
        target: RevocationTarget::Node(NodeId::from_bytes([id; 16])),
        revoked_at: UnixTime(1),
        expires_at: UnixTime(expires),
        reason: String::new(),
    };
    let seen = RevocationSet::new(vec![revocation(1, 100), revocation(2, 10)]);
    let now_sent = RevocationSet::new(vec![revocation(3, 100)]);
    let kept = now_sent.keeping(&seen, UnixTime(50));
    assert_eq!(kept.all(), [revocation(3, 100), revocation(1, 100)]);
}

#[test]
fn a_later_list_cannot_bring_the_end_of_a_revocation_forward() {
    let revocation = |expires: u64| Revocation {
        id: "r1".to_owned(),
        target: RevocationTarget::Node(NodeId::from_bytes([1; 16])),
        revoked_at: UnixTime(1),
        expires_at: UnixTime(expires),
        reason: String::new(),
    };
    let seen = RevocationSet::new(vec![revocation(100)]);
    let shortened = RevocationSet::new(vec![revocation(20)]).keeping(&seen, UnixTime(10));
    assert_eq!(shortened.all(), [revocation(100)]);
    assert_eq!(RevocationSet::default().keeping(&shortened, UnixTime(50)).all(), [revocation(100)]);
    assert_eq!(RevocationSet::new(vec![revocation(200)]).keeping(&seen, UnixTime(10)).all(), [revocation(200)]);
}

fn arbitrary_scope() -> impl Strategy<Value = Scope> {
    let objects = prop::collection::btree_map("[a-d]", "[x-z]{0,2}", 0..4);
    let peers = prop::collection::btree_set(0u8..6, 0..5);
    (objects, peers).prop_map(|(objects, peers)| {
        let objects: Vec<_> = objects.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        scope(&objects, &peers.into_iter().collect::<Vec<_>>())
    })
}

proptest! {
    #[test]
    fn a_difference_applied_gives_the_target_and_its_digest(from in arbitrary_scope(), to in arbitrary_scope()) {
        let (reached, refused) = from.apply(update(from.difference(&to), 1)).expect("applies");
        prop_assert!(refused.is_empty());
        prop_assert_eq!(reached.digest(), to.digest());
        prop_assert_eq!(&reached, &to);
        prop_assert!(reached.check_against(&manifest(&to)).is_ok());
    }

    #[test]
    fn different_scopes_have_different_digests(a in arbitrary_scope(), b in arbitrary_scope()) {
        prop_assert_eq!(a == b, a.digest() == b.digest());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::decode(&bytes);
        let _ = Heartbeat::decode(&bytes);
        let _ = RevocationSet::decode(&bytes);
        if let Ok(record) = wire::PeerRecord::decode(bytes.as_slice()) {
            let _ = PeerRecord::from_wire(record);
        }
    }
}
