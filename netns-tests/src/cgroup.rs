//! Cgroups of version 2 for tests, as a system manager makes them for its units. They take real root: in the user namespace of
//! an ordinary user nobody may make one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::processes::eventually;

/// Where the tests' mount namespace has the hierarchy.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// One cgroup; it goes with the value, once the programs in it have ended.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

/// Whether the tests see the hierarchy.
#[must_use]
pub fn is_mounted() -> bool {
    Path::new(MOUNT).join("cgroup.procs").exists()
}

/// A path below the root that no other test uses, with this last part.
#[must_use]
pub fn fresh_path(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/warren-test-{}-{}.slice/{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Cgroup {
    /// Makes it, with what is above it; `None` where that is not allowed.
    pub fn make(path: &str) -> Result<Option<Self>> {
        let directory = Path::new(MOUNT).join(path.trim_start_matches('/'));
        if !is_mounted() {
            return Ok(None);
        }
        match fs::create_dir_all(&directory) {
            Ok(()) => Ok(Some(Self { directory })),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error).with_context(|| format!("make {}", directory.display())),
        }
    }

    /// Moves the process there.
    pub fn take(&self, process: u32) -> Result<()> {
        let file = self.directory.join("cgroup.procs");
        fs::write(&file, process.to_string()).with_context(|| format!("write {}", file.display()))
    }

    /// Removes it, as a system manager does when its unit has stopped.
    pub fn remove(self) -> Result<()> {
        // The kernel may take a moment to see that the last program has ended.
        eventually("the cgroup can be removed", std::time::Duration::from_secs(10), || {
            Ok(fs::remove_dir(&self.directory).is_ok())
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
        // The slice above it goes with the last one in it.
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}
