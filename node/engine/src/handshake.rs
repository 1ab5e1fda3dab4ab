//! The handshake tunnel: WireGuard's Noise IK handshake, its cookies and its transport messages, as boringtun
//! implements them. This is the only file that names boringtun, and it absorbs its quirks:
//!
//! - Its clock is hidden. Towards warren peers [`HandshakeTunnel::tick`] is never called: retry, give-up, rekey
//!   and expiry belong to `peers`. What stays hidden is the TAI64N stamp, the cookie's age and randomness.
//! - A responder's session looks established before the initiator has proven itself. Here a tunnel is
//!   established when a response to our initiation arrived, or when a transport message opened.
//! - It keeps a queue of its own for packets without a session. Nothing is sealed here before a session stands,
//!   so that queue stays empty.
//! - It panics on short buffers and accepts counters near 2^64; both are fenced off here.
//! - `set_static_private` is its only way to drop sessions and keep the memory of the peer's newest timestamp;
//!   [`HandshakeTunnel::forget_sessions`] uses it with the unchanged key.
//!
//! Bytes in, bytes out: no address is remembered and nothing is sent from here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use sha2::{Digest, Sha256};
use warren_proto::Reason;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::mesh::TunnelKey;

/// Length of a handshake initiation (type 1).
pub(crate) const INITIATION_LEN: usize = 148;
/// Length of a handshake response (type 2).
pub(crate) const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply (type 3).
pub(crate) const COOKIE_REPLY_LEN: usize = 64;
/// Header and tag of a transport message (type 4).
pub(crate) const TRANSPORT_OVERHEAD: usize = 32;

/// From here on a transport counter is refused: 2^64 - 2^13 - 1, WireGuard's Reject-After-Messages.
const REJECT_AFTER_COUNTER: u64 = u64::MAX - (1 << 13);

/// What a [`HandshakeTunnel`] needs of memory for any control datagram, whatever the caller passes.
const SCRATCH_MIN: usize = 148;

/// The hint that a warren initiator writes into the reserved bytes: 24 bits of a hash of the responder's
/// tunnel key, never zero, because zero is what stock WireGuard sends.
#[must_use]
pub(crate) fn key_hint(key: &TunnelKey) -> u32 {
    let digest = Sha256::new().chain_update(b"warren key hint v1").chain_update(key).finalize();
    let hint = u32::from_le_bytes([digest[0], digest[1], digest[2], 0]);
    if hint == 0 { 1 } else { hint }
}

/// One local tunnel key as handshakes reach it: checks macs and cookies and reads who is calling, before any
/// state of a peer is touched.
pub(crate) struct Doorway {
    secret: StaticSecret,
    public: PublicKey,
    /// Limit 0: always demands a cookie. Asked only while the node is under load.
    gate: RateLimiter,
    /// Limit `u64::MAX`: checks the first mac and never demands a cookie. Shared with this key's tunnels.
    open: Arc<RateLimiter>,
}

/// The gate's answer under load.
pub(crate) enum Gate {
    /// The message carries a valid cookie of this very address and port.
    Pass,
    /// It does not; this cookie reply is the only answer.
    Cookie([u8; COOKIE_REPLY_LEN]),
}

impl Doorway {
    pub(crate) fn new(secret: StaticSecret) -> Self {
        let public = PublicKey::from(&secret);
        Self { gate: RateLimiter::new(&public, 0), open: Arc::new(RateLimiter::new(&public, u64::MAX)), secret, public }
    }

    pub(crate) fn key(&self) -> &TunnelKey {
        self.public.as_bytes()
    }

    /// Whether the first mac of a type 1 or 2 message was made for this key. `message` has its reserved bytes
    /// cleared.
    pub(crate) fn mac_is_valid(&self, message: &[u8]) -> bool {
        self.open.verify_packet(None, message, &mut [0; COOKIE_REPLY_LEN]).is_ok()
    }

    /// Under load: asks for the second mac, a cookie bound to the sender's address and port.
    pub(crate) fn check_cookie(&self, from: SocketAddr, message: &[u8]) -> Result<Gate, Reason> {
        let mut reply = [0; COOKIE_REPLY_LEN];
        match self.gate.verify_packet(Some(cookie_subject(from)), message, &mut reply) {
            Ok(_) => Ok(Gate::Pass),
            Err(TunnResult::WriteToNetwork(_)) => Ok(Gate::Cookie(reply)),
            Err(_) => Err(Reason::BadMac),
        }
    }

    /// The initiator's static key, by one key agreement. Says nothing yet about the initiator holding it.
    pub(crate) fn initiator(&self, initiation: &[u8]) -> Result<TunnelKey, Reason> {
        let Ok(Packet::HandshakeInit(packet)) = Tunn::parse_incoming_packet(initiation) else {
            return Err(Reason::BadHandshake);
        };
        parse_handshake_anon(&self.secret, &self.public, &packet)
            .map(|half| half.peer_static_public)
            .map_err(|_| Reason::BadHandshake)
    }
}

/// boringtun takes any message at its one entrance; here each entrance takes one type.
fn is_type(kind: u8, message: &[u8]) -> Result<(), Reason> {
    if message.first() == Some(&kind) { Ok(()) } else { Err(Reason::UnknownMessage) }
}

/// boringtun's cookie covers an IP address only. It is given a hash of address and port in its place, so that a
/// cookie serves nobody behind another port of the same address.
fn cookie_subject(from: SocketAddr) -> IpAddr {
    let address = match from.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let digest = Sha256::new()
        .chain_update(b"warren cookie subject v1")
        .chain_update(address.octets())
        .chain_update(from.port().to_be_bytes())
        .finalize();
    let mut subject = [0; 16];
    subject.copy_from_slice(&digest[..16]);
    IpAddr::V6(Ipv6Addr::from(subject))
}

/// The tunnel between one local and one remote tunnel key.
pub(crate) struct HandshakeTunnel {
    tunn: Box<Tunn>,
    doorway: Arc<Doorway>,
    peer: TunnelKey,
    established: bool,
}

impl HandshakeTunnel {
    /// `prefix` is the 24-bit index prefix that this tunnel alone owns; all 256 indices under it are its own.
    pub(crate) fn new(doorway: Arc<Doorway>, peer: TunnelKey, prefix: u32) -> Self {
        let tunn = Tunn::new(
            doorway.secret.clone(),
            PublicKey::from(peer),
            None,
            None,
            prefix & 0x00ff_ffff,
            Some(Arc::clone(&doorway.open)),
        );
        Self { tunn: Box::new(tunn), doorway, peer, established: false }
    }

    /// Whether both ends have proven themselves, so that [`Self::seal`] may be called.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// A new initiation. Each has a fresh ephemeral and a later timestamp; answers to the two newest are taken.
    pub(crate) fn initiate(&mut self) -> Result<[u8; INITIATION_LEN], Reason> {
        let mut message = [0; INITIATION_LEN];
        match self.tunn.format_handshake_initiation(&mut message, true) {
            TunnResult::WriteToNetwork(_) => Ok(message),
            _ => Err(Reason::BadHandshake),
        }
    }

    /// [`Self::initiate`] with the hint of the peer's key in the reserved bytes, for peers known to be warren's.
    pub(crate) fn initiate_hinted(&mut self) -> Result<[u8; INITIATION_LEN], Reason> {
        let mut message = self.initiate()?;
        message[1..4].copy_from_slice(&key_hint(&self.peer).to_le_bytes()[..3]);
        Ok(message)
    }

    /// Takes an initiation whose static key is this peer's and returns the response. Refuses one that is not
    /// newer than every one before.
    pub(crate) fn handle_initiation(&mut self, message: &[u8]) -> Result<Vec<u8>, Reason> {
        is_type(1, message)?;
        let mut scratch = [0; SCRATCH_MIN];
        match self.tunn.decapsulate(None, message, &mut scratch) {
            TunnResult::WriteToNetwork(response) if response.len() == RESPONSE_LEN => Ok(response.to_vec()),
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Err(Reason::StaleHandshake),
            TunnResult::Err(WireGuardError::InvalidMac) => Err(Reason::BadMac),
            _ => Err(Reason::BadHandshake),
        }
    }

    /// Takes the response to an initiation of ours. The tunnel is established; the empty transport message
    /// returned confirms it to the peer, unless another message is sent first.
    pub(crate) fn handle_response(&mut self, message: &[u8]) -> Result<Vec<u8>, Reason> {
        is_type(2, message)?;
        let mut scratch = [0; SCRATCH_MIN];
        match self.tunn.decapsulate(None, message, &mut scratch) {
            TunnResult::WriteToNetwork(confirmation) if confirmation.first() == Some(&4) => {
                self.established = true;
                Ok(confirmation.to_vec())
            }
            TunnResult::Err(WireGuardError::InvalidMac) => Err(Reason::BadMac),
            _ => Err(Reason::BadHandshake),
        }
    }

    /// Takes a cookie for the newest handshake message. The next initiation or response carries it.
    pub(crate) fn handle_cookie_reply(&mut self, message: &[u8]) -> Result<(), Reason> {
        is_type(3, message)?;
        let mut scratch = [0; SCRATCH_MIN];
        match self.tunn.decapsulate(None, message, &mut scratch) {
            TunnResult::Done => Ok(()),
            _ => Err(Reason::BadHandshake),
        }
    }

    /// Opens a transport message. `None` is an empty packet: authentic, without content.
    pub(crate) fn open(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
        is_type(4, message)?;
        let Some(counter) = message.get(8..16).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) else {
            return Err(Reason::DatagramTooShort);
        };
        if u64::from_le_bytes(counter) >= REJECT_AFTER_COUNTER {
            return Err(Reason::CounterExhausted);
        }
        let mut plain = vec![0; message.len().max(SCRATCH_MIN)];
        let opened = match self.tunn.decapsulate(None, message, &mut plain) {
            TunnResult::Done => Ok(None),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Some(packet.to_vec()))
            }
            // The content is no IP packet; the message itself was authentic.
            TunnResult::Err(WireGuardError::InvalidPacket) => Err(Reason::Malformed),
            TunnResult::Err(WireGuardError::DuplicateCounter) => Err(Reason::Replayed),
            TunnResult::Err(WireGuardError::InvalidCounter) => Err(Reason::CounterTooOld),
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => {
                Err(Reason::UnknownReceiver)
            }
            _ => Err(Reason::BadAuthentication),
        };
        if opened.is_ok() {
            self.established = true;
        }
        opened
    }

    /// Seals one inner packet, or an empty one. `None` when no session stands; nothing was queued.
    pub(crate) fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        if !self.established || self.tunn.time_since_last_handshake().is_none() {
            return None;
        }
        let mut message = vec![0; (packet.len() + TRANSPORT_OVERHEAD).max(SCRATCH_MIN)];
        match self.tunn.encapsulate(packet, &mut message) {
            TunnResult::WriteToNetwork(sealed) if sealed.first() == Some(&4) => Some(sealed.to_vec()),
            _ => None,
        }
    }

    /// Erases every session of this tunnel and keeps the memory of the peer's newest timestamp, so that a
    /// recorded initiation stays refused.
    pub(crate) fn forget_sessions(&mut self) {
        self.established = false;
        self.tunn.set_static_private(
            self.doorway.secret.clone(),
            self.doorway.public,
            Some(Arc::clone(&self.doorway.open)),
        );
    }

    /// boringtun's own timers, for plain WireGuard peers only, every 250 ms: retries, rekeys, keepalives, expiry.
    /// What is returned goes to the peer.
    pub(crate) fn tick(&mut self) -> Option<Vec<u8>> {
        let mut message = [0; SCRATCH_MIN];
        let due = match self.tunn.update_timers(&mut message) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.to_vec()),
            _ => None,
        };
        if self.tunn.time_since_last_handshake().is_none() {
            self.established = false;
        }
        due
    }
}

#[cfg(test)]
mod tests;
