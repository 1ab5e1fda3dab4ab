//! `warren workload list | show` and `warren service list | show`.

use clap::Subcommand;
use warren_proto::WorkloadName;
use warren_proto::admin::{Service, ServiceList, ServicePort, Workload, WorkloadList};

use super::connection::Connection;
use super::{Context, Exit, Items, Outcome, Present, Rows, Table, joined};
use crate::cli::block_on;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A workload is an identity, <namespace>/<name>. An instance is one running copy of it on one node.

Examples:
  warren workload list
  warren workload show bank/banking-api -o json | jq '.instances[].addresses'")]
pub(in crate::cli) struct Workloads {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Services are declared by policy: to add or change one, edit its file and `warren policy apply`.

Examples:
  warren service list
  warren service show bank/banking-api            its ports, who may call it, where it runs")]
pub(in crate::cli) struct Services {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All of them
    List,
    /// One of them
    Show {
        /// <namespace>/<name>
        name: WorkloadName,
    },
}

pub(super) fn run_workloads(arguments: Workloads, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List => {
                let items = client.list("/workloads", usize::MAX, |list: WorkloadList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Show { name } => {
                let workload: Workload = client.get(&format!("/workloads/{name}")).await?;
                context.output.print(&workload)?;
            }
        }
        Ok(Exit::Yes)
    })
}

pub(super) fn run_services(arguments: Services, context: &Context) -> Outcome {
    block_on(async {
        let mut client = arguments.connection.open().await?;
        match arguments.verb {
            Verb::List => {
                let items = client.list("/services", usize::MAX, |list: ServiceList| list.page).await?;
                context.output.print(&Items { items })?;
            }
            Verb::Show { name } => {
                let service: Service = client.get(&format!("/services/{name}")).await?;
                context.output.print(&service)?;
            }
        }
        Ok(Exit::Yes)
    })
}

impl Rows for Workload {
    const LIST: &'static str = "WorkloadList";
    const NONE: &'static str = "no workloads; policy declares them and join tokens name them";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new(["WORKLOAD", "INSTANCES", "NODES", "DECLARED", "ADDRESSES", "SPIFFE ID"]);
            for item in items {
                let addresses: Vec<_> = item.instances.iter().flat_map(|instance| &instance.addresses).collect();
                table.row([
                    item.name.to_string(),
                    item.instances.len().to_string(),
                    item.nodes.to_string(),
                    yes(item.declared),
                    joined(&addresses),
                    item.spiffe_id.clone(),
                ]);
            }
            return table;
        }
        let mut table = Table::new(["WORKLOAD", "INSTANCES", "NODES", "DECLARED"]);
        for item in items {
            let (instances, nodes) = (item.instances.len().to_string(), item.nodes.to_string());
            table.row([item.name.to_string(), instances, nodes, yes(item.declared)]);
        }
        table
    }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

impl Present for Workload {
    const KIND: &'static str = "Workload";

    fn text(&self, _wide: bool) -> String {
        let mut text = format!(
            "{}\ndeclared by policy: {}\nnodes that may hold it: {}",
            self.spiffe_id,
            yes(self.declared),
            self.nodes
        );
        if self.instances.is_empty() {
            return text + "\nno instance runs";
        }
        let mut table = Table::new(["INSTANCE", "NODE", "ADDRESSES", "CERTIFICATE UNTIL", "REVOKED"]);
        for instance in &self.instances {
            table.row([
                instance.id.short(),
                instance.node.short(),
                joined(&instance.addresses),
                instance.certificate_expires_at.to_string(),
                instance.revoked_at.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            ]);
        }
        text.push_str(&format!("\n\n{table}"));
        text
    }
}

fn port(port: &ServicePort) -> String {
    format!("{}={}/{}", port.name, port.ports, port.protocols.join("+"))
}

impl Rows for Service {
    const LIST: &'static str = "ServiceList";
    const NONE: &'static str = "policy declares no service; begin with: warren policy check DIR";

    fn table(items: &[Self], wide: bool) -> Table {
        if wide {
            let mut table = Table::new(["SERVICE", "PORTS", "CALLERS", "ADDRESSES", "DECLARED AT"]);
            for item in items {
                let ports: Vec<_> = item.ports.iter().map(port).collect();
                let place = format!("{}:{}", item.file, item.line);
                table.row([
                    item.name.to_string(),
                    joined(&ports),
                    joined(&item.callers),
                    joined(&item.addresses),
                    place,
                ]);
            }
            return table;
        }
        let mut table = Table::new(["SERVICE", "PORTS", "CALLERS"]);
        for item in items {
            let ports: Vec<_> = item.ports.iter().map(port).collect();
            table.row([item.name.to_string(), joined(&ports), joined(&item.callers)]);
        }
        table
    }
}

impl Present for Service {
    const KIND: &'static str = "Service";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["SERVICE", &self.name.to_string()]);
        for declared in &self.ports {
            table.row(["port", &port(declared)]);
        }
        table.row(["callers", &joined(&self.callers)]);
        table.row(["addresses", &joined(&self.addresses)]);
        table.row(["declared at", &format!("{}:{}", self.file, self.line)]);
        table.to_string()
    }
}
