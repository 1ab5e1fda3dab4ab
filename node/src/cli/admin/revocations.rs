//! `warren revocation list | create`.

use clap::Subcommand;
use hyper::Method;
use warren_proto::admin::{NewRevocation, Revocation, RevocationList, RevocationTarget};
use warren_proto::{InstanceId, NodeId, WorkloadName};

use super::changes::Cut;
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A revocation cuts tunnels, live flows and local sockets at every node that hears of it, and is told to those that return \
later. It is kept until the last certificate that it concerns has ended.

Examples:
  warren revocation list
  warren node revoke NODE                                    a node, by its host name
  warren revocation create --identity shop/web-frontend      its certificates until now; it may get new ones
  warren revocation create --instance 5f0c...                one running copy: warren workload show NAME
  warren revocation create --tunnel-key 9a1b...              one key, in whatever certificate
  warren revocation create --certificate KEYID:SERIAL        one certificate; both stand in the audit log
  warren revocation create --issuer KEYID --wait 30s         all that an issuing key signed: warren ca status")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Every revocation in force
    List,
    /// End trust before its time
    Create(Box<Create>),
}

#[derive(Debug, clap::Args)]
struct Create {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    cut: Cut,
}

/// What is revoked: exactly one.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// One certificate: its issuer's key identifier and its serial number, hexadecimal.
    #[arg(long, value_name = "KEYID:SERIAL", value_parser = certificate)]
    certificate: Option<(String, String)>,
    /// One tunnel key, hexadecimal.
    #[arg(long, value_name = "KEY")]
    tunnel_key: Option<String>,
    /// One running copy: it never gets a certificate again.
    #[arg(long, value_name = "ID")]
    instance: Option<InstanceId>,
    /// One node and all that runs on it: it must enrol anew.
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    /// Every certificate of an identity issued until now.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    identity: Option<WorkloadName>,
    /// Everything that an issuing key signed: its key identifier, hexadecimal.
    #[arg(long, value_name = "KEYID")]
    issuer: Option<String>,
}

impl Target {
    /// What it is, and what comes of it.
    fn take(self) -> Option<(RevocationTarget, &'static str)> {
        let certificate = self.certificate.map(|(issuer_key_id, serial)| {
            (RevocationTarget::Certificate { issuer_key_id, serial }, "what uses this certificate is cut off at once")
        });
        certificate
            .or(self.tunnel_key.map(|key| (RevocationTarget::TunnelKey(key), "what uses this key is cut off at once")))
            .or(self.instance.map(|id| {
                (RevocationTarget::Instance(id), "this instance is cut off at once and never gets a certificate again")
            }))
            .or(self.node.map(|id| (RevocationTarget::Node(id), "this node is cut off at once and must enrol anew")))
            .or(self.identity.map(|name| {
                (RevocationTarget::Identity(name), "every instance of this identity is cut off until it has a new certificate")
            }))
            .or(self.issuer.map(|key_id| {
                let fate = "everything under this issuer is cut off at once; nodes whose own certificates it signed must enrol anew";
                (RevocationTarget::Issuer(key_id), fate)
            }))
    }
}

fn certificate(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((issuer, serial)) if !issuer.is_empty() && !serial.is_empty() => {
            Ok((issuer.to_owned(), serial.to_owned()))
        }
        _ => Err("write the issuer's key identifier, a colon, and the serial number".to_owned()),
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List => {
                let items = client.list("/revocations", usize::MAX, |list: RevocationList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Create(create) => {
                let Create { target, cut } = *create;
                let (target, consequence) =
                    target.take().ok_or_else(|| Failure::new(Exit::Usage, "nothing is named to be revoked"))?;
                cut.confirm(context, consequence)?;
                let (terms, acknowledged) = cut.terms();
                let body = NewRevocation { target };
                let revoked: Revocation = client.change(Method::POST, "/revocations", Some(&body), &terms).await?;
                context.output.print(&revoked)?;
                return acknowledged.wait(&mut client, context, revoked.generation).await;
            }
        }
        Ok(Exit::Yes)
    })
}

impl Rows for Revocation {
    const LIST: &'static str = "RevocationList";
    const NONE: &'static str = "nothing is revoked";

    fn table(items: &[Self], _wide: bool) -> Table {
        let mut table = Table::new(["REVOKED", "WHAT", "KEPT UNTIL", "WHY"]);
        for item in items {
            table.row([&item.revoked_at.to_string(), &item.target, &item.expires_at.to_string(), &item.why]);
        }
        table
    }
}

impl Present for Revocation {
    const KIND: &'static str = "Revocation";

    fn text(&self, _wide: bool) -> String {
        let done = if self.id.is_empty() { "would revoke" } else { "revoked" };
        format!("{done} {}", self.target)
    }
}
