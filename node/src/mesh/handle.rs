//! The handle to the owner of what this node knows: orders go in, snapshots come out.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use warren_engine::mesh::MeshUpdate;
use warren_proto::peer_map::Generation;
use warren_proto::reason::Refusal;
use warren_proto::{TrustBundle, UnixTime, WorkloadName, wire};

use super::Applied;
use crate::certificates::key_store::Instance;
use crate::mesh_view::{Knowledge, MeshView};

/// Where the engine takes its orders.
pub type Engine = Box<dyn Fn(MeshUpdate) + Send>;

pub(super) enum Command {
    Update(Box<wire::Update>, oneshot::Sender<Result<Applied, Refusal>>),
    Heartbeat(wire::SignedObject),
    Hints(Vec<wire::PeerHint>),
    Instance(Box<Instance>),
    Attach(Engine),
    EngineApplied(u64),
    BundleKept(u64),
    Turns(oneshot::Sender<()>),
}

/// Speaks to the owner.
#[derive(Debug, Clone)]
pub struct MeshHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<Option<Arc<MeshView>>>,
    pub(super) answered: watch::Receiver<Generation>,
    pub(super) bundle: watch::Receiver<TrustBundle>,
}

impl MeshHandle {
    /// Hands over a whole update. The answer comes when it is in force, or with why it was refused.
    pub async fn update(&self, update: wire::Update) -> oneshot::Receiver<Result<Applied, Refusal>> {
        let (answer, receive) = oneshot::channel();
        self.send(Command::Update(Box::new(update), answer)).await;
        receive
    }

    /// Hands over a signed heartbeat.
    pub async fn heartbeat(&self, signed: wire::SignedObject) {
        self.send(Command::Heartbeat(signed)).await;
    }

    /// Hands over endpoint hints.
    pub async fn hints(&self, hints: Vec<wire::PeerHint>) {
        self.send(Command::Hints(hints)).await;
    }

    /// This node's instance has new certificates.
    pub async fn instance(&self, instance: Instance) {
        self.send(Command::Instance(Box::new(instance))).await;
    }

    /// The engine is up: it is told what holds, and everything after.
    pub async fn attach(&self, engine: Engine) {
        self.send(Command::Attach(engine)).await;
    }

    /// The engine reports that all workers judge by this generation.
    pub async fn engine_applied(&self, generation: u64) {
        self.send(Command::EngineApplied(generation)).await;
    }

    /// The trust bundle of this sequence is on disk where the next start looks for it.
    pub async fn bundle_kept(&self, sequence: u64) {
        self.send(Command::BundleKept(sequence)).await;
    }

    /// Whether the owner still works through its orders.
    pub async fn turns(&self) -> bool {
        let (answer, receive) = oneshot::channel();
        self.send(Command::Turns(answer)).await;
        receive.await.is_ok()
    }

    /// The snapshot, to watch.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Option<Arc<MeshView>>> {
        self.view.clone()
    }

    /// What this node may claim to hold: the newest it knows, if that is in force with every worker and on disk as far as
    /// an acknowledgement promises it.
    #[must_use]
    pub fn held(&self) -> Option<Arc<Knowledge>> {
        let newest = self.view.borrow().as_ref().map(|view| view.knowledge.clone())?;
        (newest.manifest.generation == *self.answered.borrow()).then_some(newest)
    }

    /// Whether a plain device is among the peers admitted that some rule links to `workload`.
    #[must_use]
    pub fn serves_devices(&self, workload: &WorkloadName, now: UnixTime) -> bool {
        self.view.borrow().as_ref().is_some_and(|view| {
            let mut devices = view.peers.iter().filter(|peer| peer.is_plain());
            devices.any(|device| view.knowledge.policy.linked_either_way(workload, device.workload(), now))
        })
    }

    /// The roots in force, to watch.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<TrustBundle> {
        self.bundle.clone()
    }

    async fn send(&self, command: Command) {
        // The owner ends last; when it is gone the process is stopping.
        let _ = self.commands.send(command).await;
    }
}
