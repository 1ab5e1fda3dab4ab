//! Enrolment by somebody else's word: which identities follow from it, once, and what an administrator's changes do to it.

use serde_json::Value;
use warren_proto::admin::AttestorSettings;
use warren_proto::reason::Reason;
use zeroize::Zeroizing;

use super::*;
use crate::attestation::tests::{ISSUER, Signer, job_claims, pod_claims};
use crate::attestation::{Presented, attest};

const HOUR: Duration = Duration::from_secs(3600);

impl Mesh {
    async fn attestor(&self, name: &str, settings: &AttestorSettings) {
        self.registry.set_attestor(&Caller::new("admin:ops"), name, settings, "", None).await.expect("attestor");
    }

    async fn register(
        &self,
        name: &str,
        attestor: &str,
        selectors: &[&str],
        workloads: &[&str],
    ) -> Result<(), Refusal> {
        let new = NewRegistration {
            name: name.to_owned(),
            attestor: attestor.to_owned(),
            selectors: selectors.iter().map(|text| text.parse().expect("selector")).collect(),
            workloads: workloads.iter().map(|name| name.parse().expect("name")).collect(),
            note: String::new(),
        };
        self.registry.create_registration(&Caller::new("admin:ops"), &new).await.map(drop)
    }

    async fn attested(&self, attestor: &str, token: &str, key: &KeyPair) -> Result<EnrolledNode, Refusal> {
        let state = self.registry.state();
        let known = attestor_named(&state, attestor)?;
        let presented = Presented::Document(Zeroizing::new(token.as_bytes().to_vec()));
        let attested = attest(attestor, known.modified, &known.settings, &presented, self.registry.now())
            .map_err(|rejected| rejected.refusal)?;
        self.registry
            .enrol(Enrolment {
                evidence: Evidence::Attested(attested),
                key: requester(key),
                host_name: "pod".to_owned(),
                from: "192.0.2.9".parse().expect("address"),
            })
            .await
    }
}

fn reason<T>(result: Result<T, Refusal>) -> Reason {
    result.err().expect("refused").reason
}

fn key() -> KeyPair {
    KeyPair::generate().expect("key")
}

/// A mesh with a cluster whose pods of `shop/web` may hold `shop/web`.
async fn mesh() -> (Mesh, Signer) {
    let (mesh, signer) = (Mesh::new().await, Signer::new("a"));
    mesh.attestor("cluster", &signer.kubernetes()).await;
    mesh.register("web", "cluster", &["k8s:ns=shop", "k8s:sa=web"], &["shop/web"]).await.expect("registration");
    (mesh, signer)
}

#[tokio::test]
async fn a_pod_becomes_a_node_with_the_registered_identities_and_leaves_a_row() {
    let (mesh, signer) = mesh().await;
    let node =
        mesh.attested("cluster", &signer.token(&pod_claims("shop", "web", "u1")), &key()).await.expect("node").node;
    assert_eq!(node.workloads, ["shop/web".parse::<WorkloadName>().expect("name")]);
    let attested = node.attested.as_ref().expect("attested");
    assert_eq!((attested.attestor.as_str(), attested.registration.as_str()), ("cluster", "web"));
    assert_eq!((attested.subject.as_str(), node.token), ("system:serviceaccount:shop:web", None));
    let page = crate::audit::page(&**mesh.registry.store(), None, 1).await.expect("log");
    let row = &page.entries[0];
    assert_eq!((row.who.as_str(), row.action.as_str()), ("attestor:cluster", "node.enrol"));
    let new = row.new.as_ref().map(Value::to_string).unwrap_or_default();
    assert!(new.contains("system:serviceaccount:shop:web") && !new.contains("eyJ"), "{new}");
}

#[tokio::test]
async fn evidence_without_a_registration_or_with_two_makes_no_node() {
    let (mesh, signer) = mesh().await;
    let other = signer.token(&pod_claims("bank", "api", "u2"));
    assert_eq!(reason(mesh.attested("cluster", &other, &key()).await), Reason::NoRegistration);
    mesh.register("first", "cluster", &["k8s:ns=shop", "k8s:sa=web", "k8s:pod=web-0"], &["bank/api"])
        .await
        .expect("made");
    let token = signer.token(&pod_claims("shop", "web", "u1"));
    let refusal = mesh.attested("cluster", &token, &key()).await.expect_err("two");
    assert_eq!(refusal.reason, Reason::RegistrationAmbiguous);
    assert!(refusal.detail.contains("first and web"), "{refusal}");
    mesh.registry.delete_registration(&Caller::new("admin:ops"), "first", None).await.expect("deleted");
    mesh.attested("cluster", &token, &key()).await.expect("one");
    assert_eq!(reason(mesh.attested("nobody", &token, &key()).await), Reason::AttestorUnknown);
    assert_eq!(reason(mesh.attested("../mesh", &token, &key()).await), Reason::AttestorUnknown);
}

#[tokio::test]
async fn a_registration_of_one_attestor_accepts_no_evidence_of_another() {
    let (mesh, signer) = mesh().await;
    let second = Signer::new("b");
    mesh.attestor("second", &second.kubernetes()).await;
    let token = second.token(&pod_claims("shop", "web", "u1"));
    assert_eq!(reason(mesh.attested("second", &token, &key()).await), Reason::NoRegistration);
    assert_eq!(reason(mesh.attested("cluster", &token, &key()).await), Reason::EvidenceSignature);
    drop(signer);
}

/// spire 1.14.6: a token redeemed twice by concurrent requests.
#[tokio::test]
async fn a_pod_shown_fifty_times_at_once_makes_one_node() {
    let (mesh, signer) = mesh().await;
    let mesh = Arc::new(mesh);
    let token = signer.token(&pod_claims("shop", "web", "u1"));
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (mesh, token) = (Arc::clone(&mesh), token.clone());
        attempts.spawn(async move { mesh.attested("cluster", &token, &key()).await.map(|enrolled| enrolled.node.id) });
    }
    let answers = attempts.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.into_iter().all(|answer| answer.is_ok() || reason(answer) == Reason::EvidenceUsed));
    assert_eq!(mesh.registry.state().nodes.len(), 1);
}

/// spire#2454: the answer is lost and the token is burnt.
#[tokio::test]
async fn a_lost_answer_is_given_again_to_the_same_key_and_to_no_other() {
    let (mesh, signer) = mesh().await;
    let (token, own) = (signer.token(&pod_claims("shop", "web", "u1")), key());
    let first = mesh.attested("cluster", &token, &own).await.expect("node").node.id;
    assert_eq!(mesh.attested("cluster", &token, &own).await.expect("again").node.id, first);
    let refreshed = signer.token(&{
        let mut claims = pod_claims("shop", "web", "u1");
        claims["jti"] = "later".into();
        claims
    });
    assert_eq!(mesh.attested("cluster", &refreshed, &own).await.expect("again").node.id, first);
    assert_eq!(reason(mesh.attested("cluster", &refreshed, &key()).await), Reason::EvidenceUsed);
    // The key is this node's: it makes no second one with other evidence, and the evidence is used all the same.
    let moved = signer.token(&pod_claims("shop", "web", "u2"));
    assert_eq!(mesh.attested("cluster", &moved, &own).await.expect("the same").node.id, first);
    assert_eq!(reason(mesh.attested("cluster", &moved, &key()).await), Reason::EvidenceUsed);
    mesh.register("api", "cluster", &["k8s:ns=bank", "k8s:sa=api"], &["bank/api"]).await.expect("made");
    let elsewhere = signer.token(&pod_claims("bank", "api", "u3"));
    assert_eq!(reason(mesh.attested("cluster", &elsewhere, &own).await), Reason::KeyInUse, "another registration's");
    assert_eq!(mesh.registry.state().nodes.len(), 1);
}

#[tokio::test]
async fn a_pod_whose_node_was_revoked_or_forgotten_does_not_come_back_with_the_same_token() {
    let (mesh, signer) = mesh().await;
    let (token, own) = (signer.token(&pod_claims("shop", "web", "u1")), key());
    let id = mesh.attested("cluster", &token, &own).await.expect("node").node.id;
    mesh.registry.revoke(&Caller::new("admin:ops"), Revoke::Node(id)).await.expect("revoked");
    assert_eq!(reason(mesh.attested("cluster", &token, &own).await), Reason::EvidenceUsed);
    assert_eq!(reason(mesh.attested("cluster", &token, &key()).await), Reason::EvidenceUsed);
    mesh.registry.forget_node(&Caller::new("admin:ops"), id, None).await.expect("forgotten");
    assert_eq!(reason(mesh.attested("cluster", &token, &key()).await), Reason::EvidenceUsed, "it could be a copy");
    mesh.pass(HOUR);
    mesh.registry.sweep().await.expect("swept");
    assert!(mesh.registry.state().evidence.is_empty(), "what is over is forgotten");
    let mut claims = pod_claims("shop", "web", "u1");
    for (name, at) in [("iat", START.0 + 3600), ("nbf", START.0 + 3600), ("exp", START.0 + 7200)] {
        claims[name] = at.into();
    }
    mesh.attested("cluster", &signer.token(&claims), &key()).await.expect("an administrator let it in again");
}

#[tokio::test]
async fn a_use_is_kept_for_as_long_as_its_node_is_registered() {
    let (mesh, signer) = mesh().await;
    mesh.attested("cluster", &signer.token(&pod_claims("shop", "web", "u1")), &key()).await.expect("node");
    mesh.pass(3 * DAY);
    mesh.registry.sweep().await.expect("swept");
    assert_eq!(mesh.registry.state().evidence.len(), 1);
    let mesh = mesh.restart().await;
    assert_eq!(mesh.registry.state().evidence.len(), 1);
    assert_eq!(mesh.registry.state().registrations.len(), 1);
}

#[tokio::test]
async fn a_jobs_token_makes_one_node_and_the_next_job_another() {
    let (mesh, signer) = (Mesh::new().await, Signer::new("a"));
    mesh.attestor("ci", &signer.oidc(ISSUER)).await;
    mesh.register("build", "ci", &["claim:repository_id=74", "claim:protected:=true"], &["ci/build"])
        .await
        .expect("made");
    let mut claims = job_claims(ISSUER);
    mesh.attested("ci", &signer.token(&claims), &key()).await.expect("node");
    assert_eq!(reason(mesh.attested("ci", &signer.token(&claims), &key()).await), Reason::EvidenceUsed);
    claims["jti"] = "job-2".into();
    mesh.attested("ci", &signer.token(&claims), &key()).await.expect("node");
    claims["jti"] = "job-3".into();
    claims["protected"] = "true".into();
    assert_eq!(reason(mesh.attested("ci", &signer.token(&claims), &key()).await), Reason::NoRegistration);
}

#[tokio::test]
async fn an_attestor_with_an_issuers_new_keys_judges_by_them_at_once() {
    let (mesh, old) = mesh().await;
    let new = Signer::new("n");
    let judged = {
        let state = mesh.registry.state();
        let known = attestor_named(&state, "cluster").expect("attestor");
        let token = old.token(&pod_claims("shop", "web", "u1"));
        let presented = Presented::Document(Zeroizing::new(token.into_bytes()));
        attest("cluster", known.modified, &known.settings, &presented, START).expect("by the old keys")
    };
    mesh.attestor("cluster", &new.kubernetes()).await;
    let late = Enrolment {
        evidence: Evidence::Attested(judged),
        key: requester(&key()),
        host_name: String::new(),
        from: "192.0.2.9".parse().expect("address"),
    };
    assert_eq!(reason(mesh.registry.enrol(late).await), Reason::Conflict, "judged by keys that are no longer trusted");
    let token = old.token(&pod_claims("shop", "web", "u1"));
    assert_eq!(reason(mesh.attested("cluster", &token, &key()).await), Reason::EvidenceSignature);
    mesh.attested("cluster", &new.token(&pod_claims("shop", "web", "u1")), &key()).await.expect("by the new keys");
}

#[tokio::test]
async fn what_rests_on_an_attestor_keeps_it_and_its_kind() {
    let (mesh, signer) = mesh().await;
    let ops = || Caller::new("admin:ops");
    assert_eq!(reason(mesh.registry.delete_attestor(&ops(), "cluster", None).await), Reason::Conflict);
    let other_kind = mesh.registry.set_attestor(&ops(), "cluster", &signer.oidc(ISSUER), "", None).await;
    assert_eq!(reason(other_kind), Reason::Conflict);
    let stale = Some(Revision(1));
    assert_eq!(
        reason(mesh.registry.set_attestor(&ops(), "cluster", &signer.kubernetes(), "", stale).await),
        Reason::Conflict
    );
    assert_eq!(reason(mesh.register("web", "cluster", &["k8s:ns=a", "k8s:sa=b"], &["a/b"]).await), Reason::Conflict);
    let same = mesh.register("web-2", "cluster", &["k8s:sa=web", "k8s:ns=shop"], &["bank/api"]).await;
    assert_eq!(reason(same), Reason::Conflict);
    assert_eq!(reason(mesh.register("x", "nobody", &["k8s:ns=a", "k8s:sa=b"], &["a/b"]).await), Reason::NotFound);
    assert_eq!(reason(mesh.register("x", "cluster", &["k8s:ns=a", "k8s:sa=b"], &[]).await), Reason::InvalidField);
    assert_eq!(reason(mesh.register("X", "cluster", &["k8s:ns=a", "k8s:sa=b"], &["a/b"]).await), Reason::InvalidField);
    mesh.registry.delete_registration(&ops(), "web", None).await.expect("deleted");
    mesh.registry.delete_attestor(&ops(), "cluster", None).await.expect("deleted");
    assert_eq!(reason(mesh.registry.delete_attestor(&ops(), "cluster", None).await), Reason::NotFound);
}
