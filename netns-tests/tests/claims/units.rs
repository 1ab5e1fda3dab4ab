//! Two units of one host are two identities: each has its own address and rules and no other's, hears its own and nothing else, and
//! is the same again after a restart.
//!
//! ```text
//!   coordinator      web-1: warren up                                        bank-1: bank/banking-api
//!                      …slice/web-….service       shop/web-frontend  9100      8080 lets shop/web-frontend in
//!                      …slice/reports-….service   shop/reports       9100      7000 lets shop/reports in
//!   ==========================================================================================
//! ```
//!
//! Making cgroups takes real root; elsewhere the claim is left out, and says so.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::agent::Agent;
use warren_netns_tests::cgroup::{Cgroup, fresh_path};
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{ANSWER_TEXT, BANK, POLICY, WEB, claim, drops, serve, text};

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("units::two_units_are_two_identities_and_stay_so_over_a_restart", two_units)]
}

const REPORTS: &str = "shop/reports";
/// What bank-1 may call at both.
const PULL: u16 = 9100;

fn policy() -> String {
    let pull = format!(
        "ports:\n  pull: {{ port: {PULL}, protocol: tcp }}\nallow:\n  bank-pulls: {{ from: [{BANK}], ports: [pull] }}\n"
    );
    let policy = POLICY
        .replace("ports: [api]\n", "ports: [api]\n  reports-read:\n    from: [shop/reports]\n    ports: [unused]\n")
        .replace(&format!("name: {WEB}\n"), &format!("name: {WEB}\n{pull}"));
    format!("{policy}---\nkind: Service\nname: {REPORTS}\n{pull}")
}

/// One of the two, with its unit running.
struct Unit {
    path: String,
    cgroup: Cgroup,
    address: IpAddr,
    /// Where it is let in at bank-1, and where it is not.
    open: SocketAddr,
    closed: SocketAddr,
}

impl Unit {
    fn program(&self, node: &Node) -> Result<Agent> {
        Agent::start(&node.host.namespace, Some(&self.cgroup), "unit")
    }
}

fn two_units() -> Result<()> {
    let number = fresh_path("");
    let number: String = number.chars().filter(char::is_ascii_digit).collect();
    let mut made = Vec::new();
    for name in ["web", "reports"] {
        let path = fresh_path(&format!("{name}-{number}.service"));
        let Some(cgroup) = Cgroup::make(&path)? else {
            writeln!(std::io::stderr(), "left out: making cgroups takes real root")?;
            return Ok(());
        };
        made.push((path, cgroup));
    }
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(&policy(), &[])?.expect(0)?;
    let token = mesh.token(WEB, &["--for", REPORTS])?;
    let mut node = Node::on(mesh.lab.host("web-1")?, WEB)?;
    let entries: Vec<_> =
        [WEB, REPORTS].iter().zip(&made).map(|(name, (path, _))| format!("{name} unit={}", last(path))).collect();
    node.configure(&format!("workloads: {}\n", serde_json::to_string(&entries)?))?;
    node.cli(&["enrol".as_ref(), "--token-file".as_ref(), token.as_os_str()])?.expect(0)?;
    node.start()?;
    let bank = mesh.node("bank-1", BANK)?;
    serve(&bank)?;

    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let address = |name: &str| {
        let all = status["instances"].as_array().into_iter().flatten();
        let mut own = all.filter(|instance| text(instance, "workload") == name);
        let address = own.next().and_then(|instance| instance["addresses"][0].as_str()?.parse().ok());
        address.with_context(|| format!("{name} has no address: {status:#}"))
    };
    let (api, unused) = (bank.at(8080)?, bank.at(7000)?);
    let mut units = Vec::new();
    for ((path, cgroup), (name, open, closed)) in made.into_iter().zip([(WEB, api, unused), (REPORTS, unused, api)]) {
        units.push(Unit { path, cgroup, address: address(name)?, open, closed });
    }
    let answer = std::str::from_utf8(ANSWER_TEXT)?;

    for (own, other) in [(0, 1), (1, 0)] {
        let (own, other) = (&units[own], &units[other]);
        let mut program = own.program(&node)?;
        // Without naming a source it is its own instance, and let in as that.
        eventually("the unit reaches its own port", IN_FORCE, || Ok(program.connect(None, own.open)? == answer))?;
        ensure!(program.connect(Some(own.address), own.open)? == answer);
        ensure!(program.connect(None, own.closed)? == "refused", "let in by the other's rule");
        // Naming the other's, it is blocked, and named.
        let before = drops(&node, "wrong-identity")?;
        let said = program.connect(Some(other.address), own.closed)?;
        ensure!(said == "refused", "as the other: {said}");
        ensure!(program.ask_udp(Some(other.address), own.closed)? == "not permitted");
        ensure!(drops(&node, "wrong-identity")? >= before + 2, "what was blocked is not counted by its name");
        // A listener on every address hears what is for its own instance, and nothing of the other's.
        program.serve((Ipv6Addr::UNSPECIFIED, PULL).into())?;
        let call = |at: &Unit, wait| bank.host.tcp((at.address, PULL).into(), b"?", wait);
        eventually("the unit is reached", IN_FORCE, || Ok(call(own, Duration::from_secs(5))?.0 == Outcome::Connected))?;
        let heard = program.heard()?;
        let (outcome, _) = call(other, Duration::from_secs(3))?;
        ensure!(outcome == Outcome::Refused, "a foreign listener: {outcome:?}");
        ensure!(program.heard()? == heard, "a foreign listener heard what was for the other");
        program.end()?;
    }

    // The unit stops, and starts again in a new cgroup of the same name.
    let Unit { path, cgroup, address, open, closed } = units.remove(0);
    cgroup.remove()?;
    let mut stranger = Agent::start(&node.host.namespace, None, "stranger")?;
    ensure!(stranger.connect(Some(address), open)? == "refused", "a stopped unit's address is open to others");
    let cgroup = Cgroup::make(&path)?.context("it could be made before")?;
    let unit = Unit { path, cgroup, address, open, closed };
    let mut program = unit.program(&node)?;
    eventually("the unit is who it was", IN_FORCE, || Ok(program.connect(None, unit.open)? == answer))?;
    ensure!(program.connect(None, unit.closed)? == "refused", "let in by the other's rule");
    ensure!(stranger.connect(Some(unit.address), unit.open)? == "refused", "its address is open to others");
    Ok(())
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
