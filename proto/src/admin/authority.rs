//! The certificate authority as the admin API speaks of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Timestamp, kinds};
use crate::NodeId;

kinds!(CaStatus);

/// Where the replacement of the root stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotationStage {
    /// One root.
    Steady,
    /// A second root is trusted; the first one signs.
    Introduced,
    /// The second root signs; the first one is still trusted.
    Activated,
}

/// What can be asked of the certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotationStep {
    /// Make a second root, which every node is to trust.
    Introduce,
    /// Let the second root sign; every certificate is renewed under it.
    Activate,
    /// Trust the first root no longer and delete its keys.
    Retire,
    /// Give up a root that was introduced and not activated.
    Abandon,
    /// Make a new issuing intermediate under the root that signs; every certificate is renewed under it.
    Intermediate,
}

/// Asks for a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateCa {
    /// Which.
    pub step: RotationStep,
    /// Also where nodes are missing that should be ready for it first.
    #[serde(default)]
    pub force: bool,
}

/// The certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// Where the replacement of the root stands.
    pub stage: RotationStage,
    /// Number of the trust bundle: rises with each change of the roots.
    pub sequence: u64,
    /// Whether the private keys on the coordinator's disk are sealed under a passphrase.
    #[serde(default)]
    pub keys_sealed: bool,
    /// The roots that nodes trust, in the order of their introduction.
    pub roots: Vec<CaRoot>,
    /// The issuing intermediate.
    pub issuing: CaCertificate,
    /// What this coordinator presents.
    pub coordinator: CaCertificate,
    /// The certificate of the key that signs manifests.
    pub signer: CaCertificate,
    /// Certificates issued until then are being renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_before: Option<Timestamp>,
    /// The step that the present stage leads to.
    pub next: RotationStep,
    /// Nodes that are not ready for that step.
    pub missing: Vec<NotReadyNode>,
    /// Join tokens that can still be used and pin a root that the next step would take away.
    pub join_tokens: Vec<String>,
}

/// A root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRoot {
    /// SHA-256 of its DER, hexadecimal: its fingerprint.
    pub sha256: String,
    /// Whether it signs.
    pub signs: bool,
    /// Its key identifier, dates and the like.
    #[serde(flatten)]
    pub certificate: CaCertificate,
    /// The certificate, PEM.
    pub pem: String,
}

/// A certificate of the authority's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaCertificate {
    /// Subject key identifier, hexadecimal; what `revocation create --issuer` takes where it issues.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_id: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// A node that is not ready for the next step of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotReadyNode {
    /// Which.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// What its operator calls it.
    pub host_name: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// What it waits for, in words.
    pub waits_for: String,
}
