//! What one node is told about the mesh: the signed manifest, the objects it names, and peer records.
//!
//! Two kinds of knowledge travel together. *Objects* (trust bundle, policy documents, revocations, JWKS)
//! are named with their digests by a manifest that the coordinator signs for one node; a node holds exactly
//! the objects its manifest names, so that nothing, a deny least of all, can be withheld. *Peer records*
//! prove themselves by their certificates and may be refused singly. Everything here is pure: signatures
//! are checked by `warren_engine::identity`, files and links belong to the shells.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::reason::{Reason, Refusal};
use crate::{InstanceId, NodeId, Overlay, TrustDomain, UnixTime, WorkloadName, wire};

mod manifest;
mod revocation;
#[cfg(test)]
mod tests;

pub use manifest::{Generation, HEARTBEAT_TYPE, Heartbeat, MANIFEST_TYPE, Manifest, NamedDigest, signing_input};
pub use revocation::{Revocation, RevocationSet, RevocationTarget, Subject};

/// Most peers one node may be told of.
pub const MAX_PEERS: usize = 20_000;
/// Most objects in one node's scope.
pub const MAX_OBJECTS: usize = 10_000;
/// Most bytes of objects and records that one node may hold (64 MiB).
pub const MAX_SCOPE_BYTES: usize = 64 * 1024 * 1024;
/// Most certificates in one chain: leaf, issuing intermediate and room for a cross-signed one.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate (8 KiB).
pub const MAX_CERTIFICATE: usize = 8 * 1024;
/// Largest peer record (two chains; 32 KiB).
pub const MAX_RECORD: usize = 32 * 1024;
/// Most endpoint hints for one peer.
pub const MAX_HINTS: usize = 8;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// [`wire::TrustBundle`].
    TrustBundle,
    /// [`wire::PolicyDocument`].
    Policy,
    /// [`wire::RevocationList`].
    Revocations,
    /// A JWK set, as JSON.
    Jwks,
    /// [`wire::InstanceList`]: for which of its own instances the node is told policy and peers. An instance that is not
    /// named is one whose rules have not come yet.
    Instances,
    /// [`wire::WorkloadList`]: identities with instances that policy leaves undeclared in a declared namespace. A node is not told of
    /// every declared identity, so it must be told of these to deny them as the whole policy does.
    Undeclared,
}

impl ObjectKind {
    fn from_wire(raw: i32) -> Option<Self> {
        match wire::ObjectKind::try_from(raw).ok()? {
            wire::ObjectKind::Unspecified => None,
            wire::ObjectKind::TrustBundle => Some(Self::TrustBundle),
            wire::ObjectKind::Policy => Some(Self::Policy),
            wire::ObjectKind::Revocations => Some(Self::Revocations),
            wire::ObjectKind::Jwks => Some(Self::Jwks),
            wire::ObjectKind::Instances => Some(Self::Instances),
            wire::ObjectKind::Undeclared => Some(Self::Undeclared),
        }
    }

    /// As sent over the wire.
    #[must_use]
    pub const fn to_wire(self) -> wire::ObjectKind {
        match self {
            Self::TrustBundle => wire::ObjectKind::TrustBundle,
            Self::Policy => wire::ObjectKind::Policy,
            Self::Revocations => wire::ObjectKind::Revocations,
            Self::Jwks => wire::ObjectKind::Jwks,
            Self::Instances => wire::ObjectKind::Instances,
            Self::Undeclared => wire::ObjectKind::Undeclared,
        }
    }
}

/// An object's name within a scope: its kind and, for policy, `<Kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// What it is.
    pub kind: ObjectKind,
    /// Unique within the kind; empty where there is only one.
    pub name: String,
}

/// One object as it is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The bytes that the manifest's digest covers.
    pub content: Bytes,
    /// The object version a reader must understand ([`crate::READER_VERSION`]).
    pub min_reader: u32,
}

/// SHA-256 of an object's content, as manifests name it.
#[must_use]
pub fn object_digest(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// The content of an [`ObjectKind::Instances`] object.
#[must_use]
pub fn encode_instances(instances: impl IntoIterator<Item = InstanceId>) -> Bytes {
    let instance_ids = instances.into_iter().map(|instance| instance.as_bytes().to_vec()).collect();
    wire::InstanceList { instance_ids }.encode_to_vec().into()
}

/// Reads the content of an [`ObjectKind::Instances`] object.
pub fn decode_instances(content: &[u8]) -> Result<BTreeSet<InstanceId>, Refusal> {
    let list: wire::InstanceList = crate::codec::decode(content)?;
    list.instance_ids
        .iter()
        .map(|id| InstanceId::try_from(id.as_slice()))
        .collect::<Result<_, _>>()
        .map_err(|error| Refusal::new(Reason::FrameMalformed, format!("instances: {error}")))
}

/// The content of an [`ObjectKind::Undeclared`] object.
#[must_use]
pub fn encode_workloads<'a>(workloads: impl IntoIterator<Item = &'a WorkloadName>) -> Bytes {
    let workloads = workloads.into_iter().map(ToString::to_string).collect();
    wire::WorkloadList { workloads }.encode_to_vec().into()
}

/// Reads the content of an [`ObjectKind::Undeclared`] object.
pub fn decode_workloads(content: &[u8]) -> Result<BTreeSet<WorkloadName>, Refusal> {
    let list: wire::WorkloadList = crate::codec::decode(content)?;
    let names = list.workloads.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    names.map_err(|error| Refusal::new(Reason::FrameMalformed, format!("workloads: {error}")))
}

/// One peer's certificates as they were sent: sizes checked, nothing else believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// The instance that all its certificates must name.
    pub instance: InstanceId,
    /// One or two chains, newest first, each leaf first, DER.
    pub chains: Vec<Vec<Bytes>>,
}

impl PeerRecord {
    /// Checks counts and sizes, so that no later step meets more than it can afford.
    pub fn from_wire(raw: wire::PeerRecord) -> Result<Self, Refusal> {
        let instance = InstanceId::try_from(raw.instance_id.as_slice())
            .map_err(|error| Refusal::new(Reason::RecordTooLarge, error.to_string()))?;
        let refuse = |detail: String| Refusal::new(Reason::RecordTooLarge, format!("peer {instance}: {detail}"));
        if !(1..=2).contains(&raw.certificates.len()) {
            return Err(refuse(format!("{} certificates, expected one or two", raw.certificates.len())));
        }
        let mut total = 0;
        let mut chains = Vec::with_capacity(raw.certificates.len());
        for chain in raw.certificates {
            if !(1..=MAX_CHAIN).contains(&chain.certificates.len()) {
                return Err(refuse(format!("a chain of {}, at most {MAX_CHAIN}", chain.certificates.len())));
            }
            for certificate in &chain.certificates {
                total += certificate.len();
                if certificate.len() > MAX_CERTIFICATE || total > MAX_RECORD {
                    return Err(refuse(format!("certificates of {total} bytes or more, at most {MAX_RECORD}")));
                }
            }
            chains.push(chain.certificates.into_iter().map(Bytes::from).collect());
        }
        Ok(Self { instance, chains })
    }

    /// As sent over the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::PeerRecord {
        let chain = |chain: &Vec<Bytes>| wire::CertificateChain {
            certificates: chain.iter().map(|certificate| certificate.to_vec()).collect(),
        };
        wire::PeerRecord {
            instance_id: self.instance.as_bytes().to_vec(),
            certificates: self.chains.iter().map(chain).collect(),
        }
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for chain in &self.chains {
            for certificate in chain {
                hash.update((certificate.len() as u64).to_be_bytes());
                hash.update(certificate);
            }
            hash.update(u64::MAX.to_be_bytes());
        }
        hash.finalize().into()
    }

    fn size(&self) -> usize {
        self.chains.iter().flatten().map(Bytes::len).sum()
    }
}

/// Everything one node holds: the objects its manifest names, and the peer records it was sent.
///
/// The coordinator projects one per node and sends differences; the node applies them. Both compute the
/// same [`Scope::digest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The objects, by name.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// The records, by instance.
    pub peers: BTreeMap<InstanceId, PeerRecord>,
}

impl Scope {
    /// A digest over all names, contents and records: equal scopes, equal digests.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"warren scope v1\0");
        for (key, object) in &self.objects {
            hash.update([key.kind as u8]);
            hash.update((key.name.len() as u64).to_be_bytes());
            hash.update(key.name.as_bytes());
            hash.update(object_digest(&object.content));
        }
        for (instance, record) in &self.peers {
            hash.update(instance.as_bytes());
            hash.update(record.digest());
        }
        hash.finalize().into()
    }

    /// The digests that a manifest for this scope names, in order.
    #[must_use]
    pub fn object_digests(&self) -> Vec<wire::ObjectDigest> {
        let digest = |(key, object): (&ObjectKey, &Object)| wire::ObjectDigest {
            kind: key.kind.to_wire().into(),
            name: key.name.clone(),
            sha256: object_digest(&object.content).to_vec(),
            min_reader: object.min_reader,
        };
        self.objects.iter().map(digest).collect()
    }

    /// The parts of an update that turns `self` into `target`, without manifest and hints.
    #[must_use]
    pub fn difference(&self, target: &Self) -> Difference {
        let changed = |key: &ObjectKey, object: &Object| self.objects.get(key) != Some(object);
        let objects = target
            .objects
            .iter()
            .filter(|(key, object)| changed(key, object))
            .map(|(key, object)| wire::ScopeObject {
                kind: key.kind.to_wire().into(),
                name: key.name.clone(),
                content: object.content.clone(),
                min_reader: object.min_reader,
            })
            .collect();
        let peers = target
            .peers
            .iter()
            .filter(|(instance, record)| self.peers.get(instance) != Some(record))
            .map(|(_, record)| record.to_wire())
            .collect();
        let gone_objects = self.objects.keys().filter(|key| !target.objects.contains_key(key));
        let gone_peers = self.peers.keys().filter(|instance| !target.peers.contains_key(instance));
        let tombstones = gone_objects
            .map(|key| {
                wire::tombstone::Target::Object(wire::ObjectDigest {
                    kind: key.kind.to_wire().into(),
                    name: key.name.clone(),
                    ..Default::default()
                })
            })
            .chain(gone_peers.map(|instance| wire::tombstone::Target::Peer(instance.as_bytes().to_vec())))
            .map(|target| wire::Tombstone { target: Some(target) })
            .collect();
        Difference { objects, peers, tombstones }
    }

    /// The scope after `update`, whose parts were collected into one message.
    ///
    /// `self` must be the scope of `update.from_revision` (empty for 0); it stays as it is. The result is
    /// still to be held against the manifest with [`Scope::check_against`]. Records over their limits are
    /// left out and returned, never fatal: only they may be refused singly.
    pub fn apply(&self, update: wire::Update) -> Result<(Self, Vec<Refusal>), Refusal> {
        let mut next = if update.from_revision == 0 { Self::default() } else { self.clone() };
        for tombstone in update.tombstones {
            next.remove(tombstone)?;
        }
        for raw in update.objects {
            let key = object_key(raw.kind, raw.name)?;
            next.objects.insert(key, Object { content: raw.content, min_reader: raw.min_reader });
        }
        let mut refused = Vec::new();
        for raw in update.peers {
            let claimed = InstanceId::try_from(raw.instance_id.as_slice());
            match PeerRecord::from_wire(raw) {
                Ok(record) => {
                    next.peers.insert(record.instance, record);
                }
                Err(refusal) => {
                    // The old record must not outlive a newer one that cannot be read.
                    if let Ok(instance) = claimed {
                        next.peers.remove(&instance);
                    }
                    refused.push(refusal);
                }
            }
        }
        next.check_size()?;
        Ok((next, refused))
    }

    /// Whether the objects are exactly those that `manifest` names, readable by this build.
    pub fn check_against(&self, manifest: &Manifest) -> Result<(), Refusal> {
        for (key, digest) in &manifest.objects {
            let name = || format!("object {:?} {:?}", key.kind, key.name);
            let Some(object) = self.objects.get(key) else {
                let detail = format!("{} is named by the manifest and missing", name());
                return Err(Refusal::new(Reason::ManifestIncomplete, detail));
            };
            if object_digest(&object.content) != digest.sha256 {
                let detail = format!("{} differs from the digest in the manifest", name());
                return Err(Refusal::new(Reason::ManifestDigest, detail));
            }
            if digest.min_reader.max(object.min_reader) > crate::READER_VERSION {
                let detail = format!("{} needs reader version {}", name(), digest.min_reader.max(object.min_reader));
                return Err(Refusal::new(Reason::ReaderTooOld, detail).hint("upgrade warren on this node"));
            }
        }
        match self.objects.keys().find(|key| !manifest.objects.contains_key(key)) {
            Some(key) => {
                let detail = format!("object {:?} {:?} is not named by the manifest", key.kind, key.name);
                Err(Refusal::new(Reason::ManifestSurplus, detail))
            }
            None => Ok(()),
        }
    }

    fn remove(&mut self, tombstone: wire::Tombstone) -> Result<(), Refusal> {
        match tombstone.target {
            Some(wire::tombstone::Target::Peer(id)) => {
                let instance = InstanceId::try_from(id.as_slice())
                    .map_err(|error| Refusal::new(Reason::FrameMalformed, format!("tombstone.peer: {error}")))?;
                self.peers.remove(&instance);
                Ok(())
            }
            Some(wire::tombstone::Target::Object(object)) => {
                self.objects.remove(&object_key(object.kind, object.name)?);
                Ok(())
            }
            None => Err(Refusal::new(Reason::FrameMalformed, "tombstone.target is missing")),
        }
    }

    fn check_size(&self) -> Result<(), Refusal> {
        let bytes = self.objects.values().map(|object| object.content.len()).sum::<usize>()
            + self.peers.values().map(PeerRecord::size).sum::<usize>();
        if self.objects.len() > MAX_OBJECTS || self.peers.len() > MAX_PEERS || bytes > MAX_SCOPE_BYTES {
            let detail = format!("{} objects, {} peers, {bytes} bytes", self.objects.len(), self.peers.len());
            return Err(Refusal::new(Reason::ScopeExceeded, detail));
        }
        Ok(())
    }
}

/// What must be sent to turn one scope into another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Difference {
    /// New and changed objects.
    pub objects: Vec<wire::ScopeObject>,
    /// New and changed records.
    pub peers: Vec<wire::PeerRecord>,
    /// What is gone.
    pub tombstones: Vec<wire::Tombstone>,
}

impl Difference {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.peers.is_empty() && self.tombstones.is_empty()
    }
}

fn object_key(kind: i32, name: String) -> Result<ObjectKey, Refusal> {
    let Some(kind) = ObjectKind::from_wire(kind) else {
        return Err(Refusal::new(Reason::FrameMalformed, format!("object kind {kind} is not known"))
            .hint("upgrade warren on this node"));
    };
    if name.len() > 256 {
        return Err(Refusal::new(Reason::FrameMalformed, "object name is over 256 bytes"));
    }
    Ok(ObjectKey { kind, name })
}
