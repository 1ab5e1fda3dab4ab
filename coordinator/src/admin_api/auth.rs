//! Who calls, and what they may do.
//!
//! A credential is `Authorization: Bearer wa1_...`. Only this module makes an [`Authorized`] value, and it does so from a
//! credential whose hash matches, in constant time, one that is in date and whose role covers the handler's.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use subtle::ConstantTimeEq;
use warren_proto::admin::{AdminTokenId, Credential, Role};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{UnixTime, WorkloadName};
use zeroize::Zeroizing;

use super::Api;
use super::problem::ApiError;
use super::request::Change;
use crate::registry::Caller;
use crate::state::Stored;
use crate::state::records::{AdminToken, Hex32};

/// How long the first-run token waits to be claimed.
const FIRST_RUN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A role as a type, so that a handler's signature says what it takes to call it.
pub trait Required: Send + Sync + 'static {
    /// The role.
    const ROLE: Role;
}

macro_rules! roles {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl Required for $name {
            const ROLE: Role = Role::$name;
        }
    )* };
}

roles! {
    /// Reads.
    Viewer;
    /// Changes join tokens, nodes, revocations.
    Operator;
    /// Changes policy.
    PolicyAdmin;
    /// Changes everything.
    CaAdmin;
}

/// Proof that the caller holds a valid credential whose role covers `R`.
#[derive(Debug)]
pub struct Authorized<R> {
    token: Arc<Stored<AdminToken>>,
    role: PhantomData<fn() -> R>,
}

/// Proof that the caller holds the first-run token, which opens one door only.
#[derive(Debug)]
pub(super) struct FirstRun {
    token: Arc<Stored<AdminToken>>,
}

impl<R> Authorized<R> {
    /// The token's id: what idempotency keys belong to.
    pub(super) fn token_id(&self) -> &str {
        &self.token.id
    }

    /// The caller as a command takes it.
    pub(super) fn caller(&self, change: &Change) -> Caller {
        Caller {
            who: format!("admin:{}", self.token.name),
            why: change.why.clone(),
            request: change.commit_id(&self.token.id),
            dry_run: change.dry_run,
        }
    }

    /// Whether the token is confined to some namespaces.
    pub(super) fn is_confined(&self) -> bool {
        !self.token.namespaces.is_empty()
    }

    /// Refuses a change in a namespace that the token is not for.
    pub(super) fn may_change_namespace(&self, namespace: &str) -> Result<(), Refusal> {
        if !self.is_confined() || self.token.namespaces.iter().any(|allowed| allowed == namespace) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::NotPermitted,
            format!(
                "the token {} may change {} only, not {namespace}",
                self.token.name,
                self.token.namespaces.join(", ")
            ),
        ))
    }

    /// The same for what belongs to the whole mesh.
    pub(super) fn may_change_mesh(&self) -> Result<(), Refusal> {
        if !self.is_confined() {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::NotPermitted,
            format!(
                "the token {} is confined to {}; this concerns the whole mesh",
                self.token.name,
                self.token.namespaces.join(", ")
            ),
        ))
    }

    /// Refuses what is for the CA's administrators only, where another role may do the rest of an operation.
    pub(super) fn may_change_ca(&self) -> Result<(), Refusal> {
        self.may_change_mesh()?;
        check_role(&self.token, Role::CaAdmin)
    }

    /// The same for identities.
    pub(super) fn may_change<'a>(&self, workloads: impl IntoIterator<Item = &'a WorkloadName>) -> Result<(), Refusal> {
        workloads.into_iter().try_for_each(|workload| self.may_change_namespace(workload.namespace()))
    }
}

impl FirstRun {
    /// The token's id, to be consumed.
    pub(super) fn token_id(&self) -> &str {
        &self.token.id
    }

    /// The caller as a command takes it.
    pub(super) fn caller(&self, change: &Change) -> Caller {
        let (who, why) = (format!("admin:{}", self.token.name), change.why.clone());
        Caller { who, why, request: change.commit_id(&self.token.id), dry_run: change.dry_run }
    }
}

impl<R: Required> FromRequestParts<Api> for Authorized<R> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let token = authenticate(parts, api)?;
        if token.first_run {
            return Err(Refusal::new(Reason::NotPermitted, "the first-run token can only be exchanged")
                .hint("warren admin claim --first-run-token-file FILE > admin.token")
                .into());
        }
        check_role(&token, R::ROLE)?;
        Ok(Self { token, role: PhantomData })
    }
}

impl FromRequestParts<Api> for FirstRun {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let token = authenticate(parts, api)?;
        if !token.first_run {
            return Err(Refusal::new(Reason::NotPermitted, "only the first-run token can be exchanged")
                .hint("warren admin token create makes further tokens")
                .into());
        }
        Ok(Self { token })
    }
}

fn check_role(token: &AdminToken, required: Role) -> Result<(), Refusal> {
    if covers(token.role, required) {
        return Ok(());
    }
    let detail = format!("the token {} is a {}'s; this takes a {}", token.name, name(token.role), name(required));
    Err(Refusal::new(Reason::NotPermitted, detail))
}

/// Every role reads; the CA's administrator does everything; the others do their own.
fn covers(held: Role, required: Role) -> bool {
    held == required || held == Role::CaAdmin || required == Role::Viewer
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::PolicyAdmin => "policy-admin",
        Role::CaAdmin => "ca-admin",
    }
}

fn authenticate(parts: &Parts, api: &Api) -> Result<Arc<Stored<AdminToken>>, Refusal> {
    let header = parts.headers.get(AUTHORIZATION).ok_or_else(|| {
        refused("no credential was presented").hint("send `Authorization: Bearer wa1_...`; warren takes --token-file")
    })?;
    let (scheme, text) = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(|| refused("the Authorization header is not `Bearer wa1_...`"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused("the Authorization header is not `Bearer wa1_...`"));
    }
    let presented = Credential::parse(text).map_err(|refusal| refused(&refusal.detail).hint(refusal.hint))?;
    let state = api.registry().state();
    let known = state.admin_tokens.get(&presented.id().to_string());
    // An unknown id costs the same comparison as a known one.
    let expected = known.map_or([0; 32], |token| token.secret_sha256.0);
    let matches: bool = presented.hash().ct_eq(&expected).into();
    match known {
        Some(token) if matches => {
            if token.expires_at <= api.registry().now() {
                return Err(refused(&format!("the token {} expired at {}", token.name, token.expires_at)));
            }
            Ok(Arc::clone(token))
        }
        _ => Err(refused("the credential is not known; it was deleted, or was a first-run token and has been used")),
    }
}

fn refused(detail: &str) -> Refusal {
    Refusal::new(Reason::NotAuthenticated, detail)
}

/// A new credential and the record of it. The role and the rest are the caller's to decide.
pub(super) fn mint(
    name: String,
    role: Role,
    lifetime: Duration,
    now: UnixTime,
    by: String,
) -> (AdminToken, Credential) {
    let credential = Credential::new(AdminTokenId::from_bytes(rand::random()), rand::random());
    let token = AdminToken {
        id: credential.id().to_string(),
        name,
        secret_sha256: Hex32(credential.hash()),
        role,
        namespaces: Vec::new(),
        created_at: now,
        expires_at: now.plus(lifetime),
        created_by: by,
        first_run: false,
    };
    (token, credential)
}

/// The one-time token that `init` leaves in a file: the record for the store, and the text for the file.
#[must_use]
pub fn first_run_token(now: UnixTime) -> (AdminToken, Zeroizing<String>) {
    let (token, credential) =
        mint("first-run".to_owned(), Role::CaAdmin, FIRST_RUN_LIFETIME, now, "coordinator".to_owned());
    (AdminToken { first_run: true, ..token }, credential.expose())
}
