//! `warren cert show`: this node's certificates, read from its state directory, so that it works with the daemon down.

use std::net::IpAddr;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use warren_proto::certificate::{Leaf, NodeCertificate, TunnelCertificate};
use warren_proto::reason::Refusal;

use super::enrol::unusable;
use super::output::spoken;
use super::{Context, Exit, Failure, Outcome, Present, Table, config};
use crate::certificates::key_store::KeyStore;
use crate::certificates::rotator::Validity;
use crate::clock;
use crate::state_dir::StateDir;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Identity, addresses, validity and serial of each certificate; no private key is shown
    #[command(after_help = "\
Exit code 3: a certificate has ended or its renewal is overdue.

Examples:
  warren cert show
  warren cert show -o json | jq -r '.items[] | [.kind,.notAfter] | @tsv'")]
    Show,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    items: Vec<Certificate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    kind: &'static str,
    identity: String,
    addresses: Vec<IpAddr>,
    serial: String,
    issuer_key_id: String,
    not_before: String,
    not_after: String,
    seconds_left: u64,
    state: &'static str,
    tunnel_key: Option<String>,
}

impl Present for Shown {
    const KIND: &'static str = "CertificateList";

    fn text(&self, wide: bool) -> String {
        let mut table = if wide {
            Table::new([
                "KIND",
                "IDENTITY",
                "ADDRESSES",
                "STATE",
                "LEFT",
                "NOT AFTER",
                "SERIAL",
                "ISSUER KEY",
                "TUNNEL KEY",
            ])
        } else {
            Table::new(["KIND", "IDENTITY", "ADDRESSES", "STATE", "LEFT"])
        };
        for item in &self.items {
            let addresses = item.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let left = spoken(Duration::from_secs(item.seconds_left));
            let mut cells = vec![item.kind.to_owned(), item.identity.clone(), addresses, item.state.to_owned(), left];
            if wide {
                let tunnel_key = item.tunnel_key.clone().unwrap_or_else(|| "-".to_owned());
                cells.extend([item.not_after.clone(), item.serial.clone(), item.issuer_key_id.clone(), tunnel_key]);
            }
            table.row(cells);
        }
        table.to_string()
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    match arguments.verb {
        Verb::Show => show(context),
    }
}

fn show(context: &Context) -> Outcome {
    let config = config::load(context)?.config;
    let state = StateDir::open_to_look(&config.state_dir).map_err(unusable)?;
    let store = KeyStore::new(&state);
    let Some(node) = store.node().map_err(unusable)? else {
        return Err(Failure::new(Exit::NotFound, "this host is not enrolled").next("warren enrol --token-file FILE"));
    };
    let mut items = vec![node_certificate(node.chain.0.first().map(Vec::as_slice).unwrap_or_default())?];
    let mut bad = items.iter().any(|item| item.state != "ok");
    for (_, instance) in store.instances().map_err(unusable)? {
        for (age, identity) in instance.identities.iter().enumerate() {
            let item = tunnel_certificate(identity.chain.0.first().map(Vec::as_slice).unwrap_or_default())?;
            // The certificate before the newest is meant to run out.
            bad |= age == 0 && item.state != "ok";
            items.push(item);
        }
    }
    context.output.print(&Shown { items })?;
    Ok(if bad { Exit::No } else { Exit::Yes })
}

fn node_certificate(der: &[u8]) -> Result<Certificate, Refusal> {
    let certificate = NodeCertificate::parse(der)?;
    Ok(describe("node", certificate.leaf(), Vec::new(), None))
}

fn tunnel_certificate(der: &[u8]) -> Result<Certificate, Refusal> {
    let certificate = TunnelCertificate::parse(der)?;
    let addresses = certificate.addresses().iter().collect();
    Ok(describe("tunnel", certificate.leaf(), addresses, Some(hex::encode(certificate.binding().tunnel_key))))
}

fn describe(kind: &'static str, leaf: &Leaf, addresses: Vec<IpAddr>, tunnel_key: Option<String>) -> Certificate {
    let now = clock::read().wall;
    let validity = Validity { not_before: leaf.not_before(), not_after: leaf.not_after() };
    Certificate {
        kind,
        identity: leaf.identity().to_string(),
        addresses,
        serial: hex::encode(leaf.serial().as_bytes()),
        issuer_key_id: hex::encode(leaf.issuer_key_id().as_bytes()),
        not_before: leaf.not_before().to_string(),
        not_after: leaf.not_after().to_string(),
        seconds_left: now.until(leaf.not_after()).as_secs(),
        state: if leaf.not_after() <= now {
            "ended"
        } else if validity.is_overdue(now) {
            "overdue"
        } else {
            "ok"
        },
        tunnel_key,
    }
}
