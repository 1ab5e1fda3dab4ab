//! Flows: what was judged once need not be judged for every packet, and replies pass only where this node
//! opened the flow.
//!
//! One [`FlowTable`] is shared by all workers, since replies may arrive on another worker than the request left
//! from. It is cut into shards, each behind a lock that is taken on a miss only: every worker keeps a
//! [`FlowCache`] of pointers in front of it. A [`Flow`]'s own cells are atomics.
//!
//! A verdict counts at the generation it was judged at, and for [`VERDICT_LIFETIME`], since rules may end on a
//! date. A flow that is refused after it was let in stays in the table as cut, so that what follows on either
//! side cannot open it anew by accident.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use foldhash::quality::RandomState;
use hashbrown::{HashMap, HashTable};
use warren_proto::Reason;

use crate::packet::{ACK, FIN, RST, SYN, TCP, Tcp, UDP};
use crate::tables::{Generation, LocalIndex, PeerIndex};

/// Flows the table holds at most; about 200 bytes each.
pub const MAX_FLOWS: usize = 131_072;
/// A peer may have opened one part in so many of the table at most, so that none starves the others.
const PEER_SHARE: usize = 4;
/// Local programs leave one part in so many to peers.
const LEFT_TO_PEERS: usize = 8;
/// A verdict is judged again after this time even if nothing was published.
pub const VERDICT_LIFETIME: Duration = Duration::from_secs(10);

/// An idle TCP connection that both sides opened is forgotten after this time (Linux forgets after as long).
const TCP_IDLE: u32 = 5 * 86_400;
/// A TCP connection that only one side has spoken on, or that is closing.
const TCP_TRANSIENT_IDLE: u32 = 120;
/// A TCP connection after a RST.
const TCP_RESET_IDLE: u32 = 10;
/// RFC 4787, REQ-5 wants at least two minutes.
const UDP_IDLE: u32 = 180;
const ECHO_IDLE: u32 = 30;
/// A flow is given up for a newer one if it was idle for this long; a busy one only where whoever opened it holds more
/// flows than the newcomer.
const EVICTABLE_IDLE: u32 = 10;
/// How many table slots are looked at to find one to give up.
const EVICTION_SCAN: usize = 64;

const SHARDS: usize = 64;

/// Who sent the first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// A local program.
    Local,
    /// The peer.
    Peer,
}

/// What a packet belongs to, seen from this node. An echo has its identifier as local port; its remote port
/// tells whose request it is, so that both sides may use one identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    local: u128,
    remote: u128,
    peer: PeerIndex,
    local_port: u16,
    remote_port: u16,
    protocol: u8,
    v6: bool,
}

impl FlowKey {
    /// The flow of a TCP or UDP packet.
    #[must_use]
    pub fn new(peer: PeerIndex, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local: bits(local.ip()),
            remote: bits(remote.ip()),
            peer,
            local_port: local.port(),
            remote_port: remote.port(),
            protocol,
            v6: local.is_ipv6(),
        }
    }

    /// The flow of an echo request of `opened_by` and its replies.
    #[must_use]
    pub fn echo(peer: PeerIndex, protocol: u8, local: IpAddr, remote: IpAddr, id: u16, opened_by: Side) -> Self {
        let remote_port = match opened_by {
            Side::Local => 0,
            Side::Peer => 1,
        };
        Self::new(peer, protocol, SocketAddr::new(local, id), SocketAddr::new(remote, remote_port))
    }

    /// The peer at the other end.
    #[must_use]
    pub const fn peer(&self) -> PeerIndex {
        self.peer
    }

    /// IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The local address and port.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(address(self.local, self.v6), self.local_port)
    }

    /// The peer's address and port.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(address(self.remote, self.v6), self.remote_port)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128, v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(Ipv6Addr::from_bits(bits)) } else { IpAddr::V4(u32::try_from(bits).unwrap_or(0).into()) }
}

/// One flow that was let in or out.
#[derive(Debug)]
pub struct Flow {
    key: FlowKey,
    local: LocalIndex,
    opened_by: Side,
    /// Generation of the verdict times two, plus one if it was to let pass.
    verdict: AtomicU64,
    /// Packets of it passed, and its ends have not been told that no more will. A worker's verdict leaves this alone: it may
    /// come before the sweep of the same generation.
    is_uncut: AtomicBool,
    /// Monotonic seconds.
    judged: AtomicU32,
    last_seen: AtomicU32,
    tcp: AtomicU8,
    /// Sequence numbers behind the newest segment to each side: what a RST has to carry.
    local_next: AtomicU32,
    peer_next: AtomicU32,
    /// No longer in the table.
    removed: AtomicBool,
}

const LOCAL_SPOKE: u8 = 1;
const PEER_SPOKE: u8 = 2;
const LOCAL_FIN: u8 = 4;
const PEER_FIN: u8 = 8;
const WAS_RESET: u8 = 16;

impl Flow {
    fn new(key: FlowKey, local: LocalIndex, opened_by: Side, generation: Generation, now: Duration) -> Self {
        Self {
            key,
            local,
            opened_by,
            verdict: AtomicU64::new(passing(generation)),
            is_uncut: AtomicBool::new(true),
            judged: AtomicU32::new(seconds(now)),
            last_seen: AtomicU32::new(seconds(now)),
            tcp: AtomicU8::new(0),
            local_next: AtomicU32::new(0),
            peer_next: AtomicU32::new(0),
            removed: AtomicBool::new(false),
        }
    }

    /// What it is called by.
    #[must_use]
    pub const fn key(&self) -> &FlowKey {
        &self.key
    }

    /// The local instance.
    #[must_use]
    pub const fn local(&self) -> LocalIndex {
        self.local
    }

    /// Who opened it.
    #[must_use]
    pub const fn opened_by(&self) -> Side {
        self.opened_by
    }

    /// Whether it was judged to pass at this very `generation`, and lately. Otherwise it has to be judged again.
    #[must_use]
    pub fn passes_at(&self, generation: Generation, now: Duration) -> bool {
        let age = seconds(now).saturating_sub(self.judged.load(Ordering::Relaxed));
        self.verdict.load(Ordering::Acquire) == passing(generation) && u64::from(age) < VERDICT_LIFETIME.as_secs()
    }

    /// Records a verdict of `generation`.
    pub fn set_verdict(&self, generation: Generation, passes: bool, now: Duration) {
        self.judged.store(seconds(now), Ordering::Relaxed);
        if passes {
            self.is_uncut.store(true, Ordering::Relaxed);
        }
        self.verdict.store(if passes { passing(generation) } else { generation << 1 }, Ordering::Release);
    }

    /// Notes a packet of `sender` that passed.
    pub fn note(&self, sender: Side, tcp: Option<&Tcp>, now: Duration) {
        let now = seconds(now);
        if self.last_seen.load(Ordering::Relaxed) != now {
            self.last_seen.store(now, Ordering::Relaxed);
        }
        let (spoke, fin, next) = match sender {
            Side::Local => (LOCAL_SPOKE, LOCAL_FIN, &self.peer_next),
            Side::Peer => (PEER_SPOKE, PEER_FIN, &self.local_next),
        };
        let mut bits = spoke;
        if let Some(tcp) = tcp {
            // Forward only, so that a retransmission does not take it back; a SYN begins anew.
            let ahead = tcp.end().wrapping_sub(next.load(Ordering::Relaxed));
            if tcp.flags & SYN != 0 || ahead < 1 << 31 {
                next.store(tcp.end(), Ordering::Relaxed);
            }
            if tcp.flags & FIN != 0 {
                bits |= fin;
            }
            if tcp.flags & RST != 0 {
                bits |= WAS_RESET;
            }
            // The four-tuple is used anew.
            if tcp.opens() && sender == self.opened_by {
                self.tcp.store(bits, Ordering::Relaxed);
                return;
            }
            // A RST may be forged or stale to the receiver; whoever goes on talking proves it so.
            if tcp.flags & (RST | ACK) == ACK && self.tcp.load(Ordering::Relaxed) & WAS_RESET != 0 {
                self.tcp.fetch_and(!WAS_RESET, Ordering::Relaxed);
            }
        }
        if self.tcp.load(Ordering::Relaxed) & bits != bits {
            self.tcp.fetch_or(bits, Ordering::Relaxed);
        }
    }

    const fn opener(&self) -> Opener {
        opener(self.opened_by, self.key.peer)
    }

    fn idle(&self, now: u32) -> u32 {
        now.saturating_sub(self.last_seen.load(Ordering::Relaxed))
    }

    fn is_expired(&self, now: u32) -> bool {
        let state = self.tcp.load(Ordering::Relaxed);
        let both = LOCAL_SPOKE | PEER_SPOKE;
        let limit = match self.key.protocol {
            TCP if state & WAS_RESET != 0 => TCP_RESET_IDLE,
            TCP if state & both == both && state & (LOCAL_FIN | PEER_FIN) != LOCAL_FIN | PEER_FIN => TCP_IDLE,
            TCP => TCP_TRANSIENT_IDLE,
            UDP => UDP_IDLE,
            _ => ECHO_IDLE,
        };
        self.idle(now) >= limit
    }

    /// How little is lost with it. A flow of the peer's is judged anew by policy and goes on; a connection of a
    /// local program's would break.
    fn expendability(&self, now: u32) -> u8 {
        if self.is_expired(now) {
            return 3;
        }
        let both = LOCAL_SPOKE | PEER_SPOKE;
        let is_connection = self.key.protocol == TCP && self.tcp.load(Ordering::Relaxed) & both == both;
        match (is_connection, self.opened_by) {
            (false, _) => 2,
            (true, Side::Peer) => 1,
            (true, Side::Local) => 0,
        }
    }

    /// What has to be told to both ends when it is cut.
    #[must_use]
    pub fn cut(&self, reason: Reason) -> CutFlow {
        CutFlow {
            local: self.local,
            key: self.key,
            opened_by: self.opened_by,
            local_next: self.local_next.load(Ordering::Relaxed),
            peer_next: self.peer_next.load(Ordering::Relaxed),
            reason,
        }
    }
}

/// A live flow that policy, a revocation or an expiry has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutFlow {
    /// The local instance.
    pub local: LocalIndex,
    /// Addresses, ports, protocol and peer.
    pub key: FlowKey,
    /// Who had opened it.
    pub opened_by: Side,
    /// TCP: the sequence number that the local socket expects.
    pub local_next: u32,
    /// TCP: the sequence number that the peer's socket expects.
    pub peer_next: u32,
    /// Why.
    pub reason: Reason,
}

/// Every live flow of the node.
#[derive(Debug)]
pub struct FlowTable {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shard_limit: usize,
}

#[derive(Debug, Default)]
struct Shard {
    flows: HashTable<Entry>,
    /// Flows that each has opened.
    opened: HashMap<Opener, usize, FixedState>,
    /// Where the next search for a flow to give up begins.
    hand: usize,
}

/// Who opened a flow, and is held to a share of the table: a peer, or the programs of this host together.
type Opener = Option<PeerIndex>;

#[derive(Debug)]
struct Entry {
    hash: u64,
    flow: Arc<Flow>,
}

/// What [`FlowTable::insert`] did.
#[derive(Debug)]
pub struct Inserted {
    /// The flow of that key: the new one, or one that another worker put there first.
    pub flow: Arc<Flow>,
    /// Whether it is the new one.
    pub is_new: bool,
    /// Another flow was given up for it.
    pub evicted: bool,
}

impl FlowTable {
    /// For at most about `limit` flows.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_limit: limit.div_ceil(SHARDS).max(1),
        }
    }

    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The high bits; the table inside uses the low ones and the top seven.
        self.shards[(hash >> 40) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flow of `key`, if it is live.
    #[must_use]
    pub fn find(&self, key: &FlowKey, now: Duration) -> Option<Arc<Flow>> {
        self.find_hashed(key, self.hash(key), now)
    }

    fn find_hashed(&self, key: &FlowKey, hash: u64, now: Duration) -> Option<Arc<Flow>> {
        let mut shard = self.shard(hash);
        let found = shard.flows.find(hash, |entry| entry.flow.key == *key).map(|entry| Arc::clone(&entry.flow))?;
        if found.is_expired(seconds(now)) {
            shard.remove(hash, &found);
            return None;
        }
        Some(found)
    }

    /// Records a flow that was just let pass at `generation`.
    pub fn insert(
        &self,
        key: FlowKey,
        local: LocalIndex,
        opened_by: Side,
        generation: Generation,
        now: Duration,
    ) -> Result<Inserted, Reason> {
        let hash = self.hash(&key);
        let mut shard = self.shard(hash);
        if let Some(entry) = shard.flows.find(hash, |entry| entry.flow.key == key) {
            return Ok(Inserted { flow: Arc::clone(&entry.flow), is_new: false, evicted: false });
        }
        let opener = opener(opened_by, key.peer);
        let share = match opener {
            Some(_) => self.shard_limit.div_ceil(PEER_SHARE),
            None => (self.shard_limit - self.shard_limit / LEFT_TO_PEERS).max(1),
        };
        let has_its_share = shard.opened(opener) >= share;
        let evicted = has_its_share || shard.flows.len() >= self.shard_limit;
        if evicted {
            shard.evict(opener, has_its_share, now)?;
        }
        let flow = Arc::new(Flow::new(key, local, opened_by, generation, now));
        shard.flows.insert_unique(hash, Entry { hash, flow: Arc::clone(&flow) }, |entry| entry.hash);
        *shard.opened.entry(opener).or_default() += 1;
        Ok(Inserted { flow, is_new: true, evicted })
    }

    /// Forgets a flow, so that its key can be opened anew by the other side.
    pub fn remove(&self, key: &FlowKey) {
        let hash = self.hash(key);
        let mut shard = self.shard(hash);
        let found = shard.flows.find(hash, |entry| entry.flow.key == *key).map(|entry| Arc::clone(&entry.flow));
        if let Some(flow) = found {
            shard.remove(hash, &flow);
        }
    }

    /// Judges every live flow again and marks the verdicts as of `generation`. Expired flows are
    /// removed, refused ones are cut; the newly cut ones are returned. Call it when every
    /// worker has loaded `generation`.
    pub fn sweep(
        &self,
        generation: Generation,
        now: Duration,
        mut judge: impl FnMut(&Flow) -> Result<(), Reason>,
    ) -> Vec<CutFlow> {
        let mut cut = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let mut gone = Vec::new();
            for entry in &shard.flows {
                let flow = &entry.flow;
                if flow.is_expired(seconds(now)) {
                    gone.push((entry.hash, Arc::clone(flow)));
                    continue;
                }
                match judge(flow) {
                    Ok(()) => flow.set_verdict(generation, true, now),
                    Err(reason) => {
                        flow.set_verdict(generation, false, now);
                        if flow.is_uncut.swap(false, Ordering::Relaxed) {
                            cut.push(flow.cut(reason));
                        }
                    }
                }
            }
            for (hash, flow) in gone {
                shard.remove(hash, &flow);
            }
        }
        cut
    }

    /// How many flows are recorded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).flows.len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shard {
    fn opened(&self, by: Opener) -> usize {
        self.opened.get(&by).copied().unwrap_or_default()
    }

    fn remove(&mut self, hash: u64, flow: &Arc<Flow>) {
        if let Ok(entry) = self.flows.find_entry(hash, |entry| Arc::ptr_eq(&entry.flow, flow)) {
            let (entry, _) = entry.remove();
            entry.flow.removed.store(true, Ordering::Release);
            let opener = entry.flow.opener();
            if let Some(opened) = self.opened.get_mut(&opener) {
                *opened -= 1;
                if *opened == 0 {
                    self.opened.remove(&opener);
                }
            }
        }
    }

    /// Gives up one flow for a new one of `newcomer`'s: an expired one, else one of whoever holds most among those that
    /// the search meets, then the most expendable, then the most idle; a connection of a local program's last. One that
    /// is in use goes only to somebody who holds less, and nobody loses anything to somebody who holds more: whoever
    /// fills the table, alone or with others, displaces their own flows. With `own`, nobody else's are looked at.
    fn evict(&mut self, newcomer: Opener, own: bool, now: Duration) -> Result<(), Reason> {
        let (now, slots, held) = (seconds(now), self.flows.num_buckets().max(1), self.opened(newcomer));
        let mut victim: Option<(Rank, u64, Arc<Flow>)> = None;
        for _ in 0..slots.min(EVICTION_SCAN) {
            self.hand = (self.hand + 1) % slots;
            let Some(entry) = self.flows.get_bucket(self.hand) else { continue };
            let opener = entry.flow.opener();
            if own && opener != newcomer {
                continue;
            }
            let (expired, idle) = (entry.flow.is_expired(now), entry.flow.idle(now));
            let theirs = self.opened(opener);
            // A connection of a local program's would break, where a peer's flow is judged anew and goes on.
            let yields = theirs > held + 1 && opener.is_some();
            if expired || yields || (idle >= EVICTABLE_IDLE && theirs >= held) {
                let expendability = entry.flow.expendability(now);
                let rank = (expired, expendability > 0, theirs, expendability, idle);
                if victim.as_ref().is_none_or(|(most, ..)| rank > *most) {
                    victim = Some((rank, entry.hash, Arc::clone(&entry.flow)));
                }
            }
        }
        let (_, hash, flow) = victim.ok_or(Reason::FlowTableFull)?;
        self.remove(hash, &flow);
        Ok(())
    }
}

/// How soon a flow is given up: expired, not a local program's connection, how many its opener holds, how little is lost,
/// idle for how long.
type Rank = (bool, bool, usize, u8, u32);

const fn opener(opened_by: Side, peer: PeerIndex) -> Opener {
    match opened_by {
        Side::Local => None,
        Side::Peer => Some(peer),
    }
}

/// One worker's pointers to the flows it met last.
#[derive(Debug)]
pub struct FlowCache {
    slots: Box<[Option<Arc<Flow>>]>,
    /// The slot of the last look-up.
    last: usize,
}

const CACHE_SLOTS: usize = 4096;

impl Default for FlowCache {
    fn default() -> Self {
        Self { slots: vec![None; CACHE_SLOTS].into(), last: 0 }
    }
}

impl FlowCache {
    /// The flow of `key`: from the cache without a lock, else from `table`.
    pub fn find(&mut self, table: &FlowTable, key: &FlowKey, now: Duration) -> Option<&Flow> {
        let hash = table.hash(key);
        self.last = hash as usize % CACHE_SLOTS;
        let slot = &mut self.slots[self.last];
        let hit = slot.as_ref().is_some_and(|flow| {
            flow.key == *key && !flow.removed.load(Ordering::Acquire) && !flow.is_expired(seconds(now))
        });
        if !hit {
            *slot = None;
            *slot = Some(table.find_hashed(key, hash, now)?);
        }
        slot.as_deref()
    }

    /// Puts a flow where the next packet finds it.
    pub fn put(&mut self, table: &FlowTable, flow: Arc<Flow>) -> Option<&Flow> {
        self.last = table.hash(&flow.key) as usize % CACHE_SLOTS;
        let slot = &mut self.slots[self.last];
        *slot = Some(flow);
        slot.as_deref()
    }

    /// The flow that was found or put last, and its place for [`Self::at`].
    #[must_use]
    pub fn last(&self) -> Option<(usize, &Flow)> {
        self.at(self.last).map(|flow| (self.last, flow))
    }

    /// What is at `place` now, unless the table has given it up.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<&Flow> {
        self.slots.get(place)?.as_deref().filter(|flow| !flow.removed.load(Ordering::Acquire))
    }
}

const fn passing(generation: Generation) -> u64 {
    generation << 1 | 1
}

fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
