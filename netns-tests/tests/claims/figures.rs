//! What `warren status` and `warren top` say is what happened: so many packets sent are so many packets shown, a refusal
//! stands under its reason, and path, suite and offloads are named.
//!
//! ```text
//!   coordinator   web-1                bank-1
//!                 shop/web-frontend    bank/banking-api
//!                        |  8080 allowed    |  gso switched off after a restart
//!                        |  9000 denied     |
//!   =====================================================
//! ```

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::Node;

use super::{BANK, WEB, claim, text, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("figures::so_many_packets_sent_are_so_many_shown_at_both_ends", so_many),
        claim("figures::a_refusal_stands_under_its_reason_for_the_node_and_the_peer", refusals),
        claim("figures::path_suite_and_offloads_are_named_and_a_fallback_says_what_is_done_instead", named),
        claim("figures::top_measures_the_interval_it_names_and_prints_plainly_without_a_terminal", top),
    ]
}

const PAYLOAD: usize = 1000;
/// IPv6 and UDP headers around it.
const PACKET: u64 = 40 + 8 + PAYLOAD as u64;

fn status(node: &Node) -> Result<Value> {
    node.say(&["status", "-o", "json"])?.expect(0)?.json()
}

fn peer<'a>(status: &'a Value, workload: &str) -> Result<&'a Value> {
    let mut peers = status["peers"].as_array().into_iter().flatten();
    peers.find(|peer| text(peer, "workload") == workload).with_context(|| format!("no {workload} in {status:#}"))
}

/// Exchanges datagrams, each of which is answered with its own bytes.
fn exchange(web: &Node, bank: &Node, count: u64) -> Result<()> {
    let to = bank.at(8080)?;
    for number in 0..count {
        let (outcome, answer) = web.host.udp(to, &[7; PAYLOAD], ANSWER)?;
        ensure!(outcome == Outcome::Connected && answer.len() == PAYLOAD, "datagram {number}: {outcome:?}");
    }
    Ok(())
}

fn so_many() -> Result<()> {
    const COUNT: u64 = 50;
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let looks = |node: &Node| -> Result<[Value; 2]> {
        let status = status(node)?;
        let other = if node.workload == WEB { BANK } else { WEB };
        Ok([status["traffic"].clone(), peer(&status, other)?["traffic"].clone()])
    };
    let (web_before, bank_before) = (settled(|| looks(&web))?, settled(|| looks(&bank))?);
    exchange(&web, &bank, COUNT)?;
    for (name, before, after) in [("web-1", web_before, looks(&web)?), ("bank-1", bank_before, looks(&bank)?)] {
        for (place, before, after) in [("node", &before[0], &after[0]), ("peer", &before[1], &after[1])] {
            let more = |field: &str| after[field].as_u64().zip(before[field].as_u64()).map(|(now, then)| now - then);
            // Every datagram comes back, so both directions of both ends show the same.
            let shown = ["packetsIn", "packetsOut", "bytesIn", "bytesOut"].map(more);
            let sent = [COUNT, COUNT, COUNT * PACKET, COUNT * PACKET].map(Some);
            ensure!(shown == sent, "{name}, {place}: {shown:?} where {sent:?} were exchanged");
        }
    }
    Ok(())
}

/// What is read twice alike: the connection that opened the tunnel has ended.
fn settled<T: PartialEq>(read: impl Fn() -> Result<T>) -> Result<T> {
    let mut before = read()?;
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = read()?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    bail!("the counters do not come to rest")
}

fn refusals() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let count = |node: &Node, other: &str| -> Result<[u64; 2]> {
        let status = status(node)?;
        let of = |value: &Value| value["drops"]["denied-by-rule"].as_u64().unwrap_or_default();
        Ok([of(&status), of(peer(&status, other)?)])
    };
    ensure!(count(&bank, WEB)? == [0, 0]);
    let (outcome, _) = web.host.tcp(bank.at(9000)?, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    let counted = count(&bank, WEB)?;
    ensure!(counted[0] >= 1 && counted[0] == counted[1], "node and peer: {counted:?}");
    let shown = bank.say(&["status", "-o", "wide"])?.expect(0)?.stdout;
    let lines = shown.lines().filter(|line| line.contains("denied-by-rule")).count();
    ensure!(lines == 2, "the reason stands at the peer and in the node's table:\n{shown}");
    let top = bank.say(&["top", "--once", "-i", "100ms"])?.expect(0)?.stdout;
    ensure!(top.contains("denied-by-rule"), "{top}");
    Ok(())
}

fn named() -> Result<()> {
    let (_mesh, web, mut bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let seen = status(&bank)?;
    let web_1 = peer(&seen, WEB)?;
    ensure!(text(web_1, "endpoint") == web.host.at(51820).to_string(), "{web_1:#}");
    ensure!(["aes-256-gcm", "chacha20-poly1305"].contains(&text(web_1, "suite")), "{web_1:#}");
    ensure!(web_1["pathMtu"] == seen["tunnelMtu"] && web_1["roamed"].is_null(), "{web_1:#}");
    let shown = bank.say(&["status"])?.expect(0)?.stdout;
    for part in [text(web_1, "suite"), text(web_1, "endpoint"), "\noffloads:  ", "\ntraffic:   "] {
        ensure!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    bank.stop()?;
    bank.configure("tunnel:\n  offload:\n    gso: false\n")?;
    bank.start()?;
    let seen = status(&bank)?;
    let gso = seen["offloads"].as_array().into_iter().flatten().find(|offload| text(offload, "name") == "gso");
    let gso = gso.context("gso is not listed")?;
    ensure!(gso["on"] == false && text(gso, "detail") == "off by tunnel.offload.gso", "{gso:#}");
    ensure!(!text(gso, "fallback").is_empty(), "{gso:#}");
    let line = format!("offload gso: off by tunnel.offload.gso; instead {}", text(gso, "fallback"));
    let shown = bank.say(&["status"])?.expect(0)?.stdout;
    ensure!(shown.contains(&line), "{line:?} is not in\n{shown}");
    let top = bank.say(&["top", "--once", "-i", "100ms"])?.expect(0)?.stdout;
    ensure!(top.contains("gso off by tunnel.offload.gso"), "{top}");
    Ok(())
}

fn top() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let before = status(&bank)?["traffic"]["bytesIn"].as_u64().unwrap_or_default();
    let measured = std::thread::scope(|scope| -> Result<Value> {
        let measuring = scope.spawn(|| bank.say(&["top", "--once", "-i", "1s", "-o", "json"])?.expect(0)?.json());
        while !measuring.is_finished() {
            exchange(&web, &bank, 5)?;
        }
        measuring.join().map_err(|_| anyhow::anyhow!("top crashed"))?
    })?;
    let after = status(&bank)?["traffic"]["bytesIn"].as_u64().unwrap_or_default();
    ensure!(text(&measured, "kind") == "Top", "{measured:#}");
    let figure = |value: &Value| value.as_u64().unwrap_or_default();
    let rates = &measured["rates"];
    let bytes = figure(&rates["bitsIn"]) * figure(&rates["overMilliseconds"]) / 8000;
    ensure!(bytes > 0 && bytes <= after - before, "{bytes} of {} bytes: {measured:#}", after - before);
    let total = figure(&measured["traffic"]["bytesIn"]);
    ensure!((before..=after).contains(&total), "{before} <= {total} <= {after}");
    ensure!(rates["bitsIn"] == peer(&measured, WEB)?["rates"]["bitsIn"], "the only peer has all of it: {measured:#}");
    let plain = bank.say(&["top", "--once", "-i", "100ms", "--color", "always"])?.expect(0)?;
    ensure!(!plain.stdout.contains('\x1b') && plain.stdout.contains(WEB), "{plain:?}");
    Ok(())
}
