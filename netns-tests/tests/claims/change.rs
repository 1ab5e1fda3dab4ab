//! A change is in force when it is acknowledged: flows that no longer hold are cut before.
//!
//! ```text
//!   coordinator   web-1 ---- a flow that stays open ---- bank-1
//!   ==========================================================
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::{ANSWER, KEEP_OPEN, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{
    BANK, POLICY, WEB, claim, policy_with_another_port, policy_without_the_allow, wait_until_allowed, web_and_bank,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("change::a_policy_change_cuts_a_live_flow_before_it_is_acknowledged", policy_cuts),
        claim("change::a_rule_that_is_gone_cuts_the_flow_and_the_tunnel", link_cuts),
        claim("change::a_revocation_cuts_a_live_flow_and_is_acknowledged", revocation_cuts),
        claim("change::an_apply_that_does_not_compile_changes_nothing", bad_apply),
        claim("change::a_policy_that_needs_http_is_refused_at_apply", not_enforceable),
    ]
}

/// A flow to the allowed port that stays open and has carried data both ways.
fn live_flow(web: &Node, bank: &Node) -> Result<TcpStream> {
    let mut stream = web.host.connect(bank.at(8080)?, ANSWER)?;
    stream.write_all(KEEP_OPEN).context("the flow carries data")?;
    let mut answer = [0; KEEP_OPEN.len()];
    stream.read_exact(&mut answer).context("and carries it back")?;
    Ok(stream)
}

/// Whether the flow is dead: a read ends with a reset, an end, or an error other than "nothing yet".
fn is_cut(stream: &mut TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // A write provokes the answer of a peer that has forgotten the flow.
    let wrote = stream.write_all(b"y");
    let mut rest = [0; 64];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(true),
            Ok(_) if wrote.is_ok() => continue,
            Ok(_) => return Ok(true),
            Err(error) => {
                use std::io::ErrorKind;
                return Ok(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
            }
        }
    }
}

fn policy_cuts() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let mut flow = live_flow(&web, &bank)?;
    // `apply` waits for the acknowledgements; what is acknowledged must already hold.
    mesh.apply(&policy_with_another_port())?;
    ensure!(is_cut(&mut flow)?, "the flow outlived the rule that let it in");
    super::must_answer(&web, bank.at(7000)?)
}

fn link_cuts() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let mut flow = live_flow(&web, &bank)?;
    mesh.apply(&policy_without_the_allow())?;
    ensure!(is_cut(&mut flow)?, "the flow outlived the rule that linked the two");
    Ok(())
}

fn revocation_cuts() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let (web, bank) = (mesh.node("web-1", WEB)?, mesh.node("bank-1", BANK)?);
    let api = bank.at(8080)?;
    let listener = bank.host.namespace.run(|| Ok(TcpListener::bind(api)?))?;
    let mut caller = None;
    eventually("web-frontend connects", IN_FORCE, || {
        caller = web.host.connect(api, ANSWER).ok();
        Ok(caller.is_some())
    })?;
    let mut caller = caller.context("connected")?;
    let (mut service, _) = listener.accept()?;
    caller.write_all(b"x").context("the flow carries data")?;
    service.read_exact(&mut [0; 1]).context("and it arrives")?;

    let status = web.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let node = status["node"].as_str().context("status names the node")?.to_owned();
    mesh.coordinator.say(&["node", "revoke", &node, "--yes", "--wait", "30s"])?.expect(0)?;
    // Acknowledged: the service's own socket is reset, and nothing of the revoked node's comes in any more.
    ensure!(is_cut(&mut service)?, "the service's connection outlived the revocation");
    let (outcome, _) = web.host.tcp(api, b"question", Duration::from_secs(3))?;
    ensure!(outcome != Outcome::Connected, "a revoked node was let in");
    Ok(())
}

fn bad_apply() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let before = mesh.coordinator.say(&["policy", "get", "-o", "json"])?.expect(0)?.stdout;
    for broken in
        ["kind: Service\nname: bank/banking-api\nallwo: {}\n", "- not\n- a\n- document\n", "{{{", "kind: Nonsense\n"]
    {
        let refused = mesh.try_apply(broken, &[])?;
        ensure!(refused.code != Some(0), "{broken:?} was applied: {refused:#?}");
        ensure!(refused.stderr.contains("mesh.yaml"), "the file is not named: {refused:#?}");
    }
    ensure!(mesh.coordinator.say(&["policy", "get", "-o", "json"])?.expect(0)?.stdout == before, "something changed");
    super::must_answer(&web, bank.at(8080)?)
}

fn not_enforceable() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let http = POLICY
        .replace("api: { port: 8080, protocol: [tcp, udp] }", "api: { port: 8080, protocol: http }")
        .replace("    ports: [api]\n", "    ports: [api]\n    http: [{ methods: [GET] }]\n");
    let refused = mesh.try_apply(&http, &[])?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("not enforceable yet"), "{refused:#?}");
    super::must_answer(&web, bank.at(8080)?)
}
