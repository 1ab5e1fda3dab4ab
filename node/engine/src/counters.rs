//! What a worker counts: packets and bytes each way, and every drop under its reason.

use std::sync::atomic::{AtomicU64, Ordering};

use warren_proto::Reason;

/// The counters of one worker. Only that worker adds; anyone may read.
#[derive(Debug)]
pub struct Counters {
    drops: Box<[AtomicU64]>,
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    refusals: AtomicU64,
    records_lost: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Inner packets let into the host.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Inner packets sealed or given to the slow half for sealing.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Refusals sent, to peers and to local programs.
    pub refusals: u64,
    /// Flow records for which there was no place.
    pub records_lost: u64,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            drops: Reason::ALL.iter().map(|_| zero()).collect(),
            packets_in: zero(),
            bytes_in: zero(),
            packets_out: zero(),
            bytes_out: zero(),
            refusals: zero(),
            records_lost: zero(),
        }
    }
}

impl Counters {
    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.drops.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Every reason that occurred, with its count.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.dropped(*reason))).filter(|(_, count)| *count > 0)
    }

    /// What passed.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            packets_in: self.packets_in.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            packets_out: self.packets_out.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            records_lost: self.records_lost.load(Ordering::Relaxed),
        }
    }

    /// Counts a drop. The shell counts here what its devices did not take.
    pub fn drop_one(&self, reason: Reason) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_in(&self, bytes: usize) {
        self.packets_in.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_out(&self, bytes: usize) {
        self.packets_out.fetch_add(1, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_lost_records(&self, lost: u64) {
        self.records_lost.fetch_add(lost, Ordering::Relaxed);
    }
}
