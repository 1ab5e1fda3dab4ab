//! A signed tree head: how many rows the audit log has and the root of the tree over them (RFC 9162, 4.10), in the words of the
//! coordinator's manifest signer. Whoever keeps one sees whether the log that is shown later is the same.

use serde::{Deserialize, Serialize};

use crate::merkle::Hash;
use crate::reason::{Reason, Refusal};
use crate::{TrustDomain, UnixTime};

/// What the body says that it is, so that no other object of the same key is taken for one.
const TYPE: &str = "warren-tree-head/1";
/// Largest body, in bytes; ours has some 300.
const MAX_BODY: usize = 1024;

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeHead {
    /// Whose log.
    pub trust_domain: TrustDomain,
    /// How many rows.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
    /// When it was signed.
    pub time: UnixTime,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Body {
    r#type: String,
    trust_domain: TrustDomain,
    size: u64,
    root: String,
    time: UnixTime,
}

impl TreeHead {
    /// The body of the signed object.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        let body = Body {
            r#type: TYPE.to_owned(),
            trust_domain: self.trust_domain.clone(),
            size: self.size,
            root: hex::encode(self.root),
            time: self.time,
        };
        // Names and numbers: all of them serialize.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// Reads a body. Whether its signature holds is another question.
    ///
    /// # Errors
    /// [`Reason::FrameMalformed`].
    pub fn from_body(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::new(Reason::FrameMalformed, format!("tree head: {what}"));
        if bytes.len() > MAX_BODY {
            return Err(malformed("over 1024 bytes"));
        }
        let body: Body = serde_json::from_slice(bytes).map_err(|_| malformed("its body is not one"))?;
        if body.r#type != TYPE {
            return Err(malformed("its body is another object's"));
        }
        let mut root = [0; 32];
        hex::decode_to_slice(&body.root, &mut root).map_err(|_| malformed("root: not 64 hexadecimal digits"))?;
        Ok(Self { trust_domain: body.trust_domain, size: body.size, root, time: body.time })
    }
}

/// The actions of the audit log's rows that issued a certificate. Others show a certificate as well (a node's record has its
/// newest in it) and issued none.
pub const ISSUING_ACTIONS: [&str; 6] =
    ["node.enrol", "node.enrol-again", "node.renew", "certificate.issue", "peer.register", "svid.issue"];

/// What a row of the audit log tells of the certificate that it issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issuance<'r> {
    /// Its serial number, hexadecimal. By it the row is found; who has the issuer's key can give it to any certificate.
    pub serial: &'r str,
    /// SHA-256 of its DER, hexadecimal: what the certificate is known by. None in rows from before it was written.
    pub certificate_sha256: Option<&'r str>,
}

impl<'r> Issuance<'r> {
    /// Of a row's action and what it says is new; `None` when it issued nothing.
    #[must_use]
    pub fn of(action: &str, new: &'r serde_json::Value) -> Option<Self> {
        if !ISSUING_ACTIONS.contains(&action) {
            return None;
        }
        // A node's row holds its record, with the newest certificate in it.
        let serial = new.get("serial").or_else(|| new.get("certificate")?.get("serial"))?.as_str()?;
        Some(Self { serial, certificate_sha256: new.get("certificate_sha256").and_then(serde_json::Value::as_str) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written_and_nothing_else_is() {
        let head = TreeHead {
            trust_domain: "bank.example".parse().expect("name"),
            size: 7,
            root: [9; 32],
            time: UnixTime(1_800_000_000),
        };
        let body = head.to_body();
        assert_eq!(TreeHead::from_body(&body), Ok(head));
        let text = String::from_utf8(body).expect("text");
        for wrong in [
            text.replace("tree-head", "heartbeat"),
            text.replace("09", "x9"),
            text.replace("\"size\":7", "\"size\":-7"),
            text.replace("\"size\":7", "\"size\":7,\"more\":1"),
            text[..text.len() - 1].to_owned(),
            format!("{text}{}", " ".repeat(MAX_BODY)),
        ] {
            TreeHead::from_body(wrong.as_bytes()).expect_err(&wrong);
        }
    }

    #[test]
    fn an_issuance_is_read_of_rows_that_issued_and_of_no_others() {
        let told = |action: &str, text: &str| {
            let new = serde_json::from_str(text).expect("json");
            Issuance::of(action, &new)
                .map(|issued| (issued.serial.to_owned(), issued.certificate_sha256.map(str::to_owned)))
        };
        let found = |text: &str| told("svid.issue", text).map(|(serial, _)| serial);
        assert_eq!(found(r#"{"serial":"4a","node":"n"}"#).as_deref(), Some("4a"));
        let record = r#"{"id":"n","certificate":{"serial":"4b"},"certificate_sha256":"c0"}"#;
        for action in ISSUING_ACTIONS {
            assert_eq!(told(action, record), Some(("4b".to_owned(), Some("c0".to_owned()))), "{action}");
        }
        for action in ["node.renewed", "node.set-workloads", "node.forget", "revocation.create", "", "svid.issued"] {
            assert_eq!(told(action, record), None, "{action}");
        }
        for other in [r#"{"target":{"serial":"4c"}}"#, "7", "null", "[]", r#"{"serial":7}"#, r#"{"certificate":"4d"}"#]
        {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
