//! `warren audit list | verify`.

use clap::Subcommand;
use warren_proto::admin::{AuditEntry, AuditList, AuditReport};

use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every change and every issued certificate leaves a row, written in the same commit. Rows are chained by hash. `verify` exits 3 when the chain is broken. Note the head it prints: a later verification that passes through it shows that nothing before was changed.

Examples:
  warren audit list --limit 20
  warren audit list -o json | jq '.items[] | select(.action == \"node.revoke\")'
  warren audit verify")]
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
    /// Check every link of the chain
    Verify,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List { limit } => {
                let items = client.list("/audit", limit, |list: AuditList| list.page).await?;
                context.output.print(&Items { items })?;
                Ok(Exit::Yes)
            }
            Verb::Verify => {
                let report: AuditReport = client.get("/audit/verify").await?;
                context.output.print(&report)?;
                Ok(if report.intact { Exit::Yes } else { Exit::No })
            }
        }
    })
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
