//! A flow is never seen to overtake itself: measured with numbered datagrams in both directions and a TCP stream
//! beside them, while its session is renewed and while the caller's host changes its network, with several numbers of
//! workers at either end.
//!
//! ```text
//!   coordinator   web-1, some workers  ---- numbered datagrams, a stream ---->  bank-1, some workers
//!   =================================================================================================
//!                 198.51.100.2 becomes 198.51.100.102
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use warren_netns_tests::host::{ANSWER, KEEP_OPEN};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;
use warren_netns_tests::sequence::Sequence;

use super::{ANSWER_TEXT, BANK, POLICY, WEB, claim, wait_until_allowed};

/// For new certificates at both ends and the move of their session to the new keys.
const RENEWED: Duration = Duration::from_secs(90);
/// Enough datagrams to show that the load runs.
const SOME: u64 = 2000;
/// Between two numbers of the stream: a load, not the most that the machine can do.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("order::no_flow_overtakes_itself_across_a_rekey_and_a_move_with_four_workers_at_each_end", || {
            order(4, 4)
        }),
        claim("order::no_flow_overtakes_itself_across_a_rekey_and_a_move_with_one_worker_and_three", || order(1, 3)),
    ]
}

fn with_workers(mesh: &mut Mesh, name: &str, workload: &str, count: u16) -> Result<Node> {
    let mut node = mesh.enrol(name, workload)?;
    node.configure(&format!("tunnel: {{ workers: {count} }}\n"))?;
    node.start()?;
    Ok(node)
}

/// What a node says of its one peer.
fn of_the_peer(node: &Node, field: &str) -> Result<serde_json::Value> {
    let status = node.say(&["status", "-o", "json"])?.expect(0)?.json()?;
    Ok(status["peers"][0][field].clone())
}

/// All of it runs on one core: when a program moves to another core, the kernel itself may let what it sends there overtake
/// what still lies in the queue of the first one.
fn order(callers: u16, called: u16) -> Result<()> {
    let on_one_core = || {
        let mine = Pid::from_raw(0);
        let allowed = sched_getaffinity(mine)?;
        let mut one = CpuSet::new();
        one.set((0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap_or(false)).context("a core")?)?;
        sched_setaffinity(mine, &one)?;
        keeps_order(callers, called)
    };
    // Of a thread's own, whose programs and threads inherit it.
    std::thread::scope(|scope| scope.spawn(on_one_core).join().map_err(|_| anyhow::anyhow!("the claim panicked"))?)
}

fn keeps_order(callers: u16, called: u16) -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut web = with_workers(&mut mesh, "web-1", WEB, callers)?;
    let bank = with_workers(&mut mesh, "bank-1", BANK, called)?;
    let service = bank.at(8080)?;
    bank.host.serve_tcp(service, ANSWER_TEXT)?;
    wait_until_allowed(&web, &bank)?;
    let stream = Stream::start(&web, service)?;
    let load = Sequence::start(&web.host, &bank.host, service)?;
    // By which number what was begun.
    let begun = std::cell::RefCell::new(Vec::new());
    let goes_on = |what: &'static str| {
        begun.borrow_mut().push((load.sent(), what));
        let before = load.received();
        eventually(what, IN_FORCE, || Ok(load.has_gone_on(before, SOME))).with_context(|| format!("{load:?}"))
    };
    goes_on("the load runs")?;

    // A new issuing certificate renews every other, tunnel keys too, and the session moves to the new keys.
    mesh.coordinator.say(&["ca", "rotate", "intermediate"])?.expect(0)?;
    eventually("the session is renewed", RENEWED, || Ok(web.process()?.log_text().contains("rekey=true")))
        .with_context(|| format!("{load:?}"))?;
    goes_on("the load runs on the new session")?;

    let (v4, v6) = (Ipv4Addr::new(198, 51, 100, 102), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66));
    web.host.move_to(v4, v6)?;
    eventually("the peer is followed to its new address", IN_FORCE, || {
        let endpoint: Option<SocketAddr> = of_the_peer(&bank, "endpoint")?.as_str().and_then(|text| text.parse().ok());
        Ok(endpoint.is_some_and(|at| [v4.into(), v6.into()].contains(&at.ip().to_canonical())))
    })?;
    goes_on("the load runs at the new address")?;

    ensure!(!web.process()?.log_text().contains("session down"), "the session before stood until then");
    let received = load.received();
    let overtaken = [load.there.overtaken(), load.back.overtaken()];
    let (there, back) = (Arc::clone(&load.there), Arc::clone(&load.back));
    load.end()?;
    let echoed = stream.end().context("the stream's bytes came back in order")?;
    let first = [there.first_overtaken(), back.first_overtaken()];
    ensure!(overtaken == [0, 0], "{overtaken:?} of {received:?} overtaken, the first {first:?}, of {begun:?}");
    ensure!(echoed > 0, "the stream went on");
    Ok(())
}

/// Numbers through one TCP connection, each sent when the one before has come back.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Stream {
    pub(super) fn start(from: &Node, to: SocketAddr) -> Result<Self> {
        let mut stream = from.host.connect(to, ANSWER)?;
        stream.set_read_timeout(Some(IN_FORCE))?;
        stream.write_all(KEEP_OPEN)?;
        stream.read_exact(&mut [0; KEEP_OPEN.len()])?;
        let (stop, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&echoed));
        let thread = std::thread::spawn(move || {
            // What is echoed begins with the words that keep the connection open.
            let mut block = [0; KEEP_OPEN.len() + 8];
            block[..KEEP_OPEN.len()].copy_from_slice(KEEP_OPEN);
            while !stopped.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed) + 1;
                block[KEEP_OPEN.len()..].copy_from_slice(&number.to_be_bytes());
                stream.write_all(&block)?;
                let mut back = block;
                stream.read_exact(&mut back).context("a number came back")?;
                ensure!(back == block, "{back:?} came back for {block:?}");
                count.store(number, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { stop, echoed, thread })
    }

    /// How many came back. An error when one did not, or came back as another.
    pub(super) fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the stream failed"))??;
        Ok(self.echoed.load(Ordering::Relaxed))
    }
}
