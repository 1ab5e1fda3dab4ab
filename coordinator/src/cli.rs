//! The command line of `warren-coordinator`.

mod init;
mod passphrase;
mod recover;
mod serve;
mod status;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, DEFAULT_FILE};
use crate::failure::{Exit, Failure};

/// The coordinator of a warren mesh: it certifies nodes and workloads, keeps policy, and tells every node what concerns it.
#[derive(Debug, Parser)]
#[command(
    name = "warren-coordinator",
    version,
    after_help = "A new mesh, from nothing:\n  \
        warren-coordinator init --dir /var/lib/warren-coordinator --domain bank.example --listen 192.0.2.1:8443\n  \
        warren-coordinator serve --config /var/lib/warren-coordinator/coordinator.yaml\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 4 not running, 5 not permitted, 6 not found, 7 exists already."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new mesh: the CA, the store, the configuration, the first-run token.
    Init(Box<init::Init>),
    /// Run the coordinator in the foreground until SIGTERM.
    Serve(ConfigFile),
    /// Say how the coordinator is, and who has not acknowledged what.
    Status(status::Status),
    /// Accept that a store has lost acknowledged changes, when no backup is to be had.
    Recover(recover::Recover),
    /// Seal the CA's private keys under a passphrase, change it, or remove it. The coordinator must be stopped.
    Passphrase(passphrase::Arguments),
    /// Get in again when no administrator's token is left.
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Print every configuration key with its meaning and default.
    Reference,
    /// Print the admin API as an OpenAPI 3.1 document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Write a new one-time token into the coordinator's directory. The coordinator must be stopped.
    Recover(ConfigFile),
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file that `init` wrote.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, env = "WARREN_COORDINATOR_CONFIG")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        load(&self.config)
    }
}

fn load(file: &Path) -> Result<Config, Failure> {
    config::load(file, |name| std::env::var_os(name)).map_err(|error| {
        Failure::new(Exit::Usage, error.to_string())
            .next("see every key with `warren-coordinator reference`; `warren-coordinator init` writes a first file")
    })
}

/// Runs the command that was typed.
#[must_use]
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(init) => init.run(),
        Command::Serve(file) => serve::run(&file),
        Command::Status(status) => status.run(),
        Command::Recover(recover) => recover.run(),
        Command::Passphrase(arguments) => arguments.run(),
        Command::Admin { command: AdminCommand::Recover(file) } => recover::admin(&file),
        Command::Reference => print(config::REFERENCE),
        Command::Openapi => openapi(),
    };
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn openapi() -> Result<Exit, Failure> {
    let document = crate::admin_api::openapi()
        .map_err(|error| Failure::new(Exit::Failed, format!("the document cannot be written: {error}")))?;
    print(&(document + "\n"))
}

/// Writes what was asked for to standard output. A closed pipe is its reader's business.
fn print(text: &str) -> Result<Exit, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("writing the output: {error}")))
        }
        _ => Ok(Exit::Yes),
    }
}

fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("starting threads: {error}")))?
        .block_on(task)
}
