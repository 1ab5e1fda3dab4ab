//! What a change of policy opens and closes: the (caller, service, port) triples whose verdict differs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::compile::CompiledPolicy;
use super::document::{PortRange, Transport};
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
    let names = |policy: &CompiledPolicy| -> Vec<WorkloadName> {
        policy.services().map(|service| service.name().clone()).collect()
    };
    let all: BTreeSet<WorkloadName> = names(old).into_iter().chain(names(new)).collect();
    let mut changes = Vec::new();
    for destination in &all {
        let callers = [old, new].map(|policy| policy.callers(destination, now));
        let callers: BTreeSet<WorkloadName> = callers.into_iter().flatten().collect();
        for source in &callers {
            for transport in [Transport::Tcp, Transport::Udp] {
                changed(old, new, now, (source, destination, transport), &mut changes);
            }
            if changes.len() > limit {
                changes.truncate(limit);
                return Diff { changes, truncated: true };
            }
        }
    }
    changes.sort();
    Diff { changes, truncated: false }
}

fn changed(
    old: &CompiledPolicy,
    new: &CompiledPolicy,
    now: UnixTime,
    (source, destination, transport): (&WorkloadName, &WorkloadName, Transport),
    changes: &mut Vec<Change>,
) {
    let points = |policy: &CompiledPolicy| -> BTreeSet<u16> {
        let service = policy.service(destination).into_iter();
        service.flat_map(|s| s.points()).filter(|(t, _)| *t == transport).map(|(_, port)| port).collect()
    };
    let mut starts = points(old);
    starts.extend(points(new));
    let access = |policy: &CompiledPolicy, port: u16| {
        let Some(service) = policy.service(destination) else { return Access::Denied };
        let judgement = policy.judge(policy.identities().index(source), service, transport, port, now);
        match (judgement.allow, judgement.audit) {
            (true, true) => Access::Audited,
            (true, false) => Access::Allowed,
            (false, _) => Access::Denied,
        }
    };
    let ends = starts.iter().skip(1).map(|start| start.saturating_sub(1)).chain([u16::MAX]);
    let mut open: Option<Change> = None;
    for (first, last) in starts.iter().copied().zip(ends) {
        let (before, after) = (access(old, first), access(new, first));
        match &mut open {
            Some(change) if (change.before, change.after) == (before, after) => change.ports.last = last,
            Some(_) | None => {
                changes.extend(open.take().filter(|change| change.before != change.after));
                let ports = PortRange { transport, first, last };
                let (source, destination) = (source.clone(), destination.clone());
                open = Some(Change { source, destination, ports, before, after });
            }
        }
    }
    changes.extend(open.filter(|change| change.before != change.after));
}

#[cfg(test)]
mod tests;
