//! `/nodes`, and what runs on them: `/instances`.

use axum::extract::State;
use warren_proto::admin::{Deleted, Node, NodeList, NodeWorkloads, Versioned};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};
use crate::registry::node_with_workloads;

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

/// Says which identities a node may hold, all of them. An instance of one that is taken away is not renewed; to end it at
/// once, revoke it.
#[utoipa::path(put, path = "/nodes/{id}/workloads", tag = "nodes", request_body = NodeWorkloads,
    params(("id" = String, Path), ChangeQuery), security(("token" = [])),
    responses((status = 200, body = Versioned<Node>)))]
pub(super) async fn set_workloads(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(id): Named<String>,
    change: Change,
    Body(NodeWorkloads { workloads }): Body<NodeWorkloads>,
) -> Result<Answer<Node>, ApiError> {
    let key = id.parse::<NodeId>().map_err(|_| unknown(&id))?;
    let (state, now) = (api.registry().state(), api.registry().now());
    let (known, wanted) = node_with_workloads(&state, key, workloads, change.expected())?;
    let (held, to_hold) = (&known.workloads, &wanted.workloads);
    // What stays as it is needs no right.
    operator.may_change(held.iter().filter(|workload| !to_hold.contains(workload)))?;
    operator.may_change(to_hold.iter().filter(|workload| !held.contains(workload)))?;
    let caller = operator.caller(&change);
    // What was judged above is what is changed.
    let to_hold = wanted.workloads.clone();
    let stored = api.registry().set_node_workloads(&caller, key, to_hold, Some(known.modified)).await?;
    if change.dry_run {
        return Ok(Answer::ok(view::node(&state, api.links(), &wanted, now)));
    }
    let shown = view::node(&api.registry().state(), api.links(), &stored, now);
    Ok(Answer::ok(shown).tagged(stored.modified.0))
}

/// Removes an instance that was revoked, or its node, or whose certificates have ended. Its addresses go to nobody before the longest
/// certificate that could name them has ended.
#[utoipa::path(delete, path = "/instances/{id}", tag = "nodes", params(("id" = String, Path), ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn forget_instance(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(id): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    let unknown =
        || Refusal::new(Reason::NotFound, format!("there is no instance {id}")).hint("warren workload list -o wide");
    let key = id.parse::<InstanceId>().map_err(|_| unknown())?;
    let state = api.registry().state();
    operator.may_change([&state.instances.get(&key).ok_or_else(unknown)?.workload])?;
    api.registry().forget_instance(&operator.caller(&change), key, change.expected()).await?;
    Ok(Answer::ok(Deleted { id, committed: !change.dry_run }))
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
    api.registry().forget_node(&operator.caller(&change), key, change.expected()).await?;
    Ok(Answer::ok(Deleted { id, committed: !change.dry_run }))
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(Reason::NodeUnknown, format!("there is no node {id}")).hint("warren node list")
}
