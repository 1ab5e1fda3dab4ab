//! Who floods starves nobody else: neither an admitted peer that opens flow after flow at an allowed port, nor strangers
//! who send handshakes.
//!
//! ```text
//!   coordinator   web-1   late-1 (starts in the flood)   bank-1   loud-1 (admitted, floods)   outsider (floods)
//!   ============================================================================================================
//! ```

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use sha2::{Digest, Sha256};
use warren_netns_tests::attacker::{self, Key};
use warren_netns_tests::host::{ANSWER, Host, Outcome};
use warren_netns_tests::mesh::IN_FORCE;
use warren_netns_tests::processes::eventually;

use super::strangers::target;
use super::{ANSWER_TEXT, WEB, claim, drops, wait_until_allowed, web_and_bank};

/// Exchanges that are asked for while the flood runs.
const EXCHANGES: usize = 60;
/// What must have been counted of the flood, so that there was one.
const FLOOD: u64 = 5000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("fairness::floods_of_a_peer_and_of_strangers_starve_neither_flows_nor_handshakes", floods)]
}

/// Sends burst after burst until told to stop: a load, not the most that the machine can do.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn new() -> Self {
        Self { stop: Arc::default(), sent: Arc::default(), threads: Vec::new() }
    }

    /// Each of `datagrams` in turn, in bursts, from `sockets` sockets of `host`.
    fn add(&mut self, host: &Host, to: SocketAddr, sockets: usize, datagrams: Vec<Vec<u8>>) -> Result<()> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sockets: Result<Vec<UdpSocket>> =
            (0..sockets).map(|_| host.namespace.run(|| UdpSocket::bind(any).context("bind"))).collect();
        let (sockets, stop, sent) = (sockets?, Arc::clone(&self.stop), Arc::clone(&self.sent));
        self.threads.push(std::thread::spawn(move || {
            let mut all = datagrams.iter().cycle().zip(sockets.iter().cycle());
            while !stop.load(Ordering::Relaxed) {
                for (datagram, socket) in all.by_ref().take(100) {
                    sent.fetch_add(u64::from(socket.send_to(datagram, to).is_ok()), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }));
        Ok(())
    }

    fn end(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).try_for_each(|thread| thread.join().map_err(|_| anyhow!("a flood failed")))?;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// An initiation with the first three bytes of a hash of the responder's key in its reserved ones, as warren sends it.
fn hinted(initiation: &[u8], responder: &[u8; 32]) -> Vec<u8> {
    let hint = Sha256::new().chain_update(b"warren key hint v1").chain_update(responder).finalize();
    let mut message = initiation.to_vec();
    message[1..4].copy_from_slice(&hint[..3]);
    message
}

fn floods() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let loud = mesh.node("loud-1", WEB)?;
    wait_until_allowed(&loud, &bank)?;
    let mut late = mesh.enrol("late-1", WEB)?;
    let outsider = mesh.lab.host("outsider")?;
    let (to, responder) = target(&bank)?;
    let refused = || -> Result<u64> {
        ["unknown-key", "bad-mac", "cookie-required", "handshake-rate-limited", "handover-full"]
            .iter()
            .try_fold(0, |sum, reason| Ok(sum + drops(&bank, reason)?))
    };
    let before = refused()?;

    let mut flood = Flood::new();
    // A flow each from 800 ports, again and again.
    flood.add(&loud.host, bank.at(8080)?, 800, vec![vec![7; 64]])?;
    // Right initiations of keys that nobody knows, with the hint that puts the node under load and without, and ones with
    // a wrong mac.
    let right = attacker::initiations(&Key::unknown(), responder, 200)?;
    flood.add(&outsider, to, 16, right.iter().map(|message| hinted(message, &responder)).collect())?;
    flood.add(&outsider, to, 16, right)?;
    flood.add(&outsider, to, 16, vec![[&[1, 0, 0, 0][..], &[7; 144]].concat()])?;
    eventually("the flood arrives", IN_FORCE, || Ok(refused()? > before + FLOOD / 10))?;

    let api = bank.at(8080)?;
    let mut answered = 0;
    for _ in 0..EXCHANGES {
        let (outcome, answer) = web.host.tcp(api, b"question", ANSWER)?;
        answered += usize::from(outcome == Outcome::Connected && answer == ANSWER_TEXT);
    }
    // Somebody whose handshake has to get through what strangers send.
    late.start()?;
    wait_until_allowed(&late, &bank).context("a node that starts in the flood")?;
    eventually("enough of a flood was there", IN_FORCE, || Ok(refused()? > before + FLOOD))?;
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let sent = flood.end()?;
    ensure!(drops(&bank, "cookie-required")? > FLOOD / 10, "the node was under load: {}", status["drops"]);
    ensure!(
        answered == EXCHANGES,
        "{answered} of {EXCHANGES} exchanges were answered beside {sent} datagrams: {}",
        status["drops"]
    );
    Ok(())
}
