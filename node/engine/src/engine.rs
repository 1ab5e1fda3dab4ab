//! The slow half: handshakes, key exchange, timers, and the application of what the mesh has become. It has one
//! owner, a thread of its own; workers hand it what they cannot deal with.
//!
//! After every call drain [`Engine::poll_event`], [`Engine::poll_plain`] and [`Engine::poll_transmit`], then wait no
//! longer than [`Engine::poll_timeout`]. Tables are published before anything that depends on them can be polled.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use sha2::{Digest, Sha256};
use warren_proto::Reason;
use warren_proto::certificate::is_low_order;

use crate::Now;
use crate::demux::{self, LinkId, LoadGate, Message};
use crate::ecn;
use crate::handshake::{Doorway, Gate};
use crate::mesh::{EngineConfig, Event, MeshUpdate, PeerStatus, PlainPacket, Transmit, TunnelKey, UnknownKey};
use crate::output::WorkerEvent;
use crate::peers::Peers;
use crate::peers::link::LinkState;
use crate::peers::outlet::Outlet;
use crate::tables::{Generation, Shared, Tables, UnderWay};

/// Strangers' keys remembered by hash. The least seen gives way.
const MAX_UNKNOWN_KEYS: usize = 256;
/// How soon an applied update is looked at again, should no worker say that it has loaded it.
const APPLY_POLL: Duration = Duration::from_millis(20);
/// How often a stranger's key is said rather than only counted: keys cost their maker nothing.
const STRANGER_INTERVAL: Duration = Duration::from_millis(100);

/// See the module.
pub struct Engine {
    shared: Arc<Shared>,
    peers: Peers,
    out: Outlet,
    gate: LoadGate,
    timers: BTreeSet<(Duration, LinkId)>,
    /// Generations published and not yet acknowledged.
    applying: VecDeque<Generation>,
    apply_poll: Option<Duration>,
    unknown: HashMap<[u8; 32], UnknownKey, RandomState>,
    /// No stranger's key is said before this.
    next_stranger: Duration,
}

impl Engine {
    /// An engine that admits nobody until the first [`Self::apply`].
    #[must_use]
    pub fn new(config: EngineConfig, shared: Arc<Shared>) -> Self {
        Self {
            gate: LoadGate::new(config.load_threshold),
            out: Outlet::new(config, shared.workers()),
            shared,
            peers: Peers::default(),
            timers: BTreeSet::new(),
            applying: VecDeque::new(),
            apply_poll: None,
            unknown: HashMap::default(),
            next_stranger: Duration::ZERO,
        }
    }

    /// Makes this the picture in force. What it no longer holds is cut; [`Event::Applied`] says when every worker
    /// judges by it. An update that is not newer than the one before is ignored.
    pub fn apply(&mut self, update: &MeshUpdate, now: Now) {
        if update.generation <= self.out.tables.generation {
            return;
        }
        self.peers.apply(update, &mut self.out, now);
        self.out.publish(&self.shared);
        self.reschedule_all();
        self.applying.push_back(update.generation);
        self.acknowledge(now);
    }

    /// Ends every session and publishes tables that let nothing pass.
    pub fn shut_down(&mut self, now: Now) {
        self.peers.clear(&mut self.out);
        let generation = self.out.tables.generation + 1;
        self.out.tables = Tables { generation, ..Tables::deny_all() };
        self.out.mark_changed();
        self.out.publish(&self.shared);
        self.timers.clear();
        self.applying.push_back(generation);
        self.acknowledge(now);
    }

    /// A datagram that no worker could open: a handshake message, a cookie, or a handshake tunnel's transport message.
    /// Its IP header carried no ECN bits.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Now) {
        self.handle_marked(from, ecn::NOT_ECT, datagram, now);
    }

    /// As [`Self::handle_datagram`], with the ECN bits of its IP header.
    pub fn handle_marked(&mut self, from: SocketAddr, ecn: u8, datagram: &[u8], now: Now) {
        if let Err(reason) = self.take_datagram((from, ecn), datagram, now) {
            self.out.count(reason);
        }
        self.out.publish(&self.shared);
    }

    /// A judged packet of a local program to a peer without a session or to a plain peer.
    pub fn handle_unsent(&mut self, under_way: UnderWay, packet: &[u8], now: Now) {
        let (id, judged) = ((under_way.link().local(), under_way.link().peer()), under_way.judged());
        // Until what it becomes has been sent.
        self.out.under_way.push(under_way);
        // On its way when another policy was applied: it shares the fate of those that waited here.
        if judged < self.peers.judged_since {
            self.out.count(Reason::PolicyChanged);
            return self.out.publish(&self.shared);
        }
        let known = self.with_link(id, |link, out| link.handle_unsent(packet, out, now));
        if known.is_none() {
            self.out.count(Reason::NoPeer);
        }
        self.out.publish(&self.shared);
    }

    /// What a worker has to say.
    pub fn handle_worker_event(&mut self, event: &WorkerEvent, now: Now) {
        match event {
            WorkerEvent::Loaded(_) => self.acknowledge(now),
            WorkerEvent::Confirmed(session) => {
                let id = (session.local(), session.peer());
                self.with_link(id, |link, out| link.handle_confirmed(session, out, now));
            }
            WorkerEvent::RekeyDue(session) => {
                let id = (session.local(), session.peer());
                self.with_link(id, |link, out| link.handle_rekey_due(session, out, now));
            }
            WorkerEvent::LargeSent(local, peer) => {
                self.with_link((*local, *peer), |link, out| link.handle_large(out, now));
            }
            WorkerEvent::Moved(session, from) => {
                let id = (session.local(), session.peer());
                self.with_link(id, |link, _| link.handle_moved(session, *from, now));
            }
            WorkerEvent::Stray(from) => {
                let ids: Vec<_> =
                    self.peers.links().filter(|(_, link)| link.is_reached_at(*from)).map(|(id, _)| id).collect();
                for id in ids {
                    self.with_link(id, |link, out| link.handle_stray(out, now));
                }
            }
        }
        self.out.publish(&self.shared);
    }

    /// A device of this host refused a datagram to `to` as too long (EMSGSIZE), and UDP payloads of `payload` bytes fit it.
    /// Larger inner packets to peers there are refused from now on.
    pub fn handle_path_mtu(&mut self, to: SocketAddr, payload: usize, now: Now) {
        let ids: Vec<_> = self.peers.links().map(|(id, _)| id).collect();
        for id in ids {
            self.with_link(id, |link, out| link.handle_path_mtu(to, payload, out, now));
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.apply_poll.is_some_and(|at| at <= now.monotonic) {
            self.acknowledge(now);
        }
        // Each due link once: what it schedules anew lies in the future or comes with the next call.
        let due: Vec<_> = self.timers.iter().take_while(|(at, _)| *at <= now.monotonic).map(|(_, id)| *id).collect();
        for id in due {
            self.with_link(id, |link, out| link.handle_timeout(out, now));
        }
        self.out.publish(&self.shared);
    }

    /// The next datagram to send. Send each before asking for the next: with the answer that there is none, workers may
    /// go on where these end.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let next = self.out.transmits.pop_front();
        if next.is_none() {
            self.out.note_all_sent();
        }
        next
    }

    /// The next packet of a plain peer, for a worker to admit.
    pub fn poll_plain(&mut self) -> Option<PlainPacket> {
        self.out.plain.pop_front()
    }

    /// The next thing to say.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is next due, on the axis of [`Now::monotonic`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at).into_iter().chain(self.apply_poll).min()
    }

    /// How things stand with every peer, in no order.
    #[must_use]
    pub fn peers(&self, now: Now) -> Vec<PeerStatus> {
        self.peers.links().map(|(_, link)| link.status(now)).collect()
    }

    /// Strangers' keys that knocked, in no order.
    #[must_use]
    pub fn unknown_keys(&self) -> Vec<UnknownKey> {
        self.unknown.values().copied().collect()
    }

    /// What the slow half dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.out.drops()
    }

    fn with_link<T>(&mut self, id: LinkId, act: impl FnOnce(&mut LinkState, &mut Outlet) -> T) -> Option<T> {
        let link = self.peers.link_mut(id)?;
        let answer = act(link, &mut self.out);
        reschedule(&mut self.timers, id, link);
        Some(answer)
    }

    fn reschedule_all(&mut self) {
        self.timers = self.peers.links().filter_map(|(id, link)| Some((link.timeout()?, id))).collect();
        let due: Vec<_> = self.peers.links().map(|(id, link)| (id, link.timeout())).collect();
        for (id, at) in due {
            if let Some(link) = self.peers.link_mut(id) {
                link.scheduled = at;
            }
        }
    }

    /// Once every worker judges by a generation, flows that it does not allow are cut; only then it counts as
    /// applied.
    fn acknowledge(&mut self, now: Now) {
        while let Some(generation) = self.applying.front().copied() {
            if !self.shared.reached(generation) {
                self.apply_poll = Some(now.monotonic + APPLY_POLL);
                return;
            }
            self.applying.pop_front();
            let cut = self.shared.sweep(now);
            if !cut.is_empty() {
                self.out.say(Event::FlowsCut(cut));
            }
            self.out.say(Event::Applied { generation });
        }
        self.apply_poll = None;
    }

    fn take_datagram(&mut self, (from, ecn): (SocketAddr, u8), datagram: &[u8], now: Now) -> Result<(), Reason> {
        match demux::classify(datagram)? {
            Message::Initiation { hint } => self.take_initiation(hint, from, datagram, now),
            Message::Response { receiver } => {
                let (id, doorway) = self.tunnel_of(receiver)?;
                if !doorway.mac_is_valid(datagram) {
                    return Err(Reason::BadMac);
                }
                self.pass_gate(&doorway, from, datagram, now)?;
                if demux::ephemeral(datagram).is_none_or(is_low_order) {
                    return Err(Reason::LowOrderPoint);
                }
                self.on_link(id, |link, out| link.handle_response(receiver, datagram, from, out, now))
            }
            Message::CookieReply { receiver } => {
                let id = self.out.indices.tunnel(receiver).ok_or(Reason::UnknownReceiver)?;
                self.on_link(id, |link, _| link.handle_cookie_reply(receiver, datagram, now))
            }
            Message::Transport { receiver } => {
                let id = self.out.indices.tunnel(receiver).ok_or(Reason::UnknownReceiver)?;
                self.on_link(id, |link, out| link.handle_transport(receiver, datagram, (from, ecn), out, now))
            }
        }
    }

    fn on_link(
        &mut self,
        id: LinkId,
        act: impl FnOnce(&mut LinkState, &mut Outlet) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        self.with_link(id, act).unwrap_or(Err(Reason::UnknownReceiver))
    }

    fn tunnel_of(&mut self, receiver: u32) -> Result<(LinkId, Arc<Doorway>), Reason> {
        let id = self.out.indices.tunnel(receiver).ok_or(Reason::UnknownReceiver)?;
        let doorway = self.peers.link_mut(id).and_then(|link| link.doorway(receiver >> 8));
        doorway.map(|doorway| (id, doorway)).ok_or(Reason::UnknownReceiver)
    }

    /// From the cheapest check to the dearest: the key it is for, its first mac, and under load a cookie and the source's
    /// share; then low order, a comparison; then the key agreement that says who is calling. Only an
    /// admitted key gets an answer.
    fn take_initiation(&mut self, hint: u32, from: SocketAddr, datagram: &[u8], now: Now) -> Result<(), Reason> {
        let mut message = datagram.to_vec();
        if let Some(reserved) = message.get_mut(1..4) {
            reserved.fill(0);
        }
        let doorway = self.doorway_of(hint, &message, now)?;
        if hint != 0 || self.gate.allow_unhinted(now.monotonic) {
            self.pass_gate(&doorway, from, &message, now)?;
        } else {
            self.pass_with_cookie(&doorway, from, &message, now)?;
        }
        if demux::ephemeral(&message).is_none_or(is_low_order) {
            return Err(Reason::LowOrderPoint);
        }
        let caller = doorway.initiator(&message)?;
        let Some(id) = self.peers.between(doorway.key(), &caller) else {
            self.note_stranger(&caller, from, now);
            return Err(Reason::UnknownKey);
        };
        self.on_link(id, |link, out| link.handle_initiation(doorway.key(), &caller, &message, from, out, now))
    }

    fn doorway_of(&mut self, hint: u32, message: &[u8], now: Now) -> Result<Arc<Doorway>, Reason> {
        let candidates = if hint == 0 {
            if !self.gate.allow_trial(self.peers.doorways().len(), now.monotonic) {
                return Err(Reason::HandshakeRateLimited);
            }
            self.peers.doorways()
        } else {
            self.peers.hinted(hint)
        };
        candidates.iter().find(|doorway| doorway.mac_is_valid(message)).cloned().ok_or(Reason::BadMac)
    }

    /// Under load a valid cookie comes first, then the source's share of key agreements. The cookie is the only
    /// answer that a stranger ever gets.
    fn pass_gate(&mut self, doorway: &Doorway, from: SocketAddr, message: &[u8], now: Now) -> Result<(), Reason> {
        if !self.gate.is_under_load(now.monotonic) {
            return Ok(());
        }
        if let Gate::Cookie(reply) = doorway.check_cookie(from, message)? {
            self.out.send(from, reply.to_vec());
            return Err(Reason::CookieRequired);
        }
        if self.gate.allow_source(from, now.monotonic) { Ok(()) } else { Err(Reason::HandshakeRateLimited) }
    }

    /// More messages without a hint than are taken on trust: they do not make load for those with one. Whoever shows by a
    /// cookie that it is where it says has a share.
    fn pass_with_cookie(
        &mut self,
        doorway: &Doorway,
        from: SocketAddr,
        message: &[u8],
        now: Now,
    ) -> Result<(), Reason> {
        let reply_is_due = self.gate.allow_reply(now.monotonic);
        if !reply_is_due && !demux::has_second_mac(message) {
            return Err(Reason::HandshakeRateLimited);
        }
        match doorway.check_cookie(from, message)? {
            Gate::Pass if self.gate.allow_source(from, now.monotonic) => Ok(()),
            Gate::Cookie(reply) if reply_is_due => {
                self.out.send(from, reply.to_vec());
                Err(Reason::CookieRequired)
            }
            Gate::Pass | Gate::Cookie(_) => Err(Reason::HandshakeRateLimited),
        }
    }

    fn note_stranger(&mut self, key: &TunnelKey, from: SocketAddr, now: Now) {
        let hash: [u8; 32] = Sha256::digest(key).into();
        if self.unknown.len() >= MAX_UNKNOWN_KEYS && !self.unknown.contains_key(&hash) {
            let least = self.unknown.values().min_by_key(|entry| entry.count).map(|entry| entry.hash);
            if let Some(least) = least {
                self.unknown.remove(&least);
            }
        }
        let entry = self.unknown.entry(hash).or_insert(UnknownKey { hash, from, count: 0 });
        entry.from = from;
        entry.count += 1;
        // The first, then each doubling: a flood does not become a flood of events, whether under one key or many.
        if entry.count.is_power_of_two() && now.monotonic >= self.next_stranger {
            self.next_stranger = now.monotonic + STRANGER_INTERVAL;
            let entry = *entry;
            self.out.say(Event::UnknownKey(entry));
        }
    }
}

fn reschedule(timers: &mut BTreeSet<(Duration, LinkId)>, id: LinkId, link: &mut LinkState) {
    let next = link.timeout();
    if next == link.scheduled {
        return;
    }
    if let Some(before) = std::mem::replace(&mut link.scheduled, next) {
        timers.remove(&(before, id));
    }
    if let Some(at) = next {
        timers.insert((at, id));
    }
}

#[cfg(test)]
mod tests;
