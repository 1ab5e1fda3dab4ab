//! What is counted: by each worker all that passes it, by each link what passes between its two ends; packets and bytes
//! each way, and every drop under its reason. Whoever moves packets counts in cells that nobody else writes, without a
//! locked instruction.

use std::sync::OnceLock;
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

/// What passed a link, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Inner packets from the peer that were let into the host.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Inner packets sealed for the peer, or given to the slow half for sealing.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// The counters of one link, since it was made. Each worker adds in a lane of its own; anyone may read.
#[derive(Debug)]
pub struct LinkCounters {
    lanes: Box<[Lane]>,
    /// Made at the first drop: most links never have one.
    drops: OnceLock<Box<[AtomicU64]>>,
}

/// Alone on its cache line, so that workers do not take it from each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane {
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
}

impl LinkCounters {
    /// Nothing yet, from any of `workers` workers (at least one).
    #[must_use]
    pub fn new(workers: u16) -> Self {
        Self { lanes: (0..workers.max(1)).map(|_| Lane::default()).collect(), drops: OnceLock::new() }
    }

    /// What passed.
    #[must_use]
    pub fn volume(&self) -> Volume {
        let sum =
            |cell: fn(&Lane) -> &AtomicU64| self.lanes.iter().map(|lane| cell(lane).load(Ordering::Relaxed)).sum();
        Volume {
            packets_in: sum(|lane| &lane.packets_in),
            bytes_in: sum(|lane| &lane.bytes_in),
            packets_out: sum(|lane| &lane.packets_out),
            bytes_out: sum(|lane| &lane.bytes_out),
        }
    }

    /// Every reason for which a packet from or to the peer was dropped, with its count.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = self.drops.get().map(AsRef::as_ref).unwrap_or_default();
        Reason::ALL.iter().zip(counts).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed))).filter(occurred)
    }

    pub(crate) fn count_in(&self, worker: u16, bytes: usize) {
        if let Some(lane) = self.lanes.get(usize::from(worker)) {
            add(&lane.packets_in, 1);
            add(&lane.bytes_in, bytes as u64);
        }
    }

    pub(crate) fn count_out(&self, worker: u16, bytes: usize) {
        if let Some(lane) = self.lanes.get(usize::from(worker)) {
            add(&lane.packets_out, 1);
            add(&lane.bytes_out, bytes as u64);
        }
    }

    /// Counts drops. Workers and the slow half meet here.
    pub(crate) fn drop_many(&self, reason: Reason, count: u64) {
        let drops = self.drops.get_or_init(|| Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect());
        if let Some(cell) = drops.get(reason as usize) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Adds to a cell that only the calling thread writes.
fn add(cell: &AtomicU64, more: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "what Iterator::filter hands out")]
const fn occurred((_, count): &(Reason, u64)) -> bool {
    *count > 0
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
        Reason::ALL.iter().map(|reason| (*reason, self.dropped(*reason))).filter(occurred)
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
            add(count, 1);
        }
    }

    pub(crate) fn count_in(&self, bytes: usize) {
        add(&self.packets_in, 1);
        add(&self.bytes_in, bytes as u64);
    }

    pub(crate) fn count_out(&self, bytes: usize) {
        add(&self.packets_out, 1);
        add(&self.bytes_out, bytes as u64);
    }

    pub(crate) fn count_refusal(&self) {
        add(&self.refusals, 1);
    }

    pub(crate) fn count_lost_records(&self, lost: u64) {
        add(&self.records_lost, lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lanes_of_a_link_add_up_and_a_drop_is_counted_under_its_reason() {
        let counters = LinkCounters::new(2);
        assert_eq!((counters.volume(), counters.drops().count()), (Volume::default(), 0));
        counters.count_in(0, 100);
        counters.count_in(1, 20);
        counters.count_out(1, 3);
        counters.drop_many(Reason::NoRule, 2);
        counters.drop_many(Reason::NoRule, 1);
        assert_eq!(counters.volume(), Volume { packets_in: 2, bytes_in: 120, packets_out: 1, bytes_out: 3 });
        assert_eq!(counters.drops().collect::<Vec<_>>(), [(Reason::NoRule, 3)]);
    }
}
