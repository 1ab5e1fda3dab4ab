//! The HTTPS listener: TLS 1.3 with the coordinator's certificate, HTTP/1.1, every connection bounded.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use warren_proto::root_hint;

use super::Api;
use crate::ca::choose;
use crate::distribution::network;
use crate::registry::Registry;

/// Connections at once: people, scripts and consoles, not nodes.
const MAX_CONNECTIONS: usize = 256;

/// Connections at once of one source, an IPv4 address or an IPv6 /64: who opens them by the hundred shuts out himself. A proxy
/// that many people come through keeps its connections and stays below.
pub(super) const MAX_OF_SOURCE: usize = 64;

/// The TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// A request's head, and the quiet between two requests.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// A request's head, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// Header fields of one request.
const MAX_HEADERS: usize = 64;

/// How long requests under way may take to end when the process stops.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The pause after the system refused to give a connection: usually it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` becomes true, then lets requests under way end.
pub async fn serve(listener: TcpListener, api: Api, mut stop: watch::Receiver<bool>) {
    let acceptor = match server_config(Arc::clone(api.registry())) {
        Ok(config) => TlsAcceptor::from(Arc::new(config)),
        Err(error) => return tracing::error!(%error, "TLS of the admin API cannot be configured"),
    };
    let service = super::router(api);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let sources = Arc::new(Sources::default());
    let mut connections = JoinSet::new();
    loop {
        // A connection is accepted only when there is room for it: the rest wait in the system's queue.
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &room) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, source, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Over its share a source's connection is closed before anything is read.
        let Some(seat) = sources.seat(source) else { continue };
        let (acceptor, service, stop) = (acceptor.clone(), service.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, acceptor, service, stop).await;
            drop((seat, permit));
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("admin requests under way were cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address.ip(), permit))
}

/// How many connections each source has open.
#[derive(Debug, Default)]
struct Sources(Mutex<HashMap<IpAddr, usize>>);

impl Sources {
    /// A place for one more connection of `source`; none when it has its share.
    fn seat(self: &Arc<Self>, source: IpAddr) -> Option<Seat> {
        let source = network(source);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source).or_default();
        if *count >= MAX_OF_SOURCE {
            return None;
        }
        *count += 1;
        Some(Seat { sources: Arc::clone(self), source })
    }
}

/// A connection's place, given back with it.
#[derive(Debug)]
struct Seat {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, service: axum::Router, mut stop: watch::Receiver<bool>) {
    // Small answers should not wait for more to send; a socket that refuses this works without.
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await else { return };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // How a client's connection broke is the client's to know.
        _ = serving.as_mut() => {}
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

/// Without the guard on the value, which must not be held while anything is awaited. A sender that is gone has stopped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn server_config(registry: Arc<Registry>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Presented { registry }));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The authority's certificate of the moment, so that a renewal needs no restart.
struct Presented {
    registry: Arc<Registry>,
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Presented")
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let authority = self.registry.authority();
        let held = hello.server_name().map(root_hint::parse).unwrap_or_default();
        let offered = authority.tls_identities().map(|(root, chain, key)| (root, (chain, key)));
        let (chain, key) = choose(&held, offered)?;
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .inspect_err(|error| tracing::error!(%error, "the coordinator's certificate cannot be used"))
            .ok()
            .map(Arc::new)
    }
}
