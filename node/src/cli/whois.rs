//! `warren whois`: who has an overlay address or is a process of this host, and why this node believes it.

use super::{Context, Exit, Outcome, Present, Table, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Holders, Request};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Answers for this node and for the peers that some rule links it to; a node is told of nobody else. A process, or whoever has a \
port of this network namespace, is told its user, its cgroup and which entry of workloads it fits. Exit code 6: nobody.

Examples:
  warren whois 4711                        a process; also pid:4711
  warren whois :8080                       who listens there, or talks from there; also port:8080
  warren whois fd5a:1b2c:3d4e::7
  warren whois bank/banking-api
  ss -tn | awk '{print $5}' | grep fd5a | xargs -n1 warren whois")]
pub(super) struct Arguments {
    /// An overlay address, <namespace>/<name>, SPIFFE ID, instance id, process number or :PORT.
    #[arg(value_name = "TARGET")]
    target: String,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        let holders: Holders = ask_once(&socket, &Request::Whois { target: arguments.target }).await?;
        context.output.print(&holders)?;
        Ok(Exit::Yes)
    })
}

impl Present for Holders {
    const KIND: &'static str = "HolderList";

    fn text(&self, wide: bool) -> String {
        if wide {
            let mut table = Table::new(["WORKLOAD", "ADDRESSES", "INSTANCE", "NODE", "VALID UNTIL", "LOCAL"]);
            for item in &self.items {
                let addresses = item.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let local = if item.local { "yes" } else { "no" };
                table.row([&item.workload, &addresses, &item.instance, &item.node, &item.valid_until, local]);
            }
            return table.to_string();
        }
        let shown = self.items.iter().map(|item| {
            if item.instance.is_empty() {
                let until = if item.valid_until.is_empty() { "nobody has asked for it" } else { &item.valid_until };
                return format!(
                    "{}  (this host)\n  SVID until: {until}\n  because:    {}",
                    item.identity, item.because
                );
            }
            let place = if item.local { "this node" } else { "a peer" };
            let addresses = item.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            format!(
                "{}  ({place})\n  addresses: {addresses}\n  instance:  {} on node {}\n  until:     {}\n  because:   {}",
                item.identity, item.instance, item.node, item.valid_until, item.because
            )
        });
        shown.collect::<Vec<_>>().join("\n")
    }
}
