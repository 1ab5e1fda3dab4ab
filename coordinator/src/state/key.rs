//! The store's keys: one flat name per record, readable in a dump, parsed back without loss.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_proto::join_token::JoinTokenId;
use warren_proto::{InstanceId, NodeId};

use super::StateError;

/// Prefixes that [`super::State`] loads, in an order in which every record finds what it refers to.
pub(crate) const PREFIXES: &[&str] = &[
    "mesh",
    "trust",
    "token/",
    "attestor/",
    "registration/",
    "evidence/",
    "admin-token/",
    "node/",
    "revocation/",
    "address/",
    "key/",
    "instance/",
    "policy/text/",
    "policy/tree/",
    "policy/revision/",
    "policy/head",
];

/// Which kind of public key a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// X25519, of a tunnel; the name holds the key itself.
    Tunnel,
    /// ECDSA P-256, of a certificate; the name holds the SHA-256 of its SubjectPublicKeyInfo.
    Certificate,
}

/// The name of a public key in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    /// What `value` is.
    pub kind: KeyKind,
    /// The key, or its hash.
    pub value: [u8; 32],
}

/// A key of the store that belongs to the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// `mesh`
    Mesh,
    /// `trust`
    Trust,
    /// `token/<id>`
    Token(JoinTokenId),
    /// `attestor/<name>`
    Attestor(String),
    /// `registration/<name>`
    Registration(String),
    /// `evidence/<sha256>`
    Evidence([u8; 32]),
    /// `admin-token/<id>`
    AdminToken(String),
    /// `node/<id>`
    Node(NodeId),
    /// `instance/<id>`
    Instance(InstanceId),
    /// `address/<ip>`
    Address(IpAddr),
    /// `key/<kind>/<hex>`
    PublicKey(KeyName),
    /// `revocation/<id>`
    Revocation(String),
    /// `policy/text/<sha256>`
    PolicyText([u8; 32]),
    /// `policy/tree/<sha256>`
    PolicyTree([u8; 32]),
    /// `policy/revision/<number>`
    PolicyRevision(u64),
    /// `policy/head`
    PolicyHead,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Trust => f.write_str("trust"),
            Self::Token(id) => write!(f, "token/{id}"),
            Self::Attestor(name) => write!(f, "attestor/{name}"),
            Self::Registration(name) => write!(f, "registration/{name}"),
            Self::Evidence(digest) => write!(f, "evidence/{}", hex::encode(digest)),
            Self::AdminToken(id) => write!(f, "admin-token/{id}"),
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Instance(id) => write!(f, "instance/{id}"),
            Self::Address(address) => write!(f, "address/{address}"),
            Self::PublicKey(KeyName { kind: KeyKind::Tunnel, value }) => write!(f, "key/tunnel/{}", hex::encode(value)),
            Self::PublicKey(KeyName { kind: KeyKind::Certificate, value }) => {
                write!(f, "key/certificate/{}", hex::encode(value))
            }
            Self::Revocation(id) => write!(f, "revocation/{id}"),
            Self::PolicyText(digest) => write!(f, "policy/text/{}", hex::encode(digest)),
            Self::PolicyTree(digest) => write!(f, "policy/tree/{}", hex::encode(digest)),
            Self::PolicyRevision(number) => write!(f, "policy/revision/{number:020}"),
            Self::PolicyHead => f.write_str("policy/head"),
        }
    }
}

impl Key {
    /// As bytes, for the store.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }

    /// Reads a key of the store. `None` for one of another owner; an error for one of ours that is misspelt.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, StateError> {
        let Ok(text) = std::str::from_utf8(bytes) else { return Ok(None) };
        if !PREFIXES.iter().any(|prefix| text == *prefix || (prefix.ends_with('/') && text.starts_with(prefix))) {
            return Ok(None);
        }
        Self::parse_own(text).map(Some).ok_or_else(|| StateError::Key(text.to_owned()))
    }

    fn parse_own(text: &str) -> Option<Self> {
        match text {
            "mesh" => return Some(Self::Mesh),
            "trust" => return Some(Self::Trust),
            "policy/head" => return Some(Self::PolicyHead),
            _ => {}
        }
        let (first, rest) = text.split_once('/')?;
        match first {
            "token" => rest.parse().ok().map(Self::Token),
            "attestor" => Some(Self::Attestor(rest.to_owned())),
            "registration" => Some(Self::Registration(rest.to_owned())),
            "evidence" => digest(rest).map(Self::Evidence),
            "admin-token" => Some(Self::AdminToken(rest.to_owned())),
            "node" => rest.parse().ok().map(Self::Node),
            "instance" => rest.parse().ok().map(Self::Instance),
            "address" => rest.parse().ok().map(Self::Address),
            "revocation" => Some(Self::Revocation(rest.to_owned())),
            "key" => {
                let (kind, value) = rest.split_once('/')?;
                let kind = match kind {
                    "tunnel" => KeyKind::Tunnel,
                    "certificate" => KeyKind::Certificate,
                    _ => return None,
                };
                Some(Self::PublicKey(KeyName { kind, value: digest(value)? }))
            }
            "policy" => match rest.split_once('/')? {
                ("text", value) => digest(value).map(Self::PolicyText),
                ("revision", number) => number.parse().ok().map(Self::PolicyRevision),
                ("tree", value) => digest(value).map(Self::PolicyTree),
                _ => None,
            },
            _ => None,
        }
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let keys = [
            Key::Mesh,
            Key::Trust,
            Key::Token(JoinTokenId::from_bytes([1; 8])),
            Key::AdminToken("ab".into()),
            Key::Attestor("cluster-a".into()),
            Key::Registration("web".into()),
            Key::Evidence([8; 32]),
            Key::Node(NodeId::from_bytes([2; 16])),
            Key::Instance(InstanceId::from_bytes([3; 16])),
            Key::Address("fd00::1".parse().expect("address")),
            Key::Address("10.0.0.1".parse().expect("address")),
            Key::PublicKey(KeyName { kind: KeyKind::Tunnel, value: [4; 32] }),
            Key::PublicKey(KeyName { kind: KeyKind::Certificate, value: [5; 32] }),
            Key::Revocation("r1".into()),
            Key::PolicyText([6; 32]),
            Key::PolicyTree([7; 32]),
            Key::PolicyRevision(u64::MAX),
            Key::PolicyHead,
        ];
        for key in keys {
            assert_eq!(Key::parse(&key.to_bytes()).expect("ours"), Some(key.clone()), "{key}");
        }
    }

    #[test]
    fn foreign_keys_are_passed_over_and_misspelt_ones_refused() {
        for foreign in ["audit/00000001", "meshes", "policy/heads", "lease/x", ""] {
            assert_eq!(Key::parse(foreign.as_bytes()).expect("foreign"), None, "{foreign}");
        }
        for wrong in ["node/xyz", "address/10.0.0", "key/tunnel/00", "policy/tree/1", "evidence/1"] {
            assert!(Key::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
