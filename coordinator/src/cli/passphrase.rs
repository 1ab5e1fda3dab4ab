//! `warren-coordinator passphrase set | remove`: how the CA's private keys lie on disk. The coordinator must be stopped.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ConfigFile, print};
use crate::ca::{KeyFiles, Passphrase};
use crate::failure::{Exit, Failure};
use crate::server::{CA_DIRECTORY, ca_failure, ca_passphrase, open_store, read_passphrase};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The passphrase that is in force, where the configuration and the credential name another or none.
    #[arg(long, value_name = "FILE", global = true)]
    current_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Seal the keys, or change the passphrase that they are sealed under
    Set {
        /// The passphrase from now on is the content of this file.
        #[arg(long, value_name = "FILE")]
        new_file: PathBuf,
    },
    /// Put the keys into the clear
    Remove,
}

impl Arguments {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let config = self.file.load()?;
        // Held to the end: a coordinator that runs writes these files as well.
        let store = open_store(&config)?;
        let directory = config.directory.join(CA_DIRECTORY);
        let current = match &self.current_file {
            Some(path) => Some(read_passphrase(path)?),
            None => ca_passphrase(&config)?,
        };
        let said = match &self.verb {
            Verb::Set { new_file } => {
                let new = read_passphrase(new_file)?;
                KeyFiles::set_passphrase(&directory, in_force(&directory, current)?.as_ref(), &new)
                    .map_err(|error| ca_failure(&error))?;
                "the CA's keys are sealed under the new passphrase.\n\n\
                 Next: name its file as ca_passphrase_file, or give it as the systemd credential ca-passphrase; \
                 back up ca/seal.json with the keys, for without it no copy of them opens.\n"
            }
            Verb::Remove => {
                let current = current.ok_or_else(|| {
                    Failure::new(Exit::Usage, "no passphrase is named that could open the keys")
                        .next("--current-file FILE, or ca_passphrase_file in the configuration")
                })?;
                KeyFiles::remove_passphrase(&directory, &current).map_err(|error| ca_failure(&error))?;
                "the CA's keys lie in the clear.\n\n\
                 Next: take ca_passphrase_file out of the configuration, or the credential out of the unit.\n"
            }
        };
        drop(store);
        print(said)
    }
}

/// The current passphrase, unless the keys lie in the clear: who seals them for the first time may have named the file
/// in the configuration already.
fn in_force(directory: &std::path::Path, current: Option<Passphrase>) -> Result<Option<Passphrase>, Failure> {
    let sealed = KeyFiles::are_sealed(directory).map_err(|error| ca_failure(&error))?;
    Ok(current.filter(|_| sealed))
}
