//! A copied state directory is noticed and reported, restarts and moves are not taken for one, and revoking the node ends both.
//!
//! ```text
//!   coordinator   web-1   web-copy (web-1's state directory, copied)   bank-1
//!   ==========================================================================
//! ```

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{WEB, claim, text, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("clones::a_copied_state_directory_is_reported_and_revoking_its_node_ends_both", copied)]
}

/// The two take each other's place with growing waits.
const NOTICED: Duration = Duration::from_secs(90);

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    std::fs::set_permissions(to, std::fs::metadata(from)?.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), &target).with_context(|| format!("copy to {}", target.display()))?;
        }
    }
    Ok(())
}

/// What an administrator sees of the node with `id`.
fn seen(mesh: &Mesh, id: &str) -> Result<Value> {
    let nodes = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
    let all = nodes["items"].as_array().context("nodes")?;
    all.iter().find(|node| text(node, "id") == id).cloned().with_context(|| format!("no {id} in {nodes:#}"))
}

fn reports(mesh: &Mesh) -> Result<Vec<Value>> {
    let audit = mesh.coordinator.say(&["audit", "list", "-o", "json"])?.expect(0)?.json()?;
    let all = audit["items"].as_array().context("audit entries")?;
    Ok(all.iter().filter(|entry| text(entry, "action") == "node.cloned").cloned().collect())
}

fn copied() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let id = text(&web.say(&["status", "-o", "json"])?.expect(0)?.json()?, "node").to_owned();
    // Restarts, one of them without a goodbye.
    web.stop()?;
    web.start()?;
    web.kill()?;
    web.start()?;
    wait_until_allowed(&web, &bank)?;
    ensure!(seen(&mesh, &id)?["cloned"].is_null() && reports(&mesh)?.is_empty(), "a restart was taken for a copy");

    let mut twin = Node::on(mesh.lab.host("web-copy")?, WEB)?;
    copy(&web.state(), &twin.state())?;
    twin.start_unready()?;
    let mut node = Value::Null;
    let waited = eventually("the copy is noticed", NOTICED, || {
        node = seen(&mesh, &id)?;
        Ok(node["cloned"].is_object())
    });
    waited.with_context(|| format!("{node:#}"))?;
    let mut remotes: Vec<_> =
        node["cloned"]["remotes"].as_array().context("remotes")?.iter().map(Value::as_str).collect();
    remotes.sort_unstable();
    let (here, there) = (web.host.v4.to_string(), twin.host.v4.to_string());
    ensure!(remotes == [Some(here.as_str()), Some(there.as_str())], "{node:#}");
    // Where people look: the list, the node's own page, the log of changes, the coordinator's log.
    let list = mesh.coordinator.say(&["node", "list"])?.expect(0)?.stdout;
    ensure!(list.contains("CLONED"), "{list}");
    let page = mesh.coordinator.say(&["node", "show", &id])?.expect(0)?.stdout;
    ensure!(page.contains("two processes use its key") && page.contains(&there), "{page}");
    eventually("the log of changes names it", NOTICED, || {
        Ok(reports(&mesh)?.first().is_some_and(|entry| text(entry, "object") == id))
    })?;
    // Once, however often they take each other's place.
    ensure!(reports(&mesh)?.len() == 1, "{:#?}", reports(&mesh)?);
    let log = mesh.coordinator.process()?.log_text();
    ensure!(log.contains("two processes use this node's identity"), "{log}");
    // And at the two of them.
    for node in [&web, &twin] {
        eventually("the node says whose place was taken", NOTICED, || {
            Ok(node.say(&["status"])?.stdout.contains("another connection of this node took its place"))
        })
        .with_context(|| format!("{:?}", node.say(&["status"])))?;
    }

    mesh.coordinator.say(&["revocation", "create", "--node", &id, "--yes", "-m", "its state was copied"])?.expect(0)?;
    for node in [&web, &twin] {
        eventually("neither is let in", NOTICED, || {
            let (outcome, _) = node.host.tcp(bank.at(8080)?, b"question", Duration::from_secs(2))?;
            Ok(outcome != Outcome::Connected)
        })?;
    }
    Ok(())
}
