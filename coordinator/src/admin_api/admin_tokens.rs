//! `/admin-tokens` and `/claim`: who may use this API.

use std::time::Duration;

use axum::extract::State;
use warren_proto::admin::{
    AdminTokenList, Claim, CreatedAdminToken, Credential, Deleted, NewAdminToken, Role, Versioned,
};
use warren_proto::reason::{Reason, Refusal};

use super::auth::{FirstRun, mint};
use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, CaAdmin, view};
use crate::state::records::AdminToken;

/// The longest life of an administrator's token.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// The life of the token that the first-run token is exchanged for.
const CLAIMED_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// The most namespaces that a token is confined to.
const MAX_NAMESPACES: usize = 64;

/// Administrators' tokens, without their secrets.
#[utoipa::path(get, path = "/admin-tokens", tag = "administrators", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<AdminTokenList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<CaAdmin>,
    Params(paging): Params<Paging>,
) -> Result<Answer<AdminTokenList>, ApiError> {
    let state = api.registry().state();
    let named = state.admin_tokens.iter().map(|(id, token)| (id.clone(), token)).collect();
    Ok(Answer::ok(AdminTokenList { page: paging.cut(named, |token| view::admin_token(token))? }))
}

/// Makes an administrator's token. Its secret is in this answer and nowhere else; repeat a lost request with its
/// Idempotency-Key.
#[utoipa::path(post, path = "/admin-tokens", tag = "administrators", request_body = NewAdminToken, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<CreatedAdminToken>)))]
pub(super) async fn create(
    State(api): State<Api>,
    administrator: Authorized<CaAdmin>,
    change: Change,
    Body(new): Body<NewAdminToken>,
) -> Result<Answer<CreatedAdminToken>, ApiError> {
    administrator.may_change_mesh()?;
    let work = async {
        let caller = administrator.caller(&change);
        let (token, credential) =
            mint(new.name.clone(), new.role, lifetime(&new)?, api.registry().now(), caller.who.clone());
        let token = AdminToken { namespaces: namespaces(&new)?, ..token };
        let stored = api.registry().create_admin_token(&caller, token, None).await?;
        Ok(CreatedAdminToken { token: view::admin_token(&stored), secret: secret(&credential, &change) })
    };
    let created = api.0.once.run(administrator.token_id(), &change, &new, work).await?;
    Ok(Answer::created(created, &change))
}

/// Takes an administrator's token back.
#[utoipa::path(delete, path = "/admin-tokens/{id}", tag = "administrators",
    params(("id" = String, Path), ChangeQuery), security(("token" = [])),
    responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn delete(
    State(api): State<Api>,
    administrator: Authorized<CaAdmin>,
    Named(id): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    administrator.may_change_mesh()?;
    api.registry().delete_admin_token(&administrator.caller(&change), &id, change.expected()).await?;
    Ok(Answer::ok(Deleted { id, committed: !change.dry_run }))
}

/// Exchanges the first-run token, which is this request's credential and is used up by it, for the first
/// administrator's token.
#[utoipa::path(post, path = "/claim", tag = "administrators", request_body = Claim, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<CreatedAdminToken>)))]
pub(super) async fn claim(
    State(api): State<Api>,
    first_run: FirstRun,
    change: Change,
    Body(claim): Body<Claim>,
) -> Result<Answer<CreatedAdminToken>, ApiError> {
    let caller = first_run.caller(&change);
    let (token, credential) =
        mint(claim.name, Role::CaAdmin, CLAIMED_LIFETIME, api.registry().now(), caller.who.clone());
    let stored = api.registry().create_admin_token(&caller, token, Some(first_run.token_id())).await?;
    let secret = secret(&credential, &change);
    Ok(Answer::created(CreatedAdminToken { token: view::admin_token(&stored), secret }, &change))
}

/// What is shown once; of a token that was not made, nothing.
fn secret(credential: &Credential, change: &Change) -> Option<String> {
    (!change.dry_run).then(|| credential.expose().to_string())
}

fn lifetime(new: &NewAdminToken) -> Result<Duration, Refusal> {
    let lifetime = Duration::from_secs(new.lifetime_seconds);
    if lifetime.is_zero() || lifetime > MAX_LIFETIME {
        let detail = format!("lifetimeSeconds: {}, expected 1 to {}", lifetime.as_secs(), MAX_LIFETIME.as_secs());
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    Ok(lifetime)
}

fn namespaces(new: &NewAdminToken) -> Result<Vec<String>, Refusal> {
    let wrong = new.namespaces.iter().find(|namespace| !warren_proto::spiffe::is_name(namespace));
    if let Some(wrong) = wrong {
        return Err(Refusal::new(Reason::InvalidField, format!("namespaces: {wrong:?} is no namespace's name")));
    }
    if new.namespaces.len() > MAX_NAMESPACES {
        return Err(Refusal::new(Reason::InvalidField, format!("namespaces: at most {MAX_NAMESPACES}")));
    }
    let mut namespaces = new.namespaces.clone();
    namespaces.sort_unstable();
    namespaces.dedup();
    Ok(namespaces)
}
