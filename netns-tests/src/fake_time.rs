//! A wall clock for the programs of one host, set by a test while they run: libfaketime, loaded in front of the C library. The
//! monotonic and the boot clock stay as they are, as on a machine whose wall clock somebody sets.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A wall clock that is `offset` seconds from the machine's.
#[derive(Debug, Clone)]
pub struct FakeClock {
    library: PathBuf,
    file: PathBuf,
}

/// Where distributions put libfaketime's variant for programs with threads.
#[must_use]
pub fn library() -> Option<PathBuf> {
    let places = [
        format!("/usr/lib/{}-linux-gnu/faketime", std::env::consts::ARCH),
        "/usr/lib64/faketime".to_owned(),
        "/usr/lib/faketime".to_owned(),
        "/usr/local/lib/faketime".to_owned(),
    ];
    places.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.is_file())
}

impl FakeClock {
    /// A clock that shows the machine's time for now, kept in `file`.
    pub fn new(library: PathBuf, file: PathBuf) -> Result<Self> {
        let clock = Self { library, file };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it `offset` seconds ahead of the machine's, or behind. Every program that has it sees that at its next look.
    pub fn set(&self, offset: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset:+}\n")).context("write the fake clock")?;
        std::fs::rename(&new, &self.file).context("set the fake clock")
    }

    /// What a program must be started with to have this clock.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", self.library.clone().into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }
}
