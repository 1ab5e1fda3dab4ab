//! The manifest and the heartbeat: what the coordinator signs for one node.

use prost::Message;

use super::{BTreeMap, NodeId, ObjectKey, Overlay, Reason, Refusal, TrustDomain, UnixTime, object_key, wire};

/// `type` of a manifest's body.
pub const MANIFEST_TYPE: &str = "warren-manifest/1";
/// `type` of a heartbeat's body.
pub const HEARTBEAT_TYPE: &str = "warren-heartbeat/1";

/// What the Ed25519 signature of a [`wire::SignedObject`] covers: a context that no other use of the key
/// shares, then the body as sent.
#[must_use]
pub fn signing_input(body: &[u8]) -> Vec<u8> {
    [b"warren signed object v1\0", body].concat()
}

/// The place of a manifest in history. A node never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Generation {
    /// Raised by a restore from backup.
    pub epoch: u64,
    /// The store's revision within the epoch.
    pub revision: u64,
}

/// A manifest's statement about one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedDigest {
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
    /// The object version a reader must understand.
    pub min_reader: u32,
}

/// What the coordinator states for one node: everything that must be complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// The only node it is for.
    pub node: NodeId,
    /// Its place in history.
    pub generation: Generation,
    /// When it was signed.
    pub issued_at: UnixTime,
    /// When it ceases to be acceptable as new; what was applied stays in force.
    pub not_after: UnixTime,
    /// The overlay's prefixes.
    pub overlay: Overlay,
    /// Age of the newest heartbeat past which no new peer is admitted, in seconds.
    pub stale_after_seconds: u32,
    /// Longest certificate lifetime that admission accepts, in seconds.
    pub max_certificate_lifetime_seconds: u32,
    /// The number of the policy revision in force, for people.
    pub policy_revision: u64,
    /// Exactly the objects that the node must hold.
    pub objects: BTreeMap<ObjectKey, NamedDigest>,
}

impl Manifest {
    /// Reads the body of a signed object whose signature was verified. Type, version and every field are
    /// checked; whether it is for this node, newer and in date is [`Manifest::check_for`]'s to say.
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let malformed = |detail: String| Refusal::new(Reason::FrameMalformed, format!("manifest: {detail}"));
        let raw = wire::Manifest::decode(body).map_err(|error| malformed(error.to_string()))?;
        if raw.r#type != MANIFEST_TYPE {
            return Err(malformed(format!("type is {:?}, expected {MANIFEST_TYPE:?}", raw.r#type)));
        }
        if raw.min_reader > crate::READER_VERSION {
            let detail = format!("the manifest needs reader version {}", raw.min_reader);
            return Err(Refusal::new(Reason::ReaderTooOld, detail).hint("upgrade warren on this node"));
        }
        if raw.epoch == 0 || raw.revision == 0 {
            return Err(malformed("epoch and revision begin at 1".to_owned()));
        }
        let mut objects = BTreeMap::new();
        for digest in raw.objects {
            let sha256 = digest
                .sha256
                .as_slice()
                .try_into()
                .map_err(|_| malformed(format!("digest of {:?} is not 32 bytes", digest.name)))?;
            let named = NamedDigest { sha256, min_reader: digest.min_reader };
            if let Some(_twice) = objects.insert(object_key(digest.kind, digest.name.clone())?, named) {
                return Err(malformed(format!("object {:?} is named twice", digest.name)));
            }
        }
        let overlay = raw.overlay.ok_or_else(|| malformed("overlay is missing".to_owned()))?;
        Ok(Self {
            trust_domain: raw.trust_domain.parse().map_err(|error| malformed(format!("trust_domain: {error}")))?,
            node: NodeId::try_from(raw.node_id.as_slice()).map_err(|error| malformed(error.to_string()))?,
            generation: Generation { epoch: raw.epoch, revision: raw.revision },
            issued_at: UnixTime(raw.issued_at),
            not_after: UnixTime(raw.not_after),
            overlay: Overlay::from_wire(&overlay)?,
            stale_after_seconds: raw.stale_after_seconds,
            max_certificate_lifetime_seconds: raw.max_certificate_lifetime_seconds,
            policy_revision: raw.policy_revision,
            objects,
        })
    }

    /// The body to sign, as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let objects = self
            .objects
            .iter()
            .map(|(key, named)| wire::ObjectDigest {
                kind: key.kind.to_wire().into(),
                name: key.name.clone(),
                sha256: named.sha256.to_vec(),
                min_reader: named.min_reader,
            })
            .collect();
        wire::Manifest {
            r#type: MANIFEST_TYPE.to_owned(),
            trust_domain: self.trust_domain.to_string(),
            node_id: self.node.as_bytes().to_vec(),
            epoch: self.generation.epoch,
            revision: self.generation.revision,
            issued_at: self.issued_at.0,
            not_after: self.not_after.0,
            min_reader: 1,
            overlay: Some(self.overlay.to_wire()),
            stale_after_seconds: self.stale_after_seconds,
            max_certificate_lifetime_seconds: self.max_certificate_lifetime_seconds,
            objects,
            policy_revision: self.policy_revision,
        }
        .encode_to_vec()
    }

    /// Whether this node may take it: its mesh, its id, not behind `floor` (the highest generation ever
    /// applied), and in date. The generation in force may be taken again, after a restart for example.
    pub fn check_for(
        &self,
        trust_domain: &TrustDomain,
        node: NodeId,
        floor: Generation,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        if self.trust_domain != *trust_domain || self.node != node {
            let detail = format!("the manifest is for node {} of {}", self.node, self.trust_domain);
            return Err(Refusal::new(Reason::ManifestWrongNode, detail));
        }
        if self.generation < floor {
            let (has, was) = (self.generation, floor);
            let detail = format!("revision {}.{} is behind {}.{}", has.epoch, has.revision, was.epoch, was.revision);
            return Err(Refusal::new(Reason::ManifestRolledBack, detail));
        }
        if now > self.not_after {
            let detail = format!("the manifest ended {}; it is now {now}", self.not_after);
            return Err(Refusal::new(Reason::ManifestExpired, detail).hint("compare this host's clock"));
        }
        Ok(())
    }
}

/// The coordinator's word that the generation is still the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// The only node it is for.
    pub node: NodeId,
    /// What that node should have applied.
    pub generation: Generation,
    /// When it was signed.
    pub issued_at: UnixTime,
}

impl Heartbeat {
    /// Reads the body of a signed object whose signature was verified.
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let malformed = |detail: String| Refusal::new(Reason::FrameMalformed, format!("heartbeat: {detail}"));
        let raw = wire::Heartbeat::decode(body).map_err(|error| malformed(error.to_string()))?;
        if raw.r#type != HEARTBEAT_TYPE {
            return Err(malformed(format!("type is {:?}, expected {HEARTBEAT_TYPE:?}", raw.r#type)));
        }
        Ok(Self {
            trust_domain: raw.trust_domain.parse().map_err(|error| malformed(format!("trust_domain: {error}")))?,
            node: NodeId::try_from(raw.node_id.as_slice()).map_err(|error| malformed(error.to_string()))?,
            generation: Generation { epoch: raw.epoch, revision: raw.revision },
            issued_at: UnixTime(raw.issued_at),
        })
    }

    /// The body to sign, as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::Heartbeat {
            r#type: HEARTBEAT_TYPE.to_owned(),
            trust_domain: self.trust_domain.to_string(),
            node_id: self.node.as_bytes().to_vec(),
            epoch: self.generation.epoch,
            revision: self.generation.revision,
            issued_at: self.issued_at.0,
        }
        .encode_to_vec()
    }
}
