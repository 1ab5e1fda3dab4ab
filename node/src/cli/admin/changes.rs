//! The options that changes of the mesh have in common, so that each is named alike and means the same everywhere.

use std::time::Duration;

use warren_proto::admin::Generation;

use super::{AdminClient, Context, Exit, Failure, Outcome, confirm, duration, wait_for_acknowledgements};
use crate::admin_client::Terms;

/// What goes with every change.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Change {
    /// Why, for the audit log.
    #[arg(short = 'm', long, value_name = "WORDS", default_value = "")]
    why: String,
    /// Check the request and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl Change {
    pub(super) fn terms(self) -> Terms {
        Terms { dry_run: self.dry_run, why: self.why, if_match: None }
    }
}

/// What goes with the making of something that is kept: the words stay with it.
#[derive(Debug, clap::Args)]
pub(super) struct Making {
    /// What it is for; shown in lists and kept in the audit log.
    #[arg(short = 'm', long = "note", value_name = "WORDS", default_value = "")]
    pub(super) note: String,
    /// Check the request and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl Making {
    pub(super) fn terms(&self) -> Terms {
        Terms { dry_run: self.dry_run, why: self.note.clone(), if_match: None }
    }
}

/// What goes with a change that takes something away from nodes that run.
#[derive(Debug, clap::Args)]
pub(super) struct Cut {
    #[command(flatten)]
    change: Change,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    acknowledged: Acknowledged,
}

impl Cut {
    /// Asks before what cannot be taken back, unless it is only tried.
    pub(super) fn confirm(&self, context: &Context, consequence: &str) -> Result<(), Failure> {
        if self.change.dry_run { Ok(()) } else { confirm(context, consequence, self.yes) }
    }

    /// The change's conditions, and what it is to wait for afterwards.
    pub(super) fn terms(self) -> (Terms, Acknowledged) {
        (self.change.terms(), self.acknowledged)
    }
}

/// How long a command waits for the nodes.
#[derive(Debug, clap::Args)]
pub(super) struct Acknowledged {
    /// Wait until every connected node that it concerns has acknowledged.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
}

impl Acknowledged {
    /// Whether there is anything to wait for.
    pub(super) fn is_wanted(&self) -> bool {
        self.wait.is_some()
    }

    /// Waits, where that was asked for and something was changed.
    pub(super) async fn wait(
        &self,
        client: &mut AdminClient,
        context: &Context,
        changed: Option<Generation>,
    ) -> Outcome {
        match (self.wait, changed) {
            (Some(wait), Some(generation)) => wait_for_acknowledgements(client, context, generation, wait).await,
            _ => Ok(Exit::Yes),
        }
    }
}
