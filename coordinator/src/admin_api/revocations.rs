//! `/revocations`.

use axum::extract::State;
use warren_proto::admin::{NewRevocation, Revocation, RevocationList, RevocationTarget, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};
use crate::registry::Revoke;

/// Every revocation that still concerns a certificate.
#[utoipa::path(get, path = "/revocations", tag = "revocations", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<RevocationList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<RevocationList>, ApiError> {
    let state = api.registry().state();
    let named = state.revocations.iter().map(|(id, revocation)| (id.clone(), revocation)).collect();
    Ok(Answer::ok(RevocationList { page: paging.cut(named, |stored| view::revocation(stored))? }))
}

/// Revokes. Nodes are told at once; `/acknowledgements` with this answer's generation says who has it.
#[utoipa::path(post, path = "/revocations", tag = "revocations", request_body = NewRevocation, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<Revocation>)))]
pub(super) async fn create(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    change: Change,
    Body(NewRevocation { target }): Body<NewRevocation>,
) -> Result<Answer<Revocation>, ApiError> {
    check(&api, &operator, &target)?;
    let shown = describe(&target);
    let revoke = command(target)?;
    let stored = api.registry().revoke(&operator.caller(&change), revoke).await?;
    if change.dry_run {
        let preview = Revocation { id: String::new(), target: shown, ..view::revocation(&stored) };
        return Ok(Answer::created(preview, &change));
    }
    let generation = Some(view::generation(api.registry().state().generation()));
    Ok(Answer::created(Revocation { generation, ..view::revocation(&stored) }, &change))
}

/// Whether the caller may revoke it; and that what has a name exists, so that a dry run says the same as the change.
fn check(api: &Api, operator: &Authorized<Operator>, target: &RevocationTarget) -> Result<(), Refusal> {
    let state = api.registry().state();
    match target {
        RevocationTarget::Node(id) => {
            let node = state.nodes.get(id).ok_or_else(|| {
                Refusal::new(Reason::NodeUnknown, format!("there is no node {id}")).hint("warren node list")
            })?;
            operator.may_change(&node.workloads)
        }
        RevocationTarget::Instance(id) => {
            let instance = state.instances.get(id).ok_or_else(|| {
                Refusal::new(Reason::NotFound, format!("there is no instance {id}"))
                    .hint("warren workload list -o wide")
            })?;
            operator.may_change([&instance.workload])
        }
        RevocationTarget::Identity(workload) => operator.may_change([workload]),
        RevocationTarget::Certificate { .. } | RevocationTarget::TunnelKey(_) => operator.may_change_mesh(),
        // It can end every certificate of the mesh, as a rotation can.
        RevocationTarget::Issuer(_) => operator.may_change_ca(),
    }
}

fn describe(target: &RevocationTarget) -> String {
    match target {
        RevocationTarget::Certificate { issuer_key_id, serial } => {
            format!("certificate {serial} of issuer {issuer_key_id}")
        }
        RevocationTarget::TunnelKey(key) => format!("tunnel key {key}"),
        RevocationTarget::Instance(id) => format!("instance {id}"),
        RevocationTarget::Node(id) => format!("node {id}"),
        RevocationTarget::Identity(workload) => format!("certificates of {workload} issued until now"),
        RevocationTarget::Issuer(key_id) => format!("issuer {key_id}"),
    }
}

fn command(target: RevocationTarget) -> Result<Revoke, Refusal> {
    Ok(match target {
        RevocationTarget::Certificate { issuer_key_id, serial } => Revoke::Certificate {
            issuer_key_id: bytes("target.certificate.issuerKeyId", &issuer_key_id)?,
            serial: bytes("target.certificate.serial", &serial)?,
        },
        RevocationTarget::TunnelKey(key) => {
            let key = bytes("target.tunnelKey", &key)?.try_into();
            let length = |_| Refusal::new(Reason::InvalidField, "target.tunnelKey: expected 64 hexadecimal digits");
            Revoke::TunnelKey(key.map_err(length)?)
        }
        RevocationTarget::Instance(id) => Revoke::Instance(id),
        RevocationTarget::Node(id) => Revoke::Node(id),
        RevocationTarget::Identity(workload) => Revoke::Identity(workload),
        RevocationTarget::Issuer(key_id) => Revoke::Issuer(bytes("target.issuer", &key_id)?),
    })
}

fn bytes(field: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    match hex::decode(text) {
        Ok(bytes) if (1..=64).contains(&bytes.len()) => Ok(bytes),
        _ => Err(Refusal::new(Reason::InvalidField, format!("{field}: expected 2 to 128 hexadecimal digits"))),
    }
}
