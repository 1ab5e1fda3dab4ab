//! `/registrations`: which evidence may hold which identities.

use axum::extract::State;
use warren_proto::admin::{Deleted, NewRegistration, Registration, RegistrationList, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};
use crate::registry;

/// Every registration.
#[utoipa::path(get, path = "/registrations", tag = "attestation", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<RegistrationList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<RegistrationList>, ApiError> {
    let state = api.registry().state();
    let named = state.registrations.iter().map(|(name, registration)| (name.clone(), registration)).collect();
    Ok(Answer::ok(RegistrationList { page: paging.cut(named, |registration| view::registration(registration))? }))
}

/// Makes a registration: a machine whose evidence says all of its selectors may hold its identities.
#[utoipa::path(post, path = "/registrations", tag = "attestation", request_body = NewRegistration, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<Registration>)))]
pub(super) async fn create(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    change: Change,
    Body(new): Body<NewRegistration>,
) -> Result<Answer<Registration>, ApiError> {
    operator.may_change(&new.workloads)?;
    let wanted = registry::NewRegistration {
        name: new.name.clone(),
        attestor: new.attestor.clone(),
        selectors: new.selectors.clone(),
        workloads: new.workloads.clone(),
        note: new.note.clone(),
    };
    let caller = operator.caller(&change);
    let work = async {
        let made = api.registry().create_registration(&caller, &wanted).await?;
        Ok(view::registration(&made))
    };
    let created = api.0.once.run(operator.token_id(), &change, &new, work).await?;
    Ok(Answer::created(created, &change))
}

/// Deletes a registration: no further node enrols by it. Nodes that did stay.
#[utoipa::path(delete, path = "/registrations/{name}", tag = "attestation",
    params(("name" = String, Path), ChangeQuery), security(("token" = [])),
    responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn delete(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(name): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    let state = api.registry().state();
    let known = state.registrations.get(&name).ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("there is no registration {name}")).hint("warren registration list")
    })?;
    operator.may_change(&known.workloads)?;
    api.registry().delete_registration(&operator.caller(&change), &name, change.expected()).await?;
    Ok(Answer::ok(Deleted { id: name, committed: !change.dry_run }))
}
