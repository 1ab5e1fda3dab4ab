//! What the slow half is told: the whole picture of the mesh as this node has verified it, and what it tells back.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::certificate::TunnelCertificate;
use warren_proto::policy::CompiledPolicy;
use warren_proto::{InstanceId, Reason, SpiffeId, UnixTime};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::counters::Volume;
use crate::flows::CutFlow;
use crate::identity::VerifiedPeer;
use crate::session::Suite;
use crate::tables::{Generation, LocalIndex, PeerIndex};

/// An X25519 public key that names one end of a tunnel.
pub type TunnelKey = [u8; 32];

/// The private half of a tunnel key. Erased when dropped, never printed.
#[derive(Clone)]
pub struct TunnelSecret(StaticSecret);

impl TunnelSecret {
    /// Takes 32 random bytes; X25519 clamps them (RFC 7748, section 5). The caller erases its copy.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// The public half, as certificates carry it.
    #[must_use]
    pub fn public_key(&self) -> TunnelKey {
        *PublicKey::from(&self.0).as_bytes()
    }

    pub(crate) fn secret(&self) -> &StaticSecret {
        &self.0
    }
}

impl fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelSecret(..)")
    }
}

/// One tunnel key of an instance on this node, with the certificate that binds it.
#[derive(Debug, Clone)]
pub struct LocalKey {
    /// The private key.
    pub secret: TunnelSecret,
    /// Its certificate. A key that it does not bind is not used.
    pub certificate: TunnelCertificate,
    /// Sessions end here: the earliest end on the certificate's path.
    pub valid_until: UnixTime,
}

/// The whole picture. The engine finds out itself what changed.
#[derive(Debug, Clone)]
pub struct MeshUpdate {
    /// Higher than any before, never 0.
    pub generation: Generation,
    /// The policy in force.
    pub policy: Arc<CompiledPolicy>,
    /// This node's tunnel keys, of one instance the newest first, at most two each.
    pub locals: Vec<LocalKey>,
    /// Admitted peers, of one instance the newest certificate first, at most two each.
    pub peers: Vec<VerifiedPeer>,
    /// Where peers may be reached, as somebody reported: unsigned, tried in order.
    pub endpoints: HashMap<InstanceId, Vec<SocketAddr>>,
}

/// How the engine is set up.
#[derive(Clone)]
pub struct EngineConfig {
    /// Seeds index choice and jitter. 32 random bytes, or a fixed seed in a simulation.
    pub seed: [u8; 32],
    /// An empty packet to each peer after so long without any, where a NAT needs it; none otherwise.
    pub keepalive: Option<Duration>,
    /// Inner packets that may wait for a session with one peer; the oldest gives way.
    pub waiting_packets: usize,
    /// Inner packets' largest size until a path says less, in bytes.
    pub mtu: u32,
    /// Handshake messages per second from which on a cookie is demanded.
    pub load_threshold: u32,
}

impl EngineConfig {
    /// Defaults for everything but the seed.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self {
            seed,
            keepalive: None,
            // A burst of one TCP connection's first window, with room for a few connections at once.
            waiting_packets: 64,
            mtu: 1420,
            // A tenth of what one core completes in a second; leaves the rest to data.
            load_threshold: 250,
        }
    }
}

impl fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineConfig")
            .field("keepalive", &self.keepalive)
            .field("waiting_packets", &self.waiting_packets)
            .field("mtu", &self.mtu)
            .field("load_threshold", &self.load_threshold)
            .finish_non_exhaustive()
    }
}

/// What the engine has to say.
#[derive(Debug, Clone)]
pub enum Event {
    /// Every worker judges by this generation, and flows that it no longer allows are gone.
    Applied {
        /// Of the [`MeshUpdate`].
        generation: Generation,
    },
    /// These flows were cut; both ends of them may still hold sockets.
    FlowsCut(Vec<CutFlow>),
    /// A data session carries packets to the peer from now on.
    SessionUp {
        /// The local end.
        local: InstanceId,
        /// The remote end.
        peer: InstanceId,
        /// Its cipher.
        suite: Suite,
        /// Whether it follows on another session without a gap.
        rekey: bool,
    },
    /// No session carries packets to the peer any more.
    SessionDown {
        /// The local end.
        local: InstanceId,
        /// The remote end.
        peer: InstanceId,
        /// Why.
        reason: Reason,
    },
    /// A session was wanted and not reached; packets that waited for it were dropped.
    Unreachable {
        /// The local end.
        local: InstanceId,
        /// The remote end.
        peer: InstanceId,
        /// `handshake-timeout`, `key-exchange-timeout`, `no-endpoint`, `no-peer` or an exchange's refusal.
        reason: Reason,
    },
    /// The path to the peer takes inner packets of this size and no larger ones, as far as is known.
    PathMtu {
        /// The local end.
        local: InstanceId,
        /// The remote end.
        peer: InstanceId,
        /// Bytes.
        mtu: u32,
    },
    /// A handshake authenticated under a key that no admitted peer has. It got no answer.
    UnknownKey(UnknownKey),
}

/// A key that knocked and is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKey {
    /// SHA-256 of the X25519 public key.
    pub hash: [u8; 32],
    /// Where the newest of its handshakes came from.
    pub from: SocketAddr,
    /// How many there were.
    pub count: u64,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The ECN bits that its IP header is to carry ([`crate::ecn`]).
    pub ecn: u8,
    /// What.
    pub datagram: Vec<u8>,
    /// It must not be fragmented, here or on the way: it asks whether a datagram of its size arrives.
    pub whole: bool,
}

/// An inner packet of a plain WireGuard peer, opened and authentic. Give it to a worker, which identifies and
/// admits it like any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPacket {
    /// The local instance whose key it was sealed for.
    pub local: LocalIndex,
    /// The plain peer.
    pub peer: PeerIndex,
    /// The ECN bits of the IP header that it came under.
    pub ecn: u8,
    /// The inner packet.
    pub packet: Vec<u8>,
}

/// How things stand with one peer, for people.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The local end.
    pub local: InstanceId,
    /// The remote end.
    pub peer: InstanceId,
    /// Who the remote end is.
    pub identity: SpiffeId,
    /// A plain WireGuard device.
    pub plain: bool,
    /// The end of the remote certificate that lives longest.
    pub valid_until: UnixTime,
    /// Where datagrams go: an authenticated address.
    pub endpoint: Option<SocketAddr>,
    /// The session that carries packets now.
    pub session: Option<SessionStatus>,
    /// What is going on towards a session.
    pub stage: Stage,
    /// Inner packets that wait for a session.
    pub waiting: usize,
    /// The largest inner packet that the path takes, in bytes.
    pub mtu: u32,
    /// The peer's newest move to another address.
    pub roamed: Option<RoamStatus>,
    /// What passed between the two ends since a rule linked them.
    pub volume: Volume,
    /// What did not, by reason; reasons that never occurred are left out.
    pub drops: Vec<(Reason, u64)>,
}

/// A peer's move from one address to another.
#[derive(Debug, Clone, Copy)]
pub struct RoamStatus {
    /// Where it was before.
    pub from: SocketAddr,
    /// Time since.
    pub ago: Duration,
    /// How many moves there were.
    pub count: u64,
}

/// The session in use with a peer.
#[derive(Debug, Clone, Copy)]
pub struct SessionStatus {
    /// Its cipher.
    pub suite: Suite,
    /// Time since its exchange.
    pub age: Duration,
    /// Messages sent, empty ones included.
    pub messages_sent: u64,
    /// Time since the peer's last message.
    pub last_received: Option<Duration>,
}

/// How far this end has come on the way to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is under way.
    Idle,
    /// Handshake initiations are being sent.
    Handshake,
    /// An offer or an Accept is being repeated.
    Exchange,
    /// The session stands and waits for the peer's first message.
    Confirming,
}
