//! The peer table: which keys are admitted on both sides, and the links between them. A whole new picture is
//! applied as a difference, so that what did not change keeps its tunnels, its sessions and its timestamps.

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use warren_proto::policy::CompiledPolicy;
use warren_proto::{InstanceId, OverlayAddresses, Reason, SpiffeId, UnixTime, WorkloadName};

use crate::Now;
use crate::allowed_ips::AllowedIps;
use crate::demux::LinkId;
use crate::handshake::{Doorway, key_hint};
use crate::identity::VerifiedPeer;
use crate::key_exchange::Party;
use crate::mesh::{LocalKey, MeshUpdate, TunnelKey};
use crate::tables::{BucketMap, Generation, Ingress, Local, LocalIndex, Peer, PeerIndex, PeerLink};

pub(crate) mod link;
pub(crate) mod outlet;

use link::{LinkState, LocalEnd, PeerEnd};
use outlet::Outlet;

/// Keys of one instance that live at once: the one in use and its successor.
const MAX_KEYS: usize = 2;

struct LocalEntry {
    index: LocalIndex,
    identity: SpiffeId,
    workload: WorkloadName,
    addresses: OverlayAddresses,
    /// Newest first.
    ends: Vec<LocalEnd>,
}

struct PeerEntry {
    index: PeerIndex,
    identity: SpiffeId,
    workload: WorkloadName,
    addresses: OverlayAddresses,
    plain: bool,
    ends: Vec<PeerEnd>,
}

impl PeerEntry {
    fn valid_until(&self) -> UnixTime {
        self.ends.iter().map(|end| end.valid_until).max().unwrap_or_default()
    }
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// Everything the slow half knows of locals, peers and links.
#[derive(Default)]
pub(crate) struct Peers {
    locals: Map<InstanceId, LocalEntry>,
    peers: Map<InstanceId, PeerEntry>,
    links: Map<LinkId, LinkState>,
    /// Every local key, most recent first.
    doorways: Vec<Arc<Doorway>>,
    by_hint: Map<u32, Vec<Arc<Doorway>>>,
    local_of_key: Map<TunnelKey, LocalIndex>,
    peer_of_key: Map<TunnelKey, PeerIndex>,
    /// Indices are given out once in a process's life.
    next_index: u32,
    /// The first generation of the policy in force.
    pub(crate) judged_since: Generation,
}

impl Peers {
    /// Makes the update the picture in force: tables, links and keys. Publishing it is the caller's.
    pub(crate) fn apply(&mut self, update: &MeshUpdate, out: &mut Outlet, now: Now) {
        self.apply_locals(&update.locals);
        self.apply_peers(&update.peers);
        self.apply_links(update, out, now);
        let judged_by = out.tables.policy.as_ref().map(|policy| policy.digest());
        if judged_by.is_some_and(|digest| digest != update.policy.digest()) {
            self.judged_since = update.generation;
            for link in self.links.values_mut() {
                link.drop_waiting(Reason::PolicyChanged, out);
            }
        }
        self.fill_tables(update, out, now);
    }

    fn fresh_index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    fn apply_locals(&mut self, keys: &[LocalKey]) {
        let mut before = std::mem::take(&mut self.locals);
        let doorways: Map<TunnelKey, Arc<Doorway>> =
            self.doorways.drain(..).map(|doorway| (*doorway.key(), doorway)).collect();
        self.by_hint.clear();
        self.local_of_key.clear();
        for key in keys {
            let certificate = &key.certificate;
            let (instance, identity) = (certificate.binding().instance, certificate.leaf().identity());
            let public = key.secret.public_key();
            if public != certificate.binding().tunnel_key {
                // No peer could verify what this key says.
                continue;
            }
            let doorway = match doorways.get(&public) {
                Some(doorway) => Arc::clone(doorway),
                None => Arc::new(Doorway::new(key.secret.secret().clone())),
            };
            if !self.locals.contains_key(&instance) {
                let same =
                    |entry: &LocalEntry| entry.identity == *identity && entry.addresses == certificate.addresses();
                let index = match before.remove(&instance).filter(same) {
                    Some(entry) => entry.index,
                    None => LocalIndex(self.fresh_index()),
                };
                let entry = LocalEntry {
                    index,
                    identity: identity.clone(),
                    workload: certificate.workload().clone(),
                    addresses: certificate.addresses(),
                    ends: Vec::new(),
                };
                self.locals.insert(instance, entry);
            }
            // A key that was kept over a renewal counts once, under the newer certificate.
            if let Some(entry) = self.locals.get_mut(&instance)
                && entry.ends.len() < MAX_KEYS
                && entry.ends.iter().all(|end| *end.doorway.key() != public)
            {
                entry.ends.push(LocalEnd {
                    doorway: Arc::clone(&doorway),
                    party: Party::of(certificate),
                    valid_until: key.valid_until,
                });
                self.local_of_key.insert(public, entry.index);
                self.by_hint.entry(key_hint(&public)).or_default().push(Arc::clone(&doorway));
                self.doorways.push(doorway);
            }
        }
    }

    fn apply_peers(&mut self, verified: &[VerifiedPeer]) {
        let mut before = std::mem::take(&mut self.peers);
        self.peer_of_key.clear();
        for peer in verified {
            if !self.peers.contains_key(&peer.instance()) {
                // An address or an identity that moves to another holder takes no flow and no session along.
                let same = |entry: &PeerEntry| {
                    entry.identity == *peer.identity()
                        && entry.addresses == peer.addresses()
                        && entry.plain == peer.is_plain()
                };
                let index = match before.remove(&peer.instance()).filter(same) {
                    Some(entry) => entry.index,
                    None => PeerIndex(self.fresh_index()),
                };
                let entry = PeerEntry {
                    index,
                    identity: peer.identity().clone(),
                    workload: peer.workload().clone(),
                    addresses: peer.addresses(),
                    plain: peer.is_plain(),
                    ends: Vec::new(),
                };
                self.peers.insert(peer.instance(), entry);
            }
            if let Some(entry) = self.peers.get_mut(&peer.instance())
                && entry.ends.len() < MAX_KEYS
            {
                let key = *peer.tunnel_key();
                entry.ends.push(PeerEnd { key, party: Party::of_peer(peer), valid_until: peer.valid_until() });
                self.peer_of_key.insert(key, entry.index);
            }
        }
    }

    fn apply_links(&mut self, update: &MeshUpdate, out: &mut Outlet, now: Now) {
        let mut wanted = HashSet::new();
        for (local_instance, local) in &self.locals {
            for (peer_instance, peer) in &self.peers {
                if !is_linked(&update.policy, local, peer, now) {
                    continue;
                }
                let id = (local.index, peer.index);
                wanted.insert(id);
                let link = self.links.entry(id).or_insert_with(|| {
                    let instances = (*local_instance, *peer_instance);
                    LinkState::new(id, instances, peer.identity.clone(), out.config.mtu, out.workers)
                });
                let reported = update.endpoints.get(peer_instance).map(Vec::as_slice).unwrap_or_default();
                link.report_endpoints(reported, now);
                link.set_ends(local.ends.clone(), peer.ends.clone(), peer.plain, out, now);
            }
        }
        let locals: HashSet<_> = self.locals.values().map(|local| local.index).collect();
        let peers: HashSet<_> = self.peers.values().map(|peer| peer.index).collect();
        self.links.retain(|id, link| {
            let keep = wanted.contains(id);
            if !keep {
                let ends_stand = locals.contains(&id.0) && peers.contains(&id.1);
                link.close(if ends_stand { Reason::PolicyChanged } else { Reason::PeerRevoked }, out);
            }
            keep
        });
    }

    fn fill_tables(&self, update: &MeshUpdate, out: &mut Outlet, now: Now) {
        let policy = &update.policy;
        let mut routes = AllowedIps::default();
        let mut peers = BucketMap::default();
        for (instance, peer) in &self.peers {
            for address in peer.addresses.iter() {
                routes.insert(address, if address.is_ipv4() { 32 } else { 128 }, peer.index);
            }
            let judged_here = peer.plain.then(|| Arc::new(policy.port_table(&peer.workload)));
            let links = self.locals.values().filter_map(|local| {
                let link = self.links.get(&(local.index, peer.index))?;
                let may_call = policy.linked(&local.workload, &peer.workload, now.unix);
                let caller = policy.identities().index(&local.workload);
                let ingress = judged_here.clone().map(|ports| Ingress { caller, ports });
                Some(PeerLink { may_call, ingress, link: Arc::clone(link.cell()) })
            });
            let entry = Peer {
                index: peer.index,
                instance: *instance,
                identity: peer.identity.clone(),
                source: policy.identities().index(&peer.workload),
                valid_until: peer.valid_until(),
                is_plain: peer.plain,
                links: links.collect(),
            };
            peers.insert(peer.index.0, Arc::new(entry));
        }
        let locals = self.locals.iter().map(|(instance, local)| Local {
            index: local.index,
            instance: *instance,
            identity: local.identity.clone(),
            addresses: local.addresses,
            ports: policy.port_table(&local.workload),
        });
        out.tables.generation = update.generation;
        out.tables.policy = Some(Arc::clone(policy));
        out.tables.locals = locals.collect();
        out.tables.peers = peers;
        out.tables.routes = Arc::new(routes);
        out.mark_changed();
    }

    /// Everybody goes: no key answers, no session opens.
    pub(crate) fn clear(&mut self, out: &mut Outlet) {
        for (_, mut link) in self.links.drain() {
            link.close(Reason::ShuttingDown, out);
        }
        let next_index = self.next_index;
        *self = Self { next_index, ..Self::default() };
    }

    /// The local keys that a hint may mean.
    pub(crate) fn hinted(&self, hint: u32) -> &[Arc<Doorway>] {
        self.by_hint.get(&hint).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every local key, most recent first.
    pub(crate) fn doorways(&self) -> &[Arc<Doorway>] {
        &self.doorways
    }

    /// The link that an admitted peer's key has with a local key.
    pub(crate) fn between(&self, local: &TunnelKey, peer: &TunnelKey) -> Option<LinkId> {
        let id = (*self.local_of_key.get(local)?, *self.peer_of_key.get(peer)?);
        self.links.contains_key(&id).then_some(id)
    }

    pub(crate) fn link_mut(&mut self, id: LinkId) -> Option<&mut LinkState> {
        self.links.get_mut(&id)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = (LinkId, &LinkState)> {
        self.links.iter().map(|(id, link)| (*id, link))
    }
}

/// Whether some rule lets the two talk in either direction. A plain device has no node of its own to ask, so the same
/// holds for it.
fn is_linked(policy: &CompiledPolicy, local: &LocalEntry, peer: &PeerEntry, now: Now) -> bool {
    policy.linked(&local.workload, &peer.workload, now.unix) || policy.linked(&peer.workload, &local.workload, now.unix)
}
