//! Enrolment: with a token, once, and for what the token allows.

use std::sync::Arc;
use std::time::Duration;

use rcgen::KeyPair;
use warren_coordinator::registry::{Caller, Revoke, SVID_LIFETIME};
use warren_proto::certificate::{CLOCK_SKEW, Chain, NodeCertificate, TunnelCertificate, WorkloadSvid};
use warren_proto::control_trust::verify_node;
use warren_proto::join_token::JoinSecret;
use warren_proto::{NodeId, Reason};

use super::client::{EnrolAttempt, IssueAttempt, Node, TunnelKeys, reason, renew, sha256, svid};
use super::mesh::{Mesh, START};

#[tokio::test]
async fn a_node_enrols_and_its_instance_gets_a_tunnel_certificate_with_addresses() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    assert_eq!(token.root_sha256, sha256(mesh.registry.authority().root_der()));
    let mut node = Node::enrol(&mesh, &token).await.unwrap();
    let chain = Chain::new(node.identity.chain.iter().map(AsRef::as_ref)).unwrap();
    assert_eq!(verify_node(chain, &node.bundle, START).unwrap().certificate.node(), node.id);

    let link = node.connect(&mesh).await;
    let issued = link.issue("shop/web", None).await.unwrap();
    let certificate = TunnelCertificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(certificate.workload().as_str(), "shop/web");
    assert_eq!(certificate.binding().instance, issued.instance);
    let certified: Vec<_> = certificate.addresses().iter().map(|address| address.to_string()).collect();
    assert_eq!(certified, issued.addresses);
    assert!(!certificate.is_plain(), "a mark is never the node's to claim");
    let renewed = link.issue("shop/web", Some(issued.instance)).await.unwrap();
    assert_eq!((renewed.instance, renewed.addresses), (issued.instance, issued.addresses));
}

#[tokio::test]
async fn a_token_used_twice_or_fifty_times_at_once_lets_one_node_in() {
    let mesh = Arc::new(Mesh::new().await);
    let token = Arc::new(mesh.token(1, &["shop/web"]).await);
    let attempts: Vec<_> = (0..50)
        .map(|_| {
            let (mesh, token) = (Arc::clone(&mesh), Arc::clone(&token));
            tokio::spawn(async move { Node::enrol(&mesh, &token).await.map(|node| node.id) })
        })
        .collect();
    let mut enrolled = Vec::new();
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(node) => enrolled.push(node),
            Err(refusal) => assert_eq!(refusal.reason, Reason::TokenUsed),
        }
    }
    assert_eq!(enrolled.len(), 1);
    assert_eq!(mesh.registry.state().nodes.len(), 1);
    assert_eq!(reason(Node::enrol(&mesh, &token).await), Reason::TokenUsed);
}

#[tokio::test]
async fn a_lost_answer_is_given_again_to_the_same_key() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    let key = KeyPair::generate().unwrap();
    let first = EnrolAttempt::begin(&mesh, &token, &key).await.finish().await.unwrap();
    let again = EnrolAttempt::begin(&mesh, &token, &key).await.finish().await.unwrap();
    assert_eq!(first.node_id, again.node_id);
    assert_eq!(again.workloads, ["shop/web"]);
}

#[tokio::test]
async fn an_expired_or_guessed_token_lets_nobody_in() {
    let mesh = Mesh::new().await;
    let mut token = mesh.token(1, &["shop/web"]).await;
    let right = std::mem::replace(&mut token.secret, JoinSecret::from_bytes([1; 32]));
    assert_eq!(reason(Node::enrol(&mesh, &token).await), Reason::TokenUnknown);
    token.secret = right;
    mesh.pass(Duration::from_secs(3601));
    assert_eq!(reason(Node::enrol(&mesh, &token).await), Reason::TokenExpired);
}

#[tokio::test]
async fn a_tunnel_certificate_for_another_identity_or_another_nodes_instance_is_refused() {
    let mesh = Mesh::new().await;
    let (mut web, mut api) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["bank/api"]).await);
    let (web, api) = (web.connect(&mesh).await, api.connect(&mesh).await);
    assert_eq!(reason(web.issue("bank/api", None).await), Reason::IdentityNotAllowed);
    let issued = api.issue("bank/api", None).await.unwrap();
    assert_eq!(reason(web.issue("shop/web", Some(issued.instance)).await), Reason::NotFound);
}

#[tokio::test]
async fn without_possession_of_either_key_nothing_is_issued() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut attempt = EnrolAttempt::begin(&mesh, &token, &key).await;
    attempt.request.csr = super::client::csr(&other);
    assert_eq!(reason(attempt.finish().await), Reason::PossessionUnproven);

    let mut node = Node::enrol(&mesh, &token).await.unwrap();
    let link = node.connect(&mesh).await;
    let keys = TunnelKeys::new();
    let begin = || IssueAttempt::begin(&link.connection, "shop/web", None, &keys);
    let mut attempt = begin().await;
    attempt.request.tunnel_key = TunnelKeys::new().public().to_vec();
    assert_eq!(reason(attempt.finish().await), Reason::PossessionUnproven);
    let mut attempt = begin().await;
    attempt.request.tunnel_key = vec![0; 32];
    assert_eq!(reason(attempt.finish().await), Reason::KeyLowOrder);
    let mut attempt = begin().await;
    attempt.request.possession = vec![0x30, 0];
    assert_eq!(reason(attempt.finish().await), Reason::PossessionUnproven);
    // A proof for another connection's challenge is worth nothing here.
    let mut second = Node::with_token(&mesh, &["shop/web"]).await;
    let elsewhere = second.connect(&mesh).await;
    let stolen = IssueAttempt::begin(&elsewhere.connection, "shop/web", None, &keys).await.request;
    let mut attempt = begin().await;
    attempt.request = stolen;
    assert_eq!(reason(attempt.finish().await), Reason::PossessionUnproven);
    assert!(mesh.registry.state().instances.is_empty());
}

#[tokio::test]
async fn a_workloads_own_svid_is_issued_for_what_the_node_may_hold_and_over_a_fresh_proven_key() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let link = node.connect(&mesh).await;
    let key = KeyPair::generate().unwrap();
    assert_eq!(reason(svid(&link.connection, "bank/api", &key, false).await), Reason::IdentityNotAllowed);
    assert_eq!(reason(svid(&link.connection, "shop/web", &key, true).await), Reason::PossessionUnproven);
    assert_eq!(reason(svid(&link.connection, "no workload", &key, false).await), Reason::FrameMalformed);
    let chain = svid(&link.connection, "shop/web", &key, false).await.unwrap();
    let issued = WorkloadSvid::parse(&chain[0]).unwrap();
    assert_eq!(issued.workload().as_str(), "shop/web");
    let begins = issued.leaf().not_before().plus(CLOCK_SKEW);
    assert_eq!(begins.until(issued.leaf().not_after()), SVID_LIFETIME);
    assert_eq!(reason(svid(&link.connection, "shop/web", &key, false).await), Reason::KeyInUse);
    assert_eq!(reason(renew(&link.connection, &key).await), Reason::KeyInUse, "it is no node's key either");
    // Nothing of it is distributed: no instance, no address.
    assert!(mesh.registry.state().instances.is_empty());
}

#[tokio::test]
async fn no_svid_is_issued_over_an_ended_certificate_or_for_a_revoked_identity() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web", "shop/db"]).await;
    let link = node.connect(&mesh).await;
    let fresh = || KeyPair::generate().unwrap();
    let identity = Revoke::Identity("shop/web".parse().unwrap());
    mesh.registry.revoke(&Caller::new("test"), identity).await.unwrap();
    // What is issued in the revocation's own second is meant as well.
    assert_eq!(reason(svid(&link.connection, "shop/web", &fresh(), false).await), Reason::Revoked);
    svid(&link.connection, "shop/db", &fresh(), false).await.unwrap();
    mesh.pass(Duration::from_secs(2));
    svid(&link.connection, "shop/web", &fresh(), false).await.unwrap();
    drop(link);
    mesh.pass(Duration::from_secs(8 * 24 * 3600));
    let link = node.connect(&mesh).await;
    assert_eq!(reason(svid(&link.connection, "shop/db", &fresh(), false).await), Reason::CertificateEnded);
}

#[tokio::test]
async fn a_node_renews_its_own_certificate_also_when_it_ended_lately() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let new_key = KeyPair::generate().unwrap();
    let chain = renew(&node.connect(&mesh).await.connection, &new_key).await.unwrap();
    assert_eq!(NodeCertificate::parse(&chain[0]).unwrap().node(), node.id);
    node.identity = super::client::Identity { chain, key: new_key };

    mesh.pass(Duration::from_secs(8 * 24 * 3600));
    let link = node.connect(&mesh).await;
    assert_eq!(reason(link.issue("shop/web", None).await), Reason::CertificateEnded);
    let other = KeyPair::generate().unwrap();
    assert_eq!(reason(renew(&link.connection, &other).await), Reason::RenewalTooLate);
    let own = KeyPair::from_pem(&link.node.identity.key.serialize_pem()).unwrap();
    let chain = renew(&link.connection, &own).await.unwrap();
    drop(link);
    node.identity.chain = chain;
    let link = node.connect(&mesh).await;
    link.issue("shop/web", None).await.unwrap();
    assert_ne!(link.node.id, NodeId::from_bytes([0; 16]));
}
