//! `warren policy check | test | diff | apply | get | history | rollback | why`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use serde::Serialize;
use warren_proto::WorkloadName;
use warren_proto::admin::{
    PolicyApplied, PolicyChanges, PolicyInForce, PolicyName, PolicyReport, PolicyRevision, PolicyRevisionList,
    PolicyRollback, PolicySubmission, Status, Why, WhyRequest,
};

use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table, duration, policy_files};
use crate::admin_client::{AdminClient, Terms};
use crate::cli::{block_on, why::parse_destination};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Policy is text in files. A Set is applied whole or not at all, on what its author has seen: when somebody else has changed the policy meanwhile, apply exits 7 and changes nothing.

check and test work here, without a coordinator [local]; the rest asks it [coordinator].
Exit 3: errors were found, a test failed, something differs, or the answer is no.

Examples:
  warren policy check policy/ && warren policy test policy/
  warren policy diff policy/
  warren policy apply policy/ -m 'web may read accounts' --wait 30s
  warren policy history
  warren policy rollback 41 -m 'accounts page is down'
  warren policy why shop/web-frontend bank/banking-api:8443")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

/// How a change of policy is made.
#[derive(Debug, clap::Args)]
struct Making {
    /// Why, for the history and the audit log.
    #[arg(short = 'm', long, value_name = "WORDS", default_value = "")]
    why: String,
    /// Only if this revision is still in force; by default the one in force when the command begins.
    #[arg(long, value_name = "REVISION")]
    if_rev: Option<u64>,
    /// Say what would change and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until every connected node that it concerns has acknowledged.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Do the files compile, and what looks unintended? [local]
    Check {
        /// Files, or directories with .yaml files.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Run the policy's own tests [local]
    Test {
        /// Files, or directories with .yaml files.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// What would applying the files change? Exit 3 when something would [coordinator]
    Diff {
        /// Files, or directories with .yaml files.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Put a Set into force [coordinator]
    Apply {
        /// Files, or directories with .yaml files: the whole Set.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// How many objects may be deleted with it.
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        allow_delete: usize,
        #[command(flatten)]
        making: Making,
    },
    /// Print the policy in force, or an earlier revision [coordinator]
    Get {
        /// An earlier revision.
        #[arg(long, value_name = "REVISION")]
        revision: Option<u64>,
    },
    /// Every revision: who, when, why [coordinator]
    History {
        /// How many of the newest.
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Put an earlier revision back into force, as a new one [coordinator]
    Rollback {
        /// The revision.
        to: u64,
        #[command(flatten)]
        making: Making,
    },
    /// May SOURCE reach DESTINATION:PORT, and by which rule? Exit 3: no [coordinator]
    Why {
        /// <namespace>/<name>
        source: WorkloadName,
        /// <namespace>/<name>:PORT[/tcp|/udp]
        destination: String,
    },
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    match arguments.verb {
        Verb::Check { paths } => {
            let checked = policy_files::compile(policy_files::read(&paths)?).map_or_else(|no| no, |yes| yes.checked());
            context.output.print(&checked)?;
            Ok(if checked.valid { Exit::Yes } else { Exit::No })
        }
        Verb::Test { paths } => match policy_files::compile(policy_files::read(&paths)?) {
            Ok(compiled) => {
                let tested = compiled.test();
                context.output.print(&tested)?;
                Ok(if tested.passed { Exit::Yes } else { Exit::No })
            }
            Err(checked) => {
                context.output.print(&checked)?;
                Ok(Exit::No)
            }
        },
        remote => block_on(async {
            // What can be wrong here is found before anybody is asked.
            let remote = Remote::prepare(remote)?;
            let mut client = arguments.connection.open().await?;
            remote.run(&mut client, context).await
        }),
    }
}

/// A verb for the coordinator, its files read and its words parsed.
enum Remote {
    Diff(PolicySubmission),
    Apply(PolicySubmission, Making),
    Get(Option<u64>),
    History(usize),
    Rollback(u64, Making),
    Why(WhyRequest),
}

impl Remote {
    fn prepare(verb: Verb) -> Result<Self, Failure> {
        Ok(match verb {
            Verb::Diff { paths } | Verb::Check { paths } | Verb::Test { paths } => {
                Self::Diff(PolicySubmission { files: policy_files::read(&paths)?, allow_delete: 0 })
            }
            Verb::Apply { paths, allow_delete, making } => {
                Self::Apply(PolicySubmission { files: policy_files::read(&paths)?, allow_delete }, making)
            }
            Verb::Get { revision } => Self::Get(revision),
            Verb::History { limit } => Self::History(limit),
            Verb::Rollback { to, making } => Self::Rollback(to, making),
            Verb::Why { source, destination } => {
                let usage = |what: String| {
                    Failure::new(Exit::Usage, what).next("for example: warren policy why shop/web bank/api:8443")
                };
                let (name, port, protocol) = parse_destination(&destination).map_err(usage)?;
                let destination = name.parse().map_err(|error| usage(format!("{name:?}: {error}")))?;
                Self::Why(WhyRequest { source, destination, protocol: Some(protocol), port: Some(port) })
            }
        })
    }

    async fn run(self, client: &mut AdminClient, context: &Context) -> Outcome {
        match self {
            Self::Diff(submission) => {
                let report: PolicyReport = client.inquire("/policy/check", &submission).await?;
                context.output.print(&report)?;
                let same = report.changes.as_ref().is_some_and(|changes| *changes == PolicyChanges::default());
                Ok(if report.acceptable && same { Exit::Yes } else { Exit::No })
            }
            Self::Apply(submission, making) => make(client, context, Method::PUT, "/policy", &submission, making).await,
            Self::Rollback(to, making) => {
                make(client, context, Method::POST, "/policy/rollback", &PolicyRollback { to }, making).await
            }
            Self::Get(revision) => {
                let path =
                    revision.map_or_else(|| "/policy".to_owned(), |number| format!("/policy/revisions/{number}"));
                let policy: PolicyInForce = client.get(&path).await?;
                context.output.print(&policy)?;
                Ok(Exit::Yes)
            }
            Self::History(limit) => {
                let page = |list: PolicyRevisionList| list.page;
                let items = client.list("/policy/revisions", limit, page).await?;
                context.output.print(&Items { items })?;
                Ok(Exit::Yes)
            }
            Self::Why(request) => {
                let why: Why = client.inquire("/policy/why", &request).await?;
                context.output.print(&why)?;
                Ok(if why.decision.is_allowed() { Exit::Yes } else { Exit::No })
            }
        }
    }
}

/// Changes the policy on the condition that it is still what was looked at.
async fn make(
    client: &mut AdminClient,
    context: &Context,
    method: Method,
    path: &str,
    body: &impl Serialize,
    making: Making,
) -> Outcome {
    let revision = match making.if_rev {
        Some(revision) => revision,
        None => client.get::<Status>("/status").await?.policy_revision,
    };
    let terms = Terms { dry_run: making.dry_run, why: making.why, if_match: Some(revision) };
    let applied: PolicyApplied = client.change(method, path, Some(body), &terms).await?;
    context.output.print(&applied)?;
    for warning in &applied.warnings {
        context.output.say(warning.to_string());
    }
    match making.wait {
        Some(wait) if applied.committed => {
            super::wait_for_acknowledgements(client, context, applied.generation, wait).await
        }
        _ => Ok(Exit::Yes),
    }
}

fn describe(changes: &PolicyChanges) -> String {
    let mut lines = Vec::new();
    let signs = [("+", &changes.added), ("~", &changes.changed), ("-", &changes.removed)];
    for (sign, names) in signs {
        lines.extend(names.iter().map(|PolicyName { kind, name }| format!("{sign} {kind} {name}")));
    }
    if !changes.access.is_empty() {
        let mut table = Table::new(["CALLER", "SERVICE", "PORTS", "BEFORE", "AFTER"]);
        for change in &changes.access {
            let (source, destination) = (change.source.to_string(), change.destination.to_string());
            table.row([&source, &destination, &change.ports, &change.before, &change.after]);
        }
        lines.push(table.to_string());
    }
    if changes.access_truncated {
        lines.push("and more".to_owned());
    }
    lines.join("\n")
}

fn with_changes(headline: String, changes: &PolicyChanges) -> String {
    let changes = describe(changes);
    if changes.is_empty() { headline } else { format!("{headline}\n{changes}") }
}

impl Present for PolicyReport {
    const KIND: &'static str = "PolicyReport";

    fn text(&self, _wide: bool) -> String {
        let mut lines: Vec<_> = self.findings.iter().map(ToString::to_string).collect();
        lines.extend(
            self.tests
                .iter()
                .map(|test| format!("{}:{}: test {} failed: {}", test.file, test.line, test.name, test.message)),
        );
        lines.push(match &self.changes {
            None => "fail it cannot be applied".to_owned(),
            Some(changes) if *changes == PolicyChanges::default() => "no difference".to_owned(),
            Some(changes) => describe(changes),
        });
        lines.join("\n")
    }
}

impl Present for PolicyApplied {
    const KIND: &'static str = "PolicyApplied";

    fn text(&self, _wide: bool) -> String {
        let PolicyChanges { added, changed, removed, .. } = &self.changes;
        let counts = format!("{} added, {} changed, {} removed", added.len(), changed.len(), removed.len());
        let headline = match (self.committed, self.changes == PolicyChanges::default()) {
            (true, _) => format!("revision {} is in force: {counts}", self.revision),
            (false, true) => format!("nothing differs; revision {} stays in force", self.revision),
            (false, false) => format!("dry run: {counts}; revision {} stays in force", self.revision),
        };
        with_changes(headline, &self.changes)
    }
}

impl Present for PolicyInForce {
    const KIND: &'static str = "PolicyInForce";

    /// YAML that `policy apply` takes back, each document under the place it came from.
    fn text(&self, _wide: bool) -> String {
        if self.items.is_empty() {
            return "# no policy is in force: nothing is let through".to_owned();
        }
        let documents = self
            .items
            .iter()
            .map(|item| format!("# {}:{} (set {})\n{}", item.file, item.line, item.set, item.text.trim_end()));
        documents.collect::<Vec<_>>().join("\n---\n")
    }
}

impl Rows for PolicyRevision {
    const LIST: &'static str = "PolicyRevisionList";
    const NONE: &'static str = "no policy was applied yet; begin with: warren policy apply DIR";

    fn table(items: &[Self], _wide: bool) -> Table {
        let mut table = Table::new(["REVISION", "AT", "WHO", "WHAT", "CHANGES", "WHY"]);
        for item in items {
            let number = if item.in_force { format!("{} *", item.number) } else { item.number.to_string() };
            let changes = format!("+{} ~{} -{}", item.added, item.changed, item.removed);
            table.row([&number, &item.at.to_string(), &item.who, &item.cause, &changes, &item.why]);
        }
        table
    }
}

impl Present for Why {
    const KIND: &'static str = "PolicyWhy";

    fn text(&self, _wide: bool) -> String {
        let decision = &self.decision;
        let verdict = if decision.is_allowed() { "allowed" } else { "denied" };
        let port = decision.port.map(|port| format!(":{port}")).unwrap_or_default();
        let mut lines = vec![format!(
            "{verdict} {} -> {}{port}/{} (policy revision {})",
            decision.source, decision.destination, decision.protocol, self.revision
        )];
        if let Some(rule) = &decision.rule {
            lines.push(format!("by {} at {}:{}", rule.id, rule.file, rule.line));
        }
        if let Some(reason) = decision.reason {
            lines.push(format!("{reason}: {}", reason.text()));
        }
        if let Some(nearest) = &decision.nearest {
            let rule = &nearest.rule;
            lines.push(format!(
                "nearest: {} at {}:{}: {} {}",
                rule.id, rule.file, rule.line, nearest.failed, nearest.detail
            ));
        }
        lines.join("\n")
    }
}
