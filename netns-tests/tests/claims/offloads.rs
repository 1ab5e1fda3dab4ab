//! An offload is lost while a stream runs: somebody switches it off at the node's own device. The stream goes on, and the
//! node names what it does without.
//!
//! ```text
//!   coordinator   web-1   <---- a stream ----   bank-1, whose TUN device stops giving super-packets, then gives them again
//!   ======================================================================================================================
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::bench::ethtool;
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::path_mtu::{CHUNK, Stream};
use super::{BANK, POLICY, WEB, claim, text};

/// The TUN device's name where configuration says nothing.
const DEVICE: &str = "warren0";
/// Everything that Linux calls TCP segmentation.
const TSO: [&str; 4] =
    ["tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation"];
const WHILE: Duration = Duration::from_secs(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("offloads::one_that_is_switched_off_at_the_device_is_named_and_a_running_stream_goes_on", switched_off)]
}

fn tso(node: &Node) -> Result<Value> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let all = status["offloads"].as_array().with_context(|| format!("no offloads: {status:#}"))?;
    all.iter().find(|offload| offload["name"] == "tso").cloned().context("tso")
}

fn switched_off() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let (web, bank) = (mesh.node("web-1", WEB)?, mesh.node("bank-1", BANK)?);
    if text(&tso(&bank)?, "detail").starts_with("off by tunnel.offload") {
        // A run of all claims without offloads: there is nothing to lose.
        return Ok(());
    }
    let mut stream = Stream::begin(&web, &bank)?;
    ensure!(stream.read_for(WHILE)? > CHUNK);
    let switch = |on: bool| {
        let wanted = TSO.map(|name| (name, on));
        bank.host.namespace.run(|| ethtool::set_features(DEVICE, &wanted))
    };
    let before = bank.host.namespace.run(|| ethtool::active_features(DEVICE))?;
    ensure!(before.iter().any(|name| name == "tx-tcp-segmentation"), "{before:?}");

    switch(false)?;
    let after = bank.host.namespace.run(|| ethtool::active_features(DEVICE))?;
    ensure!(!after.iter().any(|name| TSO.contains(&name.as_str())), "{after:?}");
    ensure!(stream.read_for(WHILE)? > CHUNK, "the stream goes on, packet by packet");
    eventually("bank-1 says that the offload is off", IN_FORCE, || Ok(tso(&bank)?["on"] == false))?;
    let state = tso(&bank)?;
    ensure!(text(&state, "detail").contains("another program switched it off"), "{state}");
    ensure!(text(&state, "detail").contains("found switched off once"), "{state}");
    ensure!(text(&state, "fallback").contains("cuts TCP into packets"), "{state}");
    ensure!(stream.read_for(WHILE)? > CHUNK);

    switch(true)?;
    eventually("bank-1 says that it is on again", IN_FORCE, || Ok(tso(&bank)?["on"] == true))?;
    ensure!(stream.read_for(WHILE)? > CHUNK);
    ensure!(text(&tso(&bank)?, "detail") == "found switched off once", "{}", tso(&bank)?);
    Ok(())
}
