//! Data sessions: the second layer of a tunnel, which carries application packets between two warren nodes.
//!
//! On the wire a data session looks like WireGuard's transport message (type 4, receiver index, 64-bit
//! counter, ciphertext, tag; plaintext padded to 16, no further than the path's MTU). Its keys come from the exchange inside the handshake
//! tunnel. A session is shared between workers and never copied: the send counter is atomic, and the replay
//! window belongs to the worker that the receiver index names.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_proto::{Reason, UnixTime};

use crate::Now;
use crate::replay::ReplayWindow;
use crate::tables::{LocalIndex, PeerIndex};

/// Message type of a transport message, first byte.
pub const TRANSPORT_TYPE: u8 = 4;
/// Type, reserved bytes, receiver index, counter.
pub const HEADER: usize = 16;
/// Poly1305's or GCM's tag.
pub const TAG: usize = 16;
/// Plaintext is padded to a multiple of this but not beyond the path's MTU, as WireGuard does.
pub const PADDING: usize = 16;

/// After this age whoever has traffic begins the next session.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// After this many messages sent the next session is begun.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 26;
/// After this age nothing is sealed or opened.
pub const REFUSE_AFTER: Duration = Duration::from_secs(180);
/// Counters from here on are neither sent nor accepted.
pub const REFUSE_AFTER_MESSAGES: u64 = 1 << 27;

/// The AEAD of a session. It follows from both certificates and is never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// Where both CPUs have AES instructions.
    Aes256Gcm,
    /// Everywhere else.
    ChaCha20Poly1305,
}

impl Suite {
    /// The name that logs, `warren status` and the key schedule use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

/// What the key exchange agreed. The caller erases the keys.
pub struct SessionParameters<'a> {
    /// The AEAD.
    pub suite: Suite,
    /// Seals what this node sends.
    pub send_key: &'a [u8; 32],
    /// Opens what the peer sends.
    pub receive_key: &'a [u8; 32],
    /// The index this node chose; the peer writes it into every message.
    pub local_index: u32,
    /// The index the peer chose.
    pub remote_index: u32,
    /// The local instance at this end.
    pub local: LocalIndex,
    /// The peer at the other end.
    pub peer: PeerIndex,
    /// The earlier end of the two certificates that the exchange named.
    pub valid_until: UnixTime,
    /// When the exchange completed.
    pub established: Now,
}

/// One direction pair of keys with its counters. Shared by `Arc`, never copied.
pub struct DataSession {
    suite: Suite,
    seal_key: LessSafeKey,
    open_key: LessSafeKey,
    local_index: u32,
    remote_index: u32,
    local: LocalIndex,
    peer: PeerIndex,
    valid_until: UnixTime,
    established: Duration,
    next_counter: AtomicU64,
    window: ReplayWindow,
    confirmed: AtomicBool,
    rekey_asked: AtomicBool,
    /// Monotonic milliseconds; zero means never.
    last_sent: AtomicU64,
    last_received: AtomicU64,
    last_data_sent: AtomicU64,
    last_data_received: AtomicU64,
}

/// The plaintext of one authenticated, unreplayed message. Only [`DataSession::open`] makes one.
#[derive(Debug)]
pub struct Opened<'a> {
    plaintext: &'a [u8],
    first: bool,
}

impl<'a> Opened<'a> {
    /// The inner packet with its padding; empty for a keepalive.
    #[must_use]
    pub const fn plaintext(&self) -> &'a [u8] {
        self.plaintext
    }

    /// Whether it is the first one of its session: the peer has the keys.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.first
    }
}

/// The length of the datagram that carries an inner packet of `packet` bytes, if nothing cuts its padding.
#[must_use]
pub const fn sealed_length(packet: usize) -> usize {
    HEADER + packet.next_multiple_of(PADDING) + TAG
}

/// The receiver index and the counter of a transport message, if `datagram` is one.
pub fn transport_header(datagram: &[u8]) -> Result<(u32, u64), Reason> {
    let Some((header, _)) = datagram.split_first_chunk::<HEADER>() else { return Err(Reason::DatagramTooShort) };
    let [kind, r0, r1, r2, i0, i1, i2, i3, counter @ ..] = *header;
    if kind != TRANSPORT_TYPE {
        return Err(Reason::UnknownMessage);
    }
    if [r0, r1, r2] != [0; 3] {
        return Err(Reason::ReservedBits);
    }
    if datagram.len() < HEADER + TAG {
        return Err(Reason::DatagramTooShort);
    }
    Ok((u32::from_le_bytes([i0, i1, i2, i3]), u64::from_le_bytes(counter)))
}

impl DataSession {
    /// A session with nothing sent and nothing received. Fails only if the AEAD refuses its key.
    pub fn new(parameters: &SessionParameters<'_>) -> Result<Self, Reason> {
        let algorithm = match parameters.suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = |bytes: &[u8; 32]| {
            UnboundKey::new(algorithm, bytes).map(LessSafeKey::new).map_err(|_| Reason::ExchangeMalformed)
        };
        Ok(Self {
            suite: parameters.suite,
            seal_key: key(parameters.send_key)?,
            open_key: key(parameters.receive_key)?,
            local_index: parameters.local_index,
            remote_index: parameters.remote_index,
            local: parameters.local,
            peer: parameters.peer,
            valid_until: parameters.valid_until,
            established: parameters.established.monotonic,
            next_counter: AtomicU64::new(0),
            window: ReplayWindow::default(),
            confirmed: AtomicBool::new(false),
            rekey_asked: AtomicBool::new(false),
            last_sent: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
            last_data_sent: AtomicU64::new(0),
            last_data_received: AtomicU64::new(0),
        })
    }

    /// Seals `packet` (empty: a keepalive) into the front of `out` and returns the datagram's length: [`sealed_length`],
    /// or less where padding would make the plaintext longer than `mtu`. Any thread may call it; each call takes a counter
    /// of its own.
    pub fn seal(&self, packet: &[u8], mtu: usize, out: &mut [u8], now: Now) -> Result<usize, Reason> {
        self.check_age(now)?;
        let padded = packet.len().next_multiple_of(PADDING).min(mtu.max(packet.len()));
        let length = HEADER + padded + TAG;
        let Some(out) = out.get_mut(..length) else { return Err(Reason::PacketTooBig) };
        // Going past the limit by the number of workers is harmless: the refusals never seal.
        let counter = self.next_counter.fetch_add(1, Ordering::Relaxed);
        if counter >= REFUSE_AFTER_MESSAGES {
            self.next_counter.store(REFUSE_AFTER_MESSAGES, Ordering::Relaxed);
            return Err(Reason::SessionExpired);
        }
        let (header, body) = out.split_at_mut(HEADER);
        header[..4].copy_from_slice(&[TRANSPORT_TYPE, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
        header[8..16].copy_from_slice(&counter.to_le_bytes());
        let (ciphertext, rest) = body.split_at_mut(packet.len());
        let padding = &[0; PADDING][..rest.len() - TAG];
        self.seal_key
            .seal_out_of_place_scatter(nonce(counter), Aad::empty(), packet, ciphertext, padding, rest)
            .map_err(|_| Reason::PacketTooBig)?;
        self.last_sent.store(milliseconds(now), Ordering::Relaxed);
        if !packet.is_empty() {
            self.last_data_sent.store(milliseconds(now), Ordering::Relaxed);
        }
        Ok(length)
    }

    /// Authenticates `datagram`, decrypts it into the front of `out` and marks its counter, in this order:
    /// nothing of the session changes for a datagram that does not authenticate. Only the worker that the
    /// receiver index names may call it.
    pub fn open<'out>(&self, datagram: &[u8], out: &'out mut [u8], now: Now) -> Result<Opened<'out>, Reason> {
        let (_, counter) = transport_header(datagram)?;
        self.check_age(now)?;
        if counter >= REFUSE_AFTER_MESSAGES {
            return Err(Reason::CounterExhausted);
        }
        self.window.check(counter)?;
        let (ciphertext, tag) = datagram[HEADER..].split_at(datagram.len() - HEADER - TAG);
        let Some(out) = out.get_mut(..ciphertext.len()) else { return Err(Reason::DatagramTooLong) };
        self.open_key
            .open_separate_gather(nonce(counter), Aad::empty(), ciphertext, tag, out)
            .map_err(|_| Reason::BadAuthentication)?;
        self.window.mark(counter)?;
        self.last_received.store(milliseconds(now), Ordering::Relaxed);
        if !out.is_empty() {
            self.last_data_received.store(milliseconds(now), Ordering::Relaxed);
        }
        let first = !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::AcqRel);
        Ok(Opened { plaintext: out, first })
    }

    fn check_age(&self, now: Now) -> Result<(), Reason> {
        if now.unix >= self.valid_until {
            return Err(Reason::CertificateExpired);
        }
        if self.age(now) >= REFUSE_AFTER {
            return Err(Reason::SessionExpired);
        }
        Ok(())
    }

    /// Whether the next session should be begun.
    #[must_use]
    pub fn is_rekey_due(&self, now: Now) -> bool {
        self.age(now) >= REKEY_AFTER || self.messages_sent() >= REKEY_AFTER_MESSAGES
    }

    /// True once, for the first caller that finds the rekey due.
    pub(crate) fn take_rekey_request(&self, now: Now) -> bool {
        self.is_rekey_due(now)
            && !self.rekey_asked.load(Ordering::Relaxed)
            && !self.rekey_asked.swap(true, Ordering::AcqRel)
    }

    /// Whether neither end may use it any more.
    #[must_use]
    pub fn is_over(&self, now: Now) -> bool {
        self.check_age(now).is_err() || self.messages_sent() >= REFUSE_AFTER_MESSAGES
    }

    /// Time since the exchange completed.
    #[must_use]
    pub const fn age(&self, now: Now) -> Duration {
        now.monotonic.saturating_sub(self.established)
    }

    /// Messages sealed so far, keepalives included.
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.next_counter.load(Ordering::Relaxed)
    }

    /// Whether a message of the peer's has authenticated.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Monotonic time of the last message sealed, to the millisecond.
    #[must_use]
    pub fn last_sent(&self) -> Option<Duration> {
        moment(&self.last_sent)
    }

    /// Monotonic time of the last message that authenticated, to the millisecond.
    #[must_use]
    pub fn last_received(&self) -> Option<Duration> {
        moment(&self.last_received)
    }

    /// As [`Self::last_sent`], without keepalives.
    #[must_use]
    pub fn last_data_sent(&self) -> Option<Duration> {
        moment(&self.last_data_sent)
    }

    /// As [`Self::last_received`], without keepalives.
    #[must_use]
    pub fn last_data_received(&self) -> Option<Duration> {
        moment(&self.last_data_received)
    }

    /// The AEAD.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// The receiver index in datagrams that this node receives.
    #[must_use]
    pub const fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The receiver index in datagrams that this node sends.
    #[must_use]
    pub const fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// The local instance at this end.
    #[must_use]
    pub const fn local(&self) -> LocalIndex {
        self.local
    }

    /// The peer at the other end.
    #[must_use]
    pub const fn peer(&self) -> PeerIndex {
        self.peer
    }

    /// The end of the earlier of the two certificates.
    #[must_use]
    pub const fn valid_until(&self) -> UnixTime {
        self.valid_until
    }
}

impl fmt::Debug for DataSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSession")
            .field("suite", &self.suite.name())
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("peer", &self.peer)
            .field("messages_sent", &self.messages_sent())
            .finish_non_exhaustive()
    }
}

/// 32 zero bits, then the counter little-endian (WireGuard whitepaper, section 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn milliseconds(now: Now) -> u64 {
    u64::try_from(now.monotonic.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn moment(cell: &AtomicU64) -> Option<Duration> {
    match cell.load(Ordering::Relaxed) {
        0 => None,
        at => Some(Duration::from_millis(at)),
    }
}

#[cfg(test)]
mod tests;
