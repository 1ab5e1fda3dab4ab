//! A wall clock that is set: what had ended stays ended, a clock that runs ahead ends the node closed, and both are named.
//!
//! ```text
//!   coordinator   web-1   bank-1      each with a wall clock of its own (libfaketime)
//!   ================================
//! ```

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::attacker::{self, Key};
use warren_netns_tests::fake_time::{self, FakeClock};
use warren_netns_tests::host::{ANSWER, KEEP_OPEN, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{BANK, POLICY, WEB, absent, claim, drops, serve, wait_until_allowed};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("clocks::a_clock_set_back_revives_no_certificate_that_had_ended", set_back),
        claim("clocks::a_clock_set_ahead_ends_the_nodes_closed_and_is_named", set_ahead),
        claim("clocks::a_node_whose_instance_was_forgotten_while_it_was_away_gets_a_new_one", away_for_days),
        claim("clocks::a_coordinator_whose_clock_is_set_back_revives_no_token", coordinator_set_back),
    ]
}

const SILENCE: Duration = Duration::from_secs(2);

/// Certificates of the shortest life that leaves room between their halves and their ends, and a heartbeat every second.
const OPTIONS: [&str; 4] = ["--certificate-lifetime", "20m", "--heartbeat", "1s"];
/// Past the time for renewal, before the end; what is issued then is not renewed again before the end of what was issued first.
const LATE: i64 = 1_000;

/// Longer than the tunnel's certificate and the day for which the coordinator remembers an instance without one; shorter than
/// the node's certificate.
const DAYS_AWAY: i64 = 3 * 24 * 3600;

struct Clocked {
    mesh: Mesh,
    web: Node,
    bank: Node,
    central: FakeClock,
    webs: FakeClock,
    banks: FakeClock,
}

/// Coordinator, web-1 and bank-1, each with a clock of its own; the two talk.
fn clocked(library: &Path, options: &[&str]) -> Result<Clocked> {
    let mut mesh = Mesh::new(options)?;
    let directory = mesh.lab.directory().to_owned();
    let clock = |name: &str| FakeClock::new(library.to_owned(), directory.join(format!("{name}.clock")));
    let (central, webs, banks) = (clock("coordinator")?, clock("web-1")?, clock("bank-1")?);
    mesh.coordinator.stop()?;
    mesh.coordinator.set_environment(central.environment());
    mesh.coordinator.start()?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut web = mesh.enrol("web-1", WEB)?;
    web.set_environment(webs.environment());
    web.start()?;
    let mut bank = mesh.enrol("bank-1", BANK)?;
    bank.set_environment(banks.environment());
    bank.start()?;
    serve(&bank)?;
    wait_until_allowed(&web, &bank)?;
    Ok(Clocked { mesh, web, bank, central, webs, banks })
}

fn library() -> Result<Option<std::path::PathBuf>> {
    let found = fake_time::library();
    if found.is_none() {
        absent("libfaketime")?;
    }
    Ok(found)
}

/// What `node` refuses, by reason.
fn refuses(node: &Node, reason: &str) -> Result<bool> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["refused"].as_array().is_some_and(|all| all.iter().any(|refused| refused["reason"] == reason)))
}

fn log_names(node: &mut Node, text: &str) -> Result<()> {
    let log = node.process()?.log_path().to_owned();
    eventually(&format!("the log says: {text}"), IN_FORCE, || Ok(std::fs::read_to_string(&log)?.contains(text)))
        .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())
}

/// When the certificate of the only peer ends, in seconds since 1970.
fn valid_until(node: &Node) -> Result<i64> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let text = status["peers"][0]["validUntil"].as_str().with_context(|| format!("no peer: {status:#}"))?;
    let format = &time::format_description::well_known::Rfc3339;
    Ok(time::OffsetDateTime::parse(text, format)?.unix_timestamp())
}

fn set_back() -> Result<()> {
    let Some(library) = library()? else { return Ok(()) };
    let Clocked { mut mesh, mut web, mut bank, central, banks, .. } = clocked(&library, &OPTIONS)?;
    web.stop()?;
    // bank-1 renews while web-1 is away.
    bank.stop()?;
    central.set(LATE)?;
    banks.set(LATE)?;
    bank.start()?;
    log_names(&mut bank, "tunnel certificate issued")?;
    // The last that the coordinator signs is a moment before web-1's certificate ends. bank-1 is told nothing more: that the
    // record has ended it must find by itself.
    let ends = valid_until(&bank)?;
    let shortly_before = ends - i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())? - 15;
    central.set(shortly_before)?;
    banks.set(shortly_before)?;
    eventually("bank-1 hears the coordinator's later time", IN_FORCE, || {
        let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        Ok(status["mesh"]["ageSeconds"].as_u64().is_some_and(|age| age < 60))
    })?;
    mesh.coordinator.stop()?;

    // Back to the time at which web-1's certificate was good. web-1 itself has never known another.
    banks.set(0)?;
    log_names(&mut bank, "the wall clock was set")?;
    eventually("web-1's certificate has ended", IN_FORCE, || refuses(&bank, "certificate-ended"))
        .with_context(|| format!("{:?}", bank.say(&["status"])))?;
    web.start()?;
    stays_out(&web, &bank)?;

    // A restart forgets nothing: the floor lies on the disk.
    bank.stop()?;
    bank.start()?;
    log_names(&mut bank, "the wall clock is behind what was verified before")?;
    let checked = bank.say(&["check", "clock", "-o", "json"])?.expect(3)?.json()?;
    ensure!(checked["items"][0]["id"] == "clock.floor" && checked["items"][0]["state"] == "fail", "{checked:#}");
    stays_out(&web, &bank)
}

fn stays_out(web: &Node, bank: &Node) -> Result<()> {
    ensure!(refuses(bank, "certificate-ended")?, "bank-1 took the record back");
    let (outcome, _) = web.host.tcp(bank.at(8080)?, b"question", SILENCE)?;
    ensure!(outcome != Outcome::Connected, "web-1 was let in with a certificate that had ended");
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let responder = attacker::public_key(status["instances"][0]["tunnelKey"].as_str().context("no key in status")?)?;
    let port = u16::try_from(status["tunnelPort"].as_u64().context("no port in status")?)?;
    let before = drops(bank, "unknown-key")?;
    let key = Key::stolen(&web.state())?;
    let answer = attacker::dial(&web.host, bank.host.at(port), &key, responder, SILENCE)?;
    ensure!(answer.is_none(), "the key of an ended certificate got an answer");
    eventually("the ended key is counted", IN_FORCE, || Ok(drops(bank, "unknown-key")? > before))
}

fn away_for_days() -> Result<()> {
    let Some(library) = library()? else { return Ok(()) };
    let Clocked { mut mesh, mut web, mut bank, central, webs, banks } = clocked(&library, &OPTIONS)?;
    let before = web.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let id = before["instances"][0]["instance"].as_str().context("no instance in status")?.to_owned();
    web.stop()?;
    bank.stop()?;
    mesh.coordinator.stop()?;
    for clock in [&central, &webs, &banks] {
        clock.set(DAYS_AWAY)?;
    }
    mesh.coordinator.start()?;
    // What the coordinator does by itself a day after the instance's last certificate ended, or has done at its start.
    let forgotten = mesh.coordinator.say(&["node", "forget-instance", &id])?;
    ensure!(forgotten.code == Some(0) || forgotten.stderr.contains("no instance"), "{forgotten:?}");
    bank.start()?;
    serve(&bank)?;
    web.start()?;
    wait_until_allowed(&web, &bank)?;
    let after = web.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    ensure!(after["instances"][0]["instance"] != id.as_str(), "the forgotten instance: {after:#}");
    Ok(())
}

fn set_ahead() -> Result<()> {
    let Some(library) = library()? else { return Ok(()) };
    let Clocked { mut mesh, mut web, mut bank, webs, banks, .. } = clocked(&library, &[])?;
    let api = bank.at(8080)?;
    let mut live = web.host.connect(api, ANSWER)?;
    live.write_all(KEEP_OPEN)?;
    let mut echo = [0; 64];
    ensure!(live.read(&mut echo)? == KEEP_OPEN.len());
    // Certificates cannot be renewed meanwhile.
    mesh.coordinator.stop()?;
    let three_days = 3 * 24 * 3600;
    webs.set(three_days)?;
    banks.set(three_days)?;
    for node in [&mut web, &mut bank] {
        eventually("the peer's certificate has ended", IN_FORCE, || refuses(node, "certificate-ended"))?;
        log_names(node, "the wall clock was set")?;
        log_names(node, "certificate-ended")?;
        let checked = node.say(&["check"])?;
        ensure!(checked.code == Some(3) && checked.stdout.contains("no tunnel certificate"), "{checked:#?}");
        ensure!(node.process()?.ended()?.is_none(), "the node has ended");
    }
    let alive = live.write_all(KEEP_OPEN).and_then(|()| live.read(&mut echo));
    ensure!(!matches!(alive, Ok(1..)), "a live flow goes on over certificates that have ended");
    let (outcome, _) = web.host.tcp(api, b"question", SILENCE)?;
    ensure!(outcome != Outcome::Connected, "{outcome:?}");

    // Nobody signed that time: once the clock is right again, so is everything else.
    webs.set(0)?;
    banks.set(0)?;
    eventually(
        "the two talk again",
        IN_FORCE,
        || Ok(web.host.tcp(api, b"question", SILENCE)?.0 == Outcome::Connected),
    )?;
    mesh.coordinator.start()
}

fn coordinator_set_back() -> Result<()> {
    let Some(library) = library()? else { return Ok(()) };
    let Clocked { mut mesh, central, .. } = clocked(&library, &[])?;
    let token = mesh.token(WEB, &["--ttl", "1h"])?;
    let late = Node::on(mesh.lab.host("late")?, WEB)?;
    let refused = |when: &str| -> Result<()> {
        let answer = late.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token.as_os_str()])?;
        ensure!(answer.code != Some(0) && answer.stderr.contains("token-expired"), "{when}: {answer:#?}");
        Ok(())
    };
    central.set(2 * 3600)?;
    refused("past its lifetime")?;
    central.set(0)?;
    refused("with the clock set back")?;
    mesh.coordinator.stop()?;
    central.set(-24 * 3600)?;
    mesh.coordinator.start()?;
    let log = mesh.coordinator.process()?.log_text();
    ensure!(log.contains("the clock is behind what was seen before"), "{log}");
    refused("after a restart with the clock a day behind")
}
