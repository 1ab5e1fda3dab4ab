//! The one place that reads clocks. Everything below is told the time as a [`Now`].
//!
//! The wall clock is held above a floor: the newest moment that the coordinator has signed, moved on by the
//! boot clock, which no one can set. A clock that is set back therefore revives no expired certificate, and a
//! machine whose clock starts in 1970 judges certificates by the time it last verified.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustix::time::{ClockId, clock_gettime};
use warren_engine::Now;
use warren_proto::UnixTime;

/// A wall clock this far from where the boot clock says it should be has been set, not drifted.
const JUMP: Duration = Duration::from_secs(5);

/// The clocks as last read: boot time and wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// `CLOCK_BOOTTIME`: counts through suspend, cannot be set.
    pub boot: Duration,
    /// `CLOCK_REALTIME`.
    pub wall: UnixTime,
}

/// Reads the operating system's clocks. The wall clock is read as every other program reads it, through the C library, so that
/// what sets a clock for the processes of one host in a test sets it for the node too.
#[must_use]
pub fn read() -> Reading {
    let boot = clock_gettime(ClockId::Boottime);
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Reading {
        boot: Duration::new(u64::try_from(boot.tv_sec).unwrap_or(0), u32::try_from(boot.tv_nsec).unwrap_or(0)),
        wall: UnixTime(wall.as_secs()),
    }
}

/// The node's time: monotonic, and wall time above the floor. Read by every thread that moves packets, without a lock.
#[derive(Debug)]
pub struct Clock {
    source: fn() -> Reading,
    floor: ArcSwap<Floor>,
    last: Mutex<Reading>,
}

/// No earlier than `at_least` when the boot clock showed `since`.
#[derive(Debug, Clone, Copy)]
struct Floor {
    at_least: UnixTime,
    since: Duration,
}

/// The wall clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// Where the boot clock says it should be.
    pub expected: UnixTime,
    /// Where it is.
    pub found: UnixTime,
}

impl Clock {
    /// A clock above the persisted `floor`, reading `source` ([`read`] in production).
    #[must_use]
    pub fn new(source: fn() -> Reading, floor: UnixTime) -> Self {
        let now = source();
        let floor = Floor { at_least: floor, since: now.boot };
        Self { source, floor: ArcSwap::from_pointee(floor), last: Mutex::new(now) }
    }

    /// The time, above the floor.
    #[must_use]
    pub fn now(&self) -> Now {
        let reading = (self.source)();
        Now { monotonic: reading.boot, unix: reading.wall.max(self.floor.load().at(reading.boot)) }
    }

    /// Raises the floor to a moment that a verified signature states. Never lowers it.
    pub fn verified(&self, moment: UnixTime) {
        let boot = (self.source)().boot;
        self.floor.rcu(|floor| if moment > floor.at(boot) { Floor { at_least: moment, since: boot } } else { **floor });
    }

    /// The floor as of now, to persist.
    #[must_use]
    pub fn floor(&self) -> UnixTime {
        self.floor.load().at((self.source)().boot)
    }

    /// How far the wall clock is behind the floor: beyond `JUMP` it is wrong, whatever the reason.
    #[must_use]
    pub fn behind(&self) -> Option<Duration> {
        let wall = (self.source)().wall;
        let behind = wall.until(self.floor());
        (behind > JUMP).then_some(behind)
    }

    /// Whether the wall clock was set since the last call.
    pub fn jump(&self) -> Option<Jump> {
        let reading = (self.source)();
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), reading);
        let expected = last.wall.plus(reading.boot.saturating_sub(last.boot));
        let away = expected.0.abs_diff(reading.wall.0);
        (away > JUMP.as_secs()).then_some(Jump { expected, found: reading.wall })
    }
}

impl Floor {
    fn at(&self, boot: Duration) -> UnixTime {
        // A floor of zero is none: a first start has verified nothing.
        if self.at_least == UnixTime(0) { UnixTime(0) } else { self.at_least.plus(boot.saturating_sub(self.since)) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static READING: Cell<Reading> = const { Cell::new(Reading { boot: Duration::ZERO, wall: UnixTime(0) }) };
    }

    fn set(boot: u64, wall: u64) {
        READING.set(Reading { boot: Duration::from_secs(boot), wall: UnixTime(wall) });
    }

    #[test]
    fn a_clock_set_back_revives_nothing() {
        set(100, 5_000);
        let clock = Clock::new(|| READING.get(), UnixTime(0));
        clock.verified(UnixTime(5_000));
        set(160, 10);
        assert_eq!(clock.now().unix, UnixTime(5_060));
        assert_eq!(clock.jump(), Some(Jump { expected: UnixTime(5_060), found: UnixTime(10) }));
        assert_eq!(clock.jump(), None, "a jump is told once");
    }

    #[test]
    fn a_restart_with_a_wrong_clock_starts_at_the_persisted_floor() {
        set(1, 0);
        let clock = Clock::new(|| READING.get(), UnixTime(7_000));
        assert_eq!(clock.now().unix, UnixTime(7_000));
        assert_eq!(clock.behind(), Some(Duration::from_secs(7_000)));
        set(11, 10);
        assert_eq!(clock.now().unix, UnixTime(7_010));
    }

    #[test]
    fn an_older_signature_lowers_nothing_and_drift_is_no_jump() {
        set(0, 1_000);
        let clock = Clock::new(|| READING.get(), UnixTime(900));
        clock.verified(UnixTime(950));
        clock.verified(UnixTime(10));
        set(50, 1_052);
        assert_eq!((clock.floor(), clock.now().unix, clock.jump()), (UnixTime(1_000), UnixTime(1_052), None));
        assert_eq!(clock.behind(), None);
    }
}
