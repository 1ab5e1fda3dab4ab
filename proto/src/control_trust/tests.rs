//! Whom the two ends of the control link take each other for.

use rcgen::CertificateParams;

use super::*;
use crate::certificate::test_certificates::{self as make, Ca, DAY, Mesh, NOW, moment};

fn node_by(mesh: &Mesh, chain: &[&[u8]]) -> Result<TrustedNode, Reason> {
    let chain = Chain::new(chain.iter().copied()).expect("within limits");
    verify_node(chain, &mesh.bundle(), NOW).map_err(|refusal| refusal.reason)
}

fn coordinator_by(mesh: &Mesh, chain: &[&[u8]]) -> Result<TrustedCoordinator, Reason> {
    let chain = Chain::new(chain.iter().copied()).expect("within limits");
    verify_coordinator(chain, &mesh.bundle(), NOW).map_err(|refusal| refusal.reason)
}

fn bent(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    change(&mut params);
    params
}

#[test]
fn a_node_of_the_mesh_is_trusted_until_the_first_end_on_its_path() {
    let mesh = Mesh::new();
    let trusted = node_by(&mesh, &[&mesh.issuing.issue(&make::node()), &mesh.issuing.der]).expect("trusted");
    assert_eq!(trusted.certificate.node(), crate::NodeId::from_bytes([2; 16]));
    assert_eq!(trusted.path.valid_until(), NOW.plus(DAY));
    assert_eq!(trusted.path.authorities().len(), 2);
    let hour = NOW.plus(std::time::Duration::from_secs(3600));
    let short = mesh.root.intermediate(bent(make::issuing(), |params| params.not_after = moment(hour)));
    let trusted = node_by(&mesh, &[&short.issue(&make::node()), &short.der]).expect("trusted");
    assert_eq!(trusted.path.valid_until(), hour);
}

#[test]
fn a_coordinator_is_trusted_when_a_root_issued_its_certificate_itself() {
    let mesh = Mesh::new();
    let leaf = mesh.root.issue(&make::coordinator());
    assert_eq!(coordinator_by(&mesh, &[&leaf]).expect("trusted").certificate.name(), "alpha");
    coordinator_by(&mesh, &[&leaf, &mesh.root.der]).expect("a root sent along changes nothing");
}

#[test]
fn a_stolen_intermediate_cannot_make_a_coordinator() {
    let mesh = Mesh::new();
    let leaf = mesh.issuing.issue(&make::coordinator());
    let refused = coordinator_by(&mesh, &[&leaf, &mesh.issuing.der]).expect_err("refused");
    assert_eq!(refused, Reason::UntrustedIssuer);
}

#[test]
fn a_workload_or_a_signer_poses_neither_as_a_node_nor_as_a_coordinator() {
    let mesh = Mesh::new();
    for params in [make::tunnel(), make::signer()] {
        for leaf in [mesh.issuing.issue(&params), mesh.root.issue(&params)] {
            node_by(&mesh, &[&leaf, &mesh.issuing.der]).expect_err("no node");
            coordinator_by(&mesh, &[&leaf, &mesh.issuing.der]).expect_err("no coordinator");
        }
    }
    let node = mesh.issuing.issue(&make::node());
    coordinator_by(&mesh, &[&node, &mesh.issuing.der]).expect_err("a node is no coordinator");
    node_by(&mesh, &[&mesh.root.issue(&make::coordinator())]).expect_err("a coordinator is no node");
}

#[test]
fn a_node_needs_the_marked_intermediate() {
    let mesh = Mesh::new();
    assert_eq!(node_by(&mesh, &[&mesh.root.issue(&make::node())]).expect_err("by the root"), Reason::UntrustedIssuer);
    let unmarked = mesh.root.intermediate(make::authority("unmarked", Some(0)));
    let leaf = unmarked.issue(&make::node());
    assert_eq!(node_by(&mesh, &[&leaf, &unmarked.der]).expect_err("unmarked"), Reason::UntrustedIssuer);
    let leaf = mesh.issuing.issue(&make::node());
    assert_eq!(node_by(&mesh, &[&leaf]).expect_err("nothing between"), Reason::UntrustedIssuer);
}

#[test]
fn an_intermediate_confined_to_other_purposes_cannot_issue_nodes() {
    use rcgen::ExtendedKeyUsagePurpose as Eku;
    let mesh = Mesh::new();
    let confined = bent(make::issuing(), |params| params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth]);
    let confined = mesh.root.intermediate(confined);
    let leaf = confined.issue(&make::node());
    assert_eq!(node_by(&mesh, &[&leaf, &confined.der]).expect_err("refused"), Reason::CertificatePurpose);
}

#[test]
fn another_meshs_certificates_are_refused_under_our_roots() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let node = other.issuing.issue(&make::node());
    assert_eq!(node_by(&mesh, &[&node, &other.issuing.der]).expect_err("refused"), Reason::UntrustedIssuer);
    let coordinator = other.root.issue(&make::coordinator());
    assert_eq!(coordinator_by(&mesh, &[&coordinator, &other.root.der]).expect_err("refused"), Reason::UntrustedIssuer);
    let foreign = bent(make::coordinator(), |params| {
        params.subject_alt_names = vec![make::uri("spiffe://other.example/coordinator/alpha")];
    });
    assert_eq!(coordinator_by(&mesh, &[&mesh.root.issue(&foreign)]).expect_err("refused"), Reason::WrongTrustDomain);
}

#[test]
fn an_intermediate_that_names_another_trust_domain_is_refused() {
    let mesh = Mesh::new();
    let foreign = bent(make::issuing(), |params| {
        params.subject_alt_names = vec![make::uri("spiffe://other.example")];
    });
    let foreign = mesh.root.intermediate(foreign);
    let leaf = foreign.issue(&make::node());
    assert_eq!(node_by(&mesh, &[&leaf, &foreign.der]).expect_err("refused"), Reason::WrongTrustDomain);
}

#[test]
fn a_leaf_that_names_another_key_than_its_issuers_is_refused() {
    let mesh = Mesh::new();
    let key = rcgen::KeyPair::generate().expect("key");
    let issuing = mesh.root.sign(&make::issuing(), &key);
    let lying = bent(make::issuing(), |params| {
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    });
    // Signed by the intermediate's key, and says that another one did: revoking the issuer would not find it.
    let issuer = rcgen::Issuer::new(lying, key);
    let leaf = make::node().signed_by(&rcgen::KeyPair::generate().expect("key"), &issuer).expect("signed");
    assert_eq!(node_by(&mesh, &[leaf.der(), &issuing]).expect_err("refused"), Reason::UntrustedIssuer);
}

#[test]
fn ended_and_early_certificates_are_refused_by_name() {
    let mesh = Mesh::new();
    let ended = bent(make::coordinator(), |params| params.not_after = moment(NOW));
    assert_eq!(coordinator_by(&mesh, &[&mesh.root.issue(&ended)]).expect_err("refused"), Reason::CertificateEnded);
    let early = bent(make::coordinator(), |params| {
        params.not_before = moment(NOW.plus(std::time::Duration::from_secs(61)));
    });
    assert_eq!(
        coordinator_by(&mesh, &[&mesh.root.issue(&early)]).expect_err("refused"),
        Reason::CertificateNotYetValid
    );
}

#[test]
fn a_root_that_has_ended_vouches_for_nothing() {
    let mut mesh = Mesh::new();
    mesh.root = Ca::root(bent(make::authority("root", None), |params| params.not_after = moment(NOW)));
    let refused = coordinator_by(&mesh, &[&mesh.root.issue(&make::coordinator())]).expect_err("refused");
    assert_eq!(refused, Reason::UntrustedIssuer);
}

#[test]
fn during_a_root_rotation_either_root_will_do() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let bundle =
        TrustBundle::new("bank.example".parse().expect("name"), 2, [&*old.root.der, &*new.root.der]).expect("bundle");
    for mesh in [&old, &new] {
        let leaf = mesh.issuing.issue(&make::node());
        let chain = [&leaf[..], &mesh.issuing.der];
        let trusted = verify_node(Chain::new(chain).expect("chain"), &bundle, NOW).expect("trusted");
        assert_eq!(trusted.path.authorities().last().map(|root| &root.der()[..]), Some(&mesh.root.der[..]));
    }
}
