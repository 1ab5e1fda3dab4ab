//! The parts of a request, checked: query, conditions, keys, bodies, pages. Unknown fields are refused everywhere.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;
use warren_proto::admin::{DEFAULT_PAGE, Kind, MAX_PAGE, Page, Versioned};
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use crate::store::{CommitId, Revision};

/// The longest `why`, in bytes: it goes into the audit log.
const MAX_WHY: usize = 256;

/// The longest Idempotency-Key, in bytes.
const MAX_KEY: usize = 128;

fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::InvalidField, detail)
}

/// The query string, as a struct that refuses unknown fields.
#[derive(Debug)]
pub(super) struct Params<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(invalid(format!("query: {}", rejection.body_text())).into()),
        }
    }
}

/// One parameter of the path, parsed.
#[derive(Debug)]
pub(super) struct Named<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(invalid(format!("path: {}", rejection.body_text())).into()),
        }
    }
}

/// A JSON body.
#[derive(Debug)]
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A browser sends no JSON across origins without asking first, so this also keeps forged forms out.
        if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
            let refusal = invalid("Content-Type: expected application/json");
            return Err(ApiError::with_status(refusal, StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(failed) if failed.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("the body is larger than {} bytes", super::limits::MAX_BODY);
                Refusal::new(Reason::RequestTooLarge, detail)
            }
            other => invalid(format!("body: {other}")),
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| invalid(format!("body: {error}")).into())
    }
}

#[derive(Debug, serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangeQuery {
    /// Say what would be done and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Why, for the audit log.
    #[serde(default)]
    why: String,
}

/// What every change may carry besides its body.
#[derive(Debug)]
pub(super) struct Change {
    /// Say what would be done and do nothing.
    pub dry_run: bool,
    /// Why, for the audit log.
    pub why: String,
    /// Only if the object is still at this revision.
    pub if_match: Option<u64>,
    /// The client's name for this change.
    pub key: Option<String>,
}

impl Change {
    /// `If-Match` as the registry's commands take it.
    pub(super) fn expected(&self) -> Option<Revision> {
        self.if_match.map(Revision)
    }

    /// The store's idempotency key: the client's, within the client's token, or a fresh one.
    pub(super) fn commit_id(&self, token: &str) -> CommitId {
        let Some(key) = &self.key else { return CommitId::random() };
        let hash = Sha256::new().chain_update(token).chain_update([0]).chain_update(key).finalize();
        CommitId(hash.first_chunk().copied().unwrap_or_default())
    }
}

impl<S: Sync> FromRequestParts<S> for Change {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Params(query) = Params::<ChangeQuery>::from_request_parts(parts, state).await?;
        if query.why.len() > MAX_WHY {
            return Err(invalid(format!("why: {} bytes, expected at most {MAX_WHY}", query.why.len())).into());
        }
        Ok(Self {
            dry_run: query.dry_run,
            why: query.why,
            if_match: if_match(&parts.headers)?,
            key: idempotency_key(&parts.headers)?,
        })
    }
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let revision = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix('"')?.strip_suffix('"'))
        .and_then(|text| text.parse().ok());
    revision.map(Some).ok_or_else(|| invalid("If-Match: expected an ETag as it was given, for example \"42\""))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(invalid(format!("Idempotency-Key: expected 1 to {MAX_KEY} visible ASCII characters"))),
    }
}

#[derive(Debug, Default, serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// `nextCursor` of the page before.
    #[serde(default)]
    pub cursor: Option<String>,
    /// How many items, 1 to 500; 100 unless said.
    #[serde(default)]
    pub limit: Option<usize>,
}

impl Paging {
    /// The number of items asked for.
    pub(super) fn limit(&self) -> Result<usize, Refusal> {
        match self.limit.unwrap_or(DEFAULT_PAGE) {
            limit if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            limit => Err(invalid(format!("limit: {limit}, expected 1 to {MAX_PAGE}"))),
        }
    }

    /// Where the page before ended.
    pub(super) fn after(&self) -> Result<Option<String>, Refusal> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let after = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        after.map(Some).ok_or_else(|| invalid("cursor: expected nextCursor of the page before"))
    }

    /// The page of items whose names, in rising order, follow where the last page ended.
    pub(super) fn cut<T, U>(&self, mut named: Vec<(String, T)>, show: impl Fn(T) -> U) -> Result<Page<U>, Refusal> {
        let (limit, after) = (self.limit()?, self.after()?);
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut rest = named.into_iter().filter(|(name, _)| after.as_ref().is_none_or(|after| name > after)).peekable();
        let mut items = Vec::new();
        let mut last = None;
        while items.len() < limit
            && let Some((name, item)) = rest.next()
        {
            items.push(show(item));
            last = Some(name);
        }
        let next_cursor = last.filter(|_| rest.peek().is_some()).map(|name| cursor(&name));
        Ok(Page { items, next_cursor })
    }
}

/// A cursor that [`Paging::after`] reads back.
pub(super) fn cursor(name: &str) -> String {
    URL_SAFE_NO_PAD.encode(name)
}

#[derive(Debug, serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// The generation's epoch.
    pub epoch: u64,
    /// The generation's revision.
    pub revision: u64,
    /// Answer when everyone connected has it, or after so many seconds (at most 30); at once unless said.
    #[serde(default)]
    pub wait_seconds: u64,
}

impl Waiting {
    /// How long to wait.
    pub(super) fn time(&self) -> Duration {
        Duration::from_secs(self.wait_seconds.min(30))
    }
}

/// An answer: its status, its ETag, its value.
#[derive(Debug)]
pub(super) struct Answer<T> {
    status: StatusCode,
    etag: Option<u64>,
    value: T,
}

impl<T> Answer<T> {
    /// 200.
    pub(super) const fn ok(value: T) -> Self {
        Self { status: StatusCode::OK, etag: None, value }
    }

    /// 201, or 200 for a dry run.
    pub(super) fn created(value: T, change: &Change) -> Self {
        let status = if change.dry_run { StatusCode::OK } else { StatusCode::CREATED };
        Self { status, etag: None, value }
    }

    /// With the revision that `If-Match` takes.
    pub(super) const fn tagged(mut self, revision: u64) -> Self {
        self.etag = Some(revision);
        self
    }
}

impl<T: Kind + Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(Versioned::new(self.value))).into_response();
        if let Some(etag) = self.etag.and_then(|etag| HeaderValue::from_str(&format!("\"{etag}\"")).ok()) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response
    }
}
