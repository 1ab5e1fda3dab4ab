//! The wall clock above a floor: time that was seen once is never gone back behind.
//!
//! A clock set back would revive expired tokens and certificates. So the coordinator remembers the latest time
//! it has seen, in a file of its own, and counts on from there by the monotonic clock when the wall clock is
//! behind.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use warren_proto::UnixTime;

/// Small steps back are what time synchronisation does; larger ones are reported.
const TOLERATED: Duration = Duration::from_secs(5);

/// Where the wall's time comes from.
pub type Source = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// The system's wall clock.
#[must_use]
pub fn system() -> Source {
    Arc::new(|| UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()))
}

/// The clock. One per process.
pub struct WallClock {
    floor: Mutex<(UnixTime, Instant)>,
    file: PathBuf,
    wall: Source,
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WallClock").field("now", &self.now()).field("file", &self.file).finish_non_exhaustive()
    }
}

impl WallClock {
    /// Reads the floor from `file`, which need not exist yet.
    pub fn open(file: &Path, wall: Source) -> io::Result<Self> {
        let floor = match fs::read_to_string(file) {
            Ok(text) => text.trim().parse().map(UnixTime).map_err(|_| {
                let what = format!("{} does not hold a number of seconds; remove it", file.display());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => UnixTime(0),
            Err(error) => return Err(error),
        };
        let clock = Self { floor: Mutex::new((floor, Instant::now())), file: file.to_owned(), wall };
        let behind = clock.behind();
        if behind > TOLERATED {
            tracing::warn!(
                behind_seconds = behind.as_secs(),
                "the clock is behind what was seen before; time goes on from {floor} until it has caught up. If the clock \
                 had run ahead, stop the coordinator and remove {}",
                clock.file.display()
            );
        }
        Ok(clock)
    }

    /// Seconds since 1970: the wall clock's, or the floor's where that is ahead.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        let wall = (self.wall)();
        let Ok(mut floor) = self.floor.lock() else { return wall };
        let instant = Instant::now();
        let carried = floor.0.plus(instant.saturating_duration_since(floor.1));
        if wall >= carried {
            *floor = (wall, instant);
        }
        wall.max(carried)
    }

    /// By how much the wall clock is behind; zero in a sane world.
    #[must_use]
    pub fn behind(&self) -> Duration {
        (self.wall)().until(self.now())
    }

    /// Writes the floor down; call it about once a minute and at the end.
    pub fn persist(&self) -> io::Result<()> {
        let now = self.now();
        let new = self.file.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{}", now.0)?;
        file.sync_all()?;
        fs::rename(&new, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_does_not_bring_back_what_has_ended() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("clock");
        let ahead = system()().plus(Duration::from_secs(3600));
        fs::write(&file, format!("{}\n", ahead.0)).expect("write");
        let clock = WallClock::open(&file, system()).expect("open");
        assert!(clock.now() >= ahead);
        assert!(clock.behind() >= Duration::from_secs(3590));
        clock.persist().expect("persist");
        assert!(WallClock::open(&file, system()).expect("open").now() >= ahead);
    }

    #[test]
    fn a_damaged_floor_is_named() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("clock");
        fs::write(&file, "soon").expect("write");
        let error = WallClock::open(&file, system()).expect_err("damaged");
        assert!(error.to_string().contains("clock"), "{error}");
    }
}
