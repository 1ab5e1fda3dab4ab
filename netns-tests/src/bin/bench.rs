//! `cargo bench-mesh`: how fast the mesh is on this machine, beside the bare wire and beside other userspace tunnels, in
//! alternating rounds.
//!
//! ```text
//!   a ====tunnel==== b        coordinator
//!   a eth1 --veth-- eth1 b       |            the measured wire
//!   ======================================    the lab's bridge, for the control link
//! ```

#![allow(clippy::print_stdout, reason = "the benchmark prints its table")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use warren_netns_tests::bench::contender::{Contender, Peer, Suite};
use warren_netns_tests::bench::cost::{Meter, resident};
use warren_netns_tests::bench::link::{self, Wire};
use warren_netns_tests::bench::load;
use warren_netns_tests::bench::report::{Report, machine};
use warren_netns_tests::bench::round_trips::{self, RoundTrips, Until};
use warren_netns_tests::namespace;
use warren_netns_tests::processes::eventually;

const USAGE: &str = "\
How fast the mesh is on this machine: two hosts over veth, identities and an allow list on.

Usage: cargo bench-mesh [-- OPTIONS]

  --rounds N          alternating rounds of every contender (default 3)
  --seconds N         length of each load (default 4)
  --suite LIST        aes, chacha or both: the cipher of our nodes and of nebula (default aes)
  --veth LIST         offload (as made), nic (the kernel segments just before the device and merges after it, as
                      with a network card that cannot) or none (every packet by itself) (default offload)
  --congestion NAME   congestion control of the load's TCP (default cubic, the kernel's own default)
  --loads LIST        of tcp, streams (reverse and four), udp, rtt, loaded, first (default all)
  --peer NAME=PATH    also measure this program: nebula (nebula-cert beside it), or any userspace WireGuard with the
                      cross-platform configuration socket; may be repeated. NAME=PATH,buffers=BYTES sets nebula's
                      socket buffers
  --warren YAML       keys added to our nodes' configuration, for example 'tunnel: { workers: 1 }'
  --also NAME=YAML    our nodes once more, as another contender with these keys; may be repeated
  --no-raw            leave out the bare wire
  --json FILE         write every figure of every round
  --help              this text

Every suite is measured on every kind of veth. Figures compare within one run only: a machine that others share changes
from minute to minute. Processor seconds per gigabyte are what such a machine disturbs least.";

/// How long a contender may take to carry its first packet.
const PATIENCE: Duration = Duration::from_secs(20);

/// What can be measured, in the order in which it is.
const LOADS: [&str; 6] = ["first", "tcp", "streams", "udp", "rtt", "loaded"];

#[derive(Debug, Clone)]
enum Entry {
    Raw,
    Warren { name: String, configuration: String },
    Peer(Peer),
}

impl Entry {
    fn name(&self) -> &str {
        match self {
            Self::Raw => "raw",
            Self::Warren { name, .. } => name,
            Self::Peer(peer) => &peer.name,
        }
    }
}

struct Options {
    rounds: usize,
    time: Duration,
    suites: Vec<Suite>,
    wires: Vec<Wire>,
    congestion: String,
    loads: Vec<String>,
    entries: Vec<Entry>,
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
        suites: vec![Suite::Aes],
        wires: vec![Wire::Offload],
        congestion: "cubic".to_owned(),
        loads: LOADS.map(str::to_owned).to_vec(),
        entries: Vec::new(),
        json: None,
    };
    let (mut raw, mut warren, mut others) = (true, String::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse::<usize>().context("--rounds takes a number")?.clamp(1, 50),
            "--seconds" => {
                let seconds = value()?.parse::<u64>().context("--seconds takes a number")?;
                options.time = Duration::from_secs(seconds.clamp(1, 60));
            }
            "--suite" => options.suites = value()?.split(',').map(suite).collect::<Result<_>>()?,
            "--veth" => options.wires = value()?.split(',').map(str::parse).collect::<Result<_>>()?,
            "--congestion" => options.congestion = value()?,
            "--loads" => options.loads = value()?.split(',').map(load_named).collect::<Result<_>>()?,
            "--peer" => others.push(Entry::Peer(peer(&value()?)?)),
            "--warren" => warren = value()? + "\n",
            "--also" => {
                let value = value()?;
                let (name, configuration) = value.split_once('=').context("--also takes NAME=YAML")?;
                others.push(Entry::Warren { name: name.to_owned(), configuration: format!("{configuration}\n") });
            }
            "--no-raw" => raw = false,
            "--json" => options.json = Some(PathBuf::from(value()?)),
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument {other:?}"),
        }
    }
    let ours = Entry::Warren { name: "warren".to_owned(), configuration: warren };
    options.entries = raw.then_some(Entry::Raw).into_iter().chain([ours]).chain(others).collect();
    let mut names: Vec<_> = options.entries.iter().map(Entry::name).collect();
    names.sort_unstable();
    ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "two contenders have one name");
    Ok(Some(options))
}

fn suite(text: &str) -> Result<Suite> {
    let found = [Suite::Aes, Suite::ChaCha].into_iter().find(|suite| suite.name() == text);
    found.with_context(|| format!("{text:?} is not one of aes, chacha"))
}

fn load_named(text: &str) -> Result<String> {
    ensure!(LOADS.contains(&text), "{text:?} is not one of {}", LOADS.join(", "));
    Ok(text.to_owned())
}

fn peer(text: &str) -> Result<Peer> {
    let (name, rest) = text.split_once('=').context("--peer takes NAME=PATH")?;
    let (path, buffers) = match rest.split_once(",buffers=") {
        Some((path, bytes)) => (path, Some(bytes.parse().context("buffers= takes a number of bytes")?)),
        None => (rest, None),
    };
    // Before the mounts change: a relative path means where the person stands.
    let program = PathBuf::from(path).canonicalize().with_context(|| format!("--peer {path}"))?;
    Ok(Peer { name: name.to_owned(), program, buffers })
}

fn bench(options: &Options) -> Result<()> {
    let machine = machine();
    namespace::enter()?;
    println!("{machine}\n{} rounds, {} s each load, {}", options.rounds, options.time.as_secs(), options.congestion);
    let mut tables = Vec::new();
    for suite in &options.suites {
        for wire in &options.wires {
            let report = table(options, *suite, *wire)?;
            println!("\nsuite {}, veth {}\n{}", suite.name(), wire.name(), report.table());
            tables.push(json!({ "suite": suite.name(), "veth": wire.name(), "figures": report.json() }));
        }
    }
    if let Some(path) = &options.json {
        let all = json!({
            "apiVersion": "warren-bench/v2",
            "machine": machine,
            "rounds": options.rounds,
            "seconds": options.time.as_secs(),
            "congestionControl": options.congestion,
            "tables": tables,
        });
        std::fs::write(path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn table(options: &Options, suite: Suite, wire: Wire) -> Result<Report> {
    let mut entries = options.entries.clone();
    let mut report = Report::of(entries.iter().map(|entry| entry.name().to_owned()).collect());
    for round in 1..=options.rounds {
        complain(&format!("suite {}, veth {}, round {round} of {}", suite.name(), wire.name(), options.rounds));
        for entry in &entries {
            let mut run = || -> Result<()> {
                let contender = match entry {
                    Entry::Raw => Contender::raw(wire),
                    Entry::Warren { configuration, .. } => Contender::warren(wire, suite, configuration),
                    Entry::Peer(peer) => Contender::peer(peer, wire, suite),
                }?;
                measure(entry.name(), contender, suite, options, &mut report)
            };
            run().with_context(|| entry.name().to_owned())?;
        }
        // Nobody always follows on the same other one.
        entries.rotate_left(1);
    }
    Ok(report)
}

/// Runs `work` and gives its result with the daemons' processor seconds meanwhile.
fn metered<T>(processes: &[u32], work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = Meter::read(processes)?;
    let result = work()?;
    Ok((result, Meter::read(processes)?.since(&before).as_secs_f64()))
}

fn measure(name: &str, mut contender: Contender, suite: Suite, options: &Options, report: &mut Report) -> Result<()> {
    let (processes, time) = (contender.processes()?, options.time);
    let (inner_a, inner_b) = contender.addresses();
    let (a, b) = (contender.a(), contender.b());
    for host in [a, b] {
        link::set_congestion_control(host, &options.congestion)?;
    }
    let to = |port: u16| SocketAddr::new(inner_b, port);
    let wanted = |load: &str| options.loads.iter().any(|it| it == load);
    if wanted("first") {
        report.add(name, "first", round_trips::first(a, b, to(5000))?.as_secs_f64() * 1e3);
    }
    eventually("a reaches b", PATIENCE, || Ok(round_trips::tcp(a, b, to(5000), Until::Count(20)).is_ok()))?;
    check_suite(&contender, suite)?;

    if wanted("tcp") {
        let (carried, cpu) = metered(&processes, || load::tcp(a, b, to(5001), 1, time))?;
        report.add(name, "tcp-1", carried.gigabits());
        report.add(name, "tcp-1-cpu", cpu / (carried.bytes as f64 / 1e9));
        report.add(name, "tcp-1-retransmits", carried.retransmits as f64);
    }
    if wanted("streams") {
        let back = load::tcp(b, a, SocketAddr::new(inner_a, 5002), 1, time)?;
        report.add(name, "tcp-reverse", back.gigabits());
        let (carried, cpu) = metered(&processes, || load::tcp(a, b, to(5003), 4, time))?;
        report.add(name, "tcp-4", carried.gigabits());
        report.add(name, "tcp-4-cpu", cpu / (carried.bytes as f64 / 1e9));
    }
    if wanted("udp") {
        let (flood, cpu) = metered(&processes, || load::udp(a, b, to(5004), 1372, time))?;
        report.add(name, "udp-1372", flood.gigabits());
        report.add(name, "udp-1372-cpu", cpu / ((flood.delivered * 1372) as f64 / 1e9));
        report.add(name, "udp-1372-loss", (1.0 - flood.delivered as f64 / flood.sent.max(1) as f64) * 100.0);
        let (small, cpu) = metered(&processes, || load::udp(a, b, to(5005), 64, time))?;
        report.add(name, "udp-64", small.delivered as f64 / 1e3 / small.elapsed.as_secs_f64());
        report.add(name, "udp-64-cpu", cpu * 1e6 / small.delivered.max(1) as f64);
        report.add(name, "reordered", (flood.reordered + small.reordered) as f64);
    }
    let mut trips = |p50, p99, trips: RoundTrips| {
        report.add(name, p50, trips.p50);
        report.add(name, p99, trips.p99);
    };
    if wanted("rtt") {
        trips("rtt-udp-p50", "rtt-udp-p99", round_trips::udp(a, b, to(5006), Until::Count(3000))?);
        trips("rtt-tcp-p50", "rtt-tcp-p99", round_trips::tcp(a, b, to(5007), Until::Count(3000))?);
    }
    if wanted("loaded") {
        let until = Until::Elapsed(time);
        let udp = load::beside_stream(a, b, to(5008), time, || round_trips::udp(a, b, to(5009), until))?;
        trips("loaded-udp-p50", "loaded-udp-p99", udp);
        let tcp = load::beside_stream(a, b, to(5010), time, || round_trips::tcp(a, b, to(5011), until))?;
        trips("loaded-tcp-p50", "loaded-tcp-p99", tcp);
    }
    let resident = processes.iter().map(|id| resident(*id)).collect::<Result<Vec<_>>>()?;
    if let Some(most) = resident.iter().max() {
        report.add(name, "rss", *most as f64 / (1024.0 * 1024.0));
    }
    Ok(())
}

/// A table that names the wrong cipher would be worse than none.
fn check_suite(contender: &Contender, suite: Suite) -> Result<()> {
    let expected = match suite {
        Suite::Aes => "aes-256-gcm",
        Suite::ChaCha => "chacha20-poly1305",
    };
    match contender.suite()? {
        Some(other) if other != expected => bail!("the session has {other}, not {expected}"),
        _ => Ok(()),
    }
}
