//! What the authority issues and what it refuses to: profiles, lifetimes, key files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use warren_proto::certificate::{CLOCK_SKEW, Capabilities, Chain, SignerCertificate};
use warren_proto::control_trust::{self, Purpose};
use warren_proto::peer_map::signing_input;
use warren_proto::{InstanceId, NodeId, OverlayAddresses, Reason, UnixTime};
use x509_parser::prelude::FromDer;

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn parameters() -> CaParameters {
    CaParameters {
        trust_domain: "bank.example".parse().expect("name"),
        coordinator: "alpha".to_owned(),
        overlay: warren_proto::Overlay {
            v6: ("fd12:3456:789a::".parse().expect("address"), 48),
            v4: Some(("10.77.0.0".parse().expect("address"), 16)),
        },
    }
}

fn mesh() -> (tempfile::TempDir, Authority) {
    let directory = tempfile::tempdir().expect("directory");
    let authority = Authority::init(&directory.path().join("ca"), &parameters(), NOW).expect("init");
    (directory, authority)
}

fn reopen(directory: &tempfile::TempDir, now: UnixTime) -> Result<Authority, CaError> {
    Authority::open(&directory.path().join("ca"), &parameters(), None, now)
}

/// A request with everything in it that a requester might try.
fn greedy_csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::URI("spiffe://bank.example/coordinator/alpha".try_into().expect("ia5"))];
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    // A foreign purpose and an unknown extension: rcgen's own reader of requests fails on either.
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::Any,
        rcgen::ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 9999, 1]),
    ];
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 2], vec![5, 0]));
    params.serialize_request(key).expect("request").der().to_vec()
}

fn requester() -> (KeyPair, RequesterKey) {
    let key = KeyPair::generate().expect("key");
    let checked = RequesterKey::from_csr(&greedy_csr(&key)).expect("request");
    (key, checked)
}

fn terms() -> TunnelTerms {
    TunnelTerms {
        workload: "shop/web".parse().expect("name"),
        instance: InstanceId::from_bytes([1; 16]),
        node: NodeId::from_bytes([2; 16]),
        addresses: OverlayAddresses {
            v6: "fd12:3456:789a::7".parse().expect("address"),
            v4: Some("10.77.0.7".parse().expect("address")),
        },
        tunnel_key: [9; 32],
        capabilities: Capabilities::ML_KEM,
        lifetime: DAY,
    }
}

fn chain(certificates: &[Vec<u8>]) -> Chain<'_> {
    Chain::new(certificates.iter().map(Vec::as_slice)).expect("chain")
}

#[test]
fn nothing_of_a_request_but_its_public_key_is_certified() {
    let (_directory, authority) = mesh();
    let (key, checked) = requester();
    let issued = authority.issue_tunnel(&checked, &terms(), NOW).expect("issued");
    let leaf = issued.certificate.leaf();
    assert_eq!(leaf.spki(), key.subject_public_key_info());
    assert_eq!(leaf.identity().to_string(), "spiffe://bank.example/ns/shop/sa/web");
    assert_eq!(issued.certificate.addresses(), terms().addresses);
    assert_eq!(issued.certificate.binding().tunnel_key, terms().tunnel_key);
    // Parsing it as a tunnel certificate checked that it is no CA and has exactly our purposes.
    let node = authority.issue_node(&checked, NodeId::from_bytes([2; 16]), DAY, NOW).expect("issued");
    assert_eq!(node.certificate.node(), NodeId::from_bytes([2; 16]));
}

#[test]
fn what_is_issued_anchors_in_the_bundle_for_its_own_purpose_only() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let tunnel = authority.issue_tunnel(&key, &terms(), NOW).expect("issued");
    let leaf = tunnel.certificate.leaf();
    let path =
        control_trust::anchor(leaf, chain(&tunnel.chain), authority.bundle(), Purpose::Tunnel, NOW).expect("anchored");
    assert_eq!(path.valid_until(), leaf.not_after());
    assert_eq!(path.authorities().first(), Some(authority.issuer_certificate()));
    for purpose in [Purpose::Node, Purpose::Coordinator, Purpose::ManifestSigner] {
        control_trust::anchor(leaf, chain(&tunnel.chain), authority.bundle(), purpose, NOW).expect_err("refused");
    }
    let node = authority.issue_node(&key, NodeId::from_bytes([2; 16]), DAY, NOW).expect("issued");
    control_trust::verify_node(chain(&node.chain), authority.bundle(), NOW).expect("trusted");
    control_trust::verify_coordinator(chain(&node.chain), authority.bundle(), NOW)
        .expect_err("a node is no coordinator");
    control_trust::verify_node(chain(&tunnel.chain), authority.bundle(), NOW).expect_err("a workload is no node");
    let presented: Vec<_> = authority.tls_chain().iter().map(|der| der.to_vec()).collect();
    let trusted = control_trust::verify_coordinator(chain(&presented), authority.bundle(), NOW).expect("trusted");
    assert_eq!(trusted.certificate.name(), "alpha");
    control_trust::verify_node(chain(&presented), authority.bundle(), NOW).expect_err("a coordinator is no node");
}

#[test]
fn a_workloads_own_svid_is_trusted_as_one_and_admits_no_tunnel() {
    let (_directory, authority) = mesh();
    let (key, checked) = requester();
    let workload = "shop/web".parse().expect("name");
    let svid = authority.issue_svid(&checked, &workload, Duration::from_secs(3600), NOW).expect("issued");
    let leaf = svid.certificate.leaf();
    assert_eq!(leaf.spki(), key.subject_public_key_info());
    assert_eq!(leaf.identity().to_string(), "spiffe://bank.example/ns/shop/sa/web");
    let anchored = |purpose| control_trust::anchor(leaf, chain(&svid.chain), authority.bundle(), purpose, NOW);
    anchored(Purpose::WorkloadSvid).expect("trusted");
    for purpose in [Purpose::Tunnel, Purpose::Node, Purpose::Coordinator, Purpose::ManifestSigner] {
        anchored(purpose).expect_err("refused");
    }
    let refusal =
        warren_proto::certificate::TunnelCertificate::parse(&svid.chain[0]).expect_err("no tunnel certificate");
    assert_eq!(refusal.reason, Reason::CertificatePurpose);
}

#[test]
fn no_default_of_the_builder_reaches_a_certificate() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let issued = |_| authority.issue_tunnel(&key, &terms(), NOW).expect("issued").certificate.leaf().clone();
    let (first, second) = (issued(0), issued(1));
    assert_eq!(first.not_before(), NOW.minus(CLOCK_SKEW), "dated back by the skew, not to 1975");
    assert_eq!(first.not_after(), NOW.plus(DAY), "not 4096");
    assert_ne!(first.serial(), second.serial(), "one key, two certificates, two serial numbers");
    assert_eq!(first.serial().as_bytes().len(), 16);
    assert_eq!(first.issuer_key_id(), authority.issuer_certificate().key_id());
    for der in [&**first.der(), authority.issuer_certificate().der(), authority.root_der()] {
        let (_, x509) = x509_parser::certificate::X509Certificate::from_der(der).expect("parses");
        assert!(!x509.subject().to_string().contains("rcgen"), "{}", x509.subject());
        assert!(x509.basic_constraints().expect("once").is_some(), "BasicConstraints stand in every certificate");
    }
    assert_eq!(authority.root_certificate().not_after(), NOW.plus(DAY * 3652));
}

#[test]
fn root_and_intermediate_have_different_subjects() {
    let (_directory, authority) = mesh();
    let subject = |der: &[u8]| {
        x509_parser::certificate::X509Certificate::from_der(der).expect("parses").1.subject().as_raw().to_vec()
    };
    assert_ne!(subject(authority.root_der()), subject(authority.issuer_certificate().der()));
}

#[test]
fn the_intermediate_cannot_certify_an_address_outside_the_overlay() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    // The signer refuses it itself ...
    let mut outside = terms();
    outside.addresses.v4 = Some("10.78.0.1".parse().expect("address"));
    let refusal = authority.issue_tunnel(&key, &outside, NOW).expect_err("refused");
    assert_eq!(refusal.reason, Reason::AddressOutsidePrefix);
    // ... and so does the path when somebody else uses its key.
    for (v6, v4) in [("fd12:3456:789a::7", "10.78.0.1"), ("fd12:3456:789b::7", "10.77.0.1")] {
        let addresses = OverlayAddresses { v6: v6.parse().expect("address"), v4: Some(v4.parse().expect("address")) };
        let binding = warren_proto::certificate::TunnelBinding {
            tunnel_key: [9; 32],
            instance: outside.instance,
            node: outside.node,
            capabilities: Capabilities::NONE,
        };
        let identity = outside.workload.in_domain(authority.bundle().trust_domain());
        let validity = template::Validity::new(NOW, DAY, None);
        let params = template::tunnel(&identity, addresses, &binding, validity).expect("template");
        let leaf = params.signed_by(&key.key, authority.issuer()).expect("signed").der().to_vec();
        let certificate = warren_proto::certificate::TunnelCertificate::parse(&leaf).expect("well-formed");
        let sent = [leaf, authority.issuer_certificate().der().to_vec()];
        let refusal = control_trust::anchor(certificate.leaf(), chain(&sent), authority.bundle(), Purpose::Tunnel, NOW)
            .expect_err("refused");
        assert_eq!(refusal.reason, Reason::AddressOutsidePrefix, "{refusal}");
    }
}

#[test]
fn an_overlay_without_ipv4_confines_the_intermediate_to_ipv6() {
    let directory = tempfile::tempdir().expect("directory");
    let mut v6_only = parameters();
    v6_only.overlay.v4 = None;
    let authority = Authority::init(&directory.path().join("ca"), &v6_only, NOW).expect("init");
    let (_, key) = requester();
    let mut six = terms();
    six.addresses.v4 = None;
    let issued = authority.issue_tunnel(&key, &six, NOW).expect("issued");
    control_trust::anchor(issued.certificate.leaf(), chain(&issued.chain), authority.bundle(), Purpose::Tunnel, NOW)
        .expect("anchored");
    assert_eq!(authority.issue_tunnel(&key, &terms(), NOW).expect_err("refused").reason, Reason::AddressOutsidePrefix);
}

#[test]
fn a_certificate_never_outlives_its_issuer_and_an_ending_issuer_signs_nothing() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let ends = authority.issuer_certificate().not_after();
    let late = ends.minus(Duration::from_secs(600));
    let issued = authority.issue_tunnel(&key, &terms(), late).expect("issued");
    assert_eq!(issued.certificate.leaf().not_after(), ends);
    for too_late in [ends.minus(Duration::from_secs(299)), ends, ends.plus(DAY)] {
        let refusal = authority.issue_tunnel(&key, &terms(), too_late).expect_err("refused");
        assert_eq!(refusal.reason, Reason::IssuerExpiring);
        let refusal = authority.issue_node(&key, terms().node, DAY, too_late).expect_err("refused");
        assert_eq!(refusal.reason, Reason::IssuerExpiring);
    }
}

#[test]
fn a_certificate_lives_five_minutes_at_least() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let short = TunnelTerms { lifetime: Duration::from_secs(299), ..terms() };
    let refused = authority.issue_tunnel(&key, &short, NOW).expect_err("refused");
    assert_eq!(refused.reason, Reason::InvalidField);
    let shortest = TunnelTerms { lifetime: Duration::from_secs(300), ..terms() };
    authority.issue_tunnel(&key, &shortest, NOW).expect("issued");
}

#[test]
fn a_tunnel_key_of_low_order_or_of_a_second_spelling_is_not_certified() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let mut low = terms();
    low.tunnel_key = [0; 32];
    assert_eq!(authority.issue_tunnel(&key, &low, NOW).expect_err("refused").reason, Reason::KeyLowOrder);
    let mut high_bit = terms();
    high_bit.tunnel_key[31] |= 0x80;
    assert_eq!(authority.issue_tunnel(&key, &high_bit, NOW).expect_err("refused").reason, Reason::InvalidField);
}

#[test]
fn a_request_of_another_key_type_or_with_a_broken_signature_or_trailing_bytes_is_refused() {
    let good = greedy_csr(&KeyPair::generate().expect("key"));
    RequesterKey::from_csr(&good).expect("accepted");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).expect("key");
        let refusal = RequesterKey::from_csr(&greedy_csr(&key)).expect_err("refused");
        assert_eq!(refusal.reason, Reason::CsrMalformed);
    }
    let trailing = [&good[..], &[0]].concat();
    assert_eq!(RequesterKey::from_csr(&trailing).expect_err("refused").reason, Reason::CsrMalformed);
    assert_eq!(RequesterKey::from_csr(&[0x30; 5000]).expect_err("refused").reason, Reason::CsrMalformed);
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(RequesterKey::from_csr(&forged).expect_err("refused").reason, Reason::PossessionUnproven);
    for length in 0..good.len() {
        RequesterKey::from_csr(&good[..length]).expect_err("cut off");
    }
}

#[test]
fn a_request_copied_from_another_requester_proves_nothing() {
    let (key, checked) = requester();
    let proof = rcgen::SigningKey::sign(&key, b"challenge").expect("signed");
    checked.verify(b"challenge", &proof).expect("its own proof");
    let (_, other) = requester();
    for refusal in [
        other.verify(b"challenge", &proof).expect_err("another key"),
        checked.verify(b"another challenge", &proof).expect_err("another challenge"),
        checked.verify(b"challenge", &[]).expect_err("nothing"),
    ] {
        assert_eq!(refusal.reason, Reason::PossessionUnproven);
    }
}

#[test]
fn the_directory_and_its_files_are_the_owners_alone() {
    let (directory, _authority) = mesh();
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let ca = directory.path().join("ca");
    for (name, expected) in [
        ("", 0o700),
        ("root", 0o700),
        ("root/root.key", 0o600),
        ("root/root.crt", 0o600),
        ("issuing.pem", 0o600),
        ("coordinator.pem", 0o600),
        ("signer.pem", 0o600),
    ] {
        assert_eq!(mode(&ca.join(name)), expected, "{name}");
    }
    fs::set_permissions(ca.join("issuing.pem"), fs::Permissions::from_mode(0o640)).expect("chmod");
    let error = reopen(&directory, NOW).expect_err("refused").to_string();
    assert!(error.contains("issuing.pem") && error.contains("640"), "{error}");
}

#[test]
fn a_second_init_leaves_the_first_root_alone() {
    let (directory, authority) = mesh();
    let error = Authority::init(&directory.path().join("ca"), &parameters(), NOW).expect_err("refused");
    assert!(matches!(error, CaError::AlreadyInitialised { .. }));
    assert_eq!(reopen(&directory, NOW).expect("opens").root_der(), authority.root_der());
}

#[test]
fn opening_what_was_never_initialised_says_what_to_run() {
    let directory = tempfile::tempdir().expect("directory");
    let error = reopen(&directory, NOW).expect_err("refused").to_string();
    assert!(error.contains("warren-coordinator init"), "{error}");
}

#[test]
fn reopening_within_half_of_their_lives_keeps_every_credential() {
    let (directory, authority) = mesh();
    let again = reopen(&directory, NOW.plus(DAY * 14)).expect("opens");
    assert_eq!(again.issuer_certificate(), authority.issuer_certificate());
    assert_eq!(again.signer_certificate(), authority.signer_certificate());
    assert_eq!(again.coordinator_certificate(), authority.coordinator_certificate());
    assert!(authority.renewed(NOW.plus(DAY * 14)).expect("checked").is_none());
}

#[test]
fn credentials_past_half_of_their_lives_are_renewed_and_earlier_certificates_stay_good() {
    let (_directory, authority) = mesh();
    let (_, key) = requester();
    let later = NOW.plus(DAY * 16);
    let old = authority.issue_tunnel(&key, &terms(), later).expect("issued");
    let next = authority.renewed(later).expect("renewed").expect("due");
    assert_ne!(next.issuer_certificate().key_id(), authority.issuer_certificate().key_id());
    assert_ne!(next.coordinator_certificate(), authority.coordinator_certificate());
    assert_eq!(next.signer_certificate(), authority.signer_certificate(), "its half is 45 days");
    assert_eq!(next.root_der(), authority.root_der());
    assert!(next.renewed(later).expect("checked").is_none(), "nothing is due twice");
    let new = next.issue_tunnel(&key, &terms(), later).expect("issued");
    for issued in [old, new] {
        let leaf = issued.certificate.leaf();
        control_trust::anchor(leaf, chain(&issued.chain), next.bundle(), Purpose::Tunnel, later).expect("anchored");
    }
}

#[test]
fn with_the_roots_key_away_what_holds_is_kept_and_what_ended_is_named() {
    let (directory, authority) = mesh();
    fs::remove_file(directory.path().join("ca/root/root.key")).expect("taken away");
    let kept = reopen(&directory, NOW.plus(DAY * 20)).expect("opens");
    assert_eq!(kept.issuer_certificate(), authority.issuer_certificate());
    let error = reopen(&directory, NOW.plus(DAY * 31)).expect_err("ended").to_string();
    assert!(error.contains("root.key") && error.contains("coordinator's certificate"), "{error}");
}

#[test]
fn a_damaged_or_foreign_credential_is_refused_by_name_and_not_replaced() {
    let (directory, _authority) = mesh();
    let (other, _) = mesh();
    let ca = directory.path().join("ca");
    for file in ["issuing.pem", "coordinator.pem", "signer.pem", "root/root.crt"] {
        let path = ca.join(file);
        let good = fs::read(&path).expect("there");
        for bad in [
            &good[..good.len() / 2],
            b"",
            b"\xff\xfe",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            fs::write(&path, bad).expect("written");
            let error = reopen(&directory, NOW).expect_err("refused").to_string();
            assert!(error.contains(file), "{error}");
            assert_eq!(fs::read(&path).expect("there"), bad);
        }
        fs::write(&path, good).expect("written");
    }
    // A key that belongs to another root cannot renew anything here.
    fs::copy(other.path().join("ca/root/root.key"), ca.join("root/root.key")).expect("copied");
    let error = reopen(&directory, NOW.plus(DAY * 16)).expect_err("refused").to_string();
    assert!(error.contains("root.key"), "{error}");
}

#[test]
fn a_missing_credential_is_issued_again() {
    let (directory, authority) = mesh();
    fs::remove_file(directory.path().join("ca/coordinator.pem")).expect("removed");
    let again = reopen(&directory, NOW).expect("opens");
    assert_ne!(again.coordinator_certificate(), authority.coordinator_certificate());
    assert_eq!(again.issuer_certificate(), authority.issuer_certificate());
}

#[test]
fn another_trust_domain_cannot_open_the_directory() {
    let (directory, _authority) = mesh();
    let mut foreign = parameters();
    foreign.trust_domain = "other.example".parse().expect("name");
    Authority::open(&directory.path().join("ca"), &foreign, None, NOW).expect_err("refused");
}

#[test]
fn a_signed_object_carries_a_signer_that_the_root_certified() {
    let (_directory, authority) = mesh();
    let object = authority.sign(b"body".to_vec(), &[]);
    let raw = object.signer.expect("signer");
    let sent = Chain::from_wire(&raw).expect("chain");
    let signer = SignerCertificate::parse(sent.leaf()).expect("profile");
    control_trust::anchor(signer.leaf(), sent, authority.bundle(), Purpose::ManifestSigner, NOW).expect("anchored");
    let key = ed25519_dalek::VerifyingKey::from_bytes(signer.key()).expect("key");
    let signature = ed25519_dalek::Signature::from_slice(&object.signature).expect("signature");
    key.verify_strict(&signing_input(b"body"), &signature).expect("holds");
    key.verify_strict(b"body", &signature).expect_err("the context is part of what is signed");
}

#[test]
fn tls_presents_the_leaf_of_its_own_key_and_then_the_root() {
    let (_directory, authority) = mesh();
    let [leaf, root] = authority.tls_chain().try_into().expect("two certificates");
    assert_eq!(root, CertificateDer::from(authority.root_der().to_vec()));
    let key = KeyPair::try_from(&authority.tls_key()).expect("key");
    let leaf = warren_proto::certificate::CoordinatorCertificate::parse(&leaf).expect("profile");
    assert_eq!(leaf.leaf().spki(), key.subject_public_key_info());
}

#[test]
fn no_private_key_shows_in_debug_output() {
    let (directory, authority) = mesh();
    let shown = format!("{authority:?}");
    let pem = fs::read_to_string(directory.path().join("ca/issuing.pem")).expect("there");
    let key_line = pem.lines().nth(1).expect("key");
    assert!(!shown.contains(&key_line[..20]));
    assert!(!shown.to_lowercase().contains("private"));
}
