//! The registry over a real store: enrolment, tokens, addresses, revocations, policy revisions.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use warren_proto::certificate::Capabilities;
use warren_proto::join_token::JoinToken;
use warren_proto::policy::SourceFile;
use warren_proto::{InstanceId, NodeId, Overlay, WorkloadName};

use super::*;
use crate::ca::{CaParameters, RequesterKey};
use crate::clock::Source;
use crate::state::records::{self, Instance, MeshSettings};
use crate::store::{Options, Seams, SledStore};

mod attestation;
mod certificates;
mod figures;
mod peers;
mod policy;
mod roots;

const START: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// What a node shows of a certificate at its link.
fn shown(certificate: &records::NodeCertificate) -> records::NodeCertificateKey {
    certificate.as_shown()
}

/// A mesh on a clock that only the test moves.
struct Mesh {
    registry: Arc<Registry>,
    following: tokio::task::JoinHandle<()>,
    time: Arc<Mutex<UnixTime>>,
    directory: tempfile::TempDir,
}

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: "bank.example".parse().expect("name"),
        overlay: Overlay {
            v6: ("fd12:3456:789a::".parse().expect("address"), 48),
            v4: Some(("10.77.0.0".parse().expect("address"), 29)),
        },
        tunnel_certificate_lifetime: 86_400,
        node_certificate_lifetime: 7 * 86_400,
        max_certificate_lifetime: 86_400,
        stale_after: 600,
    }
}

fn options(directory: &tempfile::TempDir) -> Options {
    let mut options = Options::new(directory.path());
    (options.keep_free, options.keep_free_percent, options.ballast, options.any_file_system) = (0, 0, 0, true);
    options
}

fn parameters() -> CaParameters {
    let MeshSettings { trust_domain, overlay, .. } = settings();
    CaParameters { trust_domain, coordinator: "alpha".to_owned(), overlay }
}

impl Mesh {
    async fn new() -> Self {
        Self::new_with(settings()).await
    }

    async fn new_with(settings: MeshSettings) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let authority = Authority::init(&directory.path().join("ca"), &parameters(), START).expect("ca");
        let store = SledStore::create(options(&directory), Seams::default()).expect("store");
        let mesh = Self::over(directory, store, authority, START).await;
        mesh.registry.create_mesh(&Caller::new("test"), settings).await.expect("mesh");
        mesh
    }

    async fn over(directory: tempfile::TempDir, store: SledStore, authority: Authority, now: UnixTime) -> Self {
        let time = Arc::new(Mutex::new(now));
        let source: Source = {
            let time = Arc::clone(&time);
            Arc::new(move || *time.lock().expect("time"))
        };
        let clock = WallClock::open(&directory.path().join("clock"), source).expect("clock");
        let advertised = vec!["192.0.2.1:8443".to_owned()];
        let registry = Registry::open(Arc::new(store), authority, Arc::new(clock), advertised).await.expect("registry");
        let following = {
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { registry.follow().await })
        };
        Self { registry, following, time, directory }
    }

    /// Stops as a process would, and starts again on what lies on the disk.
    async fn restart(self) -> Self {
        let Self { registry, following, time, directory } = self;
        let now = *time.lock().expect("time");
        following.abort();
        let _ = following.await;
        drop(registry);
        let store = SledStore::open(options(&directory), Seams::default()).expect("store");
        let trust = super::read_trust(&store).await.expect("trust");
        let authority = Authority::open(&directory.path().join("ca"), &parameters(), trust.as_ref(), now).expect("ca");
        Self::over(directory, store, authority, now).await
    }

    fn pass(&self, by: Duration) {
        let mut time = self.time.lock().expect("time");
        *time = time.plus(by);
    }

    async fn token(&self, uses: u32, workloads: &[&str]) -> JoinToken {
        let new = NewJoinToken {
            lifetime: Duration::from_secs(3600),
            uses,
            workloads: workloads.iter().map(|name| name.parse().expect("name")).collect(),
            note: String::new(),
        };
        let (_, text) = self.registry.create_join_token(&Caller::new("test"), new).await.expect("token");
        JoinToken::parse(&text).expect("token")
    }

    async fn enrol(&self, token: &JoinToken, key: &KeyPair) -> Result<EnrolledNode, Refusal> {
        self.registry
            .enrol(Enrolment {
                evidence: Evidence::JoinToken { id: token.id, secret: token.secret.clone() },
                key: requester(key),
                host_name: "host\u{7}one".to_owned(),
                from: "192.0.2.7".parse().expect("address"),
            })
            .await
    }

    async fn node(&self, workloads: &[&str]) -> NodeId {
        let token = self.token(1, workloads).await;
        self.enrol(&token, &KeyPair::generate().expect("key")).await.expect("enrolled").node.id
    }

    async fn issue(&self, node: NodeId, workload: &str, keys: &Keys, instance: Option<InstanceId>) -> Issued {
        self.registry
            .issue_tunnel(
                TunnelRequest {
                    node,
                    workload: workload.parse().expect("name"),
                    instance,
                    key: requester(&keys.certificate),
                    tunnel_key: keys.tunnel,
                    capabilities: Capabilities::NONE,
                },
                &|_| Ok(()),
            )
            .await
    }
}

type Issued = Result<Instance, Refusal>;

struct Keys {
    certificate: KeyPair,
    tunnel: [u8; 32],
}

impl Keys {
    fn new() -> Self {
        let secret = x25519_dalek::StaticSecret::from(rand::random::<[u8; 32]>());
        Self {
            certificate: KeyPair::generate().expect("key"),
            tunnel: x25519_dalek::PublicKey::from(&secret).to_bytes(),
        }
    }
}

fn requester(key: &KeyPair) -> RequesterKey {
    let request = CertificateParams::default().serialize_request(key).expect("request");
    RequesterKey::from_csr(request.der()).expect("checked")
}

fn reason<T: fmt::Debug>(result: Result<T, Refusal>) -> Reason {
    result.expect_err("refused").reason
}

#[tokio::test]
async fn a_token_is_good_for_one_node_and_a_repeated_request_of_that_node_is_answered_alike() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    let key = KeyPair::generate().expect("key");
    let first = mesh.enrol(&token, &key).await.expect("enrolled");
    let again = mesh.enrol(&token, &key).await.expect("the answer was lost");
    assert_eq!(first.node.id, again.node.id);
    assert_eq!(first.node.host_name, "hostone");
    assert_eq!(mesh.registry.state().nodes.len(), 1);
    assert_eq!(reason(mesh.enrol(&token, &KeyPair::generate().expect("key")).await), Reason::TokenUsed);
}

#[tokio::test]
async fn of_fifty_simultaneous_uses_of_a_token_exactly_one_succeeds() {
    let mesh = Arc::new(Mesh::new().await);
    let token = Arc::new(mesh.token(1, &["shop/web"]).await);
    let uses: Vec<_> = (0..50)
        .map(|_| {
            let (mesh, token) = (Arc::clone(&mesh), Arc::clone(&token));
            tokio::spawn(async move { mesh.enrol(&token, &KeyPair::generate().expect("key")).await })
        })
        .collect();
    let mut enrolled = 0;
    for attempt in uses {
        match attempt.await.expect("task") {
            Ok(_) => enrolled += 1,
            Err(refusal) => assert_eq!(refusal.reason, Reason::TokenUsed),
        }
    }
    assert_eq!((enrolled, mesh.registry.state().nodes.len()), (1, 1));
}

#[tokio::test]
async fn a_token_that_ended_or_has_another_secret_or_was_taken_back_lets_nobody_in() {
    let mesh = Mesh::new().await;
    let key = || KeyPair::generate().expect("key");
    let token = mesh.token(5, &["shop/web"]).await;
    let guessed = JoinToken { secret: warren_proto::join_token::JoinSecret::from_bytes([0; 32]), ..token.clone() };
    assert_eq!(reason(mesh.enrol(&guessed, &key()).await), Reason::TokenUnknown);
    mesh.pass(Duration::from_secs(3600));
    assert_eq!(reason(mesh.enrol(&token, &key()).await), Reason::TokenExpired);
    let token = mesh.token(5, &["shop/web"]).await;
    mesh.registry.delete_join_token(&Caller::new("test"), token.id, None).await.expect("deleted");
    assert_eq!(reason(mesh.enrol(&token, &key()).await), Reason::TokenUnknown);
    assert!(mesh.registry.state().nodes.is_empty());
}

#[tokio::test]
async fn a_key_enrols_one_node_only() {
    let mesh = Mesh::new().await;
    let key = KeyPair::generate().expect("key");
    mesh.enrol(&mesh.token(1, &["shop/web"]).await, &key).await.expect("enrolled");
    let other = mesh.token(1, &["bank/api"]).await;
    assert_eq!(reason(mesh.enrol(&other, &key).await), Reason::KeyInUse);
}

#[tokio::test]
async fn a_revoked_node_does_not_come_back_by_the_token_and_key_that_it_enrolled_with() {
    let mesh = Mesh::new().await;
    let key = KeyPair::generate().expect("key");
    let token = mesh.token(2, &["shop/web"]).await;
    let enrolled = mesh.enrol(&token, &key).await.expect("enrolled");
    mesh.registry.revoke(&Caller::new("test"), Revoke::Node(enrolled.node.id)).await.expect("revoked");
    assert_eq!(reason(mesh.enrol(&token, &key).await), Reason::KeyInUse);
    let state = mesh.registry.state();
    assert!(state.nodes.len() == 1 && state.nodes.get(&enrolled.node.id).is_some_and(|node| node.revoked_at.is_some()));
}

#[tokio::test]
async fn a_node_gets_no_certificate_for_an_identity_that_its_token_did_not_allow() {
    let mesh = Mesh::new().await;
    let node = mesh.node(&["shop/web"]).await;
    assert_eq!(reason(mesh.issue(node, "bank/api", &Keys::new(), None).await), Reason::IdentityNotAllowed);
    let stranger = NodeId::from_bytes([9; 16]);
    assert_eq!(reason(mesh.issue(stranger, "shop/web", &Keys::new(), None).await), Reason::NodeUnknown);
}

#[tokio::test]
async fn an_instance_keeps_its_address_and_two_certificates_through_renewals() {
    let mesh = Mesh::new().await;
    let node = mesh.node(&["shop/web"]).await;
    let (first_keys, second, third) = (Keys::new(), Keys::new(), Keys::new());
    let first = mesh.issue(node, "shop/web", &first_keys, None).await.expect("issued");
    let lost = mesh.issue(node, "shop/web", &first_keys, None).await.expect("the answer was lost");
    assert_eq!(first, lost);
    let renewed = mesh.issue(node, "shop/web", &second, Some(first.id)).await.expect("renewed");
    assert_eq!((renewed.id, renewed.addresses, renewed.certificates.len()), (first.id, first.addresses, 2));
    let renewed = mesh.issue(node, "shop/web", &third, Some(first.id)).await.expect("renewed");
    let keys: Vec<_> = renewed.certificates.iter().map(|certificate| certificate.tunnel_key.0).collect();
    assert_eq!(keys, [third.tunnel, second.tunnel]);
    assert_eq!(reason(mesh.issue(node, "shop/web", &first_keys, Some(first.id)).await), Reason::KeyInUse);
}

#[tokio::test]
async fn an_instance_of_another_node_is_not_renewed_nor_its_keys_taken() {
    let mesh = Mesh::new().await;
    let (victim, thief) = (mesh.node(&["shop/web"]).await, mesh.node(&["shop/web"]).await);
    let keys = Keys::new();
    let instance = mesh.issue(victim, "shop/web", &keys, None).await.expect("issued");
    assert_eq!(reason(mesh.issue(thief, "shop/web", &Keys::new(), Some(instance.id)).await), Reason::NotFound);
    let stolen = Keys { tunnel: keys.tunnel, ..Keys::new() };
    assert_eq!(reason(mesh.issue(thief, "shop/web", &stolen, None).await), Reason::KeyInUse);
    let stolen = Keys { certificate: keys.certificate, ..Keys::new() };
    assert_eq!(reason(mesh.issue(thief, "shop/web", &stolen, None).await), Reason::KeyInUse);
    let low = Keys { tunnel: [0; 32], ..Keys::new() };
    assert_eq!(reason(mesh.issue(thief, "shop/web", &low, None).await), Reason::KeyLowOrder);
}

#[tokio::test]
async fn addresses_are_unique_and_come_back_only_after_their_quarantine() {
    let mesh = Mesh::new().await;
    let node = mesh.node(&["shop/web"]).await;
    // A /29 has five addresses to give: .2 to .6.
    let mut instances = Vec::new();
    for _ in 0..5 {
        instances.push(mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued"));
    }
    let addresses: BTreeSet<_> = instances.iter().flat_map(|instance| instance.addresses.iter()).collect();
    assert_eq!(addresses.len(), 10);
    assert!(addresses.iter().all(|address| settings().overlay.contains(*address)));
    assert_eq!(reason(mesh.issue(node, "shop/web", &Keys::new(), None).await), Reason::AddressesExhausted);

    let caller = Caller::new("test");
    let gone = instances[2].id;
    mesh.registry.revoke(&caller, Revoke::Instance(gone)).await.expect("revoked");
    mesh.registry.forget_instance(&Caller::new("test"), gone, None).await.expect("forgotten");
    assert_eq!(reason(mesh.issue(node, "shop/web", &Keys::new(), None).await), Reason::AddressesExhausted);
    mesh.pass(DAY + Duration::from_secs(120));
    let next = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");
    assert_eq!(next.addresses.v4, instances[2].addresses.v4);
    assert_ne!(next.addresses.v6, instances[2].addresses.v6);
}

#[tokio::test]
async fn a_revoked_node_or_instance_gets_no_certificate_and_an_identity_only_new_ones() {
    let mesh = Mesh::new().await;
    let caller = || Caller::new("test");
    let node = mesh.node(&["shop/web"]).await;
    let instance = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");
    let state = mesh.registry.state();
    assert!(state.peer_record(&instance, mesh.registry.now()).is_some());

    // Within the second of its issue.
    mesh.registry.revoke(&caller(), Revoke::Identity("shop/web".parse().expect("name"))).await.expect("revoked");
    let state = mesh.registry.state();
    assert!(state.peer_record(&instance, mesh.registry.now()).is_none(), "the old certificate is not handed out");
    assert_eq!(reason(mesh.issue(node, "shop/web", &Keys::new(), Some(instance.id)).await), Reason::Revoked);
    mesh.pass(Duration::from_secs(1));
    let renewed = mesh.issue(node, "shop/web", &Keys::new(), Some(instance.id)).await.expect("renewed");
    let record = mesh.registry.state().peer_record(&renewed, mesh.registry.now()).expect("record");
    assert_eq!(record.chains.len(), 1, "of the two only the new one counts");

    mesh.registry.revoke(&caller(), Revoke::Instance(instance.id)).await.expect("revoked");
    assert_eq!(reason(mesh.issue(node, "shop/web", &Keys::new(), Some(instance.id)).await), Reason::Revoked);
    mesh.registry.revoke(&caller(), Revoke::Node(node)).await.expect("revoked");
    assert_eq!(reason(mesh.issue(node, "shop/web", &Keys::new(), None).await), Reason::NodeRevoked);
    let again = mesh.registry.revoke(&caller(), Revoke::Node(node)).await.expect("as before");
    assert_eq!(mesh.registry.state().revocations.len(), 3);
    assert_eq!(again.revoked_at, mesh.registry.now());
}

#[tokio::test]
async fn an_ended_node_renews_with_its_own_key_for_a_week_and_not_after() {
    let mesh = Mesh::new().await;
    let key = KeyPair::generate().expect("key");
    let token = mesh.token(1, &["shop/web"]).await;
    let node = mesh.enrol(&token, &key).await.expect("enrolled").node;
    let ends = shown(&node.certificate);
    let other = KeyPair::generate().expect("key");
    mesh.pass(8 * DAY);
    assert_eq!(
        reason(mesh.registry.renew_node(node.id, ends, &requester(&other), &|_| Ok(())).await),
        Reason::RenewalTooLate
    );
    let renewed = mesh.registry.renew_node(node.id, ends, &requester(&key), &|_| Ok(())).await.expect("renewed");
    assert!(renewed.node.certificate.not_after > mesh.registry.now());
    mesh.pass(15 * DAY);
    let ends = shown(&renewed.node.certificate);
    assert_eq!(
        reason(mesh.registry.renew_node(node.id, ends, &requester(&key), &|_| Ok(())).await),
        Reason::RenewalTooLate
    );
}

#[tokio::test]
async fn a_superseded_certificate_that_has_ended_renews_nothing() {
    let mesh = Mesh::new().await;
    let (old, new, thief) = (KeyPair::generate(), KeyPair::generate(), KeyPair::generate());
    let (old, new, thief) = (old.expect("key"), new.expect("key"), thief.expect("key"));
    let node = mesh.enrol(&mesh.token(1, &["shop/web"]).await, &old).await.expect("enrolled").node;
    mesh.pass(4 * DAY);
    let present = mesh.registry.renew_node(node.id, shown(&node.certificate), &requester(&new), &|_| Ok(())).await;
    let present = present.expect("renewed").node.certificate;
    mesh.registry.note_shown(node.id, shown(&present)).await.expect("it has the new one");
    mesh.pass(4 * DAY);
    // Whoever has the old key has what ended a day ago; the node itself has a certificate in date.
    let ended = shown(&node.certificate);
    assert!(ended.not_after < mesh.registry.now() && mesh.registry.now() < present.not_after);
    for key in [&thief, &old] {
        assert_eq!(
            reason(mesh.registry.renew_node(node.id, ended, &requester(key), &|_| Ok(())).await),
            Reason::RenewalTooLate
        );
    }
    mesh.registry
        .renew_node(node.id, shown(&present), &requester(&thief), &|_| Ok(()))
        .await
        .expect("any key while in date");
}

#[tokio::test]
async fn a_renewal_whose_answer_was_lost_leaves_the_certificate_before_its_week() {
    let mesh = Mesh::new().await;
    let (held, lost, again) = (KeyPair::generate(), KeyPair::generate(), KeyPair::generate());
    let (held, lost, again) = (held.expect("key"), lost.expect("key"), again.expect("key"));
    let node = mesh.enrol(&mesh.token(1, &["shop/web"]).await, &held).await.expect("enrolled").node;
    let certificate = shown(&node.certificate);
    mesh.pass(4 * DAY);
    // Twice: of the first answer and of the second nothing arrives.
    for key in [&lost, &again] {
        mesh.registry.renew_node(node.id, certificate, &requester(key), &|_| Ok(())).await.expect("its answer is lost");
    }
    mesh.registry.note_shown(node.id, certificate).await.expect("it comes with the one before");
    mesh.pass(9 * DAY);
    let refused = mesh.registry.renew_node(node.id, certificate, &requester(&lost), &|_| Ok(())).await;
    assert_eq!(reason(refused), Reason::RenewalTooLate, "an ended certificate renews its own key alone");
    let renewed =
        mesh.registry.renew_node(node.id, certificate, &requester(&held), &|_| Ok(())).await.expect("renewed");
    assert!(renewed.node.certificate.not_after > mesh.registry.now());
    let same = mesh.registry.renew_node(node.id, certificate, &requester(&held), &|_| Ok(())).await.expect("again");
    assert!(same.node.certificate.not_after >= renewed.node.certificate.not_after, "and the same once more");
    mesh.pass(2 * DAY);
    let late = mesh.registry.renew_node(node.id, certificate, &requester(&held), &|_| Ok(())).await;
    late.expect("the newest certificate's key is its own");
}

#[tokio::test]
async fn a_revocation_lasts_as_long_as_what_it_revokes_could_still_be_used() {
    let mesh = Mesh::new().await;
    let node = mesh.enrol(&mesh.token(1, &["shop/web"]).await, &KeyPair::generate().expect("key")).await;
    let certificate = node.expect("enrolled").node.certificate;
    let (issuer_key_id, serial) = (certificate.issuer_key_id, certificate.serial);
    let revoke = |what| async { mesh.registry.revoke(&Caller::new("test"), what).await.expect("revoked").expires_at };
    let of_certificate = revoke(Revoke::Certificate { issuer_key_id: issuer_key_id.clone(), serial }).await;
    assert!(of_certificate >= certificate.not_after.plus(RENEWAL_GRACE), "an ended certificate still renews itself");
    let authority = mesh.registry.authority();
    let of_issuer = revoke(Revoke::Issuer(issuer_key_id)).await;
    assert!(of_issuer >= authority.issuer_certificate().not_after(), "its key signs until then");
    let root = authority.root_certificate();
    let of_root = revoke(Revoke::Issuer(root.key_id().as_bytes().to_vec())).await;
    assert!(of_root >= root.not_after());
}

#[tokio::test]
async fn a_restart_finds_everything_as_it_was_and_the_audit_log_whole() {
    let mesh = Mesh::new().await;
    let node = mesh.node(&["shop/web"]).await;
    let instance = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");
    mesh.registry.apply_policy(&Caller::new("test"), set(POLICY)).await.expect("applied");
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey([7; 32])).await.expect("revoked");
    let before = mesh.registry.state();
    let mesh = mesh.restart().await;
    let after = mesh.registry.state();
    assert_eq!(after.generation(), before.generation());
    assert_eq!(after.instances.get(&instance.id).map(|stored| stored.value.clone()), Some(instance));
    assert_eq!(after.instances_on(node).count(), 1);
    assert_eq!((after.policy.number, after.policy.objects.len()), (1, before.policy.objects.len()));
    assert_eq!(after.revoked, before.revoked);
    assert_eq!(after.last_v4, before.last_v4);
    assert!(crate::audit::verify(&**mesh.registry.store()).await.is_ok());
}

#[tokio::test]
async fn the_sweep_forgets_what_has_ended_and_nothing_else() {
    let mesh = Mesh::new().await;
    let token = mesh.token(2, &["shop/web"]).await;
    let node = mesh.enrol(&token, &KeyPair::generate().expect("key")).await.expect("enrolled").node.id;
    let ended = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey([7; 32])).await.expect("revoked");
    mesh.pass(DAY);
    let live = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");
    mesh.registry.sweep().await.expect("swept");
    assert_eq!(mesh.registry.state().instances.len(), 2, "an ended instance stays listed for a day");
    mesh.pass(DAY);
    while mesh.registry.sweep().await.expect("swept") {}
    let state = mesh.registry.state();
    assert!(state.instances.get(&ended.id).is_none() && state.instances.get(&live.id).is_some());
    assert!(state.tokens.is_empty());
    assert_eq!((state.nodes.len(), state.revocations.len()), (1, 1), "a node certificate may still carry the key");
    mesh.pass(6 * DAY);
    while mesh.registry.sweep().await.expect("swept") {}
    assert!(mesh.registry.state().revocations.is_empty());
}

#[tokio::test]
async fn the_feed_is_trimmed_and_everything_is_still_there_after_a_restart() {
    let mesh = Mesh::new().await;
    mesh.node(&["shop/web"]).await;
    mesh.registry.trim_feed(100).await.expect("nothing to do yet");
    assert_eq!(mesh.registry.store().health().compacted, Revision(0));
    mesh.registry.trim_feed(1).await.expect("trimmed");
    let health = mesh.registry.store().health();
    assert_eq!(health.compacted.0, health.revision.0 - 1);
    mesh.node(&["shop/web"]).await;
    let mesh = mesh.restart().await;
    assert_eq!(mesh.registry.state().nodes.len(), 2);
}

const POLICY: &str = "\
kind: Set
name: shop-team
owns: [shop, bank, mesh]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: shop
---
kind: Namespace
name: bank
---
kind: Service
name: shop/web
---
kind: Service
name: bank/api
ports:
  api: { port: 8080, protocol: tcp }
allow:
  desk: { from: [shop/web], ports: [api] }
";

fn set(text: &str) -> Submission {
    let files = vec![SourceFile { name: "policy.yaml".to_owned(), text: text.to_owned() }];
    Submission { files, allow_delete: 0, if_match: None, dry_run: false }
}

#[tokio::test]
async fn a_set_is_applied_whole_or_not_at_all() {
    let mesh = Mesh::new().await;
    let caller = || Caller::new("test");
    let (web, api): (WorkloadName, WorkloadName) =
        ("shop/web".parse().expect("name"), "bank/api".parse().expect("name"));
    let dry = Submission { dry_run: true, ..set(POLICY) };
    let applied = mesh.registry.apply_policy(&caller(), dry).await.expect("dry run");
    assert_eq!((applied.number, applied.committed, applied.counts.added), (0, false, 6));
    assert_eq!(mesh.registry.state().policy.number, 0);

    let applied = mesh.registry.apply_policy(&caller(), set(POLICY)).await.expect("applied");
    assert_eq!((applied.number, applied.committed), (1, true));
    assert!(mesh.registry.state().policy.linked(&web, &api, START));
    let same = mesh.registry.apply_policy(&caller(), set(POLICY)).await.expect("nothing to do");
    assert_eq!((same.number, same.committed), (1, false));

    let broken = POLICY.replace("from: [shop/web]", "from: [shop/wob]");
    let refused = mesh.registry.apply_policy(&caller(), set(&broken)).await.expect_err("refused");
    assert_eq!(refused.refusal.reason, Reason::PolicyInvalid);
    assert!(refused.diagnostics.iter().any(|found| found.line > 1), "{:?}", refused.diagnostics);

    let http = POLICY
        .replace("protocol: tcp", "protocol: http")
        .replace("ports: [api] }", "ports: [api], http: [{ methods: [GET] }] }");
    let refused = mesh.registry.apply_policy(&caller(), set(&http)).await.expect_err("refused");
    assert_eq!(refused.refusal.reason, Reason::UnenforceablePolicy);

    let other = POLICY.replace("name: bank.example", "name: other.example");
    let refused = mesh
        .registry
        .apply_policy(&caller(), Submission { allow_delete: 1, ..set(&other) })
        .await
        .expect_err("refused");
    assert_eq!(refused.refusal.reason, Reason::PolicyInvalid);
    assert_eq!(mesh.registry.state().policy.number, 1);
}

#[tokio::test]
async fn an_apply_over_a_newer_revision_or_with_too_many_deletions_is_refused() {
    let mesh = Mesh::new().await;
    let caller = || Caller::new("test");
    mesh.registry.apply_policy(&caller(), set(POLICY)).await.expect("applied");
    let stale = Submission { if_match: Some(0), ..set(POLICY) };
    let refused = mesh.registry.apply_policy(&caller(), stale).await.expect_err("refused");
    assert_eq!(refused.refusal.reason, Reason::Conflict);

    let without_api: String = POLICY.split("---\nkind: Service\nname: bank/api").next().expect("text").to_owned();
    let refused = mesh.registry.apply_policy(&caller(), set(&without_api)).await.expect_err("refused");
    assert_eq!(refused.refusal.reason, Reason::DeletesTooMuch);
    let allowed = Submission { allow_delete: 1, ..set(&without_api) };
    let applied = mesh.registry.apply_policy(&caller(), allowed).await.expect("applied");
    assert_eq!((applied.number, applied.counts.removed), (2, 1));

    let back = mesh.registry.rollback_policy(&caller(), 1, Some(2), false).await.expect("back");
    assert_eq!((back.number, back.counts.added, back.committed), (3, 1, true));
    let state = mesh.registry.state();
    assert_eq!(state.policy_revisions.len(), 3);
    let (first, third) = (state.policy_at(1).expect("kept"), state.policy_at(3).expect("kept"));
    assert_eq!(first.len(), third.len());
    let unknown = mesh.registry.rollback_policy(&caller(), 9, None, false).await.expect_err("refused");
    assert_eq!(unknown.refusal.reason, Reason::NotFound);
}

#[tokio::test]
async fn of_two_simultaneous_applies_one_wins_and_its_revision_is_whole() {
    let mesh = Arc::new(Mesh::new().await);
    let attempts: Vec<_> = (0..8)
        .map(|port| {
            let mesh = Arc::clone(&mesh);
            let text = POLICY.replace("port: 8080", &format!("port: {}", 9000 + port));
            tokio::spawn(async move {
                let submission = Submission { if_match: Some(0), ..set(&text) };
                mesh.registry.apply_policy(&Caller::new("test"), submission).await
            })
        })
        .collect();
    let mut won = 0;
    for attempt in attempts {
        match attempt.await.expect("task") {
            Ok(applied) => won += usize::from(applied.committed),
            Err(refused) => assert_eq!(refused.refusal.reason, Reason::Conflict),
        }
    }
    let state = mesh.registry.state();
    assert_eq!((won, state.policy.number), (1, 1));
    let kept = state.policy_at(1).expect("whole");
    assert_eq!(kept.len(), state.policy.objects.len());
}

fn admin_token(id: &str, name: &str, first_run: bool) -> crate::state::records::AdminToken {
    crate::state::records::AdminToken {
        id: id.to_owned(),
        name: name.to_owned(),
        secret_sha256: crate::state::records::Hex32([1; 32]),
        role: warren_proto::admin::Role::CaAdmin,
        namespaces: Vec::new(),
        created_at: START,
        expires_at: START.plus(DAY),
        created_by: "test".to_owned(),
        first_run,
    }
}

#[tokio::test]
async fn the_first_run_token_is_exchanged_once() {
    let mesh = Mesh::new().await;
    let caller = || Caller::new("test");
    let first = "00000000000000aa";
    mesh.registry.create_admin_token(&caller(), admin_token(first, "first-run", true), None).await.expect("made");
    let new = admin_token("00000000000000bb", "admin", false);
    mesh.registry.create_admin_token(&caller(), new, Some(first)).await.expect("exchanged");
    let late = admin_token("00000000000000cc", "late", false);
    let refused = mesh.registry.create_admin_token(&caller(), late, Some(first)).await;
    assert_eq!(reason(refused), Reason::NotAuthenticated);
    assert_eq!(mesh.registry.state().admin_tokens.len(), 1);
}

#[tokio::test]
async fn of_two_administrators_who_take_back_each_others_token_one_remains() {
    let mesh = Mesh::new().await;
    let caller = Caller::coordinator;
    let (one, two, unclaimed) = ("00000000000000aa", "00000000000000bb", "00000000000000cc");
    for (id, name, first_run) in [(one, "one", false), (two, "two", false), (unclaimed, "first-run", true)] {
        mesh.registry.create_admin_token(&caller(), admin_token(id, name, first_run), None).await.expect("made");
    }
    let (first, second) = (caller(), caller());
    let both = tokio::join!(
        mesh.registry.delete_admin_token(&first, one, None),
        mesh.registry.delete_admin_token(&second, two, None)
    );
    let ((Ok(()), Err(refused)) | (Err(refused), Ok(()))) = both else { panic!("{both:?}") };
    assert_eq!(refused.reason, Reason::Conflict);
    assert_eq!(mesh.registry.state().admin_tokens.len(), 2, "the unclaimed one is nobody's");
}

#[tokio::test]
async fn the_key_of_a_node_that_enrols_again_is_remembered_as_long_as_its_new_certificate() {
    let mesh = Mesh::new().await;
    let (token, key) = (mesh.token(1, &["shop/web"]).await, KeyPair::generate().expect("key"));
    mesh.enrol(&token, &key).await.expect("enrolled");
    mesh.pass(Duration::from_secs(1800));
    let again = mesh.enrol(&token, &key).await.expect("its answer was lost").node;
    let state = mesh.registry.state();
    let used: Vec<_> = state.keys.iter().map(|(_, used)| used.until).collect();
    assert_eq!(used, [again.certificate.not_after]);
}

#[tokio::test]
async fn a_request_that_is_repeated_after_it_was_done_is_told_so() {
    let mesh = Mesh::new().await;
    let new = || NewJoinToken {
        lifetime: Duration::from_secs(3600),
        uses: 1,
        workloads: vec!["shop/web".parse().expect("name")],
        note: String::new(),
    };
    let caller = Caller::new("admin:one");
    mesh.registry.create_join_token(&caller, new()).await.expect("made");
    mesh.pass(Duration::from_secs(5));
    let refused = mesh.registry.create_join_token(&caller, new()).await.expect_err("not twice");
    assert_eq!(refused.reason, Reason::Conflict);
    assert!(refused.detail.contains("made before"), "{refused}");
    assert_eq!(mesh.registry.state().tokens.len(), 1);
}
