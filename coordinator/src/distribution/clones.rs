//! Two processes that use one node's identity, as a copied state directory makes them.
//!
//! Each process of a node has a random name. A node that restarts comes under a new one and never under an earlier one
//! again; so does a machine that is replaced. Of a copy the coordinator sees both names in turn: each connection takes the
//! other's place, and the other comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_proto::{NodeId, UnixTime};

/// Names of processes that are remembered of one node.
const REMEMBERED: usize = 8;
/// A copy that goes on is reported again after so long.
const AGAIN: Duration = Duration::from_secs(3600);

/// What was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClonedNode {
    /// When it was last.
    pub at: UnixTime,
    /// Where the two connect from.
    pub remotes: [IpAddr; 2],
}

#[derive(Debug)]
struct Process {
    name: [u8; 16],
    remote: IpAddr,
}

/// Every node's processes.
#[derive(Debug, Default)]
pub(super) struct Clones {
    /// The newest last.
    processes: BTreeMap<NodeId, Vec<Process>>,
    noticed: BTreeMap<NodeId, (ClonedNode, UnixTime)>,
}

impl Clones {
    /// A process of `node` connects. Answers with what is to be reported, if anything is.
    pub(super) fn connects(
        &mut self,
        node: NodeId,
        name: [u8; 16],
        remote: SocketAddr,
        now: UnixTime,
    ) -> Option<ClonedNode> {
        let remote = remote.ip().to_canonical();
        let processes = self.processes.entry(node).or_default();
        let newest = processes.last().map(|process| (process.name, process.remote));
        let known = processes.iter().position(|process| process.name == name);
        if let Some(known) = known {
            processes.remove(known);
        }
        processes.push(Process { name, remote });
        if processes.len() > REMEMBERED {
            processes.remove(0);
        }
        let (other, from) = newest?;
        if known.is_none() || other == name {
            return None;
        }
        let clone = ClonedNode { at: now, remotes: [from, remote] };
        let reported = self.noticed.get(&node).map(|(_, reported)| *reported);
        let due = reported.is_none_or(|reported| reported.plus(AGAIN) <= now);
        self.noticed.insert(node, (clone.clone(), if due { now } else { reported.unwrap_or(now) }));
        due.then_some(clone)
    }

    /// What was noticed of `node`.
    pub(super) fn of(&self, node: NodeId) -> Option<ClonedNode> {
        self.noticed.get(&node).map(|(clone, _)| clone.clone())
    }

    /// The node is no longer trusted.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.processes.remove(&node);
        self.noticed.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const NOW: UnixTime = UnixTime(1_000_000);

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 40_000))
    }

    #[test]
    fn two_processes_that_come_in_turn_are_a_copy_and_restarts_and_returns_of_one_are_not() {
        let mut clones = Clones::default();
        for restart in 0..20 {
            assert_eq!(clones.connects(NODE, [restart; 16], at(1), NOW), None, "a restart");
            assert_eq!(clones.connects(NODE, [restart; 16], at(2), NOW), None, "the same process from elsewhere");
        }
        assert_eq!(clones.of(NODE), None);
        assert_eq!(clones.connects(NODE, [200; 16], at(9), NOW), None, "this could still be a restart");
        let noticed = clones.connects(NODE, [19; 16], at(2), NOW).expect("the first one is still there");
        assert_eq!(noticed.remotes, [at(9).ip(), at(2).ip()]);
        assert_eq!(clones.connects(NODE, [200; 16], at(9), NOW), None, "reported once");
        assert!(clones.of(NODE).is_some());
        let later = NOW.plus(AGAIN);
        assert!(clones.connects(NODE, [19; 16], at(2), later).is_some(), "and again while it goes on");
        clones.forget(NODE);
        assert_eq!(clones.of(NODE), None);
    }
}
