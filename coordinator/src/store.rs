//! Where the coordinator's truth is kept: an ordered map of keys to values with one revision for the whole.
//!
//! The trait is what an embedded engine and etcd both do well, and no more: an epoch, snapshots by prefix, one
//! atomic commit guarded by the revisions its author read, a feed of commits, leases with a fencing token,
//! compaction, health. There are no secondary indexes: every index lives in the coordinator's memory and is
//! rebuilt from a snapshot and the feed. Both implementations pass one conformance suite.

#[cfg(test)]
mod conformance;
mod digest;
mod durable;
mod error;
mod frame;
mod sidecar;
mod sled;
mod watch;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

pub use self::digest::Digest;
pub use self::durable::{DurableIo, OsIo, Space, SyncTarget};
pub use self::error::{OpenError, StoreError};
pub use self::sled::{Clock, Options, Seams, SledStore};
pub use self::watch::{Batch, Change, Watch, WatchEnd};

/// The longest key, in bytes.
pub const MAX_KEY: usize = 512;

/// The longest value, in bytes: what the embedded engine keeps durable without a file per value.
pub const MAX_VALUE: usize = 15 * 1024;

/// The most writes, and the most compares, of one commit (etcd's default limit is 128 operations).
pub const MAX_OPERATIONS: usize = 100;

/// The most bytes of keys and values in one commit (etcd's default request limit is 1.5 MiB).
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;

/// The prefix under which leases are kept; commits may compare there but not write.
pub const LEASE_PREFIX: &[u8] = b"lease/";

/// What the calls of [`Store`] return: the trait is used as `Arc<dyn Store>`.
pub type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = T> + Send + 'a>>;

/// The life of a store: it rises when a backup is restored or a loss accepted, and nodes then take a whole
/// snapshot instead of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The number of a commit, counted without gaps within the embedded engine; 0 is the empty store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One key with its value and the revision that last wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// At most [`MAX_KEY`] bytes.
    pub key: Vec<u8>,
    /// At most [`MAX_VALUE`] bytes.
    pub value: Vec<u8>,
    /// The revision that last wrote the key.
    pub modified: Revision,
}

/// Which entries a snapshot is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Only keys that begin so; empty means every key.
    pub prefix: Vec<u8>,
    /// Only keys beyond this one in reading order: where the last page ended.
    pub after: Option<Vec<u8>>,
    /// At most so many entries.
    pub limit: usize,
    /// From the greatest key down, instead of up.
    pub descending: bool,
}

impl Read {
    /// Everything under a prefix, in one piece.
    #[must_use]
    pub fn all(prefix: impl Into<Vec<u8>>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: usize::MAX, descending: false }
    }

    /// The newest `limit` entries under a prefix whose keys rise with time.
    #[must_use]
    pub fn newest(prefix: impl Into<Vec<u8>>, limit: usize) -> Self {
        Self { prefix: prefix.into(), after: None, limit, descending: true }
    }
}

/// Entries as they stood together at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the whole store at that moment.
    pub revision: Revision,
    /// In the order that was asked for.
    pub entries: Vec<Entry>,
    /// There are entries beyond the limit.
    pub more: bool,
}

/// A commit's own name, chosen by its author. A commit that is repeated under the same id is answered with the
/// outcome of the first instead of being done twice; so an indeterminate commit can be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub [u8; 16]);

impl CommitId {
    /// An id that nobody has used.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What a commit's author believes about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last written at this revision.
    Revision(Revision),
}

/// A condition of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key it is about.
    pub key: Vec<u8>,
    /// What must be so.
    pub expect: Expect,
}

impl Compare {
    /// The key must not exist.
    #[must_use]
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), expect: Expect::Absent }
    }

    /// The key must be as it was read.
    #[must_use]
    pub fn unchanged(key: impl Into<Vec<u8>>, modified: Revision) -> Self {
        Self { key: key.into(), expect: Expect::Revision(modified) }
    }
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes a key; no error when it is not there.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
}

impl Write {
    /// Sets a key.
    #[must_use]
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into() }
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key it changes.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that happen together or not at all, if every compare holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its idempotency key.
    pub id: CommitId,
    /// At most [`MAX_OPERATIONS`].
    pub compares: Vec<Compare>,
    /// At least one, at most [`MAX_OPERATIONS`], no key twice.
    pub writes: Vec<Write>,
}

impl Commit {
    /// A commit under a fresh id.
    #[must_use]
    pub fn new(compares: Vec<Compare>, writes: Vec<Write>) -> Self {
        Self { id: CommitId::random(), compares, writes }
    }

    /// Refuses what is over a limit, before it reaches an engine.
    fn check(&self) -> Result<(), StoreError> {
        let invalid = |text: String| Err(StoreError::Invalid(text));
        if self.writes.is_empty() {
            return invalid("a commit must write something".to_owned());
        }
        if self.writes.len() > MAX_OPERATIONS || self.compares.len() > MAX_OPERATIONS {
            return invalid(format!(
                "{} writes and {} compares in one commit; the limit is {MAX_OPERATIONS} of each",
                self.writes.len(),
                self.compares.len()
            ));
        }
        let mut bytes = 0;
        let mut keys = std::collections::HashSet::with_capacity(self.writes.len());
        for write in &self.writes {
            let key = write.key();
            if key.starts_with(LEASE_PREFIX) {
                return invalid("keys under lease/ are written by leases only".to_owned());
            }
            if !keys.insert(key) {
                return invalid(format!("the key {} is written twice in one commit", key.escape_ascii()));
            }
            if let Write::Put { value, .. } = write {
                if value.len() > MAX_VALUE {
                    return invalid(format!(
                        "the value of {} has {} bytes; the limit is {MAX_VALUE}",
                        key.escape_ascii(),
                        value.len()
                    ));
                }
                bytes += value.len();
            }
            bytes += key.len();
        }
        if bytes > MAX_COMMIT_BYTES {
            return invalid(format!("the commit has {bytes} bytes; the limit is {MAX_COMMIT_BYTES}"));
        }
        let named = keys.into_iter().chain(self.compares.iter().map(|compare| compare.key.as_slice()));
        for key in named {
            if key.is_empty() || key.len() > MAX_KEY {
                return invalid(format!("a key has {} bytes; allowed are 1 to {MAX_KEY}", key.len()));
            }
        }
        Ok(())
    }
}

/// How a commit ended when it is known how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Committed {
        /// The revision it made.
        revision: Revision,
        /// A commit of the same id and content had been done before; this is its outcome.
        repeated: bool,
    },
    /// A compare did not hold; nothing was changed.
    Conflict {
        /// The first key whose compare failed.
        key: Vec<u8>,
        /// When it was last written; none when it does not exist.
        found: Option<Revision>,
    },
}

/// Who asks for a lease, on what, for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The job's name: 1 to 64 bytes.
    pub name: String,
    /// The asker. The holder renews by asking again.
    pub holder: [u8; 16],
    /// From now; zero gives the lease back.
    pub ttl: Duration,
}

/// The answer to a [`LeaseRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// The asker holds it. Commits of the job compare [`lease_key`] with this revision, which rises from holder to
    /// holder: who lost the lease without noticing cannot write.
    Held {
        /// The fencing token.
        token: Revision,
    },
    /// Another holds it.
    Elsewhere,
    /// The asker gave it back, or did not hold it.
    Free,
}

/// The key of a lease, for compares.
#[must_use]
pub fn lease_key(name: &str) -> Vec<u8> {
    [LEASE_PREFIX, name.as_bytes()].concat()
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The epoch.
    pub epoch: Epoch,
    /// The last durable revision.
    pub revision: Revision,
    /// Commits up to here are no longer in the feed.
    pub compacted: Revision,
    /// Over every entry; equal digests mean equal states.
    pub digest: Digest,
    /// Of the file system; none when it cannot be asked.
    pub space: Option<Space>,
    /// Commits are accepted: the store runs and there is room.
    pub writable: bool,
    /// Less than a fifth of the file system is free.
    pub low_space: bool,
    /// Why the store stopped. The process must end: what is in memory may differ from what is on disk.
    pub fault: Option<String>,
}

/// The seven calls.
pub trait Store: Send + Sync + 'static {
    /// The epoch this store was opened in.
    fn epoch(&self) -> Epoch;

    /// Entries as they stand together at the last durable revision.
    fn snapshot(&self, read: Read) -> Future<'_, Result<Snapshot, StoreError>>;

    /// Does the writes if every compare holds; returns when they are durable.
    fn commit(&self, commit: Commit) -> Future<'_, Result<Outcome, StoreError>>;

    /// Every commit after a revision, in order, without gaps, and then every further one.
    fn watch(&self, after: Revision) -> Future<'_, Result<Watch, StoreError>>;

    /// Takes, renews or gives back a lease.
    fn lease(&self, request: LeaseRequest) -> Future<'_, Result<Lease, StoreError>>;

    /// Forgets the feed, and the ids of commits, up to and including a revision.
    fn compact(&self, upto: Revision) -> Future<'_, Result<(), StoreError>>;

    /// Never fails and never waits for a commit.
    fn health(&self) -> Health;
}
