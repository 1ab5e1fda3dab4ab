//! The admin API: HTTPS for administrators, their command line and the console.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use warren_proto::UnixTime;
use warren_proto::admin::{AdminTokenId, Credential, Role};
use zeroize::Zeroizing;

use crate::distribution::Links;
use crate::registry::Registry;
use crate::state::records::{AdminToken, Hex32};

/// How long the first-run token waits for its one use.
const FIRST_RUN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The one-time token with which the first administrator's token is claimed: its record and its text.
#[must_use]
pub fn first_run_token(now: UnixTime) -> (AdminToken, Zeroizing<String>) {
    let credential = Credential::new(AdminTokenId::from_bytes(rand::random()), rand::random());
    let record = AdminToken {
        id: credential.id().to_string(),
        name: "first-run".to_owned(),
        secret_sha256: Hex32(credential.hash()),
        role: Role::CaAdmin,
        namespaces: Vec::new(),
        created_at: now,
        expires_at: now.plus(FIRST_RUN),
        created_by: "init".to_owned(),
        first_run: true,
    };
    (record, credential.expose())
}

/// What every handler works with.
#[derive(Debug, Clone)]
pub struct Api {
    _registry: Arc<Registry>,
    _links: Arc<Links>,
    _hosts: Vec<String>,
}

impl Api {
    /// `hosts` are the names of the API's URL that are accepted beside addresses.
    #[must_use]
    pub fn new(registry: Arc<Registry>, links: Arc<Links>, hosts: Vec<String>) -> Self {
        Self { _registry: registry, _links: links, _hosts: hosts }
    }
}

/// Serves until `stopping` turns true.
pub async fn serve(listener: TcpListener, api: Api, mut stopping: watch::Receiver<bool>) {
    let _serving = (listener, api);
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
