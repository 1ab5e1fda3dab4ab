//! `cargo bench-mesh`: how fast the mesh is on this machine, beside the bare wire and beside any WireGuard
//! userspace program, in alternating rounds.
//!
//! ```text
//!   a ====tunnel==== b        coordinator
//!   ======================================   veth pairs on one bridge
//! ```

#![allow(clippy::print_stdout, reason = "the benchmark prints its table")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use warren_netns_tests::bench::contender::Contender;
use warren_netns_tests::bench::cost::{Meter, resident};
use warren_netns_tests::bench::load;
use warren_netns_tests::bench::report::{Report, machine};
use warren_netns_tests::namespace;
use warren_netns_tests::processes::eventually;

const USAGE: &str = "\
How fast the mesh is on this machine: two hosts over veth, identities and an allow list on.

Usage: cargo bench-mesh [-- OPTIONS]

  --rounds N         alternating rounds of every contender (default 3)
  --seconds N        length of each load (default 4)
  --peer NAME=PATH   also measure this WireGuard userspace program; may be repeated
  --warren YAML      keys added to our nodes' configuration, for example 'tunnel: { workers: 1 }'
  --no-raw           leave out the bare wire
  --json FILE        write every figure of every round
  --help             this text

Figures compare within one run only: a machine that others share changes from minute to minute.";

/// How long a contender may take to carry its first packet.
const PATIENCE: Duration = Duration::from_secs(20);

struct Options {
    rounds: usize,
    time: Duration,
    peers: Vec<(String, PathBuf)>,
    warren: String,
    raw: bool,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match options(std::env::args().skip(1)) {
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Some(options)) => bench(&options),
        Err(error) => {
            complain(&format!("{error:#}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    use std::io::Write;
    // A closed stderr cannot be told anything.
    let _ = writeln!(std::io::stderr(), "bench-mesh: {text}");
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        rounds: 3,
        time: Duration::from_secs(4),
        peers: Vec::new(),
        warren: String::new(),
        raw: true,
        json: None,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse::<usize>().context("--rounds takes a number")?.clamp(1, 50),
            "--seconds" => {
                let seconds = value()?.parse::<u64>().context("--seconds takes a number")?;
                options.time = Duration::from_secs(seconds.clamp(1, 60));
            }
            "--peer" => {
                let value = value()?;
                let (name, path) = value.split_once('=').context("--peer takes NAME=PATH")?;
                options.peers.push((name.to_owned(), PathBuf::from(path)));
            }
            "--warren" => options.warren = value()? + "\n",
            "--no-raw" => options.raw = false,
            "--json" => options.json = Some(PathBuf::from(value()?)),
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument {other:?}"),
        }
    }
    Ok(Some(options))
}

fn bench(options: &Options) -> Result<()> {
    // Before the mounts change: a relative path means where the person stands.
    let peers = options
        .peers
        .iter()
        .map(|(name, path)| Ok((name, path.canonicalize().with_context(|| format!("--peer {}", path.display()))?)))
        .collect::<Result<Vec<_>>>()?;
    namespace::enter()?;
    let machine = machine();
    println!("{machine}\n{} rounds, {} s each load\n", options.rounds, options.time.as_secs());
    let mut report = Report::default();
    for round in 1..=options.rounds {
        complain(&format!("round {round} of {}", options.rounds));
        if options.raw {
            measure("raw", Contender::raw()?, options.time, &mut report)?;
        }
        measure("warren", Contender::warren(&options.warren)?, options.time, &mut report)?;
        for (name, path) in &peers {
            let contender = Contender::wireguard(path).with_context(|| format!("peer {name}"))?;
            measure(name, contender, options.time, &mut report).with_context(|| format!("peer {name}"))?;
        }
    }
    println!("{}", report.table());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json(&machine))?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Runs `work` and gives its result with the daemons' processor seconds meanwhile.
fn metered<T>(processes: &[u32], work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = Meter::read(processes)?;
    let result = work()?;
    Ok((result, Meter::read(processes)?.since(&before).as_secs_f64()))
}

fn measure(name: &str, mut contender: Contender, time: Duration, report: &mut Report) -> Result<()> {
    let processes = contender.processes()?;
    let (inner_a, inner_b) = contender.addresses()?;
    let (a, b) = (contender.a(), contender.b());
    let to = |port: u16| SocketAddr::new(inner_b, port);
    // The first packet brings the tunnel up and is not timed; before that the hosts have yet to hear of each other.
    eventually("a reaches b", PATIENCE, || Ok(load::tcp_round_trips(a, b, to(5000), 20).is_ok()))?;

    let (carried, cpu) = metered(&processes, || load::tcp(a, b, to(5001), 1, time))?;
    report.add(name, "tcp-1", carried.gigabits());
    report.add(name, "tcp-1-cpu", cpu / (carried.bytes as f64 / 1e9));
    let back = load::tcp(b, a, SocketAddr::new(inner_a, 5002), 1, time)?;
    report.add(name, "tcp-reverse", back.gigabits());
    let (carried, cpu) = metered(&processes, || load::tcp(a, b, to(5003), 4, time))?;
    report.add(name, "tcp-4", carried.gigabits());
    report.add(name, "tcp-4-cpu", cpu / (carried.bytes as f64 / 1e9));

    let (flood, cpu) = metered(&processes, || load::udp(a, b, to(5004), 1372, time))?;
    report.add(name, "udp-1372", flood.gigabits());
    report.add(name, "udp-1372-cpu", cpu / ((flood.delivered * 1372) as f64 / 1e9));
    report.add(name, "udp-1372-loss", (1.0 - flood.delivered as f64 / flood.sent.max(1) as f64) * 100.0);
    let small = load::udp(a, b, to(5005), 64, time)?;
    report.add(name, "udp-64", small.delivered as f64 / 1e3 / small.elapsed.as_secs_f64());
    report.add(name, "reordered", (flood.reordered + small.reordered) as f64);

    let udp = load::udp_round_trips(a, b, to(5006), 2000)?;
    report.add(name, "rtt-udp-p50", udp.p50);
    report.add(name, "rtt-udp-p99", udp.p99);
    let tcp = load::tcp_round_trips(a, b, to(5007), 2000)?;
    report.add(name, "rtt-tcp-p50", tcp.p50);
    report.add(name, "rtt-tcp-p99", tcp.p99);
    if let Some(first) = processes.first() {
        report.add(name, "rss", resident(*first)? as f64 / (1024.0 * 1024.0));
    }
    Ok(())
}
