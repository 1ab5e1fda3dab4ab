//! How a store refuses and how it fails.

use std::io;
use std::path::PathBuf;

use warren_proto::Reason;
use warren_proto::reason::Refusal;

use super::Revision;

/// A call on an open store did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The commit may or may not have been taken. Ask again under the same id after a restart.
    #[error("the store failed while the change was under way; whether it was taken is not known: {0}")]
    Indeterminate(String),
    /// The store had stopped before; the call did nothing.
    #[error("the store has stopped: {0}")]
    Stopped(String),
    /// Too little room; the call did nothing.
    #[error("only {free} bytes are free and {needed} are kept back; the change was not taken")]
    DiskFull {
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        needed: u64,
    },
    /// The call breaks a limit or a rule; it did nothing.
    #[error("{0}")]
    Invalid(String),
    /// A commit under the same id was taken before, with other content; this one did nothing.
    #[error("a change under this Idempotency-Key was made before, and it is not made twice")]
    Repeated,
    /// The feed no longer reaches back so far: take a snapshot.
    #[error("commits up to revision {0} are no longer in the feed")]
    Compacted(Revision),
}

impl StoreError {
    /// The process must end, for its memory may differ from the disk: a supervisor starts it again and the store
    /// recovers.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Indeterminate(_) | Self::Stopped(_))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (reason, hint) = match &error {
            StoreError::Indeterminate(_) => {
                (Reason::StoreUnavailable, "repeat the request with the same Idempotency-Key")
            }
            StoreError::Stopped(_) => {
                (Reason::StoreUnavailable, "see the coordinator's log; it restarts and recovers by itself")
            }
            StoreError::DiskFull { .. } => (Reason::DiskFull, "free space on the coordinator's state file system"),
            StoreError::Invalid(_) => (Reason::InvalidField, ""),
            StoreError::Repeated => {
                (Reason::Conflict, "see what it did: warren audit list; another change needs a key of its own")
            }
            StoreError::Compacted(_) => (Reason::Internal, ""),
        };
        Self::new(reason, error.to_string()).hint(hint)
    }
}

/// A store cannot be opened. Each says what the operator does next.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing to open.
    #[error("{0} holds no store; run `warren-coordinator init` first")]
    Missing(PathBuf),
    /// There is something already.
    #[error("{0} already holds a store; it is left as it is")]
    Exists(PathBuf),
    /// Another process has it open.
    #[error("{0} is in use by another process; only one coordinator may run on a store")]
    Locked(PathBuf),
    /// The disk gives back an older state than was acknowledged.
    #[error(
        "the store is at epoch {epoch} revision {revision} but had acknowledged epoch {marked_epoch} revision \
         {marked_revision}: the disk has lost or damaged committed data. Restore a backup, or accept the loss with \
         `warren-coordinator recover`"
    )]
    RolledBack {
        /// What was found.
        epoch: u64,
        /// What was found.
        revision: u64,
        /// What the mark beside it says.
        marked_epoch: u64,
        /// What the mark beside it says.
        marked_revision: u64,
    },
    /// The bytes do not add up.
    #[error("the store is damaged: {0}. Restore a backup")]
    Damaged(String),
    /// The mark is gone or unreadable, so a rollback could not be noticed.
    #[error(
        "the store's mark {0} is missing or damaged, so lost commits could not be noticed. Restore a backup, or accept \
         with `warren-coordinator recover`"
    )]
    MarkUnreadable(PathBuf),
    /// A newer warren wrote it.
    #[error("the store was written by a newer warren ({0}); run that version or restore a backup")]
    TooNew(String),
    /// The file system's syncs cannot be trusted.
    #[error(
        "{path} is on {kind}, where a sync does not promise what the store needs; use ext4 or xfs, or set \
         `store.any_file_system: true` where loss is acceptable"
    )]
    FileSystem {
        /// The directory.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The engine refused or broke.
    #[error("the storage engine cannot open {path}: {detail}. Restore a backup")]
    Engine {
        /// The engine's directory.
        path: PathBuf,
        /// Its words.
        detail: String,
    },
}

impl OpenError {
    /// For `map_err` on an operation on one path.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
