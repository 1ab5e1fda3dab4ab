//! The one thread that touches the engine.
//!
//! Commits that are waiting together are made durable together: one transaction, one flush, one `fdatasync` of the
//! log (the engine's own flush does not reach the disk), the mark beside it, and only then the answers. Reads pass
//! through the same queue, so nobody sees what is not yet durable. The first error or panic of the engine stops the
//! thread for good: what its memory holds may then differ from the disk.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError, TransactionalTree};
use tokio::sync::{mpsc, oneshot};

use super::records::{self, Damage, Header, Ids, META_KEY, State};
use super::{Clock, Options};
use crate::store::durable::{DurableIo, SyncTarget};
use crate::store::sidecar::{Mark, Sidecar};
use crate::store::watch::Feed;
use crate::store::{
    Batch, Change, Commit, CommitId, Entry, Expect, Lease, LeaseRequest, Outcome, Read, Revision, Snapshot, StoreError,
    Watch, Write, frame, lease_key,
};

/// Answers one request.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the handle asks of the thread.
pub(super) enum Request {
    Commit(Commit, Reply<Outcome>),
    Read(Read, Reply<Snapshot>),
    Watch(Revision, Reply<Watch>),
    Lease(LeaseRequest, Reply<Lease>),
    Compact(Revision, Reply<()>),
}

/// The most commits of one group.
const GROUP_COMMITS: usize = 256;

/// The most bytes of one group, so that one transaction stays far below memory.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long a group may be gathered. Only what is already waiting is taken, so this binds under a flood alone.
const GROUP_TIME: Duration = Duration::from_millis(5);

/// The most revisions that one compaction transaction removes.
const COMPACT_STEP: u64 = 256;

/// The most commits of the past that a new watcher is given at once.
const BACKLOG: usize = 1024;

/// What the handle may look at without asking the thread.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub state: State,
    pub fault: Option<String>,
}

/// The thread ends; the reason is published.
struct Stopped;

struct HeldLease {
    holder: [u8; 16],
    token: Revision,
    ends: Duration,
}

/// The thread's belongings.
pub(super) struct Writer {
    pub database: sled::Db,
    pub kv: sled::Tree,
    pub log: sled::Tree,
    pub meta: sled::Tree,
    pub log_file: File,
    pub blobs: PathBuf,
    pub sidecar: Sidecar,
    pub io: Arc<dyn DurableIo>,
    pub clock: Clock,
    pub options: Options,
    pub state: State,
    pub ids: Ids,
    pub published: Arc<ArcSwap<Published>>,
    feeds: Vec<Feed>,
    leases: HashMap<String, HeldLease>,
}

/// Everything [`Writer::new`] is given.
pub(super) struct Parts {
    pub database: sled::Db,
    pub kv: sled::Tree,
    pub log: sled::Tree,
    pub meta: sled::Tree,
    pub log_file: File,
    pub sidecar: Sidecar,
    pub state: State,
    pub ids: Ids,
}

/// A change that one commit of a group made.
struct Applied {
    outcomes: Vec<Result<Outcome, StoreError>>,
    batches: Vec<Arc<Batch>>,
    ids: Ids,
    state: State,
}

impl Writer {
    pub(super) fn new(
        parts: Parts,
        io: Arc<dyn DurableIo>,
        clock: Clock,
        options: Options,
        published: Arc<ArcSwap<Published>>,
    ) -> Self {
        let Parts { database, kv, log, meta, log_file, sidecar, state, ids } = parts;
        Self {
            blobs: options.engine_directory().join("blobs"),
            database,
            kv,
            log,
            meta,
            log_file,
            sidecar,
            io,
            clock,
            options,
            state,
            ids,
            published,
            feeds: Vec::new(),
            leases: HashMap::new(),
        }
    }

    /// Serves until the handle is gone or something fails.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut held_back = None;
        while let Some(request) = held_back.take().or_else(|| requests.blocking_recv()) {
            let done = match request {
                Request::Commit(commit, reply) => {
                    let group = gather(&mut requests, &mut held_back, &self.clock, commit, reply);
                    self.serve_group(group)
                }
                Request::Read(read, reply) => self.serve(reply, |writer| writer.read(&read)),
                Request::Watch(after, reply) => self.serve(reply, |writer| writer.watch(after)),
                Request::Lease(request, reply) => self.serve(reply, |writer| writer.lease(&request)),
                Request::Compact(upto, reply) => self.serve(reply, |writer| writer.compact(upto)),
            };
            if done.is_err() {
                break;
            }
        }
        // A watcher whose feed ends here reads `Stopped`. Dropping the engine flushes it, which may panic again.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
    }

    /// Says why it ends, before anybody is answered.
    fn stop(&self, fault: &str) -> Stopped {
        tracing::error!(%fault, "the store has stopped; the process must end");
        self.published.store(Arc::new(Published { state: self.state, fault: Some(fault.to_owned()) }));
        Stopped
    }

    /// Runs one request; an `Err` stops the thread.
    fn serve<T>(
        &mut self,
        reply: Reply<T>,
        work: impl FnOnce(&mut Self) -> Result<Result<T, StoreError>, Damage>,
    ) -> Result<(), Stopped> {
        match guarded(|| work(self)) {
            Ok(answer) => {
                // The asker may have gone away; what was done stays done.
                let _ = reply.send(answer);
                Ok(())
            }
            Err(fault) => {
                let stopped = self.stop(&fault);
                let _ = reply.send(Err(StoreError::Indeterminate(fault)));
                Err(stopped)
            }
        }
    }

    fn serve_group(&mut self, group: Vec<(Commit, Reply<Outcome>)>) -> Result<(), Stopped> {
        let (commits, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        if let Err(refusal) = self.room() {
            for reply in replies {
                let _ = reply.send(Err(refusal.clone()));
            }
            return Ok(());
        }
        let done = guarded(|| {
            self.expire_leases()?;
            self.commit_durably(&commits)
        });
        match done {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
                Ok(())
            }
            Err(fault) => {
                let stopped = self.stop(&fault);
                for reply in replies {
                    let _ = reply.send(Err(StoreError::Indeterminate(fault.clone())));
                }
                Err(stopped)
            }
        }
    }

    /// Refuses changes while the disk is nearly full, before the engine is touched.
    fn room(&self) -> Result<(), StoreError> {
        match self.io.space(&self.options.directory) {
            Ok(space) => self.options.check_room(space),
            Err(error) => Err(StoreError::Invalid(format!("free space cannot be asked: {error}"))),
        }
    }

    /// Transaction, flush, sync, mark; then, and only then, memory and watchers.
    fn commit_durably(&mut self, commits: &[Commit]) -> Result<Vec<Result<Outcome, StoreError>>, Damage> {
        let applied = self.transact(commits)?;
        if applied.state != self.state {
            self.make_durable(applied.state)?;
            self.ids.extend(applied.ids);
            for batch in &applied.batches {
                self.feeds.retain(|feed| feed.send(batch));
            }
        }
        Ok(applied.outcomes)
    }

    fn make_durable(&mut self, state: State) -> Result<(), Damage> {
        self.database.flush()?;
        let failed = |what: &str, error| Damage::inconsistent(format!("{what} failed: {error}"));
        self.io.sync(SyncTarget::Log, &self.log_file).map_err(|error| failed("the sync of the log", error))?;
        let mark = Mark { epoch: state.epoch, revision: state.revision, digest: state.digest };
        self.sidecar.write(&*self.io, &mark).map_err(|error| failed("the write of the mark", error))?;
        // A value that the engine moved to a file of its own would never be synced.
        let strayed = std::fs::read_dir(&self.blobs).map_err(|error| failed("reading blobs/", error))?.next();
        if strayed.is_some() {
            return Err(Damage::inconsistent("the engine put a value into blobs/, where it is not durable"));
        }
        self.state = state;
        self.published.store(Arc::new(Published { state, fault: None }));
        Ok(())
    }

    /// One engine transaction over every commit of the group, in order; each sees those before it.
    fn transact(&self, commits: &[Commit]) -> Result<Applied, Damage> {
        (&self.kv, &self.log, &self.meta)
            .transaction(|(kv, log, meta)| {
                let mut group =
                    Applied { outcomes: Vec::new(), batches: Vec::new(), ids: Ids::new(), state: self.state };
                for commit in commits {
                    let outcome = self.apply(kv, log, &mut group, commit)?;
                    group.outcomes.push(outcome);
                }
                if group.state != self.state {
                    meta.insert(META_KEY, group.state.encode())?;
                }
                Ok(group)
            })
            .map_err(|error| match error {
                TransactionError::Abort(damage) => damage,
                TransactionError::Storage(error) => Damage::Engine(error),
            })
    }

    fn apply(
        &self,
        kv: &TransactionalTree,
        log: &TransactionalTree,
        group: &mut Applied,
        commit: &Commit,
    ) -> Result<Result<Outcome, StoreError>, ConflictableTransactionError<Damage>> {
        let content = records::content_hash(commit);
        if let Some(&(revision, before)) = self.ids.get(&commit.id).or_else(|| group.ids.get(&commit.id)) {
            if before == content {
                return Ok(Ok(Outcome::Committed { revision, repeated: true }));
            }
            return Ok(Err(StoreError::Repeated));
        }
        for compare in &commit.compares {
            let found = match kv.get(&compare.key)? {
                Some(framed) => Some(decode(&compare.key, &framed)?.0),
                None => None,
            };
            let holds = match compare.expect {
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found == Some(revision),
            };
            if !holds {
                return Ok(Ok(Outcome::Conflict { key: compare.key.clone(), found }));
            }
        }

        let mut state = group.state;
        state.revision.0 += 1;
        let mut changes = Vec::with_capacity(commit.writes.len());
        for write in &commit.writes {
            let key = write.key();
            let (before, value) = match write {
                Write::Put { key, value } => {
                    let framed = frame::encode(key, state.revision, value);
                    state.digest.add(key, &framed);
                    state.entries += 1;
                    (kv.insert(key.as_slice(), framed)?, Some(value.clone()))
                }
                Write::Delete { key } => (kv.remove(key.as_slice())?, None),
            };
            if let Some(before) = &before {
                decode(key, before)?;
                state.digest.remove(key, before);
                state.entries -= 1;
            }
            if before.is_some() || value.is_some() {
                changes.push(Change { key: key.to_vec(), value });
            }
        }
        // Bounded by MAX_OPERATIONS.
        let parts = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        records::append_log(log, state.revision, Header { id: commit.id, content, parts }, &changes)?;

        group.state = state;
        group.ids.insert(commit.id, (state.revision, content));
        group.batches.push(Arc::new(Batch { revision: state.revision, id: commit.id, changes }));
        Ok(Ok(Outcome::Committed { revision: state.revision, repeated: false }))
    }

    fn read(&self, read: &Read) -> Result<Result<Snapshot, StoreError>, Damage> {
        let mut entries = Vec::new();
        let mut more = false;
        let mut take = |item: sled::Result<(sled::IVec, sled::IVec)>| -> Result<bool, Damage> {
            let (key, framed) = item?;
            let beyond = match &read.after {
                None => true,
                Some(after) if read.descending => key.as_ref() < after.as_slice(),
                Some(after) => key.as_ref() > after.as_slice(),
            };
            if !beyond {
                return Ok(true);
            }
            if entries.len() == read.limit {
                more = true;
                return Ok(false);
            }
            let (modified, value) = frame::decode(&key, &framed)?;
            entries.push(Entry { key: key.to_vec(), value: value.to_vec(), modified });
            Ok(true)
        };
        let (low, high) = bounds(read);
        let range = self.kv.range::<Vec<u8>, _>((low, high));
        if read.descending {
            for item in range.rev() {
                if !take(item)? {
                    break;
                }
            }
        } else {
            for item in range {
                if !take(item)? {
                    break;
                }
            }
        }
        Ok(Ok(Snapshot { revision: self.state.revision, entries, more }))
    }

    fn watch(&mut self, after: Revision) -> Result<Result<Watch, StoreError>, Damage> {
        if after < self.state.compacted {
            return Ok(Err(StoreError::Compacted(self.state.compacted)));
        }
        if after > self.state.revision {
            let text = format!("revision {after} is beyond the store's {}", self.state.revision);
            return Ok(Err(StoreError::Invalid(text)));
        }
        let mut backlog = VecDeque::new();
        let (mut bytes, mut complete) = (0, true);
        let mut open: Option<(Revision, CommitId, Vec<Change>)> = None;
        for item in self.log.range(records::log_key(Revision(after.0 + 1), 0)..) {
            let (key, framed) = item?;
            let (revision, part) = records::read_log_key(&key)?;
            if part == 0 {
                if let Some((revision, id, changes)) = open.take() {
                    backlog.push_back(Arc::new(Batch { revision, id, changes }));
                }
                if backlog.len() == BACKLOG || bytes > GROUP_BYTES {
                    complete = false;
                    break;
                }
                open = Some((revision, records::read_header(&key, &framed)?.id, Vec::new()));
            } else if let Some((_, _, changes)) = &mut open {
                changes.push(records::decode_change(frame::decode(&key, &framed)?.1)?);
            }
            bytes += framed.len();
        }
        if let Some((revision, id, changes)) = open {
            backlog.push_back(Arc::new(Batch { revision, id, changes }));
        }
        let (feed, watch) = Feed::open(backlog, complete);
        self.feeds.extend(feed);
        Ok(Ok(watch))
    }

    fn lease(&mut self, request: &LeaseRequest) -> Result<Result<Lease, StoreError>, Damage> {
        if let Err(refusal) = self.room() {
            return Ok(Err(refusal));
        }
        self.expire_leases()?;
        let now = (self.clock)();
        match self.leases.get_mut(&request.name) {
            Some(held) if held.holder != request.holder => {
                return Ok(Ok(if request.ttl.is_zero() { Lease::Free } else { Lease::Elsewhere }));
            }
            Some(held) if !request.ttl.is_zero() => {
                held.ends = now.saturating_add(request.ttl);
                return Ok(Ok(Lease::Held { token: held.token }));
            }
            None if request.ttl.is_zero() => return Ok(Ok(Lease::Free)),
            _ => {}
        }
        let key = lease_key(&request.name);
        if request.ttl.is_zero() {
            self.leases.remove(&request.name);
            self.commit_durably(&[Commit::new(Vec::new(), vec![Write::delete(key)])])?;
            return Ok(Ok(Lease::Free));
        }
        // Also over a key that an earlier process left behind: it held the store alone, and it is gone.
        let outcome = self.commit_durably(&[Commit::new(Vec::new(), vec![Write::put(key, request.holder)])])?;
        match outcome.into_iter().next() {
            Some(Ok(Outcome::Committed { revision, .. })) => {
                let ends = now.saturating_add(request.ttl);
                self.leases.insert(request.name.clone(), HeldLease { holder: request.holder, token: revision, ends });
                Ok(Ok(Lease::Held { token: revision }))
            }
            other => Err(Damage::inconsistent(format!("taking a lease ended as {other:?}"))),
        }
    }

    /// Removes the keys of leases whose time is over, so that no commit compared with them can pass.
    fn expire_leases(&mut self) -> Result<(), Damage> {
        let now = (self.clock)();
        let over: Vec<_> =
            self.leases.iter().filter(|(_, held)| held.ends <= now).map(|(name, _)| name.clone()).collect();
        if over.is_empty() {
            return Ok(());
        }
        let writes = over.iter().map(|name| Write::delete(lease_key(name))).collect();
        self.commit_durably(&[Commit::new(Vec::new(), writes)])?;
        for name in over {
            self.leases.remove(&name);
        }
        Ok(())
    }

    fn compact(&mut self, upto: Revision) -> Result<Result<(), StoreError>, Damage> {
        if upto > self.state.revision {
            let text = format!("revision {upto} is beyond the store's {}", self.state.revision);
            return Ok(Err(StoreError::Invalid(text)));
        }
        while self.state.compacted < upto {
            let step = Revision(upto.0.min(self.state.compacted.0.saturating_add(COMPACT_STEP)));
            let mut keys = Vec::new();
            for item in self.log.range(..records::log_key(Revision(step.0 + 1), 0)).keys() {
                keys.push(item?);
            }
            let state = State { compacted: step, ..self.state };
            (&self.log, &self.meta)
                .transaction(|(log, meta)| {
                    for key in &keys {
                        log.remove(key)?;
                    }
                    meta.insert(META_KEY, state.encode())?;
                    Ok(())
                })
                .map_err(|error: TransactionError<Damage>| match error {
                    TransactionError::Abort(damage) => damage,
                    TransactionError::Storage(error) => Damage::Engine(error),
                })?;
            self.make_durable(state)?;
            self.ids.retain(|_, (revision, _)| *revision > step);
        }
        Ok(Ok(()))
    }
}

/// From the prefix to the first key beyond it, narrowed by where the last page ended.
fn bounds(read: &Read) -> (std::ops::Bound<Vec<u8>>, std::ops::Bound<Vec<u8>>) {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let mut low = Included(read.prefix.clone());
    let mut beyond = read.prefix.clone();
    while beyond.last() == Some(&u8::MAX) {
        beyond.pop();
    }
    let mut high = match beyond.last_mut() {
        Some(last) => {
            *last += 1;
            Excluded(beyond)
        }
        None => Unbounded,
    };
    // A page that ended outside the prefix does not widen it.
    if let Some(after) = read.after.as_ref().filter(|after| after.starts_with(&read.prefix)) {
        if read.descending {
            high = Excluded(after.clone());
        } else {
            low = Excluded(after.clone());
        }
    }
    (low, high)
}

/// A frame read inside a transaction; damage ends the transaction.
fn decode<'a>(key: &[u8], framed: &'a [u8]) -> Result<(Revision, &'a [u8]), ConflictableTransactionError<Damage>> {
    frame::decode(key, framed).map_err(|error| ConflictableTransactionError::Abort(error.into()))
}

/// Takes the commits that are waiting already, up to the group's bounds; what is no commit is held back.
fn gather(
    requests: &mut mpsc::Receiver<Request>,
    held_back: &mut Option<Request>,
    clock: &Clock,
    commit: Commit,
    reply: Reply<Outcome>,
) -> Vec<(Commit, Reply<Outcome>)> {
    let until = clock().saturating_add(GROUP_TIME);
    let mut bytes = size(&commit);
    let mut group = vec![(commit, reply)];
    while group.len() < GROUP_COMMITS && bytes < GROUP_BYTES && clock() < until {
        match requests.try_recv() {
            Ok(Request::Commit(commit, reply)) => {
                bytes += size(&commit);
                group.push((commit, reply));
            }
            Ok(other) => {
                *held_back = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    group
}

fn size(commit: &Commit) -> usize {
    let one = |write: &Write| match write {
        Write::Put { key, value } => key.len() + value.len(),
        Write::Delete { key } => key.len(),
    };
    commit.writes.iter().map(one).sum()
}

/// Turns both the engine's errors and its panics into words.
fn guarded<T>(work: impl FnOnce() -> Result<T, Damage>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(damage)) => Err(damage.to_string()),
        Err(panic) => Err(panic_words(panic.as_ref())),
    }
}

/// What a panic said.
pub(super) fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the storage engine panicked: {}", words.unwrap_or("without words"))
}
