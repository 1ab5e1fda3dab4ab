//! `warren enrol`: this host becomes a node of a mesh.

pub(super) mod evidence;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use warren_proto::UnixTime;

use super::{Context, Exit, Failure, Outcome, Present, config};
use crate::certificates::key_store::{KeyStore, NodeIdentity};
use crate::clock::{self, Clock};
use crate::control_client::enrol::{Evidence, enrol};
use crate::state_dir::{StateDir, StateError};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is read from a file, from stdin, from $WARREN_TOKEN_FILE, or from a systemd credential named warren-token; never from the command line, where every user of this host could read it. It carries the coordinator's addresses and the hash of the mesh's root, so that nothing else has to be typed and no other coordinator is believed.

The node's key is made here and does not leave this host. If the answer is lost, run the same command again: the token is not used up twice.

Without a join token, somebody else vouches for this host: a Kubernetes cluster or an OIDC issuer by a token, another certificate authority by a certificate and its key. The coordinator judges it by the attestor named, and a registration says what the host may hold. Such evidence does not say where the coordinator is nor by what it is known: the mesh's root must be given.

Examples:
  warren enrol --token-file web.token
  ssh admin warren token create --for shop/web-frontend | warren enrol --token-file -
  systemd-run -p LoadCredential=warren-token:/root/web.token warren enrol
  warren enrol --attestor cluster-a --evidence-file token --root root.pem --coordinator mesh.example:8443
  warren enrol --attestor spire --evidence-file svid.pem --evidence-key-file svid.key \\
      --root root.pem --coordinator mesh.example:8443")]
pub(super) struct Arguments {
    /// File that holds the join token; `-` reads stdin.
    #[arg(long, value_name = "FILE", env = "WARREN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    by_attestor: evidence::ByAttestor,
    /// Coordinator to ask instead of those in the token or the configuration, host:port; may be repeated.
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
    let (evidence, root_sha256, told) = match arguments.by_attestor.read()? {
        Some((evidence, root_sha256)) => (evidence, root_sha256, Vec::new()),
        None => {
            let token = evidence::join_token(arguments.token_file.as_deref())?;
            let (root_sha256, addresses) = (token.root_sha256, token.addresses.clone());
            (Evidence::JoinToken(token), root_sha256, addresses)
        }
    };
    let state = StateDir::open(&config.state_dir).map_err(unusable)?;
    let store = KeyStore::new(&state);
    if let Some(node) = store.node().map_err(unusable)? {
        return Err(already(&node, &config.state_dir));
    }
    let addresses = [arguments.coordinator, config.control_addresses, told]
        .into_iter()
        .find(|addresses| !addresses.is_empty())
        .ok_or_else(|| {
            Failure::new(Exit::Usage, "no coordinator was named")
                .next("--coordinator HOST:8443, or `control: { addresses: [...] }` in the configuration")
        })?;
    let host_name = arguments.host_name.unwrap_or_else(this_host);
    let key = store.pending_key(&evidence.enrols_by())?;
    let clock = Arc::new(Clock::new(clock::read, UnixTime(0)));
    super::block_on(async {
        let node = enrol(&evidence, root_sha256, &addresses, key, &host_name, clock).await?;
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
