//! Attestation: evidence that somebody else signed, judged by the attestor it names.
//!
//! An attestor is what an administrator set: of one kind of evidence, with its own keys. [`attest`] is a pure function of the
//! attestor, what was presented and the time; what it gives, [`Attested`], is made nowhere else, and is all that enrolment
//! takes. Which identities follow from it is the registrations' to say, see `registry/nodes.rs`.

mod aws;
mod certificate;
mod cms;
mod json;
mod jwks;
mod kubernetes;
mod oidc;
mod token;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use warren_proto::UnixTime;
use warren_proto::admin::{AttestorSettings, Selector, SelectorValue};
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

pub use certificate::CertificateProof;

use crate::store::Revision;

/// Largest token or document, in bytes; refused unread beyond.
pub const MAX_DOCUMENT: usize = 16 * 1024;
/// How far another's clock may be from ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Longest text of a stranger's that is shown, in characters.
const MAX_SHOWN: usize = 256;
/// Most selectors of a registration.
const MAX_SELECTORS: usize = 16;
/// Longest name and value of a selector, in bytes.
const MAX_SELECTOR: usize = 1024;

/// Evidence as it came, unjudged.
pub enum Presented {
    /// A token or a signed document. Whoever holds a token can use it, so it is wiped.
    Document(Zeroizing<Vec<u8>>),
    /// A certificate with a signature by its key.
    Certificate(CertificateProof),
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document(_) => f.write_str("Document(..)"),
            Self::Certificate(_) => f.write_str("Certificate(..)"),
        }
    }
}

/// What an attestor found evidence to say. Only [`attest`] makes one.
#[derive(Debug)]
pub struct Attested {
    attestor: String,
    modified: Revision,
    facts: BTreeSet<Selector>,
    subject: String,
    evidence: [u8; 32],
    until: UnixTime,
}

impl Attested {
    /// The attestor's name.
    #[must_use]
    pub fn attestor(&self) -> &str {
        &self.attestor
    }

    /// The attestor's revision that judged.
    #[must_use]
    pub const fn modified(&self) -> Revision {
        self.modified
    }

    /// Whom the evidence is about, in the words of who made it; printable.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What makes one node and no more: the pod, the token, the key, the instance. A hash of its name.
    #[must_use]
    pub const fn evidence(&self) -> &[u8; 32] {
        &self.evidence
    }

    /// Until when this very evidence could be shown again; 1970 where each showing proves itself anew.
    #[must_use]
    pub const fn until(&self) -> UnixTime {
        self.until.plus(CLOCK_SKEW)
    }

    /// Whether the evidence says all of `selectors`. Nothing says none.
    #[must_use]
    pub fn says(&self, selectors: &[Selector]) -> bool {
        !selectors.is_empty() && selectors.iter().all(|selector| self.facts.contains(selector))
    }
}

/// Evidence that was refused.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub refusal: Refusal,
    /// Whom it is about, when its signature shows that the attestor's issuer made it: such a refusal is worth a row of the audit
    /// log, a stranger's is not.
    pub subject: Option<String>,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, subject: None }
    }
}

/// What a kind's own module finds.
struct Findings {
    facts: Vec<Selector>,
    subject: String,
    /// Parts of the name of what makes one node.
    unique: Vec<Vec<u8>>,
    until: UnixTime,
}

/// An attestor's settings, checked and ready to judge by.
#[derive(Debug)]
enum Judge {
    Kubernetes(token::Issuer),
    Oidc(token::Issuer),
    X509(certificate::Authority),
    Aws(aws::Instances),
}

impl Judge {
    fn new(settings: &AttestorSettings) -> Result<Self, Refusal> {
        Ok(match settings {
            AttestorSettings::Kubernetes(issuer) => Self::Kubernetes(token::Issuer::new(issuer)?),
            AttestorSettings::Oidc(issuer) => Self::Oidc(token::Issuer::new(issuer)?),
            AttestorSettings::X509(authority) => Self::X509(certificate::Authority::new(authority)?),
            AttestorSettings::AwsInstance(instances) => Self::Aws(aws::Instances::new(instances)?),
        })
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "kubernetes",
            Self::Oidc(_) => "oidc",
            Self::X509(_) => "x509",
            Self::Aws(_) => "aws",
        }
    }
}

/// Checks an attestor's settings and gives them back with no more than is used of them. `own_roots` are the mesh's, DER: a
/// certificate of ours vouches for nobody.
///
/// # Errors
/// [`Reason::InvalidField`], naming the field.
pub fn checked<'r>(
    settings: &AttestorSettings,
    own_roots: impl IntoIterator<Item = &'r [u8]>,
) -> Result<AttestorSettings, Refusal> {
    Ok(match (Judge::new(settings)?, settings) {
        (Judge::Kubernetes(judge), AttestorSettings::Kubernetes(issuer)) => {
            AttestorSettings::Kubernetes(judge.kept(issuer))
        }
        (Judge::Oidc(judge), AttestorSettings::Oidc(issuer)) => AttestorSettings::Oidc(judge.kept(issuer)),
        (Judge::X509(judge), settings) => {
            judge.refuse_roots(own_roots)?;
            settings.clone()
        }
        (_, settings) => settings.clone(),
    })
}

/// Checks what a registration wants evidence of this attestor to say.
///
/// # Errors
/// [`Reason::InvalidField`], when it could never hold, or would hold for more than its writer means.
pub fn check_selectors(settings: &AttestorSettings, selectors: &[Selector]) -> Result<(), Refusal> {
    let invalid = |detail: String| Err(Refusal::new(Reason::InvalidField, detail));
    if !(1..=MAX_SELECTORS).contains(&selectors.len()) {
        return invalid(format!("selectors: {}, expected 1 to {MAX_SELECTORS}", selectors.len()));
    }
    let text_only = |names: &[&str]| match selectors.iter().find(|selector| !names.contains(&selector.name.as_str())) {
        Some(other) => invalid(format!("selectors: {:?} is none of {}", other.name, names.join(", "))),
        None => match selectors.iter().find(|selector| !matches!(selector.value, SelectorValue::Text(_))) {
            Some(other) => invalid(format!("selectors: {} is text: write {}=TEXT", other.name, other.name)),
            None => Ok(()),
        },
    };
    let has = |name: &str| selectors.iter().any(|selector| selector.name == name);
    for (index, selector) in selectors.iter().enumerate() {
        let value = match &selector.value {
            SelectorValue::Text(text) => text.len(),
            SelectorValue::Number(_) | SelectorValue::Flag(_) => 0,
        };
        if selector.name.len() > MAX_SELECTOR || value > MAX_SELECTOR {
            return invalid(format!("selectors[{index}]: over {MAX_SELECTOR} bytes"));
        }
    }
    match settings {
        AttestorSettings::Kubernetes(_) => {
            text_only(&["k8s:ns", "k8s:sa", "k8s:pod", "k8s:node"])?;
            if !has("k8s:ns") || !has("k8s:sa") {
                return invalid("selectors: k8s:ns and k8s:sa are both needed".to_owned());
            }
            Ok(())
        }
        AttestorSettings::Oidc(issuer) => {
            let useless = selectors.iter().find(|selector| {
                selector
                    .name
                    .strip_prefix("claim:")
                    .is_none_or(|claim| claim.is_empty() || oidc::NOT_SELECTABLE.contains(&claim))
            });
            if let Some(other) = useless {
                let not = oidc::NOT_SELECTABLE.join(", ");
                return invalid(format!("selectors: {:?} is no claim:NAME, or one of {not}", other.name));
            }
            oidc::check_selectors(&issuer.issuer, selectors)
        }
        AttestorSettings::X509(_) => text_only(&["x509:spiffe-id", "x509:dns", "x509:root-sha256"]),
        AttestorSettings::AwsInstance(_) => {
            text_only(&["aws:account", "aws:region", "aws:instance", "aws:image", "aws:zone", "aws:type"])
        }
    }
}

/// Judges what was presented to the attestor `name`, which has these settings at this revision.
///
/// # Errors
/// A reason for each way in which it can fail; nothing of the evidence but names is repeated.
pub fn attest(
    name: &str,
    modified: Revision,
    settings: &AttestorSettings,
    presented: &Presented,
    now: UnixTime,
) -> Result<Attested, Rejected> {
    let judge = Judge::new(settings)?;
    let findings = match (&judge, presented) {
        (Judge::Kubernetes(issuer), Presented::Document(token)) => kubernetes::attest(issuer, bounded(token)?, now)?,
        (Judge::Oidc(issuer), Presented::Document(token)) => oidc::attest(issuer, bounded(token)?, now)?,
        (Judge::Aws(instances), Presented::Document(document)) => instances.attest(bounded(document)?, now)?,
        (Judge::X509(authority), Presented::Certificate(proof)) => authority.attest(proof, now)?,
        (Judge::Kubernetes(_) | Judge::Oidc(_) | Judge::Aws(_), Presented::Certificate(_)) => {
            return Err(other_kind(name, judge.kind(), "a token or a document: `--evidence-file FILE` alone"));
        }
        (Judge::X509(_), Presented::Document(_)) => {
            return Err(other_kind(name, judge.kind(), "a certificate: `--evidence-file` and `--evidence-key-file`"));
        }
    };
    let mut evidence = Sha256::new_with_prefix(b"warren evidence v1");
    for part in std::iter::once(judge.kind().as_bytes()).chain(findings.unique.iter().map(Vec::as_slice)) {
        evidence.update(part.len().to_be_bytes());
        evidence.update(part);
    }
    Ok(Attested {
        attestor: name.to_owned(),
        modified,
        facts: findings.facts.into_iter().collect(),
        subject: findings.subject,
        evidence: evidence.finalize().into(),
        until: findings.until,
    })
}

fn bounded(document: &[u8]) -> Result<&[u8], Refusal> {
    if document.len() <= MAX_DOCUMENT {
        return Ok(document);
    }
    Err(json::malformed(format!("document: {} bytes, at most {MAX_DOCUMENT}", document.len())))
}

fn other_kind(name: &str, kind: &str, wanted: &str) -> Rejected {
    Refusal::new(
        Reason::EvidenceMalformed,
        format!("evidence: not of the kind {kind}, which the attestor {name} judges"),
    )
    .hint(format!("it takes {wanted}"))
    .into()
}

/// A stranger's text as it may be shown: without control characters, and not too long.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}
