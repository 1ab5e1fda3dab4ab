//! Which nodes are connected, what each was told and has acknowledged, and where its peers may find it. In
//! memory only: it is true of this process and begins anew with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use warren_proto::peer_map::{Generation, ObjectKey, ObjectKind, Scope};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::root_hint::RootPrefix;
use warren_proto::{InstanceId, NodeId, UnixTime};

use super::clones::{ClonedNode, Clones};
use crate::peer_map::Concerned;
use crate::state::State;

/// The marks that a node's session is woken with.
const SCOPE: u8 = 1;
const URGENT: u8 = 2;
const HINTS: u8 = 4;

/// What a session has to look at, as marks instead of a queue.
#[derive(Debug, Default)]
pub(super) struct Mark {
    bits: AtomicU8,
    wake: Notify,
}

/// The marks taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken(u8);

impl Taken {
    pub(super) const fn scope(self) -> bool {
        self.0 & (SCOPE | URGENT) != 0
    }

    pub(super) const fn urgent(self) -> bool {
        self.0 & URGENT != 0
    }

    pub(super) const fn hints(self) -> bool {
        self.0 & HINTS != 0
    }
}

impl Mark {
    fn set(&self, bits: u8) {
        self.bits.fetch_or(bits, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// Completes when something was marked since the last time it completed.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The marks, which stay set until [`Mark::clear`].
    pub(super) fn look(&self) -> Taken {
        Taken(self.bits.load(Ordering::Acquire))
    }

    /// Takes marks off before the work they ask for begins: what is marked meanwhile is seen again.
    pub(super) fn clear(&self, taken: Taken) {
        self.bits.fetch_and(!taken.0, Ordering::AcqRel);
    }
}

/// A refusal that a node reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedUpdate {
    /// Of what it was told.
    pub generation: Generation,
    /// When the manifest was refused whole.
    pub refusal: Option<Refusal>,
    /// Peer records that were refused singly, and why.
    pub items: Vec<(InstanceId, Refusal)>,
}

/// One node's link, for people.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// The node.
    pub node: NodeId,
    /// Since when it is connected.
    pub since: UnixTime,
    /// Where from.
    pub remote: SocketAddr,
    /// What it says it runs.
    pub software: String,
    /// The newest generation it was told.
    pub told: Generation,
    /// The newest generation it acknowledged.
    pub acknowledged: Generation,
    /// The newest refusal, until an update is accepted whole.
    pub refused: Option<RefusedUpdate>,
    /// Its clock less ours, in milliseconds, when it connected.
    pub clock_skew_ms: i64,
    /// An update is being prepared or awaits its acknowledgement.
    pub busy: bool,
    /// The root under which the certificate stands that it presented.
    pub root: RootPrefix,
}

/// Who does not have a generation yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unacknowledged {
    /// Connected, and told or about to be.
    pub pending: Vec<NodeId>,
    /// Not connected; they are told when they come back.
    pub away: Vec<NodeId>,
}

impl Unacknowledged {
    /// Whether everyone has it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.away.is_empty()
    }
}

/// What a node held when it was last seen, so that it need not be told again.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) scope: Arc<Scope>,
    pub(super) digest: [u8; 32],
    /// When its manifest is due to be signed anew.
    pub(super) refresh_at: UnixTime,
}

#[derive(Debug)]
struct Live {
    serial: u64,
    mark: Arc<Mark>,
    connection: quinn::Connection,
    status: LinkStatus,
}

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<NodeId, Live>,
    held: BTreeMap<NodeId, Held>,
    endpoints: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// The root of the certificate that each node presented last.
    roots: BTreeMap<NodeId, RootPrefix>,
    clones: Clones,
    refused_enrolments: BTreeMap<Reason, u64>,
    serial: u64,
    dispatched: Generation,
}

/// Every link of this coordinator.
#[derive(Debug)]
pub struct Links {
    inner: Mutex<Inner>,
    moved: watch::Sender<u64>,
}

impl Default for Links {
    fn default() -> Self {
        Self { inner: Mutex::default(), moved: watch::Sender::new(0) }
    }
}

/// A session's own entry; gone with it.
#[derive(Debug)]
pub(super) struct Attached {
    links: Arc<Links>,
    node: NodeId,
    serial: u64,
    pub(super) mark: Arc<Mark>,
}

impl Links {
    /// Every link, in the order of the nodes' ids.
    #[must_use]
    pub fn list(&self) -> Vec<LinkStatus> {
        self.lock().live.values().map(|live| live.status.clone()).collect()
    }

    /// The link of one node.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<LinkStatus> {
        self.lock().live.get(&node).map(|live| live.status.clone())
    }

    /// Nodes of `state` that have not acknowledged everything up to `generation` that concerns them.
    #[must_use]
    pub fn unacknowledged(&self, state: &State, generation: Generation, now: UnixTime) -> Unacknowledged {
        let inner = self.lock();
        let mut missing = Unacknowledged::default();
        for (id, node) in state.nodes.sorted() {
            if node.revoked_at.is_some() || node.certificate.not_after <= now {
                continue;
            }
            match inner.live.get(id) {
                None => missing.away.push(*id),
                Some(live) => {
                    let settled = inner.dispatched >= generation
                        && !live.mark.look().scope()
                        && !live.status.busy
                        && live.status.acknowledged >= live.status.told;
                    if !settled {
                        missing.pending.push(*id);
                    }
                }
            }
        }
        missing
    }

    /// Counts an enrolment that was refused.
    pub(super) fn count_refused_enrolment(&self, reason: Reason) {
        *self.lock().refused_enrolments.entry(reason).or_default() += 1;
    }

    /// How many enrolments this process refused, by reason.
    #[must_use]
    pub fn refused_enrolments(&self) -> BTreeMap<Reason, u64> {
        self.lock().refused_enrolments.clone()
    }

    /// Completes when a link came, went, was told or acknowledged something since `seen` was marked.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Registers a session; an older one of the same node is closed.
    pub(super) fn attach(self: &Arc<Self>, connection: quinn::Connection, status: LinkStatus) -> Attached {
        let mark = Arc::new(Mark::default());
        let node = status.node;
        let (serial, before) = {
            let mut inner = self.lock();
            inner.serial += 1;
            let serial = inner.serial;
            inner.roots.insert(node, status.root);
            let live = Live { serial, mark: Arc::clone(&mark), connection, status };
            (serial, inner.live.insert(node, live))
        };
        if let Some(before) = before {
            tracing::warn!(%node, remote = %before.status.remote, "a second connection of the node replaces the first");
            super::session::close(&before.connection, &super::session::replaced());
        }
        self.note();
        Attached { links: Arc::clone(self), node, serial, mark }
    }

    /// What `node` held when it was last seen by this process.
    pub(super) fn held(&self, node: NodeId) -> Option<Held> {
        self.lock().held.get(&node).cloned()
    }

    /// A process of `node` connects; answers with what is to be reported where another one of it is still there.
    pub(super) fn process_connects(
        &self,
        node: NodeId,
        name: [u8; 16],
        remote: SocketAddr,
        now: UnixTime,
    ) -> Option<ClonedNode> {
        self.lock().clones.connects(node, name, remote, now)
    }

    /// Whether two processes use the node's identity, as this process noticed.
    #[must_use]
    pub fn cloned(&self, node: NodeId) -> Option<ClonedNode> {
        self.lock().clones.of(node)
    }

    /// Forgets what `node` held: it says that it holds something else.
    pub(super) fn forget_held(&self, node: NodeId) {
        self.lock().held.remove(&node);
    }

    /// Whether `node` has acknowledged this trust bundle, as this process knows.
    pub(super) fn holds_bundle(&self, node: NodeId, bundle: &[u8]) -> bool {
        let key = ObjectKey { kind: ObjectKind::TrustBundle, name: String::new() };
        let inner = self.lock();
        let object = inner.held.get(&node).and_then(|held| held.scope.objects.get(&key));
        object.is_some_and(|object| object.content == bundle)
    }

    /// The root under which the certificate stands that `node` presented last, to this process.
    pub(super) fn root_of(&self, node: NodeId) -> Option<RootPrefix> {
        self.lock().roots.get(&node).copied()
    }

    /// Marks the sessions that a change concerns.
    pub(super) fn mark(&self, concerned: &Concerned, urgent: bool) {
        let bits = if urgent { SCOPE | URGENT } else { SCOPE };
        let inner = self.lock();
        match concerned {
            Concerned::All => inner.live.values().for_each(|live| live.mark.set(bits)),
            Concerned::Nodes(nodes) => {
                nodes.iter().filter_map(|node| inner.live.get(node)).for_each(|live| live.mark.set(bits));
            }
        }
    }

    /// Everything up to `generation` has been marked.
    pub(super) fn dispatched(&self, generation: Generation) {
        self.lock().dispatched = generation;
        self.note();
    }

    /// Closes the link of a node that is no longer trusted, and forgets what it held.
    pub(super) fn cut(&self, node: NodeId, refusal: &Refusal) {
        let live = {
            let mut inner = self.lock();
            inner.held.remove(&node);
            inner.endpoints.remove(&node);
            inner.roots.remove(&node);
            inner.clones.forget(node);
            inner.live.remove(&node)
        };
        if let Some(live) = live {
            tracing::info!(%node, reason = %refusal.reason, "the node's link is cut");
            super::session::close(&live.connection, refusal);
            self.note();
        }
    }

    /// Where `node` may be reached; true when that is news.
    pub(super) fn set_endpoints(&self, node: NodeId, endpoints: Vec<SocketAddr>) -> bool {
        let mut inner = self.lock();
        let news = inner.endpoints.get(&node) != Some(&endpoints);
        inner.endpoints.insert(node, endpoints);
        news
    }

    /// The endpoints of each of `nodes`, in their order.
    pub(super) fn endpoints(&self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<Vec<SocketAddr>> {
        let inner = self.lock();
        nodes.into_iter().map(|node| inner.endpoints.get(&node).cloned().unwrap_or_default()).collect()
    }

    /// Where a node may be reached, the likeliest first.
    #[must_use]
    pub fn endpoints_of(&self, node: NodeId) -> Vec<SocketAddr> {
        self.lock().endpoints.get(&node).cloned().unwrap_or_default()
    }

    /// Marks the sessions that should hear of new endpoints.
    pub(super) fn mark_hints(&self, concerned: &Concerned) {
        let inner = self.lock();
        match concerned {
            Concerned::All => inner.live.values().for_each(|live| live.mark.set(HINTS)),
            Concerned::Nodes(nodes) => {
                nodes.iter().filter_map(|node| inner.live.get(node)).for_each(|live| live.mark.set(HINTS));
            }
        }
    }

    fn note(&self) {
        self.moved.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    /// Changes this session's status, unless a newer session has replaced it.
    pub(super) fn update(&self, change: impl FnOnce(&mut LinkStatus)) {
        if let Some(live) = self.links.lock().live.get_mut(&self.node).filter(|live| live.serial == self.serial) {
            change(&mut live.status);
        }
        self.links.note();
    }

    /// Remembers what the node holds now.
    pub(super) fn hold(&self, held: Held) {
        let mut inner = self.links.lock();
        if inner.live.get(&self.node).is_some_and(|live| live.serial == self.serial) {
            inner.held.insert(self.node, held);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut inner = self.links.lock();
        if inner.live.get(&self.node).is_some_and(|live| live.serial == self.serial) {
            inner.live.remove(&self.node);
        }
        drop(inner);
        self.links.note();
    }
}
