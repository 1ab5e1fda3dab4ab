//! A node's side of the protocol, as small as it can be.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use warren_proto::certificate::{Chain, SignerCertificate};
use warren_proto::codec::{FrameDecoder, MAX_CONTROL_FRAME, encode};
use warren_proto::control_trust::verify_coordinator;
use warren_proto::join_token::JoinToken;
use warren_proto::peer_map::{Generation, Heartbeat, Manifest, RevocationSet, Scope, signing_input};
use warren_proto::possession::{self, TunnelKeyClaim};
use warren_proto::reason::Refusal;
use warren_proto::{
    ALPN_CONTROL, ALPN_ENROL, InstanceId, NodeId, PROTOCOL_VERSION, READER_VERSION, Reason, TrustBundle, UnixTime, wire,
};
use x25519_dalek::{PublicKey, StaticSecret};

use super::mesh::{Mesh, PATIENCE, Target};

/// A private key with the chain that certifies it.
pub(crate) struct Identity {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: KeyPair,
}

/// An enrolled node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    pub(crate) bundle: TrustBundle,
    pub(crate) held: Held,
    pub(crate) now: UnixTime,
}

/// What a node has applied.
#[derive(Default, Clone)]
pub(crate) struct Held {
    pub(crate) scope: Scope,
    pub(crate) manifest: Option<Manifest>,
}

#[derive(Debug)]
struct Verifier(TrustBundle, UnixTime);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref);
        verify_coordinator(Chain::new(presented).unwrap(), &self.0, self.1)
            .map(|_| ServerCertVerified::assertion())
            .map_err(|refusal| rustls::Error::General(refusal.to_string()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.2")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How a client shakes hands; changed by attacks.
pub(crate) struct Dial<'a> {
    pub(crate) alpn: &'a [u8],
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
}

impl<'a> Dial<'a> {
    pub(crate) fn new(alpn: &'a [u8], identity: Option<&'a Identity>) -> Self {
        Self { alpn, identity, groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768] }
    }

    pub(crate) async fn connect(&self, target: &Target, bundle: &TrustBundle) -> Result<Connection, ConnectionError> {
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: self.groups.clone(),
            ..rustls::crypto::aws_lc_rs::default_provider()
        };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier(bundle.clone(), target.now)));
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        let mut transport = quinn::TransportConfig::default();
        transport.initial_mtu(1200);
        client.transport_config(Arc::new(transport));
        timeout(PATIENCE, endpoint.connect_with(client, target.address, "coordinator.warren").unwrap())
            .await
            .expect("an answer")
    }
}

/// A stream as frames.
pub(crate) struct Frames {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) decoder: FrameDecoder,
}

impl Frames {
    pub(crate) async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, receive, decoder: FrameDecoder::new(MAX_CONTROL_FRAME) }
    }

    pub(crate) async fn send<M: Message>(&mut self, message: &M) {
        self.send.write_all(&encode(message, MAX_CONTROL_FRAME).unwrap()).await.unwrap();
    }

    /// The next frame; none when the stream or the connection ended.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.next_frame().unwrap() {
                return Some(message);
            }
            let read = timeout(PATIENCE, self.receive.read_chunk(64 * 1024, true)).await.expect("a frame in time");
            match read {
                Ok(Some(chunk)) => self.decoder.extend(&chunk.bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The name of the reason that a connection was closed with.
pub(crate) async fn closed(connection: &Connection) -> String {
    match timeout(PATIENCE, connection.closed()).await.expect("a close in time") {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => other.to_string(),
    }
}

fn exporter(connection: &Connection) -> [u8; 32] {
    let mut exporter = [0; 32];
    connection.export_keying_material(&mut exporter, possession::EXPORTER_LABEL, b"").unwrap();
    exporter
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

/// An enrolment as the protocol has it, for attacks to change before it is sent.
pub(crate) struct EnrolAttempt {
    pub(crate) frames: Frames,
    pub(crate) request: wire::EnrolRequest,
    /// Of the coordinator's challenge.
    pub(crate) nonce: [u8; 32],
    /// Of the connection.
    pub(crate) exporter: [u8; 32],
}

impl EnrolAttempt {
    pub(crate) async fn begin(mesh: &Target, token: &JoinToken, key: &KeyPair) -> Self {
        let connection = Dial::new(ALPN_ENROL, None).connect(mesh, &mesh.bundle).await.unwrap();
        let mut frames = Frames::open(&connection).await;
        frames.send(&wire::EnrolHello { version: PROTOCOL_VERSION }).await;
        let challenge: wire::EnrolChallenge = frames.next().await.unwrap();
        let challenge = possession::Challenge::try_from(&challenge.challenge.unwrap()).unwrap();
        let (csr, exporter) = (csr(key), exporter(&connection));
        let input = possession::enrol_input(&challenge.nonce, &exporter, &csr);
        let request = wire::EnrolRequest {
            evidence: Some(wire::enrol_request::Evidence::JoinToken(wire::JoinTokenEvidence {
                token_id: token.id.to_string(),
                secret: token.secret.expose().to_vec(),
            })),
            possession: key.sign(&input).unwrap(),
            csr,
            host_name: "test".to_owned(),
        };
        Self { frames, request, nonce: challenge.nonce, exporter }
    }

    pub(crate) async fn finish(mut self) -> Result<wire::Enrolled, Refusal> {
        self.frames.send(&self.request).await;
        let response: wire::EnrolResponse = self.frames.next().await.expect("an answer");
        match response.result.unwrap() {
            wire::enrol_response::Result::Enrolled(enrolled) => Ok(enrolled),
            wire::enrol_response::Result::Refused(refused) => Err(refused.into()),
        }
    }
}

impl Node {
    pub(crate) async fn enrol(mesh: &Target, token: &JoinToken) -> Result<Self, Refusal> {
        let key = KeyPair::generate().unwrap();
        let enrolled = EnrolAttempt::begin(mesh, token, &key).await.finish().await?;
        Ok(Self {
            id: NodeId::try_from(enrolled.node_id.as_slice()).unwrap(),
            identity: Identity { chain: enrolled.certificate.unwrap().certificates, key },
            bundle: TrustBundle::from_wire(&enrolled.bundle.unwrap()).unwrap(),
            held: Held::default(),
            now: mesh.now,
        })
    }

    pub(crate) async fn with_token(mesh: &Mesh, workloads: &[&str]) -> Self {
        let token = mesh.token(1, workloads).await;
        Self::enrol(mesh, &token).await.unwrap()
    }

    pub(crate) async fn connect(&mut self, mesh: &Target) -> Link<'_> {
        let connection = Dial::new(ALPN_CONTROL, Some(&self.identity)).connect(mesh, &self.bundle).await.unwrap();
        let mut frames = Frames::open(&connection).await;
        frames.send(&node_frame(wire::node_frame::Frame::Hello(self.hello()))).await;
        let mut link = Link { node: self, connection, frames, heartbeats: Vec::new(), hints: Vec::new() };
        match link.next().await {
            Some(wire::coordinator_frame::Frame::Welcome(_)) => link,
            other => panic!("not a welcome: {other:?}"),
        }
    }

    pub(crate) fn hello(&self) -> wire::Hello {
        let generation = self.held.generation();
        wire::Hello {
            version: PROTOCOL_VERSION,
            epoch: generation.epoch,
            revision: generation.revision,
            scope_digest: self.held.manifest.as_ref().map(|_| self.held.scope.digest().to_vec()).unwrap_or_default(),
            clock_unix_ms: self.now.0 * 1000,
            reader: READER_VERSION,
            software: "test/1".to_owned(),
            process: Vec::new(),
        }
    }
}

impl Held {
    pub(crate) fn generation(&self) -> Generation {
        self.manifest.as_ref().map(|manifest| manifest.generation).unwrap_or_default()
    }

    pub(crate) fn revocations(&self) -> usize {
        use warren_proto::peer_map::ObjectKind;
        let lists = self.scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::Revocations);
        lists.map(|(_, object)| RevocationSet::decode(&object.content).unwrap().all().len()).sum()
    }

    /// The instances that policy and peers were chosen for.
    pub(crate) fn covers(&self) -> BTreeSet<InstanceId> {
        use warren_proto::peer_map::{ObjectKind, decode_instances};
        let lists = self.scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::Instances);
        lists.flat_map(|(_, object)| decode_instances(&object.content).unwrap()).collect()
    }

    pub(crate) fn policies(&self) -> Vec<&str> {
        use warren_proto::peer_map::ObjectKind;
        let policies = self.scope.objects.keys().filter(|key| key.kind == ObjectKind::Policy);
        policies.map(|key| key.name.as_str()).collect()
    }
}

pub(crate) fn node_frame(frame: wire::node_frame::Frame) -> wire::NodeFrame {
    wire::NodeFrame { frame: Some(frame) }
}

/// A node's session.
pub(crate) struct Link<'n> {
    pub(crate) node: &'n mut Node,
    pub(crate) connection: Connection,
    pub(crate) frames: Frames,
    pub(crate) heartbeats: Vec<Heartbeat>,
    pub(crate) hints: Vec<wire::PeerHint>,
}

/// An update as it came.
pub(crate) struct Received {
    pub(crate) parts: usize,
    pub(crate) from: Generation,
    pub(crate) peers: usize,
    pub(crate) objects: usize,
    pub(crate) tombstones: usize,
}

impl Link<'_> {
    pub(crate) async fn next(&mut self) -> Option<wire::coordinator_frame::Frame> {
        self.frames.next::<wire::CoordinatorFrame>().await.map(|frame| frame.frame.unwrap())
    }

    /// Takes frames until a whole update has come; applies it as a node would, without saying so.
    pub(crate) async fn update(&mut self) -> Received {
        let mut whole = wire::Update::default();
        let mut parts = 0;
        loop {
            match self.next().await.expect("the link stays") {
                wire::coordinator_frame::Frame::Update(part) => {
                    parts += 1;
                    (whole.from_epoch, whole.from_revision) = (part.from_epoch, part.from_revision);
                    whole.manifest = part.manifest;
                    whole.objects.extend(part.objects);
                    whole.peers.extend(part.peers);
                    whole.tombstones.extend(part.tombstones);
                    self.hints.extend(part.hints);
                    if !part.more {
                        break;
                    }
                }
                other => self.pass_over(other),
            }
        }
        let received = Received {
            parts,
            from: Generation { epoch: whole.from_epoch, revision: whole.from_revision },
            peers: whole.peers.len(),
            objects: whole.objects.len(),
            tombstones: whole.tombstones.len(),
        };
        if received.from.revision != 0 {
            assert_eq!(received.from, self.node.held.generation(), "a delta starts from what the node holds");
        }
        let manifest = Manifest::decode(&self.verified(whole.manifest.take().unwrap())).unwrap();
        let domain = self.node.bundle.trust_domain().clone();
        manifest.check_for(&domain, self.node.id, self.node.held.generation(), self.node.now).unwrap();
        let (scope, refused) = self.node.held.scope.apply(whole).unwrap();
        assert!(refused.is_empty());
        scope.check_against(&manifest).unwrap();
        self.node.held = Held { scope, manifest: Some(manifest) };
        received
    }

    pub(crate) async fn acknowledge(&mut self) {
        let Generation { epoch, revision } = self.node.held.generation();
        self.frames.send(&node_frame(wire::node_frame::Frame::Ack(wire::Ack { epoch, revision }))).await;
    }

    /// Takes updates, acknowledging each, until what the node holds is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Held) -> bool) {
        while !wanted(&self.node.held) {
            self.update().await;
            self.acknowledge().await;
        }
    }

    /// The next heartbeat, what comes before it aside.
    pub(crate) async fn heartbeat(&mut self) -> Heartbeat {
        while self.heartbeats.is_empty() {
            let frame = self.next().await.expect("the link stays");
            self.pass_over(frame);
        }
        self.heartbeats.remove(0)
    }

    pub(crate) async fn hints(&mut self) -> Vec<wire::PeerHint> {
        while self.hints.is_empty() {
            let frame = self.next().await.expect("the link stays");
            self.pass_over(frame);
        }
        std::mem::take(&mut self.hints)
    }

    fn pass_over(&mut self, frame: wire::coordinator_frame::Frame) {
        match frame {
            wire::coordinator_frame::Frame::Heartbeat(signed) => {
                self.heartbeats.push(Heartbeat::decode(&self.verified(signed)).unwrap());
            }
            wire::coordinator_frame::Frame::Hints(hints) => self.hints.extend(hints.hints),
            other => panic!("unexpected: {other:?}"),
        }
    }

    fn verified(&self, signed: wire::SignedObject) -> Vec<u8> {
        let chain = signed.signer.unwrap().certificates;
        let signer = SignerCertificate::parse(&chain[0]).unwrap();
        let key = VerifyingKey::from_bytes(signer.key()).unwrap();
        let signature = Signature::from_slice(&signed.signature).unwrap();
        key.verify_strict(&signing_input(&signed.body), &signature).unwrap();
        signed.body
    }

    pub(crate) async fn issue(&self, workload: &str, instance: Option<InstanceId>) -> Result<Issued, Refusal> {
        let keys = TunnelKeys::new();
        let request = IssueAttempt::begin(&self.connection, workload, instance, &keys).await;
        request.finish().await
    }
}

/// A tunnel certificate as answered.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) instance: InstanceId,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) addresses: Vec<String>,
}

pub(crate) struct TunnelKeys {
    pub(crate) certificate: KeyPair,
    pub(crate) secret: StaticSecret,
}

impl TunnelKeys {
    pub(crate) fn new() -> Self {
        Self { certificate: KeyPair::generate().unwrap(), secret: StaticSecret::from(rand::random::<[u8; 32]>()) }
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.secret).to_bytes()
    }
}

/// An issuance as the protocol has it, for attacks to change before it is sent.
pub(crate) struct IssueAttempt {
    pub(crate) frames: Frames,
    pub(crate) request: wire::TunnelCertificateRequest,
}

impl IssueAttempt {
    pub(crate) async fn begin(
        connection: &Connection,
        workload: &str,
        instance: Option<InstanceId>,
        keys: &TunnelKeys,
    ) -> Self {
        let mut frames = Frames::open(connection).await;
        frames.send(&wire::IssueBegin { version: PROTOCOL_VERSION }).await;
        let challenge: wire::Challenge = frames.next().await.unwrap();
        let challenge = possession::Challenge::try_from(&challenge).unwrap();
        let (csr, exporter, tunnel_key) = (csr(&keys.certificate), exporter(connection), keys.public());
        let shared = keys.secret.diffie_hellman(&PublicKey::from(challenge.ephemeral_x25519));
        let claim = TunnelKeyClaim { exporter: &exporter, csr: &csr, workload, tunnel_key: &tunnel_key };
        let request = wire::TunnelCertificateRequest {
            workload: workload.to_owned(),
            instance_id: instance.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            tunnel_key: tunnel_key.to_vec(),
            tunnel_key_possession: possession::tunnel_key_proof(shared.as_bytes(), &challenge.nonce, &claim).to_vec(),
            capabilities: u64::MAX,
            possession: keys.certificate.sign(&possession::issue_input(&challenge.nonce, &exporter, &csr)).unwrap(),
            csr,
        };
        Self { frames, request }
    }

    pub(crate) async fn finish(mut self) -> Result<Issued, Refusal> {
        let request = wire::issue_request::Request::Tunnel(self.request);
        self.frames.send(&wire::IssueRequest { request: Some(request) }).await;
        let response: wire::IssueResponse = self.frames.next().await.expect("an answer");
        match response.result.unwrap() {
            wire::issue_response::Result::Tunnel(issued) => Ok(Issued {
                instance: InstanceId::try_from(issued.instance_id.as_slice()).unwrap(),
                chain: issued.certificate.unwrap().certificates,
                addresses: issued.addresses,
            }),
            wire::issue_response::Result::Refused(refused) => Err(refused.into()),
            other => panic!("another certificate for a tunnel request: {other:?}"),
        }
    }
}

/// Asks for a new node certificate with a new key.
pub(crate) async fn renew(connection: &Connection, key: &KeyPair) -> Result<Vec<Vec<u8>>, Refusal> {
    match RequestAttempt::renewal(connection, key).await.finish().await? {
        wire::issue_response::Result::Node(chain) => Ok(chain.certificates),
        other => panic!("another certificate for a node request: {other:?}"),
    }
}

/// Asks for a workload's own SVID, its possession of `key` proven unless `forged`.
pub(crate) async fn svid(
    connection: &Connection,
    workload: &str,
    key: &KeyPair,
    forged: bool,
) -> Result<Vec<Vec<u8>>, Refusal> {
    let request = |csr, possession| {
        let possession = if forged { vec![0x30, 0] } else { possession };
        let request = wire::WorkloadSvidRequest { workload: workload.to_owned(), csr, possession };
        wire::issue_request::Request::Svid(request)
    };
    match RequestAttempt::begin(connection, key, request).await.finish().await? {
        wire::issue_response::Result::Svid(chain) => Ok(chain.certificates),
        other => panic!("another certificate for an SVID request: {other:?}"),
    }
}

/// One issuance over a key alone, challenged and not yet asked for.
pub(crate) struct RequestAttempt {
    frames: Frames,
    request: wire::issue_request::Request,
}

impl RequestAttempt {
    /// `request` is made from the certificate request and the proof of possession.
    pub(crate) async fn begin(
        connection: &Connection,
        key: &KeyPair,
        request: impl FnOnce(Vec<u8>, Vec<u8>) -> wire::issue_request::Request,
    ) -> Self {
        let mut frames = Frames::open(connection).await;
        frames.send(&wire::IssueBegin { version: PROTOCOL_VERSION }).await;
        let challenge: wire::Challenge = frames.next().await.unwrap();
        let challenge = possession::Challenge::try_from(&challenge).unwrap();
        let csr = csr(key);
        let input = possession::issue_input(&challenge.nonce, &exporter(connection), &csr);
        Self { frames, request: request(csr, key.sign(&input).unwrap()) }
    }

    /// A new node certificate.
    pub(crate) async fn renewal(connection: &Connection, key: &KeyPair) -> Self {
        let request =
            |csr, possession| wire::issue_request::Request::Node(wire::NodeCertificateRequest { csr, possession });
        Self::begin(connection, key, request).await
    }

    pub(crate) async fn finish(mut self) -> Result<wire::issue_response::Result, Refusal> {
        self.frames.send(&wire::IssueRequest { request: Some(self.request) }).await;
        match self.frames.next::<wire::IssueResponse>().await.expect("an answer").result.unwrap() {
            wire::issue_response::Result::Refused(refused) => Err(refused.into()),
            result => Ok(result),
        }
    }
}

/// The reason of a refusal.
pub(crate) fn reason<T>(result: Result<T, Refusal>) -> Reason {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(refusal) => refusal.reason,
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
