//! Enrolment: a stranger with a join token, or with somebody else's word for it, becomes a node.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use tokio::sync::Semaphore;
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::join_token::{JoinSecret, JoinTokenId, SECRET_LENGTH};
use warren_proto::possession;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{PROTOCOL_VERSION, wire};
use zeroize::{Zeroize, Zeroizing};

use super::Links;
use super::framing::{Receiver, Sender};
use super::issuance::{FreshChallenge, certificate_chain, exporter};
use super::limits::{Limits, Rate};
use crate::attestation::{CertificateProof, Presented, Rejected, attest};
use crate::ca::RequesterKey;
use crate::registry::{EnrolledNode, Enrolment, Evidence, Registry, attestor_named};

/// Rows of the audit log for authentic evidence that was refused, for each attestor. A row is a commit, and one refused token
/// can be shown any number of times; beyond this they are counted and logged.
const REFUSED_ROWS: Rate = Rate { burst: 16, per_second: 0.1 };

/// What enrolments share.
pub(super) struct Desk {
    /// How many redeem their evidence at once.
    places: Semaphore,
    rows: Mutex<Limits<String>>,
}

impl Desk {
    pub(super) fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), rows: Mutex::new(Limits::new(REFUSED_ROWS)) }
    }
}

/// Serves one enrolment on its connection: one stream, four messages. A refusal is an answer like another.
///
/// A place at the desk is taken only when everything about the request is checked that needs no state.
pub(super) async fn serve(
    registry: &Registry,
    links: &Links,
    connection: &quinn::Connection,
    desk: &Desk,
) -> Result<(), Refusal> {
    let (send, receive) =
        connection.accept_bi().await.map_err(|error| Refusal::new(Reason::FrameUnexpected, error.to_string()))?;
    let (mut send, mut receive) = (Sender::new(send, MAX_ENROL_FRAME), Receiver::new(receive, MAX_ENROL_FRAME));
    let answer = converse(registry, connection, desk, &mut send, &mut receive).await;
    let (result, refused) = match answer {
        Ok(enrolled) => {
            tracing::info!(node = %enrolled.node.id, host = %enrolled.node.host_name, "a node enrolled");
            (wire::enrol_response::Result::Enrolled(response(registry, enrolled)?), None)
        }
        Err(refusal) => {
            // Named before it is answered: who takes no answer must not stay unnamed.
            let remote = connection.remote_address();
            tracing::warn!(%remote, reason = %refusal.reason, detail = %refusal.detail, "an enrolment was refused");
            links.count_refused_enrolment(refusal.reason);
            (wire::enrol_response::Result::Refused(refusal.clone().into()), Some(refusal))
        }
    };
    send.send(&wire::EnrolResponse { result: Some(result) }).await?;
    send.finish().await;
    refused.map_or(Ok(()), Err)
}

async fn converse(
    registry: &Registry,
    connection: &quinn::Connection,
    desk: &Desk,
    send: &mut Sender,
    receive: &mut Receiver,
) -> Result<EnrolledNode, Refusal> {
    let hello: wire::EnrolHello = receive.expect("EnrolHello").await?;
    if hello.version != PROTOCOL_VERSION {
        let detail =
            format!("the node speaks enrolment version {}, this coordinator {PROTOCOL_VERSION}", hello.version);
        return Err(Refusal::new(Reason::VersionUnsupported, detail).hint("run the same release of warren on both"));
    }
    let challenge = FreshChallenge::new();
    send.send(&wire::EnrolChallenge { challenge: Some(challenge.to_wire()) }).await?;
    let request: wire::EnrolRequest = receive.expect("EnrolRequest").await?;
    let exporter = exporter(connection)?;
    let from = connection.remote_address().ip().to_canonical();
    let Request { shown, key, host_name } = check(request, &challenge, &exporter)?;
    let _place = desk.places.acquire().await.ok();
    let evidence = match shown {
        Shown::JoinToken { id, secret } => Evidence::JoinToken { id, secret },
        Shown::ToAttestor { attestor, presented } => judge(registry, desk, &attestor, presented, from).await?,
    };
    let subject = match &evidence {
        Evidence::Attested(attested) => Some((attested.attestor().to_owned(), attested.subject().to_owned())),
        Evidence::JoinToken { .. } => None,
    };
    let enrolled = registry.enrol(Enrolment { evidence, key, host_name, from }).await;
    if let (Err(refusal), Some((attestor, subject))) = (&enrolled, subject) {
        note_refused(registry, desk, &attestor, &subject, refusal, from).await;
    }
    enrolled
}

/// Has the attestor that the machine names judge what it shows. Verifying takes a processor, not a wait.
async fn judge(
    registry: &Registry,
    desk: &Desk,
    attestor: &str,
    presented: Presented,
    from: IpAddr,
) -> Result<Evidence, Refusal> {
    let state = registry.state();
    let known = attestor_named(&state, attestor)?;
    match attest(attestor, known.modified, &known.settings, &presented, registry.now()) {
        Ok(attested) => Ok(Evidence::Attested(attested)),
        Err(Rejected { refusal, subject: None }) => Err(refusal),
        Err(Rejected { refusal, subject: Some(subject) }) => {
            note_refused(registry, desk, attestor, &subject, &refusal, from).await;
            Err(refusal)
        }
    }
}

/// A row for authentic evidence that was refused, unless there were too many lately.
async fn note_refused(
    registry: &Registry,
    desk: &Desk,
    attestor: &str,
    subject: &str,
    refusal: &Refusal,
    from: IpAddr,
) {
    let admitted = desk.rows.lock().unwrap_or_else(PoisonError::into_inner).admit(attestor.to_owned(), Instant::now());
    if !admitted {
        return;
    }
    if let Err(error) = registry.report_refused_evidence(attestor, subject, refusal, from).await {
        tracing::warn!(%error, "a refused enrolment could not be put into the audit log");
    }
}

/// A request whose form is right and whose key is proven.
struct Request {
    shown: Shown,
    key: RequesterKey,
    host_name: String,
}

/// What is shown, by kind.
enum Shown {
    JoinToken { id: JoinTokenId, secret: JoinSecret },
    ToAttestor { attestor: String, presented: Presented },
}

/// Everything about a request that needs no state: form, and possession of the key.
fn check(
    request: wire::EnrolRequest,
    challenge: &FreshChallenge,
    exporter: &[u8; possession::LENGTH],
) -> Result<Request, Refusal> {
    use wire::enrol_request::Evidence as Raw;
    let csr = request.csr;
    let shown = match request.evidence {
        Some(Raw::JoinToken(mut evidence)) => {
            let id: JoinTokenId = evidence.token_id.parse()?;
            let secret = <[u8; SECRET_LENGTH]>::try_from(evidence.secret.as_slice()).map(JoinSecret::from_bytes);
            evidence.secret.zeroize();
            let secret = secret.map_err(|_| Refusal::new(Reason::TokenMalformed, "join_token.secret: not 32 bytes"))?;
            Shown::JoinToken { id, secret }
        }
        Some(Raw::Document(evidence)) => Shown::ToAttestor {
            attestor: evidence.attestor,
            presented: Presented::Document(Zeroizing::new(evidence.document)),
        },
        Some(Raw::Certificate(evidence)) => Shown::ToAttestor {
            attestor: evidence.attestor,
            presented: Presented::Certificate(CertificateProof {
                chain: evidence.chain.unwrap_or_default().certificates,
                scheme: evidence.scheme,
                signature: evidence.signature,
                message: possession::certificate_evidence_input(challenge.nonce(), exporter, &csr),
            }),
        },
        None => {
            return Err(Refusal::new(Reason::FrameMalformed, "evidence: missing, or of a kind not known here")
                .hint("enrol with a join token: `warren enrol --token-file FILE`"));
        }
    };
    let key = RequesterKey::from_csr(&csr)?;
    let input = possession::enrol_input(challenge.nonce(), exporter, &csr);
    key.verify(&input, &request.possession)?;
    Ok(Request { shown, key, host_name: request.host_name })
}

fn response(registry: &Registry, enrolled: EnrolledNode) -> Result<wire::Enrolled, Refusal> {
    let state = registry.state();
    let settings = state.settings()?;
    Ok(wire::Enrolled {
        node_id: enrolled.node.id.as_bytes().to_vec(),
        certificate: Some(certificate_chain(enrolled.chain)),
        bundle: Some(registry.authority().bundle().to_wire()),
        overlay: Some(settings.overlay.to_wire()),
        workloads: enrolled.node.workloads.iter().map(ToString::to_string).collect(),
    })
}
