//! What is refused before anybody looks at a request: a foreign Host, and work without end.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use warren_proto::reason::{Reason, Refusal};

use super::Api;
use super::problem::ApiError;

/// The largest body: a Set of policy. Everything else is far smaller and checked field by field.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long one request may take, from its head to its answer. The longest wait that can be asked for is half of it.
const REQUEST_TIME: Duration = Duration::from_secs(60);

/// Checks the Host and bounds the time.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Err(refusal) = check_host(&api, &request) {
        return ApiError::with_status(refusal, StatusCode::MISDIRECTED_REQUEST).into_response();
    }
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = "the request took too long; whether a change was made is not known";
            let refusal =
                Refusal::new(Reason::StoreUnavailable, detail).hint("repeat it with the same Idempotency-Key");
            ApiError::with_status(refusal, StatusCode::GATEWAY_TIMEOUT).into_response()
        }
    }
}

/// A page on another name that resolves here (DNS rebinding) sends that name as its Host.
fn check_host(api: &Api, request: &Request) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Authority>().ok());
    let (Some(host), None) = (host, hosts.next()) else {
        return Err(Refusal::new(Reason::InvalidField, "Host: exactly one is needed"));
    };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let known = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || api.0.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    if known {
        return Ok(());
    }
    Err(Refusal::new(Reason::InvalidField, "Host: this coordinator is not called so")
        .hint("add the name to admin.hosts in coordinator.yaml"))
}
