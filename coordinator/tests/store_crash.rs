//! The store against the end of its process, and against a disk that is really full.
//!
//! This program is both the test and the writer it kills: started with `writer DIRECTORY` it commits as fast as it can
//! and prints every revision after its acknowledgement.

// Without libtest's harness the lints do not see that all of this is a test.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_coordinator::audit;
use warren_coordinator::store::{
    Commit, OpenError, Options, Outcome, Read, Seams, SledStore, Store, StoreError, Write,
};

/// Enough for hundreds of kills and short enough for every run of the tests.
const BUDGET: Duration = Duration::from_secs(35);

/// More cycles than this show nothing new.
const CYCLES: u32 = 400;

/// How many keys the writers go round in.
const KEYS: u64 = 512;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["writer", directory] => return writer(Path::new(directory)),
        ["full-disk", directory] => return on_a_full_disk(Path::new(directory)),
        ["--list", ..] => return ExitCode::SUCCESS,
        _ => {}
    }
    let wanted = |name: &str| arguments.iter().all(|filter| filter.starts_with('-') || name.contains(filter.as_str()));
    if wanted("nothing_acknowledged_is_lost_when_the_process_is_killed") {
        nothing_acknowledged_is_lost_when_the_process_is_killed();
    }
    if wanted("a_full_disk_stops_the_store_and_loses_nothing") {
        a_full_disk_stops_the_store_and_loses_nothing();
    }
    ExitCode::SUCCESS
}

fn options(directory: &Path) -> Options {
    Options { keep_free: 0, keep_free_percent: 0, ballast: 0, any_file_system: true, ..Options::new(directory) }
}

fn open(directory: &Path) -> SledStore {
    match SledStore::open(options(directory), Seams::default()) {
        Err(OpenError::Missing(_)) => SledStore::create(options(directory), Seams::default()),
        other => other,
    }
    .expect("the store opens after a kill")
}

/// The value a key has after the commit of a number: it names the number and fills some space.
fn value(number: u64) -> Vec<u8> {
    let fill = u8::try_from(number % 251).unwrap_or_default();
    [number.to_be_bytes().as_slice(), &vec![fill; usize::try_from(number % 600).unwrap_or_default()]].concat()
}

fn key(number: u64) -> Vec<u8> {
    [b"state/".as_slice(), &(number % KEYS).to_be_bytes()].concat()
}

/// Commits `n` sets `state/counter` to n and one key of the ring, and appends to the audit log; it is to be revision n.
fn commit(number: u64, chain: &audit::Chain) -> (Commit, audit::Chain) {
    let draft = audit::Draft {
        time: warren_proto::UnixTime(number),
        who: "writer".to_owned(),
        action: "counter.set".to_owned(),
        object: number.to_string(),
        old: None,
        new: None,
        why: String::new(),
    };
    let appended = chain.append([draft]);
    let mut writes = appended.writes;
    writes.push(Write::put(b"state/counter", number.to_be_bytes()));
    writes.push(Write::put(key(number), value(number)));
    (Commit::new(appended.compares, writes), appended.tail)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn writer(directory: &Path) -> ExitCode {
    let store = Arc::new(open(directory));
    runtime().block_on(async {
        let mut chain = audit::Chain::load(&*store).await.expect("the chain loads");
        let mut number = store.health().revision.0;
        let mut out = std::io::stdout().lock();
        loop {
            // Several in flight, so that groups of more than one are cut as well.
            let mut waiting = Vec::new();
            for _ in 0..1 + number % 7 {
                number += 1;
                let (commit, tail) = commit(number, &chain);
                chain = tail;
                let store = Arc::clone(&store);
                waiting.push(tokio::spawn(async move { store.commit(commit).await }));
            }
            for commit in waiting {
                match commit.await.expect("no panic") {
                    Ok(Outcome::Committed { revision, .. }) => writeln!(out, "{revision}").expect("the test reads"),
                    Ok(Outcome::Conflict { .. }) => return ExitCode::from(3),
                    Err(error) => {
                        writeln!(out, "error {error}").expect("the test reads");
                        return ExitCode::from(if error.is_fatal() { 4 } else { 5 });
                    }
                }
            }
        }
    })
}

/// Opens the store as the next start would and checks all that commits 1 to its revision must have left.
fn check(directory: &Path, acknowledged: u64) -> u64 {
    let store = open(directory);
    let revision = store.health().revision.0;
    assert!(revision >= acknowledged, "revision {acknowledged} was acknowledged and {revision} was found");
    runtime().block_on(async {
        let entries = store.snapshot(Read::all(b"state/")).await.expect("a snapshot").entries;
        let found = |key: &[u8]| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_slice());
        if revision > 0 {
            assert_eq!(found(b"state/counter"), Some(revision.to_be_bytes().as_slice()));
        }
        for number in revision.saturating_sub(KEYS - 1).max(1)..=revision {
            assert_eq!(found(&key(number)), Some(value(number).as_slice()), "the value of commit {number}");
        }
        // The audit log has exactly one entry per commit: neither exists without the other.
        let verified = audit::verify(&store).await.expect("the audit chain holds");
        assert_eq!(verified.last, revision);
    });
    revision
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args([Path::new("writer"), directory])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts")
}

/// Reads what was acknowledged before the end of the process; a last line may be cut off.
fn last_acknowledged(lines: impl Iterator<Item = std::io::Result<String>>, before: u64) -> u64 {
    lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).fold(before, u64::max)
}

fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("state");
    let began = Instant::now();
    let (mut cycles, mut revision) = (0, 0);
    while cycles < CYCLES && began.elapsed() < BUDGET {
        let mut child = start(&store);
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Anywhere from the opening of the store to some hundred commits later.
        let commits = rand::random_range(0..60);
        let acknowledged = last_acknowledged(lines.by_ref().take(commits), revision);
        std::thread::sleep(Duration::from_micros(rand::random_range(0..4_000)));
        child.kill().expect("SIGKILL");
        let acknowledged = last_acknowledged(lines, acknowledged);
        child.wait().expect("the writer is reaped");
        // Mostly the next writer opens what the kill left; it begins at the revision it finds, so a loss would show later
        // as well.
        revision = if cycles % 4 == 0 { check(&store, acknowledged) } else { acknowledged };
        cycles += 1;
    }
    let revision = check(&store, revision);
    println!("kill -9: {cycles} cycles, {revision} commits, none lost");
    assert!(cycles >= 20, "only {cycles} cycles in {BUDGET:?}");
}

/// Runs itself on a file system of 24 MiB, in a mount namespace of its own.
fn a_full_disk_stops_the_store_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = r#"mount -t tmpfs -o size=24m tmpfs "$2" && exec "$1" full-disk "$2""#;
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .arg(directory.path())
        .output();
    match ran {
        Ok(output) if output.status.success() => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Ok(output) if output.status.code() == Some(101) || output.status.code() == Some(7) => {
            panic!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
        other => println!("skipped: no small file system can be mounted here ({other:?})"),
    }
}

fn on_a_full_disk(directory: &Path) -> ExitCode {
    let state: PathBuf = directory.join("state");
    let mut child = start(&state);
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let acknowledged = last_acknowledged(lines, 0);
    let status = child.wait().expect("the writer ends by itself");
    if status.code() != Some(4) {
        println!("the writer ended with {status} instead of naming a fatal error");
        return ExitCode::from(7);
    }
    // Room comes back in the shape of the ballast; here, of the file system itself.
    // With its type and source named: in an ordinary user's namespace `mount` would else repeat options (the owner's number)
    // that mean another number there.
    let remount = ["-t", "tmpfs", "-o", "remount,size=96m", "tmpfs"];
    let grown = Command::new("mount").args(remount).arg(directory).status();
    assert!(grown.is_ok_and(|status| status.success()), "the file system grows");
    let revision = check(&state, acknowledged);
    println!("full disk: {acknowledged} commits acknowledged, {revision} found, none lost");
    // With the guard on, the same disk refuses before the engine is touched.
    let guarded = Options { keep_free: 1 << 30, ..options(&state) };
    let store = SledStore::open(guarded, Seams::default()).expect("the store opens");
    let refused = runtime().block_on(store.commit(Commit::new(Vec::new(), vec![Write::put(b"k", b"v")])));
    assert!(matches!(refused, Err(StoreError::DiskFull { .. })));
    ExitCode::SUCCESS
}
