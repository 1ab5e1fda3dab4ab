//! Exit codes: a promise to scripts, the same for every command.

use std::process::ExitCode;

use warren_proto::Reason;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or the answer is yes.
    Yes,
    /// It failed.
    Failed,
    /// The command line or a file given to it is wrong.
    Usage,
    /// It worked and the answer is no: denied, tests failed, differences or problems found.
    No,
    /// The other side is not ready or did not answer in time.
    NotReady,
    /// The caller may not do this.
    NotPermitted,
    /// There is no such thing.
    NotFound,
    /// The object has changed since it was read.
    Conflict,
    /// As the program that was run ended, or could not: `warren run`.
    Program(u8),
}

impl Exit {
    /// What the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::No => 3,
            Self::NotReady => 4,
            Self::NotPermitted => 5,
            Self::NotFound => 6,
            Self::Conflict => 7,
            Self::Program(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<Reason> for Exit {
    /// The code for a refusal that came from the daemon or the coordinator.
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::InvalidField
            | Reason::KeyLowOrder
            | Reason::TokenMalformed
            | Reason::EvidenceMalformed
            | Reason::PolicyInvalid => Self::Usage,
            Reason::NotAuthenticated
            | Reason::NotPermitted
            | Reason::IdentityNotAllowed
            | Reason::NamespaceOwned
            | Reason::TokenUnknown
            | Reason::TokenExpired
            | Reason::TokenUsed
            | Reason::AttestorUnknown
            | Reason::EvidenceAlgorithm
            | Reason::EvidenceSignature
            | Reason::EvidenceIssuer
            | Reason::EvidenceAudience
            | Reason::EvidenceExpired
            | Reason::EvidenceNotYetValid
            | Reason::EvidenceUnbound
            | Reason::EvidenceUsed
            | Reason::NoRegistration
            | Reason::RegistrationAmbiguous => Self::NotPermitted,
            Reason::NotFound | Reason::NodeUnknown => Self::NotFound,
            Reason::Conflict | Reason::KeyInUse => Self::Conflict,
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
