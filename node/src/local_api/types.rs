//! What is asked and answered. These types are what `-o json` prints, so their fields are a promise: added, never
//! renamed or removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_proto::reason::Refusal;
use warren_proto::{Reason, UnixTime};

/// A question to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the node is doing: [`Status`].
    Status,
    /// Who has an overlay address, or what addresses a workload has: [`Holders`].
    Whois {
        /// An overlay address, a workload `<namespace>/<name>`, a SPIFFE ID or an instance id.
        target: String,
    },
    /// Whether a connection is allowed, and by which rule: [`Explanation`].
    Why {
        /// A workload or an overlay address.
        source: String,
        /// A workload or an overlay address.
        destination: String,
        /// Destination port.
        port: u16,
        /// `tcp` or `udp`.
        protocol: String,
    },
    /// The last flows, oldest first, a [`FlowLine`] per line.
    Flows {
        /// Only these.
        verdict: Option<FlowVerdict>,
        /// At most so many of the past.
        limit: usize,
        /// Go on with every new one.
        follow: bool,
    },
    /// Stop, as on SIGTERM: answers when the word is given.
    Stop,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Refused(Refusal),
}

/// How the node is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// This node.
    pub node: String,
    /// Its mesh.
    pub trust_domain: String,
    /// Packets are let through as policy says.
    pub ready: bool,
    /// What is missing to be ready.
    pub waiting_for: Vec<String>,
    /// How long the mesh survives without its coordinator.
    pub survives: Option<Survival>,
    /// The link to the coordinator.
    pub control: Control,
    /// What governs.
    pub mesh: Option<Mesh>,
    /// Instances on this node.
    pub instances: Vec<Instance>,
    /// The node's own certificate.
    pub node_certificate: Span,
    /// The tunnel's end on this host.
    #[serde(flatten)]
    pub tunnel: Tunnel,
    /// Admitted peers.
    pub peers: Vec<Peer>,
    /// Peer records that were refused.
    pub refused: Vec<RefusedPeer>,
    /// Packets dropped since the start, by reason.
    pub drops: BTreeMap<Reason, u64>,
    /// Keys that knocked and are nobody's.
    pub unknown_keys: Vec<Unknown>,
}

/// Until when everything works with the coordinator away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survival {
    /// The first certificate that ends, RFC 3339.
    pub until: String,
    /// From now.
    pub seconds: u64,
}

/// The link to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// A session is up.
    pub up: bool,
    /// RFC 3339.
    pub since: String,
    /// Which one, when up.
    pub coordinator: Option<String>,
    /// Why not, when down.
    pub cause: Option<Refusal>,
}

/// What governs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Of the manifest in force.
    pub epoch: u64,
    /// Of the manifest in force.
    pub revision: u64,
    /// The policy revision, as people count.
    pub policy_revision: u64,
    /// When the coordinator last said that this is the newest, RFC 3339.
    pub heard: String,
    /// Seconds since.
    pub age_seconds: u64,
    /// Too old to admit a new peer.
    pub stale: bool,
    /// Revocations in force.
    pub revocations: usize,
    /// The engine's count of what it was told.
    pub generation: u64,
}

/// A moment from and a moment to, RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// Valid from.
    pub not_before: String,
    /// Valid until.
    pub not_after: String,
    /// From now; 0 when it has ended.
    pub seconds_left: u64,
    /// Less than a quarter of its life is left: renewal has not worked.
    pub renewal_overdue: bool,
}

/// An instance on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// `<namespace>/<name>`.
    pub workload: String,
    /// Its id.
    pub instance: String,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Its newest X25519 public key, base64, as WireGuard writes keys.
    pub tunnel_key: String,
    /// Its newest certificate.
    pub certificate: Span,
}

/// The tunnel's end on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// The TUN device.
    #[serde(rename = "tunnelDevice")]
    pub device: String,
    /// UDP port.
    #[serde(rename = "tunnelPort")]
    pub port: u16,
    /// Bytes of an inner packet.
    #[serde(rename = "tunnelMtu")]
    pub mtu: u16,
    /// Worker threads.
    pub workers: usize,
    /// What the kernel did not offer.
    pub notes: Vec<String>,
    /// What makes few system calls of many packets.
    #[serde(default)]
    pub offloads: Vec<Offload>,
}

/// An offload of the tunnel's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offload {
    /// As in `tunnel.offload`.
    pub name: String,
    /// Whether it is in use.
    pub on: bool,
    /// Why not, or how often the kernel refused it; empty when all is well.
    pub detail: String,
}

/// An admitted peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// `<namespace>/<name>`.
    pub workload: String,
    /// Its id.
    pub instance: String,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// A plain WireGuard device.
    pub plain: bool,
    /// Its certificate's end, RFC 3339.
    pub valid_until: String,
    /// Where datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// `idle`, `handshake`, `exchange`, `confirming` or `up`.
    pub session: String,
    /// The cipher, when a session is up.
    pub suite: Option<String>,
    /// Seconds since the session's exchange.
    pub session_seconds: Option<u64>,
    /// Seconds since the peer's last message.
    pub silent_seconds: Option<u64>,
}

/// A record that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedPeer {
    /// Its id.
    pub instance: String,
    /// Why.
    pub reason: Reason,
    /// In words.
    pub detail: String,
}

/// A key that is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unknown {
    /// SHA-256 of the X25519 public key, hexadecimal.
    pub key_hash: String,
    /// Where it last came from.
    pub from: SocketAddr,
    /// How often.
    pub count: u64,
}

/// Who has an address, or what a workload has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holders {
    /// All that match, this node's own first.
    pub items: Vec<HolderLine>,
}

/// One instance, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HolderLine {
    /// The SPIFFE ID.
    pub identity: String,
    /// `<namespace>/<name>`.
    pub workload: String,
    /// Its id.
    pub instance: String,
    /// The node it runs on.
    pub node: String,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// On this node.
    pub local: bool,
    /// Why it is believed, in words.
    pub because: String,
    /// Its certificate's end, RFC 3339.
    pub valid_until: String,
}

/// Whether a connection is allowed, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The answer.
    pub allowed: bool,
    /// The source as resolved.
    pub source: String,
    /// The destination as resolved.
    pub destination: String,
    /// The policy revision asked.
    pub policy_revision: u64,
    /// This node holds the destination's rules; else the answer says only what this node itself would do.
    pub complete: bool,
    /// The decision: verdict, reason, rule with file and line, nearest rule.
    pub decision: Value,
    /// The decision in words.
    pub text: String,
    /// Other things that stand in the way, in words: no peer, no certificate, no session.
    pub notes: Vec<String>,
}

/// A flow's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// Let through.
    Allowed,
    /// Refused.
    Denied,
}

/// A flow that was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine {
    /// Seconds since 1970.
    pub at: UnixTime,
    /// The same, RFC 3339.
    pub time: String,
    /// What was decided.
    pub verdict: FlowVerdict,
    /// Who opened it, `<namespace>/<name>` in this mesh.
    pub source: Option<String>,
    /// Who it was for.
    pub destination: Option<String>,
    /// `tcp`, `udp`, `icmp` or the protocol's number.
    pub protocol: String,
    /// Destination port.
    pub port: u16,
    /// Of the first packet.
    pub source_address: SocketAddr,
    /// Of the first packet.
    pub destination_address: SocketAddr,
    /// The rule that decided; none where no rule did.
    pub rule: Option<String>,
    /// The rule that came nearest to letting it in, and what it lacks.
    pub nearest: Option<String>,
    /// Where to look: at the rule, else at the nearest one, else at the destination's document.
    pub file: Option<String>,
    /// Line in that file.
    pub line: Option<u32>,
    /// Why it was denied.
    pub reason: Option<Reason>,
    /// Let through by audit mode alone.
    pub audit: bool,
    /// How many alike.
    pub count: u64,
}
