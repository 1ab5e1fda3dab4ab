//! What is asked and answered. These types are what `-o json` prints, so their fields are a promise: added, never
//! renamed or removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
    /// Who has an overlay address, what addresses a workload has, or who a process of this host is: [`Holders`].
    Whois {
        /// An overlay address, a workload `<namespace>/<name>`, a SPIFFE ID, an instance id, `pid:<number>` or `port:<number>`.
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
    /// Read the configuration again: [`Reloaded`].
    Reload,
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
    /// Instances that the configuration means and that have no certificate.
    #[serde(default)]
    pub missing_instances: Vec<MissingInstance>,
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
    /// Milliseconds since the daemon started, by a clock that nobody sets: the axis of every total here.
    #[serde(default)]
    pub uptime_milliseconds: u64,
    /// What the tunnel carried since the start.
    #[serde(default)]
    pub traffic: Traffic,
    /// The same per second of late; none before the first seconds have passed.
    #[serde(default)]
    pub rates: Option<Rates>,
    /// Live flows.
    #[serde(default)]
    pub flows: u64,
    /// Refusals sent, to peers and to local programs: resets, ICMP errors.
    #[serde(default)]
    pub refusals_sent: u64,
    /// The SPIFFE Workload API, where it is served.
    #[serde(default)]
    pub workload_api: Option<WorkloadApi>,
    /// Lines that the flow log should have and does not: they came faster than it takes them.
    #[serde(default)]
    pub flow_records_lost: u64,
}

/// The SPIFFE Workload API on its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadApi {
    /// Where it listens.
    pub socket: String,
    /// What was asked for and is held, or is not.
    pub svids: Vec<HeldSvid>,
    /// Calls answered since the start.
    pub served: u64,
    /// Callers and calls refused since the start.
    pub refused: u64,
}

/// A workload's own SVID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldSvid {
    /// Whose.
    pub workload: String,
    /// Its serial number, hexadecimal.
    pub serial: Option<String>,
    /// From when until when.
    pub validity: Option<Span>,
    /// Why there is none.
    pub refusal: Option<Refusal>,
    /// Calls that wait for its changes.
    pub watched_by: u64,
}

/// Inner packets: `in` is what was let into the host, `out` what was sealed for peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets let in.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// [`Traffic`] per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Over how long it was measured.
    pub over_milliseconds: u64,
    /// Packets let in.
    pub packets_in: u64,
    /// Their bits.
    pub bits_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Their bits.
    pub bits_out: u64,
}

impl Traffic {
    /// What came since `earlier`, per second. Counters that begin anew count from zero.
    #[must_use]
    pub fn since(&self, earlier: &Self, over: Duration) -> Rates {
        let over_milliseconds = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        Rates {
            over_milliseconds,
            packets_in: per_second(self.packets_in, earlier.packets_in, 1, over_milliseconds),
            bits_in: per_second(self.bytes_in, earlier.bytes_in, 8, over_milliseconds),
            packets_out: per_second(self.packets_out, earlier.packets_out, 1, over_milliseconds),
            bits_out: per_second(self.bytes_out, earlier.bytes_out, 8, over_milliseconds),
        }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets_in: self.packets_in.saturating_add(other.packets_in),
            bytes_in: self.bytes_in.saturating_add(other.bytes_in),
            packets_out: self.packets_out.saturating_add(other.packets_out),
            bytes_out: self.bytes_out.saturating_add(other.bytes_out),
        }
    }
}

/// How many units of a counter came per second.
fn per_second(now: u64, earlier: u64, unit: u64, over_milliseconds: u64) -> u64 {
    let more = if now < earlier { now } else { now - earlier };
    let per_second = u128::from(more) * u128::from(unit) * 1000 / u128::from(over_milliseconds.max(1));
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

/// What a configuration read again has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reloaded {
    /// Keys that differed and are in force now.
    pub applied: Vec<String>,
    /// Keys that differ and stay as they were until the daemon is restarted.
    pub needs_restart: Vec<String>,
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
    /// Whose its addresses are: processes for which one of these holds. None: those that are nobody else's.
    #[serde(default)]
    pub processes: Vec<String>,
}

/// An instance that this node is to have and has no certificate for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingInstance {
    /// `<namespace>/<name>`; none where the only identity granted is meant and is not known.
    pub workload: Option<String>,
    /// Why the last try failed; none before the first.
    pub refusal: Option<Refusal>,
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
    /// What is done without it.
    #[serde(default)]
    pub fallback: String,
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
    /// Its certificate's end, RFC 3339; empty where none was asked for.
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
    /// The largest inner packet that the path takes, in bytes; none where there is no tunnel to it yet.
    #[serde(default)]
    pub path_mtu: Option<u32>,
    /// Its newest move from one address to another.
    #[serde(default)]
    pub roamed: Option<Roamed>,
    /// Packets that wait for a session.
    #[serde(default)]
    pub waiting: u64,
    /// What passed since some rule has linked the two.
    #[serde(default)]
    pub traffic: Traffic,
    /// The same per second of late.
    #[serde(default)]
    pub rates: Option<Rates>,
    /// Packets from or to it that were dropped, by reason.
    #[serde(default)]
    pub drops: BTreeMap<Reason, u64>,
    /// This node's instances that some rule links to it; sessions and traffic above are those of all of them.
    #[serde(default)]
    pub links: Vec<PeerLink>,
}

/// What is between a peer and one of this node's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerLink {
    /// Of the local instance, `<namespace>/<name>`.
    pub workload: String,
    /// `idle`, `handshake`, `exchange`, `confirming` or `up`.
    pub session: String,
    /// What passed since some rule has linked the two.
    pub traffic: Traffic,
}

/// A peer's move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Roamed {
    /// Where it was before.
    pub from: SocketAddr,
    /// How long ago.
    pub seconds_ago: u64,
    /// How many moves there were.
    pub count: u64,
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
    /// Its id; empty for a process that may have an SVID and has no instance.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_and_packets_per_second_of_the_time_that_passed() {
        let earlier = Traffic { packets_in: 10, bytes_in: 1_000, packets_out: 5, bytes_out: 50 };
        let now = Traffic { packets_in: 30, bytes_in: 3_500, packets_out: 5, bytes_out: 50 };
        let rates = now.since(&earlier, Duration::from_millis(500));
        let expected = Rates { over_milliseconds: 500, packets_in: 40, bits_in: 40_000, packets_out: 0, bits_out: 0 };
        assert_eq!(rates, expected);
    }

    #[test]
    fn counters_that_began_anew_count_from_zero_and_no_time_is_no_division() {
        let earlier = Traffic { packets_in: 1_000_000, bytes_in: u64::MAX, ..Traffic::default() };
        let now = Traffic { packets_in: 7, bytes_in: 7, ..Traffic::default() };
        let rates = now.since(&earlier, Duration::ZERO);
        assert_eq!((rates.packets_in, rates.bits_in), (7_000, 56_000));
        assert_eq!(earlier.since(&Traffic::default(), Duration::from_millis(1)).bits_in, u64::MAX);
    }
}
