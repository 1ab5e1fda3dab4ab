//! The root is replaced while everything runs: no restart, no flow lost, nobody shut out who can still prove himself.
//!
//! ```text
//!   coordinator   web-1 ==== TCP, echoed without a pause ==== bank-1   late-1 (enrols in between, is away at first)
//!   ================================================================================================================
//! ```

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::host::{ANSWER, KEEP_OPEN};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{WEB, claim, must_answer, text, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("roots::the_root_is_replaced_under_load_without_a_lost_flow_or_a_restart", rotation),
        claim("roots::a_node_that_is_away_is_named_and_served_under_its_own_root_until_it_is_retired", away),
        claim("roots::a_new_intermediate_renews_every_certificate_and_breaks_no_flow", intermediate),
    ]
}

/// One TCP flow that never rests: numbered blocks out, the same blocks back in the same order, or it has failed.
struct Flow {
    stop: Arc<AtomicBool>,
    blocks: Arc<AtomicU64>,
    works: JoinHandle<Result<()>>,
}

impl Flow {
    fn start(web: &Node, bank: &Node) -> Result<Self> {
        let mut stream = web.host.connect(bank.at(8080)?, ANSWER)?;
        stream.write_all(KEEP_OPEN)?;
        stream.read_exact(&mut [0; KEEP_OPEN.len()]).context("the flow echoes")?;
        let (stop, blocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let shared = (Arc::clone(&stop), Arc::clone(&blocks));
        let works = std::thread::spawn(move || Self::run(stream, &shared.0, &shared.1));
        Ok(Self { stop, blocks, works })
    }

    fn run(mut stream: TcpStream, stop: &AtomicBool, blocks: &AtomicU64) -> Result<()> {
        let mut block = vec![0x5a; 8192];
        let mut back = vec![0; block.len()];
        while !stop.load(Ordering::Relaxed) {
            let number = blocks.load(Ordering::Relaxed);
            block[..8].copy_from_slice(&number.to_be_bytes());
            stream.write_all(&block).with_context(|| format!("block {number} out"))?;
            stream.read_exact(&mut back).with_context(|| format!("block {number} back"))?;
            ensure!(back == block, "block {number} came back as another");
            blocks.store(number + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// It lives, and has carried something since it was last asked.
    fn must_flow(&self, when: &str) -> Result<()> {
        let before = self.blocks.load(Ordering::Relaxed);
        eventually(&format!("the flow carries data {when}"), IN_FORCE, || {
            if self.works.is_finished() {
                bail!("the flow ended {when}, after {} blocks", self.blocks.load(Ordering::Relaxed));
            }
            Ok(self.blocks.load(Ordering::Relaxed) > before)
        })
    }

    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.works.join().ok().context("the flow's thread")??;
        Ok(self.blocks.load(Ordering::Relaxed))
    }
}

fn ca(mesh: &Mesh) -> Result<Value> {
    mesh.coordinator.say(&["ca", "status", "-o", "json"])?.expect(0)?.json()
}

fn rotate(mesh: &Mesh, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["ca", "rotate", "-o", "json"];
    all.extend(arguments);
    mesh.coordinator.say(&all)?.expect(0)?.json()
}

/// The serial numbers of a node's certificates, the node's own among them.
fn serials(node: &Node) -> Result<Vec<String>> {
    let shown = node.say(&["cert", "show", "-o", "json"])?.json()?;
    let items = shown["items"].as_array().context("certificates")?;
    Ok(items.iter().map(|item| text(item, "serial").to_owned()).collect())
}

fn rotation() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let flow = Flow::start(&web, &bank)?;
    let first = text(&ca(&mesh)?["roots"][0], "sha256").to_owned();
    let token_of_the_first = mesh.token(WEB, &["--uses", "2"])?;

    let out_of_turn = mesh.coordinator.say(&["ca", "rotate", "retire", "--yes"])?.expect(7)?;
    ensure!(out_of_turn.stderr.contains("ca rotate introduce"), "the way is not named: {out_of_turn:#?}");
    let introduced = rotate(&mesh, &["introduce", "-m", "a test of the root's replacement"])?;
    ensure!(text(&introduced, "stage") == "introduced", "{introduced}");
    ensure!(introduced["roots"][0]["signs"] == true && introduced["roots"][1]["signs"] == false, "{introduced}");
    let second = text(&introduced["roots"][1], "sha256").to_owned();
    ensure!(second != first, "a root of its own");
    flow.must_flow("with both roots trusted")?;

    let activated = rotate(&mesh, &["activate", "--wait", "60s"])?;
    ensure!(text(&activated, "stage") == "activated" && activated["roots"][1]["signs"] == true, "{activated}");
    ensure!(activated["joinTokens"].as_array().is_some_and(|tokens| !tokens.is_empty()), "{activated}");
    flow.must_flow("with the second root signing")?;
    // What was handed out before keeps its worth until the first root is retired.
    let late = Node::on(mesh.lab.host("late-1")?, WEB)?;
    late.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token_of_the_first.as_os_str()])?.expect(0)?;
    let mut late = late;
    late.start()?;
    wait_until_allowed(&late, &bank)?;

    let retired = rotate(&mesh, &["retire", "--wait", "120s", "--yes"])?;
    let roots = retired["roots"].as_array().context("roots")?;
    ensure!(roots.len() == 1 && text(&roots[0], "sha256") == second && roots[0]["signs"] == true, "{retired}");
    flow.must_flow("with the second root alone")?;
    let token_too_late = mesh.token(WEB, &[])?;
    let later = Node::on(mesh.lab.host("late-2")?, WEB)?;
    let refused = later.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token_of_the_first.as_os_str()])?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("untrusted-issuer"), "{refused:#?}");
    later.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token_too_late.as_os_str()])?.expect(0)?;

    ensure!(!mesh.coordinator.directory().join("ca/root/root.key").exists(), "the retired root's key is still there");
    let blocks = flow.end()?;
    ensure!(blocks > 0, "nothing flowed");
    let audit = mesh.coordinator.say(&["audit", "list", "-o", "json"])?.expect(0)?.stdout;
    for action in ["ca.introduce-root", "ca.activate-root", "ca.retire-root"] {
        ensure!(audit.contains(action), "the audit log does not name {action}");
    }
    // Nothing hung on what was only in memory: both sides start again on what lies on their disks.
    mesh.coordinator.kill()?;
    web.kill()?;
    mesh.coordinator.start()?;
    web.start()?;
    wait_until_allowed(&web, &bank)?;
    ensure!(ca(&mesh)?["roots"] == retired["roots"], "another root after the start");
    Ok(())
}

fn away() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let mut late = mesh.node("late-1", WEB)?;
    late.stop()?;
    rotate(&mesh, &["introduce"])?;
    let refused = mesh.coordinator.say(&["ca", "rotate", "activate", "--wait", "10s"])?.expect(4)?;
    ensure!(refused.stderr.contains("late-1") && !refused.stderr.contains("web-1"), "{refused:#?}");
    rotate(&mesh, &["activate", "--force", "--yes"])?;
    // The coordinator still shows it the root that it knows, and from there it learns the other.
    late.start()?;
    wait_until_allowed(&late, &bank)?;
    let retired = rotate(&mesh, &["retire", "--wait", "120s", "--yes"])?;
    ensure!(retired["roots"].as_array().is_some_and(|roots| roots.len() == 1), "{retired}");
    must_answer(&late, bank.at(8080)?)?;
    must_answer(&web, bank.at(8080)?)
}

fn intermediate() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let flow = Flow::start(&web, &bank)?;
    let (before, held) = (ca(&mesh)?, serials(&web)?);
    let after = rotate(&mesh, &["intermediate"])?;
    ensure!(after["issuing"]["keyId"] != before["issuing"]["keyId"], "the intermediate is the same");
    ensure!(after["roots"] == before["roots"], "the root is another");
    eventually("both kinds of web-1's certificates are new", Duration::from_secs(60), || {
        Ok(serials(&web)?.iter().filter(|serial| !held.contains(serial)).count() >= 2)
    })?;
    flow.must_flow("under the new intermediate")?;
    ensure!(flow.end()? > 0, "nothing flowed");
    Ok(())
}
