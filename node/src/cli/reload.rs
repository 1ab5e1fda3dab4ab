//! `warren reload`: the daemon reads its configuration again.

use super::{Context, Exit, Outcome, Present, Table, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Reloaded, Request};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The daemon reads the file and the environment that it was started with. log.level, tunnel.addresses and control.addresses change at once (a control link that stands is not cut); other keys that differ are named and need a restart. A configuration with one wrong value changes nothing. SIGHUP to the daemon does the same and says the outcome in its log.

Exit code: 0 everything that differs is in force, 2 the configuration is wrong and nothing was changed, 3 something needs a restart.

Examples:
  warren config validate && warren reload
  systemctl reload warren")]
pub(super) struct Arguments {}

pub(super) fn run(_arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        let reloaded: Reloaded = ask_once(&socket, &Request::Reload).await?;
        context.output.print(&reloaded)?;
        Ok(if reloaded.needs_restart.is_empty() { Exit::Yes } else { Exit::No })
    })
}

impl Present for Reloaded {
    const KIND: &'static str = "Reload";

    fn text(&self, _wide: bool) -> String {
        if self.applied.is_empty() && self.needs_restart.is_empty() {
            return "nothing differs from what is in force".to_owned();
        }
        let mut table = Table::new(["KEY", "OUTCOME"]);
        for key in &self.applied {
            table.row([key, "in force"]);
        }
        for key in &self.needs_restart {
            table.row([key, "needs a restart of the node; unchanged"]);
        }
        table.to_string()
    }
}
