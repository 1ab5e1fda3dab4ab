//! Those who are not let in get silence, and nothing on the wire helps them.
//!
//! ```text
//!   coordinator   web-1   bank-1   rogue-1 (tampered)   outsider
//!   =======================================================  <- an attacker who records, replays and alters
//! ```

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::attacker::{self, Key};
use warren_netns_tests::host::ANSWER;
use warren_netns_tests::lab::BRIDGE;
use warren_netns_tests::mesh::{IN_FORCE, Node};
use warren_netns_tests::processes::eventually;

use super::{ANSWER_TEXT, ROGUE, claim, drops, wait_until_allowed, web_and_bank};

/// How long a dial waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("strangers::an_outsider_gets_silence_and_is_counted", outsider),
        claim("strangers::a_tampered_caller_that_dials_anyway_gets_silence_and_is_counted", tampered),
        claim("strangers::garbage_of_every_kind_gets_silence", garbage),
        claim("strangers::replayed_and_altered_datagrams_deliver_nothing_and_are_counted", replayed),
        claim("strangers::no_plaintext_is_on_the_wire", plaintext),
        claim("strangers::tcpdump_on_the_wire_finds_no_byte_of_the_exchange", tcpdump),
    ]
}

/// Where a node listens and with which key, as its own `status` says.
pub(crate) fn target(node: &Node) -> Result<(std::net::SocketAddr, [u8; 32])> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    let key = status["instances"][0]["tunnelKey"].as_str().context("no tunnel key in status")?;
    let port = u16::try_from(status["tunnelPort"].as_u64().context("no tunnel port in status")?)?;
    Ok((node.host.at(port), attacker::public_key(key)?))
}

fn outsider() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let outsider = mesh.lab.host("outsider")?;
    let (to, responder) = target(&bank)?;
    let before = drops(&bank, "unknown-key")?;
    ensure!(attacker::dial(&outsider, to, &Key::unknown(), responder, SILENCE)?.is_none(), "an answer came");
    eventually("the stranger is counted", IN_FORCE, || Ok(drops(&bank, "unknown-key")? > before))?;
    // Silence is a decision, not a dead port.
    let key = Key::stolen(&web.state())?;
    ensure!(attacker::dial(&web.host, to, &key, responder, ANSWER)?.is_some(), "an admitted key got no answer");
    Ok(())
}

fn tampered() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let rogue = mesh.node("rogue-1", ROGUE)?;
    let (to, responder) = target(&bank)?;
    let before = drops(&bank, "unknown-key")?;
    let key = Key::stolen(&rogue.state())?;
    ensure!(attacker::dial(&rogue.host, to, &key, responder, SILENCE)?.is_none(), "an answer came");
    eventually("the rogue is counted", IN_FORCE, || Ok(drops(&bank, "unknown-key")? > before))
}

fn garbage() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let outsider = mesh.lab.host("outsider")?;
    let (to, _) = target(&bank)?;
    let mut datagrams = vec![vec![], vec![0], vec![4; 31], vec![0xff; 1500], vec![1, 0, 0, 0], vec![0; 9000]];
    for (kind, length) in [(1u8, 148), (2, 92), (3, 64), (4, 32), (5, 148)] {
        for extra in [0, 1] {
            let mut datagram = vec![7; length + extra];
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            datagrams.push(datagram);
        }
    }
    for datagram in datagrams {
        let answer = attacker::send(&outsider, to, &datagram, Duration::from_millis(50))?;
        ensure!(answer.is_none(), "{} bytes of garbage were answered", datagram.len());
    }
    super::must_answer(&web, bank.at(8080)?)
}

/// The UDP payload of a frame that carries a data message to `port`, over either family.
fn data_datagram_to(frame: &[u8], port: u16) -> Option<Vec<u8>> {
    // Ethernet 14, then IPv4 (20) or IPv6 (40), then UDP (8).
    let ip = match frame.get(12..14)? {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => return None,
    };
    let (udp, payload) = frame.get(14 + ip..)?.split_at_checked(8)?;
    (udp[2..4] == port.to_be_bytes() && payload.first() == Some(&4)).then(|| payload.to_vec())
}

fn replayed() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let capture = mesh.lab.capture()?;
    let before_answers = drops(&bank, "replayed")?;
    super::must_answer(&web, bank.at(8080)?)?;
    let port = target(&bank)?.0.port();
    let frames = capture.finish();
    let datagrams: Vec<Vec<u8>> = frames.iter().filter_map(|frame| data_datagram_to(frame, port)).collect();
    ensure!(!datagrams.is_empty(), "no data datagram was captured");
    let to = target(&bank)?.0;
    for datagram in &datagrams {
        ensure!(attacker::send(&web.host, to, datagram, Duration::from_millis(20))?.is_none());
        let mut altered = datagram.clone();
        // A counter that was not used yet, so that authentication decides and not the window.
        altered[8..16].copy_from_slice(&50_000u64.to_le_bytes());
        ensure!(attacker::send(&web.host, to, &altered, Duration::from_millis(20))?.is_none());
    }
    eventually("replays are counted", IN_FORCE, || Ok(drops(&bank, "replayed")? > before_answers))?;
    eventually("alterations are counted", IN_FORCE, || Ok(drops(&bank, "bad-authentication")? > 0))?;
    super::must_answer(&web, bank.at(8080)?)
}

fn plaintext() -> Result<()> {
    let (mesh, web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    let capture = mesh.lab.capture()?;
    wait_until_allowed(&web, &bank)?;
    for address in bank.addresses()? {
        super::must_answer(&web, (address, 8080).into())?;
        web.host.udp((address, 8080).into(), ANSWER_TEXT, ANSWER)?;
    }
    let frames = capture.frames().len();
    ensure!(frames > 20, "only {frames} frames were captured: they prove nothing");
    ensure!(capture.frames_with(ANSWER_TEXT) == 0 && capture.frames_with(b"question") == 0, "plaintext on the wire");
    Ok(())
}

/// A capture smaller than this proves nothing.
const ENOUGH: u64 = 5_000;

/// The same with the tool that an auditor would use.
fn tcpdump() -> Result<()> {
    let Some(program) = find_program("tcpdump")? else { return Ok(()) };
    if warren_netns_tests::namespace::is_user_namespace()? {
        // tcpdump changes its user at start, which an ordinary user's namespace forbids; the claim above looks with our own socket.
        let _ = writeln!(std::io::stderr(), "not for an ordinary user: tcpdump must be able to change its user");
        return Ok(());
    }
    let (mesh, web, bank) = web_and_bank(&[])?;
    let file = mesh.lab.directory().join("wire.pcap");
    let log = mesh.lab.directory().join("tcpdump.log");
    let mut command = Command::new(program);
    // Unbuffered, whole packets; staying root, whom a user namespace cannot leave. The capture is its standard output, so that
    // it need not open a file.
    command.args(["-i", BRIDGE, "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w", "-"]);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&file)?).stderr(std::fs::File::create(&log)?);
    let mut capture = mesh.lab.wire.spawn(&mut command)?;
    eventually("tcpdump listens", IN_FORCE, || Ok(std::fs::read_to_string(&log)?.contains("listening on")))
        .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
    let talked = wait_until_allowed(&web, &bank);
    // What was sent last has been written once the file has stopped growing.
    let mut size = 0;
    let settled = eventually("the capture settles", IN_FORCE, || {
        let before = std::mem::replace(&mut size, std::fs::metadata(&file)?.len());
        std::thread::sleep(Duration::from_millis(200));
        Ok(size > ENOUGH && size == before)
    });
    capture.kill()?;
    capture.wait()?;
    talked.and(settled)?;
    let captured = std::fs::read(&file)?;
    for secret in [ANSWER_TEXT, b"question"] {
        let found = captured.windows(secret.len()).any(|window| window == secret);
        ensure!(!found, "tcpdump found {:?} in clear", String::from_utf8_lossy(secret));
    }
    Ok(())
}

/// A program that not every machine has. Where `WARREN_TEST_ALL` is set, its absence is a failure.
fn find_program(name: &str) -> Result<Option<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(more).map(|place| place.join(name)).find(|path| path.is_file());
    if found.is_none() {
        super::absent(name)?;
    }
    Ok(found)
}
