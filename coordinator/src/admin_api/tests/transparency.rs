//! The log's proofs as they leave the API: signed under the root, about the log as it is, and for whoever may read it.

use warren_proto::admin::{AuditProof, read_path};
use warren_proto::merkle::{leaf_hash, verify_consistency, verify_inclusion};
use warren_proto::tree_head::TreeHead;

use super::*;

async fn proof(fixture: &Fixture, token: &str, query: &str) -> (AuditProof, TreeHead) {
    let told = fixture.get(token, &format!("/audit/proof{query}")).await;
    assert_eq!(told.status, StatusCode::OK, "{}", told.body);
    let proof: AuditProof = serde_json::from_value(told.body).unwrap();
    let signed = proof.head.signed().unwrap();
    // What is signed and what is shown are the same.
    let head = TreeHead::from_body(&signed.body).unwrap();
    assert_eq!((proof.head.size, &proof.head.root), (head.size, &hex::encode(head.root)));
    let authority = fixture.api.registry().authority();
    let key = ed25519_dalek::VerifyingKey::from_bytes(authority.signer_certificate().key()).unwrap();
    let signature = ed25519_dalek::Signature::from_slice(&signed.signature).unwrap();
    key.verify_strict(&warren_proto::peer_map::signing_input(&signed.body), &signature).unwrap();
    assert_eq!(signed.signer.unwrap().certificates, [authority.signer_certificate().leaf().der().to_vec()]);
    (proof, head)
}

#[tokio::test]
async fn an_issuance_is_proven_by_its_serial_number_and_a_later_head_by_an_earlier_one() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    assert_eq!(fixture.apply(&admin, BANK, 0, "").await.status, StatusCode::OK);
    let node = fixture.node(&["shop/web-frontend"]).await;
    fixture.instance(&node, "shop/web-frontend").await;
    let viewer = fixture.token(&admin, "auditor", Role::Viewer, &[]).await;
    let state = fixture.api.registry().state();
    let serial_of_node = hex::encode(&state.nodes.iter().next().unwrap().1.certificate.serial);
    let serial_of_tunnel = hex::encode(&state.instances.iter().next().unwrap().1.certificates[0].serial);
    for (serial, action) in [(&serial_of_tunnel, "certificate.issue"), (&serial_of_node, "node.enrol")] {
        let (proof, head) = proof(&fixture, &viewer, &format!("?serial={serial}")).await;
        let row = proof.row.unwrap();
        assert!(row.text.contains(&format!("\"action\":\"{action}\"")) && row.text.contains(serial), "{}", row.text);
        let path = read_path(&row.path).unwrap();
        let leaf = leaf_hash(row.text.as_bytes());
        assert!(verify_inclusion(&leaf, row.seq - 1, head.size, &path, &head.root));
        let forged = leaf_hash(row.text.replace("shop", "bank").as_bytes());
        assert!(!verify_inclusion(&forged, row.seq - 1, head.size, &path, &head.root));
    }
    let (_, earlier) = proof(&fixture, &viewer, "").await;
    fixture.post(&admin, "/tokens", json!({ "workloads": ["shop/web-frontend"] })).await;
    let (proof, later) = proof(&fixture, &viewer, &format!("?since={}", earlier.size)).await;
    assert_eq!(later.size, earlier.size + 1);
    let path = read_path(&proof.since.unwrap().path).unwrap();
    assert!(verify_consistency(earlier.size, &earlier.root, later.size, &later.root, &path));

    for (query, status) in [
        ("?serial=00ff", StatusCode::NOT_FOUND),
        ("?row=0", StatusCode::NOT_FOUND),
        ("?row=9999", StatusCode::NOT_FOUND),
        ("?row=1&serial=00ff", StatusCode::BAD_REQUEST),
        ("?serial=", StatusCode::BAD_REQUEST),
        ("?row=x", StatusCode::BAD_REQUEST),
        ("?since=9999", StatusCode::CONFLICT),
    ] {
        assert_eq!(fixture.get(&viewer, &format!("/audit/proof{query}")).await.status, status, "{query}");
    }
}
