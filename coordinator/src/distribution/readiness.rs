//! Which nodes are not ready for the next step of a rotation of the root, and what they wait for.
//!
//! Only nodes count whose certificate holds and that were not revoked. What a node has is known from its acknowledgements
//! and its link to this process: one that was not seen since the process started is not ready.

use prost::Message;
use warren_proto::admin::{NotReadyNode, RotationStage};
use warren_proto::root_hint::prefix;
use warren_proto::{NodeId, UnixTime};

use super::Links;
use crate::ca::rotation::TrustRoots;
use crate::state::State;
use crate::state::records::Node;

/// The nodes of `state` that are not ready to leave the stage of `roots`.
#[must_use]
pub fn not_ready(state: &State, links: &Links, roots: &TrustRoots, now: UnixTime) -> Vec<NotReadyNode> {
    let Ok(settings) = state.settings() else { return Vec::new() };
    let Ok(bundle) = roots.bundle(&settings.trust_domain) else { return Vec::new() };
    let bundle = bundle.to_wire().encode_to_vec();
    let ready = |id, node: &Node| match roots.stage() {
        RotationStage::Steady => None,
        RotationStage::Introduced => holds(links, id, &bundle),
        RotationStage::Activated => holds(links, id, &bundle).or_else(|| renewed(state, links, roots, id, node, now)),
    };
    let mut missing = Vec::new();
    for (id, node) in state.nodes.sorted() {
        if node.revoked_at.is_some() || node.certificate.not_after <= now {
            continue;
        }
        if let Some(waits_for) = ready(*id, node) {
            missing.push(NotReadyNode {
                id: *id,
                host_name: node.host_name.clone(),
                connected: links.get(*id).is_some(),
                waits_for: waits_for.to_owned(),
            });
        }
    }
    missing
}

fn holds(links: &Links, node: NodeId, bundle: &[u8]) -> Option<&'static str> {
    (!links.holds_bundle(node, bundle)).then_some("its acknowledgement of the trust bundle")
}

fn renewed(
    state: &State,
    links: &Links,
    roots: &TrustRoots,
    id: NodeId,
    node: &Node,
    now: UnixTime,
) -> Option<&'static str> {
    if roots.is_superseded(&node.certificate.issuer_key_id) {
        return Some("the renewal of its node certificate");
    }
    // That it was issued is not that it arrived: the node must have shown it.
    if links.root_of(id) != Some(prefix(roots.signing())) {
        return Some("a link with its renewed node certificate");
    }
    let old = state.instances_on(id).any(|instance| {
        let newest = instance.certificates.first();
        let holds = newest.filter(|held| held.not_after > now && instance.revoked_at.is_none());
        holds.is_some_and(|held| roots.is_superseded(&held.issuer_key_id))
    });
    old.then_some("the renewal of a tunnel certificate")
}
