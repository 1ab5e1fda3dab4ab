//! What a change of policy opens and closes: the (caller, service, port) triples whose verdict differs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::compile::{CompiledPolicy, Service};
use super::document::{PortRange, Transport};
use super::identities::SourceIndex;
use crate::{UnixTime, WorkloadName};

/// A verdict at layer 4 as a change shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Refused.
    Denied,
    /// Let in by audit mode alone.
    Audited,
    /// Let in by a rule; requests may still be refused one by one.
    Allowed,
}

/// Ports whose verdict changes for one caller of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// The caller.
    pub source: WorkloadName,
    /// The service.
    pub destination: WorkloadName,
    /// The ports.
    pub ports: PortRange,
    /// Under the policy in force.
    pub before: Access,
    /// Under the new one.
    pub after: Access,
}

/// All changes, or the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// By caller, service and port.
    pub changes: Vec<Change>,
    /// True when there are more than were asked for.
    pub truncated: bool,
}

/// Compares two whole policies at layer 4 and gives at most `limit` changes.
#[must_use]
pub fn diff(old: &CompiledPolicy, new: &CompiledPolicy, now: UnixTime, limit: usize) -> Diff {
    let services = old.services().chain(new.services());
    let destinations: BTreeSet<&WorkloadName> = services.map(Service::name).collect();
    let mut changes = Vec::new();
    for destination in destinations {
        let callers = [old, new].map(|policy| policy.callers(destination, now));
        let callers: BTreeSet<WorkloadName> = callers.into_iter().flatten().collect();
        let sides = [Side::new(old, destination), Side::new(new, destination)];
        for transport in [Transport::Tcp, Transport::Udp] {
            let ranges = ranges(&sides, transport);
            for source in &callers {
                changed(&sides, now, source, destination, &ranges, &mut changes);
            }
        }
        if changes.len() > limit {
            changes.truncate(limit);
            return Diff { changes, truncated: true };
        }
    }
    changes.sort();
    Diff { changes, truncated: false }
}

/// One policy's view of one destination.
struct Side<'a> {
    policy: &'a CompiledPolicy,
    service: Option<&'a Service>,
}

impl<'a> Side<'a> {
    fn new(policy: &'a CompiledPolicy, destination: &WorkloadName) -> Self {
        Self { policy, service: policy.service(destination) }
    }

    fn access(&self, source: SourceIndex, transport: Transport, port: u16, now: UnixTime) -> Access {
        let Some(service) = self.service else { return Access::Denied };
        let judgement = self.policy.judge(source, service, transport, port, now);
        match (judgement.allow, judgement.audit) {
            (true, true) => Access::Audited,
            (true, false) => Access::Allowed,
            (false, _) => Access::Denied,
        }
    }
}

/// The ranges in which neither policy changes its verdict.
fn ranges(sides: &[Side<'_>; 2], transport: Transport) -> Vec<PortRange> {
    let points = sides.iter().flat_map(|side| side.service).flat_map(Service::points);
    let starts: BTreeSet<u16> = points.filter(|(t, _)| *t == transport).map(|(_, port)| port).collect();
    let ends = starts.iter().skip(1).map(|start| start.saturating_sub(1)).chain([u16::MAX]);
    starts.iter().copied().zip(ends).map(|(first, last)| PortRange { transport, first, last }).collect()
}

fn changed(
    sides: &[Side<'_>; 2],
    now: UnixTime,
    source: &WorkloadName,
    destination: &WorkloadName,
    ranges: &[PortRange],
    changes: &mut Vec<Change>,
) {
    let [old, new] = sides;
    let (old_index, new_index) = (old.policy.identities().index(source), new.policy.identities().index(source));
    let mut open: Option<Change> = None;
    for range in ranges {
        let before = old.access(old_index, range.transport, range.first, now);
        let after = new.access(new_index, range.transport, range.first, now);
        match &mut open {
            Some(change) if (change.before, change.after) == (before, after) => change.ports.last = range.last,
            Some(_) | None => {
                changes.extend(open.take().filter(|change| change.before != change.after));
                let (source, destination) = (source.clone(), destination.clone());
                open = Some(Change { source, destination, ports: *range, before, after });
            }
        }
    }
    changes.extend(open.filter(|change| change.before != change.after));
}

#[cfg(test)]
mod tests;
