//! Certificates of five minutes, and their keys, are replaced again and again under a load that numbers its packets: none is
//! lost and none overtakes another, whoever renews first and whoever sleeps meanwhile.
//!
//! ```text
//!   coordinator   web-1  ---- numbered datagrams there and back, a TCP stream ---->  bank-1
//!   =======================================================================================
//!                 one wall clock for all three, which the test sets ahead (libfaketime)
//! ```

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use warren_netns_tests::bench::cost::{Meter, resident};
use warren_netns_tests::fake_time::{self, FakeClock};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;
use warren_netns_tests::sequence::Sequence;

use super::order::Stream;
use super::{ANSWER_TEXT, BANK, POLICY, WEB, absent, claim, text, wait_until_allowed};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("rotation::no_packet_is_lost_or_overtaken_while_the_ends_renew_in_turn_and_both_at_once", under_load),
        claim("rotation::who_slept_while_both_ends_renewed_loses_no_packet_afterwards", asleep),
        claim("rotation::measure_what_a_rotation_and_a_peer_cost", measure).with_ignored_flag(true),
    ]
}

/// The shortest life there is.
const OPTIONS: [&str; 4] = ["--certificate-lifetime", "5m", "--heartbeat", "1s"];
const LIFETIME: i64 = 300;
/// Within this time a session moves to a key that the peer shows.
const MOVES_WITHIN: Duration = Duration::from_secs(10);
/// How far the coordinator dates certificates back.
const DATED_BACK: i64 = 60;
/// Past the last moment at which a certificate is renewed, in seconds after it was issued: six tenths of five minutes and
/// the minute before, less that minute.
const DUE: i64 = 157;
/// Before the first one: four tenths, less that minute.
const NOT_DUE: i64 = 84;
/// Of two ends that renew in turn, one is so much younger, in seconds: each is renewed when the other is not due.
const APART: i64 = 79;
/// Renewals of either end alone, and of both at once.
const IN_TURN: usize = 3;
/// How often both are renewed at once, last of all: the clock's next jump would leave out the minutes in which a session that
/// was made between the two renewals is renewed itself, and so end it.
const AT_ONCE: usize = 1;
/// Enough datagrams to show that the load runs.
const SOME: u64 = 1000;
/// For a new certificate, and the move of the session to its key.
const RENEWED: Duration = Duration::from_secs(90);

/// web-1 and bank-1 in one time, which is the machine's or ahead of it.
struct Hurried {
    _mesh: Mesh,
    web: Node,
    bank: Node,
    clock: FakeClock,
    ahead: Cell<i64>,
}

impl Hurried {
    /// The two talk; bank-1's certificate is [`APART`] younger. None without libfaketime.
    fn new() -> Result<Option<Self>> {
        let Some(library) = fake_time::library() else {
            absent("libfaketime")?;
            return Ok(None);
        };
        let mut mesh = Mesh::new(&OPTIONS)?;
        let clock = FakeClock::new(library, mesh.lab.directory().join("clock"))?;
        mesh.coordinator.stop()?;
        mesh.coordinator.set_environment(clock.environment());
        mesh.coordinator.start()?;
        mesh.try_apply(POLICY, &[])?.expect(0)?;
        let start = |mesh: &mut Mesh, name: &str, workload: &str| {
            let mut node = mesh.enrol(name, workload)?;
            node.set_environment(clock.environment());
            node.start().map(|()| node)
        };
        let web = start(&mut mesh, "web-1", WEB)?;
        clock.set(APART)?;
        let bank = start(&mut mesh, "bank-1", BANK)?;
        bank.host.serve_tcp(bank.at(8080)?, ANSWER_TEXT)?;
        wait_until_allowed(&web, &bank)?;
        Ok(Some(Self { _mesh: mesh, web, bank, clock, ahead: Cell::new(APART) }))
    }

    /// Seconds since 1970 for the three of them.
    fn now(&self) -> Result<i64> {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(i64::try_from(machine)? + self.ahead.get())
    }

    /// Sets the clock to `moment`, if that is not past.
    fn set(&self, moment: i64) -> Result<()> {
        let further = (moment - self.now()?).max(0);
        self.ahead.set(self.ahead.get() + further);
        self.clock.set(self.ahead.get())
    }

    /// Sets the clock to when the certificates of all of `ends` are due, and waits until each of them has another and the
    /// session runs with the new key. The certificates before had not ended.
    fn renew(&mut self, ends: &[End]) -> Result<()> {
        let ages: Vec<_> = ends.iter().map(|end| self.end(*end)).map(issued).collect::<Result<_>>()?;
        let moved = self.moves()?;
        let newest = ages.iter().max().copied().context("an end")?;
        self.set(newest + DUE)?;
        for (end, before) in ends.iter().zip(ages) {
            eventually("a new tunnel certificate is issued", RENEWED, || Ok(issued(self.end(*end))? > before))?;
        }
        self.session_moves(ends, moved)
    }

    /// Waits until the session runs with the newest key of each of `ends`, which have renewed; `before` are the moves until
    /// then. An end that is shown a new key moves the session within ten seconds.
    fn session_moves(&mut self, ends: &[End], before: [usize; 2]) -> Result<()> {
        let mut seen = before;
        let several = ends.len() > 1;
        let waited = eventually("each end knows the other's newest certificate", RENEWED, || {
            seen = self.moves()?;
            Ok(knows(&self.web, &self.bank)? && knows(&self.bank, &self.web)?)
        });
        waited.with_context(|| format!("{ends:?}: {before:?} moves before, {seen:?} after"))?;
        if several {
            // One move after both were known holds both keys. If there is none, the one before did.
            let (known, since) = (self.moves()?, Instant::now());
            eventually("the session moves to the newest keys", RENEWED, || {
                seen = self.moves()?;
                let moved = seen[0] > known[0] && seen[1] > known[1];
                Ok(moved || (since.elapsed() > 2 * MOVES_WITHIN && seen[0] > before[0] && seen[1] > before[1]))
            })
        } else {
            eventually("the session moves to the new key", RENEWED, || {
                seen = self.moves()?;
                Ok(seen[0] > before[0] && seen[1] > before[1])
            })
        }
        .with_context(|| format!("{ends:?}: {before:?} moves before, {seen:?} after"))
    }

    fn end(&self, end: End) -> &Node {
        match end {
            End::Web => &self.web,
            End::Bank => &self.bank,
        }
    }

    /// How often either end has moved to another session, make before break.
    fn moves(&mut self) -> Result<[usize; 2]> {
        let count = |node: &mut Node| Ok::<_, anyhow::Error>(node.process()?.log_text().matches("rekey=true").count());
        Ok([count(&mut self.web)?, count(&mut self.bank)?])
    }

    /// No session went down, which would be a gap, however short.
    fn stood(&mut self) -> Result<()> {
        for node in [&mut self.web, &mut self.bank] {
            let log = node.process()?.log_text();
            ensure!(!log.contains("session down"), "{}: a session went down\n{log}", node.host.name);
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Web,
    Bank,
}

/// Whether `node` shows the end of `other`'s newest certificate as that of its peer.
fn knows(node: &Node, other: &Node) -> Result<bool> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let shown = text(&status["peers"][0], "validUntil").to_owned();
    let until = OffsetDateTime::parse(&shown, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp);
    Ok(until == issued(other)? + LIFETIME)
}

/// When the newest tunnel certificate of `node` was issued, in seconds since 1970.
fn issued(node: &Node) -> Result<i64> {
    let shown = node.say(&["cert", "show", "-o", "json"])?.json()?;
    let items = shown["items"].as_array().context("certificates")?;
    let of_tunnels = items.iter().filter(|item| item["tunnelKey"].is_string());
    let begins = of_tunnels.map(|item| Ok(OffsetDateTime::parse(text(item, "notBefore"), &Rfc3339)?.unix_timestamp()));
    let newest = begins.collect::<Result<Vec<_>>>()?.into_iter().max().context("a tunnel certificate")?;
    Ok(newest + DATED_BACK)
}

fn goes_on(load: &Sequence, when: &str) -> Result<()> {
    let before = load.received();
    eventually(&format!("the load runs {when}"), IN_FORCE, || Ok(load.has_gone_on(before, SOME)))
        .with_context(|| format!("{load:?}"))
}

/// Everything that was sent came back, once and in order.
fn must_be_whole(load: &Sequence, when: &str) -> Result<()> {
    let lost = load.rest()?;
    let overtaken = [load.there.overtaken(), load.back.overtaken()];
    ensure!(lost == [0, 0] && overtaken == [0, 0], "{when}: {lost:?} lost, {overtaken:?} overtaken; {load:?}");
    load.resume();
    Ok(())
}

fn under_load() -> Result<()> {
    let Some(mut hurried) = Hurried::new()? else { return Ok(()) };
    let service = hurried.bank.at(8080)?;
    let stream = Stream::start(&hurried.web, service)?;
    let load = Sequence::start(&hurried.web.host, &hurried.bank.host, service)?;
    goes_on(&load, "before any renewal")?;
    for round in 0..IN_TURN {
        for end in [End::Web, End::Bank] {
            let other = if end == End::Web { End::Bank } else { End::Web };
            let (of_other, due) = (issued(hurried.end(other))?, issued(hurried.end(end))? + DUE);
            hurried.renew(&[end])?;
            // On a machine that stood still for many seconds the other may have come of age too: then both were renewed.
            let alone = issued(hurried.end(other))? == of_other;
            ensure!(alone || hurried.now()? > due.min(of_other + NOT_DUE), "{other:?} was renewed before it was due");
            goes_on(&load, "on the new session")?;
            must_be_whole(&load, &format!("round {round}, {end:?} renewed alone: {alone}"))?;
        }
    }
    for round in 0..AT_ONCE {
        hurried.renew(&[End::Web, End::Bank])?;
        goes_on(&load, "on the new sessions")?;
        must_be_whole(&load, &format!("round {round}, both renewed"))?;
    }
    hurried.stood()?;
    load.end()?;
    ensure!(stream.end().context("the stream's bytes came back in order")? > 0, "the stream went on");
    Ok(())
}

fn asleep() -> Result<()> {
    let Some(mut hurried) = Hurried::new()? else { return Ok(()) };
    let service = hurried.bank.at(8080)?;
    let load = Sequence::start(&hurried.web.host, &hurried.bank.host, service)?;
    goes_on(&load, "before any renewal")?;
    // Nothing to send for three renewals of either end.
    ensure!(load.rest()? == [0, 0], "{load:?}");
    for _ in 0..3 {
        hurried.renew(&[End::Web, End::Bank])?;
    }
    load.resume();
    goes_on(&load, "after a rest")?;
    must_be_whole(&load, "nothing was sent while both renewed")?;

    // One end is stopped while the other renews, and is overdue itself when it goes on.
    for stopped in [End::Bank, End::Web] {
        let awake = if stopped == End::Web { End::Bank } else { End::Web };
        ensure!(load.rest()? == [0, 0], "{load:?}");
        let (before, moved) = (issued(hurried.end(stopped))?, hurried.moves()?);
        hurried.signal(stopped, Signal::SIGSTOP)?;
        let held = issued(hurried.end(awake))?;
        hurried.set(held.max(before) + DUE)?;
        eventually("who is awake has a new certificate", RENEWED, || Ok(issued(hurried.end(awake))? > held))?;
        hurried.signal(stopped, Signal::SIGCONT)?;
        load.resume();
        goes_on(&load, "after a sleep")?;
        must_be_whole(&load, &format!("{stopped:?} slept"))?;
        eventually("who slept renews", RENEWED, || Ok(issued(hurried.end(stopped))? > before))?;
        // Time is not to run away from the move of the session: it takes seconds of the machine's.
        hurried.session_moves(&[End::Web, End::Bank], moved)?;
        goes_on(&load, "with both renewed")?;
        must_be_whole(&load, &format!("{stopped:?} slept, and has renewed"))?;
    }
    load.end()
}

impl Hurried {
    fn signal(&mut self, end: End, signal: Signal) -> Result<()> {
        let node = if end == End::Web { &mut self.web } else { &mut self.bank };
        node.process()?.signal(signal)
    }
}

/// Peers of the node that is measured.
const PEERS: usize = 40;
/// Rotations of all of them.
const ROTATIONS: u32 = 5;

/// Every certificate of a mesh is renewed at once, its own and those of [`PEERS`] peers with whom a session is up: what that
/// costs the one node that all of them talk to, and what a peer holds of its memory. Prints it; asserts nothing of it.
#[allow(clippy::print_stderr, reason = "the figures are what it is run for")]
fn measure() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut bank = mesh.node("bank-1", BANK)?;
    bank.host.serve_tcp(bank.at(8080)?, ANSWER_TEXT)?;
    let (daemon, coordinator) = (bank.process()?.id(), mesh.coordinator.process()?.id());
    let mut webs = Vec::new();
    let mut few = 0;
    for number in 0..PEERS {
        let web = mesh.node(&format!("web-{number}"), WEB)?;
        wait_until_allowed(&web, &bank)?;
        webs.push(web);
        if number == 0 {
            few = resident(daemon)?;
        }
    }
    let many = resident(daemon)?;
    let each = many.saturating_sub(few) / (PEERS as u64 - 1);
    eprintln!("{PEERS} peers with a session each: {each} bytes of resident memory a peer, {many} in all");

    let moves = |bank: &mut Node| Ok::<_, anyhow::Error>(bank.process()?.log_text().matches("rekey=true").count());
    for round in 1..=ROTATIONS {
        // What the daemons do anyway, in as long a time.
        let idle = Duration::from_secs(20);
        let before = [Meter::read(&[daemon])?, Meter::read(&[coordinator])?];
        std::thread::sleep(idle);
        let at_rest = [Meter::read(&[daemon])?.since(&before[0]), Meter::read(&[coordinator])?.since(&before[1])];
        let (begun, moved) = (Instant::now(), moves(&mut bank)?);
        let before = [Meter::read(&[daemon])?, Meter::read(&[coordinator])?];
        mesh.coordinator.say(&["ca", "rotate", "intermediate"])?.expect(0)?;
        eventually("every session has moved to new keys", 4 * RENEWED, || Ok(moves(&mut bank)? >= moved + PEERS))?;
        // Whichever end moved first, the other's key follows.
        std::thread::sleep(idle);
        let took = begun.elapsed();
        let spent = [Meter::read(&[daemon])?.since(&before[0]), Meter::read(&[coordinator])?.since(&before[1])];
        let sessions = moves(&mut bank)? - moved;
        let more =
            |which: usize| spent[which].saturating_sub(at_rest[which].mul_f64(took.as_secs_f64() / idle.as_secs_f64()));
        let (node, ca) = (more(0), more(1));
        eprintln!(
            "rotation {round}: {sessions} sessions set up; the node {node:?} of processor time, {:?} a peer; the coordinator {ca:?}, {:?} a node",
            node / PEERS as u32,
            ca / (PEERS as u32 + 1)
        );
    }
    Ok(())
}
