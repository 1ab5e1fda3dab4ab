//! `/policy`: the whole policy, never a part of it. A Set is submitted as text; what its author sees as file and line is
//! what nodes, decisions and findings name.

use axum::extract::State;
use axum::http::StatusCode;
use warren_proto::admin::{
    AccessChange, Finding, MAX_POLICY_FILES, Page, PolicyApplied, PolicyChanges, PolicyDocument, PolicyInForce,
    PolicyName, PolicyReport, PolicyRevision, PolicyRevisionList, PolicyRollback, PolicySubmission, TestOutcome,
    Versioned, Why, WhyRequest,
};
use warren_proto::policy::{Kind, SourceFile, Transport};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::spiffe::PEER_NAMESPACE;

use super::problem::ApiError;
use super::request::{Answer, Body, Change, ChangeQuery, Named, Paging, Params, cursor};
use super::{Api, Authorized, PolicyAdmin, Viewer, view};
use crate::registry::{Applied, Caller, PolicyRefused, Submission};
use crate::state::records::{PolicyCause, PolicyRef, StoredPolicy};

/// The policy in force. Its ETag is what applying takes as If-Match.
#[utoipa::path(get, path = "/policy", tag = "policy", security(("token" = [])),
    responses((status = 200, body = Versioned<PolicyInForce>)))]
pub(super) async fn get(State(api): State<Api>, _: Authorized<Viewer>) -> Result<Answer<PolicyInForce>, ApiError> {
    let policy = &api.registry().state().policy;
    Ok(Answer::ok(whole(policy.number, policy.objects.iter().map(AsRef::as_ref))).tagged(policy.number))
}

/// Puts a Set into force with everything else, whole or not at all. If-Match is required.
#[utoipa::path(put, path = "/policy", tag = "policy", request_body = PolicySubmission, params(ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<PolicyApplied>)))]
pub(super) async fn apply(
    State(api): State<Api>,
    author: Authorized<PolicyAdmin>,
    change: Change,
    Body(submission): Body<PolicySubmission>,
) -> Result<Answer<PolicyApplied>, ApiError> {
    let number = required(&change)?;
    let submission = |dry_run| {
        let files = submission.files.iter().map(|file| SourceFile { name: file.name.clone(), text: file.text.clone() });
        Submission { files: files.collect(), allow_delete: submission.allow_delete, if_match: Some(number), dry_run }
    };
    check_size(submission(true).files.len())?;
    let caller = author.caller(&change);
    if author.is_confined() {
        may_change(&author, &api.registry().apply_policy(&caller, submission(true)).await?)?;
    }
    let applied = api.registry().apply_policy(&caller, submission(change.dry_run)).await?;
    Ok(answer(&api, applied))
}

/// Says whether a Set could be applied, which of its tests fail, and what would change. Changes nothing.
#[utoipa::path(post, path = "/policy/check", tag = "policy", request_body = PolicySubmission, security(("token" = [])),
    responses((status = 200, body = Versioned<PolicyReport>)))]
pub(super) async fn check(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Body(submission): Body<PolicySubmission>,
) -> Result<Answer<PolicyReport>, ApiError> {
    check_size(submission.files.len())?;
    let files = submission.files.into_iter().map(|file| SourceFile { name: file.name, text: file.text }).collect();
    let submission = Submission { files, allow_delete: usize::MAX, if_match: None, dry_run: true };
    // Nothing is committed, so nothing names this caller.
    let report = match api.registry().apply_policy(&Caller::new("check"), submission).await {
        Ok(applied) => PolicyReport {
            acceptable: true,
            findings: applied.warnings.iter().map(Finding::from).collect(),
            tests: Vec::new(),
            changes: Some(changes(&applied)),
        },
        Err(PolicyRefused { refusal, diagnostics, failed_tests }) => {
            let explained = !diagnostics.is_empty() || !failed_tests.is_empty();
            if !explained {
                return Err(refusal.into());
            }
            PolicyReport {
                acceptable: false,
                findings: diagnostics.iter().map(Finding::from).collect(),
                tests: failed_tests.iter().map(TestOutcome::from).collect(),
                changes: None,
            }
        }
    };
    Ok(Answer::ok(report))
}

/// What the policy in force decides about a caller, a service and a port, by which rule, in which file and line.
#[utoipa::path(post, path = "/policy/why", tag = "policy", request_body = WhyRequest, security(("token" = [])),
    responses((status = 200, body = Versioned<Why>)))]
pub(super) async fn why(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Body(asked): Body<WhyRequest>,
) -> Result<Answer<Why>, ApiError> {
    let invalid = |detail: &str| Refusal::new(Reason::InvalidField, detail);
    let (state, now) = (api.registry().state(), api.registry().now());
    let policy = state.policy.compiled().ok_or_else(|| {
        Refusal::new(Reason::NotFound, "no policy is in force, so nothing is let through")
            .hint("warren policy apply DIR")
    })?;
    let transport = match asked.protocol.as_deref() {
        None | Some("tcp") => Some(Transport::Tcp),
        Some("udp") => Some(Transport::Udp),
        Some("icmp") => None,
        Some(_) => return Err(invalid("protocol: expected tcp, udp or icmp").into()),
    };
    let decision = match (transport, asked.port) {
        (Some(transport), Some(port)) => policy.evaluate(&asked.source, &asked.destination, transport, port, now),
        (None, None) => policy.evaluate_echo(&asked.source, &asked.destination, now),
        (Some(_), None) => return Err(invalid("port: needed for tcp and udp").into()),
        (None, Some(_)) => return Err(invalid("port: icmp has none").into()),
    };
    Ok(Answer::ok(Why { revision: state.policy.number, decision }))
}

/// Puts an earlier revision back into force, as a new revision. If-Match is required.
#[utoipa::path(post, path = "/policy/rollback", tag = "policy", request_body = PolicyRollback, params(ChangeQuery),
    security(("token" = [])), responses((status = 200, body = Versioned<PolicyApplied>)))]
pub(super) async fn rollback(
    State(api): State<Api>,
    author: Authorized<PolicyAdmin>,
    change: Change,
    Body(PolicyRollback { to }): Body<PolicyRollback>,
) -> Result<Answer<PolicyApplied>, ApiError> {
    let number = required(&change)?;
    let caller = author.caller(&change);
    if author.is_confined() {
        may_change(&author, &api.registry().rollback_policy(&caller, to, Some(number), true).await?)?;
    }
    let applied = api.registry().rollback_policy(&caller, to, Some(number), change.dry_run).await?;
    Ok(answer(&api, applied))
}

/// Every revision, newest first.
#[utoipa::path(get, path = "/policy/revisions", tag = "policy", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<PolicyRevisionList>)))]
pub(super) async fn history(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<PolicyRevisionList>, ApiError> {
    let state = api.registry().state();
    let limit = paging.limit()?;
    let before = paging.after()?.map(|text| text.parse::<u64>()).transpose();
    let before =
        before.map_err(|_| Refusal::new(Reason::InvalidField, "cursor: not of this list"))?.unwrap_or(u64::MAX);
    let mut rest = state.policy_revisions.range(..before).rev();
    let items: Vec<_> = rest
        .by_ref()
        .take(limit)
        .map(|(number, revision)| PolicyRevision {
            number: *number,
            at: revision.at.into(),
            who: revision.who.clone(),
            why: revision.why.clone(),
            cause: match &revision.cause {
                PolicyCause::Apply(set) => format!("apply {set}"),
                PolicyCause::Rollback(to) => format!("rollback {to}"),
            },
            added: revision.counts.added,
            changed: revision.counts.changed,
            removed: revision.counts.removed,
            total: revision.counts.total,
            in_force: *number == state.policy.number,
        })
        .collect();
    let next_cursor = items.last().filter(|_| rest.next().is_some()).map(|item| cursor(&item.number.to_string()));
    Ok(Answer::ok(PolicyRevisionList { page: Page { items, next_cursor } }))
}

/// One revision as it was.
#[utoipa::path(get, path = "/policy/revisions/{number}", tag = "policy", params(("number" = u64, Path)),
    security(("token" = [])), responses((status = 200, body = Versioned<PolicyInForce>)))]
pub(super) async fn revision(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named(number): Named<u64>,
) -> Result<Answer<PolicyInForce>, ApiError> {
    let objects = api.registry().state().policy_at(number).ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("there is no policy revision {number}")).hint("warren policy history")
    })?;
    Ok(Answer::ok(whole(number, objects.iter().map(AsRef::as_ref))).tagged(number))
}

fn whole<'a>(revision: u64, objects: impl Iterator<Item = &'a StoredPolicy>) -> PolicyInForce {
    let items = objects.map(|StoredPolicy { set, object }| PolicyDocument {
        set: set.clone(),
        kind: object.kind.to_string(),
        name: object.name.clone(),
        file: object.file.clone(),
        line: object.line,
        text: object.text.clone(),
    });
    PolicyInForce { revision, items: items.collect() }
}

fn check_size(files: usize) -> Result<(), Refusal> {
    if files <= MAX_POLICY_FILES {
        return Ok(());
    }
    Err(Refusal::new(Reason::RequestTooLarge, format!("files: {files}, expected at most {MAX_POLICY_FILES}")))
}

/// A policy is changed by somebody who has seen what is in force.
fn required(change: &Change) -> Result<u64, ApiError> {
    change.if_match.ok_or_else(|| {
        let refusal = Refusal::new(Reason::InvalidField, "If-Match: required, the ETag of GET /policy");
        ApiError::with_status(refusal.hint("warren policy apply sends it"), StatusCode::PRECONDITION_REQUIRED)
    })
}

/// A token that is confined to namespaces may touch their objects only. What is judged is what would change, under the
/// very revision that the change is then made from.
fn may_change(author: &Authorized<PolicyAdmin>, applied: &Applied) -> Result<(), Refusal> {
    let touched = applied.added.iter().chain(&applied.changed).chain(&applied.removed);
    for PolicyRef { kind, name } in touched {
        match kind {
            Kind::Mesh | Kind::Group => author.may_change_mesh()?,
            // These grant nothing: what a Set owns is bounded by the other Sets, and tests only refuse.
            Kind::Set | Kind::Tests => {}
            Kind::Peer => author.may_change_namespace(PEER_NAMESPACE)?,
            Kind::Namespace | Kind::Service | Kind::Rules => {
                author.may_change_namespace(name.split_once('/').map_or(name.as_str(), |(namespace, _)| namespace))?;
            }
        }
    }
    Ok(())
}

fn names(objects: &[PolicyRef]) -> Vec<PolicyName> {
    objects.iter().map(|object| PolicyName { kind: object.kind.to_string(), name: object.name.clone() }).collect()
}

fn changes(applied: &Applied) -> PolicyChanges {
    PolicyChanges {
        added: names(&applied.added),
        changed: names(&applied.changed),
        removed: names(&applied.removed),
        access: applied.diff.changes.iter().map(AccessChange::from).collect(),
        access_truncated: applied.diff.truncated,
    }
}

fn answer(api: &Api, applied: Applied) -> Answer<PolicyApplied> {
    Answer::ok(PolicyApplied {
        revision: applied.number,
        committed: applied.committed,
        changes: changes(&applied),
        warnings: applied.warnings.iter().map(Finding::from).collect(),
        generation: view::generation(api.registry().state().generation()),
    })
    .tagged(applied.number)
}
