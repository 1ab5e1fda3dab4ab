//! One QUIC connection to a coordinator, and frames on its streams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime, TransportConfig, VarInt};
use tokio::time::timeout;
use warren_proto::codec::{self, FrameDecoder};
use warren_proto::possession;
use warren_proto::reason::{Reason, Refusal};

use super::tls::ClientTls;
use crate::underlay;

/// How long one address may take to answer the handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// A link that is silent this long is lost.
const IDLE: Duration = Duration::from_secs(30);
/// Well below [`IDLE`] and below the 30 s after which many NATs forget a UDP flow.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Most bytes read from a stream at once.
const CHUNK: usize = 64 * 1024;

/// A live connection. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    connection: quinn::Connection,
    endpoint: Endpoint,
    /// Which of the configured addresses answered.
    pub address: String,
}

impl Link {
    /// Tries each address in turn and takes the first that answers with an acceptable certificate.
    pub async fn connect(addresses: &[String], tls: ClientTls) -> Result<Self, Refusal> {
        let ClientTls { config, server_name, refused } = tls;
        let crypto = QuicClientConfig::try_from(config)
            .map_err(|error| Refusal::new(Reason::Internal, format!("QUIC configuration: {error}")))?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::new(transport()));
        let mut failures = Vec::new();
        for address in addresses {
            match dial(address, &client, &server_name).await {
                Ok((connection, endpoint)) => return Ok(Self { connection, endpoint, address: address.clone() }),
                Err(text) => {
                    // A certificate that was refused is the answer; other addresses would only hide it.
                    if let Some(refusal) = refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
                        return Err(Refusal { detail: format!("{address}: {}", refusal.detail), ..refusal });
                    }
                    failures.push(format!("{address}: {text}"));
                }
            }
        }
        if failures.is_empty() {
            return Err(Refusal::new(Reason::InvalidField, "no coordinator address is configured")
                .hint("set control.addresses in warren.yaml"));
        }
        Err(Refusal::new(Reason::CoordinatorUnreachable, failures.join("; "))
            .hint("check that the coordinator runs and that UDP to that port is let through"))
    }

    /// Opens a bidirectional stream.
    pub async fn open(&self, limit: usize) -> Result<Frames, Refusal> {
        let (send, recv) = self.connection.open_bi().await.map_err(|error| lost(&error))?;
        Ok(Frames { send: FrameSender { send }, receive: FrameReceiver { recv, decoder: FrameDecoder::new(limit) } })
    }

    /// The TLS exporter that possession proofs are bound to.
    pub fn exporter(&self) -> Result<[u8; possession::LENGTH], Refusal> {
        let mut exporter = [0; possession::LENGTH];
        self.connection
            .export_keying_material(&mut exporter, possession::EXPORTER_LABEL, b"")
            .map_err(|_| Refusal::new(Reason::Internal, "the TLS exporter gives nothing"))?;
        Ok(exporter)
    }

    /// The local address that the link leaves from: reachable from the coordinator, so likely from peers too.
    #[must_use]
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.connection.local_ip()
    }

    /// Says goodbye and waits until it is said, at most a second.
    pub async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    /// Ends when the connection does, with why.
    pub async fn closed(&self) -> Refusal {
        lost(&self.connection.closed().await)
    }
}

async fn dial(
    address: &str,
    client: &quinn::ClientConfig,
    server_name: &str,
) -> Result<(quinn::Connection, Endpoint), String> {
    let resolved = timeout(CONNECT, underlay::resolve(address))
        .await
        .map_err(|_| "its name was not resolved in time".to_owned())?
        .map_err(|error| format!("its name does not resolve: {error}"))?;
    let mut last = "its name has no address".to_owned();
    for target in resolved {
        match dial_one(target, client, server_name).await {
            Ok(connected) => return Ok(connected),
            Err(text) => last = text,
        }
    }
    Err(last)
}

async fn dial_one(
    target: SocketAddr,
    client: &quinn::ClientConfig,
    server_name: &str,
) -> Result<(quinn::Connection, Endpoint), String> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let no_socket = |error: std::io::Error| format!("no UDP socket: {error}");
    let socket = underlay::run(move || UdpSocket::bind((any, 0))).map_err(no_socket)?.map_err(no_socket)?;
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(no_socket)?;
    let connecting = endpoint.connect_with(client.clone(), target, server_name).map_err(|error| error.to_string())?;
    match timeout(CONNECT, connecting).await {
        Ok(Ok(connection)) => Ok((connection, endpoint)),
        Ok(Err(error)) => Err(lost(&error).detail),
        Err(_) => Err(format!("no answer from {target} within {} s", CONNECT.as_secs())),
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX)).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_mtu(1200)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// Why a connection ended, in the words of whoever ended it.
fn lost(error: &ConnectionError) -> Refusal {
    if let ConnectionError::ApplicationClosed(close) = error {
        // The coordinator closes with "<reason>: <detail>".
        let text: String =
            String::from_utf8_lossy(&close.reason).chars().filter(|c| !c.is_control()).take(512).collect();
        if let Some((name, detail)) = text.split_once(": ")
            && let Ok(reason) = name.parse()
        {
            return Refusal::new(reason, format!("the coordinator refused: {detail}"));
        }
        return Refusal::new(Reason::CoordinatorUnreachable, format!("the coordinator closed the link: {text:?}"));
    }
    let detail = match error {
        ConnectionError::TimedOut => "the coordinator does not answer".to_owned(),
        other => other.to_string(),
    };
    Refusal::new(Reason::CoordinatorUnreachable, detail)
}

/// A stream as frames, one direction each.
#[derive(Debug)]
pub struct Frames {
    /// To the coordinator.
    pub send: FrameSender,
    /// From the coordinator.
    pub receive: FrameReceiver,
}

/// The sending half.
#[derive(Debug)]
pub struct FrameSender {
    send: SendStream,
}

/// The receiving half.
#[derive(Debug)]
pub struct FrameReceiver {
    recv: RecvStream,
    decoder: FrameDecoder,
}

impl FrameSender {
    /// Sends one message of at most `limit` bytes.
    pub async fn send<M: Message>(&mut self, message: &M, limit: usize) -> Result<(), Refusal> {
        let frame: BytesMut = codec::encode(message, limit)?;
        self.send
            .write_chunk(frame.freeze())
            .await
            .map_err(|error| Refusal::new(Reason::CoordinatorUnreachable, format!("the link is lost: {error}")))
    }
}

impl FrameReceiver {
    /// The next message; `None` at the stream's orderly end.
    ///
    /// May be dropped while it waits: bytes already read stay in the decoder.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Refusal> {
        loop {
            if let Some(message) = self.decoder.next_frame()? {
                return Ok(Some(message));
            }
            match self.recv.read_chunk(CHUNK, true).await {
                Ok(Some(chunk)) => self.decoder.extend(&chunk.bytes),
                Ok(None) if self.decoder.is_partial() => {
                    return Err(Refusal::new(Reason::FrameMalformed, "the stream ended within a frame"));
                }
                Ok(None) => return Ok(None),
                Err(quinn::ReadError::ConnectionLost(error)) => return Err(lost(&error)),
                Err(error) => {
                    return Err(Refusal::new(Reason::CoordinatorUnreachable, format!("the link is lost: {error}")));
                }
            }
        }
    }

    /// The next message of an exchange in which one must come.
    pub async fn expect<M: Message + Default>(&mut self, what: &str) -> Result<M, Refusal> {
        self.next()
            .await?
            .ok_or_else(|| Refusal::new(Reason::FrameUnexpected, format!("the stream ended where {what} was expected")))
    }
}
