//! Policy as the admin API speaks of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Timestamp, kinds};
use crate::WorkloadName;
use crate::policy::{Decision, Diagnostic, cases, diff};

/// The most files of one submission.
pub const MAX_POLICY_FILES: usize = 2_000;

kinds!(PolicyInForce, PolicyReport, PolicyApplied, PolicyRevision, PolicyRevisionList, Why);

/// A policy file as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyFile {
    /// Its path as the author names it; findings and decisions point there.
    pub name: String,
    /// Its text: YAML, any number of documents.
    pub text: String,
}

/// A whole Set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySubmission {
    /// Every file of the Set: what is not in it is deleted.
    pub files: Vec<PolicyFile>,
    /// How many objects of the Set may be deleted with it.
    #[serde(default)]
    pub allow_delete: usize,
}

/// Puts an earlier revision back into force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRollback {
    /// The revision.
    pub to: u64,
}

/// One object in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDocument {
    /// The Set it belongs to.
    pub set: String,
    /// `Service`, `Mesh`, ...
    pub kind: String,
    /// Unique within its kind.
    pub name: String,
    /// The file it was written in.
    pub file: String,
    /// Its first line there, from 1.
    pub line: u32,
    /// Its text.
    pub text: String,
}

/// A revision of policy with every object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyInForce {
    /// The revision; 0 before the first. Also the ETag.
    pub revision: u64,
    /// Every object.
    pub items: Vec<PolicyDocument>,
}

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyName {
    /// `Service`, `Mesh`, ...
    pub kind: String,
    /// Unique within its kind.
    pub name: String,
}

/// Something wrong in a policy file, or likely not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// `error` or `warning`.
    pub severity: String,
    /// The kind of finding, a stable name.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The next step; may be empty.
    pub hint: String,
}

impl From<&Diagnostic> for Finding {
    fn from(diagnostic: &Diagnostic) -> Self {
        Self {
            file: diagnostic.file.clone(),
            line: diagnostic.line,
            column: diagnostic.column,
            severity: name_of(&diagnostic.severity),
            code: name_of(&diagnostic.code),
            message: diagnostic.message.clone(),
            hint: diagnostic.hint.clone(),
        }
    }
}

impl std::fmt::Display for Finding {
    /// The form editors jump to: `file:line:column: severity: message (hint)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, line, column, severity, message, hint, .. } = self;
        write!(f, "{file}:{line}:{column}: {severity}: {message}")?;
        if hint.is_empty() { Ok(()) } else { write!(f, " ({hint})") }
    }
}

/// The stable name that a field-less enum is serialized as.
fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What came of one of the policy's own tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestOutcome {
    /// `<tests>:<case>`.
    pub name: String,
    /// The file it stands in.
    pub file: String,
    /// Its line there.
    pub line: u32,
    /// Whether it holds.
    pub passed: bool,
    /// Why not; empty when it holds.
    pub message: String,
}

impl From<&cases::TestResult> for TestOutcome {
    fn from(result: &cases::TestResult) -> Self {
        Self {
            name: result.name.clone(),
            file: result.file.clone(),
            line: result.line,
            passed: result.passed,
            message: result.message.clone(),
        }
    }
}

/// Ports of a service whose verdict changes for a caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessChange {
    /// The caller.
    #[schema(value_type = String)]
    pub source: WorkloadName,
    /// The service.
    #[schema(value_type = String)]
    pub destination: WorkloadName,
    /// For example `tcp/8443` or `udp/5000-5010`.
    pub ports: String,
    /// `allowed`, `audited` or `denied`, now.
    pub before: String,
    /// The same, afterwards.
    pub after: String,
}

impl From<&diff::Change> for AccessChange {
    fn from(change: &diff::Change) -> Self {
        Self {
            source: change.source.clone(),
            destination: change.destination.clone(),
            ports: change.ports.to_string(),
            before: name_of(&change.before),
            after: name_of(&change.after),
        }
    }
}

/// What a submission is and would do: the answer of check, test and diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Whether it could be applied as it is.
    pub acceptable: bool,
    /// Errors and warnings.
    pub findings: Vec<Finding>,
    /// Its own tests.
    pub tests: Vec<TestOutcome>,
    /// What would change; none when it cannot be applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<PolicyChanges>,
}

/// What differs between two revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChanges {
    /// New objects.
    pub added: Vec<PolicyName>,
    /// Objects with another text.
    pub changed: Vec<PolicyName>,
    /// Objects that go.
    pub removed: Vec<PolicyName>,
    /// Who may reach what afterwards and could not before, and the other way round.
    pub access: Vec<AccessChange>,
    /// True when there are more of the last than are shown.
    pub access_truncated: bool,
}

/// What applying or rolling back did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApplied {
    /// The revision in force afterwards.
    pub revision: u64,
    /// False for a dry run, and when nothing differs.
    pub committed: bool,
    /// What differs.
    pub changes: PolicyChanges,
    /// Findings that did not prevent it.
    pub warnings: Vec<Finding>,
    /// What a node acknowledges when it has it: see `/acknowledgements`.
    pub generation: super::Generation,
}

/// One revision in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRevision {
    /// Counted from 1.
    pub number: u64,
    /// When it came into force.
    pub at: Timestamp,
    /// Who made it.
    pub who: String,
    /// Their words.
    pub why: String,
    /// `apply <set>` or `rollback <number>`.
    pub cause: String,
    /// How many objects it added.
    pub added: usize,
    /// How many it changed.
    pub changed: usize,
    /// How many it removed.
    pub removed: usize,
    /// Objects in all.
    pub total: usize,
    /// Whether it is in force.
    pub in_force: bool,
}

/// The history, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRevisionList {
    /// The page.
    #[serde(flatten)]
    pub page: super::Page<PolicyRevision>,
}

/// May this caller reach that port?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WhyRequest {
    /// The caller.
    #[schema(value_type = String)]
    pub source: WorkloadName,
    /// The service.
    #[schema(value_type = String)]
    pub destination: WorkloadName,
    /// `tcp` (the default), `udp` or `icmp`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The port; none for `icmp`.
    #[serde(default)]
    pub port: Option<u16>,
}

/// The answer under the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// The revision asked.
    pub revision: u64,
    /// The evaluator's decision, as the nodes make it.
    #[schema(value_type = Object)]
    pub decision: Decision,
}
