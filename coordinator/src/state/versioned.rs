//! The frame around a record's JSON: its type's version first, so that an older coordinator says what it
//! cannot read instead of guessing.

use serde::{Deserialize, Serialize};
use warren_proto::reason::{Reason, Refusal};

use super::records::Record;

/// Why the picture cannot be built from the store.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A key under one of the state's prefixes does not parse.
    #[error("the store holds a key of no known form: {0:?}")]
    Key(String),
    /// A value does not parse as the record that its key names.
    #[error("the record {key:?} does not read: {error}")]
    Record {
        /// The record's key.
        key: String,
        /// Where the JSON fails.
        error: String,
    },
    /// A record was written by a newer coordinator.
    #[error("the record {key:?} has version {found}; this coordinator reads up to {known}")]
    Newer {
        /// The record's key.
        key: String,
        /// Its version.
        found: u32,
        /// The version that this build writes.
        known: u32,
    },
    /// The store was never initialised.
    #[error("the store holds no mesh")]
    NoMesh,
    /// The head of policy was deleted, which nothing does.
    #[error("the record \"policy/head\" was deleted")]
    PolicyHeadGone,
    /// A revision's objects are not all there.
    #[error("policy revision {0} is in force but its documents are incomplete")]
    PolicyIncomplete(u64),
    /// The policy in force does not compile with this build.
    #[error("policy revision {number} does not compile: {first}")]
    PolicyInvalid {
        /// The revision.
        number: u64,
        /// The first diagnostic, with file and line.
        first: String,
    },
}

impl StateError {
    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Newer { .. } => "start the warren-coordinator that wrote it, or a newer one",
            Self::NoMesh => "run `warren-coordinator init` first",
            Self::PolicyInvalid { .. } => "start the warren-coordinator that accepted it, correct the document there",
            Self::Key(_) | Self::Record { .. } | Self::PolicyHeadGone | Self::PolicyIncomplete(_) => {
                "the store is damaged: restore the newest backup"
            }
        }
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::new(Reason::StateCorrupt, error.to_string()).hint(error.hint())
    }
}

#[derive(Serialize)]
struct Out<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct In<T> {
    #[serde(rename = "version")]
    _version: u32,
    record: T,
}

pub(super) fn decode<T: Record>(key: &[u8], value: &[u8]) -> Result<T, StateError> {
    let key = || String::from_utf8_lossy(key).into_owned();
    let wrong = |error: serde_json::Error| StateError::Record { key: key(), error: error.to_string() };
    let Version { version } = serde_json::from_slice(value).map_err(wrong)?;
    if version > T::VERSION {
        return Err(StateError::Newer { key: key(), found: version, known: T::VERSION });
    }
    serde_json::from_slice::<In<T>>(value).map(|outer| outer.record).map_err(wrong)
}

/// The bytes of a record as the store keeps them.
pub(crate) fn encode<T: Record>(record: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(&Out { version: T::VERSION, record })
        .map_err(|error| Refusal::new(Reason::Internal, format!("a record cannot be written: {error}")))
}
