//! `cargo demo`: a whole mesh on this machine, with a rogue and an outsider in it.
//!
//! ```text
//!   coordinator      web-1               bank-1             rogue-1           outsider
//!                    shop/web-frontend   bank/banking-api   lab/rogue         (not enrolled)
//!   =====================================================================================  the wire
//! ```
//!
//! It prints what was allowed, what was denied and by which rule, and stays up until Ctrl-C. With `--check`
//! it asserts all that and ends.

#![allow(clippy::print_stdout, reason = "the demo talks to a person")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_netns_tests::attacker::{self, Key};
use warren_netns_tests::host::{ANSWER, Host, Outcome};
use warren_netns_tests::mesh::{DOMAIN, IN_FORCE, Mesh, Node};
use warren_netns_tests::namespace;
use warren_netns_tests::processes::eventually;

const POLICY: &str = include_str!("demo-policy.yaml");

/// What the web service answers; no frame on the wire may hold it.
const MARKER: &[u8] = b"balance-of-account-42-is-1000";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 29\r\nconnection: close\r\n\r\nbalance-of-account-42-is-1000";
const REQUEST: &[u8] = b"GET /v1/accounts/42 HTTP/1.1\r\nhost: banking-api\r\nconnection: close\r\n\r\n";

/// How long a stranger's dial waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(700);

const USAGE: &str = "\
A whole mesh on this machine: a coordinator, two services that may talk, a rogue and an outsider.

Usage: cargo demo [-- --check]

  --check   assert everything that is shown, then end (exit 0 when all holds)
  --help    this text

Everything runs in network namespaces of its own; nothing on the machine is changed. Without root it needs
leave to open /dev/net/tun and to make user namespaces, and says so if it lacks one.";

fn main() -> ExitCode {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprint_line(&format!("demo: unknown argument {other:?}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match demo(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint_line(&format!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn eprint_line(text: &str) {
    use std::io::Write;
    // A closed stderr cannot be told anything.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One line for each step: its name, how it went, how long it took.
fn step<T>(number: u32, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    use std::io::Write;
    print!("  [{number}/5] {what:.<58} ");
    std::io::stdout().flush()?;
    let begun = Instant::now();
    let result = work();
    match &result {
        Ok(_) => println!("ok  {:>5.1} s", begun.elapsed().as_secs_f64()),
        Err(_) => println!("failed"),
    }
    result
}

fn demo(check: bool) -> Result<()> {
    namespace::enter()?;
    println!("warren: a mesh of four hosts on this machine, in network namespaces of its own\n");
    let mut mesh = step(1, "coordinator of bank.example ", || Mesh::new(&[]))?;
    let capture = mesh.lab.capture()?;
    let revision = step(2, "policy: checked, tested, applied ", || {
        let answer = mesh.try_apply(POLICY, &["-o", "json"])?.expect(0)?.json()?;
        Ok(answer["revision"].as_u64().unwrap_or_default())
    })?;
    let (web, bank, rogue) = step(3, "enrol web-1, bank-1, rogue-1 with one-time join tokens ", || {
        Ok((
            mesh.node("web-1", "shop/web-frontend")?,
            mesh.node("bank-1", "bank/banking-api")?,
            mesh.node("rogue-1", "lab/rogue")?,
        ))
    })?;
    let outsider = mesh.lab.host("outsider")?;
    step(4, "services listen on bank-1's overlay address ", || serve(&bank))?;
    let shown = step(5, "proof ", || prove(&web, &bank, &rogue, &outsider))?;
    let (frames, clear) =
        (capture.frames().len(), capture.frames_with(MARKER) + capture.frames_with(b"/v1/accounts/42"));

    println!("\n  policy revision {revision}; every line below was observed just now\n");
    for line in &shown {
        println!("  {:<9} {:<17} -> {:<29} {}", line.verdict, line.from, line.to, line.what);
    }
    println!("  {:<9} capture of the wire: {clear} of {frames} frames hold a byte of the HTTP exchange\n", "HIDDEN");
    ensure!(frames > 20, "the capture saw only {frames} frames: it cannot prove anything");
    ensure!(clear == 0, "{clear} frames hold plaintext");
    if check {
        println!("all of it holds");
        return Ok(());
    }
    invite(&mesh, &web, &bank);
    wait_for_interrupt()?;
    println!("\nended; nothing is left behind");
    Ok(())
}

struct Line {
    verdict: &'static str,
    from: &'static str,
    to: &'static str,
    what: String,
}

fn serve(bank: &Node) -> Result<()> {
    for port in [8080, 9000] {
        for address in bank.addresses()? {
            bank.host.serve_tcp((address, port).into(), RESPONSE)?;
        }
    }
    Ok(())
}

fn prove(web: &Node, bank: &Node, rogue: &Node, outsider: &Host) -> Result<Vec<Line>> {
    let (api, admin) = (bank.at(8080)?, bank.at(9000)?);
    let allowed = allowed(web, bank, api)?;
    let denied = denied(web, bank, admin)?;
    let no_grant = no_grant(rogue, api)?;
    let (stranger, tampered) = silence(web, bank, rogue, outsider)?;
    Ok(vec![allowed, denied, no_grant, tampered, stranger])
}

fn allowed(web: &Node, bank: &Node, api: SocketAddr) -> Result<Line> {
    // The policy and the peers reach both nodes within moments of enrolment.
    eventually("web-frontend reaches banking-api", IN_FORCE, || {
        let (outcome, answer) = web.host.tcp(api, REQUEST, ANSWER)?;
        Ok(outcome == Outcome::Connected && answer == RESPONSE)
    })?;
    let flow = bank.wait_for_flow("allowed", "bank-1 records the flow", |flow| {
        flow["source"] == "shop/web-frontend" && flow["port"] == 8080
    })?;
    let rule = flow["rule"].as_str().context("an allowed flow names its rule")?;
    ensure!(rule.contains("desk-reads"), "let in by {rule}, not by desk-reads");
    Ok(Line {
        verdict: "ALLOWED",
        from: "shop/web-frontend",
        to: "bank/banking-api tcp 8080",
        what: format!("200, rule {rule} ({})", place(&flow)),
    })
}

fn denied(web: &Node, bank: &Node, admin: SocketAddr) -> Result<Line> {
    let (outcome, _) = web.host.tcp(admin, REQUEST, ANSWER)?;
    ensure!(outcome == Outcome::Refused, "port 9000 must answer with a reset, was: {outcome:?}");
    let flow = bank.wait_for_flow("denied", "bank-1 records the denial", |flow| flow["port"] == 9000)?;
    let rule = flow["rule"].as_str().unwrap_or("no-rule");
    ensure!(rule.contains("no-admin"), "refused by {rule}, not by no-admin");
    Ok(Line {
        verdict: "DENIED",
        from: "shop/web-frontend",
        to: "bank/banking-api tcp 9000",
        what: format!("reset at bank-1's ingress, rule {rule} ({})", place(&flow)),
    })
}

fn no_grant(rogue: &Node, api: SocketAddr) -> Result<Line> {
    let (outcome, _) = rogue.host.tcp(api, REQUEST, ANSWER)?;
    ensure!(matches!(outcome, Outcome::Refused | Outcome::Unreachable), "rogue must be refused at once: {outcome:?}");
    rogue.wait_for_flow("denied", "rogue-1 records its own refusal", |flow| flow["reason"] == "no-grant")?;
    Ok(Line {
        verdict: "REFUSED",
        from: "lab/rogue",
        to: "bank/banking-api tcp 8080",
        what: "by rogue-1's own node, at once and offline: no-grant".to_owned(),
    })
}

fn silence(web: &Node, bank: &Node, rogue: &Node, outsider: &Host) -> Result<(Line, Line)> {
    // The attackers are given what a mesh never tells them: where bank-1 listens and its public key.
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let text = status["instances"][0]["tunnelKey"].as_str().with_context(|| format!("no tunnel key in {status}"))?;
    let responder = attacker::public_key(text)?;
    let data_port = u16::try_from(status["tunnelPort"].as_u64().context("no tunnel port in status")?)?;
    let to = bank.host.at(data_port);
    let before = unknown_keys(bank)?;
    let (tampered, stranger) = (Key::stolen(&rogue.state())?, Key::unknown());
    for (name, from, key) in [("rogue-1", &rogue.host, &tampered), ("outsider", outsider, &stranger)] {
        if let Some(answer) = attacker::dial(from, to, key, responder, SILENCE)? {
            bail!("{name}'s handshake was answered with {} bytes", answer.len());
        }
    }
    // The same dial with a key that is let in does get an answer: silence is a decision, not a dead port.
    let admitted = attacker::dial(&web.host, to, &Key::stolen(&web.state())?, responder, ANSWER)?;
    ensure!(admitted.is_some(), "a handshake with an admitted key must be answered");
    let mut counted = 0;
    eventually("bank-1 counts the unknown keys", IN_FORCE, || {
        counted = unknown_keys(bank)?.saturating_sub(before);
        Ok(counted >= 2)
    })?;
    let line = |verdict, from, what: String| Line { verdict, from, to: "bank-1 udp, handshakes", what };
    Ok((
        line("SILENCE", "outsider", "not enrolled: no byte came back".to_owned()),
        line(
            "SILENCE",
            "tampered rogue-1",
            format!("dials past its own node: no byte; {counted} counted as unknown-key"),
        ),
    ))
}

fn unknown_keys(node: &Node) -> Result<u64> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["drops"]["unknown-key"].as_u64().unwrap_or_default())
}

fn place(flow: &serde_json::Value) -> String {
    let file = flow["file"].as_str().unwrap_or("?");
    let name = Path::new(file).file_name().map_or_else(|| file.to_owned(), |name| name.to_string_lossy().into_owned());
    format!("{name}:{}", flow["line"])
}

fn invite(mesh: &Mesh, web: &Node, bank: &Node) {
    let program =
        warren_netns_tests::processes::binary("warren").map_or_else(|_| "warren".into(), |p| p.display().to_string());
    let of = |node: &Node| format!("{program} --config {}", node.config().display());
    println!("  Try, from another terminal:");
    println!("    {} flows --verdict denied", of(bank));
    println!("    {} status", of(web));
    println!("    {} why shop/web-frontend bank/banking-api:9000", of(bank));
    println!("  Everything is in {}; the trust domain is {DOMAIN}.", mesh.lab.directory().display());
    println!("  Ctrl-C ends it.");
}

fn wait_for_interrupt() -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            ended = tokio::signal::ctrl_c() => ended?,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}
