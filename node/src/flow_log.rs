//! The last flows this node judged: a bounded ring, and a broadcast for those who follow. Denials have a ring of their
//! own, so that a flood of allowed flows cannot push out the one line somebody looks for.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::local_api::types::{FlowLine, FlowVerdict};

/// Lines kept of each verdict: some minutes of a busy node, about a megabyte.
const KEPT: usize = 2048;
/// Lines that a slow follower may be behind before it is told that some are missing.
const BEHIND: usize = 1024;

/// The ring.
#[derive(Debug)]
pub struct FlowLog {
    rings: Mutex<Rings>,
    followers: broadcast::Sender<FlowLine>,
}

#[derive(Debug, Default)]
struct Rings {
    allowed: VecDeque<FlowLine>,
    denied: VecDeque<FlowLine>,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self { rings: Mutex::default(), followers: broadcast::channel(BEHIND).0 }
    }
}

impl FlowLog {
    /// Adds a line.
    pub fn add(&self, line: FlowLine) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = match line.verdict {
            FlowVerdict::Allowed => &mut rings.allowed,
            FlowVerdict::Denied => &mut rings.denied,
        };
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(line.clone());
        drop(rings);
        // Nobody follows most of the time.
        let _ = self.followers.send(line);
    }

    /// The last `limit` lines of this verdict, or of both, oldest first.
    #[must_use]
    pub fn last(&self, verdict: Option<FlowVerdict>, limit: usize) -> Vec<FlowLine> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |which| verdict.is_none_or(|verdict| verdict == which);
        let mut lines: Vec<FlowLine> = Vec::new();
        if wanted(FlowVerdict::Allowed) {
            lines.extend(rings.allowed.iter().cloned());
        }
        if wanted(FlowVerdict::Denied) {
            lines.extend(rings.denied.iter().cloned());
        }
        lines.sort_by_key(|line| line.at);
        lines.split_off(lines.len().saturating_sub(limit))
    }

    /// Every line from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<FlowLine> {
        self.followers.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use warren_proto::UnixTime;

    use super::*;

    fn line(at: u64, verdict: FlowVerdict) -> FlowLine {
        FlowLine {
            at: UnixTime(at),
            time: String::new(),
            verdict,
            source: None,
            destination: None,
            protocol: "tcp".into(),
            port: 1,
            source_address: "[::1]:1".parse().expect("address"),
            destination_address: "[::1]:2".parse().expect("address"),
            rule: None,
            nearest: None,
            file: None,
            line: None,
            reason: None,
            audit: false,
            count: 1,
        }
    }

    #[test]
    fn a_flood_of_allowed_flows_pushes_out_no_denial() {
        let log = FlowLog::default();
        log.add(line(1, FlowVerdict::Denied));
        for at in 0..3 * KEPT as u64 {
            log.add(line(10 + at, FlowVerdict::Allowed));
        }
        assert_eq!(log.last(Some(FlowVerdict::Denied), 10).len(), 1);
        assert_eq!(log.last(Some(FlowVerdict::Allowed), usize::MAX).len(), KEPT);
    }

    #[test]
    fn the_last_lines_come_in_order_of_time() {
        let log = FlowLog::default();
        log.add(line(5, FlowVerdict::Allowed));
        log.add(line(3, FlowVerdict::Denied));
        log.add(line(9, FlowVerdict::Denied));
        let times: Vec<_> = log.last(None, 2).into_iter().map(|line| line.at.0).collect();
        assert_eq!(times, [5, 9]);
    }
}
