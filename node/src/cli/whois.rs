//! `warren whois`: who has an overlay address or is a process of this host, and why this node believes it.

use super::{Context, Exit, Failure, Outcome, Present, Table, config};
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

/// What no answer of the daemon's could make right: a process or a port that no kernel has.
fn check(target: &str) -> Result<(), Failure> {
    let wrong = |what: &str| {
        let text = format!("{target:?} is {what}");
        Err(Failure::new(Exit::Usage, text).next("warren whois --help shows every form"))
    };
    if target.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if let Some(port) = target.strip_prefix("port:").or_else(|| target.strip_prefix(':')) {
        return if port.parse::<u16>().is_ok_and(|port| port > 0) { Ok(()) } else { wrong("no port: 1 to 65535") };
    }
    let number = target.strip_prefix("pid:");
    let digits = |text: &str| text.len() < 32 && text.bytes().all(|byte| byte.is_ascii_digit());
    match number.or_else(|| digits(target).then_some(target)) {
        Some(number) if number.parse::<i32>().is_ok_and(|number| number > 0) => Ok(()),
        Some(_) => wrong("no process: they are numbered from 1"),
        None => Ok(()),
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    check(&arguments.target)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_or_port_that_there_cannot_be_is_refused_before_anybody_is_asked() {
        for wrong in
            [":99999", ":0", ":", ":http", "port:", "port:-1", "pid:0", "pid:-1", "pid:", "0", "99999999999", ""]
        {
            assert_eq!(check(wrong).expect_err(wrong).exit, Exit::Usage, "{wrong:?}");
        }
        let id = "0".repeat(32);
        for right in ["4711", "pid:4711", ":8080", "port:8080", "::1", "fd5a::7", "10.77.0.1", "bank/api", &id] {
            check(right).expect(right);
        }
    }
}
