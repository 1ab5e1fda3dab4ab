//! How a command fails: what, why, and what to type next; and the exit code that scripts see.

use std::fmt;

use warren_proto::reason::{Reason, Refusal};

/// Exit codes, a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; the answer is yes.
    Yes = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Not ready yet, or not running.
    NotReady = 4,
    /// The system does not permit it.
    NotPermitted = 5,
    /// There is no such thing.
    NotFound = 6,
    /// It is there already, or changed meanwhile.
    Conflict = 7,
}

/// A failure for two readers: a script takes the exit code, a person the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the script.
    pub exit: Exit,
    /// What failed.
    pub what: String,
    /// The next thing to type or to check; may be empty.
    pub next: String,
}

impl Failure {
    /// A failure without a next step.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), next: String::new() }
    }

    /// Adds the next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if self.next.is_empty() { Ok(()) } else { write!(f, "\n  next: {}", self.next) }
    }
}

impl std::error::Error for Failure {}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.reason {
            Reason::NotFound | Reason::NodeUnknown | Reason::TokenUnknown => Exit::NotFound,
            Reason::Conflict => Exit::Conflict,
            Reason::NotPermitted | Reason::NotAuthenticated => Exit::NotPermitted,
            Reason::InvalidField => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { exit, what: refusal.to_string(), next: refusal.hint }
    }
}
