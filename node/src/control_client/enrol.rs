//! Enrolment: a join token or other evidence, and a proof of possession, for a node certificate.

use std::sync::Arc;
use std::time::Duration;

use rustls::SignatureScheme;
use sha2::{Digest, Sha256};
use warren_proto::certificate::Chain;
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::control_trust::verify_node;
use warren_proto::join_token::JoinToken;
use warren_proto::possession::{self, Challenge};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{NodeId, Overlay, PROTOCOL_VERSION, TrustBundle, WorkloadName, wire};
use zeroize::Zeroizing;

use super::link::Link;
use super::tls::{ClientTls, Trust};
use crate::certificates::key_store::{self, EnrolsBy, NodeIdentity, SigningKey, StoredBundle};
use crate::clock::Clock;

/// The whole exchange may take this long once the link is up.
const EXCHANGE: Duration = Duration::from_secs(20);

/// How another authority's key may sign, the best first: what the coordinator verifies.
const EVIDENCE_SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Most identities one node may be granted.
const MAX_WORKLOADS: usize = 1024;

/// What this host shows to become a node.
#[derive(Debug)]
pub enum Evidence {
    /// A join token.
    JoinToken(JoinToken),
    /// A token or a signed document for the attestor of that name.
    Document {
        /// The attestor's name.
        attestor: String,
        /// As it is: whoever has a token can use it.
        document: Secret,
    },
    /// A certificate of another authority and its key, for the attestor of that name.
    Certificate {
        /// The attestor's name.
        attestor: String,
        /// DER, leaf first, root left out.
        chain: Vec<Vec<u8>>,
        /// The leaf's. It signs once and is not kept.
        key: Arc<dyn rustls::sign::SigningKey>,
    },
}

/// Bytes that are wiped and never shown.
pub struct Secret(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Evidence {
    /// Which key it takes to enrol with it.
    #[must_use]
    pub fn enrols_by(&self) -> EnrolsBy {
        match self {
            Self::JoinToken(token) => EnrolsBy::Token(token.id),
            Self::Document { attestor, .. } | Self::Certificate { attestor, .. } => {
                EnrolsBy::Attestor(attestor.clone())
            }
        }
    }

    /// As it is sent over this very connection, for this very certificate request.
    fn to_wire(
        &self,
        challenge: &Challenge,
        exporter: &[u8; possession::LENGTH],
        csr: &[u8],
    ) -> Result<wire::enrol_request::Evidence, Refusal> {
        use wire::enrol_request::Evidence as Wire;
        Ok(match self {
            Self::JoinToken(token) => Wire::JoinToken(wire::JoinTokenEvidence {
                token_id: token.id.to_string(),
                secret: token.secret.expose().to_vec(),
            }),
            Self::Document { attestor, document } => {
                Wire::Document(wire::DocumentEvidence { attestor: attestor.clone(), document: document.0.to_vec() })
            }
            Self::Certificate { attestor, chain, key } => {
                let message = possession::certificate_evidence_input(&challenge.nonce, exporter, csr);
                let signer = key.choose_scheme(&EVIDENCE_SCHEMES).ok_or_else(|| {
                    Refusal::new(Reason::EvidenceAlgorithm, "evidence key: of a type that cannot prove possession here")
                        .hint("RSA (2048 to 4096 bits), P-256, P-384 and Ed25519 keys can")
                })?;
                let signature = signer.sign(&message).map_err(|error| {
                    Refusal::new(Reason::Internal, format!("evidence key: it does not sign: {error}"))
                })?;
                Wire::Certificate(wire::CertificateEvidence {
                    attestor: attestor.clone(),
                    chain: Some(wire::CertificateChain { certificates: chain.clone() }),
                    scheme: u16::from(signer.scheme()).into(),
                    signature,
                })
            }
        })
    }
}

/// Enrols with `evidence`, to be certified for `key`, at the coordinator that the root of hash `root_sha256` certifies.
/// `addresses` are tried in order.
///
/// Safe to repeat with the same key when the answer was lost: the coordinator gives it again.
pub async fn enrol(
    evidence: &Evidence,
    root_sha256: [u8; 32],
    addresses: &[String],
    key: SigningKey,
    host_name: &str,
    clock: Arc<Clock>,
) -> Result<NodeIdentity, Refusal> {
    let link = Link::connect(addresses, ClientTls::enrol(Trust::Pinned(root_sha256), clock.clone())?).await?;
    let answer = tokio::time::timeout(EXCHANGE, exchange(&link, evidence, &key, host_name))
        .await
        .map_err(|_| Refusal::new(Reason::CoordinatorUnreachable, "the coordinator did not answer the enrolment"))?;
    link.close().await;
    accept(answer?, root_sha256, addresses, key, &clock)
}

async fn exchange(
    link: &Link,
    evidence: &Evidence,
    key: &SigningKey,
    host_name: &str,
) -> Result<wire::Enrolled, Refusal> {
    let mut frames = link.open(MAX_ENROL_FRAME).await?;
    frames.send.send(&wire::EnrolHello { version: PROTOCOL_VERSION }, MAX_ENROL_FRAME).await?;
    let challenge: wire::EnrolChallenge = frames.receive.expect("the enrolment challenge").await?;
    let challenge = challenge
        .challenge
        .ok_or_else(|| Refusal::new(Reason::FrameMalformed, "enrol_challenge.challenge is missing"))?;
    let challenge = Challenge::try_from(&challenge)?;
    let (csr, exporter) = (key.request()?, link.exporter()?);
    let request = wire::EnrolRequest {
        evidence: Some(evidence.to_wire(&challenge, &exporter, &csr)?),
        possession: key.sign(&possession::enrol_input(&challenge.nonce, &exporter, &csr))?,
        csr,
        host_name: host_name.to_owned(),
    };
    frames.send.send(&request, MAX_ENROL_FRAME).await?;
    let answer: wire::EnrolResponse = frames.receive.expect("the enrolment's answer").await?;
    match answer.result {
        Some(wire::enrol_response::Result::Enrolled(enrolled)) => Ok(enrolled),
        Some(wire::enrol_response::Result::Refused(refused)) => Err(refused.into()),
        None => Err(Refusal::new(Reason::FrameMalformed, "enrol_response.result is missing")),
    }
}

/// Checks the answer before a byte of it is kept: the pinned root is in the bundle, the certificate is trusted by it, names
/// the node id and holds our key.
fn accept(
    enrolled: wire::Enrolled,
    root_sha256: [u8; 32],
    addresses: &[String],
    key: SigningKey,
    clock: &Clock,
) -> Result<NodeIdentity, Refusal> {
    let missing = |field: &str| Refusal::new(Reason::FrameMalformed, format!("enrolled.{field} is missing"));
    let raw_bundle = enrolled.bundle.ok_or_else(|| missing("bundle"))?;
    let bundle = TrustBundle::from_wire(&raw_bundle)?;
    if !raw_bundle.roots.iter().any(|root| <[u8; 32]>::from(Sha256::digest(root)) == root_sha256) {
        let detail = "enrolled.bundle does not hold the root that the coordinator was believed by";
        return Err(Refusal::new(Reason::UntrustedIssuer, detail));
    }
    let node_id = NodeId::try_from(enrolled.node_id.as_slice())
        .map_err(|error| Refusal::new(Reason::FrameMalformed, format!("enrolled.node_id: {error}")))?;
    let chain = enrolled.certificate.ok_or_else(|| missing("certificate"))?;
    let trusted = verify_node(Chain::from_wire(&chain)?, &bundle, clock.now().unix)?;
    if trusted.certificate.node() != node_id {
        return Err(Refusal::new(Reason::CertificateIdentity, "enrolled.certificate is of another node"));
    }
    check_key(trusted.certificate.leaf().spki(), &key)?;
    if enrolled.workloads.len() > MAX_WORKLOADS {
        return Err(Refusal::new(Reason::FrameMalformed, format!("enrolled.workloads: more than {MAX_WORKLOADS}")));
    }
    let overlay = Overlay::from_wire(&enrolled.overlay.ok_or_else(|| missing("overlay"))?)?;
    let workloads = enrolled
        .workloads
        .iter()
        .map(|name| name.parse::<WorkloadName>())
        .collect::<Result<_, _>>()
        .map_err(|error| Refusal::new(Reason::FrameMalformed, format!("enrolled.workloads: {error}")))?;
    Ok(NodeIdentity {
        trust_domain: bundle.trust_domain().clone(),
        node_id,
        coordinators: addresses.to_vec(),
        workloads,
        key,
        chain: key_store::Chain::from_wire(chain),
        bundle: StoredBundle::from(&bundle),
        overlay: Some(overlay),
    })
}

/// Whether a certificate's subjectPublicKeyInfo is `key`'s: it ends in the public point.
pub(super) fn check_key(spki: &[u8], key: &SigningKey) -> Result<(), Refusal> {
    if spki.ends_with(key.public()) {
        Ok(())
    } else {
        Err(Refusal::new(Reason::BindingMismatch, "the certificate issued holds another key than the one sent"))
    }
}
