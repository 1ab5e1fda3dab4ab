//! Nodes, workloads, services, tokens, revocations, the audit log and the coordinator's own state as the admin API
//! speaks of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Page, Timestamp, kinds};
use crate::{InstanceId, NodeId, WorkloadName};

kinds!(
    Status,
    JoinToken,
    JoinTokenList,
    CreatedJoinToken,
    Node,
    NodeList,
    Workload,
    WorkloadList,
    Service,
    ServiceList,
    Revocation,
    RevocationList,
    Acknowledgements,
    AuditEntry,
    AuditList,
    AuditReport,
    AuditExport,
    AdminToken,
    AdminTokenList,
    CreatedAdminToken,
    Deleted,
    Claim
);

macro_rules! lists {
    ($($(#[$doc:meta])* $list:ident of $item:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $list {
            /// The page.
            #[serde(flatten)]
            pub page: Page<$item>,
        }
    )* };
}

lists! {
    /// Join tokens, by id.
    JoinTokenList of JoinToken;
    /// Nodes, by id.
    NodeList of Node;
    /// Workloads, by name.
    WorkloadList of Workload;
    /// Services, by name.
    ServiceList of Service;
    /// Revocations, by id.
    RevocationList of Revocation;
    /// The audit log, newest first.
    AuditList of AuditEntry;
    /// Administrators' tokens, by id.
    AdminTokenList of AdminToken;
}

/// What nodes are told is numbered so: greater is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Generation {
    /// Rises when a backup is restored or a loss accepted.
    pub epoch: u64,
    /// Rises with every change.
    pub revision: u64,
}

/// How the coordinator and its mesh are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The name that every identity begins with.
    pub trust_domain: String,
    /// The coordinator's software version.
    pub version: String,
    /// The overlay's prefixes.
    pub overlay: Vec<String>,
    /// The newest change.
    pub generation: Generation,
    /// The policy revision in force; 0 before the first.
    pub policy_revision: u64,
    /// Nodes registered and not revoked.
    pub nodes: usize,
    /// Of those, connected to this coordinator.
    pub nodes_connected: usize,
    /// Instances with a certificate in date.
    pub instances: usize,
    /// Nodes that have not acknowledged the newest change that concerns them.
    pub unacknowledged: Vec<NodeIdText>,
    /// How the store is.
    pub store: StoreStatus,
}

/// A node id in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct NodeIdText(pub NodeId);

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// Over the whole state; equal digests mean equal states.
    pub digest: String,
    /// Whether changes are accepted.
    pub writable: bool,
    /// Less than a fifth of its file system is free.
    pub low_space: bool,
    /// Bytes free there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}

/// A join token; its secret is not known to anybody but its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// Stands in the token itself, so that a leaked one can be found.
    pub id: String,
    /// The identities that a node enrolled with it may hold.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was.
    pub used: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ceases to be accepted.
    pub expires_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What it is for.
    pub note: String,
    /// `valid`, `used-up` or `expired`.
    pub state: String,
}

/// Makes a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewJoinToken {
    /// The identities that a node enrolled with it may hold; at least one.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
    /// How often it may be used; 1 unless said.
    #[serde(default = "one")]
    pub uses: u32,
    /// How long it is accepted, in seconds; an hour unless said.
    #[serde(default = "an_hour")]
    pub lifetime_seconds: u64,
    /// What it is for.
    #[serde(default)]
    pub note: String,
}

const fn one() -> u32 {
    1
}

const fn an_hour() -> u64 {
    3600
}

/// A join token that was made, with its secret, this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedJoinToken {
    /// Everything that will be known of it later.
    #[serde(flatten)]
    pub token: JoinToken,
    /// The string to carry to the new machine. Absent in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl std::fmt::Debug for CreatedJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedJoinToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A machine of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Stands in its certificate.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// What its operator calls it; shown, never trusted.
    pub host_name: String,
    /// The identities it may hold.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// The address it enrolled from.
    pub enrolled_from: String,
    /// The join token it enrolled with; empty when it enrolled with other evidence.
    pub join_token: String,
    /// Who vouched for it, when it enrolled with other evidence than a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<NodeAttestation>,
    /// The end of its own certificate.
    pub certificate_expires_at: Timestamp,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Two machines connect with its key: since this coordinator noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned: Option<ClonedNode>,
    /// Its link to this coordinator, when it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<NodeLink>,
    /// What runs on it.
    pub instances: Vec<Instance>,
}

/// What let a node in that enrolled without a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAttestation {
    /// The attestor that judged the evidence.
    pub attestor: String,
    /// The registration that accepted it.
    pub registration: String,
    /// Whom or what the evidence is about, in the words of who made it.
    pub subject: String,
}

/// A node whose identity two processes use at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClonedNode {
    /// When it was noticed last.
    pub at: Timestamp,
    /// Where the two connect from.
    pub remotes: Vec<String>,
}

/// A node's link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// Since when.
    pub since: Timestamp,
    /// Where from.
    pub remote: String,
    /// What it says it runs.
    pub software: String,
    /// The newest generation it was told.
    pub told: Generation,
    /// The newest it acknowledged.
    pub acknowledged: Generation,
    /// Its clock less the coordinator's, in milliseconds.
    pub clock_skew_ms: i64,
    /// What it refused of the newest, in words; empty when nothing.
    pub refused: Vec<String>,
}

/// One running copy of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Stands in its certificate.
    #[schema(value_type = String)]
    pub id: InstanceId,
    /// What it is.
    #[schema(value_type = String)]
    pub workload: WorkloadName,
    /// Where it runs.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its overlay addresses.
    pub addresses: Vec<String>,
    /// When it was first issued a certificate.
    pub registered_at: Timestamp,
    /// The end of its newest certificate.
    pub certificate_expires_at: Timestamp,
    /// The tunnel keys of its certificates in date, newest first, in hexadecimal.
    pub tunnel_keys: Vec<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// An identity: what a policy names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// `<namespace>/<name>`.
    #[schema(value_type = String)]
    pub name: WorkloadName,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Whether policy declares a service of that name.
    pub declared: bool,
    /// Nodes that may hold it.
    pub nodes: usize,
    /// Its running copies.
    pub instances: Vec<Instance>,
}

/// A service as policy declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `<namespace>/<name>`.
    #[schema(value_type = String)]
    pub name: WorkloadName,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Where it is declared.
    pub file: String,
    /// Its line there.
    pub line: u32,
    /// Who may reach some port of it, by layer 4.
    #[schema(value_type = Vec<String>)]
    pub callers: Vec<WorkloadName>,
    /// Overlay addresses of its instances.
    pub addresses: Vec<String>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The name policy gives it.
    pub name: String,
    /// One number, or the first and last.
    pub ports: String,
    /// `tcp`, `udp`, `http`, ...
    pub protocols: Vec<String>,
}

/// What is to be revoked. Exactly one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum RevocationTarget {
    /// One certificate.
    #[serde(rename_all = "camelCase")]
    Certificate {
        /// Subject key identifier of its issuer, hexadecimal.
        issuer_key_id: String,
        /// Its serial number, hexadecimal.
        serial: String,
    },
    /// One tunnel key, hexadecimal.
    TunnelKey(String),
    /// One instance.
    #[schema(value_type = String)]
    Instance(InstanceId),
    /// One node and all that runs on it.
    #[schema(value_type = String)]
    Node(NodeId),
    /// Every certificate of an identity issued until now.
    #[schema(value_type = String)]
    Identity(WorkloadName),
    /// Everything an issuing key signed; its key identifier, hexadecimal.
    Issuer(String),
}

/// The identities that a node may hold from now on, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeWorkloads {
    /// At most 96; empty takes every one away.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
}

/// Revokes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRevocation {
    /// What.
    pub target: RevocationTarget,
}

/// A revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// Its id.
    pub id: String,
    /// What is revoked, in words.
    pub target: String,
    /// When.
    pub revoked_at: Timestamp,
    /// When the last certificate it concerns has ended.
    pub expires_at: Timestamp,
    /// The administrator's words.
    pub why: String,
    /// What a node acknowledges when it has it. Absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// Who has a generation and who has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgements {
    /// What was asked for.
    pub generation: Generation,
    /// Connected nodes that do not have it yet.
    pub pending: Vec<NodeIdText>,
    /// Nodes that are not connected; they are told when they come back.
    pub away: Vec<NodeIdText>,
}

/// One row of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Counted from 1 without gaps.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// Who asked.
    pub who: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// How it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub old: Option<serde_json::Value>,
    /// How it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub new: Option<serde_json::Value>,
    /// The asker's words.
    pub why: String,
    /// SHA-256 of the row before, hexadecimal.
    pub previous: String,
}

/// Rows of the audit log as they are stored, oldest first: what their hashes are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditExport {
    /// One JSON text each.
    pub rows: Vec<String>,
    /// `after` of the next part; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Whether the audit log's chain holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditReport {
    /// Whether it does.
    pub intact: bool,
    /// Where and how it is broken; empty when it is not.
    pub problem: String,
    /// Rows checked.
    pub entries: u64,
    /// The oldest row.
    pub first: u64,
    /// The newest row.
    pub last: u64,
    /// The newest row's hash: note it, and later verifications show that nothing before it was changed.
    pub head: String,
}

/// What an administrator's token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads everything but secrets.
    Viewer,
    /// And join tokens, nodes, revocations.
    Operator,
    /// And policy, but not what an operator changes.
    PolicyAdmin,
    /// Everything.
    CaAdmin,
}

/// An administrator's token; its secret is not known to anybody but its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminToken {
    /// Stands in the token itself.
    pub id: String,
    /// What people call it; stands in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The namespaces it may change things in; empty for all.
    pub namespaces: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ceases to be accepted.
    pub expires_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// It can do one thing, once: be exchanged for the first administrator's token.
    pub first_run: bool,
}

/// Makes an administrator's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewAdminToken {
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The namespaces it may change things in; empty for all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// How long it is accepted, in seconds; 90 days unless said.
    #[serde(default = "ninety_days")]
    pub lifetime_seconds: u64,
}

const fn ninety_days() -> u64 {
    90 * 24 * 3600
}

/// Exchanges the first-run token, which authenticates this one request, for the first administrator's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// What the administrator is called.
    pub name: String,
}

/// An administrator's token that was made, with its secret, this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedAdminToken {
    /// Everything that will be known of it later.
    #[serde(flatten)]
    pub token: AdminToken,
    /// The string to keep in a file. Absent in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl std::fmt::Debug for CreatedAdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedAdminToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// Something is gone, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    /// What, by its id.
    pub id: String,
    /// False for a dry run.
    pub committed: bool,
}
