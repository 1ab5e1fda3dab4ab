//! Which cipher suite a session has is said by the certificates of both ends.
//!
//! ```text
//!   coordinator   web-1 ==== tunnel ==== bank-1
//!   ===========================================
//! ```

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::mesh::{IN_FORCE, Node};
use warren_netns_tests::processes::eventually;

use super::{claim, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("suite::one_end_that_wants_chacha_decides_for_both_and_may_change_its_mind", one_end_decides)]
}

const CHACHA: &str = "chacha20-poly1305";

/// The suite of the sessions that are up.
fn suites(node: &Node) -> Result<Vec<String>> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    Ok(peers.iter().filter_map(|peer| peer["suite"].as_str().map(str::to_owned)).collect())
}

fn has_aes() -> Result<bool> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(words.contains(&"aes") && (words.contains(&"pclmulqdq") || words.contains(&"pmull")))
}

fn wait_for(web: &Node, bank: &Node, suite: &str) -> Result<()> {
    eventually(&format!("both ends show {suite} and nothing else"), IN_FORCE, || {
        // Traffic, or there is no session to show.
        let _ = web.host.connect(bank.at(8080)?, std::time::Duration::from_secs(1));
        let (near, far) = (suites(web)?, suites(bank)?);
        Ok([near, far].iter().all(|suites| suites.iter().any(|it| it == suite) && suites.iter().all(|it| it == suite)))
    })
}

fn one_end_decides() -> Result<()> {
    let (_mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let fastest = if has_aes()? { "aes-256-gcm" } else { CHACHA };
    wait_for(&web, &bank, fastest)?;

    web.stop()?;
    web.configure("tunnel: { suite: chacha20-poly1305 }\n")?;
    web.start()?;
    wait_for(&web, &bank, CHACHA)?;
    wait_until_allowed(&web, &bank)?;
    let shown = web.say(&["config", "show"])?.expect(0)?.stdout;
    ensure!(shown.contains(CHACHA), "the configuration in force is not shown: {shown}");

    web.stop()?;
    web.configure("")?;
    web.start()?;
    wait_for(&web, &bank, fastest)?;
    wait_until_allowed(&web, &bank)
}
