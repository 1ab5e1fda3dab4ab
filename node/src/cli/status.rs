//! `warren status`: how this node is doing, opening with how long the mesh survives without its coordinator.

use std::time::Duration;

use clap::ValueEnum;

use super::output::spoken;
use super::units::{amount, bits_per_second, bytes};
use super::{Context, Exit, Outcome, Present, Table, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Instance, Offload, Peer, Rates, Request, Status};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The first line says how long everything keeps working if the coordinator stays away: until the first certificate ends that this node depends on.

IN is what was let into this host, OUT what was sealed for the peer, per second over the last seconds. PATH MTU is the largest inner packet that the path to the peer takes. Drops stand under their reason: for the node below, for each peer in -o wide and -o json.

Examples:
  warren status
  warren status -o wide                    addresses, totals, drops by reason, moves, ages, instance ids
  warren top                               the same, live
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
        text.push_str(&self.instance_lines());
        text.push_str(&self.workload_api_lines());
        text.push_str(&self.traffic_line());
        text.push_str(&offload_lines(&self.tunnel.offloads));
        for note in &self.tunnel.notes {
            text.push_str(&format!("\nnote:      {note}"));
        }
        if let Some(table) = self.instance_table() {
            text.push_str(&format!("\n\n{table}"));
        }
        text.push_str("\n\n");
        text.push_str(&if self.peers.is_empty() {
            "no peers: no rule links this node to another".to_owned()
        } else {
            peer_table(&self.peers, wide).to_string()
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
    /// One instance is a line, as ever; several are a table below the lines.
    fn instance_lines(&self) -> String {
        let mut text = String::new();
        if let [instance] = self.instances.as_slice() {
            let addresses = listed(&instance.addresses);
            let certificate = validity(instance);
            text.push_str(&format!("\nworkload:  {}  {addresses}  certificate for {certificate}", instance.workload));
            if !instance.processes.is_empty() {
                text.push_str(&format!("  for {}", instance.processes.join(" or ")));
            }
        } else if !self.instances.is_empty() {
            text.push_str(&format!("\nworkloads: {} instances, below", self.instances.len()));
        }
        for missing in &self.missing_instances {
            let workload = missing.workload.as_deref().unwrap_or("the only identity granted");
            let why = missing.refusal.as_ref().map_or_else(|| "not asked for yet".to_owned(), ToString::to_string);
            text.push_str(&format!("\nnote:      no certificate for {workload}: {why}"));
        }
        text
    }

    fn instance_table(&self) -> Option<Table> {
        let mut table = Table::new(["WORKLOAD", "ADDRESSES", "CERTIFICATE FOR", "PROCESSES"]);
        for instance in &self.instances {
            let processes = match instance.processes.as_slice() {
                [] => "all others".to_owned(),
                ties => ties.join(" or "),
            };
            table.row([instance.workload.clone(), listed(&instance.addresses), validity(instance), processes]);
        }
        (self.instances.len() > 1).then_some(table)
    }

    fn workload_api_lines(&self) -> String {
        let Some(api) = &self.workload_api else { return String::new() };
        let mut text = format!("\nsvids:     {}  {} calls answered, {} refused", api.socket, api.served, api.refused);
        for svid in &api.svids {
            let state = match (&svid.validity, &svid.refusal) {
                (Some(span), _) => format!("for {}", spoken(Duration::from_secs(span.seconds_left))),
                (None, Some(refusal)) => format!("none: {refusal}"),
                (None, None) => "none yet".to_owned(),
            };
            text.push_str(&format!("\n           {}  {state}, watched by {}", svid.workload, svid.watched_by));
        }
        text
    }

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

impl Status {
    fn traffic_line(&self) -> String {
        let of_late = self.rates.map_or_else(String::new, |rates| {
            format!(
                "in {} ({} packets/s), out {} ({} packets/s) over {} s; ",
                bits_per_second(rates.bits_in),
                amount(rates.packets_in),
                bits_per_second(rates.bits_out),
                amount(rates.packets_out),
                rates.over_milliseconds.div_ceil(1000)
            )
        });
        let mut text = format!(
            "\ntraffic:   {of_late}since the start in {} ({} packets), out {} ({} packets); live flows: {}",
            bytes(self.traffic.bytes_in),
            amount(self.traffic.packets_in),
            bytes(self.traffic.bytes_out),
            amount(self.traffic.packets_out),
            self.flows
        );
        if self.flow_records_lost > 0 {
            text.push_str(&format!(
                "\nnote:      {} lines are missing in the flow log: they came faster than it takes them",
                self.flow_records_lost
            ));
        }
        text
    }
}

fn listed(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn validity(instance: &Instance) -> String {
    let left = spoken(Duration::from_secs(instance.certificate.seconds_left));
    let overdue = if instance.certificate.renewal_overdue { "  renewal overdue" } else { "" };
    format!("{left}{overdue}")
}

/// What is in use, and what is done in place of what is not.
fn offload_lines(offloads: &[Offload]) -> String {
    let mut text = String::new();
    if !offloads.is_empty() {
        let names: Vec<_> = offloads.iter().filter(|offload| offload.on).map(|offload| offload.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
        text.push_str(&format!("\noffloads:  {names}"));
    }
    for offload in offloads.iter().filter(|offload| !offload.detail.is_empty()) {
        text.push_str(&format!("\nnote:      offload {}: {}", offload.name, offload.detail));
        if !offload.on && !offload.fallback.is_empty() {
            text.push_str(&format!("; instead {}", offload.fallback));
        }
    }
    text
}

fn peer_table(peers: &[Peer], wide: bool) -> Table {
    let mut table = if wide {
        Table::new([
            "PEER",
            "SESSION",
            "SUITE",
            "ENDPOINT",
            "PATH MTU",
            "IN",
            "OUT",
            "DROPPED",
            "ADDRESSES",
            "TOTAL IN",
            "TOTAL OUT",
            "DROPPED FOR",
            "LAST MOVE",
            "AGE",
            "SILENT",
            "VALID UNTIL",
            "INSTANCE",
        ])
    } else {
        Table::new(["PEER", "SESSION", "SUITE", "ENDPOINT", "PATH MTU", "IN", "OUT", "DROPPED", "ADDRESSES"])
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let seconds = |value: Option<u64>| or_dash(value.map(|s| spoken(Duration::from_secs(s))));
    for peer in peers {
        let rate = |bits: fn(&Rates) -> u64| or_dash(peer.rates.as_ref().map(|rates| bits_per_second(bits(rates))));
        let addresses = peer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let mut cells = vec![
            peer.workload.clone(),
            peer.session.clone(),
            or_dash(peer.suite.clone()),
            or_dash(peer.endpoint.map(|endpoint| endpoint.to_string())),
            or_dash(peer.path_mtu.map(|mtu| mtu.to_string())),
            rate(|rates| rates.bits_in),
            rate(|rates| rates.bits_out),
            peer.drops.values().sum::<u64>().to_string(),
            addresses,
        ];
        if wide {
            let drops: Vec<_> = peer.drops.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
            cells.extend([
                bytes(peer.traffic.bytes_in),
                bytes(peer.traffic.bytes_out),
                or_dash((!drops.is_empty()).then(|| drops.join(", "))),
                or_dash(peer.roamed.as_ref().map(|roamed| {
                    format!("{} ago from {}", spoken(Duration::from_secs(roamed.seconds_ago)), roamed.from)
                })),
                seconds(peer.session_seconds),
                seconds(peer.silent_seconds),
                peer.valid_until.clone(),
                peer.instance.clone(),
            ]);
        }
        table.row(cells);
    }
    table
}
