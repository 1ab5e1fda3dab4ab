//! `warren audit list | export | verify`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warren_proto::admin::{AuditEntry, AuditExport, AuditList, AuditReport};

use super::audit_file::{Questions, verify};
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every change and every issued certificate leaves a row, written in the same commit. Rows are chained by hash. `verify` exits 3 when the chain is broken. Note the head it prints: a later verification that passes through it shows that nothing before was changed. With --file it is checked here, without the coordinator, on rows that `export` wrote.

Examples:
  warren audit list --limit 20
  warren audit list -o json | jq '.items[] | select(.action == \"node.revoke\")'
  warren audit verify
  warren audit export > audit.jsonl
  warren audit verify --file audit.jsonl --noted HASH --serial 4f6a...")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The newest rows, newest first
    List {
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Print every row as it is stored, oldest first, one a line
    Export {
        /// Only rows behind this one.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
    },
    /// Check every link of the chain
    Verify {
        /// Check this file of exported rows, here; `-` reads stdin.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The hash of a row that was noted earlier: the log must pass through it.
        #[arg(long, value_name = "HASH", requires = "file")]
        noted: Option<String>,
        /// A certificate's serial number, hexadecimal: its issuance must be in the log.
        #[arg(long, value_name = "SERIAL", requires = "file")]
        serial: Option<String>,
    },
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    if let Verb::Verify { file: Some(file), noted, serial } = arguments.verb {
        return verify_file(&file, &Questions { noted, serial }, context);
    }
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List { limit } => {
                let items = client.list("/audit", limit, |list: AuditList| list.page).await?;
                context.output.print(&Items { items })?;
                Ok(Exit::Yes)
            }
            Verb::Export { mut after } => loop {
                let part: AuditExport = client.get(&format!("/audit/rows?after={after}")).await?;
                for row in &part.rows {
                    context.output.print_text(row)?;
                }
                match part.next {
                    Some(next) => after = next,
                    None => return Ok(Exit::Yes),
                }
            },
            Verb::Verify { .. } => {
                let report: AuditReport = client.get("/audit/verify").await?;
                context.output.print(&report)?;
                Ok(if report.intact { Exit::Yes } else { Exit::No })
            }
        }
    })
}

fn verify_file(path: &Path, questions: &Questions, context: &Context) -> Outcome {
    let unreadable =
        |error: std::io::Error| Failure::new(Exit::Failed, format!("{} cannot be read", path.display())).cause(&error);
    let report = if path == Path::new("-") {
        verify(std::io::stdin().lock(), questions)
    } else {
        verify(BufReader::new(File::open(path).map_err(unreadable)?), questions)
    };
    let report = report.map_err(unreadable)?;
    context.output.print(&report)?;
    Ok(if report.holds { Exit::Yes } else { Exit::No })
}

impl Rows for AuditEntry {
    const LIST: &'static str = "AuditList";
    const NONE: &'static str = "the log is empty";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new(["SEQ", "TIME", "WHO", "ACTION", "OBJECT", "WHY", "NEW"]);
            for row in items {
                let new = row.new.as_ref().map(ToString::to_string).unwrap_or_default();
                let (seq, time) = (row.seq.to_string(), row.time.to_string());
                table.row([&seq, &time, &row.who, &row.action, &row.object, &row.why, &new]);
            }
            return table;
        }
        let mut table = Table::new(["SEQ", "TIME", "WHO", "ACTION", "OBJECT", "WHY"]);
        for row in items {
            table.row([&row.seq.to_string(), &row.time.to_string(), &row.who, &row.action, &row.object, &row.why]);
        }
        table
    }
}

impl Present for AuditReport {
    const KIND: &'static str = "AuditReport";

    fn text(&self, _wide: bool) -> String {
        if !self.intact {
            return format!("fail the audit log is broken: {}", self.problem);
        }
        format!("ok {} rows, {} to {}, unbroken\nhead {}", self.entries, self.first, self.last, self.head)
    }
}
