//! Requests as the evaluator sees them, and how HTTP, token and `when` terms answer to one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document::{ClaimTerm, ClaimValue, Effect, HttpTerm, JwtTerm, RequestTerms};
use super::guard::{Facts, Party};
use crate::WorkloadName;
use crate::reason::Reason;

/// An HTTP request in its normal form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The method, upper case.
    pub method: String,
    /// The path as [`is_normal_path`](super::paths::is_normal_path) says; no query.
    pub path: String,
    /// The protocol the caller asks to upgrade to.
    pub upgrade: Option<String>,
    /// Whether its content type is gRPC's.
    pub grpc: bool,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The token it carries; its signature, audience and dates were verified before.
    pub token: Option<Token>,
}

/// A verified token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The name of its issuer in the Mesh document.
    pub issuer: String,
    /// The workload it was issued to, when it says so.
    pub issued_to: Option<WorkloadName>,
    /// Its claims.
    pub claims: serde_json::Map<String, Value>,
}

/// Why terms do not hold for a request: the first that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub term: &'static str,
    pub detail: String,
    pub reason: Reason,
}

/// Both ends and the request.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub source: &'a WorkloadName,
    pub destination: &'a WorkloadName,
    pub request: &'a Request,
}

impl RequestTerms {
    /// `Ok` when all terms hold. An error in `when` counts as holding in a deny and as failing elsewhere.
    pub(super) fn check(&self, asked: Asked<'_>, effect: Effect) -> Result<(), Failed> {
        let request = asked.request;
        if !self.http.is_empty() && !self.http.iter().any(|term| term.matches(request, effect)) {
            let detail = format!("no alternative matches {} {}", request.method, request.path);
            return Err(Failed { term: "http", detail, reason: Reason::RequestNotMatched });
        }
        if let Some(jwt) = &self.jwt {
            jwt.check(request.token.as_ref(), asked.source)?;
        }
        let Some(guard) = &self.when else { return Ok(()) };
        let facts = Facts {
            request,
            jwt: request.token.as_ref().map(|token| &token.claims),
            source: party(asked.source),
            destination: party(asked.destination),
        };
        let fails = |detail: String| Err(Failed { term: "when", detail, reason: Reason::RequestNotMatched });
        match guard.holds(&facts) {
            Ok(true) => Ok(()),
            Ok(false) => fails("the expression is false".to_owned()),
            Err(_) if effect == Effect::Deny => Ok(()),
            Err(error) => fails(format!("the expression fails: {error}")),
        }
    }
}

fn party(workload: &WorkloadName) -> Party<'_> {
    Party { namespace: workload.namespace(), name: workload.name() }
}

impl HttpTerm {
    /// An alternative without `upgrade` lets no upgrade through, but a deny of that kind also stops upgrades.
    fn matches(&self, request: &Request, effect: Effect) -> bool {
        if !self.grpc.is_empty() {
            let Some((service, method)) = request.path.strip_prefix('/').and_then(|rest| rest.split_once('/')) else {
                return false;
            };
            let named = self.grpc.iter().any(|(s, m)| s == service && (m == method || m == "*"));
            // A deny must not be evaded by another method or content type on the same path.
            return named && (effect == Effect::Deny || (request.grpc && request.method == "POST"));
        }
        let upgrade = match (&self.upgrade, &request.upgrade) {
            (None, None) => true,
            (None, Some(_)) => effect == Effect::Deny,
            (Some(wanted), Some(asked)) => wanted == asked,
            (Some(_), None) => false,
        };
        upgrade
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && (self.paths.is_empty() || self.paths.iter().any(|template| template.matches(&request.path)))
    }
}

impl JwtTerm {
    fn check(&self, token: Option<&Token>, source: &WorkloadName) -> Result<(), Failed> {
        let failed = |reason, detail| Err(Failed { term: "jwt", detail, reason });
        let Some(token) = token else {
            return failed(Reason::JwtMissing, format!("a token of {} is required", self.issuer.value));
        };
        if token.issuer != self.issuer.value {
            return failed(Reason::JwtIssuer, format!("the token is of {}, not {}", token.issuer, self.issuer.value));
        }
        if self.bound_to_peer && token.issued_to.as_ref() != Some(source) {
            return failed(Reason::JwtNotBound, format!("the token was not issued to {source}"));
        }
        match self.claims.iter().find(|term| !term.holds(&token.claims)) {
            None => Ok(()),
            Some(term) => failed(Reason::JwtClaim, format!("the claim {} has no accepted value", term.claim.join("."))),
        }
    }
}

impl ClaimTerm {
    /// A missing claim, a null and a value of another type never hold.
    fn holds(&self, claims: &serde_json::Map<String, Value>) -> bool {
        let mut path = self.claim.iter();
        let Some(mut value) = path.next().and_then(|key| claims.get(key)) else { return false };
        for key in path {
            let Some(below) = value.as_object().and_then(|object| object.get(key)) else { return false };
            value = below;
        }
        let accepted = |value: &Value| self.any_of.iter().any(|wanted| wanted.equals(value));
        match value {
            Value::Array(items) => items.iter().any(accepted),
            other => accepted(other),
        }
    }
}

impl ClaimValue {
    fn equals(&self, value: &Value) -> bool {
        match self {
            Self::Text(text) => value.as_str() == Some(text),
            Self::Integer(number) => value.as_i64() == Some(*number),
            Self::Bool(flag) => value.as_bool() == Some(*flag),
        }
    }
}

#[cfg(test)]
mod tests;
