//! Enrolment: a join token and a proof of possession for a node certificate.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use warren_proto::certificate::Chain;
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::control_trust::verify_node;
use warren_proto::join_token::JoinToken;
use warren_proto::possession::{self, Challenge};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{NodeId, Overlay, PROTOCOL_VERSION, TrustBundle, WorkloadName, wire};

use super::link::Link;
use super::tls::{ClientTls, Trust};
use crate::certificates::key_store::{self, NodeIdentity, SigningKey, StoredBundle};
use crate::clock::Clock;

/// The whole exchange may take this long once the link is up.
const EXCHANGE: Duration = Duration::from_secs(20);

/// Most identities one node may be granted.
const MAX_WORKLOADS: usize = 1024;

/// Redeems `token` for a node certificate over `key`. `addresses` are tried in order.
///
/// Safe to repeat with the same key when the answer was lost: the coordinator gives it again.
pub async fn enrol(
    token: &JoinToken,
    addresses: &[String],
    key: SigningKey,
    host_name: &str,
    clock: Arc<Clock>,
) -> Result<NodeIdentity, Refusal> {
    let link = Link::connect(addresses, ClientTls::enrol(Trust::Pinned(token.root_sha256), clock.clone())?).await?;
    let answer = tokio::time::timeout(EXCHANGE, exchange(&link, token, &key, host_name))
        .await
        .map_err(|_| Refusal::new(Reason::CoordinatorUnreachable, "the coordinator did not answer the enrolment"))?;
    link.close().await;
    accept(answer?, token, addresses, key, &clock)
}

async fn exchange(
    link: &Link,
    token: &JoinToken,
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
    let csr = key.request()?;
    let request = wire::EnrolRequest {
        possession: key.sign(&possession::enrol_input(&challenge.nonce, &link.exporter()?, &csr))?,
        csr,
        host_name: host_name.to_owned(),
        evidence: Some(wire::enrol_request::Evidence::JoinToken(wire::JoinTokenEvidence {
            token_id: token.id.to_string(),
            secret: token.secret.expose().to_vec(),
        })),
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
    token: &JoinToken,
    addresses: &[String],
    key: SigningKey,
    clock: &Clock,
) -> Result<NodeIdentity, Refusal> {
    let missing = |field: &str| Refusal::new(Reason::FrameMalformed, format!("enrolled.{field} is missing"));
    let raw_bundle = enrolled.bundle.ok_or_else(|| missing("bundle"))?;
    let bundle = TrustBundle::from_wire(&raw_bundle)?;
    if !raw_bundle.roots.iter().any(|root| <[u8; 32]>::from(Sha256::digest(root)) == token.root_sha256) {
        let detail = "enrolled.bundle does not hold the root that the join token names";
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
