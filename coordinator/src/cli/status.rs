//! `warren-coordinator status`.

use std::fmt::Write;

use clap::{Args, ValueEnum};

use super::{ConfigFile, block_on, print};
use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::registry::{load_state, read_settings};
use crate::server::open_store;
use crate::status::{Report, ask};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    file: ConfigFile,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Status {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let config = self.file.load()?;
        let report = block_on(report(&config))?;
        let text = match self.output {
            Output::Text => shown(&report),
            Output::Json => {
                let json = serde_json::to_string_pretty(&report)
                    .map_err(|error| Failure::new(Exit::Failed, format!("writing JSON: {error}")))?;
                format!("{json}\n")
            }
        };
        print(&text)?;
        Ok(if report.running { Exit::Yes } else { Exit::NotReady })
    }
}

async fn report(config: &Config) -> Result<Report, Failure> {
    let asked = ask(&config.directory).await.map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Failed };
        Failure::new(exit, format!("asking the coordinator in {}: {error}", config.directory.display()))
            .next("run it as the coordinator's user")
    })?;
    if let Some(report) = asked {
        return Ok(report);
    }
    let store = open_store(config)?;
    let settings = read_settings(&store).await?;
    Ok(Report::of_state(&load_state(&store).await?, settings.trust_domain))
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    let (connected, pending) = (report.connected.len(), report.pending.len());
    let headline = match (report.running, pending) {
        (false, _) => "not running; what follows is the store's".to_owned(),
        (true, 0) if connected == 0 => "running; no node is connected".to_owned(),
        (true, 0) => "running; every connected node has acknowledged all that concerns it".to_owned(),
        (true, _) => format!("running; {pending} of {connected} connected nodes have not acknowledged everything"),
    };
    let _ = writeln!(text, "{}: {headline}", report.trust_domain);
    let generation = report.generation;
    let _ = writeln!(
        text,
        "epoch {}, revision {}, policy revision {}; {} nodes ({connected} connected), {} instances, {} revocations",
        generation.epoch,
        generation.revision,
        report.policy_revision,
        report.nodes,
        report.instances,
        report.revocations
    );
    for (reason, count) in &report.refused_enrolments {
        let _ = writeln!(text, "  {count} enrolments refused: {reason}");
    }
    for link in &report.connected {
        let state = match (&link.refused, report.pending.contains(&link.node)) {
            (Some(refused), _) => format!("refused: {refused}"),
            (None, true) => format!("told {}, acknowledged {}", link.told.revision, link.acknowledged.revision),
            (None, false) => "up to date".to_owned(),
        };
        let _ = writeln!(text, "  {}  {}  {}  {state}", link.node, link.host_name, link.remote);
    }
    for node in &report.away {
        let _ = writeln!(text, "  {node}  not connected");
    }
    text
}
