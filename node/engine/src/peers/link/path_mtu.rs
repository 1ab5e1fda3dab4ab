//! Whether packets of full size reach the peer. Datagrams travel without "don't fragment", so that most narrow paths
//! cost speed only; but routers drop fragments, IPv6 routers make none, and the ICMP message that would tell is often
//! filtered. While large packets are sent, the engine therefore asks the path itself, as RFC 8899 has it: a control
//! datagram of full size that must not be fragmented, which the peer answers with a small one.
//!
//! ```text
//!           large packet sent                answer                    large packet sent, VERIFY_EVERY later
//!   at rest -----------------> probe of size -------> it fits: at rest ------------------------------------> ...
//!                                  |
//!                                  | TRIES or more unanswered, while small ones are answered: it does not fit
//!                                  v
//!                    MTU falls to the floor; probes between floor and what failed find what fits;
//!                    RAISE_AFTER later the size before is tried again
//! ```
//!
//! Only size decides: when small ones are not answered either, the peer or the path is away (or the peer does not know
//! probes), and the MTU stays. What the host's kernel knows of the path, from ICMP or a device, comes in as
//! [`LinkState::handle_path_mtu`] and needs no search.

use std::net::SocketAddr;
use std::time::Duration;

use super::LinkState;
use crate::Now;
use crate::handshake::TRANSPORT_OVERHEAD;
use crate::key_exchange::Kind;
use crate::key_exchange::parts::{self, PROBE_MIN};
use crate::mesh::Event;
use crate::peers::outlet::Outlet;
use crate::session::PADDING;
use crate::tables::SMALLEST_MTU;

/// A stream that stops because the path has become narrower is found out within this and the time that [`TRIES`] take: a
/// TCP sender has then sent its first segment again three times and not waited for a second at a stretch.
const VERIFY_EVERY: Duration = Duration::from_millis(500);
/// Probes of one size that must stay unanswered (RFC 8899, MAX_PROBES).
const TRIES: usize = 3;
/// As many more where probes that fitted were lost before: three losses in a row must not pass for a narrow path.
const MORE_TRIES: usize = 9;
/// How long one probe is waited for: four round trips, within these.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(150);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
/// A path that became narrower is believed to stay so for this long (RFC 8899, PMTU_RAISE_TIMER).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// The search ends when it knows this closely what fits: sealed packets are padded to as much.
const GRAIN: u32 = PADDING as u32;

/// What is known of the path, and the question under way.
#[derive(Debug)]
pub(super) struct PathMtu {
    round: Option<Round>,
    /// The smallest size that did not fit, while a search for one that does is under way.
    too_long: Option<u32>,
    /// Workers tell again of large packets from here on.
    rearm: Option<Duration>,
    /// No larger size is tried before this.
    raise_at: Duration,
    patience: Duration,
    /// How many more tries a verdict takes than [`TRIES`]: rises with each probe lost that fitted, falls with each that
    /// was answered at once.
    lossy: usize,
    /// Of the next probe.
    number: u32,
}

/// Probes of one size.
#[derive(Debug)]
struct Round {
    /// Of the inner packets that are asked about.
    size: u32,
    /// The number of the first probe; each try has two, of full size and small.
    first: u32,
    /// When each try was sent.
    sent: Vec<Duration>,
    small_heard: bool,
    next: Duration,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            round: None,
            too_long: None,
            rearm: None,
            raise_at: Duration::ZERO,
            patience: FIRST_PATIENCE,
            lossy: 0,
            number: 0,
        }
    }
}

impl PathMtu {
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.round.as_ref().map(|round| round.next).into_iter().chain(self.rearm).min()
    }

    fn ask(&mut self, size: u32, now: Now) {
        let first = self.number;
        self.number = first.wrapping_add(2 * (TRIES + MORE_TRIES) as u32);
        let round = Round { size, first, sent: Vec::with_capacity(TRIES), small_heard: false, next: now.monotonic };
        self.round = Some(round);
        self.rearm = None;
    }

    /// No question is open; large packets begin the next one after a while.
    fn rest(&mut self, now: Now) {
        self.round = None;
        self.rearm = Some(now.monotonic + VERIFY_EVERY);
    }

    /// The next size to ask about in a search, with `fits` known to fit.
    fn candidate(&self, fits: u32) -> Option<u32> {
        let middle = (fits + self.too_long?.saturating_sub(fits) / 2).next_multiple_of(GRAIN);
        (middle > fits && Some(middle) < self.too_long).then_some(middle)
    }
}

impl LinkState {
    /// Another path: nothing is known of it.
    pub(super) fn forget_path_mtu(&mut self) {
        self.path_mtu = PathMtu::default();
        self.cell.set_mtu(self.mtu);
        self.cell.expect_large();
    }

    /// A worker sent a packet that a narrow path might not take.
    pub(crate) fn handle_large(&mut self, out: &mut Outlet, now: Now) {
        if self.path_mtu.round.is_some() || self.path_mtu.rearm.is_some() {
            return;
        }
        if self.plain || self.current.is_none() {
            return self.path_mtu.rest(now);
        }
        let mtu = self.cell.mtu();
        let raise = mtu < self.mtu && now.monotonic >= self.path_mtu.raise_at;
        self.path_mtu.ask(if raise { self.mtu } else { mtu }, now);
        self.probe(out, now);
    }

    /// The path to `to` takes UDP payloads of at most `payload` bytes.
    pub(crate) fn handle_path_mtu(&mut self, to: SocketAddr, payload: usize, out: &mut Outlet, now: Now) {
        if self.path.endpoint() != Some(to) {
            return;
        }
        // What is sealed is padded to 16 bytes.
        let inner = payload.saturating_sub(TRANSPORT_OVERHEAD) & !(PADDING - 1);
        let inner = u32::try_from(inner).unwrap_or(self.mtu);
        if inner < self.cell.mtu() {
            self.lower(inner, out);
        }
        self.path_mtu.too_long = None;
        self.path_mtu.raise_at = now.monotonic + RAISE_AFTER;
        self.path_mtu.rest(now);
    }

    /// The peer asks whether a datagram of this size reaches us.
    pub(super) fn handle_probe(&mut self, prefix: u32, number: u32, out: &mut Outlet) {
        let Some(endpoint) = self.path.endpoint() else { return };
        let answer = parts::probe(Kind::ProbeAnswer, number, PROBE_MIN);
        if let Some(datagram) = self.tunnel_mut(prefix).and_then(|tunnel| tunnel.noise.seal(&answer)) {
            out.send(endpoint, datagram);
        }
    }

    pub(super) fn handle_probe_answer(&mut self, number: u32, out: &mut Outlet, now: Now) {
        let Some(round) = &mut self.path_mtu.round else { return };
        let place = number.wrapping_sub(round.first) as usize;
        let Some(sent) = round.sent.get(place / 2).copied() else { return };
        if place % 2 == 1 {
            round.small_heard = true;
            return;
        }
        let round_trip = now.monotonic.saturating_sub(sent);
        let size = round.size;
        self.path_mtu.lossy = match place / 2 {
            0 => self.path_mtu.lossy.saturating_sub(1),
            lost => (self.path_mtu.lossy + 2 * lost).min(MORE_TRIES),
        };
        self.path_mtu.patience = (round_trip * 4).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE);
        if size > self.cell.mtu() {
            self.set_path_mtu(size, out);
        }
        self.go_on(out, now);
    }

    /// Whatever of a question is due.
    pub(super) fn probe(&mut self, out: &mut Outlet, now: Now) {
        if self.path_mtu.rearm.is_some_and(|at| at <= now.monotonic) {
            self.path_mtu.rearm = None;
            self.cell.expect_large();
        }
        let Some(round) = &mut self.path_mtu.round else { return };
        if round.next > now.monotonic {
            return;
        }
        if round.sent.len() >= TRIES + self.path_mtu.lossy {
            return self.judge(out, now);
        }
        let attempt = round.sent.len();
        let number = round.first.wrapping_add(2 * attempt as u32);
        let size = round.size;
        round.sent.push(now.monotonic);
        round.next = now.monotonic + self.path_mtu.patience;
        self.send_probe(number, (size as usize).next_multiple_of(PADDING), out);
        // While all is well the small ones are spared.
        if attempt > 0 {
            self.send_probe(number.wrapping_add(1), PROBE_MIN, out);
        }
    }

    fn send_probe(&mut self, number: u32, length: usize, out: &mut Outlet) {
        let (Some(endpoint), Some(current)) = (self.path.endpoint(), &self.current) else { return };
        let between = (current.local, current.peer);
        let packet = parts::probe(Kind::Probe, number, length);
        let tunnel = self.tunnels.iter_mut().find(|tunnel| (tunnel.local, tunnel.peer) == between);
        if let Some(datagram) = tunnel.and_then(|tunnel| tunnel.noise.seal(&packet)) {
            out.send_whole(endpoint, datagram);
        }
    }

    /// No probe of this size was answered.
    fn judge(&mut self, out: &mut Outlet, now: Now) {
        let Some(round) = self.path_mtu.round.take() else { return };
        if !round.small_heard || self.current.is_none() {
            self.path_mtu.too_long = None;
            return self.path_mtu.rest(now);
        }
        self.path_mtu.too_long = Some(round.size);
        if round.size <= self.cell.mtu() {
            self.lower(SMALLEST_MTU, out);
        }
        self.go_on(out, now);
    }

    /// After a verdict: the next size of a search, or rest.
    fn go_on(&mut self, out: &mut Outlet, now: Now) {
        if let Some(size) = self.path_mtu.candidate(self.cell.mtu()) {
            self.path_mtu.ask(size, now);
            return self.probe(out, now);
        }
        if self.path_mtu.too_long.take().is_some() {
            self.path_mtu.raise_at = now.monotonic + RAISE_AFTER;
        }
        self.path_mtu.rest(now);
    }

    fn lower(&mut self, mtu: u32, out: &mut Outlet) {
        let mtu = mtu.max(SMALLEST_MTU);
        if mtu < self.cell.mtu() {
            self.set_path_mtu(mtu, out);
        }
    }

    fn set_path_mtu(&mut self, mtu: u32, out: &mut Outlet) {
        self.cell.set_mtu(mtu.min(self.mtu));
        out.say(Event::PathMtu { local: self.local_instance, peer: self.peer_instance, mtu: self.cell.mtu() });
    }
}
