//! What passes per second, for `warren status`: the counters as they stand now against a sample that is some seconds old.
//! `warren top` samples for itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warren_engine::counters::Volume;
use warren_proto::InstanceId;

use super::tunnel::TunnelStatus;
use crate::local_api::types::{Rates, Traffic};

/// How often a sample is taken. What is shown covers one to two of these.
pub const EVERY: Duration = Duration::from_secs(5);
/// Less time says nothing about a rate.
const LEAST: Duration = Duration::from_millis(500);

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    at: Duration,
    node: Traffic,
    peers: HashMap<InstanceId, Traffic>,
}

impl Sample {
    /// The counters of `tunnel`, which were read at `at` by the boot clock.
    #[must_use]
    pub fn of(tunnel: &TunnelStatus, at: Duration) -> Self {
        let mut peers: HashMap<_, Traffic> = HashMap::new();
        for peer in &tunnel.peers {
            let sum = peers.entry(peer.peer).or_default();
            *sum = sum.plus(traffic(&peer.volume));
        }
        Self { at, node: node_traffic(tunnel), peers }
    }
}

/// The last two samples.
#[derive(Debug, Default)]
pub struct Meter {
    kept: Mutex<(Option<Sample>, Option<Sample>)>,
}

/// What passed per second.
#[derive(Debug, Default)]
pub struct Measured {
    /// The whole node.
    pub node: Option<Rates>,
    peers: HashMap<InstanceId, Rates>,
}

impl Measured {
    /// One peer.
    #[must_use]
    pub fn of(&self, peer: InstanceId) -> Option<Rates> {
        self.peers.get(&peer).copied()
    }
}

impl Meter {
    /// Keeps a sample, and the one before it.
    pub fn note(&self, sample: Sample) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 = kept.1.replace(sample);
    }

    /// What passed per second up to `now`; nothing where there is no sample old enough.
    #[must_use]
    pub fn since(&self, now: &Sample) -> Measured {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = kept.0.as_ref().or(kept.1.as_ref()) else { return Measured::default() };
        let over = now.at.saturating_sub(before.at);
        if over < LEAST {
            return Measured::default();
        }
        let none = Traffic::default();
        let rates = |(peer, traffic): (&InstanceId, &Traffic)| {
            (*peer, traffic.since(before.peers.get(peer).unwrap_or(&none), over))
        };
        Measured { node: Some(now.node.since(&before.node, over)), peers: now.peers.iter().map(rates).collect() }
    }
}

/// What all workers carried.
#[must_use]
pub fn node_traffic(tunnel: &TunnelStatus) -> Traffic {
    tunnel.traffic.iter().fold(Traffic::default(), |sum, worker| {
        sum.plus(Traffic {
            packets_in: worker.packets_in,
            bytes_in: worker.bytes_in,
            packets_out: worker.packets_out,
            bytes_out: worker.bytes_out,
        })
    })
}

/// A link's volume as the local API says it.
#[must_use]
pub const fn traffic(volume: &Volume) -> Traffic {
    let Volume { packets_in, bytes_in, packets_out, bytes_out } = *volume;
    Traffic { packets_in, bytes_in, packets_out, bytes_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u64, bytes_in: u64, peers: &[(u8, u64)]) -> Sample {
        let traffic = |bytes_in| Traffic { bytes_in, ..Traffic::default() };
        Sample {
            at: Duration::from_secs(seconds),
            node: traffic(bytes_in),
            peers: peers.iter().map(|(id, bytes)| (InstanceId::from_bytes([*id; 16]), traffic(*bytes))).collect(),
        }
    }

    #[test]
    fn rates_cover_the_time_since_the_older_of_two_samples() {
        let meter = Meter::default();
        assert!(meter.since(&sample(1, 1, &[])).node.is_none(), "nothing to compare with");
        meter.note(sample(0, 0, &[]));
        meter.note(sample(5, 1_000, &[(1, 1_000)]));
        meter.note(sample(10, 2_000, &[(1, 2_000)]));
        let measured = meter.since(&sample(15, 11_000, &[(1, 2_000), (2, 9_000)]));
        let node = measured.node.expect("measured");
        assert_eq!((node.over_milliseconds, node.bits_in), (10_000, 8_000));
        let bits = |id| measured.of(InstanceId::from_bytes([id; 16])).map(|rates| rates.bits_in);
        assert_eq!((bits(1), bits(2), bits(3)), (Some(800), Some(7_200), None));
    }

    #[test]
    fn a_moment_is_too_short_for_a_rate() {
        let meter = Meter::default();
        meter.note(sample(7, 0, &[]));
        assert!(meter.since(&sample(7, 50, &[])).node.is_none());
    }
}
