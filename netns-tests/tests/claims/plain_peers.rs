//! Devices that speak WireGuard and nothing of ours, by a program that is not ours, configured by what `warren peer add` gave.
//!
//! ```text
//!   coordinator     bank-1 (a node)             router-1, phone-1, stranger-1 (wireguard-go)
//!                   bank/banking-api            peer/router, peer/phone, nobody
//!                       | <--- 8080 allowed (devices), 9000 denied (no-admin), 7000 no rule ---- router
//!                       | ---- 22 allowed (manage), 23 declared by nobody --------------------> router
//!   ==================================================================================================
//! ```

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::device::{Configuration, Device, key_pair, program};
use warren_netns_tests::host::{ANSWER, Host, Outcome, SILENCE};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{ANSWER_TEXT, BANK, POLICY, absent, claim, drops, serve, text};

const DEVICES: &str = "---
kind: Peer
name: router
ports: { ssh: { port: 22, protocol: tcp } }
allow: { manage: { from: [bank/banking-api], ports: [ssh] } }
---
kind: Peer
name: phone
";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("plain_peers::a_device_is_let_in_by_rule_and_refused_by_name_in_both_directions", judged),
        claim("plain_peers::another_key_and_another_devices_address_get_silence", silent),
        claim("plain_peers::removal_cuts_a_live_flow_and_the_key_opens_nothing_any_more", removed),
        claim("plain_peers::a_device_talks_on_when_its_nodes_certificate_is_renewed", renewed),
        claim("plain_peers::keys_and_names_that_cannot_be_registered_are_refused_by_name", refused),
    ]
}

/// A mesh whose policy knows the devices, a node, and `phone` registered with a configuration of its own.
fn mesh() -> Result<(Mesh, Node, Configuration)> {
    let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
    let policy = POLICY.replace("owns: [mesh,", "owns: [peer, mesh,");
    let devices = "allow:\n  devices:\n    from: [peer:router, peer:phone]\n    ports: [api]\n";
    mesh.try_apply(&format!("{}{DEVICES}", policy.replace("allow:\n", devices)), &[])?.expect(0)?;
    let bank = mesh.node("bank-1", BANK)?;
    let (secret, public) = key_pair();
    let (key_file, file) = (path(&mesh, "phone.key"), path(&mesh, "phone.conf"));
    std::fs::write(&key_file, base64::engine::general_purpose::STANDARD.encode(secret.to_bytes()))?;
    mesh.coordinator.say(&["peer", "add", "phone", "--public-key", &public, "--wait", "30s"])?.expect(0)?;
    eventually("the coordinator knows where the node is", IN_FORCE, || {
        let phone = mesh.coordinator.say(&["peer", "show", "phone", "-o", "json"])?.expect(0)?.json()?;
        Ok(phone["connections"][0]["endpoints"][0].is_string())
    })?;
    let config = ["peer", "config", "phone", "--private-key-file", &key_file, "--file", &file];
    mesh.coordinator.say(&config)?.expect(0)?;
    let phone = Configuration::parse(&std::fs::read_to_string(file)?)?;
    Ok((mesh, bank, phone))
}

fn path(mesh: &Mesh, name: &str) -> String {
    mesh.lab.directory().join(name).display().to_string()
}

/// Registers `router` with a key that the command makes, and reads what it wrote.
fn router(mesh: &Mesh) -> Result<Configuration> {
    use std::os::unix::fs::PermissionsExt;
    let file = path(mesh, "router.conf");
    let answer = mesh.coordinator.say(&["peer", "add", "router", "--generate", "--file", &file, "--wait", "30s"])?;
    let text = std::fs::read_to_string(&file)?;
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let key = text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).context("a private key")?;
    let answer = answer.expect(0)?;
    ensure!(!answer.stdout.contains(key) && !answer.stderr.contains(key), "the private key is in the file alone");
    Configuration::parse(&text)
}

fn wireguard() -> Result<Option<PathBuf>> {
    let found = program();
    if found.is_none() {
        absent("wireguard-go or boringtun-cli")?;
    }
    Ok(found)
}

fn answers(host: &Host, to: std::net::SocketAddr) -> Result<bool> {
    let (outcome, answer) = host.tcp(to, b"question", ANSWER)?;
    Ok(outcome == Outcome::Connected && answer == ANSWER_TEXT)
}

fn judged() -> Result<()> {
    let Some(program) = wireguard()? else { return Ok(()) };
    let (mut mesh, bank, _) = mesh()?;
    serve(&bank)?;
    let configuration = router(&mesh)?;
    let host = mesh.lab.host("router-1")?;
    let device = Device::start(&program, &host, &configuration)?;
    for address in bank.addresses()? {
        ensure!(answers(&host, (address, 8080).into())?, "TCP to {address}: {}", device.log());
        let (outcome, answer) = host.udp((address, 8080).into(), b"datagram", ANSWER)?;
        ensure!((outcome, answer.as_slice()) == (Outcome::Connected, b"datagram".as_slice()), "UDP to {address}");
        let (outcome, _) = host.tcp((address, 9000).into(), b"question", ANSWER)?;
        ensure!(outcome == Outcome::Refused, "denied at {address}: {outcome:?}");
        let (outcome, _) = host.tcp((address, 7000).into(), b"question", ANSWER)?;
        ensure!(outcome == Outcome::Refused, "no rule at {address}: {outcome:?}");
    }
    let of = |port: u16| move |flow: &Value| flow["port"] == port && text(flow, "source") == "peer/router";
    let denied = bank.wait_for_denied("the denial", of(9000))?;
    ensure!(text(&denied, "rule").contains("no-admin") && text(&denied, "reason") == "denied-by-rule", "{denied:#}");
    ensure!(text(&denied, "destination") == BANK && denied["line"].as_u64() > Some(1), "{denied:#}");
    let denied = bank.wait_for_denied("the denial", of(7000))?;
    ensure!(text(&denied, "reason") == "no-rule", "{denied:#}");
    let allowed = bank.wait_for_flow("allowed", "the flow", of(8080))?;
    ensure!(text(&allowed, "rule").contains("devices"), "{allowed:#}");

    // The other way nobody but the calling node can judge.
    for address in &configuration.addresses {
        host.serve_tcp((*address, 22).into(), ANSWER_TEXT)?;
        ensure!(answers(&bank.host, (*address, 22).into())?, "the service calls {address}");
        let (outcome, _) = bank.host.tcp((*address, 23).into(), b"question", ANSWER)?;
        ensure!(matches!(outcome, Outcome::Refused | Outcome::Unreachable), "{address}: {outcome:?}");
    }
    let denied = bank.wait_for_denied("the node's own refusal", |flow| flow["port"] == 23)?;
    ensure!(text(&denied, "destination") == "peer/router" && text(&denied, "reason") == "no-service", "{denied:#}");
    let shown = bank.say(&["whois", &configuration.addresses[0].to_string()])?.expect(0)?.stdout;
    ensure!(shown.contains("ns/peer/sa/router"), "{shown}");
    Ok(())
}

fn silent() -> Result<()> {
    let Some(program) = wireguard()? else { return Ok(()) };
    let (mut mesh, bank, phone) = mesh()?;
    serve(&bank)?;
    let router = router(&mesh)?;
    let (strange, honest) = (mesh.lab.host("stranger-1")?, mesh.lab.host("phone-1")?);
    let api = bank.at(8080)?;
    let _stranger = Device::start(&program, &strange, &router.with_key(&key_pair().0))?;
    let (outcome, _) = strange.tcp(api, b"question", SILENCE)?;
    ensure!(outcome == Outcome::Silence, "a key that nobody registered: {outcome:?}");
    eventually("the stranger's key is counted", IN_FORCE, || Ok(drops(&bank, "unknown-key")? > 0))?;

    let posing = Configuration { addresses: router.addresses.clone(), ..phone.clone() };
    let device = Device::start(&program, &honest, &posing)?;
    let (outcome, _) = honest.tcp(api, b"question", SILENCE)?;
    ensure!(outcome == Outcome::Silence, "another device's address: {outcome:?}");
    eventually("the false source is counted", IN_FORCE, || Ok(drops(&bank, "source-not-peers")? > 0))?;
    drop(device);
    let own = mesh.lab.host("phone-2")?;
    let device = Device::start(&program, &own, &phone)?;
    ensure!(answers(&own, api)?, "with its own address it is let in: {}", device.log());
    Ok(())
}

fn removed() -> Result<()> {
    let Some(program) = wireguard()? else { return Ok(()) };
    let (mut mesh, bank, _) = mesh()?;
    let configuration = router(&mesh)?;
    let host = mesh.lab.host("router-1")?;
    let device = Device::start(&program, &host, &configuration)?;
    let api = bank.at(8080)?;
    let listener = bank.host.namespace.run(|| Ok(TcpListener::bind(api)?))?;
    let mut caller = host.connect(api, ANSWER).with_context(|| device.log())?;
    caller.write_all(b"x")?;
    let (mut service, _) = listener.accept()?;
    service.set_read_timeout(Some(ANSWER))?;
    ensure!(service.read(&mut [0; 1])? == 1, "the flow carries data");
    mesh.coordinator.say(&["peer", "remove", "router", "--yes", "--wait", "30s"])?.expect(0)?;
    let ended = service.read(&mut [0; 1]);
    let cut = ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(cut, "the service's end of the flow: {ended:?}");
    let (outcome, _) = host.tcp(api, b"question", SILENCE)?;
    ensure!(outcome == Outcome::Silence, "the removed device: {outcome:?}");
    Ok(())
}

fn tunnel_serial(node: &Node) -> Result<String> {
    let shown = node.say(&["cert", "show", "-o", "json"])?.expect(0)?.json()?;
    let items = shown["items"].as_array().context("certificates")?;
    Ok(text(items.iter().find(|item| item["tunnelKey"].is_string()).context("a tunnel certificate")?, "serial")
        .to_owned())
}

fn renewed() -> Result<()> {
    let Some(program) = wireguard()? else { return Ok(()) };
    let (mut mesh, bank, phone) = mesh()?;
    serve(&bank)?;
    let host = mesh.lab.host("phone-1")?;
    let device = Device::start(&program, &host, &phone)?;
    let api = bank.at(8080)?;
    ensure!(answers(&host, api)?, "before the renewal: {}", device.log());
    let before = tunnel_serial(&bank)?;
    mesh.coordinator.say(&["ca", "rotate", "intermediate"])?.expect(0)?;
    eventually("the node has another certificate", IN_FORCE, || Ok(tunnel_serial(&bank)? != before))?;
    ensure!(answers(&host, api)?, "in the session that was there: {}", device.log());
    drop(device);
    // The same configuration in a program that starts anew, and so shakes hands anew.
    let other = mesh.lab.host("phone-2")?;
    let device = Device::start(&program, &other, &phone)?;
    ensure!(answers(&other, api)?, "by the key that it was given: {}", device.log());
    Ok(())
}

fn refused() -> Result<()> {
    let (mesh, bank, _) = mesh()?;
    let say = |words: &[&str], code: i32, told: &str| -> Result<()> {
        let answer = mesh.coordinator.say(words)?.expect(code)?;
        ensure!(answer.stderr.contains(told), "{words:?} must name {told}: {answer:#?}");
        Ok(())
    };
    let (_, fresh) = key_pair();
    let zero = base64::engine::general_purpose::STANDARD.encode([0; 32]);
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let of_a_node = text(&status["instances"][0], "tunnelKey");
    say(&["peer", "add", "router", "--public-key", &zero], 2, "low order")?;
    say(&["peer", "add", "router", "--public-key", "short"], 2, "--public-key \"short\" is not 32 bytes")?;
    say(&["peer", "add", "router", "--public-key", of_a_node], 7, "bound to bank/banking-api")?;
    say(&["peer", "add", "toaster", "--public-key", &fresh], 6, "policy declares no Peer toaster")?;
    say(&["peer", "add", "phone", "--public-key", &fresh], 7, "registered as phone already")?;
    say(&["peer", "remove", "router", "--yes"], 6, "no device is registered as router")?;
    say(&["token", "create", "--for", "peer/router"], 5, "no node can hold")?;
    let file = path(&mesh, "refused.conf");
    say(&["peer", "add", "toaster", "--generate", "--file", &file], 6, "policy declares no Peer toaster")?;
    ensure!(!PathBuf::from(file).exists(), "a refused registration leaves no file");
    let listed = mesh.coordinator.say(&["peer", "list", "-o", "json"])?.expect(0)?.json()?;
    ensure!(listed["items"].as_array().map(Vec::len) == Some(1), "{listed:#}");
    Ok(())
}
