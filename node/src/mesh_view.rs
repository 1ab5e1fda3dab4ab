//! What this node knows of the mesh, as one immutable snapshot that everyone else watches.
//!
//! Two steps, both pure. [`Knowledge::accept`] turns an update and its signed manifest into knowledge: complete and
//! verified, or refused whole. [`Knowledge::admit`] judges the peer records against it, singly. The same two functions judge
//! what comes over the link and what lay on this host's disk.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use warren_engine::identity::{Admission, LocalView, RefusedRecord, VerifiedPeer, verify_all, verify_signed_object};
use warren_proto::peer_map::{
    Generation, MAX_HINTS, Manifest, ObjectKey, ObjectKind, RevocationSet, Scope, decode_instances, decode_workloads,
    object_digest,
};
use warren_proto::policy::{CompiledPolicy, Diagnostic, Documents, Mode, Openings};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{
    InstanceId, NodeId, OverlayAddresses, READER_VERSION, TrustBundle, TrustDomain, UnixTime, WorkloadName, wire,
};

/// Most diagnostics that a refused policy is reported with; the first names the cause.
const MAX_DIAGNOSTICS: usize = 3;

/// Everything a manifest stands for: verified, complete and compiled.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// What the coordinator stated.
    pub manifest: Manifest,
    /// The same as signed, to be kept on disk.
    pub signed: wire::SignedObject,
    /// The objects and records.
    pub scope: Scope,
    /// The roots from now on.
    pub bundle: TrustBundle,
    /// What is no longer trusted, with what was ever seen and has not expired.
    pub revocations: RevocationSet,
    /// The policies of this node's services, and those above them.
    pub policy: Arc<CompiledPolicy>,
    /// This node's instances that policy and peers were chosen for. The rules of any other have not come yet.
    pub covers: BTreeSet<InstanceId>,
}

/// What an update is held against.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance<'a> {
    /// This node's mesh.
    pub trust_domain: &'a TrustDomain,
    /// This node.
    pub node: NodeId,
    /// The roots that the manifest's signer must chain to.
    pub bundle: &'a TrustBundle,
    /// The highest generation ever applied.
    pub floor: Generation,
    /// Revocations seen before.
    pub seen: &'a RevocationSet,
    /// When the signature must hold and the manifest be in date.
    pub now: UnixTime,
}

/// An update that is not applied.
#[derive(Debug)]
pub struct RefusedUpdate {
    /// Why.
    pub refusal: Refusal,
    /// The revocations in it that a verified manifest for this node, not behind what it applied, names by digest: they
    /// hold all the same. Empty when it is the manifest that must not be believed.
    pub revocations: Box<RevocationSet>,
}

impl From<Refusal> for RefusedUpdate {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, revocations: Box::default() }
    }
}

impl Knowledge {
    /// Judges `update`, whose parts were collected into one, as a successor of `current`.
    ///
    /// Order: the signature, by the roots held before it · type, mesh, node, rollback, date · the base it builds on ·
    /// every object present with its digest, none besides, all readable · bundle, revocations, policy, each whole ·
    /// whether this build enforces every term of the policy. Records over their limits are returned beside it. From the
    /// base on, a refusal carries the revocations that the manifest states.
    pub fn accept(
        current: Option<&Self>,
        mut update: wire::Update,
        against: Acceptance<'_>,
    ) -> Result<(Self, Vec<Refusal>), RefusedUpdate> {
        let signed = update
            .manifest
            .take()
            .ok_or_else(|| Refusal::new(Reason::ManifestIncomplete, "update.manifest is missing in the last part"))?;
        let body = verify_signed_object(&signed, against.bundle, against.now)?;
        let manifest = Manifest::decode(body.as_bytes())?;
        manifest.check_for(against.trust_domain, against.node, against.floor, against.now)?;
        let of_revocations = |object: &&wire::ScopeObject| object.kind == i32::from(wire::ObjectKind::Revocations);
        let lists: Vec<_> = update.objects.iter().filter(of_revocations).cloned().collect();
        Self::complete(current, update, (signed, &manifest), against)
            .map_err(|refusal| RefusedUpdate { refusal, revocations: Box::new(stated(&lists, &manifest)) })
    }

    fn complete(
        current: Option<&Self>,
        update: wire::Update,
        (signed, manifest): (wire::SignedObject, &Manifest),
        against: Acceptance<'_>,
    ) -> Result<(Self, Vec<Refusal>), Refusal> {
        let empty = Scope::default();
        let base = match current {
            _ if update.from_revision == 0 => &empty,
            Some(held) if generation_of(&update) == held.manifest.generation => &held.scope,
            _ => {
                let detail = "update.from_revision is not the one this node holds";
                return Err(Refusal::new(Reason::FrameUnexpected, detail));
            }
        };
        let (scope, refused) = base.apply(update)?;
        scope.check_against(manifest)?;
        let bundle = read_bundle(&scope, against.trust_domain)?;
        let revocations = read_revocations(&scope)?.keeping(against.seen, against.now);
        let undeclared = read_undeclared(&scope)?;
        let policy = Arc::new(compile(&scope, against.trust_domain)?.excluding(undeclared));
        let covers = read_instances(&scope)?;
        let manifest = manifest.clone();
        Ok((Self { manifest, signed, scope, bundle, revocations, policy, covers }, refused))
    }

    /// Judges every record of the scope at this moment.
    #[must_use]
    pub fn admit(
        &self,
        local: &Local,
        fresh_until: UnixTime,
        admitted: &HashSet<InstanceId>,
        now: UnixTime,
    ) -> Admission {
        let linked =
            |peer: &WorkloadName| local.workloads.iter().any(|own| self.policy.linked_either_way(own, peer, now));
        let view = LocalView {
            overlay: &self.manifest.overlay,
            max_certificate_lifetime: Duration::from_secs(self.manifest.max_certificate_lifetime_seconds.into()),
            local_addresses: &local.addresses,
            local_keys: &local.keys,
            revocations: &self.revocations,
            fresh_until,
            admitted: &|instance| admitted.contains(&instance),
            linked: &linked,
        };
        verify_all(self.scope.peers.values(), &self.bundle, &view, now)
    }

    /// What this node's own instances may open towards each other. Their packets pass no tunnel and thereby no engine: the host
    /// refuses everything else between them. One that is revoked, or whose rules have not come, opens nothing and is open
    /// to none.
    #[must_use]
    pub fn openings(&self, own: &[OwnInstance], now: UnixTime) -> Vec<LocalOpenings> {
        let good: Vec<_> = own.iter().filter(|one| !one.revoked && self.covers.contains(&one.instance)).collect();
        let pairs = good.iter().flat_map(|from| good.iter().map(move |to| (from, to)));
        let openings = pairs.filter(|(from, to)| from.workload != to.workload).map(|(from, to)| LocalOpenings {
            from: from.workload.clone(),
            to: to.workload.clone(),
            allows: self.policy.openings(&from.workload, &to.workload, now),
        });
        openings.filter(|opening| !opening.allows.is_empty()).collect()
    }

    /// The whole of it as one update from nothing: what is kept on disk.
    #[must_use]
    pub fn to_update(&self) -> wire::Update {
        let difference = Scope::default().difference(&self.scope);
        wire::Update {
            manifest: Some(self.signed.clone()),
            objects: difference.objects,
            peers: difference.peers,
            ..Default::default()
        }
    }
}

/// What this node itself is, for admission: a record may not claim it.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// The identities of this host.
    pub workloads: BTreeSet<WorkloadName>,
    /// Their overlay addresses.
    pub addresses: HashSet<IpAddr>,
    /// Their public tunnel keys.
    pub keys: HashSet<[u8; 32]>,
}

/// One of this node's instances, as others may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnInstance {
    /// Its id.
    pub instance: InstanceId,
    /// Whose copy it is.
    pub workload: WorkloadName,
    /// Its addresses.
    pub addresses: OverlayAddresses,
    /// Its newest X25519 public key.
    pub tunnel_key: [u8; 32],
    /// Begin and end of its newest certificate.
    pub validity: (UnixTime, UnixTime),
    /// Each of its certificates is revoked: no peer takes anything from it.
    pub revoked: bool,
}

/// What one of this node's instances may open towards another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOpenings {
    /// Who opens.
    pub from: WorkloadName,
    /// Towards whom.
    pub to: WorkloadName,
    /// What; never nothing.
    pub allows: Openings,
}

/// The snapshot that everyone watches.
#[derive(Debug, Clone)]
pub struct MeshView {
    /// Rises with every snapshot that the engine is told.
    pub generation: u64,
    /// What governs.
    pub knowledge: Arc<Knowledge>,
    /// This node's instances whose certificates hold, in the configuration's order with the rest first.
    pub own: Vec<OwnInstance>,
    /// What they may open towards each other.
    pub openings: Arc<[LocalOpenings]>,
    /// Admitted peers, of one instance the newer certificate first.
    pub peers: Arc<[VerifiedPeer]>,
    /// Records not admitted, with why.
    pub refused: Arc<[RefusedRecord]>,
    /// Where peers may be reached, unsigned.
    pub endpoints: HashMap<InstanceId, Vec<SocketAddr>>,
    /// When the newest heartbeat or manifest was signed.
    pub heard: UnixTime,
    /// Past this no new peer is admitted.
    pub fresh_until: UnixTime,
}

impl MeshView {
    /// Whether the rules of one of this node's own instances have not come yet: what it was told was chosen before the
    /// coordinator knew the instance. Everything is refused to it meanwhile, and for no rule's sake.
    #[must_use]
    pub fn awaits_rules(&self) -> bool {
        if self.own.is_empty() { self.knowledge.covers.is_empty() } else { self.uncovered().next().is_some() }
    }

    /// This node's own instances whose rules have not come yet.
    pub fn uncovered(&self) -> impl Iterator<Item = &OwnInstance> {
        self.own.iter().filter(|own| !self.knowledge.covers.contains(&own.instance))
    }

    /// When the first certificate that this node depends on ends: how long the mesh survives without its coordinator.
    #[must_use]
    pub fn survives_until(&self) -> Option<UnixTime> {
        let own = self.own.iter().map(|own| own.validity.1);
        // A peer with two certificates lives as long as the later one.
        let mut peers: HashMap<InstanceId, UnixTime> = HashMap::new();
        for peer in self.peers.iter() {
            let end = peers.entry(peer.instance()).or_default();
            *end = (*end).max(peer.valid_until());
        }
        own.chain(peers.into_values()).min()
    }

    /// Who has this overlay address: one of this node's own instances, or an admitted peer.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<Holder<'_>> {
        if let Some(own) = self.own.iter().find(|own| own.addresses.iter().any(|its| its == address)) {
            return Some(Holder::Own(own));
        }
        self.peers.iter().find(|peer| peer.addresses().iter().any(|its| its == address)).map(Holder::Peer)
    }
}

/// Who has an address.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// This node.
    Own(&'a OwnInstance),
    /// A peer.
    Peer(&'a VerifiedPeer),
}

/// Reads endpoint hints; what does not parse is left out, for they are nobody's word.
#[must_use]
pub fn read_hints(raw: &[wire::PeerHint]) -> HashMap<InstanceId, Vec<SocketAddr>> {
    raw.iter()
        .filter_map(|hint| {
            let instance = InstanceId::try_from(hint.instance_id.as_slice()).ok()?;
            let endpoints = hint.endpoints.iter().take(MAX_HINTS).filter_map(|text| text.parse().ok());
            Some((instance, endpoints.filter(is_endpoint).collect()))
        })
        .collect()
}

/// Whether a datagram could be meant for it: a hint must not make this node send to itself, to a group or to everyone.
fn is_endpoint(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let everyone = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !everyone
}

fn generation_of(update: &wire::Update) -> Generation {
    Generation { epoch: update.from_epoch, revision: update.from_revision }
}

fn read_bundle(scope: &Scope, trust_domain: &TrustDomain) -> Result<TrustBundle, Refusal> {
    let mut bundles = scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::TrustBundle);
    let (Some((_, object)), None) = (bundles.next(), bundles.next()) else {
        return Err(Refusal::new(Reason::ManifestIncomplete, "the manifest names not exactly one trust bundle"));
    };
    let bundle = TrustBundle::from_wire(&warren_proto::codec::decode(&object.content)?)?;
    if bundle.trust_domain() != trust_domain {
        let detail = format!("the trust bundle is that of {}", bundle.trust_domain());
        return Err(Refusal::new(Reason::WrongTrustDomain, detail));
    }
    Ok(bundle)
}

fn read_revocations(scope: &Scope) -> Result<RevocationSet, Refusal> {
    let mut all = Vec::new();
    for (key, object) in &scope.objects {
        if key.kind == ObjectKind::Revocations {
            all.extend_from_slice(RevocationSet::decode(&object.content)?.all());
        }
    }
    Ok(RevocationSet::new(all))
}

/// What of `lists` is exactly as the manifest names it and can be read here.
fn stated(lists: &[wire::ScopeObject], manifest: &Manifest) -> RevocationSet {
    let mut all = Vec::new();
    for list in lists {
        let key = ObjectKey { kind: ObjectKind::Revocations, name: list.name.clone() };
        let as_named = manifest.objects.get(&key).is_some_and(|named| {
            named.sha256 == object_digest(&list.content) && named.min_reader.max(list.min_reader) <= READER_VERSION
        });
        if let Some(set) = as_named.then(|| RevocationSet::decode(&list.content).ok()).flatten() {
            all.extend_from_slice(set.all());
        }
    }
    RevocationSet::new(all)
}

fn read_undeclared(scope: &Scope) -> Result<BTreeSet<WorkloadName>, Refusal> {
    let mut all = BTreeSet::new();
    for (_, object) in scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::Undeclared) {
        all.append(&mut decode_workloads(&object.content)?);
    }
    Ok(all)
}

fn read_instances(scope: &Scope) -> Result<BTreeSet<InstanceId>, Refusal> {
    let mut all = BTreeSet::new();
    for (_, object) in scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::Instances) {
        all.append(&mut decode_instances(&object.content)?);
    }
    Ok(all)
}

fn compile(scope: &Scope, trust_domain: &TrustDomain) -> Result<CompiledPolicy, Refusal> {
    let policies = scope.objects.iter().filter(|(key, _)| key.kind == ObjectKind::Policy);
    let mut documents = policies
        .map(|(_, object)| warren_proto::codec::decode::<wire::PolicyDocument>(&object.content))
        .collect::<Result<Vec<_>, _>>()?;
    if documents.is_empty() {
        // A mesh without policy denies everything; the mesh itself is all that is known.
        let text = format!("kind: Mesh\nname: {trust_domain}\n");
        documents.push(wire::PolicyDocument { file: "no-policy".to_owned(), line: 1, text });
    }
    let documents = Documents::from_wire(&documents).map_err(|found| invalid(Reason::PolicyInvalid, &found))?;
    let policy =
        CompiledPolicy::compile(&documents, Mode::Slice).map_err(|found| invalid(Reason::PolicyInvalid, &found))?;
    policy.enforceable().map_err(|found| invalid(Reason::UnenforceablePolicy, &found))?;
    Ok(policy)
}

fn invalid(reason: Reason, found: &[Diagnostic]) -> Refusal {
    let shown: Vec<_> = found.iter().take(MAX_DIAGNOSTICS).map(ToString::to_string).collect();
    Refusal::new(reason, shown.join("; "))
}
