//! The X.509-SVIDs that this node holds for the workloads of its host: asked for when a workload first asks, renewed at half
//! their life for as long as somebody listens, withdrawn when they end or are revoked, and never on disk.
//!
//! One task owns them and publishes a snapshot; the Workload API reads it and says what it is interested in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{info, warn};
use warren_proto::certificate::{CLOCK_SKEW, WorkloadSvid};
use warren_proto::peer_map::Subject;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{NodeId, TrustBundle, UnixTime, WorkloadName};

use super::key_store::{Chain, SigningKey};
use super::renewal::{Due, LONGEST, SHORTEST};
use super::rotator::Validity;
use crate::clock::Clock;
use crate::control_client::session::{LinkState, Wanted};
use crate::mesh_view::MeshView;
use crate::stop::Stop;

/// After a failed try, somebody who asks waits no longer than this for the next.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// An SVID with the key that is handed over with it.
#[derive(Debug)]
pub struct Svid {
    /// The workload's own key.
    pub key: SigningKey,
    /// DER, leaf first, the root left out.
    pub chain: Chain,
    /// The leaf.
    pub certificate: WorkloadSvid,
    /// The earliest end on its path.
    pub valid_until: UnixTime,
}

/// What there is for one workload.
#[derive(Debug, Clone)]
pub enum Held {
    /// In date.
    Svid(Arc<Svid>),
    /// None, and why.
    Refused(Refusal),
}

/// What there is for each workload that was asked for. A workload that is not in it is being asked for, or nobody wants it.
pub type Snapshot = Arc<BTreeMap<WorkloadName, Held>>;

#[derive(Debug, Default)]
struct Interest {
    listeners: AtomicUsize,
    /// Somebody asked since the keeper last looked.
    asked: AtomicUsize,
}

/// Where SVIDs are read, and asked for.
#[derive(Debug, Clone)]
pub struct Svids {
    held: watch::Receiver<Snapshot>,
    interests: Arc<Mutex<BTreeMap<WorkloadName, Arc<Interest>>>>,
    wake: Arc<Notify>,
}

/// Keeps an SVID in date while it lives.
#[derive(Debug)]
pub struct Listening(Arc<Interest>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Svids {
    /// Wants the workload's SVID, from now until the answer is dropped.
    #[must_use]
    pub fn listen(&self, workload: &WorkloadName) -> Listening {
        let mut interests = self.interests.lock().unwrap_or_else(PoisonError::into_inner);
        let interest = interests.entry(workload.clone()).or_default().clone();
        interest.listeners.fetch_add(1, Ordering::Relaxed);
        interest.asked.store(1, Ordering::Relaxed);
        self.wake.notify_one();
        Listening(interest)
    }

    /// The snapshot, to watch.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<Snapshot> {
        self.held.clone()
    }

    /// How many listen, by workload.
    #[must_use]
    pub fn listeners(&self) -> BTreeMap<WorkloadName, usize> {
        let interests = self.interests.lock().unwrap_or_else(PoisonError::into_inner);
        interests.iter().map(|(name, interest)| (name.clone(), interest.listeners.load(Ordering::Relaxed))).collect()
    }
}

/// The owner.
#[derive(Debug)]
pub struct SvidKeeper {
    node: NodeId,
    svids: Svids,
    publish: watch::Sender<Snapshot>,
    wanted: mpsc::Sender<Wanted>,
    link: watch::Receiver<LinkState>,
    bundle: watch::Receiver<TrustBundle>,
    view: watch::Receiver<Option<Arc<MeshView>>>,
    clock: Arc<Clock>,
    dues: BTreeMap<WorkloadName, Due>,
}

/// What the keeper works with.
#[derive(Debug)]
pub struct Around {
    /// This node.
    pub node: NodeId,
    /// Asks over the control link.
    pub wanted: mpsc::Sender<Wanted>,
    /// How the link is doing.
    pub link: watch::Receiver<LinkState>,
    /// The roots in force.
    pub bundle: watch::Receiver<TrustBundle>,
    /// What is revoked.
    pub view: watch::Receiver<Option<Arc<MeshView>>>,
    /// The time.
    pub clock: Arc<Clock>,
}

impl SvidKeeper {
    /// An owner that holds nothing yet, and where it is asked.
    #[must_use]
    pub fn new(around: Around) -> (Self, Svids) {
        let (publish, held) = watch::channel(Snapshot::default());
        let svids = Svids { held, interests: Arc::default(), wake: Arc::default() };
        let Around { node, wanted, link, bundle, view, clock } = around;
        let dues = BTreeMap::new();
        (Self { node, svids: svids.clone(), publish, wanted, link, bundle, view, clock, dues }, svids)
    }

    /// Works until told to stop.
    pub async fn run(mut self, stop: Stop) {
        loop {
            self.withdraw();
            self.ask_due().await;
            let now = self.clock.now().unix;
            let next = self.next_look(now);
            let wake = self.svids.wake.clone();
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = wake.notified() => {}
                changed = self.link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    for due in self.dues.values_mut() {
                        due.try_again_now();
                    }
                }
                changed = self.bundle.changed() => if changed.is_err() {
                    return;
                },
                changed = self.view.changed() => if changed.is_err() {
                    return;
                },
                () = stop.stopped() => return,
            }
        }
    }

    fn is_up(&self) -> bool {
        matches!(&*self.link.borrow(), LinkState::Up { .. })
    }

    fn next_look(&self, now: UnixTime) -> Duration {
        let held = self.publish.borrow().clone();
        let ends = held.values().filter_map(|held| match held {
            Held::Svid(svid) => Some(svid.valid_until),
            Held::Refused(_) => None,
        });
        let dues = self.dues.values().map(Due::when).filter(|_| self.is_up());
        dues.chain(ends).min().map_or(LONGEST, |next| now.until(next).clamp(SHORTEST, LONGEST))
    }

    /// Takes back what has ended or was revoked.
    fn withdraw(&mut self) {
        let now = self.clock.now().unix;
        let view = self.view.borrow_and_update().clone();
        let bundle = self.bundle.borrow_and_update().clone();
        let mut snapshot = BTreeMap::clone(&self.publish.borrow());
        let mut changed = false;
        for (workload, held) in &mut snapshot {
            let Held::Svid(svid) = held else { continue };
            let why = if svid.valid_until <= now {
                Some(Refusal::new(
                    Reason::CertificateEnded,
                    format!("the SVID of {workload} ended at {}", svid.valid_until),
                ))
            } else {
                let revoked =
                    view.as_ref().and_then(|view| view.knowledge.revocations.covers(subject(self.node, svid)));
                revoked
                    .map(|what| Refusal::new(Reason::Revoked, format!("the SVID of {workload}: its {what} is revoked")))
            };
            let due = self.dues.entry(workload.clone()).or_insert_with(Due::now);
            if let Some(why) = why {
                warn!(reason = why.reason.name(), "SVID withdrawn: {why}");
                *held = Held::Refused(why);
                *due = Due::now();
                changed = true;
            } else {
                let spread = match &*self.link.borrow() {
                    LinkState::Up { spread, .. } => *spread,
                    LinkState::Down { .. } => Duration::ZERO,
                };
                due.hasten(bundle.renew_before(), spread, rand::random(), now);
            }
        }
        if changed {
            self.publish.send_replace(Arc::new(snapshot));
        }
    }

    /// Asks for what is wanted and due; forgets what nobody listens to any more once it would be renewed.
    async fn ask_due(&mut self) {
        for (workload, interest) in self.interests() {
            let asked = interest.asked.swap(0, Ordering::Relaxed) > 0;
            let listened = asked || interest.listeners.load(Ordering::Relaxed) > 0;
            let now = self.clock.now().unix;
            let due = self.dues.entry(workload.clone()).or_insert_with(Due::now);
            if asked && matches!(self.publish.borrow().get(&workload), Some(Held::Refused(_))) {
                due.try_again_within(now, ASKED_AGAIN);
            }
            if due.when() > now {
                continue;
            }
            if !listened {
                self.forget(&workload);
                continue;
            }
            // Whoever asks while there is no link is told so at once.
            let answered = if self.is_up() { self.ask(&workload).await } else { Err(self.link_down()) };
            self.take(workload, answered);
        }
    }

    fn interests(&self) -> Vec<(WorkloadName, Arc<Interest>)> {
        let interests = self.svids.interests.lock().unwrap_or_else(PoisonError::into_inner);
        interests.iter().map(|(workload, interest)| (workload.clone(), interest.clone())).collect()
    }

    fn link_down(&self) -> Refusal {
        match &*self.link.borrow() {
            LinkState::Down { cause: Some(cause), .. } => cause.clone(),
            _ => Refusal::new(Reason::CoordinatorUnreachable, "there is no link to a coordinator yet"),
        }
    }

    fn take(&mut self, workload: WorkloadName, answered: Result<Svid, Refusal>) {
        let now = self.clock.now().unix;
        let due = self.dues.entry(workload.clone()).or_insert_with(Due::now);
        let mut snapshot = BTreeMap::clone(&self.publish.borrow());
        match answered {
            Ok(svid) => {
                let leaf = svid.certificate.leaf();
                info!(%workload, until = %svid.valid_until, "SVID issued");
                *due = due.renewed(Validity { not_before: leaf.not_before(), not_after: svid.valid_until });
                snapshot.insert(workload, Held::Svid(Arc::new(svid)));
            }
            Err(refusal) => {
                due.failed(now);
                // One in date goes on; whoever has none is told why.
                if matches!(snapshot.get(&workload), Some(Held::Svid(_))) {
                    warn!(%workload, reason = refusal.reason.name(), next = refusal.hint, "SVID not renewed: {refusal}");
                    return;
                }
                warn!(%workload, reason = refusal.reason.name(), next = refusal.hint, "SVID not issued: {refusal}");
                snapshot.insert(workload, Held::Refused(refusal));
            }
        }
        self.publish.send_replace(Arc::new(snapshot));
    }

    fn forget(&mut self, workload: &WorkloadName) {
        self.dues.remove(workload);
        let mut interests = self.svids.interests.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have come this very moment.
        if interests.get(workload).is_some_and(|interest| interest.listeners.load(Ordering::Relaxed) == 0) {
            interests.remove(workload);
        }
        drop(interests);
        let mut snapshot = BTreeMap::clone(&self.publish.borrow());
        if snapshot.remove(workload).is_some() {
            info!(%workload, "SVID given up: nobody listens");
            self.publish.send_replace(Arc::new(snapshot));
        }
    }

    async fn ask(&self, workload: &WorkloadName) -> Result<Svid, Refusal> {
        let gone = || Refusal::new(Reason::CoordinatorUnreachable, "the control link was lost");
        let (answer, receive) = oneshot::channel();
        self.wanted.send(Wanted::Svid(workload.clone(), answer)).await.map_err(|_| gone())?;
        receive.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn subject(node: NodeId, svid: &Svid) -> Subject<'_> {
    let leaf = svid.certificate.leaf();
    Subject {
        issuer_key_id: leaf.issuer_key_id().as_bytes(),
        serial: leaf.serial().as_bytes(),
        tunnel_key: None,
        instance: None,
        node: Some(node),
        spiffe_id: leaf.identity(),
        issued_at: leaf.not_before().plus(CLOCK_SKEW),
    }
}
