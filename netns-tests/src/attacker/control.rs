//! What an attacker can do who speaks the control protocol: dial a coordinator with any certificate and any bytes, and pose
//! as one. Certificates come out of state directories; nothing here verifies anybody.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::time::timeout;
use warren_proto::codec::{FrameDecoder, MAX_CONTROL_FRAME};
use warren_proto::join_token::JoinToken;
use warren_proto::possession::{self, Challenge};
use warren_proto::{ALPN_CONTROL, ALPN_ENROL, PROTOCOL_VERSION, wire};

use crate::host::{ANSWER, Host};

/// A certificate chain, leaf first, with its key.
#[derive(Debug)]
pub struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// The content of a state file, behind its header.
pub(crate) fn state_file(state: &Path, name: &str) -> Result<Value> {
    let content = std::fs::read(state.join(name)).with_context(|| format!("read {name} in {}", state.display()))?;
    let line = content.iter().position(|byte| *byte == b'\n').with_context(|| format!("{name} has no header"))?;
    serde_json::from_slice(&content[line + 1..]).with_context(|| format!("parse {name}"))
}

impl Credential {
    /// The certificate of an enrolled node, which its control link presents.
    pub fn of_node(state: &Path) -> Result<Self> {
        Self::read(&state_file(state, "node")?)
    }

    /// The newest certificate of the node's workload.
    pub fn of_workload(state: &Path) -> Result<Self> {
        Self::read(&state_file(state, "instance")?["identities"][0])
    }

    /// A certificate that nobody vouches for.
    pub fn self_made() -> Result<Self> {
        let key = KeyPair::generate().context("a key")?;
        let certificate = CertificateParams::default().self_signed(&key).context("sign")?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Self { chain: vec![certificate.der().clone()], key })
    }

    /// The same with another certificate at the end: the root, which a coordinator sends along for join tokens to pin.
    #[must_use]
    pub fn with(mut self, certificate: Vec<u8>) -> Self {
        self.chain.push(certificate.into());
        self
    }

    fn read(held: &Value) -> Result<Self> {
        let bytes = |value: &Value| -> Result<Vec<u8>> {
            Ok(STANDARD.decode(value.as_str().context("no text where base64 is expected")?)?)
        };
        let chain = held["chain"].as_array().context("no chain")?;
        let chain = chain.iter().map(|der| Ok(bytes(der)?.into())).collect::<Result<_>>()?;
        Ok(Self { chain, key: PrivatePkcs8KeyDer::from(bytes(&held["key"])?).into() })
    }
}

fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A connection to a coordinator with one stream on it. Used on the runtime of [`crate::namespace::Namespace::run_async`].
#[derive(Debug)]
pub struct Conversation {
    connection: Connection,
    _endpoint: Endpoint,
    send: SendStream,
    receive: RecvStream,
    decoder: FrameDecoder,
    /// Streams talked on before: dropping one would end it.
    earlier: Vec<(SendStream, RecvStream)>,
}

impl Conversation {
    /// Shakes hands for the protocol `alpn`. The error is why the other side, or TLS, ended the attempt.
    pub async fn begin(to: SocketAddr, alpn: &[u8], credential: Option<Credential>) -> Result<Self> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous));
        let mut config = match credential {
            Some(credential) => builder.with_client_auth_cert(credential.chain, credential.key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let endpoint = Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))).context("open a UDP socket")?;
        let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
        let connecting = endpoint.connect_with(client, to, "coordinator.warren")?;
        let connection = timeout(ANSWER, connecting).await.context("no answer to the handshake")??;
        let (send, receive) = match connection.open_bi().await {
            Ok(streams) => streams,
            Err(error) => bail!("{error}"),
        };
        let decoder = FrameDecoder::new(MAX_CONTROL_FRAME);
        Ok(Self { connection, _endpoint: endpoint, send, receive, decoder, earlier: Vec::new() })
    }

    /// Sends bytes as they are. That the other side takes no more of them is no error here.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(ANSWER, self.send.write_all(bytes)).await;
    }

    /// Sends a message in a correct frame, however large.
    pub async fn say<M: Message>(&mut self, message: &M) {
        let body = message.encode_to_vec();
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.send(&[&length.to_be_bytes(), body.as_slice()].concat()).await;
    }

    /// Ends the sending half: nothing more comes.
    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// The next message; `None` when the stream or the connection has ended.
    pub async fn hear<M: Message + Default>(&mut self) -> Result<Option<M>> {
        loop {
            if let Some(message) = self.decoder.next_frame().map_err(|refusal| anyhow!("{refusal}"))? {
                return Ok(Some(message));
            }
            match timeout(ANSWER, self.receive.read_chunk(64 * 1024, true)).await.context("no frame in time")? {
                Ok(Some(chunk)) => self.decoder.extend(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    /// Opens one more stream of the same connection and talks on it from now on.
    pub async fn next_stream(&mut self) -> Result<()> {
        let (send, receive) = self.connection.open_bi().await?;
        self.earlier.push((std::mem::replace(&mut self.send, send), std::mem::replace(&mut self.receive, receive)));
        self.decoder = FrameDecoder::new(MAX_CONTROL_FRAME);
        Ok(())
    }

    /// Waits until the other side has closed the connection and gives its words.
    pub async fn closed(&self) -> Result<String> {
        let ended = timeout(ANSWER, self.connection.closed()).await.context("the connection is not closed")?;
        Ok(match ended {
            quinn::ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
            other => other.to_string(),
        })
    }

    /// What `key` would have to sign to enrol by `token`, and everything else in order: for attacks to alter.
    pub async fn enrolment(&mut self, token: &JoinToken) -> Result<wire::EnrolRequest> {
        self.say(&wire::EnrolHello { version: PROTOCOL_VERSION }).await;
        let challenge: wire::EnrolChallenge = self.hear().await?.context("no challenge")?;
        let challenge = challenge.challenge.context("an empty challenge")?;
        let challenge = Challenge::try_from(&challenge).map_err(|refusal| anyhow!("{refusal}"))?;
        let mut exporter = [0; possession::LENGTH];
        self.connection
            .export_keying_material(&mut exporter, possession::EXPORTER_LABEL, b"")
            .map_err(|_| anyhow!("TLS exports nothing"))?;
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(wire::EnrolRequest {
            evidence: Some(wire::enrol_request::Evidence::JoinToken(wire::JoinTokenEvidence {
                token_id: token.id.to_string(),
                secret: token.secret.expose().to_vec(),
            })),
            possession: key.sign(&possession::enrol_input(&challenge.nonce, &exporter, &csr))?,
            csr,
            host_name: "attacker".to_owned(),
        })
    }

    /// The reason that the enrolment's answer names; an error when it was no refusal.
    pub async fn refusal(&mut self) -> Result<String> {
        let answer: wire::EnrolResponse = self.hear().await?.context("no answer")?;
        match answer.result {
            Some(wire::enrol_response::Result::Refused(refusal)) => Ok(refusal.reason),
            other => bail!("not refused: {other:?}"),
        }
    }
}

/// Somebody who poses as a coordinator on a host, until the value is dropped.
#[derive(Debug)]
pub struct Impostor {
    seen: Arc<Mutex<Seen>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What came to an [`Impostor`].
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Connections that were begun.
    pub attempts: usize,
    /// Handshakes that the other side completed: it believed the certificate.
    pub believed: usize,
    /// What was said on the first streams of those.
    pub told: Vec<u8>,
}

impl Impostor {
    /// Answers at `address` with the certificate of `credential`, for both protocols.
    pub fn on(host: &Host, address: SocketAddr, credential: Credential) -> Result<Self> {
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(credential.chain, credential.key)?;
        config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_ENROL.to_vec()];
        let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
        let socket = host.namespace.run(|| std::net::UdpSocket::bind(address).context("bind the impostor's port"))?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = pose(server, socket, &shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { seen, stop: Some(stop), thread: Some(thread) })
    }

    /// What has come so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn pose(server: quinn::ServerConfig, socket: std::net::UdpSocket, seen: &Arc<Mutex<Seen>>) {
    let runtime = Arc::new(quinn::TokioRuntime);
    let Ok(endpoint) = Endpoint::new(quinn::EndpointConfig::default(), Some(server), socket, runtime) else { return };
    while let Some(incoming) = endpoint.accept().await {
        lock(seen).attempts += 1;
        let seen = Arc::clone(seen);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            // The server's handshake is complete when the client's last message came: it has believed.
            lock(&seen).believed += 1;
            let Ok((_send, mut receive)) = connection.accept_bi().await else { return };
            while let Ok(Some(chunk)) = receive.read_chunk(4096, true).await {
                lock(&seen).told.extend_from_slice(&chunk.bytes);
            }
        });
    }
    // Unreachable while the endpoint lives; goodbyes are said when it is dropped.
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
