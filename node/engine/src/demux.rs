//! From a datagram of anybody's to the tunnel it is for: message types, receiver indices, and the gate that a
//! handshake initiation must pass before the first key agreement is spent on it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;
use rand::rngs::StdRng;
use warren_proto::Reason;

use crate::handshake::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN, TRANSPORT_OVERHEAD};
use crate::mesh::TunnelKey;
use crate::tables::{LocalIndex, PeerIndex};

/// One way between a local instance and a peer.
pub(crate) type LinkId = (LocalIndex, PeerIndex);

/// A datagram by its message type, of the right length and with its reserved bytes checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Type 1, with the 24-bit hint of the responder's key; zero when the sender is not warren's.
    Initiation {
        /// Of the responder's key.
        hint: u32,
    },
    /// Type 2.
    Response {
        /// The pending handshake that it answers.
        receiver: u32,
    },
    /// Type 3.
    CookieReply {
        /// The pending handshake that it is for.
        receiver: u32,
    },
    /// Type 4.
    Transport {
        /// The session.
        receiver: u32,
    },
}

/// Says what a datagram is, or why it is nothing.
pub fn classify(datagram: &[u8]) -> Result<Message, Reason> {
    let Some([kind, reserved @ ..]) = datagram.first_chunk::<4>() else { return Err(Reason::DatagramTooShort) };
    let word = |at: usize| {
        let bytes = datagram.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_le_bytes).ok_or(Reason::DatagramTooShort)
    };
    let exactly = |length: usize| match datagram.len() {
        shorter if shorter < length => Err(Reason::DatagramTooShort),
        longer if longer > length => Err(Reason::DatagramTooLong),
        _ => Ok(()),
    };
    if *kind == 1 {
        exactly(INITIATION_LEN)?;
        return Ok(Message::Initiation { hint: u32::from_le_bytes([reserved[0], reserved[1], reserved[2], 0]) });
    }
    if !(2..=4).contains(kind) {
        return Err(Reason::UnknownMessage);
    }
    if *reserved != [0; 3] {
        return Err(Reason::ReservedBits);
    }
    match kind {
        2 => exactly(RESPONSE_LEN).and_then(|()| Ok(Message::Response { receiver: word(8)? })),
        3 => exactly(COOKIE_REPLY_LEN).and_then(|()| Ok(Message::CookieReply { receiver: word(4)? })),
        _ if datagram.len() < TRANSPORT_OVERHEAD => Err(Reason::DatagramTooShort),
        _ => Ok(Message::Transport { receiver: word(4)? }),
    }
}

/// The cleartext ephemeral key of an initiation or a response.
pub(crate) fn ephemeral(message: &[u8]) -> Option<&TunnelKey> {
    let at = if message.first() == Some(&1) { 8 } else { 12 };
    message.get(at..at + 32).and_then(|bytes| bytes.try_into().ok())
}

/// Whether an initiation carries a second mac, right or wrong.
pub(crate) fn has_second_mac(initiation: &[u8]) -> bool {
    initiation.last_chunk::<16>().is_some_and(|mac| *mac != [0; 16])
}

/// Receiver indices in use: prefixes of handshake tunnels, 256 indices each, and single ones of data sessions.
/// Both are drawn at random and never overlap.
pub(crate) struct Indices {
    prefixes: HashMap<u32, LinkId, RandomState>,
    data: HashMap<u32, LinkId, RandomState>,
    workers: u32,
}

impl Indices {
    pub(crate) fn new(workers: u16) -> Self {
        Self { prefixes: HashMap::default(), data: HashMap::default(), workers: u32::from(workers.max(1)) }
    }

    /// A 24-bit prefix that nothing else uses.
    pub(crate) fn take_prefix(&mut self, link: LinkId, random: &mut StdRng) -> u32 {
        loop {
            let prefix = random.random_range(1..1 << 24);
            let holds_data = || self.data.keys().any(|index| index >> 8 == prefix);
            if !self.prefixes.contains_key(&prefix) && !holds_data() {
                self.prefixes.insert(prefix, link);
                return prefix;
            }
        }
    }

    pub(crate) fn release_prefix(&mut self, prefix: u32) {
        self.prefixes.remove(&prefix);
    }

    /// An index for a data session, outside every prefix. It names the worker that owns the replay window and delivers:
    /// the same one for every session of a link, since after a rekey what comes through the new session must not
    /// overtake, on another core, what still waits of the old one. Peers are numbered one by one, so workers get equal shares.
    pub(crate) fn take_index(&mut self, link: LinkId, random: &mut StdRng) -> u32 {
        let (LocalIndex(local), PeerIndex(peer)) = link;
        let worker = local.wrapping_add(peer) % self.workers;
        loop {
            let drawn: u32 = random.random();
            let index = drawn.wrapping_sub(drawn % self.workers).wrapping_add(worker);
            let taken = self.data.contains_key(&index) || self.prefixes.contains_key(&(index >> 8));
            if index % self.workers == worker && !taken {
                self.data.insert(index, link);
                return index;
            }
        }
    }

    pub(crate) fn release_index(&mut self, index: u32) {
        self.data.remove(&index);
    }

    /// The link whose handshake tunnel owns this receiver index.
    pub(crate) fn tunnel(&self, receiver: u32) -> Option<LinkId> {
        self.prefixes.get(&(receiver >> 8)).copied()
    }
}

/// A token bucket in virtual time: `per_second` tokens a second, at most `burst` saved up.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Duration,
}

impl Bucket {
    fn take(&mut self, amount: f64, per_second: f64, burst: f64, now: Duration) -> bool {
        let gained = now.saturating_sub(self.filled_at).as_secs_f64() * per_second;
        self.tokens = (self.tokens + gained).min(burst);
        self.filled_at = now;
        let granted = self.tokens >= amount;
        if granted {
            self.tokens -= amount;
        }
        granted
    }
}

/// Handshake messages that one source may cost us a key agreement with, under load. The figures are those of
/// WireGuard in Linux.
const PER_SOURCE_PER_SECOND: f64 = 20.0;
const PER_SOURCE_BURST: f64 = 5.0;
/// Keys that initiations without a hint are tried with: a hash for each key, a third of a microsecond, so at most a twentieth
/// of a core. Whoever does not know a key of ours costs no more than that. A node with one key tries so many messages a second,
/// one with a hundred keys a hundredth of it.
const TRIALS_PER_SECOND: f64 = 150_000.0;
const TRIALS_BURST: f64 = 75_000.0;
/// Initiations without a hint, made for a key of ours, that may cost a key agreement each without a cookie.
const UNHINTED_PER_SECOND: f64 = 100.0;
const UNHINTED_BURST: f64 = 50.0;
/// Cookies that are handed out to the others.
const REPLIES_PER_SECOND: f64 = 1000.0;
const REPLIES_BURST: f64 = 100.0;
/// Sources remembered at once; when full, those idle for a second give way, else newcomers are refused.
const MAX_SOURCES: usize = 4096;

/// Counts handshake messages and says when they are too many. Everything here is decided before any key
/// agreement.
pub(crate) struct LoadGate {
    threshold: u32,
    window: Duration,
    in_window: u32,
    /// Load is declared for a whole second, so that a flood cannot alternate around the threshold.
    loaded_until: Duration,
    sources: HashMap<IpAddr, Bucket, RandomState>,
    trials: Bucket,
    unhinted: Bucket,
    replies: Bucket,
}

impl LoadGate {
    pub(crate) fn new(threshold: u32) -> Self {
        Self {
            threshold,
            window: Duration::ZERO,
            in_window: 0,
            loaded_until: Duration::ZERO,
            sources: HashMap::default(),
            trials: Bucket { tokens: TRIALS_BURST, filled_at: Duration::ZERO },
            unhinted: Bucket { tokens: UNHINTED_BURST, filled_at: Duration::ZERO },
            replies: Bucket { tokens: REPLIES_BURST, filled_at: Duration::ZERO },
        }
    }

    /// Counts a handshake message with a valid first mac. Says whether cookies are to be demanded.
    pub(crate) fn is_under_load(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.window) >= Duration::from_secs(1) {
            self.window = now;
            self.in_window = 0;
        }
        self.in_window = self.in_window.saturating_add(1);
        if self.in_window > self.threshold {
            self.loaded_until = now + Duration::from_secs(1);
        }
        now < self.loaded_until
    }

    /// Whether one more message of this source may cost a key agreement. An IPv6 source is its /64.
    pub(crate) fn allow_source(&mut self, from: SocketAddr, now: Duration) -> bool {
        let source = match from.ip().to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| now.saturating_sub(bucket.filled_at) < Duration::from_secs(1));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let fresh = Bucket { tokens: PER_SOURCE_BURST, filled_at: now };
        self.sources.entry(source).or_insert(fresh).take(1.0, PER_SOURCE_PER_SECOND, PER_SOURCE_BURST, now)
    }

    /// Whether one more initiation without a hint may be tried with each of `keys` local keys.
    pub(crate) fn allow_trial(&mut self, keys: usize, now: Duration) -> bool {
        self.trials.take(keys as f64, TRIALS_PER_SECOND, TRIALS_BURST, now)
    }

    /// Whether one more initiation without a hint, made for a key of ours, goes on without a cookie.
    pub(crate) fn allow_unhinted(&mut self, now: Duration) -> bool {
        self.unhinted.take(1.0, UNHINTED_PER_SECOND, UNHINTED_BURST, now)
    }

    /// Whether one more cookie is handed out to who sends no hint.
    pub(crate) fn allow_reply(&mut self, now: Duration) -> bool {
        self.replies.take(1.0, REPLIES_PER_SECOND, REPLIES_BURST, now)
    }
}

#[cfg(test)]
mod tests;
