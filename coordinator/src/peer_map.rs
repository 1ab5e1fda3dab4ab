//! One node's map: the state, seen from that node. Pure.
//!
//! A node is told of the instances it may talk to in some direction, of the policy of its own workloads, of the
//! trust bundle and of every revocation in force. A workload's policy reaches only the nodes that hold it, and with it comes the
//! statement for which of the node's instances it was chosen.

use std::collections::BTreeSet;

use bytes::Bytes;
use warren_proto::peer_map::{
    Manifest, NamedDigest, Object, ObjectKey, ObjectKind, Scope, encode_instances, encode_workloads, object_digest,
};
use warren_proto::{NodeId, READER_VERSION, UnixTime, WorkloadName};

use crate::state::{State, StateError, Touched};

/// How long a manifest may be taken as new. What a node has applied stays in force beyond it.
pub const MANIFEST_LIFETIME: std::time::Duration = std::time::Duration::from_secs(48 * 3600);

/// Undeclared identities in one object of a scope, so that the object fits a frame.
const UNDECLARED_PER_LIST: usize = 1_000;

/// The scope of `node`: what it holds when it is up to date. `bundle` is the encoded trust bundle.
#[must_use]
pub fn project(state: &State, node: NodeId, bundle: &Bytes, now: UnixTime) -> Scope {
    let mut scope = Scope::default();
    let mut put = |kind, name: String, content: Bytes| {
        scope.objects.insert(ObjectKey { kind, name }, Object { content, min_reader: READER_VERSION });
    };
    put(ObjectKind::TrustBundle, String::new(), bundle.clone());
    for (index, list) in state.revocation_lists.iter().enumerate() {
        let name = if index == 0 { String::new() } else { index.to_string() };
        put(ObjectKind::Revocations, name, list.clone());
    }
    // Says for which instances what follows is chosen: a node knows by it that the rules of a new instance have come.
    let instances = encode_instances(state.instances_on(node).map(|instance| instance.id));
    put(ObjectKind::Instances, String::new(), instances);
    // A node is not told of every declared identity. Of those that exist undeclared it is, to deny them as the whole does.
    let undeclared: Vec<_> = state.undeclared().into_iter().collect();
    for (index, part) in undeclared.chunks(UNDECLARED_PER_LIST).enumerate() {
        put(ObjectKind::Undeclared, index.to_string(), encode_workloads(part.iter().copied()));
    }
    let local: Vec<_> = state.workloads_on(node).into_iter().collect();
    for (name, content) in state.policy.slice(&local, now) {
        put(ObjectKind::Policy, name, content);
    }
    for workload in state.workloads().filter(|workload| talks_to_any(state, workload, &local, now)) {
        for instance in state.instances_of(workload).filter(|instance| instance.node != node) {
            if let Some(record) = state.peer_record(instance, now) {
                scope.peers.insert(instance.id, record);
            }
        }
    }
    scope
}

/// The manifest that names what `scope` holds.
pub fn manifest(state: &State, node: NodeId, scope: &Scope, now: UnixTime) -> Result<Manifest, StateError> {
    let settings = state.settings()?;
    let objects = scope
        .objects
        .iter()
        .map(|(key, object)| {
            let named = NamedDigest { sha256: object_digest(&object.content), min_reader: object.min_reader };
            (key.clone(), named)
        })
        .collect();
    Ok(Manifest {
        trust_domain: settings.trust_domain.clone(),
        node,
        generation: state.generation(),
        issued_at: now,
        not_after: now.plus(MANIFEST_LIFETIME),
        overlay: settings.overlay,
        stale_after_seconds: settings.stale_after,
        max_certificate_lifetime_seconds: settings.max_certificate_lifetime,
        policy_revision: state.policy.number,
        objects,
    })
}

/// Whom a change concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Every node.
    All,
    /// These.
    Nodes(BTreeSet<NodeId>),
}

/// The nodes whose scope `touched` may have altered, under the policy of `state`. A change of policy concerns all,
/// so that who lost a grant is told like who won one.
#[must_use]
pub fn concerned(state: &State, touched: &Touched, now: UnixTime) -> Concerned {
    if touched.mesh || touched.trust || touched.policy || touched.revocations {
        return Concerned::All;
    }
    let leaves_out = |name| state.policy.compiled().is_some_and(|policy| policy.leaves_out(name));
    if touched.workloads.iter().any(leaves_out) {
        return Concerned::All;
    }
    let mut nodes = touched.nodes.clone();
    let changed: BTreeSet<_> = touched.instances.iter().map(|(workload, _)| workload.clone()).collect();
    nodes.extend(touched.instances.iter().map(|(_, node)| *node));
    if !changed.is_empty() {
        let changed: Vec<_> = changed.into_iter().collect();
        for workload in state.workloads().filter(|workload| talks_to_any(state, workload, &changed, now)) {
            nodes.extend(state.instances_of(workload).map(|instance| instance.node));
        }
    }
    Concerned::Nodes(nodes)
}

fn talks_to_any(state: &State, workload: &WorkloadName, others: &[WorkloadName], now: UnixTime) -> bool {
    others.iter().any(|other| state.policy.linked(workload, other, now) || state.policy.linked(other, workload, now))
}

#[cfg(test)]
mod tests;
