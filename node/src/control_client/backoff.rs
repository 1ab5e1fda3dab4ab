//! When to try again: full jitter, so that ten thousand nodes that lost one coordinator in the same second do not
//! return in the same second.

use std::time::Duration;

/// Longest wait between two tries.
const CEILING: Duration = Duration::from_secs(60);
/// The wait doubles from here.
const BASE: Duration = Duration::from_millis(500);

/// Counts failures and draws the next wait. Randomness is an argument, in `0.0..1.0`.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
    window: Duration,
}

impl Backoff {
    /// A session is up: the next loss waits anywhere within `window`, the span the coordinator named.
    pub fn succeeded(&mut self, window: Duration) {
        *self = Self { failures: 0, window: window.min(CEILING) };
    }

    /// The wait before the next try.
    pub fn next(&mut self, random: f64) -> Duration {
        let exponential = BASE.saturating_mul(1 << self.failures.min(16)).min(CEILING);
        let span = if self.failures == 0 { self.window.max(BASE) } else { exponential };
        self.failures = self.failures.saturating_add(1);
        span.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_spreads_over_the_window_that_the_coordinator_named() {
        let mut backoff = Backoff::default();
        backoff.succeeded(Duration::from_secs(40));
        assert_eq!(backoff.next(0.5), Duration::from_secs(20));
        assert_eq!(backoff.next(0.5), Duration::from_millis(500));
    }

    #[test]
    fn waits_grow_to_a_ceiling_and_every_wait_may_be_anything_below() {
        let mut backoff = Backoff::default();
        let longest: Vec<_> = (0..12).map(|_| backoff.next(1.0)).collect();
        assert!(longest.is_sorted());
        assert_eq!(longest.last(), Some(&CEILING));
        assert_eq!(backoff.next(0.0), Duration::ZERO);
    }

    #[test]
    fn a_hostile_window_cannot_keep_a_node_away() {
        let mut backoff = Backoff::default();
        backoff.succeeded(Duration::from_secs(1_000_000));
        assert!(backoff.next(1.0) <= CEILING);
    }
}
