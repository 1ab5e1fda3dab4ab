//! The engine's thread: owns the slow half, feeds it what workers hand up, carries out what it says, and answers the
//! daemon. It waits on its mailbox and on the engine's next timer.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use warren_engine::counters::Counters;
use warren_engine::engine::Engine;
use warren_engine::mesh::{Event, MeshUpdate};
use warren_engine::output::{Transmit, WorkerEvent};
use warren_engine::tables::{Shared, Tables, UnderWay};
use warren_proto::Reason;

use super::io::{Fragments, OuterIo};
use super::mailbox::{Lane, Mail};
use super::worker_loop::{ToWorker, Wiring, reason};
use super::{DataPlaneEvent, Status};

/// The longest wait: timers are kept on a clock that counts through suspend, and waiting is not.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// UDP payload that fits any path of IPv6 (RFC 8200, section 5) without fragments.
const FITS_EVERY_IPV6_PATH: usize = 1280 - 40 - 8;

/// What others hand to the engine.
pub(super) enum ToEngine {
    /// A handshake message, or a transport message of a handshake tunnel, with its ECN bits.
    Datagram(SocketAddr, u8, Box<[u8]>),
    /// A judged packet that waits for a session.
    Unsent(UnderWay, Box<[u8]>),
    /// A fact from a worker.
    Event(WorkerEvent),
    /// The path to an endpoint takes UDP payloads of this many bytes and no longer ones.
    PathMtu(SocketAddr, usize),
    /// A worker has reset the connections it was told to.
    CutDone,
    /// The mesh as it now is.
    Apply(Box<MeshUpdate>),
    /// How do things stand?
    Status(oneshot::Sender<Status>),
    /// A device is lost, or a worker.
    Lost { what: &'static str, error: String },
    /// The end.
    Stop,
}

impl Mail for ToEngine {
    /// A peer by its number, a handshake tunnel by its prefix, a stranger by its address.
    type Sender = (u8, IpAddr);

    fn sender(&self) -> (Lane, Self::Sender) {
        let known = |kind, number: u32| (Lane::Known, (kind, IpAddr::from(number.to_be_bytes())));
        match self {
            Self::Datagram(from, _, datagram) => match tunnel_of(datagram) {
                Some(prefix) => known(1, prefix),
                None => (Lane::Strange, (2, network(from.ip()))),
            },
            Self::Unsent(under_way, _) => known(3, under_way.link().peer().0),
            _ => known(0, 0),
        }
    }
}

/// The prefix of the handshake tunnel that a message is for; none for an initiation, which anybody can make up. Workers
/// hand up the other kinds only where the receiver index is one of ours.
fn tunnel_of(message: &[u8]) -> Option<u32> {
    let at = match message.first()? {
        2 => 8,
        3 | 4 => 4,
        _ => return None,
    };
    let receiver = message.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(receiver) >> 8)
}

/// What one sender can choose addresses from without asking anybody: an IPv4 address, an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => IpAddr::from((u128::from(address) & !u128::from(u64::MAX)).to_be_bytes()),
    }
}

/// An acknowledgement that waits until everything judged earlier has left.
struct Held {
    event: Event,
    /// How many items must have been dealt with.
    after: u64,
}

/// The slow half with its surroundings.
pub(super) struct EngineLoop {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    pub(super) outer: Box<dyn OuterIo>,
    pub(super) wiring: Arc<Wiring>,
    /// Of every worker.
    pub(super) counters: Vec<Arc<Counters>>,
    /// Of this thread's socket and mailboxes.
    pub(super) own: Counters,
    pub(super) inbox: VecDeque<ToEngine>,
    /// Items dealt with since the start.
    pub(super) done: u64,
    pub(super) held: Acknowledgements,
}

/// What is not said yet.
#[derive(Default)]
pub(super) struct Acknowledgements {
    waiting: VecDeque<Held>,
    cuts_under_way: usize,
}

/// Whatever ends this thread ends the data plane closed.
struct Closing(Arc<Wiring>, Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        // The engine has done so before, unless it failed.
        self.1.publish(Arc::new(Tables::deny_all()));
        self.0.stop_workers();
        // Whoever waits for an answer learns that none will come.
        self.0.engine.close();
    }
}

impl EngineLoop {
    /// Runs until told to stop, or until something is lost.
    pub(super) fn run(mut self) {
        let _closing = Closing(Arc::clone(&self.wiring), Arc::clone(&self.shared));
        loop {
            self.wait();
            while let Some(item) = self.inbox.pop_front() {
                let ends = self.take(item);
                self.done += 1;
                self.carry_out();
                if ends {
                    return;
                }
                self.keep_time();
            }
            self.acknowledge();
        }
    }

    fn wait(&mut self) {
        let now = (self.wiring.time)();
        let until = self.engine.poll_timeout().map_or(LONGEST_WAIT, |at| at.saturating_sub(now.monotonic));
        self.wiring.engine.wait_and_take(&mut self.inbox, until.min(LONGEST_WAIT));
        self.keep_time();
    }

    /// Does what has become due. Asked between items too: a turn full of handshakes takes longer than a retry may wait.
    fn keep_time(&mut self) {
        let now = (self.wiring.time)();
        if self.engine.poll_timeout().is_some_and(|at| at <= now.monotonic) {
            self.engine.handle_timeout(now);
            self.carry_out();
        }
    }

    /// Deals with one item; whether it is the last.
    fn take(&mut self, item: ToEngine) -> bool {
        let now = (self.wiring.time)();
        match item {
            ToEngine::Datagram(from, ecn, datagram) => self.engine.handle_marked(from, ecn, &datagram, now),
            ToEngine::Unsent(under_way, packet) => self.engine.handle_unsent(under_way, &packet, now),
            ToEngine::Event(event) => self.engine.handle_worker_event(&event, now),
            ToEngine::PathMtu(to, payload) => self.engine.handle_path_mtu(to, payload, now),
            ToEngine::CutDone => self.held.cuts_under_way = self.held.cuts_under_way.saturating_sub(1),
            ToEngine::Apply(update) => self.engine.apply(&update, now),
            ToEngine::Status(answer) => {
                let _ = answer.send(self.status());
            }
            ToEngine::Lost { what, error } => {
                self.engine.shut_down(now);
                self.say(DataPlaneEvent::DeviceLost { what, error });
                return true;
            }
            ToEngine::Stop => {
                self.engine.shut_down(now);
                return true;
            }
        }
        false
    }

    fn say(&self, event: DataPlaneEvent) {
        // Without a listener the daemon is ending, and this thread hears of it next.
        let _ = self.wiring.events.send(event);
    }

    /// Carries out everything that the engine has decided.
    fn carry_out(&mut self) {
        while let Some(packet) = self.engine.poll_plain() {
            // One worker per peer keeps its packets in order.
            let worker = packet.peer.0 as usize % self.wiring.workers.len();
            if !self.wiring.workers[worker].offer(ToWorker::Plain(packet)) {
                self.own.drop_one(Reason::HandoverFull);
            }
        }
        while let Some(transmit) = self.engine.poll_transmit() {
            let own = &self.own;
            let bytes = &transmit.datagram[..];
            let one = Transmit { endpoint: transmit.to, bytes, segment: bytes.len(), ecn: transmit.ecn };
            let mut refused = |_, why| own.drop_one(reason(why));
            if transmit.whole {
                self.outer.send_alone(one, Fragments::Nowhere, &mut refused);
            } else if transmit.to.is_ipv6() && bytes.len() > FITS_EVERY_IPV6_PATH {
                self.outer.send_alone(one, Fragments::AsRoutersSay, &mut refused);
            } else {
                self.outer.send(&mut std::iter::once(one), &mut refused);
            }
            while let Some((to, payload)) = self.outer.poll_path_mtu() {
                self.engine.handle_path_mtu(to, payload, (self.wiring.time)());
            }
        }
        while let Some(event) = self.engine.poll_event() {
            match event {
                Event::Applied { .. } => {
                    let waiting = self.inbox.len() + self.wiring.engine.len();
                    self.held.waiting.push_back(Held { event, after: self.done + waiting as u64 });
                }
                Event::FlowsCut(cuts) => {
                    self.held.cuts_under_way += 1;
                    self.wiring.workers[0].insist(ToWorker::Cut(cuts.clone()));
                    self.say(DataPlaneEvent::Engine(Event::FlowsCut(cuts)));
                }
                event => self.say(DataPlaneEvent::Engine(event)),
            }
        }
    }

    /// Says that an update is applied once what was judged before it has left: packets on their way from a worker to
    /// this thread, and the resets of connections that were cut.
    fn acknowledge(&mut self) {
        while self.held.cuts_under_way == 0 && self.held.waiting.front().is_some_and(|held| held.after <= self.done) {
            if let Some(held) = self.held.waiting.pop_front() {
                self.say(DataPlaneEvent::Engine(held.event));
            }
        }
    }

    fn status(&self) -> Status {
        let now = (self.wiring.time)();
        let mut drops = vec![0; Reason::ALL.len()];
        let mut add = |(reason, count): (Reason, u64)| drops[reason as usize] += count;
        self.engine.drops().for_each(&mut add);
        self.counters.iter().flat_map(|counters| counters.drops()).for_each(&mut add);
        self.own.drops().for_each(&mut add);
        let drops = Reason::ALL.iter().map(|reason| (*reason, drops[*reason as usize]));
        Status {
            peers: self.engine.peers(now),
            unknown_keys: self.engine.unknown_keys(),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            traffic: self.counters.iter().map(|counters| counters.traffic()).collect(),
            flows: self.shared.flows().len(),
            generation: self.shared.tables().generation,
        }
    }
}
