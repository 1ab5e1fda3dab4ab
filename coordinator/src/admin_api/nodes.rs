//! `/nodes`.

use axum::extract::State;
use warren_proto::NodeId;
use warren_proto::admin::{Deleted, Node, NodeList, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};

/// Every node, revoked ones too until they are forgotten.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<NodeList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<NodeList>, ApiError> {
    let (state, now) = (api.registry().state(), api.registry().now());
    let named = state.nodes.iter().map(|(id, node)| (id.to_string(), node)).collect();
    Ok(Answer::ok(NodeList { page: paging.cut(named, |node| view::node(&state, api.links(), node, now))? }))
}

/// One node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Versioned<Node>)))]
pub(super) async fn get(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named(id): Named<String>,
) -> Result<Answer<Node>, ApiError> {
    let state = api.registry().state();
    let key = id.parse::<NodeId>().map_err(|_| unknown(&id))?;
    let node = state.nodes.get(&key).ok_or_else(|| unknown(&id))?;
    let shown = view::node(&state, api.links(), node, api.registry().now());
    Ok(Answer::ok(shown).tagged(node.modified.0))
}

/// Removes a node that was revoked or is long gone, with its instances.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path), ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn forget(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(id): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    let key = id.parse::<NodeId>().map_err(|_| unknown(&id))?;
    operator.may_change(&api.registry().state().nodes.get(&key).ok_or_else(|| unknown(&id))?.workloads)?;
    if !change.dry_run {
        api.registry().forget_node(&operator.caller(&change), key, change.expected()).await?;
    }
    Ok(Answer::ok(Deleted { id, committed: !change.dry_run }))
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(Reason::NodeUnknown, format!("there is no node {id}")).hint("warren node list")
}
