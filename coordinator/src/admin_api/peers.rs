//! `/peers`: plain WireGuard devices.

use std::net::SocketAddr;

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use warren_proto::WorkloadName;
use warren_proto::admin::{Deleted, NewPeer, Peer, PeerConnection, PeerList, Versioned};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::spiffe::PEER_NAMESPACE;

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};
use crate::registry::{self, registered_peer};
use crate::state::State as Picture;
use crate::state::records::{Device, Instance};

/// Every device, revoked ones too until they are removed.
#[utoipa::path(get, path = "/peers", tag = "peers", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<PeerList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<PeerList>, ApiError> {
    let state = api.registry().state();
    let devices = state.workloads().filter(|workload| workload.is_peer());
    let devices = devices.filter_map(|workload| registered_peer(&state, workload).ok());
    let named = devices.map(|device| (device.workload.name().to_owned(), device)).collect();
    let page = paging.cut(named, |device| shown(&state, device))?;
    let items = page.items.into_iter().collect::<Result<_, _>>()?;
    Ok(Answer::ok(PeerList { page: warren_proto::admin::Page { items, next_cursor: page.next_cursor } }))
}

/// One device, with what its WireGuard configuration has to name.
#[utoipa::path(get, path = "/peers/{name}", tag = "peers", params(("name" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Versioned<Peer>)))]
pub(super) async fn get(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named(name): Named<String>,
) -> Result<Answer<Peer>, ApiError> {
    let state = api.registry().state();
    let device = registered_peer(&state, &identity(&name)?)?;
    let connections = connections(&api, &state, &device.workload);
    Ok(Answer::ok(Peer { connections, ..shown(&state, device)? }).tagged(device.modified.0))
}

/// Registers a device: the coordinator gives it an address and binds its key to the identity. Repeated, it is answered with
/// what is there.
#[utoipa::path(post, path = "/peers", tag = "peers", request_body = NewPeer, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<Peer>)))]
pub(super) async fn create(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    change: Change,
    Body(body): Body<NewPeer>,
) -> Result<Answer<Peer>, ApiError> {
    operator.may_change_namespace(PEER_NAMESPACE)?;
    let new = wanted(&body)?;
    let stored = api.registry().register_peer(&operator.caller(&change), new).await?;
    let state = api.registry().state();
    let connections = connections(&api, &state, &stored.workload);
    if change.dry_run {
        let is_there = registered_peer(&state, &stored.workload).is_ok();
        let shown = shown(&state, &stored)?;
        let shown = if is_there { shown } else { unregistered(shown) };
        return Ok(Answer::created(Peer { connections, ..shown }, &change));
    }
    let generation = Some(view::generation(state.generation()));
    Ok(Answer::created(Peer { connections, generation, ..shown(&state, &stored)? }, &change))
}

/// Removes a device: every node that knew it is told at once, and its tunnels and flows end.
#[utoipa::path(delete, path = "/peers/{name}", tag = "peers", params(("name" = String, Path), ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn delete(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(name): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    operator.may_change_namespace(PEER_NAMESPACE)?;
    let workload = identity(&name)?;
    api.registry().remove_peer(&operator.caller(&change), &workload, change.expected()).await?;
    Ok(Answer::ok(Deleted { id: name, committed: !change.dry_run }))
}

fn identity(name: &str) -> Result<WorkloadName, Refusal> {
    WorkloadName::new(PEER_NAMESPACE, name)
        .map_err(|_| Refusal::new(Reason::NotFound, format!("{name:?} is no device's name")).hint("warren peer list"))
}

fn wanted(body: &NewPeer) -> Result<registry::NewPeer, Refusal> {
    let invalid = |field: &str, what: &str| Refusal::new(Reason::InvalidField, format!("{field}: {what}"));
    let workload = WorkloadName::new(PEER_NAMESPACE, &body.name)
        .map_err(|_| invalid("name", "expected a lower-case letter, then letters, digits and '-', at most 63"))?;
    let key = STANDARD.decode(&body.public_key).ok().and_then(|key| key.try_into().ok());
    let key =
        key.ok_or_else(|| invalid("publicKey", "expected 32 bytes in base64, 44 characters, as `wg pubkey` gives"))?;
    let endpoint = match body.endpoint.as_deref().map(str::parse::<SocketAddr>) {
        Some(Err(_)) => return Err(invalid("endpoint", "expected an address with a port, 192.0.2.1:51820")),
        Some(Ok(endpoint)) => Some(endpoint),
        None => None,
    };
    Ok(registry::NewPeer { workload, key, endpoint, note: body.note.clone() })
}

fn shown(state: &Picture, instance: &Instance) -> Result<Peer, Refusal> {
    let gone = || Refusal::new(Reason::NotFound, format!("{} is not a device", instance.workload));
    let Device { key, endpoint, registered_by, note } = instance.device.as_ref().ok_or_else(gone)?;
    let settings = state.settings()?;
    Ok(Peer {
        name: instance.workload.name().to_owned(),
        spiffe_id: instance.workload.in_domain(&settings.trust_domain).to_string(),
        declared: state.policy.compiled().is_some_and(|policy| policy.service(&instance.workload).is_some()),
        workload: instance.workload.clone(),
        instance: instance.id,
        public_key: STANDARD.encode(key.0),
        addresses: instance.addresses.iter().map(|address| address.to_string()).collect(),
        endpoint: endpoint.map(|endpoint| endpoint.to_string()),
        registered_at: instance.registered_at.into(),
        registered_by: registered_by.clone(),
        note: note.clone(),
        certificate_expires_at: instance.valid_until().into(),
        revoked_at: instance.revoked_at.map(Into::into),
        connections: Vec::new(),
        generation: None,
    })
}

/// Without what only a registration gives: an id, addresses and a certificate.
fn unregistered(peer: Peer) -> Peer {
    Peer {
        instance: warren_proto::InstanceId::from_bytes([0; 16]),
        addresses: Vec::new(),
        certificate_expires_at: peer.registered_at,
        ..peer
    }
}

/// Every instance on a node that policy lets `device` talk to in some direction.
fn connections(api: &Api, state: &Picture, device: &WorkloadName) -> Vec<PeerConnection> {
    let now = api.registry().now();
    let linked =
        |other: &WorkloadName| state.policy.linked(device, other, now) || state.policy.linked(other, device, now);
    let others = state.workloads().filter(|workload| !workload.is_peer() && linked(workload));
    let mut connections: Vec<_> = others
        .flat_map(|workload| state.instances_of(workload))
        .filter(|instance| state.peer_record(instance, now).is_some())
        .filter_map(|instance| {
            Some(PeerConnection {
                workload: instance.workload.clone(),
                instance: instance.id,
                node: instance.node,
                public_key: STANDARD.encode(instance.certificates.first()?.tunnel_key.0),
                addresses: instance.addresses.iter().map(|address| address.to_string()).collect(),
                endpoints: api.links().endpoints_of(instance.node).iter().map(ToString::to_string).collect(),
            })
        })
        .collect();
    connections.sort_by(|one, other| (&one.workload, one.instance).cmp(&(&other.workload, other.instance)));
    connections
}
