//! Exit codes: a promise to scripts, the same for every command.

use std::process::ExitCode;

use warren_proto::Reason;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or the answer is yes.
    Yes = 0,
    /// It failed.
    Failed = 1,
    /// The command line or a file given to it is wrong.
    Usage = 2,
    /// It worked and the answer is no: denied, tests failed, differences or problems found.
    No = 3,
    /// The other side is not ready or did not answer in time.
    NotReady = 4,
    /// The caller may not do this.
    NotPermitted = 5,
    /// There is no such thing.
    NotFound = 6,
    /// The object has changed since it was read.
    Conflict = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Reason> for Exit {
    /// The code for a refusal that came from the daemon or the coordinator.
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::InvalidField | Reason::TokenMalformed | Reason::PolicyInvalid => Self::Usage,
            Reason::NotAuthenticated
            | Reason::NotPermitted
            | Reason::IdentityNotAllowed
            | Reason::NamespaceOwned
            | Reason::TokenUnknown
            | Reason::TokenExpired
            | Reason::TokenUsed => Self::NotPermitted,
            Reason::NotFound | Reason::NodeUnknown => Self::NotFound,
            Reason::Conflict => Self::Conflict,
            Reason::NotReady
            | Reason::StoreUnavailable
            | Reason::RateLimited
            | Reason::ShuttingDown
            | Reason::CoordinatorUnreachable => Self::NotReady,
            Reason::TestsFailed | Reason::DeletesTooMuch | Reason::UnenforceablePolicy => Self::No,
            _ => Self::Failed,
        }
    }
}
