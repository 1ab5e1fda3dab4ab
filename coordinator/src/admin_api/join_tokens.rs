//! `/tokens`: join tokens.

use std::time::Duration;

use axum::extract::State;
use warren_proto::admin::{CreatedJoinToken, Deleted, JoinToken, JoinTokenList, NewJoinToken, Versioned};
use warren_proto::join_token::JoinTokenId;
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params};
use super::{Api, Authorized, Operator, Viewer, view};
use crate::registry;

/// Join tokens, without their secrets.
#[utoipa::path(get, path = "/tokens", tag = "tokens", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<JoinTokenList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<JoinTokenList>, ApiError> {
    let (state, now) = (api.registry().state(), api.registry().now());
    let named = state.tokens.iter().map(|(id, token)| (id.to_string(), token)).collect();
    Ok(Answer::ok(JoinTokenList { page: paging.cut(named, |token| view::join_token(token, now))? }))
}

/// Makes a join token. Its secret is in this answer and nowhere else; repeat a lost request with its Idempotency-Key.
#[utoipa::path(post, path = "/tokens", tag = "tokens", request_body = NewJoinToken, params(ChangeQuery),
    security(("token" = [])), responses((status = 201, body = Versioned<CreatedJoinToken>)))]
pub(super) async fn create(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    change: Change,
    Body(new): Body<NewJoinToken>,
) -> Result<Answer<CreatedJoinToken>, ApiError> {
    operator.may_change(&new.workloads)?;
    let work = async {
        let wanted = registry::NewJoinToken {
            lifetime: Duration::from_secs(new.lifetime_seconds),
            uses: new.uses,
            workloads: new.workloads.clone(),
            note: new.note.clone(),
        };
        let (token, secret) = api.registry().create_join_token(&operator.caller(&change), wanted).await?;
        let token = view::join_token(&token, api.registry().now());
        if change.dry_run {
            return Ok(CreatedJoinToken { token: JoinToken { id: String::new(), ..token }, secret: None });
        }
        Ok(CreatedJoinToken { token, secret: Some(secret.to_string()) })
    };
    let created = api.0.once.run(operator.token_id(), &change, &new, work).await?;
    Ok(Answer::created(created, &change))
}

/// Takes a join token back: nobody joins with it any more. Nodes that joined with it stay.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "tokens", params(("id" = String, Path), ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<Deleted>)))]
pub(super) async fn delete(
    State(api): State<Api>,
    operator: Authorized<Operator>,
    Named(id): Named<String>,
    change: Change,
) -> Result<Answer<Deleted>, ApiError> {
    let unknown = || Refusal::new(Reason::NotFound, format!("there is no join token {id}")).hint("warren token list");
    let key: JoinTokenId = id.parse().map_err(|_| unknown())?;
    let state = api.registry().state();
    let token = state.tokens.get(&key).ok_or_else(unknown)?;
    operator.may_change(&token.workloads)?;
    api.registry().delete_join_token(&operator.caller(&change), key, change.expected()).await?;
    Ok(Answer::ok(Deleted { id, committed: !change.dry_run }))
}
