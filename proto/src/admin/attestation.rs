//! Attestors and registrations as the admin API speaks of them: who may vouch for a machine, and which evidence makes a
//! node that may hold which identities.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Page, Timestamp, kinds};
use crate::WorkloadName;

kinds!(Attestor, AttestorList, Registration, RegistrationList);

/// Attestors, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttestorList {
    /// The page.
    #[serde(flatten)]
    pub page: Page<Attestor>,
}

/// Registrations, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationList {
    /// The page.
    #[serde(flatten)]
    pub page: Page<Registration>,
}

/// By what evidence is judged. Exactly one field, which names the kind of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AttestorSettings {
    /// Projected service-account tokens of one Kubernetes cluster.
    Kubernetes(TokenIssuer),
    /// ID tokens of one OpenID Connect issuer.
    Oidc(TokenIssuer),
    /// Certificates of another authority whose key is at hand, SPIFFE SVIDs among them.
    X509(CertificateIssuer),
    /// Instance identity documents of Amazon EC2.
    AwsInstance(AwsInstances),
}

impl AttestorSettings {
    /// The kind's name, as the command line and the audit log spell it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "kubernetes",
            Self::Oidc(_) => "oidc",
            Self::X509(_) => "x509",
            Self::AwsInstance(_) => "aws",
        }
    }
}

/// Who issues tokens, for whom, and by which keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenIssuer {
    /// The exact `iss` of its tokens.
    pub issuer: String,
    /// The one `aud` that its tokens must have, and no other beside it.
    pub audience: String,
    /// Its JWK set (RFC 7517), JSON. Public keys only: RSA, P-256, P-384, Ed25519.
    pub jwks: String,
    /// The longest time between `iat` and `exp` that is accepted, in seconds; an hour unless said.
    #[serde(default = "an_hour")]
    pub max_lifetime_seconds: u64,
}

/// Another certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateIssuer {
    /// Its roots, PEM, at most 8.
    pub roots: String,
    /// The SPIFFE trust domain that its certificates must be of; absent when they need not name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
}

/// Instances of Amazon EC2 in some accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsInstances {
    /// Amazon's public certificates for RSA-2048 signatures in the regions used, PEM, at most 8.
    pub certificates: String,
    /// The accounts whose instances are believed, twelve digits each.
    pub accounts: Vec<String>,
    /// The longest time since an instance's start at which it may enrol, in seconds; an hour unless said.
    #[serde(default = "an_hour")]
    pub max_age_seconds: u64,
}

const fn an_hour() -> u64 {
    3600
}

/// Sets an attestor's settings, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewAttestor {
    /// By what it judges.
    pub settings: AttestorSettings,
    /// What it is for.
    #[serde(default)]
    pub note: String,
}

/// Judges evidence of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attestor {
    /// A node that enrols says it.
    pub name: String,
    /// By what it judges.
    pub settings: AttestorSettings,
    /// How many registrations rest on it.
    pub registrations: usize,
    /// When it was last set.
    pub changed_at: Timestamp,
    /// Who set it.
    pub changed_by: String,
    /// What it is for.
    pub note: String,
}

/// The value of a selector. Types are compared as well: the text `"1"` is not the number `1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum SelectorValue {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

/// One thing that evidence says, by its name: `k8s:ns=shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// What is looked at: `k8s:ns`, `claim:sub`, `x509:spiffe-id`, ...
    pub name: String,
    /// The one value that is accepted.
    pub value: SelectorValue,
}

impl Selector {
    /// A selector of text.
    #[must_use]
    pub fn text(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: SelectorValue::Text(value.into()) }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            SelectorValue::Text(text) => write!(f, "{}={text}", self.name),
            SelectorValue::Number(number) => write!(f, "{}:={number}", self.name),
            SelectorValue::Flag(flag) => write!(f, "{}:={flag}", self.name),
        }
    }
}

impl FromStr for Selector {
    type Err = &'static str;

    /// `name=text`, or `name:=value` for a whole number, `true` or `false`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=TEXT, or NAME:=VALUE for a number or a flag")?;
        let selector = match name.strip_suffix(':') {
            None => Self::text(name, value),
            Some(name) => {
                let value = match value {
                    "true" => SelectorValue::Flag(true),
                    "false" => SelectorValue::Flag(false),
                    number => number
                        .parse()
                        .map(SelectorValue::Number)
                        .map_err(|_| "after := stands a whole number, true or false")?,
                };
                Self { name: name.to_owned(), value }
            }
        };
        if selector.name.is_empty() { Err("the name before = is missing") } else { Ok(selector) }
    }
}

/// Lets machines with some evidence hold some identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRegistration {
    /// What people call it: a lower-case letter, then letters, digits and `-`.
    pub name: String,
    /// The attestor whose word is taken.
    pub attestor: String,
    /// What the evidence must say, all of it; at least one, at most 16.
    pub selectors: Vec<Selector>,
    /// The identities that a node with such evidence may hold; at least one, at most 64.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
    /// What it is for.
    #[serde(default)]
    pub note: String,
}

/// Which evidence may hold which identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// What people call it.
    pub name: String,
    /// The attestor whose word is taken.
    pub attestor: String,
    /// What the evidence must say, all of it.
    pub selectors: Vec<Selector>,
    /// The identities that a node with such evidence may hold.
    #[schema(value_type = Vec<String>)]
    pub workloads: Vec<WorkloadName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What it is for.
    pub note: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_reads_back_with_its_type() {
        for (text, value) in [
            ("k8s:ns=shop", SelectorValue::Text("shop".into())),
            ("claim:sub=repo:acme/shop:ref=main", SelectorValue::Text("repo:acme/shop:ref=main".into())),
            ("claim:run:=12", SelectorValue::Number(12)),
            ("claim:run=12", SelectorValue::Text("12".into())),
            ("claim:admin:=false", SelectorValue::Flag(false)),
            ("claim:empty=", SelectorValue::Text(String::new())),
        ] {
            let selector: Selector = text.parse().expect(text);
            assert_eq!((&selector.value, selector.to_string().as_str()), (&value, text));
            let json = serde_json::to_string(&selector).expect("json");
            assert_eq!(serde_json::from_str::<Selector>(&json).expect("json"), selector);
        }
        for wrong in ["", "k8s:ns", "=x", ":=1", "claim:run:=1.5", "claim:run:=\"1\"", "claim:run:="] {
            assert!(wrong.parse::<Selector>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Selector>(r#"{"name":"claim:x","value":1.5}"#).is_err());
        assert!(serde_json::from_str::<Selector>(r#"{"name":"claim:x","value":null}"#).is_err());
    }

    #[test]
    fn an_attestor_is_of_exactly_one_kind() {
        let one = r#"{"settings":{"oidc":{"issuer":"i","audience":"a","jwks":"{}"}}}"#;
        let read: NewAttestor = serde_json::from_str(one).expect("one kind");
        assert_eq!(read.settings.kind(), "oidc");
        for wrong in [
            r#"{"settings":{}}"#,
            r#"{"settings":{"password":{}}}"#,
            r#"{"settings":{"oidc":{"issuer":"i","audience":"a","jwks":"{}","insecure":true}}}"#,
            r#"{"settings":{"oidc":{"issuer":"i","audience":"a","jwks":"{}"},"x509":{"roots":""}}}"#,
        ] {
            assert!(serde_json::from_str::<NewAttestor>(wrong).is_err(), "{wrong}");
        }
    }
}
