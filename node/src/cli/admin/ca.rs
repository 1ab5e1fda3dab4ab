//! `warren ca status | rotate`.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use hyper::Method;
use warren_proto::admin::{CaCertificate, CaStatus, RotateCa, RotationStage, RotationStep};

use super::changes::Change;
use super::connection::Connection;
use super::{Context, Exit, Failure, Outcome, Present, Table, confirm, duration};
use crate::admin_client::AdminClient;
use crate::cli::block_on;

/// Between two looks at who is not ready yet.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Replacing the root takes three steps, with no restart and no flow lost. introduce: every node learns to trust a second \
root. activate: the second root signs, and every certificate is renewed under it. retire: the first root is trusted no \
longer, and its keys are deleted. activate and retire wait for the nodes; who is not ready is named.

Examples:
  warren ca status
  warren ca status -o json | jq -r '.roots[].pem' > roots.pem
  warren ca rotate introduce -m 'yearly'
  warren ca rotate activate --wait 5m
  warren ca rotate retire --wait 1h --yes
  warren ca rotate intermediate             a new issuing intermediate under the same root")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The roots, the intermediate, the signer; the stage of a rotation and for whom it waits
    Status,
    /// Take a step of a rotation
    Rotate {
        /// Which.
        #[arg(value_enum)]
        step: Step,
        /// Also where nodes are not ready. activate: they are served under the root before until it is retired.
        /// retire: they are cut off and must enrol anew.
        #[arg(long)]
        force: bool,
        /// Wait until every node is ready for it.
        #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "force")]
        wait: Option<Duration>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        change: Change,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Make a second root, which every node is to trust.
    Introduce,
    /// Let the second root sign; every certificate is renewed under it.
    Activate,
    /// Trust the first root no longer and delete its keys.
    Retire,
    /// Give up a root that was introduced and not activated.
    Abandon,
    /// Make a new issuing intermediate; every certificate is renewed under it.
    Intermediate,
}

impl From<Step> for RotationStep {
    fn from(step: Step) -> Self {
        match step {
            Step::Introduce => Self::Introduce,
            Step::Activate => Self::Activate,
            Step::Retire => Self::Retire,
            Step::Abandon => Self::Abandon,
            Step::Intermediate => Self::Intermediate,
        }
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::Status => context.output.print(&client.get::<CaStatus>("/ca").await?)?,
            Verb::Rotate { step, force, wait, yes, change } => {
                if let Some(wait) = wait.filter(|_| matches!(step, Step::Activate | Step::Retire)) {
                    wait_until_ready(&mut client, step.into(), wait).await?;
                }
                if !change.dry_run {
                    ask(&mut client, context, step, force, yes).await?;
                }
                let terms = change.terms();
                let body = RotateCa { step: step.into(), force };
                let status: CaStatus = client.change(Method::POST, "/ca/rotation", Some(&body), &terms).await?;
                context.output.print(&status)?;
            }
        }
        Ok(Exit::Yes)
    })
}

/// What takes trust away is asked about first.
async fn ask(client: &mut AdminClient, context: &Context, step: Step, force: bool, yes: bool) -> Result<(), Failure> {
    if step != Step::Retire && !force {
        return Ok(());
    }
    let status: CaStatus = client.get("/ca").await?;
    let mut consequence = match step {
        Step::Retire => {
            "the first root is trusted no longer and its keys are deleted; this cannot be taken back".to_owned()
        }
        _ => "the step is taken whoever is not ready".to_owned(),
    };
    if force && !status.missing.is_empty() {
        let fate = if step == Step::Retire { "are cut off and must enrol anew" } else { "are not ready" };
        consequence.push_str(&format!("; {} nodes {fate}", status.missing.len()));
    }
    if !status.join_tokens.is_empty() {
        consequence.push_str(&format!("; join tokens that end with it: {}", status.join_tokens.join(", ")));
    }
    confirm(context, &consequence, yes)
}

async fn wait_until_ready(client: &mut AdminClient, step: RotationStep, wait: Duration) -> Result<(), Failure> {
    let until = tokio::time::Instant::now() + wait;
    loop {
        let status: CaStatus = client.get("/ca").await?;
        // Out of place, the step itself says so better.
        if status.next != step || status.missing.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            let missing = status.missing.iter().map(|node| {
                format!("{} ({}) waits for {}", node.id, crate::cli::output::printable(&node.host_name), node.waits_for)
            });
            let count = status.missing.len();
            return Err(Failure::new(Exit::NotReady, format!("{count} nodes are not ready; nothing was changed"))
                .because(missing.collect::<Vec<_>>().join("\n"))
                .next("warren ca status"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn stage(stage: RotationStage) -> &'static str {
    match stage {
        RotationStage::Steady => "steady: one root",
        RotationStage::Introduced => "introduced: both roots are trusted, the first signs",
        RotationStage::Activated => "activated: both roots are trusted, the second signs",
    }
}

const fn verb(step: RotationStep) -> &'static str {
    match step {
        RotationStep::Introduce => "introduce",
        RotationStep::Activate => "activate",
        RotationStep::Retire => "retire",
        RotationStep::Abandon => "abandon",
        RotationStep::Intermediate => "intermediate",
    }
}

impl Present for CaStatus {
    const KIND: &'static str = "CaStatus";

    fn text(&self, wide: bool) -> String {
        let mut text = format!("stage:     {}\n", stage(self.stage));
        text.push_str(&format!("bundle:    sequence {}\n", self.sequence));
        let keys = if self.keys_sealed { "sealed under a passphrase" } else { "in the clear" };
        text.push_str(&format!("keys:      {keys} on the coordinator's disk\n"));
        if let Some(before) = self.renew_before {
            text.push_str(&format!("renewal:   certificates issued until {before} are replaced\n"));
        }
        text.push_str(&format!("next:      warren ca rotate {}\n\n", verb(self.next)));
        let mut table = Table::new(["CERTIFICATE", "SIGNS", "FROM", "UNTIL", "KEY ID", "FINGERPRINT (SHA-256)"]);
        let short = |text: &str| if wide { text.to_owned() } else { text.chars().take(16).collect() };
        for root in &self.roots {
            let signs = if root.signs { "yes" } else { "no" };
            table.row([
                "root".to_owned(),
                signs.to_owned(),
                root.certificate.not_before.to_string(),
                root.certificate.not_after.to_string(),
                short(&root.certificate.key_id),
                root.sha256.clone(),
            ]);
        }
        let mut under = |what: &str, certificate: &CaCertificate| {
            let key_id = if certificate.key_id.is_empty() { "-".to_owned() } else { short(&certificate.key_id) };
            let (from, until) = (certificate.not_before.to_string(), certificate.not_after.to_string());
            table.row([what.to_owned(), "-".to_owned(), from, until, key_id, "-".to_owned()]);
        };
        under("issuing intermediate", &self.issuing);
        under("coordinator", &self.coordinator);
        under("manifest signer", &self.signer);
        text.push_str(&table.to_string());
        if !self.missing.is_empty() {
            let mut missing = Table::new(["NOT READY", "HOST", "CONNECTED", "WAITS FOR"]);
            for node in &self.missing {
                let id = if wide { node.id.to_string() } else { node.id.short() };
                let connected = if node.connected { "yes" } else { "no" };
                missing.row([id, node.host_name.clone(), connected.to_owned(), node.waits_for.clone()]);
            }
            text.push_str(&format!("\n\n{missing}"));
        }
        if !self.join_tokens.is_empty() {
            text.push_str(&format!("\n\njoin tokens that end with the first root: {}", self.join_tokens.join(", ")));
        }
        text
    }
}
