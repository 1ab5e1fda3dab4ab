//! `/audit`: the log of every change and issuance.

use std::time::Instant;

use axum::extract::State;
use utoipa::IntoParams;
use warren_proto::admin::{
    AuditEntry, AuditExport, AuditHead, AuditList, AuditProof, AuditReport, Page, ProvenRow, ProvenSince, Versioned,
    shown_path,
};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::tree_head::TreeHead;

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

/// The longest serial number of a certificate, in hexadecimal digits.
const MAX_SERIAL: usize = 64;

#[derive(Debug, serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Prove that this row is in the log.
    row: Option<u64>,
    /// Prove that the row is in it that issued the certificate with this serial number, hexadecimal.
    serial: Option<String>,
    /// Prove that the log of so many rows is the beginning of this one.
    since: Option<u64>,
}

/// A signed head of the Merkle tree over the log's rows (RFC 9162), with the proofs that were asked for: for whoever checks without
/// asking this coordinator again.
#[utoipa::path(get, path = "/audit/proof", tag = "audit", params(Asked), security(("token" = [])),
    responses((status = 200, body = Versioned<AuditProof>)))]
pub(super) async fn prove(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(Asked { row, serial, since }): Params<Asked>,
) -> Result<Answer<AuditProof>, ApiError> {
    let (registry, store) = (api.registry(), &**api.registry().store());
    let seq = match (row, serial) {
        (Some(_), Some(_)) => return Err(Refusal::new(Reason::InvalidField, "row, serial: only one of them").into()),
        (None, Some(serial)) if serial.is_empty() || serial.len() > MAX_SERIAL => {
            return Err(Refusal::new(Reason::InvalidField, "serial: expected 1 to 64 hexadecimal digits").into());
        }
        (None, Some(serial)) => Some(api.tree().find_issuance(store, &serial).await?),
        (row, None) => row,
    };
    let proven = api.tree().prove(store, seq, since).await?;
    let row = match (seq, proven.inclusion) {
        (Some(seq), Some(path)) => {
            Some(ProvenRow { seq, text: audit::row(store, seq).await?, path: shown_path(&path) })
        }
        _ => None,
    };
    let since = since.zip(proven.consistency).map(|(size, path)| ProvenSince { size, path: shown_path(&path) });
    let authority = registry.authority();
    let trust_domain = authority.bundle().trust_domain().clone();
    let head = TreeHead { trust_domain, size: proven.size, root: proven.root, time: registry.now() };
    let head = AuditHead::new(&head, &authority.sign(head.to_body(), &[]));
    Ok(Answer::ok(AuditProof { head, row, since }))
}
