//! `verify` accepts a good record and refuses each fault for its own reason.

use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, SanType};
use warren_proto::peer_map::{Revocation, RevocationTarget};

use super::test_mesh::{DAY, NOW, TRUST_DOMAIN, TestCa, TestMesh, TestNode, TestPeer, moment, own, uri};
use super::*;
use warren_proto::certificate::oid;

mod attacks;
mod signed_objects;

fn web() -> TestPeer {
    TestPeer::new(1, "shop/web", [9; 32])
}

fn judge(mesh: &TestMesh, node: &TestNode, chain: &[Bytes]) -> Result<VerifiedPeer, Refusal> {
    judge_at(mesh, node, chain, NOW)
}

fn judge_at(mesh: &TestMesh, node: &TestNode, chain: &[Bytes], now: UnixTime) -> Result<VerifiedPeer, Refusal> {
    node.with_view(&mesh.overlay, |view| verify(web().instance, chain, &mesh.bundle(), view, now))
}

fn judge_all(mesh: &TestMesh, node: &TestNode, records: &[PeerRecord]) -> Admission {
    node.with_view(&mesh.overlay, |view| verify_all(records, &mesh.bundle(), view, NOW))
}

/// The reason that a node gives against web's certificate after `change`.
fn reason_after(change: impl FnOnce(&mut CertificateParams)) -> Reason {
    let mesh = TestMesh::new();
    let mut params = TestMesh::template(&web());
    change(&mut params);
    judge(&mesh, &TestNode::default(), &mesh.chain(&params)).expect_err("refused").reason
}

/// The reason that a node gives against the certificate of web as `change` would have it.
fn reason_against(change: impl FnOnce(&mut TestPeer)) -> Reason {
    let mesh = TestMesh::new();
    let mut peer = web();
    change(&mut peer);
    judge(&mesh, &TestNode::default(), &mesh.chain(&TestMesh::template(&peer))).expect_err("refused").reason
}

fn revoking(target: RevocationTarget) -> RevocationSet {
    RevocationSet::new(vec![Revocation {
        id: "r1".to_owned(),
        target,
        revoked_at: NOW,
        expires_at: NOW.plus(DAY),
        reason: "stolen".to_owned(),
    }])
}

#[test]
fn a_peer_that_a_root_vouches_for_is_admitted_with_all_that_its_certificate_says() {
    let mesh = TestMesh::new();
    let peer = mesh.admit(&web());
    assert_eq!(peer.identity().to_string(), "spiffe://bank.example/ns/shop/sa/web");
    assert_eq!(peer.workload().as_str(), "shop/web");
    assert_eq!(peer.instance(), web().instance);
    assert_eq!(peer.node(), web().node);
    assert_eq!(*peer.tunnel_key(), [9; 32]);
    assert_eq!(peer.addresses(), web().addresses);
    assert_eq!(peer.capabilities(), web().capabilities);
    assert_eq!(peer.not_before(), web().not_before);
    assert_eq!(peer.valid_until(), web().not_after);
    assert!(!peer.is_plain());
}

#[test]
fn a_plain_device_is_known_by_its_mark() {
    let mut device = web();
    device.capabilities = Capabilities::PLAIN;
    assert!(TestMesh::new().admit(&device).is_plain());
}

#[test]
fn validity_is_the_shortest_on_the_path() {
    let mut mesh = TestMesh::new();
    let hour = NOW.plus(Duration::from_secs(3600));
    let mut short = TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay);
    short.not_after = moment(hour);
    mesh.issuing = mesh.root.intermediate(short);
    assert_eq!(mesh.admit(&web()).valid_until(), hour);
}

#[test]
fn a_certificate_without_exactly_one_spiffe_id_of_a_workload_is_refused() {
    let names: [Vec<SanType>; 8] = [
        vec![],
        vec![uri("spiffe://bank.example/ns/shop/sa/web"), uri("spiffe://bank.example/ns/shop/sa/db")],
        vec![uri("spiffe://bank.example/ns/shop/sa/web"), SanType::DnsName("web.example".try_into().expect("name"))],
        vec![uri("spiffe://bank.example")],
        vec![uri("spiffe://bank.example/node/00000000000000000000000000000000")],
        vec![uri("spiffe://bank.example/coordinator/alpha")],
        vec![uri("spiffe://bank.example/ns/shop/sa/web/")],
        vec![uri("https://bank.example/ns/shop/sa/web")],
    ];
    for mut names in names {
        let shown = format!("{names:?}");
        names.extend(web().addresses.iter().map(SanType::IpAddress));
        assert_eq!(reason_after(|params| params.subject_alt_names = names), Reason::CertificateIdentity, "{shown}");
    }
}

#[test]
fn a_leaf_that_could_sign_certificates_or_does_not_say_that_it_cannot_is_refused() {
    let profile = Reason::CertificateProfile;
    assert_eq!(reason_after(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)), profile);
    assert_eq!(reason_after(|params| params.key_usages.push(KeyUsagePurpose::CrlSign)), profile);
    assert_eq!(reason_after(|params| params.key_usages.clear()), profile);
    assert_eq!(reason_after(|params| params.is_ca = IsCa::NoCa), profile);
    assert_eq!(reason_after(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), profile);
}

#[test]
fn a_certificate_without_the_mesh_tunnel_purpose_or_with_a_foreign_one_is_refused() {
    use rcgen::ExtendedKeyUsagePurpose as Eku;
    let tunnel = || own(oid::MESH_TUNNEL);
    for purposes in [
        vec![],
        vec![Eku::ServerAuth, Eku::ClientAuth],
        vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::NODE)],
        vec![Eku::ServerAuth, Eku::ClientAuth, tunnel(), own(oid::COORDINATOR)],
        vec![Eku::ServerAuth, Eku::ClientAuth, tunnel(), Eku::Any],
        vec![Eku::ServerAuth, Eku::ClientAuth, tunnel(), Eku::Other(vec![1, 3, 6, 1, 4, 1, 9999, 1])],
        vec![tunnel()],
    ] {
        assert_eq!(reason_after(|params| params.extended_key_usages = purposes), Reason::CertificatePurpose);
    }
}

#[test]
fn unknown_critical_and_repeated_extensions_are_refused() {
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9999, 2], vec![5, 0]);
    let harmless = unknown.clone();
    unknown.set_criticality(true);
    assert_eq!(reason_after(|params| params.custom_extensions.push(unknown)), Reason::CertificateProfile);
    let twice = [harmless.clone(), harmless.clone()];
    assert_eq!(reason_after(|params| params.custom_extensions.extend(twice)), Reason::CertificateProfile);
    let second_binding = TestMesh::template(&web()).custom_extensions;
    assert_eq!(reason_after(|params| params.custom_extensions.extend(second_binding)), Reason::CertificateProfile);
    let mesh = TestMesh::new();
    let mut params = TestMesh::template(&web());
    params.custom_extensions.push(harmless);
    judge(&mesh, &TestNode::default(), &mesh.chain(&params))
        .expect("an unknown extension that is not critical is nothing");
}

#[test]
fn a_binding_that_is_missing_critical_or_malformed_is_refused() {
    assert_eq!(reason_after(|params| params.custom_extensions.clear()), Reason::CertificateProfile);
    assert_eq!(
        reason_after(|params| params.custom_extensions.iter_mut().for_each(|one| one.set_criticality(true))),
        Reason::CertificateProfile
    );
    let garbage = CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, vec![0x30, 0]);
    assert_eq!(reason_after(|params| params.custom_extensions = vec![garbage]), Reason::CertificateMalformed);
}

#[test]
fn keys_and_signatures_outside_the_profile_are_refused() {
    let mesh = TestMesh::new();
    let params = TestMesh::template(&web());
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_ED25519] {
        let leaf = mesh.issuing.sign(&params, &KeyPair::generate_for(algorithm).expect("key"));
        let refusal = judge(&mesh, &TestNode::default(), &[leaf, mesh.issuing.der.clone()]).expect_err("refused");
        assert_eq!(refusal.reason, Reason::CertificateAlgorithm, "{refusal}");
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("key");
    let issuing = TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay);
    let rsa = TestCa { der: mesh.root.sign(&issuing, &key), issuer: rcgen::Issuer::new(issuing, key) };
    let leaf = rsa.sign(&params, &KeyPair::generate().expect("key"));
    let refusal = judge(&mesh, &TestNode::default(), &[leaf, rsa.der]).expect_err("refused");
    assert_eq!(refusal.reason, Reason::CertificateAlgorithm);
}

#[test]
fn a_certificate_of_another_trust_domain_is_refused_even_when_the_names_look_alike() {
    for other in ["other.example", "bank.example.evil.example", "bank.exampl", "ank.example"] {
        let names = vec![uri(&format!("spiffe://{other}/ns/shop/sa/web"))];
        assert_eq!(
            reason_after(|params| {
                params.subject_alt_names = names;
                params.subject_alt_names.extend(web().addresses.iter().map(SanType::IpAddress));
            }),
            Reason::WrongTrustDomain
        );
    }
}

#[test]
fn a_certificate_by_another_root_is_refused_whatever_it_says() {
    let (mesh, stranger) = (TestMesh::new(), TestMesh::new());
    let node = TestNode::default();
    let forged = stranger.chain(&TestMesh::template(&web()));
    assert_eq!(judge(&mesh, &node, &forged).expect_err("refused").reason, Reason::UntrustedIssuer);
    // Neither its own root sent along nor our intermediate beside it helps.
    let with_root = [&forged[..], std::slice::from_ref(&stranger.root.der)].concat();
    assert_eq!(judge(&mesh, &node, &with_root).expect_err("refused").reason, Reason::UntrustedIssuer);
    let with_ours = [forged[0].clone(), mesh.issuing.der.clone()];
    assert_eq!(judge(&mesh, &node, &with_ours).expect_err("refused").reason, Reason::UntrustedIssuer);
}

#[test]
fn a_tunnel_certificate_needs_a_marked_intermediate_of_path_length_0_right_above_it() {
    let mesh = TestMesh::new();
    let node = TestNode::default();
    let params = TestMesh::template(&web());
    let key = KeyPair::generate().expect("key");
    let by_root = [mesh.root.sign(&params, &key)];
    assert_eq!(judge(&mesh, &node, &by_root).expect_err("refused").reason, Reason::UntrustedIssuer);
    let unmarked = mesh.root.intermediate(TestMesh::authority(TRUST_DOMAIN, "unmarked", Some(0)));
    let by_unmarked = [unmarked.sign(&params, &key), unmarked.der];
    assert_eq!(judge(&mesh, &node, &by_unmarked).expect_err("refused").reason, Reason::UntrustedIssuer);
    for path_length in [rcgen::BasicConstraints::Unconstrained, rcgen::BasicConstraints::Constrained(1)] {
        let mut loose = TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay);
        loose.is_ca = IsCa::Ca(path_length);
        let loose = mesh.root.intermediate(loose);
        let by_loose = [loose.sign(&params, &key), loose.der];
        assert_eq!(judge(&mesh, &node, &by_loose).expect_err("refused").reason, Reason::UntrustedIssuer);
    }
    // One more authority below an intermediate of path length 0.
    let below = mesh.issuing.intermediate(TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay));
    let too_long = [below.sign(&params, &key), below.der, mesh.issuing.der.clone()];
    assert_eq!(judge(&mesh, &node, &too_long).expect_err("refused").reason, Reason::CertificateProfile);
    // An authority of a company above ours is fine.
    let company = mesh.root.intermediate(TestMesh::authority(TRUST_DOMAIN, "company", Some(1)));
    let ours = company.intermediate(TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay));
    judge(&mesh, &node, &[ours.sign(&params, &key), ours.der, company.der]).expect("admitted");
}

#[test]
fn an_end_entity_cannot_act_as_an_issuer() {
    let mesh = TestMesh::new();
    let holder = TestMesh::template(&TestPeer::new(2, "shop/db", [8; 32]));
    let key = KeyPair::generate().expect("key");
    let leaf = TestCa { der: mesh.issuing.sign(&holder, &key), issuer: rcgen::Issuer::new(holder, key) };
    let forged = leaf.sign(&TestMesh::template(&web()), &KeyPair::generate().expect("key"));
    let refusal = judge(&mesh, &TestNode::default(), &[forged, leaf.der, mesh.issuing.der.clone()]);
    assert_eq!(refusal.expect_err("refused").reason, Reason::CertificateProfile);
}

#[test]
fn a_leaf_must_name_the_key_of_its_issuer() {
    assert_eq!(
        reason_after(|params| params.use_authority_key_identifier_extension = false),
        Reason::CertificateProfile
    );
}

#[test]
fn a_certificate_is_good_from_a_minute_before_its_time_until_its_very_end() {
    let mesh = TestMesh::new();
    let mut peer = web();
    peer.not_before = NOW;
    let chain = mesh.chain(&TestMesh::template(&peer));
    let node = TestNode::default();
    let second = Duration::from_secs(1);
    let at = |now| judge_at(&mesh, &node, &chain, now).map(|_| ()).map_err(|refusal| refusal.reason);
    assert_eq!(at(NOW.minus(CLOCK_SKEW).minus(second)), Err(Reason::CertificateNotYetValid));
    assert_eq!(at(NOW.minus(CLOCK_SKEW)), Ok(()));
    assert_eq!(at(NOW), Ok(()));
    assert_eq!(at(peer.not_after.minus(second)), Ok(()));
    assert_eq!(at(peer.not_after), Err(Reason::CertificateEnded));
}

#[test]
fn an_ended_intermediate_or_root_ends_what_it_issued() {
    let mut mesh = TestMesh::new();
    let mut ended = TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay);
    ended.not_after = moment(NOW);
    mesh.issuing = mesh.root.intermediate(ended);
    let chain = mesh.chain(&TestMesh::template(&web()));
    let refusal = judge(&mesh, &TestNode::default(), &chain).expect_err("refused");
    assert_eq!(refusal.reason, Reason::CertificateEnded);
    let mut root = TestMesh::authority(TRUST_DOMAIN, "root", None);
    root.not_after = moment(NOW);
    mesh.root = TestCa::root(root);
    mesh.issuing = mesh.root.intermediate(TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay));
    let chain = mesh.chain(&TestMesh::template(&web()));
    judge(&mesh, &TestNode::default(), &chain).expect_err("the path validation does not look at a root's dates; we do");
}

#[test]
fn a_certificate_that_outlives_the_meshs_limit_is_refused() {
    assert_eq!(
        reason_against(|peer| peer.not_after = NOW.plus(DAY + Duration::from_secs(1))),
        Reason::CertificateLifetime
    );
}

#[test]
fn addresses_outside_the_overlay_are_refused_mapped_ones_too() {
    // Issued by an intermediate without name constraints, so that this check stands alone.
    let mut mesh = TestMesh::new();
    let mut open = TestMesh::issuing(TRUST_DOMAIN, &mesh.overlay);
    open.name_constraints = None;
    mesh.issuing = mesh.root.intermediate(open);
    for (v6, v4) in [
        ("fd12:3456:789b::1", "10.77.0.1"),
        ("fd12:3456:789a::1", "10.78.0.1"),
        ("::ffff:10.77.0.1", "10.77.0.1"),
        ("::10.77.0.1", "10.77.0.1"),
        ("ff02::1", "10.77.0.1"),
        ("fd12:3456:789a::1", "224.0.0.1"),
        ("fd12:3456:789a::1", "127.0.0.1"),
    ] {
        let mut peer = web();
        peer.addresses = OverlayAddresses { v6: v6.parse().expect("v6"), v4: Some(v4.parse().expect("v4")) };
        let refusal = judge(&mesh, &TestNode::default(), &mesh.chain(&TestMesh::template(&peer))).expect_err("refused");
        assert_eq!(refusal.reason, Reason::AddressOutsidePrefix, "{v6} {v4}");
    }
}

#[test]
fn the_intermediates_name_constraint_confines_addresses_by_itself() {
    let mesh = TestMesh::new();
    let mut peer = web();
    peer.addresses.v6 = "fd12:3456:789b::1".parse().expect("address");
    let chain = mesh.chain(&TestMesh::template(&peer));
    let wider = Overlay { v6: ("fd00::".parse().expect("address"), 8), ..mesh.overlay };
    let refusal = TestNode::default()
        .with_view(&wider, |view| verify(peer.instance, &chain, &mesh.bundle(), view, NOW))
        .expect_err("refused");
    assert_eq!(refusal.reason, Reason::AddressOutsidePrefix);
}

#[test]
fn ip_names_are_one_ipv6_and_at_most_one_ipv4_address() {
    let address = |text: &str| SanType::IpAddress(text.parse().expect("address"));
    for addresses in [
        vec![],
        vec![address("10.77.0.1")],
        vec![address("fd12:3456:789a::1"), address("fd12:3456:789a::2")],
        vec![address("fd12:3456:789a::1"), address("10.77.0.1"), address("10.77.0.2")],
    ] {
        assert_eq!(
            reason_after(|params| {
                params.subject_alt_names.truncate(1);
                params.subject_alt_names.extend(addresses);
            }),
            Reason::CertificateProfile
        );
    }
}

#[test]
fn this_nodes_own_address_and_key_cannot_be_claimed_by_a_record() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    for address in web().addresses.iter() {
        let node = TestNode { local_addresses: [address].into(), ..TestNode::default() };
        assert_eq!(judge(&mesh, &node, &chain).expect_err("refused").reason, Reason::AddressIsLocal);
    }
    let node = TestNode { local_keys: [[9; 32]].into(), ..TestNode::default() };
    assert_eq!(judge(&mesh, &node, &chain).expect_err("refused").reason, Reason::KeyIsLocal);
}

#[test]
fn a_certificate_of_another_instance_than_the_records_is_refused() {
    assert_eq!(reason_against(|peer| peer.instance = InstanceId::from_bytes([7; 16])), Reason::BindingMismatch);
}

#[test]
fn every_kind_of_revocation_ends_admission() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    let good = judge(&mesh, &TestNode::default(), &chain).expect("admitted");
    let key_id = |der: &[u8]| {
        warren_proto::certificate::AuthorityCertificate::parse(der).expect("authority").key_id().as_bytes().to_vec()
    };
    let issuing = warren_proto::certificate::AuthorityCertificate::parse(&mesh.issuing.der).expect("authority");
    let targets = [
        RevocationTarget::Serial {
            issuer_key_id: good.issuer_key_id().as_bytes().to_vec(),
            serial: good.serial().as_bytes().to_vec(),
        },
        RevocationTarget::TunnelKey([9; 32]),
        RevocationTarget::Instance(web().instance),
        RevocationTarget::Node(web().node),
        RevocationTarget::Identity {
            spiffe_id: good.identity().clone(),
            issued_before: NOW.plus(Duration::from_secs(1)),
        },
        RevocationTarget::Issuer(key_id(&mesh.issuing.der)),
        RevocationTarget::Issuer(key_id(&mesh.root.der)),
        RevocationTarget::Serial {
            issuer_key_id: key_id(&mesh.root.der),
            serial: issuing.serial().as_bytes().to_vec(),
        },
    ];
    for target in targets {
        let node = TestNode { revocations: revoking(target.clone()), ..TestNode::default() };
        let refusal = judge(&mesh, &node, &chain).expect_err("refused");
        assert_eq!(refusal.reason, Reason::Revoked, "{target:?}");
    }
}

#[test]
fn revocations_of_others_and_certificates_issued_from_the_cutoff_on_leave_a_peer_alone() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    let good = mesh.admit(&web());
    for target in [
        RevocationTarget::TunnelKey([8; 32]),
        RevocationTarget::Instance(InstanceId::from_bytes([8; 16])),
        RevocationTarget::Serial { issuer_key_id: vec![1; 20], serial: good.serial().as_bytes().to_vec() },
        RevocationTarget::Identity { spiffe_id: good.identity().clone(), issued_before: NOW },
    ] {
        let node = TestNode { revocations: revoking(target.clone()), ..TestNode::default() };
        judge(&mesh, &node, &chain).unwrap_or_else(|refusal| panic!("{target:?}: {refusal}"));
    }
}

#[test]
fn past_the_age_of_the_last_heartbeat_only_known_peers_are_admitted() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    let mut node = TestNode { fresh_until: NOW, ..TestNode::default() };
    judge(&mesh, &node, &chain).expect("fresh to the last second");
    node.fresh_until = NOW.minus(Duration::from_secs(1));
    assert_eq!(judge(&mesh, &node, &chain).expect_err("refused").reason, Reason::MeshStale);
    node.admitted.insert(web().instance);
    judge(&mesh, &node, &chain).expect("nothing is loosened and nothing known is cut");
    node.revocations = revoking(RevocationTarget::Instance(web().instance));
    assert_eq!(judge(&mesh, &node, &chain).expect_err("refused").reason, Reason::Revoked);
}

#[test]
fn a_stranger_that_no_rule_links_is_not_admitted() {
    let mesh = TestMesh::new();
    let node = TestNode { linked: |workload| workload.as_str() == "shop/db", ..TestNode::default() };
    let refusal = judge(&mesh, &node, &mesh.chain(&TestMesh::template(&web()))).expect_err("refused");
    assert_eq!(refusal.reason, Reason::NotLinked);
}

#[test]
fn two_records_that_claim_one_address_are_both_refused_and_others_stay() {
    let mesh = TestMesh::new();
    let db = TestPeer::new(2, "shop/db", [8; 32]);
    let mut thief = TestPeer::new(3, "shop/thief", [7; 32]);
    thief.addresses.v4 = web().addresses.v4;
    let records = [&web(), &db, &thief].map(|peer| mesh.record(peer));
    let admission = judge_all(&mesh, &TestNode::default(), &records);
    let admitted: Vec<_> = admission.peers.iter().map(VerifiedPeer::instance).collect();
    assert_eq!(admitted, [db.instance]);
    let refused: Vec<_> = admission.refused.iter().map(|one| (one.instance, one.refusal.reason)).collect();
    let twice = Reason::AddressClaimedTwice;
    assert_eq!(refused, [(web().instance, twice), (thief.instance, twice)]);
}

#[test]
fn two_records_that_claim_one_key_are_both_refused() {
    let mesh = TestMesh::new();
    let thief = TestPeer::new(3, "shop/thief", [9; 32]);
    let admission = judge_all(&mesh, &TestNode::default(), &[mesh.record(&web()), mesh.record(&thief)]);
    assert_eq!(admission.peers, []);
    assert!(admission.refused.iter().all(|one| one.refusal.reason == Reason::KeyClaimedTwice));
    assert_eq!(admission.refused.len(), 2);
}

#[test]
fn a_forged_record_cannot_push_out_a_good_one_by_claiming_its_address() {
    let (mesh, stranger) = (TestMesh::new(), TestMesh::new());
    let mut thief = TestPeer::new(3, "shop/thief", [9; 32]);
    thief.addresses = web().addresses;
    let admission = judge_all(&mesh, &TestNode::default(), &[mesh.record(&web()), stranger.record(&thief)]);
    assert_eq!(admission.peers.len(), 1);
    assert_eq!(admission.peers[0].instance(), web().instance);
    assert_eq!(admission.refused[0].refusal.reason, Reason::UntrustedIssuer);
}

#[test]
fn the_two_certificates_of_a_rotation_are_one_instance_newer_first() {
    let mesh = TestMesh::new();
    let mut newer = web();
    newer.tunnel_key = [8; 32];
    newer.not_before = NOW;
    let chains = [&web(), &newer].map(|peer| mesh.chain(&TestMesh::template(peer)));
    let record = PeerRecord { instance: web().instance, chains: chains.into() };
    let admission = judge_all(&mesh, &TestNode::default(), std::slice::from_ref(&record));
    let keys: Vec<_> = admission.peers.iter().map(|peer| *peer.tunnel_key()).collect();
    assert_eq!(keys, [[8; 32], [9; 32]]);
    assert_eq!(admission.refused, []);
    // When the older one is revoked the newer stands alone.
    let node = TestNode { revocations: revoking(RevocationTarget::TunnelKey([9; 32])), ..TestNode::default() };
    let admission = judge_all(&mesh, &node, &[record]);
    assert_eq!(admission.peers.len(), 1);
    assert_eq!(admission.refused[0].refusal.reason, Reason::Revoked);
}

#[test]
fn two_certificates_of_one_record_that_differ_in_more_than_key_and_dates_are_refused() {
    let mesh = TestMesh::new();
    let mut others = [web(), web(), web(), web()];
    others[0].workload = "shop/db".parse().expect("name");
    others[1].node = NodeId::from_bytes([7; 16]);
    others[2].addresses.v4 = None;
    others[3].capabilities = Capabilities::PLAIN;
    for mut other in others {
        other.tunnel_key = [8; 32];
        let chains = [&web(), &other].map(|peer| mesh.chain(&TestMesh::template(peer)));
        let record = PeerRecord { instance: web().instance, chains: chains.into() };
        let admission = judge_all(&mesh, &TestNode::default(), &[record]);
        assert_eq!(admission.peers, []);
        assert_eq!(admission.refused[0].refusal.reason, Reason::BindingMismatch);
    }
}

#[test]
fn a_plain_device_keeps_its_key_and_counts_once() {
    let mesh = TestMesh::new();
    let mut device = web();
    device.capabilities = Capabilities::PLAIN;
    let mut renewed = device.clone();
    renewed.not_before = NOW;
    let chains = [&device, &renewed].map(|peer| mesh.chain(&TestMesh::template(peer)));
    let record = PeerRecord { instance: device.instance, chains: chains.into() };
    let admission = judge_all(&mesh, &TestNode::default(), &[record]);
    assert_eq!(admission.peers.len(), 1);
    assert_eq!(admission.peers[0].not_before(), NOW);
}

#[test]
fn a_certificate_that_was_verified_before_is_judged_again_by_everything_but_its_signatures() {
    let mesh = TestMesh::new();
    let earlier = [mesh.admit(&web())];
    let mut record = mesh.record(&web());
    record.chains = vec![vec![earlier[0].certificate.leaf().der().to_vec().into()]];
    let again = |node: &TestNode, bundle: &TrustBundle, now| {
        let records = std::slice::from_ref(&record);
        let judge = |view: &LocalView<'_>| verify_all_after(&earlier, records, bundle, view, now);
        let admission = node.with_view(&mesh.overlay, judge);
        match admission.refused.first() {
            None => Ok(admission.peers),
            Some(refused) => Err(refused.refusal.reason),
        }
    };
    let bundle = mesh.bundle();
    // Without the intermediate beside it there is no path to check: the earlier one stands.
    assert_eq!(again(&TestNode::default(), &bundle, NOW), Ok(earlier.to_vec()));
    let admission = judge_all(&mesh, &TestNode::default(), std::slice::from_ref(&record));
    assert_eq!(admission.refused[0].refusal.reason, Reason::UntrustedIssuer);
    let revoked = TestNode { revocations: revoking(RevocationTarget::TunnelKey([9; 32])), ..TestNode::default() };
    assert_eq!(again(&revoked, &bundle, NOW), Err(Reason::Revoked));
    let unlinked = TestNode { linked: |_| false, ..TestNode::default() };
    assert_eq!(again(&unlinked, &bundle, NOW), Err(Reason::NotLinked));
    assert_eq!(again(&TestNode::default(), &bundle, web().not_after), Err(Reason::CertificateEnded));
    assert_eq!(again(&TestNode::default(), &TestMesh::new().bundle(), NOW), Err(Reason::UntrustedIssuer));
}
