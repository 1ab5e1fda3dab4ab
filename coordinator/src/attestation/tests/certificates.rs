//! Certificates of another authority: every refusal, published bypasses by name, and that no bytes panic.

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SigningKey,
};
use time::OffsetDateTime;
use warren_proto::admin::{AttestorSettings, CertificateIssuer, Selector};
use warren_proto::reason::Reason;
use zeroize::Zeroizing;

use super::super::{Attested, CertificateProof, Presented, Rejected, attest, check_selectors, checked};
use super::NOW;
use crate::store::Revision;

const MESSAGE: &[u8] = b"challenge, connection, request";
const P256: u32 = 0x0403;
const WEB: &str = "spiffe://other.example/ns/shop/sa/web";

/// Another authority with an intermediate.
struct Other {
    root: Vec<u8>,
    root_pem: String,
    intermediate: Vec<u8>,
    root_issuer: Issuer<'static, KeyPair>,
    issuer: Issuer<'static, KeyPair>,
}

fn moment(offset: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(NOW.0).expect("time") + offset).expect("time")
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (moment(-86_400), moment(86_400));
    params
}

fn leaf_params(uris: &[&str], dns: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("uri")));
    params.subject_alt_names =
        uris.chain(dns.iter().map(|name| SanType::DnsName((*name).try_into().expect("name")))).collect();
    (params.not_before, params.not_after) = (moment(-60), moment(3600));
    params
}

impl Other {
    fn new() -> Self {
        let root_key = KeyPair::generate().expect("key");
        let root = authority_params("other root").self_signed(&root_key).expect("root");
        let root_issuer = Issuer::new(authority_params("other root"), root_key);
        let key = KeyPair::generate().expect("key");
        let intermediate = authority_params("other intermediate").signed_by(&key, &root_issuer).expect("intermediate");
        Self {
            root: root.der().to_vec(),
            root_pem: root.pem(),
            intermediate: intermediate.der().to_vec(),
            root_issuer,
            issuer: Issuer::new(authority_params("other intermediate"), key),
        }
    }

    fn settings(&self, trust_domain: Option<&str>) -> AttestorSettings {
        AttestorSettings::X509(CertificateIssuer {
            roots: self.root_pem.clone(),
            trust_domain: trust_domain.map(str::to_owned),
        })
    }

    fn proof(&self, params: &CertificateParams) -> CertificateProof {
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &self.issuer).expect("leaf").der().to_vec();
        let signature = key.sign(MESSAGE).expect("signature");
        CertificateProof {
            chain: vec![leaf, self.intermediate.clone()],
            scheme: P256,
            signature,
            message: MESSAGE.to_vec(),
        }
    }
}

fn judged(settings: &AttestorSettings, proof: CertificateProof) -> Result<Attested, Rejected> {
    attest("other", Revision(1), settings, &Presented::Certificate(proof), NOW)
}

fn refused(settings: &AttestorSettings, proof: CertificateProof) -> (Reason, String) {
    let refusal = judged(settings, proof).expect_err("refused").refusal;
    (refusal.reason, refusal.detail)
}

#[test]
fn a_certificate_says_its_spiffe_id_its_dns_names_and_its_root() {
    let other = Other::new();
    let proof = other.proof(&leaf_params(&[WEB], &["Web.Other.Example"]));
    let attested = judged(&other.settings(Some("other.example")), proof).expect("good");
    assert_eq!(attested.subject(), WEB);
    let says = |name: &str, value: &str| attested.says(&[Selector::text(name, value)]);
    assert!(says("x509:spiffe-id", WEB) && says("x509:dns", "web.other.example"));
    let root = warren_proto::peer_map::object_digest(&other.root);
    assert!(says("x509:root-sha256", &hex::encode(root)));
    assert!(!says("x509:spiffe-id", "spiffe://other.example/ns/shop/sa") && !says("x509:dns", "other.example"));
    judged(&other.settings(None), other.proof(&leaf_params(&[], &["a.example"]))).expect("no SPIFFE ID is asked for");
}

#[test]
fn a_key_is_the_same_evidence_in_every_certificate() {
    let other = Other::new();
    let key = KeyPair::generate().expect("key");
    let evidence = |key: &KeyPair| {
        let leaf = leaf_params(&[WEB], &[]).signed_by(key, &other.issuer).expect("leaf").der().to_vec();
        let signature = key.sign(MESSAGE).expect("signature");
        let chain = vec![leaf, other.intermediate.clone()];
        let proof = CertificateProof { chain, scheme: P256, signature, message: MESSAGE.to_vec() };
        *judged(&other.settings(None), proof).expect("good").evidence()
    };
    assert_eq!(evidence(&key), evidence(&key));
    assert_ne!(evidence(&key), evidence(&KeyPair::generate().expect("key")));
}

/// Evidence relayed by a false coordinator: a signature for another challenge, connection or request.
#[test]
fn a_certificate_without_its_key_over_this_connection_is_worth_nothing() {
    let other = Other::new();
    let settings = other.settings(None);
    let params = leaf_params(&[WEB], &[]);
    let relayed = CertificateProof { message: b"another connection".to_vec(), ..other.proof(&params) };
    assert_eq!(refused(&settings, relayed).0, Reason::PossessionUnproven);
    let thief = KeyPair::generate().expect("key").sign(MESSAGE).expect("signature");
    assert_eq!(
        refused(&settings, CertificateProof { signature: thief, ..other.proof(&params) }).0,
        Reason::PossessionUnproven
    );
    for signature in [Vec::new(), vec![0x30, 0]] {
        let proof = CertificateProof { signature, ..other.proof(&params) };
        assert_eq!(refused(&settings, proof).0, Reason::PossessionUnproven);
    }
    for scheme in [0, 0x0201, 0x0401, 0x0603, u32::MAX] {
        let proof = CertificateProof { scheme, ..other.proof(&params) };
        assert_eq!(refused(&settings, proof).0, Reason::EvidenceAlgorithm, "{scheme:#x}");
    }
    let proof = CertificateProof { scheme: 0x0807, ..other.proof(&params) };
    assert_eq!(refused(&settings, proof).0, Reason::PossessionUnproven, "Ed25519 by a P-256 key");
}

/// spire 1.14.7, 1.15.1: the first certificate of a bag was taken for the signer's. Here the leaf is the first, its key
/// signed, and it must itself chain to a root.
#[test]
fn a_trusted_certificate_beside_an_untrusted_one_vouches_for_nobody() {
    let (other, thief) = (Other::new(), Other::new());
    let settings = other.settings(None);
    let (good, bad) = (other.proof(&leaf_params(&[WEB], &[])), thief.proof(&leaf_params(&[WEB], &[])));
    assert_eq!(refused(&settings, thief.proof(&leaf_params(&[WEB], &[]))).0, Reason::EvidenceSignature);
    let behind = CertificateProof { chain: vec![bad.chain[0].clone(), good.chain[0].clone()], ..bad };
    assert_eq!(refused(&settings, behind).0, Reason::EvidenceSignature);
    let before = CertificateProof { chain: good.chain, ..thief.proof(&leaf_params(&[WEB], &[])) };
    assert_eq!(refused(&settings, before).0, Reason::PossessionUnproven);
    let unanchored = CertificateProof {
        chain: vec![other.proof(&leaf_params(&[WEB], &[])).chain[0].clone()],
        ..other.proof(&leaf_params(&[WEB], &[]))
    };
    assert_eq!(refused(&settings, unanchored).0, Reason::EvidenceSignature, "its intermediate is missing");
}

/// spire 1.14.2: giant RSA keys and many intermediates cost a server its processor.
#[test]
fn a_long_chain_or_a_giant_certificate_is_refused_before_it_is_judged() {
    let other = Other::new();
    let settings = other.settings(None);
    let proof = || other.proof(&leaf_params(&[WEB], &[]));
    let long = CertificateProof { chain: vec![proof().chain[0].clone(); 5], ..proof() };
    assert_eq!(refused(&settings, long).0, Reason::EvidenceMalformed);
    assert_eq!(refused(&settings, CertificateProof { chain: Vec::new(), ..proof() }).0, Reason::EvidenceMalformed);
    let names: Vec<String> = (0..400).map(|number| format!("host-{number}.other.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let giant = other.proof(&leaf_params(&[WEB], &names));
    assert!(refused(&settings, giant).1.contains("over 6144 bytes"));
    assert_eq!(
        refused(&settings, CertificateProof { signature: vec![0; 513], ..proof() }).0,
        Reason::EvidenceMalformed
    );
    let mut trailing = proof();
    trailing.chain[0].push(0);
    assert_eq!(refused(&settings, trailing).0, Reason::EvidenceMalformed);
}

#[test]
fn a_certificate_out_of_date_or_for_another_use_is_refused_by_name() {
    let other = Other::new();
    let settings = other.settings(Some("other.example"));
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, Reason); 8] = [
        ("ended", |p| p.not_after = moment(-1), Reason::EvidenceExpired),
        ("not yet", |p| p.not_before = moment(60), Reason::EvidenceNotYetValid),
        ("an authority", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), Reason::EvidenceSignature),
        ("no client", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], Reason::EvidenceSignature),
        ("no signatures", |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment], Reason::EvidenceMalformed),
        (
            "another domain",
            |p| p.subject_alt_names = leaf_params(&["spiffe://third.example/x"], &[]).subject_alt_names,
            Reason::EvidenceIssuer,
        ),
        (
            "no SPIFFE ID",
            |p| p.subject_alt_names = leaf_params(&[], &["a.example"]).subject_alt_names,
            Reason::EvidenceIssuer,
        ),
        (
            "a SPIFFE ID misspelt",
            |p| p.subject_alt_names = leaf_params(&["spiffe://other.example/a/../b"], &[]).subject_alt_names,
            Reason::EvidenceMalformed,
        ),
    ];
    for (what, change, reason) in cases {
        let mut params = leaf_params(&[WEB], &[]);
        change(&mut params);
        let (found, detail) = refused(&settings, other.proof(&params));
        assert_eq!(found, reason, "{what}: {detail}");
    }
}

/// A reader that takes the first URI name and one that takes the last would see two identities.
#[test]
fn a_certificate_with_two_identities_has_none() {
    let other = Other::new();
    for uris in [[WEB, "spiffe://other.example/ns/bank/sa/api"], ["https://x.example", WEB], [WEB, WEB]] {
        let (reason, detail) = refused(&other.settings(None), other.proof(&leaf_params(&uris, &[])));
        assert!(reason == Reason::EvidenceMalformed && detail.contains("2 URI names"), "{detail}");
    }
}

/// go-spiffe#383: what an intermediate signs does not outlive the intermediate, nor its root.
#[test]
fn what_the_root_no_longer_stands_for_is_refused() {
    let other = Other::new();
    let key = KeyPair::generate().expect("key");
    let mut short = authority_params("other short");
    short.not_after = moment(-1);
    let intermediate = short.signed_by(&key, &other.root_issuer).expect("intermediate").der().to_vec();
    let issuer = Issuer::new(short, key);
    let own = KeyPair::generate().expect("key");
    let leaf = leaf_params(&[WEB], &[]).signed_by(&own, &issuer).expect("leaf").der().to_vec();
    let signature = own.sign(MESSAGE).expect("signature");
    let proof =
        CertificateProof { chain: vec![leaf, intermediate], scheme: P256, signature, message: MESSAGE.to_vec() };
    assert_eq!(refused(&other.settings(None), proof).0, Reason::EvidenceExpired);
    let replaced = Other::new();
    let proof = other.proof(&leaf_params(&[WEB], &[]));
    assert_eq!(refused(&replaced.settings(None), proof).0, Reason::EvidenceSignature);
}

#[test]
fn settings_without_a_root_with_a_leaf_for_one_or_with_our_own_are_refused() {
    let other = Other::new();
    let with = |roots: String| AttestorSettings::X509(CertificateIssuer { roots, trust_domain: None });
    let key = KeyPair::generate().expect("key");
    let leaf = leaf_params(&[WEB], &[]).signed_by(&key, &other.issuer).expect("leaf").pem();
    for (roots, named) in [
        (String::new(), "expected 1 to 8"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), "not an X.509 certificate"),
        (leaf, "cA"),
        (other.root_pem.repeat(9), "expected 1 to 8"),
        (format!("{}{}", other.root_pem, key.serialize_pem()), "private key"),
        ("x".repeat(20_000), "at most 12288"),
    ] {
        let refusal = checked(&with(roots), []).expect_err(named);
        assert!(refusal.reason == Reason::InvalidField && refusal.detail.contains(named), "{named}: {refusal}");
    }
    let own = checked(&other.settings(None), [other.root.as_slice()]).expect_err("ours");
    assert!(own.detail.contains("this mesh's own"), "{own}");
    let domain = AttestorSettings::X509(CertificateIssuer {
        roots: other.root_pem.clone(),
        trust_domain: Some("Other Example".into()),
    });
    assert!(checked(&domain, []).expect_err("misspelt").detail.starts_with("trust_domain"));
    let selectors = [Selector::text("x509:cn", "web")];
    assert!(check_selectors(&other.settings(None), &selectors).expect_err("not judged").detail.contains("x509:cn"));
}

#[test]
fn evidence_of_another_kind_is_refused_by_name() {
    let other = Other::new();
    let token = Presented::Document(Zeroizing::new(b"a.b.c".to_vec()));
    let refusal = attest("other", Revision(1), &other.settings(None), &token, NOW).expect_err("a token").refusal;
    assert!(refusal.reason == Reason::EvidenceMalformed && refusal.detail.contains("x509"), "{refusal}");
    let cluster = super::Signer::new("a").kubernetes();
    let refusal = judged(&cluster, other.proof(&leaf_params(&[WEB], &[]))).expect_err("a certificate").refusal;
    assert!(refusal.reason == Reason::EvidenceMalformed && refusal.detail.contains("kubernetes"), "{refusal}");
}

proptest! {
    #[test]
    fn no_chain_panics_and_none_is_believed(
        chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6),
        scheme in any::<u32>(),
        signature in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let proof = CertificateProof { chain, scheme, signature, message: MESSAGE.to_vec() };
        prop_assert!(judged(&Other::new().settings(None), proof).is_err());
    }

    #[test]
    fn no_altered_certificate_panics(at in 0..400_usize, to in any::<u8>()) {
        let other = Other::new();
        let mut proof = other.proof(&leaf_params(&[WEB], &[]));
        if let Some(byte) = proof.chain[0].get_mut(at) {
            let same = *byte == to;
            *byte = to;
            prop_assert!(same || judged(&other.settings(None), proof).is_err());
        }
    }
}
