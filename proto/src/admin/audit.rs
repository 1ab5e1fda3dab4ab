//! The audit log's types: its rows, its export, and what proves that a row is in it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Timestamp, kinds};
use crate::merkle::{Hash, MAX_PROOF};
use crate::peer_map::{MAX_CERTIFICATE, MAX_CHAIN};
use crate::reason::{Reason, Refusal};
use crate::tree_head::TreeHead;
use crate::wire;

kinds!(AuditProof);

/// What proves something about the audit log: a signed head of the tree over its rows, and beside it what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditProof {
    /// The log as it is now.
    pub head: AuditHead,
    /// A row of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<ProvenRow>,
    /// That an earlier log is the beginning of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<ProvenSince>,
}

/// A tree head with its signature. What counts is `body`; size, root and time say the same for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditHead {
    /// How many rows.
    pub size: u64,
    /// The root of the Merkle tree over them (RFC 9162, SHA-256), hexadecimal.
    pub root: String,
    /// When it was signed.
    pub time: Timestamp,
    /// What was signed, base64.
    pub body: String,
    /// The Ed25519 signature by the coordinator's manifest signer, base64.
    pub signature: String,
    /// The signer's certificate and its path, DER in base64.
    pub signer: Vec<String>,
}

/// A row and why it is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProvenRow {
    /// Its number, counted from 1.
    pub seq: u64,
    /// The row as it is stored.
    pub text: String,
    /// The inclusion proof (RFC 9162, 2.1.3), hexadecimal hashes.
    pub path: Vec<String>,
}

/// Why an earlier log is the beginning of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProvenSince {
    /// How many rows the earlier one had.
    pub size: u64,
    /// The consistency proof (RFC 9162, 2.1.4), hexadecimal hashes.
    pub path: Vec<String>,
}

impl AuditHead {
    /// For the API.
    #[must_use]
    pub fn new(head: &TreeHead, signed: &wire::SignedObject) -> Self {
        let signer = signed.signer.as_ref().map(|chain| chain.certificates.as_slice()).unwrap_or_default();
        Self {
            size: head.size,
            root: hex::encode(head.root),
            time: head.time.into(),
            body: STANDARD.encode(&signed.body),
            signature: STANDARD.encode(&signed.signature),
            signer: signer.iter().map(|der| STANDARD.encode(der)).collect(),
        }
    }

    /// The signed object, its signature and signer not checked yet.
    ///
    /// # Errors
    /// [`Reason::FrameMalformed`].
    pub fn signed(&self) -> Result<wire::SignedObject, Refusal> {
        let malformed = |field: &str| Refusal::new(Reason::FrameMalformed, format!("head.{field}: not as it is sent"));
        let decode = |field: &str, text: &str| {
            let fits = text.len() <= 2 * MAX_CERTIFICATE;
            STANDARD.decode(text).ok().filter(|_| fits).ok_or_else(|| malformed(field))
        };
        if self.signer.len() > MAX_CHAIN {
            return Err(malformed("signer"));
        }
        let certificates = self.signer.iter().map(|der| decode("signer", der)).collect::<Result<_, _>>()?;
        Ok(wire::SignedObject {
            body: decode("body", &self.body)?,
            signature: decode("signature", &self.signature)?,
            signer: Some(wire::CertificateChain { certificates }),
        })
    }
}

/// A proof as it is sent.
#[must_use]
pub fn shown_path(path: &[Hash]) -> Vec<String> {
    path.iter().map(hex::encode).collect()
}

/// Reads a proof.
///
/// # Errors
/// [`Reason::FrameMalformed`].
pub fn read_path(path: &[String]) -> Result<Vec<Hash>, Refusal> {
    let malformed = || Refusal::new(Reason::FrameMalformed, "path: expected at most 65 hashes in hexadecimal");
    if path.len() > MAX_PROOF {
        return Err(malformed());
    }
    let read = |text: &String| {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map(|()| hash).map_err(|_| malformed())
    };
    path.iter().map(read).collect()
}
