//! Issuance over the control link: one stream per certificate, each with a challenge of its own.

use std::sync::Arc;

use warren_proto::certificate::Capabilities;
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::control_trust::TrustedNode;
use warren_proto::peer_map::object_digest;
use warren_proto::possession::{self, TunnelKeyClaim};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, PROTOCOL_VERSION, UnixTime, wire};
use x25519_dalek::{PublicKey, StaticSecret};

use super::framing::{Receiver, Sender};
use super::session::{Shared, check_not_revoked};
use crate::ca::RequesterKey;
use crate::registry::TunnelRequest;
use crate::state::State;
use crate::state::records::{Hex32, Instance, NodeCertificateKey};

/// The node at the other end, as its certificate says.
#[derive(Debug, Clone)]
pub(super) struct Requester {
    pub(super) node: NodeId,
    /// When the certificate ends that the link was made with. From then on it may be renewed, and nothing else.
    pub(super) ends: UnixTime,
    /// The certificate and its path: a revocation of either ends what the link may ask for.
    pub(super) trusted: Arc<TrustedNode>,
}

impl Requester {
    /// The certificate that the link was made with.
    pub(super) fn shown(&self) -> NodeCertificateKey {
        let leaf = self.trusted.certificate.leaf();
        NodeCertificateKey { key_sha256: Hex32(object_digest(leaf.spki())), not_after: leaf.not_after() }
    }

    pub(super) fn ended(&self, now: UnixTime) -> bool {
        self.ends <= now
    }
}

/// A challenge with the private half of its one-time key.
pub(super) struct FreshChallenge {
    public: possession::Challenge,
    ephemeral: StaticSecret,
}

impl FreshChallenge {
    pub(super) fn new() -> Self {
        let ephemeral = StaticSecret::from(rand::random::<[u8; 32]>());
        let public =
            possession::Challenge { nonce: rand::random(), ephemeral_x25519: PublicKey::from(&ephemeral).to_bytes() };
        Self { public, ephemeral }
    }

    pub(super) const fn nonce(&self) -> &[u8; possession::LENGTH] {
        &self.public.nonce
    }

    pub(super) fn to_wire(&self) -> wire::Challenge {
        (&self.public).into()
    }

    /// Whether the requester holds the private half of `claim.tunnel_key`.
    fn verify(&self, claim: &TunnelKeyClaim<'_>, proof: &[u8]) -> Result<(), Refusal> {
        let shared = self.ephemeral.diffie_hellman(&PublicKey::from(*claim.tunnel_key));
        if !shared.was_contributory() {
            return Err(Refusal::new(Reason::KeyLowOrder, "tunnel_key: a point of low order"));
        }
        if possession::tunnel_key_proof_holds(shared.as_bytes(), self.nonce(), claim, proof) {
            return Ok(());
        }
        Err(Refusal::new(Reason::PossessionUnproven, "tunnel_key_possession: it does not verify"))
    }
}

/// The TLS exporter that possession proofs on this connection are bound to.
pub(super) fn exporter(connection: &quinn::Connection) -> Result<[u8; possession::LENGTH], Refusal> {
    let mut exporter = [0; possession::LENGTH];
    connection
        .export_keying_material(&mut exporter, possession::EXPORTER_LABEL, b"")
        .map_err(|_| Refusal::new(Reason::Internal, "the TLS exporter gives nothing"))?;
    Ok(exporter)
}

/// As sent over the wire.
pub(super) fn certificate_chain(chain: Vec<Vec<u8>>) -> wire::CertificateChain {
    wire::CertificateChain { certificates: chain }
}

/// Serves one issuance on its stream. A refusal is an answer like another.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: quinn::Connection,
    requester: Requester,
    stream: (quinn::SendStream, quinn::RecvStream),
) -> Result<(), Refusal> {
    let (mut send, mut receive) = (Sender::new(stream.0, MAX_ENROL_FRAME), Receiver::new(stream.1, MAX_ENROL_FRAME));
    let (result, refused) = match converse(&shared, &connection, &requester, &mut send, &mut receive).await {
        Ok(result) => (result, None),
        Err(refusal) => {
            // Named before it is answered: who takes no answer must not stay unnamed.
            let node = requester.node;
            tracing::warn!(%node, reason = %refusal.reason, detail = %refusal.detail, "issuance was refused");
            (wire::issue_response::Result::Refused(refusal.clone().into()), Some(refusal))
        }
    };
    send.send(&wire::IssueResponse { result: Some(result) }).await?;
    send.finish().await;
    refused.map_or(Ok(()), Err)
}

async fn converse(
    shared: &Shared,
    connection: &quinn::Connection,
    requester: &Requester,
    send: &mut Sender,
    receive: &mut Receiver,
) -> Result<wire::issue_response::Result, Refusal> {
    let begin: wire::IssueBegin = receive.expect("IssueBegin").await?;
    if begin.version != PROTOCOL_VERSION {
        let detail = format!("the node speaks version {}, this coordinator {PROTOCOL_VERSION}", begin.version);
        return Err(Refusal::new(Reason::VersionUnsupported, detail).hint("run the same release of warren on both"));
    }
    let challenge = FreshChallenge::new();
    send.send(&challenge.to_wire()).await?;
    let request: wire::IssueRequest = receive.expect("IssueRequest").await?;
    let exporter = exporter(connection)?;
    if !shared.may_issue(requester.node) {
        return Err(Refusal::new(Reason::RateLimited, "this node asks for too many certificates"));
    }
    let registry = &shared.registry;
    // Between the challenge and this answer lies as long as the node likes.
    let standing = |state: &State| check_not_revoked(state, &requester.trusted);
    match request.request {
        Some(wire::issue_request::Request::Node(request)) => {
            let key = proven_key(&challenge, &exporter, &request.csr, &request.possession)?;
            let renewed = registry.renew_node(requester.node, requester.shown(), &key, &standing).await?;
            Ok(wire::issue_response::Result::Node(certificate_chain(renewed.chain)))
        }
        Some(wire::issue_request::Request::Tunnel(_)) if requester.ended(registry.now()) => {
            Err(Refusal::new(Reason::CertificateEnded, "the node's certificate has ended: only it may be renewed"))
        }
        Some(wire::issue_request::Request::Tunnel(request)) => {
            let request = check_tunnel(&request, &challenge, &exporter, requester.node)?;
            let instance = registry.issue_tunnel(request, &standing).await?;
            tracing::info!(node = %instance.node, instance = %instance.id, workload = %instance.workload, "issued");
            issued(&instance).map(wire::issue_response::Result::Tunnel)
        }
        Some(wire::issue_request::Request::Svid(_)) if requester.ended(registry.now()) => {
            Err(Refusal::new(Reason::CertificateEnded, "the node's certificate has ended: only it may be renewed"))
        }
        Some(wire::issue_request::Request::Svid(request)) => {
            let malformed = |error| Refusal::new(Reason::FrameMalformed, format!("workload: {error}"));
            let workload = request.workload.parse().map_err(malformed)?;
            let key = proven_key(&challenge, &exporter, &request.csr, &request.possession)?;
            let chain = registry.issue_svid(requester.node, &workload, &key, &standing).await?;
            tracing::info!(node = %requester.node, %workload, "issued a workload's SVID");
            Ok(wire::issue_response::Result::Svid(certificate_chain(chain)))
        }
        None => Err(Refusal::new(Reason::FrameMalformed, "request: missing, or of a kind not known here")),
    }
}

fn proven_key(
    challenge: &FreshChallenge,
    exporter: &[u8; possession::LENGTH],
    csr: &[u8],
    signature: &[u8],
) -> Result<RequesterKey, Refusal> {
    let key = RequesterKey::from_csr(csr)?;
    key.verify(&possession::issue_input(challenge.nonce(), exporter, csr), signature)?;
    Ok(key)
}

fn check_tunnel(
    request: &wire::TunnelCertificateRequest,
    challenge: &FreshChallenge,
    exporter: &[u8; possession::LENGTH],
    node: NodeId,
) -> Result<TunnelRequest, Refusal> {
    let malformed = |detail: String| Refusal::new(Reason::FrameMalformed, detail);
    let workload = request.workload.parse().map_err(|error| malformed(format!("workload: {error}")))?;
    let instance = match request.instance_id.as_slice() {
        [] => None,
        bytes => Some(InstanceId::try_from(bytes).map_err(|error| malformed(format!("instance_id: {error}")))?),
    };
    let tunnel_key = <[u8; 32]>::try_from(request.tunnel_key.as_slice())
        .map_err(|_| malformed("tunnel_key: not 32 bytes".to_owned()))?;
    let key = proven_key(challenge, exporter, &request.csr, &request.possession)?;
    let claim = TunnelKeyClaim { exporter, csr: &request.csr, workload: &request.workload, tunnel_key: &tunnel_key };
    challenge.verify(&claim, &request.tunnel_key_possession)?;
    Ok(TunnelRequest {
        node,
        workload,
        instance,
        key,
        tunnel_key,
        capabilities: Capabilities::claimed(request.capabilities),
    })
}

fn issued(instance: &Instance) -> Result<wire::IssuedTunnelCertificate, Refusal> {
    let newest = instance
        .certificates
        .first()
        .ok_or_else(|| Refusal::new(Reason::Internal, "an instance without certificate was issued"))?;
    Ok(wire::IssuedTunnelCertificate {
        instance_id: instance.id.as_bytes().to_vec(),
        certificate: Some(certificate_chain(newest.chain.iter().map(|der| der.0.to_vec()).collect())),
        addresses: instance.addresses.iter().map(|address| address.to_string()).collect(),
    })
}
