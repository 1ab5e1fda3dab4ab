//! The control session: keeps one link to a coordinator, again and again, for as long as the node lives.
//!
//! On the session's stream the node says what it holds, and takes updates, heartbeats and hints to the mesh's owner, who
//! judges them. Acknowledgements follow what the owner answers. Requests for certificates use streams beside it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::stop::Stop;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use warren_proto::certificate::CLOCK_SKEW;
use warren_proto::codec::{MAX_CONTROL_FRAME, MAX_NODE_FRAME};
use warren_proto::peer_map::{Generation, MAX_SCOPE_BYTES};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{PROTOCOL_VERSION, READER_VERSION, UnixTime, WorkloadName, wire};

use super::backoff::Backoff;
use super::issue::{self, Holder, Issued, TunnelRequest};
use super::link::{FrameSender, Link};
use super::tls::{ClientTls, Trust};
use crate::certificates::key_store::{Chain, NodeIdentity, SigningKey};
use crate::certificates::svids::Svid;
use crate::clock::Clock;
use crate::mesh::{Applied, MeshHandle};

/// Most refused records named in one report; the rest is counted in the log.
const MAX_ITEMS: usize = 200;
/// Most parts of one update.
const MAX_PARTS: usize = 4096;
/// The welcome must come within this after the link is up.
const WELCOME: Duration = Duration::from_secs(20);

/// A certificate wanted, and where the answer goes.
#[derive(Debug)]
pub enum Wanted {
    /// A tunnel certificate.
    Tunnel(TunnelRequest, oneshot::Sender<Result<Issued, Refusal>>),
    /// A new node certificate.
    Node(oneshot::Sender<Result<(SigningKey, Chain), Refusal>>),
    /// An X.509-SVID to hand to a workload of this host.
    Svid(WorkloadName, oneshot::Sender<Result<Svid, Refusal>>),
}

/// How the link is doing, for people and for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// No session yet, or none any more.
    Down {
        /// Since when.
        since: UnixTime,
        /// Why the last one failed; `None` before the first try.
        cause: Option<Refusal>,
    },
    /// A session is up.
    Up {
        /// Since when.
        since: UnixTime,
        /// Which coordinator.
        coordinator: String,
        /// Identities this node may hold, as the coordinator says.
        workloads: Vec<String>,
        /// Over how long nodes are to spread what they all do at once, as the coordinator says.
        spread: Duration,
    },
}

/// What the node reports about itself; unsigned, for peers' first datagram.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// UDP port of the data plane.
    pub data_port: u16,
    /// Addresses it can be reached at.
    pub addresses: Vec<IpAddr>,
}

/// Everything a session needs.
#[derive(Debug)]
pub struct Control {
    /// Who this node is; a renewed certificate is used by the next link.
    pub identity: watch::Receiver<Arc<NodeIdentity>>,
    /// Configured coordinators, for the next link; empty uses those of enrolment.
    pub addresses: watch::Receiver<Vec<String>>,
    /// The owner of what comes over the link.
    pub mesh: MeshHandle,
    /// The time.
    pub clock: Arc<Clock>,
    /// What to report.
    pub facts: watch::Receiver<Facts>,
    /// Certificates wanted.
    pub wanted: mpsc::Receiver<Wanted>,
    /// How the link is doing.
    pub state: watch::Sender<LinkState>,
    /// Random, of this process: by it the coordinator tells a restart from a copy.
    pub process: [u8; 16],
    /// Ends it.
    pub stop: Stop,
}

impl Control {
    /// Connects, serves the session until it is lost, waits, and starts again, until told to stop.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        let stop = self.stop.clone();
        loop {
            let ended = tokio::select! {
                ended = self.serve(&mut backoff) => ended,
                () = stop.stopped() => return,
            };
            warn!(reason = ended.reason.name(), next = ended.hint, "control link down: {ended}");
            self.down(ended.clone());
            let wait = backoff.next(rand::random());
            tokio::select! {
                () = self.refuse_wanted(wait, &ended) => {}
                () = stop.stopped() => return,
            }
        }
    }

    fn down(&self, cause: Refusal) {
        let now = self.clock.now().unix;
        self.state.send_modify(|state| {
            // Repeated failures keep the moment at which the link was lost.
            let since = match state {
                LinkState::Down { since, .. } => *since,
                LinkState::Up { .. } => now,
            };
            *state = LinkState::Down { since, cause: Some(cause) };
        });
    }

    /// Waits, and answers everyone who wants a certificate meanwhile that there is no link.
    async fn refuse_wanted(&mut self, wait: Duration, cause: &Refusal) {
        let waited = tokio::time::sleep(wait);
        tokio::pin!(waited);
        loop {
            tokio::select! {
                () = &mut waited => return,
                Some(wanted) = self.wanted.recv() => match wanted {
                    Wanted::Tunnel(_, answer) => drop(answer.send(Err(cause.clone()))),
                    Wanted::Node(answer) => drop(answer.send(Err(cause.clone()))),
                    Wanted::Svid(_, answer) => drop(answer.send(Err(cause.clone()))),
                },
            }
        }
    }

    /// One session. Never ends well: whatever it returns is why the link is gone.
    async fn serve(&mut self, backoff: &mut Backoff) -> Refusal {
        match self.try_serve(backoff).await {
            Ok(never) => match never {},
            Err(refusal) => refusal,
        }
    }

    async fn try_serve(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Refusal> {
        let identity = self.identity.borrow_and_update().clone();
        let bundle = self.mesh.bundle().borrow().clone();
        let tls = ClientTls::control(Trust::Bundle(bundle), self.clock.clone(), &identity.chain, &identity.key)?;
        let (not_before, not_after) = issue::node_validity(&identity.chain)?;
        let only_renews = not_after <= self.clock.now().unix;
        let issued_at = not_before.plus(CLOCK_SKEW);
        let configured = self.addresses.borrow_and_update().clone();
        let addresses = if configured.is_empty() { &identity.coordinators } else { &configured };
        let link = Arc::new(Link::connect(addresses, tls).await?);
        let mut frames = link.open(MAX_CONTROL_FRAME).await?;
        frames.send.send(&frame(wire::node_frame::Frame::Hello(self.hello())), MAX_NODE_FRAME).await?;
        let first = tokio::time::timeout(WELCOME, frames.receive.expect::<wire::CoordinatorFrame>("the welcome"))
            .await
            .map_err(|_| {
                Refusal::new(Reason::CoordinatorUnreachable, "the coordinator does not welcome this node")
            })??;
        let welcome = match first.frame {
            Some(wire::coordinator_frame::Frame::Welcome(welcome)) => welcome,
            Some(wire::coordinator_frame::Frame::GoAway(away)) => return Err(go_away(away, backoff)),
            _ => return Err(unexpected("a frame before the welcome")),
        };
        backoff.succeeded(Duration::from_millis(welcome.reconnect_window_ms.into()));
        info!(coordinator = link.address, epoch = welcome.epoch, revision = welcome.revision, "control link up");
        self.state.send_replace(LinkState::Up {
            since: self.clock.now().unix,
            coordinator: link.address.clone(),
            workloads: welcome.workloads,
            spread: Duration::from_millis(welcome.reconnect_window_ms.into()),
        });
        self.report(&link, &mut frames.send).await?;

        let mut parts = Parts::default();
        let mut pending: Option<Pending> = None;
        loop {
            tokio::select! {
                // One update at a time: the next is read when this one is in force.
                frame = frames.receive.next::<wire::CoordinatorFrame>(), if pending.is_none() => {
                    let frame = frame?.ok_or_else(|| unexpected("the end of the stream"))?;
                    match frame.frame {
                        Some(wire::coordinator_frame::Frame::Update(part)) => {
                            if let Some(update) = parts.add(part)? {
                                let named = named_generation(&update);
                                pending = Some(Pending { named, answer: self.mesh.update(update).await });
                            }
                        }
                        Some(wire::coordinator_frame::Frame::Heartbeat(signed)) => self.mesh.heartbeat(signed).await,
                        Some(wire::coordinator_frame::Frame::Hints(hints)) => self.mesh.hints(hints.hints).await,
                        Some(wire::coordinator_frame::Frame::GoAway(away)) => return Err(go_away(away, backoff)),
                        Some(wire::coordinator_frame::Frame::Welcome(_)) => return Err(unexpected("a second welcome")),
                        None => return Err(Refusal::new(Reason::FrameUnexpected, "a frame of an unknown kind")
                            .hint("upgrade warren on this node")),
                    }
                }
                answer = answered(&mut pending) => {
                    let (named, answer) = answer;
                    acknowledge(&mut frames.send, named, answer).await?;
                }
                Some(wanted) = self.wanted.recv() => self.issue(&link, wanted),
                changed = self.facts.changed() => {
                    changed.map_err(|_| Refusal::new(Reason::ShuttingDown, "the node is stopping"))?;
                    self.report(&link, &mut frames.send).await?;
                }
                changed = self.identity.changed() => {
                    changed.map_err(|_| Refusal::new(Reason::ShuttingDown, "the node is stopping"))?;
                    // Over a link that was made with an ended certificate nothing is told, whatever was renewed since.
                    // And the coordinator must see that this node has what it was to renew before the rest is taken away.
                    let replaced = issued_at <= self.mesh.bundle().borrow().renew_before();
                    if (only_renews || replaced) && self.identity.borrow_and_update().chain != identity.chain {
                        let detail = "this link's certificate is renewed: the next link uses the new one";
                        return Err(Refusal::new(Reason::CertificateEnded, detail));
                    }
                }
                lost = link.closed() => return Err(lost),
            }
        }
    }

    fn hello(&self) -> wire::Hello {
        // What was lost with the last link before it was acknowledged is asked for again.
        let held = self.mesh.held();
        let generation = held.as_ref().map(|held| held.manifest.generation).unwrap_or_default();
        wire::Hello {
            version: PROTOCOL_VERSION,
            epoch: generation.epoch,
            revision: generation.revision,
            scope_digest: held.map(|held| held.scope.digest().to_vec()).unwrap_or_default(),
            clock_unix_ms: self.clock.now().unix.0.saturating_mul(1000),
            reader: READER_VERSION,
            software: concat!("warren/", env!("CARGO_PKG_VERSION")).to_owned(),
            process: self.process.to_vec(),
        }
    }

    async fn report(&mut self, link: &Link, send: &mut FrameSender) -> Result<(), Refusal> {
        let facts = self.facts.borrow_and_update().clone();
        let mut addresses = facts.addresses;
        // The address that reaches the coordinator likely reaches peers: first.
        if let Some(local) = link.local_ip().filter(|ip| !ip.is_unspecified() && !ip.is_loopback()) {
            addresses.retain(|known| *known != local);
            addresses.insert(0, local);
        }
        let report = wire::Report {
            data_port: facts.data_port.into(),
            addresses: addresses.iter().take(warren_proto::peer_map::MAX_HINTS).map(ToString::to_string).collect(),
        };
        send.send(&frame(wire::node_frame::Frame::Report(report)), MAX_NODE_FRAME).await
    }

    /// Serves one request beside the session. The answer goes to whoever wanted it.
    fn issue(&self, link: &Arc<Link>, wanted: Wanted) {
        let (link, clock, bundle) = (link.clone(), self.clock.clone(), self.mesh.bundle().borrow().clone());
        let identity = self.identity.borrow().clone();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let now = clock.now().unix;
            let holder = Holder { node: identity.node_id, bundle: &bundle, now };
            let issued = async {
                match wanted {
                    Wanted::Tunnel(request, answer) => drop(answer.send(issue::tunnel(&link, &request, holder).await)),
                    Wanted::Node(answer) => drop(answer.send(match issue::renewal_key(&identity, now) {
                        Ok(key) => issue::node(&link, holder, key).await,
                        Err(refusal) => Err(refusal),
                    })),
                    Wanted::Svid(workload, answer) => drop(answer.send(issue::svid(&link, &workload, holder).await)),
                }
            };
            tokio::select! {
                () = issued => {}
                () = stop.stopped() => {}
            }
        });
    }
}

/// An update that the mesh's owner is judging.
struct Pending {
    named: Generation,
    answer: oneshot::Receiver<Result<Applied, Refusal>>,
}

/// The answer to the pending update; never when none is pending.
async fn answered(pending: &mut Option<Pending>) -> (Generation, Result<Applied, Refusal>) {
    let Some(waiting) = pending else {
        return std::future::pending().await;
    };
    let named = waiting.named;
    let answer =
        (&mut waiting.answer).await.unwrap_or_else(|_| Err(Refusal::new(Reason::ShuttingDown, "the node is stopping")));
    *pending = None;
    (named, answer)
}

async fn acknowledge(
    send: &mut FrameSender,
    named: Generation,
    answer: Result<Applied, Refusal>,
) -> Result<(), Refusal> {
    match answer {
        Ok(applied) => {
            let generation = applied.generation;
            if !applied.refused.is_empty() {
                let items = applied.refused.iter().take(MAX_ITEMS).map(|record| wire::RefusedItem {
                    instance_id: record.instance.as_bytes().to_vec(),
                    reason: record.refusal.reason.name().to_owned(),
                    detail: record.refusal.detail.chars().take(200).collect(),
                });
                let nack = nack(generation, None, items.collect());
                send.send(&frame(wire::node_frame::Frame::Nack(nack)), MAX_NODE_FRAME).await?;
            }
            let ack = wire::Ack { epoch: generation.epoch, revision: generation.revision };
            send.send(&frame(wire::node_frame::Frame::Ack(ack)), MAX_NODE_FRAME).await
        }
        Err(refusal) => {
            let nack = nack(named, Some(refusal), Vec::new());
            send.send(&frame(wire::node_frame::Frame::Nack(nack)), MAX_NODE_FRAME).await
        }
    }
}

fn nack(generation: Generation, refusal: Option<Refusal>, items: Vec<wire::RefusedItem>) -> wire::Nack {
    wire::Nack {
        epoch: generation.epoch,
        revision: generation.revision,
        refusal: refusal.map(wire::Refusal::from),
        items,
    }
}

fn frame(frame: wire::node_frame::Frame) -> wire::NodeFrame {
    wire::NodeFrame { frame: Some(frame) }
}

fn unexpected(what: &str) -> Refusal {
    Refusal::new(Reason::FrameUnexpected, format!("the coordinator sent {what}"))
}

fn go_away(away: wire::GoAway, backoff: &mut Backoff) -> Refusal {
    backoff.succeeded(Duration::from_millis(away.retry_window_ms.into()));
    away.refusal.map_or_else(
        || Refusal::new(Reason::CoordinatorUnreachable, "the coordinator sends this node away"),
        Into::into,
    )
}

/// What an unverified manifest calls itself, to name it in a refusal.
fn named_generation(update: &wire::Update) -> Generation {
    update
        .manifest
        .as_ref()
        .and_then(|signed| warren_proto::codec::decode::<wire::Manifest>(&signed.body).ok())
        .map(|manifest| Generation { epoch: manifest.epoch, revision: manifest.revision })
        .unwrap_or_default()
}

/// Collects the parts of one update within the limits of a scope.
#[derive(Debug, Default)]
struct Parts {
    collected: Option<wire::Update>,
    count: usize,
    bytes: usize,
}

impl Parts {
    /// Adds a part; the whole once it is complete. Parts of two updates do not mix.
    fn add(&mut self, part: wire::Update) -> Result<Option<wire::Update>, Refusal> {
        self.count += 1;
        self.bytes += prost::Message::encoded_len(&part);
        if self.count > MAX_PARTS || self.bytes > 2 * MAX_SCOPE_BYTES {
            let detail = format!("{} parts, {} bytes", self.count, self.bytes);
            return Err(Refusal::new(Reason::ScopeExceeded, detail));
        }
        let (more, manifest) = (part.more, part.manifest.is_some());
        if more && manifest {
            return Err(unexpected("a manifest in a part that is not the last"));
        }
        let whole = match self.collected.take() {
            None => part,
            Some(mut whole) => {
                if (part.from_epoch, part.from_revision) != (whole.from_epoch, whole.from_revision) {
                    return Err(unexpected("parts of two updates"));
                }
                whole.manifest = part.manifest;
                whole.objects.extend(part.objects);
                whole.peers.extend(part.peers);
                whole.tombstones.extend(part.tombstones);
                whole.hints.extend(part.hints);
                whole
            }
        };
        if more {
            self.collected = Some(whole);
            return Ok(None);
        }
        *self = Self::default();
        Ok(Some(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(from: u64, more: bool, peers: usize) -> wire::Update {
        wire::Update {
            from_revision: from,
            more,
            peers: vec![wire::PeerRecord::default(); peers],
            manifest: (!more).then(wire::SignedObject::default),
            ..Default::default()
        }
    }

    #[test]
    fn an_update_is_whole_only_with_its_last_part() {
        let mut parts = Parts::default();
        assert_eq!(parts.add(part(7, true, 1)).expect("part"), None);
        assert_eq!(parts.add(part(7, true, 2)).expect("part"), None);
        let whole = parts.add(part(7, false, 1)).expect("part").expect("whole");
        assert_eq!((whole.peers.len(), whole.manifest.is_some()), (4, true));
        assert_eq!(parts.add(part(8, false, 1)).expect("part").expect("next").peers.len(), 1);
    }

    #[test]
    fn parts_of_two_updates_do_not_mix() {
        let mut parts = Parts::default();
        parts.add(part(7, true, 1)).expect("part");
        assert_eq!(parts.add(part(8, false, 1)).expect_err("mixed").reason, Reason::FrameUnexpected);
    }

    #[test]
    fn an_endless_update_is_refused() {
        let mut parts = Parts::default();
        let refusal = (0..=MAX_PARTS).find_map(|_| parts.add(part(0, true, 0)).err()).expect("refused");
        assert_eq!(refusal.reason, Reason::ScopeExceeded);
    }
}
