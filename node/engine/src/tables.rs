//! What the slow half tells the fast half: immutable tables, published whole.
//!
//! The slow half has one [`Tables`] of its own, changes it and publishes a clone. Cloning is cheap: every part
//! is shared, and the parts that change often ([`Sessions`], the peers) are cut into buckets of which only the
//! changed one is copied. Two things of a peer move more often still and need no publication: the session it is
//! sent to through and its UDP endpoint, both cells of its [`Link`].
//!
//! A publication carries a generation. It rises whenever a verdict could come out differently: policy, the set
//! of peers or locals, a revocation. A verdict counts only at the generation it was judged at.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use warren_proto::policy::{CompiledPolicy, PortTable, SourceIndex};
use warren_proto::{InstanceId, OverlayAddresses, SpiffeId, UnixTime};

use crate::Now;
use crate::admission;
use crate::allowed_ips::AllowedIps;
use crate::counters::LinkCounters;
use crate::flows::{CutFlow, FlowTable, MAX_FLOWS};
use crate::session::DataSession;

mod egress;

use egress::Egress;
pub use egress::UnderWay;

/// One local instance. Given out once in a process's life, so that nothing can be inherited by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalIndex(pub u32);

/// One remote instance. Given out once in a process's life, so that an address given to another instance
/// inherits neither flows nor sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// The smallest MTU that IPv6 allows a link: inner packets of this size always pass.
pub const SMALLEST_MTU: u32 = 1280;

/// A count of publications that could change a verdict.
pub type Generation = u64;

/// An instance on this node.
#[derive(Debug, Clone)]
pub struct Local {
    /// Its index.
    pub index: LocalIndex,
    /// Its id.
    pub instance: InstanceId,
    /// Who it is.
    pub identity: SpiffeId,
    /// The addresses it may send from and is reached at.
    pub addresses: OverlayAddresses,
    /// Its service's compiled rules, of [`Tables::policy`].
    pub ports: PortTable,
}

/// An admitted remote instance.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its index.
    pub index: PeerIndex,
    /// Its id.
    pub instance: InstanceId,
    /// Who it is, by its verified certificate.
    pub identity: SpiffeId,
    /// Its identity's number in [`Tables::policy`].
    pub source: SourceIndex,
    /// The end of its longest-lived certificate.
    pub valid_until: UnixTime,
    /// A plain WireGuard device: its packets travel in the handshake tunnel, through the slow half.
    pub is_plain: bool,
    /// The ways to it, one for each local instance that some rule links with it.
    pub links: Vec<PeerLink>,
}

impl Peer {
    /// The way between `local` and this peer; none where no rule links the two.
    #[must_use]
    pub fn link(&self, local: LocalIndex) -> Option<&PeerLink> {
        self.links.iter().find(|link| link.link.local == local)
    }
}

/// A [`Link`] with what policy says of it.
#[derive(Debug, Clone)]
pub struct PeerLink {
    /// Some rule lets the local instance open flows to the peer. Without it a link carries replies only.
    pub may_call: bool,
    /// For a plain device, which has no node that would judge what comes to it: this node does, before the packet
    /// leaves. None for everybody else.
    pub ingress: Option<Ingress>,
    /// The way itself, which outlives publications.
    pub link: Arc<Link>,
}

/// The allow list of a plain device, as it judges one local instance.
#[derive(Debug, Clone)]
pub struct Ingress {
    /// The local instance's number in [`Tables::policy`].
    pub caller: SourceIndex,
    /// The device's compiled rules.
    pub ports: Arc<PortTable>,
}

/// The way between one local instance and one peer. Its cells change without a publication; the slow half alone
/// writes them.
#[derive(Debug)]
pub struct Link {
    local: LocalIndex,
    peer: PeerIndex,
    egress: Egress,
    endpoint: ArcSwapOption<SocketAddr>,
    mtu: AtomicU32,
    counters: LinkCounters,
    /// A large packet was sent since the slow half last asked.
    large: AtomicBool,
    /// No move of the peer is told before this, in microseconds on the axis of [`Now::monotonic`].
    next_move: AtomicU64,
}

impl Link {
    /// A link without session and endpoint, for inner packets of at most `mtu` bytes, which `workers` workers move.
    #[must_use]
    pub fn new(local: LocalIndex, peer: PeerIndex, mtu: u32, workers: u16) -> Self {
        Self {
            local,
            peer,
            egress: Egress::default(),
            endpoint: ArcSwapOption::empty(),
            mtu: AtomicU32::new(mtu),
            counters: LinkCounters::new(workers),
            large: AtomicBool::new(false),
            next_move: AtomicU64::new(0),
        }
    }

    /// What passed it, and what did not.
    #[must_use]
    pub const fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// The local end.
    #[must_use]
    pub const fn local(&self) -> LocalIndex {
        self.local
    }

    /// The remote end.
    #[must_use]
    pub const fn peer(&self) -> PeerIndex {
        self.peer
    }

    /// The session that workers seal packets to the peer with; without one they go to the slow half.
    #[must_use]
    pub fn egress(&self) -> arc_swap::Guard<Option<Arc<DataSession>>> {
        self.egress.session()
    }

    /// Moves egress to another session once nothing is [under way](UnderWay) to the slow half, or to none at once.
    pub fn set_egress(&self, session: Option<Arc<DataSession>>) {
        let opens = session.is_some();
        self.prepare_egress(session);
        if opens {
            self.open_egress();
        }
    }

    /// Egress ends; [`Self::open_egress`] begins it again, with this session.
    pub(crate) fn prepare_egress(&self, session: Option<Arc<DataSession>>) {
        self.egress.close(session);
    }

    /// What the slow half held has been sent: workers may seal once nothing more is under way.
    pub(crate) fn open_egress(&self) {
        self.egress.open();
    }

    /// Moves egress from one session straight to the next, if nothing can be overtaken by that; whether it did.
    pub(crate) fn renew_egress(&self, session: &Arc<DataSession>) -> bool {
        self.egress.renew(session)
    }

    /// Takes no packets until those under way have left and workers may seal.
    pub(crate) fn shut_egress(&self) {
        self.egress.shut();
    }

    /// Where datagrams to the peer go.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.load().as_deref().copied()
    }

    /// Moves the endpoint.
    pub fn set_endpoint(&self, endpoint: Option<SocketAddr>) {
        self.endpoint.store(endpoint.map(Arc::new));
    }

    /// The largest inner packet that the path takes, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Lowers or raises the largest inner packet; never below IPv6's minimum of 1280.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu.max(SMALLEST_MTU), Ordering::Relaxed);
    }

    /// Notes that a large packet is sent; true for the first since [`Self::expect_large`].
    pub fn note_large(&self) -> bool {
        !self.large.load(Ordering::Relaxed) && !self.large.swap(true, Ordering::Relaxed)
    }

    /// Whether a move of the peer is to be told now; then none is for the length of `pause`. Its sessions all belong to one
    /// worker, which is the only one to ask.
    pub(crate) fn take_move(&self, pause: Duration, now: Now) -> bool {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let told = self.next_move.load(Ordering::Relaxed) <= microseconds(now.monotonic);
        if told {
            self.next_move.store(microseconds(now.monotonic + pause), Ordering::Relaxed);
        }
        told
    }

    /// The next large packet is to be told.
    pub fn expect_large(&self) {
        self.large.store(false, Ordering::Relaxed);
    }
}

/// A map that is cloned often and changed a little each time: 256 shared buckets.
#[derive(Debug)]
pub struct BucketMap<V> {
    buckets: Arc<[Arc<Bucket<V>>]>,
}

type Bucket<V> = HashMap<u32, V, RandomState>;

const BUCKETS: usize = 256;

impl<V> Default for BucketMap<V> {
    fn default() -> Self {
        let empty = Arc::new(Bucket::default());
        Self { buckets: (0..BUCKETS).map(|_| Arc::clone(&empty)).collect() }
    }
}

impl<V> Clone for BucketMap<V> {
    fn clone(&self) -> Self {
        Self { buckets: Arc::clone(&self.buckets) }
    }
}

impl<V: Clone> BucketMap<V> {
    /// The value at `key`.
    #[must_use]
    pub fn get(&self, key: u32) -> Option<&V> {
        self.buckets[key as usize % BUCKETS].get(&key)
    }

    /// Puts `value` at `key` and returns what was there; copies at most one bucket.
    pub fn insert(&mut self, key: u32, value: V) -> Option<V> {
        self.bucket_mut(key).insert(key, value)
    }

    /// Removes what is at `key`; copies at most one bucket.
    pub fn remove(&mut self, key: u32) -> Option<V> {
        self.get(key)?;
        self.bucket_mut(key).remove(&key)
    }

    /// Every value, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.buckets.iter().flat_map(|bucket| bucket.values())
    }

    fn bucket_mut(&mut self, key: u32) -> &mut Bucket<V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[key as usize % BUCKETS])
    }
}

/// What each receiver index of this node means.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    data: BucketMap<Arc<DataSession>>,
    handshake_prefixes: BucketMap<()>,
}

/// Who answers for a receiver index.
#[derive(Debug, Clone, Copy)]
pub enum Receiver<'a> {
    /// A data session: a worker opens the message.
    Data(&'a Arc<DataSession>),
    /// A handshake tunnel: the slow half opens the message.
    Handshake,
}

impl Sessions {
    /// Opens a session to datagrams under its local index.
    pub fn insert(&mut self, session: Arc<DataSession>) {
        self.data.insert(session.local_index(), session);
    }

    /// Closes the session under a local index.
    pub fn remove(&mut self, local_index: u32) -> Option<Arc<DataSession>> {
        self.data.remove(local_index)
    }

    /// Gives the 256 indices `prefix << 8 ..` to the slow half; `prefix` has 24 bits.
    pub fn insert_handshake_prefix(&mut self, prefix: u32) {
        self.handshake_prefixes.insert(prefix, ());
    }

    /// Takes a handshake tunnel's indices back.
    pub fn remove_handshake_prefix(&mut self, prefix: u32) {
        self.handshake_prefixes.remove(prefix);
    }

    /// Who answers for `index`.
    #[must_use]
    pub fn receiver(&self, index: u32) -> Option<Receiver<'_>> {
        match self.data.get(index) {
            Some(session) => Some(Receiver::Data(session)),
            None => self.handshake_prefixes.get(index >> 8).map(|()| Receiver::Handshake),
        }
    }

    /// Every data session, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DataSession>> {
        self.data.values()
    }
}

/// One publication.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Rises whenever a verdict could come out differently.
    pub generation: Generation,
    /// The local instances, few.
    pub locals: Arc<[Local]>,
    /// Admitted peers by [`PeerIndex`].
    pub peers: BucketMap<Arc<Peer>>,
    /// The owner of each overlay address: route and source check in one.
    pub routes: Arc<AllowedIps<PeerIndex>>,
    /// Receiver indices.
    pub sessions: Sessions,
    /// The policy in force. Without one nothing is admitted.
    pub policy: Option<Arc<CompiledPolicy>>,
}

impl Tables {
    /// What workers start on: nobody is local, nobody is a peer, nothing passes.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            generation: 0,
            locals: Arc::new([]),
            peers: BucketMap::default(),
            routes: Arc::default(),
            sessions: Sessions::default(),
            policy: None,
        }
    }

    /// The local instance that owns `address`.
    #[must_use]
    pub fn local_at(&self, address: IpAddr) -> Option<&Local> {
        self.locals.iter().find(|local| match address {
            IpAddr::V4(address) => local.addresses.v4 == Some(address),
            IpAddr::V6(address) => local.addresses.v6 == address,
        })
    }

    /// The local instance of that index.
    #[must_use]
    pub fn local(&self, index: LocalIndex) -> Option<&Local> {
        self.locals.iter().find(|local| local.index == index)
    }

    /// The peer of that index.
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> Option<&Arc<Peer>> {
        self.peers.get(index.0)
    }

    /// The way between a local instance and a peer.
    #[must_use]
    pub fn link(&self, local: LocalIndex, peer: PeerIndex) -> Option<&Link> {
        self.peer(peer)?.link(local).map(|link| &*link.link)
    }

    /// The peer that owns `address`: longest match over all peers.
    #[must_use]
    pub fn peer_at(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.routes.longest_match(address).and_then(|index| self.peer(*index))
    }
}

/// What one worker has loaded.
#[derive(Debug)]
struct WorkerStatus(AtomicU64);

/// The worker waits for input and holds no packet; it loads the newest tables before its first one.
const PARKED: Generation = Generation::MAX;

/// The state that the slow half and all workers share.
#[derive(Debug)]
pub struct Shared {
    tables: ArcSwap<Tables>,
    flows: FlowTable,
    workers: Box<[WorkerStatus]>,
}

impl Shared {
    /// For `workers` workers (at least one), all parked, on deny-all tables.
    #[must_use]
    pub fn new(workers: u16) -> Self {
        Self {
            tables: ArcSwap::from_pointee(Tables::deny_all()),
            flows: FlowTable::new(MAX_FLOWS),
            workers: (0..workers.max(1)).map(|_| WorkerStatus(AtomicU64::new(PARKED))).collect(),
        }
    }

    /// How many workers there are. The worker that owns receiver index `i` is `i % workers`.
    #[must_use]
    pub fn workers(&self) -> u16 {
        u16::try_from(self.workers.len()).unwrap_or(u16::MAX)
    }

    /// Publishes. Workers take it up at the start of their next batch; [`Self::reached`] says when all have.
    pub fn publish(&self, tables: Arc<Tables>) {
        self.tables.store(tables);
        // Pairs with the fence in `unpark`: either this thread sees the worker running, or that worker's load
        // sees these tables.
        fence(Ordering::SeqCst);
    }

    /// The newest publication.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Whether no worker judges by tables older than `generation` any more. A worker counts as soon as it has
    /// finished the batch it was in, its writes included, or waits for input.
    #[must_use]
    pub fn reached(&self, generation: Generation) -> bool {
        fence(Ordering::SeqCst);
        self.workers.iter().all(|worker| worker.0.load(Ordering::SeqCst) >= generation)
    }

    /// Judges every live flow by the newest publication and returns those that it cuts; a worker's `handle_cut`
    /// resets both ends of each. Call it once that publication was [`Self::reached`], and when certificates end.
    #[must_use]
    pub fn sweep(&self, now: Now) -> Vec<CutFlow> {
        let tables = self.tables();
        let judge = |flow: &_| admission::judge(&tables, flow, now).verdict;
        self.flows.sweep(tables.generation, now.monotonic, judge)
    }

    /// Every live flow.
    #[must_use]
    pub const fn flows(&self) -> &FlowTable {
        &self.flows
    }

    pub(crate) fn cell(&self) -> &ArcSwap<Tables> {
        &self.tables
    }

    pub(crate) fn unpark(&self, worker: u16) {
        if let Some(status) = self.workers.get(usize::from(worker)) {
            status.0.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    pub(crate) fn report(&self, worker: u16, generation: Generation) {
        if let Some(status) = self.workers.get(usize::from(worker)) {
            status.0.store(generation, Ordering::SeqCst);
        }
    }

    pub(crate) fn park(&self, worker: u16) {
        self.report(worker, PARKED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_does_not_change_with_the_map_it_was_cloned_from() {
        let mut map = BucketMap::default();
        for key in 0..1000 {
            assert_eq!(map.insert(key, key), None);
        }
        let published = map.clone();
        assert_eq!((map.insert(7, 70), map.remove(8), map.remove(2000)), (Some(7), Some(8), None));
        assert_eq!((map.get(7), map.get(8), map.values().count()), (Some(&70), None, 999));
        assert_eq!((published.get(7), published.get(8), published.values().count()), (Some(&7), Some(&8), 1000));
    }

    #[test]
    fn one_change_copies_one_bucket() {
        let mut map = BucketMap::default();
        for key in 0..10_000 {
            map.insert(key, ());
        }
        let published = map.clone();
        map.insert(20_000, ());
        let shared = map.buckets.iter().zip(&*published.buckets).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, BUCKETS - 1);
    }

    #[test]
    fn a_links_mtu_never_falls_below_ipv6s_minimum() {
        let link = Link::new(LocalIndex(0), PeerIndex(0), 1420, 1);
        link.set_mtu(500);
        assert_eq!(link.mtu(), 1280);
    }
}
