//! The administrator's verbs: thin calls of the coordinator's admin API, and the local work on policy files.

mod administrators;
mod attestors;
mod audit;
mod audit_certificate;
mod audit_file;
mod audit_proof;
mod ca;
mod changes;
mod connection;
mod nodes;
mod peers;
mod policy;
mod policy_files;
mod registrations;
mod revocations;
mod tokens;
mod workloads;

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use warren_proto::admin::{Acknowledgements, Generation};

use super::{Context, Exit, Failure, Outcome, Present, Table};
use crate::admin_client::{AdminClient, Refused};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Policy files: check and test them here; compare, apply and roll back at the coordinator [either]
    Policy(policy::Arguments),
    /// Join tokens: what a new machine is enrolled with [coordinator]
    Token(tokens::Arguments),
    /// Attestors: who may vouch for machines that have no join token [coordinator]
    Attestor(attestors::Arguments),
    /// Registrations: which evidence may hold which identities [coordinator]
    Registration(registrations::Arguments),
    /// Nodes: list, show, revoke, forget, say what they may hold [coordinator]
    Node(nodes::Arguments),
    /// Plain WireGuard devices: register one's key, print its configuration, remove it [coordinator]
    Peer(peers::Arguments),
    /// Workloads: identities and their running copies [coordinator]
    Workload(workloads::Workloads),
    /// Services: what policy declares and who may reach it [coordinator]
    Service(workloads::Services),
    /// End trust before its time; what is in force [coordinator]
    Revocation(revocations::Arguments),
    /// The log of every change and issuance [coordinator]
    Audit(audit::Arguments),
    /// The certificate authority: its roots and their replacement [coordinator]
    Ca(ca::Arguments),
    /// Administrators' own tokens [coordinator]
    Admin(administrators::Arguments),
}

/// Runs an administrator's verb.
pub(super) fn run(command: Command, context: &Context) -> Outcome {
    match command {
        Command::Policy(arguments) => policy::run(arguments, context),
        Command::Token(arguments) => tokens::run(arguments, context),
        Command::Attestor(arguments) => attestors::run(arguments, context),
        Command::Registration(arguments) => registrations::run(arguments, context),
        Command::Node(arguments) => nodes::run(arguments, context),
        Command::Peer(arguments) => peers::run(arguments, context),
        Command::Workload(arguments) => workloads::run_workloads(arguments, context),
        Command::Service(arguments) => workloads::run_services(arguments, context),
        Command::Revocation(arguments) => revocations::run(arguments, context),
        Command::Audit(arguments) => audit::run(arguments, context),
        Command::Ca(arguments) => ca::run(arguments, context),
        Command::Admin(arguments) => administrators::run(arguments, context),
    }
}

/// What a refused request shows: the refusal, and each finding of it.
impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let next = refused.refusal.hint.clone();
        let mut failure = Self::from(warren_proto::reason::Refusal { hint: String::new(), ..refused.refusal });
        if let Some(problem) = refused.problem {
            for finding in &problem.findings {
                failure = failure.because(finding.to_string());
            }
            for test in &problem.failed_tests {
                failure = failure
                    .because(format!("{}:{}: test {} failed: {}", test.file, test.line, test.name, test.message));
            }
        }
        failure.next(next)
    }
}

/// A list as every command prints one.
#[derive(Debug, Serialize)]
struct Items<T> {
    items: Vec<T>,
}

/// How the items of a list are shown.
trait Rows: Serialize + Sized {
    /// The list's kind in JSON and YAML.
    const LIST: &'static str;

    /// What is said instead of an empty table.
    const NONE: &'static str;

    /// The table.
    fn table(items: &[Self], wide: bool) -> Table;
}

impl<T: Rows> Present for Items<T> {
    const KIND: &'static str = T::LIST;

    fn text(&self, wide: bool) -> String {
        if self.items.is_empty() { T::NONE.to_owned() } else { T::table(&self.items, wide).to_string() }
    }
}

/// Joined for one cell; a dash for nothing.
fn joined<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Asks before something that cannot be taken back. Without a terminal only `--yes` answers.
fn confirm(context: &Context, consequence: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let refuse = |what: &str| Failure::new(Exit::Usage, what).next("add --yes to go ahead without being asked");
    if !std::io::stdin().is_terminal() {
        return Err(refuse(consequence).because("there is no terminal to ask at"));
    }
    context.output.say(consequence);
    // The prompt is talk; a closed stderr leaves the question unseen and the answer unread.
    let _ = write!(std::io::stderr(), "Go ahead? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refuse("nothing was changed")),
    }
}

/// Waits until every connected node that a change concerns has acknowledged it.
async fn wait_for_acknowledgements(
    client: &mut AdminClient,
    context: &Context,
    generation: Generation,
    wait: Duration,
) -> Outcome {
    let until = tokio::time::Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let path = format!(
            "/acknowledgements?epoch={}&revision={}&wait_seconds={}",
            generation.epoch,
            generation.revision,
            left.as_secs().min(25)
        );
        let now: Acknowledgements = client.get(&path).await?;
        if now.pending.is_empty() {
            if !now.away.is_empty() {
                context.output.say(format!("{} nodes are away and will be told when they return", now.away.len()));
            }
            return Ok(Exit::Yes);
        }
        if left < Duration::from_secs(1) {
            let pending: Vec<_> = now.pending.iter().map(|node| node.0.to_string()).collect();
            return Err(Failure::new(Exit::NotReady, format!("{} nodes have not acknowledged it yet", pending.len()))
                .because(pending.join("\n"))
                .next("warren node show NODE"));
        }
    }
}

/// A time as people type it: `90s`, `15m`, `24h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write for example 90s, 15m, 24h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_type_them_and_nothing_else_is() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "s", "9", "1.5h", "-1s", "1w", "1\u{e9}", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
