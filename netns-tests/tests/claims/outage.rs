//! The coordinator away, restarted, killed; the node restarted without it; the store damaged.
//!
//! ```text
//!   coordinator (stops, is killed)   web-1   bank-1
//!   ================================================
//! ```

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh};
use warren_netns_tests::processes::eventually;

use super::{POLICY, WEB, claim, must_answer, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("outage::a_node_starts_and_talks_with_the_coordinator_away", node_restart),
        claim("outage::a_restarted_coordinator_finds_its_nodes_again", coordinator_restart),
        claim(
            "outage::nothing_acknowledged_is_lost_when_the_coordinator_is_killed_during_writes",
            killed_during_writes,
        ),
        claim("outage::a_flipped_bit_in_the_store_is_detected", flipped_bit),
    ]
}

fn node_restart() -> Result<()> {
    let (mut mesh, mut web, mut bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    mesh.coordinator.stop()?;
    must_answer(&web, bank.at(8080)?)?;
    web.stop()?;
    bank.kill()?;
    bank.start()?;
    web.start()?;
    wait_until_allowed(&web, &bank)?;
    // What was denied is still denied: the last verified state is in force, not an open door.
    let (outcome, _) = web.host.tcp(bank.at(9000)?, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    Ok(())
}

fn coordinator_restart() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    mesh.coordinator.stop()?;
    mesh.coordinator.start()?;
    // A change made after the restart reaches both nodes, those that were not back yet when it was made included.
    mesh.apply(&super::policy_with_another_port())?;
    let moved = bank.at(7000)?;
    eventually("web-frontend reaches the port that the new policy opens", IN_FORCE, || {
        let (outcome, answer) = web.host.tcp(moved, b"question", ANSWER)?;
        Ok(outcome == Outcome::Connected && answer == super::ANSWER_TEXT)
    })
}

/// How many times the coordinator is killed: hundreds, so that a kill falls into every phase of a commit.
const CYCLES: u32 = 200;

/// Administrators who write at once: several commits are under way when the coordinator dies.
const WRITERS: usize = 3;

fn killed_during_writes() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut acknowledged = BTreeSet::new();
    for cycle in 0..CYCLES {
        let made = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while let Some(id) = create_token(&mesh) {
                        made.lock().expect("no panic").push(id);
                    }
                });
            }
            // At least so many writes, then a moment that differs from cycle to cycle.
            let enough = (cycle % 3) as usize;
            let waited =
                eventually("writes are acknowledged", IN_FORCE, || Ok(made.lock().expect("no panic").len() >= enough));
            std::thread::sleep(Duration::from_millis(u64::from(cycle * 7 % 40)));
            mesh.coordinator.signal_kill()?;
            waited
        })?;
        acknowledged.extend(made.into_inner().expect("no panic"));
        mesh.coordinator.reap()?;
        mesh.coordinator.start()?;
    }
    let mut listed = BTreeSet::new();
    let mut page = mesh.coordinator.say(&["token", "list", "-o", "json"])?.expect(0)?.json()?;
    for item in page["items"].as_array_mut().context("a list")?.drain(..) {
        listed.extend(item["id"].as_str().map(str::to_owned));
    }
    let lost: Vec<_> = acknowledged.difference(&listed).collect();
    ensure!(lost.is_empty(), "{} of {} acknowledged tokens are lost: {lost:?}", lost.len(), acknowledged.len());
    ensure!(acknowledged.len() > 100, "only {} writes were acknowledged: this proves little", acknowledged.len());
    mesh.coordinator.say(&["audit", "verify"])?.expect(0)?;
    Ok(())
}

/// The id of a new token, once the coordinator has acknowledged it.
fn create_token(mesh: &Mesh) -> Option<String> {
    let answer = mesh.coordinator.say(&["token", "create", "--for", WEB, "-o", "json"]).ok()?;
    let id = answer.expect(0).ok()?.json().ok()?["id"].as_str()?.to_owned();
    Some(id)
}

fn flipped_bit() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    mesh.coordinator.stop()?;
    let log = mesh.coordinator.store_log();
    let good = std::fs::read(&log)?;
    // In the middle of what is written: sled itself takes such damage for a torn tail.
    let written: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let at = written[written.len() / 2];
    let mut bad = good.clone();
    bad[at] ^= 0x10;
    std::fs::write(&log, &bad)?;
    let told = match mesh.coordinator.start() {
        Ok(()) => {
            // Harmless damage is possible only where the state is whole: then everything is still there.
            mesh.coordinator.say(&["policy", "get"])?.expect(0)?;
            mesh.coordinator.say(&["audit", "verify"])?.expect(0)?;
            return Ok(());
        }
        Err(error) => format!("{error:#}"),
    };
    ensure!(told.contains("store"), "the refusal does not name the store: {told}");
    Ok(())
}
