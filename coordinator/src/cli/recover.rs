//! `warren-coordinator recover` and `admin recover`: the ways back in, on an operator's word.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::Args;

use super::init::with_registry;
use super::{ConfigFile, block_on, print};
use crate::admin_api::first_run_token;
use crate::ca::CaParameters;
use crate::clock::{self, WallClock};
use crate::failure::{Exit, Failure};
use crate::registry::{Caller, read_settings, read_trust};
use crate::server::{CLOCK_FILE, open_authority, open_store, store_failure, store_options};
use crate::store::{Seams, SledStore, Store};

#[derive(Debug, Args)]
pub(super) struct Recover {
    #[command(flatten)]
    file: ConfigFile,
    /// Take what is on the disk for the truth: changes that were acknowledged after it are gone, revocations among them.
    #[arg(long)]
    accept_loss: bool,
}

impl Recover {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let config = self.file.load()?;
        if !self.accept_loss {
            let store = open_store(&config).map_err(|failure| {
                failure.next("restore a backup; or, to go on without what was lost, add --accept-loss")
            })?;
            return print(&format!(
                "the store is whole, at revision {}; nothing to recover\n",
                store.health().revision
            ));
        }
        let store =
            SledStore::recover(store_options(&config), Seams::default()).map_err(|error| store_failure(&error))?;
        let health = store.health();
        print(&format!(
            "the store goes on in epoch {} from revision {}; every node will take a whole snapshot.\n\
             Look through `warren audit list` for what is missing, and revoke again what had been revoked.\n",
            health.epoch, health.revision
        ))
    }
}

/// Makes a new one-time token, on the word of whoever may write to the coordinator's directory.
pub(super) fn admin(file: &ConfigFile) -> Result<Exit, Failure> {
    let config = file.load()?;
    let token_file = config.directory.join("first-run-token");
    let clock_file = config.directory.join(CLOCK_FILE);
    let failed = |path: &Path, error: &io::Error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
    let store = open_store(&config)?;
    let clock = WallClock::open(&clock_file, clock::system()).map_err(|error| failed(&clock_file, &error))?;
    let (token, text) = first_run_token(clock.now());
    block_on(async {
        let (settings, trust) = (read_settings(&store).await?, read_trust(&store).await?);
        let parameters = CaParameters {
            trust_domain: settings.trust_domain,
            coordinator: config.name.clone(),
            overlay: settings.overlay,
        };
        let authority = open_authority(&config, &parameters, trust.as_ref(), clock.now())?;
        with_registry(store, authority, clock, &config, async |registry| {
            registry.create_admin_token(&Caller::new("admin-recover"), token, None).await?;
            Ok(())
        })
        .await
    })?;
    replace(&token_file, &text).map_err(|error| failed(&token_file, &error))?;
    print(&format!(
        "a one-time token is in {file}.\n\nNext: start the coordinator, then\n  \
           warren admin claim --first-run-token-file {file} > admin.token\n",
        file = token_file.display()
    ))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&new, path)
}
