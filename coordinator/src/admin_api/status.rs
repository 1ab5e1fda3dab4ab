//! `/status`.

use axum::extract::State;
use warren_proto::admin::{NodeIdText, Status, StoreStatus, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::Answer;
use super::{Api, Authorized, Viewer, view};

/// How the coordinator and its mesh are.
#[utoipa::path(get, path = "/status", tag = "status", security(("token" = [])),
    responses((status = 200, body = Versioned<Status>)))]
pub(super) async fn get(State(api): State<Api>, _: Authorized<Viewer>) -> Result<Answer<Status>, ApiError> {
    let (state, now) = (api.registry().state(), api.registry().now());
    let settings = state.settings().map_err(|error| Refusal::new(Reason::StateCorrupt, error.to_string()))?;
    let health = api.registry().store().health();
    let unacknowledged = api.links().unacknowledged(&state, state.generation(), now);
    let connected = api.links().list();
    Ok(Answer::ok(Status {
        trust_domain: settings.trust_domain.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        overlay: view::overlay(&settings.overlay),
        generation: view::generation(state.generation()),
        policy_revision: state.policy.number,
        nodes: state.nodes.iter().filter(|(_, node)| node.revoked_at.is_none()).count(),
        nodes_connected: connected.len(),
        instances: state.instances.iter().filter(|(_, instance)| instance.valid_until() > now).count(),
        unacknowledged: unacknowledged.pending.into_iter().chain(unacknowledged.away).map(NodeIdText).collect(),
        store: StoreStatus {
            digest: health.digest.to_string(),
            writable: health.writable,
            low_space: health.low_space,
            free_bytes: health.space.map(|space| space.free),
        },
    }))
}
