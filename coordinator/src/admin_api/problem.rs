//! Refusals as RFC 9457 problem details, and the line in the log that goes with each.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use warren_proto::admin::{Finding, Problem, TestOutcome};
use warren_proto::reason::{Reason, Refusal};

use crate::registry::PolicyRefused;

/// Why a request was not done.
#[derive(Debug, Clone)]
pub struct ApiError {
    refusal: Refusal,
    status: Option<StatusCode>,
    findings: Vec<Finding>,
    failed_tests: Vec<TestOutcome>,
}

impl ApiError {
    /// With a status that the reason alone does not give.
    pub(super) fn with_status(refusal: Refusal, status: StatusCode) -> Self {
        Self { status: Some(status), ..refusal.into() }
    }

    fn status(&self) -> StatusCode {
        self.status.unwrap_or(match self.refusal.reason {
            Reason::NotAuthenticated => StatusCode::UNAUTHORIZED,
            Reason::NotPermitted | Reason::NamespaceOwned => StatusCode::FORBIDDEN,
            Reason::NotFound | Reason::NodeUnknown | Reason::TokenUnknown => StatusCode::NOT_FOUND,
            Reason::Conflict | Reason::KeyInUse => StatusCode::CONFLICT,
            Reason::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Reason::PolicyInvalid | Reason::TestsFailed | Reason::UnenforceablePolicy | Reason::DeletesTooMuch => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Reason::StoreUnavailable | Reason::NotReady | Reason::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Reason::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            Reason::Internal | Reason::StateCorrupt => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        })
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, status: None, findings: Vec::new(), failed_tests: Vec::new() }
    }
}

impl From<PolicyRefused> for ApiError {
    fn from(refused: PolicyRefused) -> Self {
        Self {
            findings: refused.diagnostics.iter().map(Finding::from).collect(),
            failed_tests: refused.failed_tests.iter().map(TestOutcome::from).collect(),
            ..refused.refusal.into()
        }
    }
}

impl IntoResponse for ApiError {
    /// [`tell`] writes the body, for it knows the request.
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Names every request, writes refusals as problem details, and keeps answers out of caches.
pub(super) async fn tell(request: Request, next: Next) -> Response {
    let id = hex::encode(rand::random::<[u8; 8]>());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let status = error.status();
        let ApiError { refusal, findings, failed_tests, .. } = error;
        tracing::info!(request = %id, %method, path, status = status.as_u16(), reason = %refusal.reason, detail = refusal.detail, "refused");
        let problem = Problem { findings, failed_tests, ..Problem::new(&refusal, status.as_u16(), id.clone()) };
        response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"warren\""));
        }
    } else {
        tracing::debug!(request = %id, %method, path, status = response.status().as_u16(), "answered");
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    response
}

pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    Refusal::new(Reason::NotFound, format!("there is nothing at {}", uri.path()))
        .hint("warren-coordinator openapi prints every path")
        .into()
}

pub(super) async fn no_such_method() -> ApiError {
    let refusal = Refusal::new(Reason::InvalidField, "the path does not take this method");
    ApiError::with_status(refusal, StatusCode::METHOD_NOT_ALLOWED)
}
