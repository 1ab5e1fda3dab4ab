//! How an administrator's verb reaches the coordinator.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use warren_proto::admin::{Credential, MAX_CREDENTIAL_LENGTH};
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::admin_client::{AdminClient, Endpoint};

/// Where the coordinator is, by what it is known, and who asks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Coordinator")]
pub(super) struct Connection {
    /// The admin API, https://host:port.
    #[arg(long, global = true, value_name = "URL", env = "WARREN_COORDINATOR")]
    coordinator: Option<String>,
    /// The mesh's root certificate (PEM), by which the coordinator is known.
    #[arg(long, global = true, value_name = "FILE", env = "WARREN_ROOT")]
    root: Option<PathBuf>,
    /// File with the administrator's token; `-` reads stdin.
    #[arg(
        long = "token-file",
        id = "admin-token-file",
        global = true,
        value_name = "FILE",
        env = "WARREN_ADMIN_TOKEN_FILE"
    )]
    token_file: Option<PathBuf>,
}

impl Connection {
    /// Connects with the administrator's token.
    pub(super) async fn open(&self) -> Result<AdminClient, Failure> {
        let file = self.token_file.as_deref().ok_or_else(|| {
            Failure::new(Exit::Usage, "no administrator's token was given")
                .next("--token-file FILE, or set WARREN_ADMIN_TOKEN_FILE")
                .next("the first one: warren admin claim --first-run-token-file DIR/first-run-token > admin.token")
        })?;
        self.open_with(file).await
    }

    /// The file with the mesh's root certificate.
    pub(super) fn root(&self) -> Result<&Path, Failure> {
        self.root.as_deref().ok_or_else(|| {
            Failure::new(Exit::Usage, "no root certificate was named")
                .next("--root root.pem, or set WARREN_ROOT; `init` wrote it to DIR/root.pem")
        })
    }

    /// Connects with the token in `file`.
    pub(super) async fn open_with(&self, file: &Path) -> Result<AdminClient, Failure> {
        let missing = |what: &str, how: &str| Failure::new(Exit::Usage, what).next(how);
        let url = self.coordinator.clone().ok_or_else(|| {
            missing("no coordinator was named", "--coordinator https://HOST:8444, or set WARREN_COORDINATOR")
        })?;
        let root = self.root()?.to_owned();
        let credential = read(file)?;
        Ok(AdminClient::connect(&Endpoint { url, root }, &credential).await?)
    }
}

fn read(path: &Path) -> Result<Credential, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_CREDENTIAL_LENGTH + 2));
    let limit = MAX_CREDENTIAL_LENGTH as u64 + 2;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::new(Exit::Usage, format!("the administrator's token cannot be read from {}", path.display()))
            .cause(&error)
    })?;
    Ok(Credential::parse(&text)?)
}
