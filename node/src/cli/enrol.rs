//! `warren enrol`: this host becomes a node of a mesh.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use warren_proto::UnixTime;
use warren_proto::join_token::{JoinToken, MAX_TOKEN_LENGTH};
use zeroize::Zeroizing;

use super::{Context, Exit, Failure, Outcome, Present, config};
use crate::certificates::key_store::{KeyStore, NodeIdentity};
use crate::clock::{self, Clock};
use crate::control_client::enrol::enrol;
use crate::state_dir::{StateDir, StateError};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is read from a file, from stdin, from $WARREN_TOKEN_FILE, or from a systemd credential named warren-token; never from the command line, where every user of this host could read it. It carries the coordinator's addresses and the hash of the mesh's root, so that nothing else has to be typed and no other coordinator is believed.

The node's key is made here and does not leave this host. If the answer is lost, run the same command again: the token is not used up twice.

Examples:
  warren enrol --token-file web.token
  ssh admin warren token create --for shop/web-frontend | warren enrol --token-file -
  systemd-run -p LoadCredential=warren-token:/root/web.token warren enrol")]
pub(super) struct Arguments {
    /// File that holds the join token; `-` reads stdin.
    #[arg(long, value_name = "FILE", env = "WARREN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Coordinator to ask instead of those in the token, host:port; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    coordinator: Vec<String>,
    /// What operators see this host as; by default its host name. Shown, never trusted.
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Enrolled {
    node: String,
    trust_domain: String,
    workloads: Vec<String>,
    coordinators: Vec<String>,
}

impl Present for Enrolled {
    const KIND: &'static str = "Enrolment";

    fn text(&self, _wide: bool) -> String {
        let may_run = if self.workloads.is_empty() { "nothing yet".to_owned() } else { self.workloads.join(", ") };
        format!("enrolled as node {} of {}\nmay run: {may_run}", self.node, self.trust_domain)
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let config = config::load(context)?.config;
    for address in &arguments.coordinator {
        crate::config::host_and_port(address).map_err(|what| Failure::new(Exit::Usage, what))?;
    }
    let token = read_token(arguments.token_file.as_deref())?;
    let state = StateDir::open(&config.state_dir).map_err(unusable)?;
    let store = KeyStore::new(&state);
    if let Some(node) = store.node().map_err(unusable)? {
        return Err(already(&node, &config.state_dir));
    }
    let addresses = [arguments.coordinator, config.control_addresses, token.addresses.clone()]
        .into_iter()
        .find(|addresses| !addresses.is_empty())
        .unwrap_or_default();
    let host_name = arguments.host_name.unwrap_or_else(this_host);
    let key = store.pending_key(token.id)?;
    let clock = Arc::new(Clock::new(clock::read, UnixTime(0)));
    super::block_on(async {
        let node = enrol(&token, &addresses, key, &host_name, clock).await?;
        store.save_node(&node).map_err(unusable)?;
        context.output.print(&Enrolled {
            node: node.node_id.to_string(),
            trust_domain: node.trust_domain.to_string(),
            workloads: node.workloads.iter().map(ToString::to_string).collect(),
            coordinators: node.coordinators.clone(),
        })?;
        context.output.say("next: warren up");
        Ok(Exit::Yes)
    })
}

fn already(node: &NodeIdentity, state: &Path) -> Failure {
    Failure::new(Exit::Conflict, format!("this host is already node {} of {}", node.node_id, node.trust_domain))
        .next("warren up runs it")
        .next(format!("to enrol anew: warren node revoke {}, then remove {}", node.node_id, state.display()))
}

/// A failure of the state directory, as a command reports it.
pub(super) fn unusable(error: StateError) -> Failure {
    warren_proto::reason::Refusal::from(error).into()
}

fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn read_token(file: Option<&Path>) -> Result<JoinToken, Failure> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join("warren-token"));
    let path = match (file, credential) {
        (Some(path), _) => path.to_owned(),
        (None, Some(path)) if path.exists() => path,
        (None, _) => {
            return Err(Failure::new(Exit::Usage, "no join token was given")
                .next("warren enrol --token-file FILE (or - for stdin)")
                .next("an administrator makes one with: warren token create --for <namespace>/<name>"));
        }
    };
    let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN_LENGTH));
    let limit = MAX_TOKEN_LENGTH as u64 + 2;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(&path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::new(Exit::Usage, format!("the join token cannot be read from {}", path.display())).cause(&error)
    })?;
    Ok(JoinToken::parse(&text)?)
}
