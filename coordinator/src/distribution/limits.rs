//! What strangers and nodes may cost: a token bucket for each, and a bound on how many are remembered.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Buckets remembered. Beyond it those that are full, whose owners owe nothing, are forgotten first.
const MAX_BUCKETS: usize = 16 * 1024;

/// How often something may happen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// At once, after a pause.
    pub(super) burst: u32,
    /// In the long run.
    pub(super) per_second: f64,
}

/// Buckets by who pays.
#[derive(Debug)]
pub(super) struct Limits<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash> Limits<K> {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new() }
    }

    /// Whether `who` may do it once more at `now`.
    pub(super) fn admit(&mut self, who: K, now: Instant) -> bool {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&who) {
            let rate = self.rate;
            self.buckets.retain(|_, bucket| bucket.refilled(rate, now).tokens < f64::from(rate.burst));
            if self.buckets.len() >= MAX_BUCKETS {
                return false;
            }
        }
        let full = Bucket { tokens: f64::from(self.rate.burst), at: now };
        let bucket = self.buckets.entry(who).or_insert(full);
        *bucket = bucket.refilled(self.rate, now);
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

impl Bucket {
    fn refilled(self, rate: Rate, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).max(Duration::ZERO).as_secs_f64();
        let tokens = gained.mul_add(rate.per_second, self.tokens);
        Self { tokens: tokens.min(f64::from(rate.burst)), at: now }
    }
}

/// Who pays for a source: an IPv4 address, or an IPv6 /64, which is what one host commonly has.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 1.0 };

    #[test]
    fn a_source_over_its_rate_is_turned_away_and_others_are_not() {
        let (mut limits, start) = (Limits::new(RATE), Instant::now());
        let greedy: IpAddr = "192.0.2.1".parse().expect("address");
        assert_eq!((0..5).filter(|_| limits.admit(greedy, start)).count(), 3);
        assert!(limits.admit("192.0.2.2".parse().expect("address"), start));
        assert!(!limits.admit(greedy, start + Duration::from_millis(900)));
        assert!(limits.admit(greedy, start + Duration::from_millis(1900)));
    }

    #[test]
    fn addresses_of_one_v6_network_share_a_bucket() {
        let (mut limits, start) = (Limits::new(RATE), Instant::now());
        let admitted =
            (0..100_u32).filter(|n| limits.admit(network(format!("2001:db8::{n:x}").parse().expect("ip")), start));
        assert_eq!(admitted.count(), 3);
    }

    #[test]
    fn the_sources_remembered_are_bounded() {
        let (mut limits, start) = (Limits::new(RATE), Instant::now());
        for n in 0..40_000_u32 {
            let _ = limits.admit(IpAddr::V4(n.into()), start);
        }
        assert!(limits.buckets.len() <= MAX_BUCKETS);
        assert!(limits.admit("192.0.2.1".parse().expect("ip"), start + Duration::from_secs(10)), "they refill and go");
    }
}
