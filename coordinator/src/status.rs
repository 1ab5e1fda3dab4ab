//! How the coordinator is, for whoever may read its directory: one JSON document per connection to a Unix socket.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use warren_proto::peer_map::Generation;
use warren_proto::reason::Reason;
use warren_proto::{NodeId, TrustDomain, UnixTime};

use crate::distribution::Links;
use crate::registry::Registry;
use crate::state::State;

/// The socket's name under the state directory.
const NAME: &str = "status.sock";
/// Largest report that is read.
const MAX_REPORT: u64 = 64 * 1024 * 1024;

/// The report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether a coordinator serves; false for a report that was read from the store.
    pub running: bool,
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// Epoch and revision of the store.
    pub generation: Generation,
    /// The policy revision in force.
    pub policy_revision: u64,
    /// Enrolled nodes.
    pub nodes: usize,
    /// Instances with a registration.
    pub instances: usize,
    /// Revocations in force.
    pub revocations: usize,
    /// Enrolments that this process refused, by reason.
    #[serde(default)]
    pub refused_enrolments: BTreeMap<Reason, u64>,
    /// Connected nodes.
    pub connected: Vec<Connected>,
    /// Connected nodes that have not acknowledged all that concerns them.
    pub pending: Vec<NodeId>,
    /// Trusted nodes that are not connected.
    pub away: Vec<NodeId>,
}

/// A connected node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// The node.
    pub node: NodeId,
    /// What its operator calls it.
    pub host_name: String,
    /// Since when.
    pub since: UnixTime,
    /// Where from.
    pub remote: String,
    /// The newest generation it was told.
    pub told: Generation,
    /// The newest it acknowledged.
    pub acknowledged: Generation,
    /// Why it refused the newest update, if it did.
    pub refused: Option<String>,
    /// Peer records that it refused singly.
    pub refused_records: usize,
    /// Its clock less the coordinator's.
    pub clock_skew_ms: i64,
}

impl Report {
    /// What a state says by itself; who is connected only the running coordinator knows.
    #[must_use]
    pub fn of_state(state: &State, trust_domain: TrustDomain) -> Self {
        Self {
            running: false,
            trust_domain,
            generation: state.generation(),
            policy_revision: state.policy.number,
            nodes: state.nodes.len(),
            instances: state.instances.len(),
            revocations: state.revocations.len(),
            refused_enrolments: BTreeMap::new(),
            connected: Vec::new(),
            pending: Vec::new(),
            away: state.nodes.sorted().into_iter().map(|(id, _)| *id).collect(),
        }
    }

    fn of_running(registry: &Registry, links: &Links) -> Option<Self> {
        let state = registry.state();
        let mut report = Self::of_state(&state, state.settings().ok()?.trust_domain.clone());
        let missing = links.unacknowledged(&state, state.generation(), registry.now());
        report.running = true;
        report.pending = missing.pending;
        report.away = missing.away;
        report.refused_enrolments = links.refused_enrolments();
        report.connected = links
            .list()
            .into_iter()
            .map(|link| Connected {
                node: link.node,
                host_name: state.nodes.get(&link.node).map(|node| node.host_name.clone()).unwrap_or_default(),
                since: link.since,
                remote: link.remote.to_string(),
                told: link.told,
                acknowledged: link.acknowledged,
                refused: link.refused.as_ref().and_then(|refused| refused.refusal.as_ref()).map(ToString::to_string),
                refused_records: link.refused.map_or(0, |refused| refused.items.len()),
                clock_skew_ms: link.clock_skew_ms,
            })
            .collect();
        Some(report)
    }
}

/// The open socket; removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Opens the socket. The store's lock shows that one left behind belongs to nobody.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Answers until told to stop.
    pub async fn serve(&self, registry: &Registry, links: &Links, mut stopping: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = async { stopping.wait_for(|stopping| *stopping).await.map(|_| ()) } => return,
            };
            let Ok((mut stream, _)) = accepted else { continue };
            let report = Report::of_running(registry, links).and_then(|report| serde_json::to_vec(&report).ok());
            if let Some(report) = report {
                // A reader that goes away loses its own answer only.
                let _ = tokio::time::timeout(std::time::Duration::from_secs(5), stream.write_all(&report)).await;
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the running coordinator of `directory`; none when none runs there.
pub async fn ask(directory: &Path) -> io::Result<Option<Report>> {
    let stream = match UnixStream::connect(directory.join(NAME)).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    stream.take(MAX_REPORT).read_to_end(&mut bytes).await?;
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}
