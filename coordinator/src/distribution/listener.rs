//! The QUIC socket: who gets a handshake, and which protocol serves the connection.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use warren_proto::control_trust::TrustedNode;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::root_hint;
use warren_proto::{ALPN_CONTROL, ALPN_ENROL};

use super::limits::{Limits, Rate, network};
use super::session::{self, Shared};
use super::tls::{Presented, server_config, trusted_node};
use super::{LinkSettings, Links, dispatch, enrol};
use crate::ca::Authority;
use crate::registry::Registry;

/// Connection attempts of one source: a rack behind one address comes up at once, a flood does not get far.
const ATTEMPTS: Rate = Rate { burst: 256, per_second: 32.0 };
/// Certificates of one node: twice as many as it may have instances, then one every five seconds. Each is a commit, an
/// audit row and news for every peer.
const ISSUANCES: Rate = Rate { burst: 2048, per_second: 0.2 };
/// Handshakes under way at once.
const HANDSHAKES: usize = 256;
/// With more than this under way, a source must first show that it receives at its address.
const RETRY_ABOVE: usize = 64;
/// Enrolments that wait for the store at once. A stranger who says nothing takes no place among them.
const ENROLMENTS: usize = 128;
/// A handshake must be done within this.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// An enrolment must be done within this.
const ENROLMENT: Duration = Duration::from_secs(20);
/// Connection attempts held before they are looked at.
const INCOMING: usize = 1024;
/// A link that is silent this long is lost.
const IDLE: Duration = Duration::from_secs(30);
/// Below the idle time and below the 30 s after which many translators forget a UDP flow.
const KEEP_ALIVE: Duration = Duration::from_secs(12);
/// Streams that a node may have open at once: the session and its issuances.
const STREAMS: u32 = 9;
/// Bytes of a connection id.
const CONNECTION_ID: usize = 8;
/// How long a clean stop waits for goodbyes to arrive.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the QUIC port is not open.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The socket cannot be had.
    #[error("cannot open UDP {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The CA's own certificate does not serve TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl ListenerError {
    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                format!("see who has it with `ss -ulpn sport = :{}`, or set another `listen` address", address.port())
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                "`listen` must be an address of this host, or 0.0.0.0 or [::]".to_owned()
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "a port below 1024 needs CAP_NET_BIND_SERVICE".to_owned()
            }
            Self::Bind { .. } => "set another `listen` address".to_owned(),
            Self::Tls(_) => "see whether the files in the CA's directory were changed".to_owned(),
        }
    }
}

/// The open port. Nothing is served before [`Listener::run`].
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    registry: Arc<Registry>,
    links: Arc<Links>,
    settings: LinkSettings,
    presented: Arc<Presented>,
}

impl Listener {
    /// Opens the port.
    pub fn bind(
        address: SocketAddr,
        registry: Arc<Registry>,
        links: Arc<Links>,
        settings: LinkSettings,
    ) -> Result<Self, ListenerError> {
        let tls = |error: &dyn std::fmt::Display| ListenerError::Tls(error.to_string());
        let presented = Arc::new(Presented::new(&registry.authority()).map_err(|error| tls(&error))?);
        let config = server_config(Arc::clone(&registry), Arc::clone(&presented)).map_err(|error| tls(&error))?;
        let crypto = QuicServerConfig::try_from(config).map_err(|error| tls(&error))?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::new(transport())).max_incoming(INCOMING).incoming_buffer_size(32 * 1024);
        let socket = UdpSocket::bind(address).map_err(|source| ListenerError::Bind { address, source })?;
        let mut endpoint = EndpointConfig::new(Arc::new(reset_key(&registry.authority())));
        endpoint.cid_generator(|| Box::new(RandomIds));
        let endpoint = Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime))
            .map_err(|source| ListenerError::Bind { address, source })?;
        Ok(Self { endpoint, registry, links, settings, presented })
    }

    /// Where it listens; the port is known here when 0 was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Presents the certificates of the authority that is in place now.
    fn refresh_certificates(&self) {
        if let Err(error) = self.presented.replace(&self.registry.authority()) {
            tracing::error!(%error, "the renewed certificate cannot be presented");
        }
    }

    /// Serves until `stopping` turns true, then says goodbye to every node.
    pub async fn run(&self, stopping: watch::Receiver<bool>) {
        let shared = Arc::new(Shared {
            registry: Arc::clone(&self.registry),
            links: Arc::clone(&self.links),
            settings: self.settings,
            issuances: Mutex::new(Limits::new(ISSUANCES)),
            stopping: stopping.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatch::run(Arc::clone(&self.registry), Arc::clone(&self.links)));
        let mut gate = Gate::new();
        let mut stop = stopping;
        let mut authority = self.registry.authority_moved();
        // What was put in place between the port's opening and here.
        self.refresh_certificates();
        loop {
            tokio::select! {
                Ok(()) = authority.changed() => self.refresh_certificates(),
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => if let Some(admitted) = gate.admit(incoming) {
                        tasks.spawn(serve(Arc::clone(&shared), admitted));
                    },
                    None => break,
                },
                Some(_) = tasks.join_next() => {}
                () = session::stopped(&mut stop) => break,
            }
        }
        self.endpoint.set_server_config(None);
        let _ = timeout(GOODBYE, async {
            // Sessions end by themselves at the stop; the dispatcher does not.
            while tasks.len() > 1 && tasks.join_next().await.is_some() {}
        })
        .await;
        tasks.abort_all();
        self.endpoint.close(VarInt::from_u32(0), b"");
        let _ = timeout(GOODBYE, self.endpoint.wait_idle()).await;
    }
}

/// The key of stateless resets (RFC 9000, section 10.3), the same after a restart: a process that was killed cannot say
/// goodbye, so the next one answers packets of its connections with a reset and nodes come back at once. It is
/// bound to the coordinator's own key, which nobody else has.
fn reset_key(authority: &Authority) -> hmac::Key {
    let key = authority.tls_key();
    let secret = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.secret_der()), b"warren stateless reset v1");
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref())
}

/// Random connection ids. The default's carry a check keyed by the process, which would keep the next one from answering
/// with a reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX)).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(1200)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(128 * 1024))
        .receive_window(VarInt::from_u32(512 * 1024))
        .send_window(256 * 1024)
        .datagram_receive_buffer_size(None);
    transport
}

/// Who may begin a handshake.
struct Gate {
    sources: Limits<IpAddr>,
    handshakes: Arc<Semaphore>,
    desk: Arc<enrol::Desk>,
}

struct AdmittedAttempt {
    incoming: Incoming,
    handshake: OwnedSemaphorePermit,
    desk: Arc<enrol::Desk>,
}

impl Gate {
    fn new() -> Self {
        Self {
            sources: Limits::new(ATTEMPTS),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            desk: Arc::new(enrol::Desk::new(ENROLMENTS)),
        }
    }

    fn admit(&mut self, incoming: Incoming) -> Option<AdmittedAttempt> {
        let busy = HANDSHAKES - self.handshakes.available_permits();
        if busy > RETRY_ABOVE && !incoming.remote_address_validated() {
            // A forged source never comes back with the token, and costs nobody's bucket.
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            return None;
        }
        if !self.sources.admit(network(incoming.remote_address().ip()), Instant::now()) {
            tracing::debug!(remote = %incoming.remote_address(), "a source tries too often");
            incoming.ignore();
            return None;
        }
        let Ok(handshake) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            incoming.refuse();
            return None;
        };
        Some(AdmittedAttempt { incoming, handshake, desk: Arc::clone(&self.desk) })
    }
}

async fn serve(shared: Arc<Shared>, attempt: AdmittedAttempt) {
    let remote = attempt.incoming.remote_address();
    let connecting = match attempt.incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return tracing::debug!(%remote, %error, "a connection attempt failed"),
    };
    let connection = match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "a handshake failed"),
        Err(_) => return tracing::debug!(%remote, "a handshake took too long"),
    };
    drop(attempt.handshake);
    let handshake = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let protocol = handshake.as_ref().and_then(|data| data.protocol.clone()).unwrap_or_default();
    let roots = handshake.and_then(|data| data.server_name).map(|name| root_hint::parse(&name)).unwrap_or_default();
    if protocol == ALPN_ENROL {
        serve_enrolment(&shared, connection, &attempt.desk).await;
    } else if protocol == ALPN_CONTROL {
        match node_of(&shared, &connection) {
            Ok(node) => session::serve(shared, connection, node, roots).await,
            Err(refusal) => {
                tracing::warn!(%remote, reason = %refusal.reason, detail = %refusal.detail, "a link was refused");
                session::close(&connection, &refusal);
            }
        }
    } else {
        session::close(
            &connection,
            &Refusal::new(Reason::VersionUnsupported, "no protocol of this port was asked for"),
        );
    }
}

async fn serve_enrolment(shared: &Shared, connection: quinn::Connection, desk: &enrol::Desk) {
    let remote = connection.remote_address();
    let served = timeout(ENROLMENT, enrol::serve(&shared.registry, &shared.links, &connection, desk)).await;
    match served {
        Ok(Ok(())) => connection.close(VarInt::from_u32(0), b""),
        Ok(Err(refusal)) => {
            tracing::debug!(%remote, reason = %refusal.reason, "an enrolment ended without success");
            session::close(&connection, &refusal);
        }
        Err(_) => session::close(&connection, &Refusal::new(Reason::FrameUnexpected, "the enrolment took too long")),
    }
}

/// The node behind a connection of the control protocol: TLS has verified its certificate if there is one.
fn node_of(shared: &Shared, connection: &quinn::Connection) -> Result<TrustedNode, Refusal> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or_else(|| {
            Refusal::new(Reason::PeerCertificateWrong, "no certificate was presented")
                .hint("enrol first: the control link takes node certificates only")
        })?;
    trusted_node(&chain, shared.registry.authority().bundle(), shared.registry.now())
}
