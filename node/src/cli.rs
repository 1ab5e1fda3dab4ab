//! The command line: one file per verb. A verb parses its own arguments, does one thing, prints through
//! [`Output`] and says how it ended with an [`Exit`].

pub mod admin;
pub mod bugreport;
pub mod cert;
pub mod check;
pub mod completion;
pub mod config;
pub mod down;
pub mod enrol;
pub mod exit;
pub mod failure;
pub mod flows;
pub mod output;
pub mod ping;
pub mod reload;
pub mod run;
pub mod status;
pub mod top;
pub mod units;
pub mod up;
pub mod version;
pub mod whois;
pub mod why;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use exit::Exit;
pub use failure::{Failure, Outcome};
pub use output::{Format, Output, Present, Table};

const AFTER_HELP: &str = "\
Each command says where it is answered:
  [local]        by this machine, also with the coordinator away
  [coordinator]  by the coordinator's admin API
  [either]       by whichever is asked

Exit codes: 0 yes, 1 failed, 2 usage, 3 answer is no, 4 not ready, 5 not permitted, 6 not found, 7 conflict;
run ends as its program does
Data goes to stdout, talk to stderr. JSON and YAML carry apiVersion and kind; fields are never renamed.

First steps on a new machine:
  warren check --pre                       is this host able to run a node?
  warren enrol --token-file web.token      become a node
  warren up                                run it (systemd: systemctl start warren)
  warren status                            who is connected, and how long without the coordinator";

/// warren connects services by identity: encrypted tunnels between hosts, and an allow list per service.
#[derive(Debug, Parser)]
#[command(name = "warren", version, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Form of the answer on stdout.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Colour in tables.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: output::Colour,
    /// The node's configuration file; a missing file at the default place means defaults.
    #[arg(long, global = true, env = "WARREN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What every command is given besides its own arguments.
#[derive(Debug)]
pub struct Context {
    /// Where answers go.
    pub output: Output,
    /// `--config` as given; [`crate::config::load`] knows the default.
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this host a node: redeem a join token, or evidence, for a node certificate [coordinator]
    Enrol(enrol::Arguments),
    /// Run the node in the foreground [local]
    Up(up::Arguments),
    /// Run a program behind a node of its own: the entrypoint of a container [local]
    Run(run::Arguments),
    /// Become the program of `warren run` [local]
    #[command(hide = true)]
    Launch(run::launch::Arguments),
    /// Read the configuration again: what can change changes, the rest is named [local]
    Reload(reload::Arguments),
    /// Stop the node of this host [local]
    Down(down::Arguments),
    /// How this node is doing, and how long without its coordinator [local]
    Status(status::Arguments),
    /// What the tunnel carries and drops, live [local]
    Top(top::Arguments),
    /// Can this host run a node, and is what runs in order? [local]
    Check(check::Arguments),
    /// Ask a peer through the tunnel [local]
    Ping(ping::Arguments),
    /// Who has an overlay address, and why this node believes it [local]
    Whois(whois::Arguments),
    /// Whether a connection is allowed, and by which rule in which line [local]
    Why(why::Arguments),
    /// What this node let through and what it refused [local]
    Flows(flows::Arguments),
    /// This node's certificates [local]
    Cert(cert::Arguments),
    /// Show, check or explain this node's configuration [local]
    Config(config::Arguments),
    #[command(flatten)]
    Admin(admin::Command),
    /// One document for whoever helps: status, counters, refusals; no secrets [local]
    Bugreport(bugreport::Arguments),
    /// A script that completes this command line in bash, zsh or fish [local]
    Completion(completion::Arguments),
    /// Versions of this program and of the protocols it speaks [local]
    Version,
}

/// Parses the arguments, runs the command and prints its failure, if any.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context { output: Output::new(cli.global.output, cli.global.color), config: cli.global.config };
    match run(cli.command, &context) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // A closed stderr cannot be told anything.
            let _ = writeln!(std::io::stderr(), "{failure}");
            failure.exit.into()
        }
    }
}

fn run(command: Command, context: &Context) -> Outcome {
    match command {
        Command::Enrol(arguments) => enrol::run(arguments, context),
        Command::Up(arguments) => up::run(arguments, context),
        Command::Run(arguments) => run::run(arguments, context),
        Command::Launch(arguments) => run::launch::run(arguments),
        Command::Reload(arguments) => reload::run(arguments, context),
        Command::Down(arguments) => down::run(arguments, context),
        Command::Status(arguments) => status::run(arguments, context),
        Command::Top(arguments) => top::run(arguments, context),
        Command::Check(arguments) => check::run(arguments, context),
        Command::Ping(arguments) => ping::run(arguments, context),
        Command::Whois(arguments) => whois::run(arguments, context),
        Command::Why(arguments) => why::run(arguments, context),
        Command::Flows(arguments) => flows::run(arguments, context),
        Command::Cert(arguments) => cert::run(arguments, context),
        Command::Config(arguments) => config::run(arguments, context),
        Command::Admin(command) => admin::run(command, context),
        Command::Bugreport(arguments) => bugreport::run(arguments, context),
        Command::Completion(arguments) => completion::run(arguments, context),
        Command::Version => version::run(context),
    }
}

/// Runs a command's asynchronous part on this thread.
pub fn block_on<F: Future<Output = Outcome>>(work: F) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "the async runtime does not start").cause(&error))?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_verb_says_where_it_is_answered() {
        let command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(
                ["[local]", "[coordinator]", "[either]"].iter().any(|place| about.ends_with(place)),
                "{}: {about}",
                verb.get_name()
            );
        }
    }
}
