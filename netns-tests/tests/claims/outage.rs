//! The coordinator away, restarted, killed; the node restarted without it; the store damaged.
//!
//! ```text
//!   coordinator (stops, is killed)   web-1   bank-1
//!   ================================================
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::Mesh;

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
    // A change made after the restart reaches both nodes.
    mesh.apply(&super::policy_with_another_port())?;
    must_answer(&web, bank.at(7000)?)
}

/// How many times the coordinator is killed. Each cycle is a start, writes, and SIGKILL at a random moment.
const CYCLES: u32 = 200;

fn killed_during_writes() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut acknowledged = Vec::new();
    for cycle in 0..CYCLES {
        // Writers run while the coordinator dies under them.
        let pause = Duration::from_millis(u64::from(cycle * 7 % 40));
        let made = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut made = Vec::new();
                while let Ok(answer) = mesh.coordinator.say(&["token", "create", "--for", WEB, "-o", "json"]) {
                    if answer.code != Some(0) {
                        break;
                    }
                    made.push(answer.json()?["id"].as_str().unwrap_or_default().to_owned());
                }
                anyhow::Ok(made)
            });
            std::thread::sleep(pause);
            mesh.coordinator.signal_kill()?;
            writer.join().expect("no panic")
        })?;
        acknowledged.extend(made);
        mesh.coordinator.reap()?;
        mesh.coordinator.start()?;
    }
    let listed = mesh.coordinator.say(&["token", "list", "-o", "json"])?.expect(0)?.stdout;
    for id in &acknowledged {
        ensure!(listed.contains(id.as_str()), "token {id} was acknowledged and is lost");
    }
    ensure!(!acknowledged.is_empty(), "no write was acknowledged in {CYCLES} cycles: this proves nothing");
    mesh.coordinator.say(&["audit", "verify"])?.expect(0)?;
    Ok(())
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
