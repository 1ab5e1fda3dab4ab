//! What the store asks of the operating system beyond reading and writing: that bytes reach the disk, and how
//! much room is left. It is an argument of the store, so that tests count and fail these calls.

use std::fs::File;
use std::io;
use std::path::Path;

/// Which file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncTarget {
    /// The engine's log. One sync acknowledges a whole group of commits.
    Log,
    /// The high-water mark beside it.
    Mark,
}

/// Room in a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For an ordinary user.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// The operating system as the store sees it.
pub trait DurableIo: Send + Sync + 'static {
    /// `fdatasync`: returns when the file's bytes and length are on stable storage.
    ///
    /// # Errors
    /// The system's. What was written since the last success may or may not be stable then, and a second call
    /// proves nothing.
    fn sync(&self, target: SyncTarget, file: &File) -> io::Result<()>;

    /// The room in the file system of a directory.
    ///
    /// # Errors
    /// The system's.
    fn space(&self, directory: &Path) -> io::Result<Space>;
}

/// The real operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsIo;

impl DurableIo for OsIo {
    fn sync(&self, _: SyncTarget, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(directory)?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}
