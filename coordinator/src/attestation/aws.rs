//! Instance identity documents of Amazon EC2: what an instance's metadata service says of it, signed by the region's key
//! (`/latest/dynamic/instance-identity/rsa2048`). The document never ends and anybody on the instance can read it, so it is
//! believed only shortly after the instance's start, and makes one node.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use warren_proto::UnixTime;
use warren_proto::admin::{AwsInstances, Selector};
use warren_proto::reason::{Reason, Refusal};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::certificate::certificates;
use super::{CLOCK_SKEW, Findings, Rejected, cms, json};

/// Most certificates: one for each region.
const MAX_CERTIFICATES: usize = 8;
/// Most accounts.
const MAX_ACCOUNTS: usize = 64;
/// Longest age that may be allowed: a day.
const MAX_AGE: u64 = 24 * 3600;
/// Longest value of the document's members that are read.
const MAX_VALUE: usize = 128;
/// RSA keys, in bits.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Amazon's keys and the accounts that are believed.
#[derive(Debug)]
pub(super) struct Instances {
    /// RSAPublicKey, DER.
    keys: Vec<Vec<u8>>,
    accounts: Vec<String>,
    max_age: u64,
}

impl Instances {
    pub(super) fn new(settings: &AwsInstances) -> Result<Self, Refusal> {
        let invalid = |detail: String| Refusal::new(Reason::InvalidField, detail);
        let mut keys = Vec::new();
        for (index, der) in certificates("certificates", &settings.certificates, MAX_CERTIFICATES)?.iter().enumerate() {
            let wrong = |what: &str| invalid(format!("certificates: certificate {}: {what}", index + 1));
            let (_, parsed) = X509Certificate::from_der(der).map_err(|_| wrong("not an X.509 certificate"))?;
            match parsed.public_key().parsed() {
                Ok(PublicKey::RSA(key)) if KEY_BITS.contains(&key.key_size()) => {}
                _ => return Err(wrong("not of an RSA key of 2048 to 4096 bits; Amazon lists them as RSA-2048")),
            }
            keys.push(parsed.public_key().subject_public_key.data.to_vec());
        }
        if !(1..=MAX_ACCOUNTS).contains(&settings.accounts.len()) {
            return Err(invalid(format!("accounts: {}, expected 1 to {MAX_ACCOUNTS}", settings.accounts.len())));
        }
        let wrong = |account: &&String| account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(account) = settings.accounts.iter().find(wrong) {
            return Err(invalid(format!("accounts: {:?} is not twelve digits", super::printable(account))));
        }
        if !(60..=MAX_AGE).contains(&settings.max_age_seconds) {
            return Err(invalid(format!("max_age_seconds: {}, expected 60 to {MAX_AGE}", settings.max_age_seconds)));
        }
        Ok(Self { keys, accounts: settings.accounts.clone(), max_age: settings.max_age_seconds })
    }

    pub(super) fn attest(&self, document: &[u8], now: UnixTime) -> Result<Findings, Rejected> {
        let signed = cms::parse(&decoded(document)?)?;
        let by = |key: &&Vec<u8>| {
            let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.as_slice());
            key.verify(&signed.message, &signed.signature).is_ok()
        };
        if self.keys.iter().find(by).is_none() {
            return Err(Refusal::new(
                Reason::EvidenceSignature,
                "document: not signed by a key of the attestor's certificates",
            )
            .hint("give the attestor Amazon's RSA-2048 certificate of the instance's region")
            .into());
        }
        // Only what was signed is read: there is no other copy of the document to read.
        let found = self.read(&signed.content, now);
        found.map_err(|(refusal, subject)| Rejected { refusal, subject: Some(subject) })
    }

    fn read(&self, content: &[u8], now: UnixTime) -> Result<Findings, (Refusal, String)> {
        let bare = |refusal| (refusal, String::new());
        let document = json::object("document", content).map_err(bare)?;
        let text = |name: &str| {
            let value = json::text(&document, "document", name)?;
            let plain =
                !value.is_empty() && value.len() <= MAX_VALUE && value.bytes().all(|byte| byte.is_ascii_graphic());
            if plain { Ok(value) } else { Err(json::malformed(format!("document.{name}: not a plain name"))) }
        };
        let (account, instance) = (text("accountId").map_err(bare)?, text("instanceId").map_err(bare)?);
        let subject = format!("{account}/{instance}");
        let told = |refusal| (refusal, subject.clone());
        let region = text("region").map_err(told)?;
        if !self.accounts.iter().any(|known| known == account) {
            let detail = format!("document.accountId: {account} is none of the attestor's accounts");
            return Err(told(Refusal::new(Reason::EvidenceIssuer, detail)));
        }
        let started = text("pendingTime").and_then(moment).map_err(told)?;
        if started > now.plus(CLOCK_SKEW) {
            let detail = format!("document.pendingTime: {started}; it is now {now}");
            return Err(told(Refusal::new(Reason::EvidenceNotYetValid, detail)));
        }
        let max_age = std::time::Duration::from_secs(self.max_age);
        let until = started.plus(max_age);
        if until.plus(CLOCK_SKEW) <= now {
            let detail = format!(
                "document.pendingTime: the instance started at {started}, over {} s ago; it is now {now}",
                self.max_age
            );
            let hint = "enrol at the first start, or stop and start the instance: its document is then made anew";
            return Err(told(Refusal::new(Reason::EvidenceExpired, detail).hint(hint)));
        }
        let mut facts = vec![
            Selector::text("aws:account", account),
            Selector::text("aws:region", region),
            Selector::text("aws:instance", instance),
        ];
        for (fact, name) in [("aws:image", "imageId"), ("aws:zone", "availabilityZone"), ("aws:type", "instanceType")] {
            if let Ok(value) = text(name) {
                facts.push(Selector::text(fact, value));
            }
        }
        let unique = vec![account.as_bytes().to_vec(), region.as_bytes().to_vec(), instance.as_bytes().to_vec()];
        Ok(Findings { facts, subject, unique, until })
    }
}

/// Base64 in lines, as the metadata service gives it, with or without PEM's first and last line.
fn decoded(document: &[u8]) -> Result<Vec<u8>, Refusal> {
    let text = std::str::from_utf8(document).map_err(|_| json::malformed("document: not text in base64"))?;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).flat_map(str::split_whitespace).collect();
    STANDARD.decode(body).map_err(|_| json::malformed("document: not base64"))
}

fn moment(text: &str) -> Result<UnixTime, Refusal> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
        .map(UnixTime)
        .ok_or_else(|| json::malformed("document.pendingTime: not a time such as 2026-03-01T12:00:00Z"))
}
