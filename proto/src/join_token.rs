//! Join tokens: the one string an operator carries from the coordinator to a new machine.
//!
//! `wj1_<id>_<payload>`: a fixed prefix that secret scanners can match, the token's public id (16 hexadecimal
//! digits, so that a leaked token can be found and revoked by its id), and base64url without padding over
//!
//! ```text
//! secret (32) | SHA-256 of the root certificate's DER (32) | count (1) | count x (length (1) | address) | CRC-32C (4)
//! ```
//!
//! The checksum covers everything in front of it, the id included: a token that was misspelt or cut off is
//! told from one that is unknown before a packet is sent. The root's hash authenticates the coordinator before
//! the secret leaves the machine. The coordinator keeps only the secret's SHA-256.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::reason::{Reason, Refusal};

/// What every join token begins with.
pub const PREFIX: &str = "wj1_";
/// Bytes of the secret.
pub const SECRET_LENGTH: usize = 32;
/// Most coordinator addresses in one token.
pub const MAX_ADDRESSES: usize = 8;
/// Longest coordinator address, in bytes: a DNS name, a colon and a port.
pub const MAX_ADDRESS_LENGTH: usize = 255;
/// Longest token, in characters; anything longer is refused unread.
pub const MAX_TOKEN_LENGTH: usize = 4096;

const ID_LENGTH: usize = 8;
const CHECKSUM_LENGTH: usize = 4;

/// The public half of a join token's name: 8 random bytes, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinTokenId([u8; ID_LENGTH]);

impl JoinTokenId {
    /// Takes 8 random bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; ID_LENGTH]) -> Self {
        Self(bytes)
    }
}

impl FromStr for JoinTokenId {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let mut bytes = [0; ID_LENGTH];
        let upper = text.bytes().any(|b| b.is_ascii_uppercase());
        if upper || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(malformed("its id is not 16 lower-case hexadecimal digits"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for JoinTokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for JoinTokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinTokenId({self})")
    }
}

impl Serialize for JoinTokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JoinTokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The secret half: wiped when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct JoinSecret([u8; SECRET_LENGTH]);

impl JoinSecret {
    /// Takes 32 random bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SECRET_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the enrolment message alone.
    #[must_use]
    pub const fn expose(&self) -> &[u8; SECRET_LENGTH] {
        &self.0
    }

    /// What the coordinator keeps: the secret is random, so that a plain hash is enough.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

/// A join token as parsed or about to be shown once.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The public name.
    pub id: JoinTokenId,
    /// What proves the right to join.
    pub secret: JoinSecret,
    /// SHA-256 of the DER of the root that the coordinator's certificate must chain to.
    pub root_sha256: [u8; 32],
    /// Where coordinators listen, `host:port` or `[v6]:port`, in the order to try.
    pub addresses: Vec<String>,
}

impl JoinToken {
    /// The one string. Holds the secret: it is shown once and stored nowhere.
    ///
    /// Refuses addresses that [`JoinToken::parse`] would not read back.
    pub fn format(&self) -> Result<Zeroizing<String>, Refusal> {
        check_addresses(&self.addresses)?;
        let mut payload = Zeroizing::new(Vec::with_capacity(256));
        payload.extend_from_slice(self.secret.expose());
        payload.extend_from_slice(&self.root_sha256);
        payload.push(u8::try_from(self.addresses.len()).unwrap_or(u8::MAX));
        for address in &self.addresses {
            payload.push(u8::try_from(address.len()).unwrap_or(u8::MAX));
            payload.extend_from_slice(address.as_bytes());
        }
        let checksum = checksum(&self.id, &payload);
        payload.extend_from_slice(&checksum);
        Ok(Zeroizing::new(format!("{PREFIX}{}_{}", self.id, &*Zeroizing::new(URL_SAFE_NO_PAD.encode(&*payload)))))
    }

    /// Reads a token; white space around it is ignored, since files end in a line break.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_LENGTH {
            return Err(malformed("it is longer than any join token"));
        }
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| malformed("it does not begin with wj1_"))?;
        let (id, payload) = rest.split_once('_').ok_or_else(|| malformed("it ends behind its id"))?;
        let id: JoinTokenId = id.parse()?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map(Zeroizing::new).map_err(|_| damaged())?;
        let (body, sum) = payload.split_last_chunk::<CHECKSUM_LENGTH>().ok_or_else(damaged)?;
        if checksum(&id, body) != *sum {
            return Err(damaged());
        }
        let (secret, rest) = body.split_first_chunk::<SECRET_LENGTH>().ok_or_else(damaged)?;
        let (root_sha256, rest) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
        let (&count, mut rest) = rest.split_first().ok_or_else(damaged)?;
        let mut addresses = Vec::new();
        for _ in 0..count {
            let (&length, tail) = rest.split_first().ok_or_else(damaged)?;
            let (address, tail) = tail.split_at_checked(usize::from(length)).ok_or_else(damaged)?;
            addresses.push(std::str::from_utf8(address).map_err(|_| damaged())?.to_owned());
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(damaged());
        }
        check_addresses(&addresses)?;
        Ok(Self { id, secret: JoinSecret(*secret), root_sha256: *root_sha256, addresses })
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), Refusal> {
    if !(1..=MAX_ADDRESSES).contains(&addresses.len()) {
        return Err(malformed("it carries no coordinator address, or more than 8"));
    }
    match addresses.iter().find(|address| !is_address(address)) {
        Some(wrong) => Err(malformed(&format!("its coordinator address {wrong:?} is not host:port"))),
        None => Ok(()),
    }
}

/// `host:port` or `[v6]:port`; the host is a name or an address, the port is not 0.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let numbered = port.parse::<u16>().is_ok_and(|port| port != 0) && port.bytes().all(|b| b.is_ascii_digit());
    let named = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')),
    };
    text.len() <= MAX_ADDRESS_LENGTH && numbered && named
}

fn checksum(id: &JoinTokenId, body: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let sum = crc32c::crc32c(PREFIX.as_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &id.0), body).to_be_bytes()
}

fn damaged() -> Refusal {
    malformed("its checksum does not match: it is misspelt or cut off")
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(Reason::TokenMalformed, format!("this is not a join token: {what}"))
        .hint("copy the whole line that `warren token create` printed, or make a new token")
}

#[cfg(test)]
mod tests;
