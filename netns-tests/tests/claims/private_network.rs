//! `warren run --network private`: the program has a network namespace of its own, and the overlay is the only way out of it.
//!
//! ```text
//!   coordinator   apps                                           bank-1
//!                 warren run --network private  (shop/web-frontend)   bank/banking-api, 8080 allowed to both
//!                 warren run --network private  (lab/rogue)
//!                 a service on loopback, a service on eth0
//!   ==================================================================
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{ADMIN_PORT, IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::{Process, binary, eventually};

use super::{ANSWER_TEXT, BANK, POLICY, ROGUE, WEB, claim, serve, text};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("private_network::two_programs_on_one_host_have_an_identity_and_an_address_each", two),
        claim("private_network::the_overlay_is_the_only_way_out", only_way_out),
        claim("private_network::without_the_capability_the_program_never_starts_and_it_is_named", not_permitted),
    ]
}

/// Loopback and underlay services of the host.
const LOOPBACK_PORT: u16 = 7777;
const UNDERLAY_PORT: u16 = 7778;

fn mesh() -> Result<(Mesh, Node, Node)> {
    let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
    let both = POLICY.replace("from: [shop/web-frontend]", "from: [shop/web-frontend, lab/rogue]");
    mesh.try_apply(&both, &[])?.expect(0)?;
    let bank = mesh.node("bank-1", BANK)?;
    serve(&bank)?;
    let apps = mesh.enrol("apps", WEB)?;
    Ok((mesh, apps, bank))
}

/// `warren run OPTIONS -- bash -c SCRIPT` on the host of `apps`, with the node of `config`; `$HERE` is `here`.
fn start(apps: &Node, config: &Path, here: &Path, before: &[&str], options: &[&str], script: &str) -> Result<Process> {
    let warren = binary("warren")?;
    let mut all: Vec<&OsStr> = before.iter().map(OsStr::new).collect();
    all.push(warren.as_os_str());
    all.push(OsStr::new("run"));
    all.extend(options.iter().map(OsStr::new));
    all.extend(["--", "bash", "-c", script].map(OsStr::new));
    let program = PathBuf::from(all.remove(0));
    let environment: [(&str, OsString); 2] = [("WARREN_CONFIG", config.into()), ("HERE", here.into())];
    let name = here.file_name().and_then(OsStr::to_str).context("a directory's name")?;
    Process::start_unready(&apps.host, name, &program, &all, &environment)
}

fn directory(apps: &Node, name: &str) -> Result<PathBuf> {
    let here = apps.host.directory.join(name);
    fs::create_dir(&here)?;
    Ok(here)
}

/// Waits until the script has written a whole file.
fn left(process: &mut Process, file: &Path) -> Result<String> {
    let mut found = String::new();
    let waited = eventually(&format!("the program has left {}", file.display()), IN_FORCE, || {
        found = fs::read_to_string(file).unwrap_or_default();
        ensure!(!found.is_empty() || process.ended()?.is_none(), "it has ended");
        Ok(found.ends_with('\n'))
    });
    waited.with_context(|| process.log_text())?;
    Ok(found)
}

/// An IPv4 address of bank-1, which every shell can be told.
fn bank_v4(bank: &Node) -> Result<IpAddr> {
    bank.addresses()?.into_iter().find(IpAddr::is_ipv4).context("an IPv4 address")
}

fn two() -> Result<()> {
    let (mesh, apps, bank) = mesh()?;
    let twin = apps.twin()?;
    let token = mesh.token(ROGUE, &[])?;
    twin.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token.as_os_str()])?.expect(0)?;
    let ask = format!(
        "exec 3<>/dev/tcp/{}/8080; echo question >&3; cat <&3 > $HERE/answer; echo >> $HERE/answer
         trap 'exit 6' TERM; while :; do sleep 0.05; done",
        bank_v4(&bank)?
    );
    let private = ["--network", "private"];
    let (first, second) = (directory(&apps, "first")?, directory(&apps, "second")?);
    let mut programs = [
        start(&apps, &apps.config(), &first, &[], &private, &ask)?,
        start(&apps, &apps.host.directory.join("twin/warren.yaml"), &second, &[], &private, &ask)?,
    ];
    for (process, here) in programs.iter_mut().zip([&first, &second]) {
        let answer = left(process, &here.join("answer"))?;
        ensure!(answer.trim_end().as_bytes() == ANSWER_TEXT, "{answer:?}\n{}", process.log_text());
    }
    // Both at once, each as itself: what bank-1 saw, and what the two nodes say of themselves.
    let own = |status: warren_netns_tests::mesh::Answer| -> Result<Vec<String>> {
        let status = status.expect(0)?.json()?;
        let addresses = status["instances"][0]["addresses"].as_array().context("addresses")?;
        Ok(addresses.iter().filter_map(|address| address.as_str().map(str::to_owned)).collect())
    };
    let (of_web, of_rogue) = (own(apps.say(&["status", "-o", "json"])?)?, own(twin.say(&["status", "-o", "json"])?)?);
    for (workload, addresses) in [(WEB, &of_web), (ROGUE, &of_rogue)] {
        bank.wait_for_flow("allowed", &format!("a flow of {workload} from its own address"), |flow| {
            let from = text(flow, "sourceAddress");
            text(flow, "source") == workload
                && addresses.iter().any(|own| from == *own || from.starts_with(&format!("{own}:")))
        })?;
    }
    ensure!(of_web.iter().all(|address| !of_rogue.contains(address)), "{of_web:?} and {of_rogue:?}");
    // The host itself is in no overlay.
    let (outcome, _) = apps.host.tcp((bank_v4(&bank)?, 8080).into(), b"question", Duration::from_secs(2))?;
    ensure!(outcome != Outcome::Connected, "the host got into the overlay by its programs' namespaces");
    for process in &programs {
        process.signal(Signal::SIGTERM)?;
    }
    for mut process in programs {
        let code = process.wait(IN_FORCE)?.code();
        ensure!(code == Some(6), "{code:?}\n{}", process.log_text());
    }
    Ok(())
}

fn only_way_out() -> Result<()> {
    let (mesh, apps, bank) = mesh()?;
    let underlay = apps.host.v4;
    apps.host.serve_tcp((IpAddr::from([127, 0, 0, 1]), LOOPBACK_PORT).into(), ANSWER_TEXT)?;
    apps.host.serve_tcp((IpAddr::from(underlay), UNDERLAY_PORT).into(), ANSWER_TEXT)?;
    let (bank_overlay, bank_underlay) = (bank_v4(&bank)?, bank.host.v4);
    bank.host.serve_tcp((IpAddr::from(bank_underlay), UNDERLAY_PORT).into(), ANSWER_TEXT)?;
    let elsewhere = [
        format!("127.0.0.1/{LOOPBACK_PORT}"),
        format!("{underlay}/{UNDERLAY_PORT}"),
        format!("{bank_underlay}/{UNDERLAY_PORT}"),
        format!("{}/{ADMIN_PORT}", mesh.coordinator.host.v4),
    ];
    let overlay = format!("{bank_overlay}/8080");
    let script = format!(
        "for to in {} {overlay}; do (exec 3<>/dev/tcp/$to) 2> /dev/null && echo $to >> $HERE/reached; done
         sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev | grep -v -e sit0 -e ip6tnl0 -e tunl0 -e gre -e ip_vti0 -e ip6_vti0 -e erspan0 > $HERE/devices
         (exec 3<>/dev/tcp/127.0.0.1/1) 2>&1 | grep -q refused && echo refused > $HERE/loopback; exit 0",
        elsewhere.join(" ")
    );
    for (network, reached, devices) in [
        ("host", [&elsewhere[..], std::slice::from_ref(&overlay)].concat(), vec!["eth0", "lo", "warren0"]),
        ("private", vec![overlay.clone()], vec!["lo", "warren0"]),
    ] {
        let here = directory(&apps, network)?;
        let mut process = start(&apps, &apps.config(), &here, &[], &["--network", network], &script)?;
        let code = process.wait(IN_FORCE)?.code();
        ensure!(code == Some(0), "{network}: {code:?}\n{}", process.log_text());
        let lines = |name: &str| -> Result<Vec<String>> {
            Ok(fs::read_to_string(here.join(name))
                .with_context(|| process.log_text())?
                .lines()
                .map(str::to_owned)
                .collect())
        };
        ensure!(lines("reached")? == reached, "{network}: {:?} and not {reached:?}", lines("reached")?);
        let mut there = lines("devices")?;
        there.sort();
        ensure!(there == devices, "{network}: {there:?}");
        // An answer, though a refusal: loopback is up.
        ensure!(lines("loopback")? == ["refused"], "{network}: {:?}", lines("loopback")?);
    }
    Ok(())
}

fn not_permitted() -> Result<()> {
    let (_mesh, apps, _bank) = mesh()?;
    for (network, expected) in [("private", 125), ("host", 0)] {
        let here = directory(&apps, network)?;
        let less = ["setpriv", "--bounding-set", "-sys_admin", "--"];
        let mut process = start(&apps, &apps.config(), &here, &less, &["--network", network], "echo > $HERE/started")?;
        let code = process.wait(IN_FORCE)?.code();
        let log = process.log_text();
        ensure!(code == Some(expected), "{network}: {code:?}\n{log}");
        ensure!(here.join("started").exists() == (expected == 0), "{network}\n{log}");
        ensure!(expected == 0 || log.contains("CAP_SYS_ADMIN"), "the capability is not named:\n{log}");
    }
    Ok(())
}
