//! What the daemon shows to those who ask: built on demand from the snapshots that the tasks publish, owning nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{mpsc, oneshot, watch};
use warren_engine::identity::VerifiedPeer;
use warren_engine::mesh::{PeerStatus, Stage};
use warren_engine::{Now, counters};
use warren_proto::policy::{Decision, Transport};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{SpiffeId, UnixTime, WorkloadName};

use super::meter::{self, Meter, Sample, node_traffic};
use super::reload::Reloader;
use super::tunnel::{TunnelFacts, TunnelStatus};
use super::whois::Local;
use crate::certificates::key_store::NodeIdentity;
use crate::certificates::renewal::Standing;
use crate::certificates::rotator::Validity;
use crate::certificates::svids::{Held, Svids};
use crate::clock::Clock;
use crate::control_client::issue;
use crate::control_client::session::LinkState;
use crate::data_plane::offload::{OffloadState, Offloads};
use crate::flow_log::FlowLog;
use crate::local_api::types::{
    Control, Explanation, HeldSvid, HolderLine, Holders, Instance, Mesh, MissingInstance, Offload, Peer, PeerLink,
    RefusedPeer, Reloaded, Roamed, Span, Status, Survival, Traffic, Tunnel, Unknown, WorkloadApi,
};
use crate::mesh_view::{Holder, MeshView, OwnInstance};
use crate::placement::Placement;
use crate::selectors::{Assignment, Members};
use crate::stop::{Stop, Stopper};
use crate::workload_api;

/// Most lines of drops and unknown keys in one status.
const MAX_LINES: usize = 100;

/// Everything that can be asked about.
#[derive(Debug)]
pub struct Surface {
    /// Who this node is.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// What it knows.
    pub view: watch::Receiver<Option<Arc<MeshView>>>,
    /// How its control link is doing.
    pub link: watch::Receiver<LinkState>,
    /// Whether packets are let through as policy says.
    pub ready: watch::Receiver<bool>,
    /// The tunnel's end on this host.
    pub tunnel: TunnelFacts,
    /// Asks the data plane how it is doing.
    pub data_plane: mpsc::UnboundedSender<oneshot::Sender<TunnelStatus>>,
    /// What was judged.
    pub flows: Arc<FlowLog>,
    /// The time.
    pub clock: Arc<Clock>,
    /// Gives the word to stop.
    pub stopper: Arc<Stopper>,
    /// When the daemon started, by the boot clock.
    pub started: Duration,
    /// What passed of late.
    pub meter: Meter,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// Which instances this host is to have, and whose they are.
    pub placement: Arc<Placement>,
    /// How far they are.
    pub standing: watch::Receiver<Standing>,
    /// Which processes are which workload.
    pub assignments: Arc<[Assignment]>,
    /// The Workload API; `None` when it is not served.
    pub workload_api: Option<Served>,
}

/// The Workload API as it is served.
#[derive(Debug)]
pub struct Served {
    /// Its socket.
    pub socket: PathBuf,
    /// The SVIDs.
    pub svids: Svids,
    /// What was counted.
    pub counts: Arc<workload_api::Counts>,
}

impl Served {
    fn show(&self, now: UnixTime) -> WorkloadApi {
        let held = self.svids.held().borrow().clone();
        let listeners = self.svids.listeners();
        let line = |(workload, held): (&WorkloadName, &Held)| {
            let (svid, refusal) = match held {
                Held::Svid(svid) => (Some(svid), None),
                Held::Refused(refusal) => (None, Some(refusal.clone())),
            };
            HeldSvid {
                workload: workload.to_string(),
                serial: svid.map(|svid| hex::encode(svid.certificate.leaf().serial().as_bytes())),
                validity: svid.map(|svid| {
                    let not_before = svid.certificate.leaf().not_before();
                    span(Validity { not_before, not_after: svid.valid_until }, now)
                }),
                refusal,
                watched_by: listeners.get(workload).copied().unwrap_or_default() as u64,
            }
        };
        WorkloadApi {
            socket: self.socket.display().to_string(),
            svids: held.iter().map(line).collect(),
            served: self.counts.served(),
            refused: self.counts.refused(),
        }
    }
}

impl Surface {
    /// Gives the word to stop.
    pub fn stop(&self) {
        self.stopper.stop();
    }

    /// Reads the configuration again.
    pub fn reload(&self) -> Result<Reloaded, Refusal> {
        self.reloader.reload()
    }

    /// What was judged.
    #[must_use]
    pub fn flows(&self) -> &FlowLog {
        &self.flows
    }

    /// How the node is doing.
    pub async fn status(&self) -> Status {
        let (identity, view) = (self.identity.borrow().clone(), self.view.borrow().clone());
        let tunnel = self.tunnel_status().await;
        let Now { monotonic, unix: now } = self.clock.now();
        let rates = self.meter.since(&Sample::of(&tunnel, monotonic));
        let traffic = node_traffic(&tunnel);
        let workers = |count: fn(&counters::Traffic) -> u64| tunnel.traffic.iter().map(count).sum();
        let span = |(not_before, not_after)| span(Validity { not_before, not_after }, now);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: identity.node_id.to_string(),
            trust_domain: identity.trust_domain.to_string(),
            ready: *self.ready.borrow(),
            waiting_for: self.waiting_for(view.as_deref()),
            survives: view
                .as_ref()
                .and_then(|view| view.survives_until())
                .map(|until| Survival { until: until.to_string(), seconds: now.until(until).as_secs() }),
            control: self.control(),
            mesh: view.as_ref().map(|view| mesh(view, now)),
            instances: view.iter().flat_map(|view| &view.own).map(|own| self.instance(own, now)).collect(),
            missing_instances: self.missing(),
            node_certificate: span(issue::node_validity(&identity.chain).unwrap_or_default()),
            tunnel: Tunnel {
                device: self.tunnel.device.clone(),
                port: self.tunnel.port,
                mtu: self.tunnel.mtu,
                workers: self.tunnel.workers,
                notes: self.tunnel.notes(),
                offloads: offloads(&self.tunnel.offloads),
            },
            peers: view.as_ref().map(|view| peers(view, &tunnel.peers, &rates)).unwrap_or_default(),
            refused: view.as_ref().map(|view| refused(view)).unwrap_or_default(),
            drops: tunnel.drops.iter().copied().collect(),
            unknown_keys: tunnel
                .unknown_keys
                .iter()
                .take(MAX_LINES)
                .map(|key| Unknown { key_hash: hex::encode(key.hash), from: key.from, count: key.count })
                .collect(),
            uptime_milliseconds: u64::try_from(monotonic.saturating_sub(self.started).as_millis()).unwrap_or(u64::MAX),
            traffic,
            rates: rates.node,
            flows: tunnel.flows as u64,
            workload_api: self.workload_api.as_ref().map(|served| served.show(now)),
            refusals_sent: workers(|worker| worker.refusals),
            flow_records_lost: workers(|worker| worker.records_lost),
        }
    }

    /// Who has an address, what addresses a workload has, or who a process of this host is.
    pub fn whois(&self, target: &str) -> Result<Holders, Refusal> {
        if let Some(local) = Local::parse(target) {
            return self.whois_local(local);
        }
        let view = self.known()?;
        let domain = &view.knowledge.manifest.trust_domain;
        let asked_for = |own: &&OwnInstance| {
            let (addresses, identity) = (own.addresses.iter().collect::<Vec<_>>(), own.workload.in_domain(domain));
            matches(target, &addresses, &own.workload, &identity, &own.instance.to_string())
        };
        let mut items: Vec<_> = view
            .own
            .iter()
            .filter(asked_for)
            .map(|own| {
                let whose = match self.members(&own.workload).as_slice() {
                    [] if self.placement.len() == 1 => "every process of this network namespace".to_owned(),
                    [] => "every process that fits no entry of workloads with an instance of its own".to_owned(),
                    ties => format!("processes with {}", ties.join(" or ")),
                };
                let because =
                    format!("this node holds the private key of its tunnel certificate; its addresses are for {whose}");
                self.own_line(&view, own, because)
            })
            .collect();
        for peer in view.peers.iter() {
            let addresses: Vec<_> = peer.addresses().iter().collect();
            let seen = items.iter().any(|item| item.instance == peer.instance().to_string());
            if !seen && matches(target, &addresses, peer.workload(), peer.identity(), &peer.instance().to_string()) {
                items.push(peer_line(peer));
            }
        }
        if items.is_empty() {
            return Err(Refusal::new(Reason::NotFound, format!("{target:?} is nobody this node may talk to"))
                .hint("a node is told only of peers that some rule links it to; the coordinator knows all: warren workload list"));
        }
        Ok(Holders { items })
    }

    /// One of this node's own instances.
    pub(super) fn own_line(&self, view: &MeshView, own: &OwnInstance, because: String) -> HolderLine {
        HolderLine {
            identity: own.workload.in_domain(&view.knowledge.manifest.trust_domain).to_string(),
            workload: own.workload.to_string(),
            instance: own.instance.to_string(),
            node: self.identity.borrow().node_id.to_string(),
            addresses: own.addresses.iter().collect(),
            local: true,
            because,
            valid_until: own.validity.1.to_string(),
        }
    }

    /// The ties of an instance's processes, one of which holds for each; none for that of everybody else.
    fn members(&self, workload: &WorkloadName) -> Vec<String> {
        match self.placement.members(workload) {
            Some(Members::Ties(ties)) => ties.iter().map(ToString::to_string).collect(),
            Some(Members::Rest) | None => Vec::new(),
        }
    }

    fn instance(&self, own: &OwnInstance, now: UnixTime) -> Instance {
        Instance {
            workload: own.workload.to_string(),
            instance: own.instance.to_string(),
            addresses: own.addresses.iter().collect(),
            tunnel_key: STANDARD.encode(own.tunnel_key),
            certificate: span(Validity { not_before: own.validity.0, not_after: own.validity.1 }, now),
            processes: self.members(&own.workload),
        }
    }

    /// Instances that this host is to have and has no certificate for.
    fn missing(&self) -> Vec<MissingInstance> {
        let standing = self.standing.borrow();
        let missing = standing.missing.iter().map(|(workload, refusal)| MissingInstance {
            workload: workload.as_ref().map(ToString::to_string),
            refusal: refusal.clone(),
        });
        missing.collect()
    }

    /// Until when the SVID holds that is handed to this workload; `None` when there is none.
    pub(super) fn svid_end(&self, workload: &WorkloadName) -> Option<String> {
        let held = self.workload_api.as_ref()?.svids.held().borrow().clone();
        match held.get(workload)? {
            Held::Svid(svid) => Some(svid.valid_until.to_string()),
            Held::Refused(_) => None,
        }
    }

    /// Whether a connection is allowed, by the policy this node holds.
    pub fn why(&self, source: &str, destination: &str, port: u16, protocol: &str) -> Result<Explanation, Refusal> {
        let view = self.known()?;
        let transport = match protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            other => {
                return Err(Refusal::new(Reason::InvalidField, format!("protocol {other:?} is neither tcp nor udp")));
            }
        };
        let (from, to) = (resolve(&view, source)?, resolve(&view, destination)?);
        let concerned = |own: &OwnInstance| own.workload == from || own.workload == to;
        if (view.own.is_empty() && view.awaits_rules()) || view.uncovered().any(concerned) {
            return Err(Refusal::new(
                Reason::NotReady,
                "this node has not been told the rules of its own instance yet",
            )
            .hint("warren status says what it waits for"));
        }
        let now = self.clock.now().unix;
        let policy = &view.knowledge.policy;
        let decision = policy.evaluate(&from, &to, transport, port, now);
        let is_own = |name: &WorkloadName| view.own.iter().any(|own| own.workload == *name);
        let complete = is_own(&to) || policy.service(&to).is_some();
        Ok(Explanation {
            allowed: decision.is_allowed(),
            text: in_words(&decision),
            notes: obstacles(&view, &from, &to, complete, now),
            source: from.to_string(),
            destination: to.to_string(),
            policy_revision: view.knowledge.manifest.policy_revision,
            complete,
            decision: serde_json::to_value(&decision)
                .map_err(|error| Refusal::new(Reason::Internal, format!("the decision cannot be encoded: {error}")))?,
        })
    }

    fn known(&self) -> Result<Arc<MeshView>, Refusal> {
        self.view.borrow().clone().ok_or_else(|| {
            Refusal::new(Reason::NotReady, "this node has not been told about its mesh yet")
                .hint("warren status says what it waits for")
        })
    }

    /// Looks at the counters now and then until told to stop, so that there is something to compare with.
    pub async fn measure(&self, stop: Stop) {
        let mut ticks = tokio::time::interval(meter::EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let tunnel = self.tunnel_status().await;
                    self.meter.note(Sample::of(&tunnel, self.clock.now().monotonic));
                }
                () = stop.stopped() => return,
            }
        }
    }

    async fn tunnel_status(&self) -> TunnelStatus {
        let (ask, answer) = oneshot::channel();
        // Before the data plane is up nobody answers, and nothing passes.
        let _ = self.data_plane.send(ask);
        tokio::time::timeout(Duration::from_secs(2), answer).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    fn waiting_for(&self, view: Option<&MeshView>) -> Vec<String> {
        if *self.ready.borrow() {
            return Vec::new();
        }
        let mut waiting = Vec::new();
        if view.is_none() {
            waiting.push("a first signed manifest from the coordinator".to_owned());
        }
        if view.is_none_or(|view| view.own.is_empty()) {
            waiting.push("a tunnel certificate".to_owned());
        } else {
            let standing = self.standing.borrow();
            let missing = standing.missing.iter().filter(|_| !standing.settled);
            waiting.extend(missing.filter_map(|(of, _)| Some(format!("a tunnel certificate for {}", of.as_ref()?))));
            if view.is_some_and(MeshView::awaits_rules) {
                waiting.push("the policy of its own instance from the coordinator".to_owned());
            }
        }
        waiting.extend(self.tunnel.outage());
        if waiting.is_empty() {
            waiting.push("the data plane to judge by the policy".to_owned());
        }
        waiting
    }

    fn control(&self) -> Control {
        match &*self.link.borrow() {
            LinkState::Up { since, coordinator, .. } => {
                Control { up: true, since: since.to_string(), coordinator: Some(coordinator.clone()), cause: None }
            }
            LinkState::Down { since, cause } => {
                Control { up: false, since: since.to_string(), coordinator: None, cause: cause.clone() }
            }
        }
    }
}

fn span(validity: Validity, now: UnixTime) -> Span {
    Span {
        not_before: validity.not_before.to_string(),
        not_after: validity.not_after.to_string(),
        seconds_left: now.until(validity.not_after).as_secs(),
        renewal_overdue: validity.is_overdue(now),
    }
}

fn mesh(view: &MeshView, now: UnixTime) -> Mesh {
    let manifest = &view.knowledge.manifest;
    Mesh {
        epoch: manifest.generation.epoch,
        revision: manifest.generation.revision,
        policy_revision: manifest.policy_revision,
        heard: view.heard.to_string(),
        age_seconds: view.heard.until(now).as_secs(),
        stale: now > view.fresh_until,
        revocations: view.knowledge.revocations.all().len(),
        generation: view.generation,
    }
}

fn peers(view: &MeshView, running: &[PeerStatus], rates: &meter::Measured) -> Vec<Peer> {
    let mut shown: Vec<Peer> = Vec::new();
    for peer in view.peers.iter() {
        let instance = peer.instance().to_string();
        // Of two certificates the newer stands first and is shown.
        if shown.last().is_some_and(|last| last.instance == instance) {
            continue;
        }
        let of_peer: Vec<_> = running.iter().filter(|status| status.peer == peer.instance()).collect();
        // What the row says of a session is that of the local instance that is furthest with this peer.
        let status =
            of_peer.iter().copied().max_by_key(|status| (status.session.is_some(), status.stage != Stage::Idle));
        let session = status.and_then(|status| status.session.as_ref());
        shown.push(Peer {
            workload: peer.workload().to_string(),
            instance,
            addresses: peer.addresses().iter().collect(),
            plain: peer.is_plain(),
            valid_until: peer.valid_until().to_string(),
            endpoint: status
                .and_then(|status| status.endpoint)
                .or_else(|| view.endpoints.get(&peer.instance()).and_then(|hints| hints.first().copied())),
            session: stage_of(status).to_owned(),
            suite: session.map(|session| session.suite.name().to_owned()),
            session_seconds: session.map(|session| session.age.as_secs()),
            silent_seconds: session.and_then(|session| session.last_received).map(|silent| silent.as_secs()),
            path_mtu: status.map(|status| status.mtu),
            roamed: status.and_then(|status| status.roamed).map(|roam| Roamed {
                from: roam.from,
                seconds_ago: roam.ago.as_secs(),
                count: roam.count,
            }),
            waiting: of_peer.iter().map(|status| status.waiting as u64).sum(),
            traffic: of_peer.iter().fold(Traffic::default(), |sum, status| sum.plus(meter::traffic(&status.volume))),
            rates: status.and_then(|status| rates.of(status.peer)),
            drops: sum_of_drops(&of_peer),
            links: of_peer.iter().filter_map(|status| link(view, status)).collect(),
        });
    }
    shown
}

fn stage_of(status: Option<&PeerStatus>) -> &'static str {
    match status.map(|status| (status.session.is_some(), status.stage)) {
        Some((true, _)) => "up",
        None | Some((false, Stage::Idle)) => "idle",
        Some((false, Stage::Handshake)) => "handshake",
        Some((false, Stage::Exchange)) => "exchange",
        Some((false, Stage::Confirming)) => "confirming",
    }
}

fn sum_of_drops(links: &[&PeerStatus]) -> BTreeMap<Reason, u64> {
    let mut sum = BTreeMap::new();
    for (reason, count) in links.iter().flat_map(|status| &status.drops) {
        let total: &mut u64 = sum.entry(*reason).or_default();
        *total = total.saturating_add(*count);
    }
    sum
}

fn link(view: &MeshView, status: &PeerStatus) -> Option<PeerLink> {
    let own = view.own.iter().find(|own| own.instance == status.local)?;
    Some(PeerLink {
        workload: own.workload.to_string(),
        session: stage_of(Some(status)).to_owned(),
        traffic: meter::traffic(&status.volume),
    })
}

fn refused(view: &MeshView) -> Vec<RefusedPeer> {
    let line = |record: &warren_engine::identity::RefusedRecord| RefusedPeer {
        instance: record.instance.to_string(),
        reason: record.refusal.reason,
        detail: record.refusal.detail.clone(),
    };
    view.refused.iter().take(MAX_LINES).map(line).collect()
}

fn peer_line(peer: &VerifiedPeer) -> HolderLine {
    HolderLine {
        identity: peer.identity().to_string(),
        workload: peer.workload().to_string(),
        instance: peer.instance().to_string(),
        node: peer.node().to_string(),
        addresses: peer.addresses().iter().collect(),
        local: false,
        because: "its tunnel certificate, which chains to a root of this mesh, binds address and key to the identity"
            .to_owned(),
        valid_until: peer.valid_until().to_string(),
    }
}

fn matches(target: &str, addresses: &[IpAddr], workload: &WorkloadName, identity: &SpiffeId, instance: &str) -> bool {
    match target.parse::<IpAddr>() {
        Ok(address) => addresses.contains(&address),
        Err(_) => target == workload.as_str() || target == identity.to_string() || target == instance,
    }
}

/// A workload by its name, its SPIFFE ID, or an overlay address that somebody has.
fn resolve(view: &MeshView, text: &str) -> Result<WorkloadName, Refusal> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match view.holder(address) {
            Some(Holder::Own(own)) => Ok(own.workload.clone()),
            Some(Holder::Peer(peer)) => Ok(peer.workload().clone()),
            None => {
                Err(Refusal::new(Reason::NotFound, format!("{address} is the address of nobody this node may talk to"))
                    .hint("name the workload instead: <namespace>/<name>"))
            }
        };
    }
    if let Ok(identity) = text.parse::<SpiffeId>()
        && let Some(workload) = identity.workload()
    {
        return Ok(workload.clone());
    }
    text.parse().map_err(|error| Refusal::new(Reason::InvalidField, format!("{text:?}: {error}")))
}

fn offloads(all: &Offloads) -> Vec<Offload> {
    let line = |state: OffloadState| Offload {
        name: state.name.to_owned(),
        on: state.on,
        detail: state.detail,
        fallback: state.fallback.to_owned(),
    };
    all.states().into_iter().map(line).collect()
}

/// What would stop the connection although a rule allows it.
fn obstacles(view: &MeshView, from: &WorkloadName, to: &WorkloadName, complete: bool, now: UnixTime) -> Vec<String> {
    let mut notes = Vec::new();
    if !complete {
        notes.push(format!("this node holds no rules of {to}; ask the coordinator: warren policy why"));
    }
    for name in [from, to] {
        let own = view.own.iter().any(|own| own.workload == *name);
        if !own && !view.peers.iter().any(|peer| peer.workload() == name) {
            notes.push(format!("no instance of {name} is admitted on this node (no-peer)"));
        }
    }
    if from != to && [from, to].iter().all(|name| view.own.iter().any(|own| own.workload == **name)) {
        notes.push("both are on this host: its packet filter holds them to this, no tunnel is between them".to_owned());
    }
    if now > view.fresh_until {
        notes.push("the coordinator has been silent too long: no new peer is admitted (mesh-stale)".to_owned());
    }
    notes
}

fn in_words(decision: &Decision) -> String {
    let mut text = String::new();
    let port = decision.port.map(|port| format!(":{port}")).unwrap_or_default();
    let verdict = if decision.is_allowed() { "allowed" } else { "denied" };
    text.push_str(&format!("{verdict}: {} -> {}{port}/{}", decision.source, decision.destination, decision.protocol));
    if let Some(reason) = decision.reason {
        text.push_str(&format!("\nreason: {} ({})", reason.text(), reason.name()));
    }
    if decision.audit {
        text.push_str("\nlet in by the service's audit mode alone");
    }
    if let Some(rule) = &decision.rule {
        text.push_str(&format!("\nrule: {} at {}:{}", rule.id, rule.file, rule.line));
    }
    if let Some(nearest) = &decision.nearest {
        let rule = &nearest.rule;
        text.push_str(&format!(
            "\nnearest rule: {} at {}:{}; its {:?} does not hold: {}",
            rule.id, rule.file, rule.line, nearest.failed, nearest.detail
        ));
    }
    text
}
