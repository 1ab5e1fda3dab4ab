//! When to renew a certificate: at half its life, spread by a tenth, again and again until it succeeds.

use std::time::Duration;

use warren_proto::UnixTime;

/// The wait after a failed renewal doubles from here.
const BASE: Duration = Duration::from_secs(5);
/// And ends here: a coordinator that is away must be noticed back soon.
const CEILING: Duration = Duration::from_secs(300);

/// A certificate's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Begin.
    pub not_before: UnixTime,
    /// End.
    pub not_after: UnixTime,
}

impl Validity {
    /// When to renew: half the life, moved by up to a tenth of the life either way. `random` is in `0.0..1.0`
    /// and drawn once per certificate, so that a fleet that was installed together does not renew together.
    #[must_use]
    pub fn renew_at(self, random: f64) -> UnixTime {
        let life = self.not_before.until(self.not_after);
        self.not_before.plus(life.mul_f64(0.4 + 0.2 * random.clamp(0.0, 1.0)))
    }

    /// Whether renewal is overdue: less than a quarter of the life is left.
    #[must_use]
    pub fn is_overdue(self, now: UnixTime) -> bool {
        now.until(self.not_after) < self.not_before.until(self.not_after) / 4
    }
}

/// The wait before the next try after `failures` failed ones, with full jitter.
#[must_use]
pub fn retry_after(failures: u32, random: f64) -> Duration {
    BASE.saturating_mul(1 << failures.min(16)).min(CEILING).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Validity = Validity { not_before: UnixTime(0), not_after: UnixTime(86_400) };

    #[test]
    fn renewal_falls_within_a_tenth_of_half_life() {
        assert_eq!(DAY.renew_at(0.5), UnixTime(43_200));
        assert_eq!(DAY.renew_at(0.0), UnixTime(34_560));
        assert_eq!(DAY.renew_at(1.0), UnixTime(51_840));
    }

    #[test]
    fn a_certificate_in_its_last_quarter_is_overdue() {
        assert!(!DAY.is_overdue(UnixTime(64_000)));
        assert!(DAY.is_overdue(UnixTime(64_801)));
        assert!(DAY.is_overdue(UnixTime(90_000)));
    }

    #[test]
    fn failed_renewals_are_tried_again_until_the_end() {
        assert!(retry_after(0, 0.0) >= Duration::from_millis(2_500));
        assert_eq!(retry_after(u32::MAX, 1.0), CEILING);
    }
}
