//! Join tokens: what they give, once, to whom, and what is refused.
//!
//! ```text
//!   coordinator    host
//!   ====================
//! ```

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::mesh::{Answer, Coordinator, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{BANK, POLICY, WEB, claim};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("enrol::a_token_makes_a_host_a_node", enrolled),
        claim("enrol::a_token_is_good_once", once),
        claim("enrol::fifty_hosts_at_once_use_a_token_once", fifty),
        claim("enrol::an_expired_token_is_refused_by_name", expired),
        claim("enrol::a_token_for_one_identity_gives_no_other", other_identity),
        claim("enrol::a_misspelt_token_is_refused_before_anything_is_sent", misspelt),
        claim("enrol::a_coordinator_of_another_mesh_is_not_believed", wrong_authority),
    ]
}

fn enrol(node: &Node, token: &Path) -> Result<Answer> {
    node.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token.as_os_str()])
}

fn enrolled() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let node = mesh.node("web-1", WEB)?;
    node.say(&["status", "--check", "ready"])?.expect(0)?;
    let listed = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?;
    ensure!(listed.json()?["items"].as_array().is_some_and(|items| items.len() == 1), "{listed:?}");
    // The key never left the host: its state is readable by its owner alone.
    use std::os::unix::fs::PermissionsExt;
    ensure!(std::fs::metadata(node.state())?.permissions().mode() & 0o077 == 0);
    Ok(())
}

fn once() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let token = mesh.token(WEB, &[])?;
    let first = Node::on(mesh.lab.host("first")?, WEB)?;
    let second = Node::on(mesh.lab.host("second")?, WEB)?;
    enrol(&first, &token)?.expect(0)?;
    let refused = enrol(&second, &token)?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("token-used"), "{refused:#?}");
    ensure!(!refused.stderr.contains(std::fs::read_to_string(&token)?.trim()), "the token must not be printed");
    Ok(())
}

fn fifty() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let token = mesh.token(WEB, &[])?;
    let hosts = (0..50).map(|number| Node::on(mesh.lab.host(&format!("host-{number}"))?, WEB));
    let nodes: Vec<Node> = hosts.collect::<Result<_>>()?;
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let started: Vec<_> = nodes.iter().map(|node| scope.spawn(|| enrol(node, &token))).collect();
        started.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
    })?;
    let enrolled = answers.iter().filter(|answer| answer.code == Some(0)).count();
    ensure!(enrolled == 1, "{enrolled} of 50 were enrolled");
    let listed = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
    ensure!(listed["items"].as_array().is_some_and(|items| items.len() == 1), "{listed:#}");
    Ok(())
}

fn expired() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let token = mesh.token(WEB, &["--ttl", "1s"])?;
    eventually("the token is listed as expired", super::IN_FORCE, || {
        let listed = mesh.coordinator.say(&["token", "list", "-o", "json"])?.expect(0)?;
        Ok(listed.stdout.contains("expired"))
    })?;
    let node = Node::on(mesh.lab.host("late")?, WEB)?;
    let refused = enrol(&node, &token)?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("token-expired"), "{refused:#?}");
    Ok(())
}

fn other_identity() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut node = mesh.enrol("web-1", WEB)?;
    node.configure(&format!("workload: {BANK}\n"))?;
    node.must_refuse("identity-not-allowed", |node| {
        let ready = node.say(&["status", "--check", "ready"])?;
        ensure!(ready.code != Some(0), "a node enrolled for {WEB} runs as {BANK}");
        Ok(())
    })
}

fn misspelt() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let token = mesh.token(WEB, &[])?;
    let good = std::fs::read_to_string(&token)?;
    let node = Node::on(mesh.lab.host("host")?, WEB)?;
    let mut flipped = good.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'a' { b'b' } else { b'a' };
    for bad in [String::new(), "hello".into(), good[..good.len() - 1].into(), String::from_utf8(flipped)?] {
        let file = mesh.lab.directory().join("bad.token");
        std::fs::write(&file, &bad)?;
        let refused = enrol(&node, &file)?;
        ensure!(refused.code != Some(0) && refused.stderr.contains("token"), "{bad:?}: {refused:#?}");
    }
    // The token itself is still good.
    enrol(&node, &token)?.expect(0)?;
    Ok(())
}

fn wrong_authority() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let other = Coordinator::on(mesh.lab.host("impostor")?, &[])?;
    let token = mesh.token(WEB, &[])?;
    let node = Node::on(mesh.lab.host("host")?, WEB)?;
    let impostor = other.host.at(warren_netns_tests::mesh::CONTROL_PORT);
    node.configure(&format!("control:\n  addresses: [\"{impostor}\"]\n"))?;
    let refused = enrol(&node, &token)?;
    ensure!(refused.code != Some(0), "an impostor's coordinator was believed: {refused:#?}");
    // The token was not used up by the attempt.
    node.configure("")?;
    enrol(&node, &token)?.expect(0)?;
    Ok(())
}
