//! Enrolment: a stranger with a join token becomes a node.

use std::net::IpAddr;

use tokio::sync::Semaphore;
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::join_token::{JoinSecret, JoinTokenId, SECRET_LENGTH};
use warren_proto::possession;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{PROTOCOL_VERSION, wire};
use zeroize::Zeroize;

use super::framing::{Receiver, Sender};
use super::issuance::{FreshChallenge, certificate_chain, exporter};
use crate::ca::RequesterKey;
use crate::registry::{EnrolledNode, Enrolment, Registry};

/// Serves one enrolment on its connection: one stream, four messages. A refusal is an answer like another.
///
/// `places` bounds how many redeem a token at once; one is taken only when everything about the request is checked that
/// needs no state.
pub(super) async fn serve(
    registry: &Registry,
    connection: &quinn::Connection,
    places: &Semaphore,
) -> Result<(), Refusal> {
    let (send, receive) =
        connection.accept_bi().await.map_err(|error| Refusal::new(Reason::FrameUnexpected, error.to_string()))?;
    let (mut send, mut receive) = (Sender::new(send, MAX_ENROL_FRAME), Receiver::new(receive, MAX_ENROL_FRAME));
    let answer = converse(registry, connection, places, &mut send, &mut receive).await;
    let (result, refused) = match answer {
        Ok(enrolled) => {
            tracing::info!(node = %enrolled.node.id, host = %enrolled.node.host_name, "a node enrolled");
            (wire::enrol_response::Result::Enrolled(response(registry, enrolled)?), None)
        }
        Err(refusal) => {
            // Named before it is answered: who takes no answer must not stay unnamed.
            let remote = connection.remote_address();
            tracing::warn!(%remote, reason = %refusal.reason, detail = %refusal.detail, "an enrolment was refused");
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
    places: &Semaphore,
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
    let enrolment = check(request, &challenge, &exporter, connection.remote_address().ip())?;
    let _place = places.acquire().await.ok();
    registry.enrol(enrolment).await
}

/// Everything about a request that needs no state: form, and possession of the key.
fn check(
    request: wire::EnrolRequest,
    challenge: &FreshChallenge,
    exporter: &[u8; possession::LENGTH],
    from: IpAddr,
) -> Result<Enrolment, Refusal> {
    let Some(wire::enrol_request::Evidence::JoinToken(mut evidence)) = request.evidence else {
        return Err(Refusal::new(Reason::FrameMalformed, "evidence: missing, or of a kind not known here")
            .hint("enrol with a join token: `warren enrol --token-file FILE`"));
    };
    let token: JoinTokenId = evidence.token_id.parse()?;
    let secret = <[u8; SECRET_LENGTH]>::try_from(evidence.secret.as_slice()).map(JoinSecret::from_bytes);
    evidence.secret.zeroize();
    let secret = secret.map_err(|_| Refusal::new(Reason::TokenMalformed, "join_token.secret: not 32 bytes"))?;
    let key = RequesterKey::from_csr(&request.csr)?;
    let input = possession::enrol_input(challenge.nonce(), exporter, &request.csr);
    key.verify(&input, &request.possession)?;
    Ok(Enrolment { token, secret, key, host_name: request.host_name, from: from.to_canonical() })
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
