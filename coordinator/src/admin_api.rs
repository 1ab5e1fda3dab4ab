//! The admin API: HTTPS, JSON, under `/api/v1`.
//!
//! A request passes, in this order: its Host, its size and time limits, its credential, its role, its shape. What is
//! left is a typed call of one command of the [`Registry`]; whoever handles it has been given an [`Authorized`] value,
//! which only `auth` can make. A refusal leaves as problem details with the reason's name as its code.

mod acknowledgements;
mod admin_tokens;
mod attestors;
mod audit;
mod auth;
mod ca;
mod join_tokens;
mod limits;
mod nodes;
mod once;
mod peers;
mod policy;
mod problem;
mod registrations;
mod request;
mod revocations;
mod serve;
mod status;
mod view;
mod workloads;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use warren_proto::admin::BASE_PATH;

use crate::audit::{Tree, Verifier};
use crate::distribution::Links;
use crate::registry::Registry;

pub use auth::{Authorized, CaAdmin, Operator, PolicyAdmin, Viewer, first_run_token};
pub use serve::serve;

/// What every handler works with.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    registry: Arc<Registry>,
    links: Arc<Links>,
    hosts: Vec<String>,
    once: once::Once,
    verifier: Verifier,
    tree: Tree,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("hosts", &self.0.hosts).finish_non_exhaustive()
    }
}

impl Api {
    /// `hosts` are the DNS names that the API is called by. Names that are IP addresses need not be listed: a web page
    /// cannot make a browser's request to its own name end at ours under such a Host.
    #[must_use]
    pub fn new(registry: Arc<Registry>, links: Arc<Links>, hosts: Vec<String>) -> Self {
        let (once, verifier, tree) = (once::Once::default(), Verifier::default(), Tree::default());
        Self(Arc::new(Shared { registry, links, hosts, once, verifier, tree }))
    }

    fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    fn tree(&self) -> &Tree {
        &self.0.tree
    }

    fn links(&self) -> &Links {
        &self.0.links
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "warren admin API",
    description = "Answers carry apiVersion and kind; refusals are RFC 9457 problem details whose code is the reason's \
                   stable name. Changes take `dry_run`, `why`, `If-Match` and `Idempotency-Key`."
))]
struct Document;

fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi()).nest(
        BASE_PATH,
        OpenApiRouter::new()
            .routes(routes!(status::get))
            .routes(routes!(acknowledgements::get))
            .routes(routes!(join_tokens::list, join_tokens::create))
            .routes(routes!(join_tokens::delete))
            .routes(routes!(attestors::list))
            .routes(routes!(attestors::get, attestors::set, attestors::delete))
            .routes(routes!(registrations::list, registrations::create))
            .routes(routes!(registrations::delete))
            .routes(routes!(nodes::list))
            .routes(routes!(nodes::get, nodes::forget))
            .routes(routes!(nodes::set_workloads))
            .routes(routes!(nodes::forget_instance))
            .routes(routes!(peers::list, peers::create))
            .routes(routes!(peers::get, peers::delete))
            .routes(routes!(workloads::list))
            .routes(routes!(workloads::get))
            .routes(routes!(workloads::list_services))
            .routes(routes!(workloads::get_service))
            .routes(routes!(policy::get, policy::apply))
            .routes(routes!(policy::check))
            .routes(routes!(policy::why))
            .routes(routes!(policy::rollback))
            .routes(routes!(policy::history))
            .routes(routes!(policy::revision))
            .routes(routes!(revocations::list, revocations::create))
            .routes(routes!(ca::get))
            .routes(routes!(ca::rotate))
            .routes(routes!(audit::list))
            .routes(routes!(audit::rows))
            .routes(routes!(audit::verify))
            .routes(routes!(audit::prove))
            .routes(routes!(admin_tokens::list, admin_tokens::create))
            .routes(routes!(admin_tokens::delete))
            .routes(routes!(admin_tokens::claim)),
    )
}

/// The whole API as a service, every limit but the connection's own in place.
fn router(api: Api) -> axum::Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(limits::MAX_BODY))
        .layer(middleware::from_fn_with_state(api.clone(), limits::guard))
        .layer(middleware::from_fn(problem::tell))
        .with_state(api)
}

/// The OpenAPI 3.1 document of the API, as JSON.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn openapi() -> Result<String, serde_json::Error> {
    let (_, mut document) = routes().split_for_parts();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("token", scheme);
    document.to_pretty_json()
}

#[cfg(test)]
mod tests;
