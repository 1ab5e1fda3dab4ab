//! The feed of commits.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use super::{CommitId, Revision};

/// One key of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; none when it was removed.
    pub value: Option<Vec<u8>>,
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision it made.
    pub revision: Revision,
    /// Its author's id.
    pub id: CommitId,
    /// What it changed. Removals of keys that were not there are left out.
    pub changes: Vec<Change>,
}

/// Why a feed ended. None of them says anything about entries: no end may be read as a deletion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The watcher was slower than the store: watch again after the last batch it took.
    #[error("the watcher fell behind")]
    Lagged,
    /// The store stopped: the process must end.
    #[error("the store has stopped")]
    Stopped,
}

/// A feed that is being read.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<Arc<Batch>>,
    live: mpsc::Receiver<Arc<Batch>>,
    end: Arc<OnceLock<WatchEnd>>,
}

impl Watch {
    /// The next commit, in order and without gaps.
    ///
    /// # Errors
    /// How the feed ended; it stays ended.
    pub async fn next(&mut self) -> Result<Arc<Batch>, WatchEnd> {
        if let Some(batch) = self.backlog.pop_front() {
            return Ok(batch);
        }
        match self.live.recv().await {
            Some(batch) => Ok(batch),
            None => Err(self.end.get().cloned().unwrap_or(WatchEnd::Stopped)),
        }
    }
}

/// The store's end of a feed.
#[derive(Debug)]
pub(super) struct Feed {
    live: mpsc::Sender<Arc<Batch>>,
    end: Arc<OnceLock<WatchEnd>>,
}

impl Feed {
    /// How many commits a watcher may be behind.
    const DEPTH: usize = 1024;

    /// A feed that begins with what has happened already. `None` for the feed when the backlog is cut short: the
    /// watcher then lags and watches again.
    pub(super) fn open(backlog: VecDeque<Arc<Batch>>, complete: bool) -> (Option<Self>, Watch) {
        let (sender, live) = mpsc::channel(Self::DEPTH);
        let end = Arc::new(OnceLock::new());
        let feed = Self { live: sender, end: Arc::clone(&end) };
        let watch = Watch { backlog, live, end };
        if complete {
            (Some(feed), watch)
        } else {
            // Nobody else has seen this cell yet, so it takes the value.
            let _ = feed.end.set(WatchEnd::Lagged);
            (None, watch)
        }
    }

    /// Passes a commit on; false when the watcher is gone or has fallen behind.
    pub(super) fn send(&self, batch: &Arc<Batch>) -> bool {
        match self.live.try_send(Arc::clone(batch)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let _ = self.end.set(WatchEnd::Lagged);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}
