//! `kind: Service`: an identity, who may become it, its ports, and who may reach them. `kind: Peer`: the same for a
//! plain WireGuard device, which nothing can become but the key that is registered for it.

use std::net::SocketAddr;

use super::super::diagnostic::{Code, nearest_hint};
use super::super::fields::{At, Context, Fields};
use super::super::paths::is_normal_path;
use super::super::yaml::{Node, Value};
use super::read::{end_of_day, include, numbers_of, workload};
use super::rules::{Place, RuleReader, port_protocol};
use super::{Audit, NodeSelector, Port, PortProtocol, PortTerm, Rule, Run, ServiceDocument};
use crate::WorkloadName;
use crate::spiffe::{PEER_NAMESPACE, is_name};

/// Longest name of a unit, user, cluster or version, in bytes.
const MAX_WORD: usize = 255;

pub(super) fn read(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<ServiceDocument> {
    let known =
        ["kind", "name", "runs", "ports", "include", "allow", "deny", "require", "audit", "limits", "routes", "views"];
    let fields = cx.fields(root, "a Service", &known);
    let workload = workload(cx, name, "name for a Service");
    if workload.as_ref().is_some_and(WorkloadName::is_peer) {
        let message = format!("`{}`: the namespace `peer` is that of plain WireGuard devices", name.value);
        cx.error(name.at, Code::InvalidValue, message, "declare a device with kind: Peer");
    }
    let runs = runs(cx, &fields);
    let Reached { ports, include, rules } = reached(cx, &fields);
    let audit = match fields.get("audit") {
        Some(node) => Some(audit(cx, node, &ports)?),
        None => None,
    };
    let traffic = traffic(cx, &fields);
    Some(ServiceDocument { workload: workload?, runs, ports, include, rules, audit, traffic })
}

pub(super) fn read_peer(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<ServiceDocument> {
    let fields = cx.fields(root, "a Peer", &["kind", "name", "ports", "include", "allow", "deny", "require"]);
    let Ok(workload) = WorkloadName::new(PEER_NAMESPACE, name.value) else {
        let message = format!("`{}` is not a name for a Peer", name.value);
        cx.error(name.at, Code::InvalidValue, message, "a lower-case letter, then letters, digits and `-`");
        return None;
    };
    let Reached { ports, include, rules } = reached(cx, &fields);
    Some(ServiceDocument { workload, runs: Vec::new(), ports, include, rules, audit: None, traffic: Vec::new() })
}

/// What can be reached, and by whom.
struct Reached {
    ports: Vec<Port>,
    include: Vec<At<String>>,
    rules: Vec<Rule>,
}

fn reached(cx: &mut Context<'_>, fields: &Fields<'_>) -> Reached {
    let ports = ports(cx, fields);
    let include = include(cx, fields);
    let mut reader = RuleReader::new(Place::Service);
    reader.section(cx, fields);
    for rule in &reader.rules {
        let excepts = rule.except.iter().flat_map(|except| &except.ports);
        for term in rule.ports.iter().chain(excepts) {
            if let PortTerm::Named(name) = &term.value {
                known_port(cx, &ports, At { value: name, at: term.at });
            }
        }
    }
    Reached { ports, include, rules: reader.rules }
}

fn known_port(cx: &mut Context<'_>, ports: &[Port], name: At<&str>) {
    if !ports.iter().any(|port| port.name.value == name.value) {
        let message = format!("the service has no port `{}`", name.value);
        let hint = nearest_hint(name.value, ports.iter().map(|port| port.name.value.as_str()));
        cx.error(name.at, Code::UnknownName, message, hint);
    }
}

fn runs(cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<Run> {
    let Some(node) = fields.get("runs") else { return Vec::new() };
    let mut runs = Vec::new();
    for (key, value) in cx.entries(node, "runs") {
        let Some(name) = cx.key_name(key, "name for an entry of runs") else { continue };
        runs.extend(run(cx, name.value, value));
    }
    runs
}

fn run(cx: &mut Context<'_>, name: String, node: &Node) -> Option<Run> {
    let fields = cx.fields(node, "an entry of runs", &["nodes", "unit", "user", "cluster", "service_account"]);
    let nodes = match fields.get("nodes") {
        Some(node) => cx.each(node, "nodes", node_selector),
        None => Vec::new(),
    };
    let mut word = |key: &str| match fields.get(key) {
        Some(node) => cx.line(node, key, MAX_WORD).map(|text| Some(text.value)),
        None => Some(None),
    };
    let (unit, user, cluster) = (word("unit")?, word("user")?, word("cluster")?);
    let service_account = word("service_account")?;
    if cluster.is_some() != service_account.is_some() {
        let message = "`cluster` and `service_account` belong together";
        cx.error(fields.at, Code::MissingKey, message, "name both");
        return None;
    }
    if nodes.is_empty() && cluster.is_none() {
        let message = "an entry of runs says where: `nodes`, or `cluster` with `service_account`";
        cx.error(fields.at, Code::MissingKey, message, "nodes: [any] means every node whose token names it");
        return None;
    }
    Some(Run { name, nodes, unit, user, cluster, service_account })
}

fn node_selector(cx: &mut Context<'_>, node: &Node) -> Option<NodeSelector> {
    let text = cx.text(node, "a node")?;
    if text.value == "any" {
        return Some(NodeSelector::Any);
    }
    match text.value.strip_prefix("group:") {
        Some(group) if is_name(group) => Some(NodeSelector::Group(group.to_owned())),
        Some(_) | None => {
            let message = format!("`{}` names no nodes", text.value);
            cx.error(text.at, Code::InvalidValue, message, "write group:<name>, a group given by a join token, or any");
            None
        }
    }
}

fn ports(cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<Port> {
    let Some(node) = fields.get("ports") else { return Vec::new() };
    let mut ports: Vec<Port> = Vec::new();
    for (key, value) in cx.entries(node, "ports") {
        let Some(name) = cx.key_name(key, "port name") else { continue };
        if name.value == "all" {
            cx.error(name.at, Code::InvalidValue, "a port cannot be called `all`", "");
            continue;
        }
        let Some(port) = port(cx, name, value) else { continue };
        let clash = ports.iter().find(|other| {
            other.first <= port.last
                && port.first <= other.last
                && other.protocols.iter().any(|a| port.protocols.iter().any(|b| a.transport() == b.transport()))
        });
        if let Some(other) = clash {
            let message = format!("the ports `{}` and `{}` overlap", other.name.value, port.name.value);
            cx.error(port.name.at, Code::Duplicate, message, "a port number has one name");
        }
        ports.push(port);
    }
    ports
}

fn port(cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Port> {
    let fields = cx.fields(node, "a port", &["port", "protocol", "target", "health"]);
    let number = fields.need(cx, "port", "a number, or a range in quotes");
    let protocol = fields.need(cx, "protocol", "tcp, udp or http");
    let (first, last) = match &number?.value {
        Value::Integer(_) => {
            let port = cx.integer(number?, "port", 1..=i64::from(u16::MAX))?;
            let port = u16::try_from(port).ok()?;
            (port, port)
        }
        Value::Text(text) => {
            let range = numbers_of(text);
            if range.is_none() {
                let message = format!("`{text}` is not a port range");
                cx.error(number?.at, Code::InvalidValue, message, "write \"16384-32767\"");
            }
            range?
        }
        Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            cx.invalid(number?, "port", "a number or a range in quotes");
            return None;
        }
    };
    let protocols = match &protocol?.value {
        Value::List(_) => cx.each(protocol?, "protocol", |cx, node| {
            let text = cx.text(node, "protocol")?;
            port_protocol(cx, text)
        }),
        Value::Text(_) | Value::Integer(_) | Value::Bool(_) | Value::Map(_) => {
            let text = cx.text(protocol?, "protocol")?;
            vec![port_protocol(cx, text)?]
        }
    };
    let mut transports: Vec<_> = protocols.iter().map(|protocol| protocol.transport()).collect();
    transports.sort_unstable();
    transports.dedup();
    if transports.len() != protocols.len() {
        let message = "a port carries one protocol per transport";
        cx.error(protocol?.at, Code::InvalidValue, message, "http, tcp, udp, or [udp, tcp]");
        return None;
    }
    let target = match fields.get("target") {
        Some(node) => Some(target(cx, node)?),
        None => None,
    };
    let health = match fields.get("health") {
        Some(node) => Some(health(cx, node, &protocols)?),
        None => None,
    };
    Some(Port { name, first, last, protocols, target, health })
}

fn target(cx: &mut Context<'_>, node: &Node) -> Option<SocketAddr> {
    let text = cx.text(node, "target")?;
    let address: Option<SocketAddr> = text.value.parse().ok();
    if address.is_none_or(|address| address.port() == 0) {
        let message = format!("`{}` is not an address with a port", text.value);
        cx.error(text.at, Code::InvalidValue, message, "write \"127.0.0.1:8081\" or \"[::1]:8081\"");
        return None;
    }
    address
}

fn health(cx: &mut Context<'_>, node: &Node, protocols: &[PortProtocol]) -> Option<String> {
    let fields = cx.fields(node, "health", &["path"]);
    if !protocols.contains(&PortProtocol::Http) {
        cx.error(node.at, Code::ImpossibleRule, "`health` asks over HTTP, and this port is not http", "remove it");
        return None;
    }
    let path = fields.need(cx, "path", "the path to ask for")?;
    let path = cx.text(path, "path")?;
    if !is_normal_path(path.value) {
        cx.error(path.at, Code::InvalidValue, format!("`{}` is not a path", path.value), "it begins with /");
        return None;
    }
    Some(path.value.to_owned())
}

fn audit(cx: &mut Context<'_>, node: &Node, ports: &[Port]) -> Option<Audit> {
    let fields = cx.fields(node, "audit", &["until", "ports"]);
    let until = fields.need(cx, "until", "audit mode ends on a date");
    let names = fields.need(cx, "ports", "ports: all, or the names of ports");
    let names = match &names?.value {
        Value::Text(word) if word == "all" => Vec::new(),
        Value::Text(_) | Value::Integer(_) | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            let names = cx.each(names?, "ports", |cx, node| cx.name(node, "port name"));
            for name in &names {
                known_port(cx, ports, At { value: &name.value, at: name.at });
            }
            if names.is_empty() {
                return None;
            }
            names
        }
    };
    Some(Audit { at: node.at, until: end_of_day(cx, until?, "until")?, ports: names })
}

/// Limits, routes and views, which later releases act on: their shape is checked, their names are kept.
fn traffic(cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<At<String>> {
    let mut list = Vec::new();
    let mut views = Vec::new();
    for (section, check) in
        [("views", view as fn(&mut Context<'_>, &Node, &[String])), ("limits", limit), ("routes", route)]
    {
        let Some(node) = fields.get(section) else { continue };
        for (key, value) in cx.entries(node, section) {
            let Some(name) = cx.key_name(key, "name") else { continue };
            check(cx, value, &views);
            if section == "views" {
                views.push(name.value.clone());
            }
            list.push(At { value: format!("{section}: {}", name.value), at: name.at });
        }
    }
    list
}

fn view(cx: &mut Context<'_>, node: &Node, _views: &[String]) {
    let fields = cx.fields(node, "a view", &["version"]);
    if let Some(version) = fields.need(cx, "version", "the version that instances report") {
        cx.line(version, "version", MAX_WORD);
    }
}

fn limit(cx: &mut Context<'_>, node: &Node, _views: &[String]) {
    let fields = cx.fields(node, "a limit", &["per", "rate", "burst"]);
    if let Some(per) = fields.need(cx, "per", "per: source or per: service")
        && let Some(text) = cx.text(per, "per")
        && !matches!(text.value, "source" | "service")
    {
        cx.error(text.at, Code::InvalidValue, format!("`{}` is not a kind of limit", text.value), "source or service");
    }
    if let Some(rate) = fields.need(cx, "rate", "for example rate: 200/s")
        && let Some(text) = cx.text(rate, "rate")
        && !is_rate(text.value)
    {
        cx.error(text.at, Code::InvalidValue, format!("`{}` is not a rate", text.value), "write 200/s or 30/m");
    }
    if let Some(burst) = fields.get("burst") {
        cx.integer(burst, "burst", 1..=1_000_000_000);
    }
}

fn is_rate(text: &str) -> bool {
    let Some((number, unit)) = text.split_once('/') else { return false };
    is_positive(number) && matches!(unit, "s" | "m" | "h")
}

fn is_positive(number: &str) -> bool {
    number.len() <= 9
        && matches!(number.as_bytes().first(), Some(b'1'..=b'9'))
        && number.bytes().all(|b| b.is_ascii_digit())
}

fn route(cx: &mut Context<'_>, node: &Node, views: &[String]) {
    let fields = cx.fields(node, "a route", &["backends", "timeouts", "retry"]);
    if let Some(backends) = fields.need(cx, "backends", "backends: [{ weight: 100 }]") {
        cx.each(backends, "backends", |cx, node| {
            let fields = cx.fields(node, "a backend", &["view", "weight"]);
            if let Some(view) = fields.get("view")
                && let Some(name) = cx.name(view, "view name")
                && !views.contains(&name.value)
            {
                let hint = nearest_hint(&name.value, views.iter().map(String::as_str));
                cx.error(name.at, Code::UnknownName, format!("the service has no view `{}`", name.value), hint);
            }
            let weight = fields.need(cx, "weight", "a share, 0 to 1000000")?;
            cx.integer(weight, "weight", 0..=1_000_000)
        });
    }
    if let Some(node) = fields.get("timeouts") {
        let timeouts = cx.fields(node, "timeouts", &["request", "backend_request"]);
        for key in ["request", "backend_request"] {
            if let Some(node) = timeouts.get(key)
                && let Some(text) = cx.text(node, key)
                && !is_duration(text.value)
            {
                let message = format!("`{}` is not a duration", text.value);
                cx.error(text.at, Code::InvalidValue, message, "write 2s or 500ms");
            }
        }
    }
    if let Some(node) = fields.get("retry") {
        let retry = cx.fields(node, "retry", &["codes", "attempts"]);
        if let Some(codes) = retry.get("codes") {
            cx.each(codes, "codes", |cx, node| cx.integer(node, "a status code", 400..=599));
        }
        if let Some(attempts) = retry.get("attempts") {
            cx.integer(attempts, "attempts", 1..=10);
        }
    }
}

fn is_duration(text: &str) -> bool {
    let number = text.strip_suffix("ms").or_else(|| text.strip_suffix('s')).or_else(|| text.strip_suffix('m'));
    number.is_some_and(is_positive)
}
