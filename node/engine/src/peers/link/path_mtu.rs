//! Whether packets of full size reach the peer. Datagrams travel without "don't fragment", so that most narrow paths
//! cost speed only; but routers drop fragments, IPv6 routers make none, and the ICMP message that would tell is often
//! filtered. While large packets are sent, the engine therefore asks the path itself, as RFC 8899 has it: a control
//! datagram of full size that must not be fragmented, and a small one behind it. The peer answers each with a small one.
//!
//! ```text
//!           large packet sent                answer         large packets sent meanwhile, VERIFY_EVERY later
//!   at rest -----------------> probe of size -------> it fits ----------------------------------------------> ...
//!                                  |
//!                                  | of TRIES or more only the small one is answered: it does not fit
//!                                  v
//!                    MTU falls to the floor; probes between floor and what failed find what fits;
//!                    RAISE_AFTER later the size before is tried again
//! ```
//!
//! Only size decides: when small ones are not answered either, the peer or the path is away or slow (or the peer does not
//! know probes), and the MTU stays. A verdict takes round trips and no timeouts. What this host's
//! own device refuses comes in as [`LinkState::handle_path_mtu`] and needs no search. ICMP is not asked: anybody can forge it.
//!
//! **How long a stream stands still.** A TCP sender whose segments are lost sends the first again after its timeout, a round
//! trip and 200 ms or more (RFC 6298, Linux), then after twice that, and so on; the first one after a verdict is answered with
//! a size that fits. Whatever moment of a question the path becomes narrower in, the verdict comes within three round trips,
//! [`VERIFY_EVERY`] and three times [`SPACING`], mostly before the second of those: no stream stands still for 3 s where a round
//! trip takes less than 0.45 s. The simulation measures it. On longer ways it is the sender's timer that counts and no faster
//! verdict would help: the first segment sent again is lost as well, since no verdict can come within one timeout (a round trip
//! and 200 ms; a probe's loss shows after a round trip and the pause before the probe), and the second goes after three
//! timeouts. With the round trip in which it is answered that is four round trips and 0.6 s: 4.6 s where one takes a second.

use std::net::SocketAddr;
use std::time::Duration;

use super::LinkState;
use crate::Now;
use crate::handshake::TRANSPORT_OVERHEAD;
use crate::key_exchange::Kind;
use crate::key_exchange::parts::{self, PROBE_MIN};
use crate::mesh::Event;
use crate::peers::outlet::Outlet;
use crate::tables::SMALLEST_MTU;

/// Rest between an answer and the next question.
const VERIFY_EVERY: Duration = Duration::from_millis(250);
/// Probes of one size that must stay unanswered while their small ones are answered (RFC 8899, MAX_PROBES).
const TRIES: usize = 3;
/// As many more where probes that fitted were lost before: three losses in a row must not pass for a narrow path.
const MORE_TRIES: usize = 9;
/// Of one size, however many are lost with their small ones.
const MOST_TRIES: usize = 2 * (TRIES + MORE_TRIES);
/// Each probe lost that fitted counts so often towards more tries, and each that was answered at once counts one back.
const LOSS_WEIGHT: usize = 8;
/// So many counts are one more try.
const COUNTS_PER_TRY: usize = 4;
/// Between the tries of a size, so that a queue which is full for large packets only has room again; and how much later
/// than the small one's answer the large one's may come.
const SPACING: Duration = Duration::from_millis(30);
/// How long a try of which nothing is heard is waited for: four round trips, within these.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(150);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// A path that became narrower is believed to stay so for this long (RFC 8899, PMTU_RAISE_TIMER).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// The search ends when it knows this closely what fits.
const GRAIN: u32 = 16;

/// What is known of the path, and the question under way.
#[derive(Debug)]
pub(super) struct PathMtu {
    round: Option<Round>,
    /// The smallest size that did not fit, while a search for one that does is under way.
    too_long: Option<u32>,
    /// Until when no question is begun.
    rest: Option<Duration>,
    /// Large packets were sent since the last question.
    wanted: bool,
    /// No larger size is tried before this.
    raise_at: Duration,
    patience: Duration,
    /// See [`LOSS_WEIGHT`].
    losses: usize,
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
    tries: Vec<Try>,
    next: Duration,
}

#[derive(Debug)]
struct Try {
    sent: Duration,
    /// The small one was answered.
    small_heard: bool,
}

/// What a question comes to next.
enum Next {
    Try,
    Wait(Duration),
    TooLong,
    /// Nothing is heard at all.
    Silence,
}

impl Round {
    /// After `enough` tries of which only the small one was answered, the size is too long.
    fn next(&self, enough: usize, patience: Duration, now: Now) -> Next {
        let heard = self.tries.iter().filter(|one| one.small_heard).count();
        if heard >= enough {
            return Next::TooLong;
        }
        let mut open =
            self.tries.iter().filter(|one| !one.small_heard && one.sent + patience > now.monotonic).peekable();
        let oldest = open.peek().map(|one| one.sent + patience);
        let open = open.count();
        if self.tries.len() - heard - open >= enough {
            return Next::Silence;
        }
        // Until one was heard they go one by one: mostly the first is answered.
        match oldest {
            Some(until) if heard == 0 || heard + open >= enough => Next::Wait(until),
            _ => Next::Try,
        }
    }
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            round: None,
            too_long: None,
            rest: None,
            wanted: false,
            raise_at: Duration::ZERO,
            patience: LONGEST_PATIENCE,
            losses: 0,
            number: 0,
        }
    }
}

impl PathMtu {
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.round.as_ref().map(|round| round.next).into_iter().chain(self.rest).min()
    }

    /// How many lost probes a verdict takes.
    fn enough(&self) -> usize {
        TRIES + self.losses / COUNTS_PER_TRY
    }

    fn ask(&mut self, size: u32, now: Now) {
        let first = self.number;
        self.number = first.wrapping_add(2 * MOST_TRIES as u32);
        self.round = Some(Round { size, first, tries: Vec::with_capacity(TRIES), next: now.monotonic });
        self.rest = None;
        self.wanted = false;
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
        if self.path_mtu.round.is_some() {
            return;
        }
        if self.path_mtu.rest.is_some() {
            self.path_mtu.wanted = true;
            return;
        }
        if self.plain || self.current.is_none() {
            return self.rest(now);
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
        let inner = u32::try_from(payload.saturating_sub(TRANSPORT_OVERHEAD)).unwrap_or(self.mtu);
        if inner < self.cell.mtu() {
            self.lower(inner, out);
        }
        self.path_mtu.too_long = None;
        self.path_mtu.raise_at = now.monotonic + RAISE_AFTER;
        self.rest(now);
    }

    /// No question is open. Large packets that are sent from now on begin the next one after a while, even if none follows
    /// then: a sender whose packets are lost is silent.
    fn rest(&mut self, now: Now) {
        self.path_mtu.round = None;
        self.path_mtu.rest = Some(now.monotonic + VERIFY_EVERY);
        self.path_mtu.wanted = false;
        self.cell.expect_large();
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
        let enough = self.path_mtu.enough();
        let Some(round) = &mut self.path_mtu.round else { return };
        let place = number.wrapping_sub(round.first) as usize;
        let Some(one) = round.tries.get_mut(place / 2) else { return };
        let sent = one.sent;
        if place % 2 == 1 {
            one.small_heard = true;
            // The large one went first; its answer may be a little late.
            let heard = round.tries.iter().filter(|one| one.small_heard).count();
            let since = if heard >= enough { now.monotonic } else { sent };
            round.next = (since + SPACING).max(now.monotonic);
            return self.probe(out, now);
        }
        let size = round.size;
        self.path_mtu.losses = match place / 2 {
            0 => self.path_mtu.losses.saturating_sub(1),
            lost => (self.path_mtu.losses + LOSS_WEIGHT * lost).min(MORE_TRIES * COUNTS_PER_TRY),
        };
        let round_trip = now.monotonic.saturating_sub(sent);
        self.path_mtu.patience = (round_trip * 4).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE);
        if size > self.cell.mtu() {
            self.set_path_mtu(size, out);
        }
        self.go_on(out, now);
    }

    /// Whatever of a question is due.
    pub(super) fn probe(&mut self, out: &mut Outlet, now: Now) {
        if self.path_mtu.rest.is_some_and(|until| until <= now.monotonic) {
            self.path_mtu.rest = None;
            if std::mem::take(&mut self.path_mtu.wanted) {
                return self.handle_large(out, now);
            }
        }
        let (enough, patience) = (self.path_mtu.enough(), self.path_mtu.patience);
        let Some(round) = &mut self.path_mtu.round else { return };
        if round.next > now.monotonic {
            return;
        }
        match round.next(enough, patience, now) {
            Next::Wait(until) => round.next = until,
            Next::TooLong => self.judge(out, now),
            Next::Silence => {
                self.path_mtu.too_long = None;
                self.rest(now);
            }
            Next::Try => {
                let number = round.first.wrapping_add(2 * round.tries.len() as u32);
                let size = round.size as usize;
                round.tries.push(Try { sent: now.monotonic, small_heard: false });
                round.next = now.monotonic + SPACING;
                self.send_probe(number, size, out);
                self.send_probe(number.wrapping_add(1), PROBE_MIN, out);
            }
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

    /// The size that was asked about does not fit.
    fn judge(&mut self, out: &mut Outlet, now: Now) {
        let Some(round) = self.path_mtu.round.take() else { return };
        if self.current.is_none() {
            self.path_mtu.too_long = None;
            return self.rest(now);
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
        self.rest(now);
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
