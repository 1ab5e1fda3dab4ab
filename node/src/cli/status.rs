//! `warren status`: how this node is doing, opening with how long the mesh survives without its coordinator.

use std::time::Duration;

use clap::ValueEnum;

use super::output::spoken;
use super::{Context, Exit, Outcome, Present, Table, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Request, Status};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The first line says how long everything keeps working if the coordinator stays away: until the first certificate ends that this node depends on.

Examples:
  warren status
  warren status -o wide                    instance ids, cipher suites, ages of sessions
  warren status --check ready; echo $?     0 ready, 4 not: for probes
  warren status -o json | jq '.instances[].addresses'")]
pub(super) struct Arguments {
    /// Print nothing but answer by the exit code: 0 yes, 4 no.
    #[arg(long, value_enum, value_name = "QUESTION")]
    check: Option<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// The daemon answers.
    Live,
    /// Packets are let through as policy says.
    Ready,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        let status: Status = ask_once(&socket, &Request::Status).await?;
        match arguments.check {
            Some(Check::Ready) if !status.ready => {
                context.output.say(format!("not ready: waiting for {}", status.waiting_for.join(" and ")));
                return Ok(Exit::NotReady);
            }
            Some(_) => {}
            None => context.output.print(&status)?,
        }
        Ok(Exit::Yes)
    })
}

impl Present for Status {
    const KIND: &'static str = "NodeStatus";

    fn text(&self, wide: bool) -> String {
        let mut text = self.opening();
        let list = |items: &[std::net::IpAddr]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        for instance in &self.instances {
            text.push_str(&format!(
                "\nworkload:  {}  {}  certificate for {}",
                instance.workload,
                list(&instance.addresses),
                spoken(Duration::from_secs(instance.certificate.seconds_left))
            ));
            if instance.certificate.renewal_overdue {
                text.push_str("  renewal overdue");
            }
        }
        if !self.tunnel.offloads.is_empty() {
            let in_use = self.tunnel.offloads.iter().filter(|offload| offload.on);
            let names: Vec<_> = in_use.map(|offload| offload.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
            text.push_str(&format!("\noffloads:  {names}"));
        }
        for offload in self.tunnel.offloads.iter().filter(|offload| !offload.detail.is_empty()) {
            text.push_str(&format!("\nnote:      offload {}: {}", offload.name, offload.detail));
        }
        for note in &self.tunnel.notes {
            text.push_str(&format!("\nnote:      {note}"));
        }
        text.push_str("\n\n");
        let mut peers = if wide {
            Table::new([
                "PEER",
                "ADDRESSES",
                "SESSION",
                "ENDPOINT",
                "SUITE",
                "AGE",
                "SILENT",
                "VALID UNTIL",
                "INSTANCE",
            ])
        } else {
            Table::new(["PEER", "ADDRESSES", "SESSION", "ENDPOINT"])
        };
        let seconds = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |s| spoken(Duration::from_secs(s)));
        for peer in &self.peers {
            let endpoint = peer.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string());
            let mut cells = vec![peer.workload.clone(), list(&peer.addresses), peer.session.clone(), endpoint];
            if wide {
                cells.extend([
                    peer.suite.clone().unwrap_or_else(|| "-".to_owned()),
                    seconds(peer.session_seconds),
                    seconds(peer.silent_seconds),
                    peer.valid_until.clone(),
                    peer.instance.clone(),
                ]);
            }
            peers.row(cells);
        }
        text.push_str(&if self.peers.is_empty() {
            "no peers: no rule links this node to another".to_owned()
        } else {
            peers.to_string()
        });
        if !self.refused.is_empty() {
            let mut table = Table::new(["REFUSED INSTANCE", "REASON", "DETAIL"]);
            for refused in &self.refused {
                table.row([&refused.instance, refused.reason.name(), &refused.detail]);
            }
            text.push_str(&format!("\n\n{table}"));
        }
        if !self.drops.is_empty() {
            let mut table = Table::new(["DROPPED FOR", "PACKETS", "MEANING"]);
            let mut drops: Vec<_> = self.drops.iter().collect();
            drops.sort_by_key(|(_, packets)| std::cmp::Reverse(**packets));
            for (reason, packets) in drops {
                table.row([reason.name().to_owned(), packets.to_string(), reason.text().to_owned()]);
            }
            text.push_str(&format!("\n\n{table}"));
        }
        if wide && !self.unknown_keys.is_empty() {
            let mut table = Table::new(["UNKNOWN KEY (SHA-256)", "FROM", "COUNT"]);
            for key in &self.unknown_keys {
                table.row([key.key_hash.clone(), key.from.to_string(), key.count.to_string()]);
            }
            text.push_str(&format!("\n\n{table}"));
        }
        text
    }
}

impl Status {
    fn opening(&self) -> String {
        let mut text = match &self.survives {
            Some(survival) => format!(
                "without the coordinator this node works for {} (until {})",
                spoken(Duration::from_secs(survival.seconds)),
                survival.until
            ),
            None => "without the coordinator this node cannot work yet".to_owned(),
        };
        let state = if self.ready {
            "ready".to_owned()
        } else {
            format!("not ready: waiting for {}", self.waiting_for.join(" and "))
        };
        text.push_str(&format!("\nnode:      {}  {}  {state}", self.node, self.trust_domain));
        let control = match (&self.control.coordinator, &self.control.cause) {
            (Some(coordinator), _) => format!("up to {coordinator} since {}", self.control.since),
            (None, Some(cause)) => format!("down since {}: {cause}", self.control.since),
            (None, None) => "connecting".to_owned(),
        };
        text.push_str(&format!("\ncontrol:   {control}"));
        if let Some(mesh) = &self.mesh {
            let stale = if mesh.stale { "  STALE: no new peer is admitted" } else { "" };
            text.push_str(&format!(
                "\nmesh:      revision {}.{}, policy {}, heard {} ago{stale}",
                mesh.epoch,
                mesh.revision,
                mesh.policy_revision,
                spoken(Duration::from_secs(mesh.age_seconds))
            ));
        }
        text
    }
}
