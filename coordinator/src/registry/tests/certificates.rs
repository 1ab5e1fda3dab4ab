//! What is written down of certificates: the rows of the audit log that issued one, and what a node may renew with.

use warren_proto::peer_map::object_digest;
use warren_proto::tree_head::{ISSUING_ACTIONS, Issuance};

use super::*;
use crate::audit::{self, Tree};

fn generated() -> KeyPair {
    KeyPair::generate().expect("key")
}

impl Mesh {
    async fn renew(
        &self,
        id: NodeId,
        shown: records::NodeCertificateKey,
        key: &KeyPair,
    ) -> Result<EnrolledNode, Refusal> {
        self.registry.renew_node(id, shown, &requester(key), &|_| Ok(())).await
    }

    /// The action of the row that is found to have issued `der`, which must be the certificate that it names.
    async fn issued_by(&self, tree: &Tree, der: &[u8]) -> String {
        let store = &**self.registry.store();
        let serial = warren_proto::certificate::serial_number(der).expect("serial");
        let seq = tree.find_issuance(store, &hex::encode(serial.as_bytes())).await.expect("a row");
        let row: audit::Entry = serde_json::from_str(&audit::row(store, seq).await.expect("row")).expect("entry");
        let new = row.new.expect("what was issued");
        let issued = Issuance::of(&row.action, &new).expect("an issuance");
        assert_eq!(issued.certificate_sha256, Some(hex::encode(object_digest(der)).as_str()), "{}", row.action);
        row.action
    }
}

#[tokio::test]
async fn every_issued_certificate_is_found_in_the_row_that_issued_it_and_in_none_that_only_shows_it() {
    let (mesh, tree, caller) = (Mesh::new().await, Tree::default(), || Caller::new("test"));
    let (first, second) = (generated(), generated());
    let token = mesh.token(2, &["shop/web"]).await;
    let node = mesh.enrol(&token, &first).await.expect("enrolled");
    assert_eq!(mesh.issued_by(&tree, &node.chain[0]).await, "node.enrol");
    let again = mesh.enrol(&token, &first).await.expect("enrolled again");
    assert_eq!(mesh.issued_by(&tree, &again.chain[0]).await, "node.enrol-again");
    let (id, shown_at_link) = (again.node.id, again.node.certificate.as_shown());
    let renewed = mesh.renew(id, shown_at_link, &second).await.expect("renewed");
    // It comes back with the new one, and an administrator changes it: both rows show the certificate.
    mesh.registry.note_shown(id, renewed.node.certificate.as_shown()).await.expect("noted");
    let workloads = vec!["shop/web".parse().expect("name"), "shop/other".parse().expect("name")];
    mesh.registry.set_node_workloads(&caller(), id, workloads, None).await.expect("set");
    assert_eq!(mesh.issued_by(&tree, &renewed.chain[0]).await, "node.renew");
    assert_eq!(mesh.issued_by(&tree, &node.chain[0]).await, "node.enrol", "the one before is still found");

    let tunnel = mesh.issue(id, "shop/web", &Keys::new(), None).await.expect("issued");
    assert_eq!(mesh.issued_by(&tree, &tunnel.certificates[0].chain[0].0).await, "certificate.issue");
    let web = "shop/web".parse().expect("name");
    let svid = mesh.registry.issue_svid(id, &web, &requester(&generated()), &|_| Ok(())).await.expect("issued");
    assert_eq!(mesh.issued_by(&tree, &svid[0]).await, "svid.issue");
    let rows = audit::page(&**mesh.registry.store(), None, 100).await.expect("rows").entries;
    for row in rows.iter().filter(|row| row.new.as_ref().is_some_and(|new| new.get("certificate_sha256").is_some())) {
        assert!(ISSUING_ACTIONS.contains(&row.action.as_str()), "{}", row.action);
    }
    assert!(rows.iter().any(|row| row.action == "node.renewed"), "what only shows it was there");
}

#[tokio::test]
async fn a_second_renewal_over_a_link_whose_answer_was_lost_leaves_the_certificate_before_its_week() {
    let mesh = Mesh::new().await;
    let (a, b, c) = (generated(), generated(), generated());
    let node = mesh.enrol(&mesh.token(1, &["shop/web"]).await, &a).await.expect("enrolled").node;
    // The link is made with A and outlives both renewals.
    let link = node.certificate.as_shown();
    mesh.pass(4 * DAY);
    let held = mesh.renew(node.id, link, &b).await.expect("it arrives").node.certificate.as_shown();
    mesh.pass(DAY);
    let lost = mesh.renew(node.id, link, &c).await.expect("its answer is lost").node.certificate.as_shown();
    mesh.registry.note_shown(node.id, held).await.expect("it comes with B");
    mesh.pass(8 * DAY);
    assert!(held.not_after < mesh.registry.now());
    let thief = mesh.renew(node.id, held, &generated()).await;
    assert_eq!(reason(thief), Reason::RenewalTooLate, "an ended certificate renews its own key alone");
    let renewed = mesh.renew(node.id, held, &b).await.expect("B renews itself").node.certificate.as_shown();
    mesh.registry.note_shown(node.id, renewed).await.expect("it has arrived");

    // And once a later one was shown, B is over.
    let d = generated();
    let newest = mesh.renew(node.id, renewed, &d).await.expect("renewed").node.certificate.as_shown();
    mesh.registry.note_shown(node.id, newest).await.expect("it has arrived");
    mesh.pass(Duration::from_secs(7 * 86_400 + 1));
    for (shown, key) in [(held, &b), (renewed, &b), (lost, &c)] {
        assert_eq!(reason(mesh.renew(node.id, shown, key).await), Reason::RenewalTooLate);
    }
    mesh.renew(node.id, newest, &d).await.expect("the newest renews itself");
}
