//! The SPIFFE Workload API on a Unix socket: a workload of this host gets its X.509-SVID, its key and the roots, at once and
//! again whenever any of it changes. Who a caller is, the kernel says ([`caller`]); which workload that makes it, the
//! configuration ([`crate::selectors`]).
//!
//! The SVID is not the tunnel's certificate: it has a key of its own, lives an hour, and admits no tunnel. The standard is
//! SPIFFE_Workload_API.md and SPIFFE_Workload_Endpoint.md; its JWT profile is not implemented.

pub mod caller;
mod connection;
mod service;

/// Messages and service, made from `workload_api.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream;
use rustix::fs::Mode;
use tokio::sync::watch;
use tonic::transport::Server;
use tracing::warn;
use warren_proto::TrustBundle;
use warren_proto::reason::Refusal;

use crate::certificates::svids::Svids;
use crate::selectors::Assignment;
use crate::stop::Stop;
use crate::unix_socket::Listening;
use connection::{Connection, Gate};
use service::Service;
use wire::spiffe_workload_api_server::SpiffeWorkloadApiServer;

/// Calls of one connection at once: a source watches SVIDs and bundles, and there is little else to call.
const CALLS: u32 = 16;
/// Largest request; none of the standard's comes near.
const MAX_REQUEST: usize = 16 << 10;
/// How long connections have for their farewell.
const FAREWELL: Duration = Duration::from_secs(1);

/// What has been counted since the start.
#[derive(Debug, Default)]
pub struct Counts {
    served: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Calls that were answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Callers and calls that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What is served, and to whom.
#[derive(Debug)]
pub struct Offer {
    /// Who is who.
    pub assignments: Arc<[Assignment]>,
    /// The SVIDs.
    pub svids: Svids,
    /// The roots in force.
    pub bundle: watch::Receiver<TrustBundle>,
    /// Counts what happens.
    pub counts: Arc<Counts>,
}

/// The API on its socket.
#[derive(Debug)]
pub struct WorkloadApi(Listening);

impl WorkloadApi {
    /// Listens at `path`. Every local process may connect, and is then told who it is, or is refused.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        Listening::bind(path, Mode::from_raw_mode(0o666), "workload_api.socket").map(Self)
    }

    /// Serves until told to stop.
    pub async fn run(self, offer: Offer, stop: Stop) {
        let counts = offer.counts.clone();
        let connections = stream::unfold((self.0, Arc::new(Gate::default()), counts), |state| async move {
            let (listening, gate, counts) = &state;
            loop {
                match listening.accept().await {
                    Ok(stream) => match Connection::new(stream, gate) {
                        Ok(connection) => return Some((Ok::<_, std::io::Error>(connection), state)),
                        Err(refusal) => {
                            counts.refused.fetch_add(1, Ordering::Relaxed);
                            warn!(reason = refusal.reason.name(), "Workload API: caller refused: {refusal}");
                        }
                    },
                    Err(error) => {
                        warn!("the Workload API's socket does not accept: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        let service =
            SpiffeWorkloadApiServer::new(Service::new(offer, stop.clone())).max_decoding_message_size(MAX_REQUEST);
        let ended = stop.clone();
        let serving = Server::builder()
            .max_concurrent_streams(CALLS)
            .add_service(service)
            .serve_with_incoming_shutdown(Box::pin(connections), async move { ended.stopped().await });
        tokio::pin!(serving);
        let outcome = tokio::select! {
            outcome = &mut serving => outcome,
            // Somebody who says nothing must not hold up the end.
            () = async { stop.stopped().await; tokio::time::sleep(FAREWELL).await } => return,
        };
        if let Err(error) = outcome {
            warn!("the Workload API has ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
