//! The way to a session: initiate, offer, confirm; or accept the peer's offer. Every message may be lost, doubled or
//! late, and both ends may begin at once:
//!
//! - Crossed initiations both succeed and decide nothing.
//! - An offer of the peer's ends an initiation of ours that is still unanswered.
//! - Of two offers the one under the smaller tunnel key stands; both ends compare the same two keys.
//! - An effort that comes to nothing begins again with a new handshake while packets wait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::{Reason, UnixTime};

use super::{Accepting, Effort, Established, LinkState, Tunnel};
use crate::Now;
use crate::ecn;
use crate::key_exchange::parts::{self, ETHERNET_LIMIT, MINIMUM_LIMIT};
use crate::key_exchange::{self, Kind, Offering, Parties, Rejection, SessionKeys};
use crate::mesh::{Event, TunnelKey};
use crate::peers::outlet::Outlet;
use crate::session::{DataSession, SessionParameters, sealed_length};

/// An effort without a session ends after so long (WireGuard's Rekey-Attempt-Time). New packets begin another.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);
/// Pause after an effort was given up or refused.
const HOLD: Duration = Duration::from_secs(1);
/// Initiations are repeated after this, doubling up to [`LAST_INITIATION_DELAY`].
const FIRST_INITIATION_DELAY: Duration = Duration::from_millis(500);
const LAST_INITIATION_DELAY: Duration = Duration::from_secs(5);
const INITIATION_JITTER: Duration = Duration::from_millis(333);
/// Initiations to one pair of keys before the next pair is tried.
const TRIES_PER_PAIR: usize = 3;
/// Offers, Accepts and the offerer's empty packets are repeated after this, doubling.
const FIRST_EXCHANGE_DELAY: Duration = Duration::from_millis(250);
/// 0.25 + 0.5 + 1 + 2 + 4 seconds, then the exchange is given up.
const EXCHANGE_TRIES: u32 = 5;
/// From this try on a message is split to fit every path, in case the path is narrower than Ethernet.
const SMALL_FROM_TRY: u32 = 2;

fn initiation_delay(attempt: usize) -> Duration {
    let doubled = FIRST_INITIATION_DELAY.saturating_mul(1 << attempt.min(8));
    doubled.min(LAST_INITIATION_DELAY)
}

fn exchange_delay(attempt: u32) -> Duration {
    FIRST_EXCHANGE_DELAY.saturating_mul(1 << attempt.min(8))
}

impl LinkState {
    pub(super) fn begin(&mut self, out: &mut Outlet, now: Now) {
        self.effort = Effort::Initiating { begun: now.monotonic, attempt: 0, repeated: None, next: now.monotonic };
        self.initiate(out, now);
    }

    /// The pairs of keys whose certificates are in date. The peer's newest key comes first: it has told the mesh of
    /// it. Of our own, one that this peer has answered before comes first: it may not have heard of the newest yet.
    fn pairs(&self, now: Now) -> Vec<(TunnelKey, TunnelKey)> {
        let in_date = |valid_until: UnixTime| now.unix < valid_until;
        let mut pairs = Vec::new();
        for peer in self.peer_ends.iter().filter(|end| in_date(end.valid_until)) {
            let mut locals: Vec<_> = self.local_ends.iter().filter(|end| in_date(end.valid_until)).collect();
            // Stable: the newest stays first among equals.
            locals.sort_by_key(|local| !self.has_met(local.doorway.key(), &peer.key));
            pairs.extend(locals.into_iter().map(|local| (*local.doorway.key(), peer.key)));
        }
        pairs
    }

    fn has_met(&self, local: &TunnelKey, peer: &TunnelKey) -> bool {
        let between = |tunnel: &&Tunnel| tunnel.local == *local && tunnel.peer == *peer;
        self.tunnels.iter().find(between).is_some_and(|tunnel| tunnel.noise.is_established())
    }

    fn initiate(&mut self, out: &mut Outlet, now: Now) {
        let Effort::Initiating { begun, attempt, repeated, .. } = self.effort else { return };
        let pairs = self.pairs(now);
        let Some((local, peer)) = (attempt / TRIES_PER_PAIR).checked_rem(pairs.len()).and_then(|at| pairs.get(at))
        else {
            return self.give_up(Reason::NoPeer, out, now);
        };
        let Some(endpoint) = self.path.candidate(attempt) else {
            return self.give_up(Reason::NoEndpoint, out, now);
        };
        if now.monotonic.saturating_sub(begun) >= GIVE_UP_AFTER {
            return self.give_up(Reason::HandshakeTimeout, out, now);
        }
        if let Some(at) = self.tunnel_between(local, peer, out) {
            let noise = &mut self.tunnels[at].noise;
            // A plain device knows no hints and must see zeroes.
            let initiation = if self.plain { noise.initiate() } else { noise.initiate_hinted() };
            if let Ok(initiation) = initiation {
                out.send(endpoint, initiation.to_vec());
            }
        }
        let next = now.monotonic + initiation_delay(attempt) + out.jitter(INITIATION_JITTER);
        self.effort = Effort::Initiating { begun, attempt: attempt + 1, repeated, next };
        self.watch_soon(now);
    }

    /// The answer to an initiation. It is fresh, for it covers our ephemeral key, so the path it took is the peer's.
    pub(crate) fn handle_response(
        &mut self,
        receiver: u32,
        message: &[u8],
        from: SocketAddr,
        out: &mut Outlet,
        now: Now,
    ) -> Result<(), Reason> {
        let (prefix, plain) = (receiver >> 8, self.plain);
        let begun = match self.effort {
            Effort::Initiating { begun, .. } => begun,
            // A plain device's tunnel renews itself by its own timers (`tick`), and knows what it asked for.
            _ if plain => now.monotonic,
            _ => return Err(Reason::StaleHandshake),
        };
        let tunnel = self.tunnel_mut(prefix).ok_or(Reason::UnknownReceiver)?;
        let confirmation = tunnel.noise.handle_response(message)?;
        tunnel.handshaken = Some(now.monotonic);
        self.authenticate_path(from, now);
        self.watch_soon(now);
        if plain {
            out.send(from, confirmation);
            self.effort = Effort::Idle;
            for packet in self.take_waiting(out) {
                self.handle_unsent(&packet, out, now);
            }
            return Ok(());
        }
        // The offer confirms the handshake as well as the empty message would.
        self.offer(prefix, begun, out, now);
        Ok(())
    }

    fn parties(&self, local: &TunnelKey, peer: &TunnelKey, we_offer: bool) -> Option<Parties> {
        let ours = self.local_ends.iter().find(|end| end.doorway.key() == local)?.party.clone();
        let theirs = self.peer_ends.iter().find(|end| end.key == *peer)?.party.clone();
        Some(if we_offer {
            Parties { offerer: ours, acceptor: theirs }
        } else {
            Parties { offerer: theirs, acceptor: ours }
        })
    }

    fn offer(&mut self, prefix: u32, begun: Duration, out: &mut Outlet, now: Now) {
        let Some(tunnel) = self.tunnel(prefix) else { return };
        let Some(parties) = self.parties(&tunnel.local, &tunnel.peer, true) else { return };
        let index = out.take_index(self.id);
        let Some(offering) = Offering::new(index, parties).map(Box::new) else {
            out.release_index(index);
            return self.give_up(Reason::KeyExchangeTimeout, out, now);
        };
        self.effort = Effort::Offering { begun, prefix, offering, attempt: 0, next: now.monotonic };
        self.retry_effort(out, now);
    }

    /// Whatever of our effort is due: the next initiation, offer or empty packet, or its end.
    pub(super) fn retry_effort(&mut self, out: &mut Outlet, now: Now) {
        match &mut self.effort {
            Effort::Initiating { next, .. } if *next <= now.monotonic => self.initiate(out, now),
            Effort::Offering { prefix, offering, attempt, next, .. } if *next <= now.monotonic => {
                if *attempt == EXCHANGE_TRIES {
                    return self.start_over(out, now);
                }
                let tries = *attempt;
                *next = now.monotonic + exchange_delay(tries);
                *attempt += 1;
                let (prefix, exchange, message) = (*prefix, offering.local_index(), offering.message().to_vec());
                self.send_control(prefix, Kind::Offer, exchange, &message, tries, out);
            }
            Effort::Confirming { established, attempt, next, .. } if *next <= now.monotonic => {
                let session = Arc::clone(&established.session);
                if session.is_confirmed() {
                    // The worker's word was lost on the way.
                    return self.handle_confirmed(&session, out, now);
                }
                if *attempt == EXCHANGE_TRIES {
                    return self.start_over(out, now);
                }
                *next = now.monotonic + exchange_delay(*attempt);
                *attempt += 1;
                if let Some(endpoint) = self.path.endpoint() {
                    send_sealed(&session, &[], self.cell.mtu(), endpoint, out, now);
                }
            }
            _ => {}
        }
    }

    /// Repeats the Accept until the session's first packet, or gives the exchange up.
    pub(super) fn retry_accept(&mut self, out: &mut Outlet, now: Now) {
        let Some(accepting) = &mut self.accepting else { return };
        if accepting.next > now.monotonic {
            return;
        }
        let session = Arc::clone(&accepting.established.session);
        if session.is_confirmed() {
            return self.handle_confirmed(&session, out, now);
        }
        if accepting.attempt == EXCHANGE_TRIES {
            self.stop_accepting(out);
            return self.resume(out, now);
        }
        accepting.next = now.monotonic + exchange_delay(accepting.attempt);
        accepting.attempt += 1;
        self.send_accept(out);
    }

    fn send_accept(&mut self, out: &mut Outlet) {
        let Some(accepting) = &self.accepting else { return };
        let (prefix, exchange, tries) = (accepting.prefix, accepting.exchange, accepting.attempt);
        let message = accepting.accept.clone();
        self.send_control(prefix, Kind::Accept, exchange, &message, tries.saturating_sub(1), out);
    }

    fn send_control(&mut self, prefix: u32, kind: Kind, exchange: u32, message: &[u8], tries: u32, out: &mut Outlet) {
        let Some(endpoint) = self.path.endpoint() else { return };
        let Some(tunnel) = self.tunnel_mut(prefix) else { return };
        let limit = if tries < SMALL_FROM_TRY { ETHERNET_LIMIT } else { MINIMUM_LIMIT };
        for packet in parts::split(kind, exchange, message, limit) {
            if let Some(datagram) = tunnel.noise.seal(&packet) {
                out.send(endpoint, datagram);
            }
        }
    }

    /// The exchange came to nothing: a new handshake, unless the effort as a whole has taken too long.
    fn start_over(&mut self, out: &mut Outlet, now: Now) {
        let begun = match &self.effort {
            Effort::Offering { begun, .. } | Effort::Confirming { begun, .. } => *begun,
            Effort::Idle | Effort::Initiating { .. } => return,
        };
        self.stop_effort(out);
        if now.monotonic.saturating_sub(begun) >= GIVE_UP_AFTER {
            return self.give_up(Reason::KeyExchangeTimeout, out, now);
        }
        self.effort = Effort::Initiating { begun, attempt: 0, repeated: None, next: now.monotonic };
        self.initiate(out, now);
    }

    fn give_up(&mut self, reason: Reason, out: &mut Outlet, now: Now) {
        self.stop_effort(out);
        self.hold_until = now.monotonic + HOLD;
        self.drop_waiting(reason, out);
        out.say(Event::Unreachable { local: self.local_instance, peer: self.peer_instance, reason });
    }

    /// Drops our effort and what it held.
    pub(super) fn stop_effort(&mut self, out: &mut Outlet) {
        match std::mem::replace(&mut self.effort, Effort::Idle) {
            Effort::Idle | Effort::Initiating { .. } => {}
            Effort::Offering { offering, .. } => out.release_index(offering.local_index()),
            Effort::Confirming { established, .. } => out.close_session(&established.session),
        }
    }

    pub(super) fn stop_accepting(&mut self, out: &mut Outlet) {
        if let Some(accepting) = self.accepting.take() {
            out.close_session(&accepting.established.session);
        }
    }

    /// A packet out of a warren peer's handshake tunnel.
    pub(super) fn handle_control(
        &mut self,
        receiver: u32,
        packet: &[u8],
        out: &mut Outlet,
        now: Now,
    ) -> Result<(), Reason> {
        if !parts::is_control(packet) {
            return Err(Reason::ProtectionMismatch);
        }
        let prefix = receiver >> 8;
        let part = match parts::parse(packet) {
            Ok(part) => part,
            Err((reason, offer)) => {
                if let Some(exchange) = offer {
                    self.send_control(prefix, Kind::Reject, exchange, &[Rejection::Version as u8], 0, out);
                }
                return Err(reason);
            }
        };
        match part.kind {
            Kind::Probe => {
                self.handle_probe(prefix, part.exchange, out);
                return Ok(());
            }
            Kind::ProbeAnswer => {
                self.handle_probe_answer(part.exchange, out, now);
                return Ok(());
            }
            Kind::Offer | Kind::Accept | Kind::Reject => {}
        }
        let tunnel = self.tunnel_mut(prefix).ok_or(Reason::UnknownReceiver)?;
        let Some(message) = tunnel.assembly.add(&part) else { return Ok(()) };
        match part.kind {
            Kind::Offer => self.handle_offer(receiver, message, out, now),
            Kind::Accept => self.handle_accept(part.exchange, &message, out, now),
            Kind::Reject => self.handle_reject(part.exchange, &message, out, now),
            Kind::Probe | Kind::ProbeAnswer => Ok(()),
        }
    }

    fn handle_offer(&mut self, receiver: u32, offer: Vec<u8>, out: &mut Outlet, now: Now) -> Result<(), Reason> {
        let exchange = key_exchange::offered_index(&offer).ok_or(Reason::ExchangeMalformed)?;
        if self.accepting.as_ref().is_some_and(|accepting| accepting.offer == offer) {
            self.send_accept(out);
            return Ok(());
        }
        let prefix = receiver >> 8;
        let tunnel = self.tunnel(prefix).ok_or(Reason::UnknownReceiver)?;
        if tunnel.exchanged == Some(receiver) {
            // The same offer again, after its session was confirmed or given up; or a second one in one Noise session.
            return Err(Reason::ExchangeUnexpected);
        }
        let (local, peer) = (tunnel.local, tunnel.peer);
        let our_offer = match &self.effort {
            Effort::Idle | Effort::Initiating { .. } => None,
            Effort::Offering { prefix, .. } => self.tunnel(*prefix).map(|tunnel| tunnel.local),
            Effort::Confirming { established, .. } => Some(established.local),
        };
        if our_offer.is_some_and(|ours| ours < peer) {
            return Err(Reason::ExchangeReplaced);
        }
        let parties = self.parties(&local, &peer, false).ok_or(Reason::UnknownKey)?;
        let index = out.take_index(self.id);
        let (accept, keys) = match key_exchange::accept(&offer, index, &parties) {
            Ok(accepted) => accepted,
            Err(reason) => {
                out.release_index(index);
                let rejection = match reason {
                    Reason::ExchangeCertificates => Rejection::Certificates,
                    _ => Rejection::Malformed,
                };
                self.send_control(prefix, Kind::Reject, exchange, &[rejection as u8], 0, out);
                return Err(reason);
            }
        };
        self.stop_effort(out);
        self.stop_accepting(out);
        if let Some(tunnel) = self.tunnel_mut(prefix) {
            tunnel.exchanged = Some(receiver);
        }
        let session = self.session(&keys, &local, &peer, now)?;
        out.open_session(&session);
        let established = Established { session, local, peer, offered: false };
        self.accepting =
            Some(Accepting { offer, exchange, accept, prefix, established, attempt: 0, next: now.monotonic });
        self.retry_accept(out, now);
        Ok(())
    }

    fn handle_accept(&mut self, exchange: u32, accept: &[u8], out: &mut Outlet, now: Now) -> Result<(), Reason> {
        let Effort::Offering { begun, prefix, offering, .. } = &self.effort else {
            return Err(Reason::ExchangeUnexpected);
        };
        if offering.local_index() != exchange {
            return Err(Reason::ExchangeUnexpected);
        }
        let (begun, prefix) = (*begun, *prefix);
        let keys = offering.complete(accept)?;
        let tunnel = self.tunnel(prefix).ok_or(Reason::UnknownReceiver)?;
        let (local, peer) = (tunnel.local, tunnel.peer);
        let session = self.session(&keys, &local, &peer, now)?;
        out.open_session(&session);
        let established = Established { session, local, peer, offered: true };
        self.effort = Effort::Confirming { begun, established, attempt: 0, next: now.monotonic };
        self.retry_effort(out, now);
        Ok(())
    }

    fn handle_reject(&mut self, exchange: u32, message: &[u8], out: &mut Outlet, now: Now) -> Result<(), Reason> {
        let rejection = Rejection::from_message(message).ok_or(Reason::ExchangeMalformed)?;
        match &self.effort {
            Effort::Offering { offering, .. } if offering.local_index() == exchange => {
                self.give_up(rejection.reason(), out, now);
                Ok(())
            }
            _ => Err(Reason::ExchangeUnexpected),
        }
    }

    fn session(
        &self,
        keys: &SessionKeys,
        local: &TunnelKey,
        peer: &TunnelKey,
        now: Now,
    ) -> Result<Arc<DataSession>, Reason> {
        let ours = self.local_ends.iter().find(|end| end.doorway.key() == local).ok_or(Reason::UnknownKey)?;
        let theirs = self.peer_ends.iter().find(|end| end.key == *peer).ok_or(Reason::UnknownKey)?;
        DataSession::new(&SessionParameters {
            suite: keys.suite,
            send_key: &keys.seal,
            receive_key: &keys.open,
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            local: self.id.0,
            peer: self.id.1,
            valid_until: ours.valid_until.min(theirs.valid_until),
            established: now,
        })
        .map(Arc::new)
    }
}

/// Seals `packet` (empty: a keepalive) and sends it. Says whether the session took it.
pub(super) fn send_sealed(
    session: &DataSession,
    packet: &[u8],
    mtu: u32,
    to: SocketAddr,
    out: &mut Outlet,
    now: Now,
) -> bool {
    let mut datagram = vec![0; sealed_length(packet.len())];
    match session.seal(packet, mtu as usize, &mut datagram, now) {
        Ok(length) => {
            datagram.truncate(length);
            out.send_marked(to, ecn::of(packet), datagram);
            true
        }
        Err(_) => false,
    }
}
