//! The audit log as a file: one row a line, as the coordinator stores it, oldest first. Checked without the coordinator,
//! by whoever has the file.
//!
//! A row holds the SHA-256 of the line before it. So the hash of the last line stands for all of them: whoever noted an
//! earlier one sees whether the log that is shown to him now passes through it.

use std::io::BufRead;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use warren_proto::admin::AuditReport;
use warren_proto::merkle::{Frontier, leaf_hash};
use warren_proto::tree_head::{Issuance, TreeHead};

use super::Present;
use super::audit_certificate::Wanted;

/// Longest line, in bytes. The coordinator stores rows of at most 15 KiB.
const MAX_LINE: usize = 64 * 1024;

/// What the check needs of a row; the rest of the line counts by its hash.
#[derive(Deserialize)]
struct Row {
    seq: u64,
    previous: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    new: Option<serde_json::Value>,
}

impl Row {
    fn issued(&self) -> Option<Issuance<'_>> {
        Issuance::of(&self.action, self.new.as_ref()?)
    }
}

/// What was asked of the file, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileReport {
    /// As the coordinator itself would report.
    #[serde(flatten)]
    pub(super) report: AuditReport,
    /// The rows that issued the certificate that was asked for.
    pub(super) issued_in: Vec<u64>,
    /// Whether every question was answered with yes.
    pub(super) holds: bool,
    /// Whether its first line is a row at all; an empty file is none.
    #[serde(skip)]
    pub(super) is_an_export: bool,
}

/// What is asked beside the chain itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Questions {
    /// The hash of a row that was noted earlier: the log must pass through it.
    pub(super) noted: Option<String>,
    /// A certificate whose issuance must be in the log.
    pub(super) issued: Option<Wanted>,
    /// A head that was kept earlier, its signature checked: the rows it counts must have its root.
    pub(super) kept: Option<TreeHead>,
}

/// Reads the file to its end, or to where it breaks.
///
/// # Errors
/// When it cannot be read.
pub(super) fn verify(mut file: impl BufRead, questions: &Questions) -> std::io::Result<FileReport> {
    let mut report =
        AuditReport { intact: true, problem: String::new(), entries: 0, first: 0, last: 0, head: hex::encode([0; 32]) };
    let (mut issued_in, mut passed, mut is_an_export) = (Vec::new(), false, false);
    let mut misfit = None;
    let (mut frontier, mut met) = (Frontier::default(), None);
    let mut line = Vec::new();
    loop {
        line.clear();
        if std::io::Read::take(&mut file, MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        match take(&mut report, &line) {
            Ok(row) => {
                is_an_export = true;
                let _ = frontier.append(leaf_hash(&line));
                if let Some(kept) = questions.kept.as_ref().filter(|kept| kept.size == row.seq) {
                    met = Some(report.first == 1 && frontier.root() == kept.root);
                }
                passed |= questions.noted.as_ref().is_some_and(|noted| noted.eq_ignore_ascii_case(&report.head));
                match questions.issued.as_ref().zip(row.issued()).map(|(asked, issued)| asked.is(row.seq, &issued)) {
                    Some(Ok(true)) => issued_in.push(row.seq),
                    Some(Err(problem)) => misfit = Some(problem),
                    Some(Ok(false)) | None => {}
                }
            }
            Err(Misfit::NoRow(problem)) => {
                (report.intact, report.problem) = (false, problem);
                break;
            }
            Err(Misfit::Broken(problem)) => {
                (report.intact, report.problem, is_an_export) = (false, problem, true);
                break;
            }
        }
    }
    let mut holds = report.intact;
    if holds && questions.noted.is_some() && !passed {
        holds = false;
        report.problem =
            "no row has the hash that was noted: this is another log, or one that was changed before".to_owned();
    } else if holds && questions.kept.as_ref().is_some_and(|kept| kept.size > 0) && met != Some(true) {
        holds = false;
        report.problem = match met {
            None => "it ends before the rows that the kept head counts: rows are gone, or this export is older",
            Some(_) if report.first != 1 => "its beginning was left out, and a head counts every row",
            Some(_) => {
                "the rows that the kept head counts are not those of then: this is another log, or one that was changed"
            }
        }
        .to_owned();
    } else if holds && questions.issued.is_some() && issued_in.is_empty() {
        holds = false;
        report.problem = misfit.unwrap_or_else(|| "no row issued that certificate".to_owned());
    }
    if !is_an_export && report.problem.is_empty() {
        report.problem = "it is empty".to_owned();
    }
    Ok(FileReport { report, issued_in, holds, is_an_export })
}

/// Why a line does not go on from those before.
enum Misfit {
    /// It is no row.
    NoRow(String),
    /// It is one, and not the one that comes here.
    Broken(String),
}

fn take(report: &mut AuditReport, line: &[u8]) -> Result<Row, Misfit> {
    let expected = report.last + 1;
    if line.len() > MAX_LINE {
        return Err(Misfit::NoRow(format!("line {expected} is longer than any row")));
    }
    let row: Row = serde_json::from_slice(line).map_err(|_| Misfit::NoRow(format!("row {expected} does not parse")))?;
    let oldest = report.entries == 0;
    if row.seq != expected && !oldest {
        return Err(Misfit::Broken(format!("row {expected} is missing: row {} stands in its place", row.seq)));
    }
    // The oldest row of a log whose beginning was left out has nothing to be compared with.
    if (!oldest || row.seq == 1) && row.previous != report.head {
        return Err(Misfit::Broken(format!(
            "row {} does not carry the hash of the row before it: that row, or this one, was changed",
            row.seq
        )));
    }
    if oldest {
        report.first = row.seq;
    }
    report.entries += 1;
    report.last = row.seq;
    report.head = hex::encode(Sha256::digest(line));
    Ok(row)
}

impl Present for FileReport {
    const KIND: &'static str = "AuditReport";

    fn text(&self, wide: bool) -> String {
        if !self.holds {
            return format!("fail {}", self.report.problem);
        }
        let mut text = self.report.text(wide);
        for row in &self.issued_in {
            text.push_str(&format!("\nissued in row {row}, {} rows before the head", self.report.last - row));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as the coordinator writes them, each with the hash of the one before.
    fn log(count: u64) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for seq in 1..=count {
            let previous = lines.last().map_or([0; 32], |line| Sha256::digest(line.as_bytes()).into());
            lines.push(format!(
                r#"{{"seq":{seq},"time":1800000000,"who":"node:1","action":"certificate.issue","object":"i","new":{{"serial":"4{seq}","node":"n","certificate_sha256":"c{seq}"}},"why":"","previous":"{}"}}"#,
                hex::encode(previous)
            ));
        }
        lines
    }

    fn check(lines: &[String], questions: &Questions) -> FileReport {
        verify(lines.join("\n").as_bytes(), questions).expect("readable")
    }

    #[test]
    fn a_whole_log_holds_and_any_row_altered_removed_moved_or_slipped_in_shows() {
        let whole = log(9);
        let report = check(&whole, &Questions::default());
        assert!(report.holds && report.report.intact);
        assert_eq!((report.report.entries, report.report.first, report.report.last), (9, 1, 9));
        for at in 0..8 {
            let mut altered = whole.clone();
            altered[at] = altered[at].replace("node:1", "node:2");
            assert!(!check(&altered, &Questions::default()).holds, "row {at} altered");
            let mut swapped = whole.clone();
            swapped.swap(at, at + 1);
            assert!(!check(&swapped, &Questions::default()).holds, "rows {at} and the next swapped");
            let mut slipped_in = whole.clone();
            slipped_in.insert(at + 1, whole[at].clone());
            assert!(!check(&slipped_in, &Questions::default()).holds, "row {at} twice");
        }
        for at in 1..8 {
            let mut removed = whole.clone();
            removed.remove(at);
            assert!(!check(&removed, &Questions::default()).holds, "row {at} removed");
        }
        let part = check(&whole[4..], &Questions::default());
        assert!(part.holds && part.report.first == 5, "a log whose beginning was left out");
        for noise in ["", "[]", "{\"seq\":1}", "\u{0}"] {
            let lines = [whole[0].clone(), noise.to_owned(), whole[1].clone()];
            assert!(!check(&lines, &Questions::default()).holds, "{noise:?}");
        }
        assert!(!check(&["x".repeat(MAX_LINE + 1)], &Questions::default()).holds);
    }

    #[test]
    fn a_file_that_is_no_export_is_told_from_a_log_that_is_broken() {
        for other in ["", "not json", "{\"apiVersion\":1}", "[]"] {
            assert!(!check(&[other.to_owned()], &Questions::default()).is_an_export, "{other:?}");
        }
        let whole = log(3);
        assert!(check(&whole, &Questions::default()).is_an_export);
        let broken = check(&[whole[0].clone(), whole[2].clone()], &Questions::default());
        assert!(broken.is_an_export && !broken.holds);
        assert!(check(&[whole[0].clone(), "not json".to_owned()], &Questions::default()).is_an_export);
    }

    #[test]
    fn a_hash_that_was_noted_shows_a_log_that_was_written_anew_or_cut_off() {
        let whole = log(9);
        let noted = check(&whole[..5], &Questions::default()).report.head;
        let asked = Questions { noted: Some(noted), ..Questions::default() };
        assert!(check(&whole, &asked).holds);
        assert!(!check(&whole[..4], &asked).holds, "cut off before it");
        let mut anew = log(9).into_iter().map(|line| line.replace("node:1", "node:2")).collect::<Vec<_>>();
        for at in 1..anew.len() {
            let previous = hex::encode(Sha256::digest(anew[at - 1].as_bytes()));
            let tail = anew[at].find("\"previous\"").expect("field");
            anew[at] = format!("{}\"previous\":\"{previous}\"}}", &anew[at][..tail]);
        }
        let report = check(&anew, &asked);
        assert!(report.report.intact && !report.holds, "whole in itself, and another one");
    }

    #[test]
    fn a_head_that_was_kept_shows_rows_that_were_changed_or_are_gone() {
        let whole = log(9);
        let head_of = |rows: &[String]| {
            let mut frontier = Frontier::default();
            for row in rows {
                let _ = frontier.append(leaf_hash(row.as_bytes()));
            }
            let trust_domain = "bank.example".parse().expect("name");
            let kept = TreeHead {
                trust_domain,
                size: frontier.size(),
                root: frontier.root(),
                time: warren_proto::UnixTime(0),
            };
            Questions { kept: Some(kept), ..Questions::default() }
        };
        for size in 0..=9 {
            assert!(check(&whole, &head_of(&whole[..size])).holds, "{size} rows");
        }
        assert!(!check(&whole[..4], &head_of(&whole[..5])).holds, "rows are gone");
        assert!(!check(&whole[2..], &head_of(&whole[..5])).holds, "without its beginning nothing is known");
        let mut other = whole.clone();
        other[2] = other[2].replace("node:1", "node:2");
        assert!(!check(&whole, &head_of(&other[..5])).holds, "a row was changed before");
    }

    #[test]
    fn the_issuance_of_a_certificate_is_found_with_its_row_or_said_to_be_missing() {
        let asked = |serial: &str| {
            let issued = Some(Wanted::by_serial(serial).expect("a serial number"));
            Questions { issued, ..Questions::default() }
        };
        let report = check(&log(9), &asked("47"));
        assert_eq!((report.holds, report.issued_in.as_slice()), (true, [7].as_slice()));
        assert!(report.text(false).contains("issued in row 7, 2 rows before the head"));
        assert!(!check(&log(9), &asked("99")).holds);

        let certificate = |sha256: &str| {
            let issued =
                Wanted { sha256: Some(sha256.to_owned()), ..Wanted::by_serial("47").expect("a serial number") };
            Questions { issued: Some(issued), ..Questions::default() }
        };
        assert_eq!(check(&log(9), &certificate("c7")).issued_in, [7]);
        let report = check(&log(9), &certificate("c8"));
        assert!(!report.holds && report.report.problem.contains("another certificate"), "{report:?}");
        // What only shows a certificate issued none.
        let shows = log(1)[0].replace("certificate.issue", "node.renewed");
        assert!(!check(&[shows], &asked("41")).holds);
    }
}
