//! Plain WireGuard devices as the admin API speaks of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Generation, Page, Timestamp, kinds};
use crate::{InstanceId, NodeId, WorkloadName};

kinds!(Peer, PeerList);

/// Devices, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerList {
    /// The page. Its items leave out `connections`.
    #[serde(flatten)]
    pub page: Page<Peer>,
}

/// Registers a plain WireGuard device under an identity that policy declares with `kind: Peer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewPeer {
    /// The name of the Peer document.
    pub name: String,
    /// The device's public key, base64 as WireGuard's tools write it.
    pub public_key: String,
    /// Where it listens, `address:port`, where nodes are to reach it by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What it is.
    #[serde(default)]
    pub note: String,
}

/// A plain WireGuard device that is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The name of its Peer document.
    pub name: String,
    /// Its identity: `peer/<name>`.
    #[schema(value_type = String)]
    pub workload: WorkloadName,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Stands in its certificate.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// Its public key, base64 as WireGuard's tools write it.
    pub public_key: String,
    /// Its overlay addresses.
    pub addresses: Vec<String>,
    /// Where nodes reach it by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// By whom.
    pub registered_by: String,
    /// What it is.
    pub note: String,
    /// Whether policy still declares it. A device that it does not is let in nowhere.
    pub declared: bool,
    /// The end of its newest certificate, which the coordinator renews.
    pub certificate_expires_at: Timestamp,
    /// When it was revoked: its certificate is not renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// What its WireGuard configuration has to name: every instance that policy lets it talk to in some direction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<PeerConnection>,
    /// The generation that the registration came with; `/acknowledgements` says who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// The other end of a tunnel of a device's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerConnection {
    /// Who is there.
    #[schema(value_type = String)]
    pub workload: WorkloadName,
    /// Which running copy.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// On which node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its tunnel key, base64. It is kept over renewals for as long as a device talks to it.
    pub public_key: String,
    /// Its overlay addresses.
    pub addresses: Vec<String>,
    /// Where its node may be reached, the likeliest first; empty while the node is not connected.
    pub endpoints: Vec<String>,
}
