//! The tunnel's end on this host: claims what it needs before anything else happens, so that what is missing is
//! named at once; opens when this node knows who it is; and closes behind itself.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};
use warren_engine::mesh::{EngineConfig, Event, MeshUpdate, PeerStatus, UnknownKey};
use warren_engine::records::FlowRecord;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{SpiffeId, TrustDomain};

use crate::clock::Clock;
use crate::config;
use crate::data_plane::offload::Offloads;
use crate::data_plane::{DataPlane, DataPlaneConfig, DataPlaneEvent, Devices, tun, udp};
use crate::flow_log::FlowLog;
use crate::host::{Desired, Host, HostEvent, Keeper};
use crate::local_api::types::{FlowLine, FlowVerdict};
use crate::mesh::MeshHandle;
use crate::mesh_view::MeshView;
use crate::stop::Stop;

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct TunnelFacts {
    /// The TUN device.
    pub device: String,
    /// UDP port.
    pub port: u16,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// Worker threads.
    pub workers: usize,
    /// What the kernel did not offer.
    pub notes: Vec<String>,
    /// Which offloads are in use.
    pub offloads: Arc<Offloads>,
}

/// How the data plane is doing.
#[derive(Debug, Default)]
pub struct TunnelStatus {
    /// Peers, with their sessions.
    pub peers: Vec<PeerStatus>,
    /// Keys that knocked and are nobody's.
    pub unknown_keys: Vec<UnknownKey>,
    /// Packets dropped since the start.
    pub drops: Vec<(Reason, u64)>,
}

/// Claimed and closed: no address, no route, no packet.
pub struct Claimed {
    host: Host,
    tun: tun::Tun,
    udp: udp::UdpSockets,
    /// What was claimed.
    pub facts: TunnelFacts,
}

impl Claimed {
    /// The TUN device's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.tun.index
    }
}

/// Claims the network namespace, the TUN device and the UDP port.
pub fn claim(config: &config::Tunnel) -> Result<Claimed, Refusal> {
    let refused =
        |what: &str, error: &dyn std::fmt::Display| Refusal::new(Reason::Internal, format!("{what}: {error}"));
    let workers = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => usize::from(count),
    };
    let host = Host::claim().map_err(|error| refused("this network namespace cannot be claimed", &error))?;
    let offloads = Offloads::new(config.offload);
    let tun = tun::open(&config.device, workers, &offloads).map_err(|error| refused("tunnel.device", &error))?;
    let udp = udp::bind(config.port, workers, &offloads).map_err(|error| refused("tunnel.port", &error))?;
    let facts = TunnelFacts {
        device: tun.name.clone(),
        port: udp.port,
        mtu: config.mtu,
        workers,
        notes: udp.notes.clone(),
        offloads,
    };
    for note in &facts.notes {
        info!("udp: {note}");
    }
    for state in facts.offloads.states().iter().filter(|state| !state.on) {
        info!("offload {}: {}", state.name, state.detail);
    }
    Ok(Claimed { host, tun, udp, facts })
}

/// What the task speaks to.
pub struct Around {
    /// Tells what holds, and is told what is in force.
    pub mesh: MeshHandle,
    /// Takes what was judged.
    pub flows: Arc<FlowLog>,
    /// The time.
    pub clock: Arc<Clock>,
    /// Who asks how it is doing.
    pub questions: mpsc::UnboundedReceiver<oneshot::Sender<TunnelStatus>>,
    /// Says when packets are let through as policy says.
    pub ready: watch::Sender<bool>,
    /// Ends it.
    pub stop: Stop,
}

/// Waits until this node knows who it is, opens the tunnel, and serves it until told to stop. An error means that the
/// tunnel has closed by itself: the daemon must end.
pub async fn run(claimed: Claimed, mut around: Around) -> Result<(), Refusal> {
    let mut view = around.mesh.view();
    let stop = around.stop.clone();
    let Claimed { host, tun, udp, facts } = claimed;
    let desired = tokio::select! {
        desired = known(&mut view, tun.index, facts.mtu) => desired?,
        () = stop.stopped() => return Ok(()),
    };
    let (host_events, mut from_host) = mpsc::unbounded_channel();
    let (keeper, changes) = {
        let desired = desired.clone();
        blocking(move || Keeper::start(host, desired, move |event| drop(host_events.send(event)))).await?
    }
    .map_err(|error| Refusal::new(Reason::Internal, format!("the host does not take the overlay: {error}")))?;
    for change in &changes.made {
        info!("host: {change}");
    }
    let (events, mut from_plane) = mpsc::unbounded_channel();
    let devices = Devices {
        inner: tun.queues.into_iter().map(|queue| Box::new(queue) as _).collect(),
        outer: udp.sockets.into_iter().map(|socket| Box::new(socket) as _).collect(),
        engine: Box::new(udp.engine),
    };
    let engine = EngineConfig { mtu: facts.mtu.into(), ..EngineConfig::new(rand::random()) };
    let clock = around.clock.clone();
    let started = DataPlane::start(DataPlaneConfig { engine, time: Arc::new(move || clock.now()) }, devices, events);
    match started {
        Ok(plane) => {
            let (orders, from_mesh) = mpsc::unbounded_channel::<MeshUpdate>();
            around.mesh.attach(Box::new(move |update| drop(orders.send(update)))).await;
            let trust_domain = view.borrow().as_ref().map(|view| view.knowledge.manifest.trust_domain.clone());
            let serving = Serving { facts: &facts, keeper: &keeper, plane: &plane, trust_domain, desired };
            let served = serving.serve(&mut around, view, from_mesh, &mut from_plane, &mut from_host).await;
            around.ready.send_replace(false);
            // The host first: the TUN device goes away with the data plane, and a host that is still kept would miss it.
            let reverted = blocking(move || keeper.stop()).await.and_then(|reverted| {
                reverted.map_err(|error| {
                    Refusal::new(Reason::Internal, format!("the host keeps something of the overlay: {error}"))
                })
            });
            let ended = blocking(move || plane.shut_down()).await;
            // The last flows are still worth a line.
            while let Ok(event) = from_plane.try_recv() {
                if let DataPlaneEvent::Flow(record) = event {
                    around.flows.add(flow_line(&record, None));
                }
            }
            served.and(reverted).and(ended)
        }
        Err(error) => Err(Refusal::new(Reason::Internal, format!("the data plane does not start: {error}"))),
    }
}

struct Serving<'a> {
    facts: &'a TunnelFacts,
    keeper: &'a Keeper,
    plane: &'a DataPlane,
    trust_domain: Option<TrustDomain>,
    desired: Desired,
}

impl Serving<'_> {
    async fn serve(
        mut self,
        around: &mut Around,
        mut view: watch::Receiver<Option<Arc<MeshView>>>,
        mut from_mesh: mpsc::UnboundedReceiver<MeshUpdate>,
        from_plane: &mut mpsc::UnboundedReceiver<DataPlaneEvent>,
        from_host: &mut mpsc::UnboundedReceiver<HostEvent>,
    ) -> Result<(), Refusal> {
        let stop = around.stop.clone();
        loop {
            tokio::select! {
                Some(update) = from_mesh.recv() => self.plane.apply(update),
                event = from_plane.recv() => match event {
                    Some(event) => self.handle_plane(event, around).await?,
                    None => return Err(Refusal::new(Reason::Internal, "the data plane has ended by itself")),
                },
                Some(event) = from_host.recv() => match event {
                    HostEvent::Repaired(changes) => warn!("something changed the host's overlay; repaired: {}", changes.join("; ")),
                    HostEvent::Failed(error) => {
                        return Err(Refusal::new(Reason::Internal, format!("the host's overlay is lost: {error}")));
                    }
                },
                Some(question) = around.questions.recv() => self.answer(question),
                changed = view.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let desired = view.borrow_and_update().as_deref().and_then(|view| desired_of(view, self.desired.device, self.facts.mtu));
                    if let Some(desired) = desired.filter(|desired| *desired != self.desired) {
                        let ordered = self.keeper.order(desired.clone());
                        blocking(move || ordered.wait()).await?.map_err(|error| {
                            Refusal::new(Reason::Internal, format!("the host does not take the overlay: {error}"))
                        })?;
                        self.desired = desired;
                    }
                }
                () = stop.stopped() => return Ok(()),
            }
        }
    }

    async fn handle_plane(&self, event: DataPlaneEvent, around: &Around) -> Result<(), Refusal> {
        match event {
            DataPlaneEvent::Engine(Event::Applied { generation }) => {
                around.mesh.engine_applied(generation).await;
                around.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
            }
            DataPlaneEvent::Engine(event) => tell(&event),
            DataPlaneEvent::Flow(record) => {
                let line = flow_line(&record, self.trust_domain.as_ref());
                if let Some(reason) = line.reason {
                    info!(
                        reason = reason.name(),
                        source = line.source,
                        destination = line.destination,
                        protocol = line.protocol,
                        port = line.port,
                        rule = line.rule,
                        count = line.count,
                        "flow denied"
                    );
                }
                around.flows.add(line);
            }
            DataPlaneEvent::DeviceLost { what, error } => {
                let detail = format!("{what} of {} is lost: {error}", self.facts.device);
                return Err(Refusal::new(Reason::Internal, detail)
                    .hint("something removed it; the node has closed: restart it"));
            }
        }
        Ok(())
    }

    fn answer(&self, question: oneshot::Sender<TunnelStatus>) {
        let status = self.plane.status();
        tokio::spawn(async move {
            if let Ok(status) = status.await {
                // Whoever asked may have gone.
                let _ = question.send(TunnelStatus {
                    peers: status.peers,
                    unknown_keys: status.unknown_keys,
                    drops: status.drops,
                });
            }
        });
    }
}

/// Waits for an instance and the overlay it lives in.
async fn known(view: &mut watch::Receiver<Option<Arc<MeshView>>>, device: u32, mtu: u16) -> Result<Desired, Refusal> {
    loop {
        let desired = view.borrow_and_update().as_deref().and_then(|view| desired_of(view, device, mtu));
        if let Some(desired) = desired {
            return Ok(desired);
        }
        view.changed().await.map_err(|_| Refusal::new(Reason::ShuttingDown, "the node is stopping"))?;
    }
}

fn desired_of(view: &MeshView, device: u32, mtu: u16) -> Option<Desired> {
    let own = view.own.as_ref()?;
    Some(Desired { overlay: view.knowledge.manifest.overlay, addresses: vec![own.addresses], device, mtu: mtu.into() })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(Reason::Internal, format!("a part of the data plane crashed: {error}")))
}

fn tell(event: &Event) {
    match event {
        Event::Applied { .. } => {}
        Event::FlowsCut(flows) => info!(flows = flows.len(), "flows cut: policy or peer no longer allows them"),
        Event::SessionUp { peer, suite, rekey, .. } => {
            info!(%peer, suite = suite.name(), rekey, "session up");
        }
        Event::SessionDown { peer, reason, .. } => info!(%peer, reason = reason.name(), "session down"),
        Event::Unreachable { peer, reason, .. } => warn!(%peer, reason = reason.name(), "peer unreachable"),
        Event::UnknownKey(key) => {
            debug!(key_hash = hex::encode(key.hash), from = %key.from, count = key.count, "unknown key");
        }
    }
}

/// A record as people and the API read it: names without the trust domain where it is this mesh's.
fn flow_line(record: &FlowRecord, trust_domain: Option<&TrustDomain>) -> FlowLine {
    let name = |identity: &SpiffeId| match identity.workload() {
        Some(workload) if trust_domain == Some(identity.trust_domain()) => workload.to_string(),
        _ => identity.to_string(),
    };
    let (verdict, reason) = match record.verdict {
        Ok(()) => (FlowVerdict::Allowed, record.audit.then_some(Reason::NoRule)),
        Err(reason) => (FlowVerdict::Denied, Some(reason)),
    };
    FlowLine {
        at: record.time,
        time: record.time.to_string(),
        verdict,
        source: record.source.as_ref().map(name),
        destination: record.destination.as_ref().map(name),
        protocol: match record.protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            1 | 58 => "icmp".to_owned(),
            other => other.to_string(),
        },
        port: record.destination_address.port(),
        source_address: record.source_address,
        destination_address: record.destination_address,
        rule: record.rule.as_ref().map(|rule| rule.id.clone()),
        nearest: record
            .nearest
            .as_ref()
            .map(|nearest| format!("{} lacks {}: {}", nearest.rule.id, nearest.failed, nearest.detail)),
        file: record.place.as_ref().map(|place| place.file.clone()),
        line: record.place.as_ref().map(|place| place.line),
        reason,
        audit: record.audit,
        count: record.count,
    }
}
