//! The embedded engine: sled 0.34.7 under rules of our own.
//!
//! sled gives one atomic transaction over several trees. It does not give durability (its flush is no fsync on
//! Linux), nor detection of damage (a bad record in the middle of its log reads as an older, clean database), nor
//! errors that can be survived. Those are added here: `writer` syncs and acknowledges, the frame and digest of every
//! value and the mark beside the engine find damage, and the first failure ends the handle.

mod records;
mod writer;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use self::records::{Damage, META_KEY, State};
use self::writer::{Parts, Published, Request, Writer};
use super::durable::{DurableIo, OsIo, Space};
use super::frame::FrameError;
use super::sidecar::{Mark, Sidecar};
use super::{
    Commit, Epoch, Future, Health, Lease, LeaseRequest, OpenError, Outcome, Read, Revision, Snapshot, Store,
    StoreError, Watch,
};

/// A monotonic clock: the time since some fixed moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Where a store lies and how much room it keeps.
#[derive(Debug, Clone)]
pub struct Options {
    /// The coordinator's state directory, mode 0700. The engine's files lie in `store/`, the mark in `store.mark`, the
    /// ballast in `store.ballast`.
    pub directory: PathBuf,
    /// The engine's page cache, in bytes.
    pub cache: u64,
    /// No change is taken while less than this is free, in bytes.
    pub keep_free: u64,
    /// Nor while less than this share of the file system is free, in percent.
    pub keep_free_percent: u8,
    /// A file of this size is given up when the disk is full at start, for the engine cannot open without room.
    pub ballast: u64,
    /// Accept file systems whose syncs cannot be trusted (btrfs, network and FUSE file systems).
    pub any_file_system: bool,
}

impl Options {
    /// The defaults: 32 MiB cache, 256 MiB and 5 % kept free, 64 MiB ballast.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            cache: 32 * 1024 * 1024,
            keep_free: 256 * 1024 * 1024,
            keep_free_percent: 5,
            ballast: 64 * 1024 * 1024,
            any_file_system: false,
        }
    }

    fn engine_directory(&self) -> PathBuf {
        self.directory.join("store")
    }

    fn log_path(&self) -> PathBuf {
        self.engine_directory().join("db")
    }

    fn mark_path(&self) -> PathBuf {
        self.directory.join("store.mark")
    }

    fn ballast_path(&self) -> PathBuf {
        self.directory.join("store.ballast")
    }

    fn needed(&self, space: Space) -> u64 {
        self.keep_free.max(space.total / 100 * u64::from(self.keep_free_percent))
    }

    fn check_room(&self, space: Space) -> Result<(), StoreError> {
        let needed = self.needed(space);
        if space.free < needed { Err(StoreError::DiskFull { free: space.free, needed }) } else { Ok(()) }
    }
}

/// What the store is given of the world.
#[derive(Clone)]
pub struct Seams {
    /// Syncs and free space.
    pub io: Arc<dyn DurableIo>,
    /// Ends leases.
    pub clock: Clock,
}

impl Default for Seams {
    /// The real system.
    fn default() -> Self {
        let start = Instant::now();
        Self { io: Arc::new(OsIo), clock: Arc::new(move || start.elapsed()) }
    }
}

/// A handle on the store. Dropping it waits until the queue is empty and the engine is closed.
pub struct SledStore {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    published: Arc<ArcSwap<Published>>,
    io: Arc<dyn DurableIo>,
    options: Options,
    epoch: Epoch,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStore").field("directory", &self.options.directory).field("epoch", &self.epoch).finish()
    }
}

/// The engine moves a page of more than a quarter of this into a file of its own, which it never syncs. A leaf splits
/// when it is visited with more than 16 values, so 32 of the largest values (and 256 of the largest keys in an index
/// page) must fit: the store's limits and this number belong together.
const SEGMENT: usize = 2 * 1024 * 1024;

/// How many requests may wait for the thread: enough for several groups, and few enough that a caller who is
/// refused elsewhere for overload is refused soon.
const QUEUE: usize = 1024;

/// How the store at a place is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Create,
    Open,
    AcceptLoss,
}

impl SledStore {
    /// Makes an empty store in epoch 1. Blocks.
    ///
    /// # Errors
    /// When there is one already, and for all that [`Self::open`] refuses.
    pub fn create(options: Options, seams: Seams) -> Result<Self, OpenError> {
        Self::start(options, seams, Intent::Create)
    }

    /// Opens a store and checks all of it. Blocks.
    ///
    /// # Errors
    /// When there is none, it is in use, it is behind what it had acknowledged, it is damaged, or the system refuses.
    pub fn open(options: Options, seams: Seams) -> Result<Self, OpenError> {
        Self::start(options, seams, Intent::Open)
    }

    /// Opens a store that [`Self::open`] refuses as rolled back, on an operator's word: what is there becomes the truth,
    /// in a new epoch, so that every node takes a whole snapshot. A store whose values are damaged stays refused.
    ///
    /// # Errors
    /// As [`Self::open`], but for a rollback or an unreadable mark.
    pub fn recover(options: Options, seams: Seams) -> Result<Self, OpenError> {
        Self::start(options, seams, Intent::AcceptLoss)
    }

    fn start(options: Options, seams: Seams, intent: Intent) -> Result<Self, OpenError> {
        let exists = options.log_path().exists();
        match intent {
            Intent::Create if exists && Sidecar::read(&options.mark_path()).is_some() => {
                return Err(OpenError::Exists(options.directory));
            }
            Intent::Open | Intent::AcceptLoss if !exists => return Err(OpenError::Missing(options.directory)),
            _ => {}
        }
        for directory in [options.directory.clone(), options.engine_directory()] {
            make_directory(&directory)?;
        }
        if !options.any_file_system {
            check_file_system(&options.directory)?;
        }
        drop_ballast_when_full(&options, &*seams.io);

        let parts = match catch_unwind(AssertUnwindSafe(|| open_engine(&options, &seams, intent))) {
            Ok(parts) => parts?,
            Err(panic) => return Err(engine_error(&options, writer::panic_words(panic.as_ref()))),
        };
        keep_ballast(&options, &*seams.io);

        let epoch = parts.state.epoch;
        let published = Arc::new(ArcSwap::from_pointee(Published { state: parts.state, fault: None }));
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer::new(parts, Arc::clone(&seams.io), seams.clock, options.clone(), Arc::clone(&published));
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(OpenError::io(&options.directory))?;
        Ok(Self { requests: Some(sender), thread: Some(thread), published, io: seams.io, options, epoch })
    }

    /// Asks the thread. `lost` is the error for an answer that never comes.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
        lost: fn(String) -> StoreError,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || {
            let fault = self.published.load().fault.clone();
            fault.unwrap_or_else(|| "it is being closed".to_owned())
        };
        let Some(requests) = &self.requests else { return Err(StoreError::Stopped(stopped())) };
        if self.published.load().fault.is_some() || requests.send(request(reply)).await.is_err() {
            return Err(StoreError::Stopped(stopped()));
        }
        answer.await.unwrap_or_else(|_| Err(lost(stopped())))
    }
}

impl Store for SledStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn snapshot(&self, read: Read) -> Future<'_, Result<Snapshot, StoreError>> {
        Box::pin(self.ask(|reply| Request::Read(read, reply), StoreError::Stopped))
    }

    fn commit(&self, commit: Commit) -> Future<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            commit.check()?;
            self.ask(|reply| Request::Commit(commit, reply), StoreError::Indeterminate).await
        })
    }

    fn watch(&self, after: Revision) -> Future<'_, Result<Watch, StoreError>> {
        Box::pin(self.ask(move |reply| Request::Watch(after, reply), StoreError::Stopped))
    }

    fn lease(&self, request: LeaseRequest) -> Future<'_, Result<Lease, StoreError>> {
        Box::pin(async move {
            if request.name.is_empty() || request.name.len() > 64 {
                return Err(StoreError::Invalid("a lease's name has 1 to 64 bytes".to_owned()));
            }
            self.ask(|reply| Request::Lease(request, reply), StoreError::Indeterminate).await
        })
    }

    fn compact(&self, upto: Revision) -> Future<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |reply| Request::Compact(upto, reply), StoreError::Indeterminate))
    }

    fn health(&self) -> Health {
        let published = self.published.load();
        let space = self.io.space(&self.options.directory).ok();
        let State { epoch, revision, compacted, digest, .. } = published.state;
        Health {
            epoch,
            revision,
            compacted,
            digest,
            space,
            writable: published.fault.is_none() && space.is_some_and(|space| self.options.check_room(space).is_ok()),
            low_space: space.is_none_or(|space| space.free < space.total / 5),
            fault: published.fault.clone(),
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches the engine's panics itself.
            let _ = thread.join();
        }
    }
}

/// How long a lock that another holds is waited for, and how often it is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Opens sled, checks everything against the digest and the mark, and writes both anew where the intent says so.
fn open_engine(options: &Options, seams: &Seams, intent: Intent) -> Result<Parts, OpenError> {
    let path = options.engine_directory();
    let engine = |error: sled::Error| {
        if is_locked(&error) { OpenError::Locked(options.directory.clone()) } else { engine_error(options, error) }
    };
    let config = sled::Config::new().path(&path).cache_capacity(options.cache).segment_size(SEGMENT);
    // sled's own threads keep the files, and the lock on them, for a moment after the last handle is gone; so does a process
    // that is just ending.
    let mut waited = Duration::ZERO;
    let database = loop {
        match config.open() {
            Err(error) if is_locked(&error) && waited < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            opened => break opened.map_err(engine)?,
        }
    };
    let kv = database.open_tree("kv").map_err(engine)?;
    let log = database.open_tree("log").map_err(engine)?;
    let meta = database.open_tree("meta").map_err(engine)?;
    let log_file = File::open(options.log_path()).map_err(OpenError::io(options.log_path()))?;
    let (sidecar, mark) = Sidecar::open(&options.mark_path()).map_err(OpenError::io(options.mark_path()))?;

    // A creation that was cut short before its first mark has left no acknowledged revision: there is no store yet, and
    // it is made anew. Anything that was ever acknowledged has left an entry in the log.
    let unmade = mark.is_none() && kv.is_empty() && log.is_empty();
    let fresh = intent == Intent::Create && mark.is_none();
    if unmade && intent != Intent::Create {
        return Err(OpenError::Missing(options.directory.clone()));
    }
    if fresh {
        if !unmade {
            return Err(OpenError::Exists(options.directory.clone()));
        }
        meta.insert(META_KEY, State::empty(Epoch(1)).encode()).map_err(engine)?;
    }
    let (mut state, ids) = records::verify(&kv, &log, &meta).map_err(|damage| match damage {
        Damage::Frame(FrameError::TooNew(..)) => OpenError::TooNew(damage.to_string()),
        other => OpenError::Damaged(other.to_string()),
    })?;
    // What was under way when the process died may lie in the system's cache only: it is not served before it is durable.
    let ahead = mark.is_some_and(|mark| (mark.epoch, mark.revision) < (state.epoch, state.revision));
    match (intent, mark) {
        (Intent::Open, None) => return Err(OpenError::MarkUnreadable(options.mark_path())),
        (Intent::Open, Some(mark)) => check_mark(&state, &mark)?,
        (Intent::AcceptLoss, mark) => {
            let marked = mark.map_or(0, |mark| mark.epoch.0);
            state.epoch = Epoch(state.epoch.0.max(marked).saturating_add(1));
            meta.insert(META_KEY, state.encode()).map_err(engine)?;
        }
        (Intent::Create, _) => {}
    }
    let mut parts = Parts { database, kv, log, meta, log_file, sidecar, state, ids };
    if fresh || ahead || intent == Intent::AcceptLoss {
        make_first_durable(options, seams, &mut parts)?;
    }
    Ok(parts)
}

/// A store may be ahead of its mark by what was under way when the process died; it may never be behind.
fn check_mark(state: &State, mark: &Mark) -> Result<(), OpenError> {
    if (state.epoch, state.revision) < (mark.epoch, mark.revision) {
        return Err(OpenError::RolledBack {
            epoch: state.epoch.0,
            revision: state.revision.0,
            marked_epoch: mark.epoch.0,
            marked_revision: mark.revision.0,
        });
    }
    if (state.epoch, state.revision) == (mark.epoch, mark.revision) && state.digest != mark.digest {
        return Err(OpenError::Damaged(format!(
            "revision {} has digest {} and was acknowledged with {}",
            state.revision, state.digest, mark.digest
        )));
    }
    Ok(())
}

/// Everything that exists once: the state, the mark in both slots, and the directories' own entries.
fn make_first_durable(options: &Options, seams: &Seams, parts: &mut Parts) -> Result<(), OpenError> {
    parts.database.flush().map_err(|error| engine_error(options, error))?;
    seams.io.sync(super::SyncTarget::Log, &parts.log_file).map_err(OpenError::io(options.log_path()))?;
    let State { epoch, revision, digest, .. } = parts.state;
    for _ in 0..2 {
        let mark = Mark { epoch, revision, digest };
        parts.sidecar.write(&*seams.io, &mark).map_err(OpenError::io(options.mark_path()))?;
    }
    let parent = options.directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    for directory in
        [Some(options.engine_directory().as_path()), Some(&options.directory), parent].into_iter().flatten()
    {
        File::open(directory).and_then(|file| file.sync_all()).map_err(OpenError::io(directory))?;
    }
    Ok(())
}

fn engine_error(options: &Options, error: impl std::fmt::Display) -> OpenError {
    OpenError::Engine { path: options.engine_directory(), detail: error.to_string() }
}

/// Makes a directory only its owner may enter, and takes back what a loose umask or hand has opened.
fn make_directory(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(OpenError::io(path))?;
    rustix::fs::chmod(path, rustix::fs::Mode::RWXU).map_err(|error| OpenError::io(path)(error.into()))
}

fn check_file_system(directory: &Path) -> Result<(), OpenError> {
    let stat = rustix::fs::statfs(directory).map_err(|error| OpenError::io(directory)(error.into()))?;
    // Magic numbers of linux/magic.h; the type's width differs between architectures, its low 32 bits do not.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let kind = match stat.f_type as u32 {
        0x9123_683e => "btrfs",
        0x0000_6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 | 0x0000_517b => "cifs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x00c3_6400 => "ceph",
        _ => return Ok(()),
    };
    Err(OpenError::FileSystem { path: directory.to_owned(), kind })
}

/// The engine writes when it opens; below this it might fail to.
const ROOM_TO_OPEN: u64 = 16 * 1024 * 1024;

fn drop_ballast_when_full(options: &Options, io: &dyn DurableIo) {
    let full = io.space(&options.directory).is_ok_and(|space| space.free < ROOM_TO_OPEN);
    if full && std::fs::remove_file(options.ballast_path()).is_ok() {
        tracing::warn!(
            path = %options.ballast_path().display(),
            "the disk is full: the ballast was given up so that the store can open; free some space"
        );
    }
}

/// Best effort: a store without ballast works, it only cannot open on a full disk.
fn keep_ballast(options: &Options, io: &dyn DurableIo) {
    let path = options.ballast_path();
    let room = io.space(&options.directory);
    if path.exists() || !room.is_ok_and(|space| space.free >= options.needed(space).saturating_add(options.ballast)) {
        return;
    }
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|file| {
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, options.ballast).map_err(std::io::Error::from)
    });
    if let Err(error) = made {
        let _ = std::fs::remove_file(&path);
        tracing::warn!(path = %path.display(), %error, "no ballast file could be made");
    }
}

#[cfg(test)]
mod tests;
