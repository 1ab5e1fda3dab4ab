//! One node's link: what it holds, what it is to be told next, and what it said to that.
//!
//! ```text
//!             Hello                      Ack | items refused
//!   attached -------> current  <----------------------------  in flight
//!                        |    marked, after the debounce         ^  |
//!                        +----------------------------------------+  | refused whole: what the node holds is
//!                                    difference                      v not known, the next update is a snapshot
//! ```
//!
//! One update is in flight at a time; what is marked meanwhile waits for its acknowledgement and is then sent
//! as one difference, however many changes it was.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quinn::VarInt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use warren_proto::certificate::AuthorityCertificate;
use warren_proto::codec::{MAX_CONTROL_FRAME, MAX_NODE_FRAME};
use warren_proto::control_trust::TrustedNode;
use warren_proto::peer_map::{Generation, Heartbeat, Scope, object_digest};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::root_hint::{self, RootPrefix};
use warren_proto::{InstanceId, NodeId, PROTOCOL_VERSION, READER_VERSION, UnixTime, wire};

use super::endpoints::{Reports, endpoints};
use super::framing::{Receiver, Sender};
use super::issuance::{self, Requester};
use super::limits::Limits;
use super::links::{Attached, Held, LinkStatus, Links, RefusedUpdate};
use super::{LinkSettings, update};
use crate::peer_map::{MANIFEST_LIFETIME, concerned, manifest, project};
use crate::registry::{Registry, admitted_node};
use crate::state::{State, Touched};

/// The Hello must come within this after the handshake.
const HELLO: Duration = Duration::from_secs(10);
/// A change waits this long for others to join it ...
const DEBOUNCE: Duration = Duration::from_millis(20);
/// ... but never longer than this in all. Revocations wait for nothing.
const DEBOUNCE_MOST: Duration = Duration::from_millis(200);
/// A node that takes no frame, or acknowledges nothing, for so long is sent away.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node whose certificate is revoked may take to hear of it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A node that must change before it can be served need not come back sooner.
const UPGRADE: Duration = Duration::from_secs(60);
/// Application error code of every close that carries a refusal.
const REFUSED: VarInt = VarInt::from_u32(1);
/// Bytes of words in a close.
const MAX_CLOSE: usize = 512;
/// A clock further off than this is reported.
const CLOCK_SKEW_MS: i64 = 30_000;

/// What every session of a listener shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) registry: Arc<Registry>,
    pub(super) links: Arc<Links>,
    pub(super) settings: LinkSettings,
    /// Outlives links: who connects anew owes what it owed.
    pub(super) issuances: Mutex<Limits<NodeId>>,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Shared {
    /// Whether `node` may be issued one more certificate.
    pub(super) fn may_issue(&self, node: NodeId) -> bool {
        let mut issuances = self.issuances.lock().unwrap_or_else(PoisonError::into_inner);
        issuances.admit(node, std::time::Instant::now())
    }
}

/// Closes a connection with words that the other side understands.
pub(super) fn close(connection: &quinn::Connection, refusal: &Refusal) {
    let mut text = format!("{}: {}", refusal.reason, refusal.detail);
    // A close frame must fit a packet.
    while text.len() > MAX_CLOSE {
        text.pop();
    }
    connection.close(REFUSED, text.as_bytes());
}

/// Why the older of two connections of one node is closed.
pub(super) fn replaced() -> Refusal {
    Refusal::new(Reason::Conflict, "another connection of this node took its place")
        .hint("if this repeats, two machines use one state directory")
}

/// Serves a node until its connection ends.
///
/// `roots` are those that the node said it holds.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: quinn::Connection,
    node: TrustedNode,
    roots: Vec<RootPrefix>,
) {
    let id = node.certificate.node();
    match run(&shared, &connection, &node, roots).await {
        Ok(()) => tracing::debug!(node = %id, "the link ended"),
        Err(refusal) => {
            tracing::info!(node = %id, reason = %refusal.reason, detail = %refusal.detail, "the link ended");
            close(&connection, &refusal);
        }
    }
}

async fn run(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    trusted: &TrustedNode,
    roots: Vec<RootPrefix>,
) -> Result<(), Refusal> {
    let node = trusted.certificate.node();
    check_trusted(shared, trusted)?;
    let requester =
        Requester { node, ends: trusted.certificate.leaf().not_after(), trusted: Arc::new(trusted.clone()) };
    let late = || Refusal::new(Reason::FrameUnexpected, "no Hello came in time");
    let opened = timeout(HELLO, connection.accept_bi()).await.map_err(|_| late())?;
    let (send, receive) = opened.map_err(|error| lost(&error))?;
    let mut send = Sender::new(send, MAX_CONTROL_FRAME);
    let mut receive = Receiver::new(receive, MAX_NODE_FRAME);
    let first = timeout(HELLO, receive.expect::<wire::NodeFrame>("Hello")).await.map_err(|_| late())??;
    let Some(wire::node_frame::Frame::Hello(hello)) = first.frame else {
        return Err(Refusal::new(Reason::FrameUnexpected, "the first frame is not a Hello"));
    };
    if let Err(refusal) = check_hello(&hello) {
        go_away(&mut send, &refusal, UPGRADE).await;
        return Err(refusal);
    }
    let shown = requester.shown();
    let mut session = Session::attach(shared, connection, requester, (trusted, roots), send, &hello);
    // What was revoked while the Hello was awaited found no link to cut; from here on it finds this one.
    check_trusted(shared, trusted)?;
    report_clone(shared, node, &hello, connection.remote_address()).await;
    if let Err(refusal) = shared.registry.note_shown(node, shown).await {
        tracing::warn!(%node, %refusal, "that the node has its renewed certificate could not be kept");
    }
    session.welcome(connection.remote_address()).await?;
    if session.only_renews {
        tracing::warn!(%node, "the node's certificate has ended; it may only renew it");
    }
    session.attend(connection, &mut receive).await
}

/// Two machines with one key: said in the log of changes, where it outlasts this process.
async fn report_clone(shared: &Shared, node: NodeId, hello: &wire::Hello, remote: SocketAddr) {
    // Nodes of before this field say nothing.
    let Ok(name) = hello.process.as_slice().try_into() else { return };
    let now = shared.registry.now();
    let Some(clone) = shared.links.process_connects(node, name, remote, now) else { return };
    tracing::error!(%node, remotes = ?clone.remotes, "two processes use this node's identity: was its state copied?");
    if let Err(refusal) = shared.registry.report_clone(node, clone.remotes).await {
        tracing::warn!(%node, %refusal, "the copy of a node is not in the audit log");
    }
}

fn check_hello(hello: &wire::Hello) -> Result<(), Refusal> {
    if hello.version != PROTOCOL_VERSION {
        let detail = format!("the node speaks control version {}, this coordinator {PROTOCOL_VERSION}", hello.version);
        return Err(Refusal::new(Reason::VersionUnsupported, detail).hint("run the same release of warren on both"));
    }
    if hello.reader < READER_VERSION {
        let detail = format!("the node reads objects up to version {}, this mesh needs {READER_VERSION}", hello.reader);
        return Err(Refusal::new(Reason::ReaderTooOld, detail).hint("upgrade warren on the node"));
    }
    Ok(())
}

fn check_trusted(shared: &Shared, trusted: &TrustedNode) -> Result<(), Refusal> {
    let state = shared.registry.state();
    admitted_node(&state, trusted.certificate.node())?;
    check_not_revoked(&state, trusted)
}

pub(super) fn check_not_revoked(state: &State, trusted: &TrustedNode) -> Result<(), Refusal> {
    let leaf = trusted.certificate.leaf();
    let covered = trusted.path.issuer_key_ids().find_map(|issuer| {
        state.revoked.covers(warren_proto::peer_map::Subject {
            issuer_key_id: issuer.as_bytes(),
            serial: leaf.serial().as_bytes(),
            tunnel_key: None,
            instance: None,
            node: Some(trusted.certificate.node()),
            spiffe_id: leaf.identity(),
            issued_at: leaf.not_before().plus(warren_proto::certificate::CLOCK_SKEW),
        })
    });
    match covered {
        None => Ok(()),
        Some("node") => Err(Refusal::new(Reason::NodeRevoked, "the node is revoked")),
        Some(what) => Err(Refusal::new(Reason::Revoked, format!("the {what} of the node's certificate is revoked"))),
    }
}

/// Over which time nodes are to spread their return: 300 a second is what one coordinator takes on without delay.
fn reconnect_window(state: &State) -> Duration {
    Duration::from_secs((state.nodes.len() as u64 / 300).clamp(1, 60))
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

async fn go_away(send: &mut Sender, refusal: &Refusal, window: Duration) {
    let away = wire::GoAway { refusal: Some(refusal.clone().into()), retry_window_ms: milliseconds(window) };
    let frame = wire::CoordinatorFrame { frame: Some(wire::coordinator_frame::Frame::GoAway(away)) };
    // The connection is closed with the same words in any case, but a close overtakes what was not acknowledged yet.
    let _ = timeout(Duration::from_secs(1), async {
        if send.send(&frame).await.is_ok() {
            send.finish().await;
        }
    })
    .await;
}

fn lost(error: &quinn::ConnectionError) -> Refusal {
    Refusal::new(Reason::FrameUnexpected, format!("the connection ended: {error}"))
}

struct InFlight {
    generation: Generation,
    scope: Arc<Scope>,
    refresh_at: UnixTime,
    give_up: Instant,
}

struct Session {
    shared: Arc<Shared>,
    requester: Requester,
    /// The certificate had ended when the link was made: it is renewed here, and nothing is told.
    only_renews: bool,
    trusted: TrustedNode,
    /// The roots that the node said it holds when it connected.
    roots: Vec<RootPrefix>,
    attached: Attached,
    send: Sender,
    /// What the node holds, as far as it said.
    base: Generation,
    told: Arc<Scope>,
    refresh_at: UnixTime,
    in_flight: Option<InFlight>,
    /// The generation that heartbeats confirm: the newest the node has taken; none before that.
    confirmed: Option<Generation>,
    hints: BTreeMap<InstanceId, Vec<SocketAddr>>,
    reports: Reports,
    /// When marks are acted on, and since when they wait.
    flush_at: Option<(Instant, Instant)>,
}

impl Session {
    /// Finds out what the node holds: what this process told it before, or exactly what it is to hold now, or
    /// nothing that helps.
    fn attach(
        shared: &Arc<Shared>,
        connection: &quinn::Connection,
        requester: Requester,
        (trusted, roots): (&TrustedNode, Vec<RootPrefix>),
        send: Sender,
        hello: &wire::Hello,
    ) -> Self {
        let registry = &shared.registry;
        let now = registry.now();
        let skew = signed_ms(hello.clock_unix_ms) - signed_ms(now.0.saturating_mul(1000));
        if skew.abs() > CLOCK_SKEW_MS {
            tracing::warn!(node = %requester.node, skew_ms = skew, "the node's clock is off");
        }
        let said = Generation { epoch: hello.epoch, revision: hello.revision };
        let state = registry.state();
        let resumable = said.revision != 0 && said <= state.generation() && said.epoch == state.epoch.0;
        // A generation that this store never made is no acknowledgement of what it makes next.
        let known = if resumable { said } else { Generation::default() };
        let status = LinkStatus {
            node: requester.node,
            since: now,
            remote: connection.remote_address(),
            software: hello.software.chars().filter(|c| !c.is_control()).take(64).collect(),
            told: known,
            acknowledged: known,
            refused: None,
            clock_skew_ms: skew,
            busy: true,
            root: trusted.path.authorities().last().map(root_prefix).unwrap_or_default(),
        };
        let held = shared.links.held(requester.node);
        let attached = shared.links.attach(connection.clone(), status);
        let state = registry.state();
        let held = held.filter(|held| resumable && held.digest.as_slice() == hello.scope_digest).or_else(|| {
            let scope = project(&state, requester.node, &encoded_bundle(registry), now);
            let digest = scope.digest();
            let same = resumable && digest.as_slice() == hello.scope_digest;
            // When its manifest ends is not known after a restart: it is signed anew at once.
            same.then(|| Held { scope: Arc::new(scope), digest, refresh_at: UnixTime(0) })
        });
        if said > state.generation() {
            tracing::error!(
                node = %requester.node, epoch = said.epoch, revision = said.revision,
                "the node holds a newer generation than this store: was an old backup put back without `restore`?"
            );
        }
        let (base, told, refresh_at, confirmed) = match held {
            Some(held) => {
                attached.hold(held.clone());
                (said, held.scope, held.refresh_at, Some(said))
            }
            None => {
                shared.links.forget_held(requester.node);
                (Generation::default(), Arc::default(), UnixTime(0), None)
            }
        };
        Self {
            shared: Arc::clone(shared),
            only_renews: requester.ended(now),
            requester,
            trusted: trusted.clone(),
            roots,
            attached,
            send,
            base,
            told,
            refresh_at,
            in_flight: None,
            confirmed,
            hints: BTreeMap::new(),
            reports: Reports::default(),
            flush_at: None,
        }
    }

    async fn welcome(&mut self, remote: SocketAddr) -> Result<(), Refusal> {
        let state = self.shared.registry.state();
        let workloads = state.nodes.get(&self.requester.node).map(|node| node.workloads.clone()).unwrap_or_default();
        let generation = state.generation();
        self.frame(wire::coordinator_frame::Frame::Welcome(wire::Welcome {
            epoch: generation.epoch,
            revision: generation.revision,
            reconnect_window_ms: milliseconds(reconnect_window(&state)),
            heartbeat_seconds: u32::try_from(self.shared.settings.heartbeat.as_secs()).unwrap_or(u32::MAX),
            observed_address: SocketAddr::new(remote.ip().to_canonical(), remote.port()).to_string(),
            workloads: workloads.iter().map(ToString::to_string).collect(),
        }))
        .await
    }

    async fn attend(&mut self, connection: &quinn::Connection, receive: &mut Receiver) -> Result<(), Refusal> {
        let mut stopping = self.shared.stopping.clone();
        let mut issuances = JoinSet::new();
        let mut heartbeat = tokio::time::interval(self.shared.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.flush().await?;
        loop {
            let flush_at = self.flush_at.map(|(at, _)| at).filter(|_| self.in_flight.is_none());
            let give_up = self.in_flight.as_ref().map(|update| update.give_up);
            tokio::select! {
                frame = receive.next::<wire::NodeFrame>() => match frame? {
                    Some(frame) => self.handle(frame, connection.remote_address().ip()).await?,
                    None => return Ok(()),
                },
                stream = connection.accept_bi() => {
                    let stream = stream.map_err(|error| lost(&error))?;
                    let shared = Arc::clone(&self.shared);
                    issuances.spawn(issue(shared, connection.clone(), self.requester.clone(), stream));
                }
                Some(_) = issuances.join_next() => {}
                () = self.attached.mark.woken() => {
                    // Also while an update awaits its acknowledgement: who is revoked may never give it.
                    if let Err(refusal) = check_not_revoked(&self.shared.registry.state(), &self.trusted) {
                        if refusal.reason == Reason::Revoked {
                            self.last_words(receive, connection.remote_address().ip()).await;
                        }
                        return Err(refusal);
                    }
                    self.check_root()?;
                    self.check_in_date(self.shared.registry.now())?;
                    self.debounce();
                }
                () = until(flush_at) => self.flush().await?,
                () = until(self.reports.due(Instant::now())) => self.take_report(),
                () = until(give_up) => {
                    let refusal = Refusal::new(Reason::FrameUnexpected, "the node did not acknowledge its update");
                    go_away(&mut self.send, &refusal, UPGRADE).await;
                    return Err(refusal);
                }
                _ = heartbeat.tick() => self.heartbeat().await?,
                () = stopped(&mut stopping) => {
                    let refusal = Refusal::new(Reason::ShuttingDown, "the coordinator is stopping");
                    let window = reconnect_window(&self.shared.registry.state());
                    go_away(&mut self.send, &refusal, window).await;
                    return Err(refusal);
                }
            }
        }
    }

    /// The node's own certificate is revoked with its issuer, and its peers' with it: it must hear of that before it loses
    /// its link, or it would go on trusting them. Whoever takes no part is not waited for.
    async fn last_words(&mut self, receive: &mut Receiver, remote: IpAddr) {
        let told = async {
            let mut sent = false;
            loop {
                if self.in_flight.is_none() && !sent {
                    self.flush().await?;
                    sent = true;
                }
                if self.in_flight.is_none() {
                    return Ok::<_, Refusal>(());
                }
                match receive.next::<wire::NodeFrame>().await? {
                    Some(frame) => self.handle(frame, remote).await?,
                    None => return Ok(()),
                }
            }
        };
        if !matches!(timeout(LAST_WORDS, told).await, Ok(Ok(()))) {
            tracing::info!(node = %self.requester.node, "a node did not take the revocation that ends its link");
        }
    }

    /// A link lives no longer than the certificate it was made with, however quiet it is.
    fn check_in_date(&self, now: UnixTime) -> Result<(), Refusal> {
        if self.only_renews || !self.requester.ended(now) {
            return Ok(());
        }
        Err(Refusal::new(Reason::CertificateEnded, "the certificate that this link was made with has ended")
            .hint("connect again with the renewed one"))
    }

    /// Nor longer than its root is trusted.
    fn check_root(&self) -> Result<(), Refusal> {
        let authority = self.shared.registry.authority();
        let root = self.trusted.path.authorities().last();
        if root.is_some_and(|root| authority.bundle().roots().any(|trusted| trusted.der() == root.der())) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::UntrustedIssuer,
            "the root of the certificate that this link was made with is retired",
        )
        .hint("connect again with the renewed one"))
    }

    fn debounce(&mut self) {
        let marks = self.attached.mark.look();
        let now = Instant::now();
        if marks.scope() || marks.hints() {
            let since = self.flush_at.map_or(now, |(_, since)| since);
            let at = if marks.urgent() { now } else { (now + DEBOUNCE).min(since + DEBOUNCE_MOST) };
            self.flush_at = Some((at, since));
        }
    }

    /// Sends what the node is to be told, if anything, and the hints that go with it.
    async fn flush(&mut self) -> Result<(), Refusal> {
        self.flush_at = None;
        if self.in_flight.is_some() || self.only_renews {
            return Ok(());
        }
        let marks = self.attached.mark.look();
        self.attached.update(|status| status.busy = true);
        self.attached.mark.clear(marks);
        let registry = Arc::clone(&self.shared.registry);
        let (state, now) = (registry.state(), registry.now());
        let scope = project(&state, self.requester.node, &encoded_bundle(&registry), now);
        let difference = self.told.difference(&scope);
        if difference.is_empty() && self.base.revision != 0 && now < self.refresh_at {
            self.attached.update(|status| status.busy = false);
            return self.send_hints(&state).await;
        }
        let body = manifest(&state, self.requester.node, &scope, now)?.encode();
        let signed = registry.authority().sign(body, &self.roots);
        let hints = self.changed_hints(&state, &scope);
        let generation = state.generation();
        self.attached.update(|status| status.told = generation);
        for frame in update::frames(self.base, difference, signed, hints) {
            self.send_frame(&frame).await?;
        }
        self.in_flight = Some(InFlight {
            generation,
            scope: Arc::new(scope),
            refresh_at: now.plus(MANIFEST_LIFETIME / 2),
            give_up: Instant::now() + PATIENCE,
        });
        Ok(())
    }

    async fn handle(&mut self, frame: wire::NodeFrame, remote: IpAddr) -> Result<(), Refusal> {
        match frame.frame {
            Some(wire::node_frame::Frame::Ack(ack)) => {
                self.handle_ack(Generation { epoch: ack.epoch, revision: ack.revision }).await
            }
            Some(wire::node_frame::Frame::Nack(nack)) => self.handle_nack(nack),
            Some(wire::node_frame::Frame::Report(report)) => {
                self.handle_report(&report, remote);
                Ok(())
            }
            Some(wire::node_frame::Frame::Hello(_)) => {
                Err(Refusal::new(Reason::FrameUnexpected, "a second Hello on one link"))
            }
            None => Err(Refusal::new(Reason::FrameMalformed, "a frame without content, or of a kind not known here")),
        }
    }

    async fn handle_ack(&mut self, generation: Generation) -> Result<(), Refusal> {
        let Some(update) = self.in_flight.take_if(|update| update.generation == generation) else {
            // What was acknowledged before may be said again; what was never told may not be claimed.
            if generation <= self.base {
                return Ok(());
            }
            let detail = format!("generation {}.{} was not told", generation.epoch, generation.revision);
            return Err(Refusal::new(Reason::FrameUnexpected, format!("an acknowledgement out of place: {detail}")));
        };
        self.base = update.generation;
        self.confirmed = Some(update.generation);
        self.refresh_at = update.refresh_at;
        self.told = update.scope;
        let digest = self.told.digest();
        self.attached.hold(Held { scope: Arc::clone(&self.told), digest, refresh_at: self.refresh_at });
        self.attached.update(|status| {
            status.acknowledged = generation;
            status.busy = false;
            status.refused = status.refused.take().filter(|refused| refused.generation == generation);
        });
        // The node's newest word that its generation is in force, without waiting for the next beat.
        self.heartbeat().await?;
        self.debounce();
        Ok(())
    }

    fn handle_nack(&mut self, nack: wire::Nack) -> Result<(), Refusal> {
        let generation = Generation { epoch: nack.epoch, revision: nack.revision };
        let refusal = nack.refusal.map(Refusal::from);
        let items: Vec<_> = nack
            .items
            .into_iter()
            .filter_map(|item| {
                let instance = InstanceId::try_from(item.instance_id.as_slice()).ok()?;
                let reason = item.reason.parse().unwrap_or(Reason::Internal);
                Some((instance, Refusal::new(reason, item.detail)))
            })
            .collect();
        tracing::warn!(
            node = %self.requester.node, revision = generation.revision, items = items.len(),
            refusal = refusal.as_ref().map(tracing::field::display), "the node refused what it was told"
        );
        let whole = refusal.is_some();
        self.attached.update(|status| status.refused = Some(RefusedUpdate { generation, refusal, items }));
        if whole && self.in_flight.take_if(|update| update.generation == generation).is_some() {
            // It keeps what it had; what that is, only a snapshot makes certain. It is sent with the next change, or
            // at the next review, not at once: the same would be refused again.
            self.base = Generation::default();
            self.told = Arc::default();
            self.attached.update(|status| status.busy = false);
        }
        Ok(())
    }

    fn handle_report(&mut self, report: &wire::Report, remote: IpAddr) {
        if let Ok(settings) = self.shared.registry.state().settings() {
            self.reports.put(endpoints(report, remote, &settings.overlay));
        }
    }

    fn take_report(&mut self) {
        let Some(endpoints) = self.reports.take(Instant::now()) else { return };
        let registry = &self.shared.registry;
        let (state, now) = (registry.state(), registry.now());
        if self.shared.links.set_endpoints(self.requester.node, endpoints) {
            let instances = state.workloads_on(self.requester.node);
            let touched = Touched {
                instances: instances.into_iter().map(|workload| (workload, self.requester.node)).collect(),
                ..Touched::default()
            };
            self.shared.links.mark_hints(&concerned(&state, &touched, now));
        }
    }

    async fn heartbeat(&mut self) -> Result<(), Refusal> {
        let registry = Arc::clone(&self.shared.registry);
        let now = registry.now();
        self.check_in_date(now)?;
        if now >= self.refresh_at && self.in_flight.is_none() && self.base.revision != 0 {
            self.flush().await?;
        }
        // A node that refused its last update is told nothing reassuring.
        let Some(generation) = self.confirmed.filter(|_| self.base.revision != 0 && !self.only_renews) else {
            return Ok(());
        };
        let trust_domain = registry.state().settings()?.trust_domain.clone();
        let beat = Heartbeat { trust_domain, node: self.requester.node, generation, issued_at: now };
        let signed = registry.authority().sign(beat.encode(), &self.roots);
        self.frame(wire::coordinator_frame::Frame::Heartbeat(signed)).await
    }

    async fn send_hints(&mut self, state: &State) -> Result<(), Refusal> {
        let told = Arc::clone(&self.told);
        let hints = self.changed_hints(state, &told);
        if hints.is_empty() {
            return Ok(());
        }
        self.frame(wire::coordinator_frame::Frame::Hints(wire::Hints { hints })).await
    }

    /// Endpoints of the peers in `scope` that this link has not carried yet.
    fn changed_hints(&mut self, state: &State, scope: &Scope) -> Vec<wire::PeerHint> {
        self.hints.retain(|instance, _| scope.peers.contains_key(instance));
        let peers: Vec<_> =
            scope.peers.keys().filter_map(|id| state.instances.get(id).map(|instance| (*id, instance))).collect();
        let reported = self.shared.links.endpoints(peers.iter().map(|(_, instance)| instance.node));
        let mut changed = Vec::new();
        for ((instance, record), reported) in peers.into_iter().zip(reported) {
            // A device reports nothing; where an administrator said that it listens, it may be reached.
            let of_device = record.device.as_ref().and_then(|device| device.endpoint);
            let endpoints = of_device.map_or(reported, |endpoint| vec![endpoint]);
            if endpoints.is_empty() || self.hints.get(&instance) == Some(&endpoints) {
                continue;
            }
            changed.push(wire::PeerHint {
                instance_id: instance.as_bytes().to_vec(),
                endpoints: endpoints.iter().map(ToString::to_string).collect(),
            });
            self.hints.insert(instance, endpoints);
        }
        changed
    }

    async fn frame(&mut self, frame: wire::coordinator_frame::Frame) -> Result<(), Refusal> {
        self.send_frame(&wire::CoordinatorFrame { frame: Some(frame) }).await
    }

    async fn send_frame(&mut self, frame: &wire::CoordinatorFrame) -> Result<(), Refusal> {
        timeout(PATIENCE, self.send.send(frame))
            .await
            .map_err(|_| Refusal::new(Reason::FrameUnexpected, "the node takes no data"))?
    }
}

async fn issue(
    shared: Arc<Shared>,
    connection: quinn::Connection,
    requester: Requester,
    stream: (quinn::SendStream, quinn::RecvStream),
) {
    let node = requester.node;
    match timeout(PATIENCE, issuance::serve(shared, connection, requester, stream)).await {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => tracing::debug!(%node, reason = %refusal.reason, "an issuance ended without success"),
        Err(_) => tracing::warn!(%node, "an issuance took too long"),
    }
}

/// Completes when the coordinator stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone stops, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn root_prefix(root: &AuthorityCertificate) -> RootPrefix {
    root_hint::prefix(&object_digest(root.der()))
}

fn encoded_bundle(registry: &Registry) -> Bytes {
    registry.authority().bundle().to_wire().encode_to_vec().into()
}

fn signed_ms(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}
