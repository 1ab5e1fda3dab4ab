//! `/acknowledgements`: who has what was changed.

use axum::extract::State;
use tokio::time::{Instant, timeout_at};
use warren_proto::admin::{Acknowledgements, NodeIdText, Versioned};
use warren_proto::peer_map::Generation;

use super::problem::ApiError;
use super::request::{Answer, Params, Waiting};
use super::{Api, Authorized, Viewer, view};

/// Who has not acknowledged everything up to a generation that concerns them.
#[utoipa::path(get, path = "/acknowledgements", tag = "status", params(Waiting), security(("token" = [])),
    responses((status = 200, body = Versioned<Acknowledgements>)))]
pub(super) async fn get(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(waiting): Params<Waiting>,
) -> Result<Answer<Acknowledgements>, ApiError> {
    let generation = Generation { epoch: waiting.epoch, revision: waiting.revision };
    let until = Instant::now() + waiting.time();
    let mut moved = api.links().moved();
    loop {
        moved.mark_unchanged();
        let missing = api.links().unacknowledged(&api.registry().state(), generation, api.registry().now());
        // Whoever is away is told when it comes back; nobody waits for that here.
        let settled = missing.pending.is_empty() || !matches!(timeout_at(until, moved.changed()).await, Ok(Ok(())));
        if settled {
            return Ok(Answer::ok(Acknowledgements {
                generation: view::generation(generation),
                pending: missing.pending.into_iter().map(NodeIdText).collect(),
                away: missing.away.into_iter().map(NodeIdText).collect(),
            }));
        }
    }
}
