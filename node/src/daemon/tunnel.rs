//! The tunnel's end on this host: claims what it needs before anything else happens, so that what is missing is
//! named at once; opens when this node knows who it is; and closes behind itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};
use warren_engine::counters::Traffic;
use warren_engine::mesh::{EngineConfig, Event, MeshUpdate, PeerStatus, UnknownKey};
use warren_engine::records::FlowRecord;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{Overlay, SpiffeId, TrustDomain};

use super::kept::{Addresses, Kept, Left, blocking, handle_host, still_there, stopping};
use crate::certificates::renewal::Standing;
use crate::clock::Clock;
use crate::config;
use crate::data_plane::offload::Offloads;
use crate::data_plane::{DataPlane, DataPlaneConfig, DataPlaneEvent, Devices, tun, udp};
use crate::flow_log::FlowLog;
use crate::host::{Desired, Host, HostError, HostEvent};
use crate::local_api::types::{FlowLine, FlowVerdict};
use crate::mesh::MeshHandle;
use crate::mesh_view::MeshView;
use crate::placement::Placement;
use crate::stop::Stop;
use crate::underlay;

/// How long a device that could not be made anew is left before the next try.
const REMAKE_INTERVAL: Duration = Duration::from_millis(500);

/// What does not change while the daemon runs, and how its devices are.
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
    /// Why there is no TUN device at present.
    pub outage: Arc<Mutex<Option<String>>>,
}

impl TunnelFacts {
    /// What works less well than it could, for `warren status`.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        [self.outage().into_iter().collect(), self.notes.clone(), self.offloads.errors().lines()].concat()
    }

    /// Why there is no TUN device at present.
    #[must_use]
    pub fn outage(&self) -> Option<String> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_outage(&self, why: Option<String>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
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
    /// What passed since the start, per worker.
    pub traffic: Vec<Traffic>,
    /// Live flows.
    pub flows: usize,
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

/// Half of the processors, at least one and at most eight: the programs and the kernel's own work for their packets
/// need about as much as the tunnel, and a flow whose two directions are two workers' pays for it (docs/performance.md).
fn default_workers(processors: usize) -> usize {
    (processors / 2).clamp(1, 8)
}

/// Claims the network namespace, the TUN device and the UDP port.
pub fn claim(config: &config::Tunnel) -> Result<Claimed, Refusal> {
    let refused =
        |what: &str, error: &dyn std::fmt::Display| Refusal::new(Reason::Internal, format!("{what}: {error}"));
    let workers = match config.workers {
        0 => default_workers(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        count => usize::from(count),
    };
    let host = Host::claim().map_err(|error| refused("this network namespace cannot be claimed", &error))?;
    let offloads = Offloads::new(config.offload);
    let tun = tun::open(&config.device, workers, &offloads).map_err(|error| refused("tunnel.device", &error))?;
    let udp = bind(config.port, workers, &offloads).map_err(|error| refused("tunnel.port", &error))?;
    let facts = TunnelFacts {
        device: tun.name.clone(),
        port: udp.port,
        mtu: config.mtu,
        workers,
        notes: udp.notes.clone(),
        offloads,
        outage: Arc::default(),
    };
    for note in &facts.notes {
        info!("udp: {note}");
    }
    for state in facts.offloads.states().iter().filter(|state| !state.on) {
        info!("offload {}: {}", state.name, state.detail);
    }
    Ok(Claimed { host, tun, udp, facts })
}

/// The tunnel's UDP sockets, in the network that carries it.
fn bind(port: u16, workers: usize, offloads: &Arc<Offloads>) -> Result<udp::UdpSockets, String> {
    let offloads = Arc::clone(offloads);
    let bound = underlay::run(move || udp::bind(port, workers, &offloads)).map_err(|error| error.to_string())?;
    bound.map_err(|error| error.to_string())
}

/// What the task speaks to.
pub struct Around {
    /// Tells what holds, and is told what is in force.
    pub mesh: MeshHandle,
    /// The overlay's prefixes as enrolment told them; a manifest's replace them.
    pub overlay: Option<Overlay>,
    /// Whose the instances' addresses are.
    pub placement: Arc<Placement>,
    /// How far the instances are.
    pub standing: watch::Receiver<Standing>,
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

/// Closes the host for the overlay's addresses as soon as those are known, opens the tunnel when this node knows who it is,
/// and serves it until told to stop. An error means that the tunnel has closed by itself: the daemon must end.
pub async fn run(claimed: Claimed, mut around: Around) -> Result<(), Refusal> {
    let mut view = around.mesh.view();
    let stop = around.stop.clone();
    let Claimed { host, tun, udp, facts } = claimed;
    let desired = tokio::select! {
        desired = closed(around.overlay, &mut view, tun.index, facts.mtu) => desired?,
        () = stop.stopped() => return Ok(()),
    };
    let left = Left { host, desired, addresses: Addresses::new() };
    let mut kept = Kept::start(left, around.placement.clone()).await?;
    let mut devices = (tun, udp);
    loop {
        let opens = tokio::select! {
            opens = kept.until_known(&mut view) => opens.map(|()| true),
            () = stop.stopped() => Ok(false),
        };
        if !matches!(opens, Ok(true)) {
            let reverted = kept.stop().await;
            return opens.and(reverted);
        }
        let Some(host) = serve(&facts, devices, kept, &mut around, view.clone()).await? else { return Ok(()) };
        match make_anew(&facts, host, &mut around).await? {
            Some(anew) => (kept, devices) = anew,
            None => return Ok(()),
        }
        facts.set_outage(None);
        info!("{} is there again", facts.device);
    }
}

/// How serving came to its end.
enum Served {
    /// The daemon stops.
    Stopped,
    /// Somebody removed the TUN device.
    DeviceGone(String),
}

/// Runs a data plane over the devices until the daemon stops or the TUN device is gone, when the host comes back as it is.
/// Whatever the end, the data plane has closed when this returns.
async fn serve(
    facts: &TunnelFacts,
    (tun, udp): (tun::Tun, udp::UdpSockets),
    mut kept: Kept,
    around: &mut Around,
    view: watch::Receiver<Option<Arc<MeshView>>>,
) -> Result<Option<Left>, Refusal> {
    let (events, mut from_plane) = mpsc::unbounded_channel();
    let devices = Devices {
        inner: tun.queues.into_iter().map(|queue| Box::new(queue) as _).collect(),
        outer: udp.sockets.into_iter().map(|socket| Box::new(socket) as _).collect(),
        engine: Box::new(udp.engine),
    };
    let engine = EngineConfig { mtu: facts.mtu.into(), ..EngineConfig::new(rand::random()) };
    let clock = around.clock.clone();
    let plane = DataPlane::start(DataPlaneConfig { engine, time: Arc::new(move || clock.now()) }, devices, events)
        .map_err(|error| Refusal::new(Reason::Internal, format!("the data plane does not start: {error}")))?;
    let (orders, from_mesh) = mpsc::unbounded_channel::<MeshUpdate>();
    around.mesh.attach(Box::new(move |update| drop(orders.send(update)))).await;
    let trust_domain = view.borrow().as_ref().map(|view| view.knowledge.manifest.trust_domain.clone());
    let serving = Serving { facts, kept: &mut kept, plane: &plane, trust_domain, applied: 0 };
    let served = serving.serve(around, view, from_mesh, &mut from_plane).await;
    around.ready.send_replace(false);
    // The host first: the TUN device goes away with the data plane, and a host that is still kept would miss it.
    let left = match served {
        Ok(Served::DeviceGone(why)) => {
            warn!("{} is gone and is made anew: {why}", facts.device);
            facts.set_outage(Some(format!("the TUN device {} is gone and is made anew", facts.device)));
            kept.release().await.map(Some)
        }
        Ok(Served::Stopped) => kept.stop().await.map(|()| None),
        Err(error) => {
            let reverted = kept.stop().await;
            Err::<(), _>(error).and(reverted).map(|()| None)
        }
    };
    let ended = blocking(move || plane.shut_down()).await;
    // The last flows are still worth a line.
    while let Ok(event) = from_plane.try_recv() {
        if let DataPlaneEvent::Flow(record) = event {
            around.flows.add(flow_line(&record, None));
        }
    }
    left.and_then(|left| ended.map(|()| left))
}

/// Makes the devices as they were, and the host as it has to be with them, however often it takes; none when the daemon
/// stops meanwhile. Until then nothing leads into the tunnel and the guard stands.
async fn make_anew(
    facts: &TunnelFacts,
    Left { mut host, desired, addresses }: Left,
    around: &mut Around,
) -> Result<Option<(Kept, (tun::Tun, udp::UdpSockets))>, Refusal> {
    loop {
        let again = facts.clone();
        let opened = blocking(move || {
            let tun = tun::open(&again.device, again.workers, &again.offloads).map_err(|error| error.to_string())?;
            let udp = bind(again.port, again.workers, &again.offloads)?;
            Ok::<_, String>((tun, udp))
        });
        match opened.await? {
            Ok((tun, udp)) => {
                let desired = Desired { device: tun.index, ..desired };
                let left = Left { host, desired, addresses };
                return Ok(Some((Kept::start(left, around.placement.clone()).await?, (tun, udp))));
            }
            Err(why) => {
                let outage = format!("the TUN device {} is gone and cannot be made anew yet: {why}", facts.device);
                facts.set_outage(Some(outage));
            }
        }
        let retry = tokio::time::sleep(REMAKE_INTERVAL);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = &mut retry => break,
                // Nothing passes and nobody is met.
                Some(question) = around.questions.recv() => drop(question.send(TunnelStatus::default())),
                () = around.stop.stopped() => {
                    let reverted = blocking(move || host.revert()).await?;
                    return reverted.map(|()| None).map_err(still_there);
                }
            }
        }
    }
}

struct Serving<'a> {
    facts: &'a TunnelFacts,
    kept: &'a mut Kept,
    plane: &'a DataPlane,
    trust_domain: Option<TrustDomain>,
    /// The newest generation that every worker judges by.
    applied: u64,
}

impl Serving<'_> {
    async fn serve(
        mut self,
        around: &mut Around,
        mut view: watch::Receiver<Option<Arc<MeshView>>>,
        mut from_mesh: mpsc::UnboundedReceiver<MeshUpdate>,
        from_plane: &mut mpsc::UnboundedReceiver<DataPlaneEvent>,
    ) -> Result<Served, Refusal> {
        let stop = around.stop.clone();
        loop {
            tokio::select! {
                Some(update) = from_mesh.recv() => self.plane.apply(update),
                event = from_plane.recv() => match event {
                    Some(DataPlaneEvent::DeviceLost { what: "TUN device", error }) => return Ok(Served::DeviceGone(error)),
                    Some(event) => self.handle_plane(event, around).await?,
                    None => return Err(Refusal::new(Reason::Internal, "the data plane has ended by itself")),
                },
                Some(event) = self.kept.events.recv() => match event {
                    HostEvent::Failed(gone @ HostError::DeviceGone(_)) => return Ok(Served::DeviceGone(gone.to_string())),
                    event => handle_host(event)?,
                },
                Some(question) = around.questions.recv() => self.answer(question),
                Ok(()) = around.standing.changed() => self.look(around),
                changed = view.changed() => {
                    if changed.is_err() {
                        return Ok(Served::Stopped);
                    }
                    let known = view.borrow_and_update().clone();
                    if let Some(known) = known {
                        self.kept.follow(&known).await?;
                    }
                    self.look(around);
                }
                () = stop.stopped() => return Ok(Served::Stopped),
            }
        }
    }

    /// Looks whether the node is ready: every worker judges by a snapshot that holds the rules of its own instances, and each
    /// instance that it is to have was asked for. The engine's report of a snapshot may come before the snapshot itself, so
    /// both are reasons to look.
    fn look(&self, around: &Around) {
        let covered = around
            .mesh
            .view()
            .borrow()
            .as_deref()
            .is_some_and(|view| view.generation <= self.applied && !view.own.is_empty() && !view.awaits_rules());
        if covered && around.standing.borrow().settled {
            around.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
    }

    async fn handle_plane(&mut self, event: DataPlaneEvent, around: &Around) -> Result<(), Refusal> {
        match event {
            DataPlaneEvent::Engine(Event::Applied { generation }) => {
                around.mesh.engine_applied(generation).await;
                self.applied = generation;
                self.look(around);
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
        let (status, refused) = (self.plane.status(), self.kept.refused());
        tokio::spawn(async move {
            if let Ok(mut status) = status.await {
                // What the kernel refused before it came to the tunnel. A keeper that is ending has no answer.
                let refused = spawn_blocking(move || refused.recv()).await;
                let refused = refused.ok().and_then(Result::ok).and_then(Result::ok).unwrap_or_default();
                let packets = refused.iter().fold(0_u64, |sum, (_, packets)| sum.saturating_add(*packets));
                if packets > 0 {
                    status.drops.push((Reason::WrongIdentity, packets));
                }
                // Whoever asked may have gone.
                let _ = question.send(TunnelStatus {
                    peers: status.peers,
                    unknown_keys: status.unknown_keys,
                    drops: status.drops,
                    traffic: status.traffic,
                    flows: status.flows,
                });
            }
        });
    }
}

/// Waits until this node knows which addresses are the overlay's, which its enrolment or a stored snapshot says at once: the
/// host is then closed for them, whatever else is still missing.
async fn closed(
    enrolled: Option<Overlay>,
    view: &mut watch::Receiver<Option<Arc<MeshView>>>,
    device: u32,
    mtu: u16,
) -> Result<Desired, Refusal> {
    loop {
        let stated = view.borrow_and_update().as_deref().map(|view| view.knowledge.manifest.overlay);
        let overlay = stated.or(enrolled);
        if let Some(overlay) = overlay {
            return Ok(Desired { overlay, instances: Vec::new(), openings: Vec::new(), device, mtu: mtu.into() });
        }
        view.changed().await.map_err(|_| stopping())?;
    }
}

fn tell(event: &Event) {
    match event {
        Event::Applied { .. } => {}
        Event::FlowsCut(flows) => info!(flows = flows.len(), "flows cut: policy or peer no longer allows them"),
        Event::SessionUp { peer, suite, rekey, .. } => {
            info!(%peer, suite = suite.name(), rekey, "session up");
        }
        Event::SessionDown { peer, reason, .. } => info!(%peer, reason = reason.name(), "session down"),
        Event::PathMtu { peer, mtu, .. } => info!(%peer, mtu, "the path takes packets of another size"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_leave_half_of_the_processors_to_others_and_are_one_to_eight() {
        assert_eq!([1, 2, 3, 4, 8, 16, 256].map(default_workers), [1, 1, 1, 2, 4, 8, 8]);
    }
}
