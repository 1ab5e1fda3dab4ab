//! `warren token create | list | revoke`.

use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use warren_proto::WorkloadName;
use warren_proto::admin::{CreatedJoinToken, Deleted, JoinToken, JoinTokenList, NewJoinToken};

use super::changes::{Change, Making};
use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table, duration, joined};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A join token is one string: it names the coordinator and the mesh's root, and is good for the identities it was made for. Whoever holds it can become one of those, so it is short-lived, counted, and shown once.

Examples:
  warren token create --for shop/web-frontend > web.token
  warren token create --for bank/banking-api --uses 3 --ttl 15m -m 'rack 4'
  warren token list
  warren token revoke 4f6a1c22e0b19d07")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token and print it, this once
    Create {
        /// An identity that the new machine may hold, <namespace>/<name>; may be repeated.
        #[arg(long = "for", value_name = "WORKLOAD", required = true)]
        workloads: Vec<WorkloadName>,
        /// How many machines may join with it.
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        uses: u32,
        /// How long it is accepted.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
        #[command(flatten)]
        making: Making,
    },
    /// Every token, without its secret
    List,
    /// Take a token back: nobody joins with it any more
    Revoke {
        /// The token's id: the middle part of the token, also shown by `list`.
        id: String,
        #[command(flatten)]
        change: Change,
    },
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::Create { workloads, uses, ttl, making } => {
                let (terms, dry_run) = (making.terms(), making.dry_run);
                let new = NewJoinToken { workloads, uses, lifetime_seconds: ttl.as_secs(), note: making.note };
                let created: CreatedJoinToken = client.change(Method::POST, "/tokens", Some(&new), &terms).await?;
                context.output.print(&created)?;
                if !dry_run {
                    let JoinToken { id, workloads, uses, expires_at, .. } = &created.token;
                    context.output.say(format!(
                        "token {id} for {}: {uses} use{}, until {expires_at}; it is not shown again",
                        joined(workloads),
                        if *uses == 1 { "" } else { "s" },
                    ));
                    context.output.say("next, on the new machine: warren enrol --token-file FILE");
                }
            }
            Verb::List => {
                let items = client.list("/tokens", usize::MAX, |list: JoinTokenList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Revoke { id, change } => {
                let terms = change.terms();
                let gone: Deleted =
                    client.change(Method::DELETE, &format!("/tokens/{id}"), None::<&()>, &terms).await?;
                context.output.print(&gone)?;
            }
        }
        Ok(Exit::Yes)
    })
}

impl Present for CreatedJoinToken {
    const KIND: &'static str = "CreatedJoinToken";

    /// The token alone, so that it can be sent to a file or a pipe.
    fn text(&self, _wide: bool) -> String {
        self.secret.clone().unwrap_or_else(|| format!("would make a token for {}", joined(&self.token.workloads)))
    }
}

impl Present for Deleted {
    const KIND: &'static str = "Deleted";

    fn text(&self, _wide: bool) -> String {
        format!("{} {}", self.id, if self.committed { "is gone" } else { "would go" })
    }
}

impl Rows for JoinToken {
    const LIST: &'static str = "JoinTokenList";
    const NONE: &'static str = "no join tokens; make one with: warren token create --for <namespace>/<name>";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new(["ID", "FOR", "STATE", "USED", "EXPIRES", "NOTE", "CREATED", "BY"]);
            for token in items {
                let used = format!("{}/{}", token.used, token.uses);
                let (expires, created) = (token.expires_at.to_string(), token.created_at.to_string());
                let workloads = joined(&token.workloads);
                table.row([
                    &token.id,
                    &workloads,
                    &token.state,
                    &used,
                    &expires,
                    &token.note,
                    &created,
                    &token.created_by,
                ]);
            }
            return table;
        }
        let mut table = Table::new(["ID", "FOR", "STATE", "USED", "EXPIRES", "NOTE"]);
        for token in items {
            let used = format!("{}/{}", token.used, token.uses);
            let expires = token.expires_at.to_string();
            table.row([&token.id, &joined(&token.workloads), &token.state, &used, &expires, &token.note]);
        }
        table
    }
}
