//! The key exchange inside the handshake tunnel: ML-KEM-768 (FIPS 203) over WireGuard's X25519, giving the two
//! keys of one data session. Byte layouts: docs/wire-protocol.md, "Tunnel".
//!
//! ```text
//! offerer                                   acceptor
//!   Offer { index, random, ek, certificates }  ->
//!                                           <- Accept { index, random, ct, certificates }  or  Reject { reason }
//! PRK = HKDF-Extract(SHA-256(transcript), KEM secret || offerer's random || acceptor's random)
//! key = HKDF-Expand(PRK, label || suite || direction)
//! ```
//!
//! What is compared and hashed are the certificates each side has verified itself; the wire only shows whether
//! both mean the same ones. The suite follows from their capability bits and is not sent. This module has no
//! timers and keeps no exchange: `peers` decides when a message is sent, repeated or given up.

use aws_lc_rs::hkdf;
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use aws_lc_rs::rand::fill;
use sha2::{Digest, Sha256};
use warren_proto::Reason;
use warren_proto::certificate::{Capabilities, TunnelCertificate};
use zeroize::Zeroizing;

use crate::identity::VerifiedPeer;
use crate::mesh::TunnelKey;
use crate::session::Suite;

pub(crate) mod parts;

/// The version this build speaks; the first byte of every control datagram.
pub(crate) const VERSION: u8 = 1;

/// Largest message: an offer with two pairs of the longest issuer key ids and serials, and room to grow.
pub(crate) const MAX_MESSAGE: usize = 2048;

const RANDOM_LEN: usize = 32;
const ENCAPSULATION_KEY_LEN: usize = 1184;
const CIPHERTEXT_LEN: usize = 1088;
const MAX_ISSUER_LEN: usize = 32;
const MAX_SERIAL_LEN: usize = 20;

/// What a message is, the second byte of every control datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Begins an exchange.
    Offer = 1,
    /// Completes it.
    Accept = 2,
    /// Ends it without a session.
    Reject = 3,
    /// Asks whether a datagram of its own size arrives; belongs to no exchange.
    Probe = 4,
    /// Says that it did.
    ProbeAnswer = 5,
}

/// Why an offer was refused, as the one byte of a Reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The two sides do not mean the same certificates.
    Certificates = 1,
    /// The offer's version is not spoken.
    Version = 2,
    /// The offer does not parse.
    Malformed = 3,
}

impl Rejection {
    pub(crate) fn from_message(message: &[u8]) -> Option<Self> {
        match message {
            [1] => Some(Self::Certificates),
            [2] => Some(Self::Version),
            [3] => Some(Self::Malformed),
            _ => None,
        }
    }

    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Certificates => Reason::ExchangeCertificates,
            Self::Version => Reason::ExchangeVersion,
            Self::Malformed => Reason::ExchangeMalformed,
        }
    }
}

/// One end of an exchange, as this node has verified it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Party {
    identity: String,
    key: TunnelKey,
    issuer: Vec<u8>,
    serial: Vec<u8>,
    aes: bool,
}

impl Party {
    /// This node's end.
    pub(crate) fn of(certificate: &TunnelCertificate) -> Self {
        let (leaf, binding) = (certificate.leaf(), certificate.binding());
        Self {
            identity: leaf.identity().to_string(),
            key: binding.tunnel_key,
            issuer: leaf.issuer_key_id().as_bytes().to_vec(),
            serial: leaf.serial().as_bytes().to_vec(),
            aes: binding.capabilities.contains(Capabilities::AES),
        }
    }

    /// The other end.
    pub(crate) fn of_peer(peer: &VerifiedPeer) -> Self {
        Self {
            identity: peer.identity().to_string(),
            key: *peer.tunnel_key(),
            issuer: peer.issuer_key_id().as_bytes().to_vec(),
            serial: peer.serial().as_bytes().to_vec(),
            aes: peer.capabilities().contains(Capabilities::AES),
        }
    }

    fn write_certificate(&self, out: &mut Vec<u8>) {
        for field in [&self.issuer, &self.serial] {
            out.push(field.len() as u8);
            out.extend_from_slice(field);
        }
    }
}

/// Both ends of an exchange, in their roles.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Parties {
    pub(crate) offerer: Party,
    pub(crate) acceptor: Party,
}

impl Parties {
    /// AES-256-GCM where both processors have AES instructions, else ChaCha20-Poly1305.
    pub(crate) fn suite(&self) -> Suite {
        if self.offerer.aes && self.acceptor.aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }

    fn certificates(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 2 * (MAX_ISSUER_LEN + MAX_SERIAL_LEN));
        self.offerer.write_certificate(&mut out);
        self.acceptor.write_certificate(&mut out);
        out
    }
}

/// The keys of one data session and the indices that name it. Erased when dropped.
pub(crate) struct SessionKeys {
    pub(crate) suite: Suite,
    /// What the peer writes into datagrams for us.
    pub(crate) local_index: u32,
    /// What we write into datagrams for the peer.
    pub(crate) remote_index: u32,
    pub(crate) seal: Zeroizing<[u8; 32]>,
    pub(crate) open: Zeroizing<[u8; 32]>,
}

/// Our offer while it waits for its answer. The decapsulation key is erased when dropped.
pub(crate) struct Offering {
    local_index: u32,
    parties: Parties,
    decapsulation: DecapsulationKey,
    random: [u8; RANDOM_LEN],
    message: Vec<u8>,
}

impl Offering {
    /// A new offer under `local_index`. Fails only when the system has no randomness.
    pub(crate) fn new(local_index: u32, parties: Parties) -> Option<Self> {
        let decapsulation = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let encapsulation = decapsulation.encapsulation_key().ok()?.key_bytes().ok()?;
        let mut random = [0; RANDOM_LEN];
        fill(&mut random).ok()?;
        let message = message(local_index, &random, encapsulation.as_ref(), &parties);
        Some(Self { local_index, parties, decapsulation, random, message })
    }

    /// The index of ours that names this exchange.
    pub(crate) fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The offer, the same bytes every time.
    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Takes the Accept to this offer.
    pub(crate) fn complete(&self, accept: &[u8]) -> Result<SessionKeys, Reason> {
        let parsed = Fields::parse(accept, CIPHERTEXT_LEN)?;
        if parsed.certificates != self.parties.certificates() {
            return Err(Reason::ExchangeCertificates);
        }
        let secret =
            self.decapsulation.decapsulate(Ciphertext::from(parsed.kem)).map_err(|_| Reason::ExchangeMalformed)?;
        let transcript = transcript(&self.parties, &self.message, accept);
        let [from_offerer, from_acceptor] =
            derive(&self.parties, &transcript, secret.as_ref(), &self.random, parsed.random)?;
        Ok(SessionKeys {
            suite: self.parties.suite(),
            local_index: self.local_index,
            remote_index: parsed.index,
            seal: from_offerer,
            open: from_acceptor,
        })
    }
}

/// The receiver index that an offer names its session by, if it parses as one.
pub(crate) fn offered_index(offer: &[u8]) -> Option<u32> {
    Fields::parse(offer, ENCAPSULATION_KEY_LEN).ok().map(|fields| fields.index)
}

/// Answers an offer: the Accept's bytes, to be repeated unchanged, and the session's keys.
pub(crate) fn accept(offer: &[u8], local_index: u32, parties: &Parties) -> Result<(Vec<u8>, SessionKeys), Reason> {
    let parsed = Fields::parse(offer, ENCAPSULATION_KEY_LEN)?;
    if parsed.certificates != parties.certificates() {
        return Err(Reason::ExchangeCertificates);
    }
    let (ciphertext, secret) = EncapsulationKey::new(&ML_KEM_768, parsed.kem)
        .ok()
        .and_then(|key| key.encapsulate().ok())
        .ok_or(Reason::ExchangeMalformed)?;
    let mut random = [0; RANDOM_LEN];
    fill(&mut random).map_err(|_| Reason::ExchangeMalformed)?;
    let accept = message(local_index, &random, ciphertext.as_ref(), parties);
    let transcript = transcript(parties, offer, &accept);
    let [from_offerer, from_acceptor] = derive(parties, &transcript, secret.as_ref(), parsed.random, &random)?;
    let keys = SessionKeys {
        suite: parties.suite(),
        local_index,
        remote_index: parsed.index,
        seal: from_acceptor,
        open: from_offerer,
    };
    Ok((accept, keys))
}

/// Offer and Accept share one form; they differ in what the KEM field holds.
fn message(index: u32, random: &[u8; RANDOM_LEN], kem: &[u8], parties: &Parties) -> Vec<u8> {
    let certificates = parties.certificates();
    let mut out = Vec::with_capacity(4 + RANDOM_LEN + kem.len() + certificates.len());
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(random);
    out.extend_from_slice(kem);
    out.extend_from_slice(&certificates);
    out
}

struct Fields<'a> {
    index: u32,
    random: &'a [u8; RANDOM_LEN],
    kem: &'a [u8],
    /// Both pairs as they stand; compared as bytes with the pairs we mean, and so never read further.
    certificates: &'a [u8],
}

impl<'a> Fields<'a> {
    fn parse(message: &'a [u8], kem_len: usize) -> Result<Self, Reason> {
        let fields = (|| {
            let (index, rest) = message.split_first_chunk::<4>()?;
            let (random, rest) = rest.split_first_chunk::<RANDOM_LEN>()?;
            let (kem, certificates) = rest.split_at_checked(kem_len)?;
            Some(Self { index: u32::from_be_bytes(*index), random, kem, certificates })
        })();
        fields.ok_or(Reason::ExchangeMalformed)
    }
}

/// Everything both ends must agree on, each field with its length, so that no two transcripts hash alike.
fn transcript(parties: &Parties, offer: &[u8], accept: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new().chain_update(b"warren key exchange v1").chain_update([VERSION]);
    let certificates = parties.certificates();
    for field in [
        offer,
        accept,
        parties.offerer.identity.as_bytes(),
        parties.acceptor.identity.as_bytes(),
        &parties.offerer.key,
        &parties.acceptor.key,
        &certificates,
    ] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

/// The key from offerer to acceptor, then the key back.
fn derive(
    parties: &Parties,
    transcript: &[u8; 32],
    kem_secret: &[u8],
    offerer_random: &[u8; RANDOM_LEN],
    acceptor_random: &[u8; RANDOM_LEN],
) -> Result<[Zeroizing<[u8; 32]>; 2], Reason> {
    let mut secret = Zeroizing::new(Vec::with_capacity(kem_secret.len() + 2 * RANDOM_LEN));
    secret.extend_from_slice(kem_secret);
    secret.extend_from_slice(offerer_random);
    secret.extend_from_slice(acceptor_random);
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, transcript).extract(&secret);
    let suite = match parties.suite() {
        Suite::Aes256Gcm => 1,
        Suite::ChaCha20Poly1305 => 2,
    };
    let key = |direction: u8| {
        let mut key = Zeroizing::new([0; 32]);
        prk.expand(&[b"warren data session v1", &[suite, direction]], KeyLen)
            .and_then(|okm| okm.fill(key.as_mut()))
            .map_err(|_| Reason::ExchangeMalformed)?;
        Ok(key)
    };
    Ok([key(1)?, key(2)?])
}

#[cfg(test)]
mod tests;
