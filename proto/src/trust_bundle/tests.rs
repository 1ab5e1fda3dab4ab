//! Trust bundles: what may be in one.

use super::*;
use crate::certificate::test_certificates::{Ca, Mesh, authority, uri};

fn bundle(roots: &[&[u8]]) -> Result<TrustBundle, Refusal> {
    TrustBundle::new("bank.example".parse().expect("name"), 7, roots.iter().copied())
}

#[test]
fn a_bundle_reads_back_from_the_wire() {
    let (one, two) = (Mesh::new(), Mesh::new());
    let sent = bundle(&[&one.root.der, &two.root.der]).expect("bundle").to_wire();
    let read = TrustBundle::from_wire(&sent).expect("bundle");
    assert_eq!(read.to_wire(), sent);
    assert_eq!(read.sequence(), 7);
    assert_eq!(read.trust_domain().as_str(), "bank.example");
    assert_eq!(read.roots().count(), 2);
}

#[test]
fn a_bundle_without_roots_or_with_too_many_or_with_a_leaf_is_refused_by_index() {
    let mesh = Mesh::new();
    bundle(&[]).expect_err("empty");
    bundle(&[&mesh.root.der[..]; MAX_ROOTS + 1]).expect_err("too many");
    let leaf = mesh.issuing.issue(&crate::certificate::test_certificates::node());
    let refusal = bundle(&[&mesh.root.der, &leaf]).expect_err("a leaf");
    assert!(refusal.detail.starts_with("bundle.roots[1]"), "{refusal}");
    bundle(&[b"not a certificate"]).expect_err("garbage");
}

#[test]
fn a_root_that_names_another_trust_domain_is_refused() {
    let mut params = authority("root", None);
    params.subject_alt_names = vec![uri("spiffe://other.example")];
    assert_eq!(bundle(&[&Ca::root(params).der]).expect_err("foreign").reason, Reason::WrongTrustDomain);
}

#[test]
fn a_misspelt_trust_domain_is_refused_by_field() {
    let mut raw = bundle(&[&Mesh::new().root.der]).expect("bundle").to_wire();
    raw.trust_domain = "Bank".to_owned();
    let refusal = TrustBundle::from_wire(&raw).expect_err("refused");
    assert!(refusal.detail.starts_with("bundle.trust_domain"), "{refusal}");
}
