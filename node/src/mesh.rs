//! The owner of what this node knows: takes updates, heartbeats and hints from the control link, judges them, tells the
//! engine, and publishes one snapshot for everyone else. Nothing else writes any of it.
//!
//! ```text
//! control link --Update--> accept -> admit -> MeshUpdate -> engine --Applied--> disk -> answer (acknowledge)
//! ```
//!
//! An update is answered when every worker judges by it and, if it changed an object or took something away, when it is on
//! disk: an acknowledged revocation survives a power cut.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};
use warren_engine::identity::{RefusedRecord, VerifiedPeer, verify_signed_object};
use warren_engine::mesh::MeshUpdate;
use warren_proto::peer_map::{Generation, Heartbeat, RevocationSet};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, TrustBundle, TrustDomain, UnixTime, WorkloadName, wire};

use crate::certificates::key_store::Instance;
use crate::clock::Clock;
use crate::mesh_view::{Acceptance, Knowledge, Local, LocalOpenings, MeshView, RefusedUpdate, read_hints};
use crate::snapshot::{self, Endpoints, Floor};
use crate::state_dir::{StateDir, StateError};

mod handle;
mod own;

use handle::Command;
pub use handle::{Engine, MeshHandle};

/// Records that could not be judged for want of time or freshness are judged again this often, and what only added peers
/// is written to disk.
const TICK: Duration = Duration::from_secs(2);
/// The floor of time is written this often, in ticks.
const FLOOR_TICKS: u32 = 300;
/// Commands that may wait: the control link sends one update at a time.
const DEPTH: usize = 64;

/// What became of an update.
#[derive(Debug)]
pub struct Applied {
    /// In force from now on.
    pub generation: Generation,
    /// Records that were refused singly.
    pub refused: Vec<RefusedRecord>,
}

/// What the owner starts from.
#[derive(Debug)]
pub struct Start {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node.
    pub node: NodeId,
    /// The identities that this host is to have, as far as they are known: some have no instance yet.
    pub workloads: BTreeSet<WorkloadName>,
    /// The roots held.
    pub bundle: TrustBundle,
    /// This node's instances from disk, in the order that they are shown in.
    pub instances: Vec<Instance>,
    /// Where everything is kept.
    pub state: Arc<StateDir>,
    /// The time.
    pub clock: Arc<Clock>,
}

/// The owner.
pub struct Mesh {
    start: Start,
    floor: Floor,
    applied: Generation,
    seen: RevocationSet,
    knowledge: Option<Arc<Knowledge>>,
    hints: HashMap<InstanceId, Vec<SocketAddr>>,
    saved_hints: Endpoints,
    heard: UnixTime,
    admitted: HashSet<InstanceId>,
    peers: Vec<VerifiedPeer>,
    refused: Arc<[RefusedRecord]>,
    generation: u64,
    engine: Option<Engine>,
    waiting: VecDeque<Waiting>,
    /// The newest generation by which all workers judge.
    engine_at: u64,
    /// Sequence of the newest trust bundle that the next start will find.
    bundle_kept: u64,
    unsaved: bool,
    /// What this node's own instances may open towards each other.
    openings: Arc<[LocalOpenings]>,
    /// From here on the policy in force answers otherwise by itself.
    policy_changes: Option<UnixTime>,
    /// The time at which everything was judged last.
    judged: UnixTime,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<Option<Arc<MeshView>>>,
    /// The newest generation that was acknowledged, or could have been.
    answered: watch::Sender<Generation>,
    bundle: watch::Sender<TrustBundle>,
}

struct Waiting {
    generation: u64,
    /// The sequence of the trust bundle that it brought, or less.
    bundle: u64,
    outcome: Result<Applied, Refusal>,
    answer: oneshot::Sender<Result<Applied, Refusal>>,
}

impl Mesh {
    /// Reads what is on disk and publishes it. Damaged or rolled-back snapshots are named in the log and left out: the node
    /// then waits for its coordinator, closed.
    pub fn open(start: Start) -> Result<(Self, MeshHandle), Refusal> {
        let floor = snapshot::read_floor(&start.state)?;
        start.clock.verified(floor.time);
        let seen = snapshot::read_revocations(&start.state)?;
        let found = snapshot::read(
            &start.state,
            Acceptance {
                trust_domain: &start.trust_domain,
                node: start.node,
                bundle: &start.bundle,
                floor: floor.generation,
                seen: &seen,
                now: start.clock.now().unix,
            },
        );
        for text in &found.refused {
            warn!(reason = Reason::StateCorrupt.name(), "stored snapshot refused: {text}");
        }
        let saved_hints = snapshot::read_endpoints(&start.state);
        let (commands, receive) = mpsc::channel(DEPTH);
        let (view, watch_view) = watch::channel(None);
        let (answered, watch_answered) = watch::channel(Generation::default());
        let (bundle, watch_bundle) = watch::channel(start.bundle.clone());
        let mut mesh = Self {
            applied: floor.generation,
            heard: UnixTime(0),
            admitted: HashSet::new(),
            peers: Vec::new(),
            refused: Arc::new([]),
            generation: 0,
            engine: None,
            waiting: VecDeque::new(),
            engine_at: 0,
            bundle_kept: start.bundle.sequence(),
            unsaved: false,
            openings: Arc::new([]),
            policy_changes: None,
            judged: UnixTime(0),
            knowledge: None,
            hints: saved_hints.clone().into_iter().collect(),
            saved_hints,
            commands: receive,
            start,
            floor,
            seen,
            view,
            answered,
            bundle,
        };
        if let Some(knowledge) = found.knowledge {
            let generation = knowledge.manifest.generation;
            info!(epoch = generation.epoch, revision = generation.revision, "starting from the stored snapshot");
            // Whoever was admitted when it was stored may be again, however long the coordinator has been away.
            mesh.admitted = knowledge.scope.peers.keys().copied().collect();
            mesh.take(knowledge);
            if mesh.bundle.borrow().sequence() <= mesh.bundle_kept {
                mesh.answered.send_replace(generation);
            }
            mesh.publish();
        }
        Ok((mesh, MeshHandle { commands, view: watch_view, answered: watch_answered, bundle: watch_bundle }))
    }

    /// Works on a thread of its own until every handle is gone: it checks signatures by the thousand and waits for the disk,
    /// and no other task is to wait with it.
    pub fn start(self) -> tokio::task::JoinHandle<()> {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(self.run()))
    }

    /// Works until every handle is gone, then writes what is not on disk yet.
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                _ = ticks.tick() => {
                    count = count.wrapping_add(1);
                    self.tick(count.is_multiple_of(FLOOR_TICKS));
                }
            }
        }
        let _ = self.save();
        self.save_hints();
        self.save_time();
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Update(update, answer) => self.handle_update(*update, answer),
            Command::Heartbeat(signed) => {
                if let Err(refusal) = self.handle_heartbeat(&signed) {
                    warn!(reason = refusal.reason.name(), "heartbeat refused: {refusal}");
                }
            }
            Command::Hints(hints) => {
                let before = self.hints.clone();
                self.hints.extend(read_hints(&hints));
                self.forget_gone();
                // Where a peer is says nothing about whom to admit: nobody is judged again.
                if self.hints != before {
                    self.tell();
                }
            }
            Command::Instance(instance) => {
                self.take_instance(*instance);
                self.publish();
            }
            Command::Attach(engine) => {
                self.engine = Some(engine);
                self.publish();
            }
            Command::EngineApplied(generation) => self.handle_applied(generation),
            Command::BundleKept(sequence) => {
                self.bundle_kept = self.bundle_kept.max(sequence);
                self.answer_waiting();
            }
            // Whoever asked may have gone.
            Command::Turns(answer) => drop(answer.send(())),
        }
    }

    fn handle_update(&mut self, update: wire::Update, answer: oneshot::Sender<Result<Applied, Refusal>>) {
        let binds = !update.objects.is_empty() || !update.tombstones.is_empty() || update.from_revision == 0;
        let hints = read_hints(&update.hints);
        let now = self.start.clock.now().unix;
        let bundle = self.bundle.borrow().clone();
        let against = Acceptance {
            trust_domain: &self.start.trust_domain,
            node: self.start.node,
            bundle: &bundle,
            floor: self.applied,
            seen: &self.seen,
            now,
        };
        match Knowledge::accept(self.knowledge.as_deref(), update, against) {
            Err(refused) => self.refuse_update(refused, answer),
            Ok((knowledge, oversized)) => {
                for refusal in &oversized {
                    warn!(reason = refusal.reason.name(), "peer record refused: {refusal}");
                }
                let generation = knowledge.manifest.generation;
                self.hints.extend(hints);
                self.take(knowledge);
                if binds {
                    self.floor.generation = generation;
                }
                self.unsaved = true;
                let refused = self.publish();
                info!(
                    epoch = generation.epoch,
                    revision = generation.revision,
                    refused = refused.len(),
                    "update accepted"
                );
                match if binds { self.save() } else { Ok(()) } {
                    Ok(()) => self.waiting.push_back(Waiting {
                        generation: self.generation,
                        bundle: self.bundle.borrow().sequence(),
                        outcome: Ok(Applied { generation, refused }),
                        answer,
                    }),
                    // In force here and now, but a restart would not know of it: the coordinator must not count on it.
                    Err(failure) => drop(answer.send(Err(failure.into()))),
                }
                if self.engine.is_none() {
                    // Without an engine nothing passes at all: it is in force.
                    self.handle_applied(self.generation);
                }
            }
        }
    }

    /// Keeps what is held, but for the revocations that a verified manifest states: those may only ever tighten, so they
    /// hold even where what came with them is refused. The refusal is answered when every worker judges by them.
    fn refuse_update(&mut self, refused: RefusedUpdate, answer: oneshot::Sender<Result<Applied, Refusal>>) {
        let RefusedUpdate { mut refusal, revocations } = refused;
        warn!(reason = refusal.reason.name(), "update refused: {refusal}");
        if !revocations.adds_to(&self.seen) {
            let _ = answer.send(Err(refusal));
            return;
        }
        self.seen = revocations.keeping(&self.seen, self.start.clock.now().unix);
        if let Some(knowledge) = &mut self.knowledge {
            Arc::make_mut(knowledge).revocations = self.seen.clone();
        }
        self.publish();
        match snapshot::write_revocations(&self.start.state, &self.seen) {
            Ok(()) => refusal.detail.push_str("; the revocations that came with it are in force"),
            Err(failure) => {
                error!(next = failure.hint(), "revocations are not stored: {failure}");
                self.unsaved = true;
            }
        }
        warn!(revocations = self.seen.all().len(), "the revocations of the refused update are in force");
        self.waiting.push_back(Waiting { generation: self.generation, bundle: 0, outcome: Err(refusal), answer });
        if self.engine.is_none() || self.knowledge.is_none() {
            self.handle_applied(self.generation);
        }
    }

    /// Takes knowledge that stood its judgement.
    fn take(&mut self, knowledge: Knowledge) {
        self.applied = knowledge.manifest.generation;
        self.hear(knowledge.manifest.issued_at);
        self.seen = knowledge.revocations.clone();
        let bundle = knowledge.bundle.clone();
        self.bundle.send_if_modified(|held| {
            let newer = held.to_wire() != bundle.to_wire();
            *held = bundle;
            newer
        });
        self.knowledge = Some(Arc::new(knowledge));
        self.forget_gone();
    }

    /// Hints about those this node knows nothing of would only grow.
    fn forget_gone(&mut self) {
        let known = self.knowledge.as_ref();
        self.hints.retain(|instance, _| known.is_some_and(|known| known.scope.peers.contains_key(instance)));
    }

    fn handle_heartbeat(&mut self, signed: &wire::SignedObject) -> Result<(), Refusal> {
        let bundle = self.bundle.borrow().clone();
        let body = verify_signed_object(signed, &bundle, self.start.clock.now().unix)?;
        let heartbeat = Heartbeat::decode(body.as_bytes())?;
        if heartbeat.node != self.start.node || heartbeat.trust_domain != self.start.trust_domain {
            return Err(Refusal::new(Reason::ManifestWrongNode, "the heartbeat is for another node"));
        }
        // It speaks of one generation, and is a word about no other: a node that missed something must not be reassured.
        if heartbeat.generation > self.applied || self.knowledge.is_none() {
            let (says, holds) = (heartbeat.generation, self.applied);
            let detail = format!(
                "the heartbeat confirms revision {}.{}, this node holds {}.{}",
                says.epoch, says.revision, holds.epoch, holds.revision
            );
            return Err(Refusal::new(Reason::ManifestIncomplete, detail).hint("it is told the rest on a new link"));
        }
        if heartbeat.generation < self.applied {
            debug!(
                revision = heartbeat.generation.revision,
                "a heartbeat from before the last update counts for nothing"
            );
            return Ok(());
        }
        if heartbeat.issued_at < self.heard {
            return Err(Refusal::new(Reason::ManifestRolledBack, "the heartbeat is older than one already heard"));
        }
        let was_stale = self.is_stale();
        self.hear(heartbeat.issued_at);
        if was_stale && !self.is_stale() {
            self.publish();
        } else {
            self.refresh();
        }
        Ok(())
    }

    fn hear(&mut self, moment: UnixTime) {
        self.heard = self.heard.max(moment);
        self.start.clock.verified(moment);
    }

    fn fresh_until(&self) -> UnixTime {
        let after = self.knowledge.as_ref().map_or(0, |knowledge| knowledge.manifest.stale_after_seconds);
        self.heard.plus(Duration::from_secs(after.into()))
    }

    fn is_stale(&self) -> bool {
        self.start.clock.now().unix > self.fresh_until()
    }

    /// Judges every record at this moment, tells the engine and publishes the snapshot.
    fn publish(&mut self) -> Vec<RefusedRecord> {
        let Some(knowledge) = self.knowledge.clone() else {
            return Vec::new();
        };
        let now = self.start.clock.now().unix;
        let (locals, own) = self.locals(now);
        let local = Local {
            workloads: self.start.workloads.clone(),
            addresses: own.iter().flat_map(|own| own.addresses.iter()).collect(),
            keys: locals.iter().map(|local| local.secret.public_key()).collect(),
        };
        let admission = knowledge.admit(&local, self.fresh_until(), &self.admitted, now);
        self.policy_changes = knowledge.policy.next_date(now);
        self.openings = knowledge.openings(&own, now).into();
        self.judged = now;
        self.admitted = admission.peers.iter().map(VerifiedPeer::instance).collect();
        self.log_refused(&admission.refused);
        self.refused = admission.refused.clone().into();
        self.peers = admission.peers;
        self.tell();
        admission.refused
    }

    /// Tells the engine and everyone else what was judged last.
    fn tell(&mut self) {
        let Some(knowledge) = self.knowledge.clone() else {
            return;
        };
        let (locals, own) = self.locals(self.start.clock.now().unix);
        self.generation += 1;
        if let Some(engine) = &self.engine {
            engine(MeshUpdate {
                generation: self.generation,
                policy: knowledge.policy.clone(),
                locals,
                peers: self.peers.clone(),
                endpoints: self.hints.clone(),
            });
        }
        self.view.send_replace(Some(Arc::new(MeshView {
            generation: self.generation,
            own,
            openings: self.openings.clone(),
            peers: self.peers.clone().into(),
            refused: self.refused.clone(),
            endpoints: self.hints.clone(),
            heard: self.heard,
            fresh_until: self.fresh_until(),
            knowledge,
        })));
    }

    /// Publishes a new age of the heartbeat; nothing that the engine judges by has changed.
    fn refresh(&self) {
        let (heard, fresh_until) = (self.heard, self.fresh_until());
        self.view.send_modify(|view| {
            if let Some(view) = view {
                let view = Arc::make_mut(view);
                (view.heard, view.fresh_until) = (heard, fresh_until);
            }
        });
    }

    fn log_refused(&self, refused: &[RefusedRecord]) {
        for record in refused {
            if !self.refused.contains(record) {
                let (instance, refusal) = (record.instance, &record.refusal);
                warn!(%instance, reason = refusal.reason.name(), "peer record refused: {refusal}");
            }
        }
    }

    fn handle_applied(&mut self, generation: u64) {
        self.engine_at = self.engine_at.max(generation);
        self.answer_waiting();
    }

    fn answer_waiting(&mut self) {
        let (engine, bundle) = (self.engine_at, self.bundle_kept);
        while self.waiting.front().is_some_and(|first| first.generation <= engine && first.bundle <= bundle) {
            if let Some(first) = self.waiting.pop_front() {
                if let Ok(applied) = &first.outcome {
                    self.answered.send_replace(applied.generation);
                }
                // The link may have been lost meanwhile; then nobody waits.
                let _ = first.answer.send(first.outcome);
            }
        }
    }

    fn tick(&mut self, keep_time: bool) {
        let waits_for_time = self
            .refused
            .iter()
            .any(|record| matches!(record.refusal.reason, Reason::CertificateNotYetValid | Reason::MeshStale));
        let now = self.start.clock.now().unix;
        let ended = self.view.borrow().as_ref().is_some_and(|view| {
            let own = view.own.iter().any(|own| own.validity.1 <= now);
            own || view.peers.iter().any(|peer| peer.valid_until() <= now)
        });
        let dated = self.policy_changes.is_some_and(|date| date <= now);
        // A clock that ran ahead, and that nobody had vouched for, was put right: what it had ended has not ended.
        let put_right = now < self.judged;
        if ended || dated || put_right || (waits_for_time && !self.is_stale()) {
            self.publish();
        }
        // A failure is in the log, and the next tick tries again.
        let _ = self.save();
        self.save_hints();
        if keep_time {
            self.save_time();
        }
    }

    /// Writes what is in force and not on disk yet. What is in force stays so when that fails.
    fn save(&mut self) -> Result<(), StateError> {
        let Some(knowledge) = self.knowledge.clone().filter(|_| self.unsaved) else {
            return Ok(());
        };
        self.floor.time = self.start.clock.floor();
        snapshot::write(&self.start.state, &knowledge, &self.floor)
            .inspect_err(|failure| error!(next = failure.hint(), "the snapshot is not stored: {failure}"))?;
        self.unsaved = false;
        Ok(())
    }

    fn save_hints(&mut self) {
        let hints: Endpoints = self.hints.iter().map(|(instance, endpoints)| (*instance, endpoints.clone())).collect();
        if hints == self.saved_hints {
            return;
        }
        match snapshot::write_endpoints(&self.start.state, &hints) {
            Ok(()) => self.saved_hints = hints,
            Err(failure) => error!(next = failure.hint(), "where peers are is not stored: {failure}"),
        }
    }

    fn save_time(&mut self) {
        self.floor.time = self.start.clock.floor();
        if let Err(failure) = snapshot::write_floor(&self.start.state, &self.floor) {
            error!(next = failure.hint(), "the floor of time is not stored: {failure}");
        }
    }
}

#[cfg(test)]
mod tests;
