//! SPIFFE names: parsed once, compared cheaply, never taken apart as strings again.
//!
//! The rules are those of the SPIFFE-ID standard, section 2: lower-case trust domain of at most 255 bytes,
//! no percent-encoding, no empty, `.` or `..` segment, no trailing slash, segments of `[A-Za-z0-9._-]`, 2048
//! bytes in all.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::NodeId;

/// Longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const MAX_ID_LENGTH: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_LENGTH: usize = 255;
/// Longest namespace, workload, group, rule or port name, in bytes (a DNS label).
pub const MAX_NAME_LENGTH: usize = 63;

/// Why a name is not a SPIFFE ID, a trust domain or a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The scheme is not exactly `spiffe://`.
    #[error("a SPIFFE ID begins with spiffe:// in lower case")]
    Scheme,
    /// The trust domain is empty, too long, or has other than `[a-z0-9.-_]`.
    #[error("a trust domain is 1 to 255 of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// The path is empty, ends in a slash, or has an empty, `.`, `..` or ill-spelt segment.
    #[error("a SPIFFE ID's path has segments of A-Z, a-z, 0-9, '.', '-' and '_', none of them empty, '.' or '..'")]
    Path,
    /// Over 2048 bytes.
    #[error("a SPIFFE ID is at most 2048 bytes long")]
    TooLong,
    /// Not `<namespace>/<name>` with both parts of `[a-z][a-z0-9-]*`.
    #[error(
        "a workload is written <namespace>/<name>, each a lower-case letter followed by letters, digits and '-', at most 63"
    )]
    Workload,
}

/// The namespace of plain WireGuard devices: `peer/<name>` is a registered device, written `peer:<name>` in policy. No
/// node holds an identity of it.
pub const PEER_NAMESPACE: &str = "peer";

/// True for `[a-z][a-z0-9-]*` of at most 63 bytes: the form of every name that people choose.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=MAX_NAME_LENGTH).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// The name of an issuing authority, for example `bank.example`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The domain without a scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let spelt =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if !(1..=MAX_TRUST_DOMAIN_LENGTH).contains(&text.len()) || !spelt {
            return Err(InvalidName::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

/// A workload's short name, `<namespace>/<name>`: what people type for
/// `spiffe://<trust-domain>/ns/<namespace>/sa/<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadName {
    text: Arc<str>,
    slash: usize,
}

impl WorkloadName {
    /// Both parts are checked as [`is_name`] says.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidName> {
        if !is_name(namespace) || !is_name(name) {
            return Err(InvalidName::Workload);
        }
        Ok(Self { text: format!("{namespace}/{name}").into(), slash: namespace.len() })
    }

    /// The part before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text[..self.slash]
    }

    /// Whether it is a plain WireGuard device's: no node can hold it.
    #[must_use]
    pub fn is_peer(&self) -> bool {
        self.namespace() == PEER_NAMESPACE
    }

    /// The part behind the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// `<namespace>/<name>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The full identity in `trust_domain`.
    #[must_use]
    pub fn in_domain(&self, trust_domain: &TrustDomain) -> SpiffeId {
        SpiffeId { trust_domain: trust_domain.clone(), subject: Subject::Workload(self.clone()) }
    }
}

impl FromStr for WorkloadName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (namespace, name) = text.split_once('/').ok_or(InvalidName::Workload)?;
        Self::new(namespace, name)
    }
}

/// What a SPIFFE ID of a trust domain names. The forms cannot be mistaken for each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `/ns/<namespace>/sa/<name>`
    Workload(WorkloadName),
    /// `/node/<32 hexadecimal digits>`
    Node(NodeId),
    /// `/coordinator/<name>`
    Coordinator(Arc<str>),
    /// `/signer/<name>`: the key that signs manifests.
    Signer(Arc<str>),
    /// No path: the trust domain itself, as CA certificates carry it.
    TrustDomain,
    /// Any other valid path. Nothing of ours accepts it.
    Other(Arc<str>),
}

/// A checked SPIFFE ID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    subject: Subject,
}

impl SpiffeId {
    /// The ID of a node's own certificate.
    #[must_use]
    pub fn node(trust_domain: &TrustDomain, node: NodeId) -> Self {
        Self { trust_domain: trust_domain.clone(), subject: Subject::Node(node) }
    }

    /// The ID of a coordinator's certificate; `name` as [`is_name`] says.
    pub fn coordinator(trust_domain: &TrustDomain, name: &str) -> Result<Self, InvalidName> {
        let subject = Subject::Coordinator(checked_name(name)?);
        Ok(Self { trust_domain: trust_domain.clone(), subject })
    }

    /// The ID of a manifest signer's certificate; `name` as [`is_name`] says.
    pub fn signer(trust_domain: &TrustDomain, name: &str) -> Result<Self, InvalidName> {
        let subject = Subject::Signer(checked_name(name)?);
        Ok(Self { trust_domain: trust_domain.clone(), subject })
    }

    /// The ID without a path, which only CA certificates carry.
    #[must_use]
    pub fn authority(trust_domain: &TrustDomain) -> Self {
        Self { trust_domain: trust_domain.clone(), subject: Subject::TrustDomain }
    }

    /// Who vouches for this name.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What it names.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The workload, when it names one.
    #[must_use]
    pub fn workload(&self) -> Option<&WorkloadName> {
        match &self.subject {
            Subject::Workload(name) => Some(name),
            Subject::Node(_)
            | Subject::Coordinator(_)
            | Subject::Signer(_)
            | Subject::TrustDomain
            | Subject::Other(_) => None,
        }
    }
}

fn checked_name(name: &str) -> Result<Arc<str>, InvalidName> {
    if is_name(name) { Ok(name.into()) } else { Err(InvalidName::Path) }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() > MAX_ID_LENGTH {
            return Err(InvalidName::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(InvalidName::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = domain.parse()?;
        if path.is_empty() {
            return Ok(Self { trust_domain, subject: Subject::TrustDomain });
        }
        let mut segments = path[1..].split('/');
        let well_spelt = segments.clone().all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        });
        if !well_spelt {
            return Err(InvalidName::Path);
        }
        let parts = [segments.next(), segments.next(), segments.next(), segments.next(), segments.next()];
        let subject = match parts {
            [Some("ns"), Some(namespace), Some("sa"), Some(name), None] => {
                WorkloadName::new(namespace, name).map(Subject::Workload).ok()
            }
            [Some("node"), Some(id), None, None, None] => id.parse().map(Subject::Node).ok(),
            [Some("coordinator"), Some(name), None, None, None] => checked_name(name).map(Subject::Coordinator).ok(),
            [Some("signer"), Some(name), None, None, None] => checked_name(name).map(Subject::Signer).ok(),
            _ => None,
        };
        Ok(Self { trust_domain, subject: subject.unwrap_or_else(|| Subject::Other(path.into())) })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        match &self.subject {
            Subject::Workload(name) => write!(f, "/ns/{}/sa/{}", name.namespace(), name.name()),
            Subject::Node(id) => write!(f, "/node/{id}"),
            Subject::Coordinator(name) => write!(f, "/coordinator/{name}"),
            Subject::Signer(name) => write!(f, "/signer/{name}"),
            Subject::TrustDomain => Ok(()),
            Subject::Other(path) => f.write_str(path),
        }
    }
}

macro_rules! debug_and_serde_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

debug_and_serde_as_text!(TrustDomain, WorkloadName, SpiffeId);

#[cfg(test)]
mod tests;
