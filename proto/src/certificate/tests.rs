//! Each certificate profile reads back, and each deviation is refused by name.

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

use super::test_certificates::{self as make, DAY, Mesh, NOW, own, uri};
use super::*;
use crate::NodeId;

type Parse = fn(&[u8]) -> Result<Leaf, Refusal>;

/// Every kind of leaf: its template, its key and its parser.
fn kinds() -> [(&'static str, CertificateParams, KeyPair, Parse); 5] {
    let p256 = || KeyPair::generate().expect("key");
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    [
        ("tunnel", make::tunnel(), p256(), |der| TunnelCertificate::parse(der).map(|one| one.leaf().clone())),
        ("svid", make::svid(), p256(), |der| WorkloadSvid::parse(der).map(|one| one.leaf().clone())),
        ("node", make::node(), p256(), |der| NodeCertificate::parse(der).map(|one| one.leaf().clone())),
        ("coordinator", make::coordinator(), p256(), |der| {
            CoordinatorCertificate::parse(der).map(|one| one.leaf().clone())
        }),
        ("signer", make::signer(), ed25519, |der| SignerCertificate::parse(der).map(|one| one.leaf().clone())),
    ]
}

/// What every kind's parser says after `change`, by kind.
fn all_after(change: impl Fn(&mut CertificateParams)) -> Vec<(&'static str, Result<Leaf, Refusal>)> {
    let mesh = Mesh::new();
    kinds()
        .into_iter()
        .map(|(kind, mut params, key, parse)| {
            change(&mut params);
            (kind, parse(&mesh.issuing.sign(&params, &key)))
        })
        .collect()
}

fn all_refused(reason: Reason, change: impl Fn(&mut CertificateParams)) {
    for (kind, parsed) in all_after(change) {
        assert_eq!(parsed.map_err(|refusal| refusal.reason), Err(reason), "{kind}");
    }
}

#[test]
fn a_certificate_of_each_kind_is_read_with_its_common_fields() {
    let mesh = Mesh::new();
    let issuer = AuthorityCertificate::parse(&mesh.issuing.der).expect("authority");
    for (kind, params, key, parse) in kinds() {
        let der = mesh.issuing.sign(&params, &key);
        let leaf = parse(&der).unwrap_or_else(|refusal| panic!("{kind}: {refusal}"));
        assert_eq!(leaf.der()[..], der);
        assert_eq!((leaf.not_before(), leaf.not_after()), (NOW, NOW.plus(DAY)));
        assert_eq!(leaf.issuer_key_id(), issuer.key_id());
        assert_eq!(leaf.spki(), rcgen::PublicKeyData::subject_public_key_info(&key));
    }
    let node = NodeCertificate::parse(&mesh.issuing.issue(&make::node())).expect("node");
    assert_eq!(node.node(), NodeId::from_bytes([2; 16]));
}

#[test]
fn no_kind_can_be_taken_for_another() {
    let mesh = Mesh::new();
    for (kind, params, key, _) in kinds() {
        let der = mesh.issuing.sign(&params, &key);
        for (other, _, _, parse) in kinds() {
            assert_eq!(parse(&der).is_ok(), kind == other, "a {kind} certificate read as a {other} certificate");
        }
        AuthorityCertificate::parse(&der).expect_err("a leaf is no authority");
    }
    for (_, _, _, parse) in kinds() {
        parse(&mesh.issuing.der).expect_err("an authority is no leaf");
    }
}

#[test]
fn the_name_of_one_kind_with_the_purposes_of_another_is_refused() {
    let names = [
        "spiffe://bank.example/ns/shop/sa/web",
        "spiffe://bank.example/node/02020202020202020202020202020202",
        "spiffe://bank.example/coordinator/alpha",
        "spiffe://bank.example/signer/alpha",
        "spiffe://bank.example",
        "spiffe://bank.example/elsewhere",
    ];
    let mesh = Mesh::new();
    for (kind, params, key, parse) in kinds() {
        for name in names {
            let mut renamed = params.clone();
            renamed.subject_alt_names[0] = uri(name);
            let same = renamed.subject_alt_names[0] == params.subject_alt_names[0];
            assert_eq!(parse(&mesh.issuing.sign(&renamed, &key)).is_ok(), same, "{kind} {name}");
        }
    }
}

#[test]
fn zero_two_or_misspelt_spiffe_ids_are_refused_in_every_kind() {
    let identity = Reason::CertificateIdentity;
    all_refused(identity, |params| {
        params.subject_alt_names.remove(0);
    });
    all_refused(identity, |params| params.subject_alt_names.push(uri("spiffe://bank.example/ns/shop/sa/db")));
    all_refused(identity, |params| params.subject_alt_names.push(params.subject_alt_names[0].clone()));
    all_refused(identity, |params| {
        params.subject_alt_names.push(SanType::DnsName("bank.example".try_into().expect("name")));
    });
    for misspelt in [
        "SPIFFE://bank.example/ns/shop/sa/web",
        "spiffe://Bank.example/ns/shop/sa/web",
        "spiffe://bank.example/ns/shop/sa/web/",
        "spiffe://bank.example/ns/shop/sa//web",
        "spiffe://bank.example/ns/shop/sa/..",
        "spiffe://bank.example/ns/shop/sa/w%65b",
        "spiffe://user@bank.example/ns/shop/sa/web",
        "spiffe://bank.example:443/ns/shop/sa/web",
        "spiffe://bank.example/ns/shop/sa/web?x=1",
        "spiffe://bank.example/ns/shop/sa/web#x",
        "spiffe:///ns/shop/sa/web",
        "",
    ] {
        all_refused(identity, |params| params.subject_alt_names[0] = uri(misspelt));
    }
    let long = format!("spiffe://bank.example/ns/shop/sa/{}", "a".repeat(2048));
    all_refused(identity, |params| params.subject_alt_names[0] = uri(&long));
}

#[test]
fn a_workloads_own_svid_binds_no_tunnel_key() {
    let mesh = Mesh::new();
    let mut params = make::svid();
    params.custom_extensions = make::tunnel().custom_extensions;
    let refusal = WorkloadSvid::parse(&mesh.issuing.issue(&params)).expect_err("refused");
    assert_eq!(refusal.reason, Reason::CertificateProfile);
}

#[test]
fn only_tunnel_certificates_may_carry_addresses() {
    let parsed = all_after(|params| {
        params.subject_alt_names.push(SanType::IpAddress("10.77.0.1".parse().expect("address")));
    });
    for (kind, parsed) in parsed {
        assert_eq!(parsed.is_ok(), kind == "tunnel", "{kind}");
    }
}

#[test]
fn a_leaf_of_any_kind_must_say_that_it_signs_no_certificates() {
    let profile = Reason::CertificateProfile;
    all_refused(profile, |params| params.is_ca = IsCa::NoCa);
    all_refused(profile, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    all_refused(profile, |params| params.key_usages.clear());
    all_refused(profile, |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    all_refused(profile, |params| params.use_authority_key_identifier_extension = false);
    all_refused(Reason::CertificatePurpose, |params| params.extended_key_usages.clear());
    all_refused(Reason::CertificatePurpose, |params| {
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::Any);
    });
    all_refused(Reason::CertificatePurpose, |params| {
        params.extended_key_usages.push(params.extended_key_usages[0].clone());
        params.extended_key_usages.push(own(oid::NODE));
        params.extended_key_usages.push(own(oid::COORDINATOR));
    });
    let marked = make::issuing().custom_extensions;
    all_refused(profile, |params| params.custom_extensions.extend(marked.clone()));
}

#[test]
fn each_kind_has_the_type_of_key_that_it_must_have() {
    let mesh = Mesh::new();
    for (kind, params, _, parse) in kinds() {
        for (algorithm, ecdsa) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, true),
            (&rcgen::PKCS_ECDSA_P384_SHA384, true),
            (&rcgen::PKCS_ED25519, false),
        ] {
            let der = mesh.issuing.sign(&params, &KeyPair::generate_for(algorithm).expect("key"));
            let fits = ecdsa != (kind == "signer");
            match parse(&der) {
                Ok(_) => assert!(fits, "{kind}"),
                Err(refusal) => {
                    assert!(!fits, "{kind}");
                    assert_eq!(refusal.reason, Reason::CertificateAlgorithm);
                }
            }
        }
    }
}

#[test]
fn an_authority_must_say_that_it_is_one_and_may_name_only_a_trust_domain() {
    let root = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = make::authority("root", None);
        change(&mut params);
        AuthorityCertificate::parse(&make::Ca::root(params).der).map(|_| ()).map_err(|refusal| refusal.reason)
    };
    assert_eq!(root(&|_| ()), Ok(()));
    assert_eq!(root(&|params| params.subject_alt_names.clear()), Ok(()), "an outside CA has no SPIFFE ID");
    let profile = Err(Reason::CertificateProfile);
    assert_eq!(root(&|params| params.is_ca = IsCa::NoCa), profile);
    assert_eq!(root(&|params| params.is_ca = IsCa::ExplicitNoCa), profile);
    assert_eq!(root(&|params| params.key_usages.clear()), profile);
    assert_eq!(root(&|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]), profile);
    assert_eq!(root(&|params| params.key_usages.push(KeyUsagePurpose::KeyAgreement)), profile);
    let workload = || vec![uri("spiffe://bank.example/ns/shop/sa/web")];
    assert_eq!(root(&|params| params.subject_alt_names = workload()), profile);
}

#[test]
fn only_the_mark_with_a_path_length_of_0_makes_an_issuing_intermediate() {
    let mesh = Mesh::new();
    let issues = |params: CertificateParams| {
        let der = mesh.root.intermediate(params).der;
        AuthorityCertificate::parse(&der).expect("authority").issues_for_the_mesh()
    };
    assert!(issues(make::issuing()));
    assert!(!issues(make::authority("unmarked", Some(0))));
    let mut longer = make::issuing();
    longer.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    assert!(!issues(longer));
    let mut open = make::issuing();
    open.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(!issues(open));
}

#[test]
fn serial_numbers_compare_by_value_and_are_positive_and_short() {
    assert_eq!(SerialNumber::new(&[0, 0, 1]), SerialNumber::new(&[1]));
    assert_eq!(SerialNumber::new(&[0, 0x80]).expect("valid").as_bytes(), [0x80]);
    SerialNumber::new(&[]).expect_err("empty");
    SerialNumber::new(&[0, 0]).expect_err("zero");
    SerialNumber::new(&[1; 21]).expect_err("too long");
    SerialNumber::from_der(&[0x80]).expect_err("negative");
    KeyId::new(&[]).expect_err("empty");
    KeyId::new(&[1; 33]).expect_err("too long");
}

#[test]
fn a_chain_is_bounded_in_number_and_size() {
    let sizes = |sizes: &[usize]| {
        let certificates: Vec<_> = sizes.iter().map(|size| vec![0; *size]).collect();
        Chain::new(certificates.iter().map(Vec::as_slice)).map(|chain| chain.intermediates().count())
    };
    assert_eq!(sizes(&[500, 400, 300, 200]).expect("within limits"), 3);
    assert_eq!(sizes(&[]).expect_err("empty").reason, Reason::CertificateMalformed);
    for over in [&[1; 5][..], &[8193], &[1, 8193], &[8192, 8192, 1]] {
        assert_eq!(sizes(over).expect_err("over").reason, Reason::RecordTooLarge);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, parse) in parsers() {
            prop_assert!(parse(bytes.as_slice()).is_err());
        }
        prop_assert!(AuthorityCertificate::parse(&bytes).is_err());
    }

    #[test]
    fn bent_certificates_never_panic(
        kind in 0..5_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (der, parse) = &parsers()[kind];
        let mut der = der.clone();
        for (at, byte) in changes {
            let at = at.index(der.len());
            der[at] = byte;
        }
        let _ = parse(&der);
        let _ = AuthorityCertificate::parse(&der);
        der.truncate(cut.index(der.len()));
        prop_assert!(parse(&der).is_err());
    }

    #[test]
    fn a_key_is_canonical_exactly_when_it_is_below_the_prime(
        low: u8,
        fill in prop::sample::select(vec![0_u8, 0xfe, 0xff]),
        high: u8,
    ) {
        let mut key = [fill; 32];
        key[0] = low;
        key[31] = high;
        let mut prime = [0xff; 32];
        prime[0] = 0xed;
        prime[31] = 0x7f;
        prop_assert_eq!(is_canonical(&key), key.iter().rev().lt(prime.iter().rev()));
    }
}

fn parsers() -> &'static [(Vec<u8>, Parse)] {
    static PARSERS: std::sync::OnceLock<Vec<(Vec<u8>, Parse)>> = std::sync::OnceLock::new();
    PARSERS.get_or_init(|| {
        let mesh = Mesh::new();
        kinds().into_iter().map(|(_, params, key, parse)| (mesh.issuing.sign(&params, &key), parse)).collect()
    })
}
