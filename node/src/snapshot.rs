//! What the node was last told, kept on disk in two generations, so that it starts while the coordinator is away.
//!
//! Nothing read here is believed for lying on our disk: the manifest's signature, its digests and every peer record are
//! judged again, and a generation below the floor is refused, so that putting an older snapshot back brings no revoked
//! peer back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use prost::Message;
use serde::{Deserialize, Serialize};
use tracing::warn;
use warren_proto::peer_map::{Generation, Manifest, RevocationSet};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, UnixTime, wire};

use crate::mesh_view::{Acceptance, Knowledge};
use crate::state_dir::{StateDir, StateError};

const SNAPSHOT: &str = "snapshot";
const PREVIOUS: &str = "snapshot.previous";
const FLOOR: &str = "floor";
const REVOCATIONS: &str = "revocations";
const ENDPOINTS: &str = "endpoints";

/// Where peers may be reached, unsigned.
pub type Endpoints = BTreeMap<InstanceId, Vec<SocketAddr>>;

/// What must never go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// The highest generation that changed an object or took something away. Later ones only added or renewed peer records,
    /// which prove themselves, so the snapshot before them may still serve.
    pub generation: Generation,
    /// The newest moment ever verified.
    pub time: UnixTime,
}

/// Reads the floor; a first start has none.
pub fn read_floor(state: &StateDir) -> Result<Floor, StateError> {
    let Some(body) = state.read(FLOOR)? else {
        return Ok(Floor::default());
    };
    serde_json::from_slice(&body).map_err(|error| StateError::corrupt(&state.path_of(FLOOR), error.to_string()))
}

/// Writes the floor.
pub fn write_floor(state: &StateDir, floor: &Floor) -> Result<(), StateError> {
    let body = serde_json::to_vec(floor).map_err(|e| StateError::corrupt(&state.path_of(FLOOR), e.to_string()))?;
    state.write(FLOOR, &body)
}

/// Reads the revocations ever seen and not expired when they were written.
pub fn read_revocations(state: &StateDir) -> Result<RevocationSet, StateError> {
    let Some(body) = state.read(REVOCATIONS)? else {
        return Ok(RevocationSet::default());
    };
    RevocationSet::decode(&body).map_err(|error| StateError::corrupt(&state.path_of(REVOCATIONS), error.to_string()))
}

/// Writes the revocations ever seen.
pub fn write_revocations(state: &StateDir, seen: &RevocationSet) -> Result<(), StateError> {
    state.write(REVOCATIONS, &seen.encode())
}

/// Writes what was applied, in an order that a power cut cannot turn into a step back: revocations, snapshot, floor.
pub fn write(state: &StateDir, knowledge: &Knowledge, floor: &Floor) -> Result<(), StateError> {
    write_revocations(state, &knowledge.revocations)?;
    state.write_keeping(SNAPSHOT, PREVIOUS, &knowledge.to_update().encode_to_vec())?;
    write_floor(state, floor)
}

/// Reads where peers were last to be reached. It is a hint like any other: a damaged file is named and left out.
#[must_use]
pub fn read_endpoints(state: &StateDir) -> Endpoints {
    let read = state.read(ENDPOINTS).map_err(|error| error.to_string()).and_then(|body| match body {
        None => Ok(Endpoints::new()),
        Some(body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
    });
    read.unwrap_or_else(|error| {
        warn!(reason = Reason::StateCorrupt.name(), "{}: {error}", state.path_of(ENDPOINTS).display());
        Endpoints::new()
    })
}

/// Writes where peers are to be reached.
pub fn write_endpoints(state: &StateDir, endpoints: &Endpoints) -> Result<(), StateError> {
    let body =
        serde_json::to_vec(endpoints).map_err(|e| StateError::corrupt(&state.path_of(ENDPOINTS), e.to_string()))?;
    state.write(ENDPOINTS, &body)
}

/// What a start from disk found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest snapshot that stood every check.
    pub knowledge: Option<Knowledge>,
    /// Why a newer one did not.
    pub refused: Vec<String>,
}

/// Reads the newest good snapshot. `against.now` is replaced by the moment that the manifest was signed: what was
/// applied in date stays in force; certificates are judged by the real time afterwards.
#[must_use]
pub fn read(state: &StateDir, against: Acceptance<'_>) -> Found {
    let mut found = Found::default();
    for name in [SNAPSHOT, PREVIOUS] {
        match read_one(state, name, against) {
            Ok(None) => {}
            Ok(Some(knowledge)) => {
                found.knowledge = Some(knowledge);
                break;
            }
            Err(text) => found.refused.push(text),
        }
    }
    found
}

fn read_one(state: &StateDir, name: &str, against: Acceptance<'_>) -> Result<Option<Knowledge>, String> {
    let Some(body) = state.read(name).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let refused = |refusal: Refusal| format!("{}: {refusal}", state.path_of(name).display());
    let update: wire::Update = warren_proto::codec::decode(&body).map_err(refused)?;
    let signed_at = update
        .manifest
        .as_ref()
        .map(|signed| Manifest::decode(&signed.body))
        .transpose()
        .map_err(refused)?
        .map_or(against.now, |manifest| manifest.issued_at);
    let (knowledge, _oversized) = Knowledge::accept(None, update, Acceptance { now: signed_at, ..against })
        .map_err(|found| refused(found.refusal))?;
    Ok(Some(knowledge))
}
