//! Every claim, and what they share.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

mod administer;
mod attestation;
mod change;
mod clocks;
mod clones;
mod control;
mod enrol;
mod fairness;
mod faults;
mod figures;
mod forged;
mod guard;
mod ingress;
mod lab_itself;
mod offloads;
mod operate;
mod order;
mod outage;
mod path_mtu;
mod plain_peers;
mod private_network;
mod revocations;
mod roots;
mod rotation;
mod run;
pub(crate) mod several_instances;
mod spoofing;
mod strangers;
mod suite;
mod tutorial;
mod units;
pub(crate) mod workload_api;

/// Every claim.
pub(crate) fn all() -> Vec<Trial> {
    [
        lab_itself::trials(),
        administer::trials(),
        enrol::trials(),
        attestation::trials(),
        ingress::trials(),
        strangers::trials(),
        spoofing::trials(),
        suite::trials(),
        guard::trials(),
        change::trials(),
        clocks::trials(),
        clones::trials(),
        control::trials(),
        outage::trials(),
        path_mtu::trials(),
        plain_peers::trials(),
        faults::trials(),
        fairness::trials(),
        figures::trials(),
        forged::trials(),
        private_network::trials(),
        revocations::trials(),
        roots::trials(),
        rotation::trials(),
        offloads::trials(),
        operate::trials(),
        order::trials(),
        run::trials(),
        several_instances::trials(),
        tutorial::trials(),
        units::trials(),
        workload_api::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One claim.
pub(crate) fn claim(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// The policy most claims start from: web-frontend may use banking-api's port `api` (8080, TCP and UDP), nobody
/// its port `admin` (9000); 7000 is declared and no rule lets anybody in; lab/rogue is linked to nothing.
pub(crate) const POLICY: &str = "\
kind: Set
name: tests
owns: [mesh, bank, shop, lab]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: bank
---
kind: Namespace
name: shop
---
kind: Namespace
name: lab
---
kind: Service
name: shop/web-frontend
---
kind: Service
name: lab/rogue
---
kind: Service
name: bank/banking-api
ports:
  api: { port: 8080, protocol: [tcp, udp] }
  admin: { port: 9000, protocol: [tcp, udp] }
  unused: { port: 7000, protocol: [tcp, udp] }
allow:
  desk-reads:
    from: [shop/web-frontend]
    ports: [api]
deny:
  no-admin:
    from: [any]
    ports: [admin]
";

/// [`POLICY`] without the rule that lets web-frontend in, which leaves the two linked by nothing.
pub(crate) fn policy_without_the_allow() -> String {
    let begin = POLICY.find("allow:").expect("the policy has an allow");
    let end = POLICY.find("deny:").expect("the policy has a deny");
    format!("{}{}", &POLICY[..begin], &POLICY[end..])
}

/// [`POLICY`] with the allow moved from port `api` to port `unused`: still linked, but not there.
pub(crate) fn policy_with_another_port() -> String {
    POLICY.replace("ports: [api]", "ports: [unused]")
}

pub(crate) const WEB: &str = "shop/web-frontend";
pub(crate) const BANK: &str = "bank/banking-api";
pub(crate) const ROGUE: &str = "lab/rogue";

/// What the services of the tests answer.
pub(crate) const ANSWER_TEXT: &[u8] = b"the-answer-in-clear-text";

/// A mesh with web-1 and bank-1, the policy in force, and services on bank-1's overlay addresses at 8080, 9000
/// and 7000, TCP and UDP.
pub(crate) fn web_and_bank(options: &[&str]) -> Result<(Mesh, Node, Node)> {
    let mut mesh = Mesh::new(options)?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let web = mesh.node("web-1", WEB)?;
    let bank = mesh.node("bank-1", BANK)?;
    serve(&bank)?;
    Ok((mesh, web, bank))
}

/// The services on the node's overlay addresses.
pub(crate) fn serve(bank: &Node) -> Result<()> {
    for address in bank.addresses()? {
        for port in [8080, 9000, 7000] {
            bank.host.serve_tcp((address, port).into(), ANSWER_TEXT)?;
            bank.host.serve_udp((address, port).into())?;
        }
    }
    Ok(())
}

/// Waits until web-frontend gets its answer at banking-api's port.
pub(crate) fn wait_until_allowed(web: &Node, bank: &Node) -> Result<()> {
    let api = bank.at(8080)?;
    eventually("web-frontend reaches banking-api at 8080", IN_FORCE, || {
        let (outcome, answer) = web.host.tcp(api, b"question", Duration::from_secs(5))?;
        Ok(outcome == Outcome::Connected && answer == ANSWER_TEXT)
    })
}

/// One TCP exchange that must succeed.
pub(crate) fn must_answer(from: &Node, to: std::net::SocketAddr) -> Result<()> {
    let (outcome, answer) = from.host.tcp(to, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Connected && answer == ANSWER_TEXT, "{to}: {outcome:?}, {} bytes", answer.len());
    Ok(())
}

/// Something that not every machine has is not there: the claim is left out, and says so. Where `WARREN_TEST_ALL` is set, that is
/// a failure.
pub(crate) fn absent(what: &str) -> Result<()> {
    ensure!(std::env::var_os("WARREN_TEST_ALL").is_none(), "{what} not found, and WARREN_TEST_ALL is set");
    let _ = writeln!(std::io::stderr(), "skipped: {what} not found");
    Ok(())
}

/// The number of drops that a node has counted under a reason.
pub(crate) fn drops(node: &Node, reason: &str) -> Result<u64> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["drops"][reason].as_u64().unwrap_or_default())
}

/// A field of a JSON object as text, empty when it is not there.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
