//! Issuance over the control link: a stream each, possession proven over a fresh challenge bound to this
//! very connection, and nothing kept that does not verify.

use std::time::Duration;

use warren_proto::certificate::{Capabilities, Chain, NodeCertificate, TunnelCertificate, WorkloadSvid};
use warren_proto::codec::MAX_CONTROL_FRAME;
use warren_proto::control_trust::{Purpose, anchor, verify_node};
use warren_proto::possession::{self, Challenge, TunnelKeyClaim};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, OverlayAddresses, PROTOCOL_VERSION, TrustBundle, UnixTime, WorkloadName, wire};

use super::enrol::check_key;
use super::link::{Frames, Link};
use crate::certificates::key_store::{self, NodeIdentity, SigningKey, TunnelIdentity, TunnelKey};
use crate::certificates::svids::Svid;

/// One issuance may take this long: signing, an audit record on disk, and a slow link.
const EXCHANGE: Duration = Duration::from_secs(20);

/// What to ask for.
#[derive(Debug, Clone)]
pub struct TunnelRequest {
    /// Whose certificate.
    pub workload: WorkloadName,
    /// The instance to renew; `None` for a new one.
    pub instance: Option<InstanceId>,
    /// What this host can do.
    pub capabilities: Capabilities,
    /// The tunnel key to keep, where plain devices have it in their configuration.
    pub keep: Option<TunnelKey>,
}

/// A new certificate of an instance.
#[derive(Debug)]
pub struct Issued {
    /// The instance that the coordinator gave or confirmed.
    pub instance: InstanceId,
    /// Its addresses.
    pub addresses: OverlayAddresses,
    /// The certificate and its two keys, new ones but for a tunnel key that was kept.
    pub identity: TunnelIdentity,
}

/// What an answer is held against.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// This node.
    pub node: NodeId,
    /// The roots it holds.
    pub bundle: &'a TrustBundle,
    /// The time.
    pub now: UnixTime,
}

/// Makes two new keys, or one where the tunnel's is kept, and has them certified as a tunnel certificate. A key that the
/// coordinator does not let be kept, because no device needs it or because it is revoked, is given up for a new one.
pub async fn tunnel(link: &Link, request: &TunnelRequest, holder: Holder<'_>) -> Result<Issued, Refusal> {
    let key = SigningKey::generate()?;
    if let Some(kept) = &request.keep {
        match timed(ask_tunnel(link, request, &key, kept)).await {
            Ok(answer) => return accept_tunnel(answer, request, key, kept.clone(), holder),
            Err(refusal) if matches!(refusal.reason, Reason::KeyInUse | Reason::Revoked) => {
                tracing::info!(reason = refusal.reason.name(), "the tunnel key is not kept: {refusal}");
            }
            Err(refusal) => return Err(refusal),
        }
    }
    let tunnel = TunnelKey::generate();
    let answer = timed(ask_tunnel(link, request, &key, &tunnel)).await?;
    accept_tunnel(answer, request, key, tunnel, holder)
}

/// Has a new node certificate issued over `key` ([`renewal_key`]).
pub async fn node(link: &Link, holder: Holder<'_>, key: SigningKey) -> Result<(SigningKey, key_store::Chain), Refusal> {
    let chain = timed(ask_node(link, &key)).await?;
    let trusted = verify_node(Chain::from_wire(&chain)?, holder.bundle, holder.now)?;
    if trusted.certificate.node() != holder.node {
        return Err(Refusal::new(Reason::CertificateIdentity, "the node certificate issued is of another node"));
    }
    check_key(trusted.certificate.leaf().spki(), &key)?;
    Ok((key, key_store::Chain::from_wire(chain)))
}

/// Has an X.509-SVID of `workload` issued over a new key, to be handed to the workload with that key.
pub async fn svid(link: &Link, workload: &WorkloadName, holder: Holder<'_>) -> Result<Svid, Refusal> {
    let key = SigningKey::generate()?;
    let raw = timed(ask_svid(link, workload, &key)).await?;
    let chain = Chain::from_wire(&raw)?;
    let certificate = WorkloadSvid::parse(chain.leaf())?;
    let path = anchor(certificate.leaf(), chain, holder.bundle, Purpose::WorkloadSvid, holder.now)?;
    check_key(certificate.leaf().spki(), &key)?;
    if certificate.workload() != workload {
        return Err(Refusal::new(Reason::BindingMismatch, "the SVID issued is of another workload"));
    }
    Ok(Svid { key, chain: key_store::Chain::from_wire(raw), certificate, valid_until: path.valid_until() })
}

/// The key that the next node certificate is asked for over: a new one, or the present one once its certificate has
/// ended, for then no other is renewed.
pub fn renewal_key(identity: &NodeIdentity, now: UnixTime) -> Result<SigningKey, Refusal> {
    let (_, ends) = node_validity(&identity.chain)?;
    if ends <= now { Ok(identity.key.clone()) } else { SigningKey::generate() }
}

/// The moments between which a stored node certificate holds.
pub fn node_validity(chain: &key_store::Chain) -> Result<(UnixTime, UnixTime), Refusal> {
    let leaf = chain.0.first().map(Vec::as_slice).unwrap_or_default();
    let certificate = NodeCertificate::parse(leaf)?;
    Ok((certificate.leaf().not_before(), certificate.leaf().not_after()))
}

async fn timed<T>(exchange: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::time::timeout(EXCHANGE, exchange)
        .await
        .map_err(|_| Refusal::new(Reason::CoordinatorUnreachable, "the coordinator did not answer the issuance"))?
}

async fn begin(link: &Link) -> Result<(Frames, Challenge), Refusal> {
    let mut frames = link.open(MAX_CONTROL_FRAME).await?;
    frames.send.send(&wire::IssueBegin { version: PROTOCOL_VERSION }, MAX_CONTROL_FRAME).await?;
    let challenge: wire::Challenge = frames.receive.expect("the issuance challenge").await?;
    let challenge = Challenge::try_from(&challenge)?;
    Ok((frames, challenge))
}

async fn finish(
    mut frames: Frames,
    request: wire::issue_request::Request,
) -> Result<wire::issue_response::Result, Refusal> {
    frames.send.send(&wire::IssueRequest { request: Some(request) }, MAX_CONTROL_FRAME).await?;
    let answer: wire::IssueResponse = frames.receive.expect("the issuance's answer").await?;
    match answer.result {
        Some(wire::issue_response::Result::Refused(refused)) => Err(refused.into()),
        Some(result) => Ok(result),
        None => Err(Refusal::new(Reason::FrameMalformed, "issue_response.result is missing")),
    }
}

async fn ask_tunnel(
    link: &Link,
    request: &TunnelRequest,
    key: &SigningKey,
    tunnel: &TunnelKey,
) -> Result<wire::IssuedTunnelCertificate, Refusal> {
    let (frames, challenge) = begin(link).await?;
    let (exporter, csr, public) = (link.exporter()?, key.request()?, tunnel.public());
    let shared = tunnel.agree(&challenge.ephemeral_x25519)?;
    let claim =
        TunnelKeyClaim { exporter: &exporter, csr: &csr, workload: request.workload.as_str(), tunnel_key: &public };
    let message = wire::TunnelCertificateRequest {
        workload: request.workload.to_string(),
        instance_id: request.instance.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
        tunnel_key: public.to_vec(),
        tunnel_key_possession: possession::tunnel_key_proof(&shared, &challenge.nonce, &claim).to_vec(),
        capabilities: request.capabilities.bits(),
        possession: key.sign(&possession::issue_input(&challenge.nonce, &exporter, &csr))?,
        csr,
    };
    match finish(frames, wire::issue_request::Request::Tunnel(message)).await? {
        wire::issue_response::Result::Tunnel(issued) => Ok(issued),
        _ => Err(Refusal::new(Reason::FrameUnexpected, "issue_response.result is not a tunnel certificate")),
    }
}

async fn ask_node(link: &Link, key: &SigningKey) -> Result<wire::CertificateChain, Refusal> {
    let (frames, challenge) = begin(link).await?;
    let csr = key.request()?;
    let message = wire::NodeCertificateRequest {
        possession: key.sign(&possession::issue_input(&challenge.nonce, &link.exporter()?, &csr))?,
        csr,
    };
    match finish(frames, wire::issue_request::Request::Node(message)).await? {
        wire::issue_response::Result::Node(chain) => Ok(chain),
        _ => Err(Refusal::new(Reason::FrameUnexpected, "issue_response.result is not a node certificate")),
    }
}

async fn ask_svid(link: &Link, workload: &WorkloadName, key: &SigningKey) -> Result<wire::CertificateChain, Refusal> {
    let (frames, challenge) = begin(link).await?;
    let csr = key.request()?;
    let message = wire::WorkloadSvidRequest {
        workload: workload.to_string(),
        possession: key.sign(&possession::issue_input(&challenge.nonce, &link.exporter()?, &csr))?,
        csr,
    };
    match finish(frames, wire::issue_request::Request::Svid(message)).await? {
        wire::issue_response::Result::Svid(chain) => Ok(chain),
        _ => Err(Refusal::new(Reason::FrameUnexpected, "issue_response.result is not a workload's SVID")),
    }
}

/// A certificate that does not say what was asked for is of no use: peers would refuse it later, less clearly.
fn accept_tunnel(
    issued: wire::IssuedTunnelCertificate,
    request: &TunnelRequest,
    key: SigningKey,
    tunnel: TunnelKey,
    holder: Holder<'_>,
) -> Result<Issued, Refusal> {
    let raw =
        issued.certificate.ok_or_else(|| Refusal::new(Reason::FrameMalformed, "issued.certificate is missing"))?;
    let chain = Chain::from_wire(&raw)?;
    let certificate = TunnelCertificate::parse(chain.leaf())?;
    anchor(certificate.leaf(), chain, holder.bundle, Purpose::Tunnel, holder.now)?;
    let binding = certificate.binding();
    check_key(certificate.leaf().spki(), &key)?;
    let wrong =
        |what: &str| Err(Refusal::new(Reason::BindingMismatch, format!("the certificate issued is of another {what}")));
    if binding.tunnel_key != tunnel.public() {
        return wrong("tunnel key");
    }
    if binding.node != holder.node {
        return wrong("node");
    }
    if *certificate.workload() != request.workload {
        return wrong("workload");
    }
    if request.instance.is_some_and(|instance| instance != binding.instance) {
        return wrong("instance");
    }
    Ok(Issued {
        instance: binding.instance,
        addresses: certificate.addresses(),
        identity: TunnelIdentity { key, tunnel, chain: key_store::Chain::from_wire(raw) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_mesh::{DAY, NOW, TestMesh};

    #[test]
    fn a_node_certificate_in_date_is_renewed_over_a_new_key_and_an_ended_one_over_its_own() {
        let identity = TestMesh::new().identity();
        let key = |now| renewal_key(&identity, now).expect("key").public().to_vec();
        assert_ne!(key(NOW), identity.key.public());
        assert_eq!(key(UnixTime(NOW.0 + DAY)), identity.key.public());
    }
}
