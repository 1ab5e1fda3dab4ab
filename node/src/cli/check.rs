//! `warren check`: can this host run a node, and is what runs in order? Each line has a stable id, a state, what was
//! found, and the next step.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use super::output::spoken;
use super::{Context, Exit, Outcome, Present, Table, config};
use crate::certificates::key_store::{KeyStore, NodeIdentity};
use crate::certificates::rotator::Validity;
use crate::config::Config;
use crate::control_client::issue::node_validity;
use crate::local_api::client::ask_once;
use crate::local_api::types::{Request, Status};
use crate::state_dir::{StateDir, StateError};
use crate::{clock, snapshot};

/// Below this much free space the next snapshot may not fit.
const FREE_SPACE: u64 = 256 * 1024 * 1024;
/// A clock this far from the coordinator's fails certificates at their edges.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 3: something failed, or with --fail-on warn something is doubtful.

Examples:
  warren check --pre                       before enrolment: kernel, privileges, ports
  warren check                             everything
  warren check clock certificates          these groups only
  warren check -o json | jq '.items[] | select(.state!=\"ok\")'")]
pub(super) struct Arguments {
    /// Only these groups.
    #[arg(value_enum, value_name = "GROUP")]
    groups: Vec<Group>,
    /// Only what can be known before this host is enrolled.
    #[arg(long)]
    pre: bool,
    /// What counts as a problem.
    #[arg(long, value_enum, value_name = "STATE", default_value_t = FailOn::Fail)]
    fail_on: FailOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Failures only.
    Fail,
    /// Warnings too.
    Warn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Group {
    Kernel,
    Privileges,
    Ports,
    State,
    Clock,
    Certificates,
    Control,
    Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    group: Group,
    id: &'static str,
    state: State,
    found: String,
    next: String,
}

#[derive(Serialize)]
struct Checked {
    items: Vec<Item>,
}

impl Present for Checked {
    const KIND: &'static str = "CheckList";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["STATE", "CHECK", "FOUND"]);
        for item in &self.items {
            let state = match item.state {
                State::Ok => "ok",
                State::Warn => "warn",
                State::Fail => "fail",
            };
            let next = if item.next.is_empty() { String::new() } else { format!("; next: {}", item.next) };
            table.row([state, item.id, &format!("{}{next}", item.found)]);
        }
        table.to_string()
    }
}

impl Item {
    fn ok(group: Group, id: &'static str, found: impl Into<String>) -> Self {
        Self { group, id, state: State::Ok, found: found.into(), next: String::new() }
    }

    fn bad(group: Group, id: &'static str, state: State, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { group, id, state, found: found.into(), next: next.into() }
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let config = config::load(context)?.config;
    super::block_on(async {
        let status = ask_once::<Status>(&config.socket, &Request::Status).await.ok();
        let mut items = vec![tun(), nftables(), ipv6(), privileges(), port(&config, status.as_ref())];
        if !arguments.pre {
            items.extend(enrolled(&config, status.as_ref()).await);
        }
        items.retain(|item| arguments.groups.is_empty() || arguments.groups.contains(&item.group));
        let problem = |item: &Item| match item.state {
            State::Fail => true,
            State::Warn => arguments.fail_on == FailOn::Warn,
            State::Ok => false,
        };
        let bad = items.iter().any(problem);
        context.output.print(&Checked { items })?;
        Ok(if bad { Exit::No } else { Exit::Yes })
    })
}

fn tun() -> Item {
    let path = "/dev/net/tun";
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Item::ok(Group::Kernel, "kernel.tun", format!("{path} opens")),
        Err(error) => Item::bad(
            Group::Kernel,
            "kernel.tun",
            State::Fail,
            format!("{path}: {error}"),
            "modprobe tun; in a container pass --device /dev/net/tun",
        ),
    }
}

fn nftables() -> Item {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
    match socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER)) {
        Ok(_) => Item::ok(Group::Kernel, "kernel.nftables", "the kernel speaks netfilter's netlink"),
        Err(errno) => Item::bad(
            Group::Kernel,
            "kernel.nftables",
            State::Fail,
            format!("no netfilter netlink socket: {}", std::io::Error::from(errno)),
            "modprobe nf_tables; the guard against overlay traffic beside the tunnel needs it",
        ),
    }
}

fn ipv6() -> Item {
    let read = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    match read.as_deref().map(str::trim) {
        Ok("0") => Item::ok(Group::Kernel, "kernel.ipv6", "IPv6 is on"),
        Ok(_) => Item::bad(
            Group::Kernel,
            "kernel.ipv6",
            State::Warn,
            "IPv6 is off on this host: only IPv4 overlay addresses work",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        Err(_) => Item::bad(
            Group::Kernel,
            "kernel.ipv6",
            State::Warn,
            "this kernel has no IPv6: only IPv4 overlay addresses work",
            "",
        ),
    }
}

fn privileges() -> Item {
    let id = "privileges.net-admin";
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(CapabilitySet::NET_ADMIN) => {
            Item::ok(Group::Privileges, id, "CAP_NET_ADMIN is held")
        }
        Ok(_) => Item::bad(
            Group::Privileges,
            id,
            State::Fail,
            "CAP_NET_ADMIN is not held by this user",
            "run as root, or as the systemd service, which has just that capability",
        ),
        Err(errno) => Item::bad(
            Group::Privileges,
            id,
            State::Warn,
            format!("capabilities cannot be read: {}", std::io::Error::from(errno)),
            "",
        ),
    }
}

fn port(config: &Config, status: Option<&Status>) -> Item {
    let id = "ports.tunnel";
    if let Some(status) = status {
        return Item::ok(Group::Ports, id, format!("UDP {} is held by the running daemon", status.tunnel.port));
    }
    match UdpSocket::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), config.tunnel.port)) {
        Ok(_) => Item::ok(Group::Ports, id, format!("UDP {} is free", config.tunnel.port)),
        Err(error) => Item::bad(
            Group::Ports,
            id,
            State::Fail,
            format!("UDP {}: {error}", config.tunnel.port),
            format!("ss -ulpn 'sport = :{}' says who holds it; or set tunnel.port", config.tunnel.port),
        ),
    }
}

/// What needs a state directory or a daemon.
async fn enrolled(config: &Config, status: Option<&Status>) -> Vec<Item> {
    let mut items = vec![disk(&config.state_dir)];
    let state = match StateDir::open_to_look(&config.state_dir) {
        Ok(state) => state,
        Err(error) => {
            items.push(damaged(&error));
            return items;
        }
    };
    let node = match KeyStore::new(&state).node() {
        Ok(Some(node)) => {
            let found = format!("node {} of {}", node.node_id, node.trust_domain);
            items.push(Item::ok(Group::State, "state.enrolled", found));
            node
        }
        Ok(None) => {
            items.push(Item::bad(
                Group::State,
                "state.enrolled",
                State::Fail,
                "this host is not enrolled",
                "warren enrol --token-file FILE",
            ));
            return items;
        }
        Err(error) => {
            items.push(damaged(&error));
            return items;
        }
    };
    items.push(clock_above_floor(&state));
    items.push(node_certificate(&node));
    match status {
        None => items.push(Item::bad(
            Group::Control,
            "control.daemon",
            State::Warn,
            "no daemon runs on this host",
            "warren up (or: systemctl start warren)",
        )),
        Some(status) => items.extend(running(status)),
    }
    if status.is_none_or(|status| !status.control.up) {
        items.extend(coordinators(config, &node).await);
    }
    items
}

fn disk(path: &Path) -> Item {
    let id = "state.disk";
    match rustix::fs::statvfs(path) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let found = format!("{} MiB free at {}", free / (1024 * 1024), path.display());
            if free < FREE_SPACE {
                return Item::bad(Group::State, id, State::Warn, found, format!("df -h {}", path.display()));
            }
            Item::ok(Group::State, id, found)
        }
        Err(errno) => Item::bad(
            Group::State,
            id,
            State::Fail,
            format!("{}: {}", path.display(), std::io::Error::from(errno)),
            "warren enrol makes the directory",
        ),
    }
}

fn damaged(error: &StateError) -> Item {
    Item::bad(Group::State, "state.directory", State::Fail, error.to_string(), error.hint())
}

fn clock_above_floor(state: &StateDir) -> Item {
    let id = "clock.floor";
    let wall = clock::read().wall;
    match snapshot::read_floor(state) {
        Ok(floor) if wall.plus(CLOCK_TOLERANCE) < floor.time => Item::bad(
            Group::Clock,
            id,
            State::Fail,
            format!("the clock shows {wall}, and {} has been verified already", floor.time),
            "set the clock: timedatectl set-ntp true",
        ),
        Ok(_) => Item::ok(Group::Clock, id, format!("{wall} is not behind anything verified before")),
        Err(error) => damaged(&error),
    }
}

fn node_certificate(node: &NodeIdentity) -> Item {
    let id = "certificates.node";
    let now = clock::read().wall;
    match node_validity(&node.chain) {
        Ok((not_before, not_after)) => judged(Group::Certificates, id, Validity { not_before, not_after }, now),
        Err(refusal) => Item::bad(Group::Certificates, id, State::Fail, refusal.to_string(), refusal.hint),
    }
}

fn judged(group: Group, id: &'static str, validity: Validity, now: warren_proto::UnixTime) -> Item {
    if validity.not_after <= now {
        let next = "start the daemon: within 7 days an ended certificate may still be renewed; else enrol again";
        return Item::bad(group, id, State::Fail, format!("ended at {}", validity.not_after), next);
    }
    let left = spoken(now.until(validity.not_after));
    if validity.is_overdue(now) {
        let next = "renewal does not work: warren status says why";
        return Item::bad(group, id, State::Warn, format!("ends in {left}; renewal is overdue"), next);
    }
    Item::ok(group, id, format!("good for {left}"))
}

fn running(status: &Status) -> Vec<Item> {
    let mut items = Vec::new();
    if status.instances.is_empty() {
        items.push(Item::bad(
            Group::Certificates,
            "certificates.tunnel",
            State::Fail,
            "there is no tunnel certificate in date: nothing passes",
            "the control link must come up to have one issued; and compare the clock",
        ));
    }
    for instance in &status.instances {
        let left = spoken(Duration::from_secs(instance.certificate.seconds_left));
        let found = format!("{}: good for {left}", instance.workload);
        items.push(if instance.certificate.renewal_overdue {
            let next = "renewal does not work: warren status says why";
            Item::bad(Group::Certificates, "certificates.tunnel", State::Warn, found, next)
        } else {
            Item::ok(Group::Certificates, "certificates.tunnel", found)
        });
    }
    items.push(match (&status.control.coordinator, &status.control.cause) {
        (Some(coordinator), _) => {
            Item::ok(Group::Control, "control.link", format!("up to {coordinator} since {}", status.control.since))
        }
        (None, cause) => {
            let (found, next) = cause.as_ref().map_or_else(
                || ("connecting".to_owned(), String::new()),
                |cause| (format!("down since {}: {cause}", status.control.since), cause.hint.clone()),
            );
            Item::bad(Group::Control, "control.link", State::Warn, found, next)
        }
    });
    items.push(match &status.mesh {
        Some(mesh) if mesh.stale => Item::bad(
            Group::Policy,
            "policy.fresh",
            State::Warn,
            format!("last heard {} ago: no new peer is admitted", spoken(Duration::from_secs(mesh.age_seconds))),
            "bring the coordinator back",
        ),
        Some(mesh) => Item::ok(
            Group::Policy,
            "policy.fresh",
            format!("policy {} heard {} ago", mesh.policy_revision, spoken(Duration::from_secs(mesh.age_seconds))),
        ),
        None => Item::bad(
            Group::Policy,
            "policy.fresh",
            State::Fail,
            "no signed manifest yet: nothing passes",
            "the control link must come up once",
        ),
    });
    if !status.ready {
        items.push(Item::bad(
            Group::Policy,
            "policy.in-force",
            State::Fail,
            format!("not ready: waiting for {}", status.waiting_for.join(" and ")),
            "warren status",
        ));
    }
    items
}

async fn coordinators(config: &Config, node: &NodeIdentity) -> Vec<Item> {
    let addresses = if config.control_addresses.is_empty() { &node.coordinators } else { &config.control_addresses };
    let mut items = Vec::with_capacity(addresses.len());
    for address in addresses {
        let id = "control.address";
        items.push(match tokio::net::lookup_host(address).await {
            Ok(mut found) => match found.next() {
                Some(first) => Item::ok(Group::Control, id, format!("{address} is {first}")),
                None => Item::bad(Group::Control, id, State::Fail, format!("{address} has no address"), "check DNS"),
            },
            Err(error) => {
                let next = "check DNS, or set control.addresses in warren.yaml";
                Item::bad(Group::Control, id, State::Fail, format!("{address}: {error}"), next)
            }
        });
    }
    items
}
