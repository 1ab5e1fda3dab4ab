//! The data plane's shell: moves bytes between the devices and the two pure halves of the engine.
//!
//! ```text
//!   TUN queue 0 ─┐                        ┌─ TUN queue 1
//!                ├─ worker 0   worker 1 ──┤          one thread each, run to completion
//!   UDP socket 0 ┘      \         /       └─ UDP socket 1
//!                     engine's thread                handshakes, key exchange, timers, policy
//!                            |
//!                     the daemon: [`DataPlane`]
//! ```
//!
//! The device modules `tun` and `udp`, and `syscalls` beneath them, are the only home of `unsafe` in the project.

mod engine_loop;
pub mod io;
mod io_errors;
mod mailbox;
pub mod offload;
mod syscalls;
pub mod tun;
pub mod udp;
mod worker_loop;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::sync::{mpsc, oneshot};
use warren_engine::Now;
use warren_engine::counters::{Counters, Traffic};
use warren_engine::engine::Engine;
use warren_engine::mesh::{EngineConfig, Event, MeshUpdate, PeerStatus, UnknownKey};
use warren_engine::records::FlowRecord;
use warren_engine::tables::Shared;
use warren_engine::worker::Worker;
use warren_proto::Reason;

use engine_loop::{Acknowledgements, EngineLoop, ToEngine};
use io::{InnerIo, OuterIo};
use mailbox::{Limits, Mailbox};
use worker_loop::{Wiring, WorkerLoop};

/// Tells the time; called once per batch from every thread of the data plane.
pub type TimeSource = Arc<dyn Fn() -> Now + Send + Sync>;

/// What a worker may have waiting from others: a few receive batches, of one session one.
const WORKER_MAILBOX: Limits = Limits { known: 2048, strange: 0, share: 4 };
/// What the engine may have waiting: the first packets to a few hundred peers, and the initiations of as many.
const ENGINE_MAILBOX: Limits = Limits { known: 4096, strange: 2048, share: 16 };
/// The wire format's own bytes around an inner packet: header, tag and padding.
const OVERHEAD: usize = 16 + 16 + 16;
/// Room for handshake messages and for peers whose devices have a larger MTU than ours.
const SMALLEST_SLOT: usize = 2048;

/// How the data plane is to run.
pub struct DataPlaneConfig {
    /// The slow half's settings.
    pub engine: EngineConfig,
    /// Tells the time.
    pub time: TimeSource,
}

/// The devices: as many inner as outer ones, one of each per worker.
pub struct Devices {
    /// TUN queues.
    pub inner: Vec<Box<dyn InnerIo>>,
    /// UDP sockets of one port.
    pub outer: Vec<Box<dyn OuterIo>>,
    /// Another handle on that port, for the engine's own messages.
    pub engine: Box<dyn OuterIo>,
}

/// What the data plane tells the daemon.
#[derive(Debug)]
pub enum DataPlaneEvent {
    /// Of the slow half. `Applied` comes when everything judged by older policy has left.
    Engine(Event),
    /// For the flow log.
    Flow(Box<FlowRecord>),
    /// A device cannot be used any more. Every session has ended and nothing passes; shut down.
    DeviceLost {
        /// Which one.
        what: &'static str,
        /// The kernel's answer.
        error: String,
    },
}

/// How the data plane stands.
#[derive(Debug, Clone)]
pub struct Status {
    /// Every peer, in no order.
    pub peers: Vec<PeerStatus>,
    /// Strangers' keys that knocked, in no order.
    pub unknown_keys: Vec<UnknownKey>,
    /// Drops since the start, of all threads and devices; reasons that never occurred are left out.
    pub drops: Vec<(Reason, u64)>,
    /// What passed, per worker.
    pub traffic: Vec<Traffic>,
    /// Live flows.
    pub flows: usize,
    /// The policy generation in force.
    pub generation: u64,
}

/// Why the data plane could not start. Each text ends in the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A programming error of the caller.
    #[error(
        "{inner} TUN queues and {outer} UDP sockets: there must be as many of each, at least one; check tunnel.workers"
    )]
    Devices {
        /// TUN queues given.
        inner: usize,
        /// UDP sockets given.
        outer: usize,
    },
    /// The system's limits.
    #[error("cannot start the data plane's threads: {0}; raise the limits of processes and open files (ulimit -u, -n)")]
    Threads(#[from] std::io::Error),
}

/// A running data plane. Dropping it without [`shut_down`](Self::shut_down) stops it as well.
pub struct DataPlane {
    wiring: Arc<Wiring>,
    threads: Vec<JoinHandle<()>>,
}

impl DataPlane {
    /// Starts one thread per pair of devices and one for the engine. Nothing passes before the first
    /// [`apply`](Self::apply).
    pub fn start(
        config: DataPlaneConfig,
        devices: Devices,
        events: mpsc::UnboundedSender<DataPlaneEvent>,
    ) -> Result<Self, StartError> {
        let (inner, outer) = (devices.inner.len(), devices.outer.len());
        let count = u16::try_from(inner).ok().filter(|_| inner > 0 && inner == outer);
        let count = count.ok_or(StartError::Devices { inner, outer })?;
        let shared = Arc::new(Shared::new(count));
        let mailboxes: std::io::Result<Box<[_]>> = (0..count).map(|_| Mailbox::new(WORKER_MAILBOX)).collect();
        let wiring = Arc::new(Wiring {
            workers: mailboxes?,
            engine: Mailbox::new(ENGINE_MAILBOX)?,
            stop: AtomicBool::new(false),
            time: config.time,
            events,
        });
        // From here on dropping it ends whatever threads there are already.
        let mut plane = Self { wiring: Arc::clone(&wiring), threads: Vec::new() };
        let slot = (config.engine.mtu as usize + OVERHEAD).max(SMALLEST_SLOT);
        let mut counters = Vec::new();
        let mut loops = Vec::new();
        for (index, (inner, outer)) in (0..count).zip(devices.inner.into_iter().zip(devices.outer)) {
            let worker = Worker::new(index, Arc::clone(&shared));
            counters.push(worker.counters());
            loops.push((index, WorkerLoop::new(worker, inner, outer, Arc::clone(&wiring), slot)));
        }
        let engine = EngineLoop {
            engine: Engine::new(config.engine, Arc::clone(&shared)),
            shared,
            outer: devices.engine,
            wiring,
            counters,
            own: Counters::default(),
            inbox: VecDeque::new(),
            done: 0,
            held: Acknowledgements::default(),
        };
        plane.spawn("warren-engine".to_owned(), move || engine.run())?;
        for (index, worker) in loops {
            plane.spawn(format!("warren-worker-{index}"), move || {
                pin(index, count);
                worker.run();
            })?;
        }
        Ok(plane)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Makes `update` the mesh in force. [`Event::Applied`] with its generation says when it is.
    pub fn apply(&self, update: MeshUpdate) {
        self.wiring.engine.insist(ToEngine::Apply(Box::new(update)));
    }

    /// How things stand. The answer fails when the data plane has ended.
    #[must_use]
    pub fn status(&self) -> oneshot::Receiver<Status> {
        let (answer, answered) = oneshot::channel();
        self.wiring.engine.insist(ToEngine::Status(answer));
        answered
    }

    /// Ends every session, lets nothing pass any more, and waits for the threads.
    pub fn shut_down(self) {
        drop(self);
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.wiring.engine.insist(ToEngine::Stop);
        if self.threads.is_empty() {
            return;
        }
        for thread in self.threads.drain(..) {
            // A thread that failed has raised its alarm already.
            let _ = thread.join();
        }
    }
}

/// Keeps worker `index` of `count` on one core, where there is a worker for each; a refusal changes nothing.
fn pin(index: u16, count: u16) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if count < 2 || allowed.count() != u32::from(count) {
        return;
    }
    let core = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).nth(usize::from(index));
    if let Some(core) = core {
        let mut one = CpuSet::new();
        one.set(core);
        let _ = sched_setaffinity(None, &one);
    }
}
