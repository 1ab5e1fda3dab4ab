//! The root's replacement: who must be ready, what is issued when, and what a crash between disk and store leaves.

use warren_proto::admin::{NotReadyNode, RotationStage, RotationStep as Step};
use warren_proto::control_trust::{Purpose, anchor};

use super::*;
use crate::ca::rotation::TrustRoots;
use crate::registry::Rotate;

impl Mesh {
    async fn rotate_despite(&self, step: Step, missing: &[NotReadyNode], force: bool) -> Result<TrustRoots, Refusal> {
        let missing = |_: &State, _: &TrustRoots, _: UnixTime| missing.to_vec();
        self.registry.rotate(&Caller::new("test"), Rotate { step, force, missing: &missing }).await
    }

    async fn rotate(&self, step: Step) -> Result<TrustRoots, Refusal> {
        self.rotate_despite(step, &[], false).await
    }

    /// Which of the trusted roots the newest certificate of `instance` stands under.
    fn root_of(&self, instance: &Instance) -> Vec<u8> {
        let (authority, now) = (self.registry.authority(), self.registry.now());
        let chain: Vec<_> = instance.certificates[0].chain.iter().map(|der| der.0.to_vec()).collect();
        let chain = warren_proto::certificate::Chain::new(chain.iter().map(Vec::as_slice)).expect("chain");
        let leaf = warren_proto::certificate::TunnelCertificate::parse(chain.leaf()).expect("leaf");
        let path = anchor(leaf.leaf(), chain, authority.bundle(), Purpose::Tunnel, now).expect("trusted");
        path.authorities().last().expect("root").der().to_vec()
    }

    fn later_roots(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("ca/roots")).map_or(0, Iterator::count)
    }
}

fn node_that_waits() -> NotReadyNode {
    NotReadyNode {
        id: NodeId::from_bytes([7; 16]),
        host_name: "slow-1".to_owned(),
        connected: false,
        waits_for: "its acknowledgement of the trust bundle".to_owned(),
    }
}

#[tokio::test]
async fn each_step_changes_what_is_trusted_and_what_signs_and_survives_a_restart() {
    let mesh = Mesh::new().await;
    let node = mesh.node(&["shop/web"]).await;
    let first = mesh.registry.authority().root_der().to_vec();
    let issued = mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");

    mesh.rotate(Step::Introduce).await.expect("introduced");
    let mesh = mesh.restart().await;
    let authority = mesh.registry.authority();
    assert_eq!(authority.trust().stage(), RotationStage::Introduced);
    assert_eq!((authority.root_der(), authority.bundle().roots().count()), (&*first, 2), "the first one signs");
    let second = authority.bundle().roots().last().expect("second").der().to_vec();
    let renewed = mesh.issue(node, "shop/web", &Keys::new(), Some(issued.id)).await.expect("issued");
    assert_eq!(mesh.root_of(&renewed), first);

    mesh.rotate(Step::Activate).await.expect("activated");
    assert_eq!(mesh.registry.authority().root_der(), second, "without a restart");
    let mesh = mesh.restart().await;
    let authority = mesh.registry.authority();
    assert_eq!((authority.root_der(), authority.bundle().roots().count()), (&*second, 2));
    assert_eq!(authority.bundle().renew_before(), START, "what was issued before is to be renewed");
    let renewed = mesh.issue(node, "shop/web", &Keys::new(), Some(issued.id)).await.expect("issued");
    assert_eq!(mesh.root_of(&renewed), second);
    let superseded =
        |certificate: usize| authority.trust().is_superseded(&renewed.certificates[certificate].issuer_key_id);
    assert_eq!((superseded(0), superseded(1)), (false, true));

    mesh.rotate(Step::Retire).await.expect("retired");
    assert_eq!(mesh.registry.authority().bundle().roots().count(), 1);
    assert!(!mesh.directory.path().join("ca/root/root.key").exists(), "the retired root's key is deleted");
    let mesh = mesh.restart().await;
    assert_eq!(mesh.registry.authority().root_der(), second);
    mesh.issue(node, "shop/web", &Keys::new(), Some(issued.id)).await.expect("issued");

    mesh.rotate(Step::Introduce).await.expect("and again");
    mesh.rotate(Step::Activate).await.expect("activated");
    mesh.rotate(Step::Retire).await.expect("retired");
    let mesh = mesh.restart().await;
    assert_ne!(mesh.registry.authority().root_der(), second);
    mesh.issue(node, "shop/web", &Keys::new(), Some(issued.id)).await.expect("issued");
}

#[tokio::test]
async fn a_node_that_is_not_ready_stops_the_step_by_name_and_force_is_audited() {
    let mesh = Mesh::new().await;
    let waits = [node_that_waits()];
    mesh.rotate_despite(Step::Introduce, &waits, false).await.expect("nobody need be ready for an introduction");
    let refusal = mesh.rotate_despite(Step::Activate, &waits, false).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::Conflict);
    assert!(refusal.detail.contains("slow-1") && refusal.detail.contains("acknowledgement"), "{refusal}");
    assert_eq!(mesh.registry.authority().trust().stage(), RotationStage::Introduced, "nothing was changed");
    mesh.rotate_despite(Step::Activate, &waits, true).await.expect("forced");
    let refusal = mesh.rotate_despite(Step::Retire, &waits, false).await.expect_err("refused");
    assert!(refusal.detail.contains("enrol anew"), "the consequence of force is said: {refusal}");
    mesh.rotate_despite(Step::Retire, &waits, true).await.expect("forced");
    let rows = crate::audit::page(&**mesh.registry.store(), None, 10).await.expect("audit").entries;
    let passed_over =
        |row: &crate::audit::Entry| row.new.as_ref().is_some_and(|new| new["forcedWithout"][0].is_string());
    let forced: Vec<_> = rows.iter().filter(|row| passed_over(row)).collect();
    assert_eq!(forced.len(), 2, "who was passed over stands in the log");
}

#[tokio::test]
async fn a_crash_between_the_files_and_the_commit_leaves_what_was_and_one_after_the_commit_what_is() {
    let mesh = Mesh::new().await;
    let first = mesh.registry.authority().root_der().to_vec();
    // Killed with the second root on disk and not in the store.
    mesh.registry.authority().make_root(START).expect("made");
    let mesh = mesh.restart().await;
    assert_eq!((mesh.registry.authority().root_der(), mesh.later_roots()), (&*first, 1));
    assert_eq!(
        mesh.registry.authority().bundle().roots().count(),
        1,
        "a root that the store does not name is of no account"
    );
    mesh.rotate(Step::Introduce).await.expect("introduced");
    mesh.rotate(Step::Activate).await.expect("activated");
    // Killed after the retirement was committed and before the files were deleted.
    let key = mesh.directory.path().join("ca/root/root.key");
    let certificate = mesh.directory.path().join("ca/root/root.crt");
    let kept = (std::fs::read(&key).expect("key"), std::fs::read(&certificate).expect("certificate"));
    mesh.rotate(Step::Retire).await.expect("retired");
    for (path, content) in [(&key, &kept.0), (&certificate, &kept.1)] {
        std::fs::write(path, content).expect("put back");
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    }
    let mesh = mesh.restart().await;
    assert!(!key.exists(), "the start finishes what the crash left");
    assert_ne!(mesh.registry.authority().root_der(), first);
}

#[tokio::test]
async fn a_new_intermediate_is_under_the_same_root_and_needs_its_key() {
    let mesh = Mesh::new().await;
    let before = mesh.registry.authority();
    mesh.pass(Duration::from_secs(60));
    mesh.rotate(Step::Intermediate).await.expect("rotated");
    let after = mesh.registry.authority();
    assert_ne!(after.issuer_certificate().key_id(), before.issuer_certificate().key_id());
    assert_eq!((after.root_der(), after.bundle().renew_before()), (before.root_der(), mesh.registry.now()));
    let mesh = mesh.restart().await;
    assert_eq!(mesh.registry.authority().issuer_certificate(), after.issuer_certificate(), "made once");
    std::fs::rename(mesh.directory.path().join("ca/root/root.key"), mesh.directory.path().join("away")).expect("moved");
    mesh.pass(Duration::from_secs(60));
    assert_eq!(reason(mesh.rotate(Step::Intermediate).await), Reason::Conflict);
    assert_eq!(mesh.registry.authority().issuer_certificate(), after.issuer_certificate());
}

#[tokio::test]
async fn the_key_of_a_root_that_does_not_sign_may_be_away_for_any_time() {
    let mesh = Mesh::new().await;
    mesh.rotate(Step::Introduce).await.expect("introduced");
    let second = std::fs::read_dir(mesh.directory.path().join("ca/roots")).expect("roots").next().expect("one");
    let key = second.expect("entry").path().join("root/root.key");
    let kept = std::fs::read(&key).expect("key");
    std::fs::remove_file(&key).expect("taken away");
    // Past the end of everything that was issued under it.
    mesh.pass(100 * DAY);
    let renewed = mesh.registry.authority().renewed(mesh.registry.now()).expect("renewed").expect("due");
    assert!(renewed.issuer_certificate().not_after() > mesh.registry.now(), "the root that signs issues on");
    let mesh = mesh.restart().await;
    assert_eq!(mesh.registry.authority().bundle().roots().count(), 2, "and is trusted as before");
    let node = mesh.node(&["shop/web"]).await;
    mesh.issue(node, "shop/web", &Keys::new(), None).await.expect("issued");

    let refusal = mesh.rotate(Step::Activate).await.expect_err("it could not sign");
    assert!(refusal.reason == Reason::Conflict && refusal.detail.contains("root.key"), "{refusal}");
    assert_eq!(mesh.registry.authority().trust().stage(), RotationStage::Introduced, "nothing was changed");

    std::fs::write(&key, kept).expect("put back");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let back = mesh.registry.authority().renewed(mesh.registry.now()).expect("renewed").expect("it is looked for");
    assert_eq!(back.tls_identities().count(), 2, "nodes are served under both again");
    mesh.rotate(Step::Activate).await.expect("activated");
}

/// Every file under `directory`, with its content.
fn files(directory: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("file"));
        }
    }
    found
}

#[tokio::test]
async fn asking_whether_the_second_root_could_sign_writes_nothing_and_is_refused_where_it_could_not() {
    let mesh = Mesh::new().await;
    mesh.rotate(Step::Introduce).await.expect("introduced");
    let ask = || async {
        let caller = Caller { dry_run: true, ..Caller::new("test") };
        let missing = |_: &State, _: &TrustRoots, _: UnixTime| Vec::new();
        mesh.registry.rotate(&caller, Rotate { step: Step::Activate, force: false, missing: &missing }).await
    };
    // Everything under both roots is past half of its life: whoever opens them makes it anew.
    mesh.pass(100 * DAY);
    let ca = mesh.directory.path().join("ca");
    let before = files(&ca);
    let asked = ask().await.expect("it could");
    assert_eq!(asked.stage(), RotationStage::Activated);
    assert_eq!(mesh.registry.authority().trust().stage(), RotationStage::Introduced);
    assert!(files(&ca) == before, "a question left files behind");
    let key = before.keys().find(|path| path.starts_with(ca.join("roots")) && path.ends_with("root/root.key"));
    std::fs::remove_file(key.expect("the second root's key")).expect("taken away");
    assert_eq!(reason(ask().await), Reason::Conflict, "as the step itself would be");
}
