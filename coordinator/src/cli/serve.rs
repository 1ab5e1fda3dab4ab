//! `warren-coordinator serve`: the daemon.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::{ConfigFile, block_on};
use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::server::Server;

pub(super) fn run(file: &ConfigFile) -> Result<Exit, Failure> {
    let config = file.load()?;
    log(&config)?;
    block_on(async move {
        let server = Server::open(config.clone()).await?;
        let stopping = watch::Sender::new(false);
        let asked = stopping.subscribe();
        let signals = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        tokio::spawn(async move {
            let (mut terminate, mut interrupt) = signals;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
            stopping.send_replace(true);
        });
        server
            .run(asked, || {
                tracing::info!(listen = %config.listen, admin = %config.admin_listen, "ready");
                // Without systemd there is nobody to tell.
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
            })
            .await?;
        Ok(Exit::Yes)
    })
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Failed, format!("listening for signals: {error}")))
}

fn log(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|error| Failure::new(Exit::Usage, format!("log.level: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let installed = if config.log_json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    installed.map_err(|error| Failure::new(Exit::Failed, format!("setting up the log: {error}")))
}
