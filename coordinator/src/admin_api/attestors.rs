//! `/attestors`: who may vouch for machines.

use axum::extract::State;
use warren_proto::admin::{Attestor, AttestorList, Deleted, NewAttestor, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, CaAdmin, Viewer, view};

/// Every attestor.
#[utoipa::path(get, path = "/attestors", tag = "attestation", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<AttestorList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<AttestorList>, ApiError> {
    let state = api.registry().state();
    let named = state.attestors.iter().map(|(name, attestor)| (name.clone(), attestor)).collect();
    Ok(Answer::ok(AttestorList { page: paging.cut(named, |attestor| view::attestor(&state, attestor))? }))
}

/// One attestor, with the keys or roots that are kept of what it was given.
#[utoipa::path(get, path = "/attestors/{name}", tag = "attestation", params(("name" = String, Path)),
    security(("token" = [])), responses((status = 200, body = Versioned<Attestor>)))]
pub(super) async fn get(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named(name): Named<String>,
) -> Result<Answer<Attestor>, ApiError> {
    let state = api.registry().state();
    let attestor = state.attestors.get(&name).ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("there is no attestor {name}")).hint("warren attestor list")
    })?;
    Ok(Answer::ok(view::attestor(&state, attestor)).tagged(attestor.modified.0))
}

/// Makes an attestor, or sets all of one that is there: so it is given an issuer's new keys, and judges by them from the next
/// enrolment on. Takes a ca-admin: an attestor's keys can make nodes, as the CA's can.
#[utoipa::path(put, path = "/attestors/{name}", tag = "attestation", request_body = NewAttestor,
    params(("name" = String, Path), ChangeQuery), security(("token" = [])),
    responses((status = 200, body = Versioned<Attestor>)))]
pub(super) async fn set(
    State(api): State<Api>,
    admin: Authorized<CaAdmin>,
    Named(name): Named<String>,
    change: Change,
    Body(new): Body<NewAttestor>,
) -> Result<Answer<Attestor>, ApiError> {
    admin.may_change_mesh()?;
    let caller = admin.caller(&change);
    let set = api.registry().set_attestor(&caller, &name, &new.settings, &new.note, change.expected()).await?;
    let state = api.registry().state();
    let answer = Answer::ok(view::attestor(&state, &set));
    Ok(match state.attestors.get(&name).filter(|_| !change.dry_run) {
        Some(stored) => answer.tagged(stored.modified.0),
        None => answer,
    })
}

/// Deletes an attestor that no registration rests on. Nodes that enrolled by it stay.
#[utoipa::path(delete, path = "/attestors/{name}", tag = "attestation", params(("name" = String, Path), ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn delete(
    State(api): State<Api>,
    admin: Authorized<CaAdmin>,
    Named(name): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    admin.may_change_mesh()?;
    api.registry().delete_attestor(&admin.caller(&change), &name, change.expected()).await?;
    Ok(Answer::ok(Deleted { id: name, committed: !change.dry_run }))
}
