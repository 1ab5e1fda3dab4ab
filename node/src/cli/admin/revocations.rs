//! `warren revocation list`.

use clap::Subcommand;
use warren_proto::admin::{Revocation, RevocationList};

use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A revocation is kept until the last certificate that it concerns has ended.

Examples:
  warren revocation list
  warren node revoke NODE               revokes a node and all that runs on it")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Every revocation in force
    List,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        let Verb::List = arguments.verb;
        let items = client.list("/revocations", usize::MAX, |list: RevocationList| list.page).await?;
        context.output.print(&Items { items })?;
        Ok(Exit::Yes)
    })
}

impl Rows for Revocation {
    const LIST: &'static str = "RevocationList";
    const NONE: &'static str = "nothing is revoked";

    fn table(items: &[Self], _wide: bool) -> Table {
        let mut table = Table::new(["REVOKED", "WHAT", "KEPT UNTIL", "WHY"]);
        for item in items {
            table.row([&item.revoked_at.to_string(), &item.target, &item.expires_at.to_string(), &item.why]);
        }
        table
    }
}

impl Present for Revocation {
    const KIND: &'static str = "Revocation";

    fn text(&self, _wide: bool) -> String {
        let done = if self.id.is_empty() { "would revoke" } else { "revoked" };
        format!("{done} {}", self.target)
    }
}
