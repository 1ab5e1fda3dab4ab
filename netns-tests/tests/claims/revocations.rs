//! Every kind of revocation ends live flows at their far end, is acknowledged, and is told to who was away.
//!
//! ```text
//!   coordinator   web-N ---- one TCP connection each, accepted and held ---- bank-1   (audit-1: away at first)
//!   ==========================================================================================================
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use warren_netns_tests::host::{ANSWER, Outcome};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{BANK, POLICY, WEB, claim, text};

/// Revocations measured by the run that prints how long a cut takes.
const MEASURED: usize = 50;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("revocations::each_kind_cuts_a_live_flow_is_acknowledged_and_lets_nothing_in_again", each_kind),
        claim("revocations::a_node_that_was_away_hears_of_it_before_it_lets_anybody_in", replayed),
        claim("revocations::measure_the_time_until_a_revocation_has_cut_among_3_nodes", || measure(3))
            .with_ignored_flag(true),
        claim("revocations::measure_the_time_until_a_revocation_has_cut_among_100_nodes", || measure(100))
            .with_ignored_flag(true),
    ]
}

/// What a revocation can name of a node, read where an administrator reads it.
struct Names {
    node: String,
    instance: String,
    tunnel_key: String,
    serial: String,
    issuer: String,
}

impl Names {
    fn of(node: &Node) -> Result<Self> {
        let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        let shown = node.say(&["cert", "show", "-o", "json"])?.expect(0)?.json()?;
        let items = shown["items"].as_array().context("certificates")?;
        let tunnel = items.iter().find(|item| item["tunnelKey"].is_string()).context("a tunnel certificate")?;
        Ok(Self {
            node: text(&status, "node").to_owned(),
            instance: text(&status["instances"][0], "instance").to_owned(),
            tunnel_key: Self::tunnel_key(&status["instances"][0])?,
            serial: text(tunnel, "serial").to_owned(),
            issuer: text(tunnel, "issuerKeyId").to_owned(),
        })
    }

    /// From base64, as the node shows it, to hexadecimal, as the coordinator does.
    fn tunnel_key(instance: &Value) -> Result<String> {
        use base64::Engine;
        let key = base64::engine::general_purpose::STANDARD.decode(text(instance, "tunnelKey"))?;
        Ok(key.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A connection from `web` to the service: its two ends.
fn connection(web: &Node, bank: &Node, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let api = bank.at(8080)?;
    let mut caller = None;
    eventually("the caller connects", IN_FORCE, || {
        caller = web.host.connect(api, ANSWER).ok();
        Ok(caller.is_some())
    })?;
    let mut caller = caller.context("connected")?;
    caller.write_all(b"x").context("the flow carries data")?;
    // Tries that were given up may have been accepted as well: the one that carries the byte is meant.
    loop {
        let (mut service, _) = listener.accept()?;
        service.set_read_timeout(Some(Duration::from_secs(5)))?;
        if matches!(service.read(&mut [0; 1]), Ok(1)) {
            return Ok((caller, service));
        }
    }
}

/// Waits until the service's end is dead: its own read ends with something else than "nothing yet".
fn wait_for_cut(service: &mut TcpStream, within: Duration) -> Result<()> {
    service.set_read_timeout(Some(within))?;
    match service.read(&mut [0; 1]) {
        Ok(0) => Ok(()),
        Ok(_) => anyhow::bail!("data came over a revoked flow"),
        Err(error) => {
            use std::io::ErrorKind;
            let cut = !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            ensure!(cut, "the service's connection outlived the revocation");
            Ok(())
        }
    }
}

fn listen(bank: &Node) -> Result<TcpListener> {
    let api = bank.at(8080)?;
    bank.host.namespace.run(|| Ok(TcpListener::bind(api)?))
}

fn each_kind() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let bank = mesh.node("bank-1", BANK)?;
    let listener = listen(&bank)?;
    type Kind = (&'static str, fn(&Names) -> Vec<String>);
    let kinds: [Kind; 6] = [
        ("certificate", |names| vec!["--certificate".into(), format!("{}:{}", names.issuer, names.serial)]),
        ("tunnel key", |names| vec!["--tunnel-key".into(), names.tunnel_key.clone()]),
        ("instance", |names| vec!["--instance".into(), names.instance.clone()]),
        ("node", |names| vec!["--node".into(), names.node.clone()]),
        ("identity", |_| vec!["--identity".into(), WEB.into()]),
        // Last: the service's own certificate stands under it, too.
        ("issuer", |names| vec!["--issuer".into(), names.issuer.clone()]),
    ];
    // They live to the end: a node that goes without a word counts as connected until its link times out.
    let mut callers = Vec::new();
    for (number, (kind, target)) in kinds.iter().enumerate() {
        let web = mesh.node(&format!("web-{number}"), WEB)?;
        let (_caller, mut service) = connection(&web, &bank, &listener).with_context(|| format!("before {kind}"))?;
        let target = target(&Names::of(&web)?);
        let mut command = vec!["revocation", "create", "--yes", "--wait", "30s", "-m", "a test"];
        command.extend(target.iter().map(String::as_str));
        let answer = mesh.coordinator.say(&command)?;
        // Whoever stands under a revoked issuer loses its link, and cannot acknowledge any more.
        ensure!(answer.code == Some(0) || *kind == "issuer", "{kind}: {answer:#?}");
        wait_for_cut(&mut service, Duration::from_secs(10)).with_context(|| format!("by {kind}"))?;
        let (outcome, _) = web.host.tcp(bank.at(8080)?, b"x", Duration::from_secs(3))?;
        ensure!(outcome != Outcome::Connected, "what was revoked by {kind} was let in again");
        let listed = mesh.coordinator.say(&["revocation", "list", "-o", "json"])?.expect(0)?.json()?;
        let count = listed["items"].as_array().map_or(0, Vec::len);
        ensure!(count == number + 1, "{count} revocations are listed after {kind}");
        callers.push(web);
    }
    Ok(())
}

fn replayed() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut bank = mesh.node("bank-1", BANK)?;
    let web = mesh.node("web-1", WEB)?;
    let listener = listen(&bank)?;
    drop(connection(&web, &bank, &listener)?);
    drop(listener);
    let instance = Names::of(&web)?.instance;
    bank.stop()?;
    mesh.coordinator.say(&["revocation", "create", "--instance", &instance, "--yes"])?.expect(0)?;
    bank.start()?;
    let listener = listen(&bank)?;
    listener.set_nonblocking(true)?;
    eventually("the service's node has the revocation", IN_FORCE, || {
        let nodes = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        Ok(nodes.iter().any(|node| {
            let link = &node["link"];
            text(node, "hostName") == "bank-1"
                && link["acknowledged"].is_object()
                && link["acknowledged"] == link["told"]
        }))
    })?;
    let (outcome, _) = web.host.tcp(bank.at(8080)?, b"x", Duration::from_secs(3))?;
    ensure!(outcome != Outcome::Connected, "who was revoked meanwhile was let in");
    ensure!(listener.accept().is_err(), "and reached the service");
    Ok(())
}

/// From the start of the administrator's command until the service's own socket is dead: the command's start, the commit,
/// the push, the cut; and until every node has acknowledged, which the command waits for. `nodes` are connected each time.
/// Prints the distributions; says nothing of what they ought to be.
#[allow(clippy::print_stderr, reason = "the figures are what it is run for")]
fn measure(nodes: usize) -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let bank = mesh.node("bank-1", BANK)?;
    let listener = listen(&bank)?;
    let others = (2..nodes).map(|number| mesh.node(&format!("o{number}"), WEB)).collect::<Result<Vec<_>>>()?;
    let (mut cuts, mut acknowledgements) = (Vec::with_capacity(MEASURED), Vec::with_capacity(MEASURED));
    for number in 0..MEASURED {
        let mut web = mesh.node(&format!("w{number}"), WEB)?;
        let (_caller, mut service) = connection(&web, &bank, &listener)?;
        let instance = Names::of(&web)?.instance;
        service.set_read_timeout(Some(Duration::from_secs(20)))?;
        let begun = Instant::now();
        let cut =
            std::thread::spawn(move || wait_for_cut(&mut service, Duration::from_secs(20)).map(|()| Instant::now()));
        mesh.coordinator
            .say(&["revocation", "create", "--instance", &instance, "--yes", "--wait", "30s"])?
            .expect(0)?;
        acknowledgements.push(begun.elapsed());
        cuts.push(cut.join().ok().context("the waiting thread")??.duration_since(begun));
        web.stop()?;
    }
    for (what, times) in [("the service's socket is dead", &mut cuts), ("all have acknowledged", &mut acknowledgements)]
    {
        times.sort();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        let connected = others.len() + 2;
        eprintln!(
            "{connected} nodes, {MEASURED} revocations; {what} after the command began: p50 {:?}, p99 {:?}",
            at(50),
            at(99)
        );
    }
    Ok(())
}
