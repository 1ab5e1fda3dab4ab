//! What an operator does to a running node without stopping it: reads its configuration again, and takes a report to send
//! to somebody else.
//!
//! ```text
//!   coordinator   web-1                bank-1
//!                 shop/web-frontend    bank/banking-api, 9000 denied
//!   =====================================================
//! ```

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{BANK, POLICY, WEB, claim, must_answer, text, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("operate::reload_changes_what_it_can_names_the_rest_and_a_wrong_file_changes_nothing", reload),
        claim("operate::metrics_are_read_through_the_tunnel_by_whom_policy_lets_in", metrics),
        claim("operate::a_report_holds_the_refusals_and_no_secret", report),
    ]
}

fn reload() -> Result<()> {
    let (_mesh, web, mut bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    // Asked for while the file is one that a command takes.
    let api = bank.at(8080)?;
    let unchanged = bank.say(&["reload"])?.expect(0)?;
    ensure!(unchanged.stdout.contains("nothing differs"), "{unchanged:?}");
    // A refusal is a line of level info.
    let refused = |bank: &mut Node, port: u16| -> Result<bool> {
        web.host.tcp(bank.at(port)?, b"question", ANSWER)?;
        bank.wait_for_denied("the denial", |flow| flow["port"] == port)?;
        let line = format!("port={port}");
        Ok(bank.process()?.log_text().lines().any(|text| text.contains("flow denied") && text.contains(&line)))
    };
    ensure!(refused(&mut bank, 9000)?, "a denied flow is logged");
    bank.configure("log: { level: error }\ntunnel: { mtu: 1400 }\ncontrol: { addresses: ['198.51.100.1:8443'] }\n")?;
    let outcome = bank.say(&["reload", "-o", "json"])?.expect(3)?.json()?;
    ensure!(outcome["applied"] == serde_json::json!(["control.addresses", "log.level"]), "{outcome:#}");
    ensure!(outcome["needsRestart"] == serde_json::json!(["tunnel.mtu"]), "{outcome:#}");
    ensure!(!refused(&mut bank, 7000)?, "at level error it is not");
    bank.configure("log: { level: info }\ntunnel: { mtu: 5 }\n")?;
    let refused = bank.say(&["config", "validate"])?.expect(2)?;
    ensure!(refused.stderr.contains("tunnel.mtu"), "{refused:?}");
    // The daemon itself is asked without the command's own look at the file.
    bank.process()?.signal(Signal::SIGHUP)?;
    eventually("the daemon says what is wrong", IN_FORCE, || {
        let log = bank.process()?.log_text();
        Ok(log.contains("tunnel.mtu") && log.contains("nothing was changed"))
    })?;
    must_answer(&web, api)?;
    let before = bank.process()?.log_text().matches("configuration read again").count();
    bank.configure("tunnel: { mtu: 1420 }\n")?;
    bank.process()?.signal(Signal::SIGHUP)?;
    eventually("the daemon reads the file after SIGHUP", IN_FORCE, || {
        Ok(bank.process()?.log_text().matches("configuration read again").count() > before)
    })
}

/// On an overlay address the figures are guarded like any service, from the moment that the host has the address.
fn metrics() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let web = mesh.node("web-1", WEB)?;
    let mut bank = mesh.node("bank-1", BANK)?;
    let [guarded, denied] = [bank.at(8080)?, bank.at(9000)?];
    bank.stop()?;
    bank.configure(&format!("metrics: {{ address: '{guarded}' }}\n"))?;
    bank.start()?;
    eventually("the figures can be reached", IN_FORCE, || {
        Ok(web.host.tcp(guarded, b"GET / HTTP/1.0\r\n\r\n", ANSWER)?.0 == Outcome::Connected)
    })?;
    let (outcome, _) = web.host.tcp(denied, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    let ask = |request: &str| -> Result<String> {
        let request = format!("{request} HTTP/1.1\r\nhost: bank\r\nconnection: close\r\n\r\n");
        let (outcome, answer) = web.host.tcp(guarded, request.as_bytes(), ANSWER)?;
        ensure!(outcome == Outcome::Connected, "{outcome:?}");
        Ok(String::from_utf8(answer)?)
    };
    // A node that starts from what it knew is ready before its link is up.
    eventually("the link is up", IN_FORCE, || Ok(ask("GET /metrics")?.contains("warren_control_up 1\n")))?;
    let page = ask("GET /metrics")?;
    ensure!(
        page.starts_with("HTTP/1.1 200") && page.contains("openmetrics-text") && page.ends_with("# EOF\n"),
        "{page}"
    );
    let value = |series: &str| -> Result<u64> {
        let line =
            page.lines().find_map(|line| line.strip_prefix(series)).with_context(|| format!("{series}: {page}"))?;
        Ok(line.trim().parse()?)
    };
    ensure!(value("warren_ready ")? == 1, "{page}");
    ensure!(value("warren_drops_total{reason=\"denied-by-rule\"} ")? >= 1);
    let survives = value("warren_survival_seconds ")?;
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let shown = status["survives"]["seconds"].as_u64().context("status shows it")?;
    ensure!(shown <= survives && survives - shown < 60, "{survives} {shown}");
    ensure!(ask("GET /")?.starts_with("HTTP/1.1 404"));
    ensure!(ask("POST /metrics")?.starts_with("HTTP/1.1 405"));
    Ok(())
}

fn report() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let (outcome, _) = web.host.tcp(bank.at(9000)?, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    bank.wait_for_denied("the denial", |flow| flow["port"] == 9000)?;
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let report = bank.say(&["bugreport", "-o", "json"])?.expect(0)?;
    let parsed = report.json()?;
    ensure!(text(&parsed, "kind") == "BugReport" && parsed["status"]["drops"]["denied-by-rule"].as_u64() >= Some(1));
    ensure!(parsed["refusals"].as_array().is_some_and(|lines| lines.iter().any(|line| line["port"] == 9000)));
    let names = parsed["environment"].as_array().cloned().unwrap_or_default();
    ensure!(names.iter().any(|name| name == "WARREN_CONFIG"), "{names:?}");
    let value = bank.config().to_string_lossy().into_owned();
    ensure!(!parsed["environment"].to_string().contains(&value), "values stay here: {names:?}");
    let mut secrets = vec!["198.51.100.".to_owned(), text(&status["instances"][0], "tunnelKey").to_owned()];
    kept(&bank.state(), &mut secrets)?;
    ensure!(secrets.len() > 10, "the state directory holds something: {}", secrets.len());
    for secret in secrets {
        ensure!(!report.stdout.contains(&secret), "the report holds {secret:?}");
    }
    let file = bank.host.directory.join("report.json");
    let named = file.to_string_lossy().into_owned();
    bank.say(&["bugreport", "--to", &named])?.expect(0)?;
    bank.say(&["bugreport", "--to", &named])?.expect(1)?;
    without_daemon(bank)
}

/// With nobody to ask it says so, and still holds the rest.
fn without_daemon(mut bank: Node) -> Result<()> {
    bank.stop()?;
    let parsed = bank.say(&["bugreport", "-o", "json"])?.expect(0)?.json()?;
    ensure!(parsed["status"].is_null() && text(&parsed, "unanswered").contains("no warren daemon"), "{parsed:#}");
    ensure!(parsed["configuration"].as_array().is_some_and(|keys| keys.len() > 10), "{parsed:#}");
    Ok(())
}

/// Every long word and every 32 bytes of what lies in a directory, as text would show them.
fn kept(directory: &Path, secrets: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            kept(&entry.path(), secrets)?;
            continue;
        }
        let bytes = std::fs::read(entry.path())?;
        let words = String::from_utf8_lossy(&bytes).into_owned();
        let long = words.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-".contains(c)));
        secrets.extend(long.filter(|word| word.len() >= 40).map(str::to_owned));
        secrets.extend(bytes.chunks_exact(32).take(64).map(|bytes| bytes.iter().map(|b| format!("{b:02x}")).collect()));
    }
    Ok(())
}
