//! What is wrong with a policy, and where: for a person at a terminal, an editor and the API alike.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most diagnostics collected in one run; a file with more is broken in a way that more lines do not explain.
pub const MAX_DIAGNOSTICS: usize = 200;

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is compiled.
    Error,
    /// Compiles, and is likely not what was meant.
    Warning,
}

/// The closed set of what can be wrong, stable for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The text is not YAML.
    Syntax,
    /// YAML that this language leaves out: anchors, aliases, merge keys, tags, directives.
    ForbiddenYaml,
    /// A plain scalar that YAML 1.1 would read differently, or a null.
    AmbiguousScalar,
    /// An empty document, list or mapping.
    Empty,
    /// A key stands twice in one mapping.
    DuplicateKey,
    /// A key that the object does not have.
    UnknownKey,
    /// A key that the object must have.
    MissingKey,
    /// A value of the wrong shape or outside its range.
    InvalidValue,
    /// A limit on size, depth or number is exceeded.
    TooLarge,
    /// A name that is declared nowhere.
    UnknownName,
    /// Two objects, ports or rules with the same name or number.
    Duplicate,
    /// A rule that can hold nowhere, or that would reach a port it cannot judge.
    ImpossibleRule,
    /// Something of the design that comes with a later release.
    ComesLater,
    /// Parsed and checked, but not enforceable by this release.
    NotEnforceable,
    /// A rule that another rule makes superfluous.
    Shadowed,
    /// A rule that never matches.
    NeverMatches,
    /// An object that nothing uses.
    Unused,
    /// A date that has passed.
    Expired,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file as it was named by the caller.
    pub file: String,
    /// Line in that file, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// How much it weighs.
    pub severity: Severity,
    /// What kind of finding it is.
    pub code: Code,
    /// What is wrong, naming the key.
    pub message: String,
    /// The next step or the nearest valid word; may be empty.
    pub hint: String,
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: severity: message (hint)`, the form editors jump to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

/// A place in a source file: 1-based line and column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// Collects findings of one file after another, up to [`MAX_DIAGNOSTICS`].
#[derive(Debug, Default)]
pub(super) struct Findings {
    list: Vec<Diagnostic>,
}

impl Findings {
    /// Adds an error with a hint.
    pub(super) fn error(
        &mut self,
        file: &str,
        at: Position,
        code: Code,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(file, at, Severity::Error, code, message.into(), hint.into());
    }

    /// Adds a warning with a hint.
    pub(super) fn warning(
        &mut self,
        file: &str,
        at: Position,
        code: Code,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(file, at, Severity::Warning, code, message.into(), hint.into());
    }

    fn push(&mut self, file: &str, at: Position, severity: Severity, code: Code, message: String, hint: String) {
        if self.list.len() < MAX_DIAGNOSTICS {
            let Position { line, column } = at;
            self.list.push(Diagnostic { file: file.to_owned(), line, column, severity, code, message, hint });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The findings, in the order of file and line.
    pub(super) fn into_sorted(self) -> Vec<Diagnostic> {
        let mut list = self.list;
        list.sort();
        list.dedup();
        list
    }
}

/// A hint that names the valid word nearest to `given`, or lists `valid` when nothing is near and it is short.
pub(super) fn nearest_hint<'a>(given: &str, valid: impl IntoIterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    let allowed = (given.chars().count() / 3).clamp(1, 3);
    let nearest = valid
        .iter()
        .filter(|word| word.len().abs_diff(given.len()) <= allowed)
        .map(|word| (edit_distance(given, word), *word))
        .filter(|(distance, _)| *distance <= allowed)
        .min();
    match nearest {
        Some((_, word)) => format!("did you mean `{word}`?"),
        None if valid.is_empty() || valid.len() > 12 => String::new(),
        None => format!("valid here: {}", valid.join(", ")),
    }
}

/// Insertions, deletions, substitutions and swaps of neighbours between two short words.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let substituted = last[j] + usize::from(x != y);
            let mut best = substituted.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_answered_with_the_nearest_valid_one() {
        assert_eq!(nearest_hint("alow", ["allow", "deny", "audit"]), "did you mean `allow`?");
        assert_eq!(nearest_hint("prots", ["ports", "protocol"]), "did you mean `ports`?");
        assert_eq!(nearest_hint("xyz", ["allow", "deny"]), "valid here: allow, deny");
    }
}
