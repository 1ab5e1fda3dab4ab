//! The admin API's types: what `/api/v1` takes and gives, shared by the coordinator, the command line and the console.
//!
//! Answers are objects with `apiVersion` and `kind`; fields are added within a version, never changed or removed, so a
//! client ignores what it does not know. Requests refuse unknown fields: a misspelt option must not be dropped silently.
//! Times are RFC 3339 in UTC, identifiers are strings, field names are camelCase.

mod attestation;
mod audit;
mod authority;
mod credential;
mod mesh;
mod peer;
mod policy;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::UnixTime;
use crate::reason::{Reason, Refusal};

pub use attestation::*;
pub use audit::*;
pub use authority::*;
pub use credential::{AdminTokenId, Credential, MAX_CREDENTIAL_LENGTH};
pub use mesh::*;
pub use peer::*;
pub use policy::*;

/// The version of every answer.
pub const API_VERSION: &str = "warren/v1";

/// The path that everything lies under.
pub const BASE_PATH: &str = "/api/v1";

/// The most items of one page.
pub const MAX_PAGE: usize = 500;

/// The items of a page when nothing is said.
pub const DEFAULT_PAGE: usize = 100;

/// Names a type of answer.
pub trait Kind {
    /// The value of its `kind`.
    const KIND: &'static str;
}

macro_rules! kinds {
    ($($name:ident),* $(,)?) => { $(impl $crate::admin::Kind for $name { const KIND: &'static str = stringify!($name); })* };
}
pub(crate) use kinds;

/// An answer with its version and kind around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versioned<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// What the rest is.
    pub kind: String,
    /// The rest.
    #[serde(flatten)]
    pub value: T,
}

impl<T: Kind> Versioned<T> {
    /// Puts the version and kind around a value.
    pub fn new(value: T) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: T::KIND.to_owned(), value }
    }

    /// Takes the value out of an answer that is of the expected version and kind.
    ///
    /// # Errors
    /// When it is not: the coordinator speaks another version, or something else answered.
    pub fn into_value(self) -> Result<T, Refusal> {
        if self.api_version == API_VERSION && self.kind == T::KIND {
            return Ok(self.value);
        }
        Err(Refusal::new(
            Reason::VersionUnsupported,
            format!("the answer is a {} {}, expected {API_VERSION} {}", self.api_version, self.kind, T::KIND),
        )
        .hint("compare `warren version` with `warren-coordinator --version`"))
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give it back as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A moment, as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(pub UnixTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<UnixTime> for Timestamp {
    fn from(time: UnixTime) -> Self {
        Self(time)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = ::time::OffsetDateTime::parse(&text, &::time::format_description::well_known::Rfc3339)
            .map_err(|_| D::Error::custom("expected a time such as 2026-03-01T12:00:00Z"))?;
        let seconds = u64::try_from(moment.unix_timestamp()).map_err(|_| D::Error::custom("a time before 1970"))?;
        Ok(Self(UnixTime(seconds)))
    }
}

/// A refusal, as RFC 9457 problem details (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Always `about:blank`: `code` says which problem it is.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The reason in one sentence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time.
    pub detail: String,
    /// The reason's stable name.
    pub code: String,
    /// The field at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The next thing to type or to check; may be empty.
    #[serde(default)]
    pub hint: String,
    /// Finds the request in the coordinator's log.
    pub request_id: String,
    /// What is wrong in policy files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The policy's own tests that do not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_tests: Vec<TestOutcome>,
}

impl Problem {
    /// A refusal as it is told to a client.
    #[must_use]
    pub fn new(refusal: &Refusal, status: u16, request_id: String) -> Self {
        // Refusals of a field begin `name: `, by the house rule that a detail names its field.
        let field = refusal.detail.split_once(": ").map(|(field, _)| field).filter(|field| {
            !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._[]".contains(&byte))
        });
        Self {
            problem_type: "about:blank".to_owned(),
            title: refusal.reason.text().to_owned(),
            status,
            detail: refusal.detail.clone(),
            code: refusal.reason.name().to_owned(),
            field: field.map(str::to_owned),
            hint: refusal.hint.clone(),
            request_id,
            findings: Vec::new(),
            failed_tests: Vec::new(),
        }
    }

    /// The refusal as the client's code takes it. A reason of a newer version is kept as words.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self.code.parse() {
            Ok(reason) => Refusal::new(reason, self.detail.clone()).hint(self.hint.clone()),
            Err(_) => {
                Refusal::new(Reason::Internal, format!("{} ({})", self.detail, self.code)).hint(self.hint.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_kind_or_version_is_refused() {
        let answer = Versioned::new(Deleted { id: "a1".into(), committed: true });
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"apiVersion":"warren/v1","kind":"Deleted","id":"a1","committed":true}"#);
        let newer = text.replace("warren/v1", "warren/v2");
        let newer: Versioned<Deleted> = serde_json::from_str(&newer).unwrap();
        assert_eq!(newer.into_value().unwrap_err().reason, Reason::VersionUnsupported);
        assert_eq!(answer.into_value().unwrap().id, "a1");
    }

    #[test]
    fn a_refusal_survives_the_way_to_the_client_with_its_field_named() {
        let refusal = Refusal::new(Reason::InvalidField, "uses: 0, expected 1 to 1000").hint("--uses 1");
        let problem = Problem::new(&refusal, 400, "r".into());
        assert_eq!(problem.field.as_deref(), Some("uses"));
        assert_eq!(problem.refusal(), refusal);
        let newer = Problem { code: "of-tomorrow".into(), ..problem };
        assert_eq!(newer.refusal().reason, Reason::Internal);
    }

    #[test]
    fn times_are_written_and_read_as_rfc_3339() {
        let time = Timestamp(UnixTime(1_772_366_400));
        let text = serde_json::to_string(&time).unwrap();
        assert_eq!(text, r#""2026-03-01T12:00:00Z""#);
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), time);
        for wrong in [r#""yesterday""#, r#""1960-01-01T00:00:00Z""#, "12"] {
            assert!(serde_json::from_str::<Timestamp>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_with_an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<Claim>(r#"{"name":"ops","rôle":"ca-admin"}"#).is_err());
    }
}
