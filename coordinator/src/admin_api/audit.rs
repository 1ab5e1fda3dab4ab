//! `/audit`: the log of every change and issuance.

use std::time::Instant;

use axum::extract::State;
use utoipa::IntoParams;
use warren_proto::admin::{AuditEntry, AuditExport, AuditList, AuditReport, Page, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Paging, Params, cursor};
use super::{Api, Authorized, Viewer};
use crate::audit::{self, Broken, Cursor};

/// The log, newest first.
#[utoipa::path(get, path = "/audit", tag = "audit", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<AuditList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<AuditList>, ApiError> {
    let before = paging.after()?.map(|text| text.parse().map(Cursor)).transpose();
    let before = before.map_err(|_| Refusal::new(Reason::InvalidField, "cursor: not of this list"))?;
    let page = audit::page(&**api.registry().store(), before, paging.limit()?).await?;
    let items = page.entries.into_iter().map(|entry| AuditEntry {
        seq: entry.seq,
        time: entry.time.into(),
        who: entry.who,
        action: entry.action,
        object: entry.object,
        old: entry.old,
        new: entry.new,
        why: entry.why,
        previous: entry.previous.to_string(),
    });
    let next_cursor = page.next.map(|Cursor(seq)| cursor(&seq.to_string()));
    Ok(Answer::ok(AuditList { page: Page { items: items.collect(), next_cursor } }))
}

#[derive(Debug, serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// Only rows behind this one; all unless said.
    #[serde(default)]
    after: u64,
}

/// The log's rows as they are stored, oldest first, for whoever checks the chain by himself: each holds the SHA-256 of the one
/// before.
#[utoipa::path(get, path = "/audit/rows", tag = "audit", params(After), security(("token" = [])),
    responses((status = 200, body = Versioned<AuditExport>)))]
pub(super) async fn rows(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(After { after }): Params<After>,
) -> Result<Answer<AuditExport>, ApiError> {
    let (rows, next) = audit::rows(&**api.registry().store(), Cursor(after)).await?;
    Ok(Answer::ok(AuditExport { rows, next: next.map(|Cursor(seq)| seq) }))
}

/// Checks every link of the log's chain, for one request at a time. While the log does not grow, a good outcome is given again
/// for a minute.
#[utoipa::path(get, path = "/audit/verify", tag = "audit", security(("token" = [])),
    responses((status = 200, body = Versioned<AuditReport>)))]
pub(super) async fn verify(State(api): State<Api>, _: Authorized<Viewer>) -> Result<Answer<AuditReport>, ApiError> {
    match api.verifier().verify(&**api.registry().store(), Instant::now()).await {
        Ok(verified) => Ok(Answer::ok(AuditReport {
            intact: true,
            problem: String::new(),
            entries: verified.entries,
            first: verified.first,
            last: verified.last,
            head: verified.head.to_string(),
        })),
        Err(Broken::Store(error)) => Err(Refusal::from(error).into()),
        Err(broken) => Ok(Answer::ok(AuditReport {
            intact: false,
            problem: broken.to_string(),
            entries: 0,
            first: 0,
            last: 0,
            head: String::new(),
        })),
    }
}
