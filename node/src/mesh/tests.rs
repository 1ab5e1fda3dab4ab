//! What the owner takes, what it refuses whole, what it refuses singly, and what a restart finds.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::mpsc as sync;

use warren_proto::peer_map::{
    Object, ObjectKey, ObjectKind, Revocation, RevocationTarget, Scope, encode_instances, encode_workloads,
};

mod several;

use super::*;
use crate::clock::Reading;
use crate::test_mesh::{CALLER, DAY, NOW, OWN, STALE_AFTER, TestMesh};

const POLICY: &str = "kind: Mesh\nname: bank.example\n---\nkind: Namespace\nname: bank\n---\nkind: Namespace\nname: shop\n---\nkind: Service\nname: shop/web-frontend\n---\nkind: Service\nname: bank/banking-api\nports:\n  api: { port: 8080, protocol: tcp }\nallow:\n  reads: { from: [shop/web-frontend], ports: [api] }\n";

thread_local! {
    static CLOCK: Cell<Reading> = const { Cell::new(Reading { boot: Duration::ZERO, wall: NOW }) };
}

fn pass(seconds: u64) {
    let now = CLOCK.get();
    CLOCK.set(Reading { boot: now.boot + Duration::from_secs(seconds), wall: UnixTime(now.wall.0 + seconds) });
}

struct Rig {
    mesh: TestMesh,
    directory: tempfile::TempDir,
    instance: Instance,
}

impl Rig {
    fn new() -> Self {
        CLOCK.set(Reading { boot: Duration::ZERO, wall: NOW });
        let mesh = TestMesh::new();
        Self { instance: mesh.instance(), mesh, directory: tempfile::tempdir().expect("directory") }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The owner as a start of the daemon makes it.
    fn open(&self) -> (Mesh, MeshHandle) {
        let state = Arc::new(StateDir::open(&self.path()).expect("state"));
        Mesh::open(Start {
            trust_domain: self.mesh.trust_domain(),
            node: self.mesh.node,
            workloads: BTreeSet::from([OWN.parse().expect("name")]),
            bundle: self.mesh.bundle(),
            instances: vec![self.instance.clone()],
            state,
            clock: Arc::new(Clock::new(|| CLOCK.get(), UnixTime(0))),
        })
        .expect("opens")
    }

    fn scope(&self) -> Scope {
        self.mesh.scope(POLICY, Vec::new())
    }
}

/// Gives an update and takes the answer, which without an engine comes at once.
fn give(mesh: &mut Mesh, update: wire::Update) -> Result<Applied, Refusal> {
    let (answer, mut answered) = oneshot::channel();
    mesh.handle(Command::Update(Box::new(update), answer));
    answered.try_recv().expect("answered")
}

fn peers(handle: &MeshHandle) -> Vec<String> {
    let view = handle.view();
    let view = view.borrow();
    view.iter().flat_map(|view| view.peers.iter()).map(|peer| peer.workload().to_string()).collect()
}

fn revocation(target: RevocationTarget) -> Revocation {
    let expires_at = UnixTime(NOW.0 + DAY);
    Revocation { id: "r1".into(), target, revoked_at: NOW, expires_at, reason: "stolen".into() }
}

#[test]
fn what_was_applied_is_there_after_a_restart_without_the_coordinator() {
    let rig = Rig::new();
    {
        let (mut mesh, handle) = rig.open();
        assert!(peers(&handle).is_empty());
        let applied = give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
        assert_eq!((applied.generation.revision, applied.refused.len()), (5, 0));
        assert_eq!(peers(&handle), [CALLER]);
    }
    pass(3600);
    let (_mesh, handle) = rig.open();
    assert_eq!(peers(&handle), [CALLER], "peers admitted before stay, however old the heartbeat");
    let view = handle.view().borrow().clone().expect("known");
    assert_eq!(view.knowledge.manifest.generation.revision, 5);
}

#[test]
fn a_manifest_that_must_not_be_believed_is_refused_whole_and_what_is_held_stays() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let manifest = rig.mesh.manifest(6, &scope);
    let stranger = TestMesh::new();
    let mut other_node = manifest.clone();
    other_node.node = NodeId::from_bytes([8; 16]);
    let mut other_mesh = manifest.clone();
    other_mesh.trust_domain = "other.example".parse().expect("name");
    let mut ended = manifest.clone();
    ended.not_after = UnixTime(NOW.0 - 1);
    let mut tampered = rig.mesh.update(6, &scope);
    if let Some(signed) = &mut tampered.manifest {
        signed.body[10] ^= 1;
    }
    let mut missing = rig.mesh.update(6, &scope);
    missing.objects.pop();
    let mut altered = rig.mesh.update(6, &scope);
    altered.objects[0].content = bytes::Bytes::from_static(b"other");
    let mut more = scope.clone();
    let extra = scope.objects.iter().next().map(|(key, object)| (key.clone(), object.clone())).expect("an object");
    more.objects.insert(ObjectKey { name: "extra".into(), ..extra.0 }, extra.1);
    let surplus = rig.mesh.update_with(&more, &manifest);
    let mut based = rig.mesh.update(6, &scope);
    (based.from_epoch, based.from_revision) = (1, 4);
    let broken = rig.mesh.scope("kind: Service\nname: bank/banking-api\nallwo: {}\n", Vec::new());
    let cases = [
        ("signed by another mesh", stranger.update_with(&scope, &manifest), Reason::ManifestSigner),
        ("for another node", rig.mesh.update_with(&scope, &other_node), Reason::ManifestWrongNode),
        ("of another mesh", rig.mesh.update_with(&scope, &other_mesh), Reason::ManifestWrongNode),
        ("rolled back", rig.mesh.update(4, &scope), Reason::ManifestRolledBack),
        ("ended", rig.mesh.update_with(&scope, &ended), Reason::ManifestExpired),
        ("tampered with", tampered, Reason::ManifestSignature),
        ("with an object missing", missing, Reason::ManifestIncomplete),
        ("with an object altered", altered, Reason::ManifestDigest),
        ("with an object too many", surplus, Reason::ManifestSurplus),
        ("upon another base", based, Reason::FrameUnexpected),
        ("without a manifest", wire::Update::default(), Reason::ManifestIncomplete),
        ("with a policy that does not compile", rig.mesh.update(6, &broken), Reason::PolicyInvalid),
    ];
    for (what, update, reason) in cases {
        assert_eq!(give(&mut mesh, update).expect_err(what).reason, reason, "{what}");
        assert_eq!(peers(&handle), [CALLER], "{what}");
    }
    give(&mut mesh, rig.mesh.update(6, &scope)).expect("a good one is still taken");
}

#[test]
fn an_older_snapshot_put_back_on_disk_brings_no_revoked_peer_back() {
    let rig = Rig::new();
    let scope = rig.scope();
    let instance = *scope.peers.keys().next().expect("a peer");
    {
        let (mut mesh, _handle) = rig.open();
        give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
        let older = std::fs::read(rig.path().join("snapshot")).expect("stored");
        let revoked = rig.mesh.scope(POLICY, vec![revocation(RevocationTarget::Instance(instance))]);
        let applied = give(&mut mesh, rig.mesh.update(6, &revoked)).expect("accepted");
        assert_eq!(applied.refused.first().map(|record| record.refusal.reason), Some(Reason::Revoked));
        drop(mesh);
        for name in ["snapshot", "snapshot.previous"] {
            std::fs::write(rig.path().join(name), &older).expect("put back");
        }
    }
    let (_mesh, handle) = rig.open();
    assert!(handle.view().borrow().is_none(), "the node waits for its coordinator, closed");
}

#[test]
fn a_damaged_snapshot_is_left_out_and_the_one_before_it_serves_if_nothing_was_taken_away_since() {
    let rig = Rig::new();
    let scope = rig.scope();
    {
        let (mut mesh, handle) = rig.open();
        give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
        let record = rig.mesh.record(2, CALLER);
        let mut more = scope.clone();
        more.peers.insert(record.instance, record.clone());
        let mut update = rig.mesh.update(6, &more);
        (update.from_epoch, update.from_revision) = (1, 5);
        update.objects.clear();
        update.peers = vec![record.to_wire()];
        give(&mut mesh, update).expect("accepted");
        mesh.tick(false);
        assert_eq!(peers(&handle).len(), 2);
    }
    let good = std::fs::read(rig.path().join("snapshot")).expect("stored");
    std::fs::write(rig.path().join("snapshot"), &good[..good.len() / 2]).expect("cut");
    let (_mesh, handle) = rig.open();
    assert_eq!(peers(&handle).len(), 1);
}

#[test]
fn a_revocation_once_seen_stays_whatever_a_later_list_says() {
    let rig = Rig::new();
    let scope = rig.scope();
    let instance = *scope.peers.keys().next().expect("a peer");
    let revoked = rig.mesh.scope(POLICY, vec![revocation(RevocationTarget::Instance(instance))]);
    {
        let (mut mesh, handle) = rig.open();
        give(&mut mesh, rig.mesh.update(5, &revoked)).expect("accepted");
        give(&mut mesh, rig.mesh.update(6, &scope)).expect("accepted");
        assert!(peers(&handle).is_empty());
    }
    let (_mesh, handle) = rig.open();
    assert!(peers(&handle).is_empty(), "nor after a restart");
}

/// `scope` with a policy that this build cannot compile, or cannot read.
fn unreadable(rig: &Rig, revocations: Vec<Revocation>, revision: u64) -> [(wire::Update, Reason); 2] {
    let broken = rig.mesh.scope("kind: Service\nname: bank/banking-api\nallwo: {}\n", revocations.clone());
    let scope = rig.mesh.scope(POLICY, revocations);
    let mut manifest = rig.mesh.manifest(revision, &scope);
    for (_, named) in manifest.objects.iter_mut().filter(|(key, _)| key.kind == ObjectKind::Policy) {
        named.min_reader = u32::MAX;
    }
    [
        (rig.mesh.update(revision, &broken), Reason::PolicyInvalid),
        (rig.mesh.update_with(&scope, &manifest), Reason::ReaderTooOld),
    ]
}

#[test]
fn a_revocation_holds_even_when_the_policy_it_came_with_is_refused() {
    for number in 0..2 {
        let rig = Rig::new();
        let scope = rig.scope();
        let instance = *scope.peers.keys().next().expect("a peer");
        let revoked = vec![revocation(RevocationTarget::Instance(instance))];
        let (update, reason) = unreadable(&rig, revoked, 6)[number].clone();
        {
            let (mut mesh, handle) = rig.open();
            give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
            let refusal = give(&mut mesh, update.clone()).expect_err("refused");
            assert_eq!(refusal.reason, reason);
            assert!(refusal.detail.ends_with("the revocations that came with it are in force"), "{refusal}");
            assert!(peers(&handle).is_empty());
            let held = handle.held().expect("what was held is held still");
            assert_eq!(held.manifest.generation.revision, 5);
            assert!(held.policy.service(&OWN.parse().expect("name")).is_some(), "the policy is the one before");
            let again = give(&mut mesh, update).expect_err("refused");
            assert!(!again.detail.contains("in force"), "nothing is new: {again}");
        }
        let (mut mesh, handle) = rig.open();
        assert!(peers(&handle).is_empty(), "nor after a restart");
        give(&mut mesh, rig.mesh.update(7, &scope)).expect("accepted");
        assert!(peers(&handle).is_empty(), "nor when a later list leaves it out");
    }
}

#[test]
fn a_revocation_holds_on_a_node_whose_first_policy_is_refused() {
    let rig = Rig::new();
    let scope = rig.scope();
    let instance = *scope.peers.keys().next().expect("a peer");
    for (number, (update, reason)) in
        unreadable(&rig, vec![revocation(RevocationTarget::Instance(instance))], 5).into_iter().enumerate()
    {
        let (mut mesh, handle) = rig.open();
        assert_eq!(give(&mut mesh, update).expect_err("refused").reason, reason);
        assert!(handle.view().borrow().is_none(), "nothing is known, closed");
        drop((mesh, handle));
        let (mut mesh, handle) = rig.open();
        give(&mut mesh, rig.mesh.update(6 + number as u64, &scope)).expect("accepted");
        assert!(peers(&handle).is_empty());
        std::fs::remove_dir_all(rig.path()).expect("anew");
    }
}

#[test]
fn a_revocation_that_no_believed_manifest_names_changes_nothing() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let instance = *scope.peers.keys().next().expect("a peer");
    let revoked = vec![revocation(RevocationTarget::Instance(instance))];
    let list = RevocationSet::new(revoked.clone()).encode();
    let is_list = |object: &&mut wire::ScopeObject| object.kind == i32::from(wire::ObjectKind::Revocations);
    let [(good, _), _] = unreadable(&rig, revoked.clone(), 6);
    let mut unsigned = good.clone();
    if let Some(signed) = &mut unsigned.manifest {
        signed.signature[10] ^= 1;
    }
    let [(old, _), _] = unreadable(&rig, revoked.clone(), 4);
    let [(mut slipped_in, _), _] = unreadable(&rig, Vec::new(), 6);
    slipped_in.objects.iter_mut().filter(is_list).for_each(|object| object.content = list.clone().into());
    let mut newer = good.clone();
    newer.objects.iter_mut().filter(is_list).for_each(|object| object.min_reader = u32::MAX);
    for (what, update) in
        [("unsigned", unsigned), ("rolled back", old), ("slipped in", slipped_in), ("not readable here", newer)]
    {
        give(&mut mesh, update).expect_err(what);
        assert_eq!(peers(&handle), [CALLER], "{what}");
    }
}

#[test]
fn the_refusal_of_an_update_is_answered_when_every_worker_judges_by_its_revocations() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let (told, engine) = sync::channel();
    mesh.handle(Command::Attach(Box::new(move |update: MeshUpdate| drop(told.send(update)))));
    let first = engine.try_recv().expect("told what holds");
    let instance = *scope.peers.keys().next().expect("a peer");
    let [(update, _), _] = unreadable(&rig, vec![revocation(RevocationTarget::Instance(instance))], 6);
    let (answer, mut answered) = oneshot::channel();
    mesh.handle(Command::Update(Box::new(update), answer));
    let second = engine.try_recv().expect("told");
    assert_eq!((first.peers.len(), second.peers.len()), (1, 0));
    assert!(answered.try_recv().is_err());
    mesh.handle(Command::EngineApplied(second.generation));
    assert_eq!(answered.try_recv().expect("answered").expect_err("refused").reason, Reason::PolicyInvalid);
    assert_eq!(handle.held().map(|held| held.manifest.generation.revision), Some(5));
}

#[test]
fn a_record_that_lies_is_refused_singly() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let mut scope = rig.scope();
    let forged = TestMesh::new().record(2, CALLER);
    let unlinked = rig.mesh.record(3, "shop/unknown");
    for record in [&forged, &unlinked] {
        scope.peers.insert(record.instance, record.clone());
    }
    let applied = give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let refused: Vec<_> = applied.refused.iter().map(|record| (record.instance, record.refusal.reason)).collect();
    assert_eq!(refused, [(forged.instance, Reason::UntrustedIssuer), (unlinked.instance, Reason::NotLinked)]);
    assert_eq!(peers(&handle), [CALLER]);
}

#[test]
fn without_heartbeats_no_new_peer_is_admitted_and_with_the_next_one_it_is() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let mut scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    pass(u64::from(STALE_AFTER) + 1);
    // The manifest was signed long ago and comes only now, as a slow or hostile path would deliver it.
    let record = rig.mesh.record(2, CALLER);
    scope.peers.insert(record.instance, record);
    let applied = give(&mut mesh, rig.mesh.update(6, &scope)).expect("accepted");
    assert_eq!(applied.refused.first().map(|record| record.refusal.reason), Some(Reason::MeshStale));
    assert_eq!(peers(&handle).len(), 1, "who was admitted before stays");
    let heard = CLOCK.get().wall;
    mesh.handle(Command::Heartbeat(rig.mesh.heartbeat(6, heard)));
    assert_eq!(peers(&handle).len(), 2);
}

#[test]
fn heartbeats_of_others_and_old_ones_keep_nothing_fresh() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
    let fresh = || handle.view().borrow().as_ref().map(|view| view.fresh_until);
    let before = fresh();
    pass(60);
    let later = CLOCK.get().wall;
    let mut other = rig.mesh.heartbeat(5, later);
    other.body[20] ^= 1;
    for signed in [TestMesh::new().heartbeat(5, later), other, rig.mesh.heartbeat(5, UnixTime(NOW.0 - 1))] {
        mesh.handle(Command::Heartbeat(signed));
        assert_eq!(fresh(), before);
    }
    mesh.handle(Command::Heartbeat(rig.mesh.heartbeat(5, later)));
    assert_eq!(fresh(), before.map(|before| UnixTime(before.0 + 60)));
}

#[test]
fn a_heartbeat_of_another_generation_than_the_one_held_keeps_nothing_fresh() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
    let fresh = || handle.view().borrow().as_ref().map(|view| view.fresh_until);
    let before = fresh();
    pass(60);
    for revision in [4, 6, 1 << 40] {
        mesh.handle(Command::Heartbeat(rig.mesh.heartbeat(revision, CLOCK.get().wall)));
        assert_eq!(fresh(), before, "revision {revision}");
    }
    mesh.handle(Command::Heartbeat(rig.mesh.heartbeat(5, CLOCK.get().wall)));
    assert_eq!(fresh(), before.map(|before| UnixTime(before.0 + 60)));
}

#[test]
fn an_update_is_answered_when_every_worker_judges_by_it_and_not_before() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
    let held = || handle.held().map(|held| held.manifest.generation.revision);
    assert_eq!(held(), Some(5));
    let (told, engine) = sync::channel();
    mesh.handle(Command::Attach(Box::new(move |update: MeshUpdate| drop(told.send(update)))));
    let first = engine.try_recv().expect("told what holds");
    assert_eq!((first.locals.len(), first.peers.len()), (1, 1));
    let (answer, mut answered) = oneshot::channel();
    mesh.handle(Command::Update(Box::new(rig.mesh.update(6, &rig.scope())), answer));
    let second = engine.try_recv().expect("told");
    assert!(second.generation > first.generation);
    mesh.handle(Command::EngineApplied(first.generation));
    assert!(answered.try_recv().is_err(), "the older generation says nothing of the newer");
    assert_eq!(held(), None, "nor is the newer claimed on a new link");
    mesh.handle(Command::EngineApplied(second.generation));
    assert_eq!(answered.try_recv().expect("answered").expect("applied").generation.revision, 6);
    assert_eq!(held(), Some(6));
}

#[tokio::test]
async fn updates_are_judged_and_written_where_no_other_task_waits_for_it() {
    let rig = Rig::new();
    let (mesh, handle) = rig.open();
    let owner = mesh.start();
    let (told, thread) = sync::channel();
    handle.attach(Box::new(move |_| told.send(std::thread::current().id()).unwrap_or_default())).await;
    let answer = handle.update(rig.mesh.update(5, &rig.scope())).await;
    handle.view().wait_for(Option::is_some).await.expect("published");
    assert_ne!(thread.recv().expect("told"), std::thread::current().id());
    handle.engine_applied(1).await;
    assert_eq!(answer.await.expect("answered").expect("accepted").generation.revision, 5);
    drop(handle);
    owner.await.expect("ends with the last handle");
}

#[test]
fn an_update_that_cannot_be_written_is_in_force_and_not_acknowledged() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let instance = *scope.peers.keys().next().expect("a peer");
    let revoked = rig.mesh.scope(POLICY, vec![revocation(RevocationTarget::Instance(instance))]);
    std::fs::remove_dir_all(rig.path()).expect("the disk is gone");
    let refusal = give(&mut mesh, rig.mesh.update(6, &revoked)).expect_err("a restart would not know of it");
    assert!(refusal.detail.contains("revocations"), "{refusal}");
    assert!(peers(&handle).is_empty());
    assert!(handle.held().is_none(), "and a new link does not claim it");
}

#[test]
fn a_peer_whose_certificate_ends_leaves_without_a_word_from_anyone() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
    pass(DAY + 1);
    mesh.tick(false);
    assert!(peers(&handle).is_empty());
    let view = handle.view().borrow().clone().expect("known");
    assert!(view.own.is_empty(), "and this node's own certificate is of no use any more");
}

#[test]
fn what_a_clock_that_ran_ahead_had_ended_is_back_once_the_clock_is_right() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    give(&mut mesh, rig.mesh.update(5, &rig.scope())).expect("accepted");
    let set = |wall: u64| CLOCK.set(Reading { wall: UnixTime(wall), ..CLOCK.get() });
    set(NOW.0 + 30 * DAY);
    mesh.tick(false);
    assert!(peers(&handle).is_empty(), "closed while the clock says so");
    assert!(handle.view().borrow().as_ref().is_some_and(|view| view.own.is_empty()));
    set(NOW.0 + 1);
    mesh.tick(false);
    assert_eq!(peers(&handle), [CALLER]);
    assert!(handle.view().borrow().as_ref().is_some_and(|view| !view.own.is_empty()));
}

#[test]
fn when_audit_mode_ends_on_its_date_those_it_let_in_leave_without_a_word_from_anyone() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let date = time::OffsetDateTime::from_unix_timestamp(NOW.0.try_into().expect("in range")).expect("in range").date();
    let (allow, audit) =
        ("allow:\n  reads: { from: [shop/web-frontend], ports: [api] }\n", "audit: { until: \"DATE\", ports: all }\n");
    let policy = POLICY.replace(allow, &audit.replace("DATE", &date.to_string()));
    give(&mut mesh, rig.mesh.update(5, &rig.mesh.scope(&policy, Vec::new()))).expect("accepted");
    let (told, engine) = sync::channel();
    mesh.handle(Command::Attach(Box::new(move |update: MeshUpdate| drop(told.send(update)))));
    assert_eq!(engine.try_recv().expect("told what holds").peers.len(), 1);
    mesh.tick(false);
    assert!(engine.try_recv().is_err(), "nothing has changed");
    let ends = handle.view().borrow().as_ref().and_then(|view| view.knowledge.policy.next_date(NOW)).expect("a date");
    pass(ends.0 - NOW.0);
    mesh.tick(false);
    assert!(engine.try_recv().expect("told anew").peers.is_empty());
    assert!(peers(&handle).is_empty());
    mesh.tick(false);
    assert!(engine.try_recv().is_err(), "once");
}

#[test]
fn a_node_awaits_its_rules_until_what_it_was_told_was_chosen_for_its_instance() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let mut early = rig.scope();
    let key = ObjectKey { kind: ObjectKind::Instances, name: String::new() };
    if let Some(object) = early.objects.get_mut(&key) {
        object.content = encode_instances([InstanceId::from_bytes([8; 16])]);
    }
    let awaits = || handle.view().borrow().as_ref().map(|view| view.awaits_rules());
    assert_eq!(awaits(), None);
    give(&mut mesh, rig.mesh.update(5, &early)).expect("accepted");
    assert_eq!(awaits(), Some(true), "chosen for another instance");
    early.objects.remove(&key);
    give(&mut mesh, rig.mesh.update(6, &early)).expect("accepted");
    assert_eq!(awaits(), Some(true), "chosen for none");
    give(&mut mesh, rig.mesh.update(7, &rig.scope())).expect("accepted");
    assert_eq!(awaits(), Some(false));
    drop((mesh, handle));
    let (_mesh, handle) = rig.open();
    assert!(handle.view().borrow().as_ref().is_some_and(|view| !view.awaits_rules()), "nor after a restart");
}

#[test]
fn a_peer_that_policy_does_not_declare_is_not_let_in_by_a_rule_for_its_namespace() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let policy = POLICY.replace("kind: Service\nname: shop/web-frontend\n---\n", "");
    let policy = policy.replace("from: [shop/web-frontend]", "from: [shop/*]");
    let mut scope = rig.mesh.scope(&policy, Vec::new());
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    assert_eq!(peers(&handle), [CALLER], "declared or not: a node is not told of all who are");
    let caller: WorkloadName = CALLER.parse().expect("name");
    let key = ObjectKey { kind: ObjectKind::Undeclared, name: "0".into() };
    scope.objects.insert(key, Object { content: encode_workloads([&caller]), min_reader: 1 });
    let applied = give(&mut mesh, rig.mesh.update(6, &scope)).expect("accepted");
    assert_eq!(applied.refused.first().map(|record| record.refusal.reason), Some(Reason::NotLinked));
    assert!(peers(&handle).is_empty());
}

#[test]
fn hints_that_point_at_this_host_or_at_everyone_are_left_out() {
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let scope = rig.scope();
    give(&mut mesh, rig.mesh.update(5, &scope)).expect("accepted");
    let instance = *scope.peers.keys().next().expect("a peer");
    let endpoints =
        ["127.0.0.1:1", "224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1", "192.0.2.1:0", "junk", "192.0.2.1:5"];
    let hint = |instance: InstanceId| wire::PeerHint {
        instance_id: instance.as_bytes().to_vec(),
        endpoints: endpoints.map(str::to_owned).to_vec(),
    };
    mesh.handle(Command::Hints(vec![hint(instance), hint(InstanceId::from_bytes([99; 16]))]));
    let view = handle.view().borrow().clone().expect("known");
    assert_eq!(view.endpoints.len(), 1, "nobody this node knows nothing of");
    assert_eq!(view.endpoints.get(&instance), Some(&vec!["192.0.2.1:5".parse().expect("address")]));
    drop(view);
    mesh.tick(false);
    drop((mesh, handle));
    let (_mesh, handle) = rig.open();
    let view = handle.view().borrow().clone().expect("known");
    assert!(view.endpoints.contains_key(&instance), "a restart knows where to dial");
}

#[test]
fn roots_that_the_next_start_would_not_find_are_not_acknowledged() {
    use prost::Message;
    let rig = Rig::new();
    let (mut mesh, handle) = rig.open();
    let second = TestMesh::new();
    let roots = [rig.mesh.root_der(), second.root_der()];
    let bundle = TrustBundle::new(rig.mesh.trust_domain(), 2, roots).expect("bundle");
    let mut scope = rig.scope();
    let key = ObjectKey { kind: ObjectKind::TrustBundle, name: String::new() };
    scope.objects.get_mut(&key).expect("bundle").content = bundle.to_wire().encode_to_vec().into();
    let (answer, mut answered) = oneshot::channel();
    mesh.handle(Command::Update(Box::new(rig.mesh.update(5, &scope)), answer));
    assert!(answered.try_recv().is_err(), "the identity on disk knows the first root only");
    assert!(handle.held().is_none(), "and a new link is told nothing else");
    assert_eq!(handle.bundle().borrow().roots().count(), 2, "though both are trusted already");
    mesh.handle(Command::BundleKept(1));
    assert!(answered.try_recv().is_err());
    mesh.handle(Command::BundleKept(2));
    assert_eq!(answered.try_recv().expect("answered").expect("accepted").generation.revision, 5);
    assert!(handle.held().is_some());
}
