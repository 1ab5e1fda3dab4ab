//! Revocations: what is no longer trusted, before its certificate ends.
//!
//! Keyed by issuer and serial, key, instance, node, identity or issuer, never by a certificate's hash: ECDSA
//! signatures are malleable, so a re-encoded certificate would slip past a hash.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{InstanceId, NodeId, Reason, Refusal, UnixTime, wire};
use crate::SpiffeId;

/// Most revocations in force at once.
const MAX_REVOCATIONS: usize = 100_000;

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationTarget {
    /// One certificate.
    Serial {
        /// The issuer's subject key identifier.
        issuer_key_id: Vec<u8>,
        /// The serial number's bytes, without leading zeros.
        serial: Vec<u8>,
    },
    /// One X25519 tunnel key, in whatever certificate.
    TunnelKey([u8; 32]),
    /// One instance.
    Instance(InstanceId),
    /// One node and every instance on it.
    Node(NodeId),
    /// An identity's certificates issued before a moment.
    Identity {
        /// The full SPIFFE ID.
        spiffe_id: SpiffeId,
        /// Certificates issued at or after this stay good.
        issued_before: UnixTime,
    },
    /// Everything an issuing key has signed.
    Issuer(Vec<u8>),
}

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Revocation {
    /// Names it in the API.
    pub id: String,
    /// What is revoked.
    pub target: RevocationTarget,
    /// When the administrator said so.
    pub revoked_at: UnixTime,
    /// When the last certificate it concerns has ended and it may be forgotten.
    pub expires_at: UnixTime,
    /// The administrator's words.
    pub reason: String,
}

impl Revocation {
    /// Checks every field.
    pub fn from_wire(raw: wire::Revocation) -> Result<Self, Refusal> {
        use wire::revocation::Target;
        let malformed =
            |field: &str, detail: String| Refusal::new(Reason::FrameMalformed, format!("revocation.{field}: {detail}"));
        let target = match raw.target.ok_or_else(|| malformed("target", "missing".to_owned()))? {
            Target::Serial(serial) => {
                if !(1..=64).contains(&serial.issuer_key_id.len()) || !(1..=32).contains(&serial.serial.len()) {
                    return Err(malformed("serial", "issuer key id or serial has an impossible length".to_owned()));
                }
                RevocationTarget::Serial { issuer_key_id: serial.issuer_key_id, serial: serial.serial }
            }
            Target::TunnelKey(key) => RevocationTarget::TunnelKey(
                key.as_slice().try_into().map_err(|_| malformed("tunnel_key", "not 32 bytes".to_owned()))?,
            ),
            Target::InstanceId(id) => RevocationTarget::Instance(
                InstanceId::try_from(id.as_slice()).map_err(|error| malformed("instance_id", error.to_string()))?,
            ),
            Target::NodeId(id) => RevocationTarget::Node(
                NodeId::try_from(id.as_slice()).map_err(|error| malformed("node_id", error.to_string()))?,
            ),
            Target::Identity(identity) => RevocationTarget::Identity {
                spiffe_id: identity.spiffe_id.parse().map_err(|error| malformed("identity", format!("{error}")))?,
                issued_before: UnixTime(identity.issued_before),
            },
            Target::IssuerKeyId(id) if (1..=64).contains(&id.len()) => RevocationTarget::Issuer(id),
            Target::IssuerKeyId(_) => return Err(malformed("issuer_key_id", "has an impossible length".to_owned())),
        };
        Ok(Self {
            id: raw.id,
            target,
            revoked_at: UnixTime(raw.revoked_at),
            expires_at: UnixTime(raw.expires_at),
            reason: raw.reason,
        })
    }

    /// As sent over the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::Revocation {
        use wire::revocation::{Identity, Serial, Target};
        let target = match &self.target {
            RevocationTarget::Serial { issuer_key_id, serial } => {
                Target::Serial(Serial { issuer_key_id: issuer_key_id.clone(), serial: serial.clone() })
            }
            RevocationTarget::TunnelKey(key) => Target::TunnelKey(key.to_vec()),
            RevocationTarget::Instance(id) => Target::InstanceId(id.as_bytes().to_vec()),
            RevocationTarget::Node(id) => Target::NodeId(id.as_bytes().to_vec()),
            RevocationTarget::Identity { spiffe_id, issued_before } => {
                Target::Identity(Identity { spiffe_id: spiffe_id.to_string(), issued_before: issued_before.0 })
            }
            RevocationTarget::Issuer(id) => Target::IssuerKeyId(id.clone()),
        };
        wire::Revocation {
            target: Some(target),
            revoked_at: self.revoked_at.0,
            expires_at: self.expires_at.0,
            reason: self.reason.clone(),
            id: self.id.clone(),
        }
    }
}

/// What admission asks of one certificate.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The issuer's subject key identifier.
    pub issuer_key_id: &'a [u8],
    /// The serial number's bytes, without leading zeros.
    pub serial: &'a [u8],
    /// The tunnel key it binds, if it is a tunnel certificate.
    pub tunnel_key: Option<&'a [u8; 32]>,
    /// The instance it names.
    pub instance: Option<InstanceId>,
    /// The node it names.
    pub node: Option<NodeId>,
    /// Its SPIFFE ID.
    pub spiffe_id: &'a SpiffeId,
    /// Its notBefore.
    pub issued_at: UnixTime,
}

/// All revocations in force, indexed for admission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationSet {
    all: Vec<Revocation>,
    targets: BTreeSet<RevocationTarget>,
    identities: BTreeMap<SpiffeId, UnixTime>,
}

impl RevocationSet {
    /// Indexes `all`; the order does not matter.
    #[must_use]
    pub fn new(all: Vec<Revocation>) -> Self {
        let mut set = Self::default();
        for revocation in &all {
            if let RevocationTarget::Identity { spiffe_id, issued_before } = &revocation.target {
                let cutoff = set.identities.entry(spiffe_id.clone()).or_default();
                *cutoff = (*cutoff).max(*issued_before);
            } else {
                set.targets.insert(revocation.target.clone());
            }
        }
        set.all = all;
        set
    }

    /// Reads the content of a [`super::ObjectKind::Revocations`] object. One bad entry refuses the whole:
    /// a revocation that cannot be read must not be overlooked.
    pub fn decode(content: &[u8]) -> Result<Self, Refusal> {
        let raw = wire::RevocationList::decode(content)
            .map_err(|error| Refusal::new(Reason::FrameMalformed, format!("revocations: {error}")))?;
        if raw.revocations.len() > MAX_REVOCATIONS {
            let detail = format!("{} revocations, at most {MAX_REVOCATIONS}", raw.revocations.len());
            return Err(Refusal::new(Reason::ScopeExceeded, detail));
        }
        let all = raw.revocations.into_iter().map(Revocation::from_wire).collect::<Result<_, _>>()?;
        Ok(Self::new(all))
    }

    /// The content of the object for these revocations.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::RevocationList { revocations: self.all.iter().map(Revocation::to_wire).collect() }.encode_to_vec()
    }

    /// Every revocation, as given.
    #[must_use]
    pub fn all(&self) -> &[Revocation] {
        &self.all
    }

    /// Whether some revocation here is not among `earlier`, or lasts longer than there.
    #[must_use]
    pub fn adds_to(&self, earlier: &Self) -> bool {
        let mut ends: BTreeMap<_, UnixTime> = BTreeMap::new();
        for old in &earlier.all {
            let end = ends.entry(&old.target).or_default();
            *end = (*end).max(old.expires_at);
        }
        self.all.iter().any(|revocation| ends.get(&revocation.target).is_none_or(|end| *end < revocation.expires_at))
    }

    /// This set with what `earlier` had and is missing here, as long as it has not expired: a revocation
    /// once seen stays until the objects it concerns have ended, whatever a later list says. A later list may put
    /// that end off and not bring it forward.
    #[must_use]
    pub fn keeping(&self, earlier: &Self, now: UnixTime) -> Self {
        let mut ends: BTreeMap<_, _> = BTreeMap::new();
        for old in &earlier.all {
            let end = ends.entry(&old.target).or_insert(old.expires_at);
            *end = (*end).max(old.expires_at);
        }
        let sent = self.all.iter().cloned().map(|mut revocation| {
            let seen = ends.get(&revocation.target).copied().unwrap_or_default();
            revocation.expires_at = revocation.expires_at.max(seen);
            revocation
        });
        let known: BTreeSet<_> = self.all.iter().map(|revocation| &revocation.target).collect();
        let kept = earlier.all.iter().filter(|old| old.expires_at > now && !known.contains(&old.target));
        Self::new(sent.chain(kept.cloned()).collect())
    }

    /// Which kind of revocation covers the certificate, if any.
    #[must_use]
    pub fn covers(&self, subject: Subject<'_>) -> Option<&'static str> {
        let listed = |target: RevocationTarget| self.targets.contains(&target);
        let serial =
            RevocationTarget::Serial { issuer_key_id: subject.issuer_key_id.to_vec(), serial: subject.serial.to_vec() };
        if listed(serial) {
            return Some("certificate");
        }
        if subject.tunnel_key.is_some_and(|key| listed(RevocationTarget::TunnelKey(*key))) {
            return Some("key");
        }
        if subject.instance.is_some_and(|id| listed(RevocationTarget::Instance(id))) {
            return Some("instance");
        }
        if subject.node.is_some_and(|id| listed(RevocationTarget::Node(id))) {
            return Some("node");
        }
        if listed(RevocationTarget::Issuer(subject.issuer_key_id.to_vec())) {
            return Some("issuer");
        }
        let cutoff = self.identities.get(subject.spiffe_id)?;
        (subject.issued_at < *cutoff).then_some("identity")
    }
}
