//! Instance identity documents: every refusal, published bypasses by name, and that no bytes panic.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::OnceLock;
use warren_proto::UnixTime;
use warren_proto::admin::{AttestorSettings, AwsInstances, Selector};
use warren_proto::reason::Reason;
use zeroize::Zeroizing;

use super::super::{Attested, Presented, Rejected, attest, check_selectors, checked, cms};
use super::{NOW, rsa_key, rsa_sign};
use crate::store::Revision;

const ACCOUNT: &str = "123456789012";

/// A region: its key, and the certificate that Amazon would publish.
struct Region {
    key: RsaKeyPair,
    certificate: String,
}

impl Region {
    fn new() -> Self {
        let key = rsa_key();
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&key).expect("der");
        let pair = rcgen::KeyPair::try_from(der.as_ref()).expect("pair");
        let params = rcgen::CertificateParams::new(vec!["ec2.example".into()]).expect("params");
        let certificate = params.self_signed(&pair).expect("certificate").pem();
        Self { key, certificate }
    }

    /// Keys take a moment to make: one region serves most tests.
    fn shared() -> &'static Self {
        static REGION: OnceLock<Region> = OnceLock::new();
        REGION.get_or_init(Self::new)
    }

    fn settings(&self) -> AttestorSettings {
        AttestorSettings::AwsInstance(AwsInstances {
            certificates: self.certificate.clone(),
            accounts: vec!["999999999999".into(), ACCOUNT.into()],
            max_age_seconds: 3600,
        })
    }

    /// As the metadata service gives it: lines of base64.
    fn document(&self, content: &Value) -> String {
        lines(&self.signed(content.to_string().as_bytes(), Form::Open))
    }

    fn signed(&self, content: &[u8], form: Form) -> Vec<u8> {
        let attributes = attributes(content);
        let signature = rsa_sign(&self.key, &tlv(0x31, &attributes));
        signed_data(content, Some(&attributes), &signature, form)
    }
}

/// How lengths and strings are written.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// BER as streaming writers leave it: open lengths, strings in parts.
    Open,
    /// DER.
    Definite,
}

fn lines(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect()
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        short @ 0..0x80 => vec![u8::try_from(short).expect("short")],
        long => [&[0x82], u16::try_from(long).expect("under 64 KiB").to_be_bytes().as_slice()].concat(),
    };
    [&[tag], length.as_slice(), content].concat()
}

fn open(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], content, &[0, 0]].concat()
}

fn id(last: &[u8]) -> Vec<u8> {
    tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1], last].concat())
}

fn sha256_algorithm() -> Vec<u8> {
    tlv(0x30, &[tlv(6, &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1]), vec![5, 0]].concat())
}

fn attributes(content: &[u8]) -> Vec<u8> {
    let kind = tlv(0x30, &[id(&[9, 3]), tlv(0x31, &id(&[7, 1]))].concat());
    let time = tlv(0x30, &[id(&[9, 5]), tlv(0x31, &tlv(0x17, b"270115080000Z"))].concat());
    let digest = tlv(0x30, &[id(&[9, 4]), tlv(0x31, &tlv(4, &Sha256::digest(content)))].concat());
    [kind, time, digest].concat()
}

fn signer(attributes: Option<&[u8]>, signature: &[u8]) -> Vec<u8> {
    let name = tlv(0x30, &[tlv(0x30, &[]), tlv(2, &[1])].concat());
    let attributes = attributes.map(|attributes| tlv(0xa0, attributes)).unwrap_or_default();
    let algorithm = tlv(0x30, &[id(&[1, 1]), vec![5, 0]].concat());
    tlv(0x30, &[tlv(2, &[1]), name, sha256_algorithm(), attributes, algorithm, tlv(4, signature)].concat())
}

fn signed_data(content: &[u8], attributes: Option<&[u8]>, signature: &[u8], form: Form) -> Vec<u8> {
    with_signers(content, &signer(attributes, signature), &[], form)
}

fn with_signers(content: &[u8], signers: &[u8], beside: &[u8], form: Form) -> Vec<u8> {
    let wrap = |tag, content: &[u8]| match form {
        Form::Open => open(tag, content),
        Form::Definite => tlv(tag, content),
    };
    let octets = match form {
        Form::Open => {
            let (one, other) = content.split_at(content.len() / 2);
            open(0x24, &[tlv(4, one), tlv(4, other)].concat())
        }
        Form::Definite => tlv(4, content),
    };
    let encapsulated = wrap(0x30, &[id(&[7, 1]), wrap(0xa0, &octets)].concat());
    let data = wrap(
        0x30,
        &[tlv(2, &[1]), tlv(0x31, &sha256_algorithm()), encapsulated, beside.to_vec(), tlv(0x31, signers)].concat(),
    );
    wrap(0x30, &[id(&[7, 2]), wrap(0xa0, &data)].concat())
}

fn instance(id: &str) -> Value {
    let started = time::OffsetDateTime::from_unix_timestamp(i64::try_from(NOW.0 - 60).expect("time")).expect("time");
    json!({
        "accountId": ACCOUNT, "architecture": "x86_64", "availabilityZone": "eu-west-1b", "billingProducts": null,
        "imageId": "ami-5fb8c835", "instanceId": id, "instanceType": "t3.micro", "privateIp": "10.0.0.7",
        "pendingTime": started.format(&time::format_description::well_known::Rfc3339).expect("time"),
        "region": "eu-west-1", "version": "2017-09-30"
    })
}

fn judged_at(settings: &AttestorSettings, document: &str, now: UnixTime) -> Result<Attested, Rejected> {
    let presented = Presented::Document(Zeroizing::new(document.as_bytes().to_vec()));
    attest("ec2", Revision(1), settings, &presented, now)
}

fn judged(document: &str) -> Result<Attested, Rejected> {
    judged_at(&Region::shared().settings(), document, NOW)
}

fn refused(document: &str) -> Reason {
    judged(document).expect_err("refused").refusal.reason
}

#[test]
fn an_instance_says_its_account_region_and_id_in_either_encoding() {
    let region = Region::shared();
    let content = instance("i-1234567890abcdef0").to_string();
    let pem = format!(
        "-----BEGIN PKCS7-----\n{}-----END PKCS7-----\n",
        lines(&region.signed(content.as_bytes(), Form::Open))
    );
    for document in [pem, lines(&region.signed(content.as_bytes(), Form::Definite))] {
        let attested = judged(&document).expect("good");
        assert_eq!(attested.subject(), "123456789012/i-1234567890abcdef0");
        let says = |name: &str, value: &str| attested.says(&[Selector::text(name, value)]);
        assert!(says("aws:account", ACCOUNT) && says("aws:region", "eu-west-1") && says("aws:image", "ami-5fb8c835"));
        assert!(
            says("aws:instance", "i-1234567890abcdef0")
                && says("aws:zone", "eu-west-1b")
                && says("aws:type", "t3.micro")
        );
        assert!(!says("aws:region", "eu-west-1b") && !says("aws:account", "12345678901"));
    }
    let bare = rsa_sign(&region.key, content.as_bytes());
    judged(&lines(&signed_data(content.as_bytes(), None, &bare, Form::Open))).expect("signed without attributes");
}

#[test]
fn an_instance_is_the_same_evidence_at_every_start_and_another_is_not() {
    let evidence = |content: &Value| *judged(&Region::shared().document(content)).expect("good").evidence();
    let mut later = instance("i-1");
    later["pendingTime"] = "2027-01-15T07:59:00Z".into();
    assert_eq!(evidence(&instance("i-1")), evidence(&later));
    assert_ne!(evidence(&instance("i-1")), evidence(&instance("i-2")));
}

#[test]
fn a_document_of_another_account_or_too_old_or_incomplete_is_refused_by_name() {
    let cases = [
        ("accountId", json!("123456789013"), Reason::EvidenceIssuer),
        ("accountId", Value::Null, Reason::EvidenceMalformed),
        ("accountId", json!(123_456_789_012_u64), Reason::EvidenceMalformed),
        ("instanceId", json!(""), Reason::EvidenceMalformed),
        ("instanceId", json!("i 1"), Reason::EvidenceMalformed),
        ("instanceId", json!("x".repeat(200)), Reason::EvidenceMalformed),
        ("region", Value::Null, Reason::EvidenceMalformed),
        ("pendingTime", json!("yesterday"), Reason::EvidenceMalformed),
        ("pendingTime", Value::Null, Reason::EvidenceMalformed),
        ("pendingTime", json!("2026-11-19T16:32:11Z"), Reason::EvidenceExpired),
        ("pendingTime", json!("2027-01-15T08:01:01Z"), Reason::EvidenceNotYetValid),
        ("pendingTime", json!("1969-01-01T00:00:00Z"), Reason::EvidenceMalformed),
    ];
    for (name, value, reason) in cases {
        let mut content = instance("i-1");
        content[name] = value.clone();
        let rejected = judged(&Region::shared().document(&content)).expect_err(name);
        assert_eq!(rejected.refusal.reason, reason, "{name} = {value}: {}", rejected.refusal);
        assert!(rejected.refusal.detail.contains(name), "{}", rejected.refusal);
        assert!(rejected.subject.is_some(), "its signature holds: worth a row of the audit log");
    }
    let twice = format!("{{\"accountId\":\"999999999999\",{}", &instance("i-1").to_string()[1..]);
    assert_eq!(refused(&lines(&Region::shared().signed(twice.as_bytes(), Form::Open))), Reason::EvidenceMalformed);
}

/// The document never ends: its age is what bounds a copy's use.
#[test]
fn a_document_is_good_for_an_hour_after_the_start_and_a_minute() {
    let document = Region::shared().document(&instance("i-1"));
    let at = |seconds: u64| judged_at(&Region::shared().settings(), &document, UnixTime(NOW.0 + seconds));
    at(3599).expect("good");
    assert_eq!(at(3600).expect_err("over").refusal.reason, Reason::EvidenceExpired);
}

/// spire 1.14.6: the signed content was verified and a document beside it was read, so any instance could be any other.
#[test]
fn nothing_that_stands_beside_the_signed_content_is_read() {
    let region = Region::shared();
    let (own, other) = (instance("i-own").to_string(), instance("i-other").to_string());
    let attributes = attributes(own.as_bytes());
    let signature = rsa_sign(&region.key, &tlv(0x31, &attributes));
    let swapped = signed_data(other.as_bytes(), Some(&attributes), &signature, Form::Open);
    assert_eq!(refused(&lines(&swapped)), Reason::EvidenceMalformed, "the attributes hold another content's digest");
    let forged = signed_data(other.as_bytes(), Some(&super::aws::attributes(other.as_bytes())), &signature, Form::Open);
    assert_eq!(refused(&lines(&forged)), Reason::EvidenceSignature);
    let bare = rsa_sign(&region.key, own.as_bytes());
    assert_eq!(refused(&lines(&signed_data(other.as_bytes(), None, &bare, Form::Open))), Reason::EvidenceSignature);
    for (before, after) in [(other.as_str(), ""), ("", other.as_str())] {
        let text = format!("{before}{}{after}", region.document(&instance("i-own")));
        assert_eq!(refused(&text), Reason::EvidenceMalformed);
    }
}

/// spire 1.14.7: certificates that come along were looked at instead of the signer's. Here none is looked at.
#[test]
fn a_document_cannot_bring_its_own_certificate_or_a_second_signer() {
    let (region, thief) = (Region::shared(), Region::new());
    let content = instance("i-1").to_string();
    let attributes = attributes(content.as_bytes());
    let sign = |region: &Region| signer(Some(&attributes), &rsa_sign(&region.key, &tlv(0x31, &attributes)));
    let certificate = |region: &Region| {
        let body: String = region.certificate.lines().filter(|line| !line.starts_with("-----")).collect();
        tlv(0xa0, &STANDARD.decode(body).expect("base64"))
    };
    let own = with_signers(content.as_bytes(), &sign(&thief), &certificate(&thief), Form::Open);
    assert_eq!(refused(&lines(&own)), Reason::EvidenceSignature);
    let trusted = with_signers(content.as_bytes(), &sign(&thief), &certificate(region), Form::Open);
    assert_eq!(refused(&lines(&trusted)), Reason::EvidenceSignature);
    for signers in [[sign(&thief), sign(region)].concat(), [sign(region), sign(&thief)].concat(), Vec::new()] {
        let document = with_signers(content.as_bytes(), &signers, &[], Form::Open);
        assert_eq!(refused(&lines(&document)), Reason::EvidenceMalformed);
    }
    let beside = with_signers(content.as_bytes(), &sign(region), &certificate(&thief), Form::Definite);
    judged(&lines(&beside)).expect("what comes along is of no account");
}

#[test]
fn attributes_that_are_missing_twice_there_or_of_other_data_are_refused() {
    let region = Region::shared();
    let content = instance("i-1").to_string();
    let (good, part) = (attributes(content.as_bytes()), |tag: &[u8], value: Vec<u8>| {
        tlv(0x30, &[id(tag), tlv(0x31, &value)].concat())
    });
    let digest = part(&[9, 4], tlv(4, &Sha256::digest(&content)));
    let kind = part(&[9, 3], id(&[7, 1]));
    for wrong in [
        Vec::new(),
        digest.clone(),
        kind.clone(),
        [good.clone(), digest.clone()].concat(),
        [good.clone(), kind].concat(),
        [part(&[9, 3], id(&[7, 2])), digest].concat(),
        [good.clone(), vec![0]].concat(),
        part(&[9, 4], [tlv(4, &Sha256::digest(&content)), tlv(4, &[0; 32])].concat()),
    ] {
        let signature = rsa_sign(&region.key, &tlv(0x31, &wrong));
        let document = signed_data(content.as_bytes(), Some(&wrong), &signature, Form::Definite);
        assert_eq!(refused(&lines(&document)), Reason::EvidenceMalformed, "{wrong:02x?}");
    }
}

#[test]
fn what_is_no_signed_data_is_refused_whatever_its_depth_and_lengths() {
    let good = Region::shared().signed(instance("i-1").to_string().as_bytes(), Form::Open);
    for cut in [0, 1, 2, 20, good.len() / 2, good.len() - 2, good.len() - 1] {
        assert_eq!(refused(&lines(&good[..cut])), Reason::EvidenceMalformed, "{cut}");
    }
    let deep = [[0x30, 0x80].repeat(5_000), vec![0; 10]].concat();
    let long = [vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff], vec![0; 100]].concat();
    for wrong in
        [deep, long, vec![0x30, 0x88, 1, 1, 1, 1, 1, 1, 1, 1], vec![0x1f, 0x81, 0], [good.clone(), vec![0]].concat()]
    {
        assert_eq!(refused(&lines(&wrong)), Reason::EvidenceMalformed);
    }
    for wrong in ["", "a.b.c", "{}", "MIAG!"] {
        assert_eq!(refused(wrong), Reason::EvidenceMalformed, "{wrong}");
    }
    assert!(cms::parse(&good).is_ok());
}

#[test]
fn settings_and_selectors_that_are_not_amazons_are_refused() {
    let region = Region::shared();
    let AttestorSettings::AwsInstance(good) = region.settings() else { panic!("aws") };
    let small = rcgen::generate_simple_self_signed(vec!["p256".into()]).expect("certificate").cert.pem();
    for (wrong, named) in [
        (AwsInstances { certificates: String::new(), ..good.clone() }, "certificates"),
        (AwsInstances { certificates: small, ..good.clone() }, "RSA"),
        (AwsInstances { accounts: Vec::new(), ..good.clone() }, "accounts"),
        (AwsInstances { accounts: vec!["12345678901".into()], ..good.clone() }, "twelve"),
        (AwsInstances { max_age_seconds: 86_401, ..good }, "max_age_seconds"),
    ] {
        let refusal = checked(&AttestorSettings::AwsInstance(wrong), []).expect_err(named);
        assert!(refusal.reason == Reason::InvalidField && refusal.detail.contains(named), "{refusal}");
    }
    check_selectors(&region.settings(), &[Selector::text("aws:region", "eu-west-1")]).expect("good");
    assert!(check_selectors(&region.settings(), &[Selector::text("aws:ip", "10.0.0.7")]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = cms::parse(&bytes);
        prop_assert!(judged(&lines(&bytes)).is_err());
    }

    #[test]
    fn no_altered_document_is_believed(at in 0..900_usize, to in any::<u8>()) {
        let content = instance("i-1").to_string();
        let mut document = Region::shared().signed(content.as_bytes(), Form::Open);
        if let Some(byte) = document.get_mut(at) {
            *byte = to;
            if let Ok(signed) = cms::parse(&document) {
                // What is not signed may differ (a serial number, for one); what is read may not.
                let believed = judged(&lines(&document)).is_ok();
                prop_assert!(!believed || signed.content == content.as_bytes());
            }
        }
    }
}
