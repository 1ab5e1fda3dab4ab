//! What the coordinator knows, as typed records in the store and as one indexed picture in memory.
//!
//! Every record is a [`records`] type under a key of its own. [`State`] is rebuilt from a snapshot of the
//! store and kept current from its watch feed, batch by batch; nothing else changes it. A `State` is cheap to
//! clone (its tables share what did not change), so readers hold an immutable one and take no lock.

mod key;
pub mod records;
mod table;
mod versioned;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use warren_proto::join_token::JoinTokenId;
use warren_proto::peer_map::{Generation, PeerRecord, Revocation, RevocationSet};
use warren_proto::{InstanceId, NodeId, UnixTime, WorkloadName};

use crate::policy::PolicyInForce;
use crate::store::{Epoch, Revision};

pub use key::{Key, KeyKind, KeyName};
use records::{
    AddressLease, AdminToken, Attestor, EvidenceUse, Hex32, Instance, JoinTokenRecord, KeyUse, MeshSettings, Node,
    PolicyHead, PolicyRevision, PolicyTree, Registration, StoredPolicy, TrustRoots,
};
pub use table::Table;
pub use versioned::StateError;

pub(crate) use key::PREFIXES;
pub(crate) use versioned::encode;

/// Revocations in one object of a scope, so that the object fits a frame.
const REVOCATIONS_PER_LIST: usize = 500;

/// A record and the store revision that last changed it, which the next change compares.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// The revision of the store at the record's last change; the admin API's ETag.
    pub modified: Revision,
    /// The record.
    pub value: T,
}

impl<T> std::ops::Deref for Stored<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// One change of the store: a key, and its new value or none.
#[derive(Debug, Clone)]
pub struct Change {
    /// The key, as in the store.
    pub key: Vec<u8>,
    /// The framed record; none when the key was deleted.
    pub value: Option<Bytes>,
    /// The revision that made the change.
    pub modified: Revision,
}

/// What a batch touched, for those who must tell nodes.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Nodes whose own registration changed or went.
    pub nodes: BTreeSet<NodeId>,
    /// Workloads with an instance that changed or went, and the node that holds it.
    pub instances: BTreeSet<(WorkloadName, NodeId)>,
    /// Workloads whose first instance came or whose last one went.
    pub workloads: BTreeSet<WorkloadName>,
    /// The mesh's settings changed.
    pub mesh: bool,
    /// The roots changed.
    pub trust: bool,
    /// Another policy revision is in force.
    pub policy: bool,
    /// A revocation was added or forgotten.
    pub revocations: bool,
}

impl Touched {
    /// For a picture that was built anew. Who listens looks at every node.
    #[must_use]
    pub fn everything() -> Self {
        Self { mesh: true, trust: true, policy: true, revocations: true, ..Self::default() }
    }
}

/// The whole picture at one revision.
#[derive(Debug, Clone)]
pub struct State {
    /// Raised by a restore; part of every generation a node is told.
    pub epoch: Epoch,
    /// The store revision that the picture shows.
    pub revision: Revision,
    /// Trust domain, overlay, lifetimes.
    pub mesh: Option<Arc<Stored<MeshSettings>>>,
    /// The roots; none where they were never replaced, and the CA's directory holds the only one.
    pub trust: Option<Arc<Stored<TrustRoots>>>,
    /// Join tokens by id.
    pub tokens: Table<JoinTokenId, Stored<JoinTokenRecord>>,
    /// Attestors by name.
    pub attestors: Table<String, Stored<Attestor>>,
    /// Registrations by name.
    pub registrations: Table<String, Stored<Registration>>,
    /// Evidence that made nodes, by its hash.
    pub evidence: Table<[u8; 32], Stored<EvidenceUse>>,
    /// Administrator tokens by id.
    pub admin_tokens: Table<String, Stored<AdminToken>>,
    /// Enrolled nodes.
    pub nodes: Table<NodeId, Stored<Node>>,
    /// Instances, expired ones included until they are swept.
    pub instances: Table<InstanceId, Stored<Instance>>,
    /// Overlay addresses in use or in quarantine.
    pub addresses: Table<IpAddr, Stored<AddressLease>>,
    /// Public keys in use or remembered.
    pub keys: Table<KeyName, Stored<KeyUse>>,
    /// Revocations in force by id.
    pub revocations: Table<String, Stored<Revocation>>,
    /// The same, indexed for the question "is this revoked".
    pub revoked: Arc<RevocationSet>,
    /// The same as nodes are sent it: one or more encoded lists, shared by every scope.
    pub revocation_lists: Arc<Vec<Bytes>>,
    /// The policy in force, compiled.
    pub policy: Arc<PolicyInForce>,
    /// Every revision of policy that is kept, by number.
    pub policy_revisions: Arc<BTreeMap<u64, Arc<Stored<PolicyRevision>>>>,
    /// The IPv4 address that was given most recently, and when: allocation goes on behind it.
    pub last_v4: Option<(Revision, Ipv4Addr)>,
    policy_trees: Table<[u8; 32], PolicyTree>,
    policy_texts: Table<[u8; 32], StoredPolicy>,
    by_node: Table<NodeId, BTreeSet<InstanceId>>,
    by_workload: Table<WorkloadName, BTreeSet<InstanceId>>,
    issuers: Table<[u8; 32], Bytes>,
}

impl State {
    /// The empty picture of a new store.
    #[must_use]
    pub fn empty(epoch: Epoch) -> Self {
        Self {
            epoch,
            revision: Revision(0),
            mesh: None,
            trust: None,
            tokens: Table::default(),
            attestors: Table::default(),
            registrations: Table::default(),
            evidence: Table::default(),
            admin_tokens: Table::default(),
            nodes: Table::default(),
            instances: Table::default(),
            addresses: Table::default(),
            keys: Table::default(),
            revocations: Table::default(),
            revoked: Arc::default(),
            revocation_lists: Arc::new(vec![Bytes::new()]),
            policy: Arc::default(),
            policy_revisions: Arc::default(),
            last_v4: None,
            policy_trees: Table::default(),
            policy_texts: Table::default(),
            by_node: Table::default(),
            by_workload: Table::default(),
            issuers: Table::default(),
        }
    }

    /// The mesh's settings; every coordinator that serves has them.
    pub fn settings(&self) -> Result<&MeshSettings, StateError> {
        self.mesh.as_deref().map(|stored| &stored.value).ok_or(StateError::NoMesh)
    }

    /// Epoch and revision as nodes are told them.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation { epoch: self.epoch.0, revision: self.revision.0 }
    }

    /// The instances on `node`, in the order of their ids.
    pub fn instances_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Stored<Instance>>> {
        self.by_node.get(&node).into_iter().flat_map(|ids| ids.iter()).filter_map(|id| self.instances.get(id))
    }

    /// The instances of `workload`, in the order of their ids.
    pub fn instances_of(&self, workload: &WorkloadName) -> impl Iterator<Item = &Arc<Stored<Instance>>> {
        self.by_workload.get(workload).into_iter().flat_map(|ids| ids.iter()).filter_map(|id| self.instances.get(id))
    }

    /// Every workload that has an instance, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadName> {
        self.by_workload.iter().map(|(name, _)| name)
    }

    /// The workloads that have an instance and that the policy in force leaves undeclared in a namespace that it declares.
    #[must_use]
    pub fn undeclared(&self) -> BTreeSet<&WorkloadName> {
        let Some(policy) = self.policy.compiled() else { return BTreeSet::new() };
        self.workloads().filter(|workload| policy.leaves_out(workload)).collect()
    }

    /// The workloads with an instance on `node`.
    #[must_use]
    pub fn workloads_on(&self, node: NodeId) -> BTreeSet<WorkloadName> {
        self.instances_on(node).map(|instance| instance.workload.clone()).collect()
    }

    /// The objects of policy revision `number`, each with its Set; `None` when the revision is not kept.
    #[must_use]
    pub fn policy_at(&self, number: u64) -> Option<Vec<Arc<StoredPolicy>>> {
        let header = self.policy_revisions.get(&number)?;
        self.policy_objects(&header.trees)
    }

    fn policy_objects(&self, trees: &[Hex32]) -> Option<Vec<Arc<StoredPolicy>>> {
        let mut objects = Vec::new();
        for tree in trees {
            for digest in &self.policy_trees.get(&tree.0)?.objects {
                objects.push(Arc::clone(self.policy_texts.get(&digest.0)?));
            }
        }
        Some(objects)
    }

    /// Whether the store already has this policy text.
    #[must_use]
    pub fn has_policy_text(&self, digest: &[u8; 32]) -> bool {
        self.policy_texts.get(digest).is_some()
    }

    /// The record that peers are sent for `instance`: its certificates that neither ended nor were revoked, and whose
    /// root is trusted.
    /// `None` when it has no such certificate.
    #[must_use]
    pub fn peer_record(&self, instance: &Instance, now: UnixTime) -> Option<PeerRecord> {
        let trust_domain = &self.mesh.as_deref()?.trust_domain;
        let chains: Vec<_> = instance
            .certificates
            .iter()
            .filter(|certificate| certificate.not_after > now)
            .filter(|held| self.trust.as_ref().is_none_or(|trust| !trust.is_untrusted(&held.issuer_key_id)))
            .filter(|certificate| instance.revoked_by(certificate, trust_domain, &self.revoked).is_none())
            .map(|certificate| certificate.chain.iter().map(|der| der.0.clone()).collect())
            .collect();
        (!chains.is_empty()).then_some(PeerRecord { instance: instance.id, chains })
    }

    /// The picture after `changes`, which are all of one or more whole commits up to `revision`, in order.
    /// Keys that are not the state's (the audit log's, for one) are passed over.
    pub fn apply(&mut self, revision: Revision, changes: Vec<Change>) -> Result<Touched, StateError> {
        let mut touched = Touched::default();
        let mut head = None;
        for change in changes {
            let Some(key) = Key::parse(&change.key)? else { continue };
            if let Some(found) = self.apply_one(key, change, &mut touched)? {
                head = Some(found);
            }
        }
        if touched.revocations {
            self.index_revocations();
        }
        if let Some(head) = head {
            let objects = self.policy_objects(&head.trees).ok_or(StateError::PolicyIncomplete(head.number))?;
            self.policy = Arc::new(PolicyInForce::compile(head.number, head.modified, objects)?);
            touched.policy = true;
        }
        self.revision = revision;
        Ok(touched)
    }

    fn index_revocations(&mut self) {
        let all: Vec<_> = self.revocations.sorted().into_iter().map(|(_, stored)| stored.value.clone()).collect();
        // An empty list is sent as well: a node can tell "none" from "left out".
        let lists = all.chunks(REVOCATIONS_PER_LIST).map(|part| RevocationSet::new(part.to_vec()).encode().into());
        let mut lists: Vec<Bytes> = lists.collect();
        if lists.is_empty() {
            lists.push(Bytes::new());
        }
        self.revocation_lists = Arc::new(lists);
        self.revoked = Arc::new(RevocationSet::new(all));
    }

    fn apply_one(
        &mut self,
        key: Key,
        change: Change,
        touched: &mut Touched,
    ) -> Result<Option<Stored<PolicyHead>>, StateError> {
        match key {
            Key::Mesh => {
                self.mesh = decoded(&change)?.map(Arc::new);
                touched.mesh = true;
            }
            Key::Trust => {
                self.trust = decoded(&change)?.map(Arc::new);
                touched.trust = true;
            }
            Key::Token(id) => put(&mut self.tokens, id, &change)?,
            Key::Attestor(name) => put(&mut self.attestors, name, &change)?,
            Key::Registration(name) => put(&mut self.registrations, name, &change)?,
            Key::Evidence(digest) => put(&mut self.evidence, digest, &change)?,
            Key::AdminToken(id) => put(&mut self.admin_tokens, id, &change)?,
            Key::Address(address) => {
                put(&mut self.addresses, address, &change)?;
                let in_use = self.addresses.get(&address).is_some_and(|lease| lease.quarantined_until.is_none());
                if let IpAddr::V4(address) = address
                    && in_use
                {
                    self.last_v4 = self.last_v4.max(Some((change.modified, address)));
                }
            }
            Key::PublicKey(name) => put(&mut self.keys, name, &change)?,
            Key::Node(id) => {
                put(&mut self.nodes, id, &change)?;
                touched.nodes.insert(id);
            }
            Key::Instance(id) => self.apply_instance(id, &change, touched)?,
            Key::Revocation(id) => {
                put(&mut self.revocations, id, &change)?;
                touched.revocations = true;
            }
            Key::PolicyText(digest) => match decoded::<StoredPolicy>(&change)? {
                Some(text) => self.policy_texts.insert(digest, text.value),
                None => self.policy_texts.remove(&digest),
            },
            Key::PolicyTree(digest) => match decoded::<PolicyTree>(&change)? {
                Some(tree) => self.policy_trees.insert(digest, tree.value),
                None => self.policy_trees.remove(&digest),
            },
            Key::PolicyRevision(number) => {
                let revisions = Arc::make_mut(&mut self.policy_revisions);
                match decoded::<PolicyRevision>(&change)? {
                    Some(revision) => revisions.insert(number, Arc::new(revision)),
                    None => revisions.remove(&number),
                };
            }
            Key::PolicyHead => {
                return decoded::<PolicyHead>(&change)?.ok_or(StateError::PolicyHeadGone).map(Some);
            }
        }
        Ok(None)
    }

    fn apply_instance(&mut self, id: InstanceId, change: &Change, touched: &mut Touched) -> Result<(), StateError> {
        let old = self.instances.get(&id).cloned();
        let instance = decoded::<Instance>(change)?;
        let names = old.iter().map(|old| &old.workload).chain(instance.iter().map(|new| &new.workload));
        let before: Vec<_> = names.map(|name| (name.clone(), self.by_workload.get(name).is_some())).collect();
        self.place_instance(id, old, instance, touched);
        for (name, present) in before {
            if self.by_workload.get(&name).is_some() != present {
                touched.workloads.insert(name);
            }
        }
        Ok(())
    }

    fn place_instance(
        &mut self,
        id: InstanceId,
        old: Option<Arc<Stored<Instance>>>,
        instance: Option<Stored<Instance>>,
        touched: &mut Touched,
    ) {
        if let Some(old) = old {
            touched.instances.insert((old.workload.clone(), old.node));
            unindex(&mut self.by_node, &old.node, id);
            unindex(&mut self.by_workload, &old.workload, id);
        }
        let Some(mut instance) = instance else {
            self.instances.remove(&id);
            return;
        };
        // Thousands of instances carry the same issuing certificate: one copy of it is enough.
        for der in instance.value.certificates.iter_mut().flat_map(|certificate| certificate.chain.iter_mut().skip(1)) {
            let digest = warren_proto::peer_map::object_digest(&der.0);
            match self.issuers.get(&digest) {
                Some(shared) => der.0 = Bytes::clone(shared),
                None => self.issuers.insert(digest, der.0.clone()),
            }
        }
        touched.instances.insert((instance.workload.clone(), instance.node));
        index(&mut self.by_node, instance.node, id);
        index(&mut self.by_workload, instance.workload.clone(), id);
        self.instances.insert(id, instance);
    }
}

fn decoded<T: records::Record>(change: &Change) -> Result<Option<Stored<T>>, StateError> {
    let Some(value) = &change.value else { return Ok(None) };
    let value = versioned::decode(&change.key, value)?;
    Ok(Some(Stored { modified: change.modified, value }))
}

fn put<K, T>(table: &mut Table<K, Stored<T>>, key: K, change: &Change) -> Result<(), StateError>
where
    K: std::hash::Hash + Ord + Clone,
    T: records::Record,
{
    match decoded(change)? {
        Some(stored) => table.insert(key, stored),
        None => table.remove(&key),
    }
    Ok(())
}

fn index<K: std::hash::Hash + Ord + Clone>(table: &mut Table<K, BTreeSet<InstanceId>>, key: K, id: InstanceId) {
    let mut ids = table.get(&key).map(|ids| (**ids).clone()).unwrap_or_default();
    ids.insert(id);
    table.insert(key, ids);
}

fn unindex<K: std::hash::Hash + Ord + Clone>(table: &mut Table<K, BTreeSet<InstanceId>>, key: &K, id: InstanceId) {
    let Some(ids) = table.get(key) else { return };
    let mut ids = (**ids).clone();
    ids.remove(&id);
    if ids.is_empty() {
        table.remove(key);
    } else {
        table.insert(key.clone(), ids);
    }
}
