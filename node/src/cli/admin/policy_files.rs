//! Policy files on this machine: found, read, checked and tested without a coordinator.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use warren_proto::UnixTime;
use warren_proto::admin::{Finding, MAX_POLICY_FILES, PolicyFile, TestOutcome};
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile, cases, lint};

use super::{Exit, Failure, Present, Table};
use crate::clock;

/// The largest Set that is sent, in bytes of text; the coordinator takes little more.
const MAX_TEXT: u64 = 6 * 1024 * 1024;

/// Directories below the one that was named.
const MAX_DEPTH: usize = 16;

/// Reads the files that were named, and every `.yaml` and `.yml` file below the directories that were, in order of
/// their names. Hidden ones are passed over.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<PolicyFile>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        collect(path, 0, &mut found)?;
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is no .yaml file in what was named")
            .next("name a file, or a directory with .yaml files"));
    }
    if found.len() > MAX_POLICY_FILES {
        return Err(Failure::new(Exit::Usage, format!("{} files; at most {MAX_POLICY_FILES} make a Set", found.len())));
    }
    let mut left = MAX_TEXT;
    let mut files = Vec::with_capacity(found.len());
    for path in found {
        let mut text = String::new();
        let read = std::fs::File::open(&path).and_then(|file| file.take(left + 1).read_to_string(&mut text));
        let length = read.map_err(|error| unreadable(&path, &error))? as u64;
        left = left.checked_sub(length).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("the files hold more than {} MiB", MAX_TEXT >> 20))
                .because(format!("reached at {}", path.display()))
        })?;
        files.push(PolicyFile { name: path.display().to_string(), text });
    }
    Ok(files)
}

fn collect(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |error| unreadable(path, &error);
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return Err(Failure::new(Exit::Usage, format!("{} lies deeper than {MAX_DEPTH} directories", path.display())));
    }
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        inside.push(entry.map_err(failed)?.path());
    }
    inside.sort();
    for path in inside {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let policy = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if !hidden && (policy || path.is_dir()) {
            collect(&path, depth + 1, found)?;
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let exit = match error.kind() {
        std::io::ErrorKind::NotFound => Exit::NotFound,
        std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
        _ => Exit::Usage,
    };
    Failure::new(exit, format!("{} cannot be read", path.display())).cause(error)
}

/// What a look at the files gave.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    /// No finding is an error.
    pub valid: bool,
    /// Errors and warnings.
    pub findings: Vec<Finding>,
}

/// What the policy's own tests gave.
#[derive(Debug, Serialize)]
pub(super) struct Tested {
    /// All hold.
    pub passed: bool,
    /// Each of them.
    pub items: Vec<TestOutcome>,
}

/// A policy that compiles, with what is worth saying about it.
pub(super) struct Compiled {
    policy: CompiledPolicy,
    now: UnixTime,
    findings: Vec<Finding>,
}

impl Compiled {
    /// Whether the policy is good to apply, as far as that can be said here.
    pub(super) fn checked(self) -> Checked {
        Checked { valid: true, findings: self.findings }
    }

    /// Runs the policy's own tests.
    pub(super) fn test(&self) -> Tested {
        let results = cases::run_tests(&self.policy, self.now);
        Tested { passed: results.iter().all(|result| result.passed), items: results.iter().map(Into::into).collect() }
    }
}

/// Compiles as the coordinator would, the files being the whole policy.
pub(super) fn compile(files: Vec<PolicyFile>) -> Result<Compiled, Checked> {
    let files: Vec<_> = files.into_iter().map(|PolicyFile { name, text }| SourceFile { name, text }).collect();
    let refused = |findings: Vec<_>| Checked { valid: false, findings: findings.iter().map(Finding::from).collect() };
    let documents = Documents::from_files(&files).map_err(refused)?;
    let policy = CompiledPolicy::compile(&documents, Mode::Whole).map_err(refused)?;
    policy.enforceable().map_err(refused)?;
    let now = clock::read().wall;
    let findings = lint::lint(&documents, &policy, now).iter().map(Finding::from).collect();
    Ok(Compiled { policy, now, findings })
}

impl Present for Checked {
    const KIND: &'static str = "PolicyCheck";

    fn text(&self, _wide: bool) -> String {
        let mut lines: Vec<_> = self.findings.iter().map(ToString::to_string).collect();
        let errors = self.findings.iter().filter(|finding| finding.severity == "error").count();
        let warnings = self.findings.len() - errors;
        lines.push(match self.valid {
            true => format!("ok the policy compiles; {warnings} warnings"),
            false => format!("fail {errors} errors, {warnings} warnings"),
        });
        lines.join("\n")
    }
}

impl Present for Tested {
    const KIND: &'static str = "PolicyTest";

    fn text(&self, wide: bool) -> String {
        if self.items.is_empty() {
            return "no tests; a document of kind Tests holds cases and proofs".to_owned();
        }
        let mut table = Table::new(["RESULT", "TEST", "WHERE", "WHY NOT"]);
        for test in self.items.iter().filter(|test| wide || !test.passed) {
            let place = format!("{}:{}", test.file, test.line);
            table.row([if test.passed { "ok" } else { "fail" }, &test.name, &place, &test.message]);
        }
        let passed = self.items.iter().filter(|test| test.passed).count();
        let summary = format!("{passed} of {} tests hold", self.items.len());
        if self.passed && !wide { summary } else { format!("{table}\n{summary}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_order_and_named_as_they_were_typed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("bank")).unwrap();
        std::fs::create_dir_all(root.join(".git")).unwrap();
        for name in ["mesh.yaml", "bank/api.yml", "bank/README.md", ".git/x.yaml", ".hidden.yaml"] {
            std::fs::write(root.join(name), "kind: Set\n").unwrap();
        }
        let files = read(&[root.to_owned()]).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
        let expected = ["bank/api.yml", "mesh.yaml"].map(|name| root.join(name).display().to_string());
        assert_eq!(names, expected);
        assert_eq!(read(&[root.join("bank/README.md")]).unwrap().len(), 1, "a file that is named is taken");
        assert_eq!(read(&[root.join("none")]).unwrap_err().exit, Exit::NotFound);
        assert_eq!(read(&[root.join(".git/..").join("empty")]).unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn an_error_is_found_with_its_line_and_a_sound_policy_with_none() {
        let file = |text: &str| vec![PolicyFile { name: "p.yaml".into(), text: text.into() }];
        let Err(checked) = compile(file("kind: Set\nname: all\nowns: [mesh]\n---\nkind: Mehs\nname: m.example\n"))
        else {
            panic!("a misspelt kind compiles")
        };
        assert!(!checked.valid);
        assert_eq!((checked.findings[0].file.as_str(), checked.findings[0].line), ("p.yaml", 5));
        let sound = compile(file("kind: Set\nname: all\nowns: [mesh]\n---\nkind: Mesh\nname: m.example\n"));
        assert!(sound.is_ok_and(|compiled| compiled.test().passed && compiled.checked().valid));
    }
}
