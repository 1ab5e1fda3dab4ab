//! One way between a local instance and a peer: its tunnels, its data sessions, the packets that wait, and every
//! timer that moves it. Handshake and exchange stand in [`exchange`], what time brings in [`upkeep`], addresses in
//! [`endpoint`], and how large their datagrams may be in [`path_mtu`].
//!
//! ```text
//!            packet, rekey, silence                Response                 Accept            first message
//!   Idle ------------------------> Initiating ---------------> Offering -----------> Confirming ----------> Idle
//!    ^                                 |                           |                     |           session in use
//!    |--------- gave up ---------------+---------------------------+---------------------|
//!    |
//!    +-- Offer of the peer's: Accepting (beside an effort of ours only until it is decided whose stands)
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::{InstanceId, Reason, SpiffeId, UnixTime};

use super::outlet::Outlet;
use crate::Now;
use crate::demux::LinkId;
use crate::ecn;
use crate::handshake::{Doorway, HandshakeTunnel};
use crate::key_exchange::parts::Assembly;
use crate::key_exchange::{Offering, Party};
use crate::mesh::{Event, PeerStatus, PlainPacket, RoamStatus, SessionStatus, Stage, TunnelKey};
use crate::path::Path;
use crate::session::DataSession;
use crate::tables::Link;

mod endpoint;
mod exchange;
mod path_mtu;
mod upkeep;

use exchange::send_sealed;
use path_mtu::PathMtu;
use upkeep::{PLAIN_TICK, WATCH_EVERY};

/// Inner packets that may wait over all links: 6 MiB at the usual size, should half the mesh be away.
const MAX_WAITING: usize = 4096;
/// Threads take the time at the start of a batch: no two are further apart.
const CLOCKS_APART: Duration = Duration::from_secs(1);
/// Packets that may still come this way after a session began, before no more are taken: twice what was under way when it
/// did (a mailbox's share and a batch), else workers bring them faster than they leave here.
const MAX_LATE: usize = 1024;
/// A rekey that is due and cannot begin is looked at again after this.
const REKEY_RETRY: Duration = Duration::from_secs(2);
/// Within this time after a peer showed a new key, its session moves to it.
const MOVE_TO_NEW_KEY_WITHIN: Duration = Duration::from_secs(10);
/// Sessions that stay open behind the one in use, for what is still under way.
const MAX_RETIRED: usize = 3;
/// A peer that authenticates may still not ask for handshakes more often than this (as in Linux's WireGuard).
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// A tunnel key of ours and what peers know of it.
#[derive(Clone)]
pub(crate) struct LocalEnd {
    pub(crate) doorway: Arc<Doorway>,
    pub(crate) party: Party,
    pub(crate) valid_until: UnixTime,
}

/// A tunnel key of the peer's.
#[derive(Clone)]
pub(crate) struct PeerEnd {
    pub(crate) key: TunnelKey,
    pub(crate) party: Party,
    pub(crate) valid_until: UnixTime,
}

/// The handshake tunnel between one key of ours and one of the peer's.
struct Tunnel {
    local: TunnelKey,
    peer: TunnelKey,
    prefix: u32,
    noise: HandshakeTunnel,
    assembly: Assembly,
    /// When its newest Noise session began; sessions are erased some time after.
    handshaken: Option<Duration>,
    /// When the newest initiation of the peer's was answered.
    answered: Option<Duration>,
    /// The Noise session (its receiver index) that an offer came through: it may bring no second exchange.
    exchanged: Option<u32>,
}

/// A data session with the keys it hangs on.
struct Established {
    session: Arc<DataSession>,
    local: TunnelKey,
    peer: TunnelKey,
    /// Whose offer it came from.
    offered: bool,
}

/// Our own way to a session.
enum Effort {
    Idle,
    /// `repeated` is the attempt that was made once more with a cookie.
    Initiating {
        begun: Duration,
        attempt: usize,
        repeated: Option<usize>,
        next: Duration,
    },
    Offering {
        begun: Duration,
        prefix: u32,
        offering: Box<Offering>,
        attempt: u32,
        next: Duration,
    },
    Confirming {
        begun: Duration,
        established: Established,
        attempt: u32,
        next: Duration,
    },
}

/// The peer's offer, answered.
struct Accepting {
    offer: Vec<u8>,
    exchange: u32,
    accept: Vec<u8>,
    prefix: u32,
    established: Established,
    attempt: u32,
    next: Duration,
}

/// See the module.
pub(crate) struct LinkState {
    id: LinkId,
    local_instance: InstanceId,
    peer_instance: InstanceId,
    identity: SpiffeId,
    cell: Arc<Link>,
    /// Largest inner packet until a path says less.
    mtu: u32,
    plain: bool,
    /// Newest first.
    local_ends: Vec<LocalEnd>,
    peer_ends: Vec<PeerEnd>,
    tunnels: Vec<Tunnel>,
    path: Path,
    path_mtu: PathMtu,
    waiting: VecDeque<Vec<u8>>,
    effort: Effort,
    accepting: Option<Accepting>,
    /// Packets are sealed with it.
    current: Option<Established>,
    /// Packets that came here although there was a session, since it began.
    late: usize,
    /// Open for what is under way, oldest first.
    retired: VecDeque<Established>,
    /// When a session that the peer offered is renewed by us, should the peer not do it first.
    rekey_at: Option<Duration>,
    /// No new effort before this.
    hold_until: Duration,
    /// Since when data has gone out without any answer, as far as it was noticed.
    unanswered_since: Option<Duration>,
    /// Since when data has come in and nothing gone out.
    owing_since: Option<Duration>,
    next_watch: Option<Duration>,
    next_tick: Option<Duration>,
    /// When the engine will call [`Self::handle_timeout`].
    pub(crate) scheduled: Option<Duration>,
}

impl LinkState {
    pub(crate) fn new(
        id: LinkId,
        instances: (InstanceId, InstanceId),
        identity: SpiffeId,
        mtu: u32,
        workers: u16,
    ) -> Self {
        Self {
            id,
            local_instance: instances.0,
            peer_instance: instances.1,
            identity,
            cell: Arc::new(Link::new(id.0, id.1, mtu, workers)),
            mtu,
            plain: false,
            local_ends: Vec::new(),
            peer_ends: Vec::new(),
            tunnels: Vec::new(),
            path: Path::default(),
            path_mtu: PathMtu::default(),
            waiting: VecDeque::new(),
            effort: Effort::Idle,
            accepting: None,
            current: None,
            late: 0,
            retired: VecDeque::new(),
            rekey_at: None,
            hold_until: Duration::ZERO,
            unanswered_since: None,
            owing_since: None,
            next_watch: None,
            next_tick: None,
            scheduled: None,
        }
    }

    /// What workers see of it.
    pub(crate) fn cell(&self) -> &Arc<Link> {
        &self.cell
    }

    /// The keys that both ends may use now. Whatever hangs on another key ends here.
    pub(crate) fn set_ends(
        &mut self,
        local_ends: Vec<LocalEnd>,
        peer_ends: Vec<PeerEnd>,
        plain: bool,
        out: &mut Outlet,
        now: Now,
    ) {
        let newest = |ends: &[PeerEnd]| ends.first().map(|end| end.key);
        let has_new_key = newest(&self.peer_ends) != newest(&peer_ends);
        self.local_ends = local_ends;
        self.peer_ends = peer_ends;
        self.plain = plain;
        self.close_orphans(Reason::PeerRevoked, out, now);
        if has_new_key && self.current.is_some() {
            // Before the old key goes; at a time of this link's own, since all of the peer's links hear of it at once.
            self.rekey_at.get_or_insert(now.monotonic + out.jitter(MOVE_TO_NEW_KEY_WITHIN));
        }
    }

    fn holds(&self, local: &TunnelKey, peer: &TunnelKey) -> bool {
        self.local_ends.iter().any(|end| end.doorway.key() == local)
            && self.peer_ends.iter().any(|end| end.key == *peer)
    }

    /// Whether the certificates of both keys are in date. Records go when somebody looks at them again; trust ends at the
    /// second that the certificate names.
    fn check_dates(&self, local: &TunnelKey, peer: &TunnelKey, now: Now) -> Result<(), Reason> {
        let ours = self.local_ends.iter().find(|end| end.doorway.key() == local).map(|end| end.valid_until);
        let theirs = self.peer_ends.iter().find(|end| end.key == *peer).map(|end| end.valid_until);
        match ours.min(theirs) {
            Some(end) if now.unix < end => Ok(()),
            Some(_) => Err(Reason::CertificateExpired),
            None => Err(Reason::UnknownKey),
        }
    }

    /// Closes what hangs on keys that are no longer there.
    fn close_orphans(&mut self, reason: Reason, out: &mut Outlet, now: Now) {
        let lost = |link: &Self, established: &Established| !link.holds(&established.local, &established.peer);
        for at in (0..self.tunnels.len()).rev() {
            let tunnel = &self.tunnels[at];
            if !self.holds(&tunnel.local, &tunnel.peer) {
                out.release_prefix(tunnel.prefix);
                self.tunnels.swap_remove(at);
            }
        }
        for at in (0..self.retired.len()).rev() {
            if lost(self, &self.retired[at])
                && let Some(gone) = self.retired.remove(at)
            {
                out.close_session(&gone.session);
            }
        }
        if self.current.as_ref().is_some_and(|current| lost(self, current)) {
            self.close_current(reason, out);
        }
        if self.accepting.as_ref().is_some_and(|accepting| lost(self, &accepting.established)) {
            self.stop_accepting(out);
        }
        let effort_lost = match &self.effort {
            Effort::Idle | Effort::Initiating { .. } => false,
            Effort::Offering { prefix, .. } => self.tunnel(*prefix).is_none(),
            Effort::Confirming { established, .. } => lost(self, established),
        };
        if effort_lost {
            self.stop_effort(out);
            self.resume(out, now);
        }
    }

    /// Ends everything. The link is not used again.
    pub(crate) fn close(&mut self, reason: Reason, out: &mut Outlet) {
        self.stop_effort(out);
        self.stop_accepting(out);
        self.close_current(reason, out);
        for retired in self.retired.drain(..) {
            out.close_session(&retired.session);
        }
        for tunnel in self.tunnels.drain(..) {
            out.release_prefix(tunnel.prefix);
        }
        self.drop_waiting(reason, out);
        self.cell.set_endpoint(None);
    }

    fn close_current(&mut self, reason: Reason, out: &mut Outlet) {
        if let Some(current) = self.current.take() {
            self.cell.set_egress(None);
            out.close_session(&current.session);
            out.say(Event::SessionDown { local: self.local_instance, peer: self.peer_instance, reason });
        }
        self.rekey_at = None;
        self.unanswered_since = None;
        self.owing_since = None;
    }

    /// What a tunnel's own timer does when a handshake is due.
    #[cfg(test)]
    pub(crate) fn initiate_unasked(&mut self) -> Option<Vec<u8>> {
        self.tunnels.last_mut()?.noise.initiate().ok().map(|initiation| initiation.to_vec())
    }

    /// A judged packet of a local program that no worker could seal.
    pub(crate) fn handle_unsent(&mut self, packet: &[u8], out: &mut Outlet, now: Now) {
        self.close_ended(out, now);
        if self.current.is_some() {
            self.late += 1;
            if self.late > MAX_LATE {
                self.cell.shut_egress();
            }
        }
        if !self.seal_packet(packet, out, now) {
            self.wait(packet, out);
            self.resume(out, now);
        }
    }

    /// Keeps a packet until there is a session. The oldest gives way: its sender has likely sent it again.
    fn wait(&mut self, packet: &[u8], out: &mut Outlet) {
        if self.waiting.len() >= out.config.waiting_packets || out.waiting >= MAX_WAITING {
            out.count(Reason::QueueFull);
            self.cell.counters().drop_many(Reason::QueueFull, 1);
            if self.waiting.pop_front().is_none() {
                return;
            }
            out.waiting -= 1;
        }
        self.waiting.push_back(packet.to_vec());
        out.waiting += 1;
    }

    /// What waits was judged by a policy that is no longer in force, or has nowhere to go.
    pub(crate) fn drop_waiting(&mut self, reason: Reason, out: &mut Outlet) {
        for _ in self.take_waiting(out) {
            out.count(reason);
            self.cell.counters().drop_many(reason, 1);
        }
    }

    fn take_waiting(&mut self, out: &mut Outlet) -> VecDeque<Vec<u8>> {
        out.waiting -= self.waiting.len();
        std::mem::take(&mut self.waiting)
    }

    /// Seals and sends if there is something to seal with.
    fn seal_packet(&mut self, packet: &[u8], out: &mut Outlet, now: Now) -> bool {
        let Some(endpoint) = self.path.endpoint() else { return false };
        if self.plain {
            for at in 0..self.tunnels.len() {
                let (local, peer) = (self.tunnels[at].local, self.tunnels[at].peer);
                if self.check_dates(&local, &peer, now).is_ok()
                    && let Some(datagram) = self.tunnels[at].noise.seal(packet)
                {
                    out.send_marked(endpoint, ecn::of(packet), datagram);
                    return true;
                }
            }
            return false;
        }
        let Some(current) = &self.current else { return false };
        send_sealed(&current.session, packet, self.cell.mtu(), endpoint, out, now)
    }

    /// Begins an effort if packets wait and nothing is under way.
    fn resume(&mut self, out: &mut Outlet, now: Now) {
        if !self.waiting.is_empty() && self.current.is_none() {
            self.want_session(out, now);
        }
    }

    fn want_session(&mut self, out: &mut Outlet, now: Now) {
        if matches!(self.effort, Effort::Idle) && self.accepting.is_none() && now.monotonic >= self.hold_until {
            self.begin(out, now);
        }
    }

    /// A worker saw the first message of a session authenticate.
    pub(crate) fn handle_confirmed(&mut self, session: &Arc<DataSession>, out: &mut Outlet, now: Now) {
        let is = |established: &Established| Arc::ptr_eq(&established.session, session);
        if matches!(&self.effort, Effort::Confirming { established, .. } if is(established)) {
            if let Effort::Confirming { established, .. } = std::mem::replace(&mut self.effort, Effort::Idle) {
                self.promote(established, out, now);
            }
        } else if self.accepting.as_ref().is_some_and(|accepting| is(&accepting.established))
            && let Some(accepting) = self.accepting.take()
        {
            self.promote(accepting.established, out, now);
        }
    }

    /// Moves egress to a session that both ends are known to hold. What waited, and what is on its way here, is sent
    /// first, so that no worker overtakes it; the session before stays open for what is under way to the peer.
    fn promote(&mut self, established: Established, out: &mut Outlet, now: Now) {
        // A worker that finds the session before over hands packets on just now.
        let soon = Now { monotonic: now.monotonic + CLOCKS_APART, unix: now.unix.plus(CLOCKS_APART) };
        let seals = self.current.as_ref().is_some_and(|current| !current.session.is_over(soon));
        if !(seals && self.waiting.is_empty() && self.cell.renew_egress(&established.session)) {
            self.cell.prepare_egress(Some(Arc::clone(&established.session)));
            out.open_egress(&self.cell);
        }
        self.late = 0;
        if let Some(endpoint) = self.path.endpoint() {
            if self.waiting.is_empty() && !established.offered {
                // The offerer waits for an answer before it moves its own egress.
                send_sealed(&established.session, &[], self.cell.mtu(), endpoint, out, now);
            }
            for packet in self.take_waiting(out) {
                if !send_sealed(&established.session, &packet, self.cell.mtu(), endpoint, out, now) {
                    out.count(Reason::SessionExpired);
                    self.cell.counters().drop_many(Reason::SessionExpired, 1);
                }
            }
        }
        let suite = established.session.suite();
        let before = self.current.replace(established);
        let rekey = before.is_some();
        self.retired.extend(before);
        while self.retired.len() > MAX_RETIRED {
            if let Some(oldest) = self.retired.pop_front() {
                out.close_session(&oldest.session);
            }
        }
        self.rekey_at = None;
        self.unanswered_since = None;
        self.owing_since = None;
        self.hold_until = Duration::ZERO;
        self.watch_soon(now);
        out.say(Event::SessionUp { local: self.local_instance, peer: self.peer_instance, suite, rekey });
    }

    /// A worker found that the session carries traffic and has come of age. Who offered it renews it; the other end
    /// steps in later, so that both do not start at once.
    pub(crate) fn handle_rekey_due(&mut self, session: &Arc<DataSession>, out: &mut Outlet, now: Now) {
        const OTHER_END_AFTER: Duration = Duration::from_secs(10);
        let Some(current) = &self.current else { return };
        if !Arc::ptr_eq(&current.session, session) {
            return;
        }
        if current.offered {
            self.rekey(out, now);
        } else {
            self.rekey_at = Some(now.monotonic + OTHER_END_AFTER + out.jitter(Duration::from_secs(1)));
        }
    }

    /// Begins the next session beside the one in use, or soon if something is in the way just now.
    fn rekey(&mut self, out: &mut Outlet, now: Now) {
        self.want_session(out, now);
        let begun = !matches!(self.effort, Effort::Idle);
        self.rekey_at = (!begun && self.current.is_some()).then_some(now.monotonic + REKEY_RETRY);
    }

    /// An initiation that names both keys; its static key is the peer's. The answer goes where it came from, and
    /// moves no endpoint: an initiation can be replayed.
    pub(crate) fn handle_initiation(
        &mut self,
        local: &TunnelKey,
        peer: &TunnelKey,
        message: &[u8],
        from: SocketAddr,
        out: &mut Outlet,
        now: Now,
    ) -> Result<(), Reason> {
        self.check_dates(local, peer, now)?;
        let at = self.tunnel_between(local, peer, out).ok_or(Reason::UnknownKey)?;
        let tunnel = &mut self.tunnels[at];
        if tunnel.answered.is_some_and(|answered| now.monotonic.saturating_sub(answered) < INITIATION_INTERVAL) {
            return Err(Reason::HandshakeRateLimited);
        }
        let response = tunnel.noise.handle_initiation(message)?;
        tunnel.answered = Some(now.monotonic);
        tunnel.handshaken = Some(now.monotonic);
        out.send(from, response);
        self.watch_soon(now);
        Ok(())
    }

    pub(crate) fn handle_cookie_reply(&mut self, receiver: u32, message: &[u8], now: Now) -> Result<(), Reason> {
        let tunnel = self.tunnel_mut(receiver >> 8).ok_or(Reason::UnknownReceiver)?;
        tunnel.noise.handle_cookie_reply(message)?;
        if let Effort::Initiating { attempt, repeated, next, .. } = &mut self.effort {
            // To the same address, for which alone it is good; once each, so that nobody can hold us there.
            let last = attempt.saturating_sub(1);
            if *repeated != Some(last) {
                (*attempt, *repeated) = (last, Some(last));
            }
            // The cookie is good for the next initiation; a flood of forged ones gains ten a second at most.
            *next = (*next).min(now.monotonic + Duration::from_millis(100));
        }
        Ok(())
    }

    /// A transport message of a handshake tunnel: control datagrams, or a plain peer's packets.
    pub(crate) fn handle_transport(
        &mut self,
        receiver: u32,
        message: &[u8],
        (from, ecn): (SocketAddr, u8),
        out: &mut Outlet,
        now: Now,
    ) -> Result<(), Reason> {
        let tunnel = self.tunnel(receiver >> 8).ok_or(Reason::UnknownReceiver)?;
        self.check_dates(&tunnel.local, &tunnel.peer, now)?;
        let tunnel = self.tunnel_mut(receiver >> 8).ok_or(Reason::UnknownReceiver)?;
        let opened = tunnel.noise.open(message)?;
        self.authenticate_path(from, now);
        if !self.plain {
            return opened.map_or(Ok(()), |packet| self.handle_control(receiver, &packet, out, now));
        }
        self.effort = Effort::Idle;
        for packet in self.take_waiting(out) {
            self.handle_unsent(&packet, out, now);
        }
        match opened {
            Some(packet) if crate::key_exchange::parts::is_control(&packet) => Err(Reason::PlainPeerControl),
            Some(packet) => {
                out.plain.push_back(PlainPacket { local: self.id.0, peer: self.id.1, ecn, packet });
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The tunnel between two keys of this link, made when first needed. It then lives as long as both keys: it
    /// remembers the newest timestamp of the peer's.
    fn tunnel_between(&mut self, local: &TunnelKey, peer: &TunnelKey, out: &mut Outlet) -> Option<usize> {
        let found = self.tunnels.iter().position(|tunnel| tunnel.local == *local && tunnel.peer == *peer);
        if found.is_some() {
            return found;
        }
        let doorway = Arc::clone(&self.local_ends.iter().find(|end| end.doorway.key() == local)?.doorway);
        self.peer_ends.iter().find(|end| end.key == *peer)?;
        let prefix = out.take_prefix(self.id);
        self.tunnels.push(Tunnel {
            local: *local,
            peer: *peer,
            prefix,
            noise: HandshakeTunnel::new(doorway, *peer, prefix),
            assembly: Assembly::default(),
            handshaken: None,
            answered: None,
            exchanged: None,
        });
        Some(self.tunnels.len() - 1)
    }

    /// The local key of one of this link's tunnels.
    pub(crate) fn doorway(&self, prefix: u32) -> Option<Arc<Doorway>> {
        let tunnel = self.tunnel(prefix)?;
        let end = self.local_ends.iter().find(|end| *end.doorway.key() == tunnel.local)?;
        Some(Arc::clone(&end.doorway))
    }

    fn tunnel(&self, prefix: u32) -> Option<&Tunnel> {
        self.tunnels.iter().find(|tunnel| tunnel.prefix == prefix)
    }

    fn tunnel_mut(&mut self, prefix: u32) -> Option<&mut Tunnel> {
        self.tunnels.iter_mut().find(|tunnel| tunnel.prefix == prefix)
    }

    fn watch_soon(&mut self, now: Now) {
        self.next_watch.get_or_insert(now.monotonic + WATCH_EVERY);
        if self.plain {
            self.next_tick.get_or_insert(now.monotonic + PLAIN_TICK);
        }
    }

    /// The next moment at which [`Self::handle_timeout`] has something to do.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let effort = match &self.effort {
            Effort::Idle => (!self.waiting.is_empty() && self.current.is_none() && self.accepting.is_none())
                .then_some(self.hold_until),
            Effort::Initiating { next, .. } | Effort::Offering { next, .. } | Effort::Confirming { next, .. } => {
                Some(*next)
            }
        };
        let accepting = self.accepting.as_ref().map(|accepting| accepting.next);
        let path_mtu = self.path_mtu.timeout();
        [effort, accepting, self.rekey_at, self.next_watch, self.next_tick, path_mtu].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, out: &mut Outlet, now: Now) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now.monotonic);
        if due(self.next_watch) {
            self.watch(out, now);
        }
        if due(self.next_tick) {
            self.tick(out, now);
        }
        if due(self.rekey_at) {
            self.rekey(out, now);
        }
        self.probe(out, now);
        self.retry_effort(out, now);
        self.retry_accept(out, now);
        self.resume(out, now);
    }

    pub(crate) fn status(&self, now: Now) -> PeerStatus {
        let stage = match (&self.effort, &self.accepting) {
            (Effort::Idle, None) => Stage::Idle,
            (Effort::Initiating { .. }, _) => Stage::Handshake,
            (Effort::Confirming { .. }, _) => Stage::Confirming,
            (Effort::Offering { .. }, _) | (Effort::Idle, Some(_)) => Stage::Exchange,
        };
        let session = self.current.as_ref().map(|current| SessionStatus {
            suite: current.session.suite(),
            age: current.session.age(now),
            messages_sent: current.session.messages_sent(),
            last_received: current.session.last_received().map(|at| now.monotonic.saturating_sub(at)),
        });
        PeerStatus {
            local: self.local_instance,
            peer: self.peer_instance,
            identity: self.identity.clone(),
            plain: self.plain,
            valid_until: self.peer_ends.iter().map(|end| end.valid_until).max().unwrap_or_default(),
            endpoint: self.path.endpoint(),
            session,
            stage,
            waiting: self.waiting.len(),
            mtu: self.cell.mtu(),
            roamed: self.path.roam().map(|roam| RoamStatus {
                from: roam.from,
                ago: now.monotonic.saturating_sub(roam.at),
                count: roam.count,
            }),
            volume: self.cell.counters().volume(),
            drops: self.cell.counters().drops().collect(),
        }
    }
}
