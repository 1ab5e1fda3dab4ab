//! `warren node list | show | set-workloads | revoke | forget | forget-instance`.

use clap::Subcommand;
use hyper::Method;
use warren_proto::admin::{
    Deleted, NewRevocation, Node, NodeLink, NodeList, NodeWorkloads, Revocation, RevocationTarget,
};
use warren_proto::{InstanceId, NodeId, WorkloadName};

use super::changes::{Change, Cut};
use super::connection::Connection;
use super::{Context, Exit, Failure, Items, Outcome, Present, Rows, Table, joined};
use crate::admin_client::AdminClient;
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
NODE is a node's id, the first four or more digits of it, or its host name where no other node has the same.

Examples:
  warren node list -o wide
  warren node show web-1
  warren node revoke 4f6a1c22 -m 'stolen laptop' --yes --wait 30s     exit 4: not everybody has it yet
  warren node forget 4f6a1c22
  warren node set-workloads web-1 shop/web-frontend shop/checkout
  warren node forget-instance 9b1d0c55e2f34a6788c0d1e2f3a4b5c6")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Every node, revoked ones too until they are forgotten
    List,
    /// One node: its link, what it has acknowledged, what runs on it
    Show {
        /// Id, its beginning, or host name.
        node: String,
    },
    /// Say which identities a node may hold, all of them. What runs under one taken away ends with its certificate
    SetWorkloads {
        /// Id, its beginning, or host name.
        node: String,
        /// Every identity that it may hold from now on, <namespace>/<name>.
        #[arg(value_name = "WORKLOAD", required_unless_present = "none")]
        workloads: Vec<WorkloadName>,
        /// None at all.
        #[arg(long, conflicts_with = "workloads")]
        none: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Cut a node off: its certificates end now, its tunnels and flows with them. It must enrol anew
    Revoke {
        /// Id, its beginning, or host name.
        node: String,
        #[command(flatten)]
        cut: Cut,
    },
    /// Take an instance that was revoked or has ended off the list: its addresses are given back
    ForgetInstance {
        /// Its whole id, as `warren workload list -o wide` shows it.
        instance: InstanceId,
        #[command(flatten)]
        change: Change,
    },
    /// Take a revoked or long gone node off the list
    Forget {
        /// Id, its beginning, or host name.
        node: String,
        #[command(flatten)]
        change: Change,
    },
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List => {
                let items = client.list("/nodes", usize::MAX, |list: NodeList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Show { node } => context.output.print(&find(&mut client, &node).await?)?,
            Verb::SetWorkloads { node, workloads, none: _, change } => {
                let node = find(&mut client, &node).await?;
                let terms = change.terms();
                let (path, body) = (format!("/nodes/{}/workloads", node.id), NodeWorkloads { workloads });
                let changed: Node = client.change(Method::PUT, &path, Some(&body), &terms).await?;
                context.output.print(&changed)?;
            }
            Verb::ForgetInstance { instance, change } => {
                let terms = change.terms();
                let path = format!("/instances/{instance}");
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &terms).await?;
                context.output.print(&gone)?;
            }
            Verb::Revoke { node, cut } => {
                let node = find(&mut client, &node).await?;
                let consequence = format!(
                    "node {} ({}) with {} instances is cut off at once and must enrol anew",
                    node.id,
                    crate::cli::output::printable(&node.host_name),
                    node.instances.len()
                );
                cut.confirm(context, &consequence)?;
                let (terms, acknowledged) = cut.terms();
                let body = NewRevocation { target: RevocationTarget::Node(node.id) };
                let revoked: Revocation = client.change(Method::POST, "/revocations", Some(&body), &terms).await?;
                context.output.print(&revoked)?;
                return acknowledged.wait(&mut client, context, revoked.generation).await;
            }
            Verb::Forget { node, change } => {
                let node = find(&mut client, &node).await?;
                let terms = change.terms();
                let path = format!("/nodes/{}", node.id);
                let gone: Deleted = client.change(Method::DELETE, &path, None::<&()>, &terms).await?;
                context.output.print(&gone)?;
            }
        }
        Ok(Exit::Yes)
    })
}

/// The one node that is meant.
async fn find(client: &mut AdminClient, wanted: &str) -> Result<Node, Failure> {
    if let Ok(id) = wanted.parse::<NodeId>() {
        return Ok(client.get(&format!("/nodes/{id}")).await?);
    }
    let nodes = client.list("/nodes", usize::MAX, |list: NodeList| list.page).await?;
    let means =
        |node: &Node| node.host_name == wanted || (wanted.len() >= 4 && node.id.to_string().starts_with(wanted));
    let (mut found, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(means);
    match (found.pop(), found.as_slice()) {
        (Some(node), []) => Ok(node),
        (Some(_), _) => Err(Failure::new(Exit::Usage, format!("more than one node is meant by {wanted:?}"))
            .next("give the whole id: warren node list -o wide")),
        (None, _) => {
            let near = crate::config::nearest(wanted, others.iter().map(|node| node.host_name.as_str()));
            let near = near.map(|name| format!("did you mean {name}?")).unwrap_or_default();
            Err(Failure::new(Exit::NotFound, format!("there is no node {wanted:?}"))
                .next(near)
                .next("warren node list"))
        }
    }
}

fn state(node: &Node) -> String {
    match (&node.revoked_at, &node.link) {
        (Some(_), _) => "revoked".to_owned(),
        _ if node.cloned.is_some() => "CLONED".to_owned(),
        (None, None) => "away".to_owned(),
        (None, Some(link)) if !link.refused.is_empty() => "refusing".to_owned(),
        (None, Some(link)) if link.acknowledged < link.told => "updating".to_owned(),
        (None, Some(_)) => "connected".to_owned(),
    }
}

fn addresses(node: &Node) -> Vec<String> {
    node.instances.iter().flat_map(|instance| instance.addresses.clone()).collect()
}

impl Rows for Node {
    const LIST: &'static str = "NodeList";
    const NONE: &'static str = "no nodes; make a join token with: warren token create --for <namespace>/<name>";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new([
                "ID",
                "HOST",
                "STATE",
                "WORKLOADS",
                "ADDRESSES",
                "REMOTE",
                "SOFTWARE",
                "CERTIFICATE UNTIL",
            ]);
            for node in items {
                let link = node.link.as_ref();
                table.row([
                    node.id.to_string(),
                    node.host_name.clone(),
                    state(node),
                    joined(&node.workloads),
                    joined(&addresses(node)),
                    link.map_or_else(|| "-".to_owned(), |link| link.remote.clone()),
                    link.map_or_else(|| "-".to_owned(), |link| link.software.clone()),
                    node.certificate_expires_at.to_string(),
                ]);
            }
            return table;
        }
        let mut table = Table::new(["ID", "HOST", "STATE", "WORKLOADS", "ENROLLED"]);
        for node in items {
            let workloads = joined(&node.workloads);
            table.row([node.id.short(), node.host_name.clone(), state(node), workloads, node.enrolled_at.to_string()]);
        }
        table
    }
}

impl Present for Node {
    const KIND: &'static str = "Node";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["NODE", &self.id.to_string()]);
        table.row(["host", &self.host_name]);
        table.row(["state", &state(self)]);
        table.row(["may hold", &joined(&self.workloads)]);
        table.row([
            "enrolled",
            &match &self.attestation {
                None => format!("{} from {} with token {}", self.enrolled_at, self.enrolled_from, self.join_token),
                Some(by) => format!("{} from {} by attestor {}", self.enrolled_at, self.enrolled_from, by.attestor),
            },
        ]);
        if let Some(by) = &self.attestation {
            table.row(["vouched for", &format!("as {}, registration {}", by.subject, by.registration)]);
        }
        table.row(["certificate until", &self.certificate_expires_at.to_string()]);
        if let Some(revoked) = self.revoked_at {
            table.row(["revoked", &revoked.to_string()]);
        }
        if let Some(cloned) = &self.cloned {
            let what = format!("two processes use its key, from {}; seen {}", cloned.remotes.join(" and "), cloned.at);
            table.row(["CLONED", &what]);
        }
        if let Some(link) = &self.link {
            show_link(&mut table, link);
        }
        for instance in &self.instances {
            let what = format!("{} until {}", joined(&instance.addresses), instance.certificate_expires_at);
            table.row([&format!("runs {}", instance.workload), &what]);
        }
        table.to_string()
    }
}

fn show_link(table: &mut Table, link: &NodeLink) {
    table.row(["connected", &format!("since {} from {}, {}", link.since, link.remote, link.software)]);
    let (told, acknowledged) = (link.told, link.acknowledged);
    table.row([
        "acknowledged",
        &format!("{}.{} of {}.{}", acknowledged.epoch, acknowledged.revision, told.epoch, told.revision),
    ]);
    table.row(["clock", &format!("{} ms ahead of the coordinator's", link.clock_skew_ms)]);
    for refused in &link.refused {
        table.row(["refused", refused]);
    }
}
