//! Why a command failed, for two readers: the script takes the exit code, the person the sentence, its
//! causes and the next thing to type.

use std::fmt;

use warren_proto::reason::Refusal;

use super::exit::Exit;

/// A command's failure. Printed to stderr by the command line's entry point, never by the command itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    what: String,
    causes: Vec<String>,
    next: Vec<String>,
}

/// What a command returns: how it ended, or why it could not.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    /// `what` names the thing that failed, in one sentence without a full stop.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), causes: Vec::new(), next: Vec::new() }
    }

    /// The sentence.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Adds the cause, and the causes below it.
    #[must_use]
    pub fn cause(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Many errors repeat their source's text in their own.
            if !self.causes.iter().any(|shown| shown.contains(&text)) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub fn ending_with(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Adds the cause in words.
    #[must_use]
    pub fn because(mut self, text: impl Into<String>) -> Self {
        self.causes.push(text.into());
        self
    }

    /// Adds the next command to type or thing to check.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        let step = step.into();
        if !step.is_empty() {
            self.next.push(step);
        }
        self
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.reason.into(), refusal.to_string()).next(refusal.hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warren: {}", self.what)?;
        for cause in &self.causes {
            write!(f, "\n  cause: {}", cause.replace('\n', "\n         "))?;
        }
        for step in &self.next {
            write!(f, "\n  next:  {}", step.replace('\n', "\n         "))?;
        }
        Ok(())
    }
}
