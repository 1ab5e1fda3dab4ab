//! The records of the store, one type per key prefix. Times are seconds since 1970.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use warren_proto::admin::{AttestorSettings, Role, Selector};
use warren_proto::certificate::CLOCK_SKEW;
use warren_proto::join_token::JoinTokenId;
use warren_proto::peer_map::{Revocation, RevocationSet, Subject};
use warren_proto::policy::{Kind, PolicyObject};
use warren_proto::{InstanceId, NodeId, Overlay, OverlayAddresses, SpiffeId, TrustDomain, UnixTime, WorkloadName};

pub use crate::ca::rotation::{TrustRoots, TrustedRoot};

/// A type that is kept under a key of its own.
pub trait Record: Serialize + DeserializeOwned {
    /// Raised when an older coordinator could no longer read what is written.
    const VERSION: u32 = 1;
}

macro_rules! records {
    ($($name:ident),*) => { $(impl Record for $name {})* };
}

records!(
    MeshSettings,
    TrustRoots,
    JoinTokenRecord,
    Attestor,
    Registration,
    EvidenceUse,
    AdminToken,
    Instance,
    AddressLease,
    KeyUse,
    Revocation,
    StoredPolicy,
    PolicyTree,
    PolicyRevision,
    PolicyHead
);

impl Record for Node {
    /// 2: a node may have enrolled without a join token.
    const VERSION: u32 = 2;
}

/// 32 bytes, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex32(pub [u8; 32]);

impl fmt::Debug for Hex32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Hex32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Hex32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| D::Error::custom("expected 64 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

/// A certificate's DER, written as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Der(pub Bytes);

impl fmt::Debug for Der {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Der({} bytes)", self.0.len())
    }
}

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(|bytes| Self(bytes.into())).map_err(|_| D::Error::custom("expected base64"))
    }
}

/// What holds for the whole mesh. Lifetimes are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshSettings {
    /// The name that every identity begins with.
    pub trust_domain: TrustDomain,
    /// The prefixes that instances' addresses come from.
    pub overlay: Overlay,
    /// Lifetime of a tunnel certificate; 24 hours unless set.
    pub tunnel_certificate_lifetime: u32,
    /// Lifetime of a node's own certificate.
    pub node_certificate_lifetime: u32,
    /// Longest lifetime that nodes admit; also how long a released address is quarantined.
    pub max_certificate_lifetime: u32,
    /// Age of the newest heartbeat past which a node admits no new peer.
    pub stale_after: u32,
}

/// A join token as it is kept: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRecord {
    /// Its public name.
    pub id: JoinTokenId,
    /// SHA-256 of the secret.
    pub secret_sha256: Hex32,
    /// When it was made.
    pub created_at: UnixTime,
    /// When it ceases to be accepted.
    pub expires_at: UnixTime,
    /// How often it may be used in all.
    pub uses: u32,
    /// How often it has been used; a retry by the same key is no second use.
    pub used: u32,
    /// The identities that a node enrolled with it may hold.
    pub workloads: Vec<WorkloadName>,
    /// Who made it.
    pub created_by: String,
    /// The maker's words.
    pub note: String,
}

impl JoinTokenRecord {
    /// How often it may still be used.
    #[must_use]
    pub fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(self.used)
    }
}

/// Who may vouch for machines, and by what its evidence is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestor {
    /// A node that enrols says it.
    pub name: String,
    /// Its kind, issuer and keys.
    pub settings: AttestorSettings,
    /// When it was last set.
    pub changed_at: UnixTime,
    /// Who set it.
    pub changed_by: String,
    /// The setter's words.
    pub note: String,
}

/// Which evidence may hold which identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// What people call it.
    pub name: String,
    /// The attestor whose word is taken.
    pub attestor: String,
    /// What the evidence must say, all of it.
    pub selectors: Vec<Selector>,
    /// The identities that a node with such evidence may hold.
    pub workloads: Vec<WorkloadName>,
    /// When it was made.
    pub created_at: UnixTime,
    /// Who made it.
    pub created_by: String,
    /// The maker's words.
    pub note: String,
}

/// Evidence that made a node: it makes no second one while the node is registered or the evidence could be shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceUse {
    /// The node that it made.
    pub node: NodeId,
    /// Until when the very same evidence could be shown again.
    pub until: UnixTime,
}

/// What vouched for a node that enrolled without a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAttestation {
    /// The attestor's name.
    pub attestor: String,
    /// The registration that accepted the evidence.
    pub registration: String,
    /// Whom the evidence was about, in the words of who made it.
    pub subject: String,
    /// The name under which the evidence's use is kept.
    pub evidence: Hex32,
}

/// An administrator's token as it is kept: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminToken {
    /// Its public name: 16 hexadecimal digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// SHA-256 of the secret.
    pub secret_sha256: Hex32,
    /// What it may do.
    pub role: Role,
    /// The namespaces it is confined to; empty for all.
    pub namespaces: Vec<String>,
    /// When it was made.
    pub created_at: UnixTime,
    /// When it ceases to be accepted.
    pub expires_at: UnixTime,
    /// Who made it.
    pub created_by: String,
    /// Whether it is the one-time token of `warren-coordinator init`, which can do one thing: make the first
    /// administrator's token, once.
    pub first_run: bool,
}

/// A machine that enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its id, in its certificate.
    pub id: NodeId,
    /// What its operator calls it; shown, never trusted.
    pub host_name: String,
    /// The identities it may hold.
    pub workloads: Vec<WorkloadName>,
    /// When it enrolled.
    pub enrolled_at: UnixTime,
    /// The address it enrolled from.
    pub enrolled_from: IpAddr,
    /// The join token it enrolled with, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<JoinTokenId>,
    /// What vouched for it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<NodeAttestation>,
    /// Its newest certificate.
    pub certificate: NodeCertificate,
    /// The one with which it asked for that, until it has shown the newest: the answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_with: Option<NodeCertificateKey>,
    /// The one that was the newest before, where that is another, for as long: a link outlives a renewal, so the node may hold
    /// a later certificate than the one that it asks with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<NodeCertificateKey>,
    /// When it was revoked; it stays listed until it is forgotten.
    pub revoked_at: Option<UnixTime>,
}

/// What is remembered of a node's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCertificate {
    /// Serial number, hexadecimal.
    #[serde(with = "hex_bytes")]
    pub serial: Vec<u8>,
    /// Subject key identifier of its issuer.
    #[serde(with = "hex_bytes")]
    pub issuer_key_id: Vec<u8>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_sha256: Hex32,
    /// Its notBefore.
    pub not_before: UnixTime,
    /// Its notAfter.
    pub not_after: UnixTime,
}

impl NodeCertificate {
    /// As the node shows it at its link.
    #[must_use]
    pub fn as_shown(&self) -> NodeCertificateKey {
        NodeCertificateKey { key_sha256: self.key_sha256, not_after: self.not_after }
    }
}

/// A node's certificate, as far as it takes to renew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCertificateKey {
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_sha256: Hex32,
    /// Its notAfter.
    pub not_after: UnixTime,
}

/// One running copy of a workload on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its id, in its certificates.
    pub id: InstanceId,
    /// Where it runs. A plain device runs on no node of ours: it stands for itself, under its own id.
    pub node: NodeId,
    /// What it is.
    pub workload: WorkloadName,
    /// Its overlay addresses, for as long as it is registered.
    pub addresses: OverlayAddresses,
    /// When it was first issued a certificate.
    pub registered_at: UnixTime,
    /// Its certificates, newest first; at most two are live, which is what rotation needs.
    pub certificates: Vec<TunnelCertificate>,
    /// When it was revoked.
    pub revoked_at: Option<UnixTime>,
    /// Set for a plain WireGuard device: as long as it stands and is not revoked, its certificate is renewed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// What an administrator registered of a plain WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its X25519 public key.
    pub key: Hex32,
    /// Where it listens, where nodes are to reach it by themselves.
    pub endpoint: Option<SocketAddr>,
    /// Who registered it.
    pub registered_by: String,
    /// What it is.
    pub note: String,
}

impl Instance {
    /// The device, where it is one and still registered.
    #[must_use]
    pub fn standing_device(&self) -> Option<&Device> {
        self.device.as_ref().filter(|_| self.revoked_at.is_none())
    }

    /// Which kind of revocation covers `certificate`, if any.
    #[must_use]
    pub fn revoked_by(
        &self,
        certificate: &TunnelCertificate,
        trust_domain: &TrustDomain,
        revoked: &RevocationSet,
    ) -> Option<&'static str> {
        let spiffe_id: SpiffeId = self.workload.in_domain(trust_domain);
        revoked.covers(Subject {
            issuer_key_id: &certificate.issuer_key_id,
            serial: &certificate.serial,
            tunnel_key: Some(&certificate.tunnel_key.0),
            instance: Some(self.id),
            node: Some(self.node),
            spiffe_id: &spiffe_id,
            // Issuers date notBefore back by the skew that they allow.
            issued_at: certificate.not_before.plus(CLOCK_SKEW),
        })
    }

    /// When its last certificate ends.
    #[must_use]
    pub fn valid_until(&self) -> UnixTime {
        self.certificates.iter().map(|certificate| certificate.not_after).max().unwrap_or_default()
    }
}

/// A tunnel certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelCertificate {
    /// Leaf first, the root left out.
    pub chain: Vec<Der>,
    /// Serial number, without leading zeros.
    #[serde(with = "hex_bytes")]
    pub serial: Vec<u8>,
    /// Subject key identifier of its issuer.
    #[serde(with = "hex_bytes")]
    pub issuer_key_id: Vec<u8>,
    /// The X25519 key it binds.
    pub tunnel_key: Hex32,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_sha256: Hex32,
    /// Its notBefore.
    pub not_before: UnixTime,
    /// Its notAfter.
    pub not_after: UnixTime,
}

/// Whose an overlay address is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressLease {
    /// The instance that has it, or had it.
    pub instance: InstanceId,
    /// Set when it was given back: it goes to nobody else before, so that no certificate alive names it.
    pub quarantined_until: Option<UnixTime>,
}

/// Whose a public key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyOwner {
    /// A node's own certificate.
    Node(NodeId),
    /// An instance's tunnel certificate.
    Instance(InstanceId),
    /// An X.509-SVID that this node hands to a workload of its host.
    Svid(NodeId),
}

/// A public key that is in use, or was: it is never bound to a second owner while anything remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyUse {
    /// Whose it is.
    pub owner: KeyOwner,
    /// When the last certificate with it ends.
    pub until: UnixTime,
}

/// A policy object as its author wrote it, with the Set that owns it. Named by the SHA-256 of its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPolicy {
    /// The Set.
    pub set: String,
    /// Kind, name, file, line and text.
    pub object: PolicyObject,
}

/// The name of a policy object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    /// Its kind.
    pub kind: Kind,
    /// Unique within the kind.
    pub name: String,
}

impl PolicyRef {
    /// The name of `object`.
    #[must_use]
    pub fn of(object: &PolicyObject) -> Self {
        Self { kind: object.kind, name: object.name.clone() }
    }
}

/// A part of the list of a revision's objects. Named by the SHA-256 of its record, so that no two revisions, even such as
/// were made at the same time, can disturb each other's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTree {
    /// Digests of [`StoredPolicy`] records.
    pub objects: Vec<Hex32>,
}

/// One revision of policy, for the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRevision {
    /// Counted from 1.
    pub number: u64,
    /// When it came into force.
    pub at: UnixTime,
    /// Who made it.
    pub who: String,
    /// Their words.
    pub why: String,
    /// The Set that was applied, or the revision that was gone back to.
    pub cause: PolicyCause,
    /// How many objects it added, changed and removed.
    pub counts: PolicyCounts,
    /// The first twenty of those by name.
    pub added: Vec<PolicyRef>,
    /// See `added`.
    pub changed: Vec<PolicyRef>,
    /// See `added`.
    pub removed: Vec<PolicyRef>,
    /// Digests of the [`PolicyTree`] records that list its objects.
    pub trees: Vec<Hex32>,
}

/// What a revision came of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyCause {
    /// A Set was applied.
    Apply(String),
    /// An earlier revision was put back in force.
    Rollback(u64),
}

/// How much a revision changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyCounts {
    /// Objects that were not there before.
    pub added: usize,
    /// Objects whose text, place or Set is another.
    pub changed: usize,
    /// Objects that are gone.
    pub removed: usize,
    /// Objects in all.
    pub total: usize,
}

/// Which revision is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyHead {
    /// The revision.
    pub number: u64,
    /// Digests of the [`PolicyTree`] records that list its objects.
    pub trees: Vec<Hex32>,
}

mod hex_bytes {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(|_| D::Error::custom("expected hexadecimal digits"))
    }
}
