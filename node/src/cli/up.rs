//! `warren up`: the node daemon, in the foreground.

use std::path::PathBuf;

use super::run::launch::end_with;
use super::{Context, Exit, Failure, Outcome, config};
use crate::daemon::reload::Reread;
use crate::{daemon, telemetry, underlay};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs until SIGTERM, SIGINT or `warren down`; SIGHUP reads the configuration again (see `warren reload`). Starts closed: nothing passes before a policy that the coordinator signed is in force, and with the coordinator away the last one is. Needs CAP_NET_ADMIN and /dev/net/tun; says so if they are missing.

Logs go to stderr (log.level and log.format in warren.yaml). Under systemd it tells when it is ready and feeds the watchdog.

Examples:
  warren up
  WARREN_LOG_LEVEL=debug warren up
  warren status --check ready              from another terminal")]
pub(super) struct Arguments {
    /// Stop when the process that started this one ends, as under `warren run`.
    #[arg(long, hide = true, value_name = "PID")]
    until_parent_ends: Option<u32>,
    /// Put the TUN device, addresses and routes into this network namespace (/run/netns/NAME); the UDP port and the control
    /// link stay in the one that warren is started in.
    #[arg(long, value_name = "FILE")]
    network_namespace: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    if let Some(parent) = arguments.until_parent_ends {
        end_with(parent).map_err(|errno| {
            Failure::new(Exit::Failed, "the end of the process that started this one cannot be watched").cause(&errno)
        })?;
    }
    let config = config::load(context)?.config;
    if let Some(namespace) = &arguments.network_namespace {
        // Before the first thread: all of them are where this one is.
        underlay::stay_behind(namespace).map_err(|error| {
            Failure::new(Exit::Failed, "--network-namespace: the overlay cannot be there").cause(&error)
        })?;
    }
    let level = telemetry::init(&config.log);
    let file = context.config.clone();
    let reread: Reread = Box::new(move || {
        crate::config::load(file.as_deref(), |name| std::env::var_os(name)).map(|loaded| loaded.config)
    });
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("warren")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "the async runtime does not start").cause(&error))?
        .block_on(daemon::run(config, level, reread))?;
    Ok(Exit::Yes)
}
