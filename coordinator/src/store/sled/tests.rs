//! The sled store under crashes, torn files and flipped bits, beside the conformance suite.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::store::{CommitId, SyncTarget, WatchEnd, Write, conformance};

/// The system, with syncs counted, and failures and free space as the test says.
#[derive(Default)]
struct Counted {
    syncs: Mutex<HashMap<SyncTarget, u64>>,
    failing: Mutex<Option<(SyncTarget, io::ErrorKind)>>,
    space: Mutex<Option<Space>>,
    log_held: AtomicBool,
    waiting: AtomicU64,
}

impl Counted {
    fn syncs(&self, target: SyncTarget) -> u64 {
        self.syncs.lock().unwrap().get(&target).copied().unwrap_or(0)
    }
}

impl DurableIo for Counted {
    fn sync(&self, target: SyncTarget, file: &File) -> io::Result<()> {
        if target == SyncTarget::Log {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while self.log_held.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some((failing, kind)) = *self.failing.lock().unwrap()
            && failing == target
        {
            return Err(kind.into());
        }
        *self.syncs.lock().unwrap().entry(target).or_default() += 1;
        OsIo.sync(target, file)
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        self.space.lock().unwrap().map_or_else(|| OsIo.space(directory), Ok)
    }
}

fn options(directory: &Path) -> Options {
    Options { keep_free: 0, keep_free_percent: 0, ballast: 0, any_file_system: true, ..Options::new(directory) }
}

fn counted() -> (Arc<Counted>, Seams) {
    let io = Arc::new(Counted::default());
    let seams = Seams { io: Arc::clone(&io) as Arc<dyn DurableIo>, ..Seams::default() };
    (io, seams)
}

fn put(number: u64) -> Commit {
    Commit::new(Vec::new(), vec![Write::put(format!("key/{:03}", number % 200), number.to_be_bytes())])
}

#[tokio::test]
async fn sled_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(0));
    let read = Arc::clone(&now);
    let clock: Clock = Arc::new(move || Duration::from_secs(read.load(Ordering::SeqCst)));
    let store = SledStore::create(options(directory.path()), Seams { clock, ..Seams::default() }).unwrap();
    let advance = move |by: Duration| {
        now.fetch_add(by.as_secs(), Ordering::SeqCst);
    };
    conformance::run(Arc::new(store), &advance).await;

    let reopened = SledStore::open(options(directory.path()), Seams::default()).unwrap();
    assert_eq!(reopened.health().fault, None);
}

#[tokio::test]
async fn commits_that_wait_together_share_one_fdatasync_and_none_is_acknowledged_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let (io, seams) = counted();
    let store = Arc::new(SledStore::create(options(directory.path()), seams).unwrap());
    let created = io.syncs(SyncTarget::Log);

    for number in 0..20 {
        store.commit(put(number)).await.unwrap();
        assert_eq!(io.syncs(SyncTarget::Log), created + number + 1, "one sync per acknowledged commit");
        assert_eq!(io.syncs(SyncTarget::Mark), io.syncs(SyncTarget::Log) + 1, "and its mark (creation wrote two)");
    }

    // With the log's sync held back, everything below queues behind the first.
    let before = io.syncs(SyncTarget::Log);
    io.log_held.store(true, Ordering::SeqCst);
    let mut commits = tokio::task::JoinSet::new();
    for number in 0..100 {
        let store = Arc::clone(&store);
        commits.spawn(async move { store.commit(put(number)).await });
        while number == 0 && io.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
    while store.requests.as_ref().unwrap().capacity() > QUEUE - 99 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.health().revision, Revision(20), "nothing is durable while the sync is out");
    io.log_held.store(false, Ordering::SeqCst);
    while let Some(outcome) = commits.join_next().await {
        assert!(matches!(outcome.unwrap(), Ok(Outcome::Committed { .. })));
    }
    let groups = io.syncs(SyncTarget::Log) - before;
    assert_eq!(groups, 2, "the first alone, then all that waited");
    assert_eq!(store.health().revision, Revision(120));
}

#[tokio::test]
async fn a_refused_or_repeated_commit_costs_no_sync() {
    let directory = tempfile::tempdir().unwrap();
    let (io, seams) = counted();
    let store = SledStore::create(options(directory.path()), seams).unwrap();
    let once = Commit { id: CommitId([1; 16]), ..put(1) };
    store.commit(once.clone()).await.unwrap();
    let before = io.syncs(SyncTarget::Log);
    store.commit(once).await.unwrap();
    let absent = vec![crate::store::Compare::absent(b"key/001")];
    store.commit(Commit::new(absent, vec![Write::delete(b"key/001")])).await.unwrap();
    assert_eq!(io.syncs(SyncTarget::Log), before);
}

#[tokio::test]
async fn after_a_failed_sync_the_handle_serves_nobody_and_a_repeat_after_reopening_is_safe() {
    for target in [SyncTarget::Log, SyncTarget::Mark] {
        let directory = tempfile::tempdir().unwrap();
        let (io, seams) = counted();
        let store = SledStore::create(options(directory.path()), seams).unwrap();
        store.commit(put(1)).await.unwrap();
        let mut watch = store.watch(Revision(1)).await.unwrap();
        *io.failing.lock().unwrap() = Some((target, io::ErrorKind::StorageFull));
        let commit = put(2);
        let error = store.commit(commit.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Indeterminate(_)) && error.is_fatal());
        *io.failing.lock().unwrap() = None;
        assert!(matches!(store.commit(put(3)).await, Err(StoreError::Stopped(_))));
        assert!(matches!(store.snapshot(Read::all(b"")).await, Err(StoreError::Stopped(_))));
        assert_eq!(watch.next().await, Err(WatchEnd::Stopped));
        assert!(store.health().fault.is_some() && !store.health().writable);
        assert_eq!(store.health().revision, Revision(1));
        drop(store);

        let store = SledStore::open(options(directory.path()), Seams::default()).unwrap();
        store.commit(commit).await.unwrap();
        let found = store.snapshot(Read::all(b"key/002")).await.unwrap();
        assert_eq!(found.entries.len(), 1);
        assert_eq!(store.health().revision, Revision(2));
    }
}

#[tokio::test]
async fn what_was_under_way_when_the_process_died_is_durable_before_it_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let (io, seams) = counted();
    let store = SledStore::create(options(directory.path()), seams).unwrap();
    *io.failing.lock().unwrap() = Some((SyncTarget::Log, io::ErrorKind::Other));
    store.commit(put(1)).await.unwrap_err();
    drop(store);
    for syncs in [1, 0] {
        let (io, seams) = counted();
        let store = SledStore::open(options(directory.path()), seams).unwrap();
        assert_eq!((store.health().revision, io.syncs(SyncTarget::Log)), (Revision(1), syncs));
    }
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_changes_keeps_reading_and_recovers_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (io, seams) = counted();
    let options = Options { keep_free: 1000, keep_free_percent: 5, ..options(directory.path()) };
    let store = SledStore::create(options, seams).unwrap();
    store.commit(put(1)).await.unwrap();
    *io.space.lock().unwrap() = Some(Space { free: 4_999, total: 100_000 });
    assert_eq!(store.commit(put(2)).await, Err(StoreError::DiskFull { free: 4_999, needed: 5_000 }));
    assert!(!store.health().writable && store.health().low_space && store.health().fault.is_none());
    assert_eq!(store.snapshot(Read::all(b"")).await.unwrap().entries.len(), 1);
    *io.space.lock().unwrap() = Some(Space { free: 50_000, total: 100_000 });
    store.commit(put(2)).await.unwrap();
}

#[test]
fn the_ballast_is_given_up_when_the_disk_is_full_at_start_and_made_again_later() {
    let directory = tempfile::tempdir().unwrap();
    let (io, seams) = counted();
    let options = Options { ballast: 1 << 20, ..options(directory.path()) };
    let ballast = directory.path().join("store.ballast");
    drop(SledStore::create(options.clone(), seams.clone()).unwrap());
    assert_eq!(std::fs::metadata(&ballast).unwrap().len(), 1 << 20);
    *io.space.lock().unwrap() = Some(Space { free: 0, total: 1 << 30 });
    drop(SledStore::open(options.clone(), seams.clone()).unwrap());
    assert!(!ballast.exists());
    *io.space.lock().unwrap() = None;
    drop(SledStore::open(options, seams).unwrap());
    assert!(ballast.exists());
}

#[test]
fn only_the_owner_may_look_into_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("state");
    let options = Options { ballast: 1 << 20, ..options(&place) };
    drop(SledStore::create(options, Seams::default()).unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place), mode(&place.join("store"))), (0o700, 0o700));
    assert_eq!((mode(&place.join("store.mark")), mode(&place.join("store.ballast"))), (0o600, 0o600));
}

#[test]
fn a_store_is_made_once_opened_once_and_missed_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    assert!(matches!(SledStore::open(options.clone(), Seams::default()), Err(OpenError::Missing(_))));
    let store = SledStore::create(options.clone(), Seams::default()).unwrap();
    assert!(matches!(SledStore::open(options.clone(), Seams::default()), Err(OpenError::Locked(_))));
    drop(store);
    assert!(matches!(SledStore::create(options.clone(), Seams::default()), Err(OpenError::Exists(_))));
    drop(SledStore::open(options, Seams::default()).unwrap());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn filled(directory: &Path, commits: u64) {
    let store = SledStore::create(options(directory), Seams::default()).unwrap();
    for number in 0..commits {
        store.commit(put(number)).await.unwrap();
    }
}

#[tokio::test]
async fn an_older_copy_of_the_engine_is_refused_until_the_loss_is_accepted_in_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let (now, old) = (directory.path().join("now"), directory.path().join("old"));
    filled(&now, 10).await;
    copy(&now, &old);
    let store = SledStore::open(options(&now), Seams::default()).unwrap();
    store.commit(put(10)).await.unwrap();
    drop(store);
    std::fs::remove_dir_all(now.join("store")).unwrap();
    copy(&old.join("store"), &now.join("store"));

    let refused = SledStore::open(options(&now), Seams::default()).unwrap_err();
    assert!(matches!(refused, OpenError::RolledBack { revision: 10, marked_revision: 11, .. }), "{refused}");
    let recovered = SledStore::recover(options(&now), Seams::default()).unwrap();
    assert_eq!((recovered.epoch(), recovered.health().revision), (Epoch(2), Revision(10)));
    recovered.commit(put(99)).await.unwrap();
    drop(recovered);
    let store = SledStore::open(options(&now), Seams::default()).unwrap();
    assert_eq!((store.epoch(), store.health().revision), (Epoch(2), Revision(11)));
}

#[tokio::test]
async fn a_store_without_its_mark_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 3).await;
    std::fs::remove_file(directory.path().join("store.mark")).unwrap();
    assert!(matches!(SledStore::open(options(directory.path()), Seams::default()), Err(OpenError::MarkUnreadable(_))));
    std::fs::write(directory.path().join("store.mark"), [0; 1024]).unwrap();
    assert!(matches!(SledStore::open(options(directory.path()), Seams::default()), Err(OpenError::MarkUnreadable(_))));
}

#[tokio::test]
async fn a_creation_cut_short_at_any_point_is_no_store_yet_and_can_be_made_anew() {
    // What a kill may leave: the engine's files without a mark, with an empty one, with half of one.
    let leftovers: [Option<&[u8]>; 3] = [None, Some(&[]), Some(b"wrnmark1")];
    for mark in leftovers {
        let directory = tempfile::tempdir().unwrap();
        drop(SledStore::create(options(directory.path()), Seams::default()).unwrap());
        std::fs::remove_file(directory.path().join("store.mark")).unwrap();
        if let Some(bytes) = mark {
            std::fs::write(directory.path().join("store.mark"), bytes).unwrap();
        }
        let open = SledStore::open(options(directory.path()), Seams::default());
        assert!(matches!(open, Err(OpenError::Missing(_))), "{mark:?}: {open:?}");
        let recover = SledStore::recover(options(directory.path()), Seams::default());
        assert!(matches!(recover, Err(OpenError::Missing(_))), "{mark:?}: {recover:?}");
        let store = SledStore::create(options(directory.path()), Seams::default()).unwrap();
        store.commit(put(1)).await.unwrap();
        drop(store);
        let open = SledStore::open(options(directory.path()), Seams::default()).unwrap();
        assert_eq!(open.health().revision, Revision(1));
    }
}

/// The engine alone would open cleanly at an older state for many of these.
#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless_and_never_an_older_state() {
    let directory = tempfile::tempdir().unwrap();
    let intact = directory.path().join("intact");
    filled(&intact, 400).await;
    let truth = SledStore::open(options(&intact), Seams::default()).unwrap();
    let expected = truth.snapshot(Read::all(b"")).await.unwrap();
    let digest = truth.health().digest;
    drop(truth);

    let mut files = Vec::new();
    for entry in std::fs::read_dir(intact.join("store")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.push(intact.join("store.mark"));
    let (mut refused, mut harmless) = (0, 0);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let written: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let step = (written.len() / 60).max(1);
        for (trial, at) in written.into_iter().step_by(step).enumerate() {
            let trial_directory = directory.path().join("trial");
            copy(&intact, &trial_directory);
            let damaged = trial_directory.join(file.strip_prefix(&intact).unwrap());
            let handle = std::fs::OpenOptions::new().write(true).open(&damaged).unwrap();
            handle.write_all_at(&[bytes[at] ^ (1 << (trial % 8))], at as u64).unwrap();
            match SledStore::open(options(&trial_directory), Seams::default()) {
                Err(_) => refused += 1,
                Ok(store) => {
                    harmless += 1;
                    assert_eq!(store.health().digest, digest, "{} byte {at}", file.display());
                    assert_eq!(store.snapshot(Read::all(b"")).await.unwrap(), expected);
                }
            }
            std::fs::remove_dir_all(&trial_directory).unwrap();
        }
    }
    assert!(refused > 20 && refused + harmless > 60, "{refused} refused, {harmless} harmless");
}
