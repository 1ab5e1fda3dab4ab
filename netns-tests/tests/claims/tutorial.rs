//! The tutorial does what it says: every command of docs/tutorial.md is run, on the host it names.
//!
//! ```text
//!   coordinator 198.51.100.1   web-1 198.51.100.2   bank-1 198.51.100.3
//!   ====================================================================
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::Host;
use warren_netns_tests::lab::Lab;
use warren_netns_tests::processes::{Process, binary};

use super::claim;

const TUTORIAL: &str = include_str!("../../../docs/tutorial.md");

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("tutorial::every_command_works_as_written", tutorial)]
}

/// The fenced blocks: what stands behind the fence, and the content.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in TUTORIAL.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => open = Some((info, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, content))) => {
                content.push_str(line);
                content.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// What a shell on `host` is given: the binaries in its PATH, a place of its own for the node's state.
fn environment(host: &Host) -> Result<Vec<(&'static str, OsString)>> {
    let binaries = binary("warren")?.parent().map(Path::to_owned).context("the binaries have a directory")?;
    let mut path = binaries.into_os_string();
    path.push(":/usr/bin:/bin");
    Ok(vec![
        ("PATH", path),
        ("WARREN_STATE_DIR", host.directory.join("state").into()),
        ("WARREN_SOCKET", host.directory.join("warren.sock").into()),
    ])
}

fn tutorial() -> Result<()> {
    let mut lab = Lab::new()?;
    let mut hosts = BTreeMap::new();
    for name in ["coordinator", "web-1", "bank-1"] {
        hosts.insert(name, lab.host(name)?);
    }
    // What was exported in one block holds in the next ones typed on that machine.
    let mut exported: BTreeMap<&str, String> = BTreeMap::new();
    let mut running = Vec::new();
    let mut commands = 0;
    let mut printed = String::new();
    for (info, content) in blocks() {
        if let Some(file) = info.strip_prefix("yaml ") {
            let path = hosts["coordinator"].directory.join(file);
            std::fs::create_dir_all(path.parent().context("a directory")?)?;
            std::fs::write(path, content)?;
            continue;
        }
        if info == "text printed" {
            for line in content.lines() {
                ensure!(
                    printed.lines().any(|found| found.trim_end() == line),
                    "{line:?} was not printed, but:\n{printed}"
                );
            }
            continue;
        }
        let Some(place) = info.strip_prefix("sh ") else {
            bail!("a block is neither a file, nor commands, nor what they print: {info:?}")
        };
        let (name, how) = place.split_once(", ").unwrap_or((place, ""));
        let host = hosts.get(name).with_context(|| format!("a block is for {name:?}"))?;
        commands += 1;
        if how == "stays" {
            let words: Vec<&str> = content.split_whitespace().collect();
            let (program, arguments) = words.split_first().context("a command")?;
            let arguments: Vec<OsString> = arguments.iter().map(|word| absolute(host, word)).collect();
            let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
            running.push(Process::start(host, program, &binary(program)?, &arguments, &environment(host)?)?);
            continue;
        }
        let exports = exported.entry(name).or_default();
        let script = format!("set -e\n{exports}{content}");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).current_dir(&host.directory).envs(environment(host)?).stdin(Stdio::null());
        let code = if how == "ends with 3" { 3 } else { 0 };
        let output = host.namespace.run(|| shell.output().context("run /bin/sh"))?;
        ensure!(output.status.code() == Some(code), "on {name}:\n{content}{output:#?}");
        printed = String::from_utf8_lossy(&output.stdout).into_owned();
        exports.extend(content.lines().filter(|line| line.starts_with("export ")).map(|line| format!("{line}\n")));
        // "Carry each token to its machine."
        for (token, to) in [("web.token", "web-1"), ("bank.token", "bank-1")] {
            let made = host.directory.join(token);
            if made.exists() && name == "coordinator" {
                std::fs::copy(&made, hosts[to].directory.join(token))?;
            }
        }
    }
    ensure!(commands > 10, "only {commands} blocks were found: the tutorial was not read");
    Ok(())
}

/// A process of the lab is not started in the host's directory; a path in the tutorial means that one.
fn absolute(host: &Host, word: &str) -> OsString {
    if word.contains('/') { host.directory.join(word).into() } else { word.into() }
}
