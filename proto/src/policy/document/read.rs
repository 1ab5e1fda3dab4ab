//! From a YAML tree to one document of each kind; services, rules and tests have files of their own.

use super::super::diagnostic::{Code, Findings, Position, nearest_hint};
use super::super::fields::{At, Context, Fields};
use super::super::yaml::{Node, Value};
use super::rules::{Place, RuleReader};
use super::{Body, Group, Issuer, Kind, Mesh, Namespace, PortRange, Rules, Selector, Set, Transport};
use crate::spiffe::{PEER_NAMESPACE, is_name};
use crate::{TrustDomain, UnixTime, WorkloadName};

/// Kinds of the design that this release does not have.
const LATER_KINDS: [&str; 1] = ["External"];

pub(super) fn document(file: &str, root: &Node, findings: &mut Findings) -> Option<(Kind, String, Position, Body)> {
    let mut context = Context { file, findings };
    let cx = &mut context;
    let Value::Map(entries) = &root.value else {
        cx.invalid(root, "a document", "a mapping that begins with `kind`");
        return None;
    };
    let find = |key: &str| entries.iter().find(|(known, _)| known.text == key).map(|(_, node)| node);
    let Some(kind_node) = find("kind") else {
        let hint = format!("one of {}", Kind::ALL.map(Kind::name).join(", "));
        cx.error(root.at, Code::MissingKey, "the document has no `kind`", hint);
        return None;
    };
    let word = cx.text(kind_node, "kind")?;
    let Ok(kind) = word.value.parse::<Kind>() else {
        if LATER_KINDS.contains(&word.value) {
            let message = format!("kind {} comes later; this release refuses it", word.value);
            cx.error(word.at, Code::ComesLater, message, "remove the document");
        } else {
            let hint = nearest_hint(word.value, Kind::ALL.map(Kind::name));
            cx.error(word.at, Code::InvalidValue, format!("there is no kind `{}`", word.value), hint);
        }
        return None;
    };
    let Some(name_node) = find("name") else {
        cx.error(root.at, Code::MissingKey, format!("the {kind} has no `name`"), "");
        return None;
    };
    let name = cx.text(name_node, "name")?;
    let before = cx.findings.len();
    let body = match kind {
        Kind::Set => set(cx, root, name),
        Kind::Mesh => mesh(cx, root, name),
        Kind::Group => group(cx, root, name),
        Kind::Rules => rules(cx, root, name),
        Kind::Namespace => namespace(cx, root, name),
        Kind::Service => super::service::read(cx, root, name).map(Body::Service),
        Kind::Peer => super::service::read_peer(cx, root, name).map(Body::Service),
        Kind::Tests => super::tests_kind::read(cx, root, name).map(Body::Tests),
    }?;
    (cx.findings.len() == before).then(|| (kind, name.value.to_owned(), name.at, body))
}

/// `group`, `set` and `namespace` names, which have no slash.
pub(super) fn plain_name(cx: &mut Context<'_>, name: At<&str>, kind: Kind) {
    if !is_name(name.value) {
        let message = format!("`{}` is not a name for a {kind}", name.value);
        cx.error(name.at, Code::InvalidValue, message, "a lower-case letter, then letters, digits and `-`");
    }
}

/// `<namespace>/<name>`.
pub(super) fn workload(cx: &mut Context<'_>, text: At<&str>, what: &str) -> Option<WorkloadName> {
    if text.value.starts_with("spiffe://") {
        let message = format!("{what} `{}`: other trust domains come later", text.value);
        cx.error(text.at, Code::ComesLater, message, "inside this trust domain, write <namespace>/<name>");
        return None;
    }
    match text.value.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            cx.error(text.at, Code::InvalidValue, format!("`{}` is not a {what}: {error}", text.value), "");
            None
        }
    }
}

fn set(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Body> {
    plain_name(cx, name, Kind::Set);
    let fields = cx.fields(root, "a Set", &["kind", "name", "owns"]);
    let owns = fields.need(cx, "owns", "owns: [mesh] or the namespaces of this directory")?;
    let owns = cx.each(owns, "owns", |cx, node| cx.name(node, "namespace name"));
    let mut seen = std::collections::BTreeSet::new();
    for name in &owns {
        if !seen.insert(name.value.as_str()) {
            cx.error(name.at, Code::Duplicate, format!("`{}` stands twice in owns", name.value), "");
        }
    }
    Some(Body::Set(Set { owns }))
}

fn mesh(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Body> {
    let fields = cx.fields(root, "a Mesh", &["kind", "name", "labels", "issuers", "deny", "require"]);
    let trust_domain: TrustDomain = match name.value.parse() {
        Ok(domain) => domain,
        Err(error) => {
            cx.error(name.at, Code::InvalidValue, format!("`{}` is not a trust domain: {error}", name.value), "");
            return None;
        }
    };
    let mut labels = Vec::new();
    if let Some(node) = fields.get("labels") {
        for (key, values) in cx.entries(node, "labels") {
            let values = cx.each(values, "the label's values", |cx, node| cx.name(node, "label value"));
            if let Some(key) = cx.key_name(key, "label") {
                labels.push((key, values.into_iter().map(|value| value.value).collect()));
            }
        }
    }
    let mut issuers = Vec::new();
    if let Some(node) = fields.get("issuers") {
        for (key, value) in cx.entries(node, "issuers") {
            if let Some(name) = cx.key_name(key, "issuer name") {
                issuers.extend(issuer(cx, name, value));
            }
        }
    }
    let mut reader = RuleReader::new(Place::Mesh);
    reader.section(cx, &fields);
    Some(Body::Mesh(Mesh { trust_domain, labels, issuers, rules: reader.rules }))
}

fn issuer(cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Issuer> {
    let fields = cx.fields(node, "an issuer", &["issuer", "audiences", "jwks_url"]);
    let iss = fields.need(cx, "issuer", "the `iss` claim of its tokens");
    let audiences = fields.need(cx, "audiences", "a token for somebody else must not count here");
    let url = fields.need(cx, "jwks_url", "where the issuer publishes its keys");
    let issuer = cx.line(iss?, "issuer", 1024)?.value;
    let audiences = cx.each(audiences?, "audiences", |cx, node| cx.line(node, "audience", 1024).map(|text| text.value));
    let url = cx.line(url?, "jwks_url", 1024)?;
    if !url.value.starts_with("https://") {
        cx.error(url.at, Code::InvalidValue, "jwks_url must begin with https://", "");
    }
    Some(Issuer { name, issuer, audiences, jwks_url: url.value })
}

fn group(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Body> {
    plain_name(cx, name, Kind::Group);
    let fields = cx.fields(root, "a Group", &["kind", "name", "namespaces", "members"]);
    match (fields.get("namespaces"), fields.get("members")) {
        (Some(node), None) => {
            let mut labels = Vec::new();
            for (key, value) in cx.entries(node, "namespaces") {
                let value = cx.name(value, "label value");
                if let (Some(key), Some(value)) = (cx.key_name(key, "label"), value) {
                    labels.push((key, value.value));
                }
            }
            Some(Body::Group(Group::Labels(labels)))
        }
        (None, Some(node)) => {
            let members = cx.each(node, "members", |cx, node| {
                let member = selector(cx, node, "member")?;
                if matches!(member.value, Selector::Workload(_) | Selector::Namespace(_)) {
                    return Some(member);
                }
                let hint = "list <namespace>/<name> or <namespace>/*";
                cx.error(member.at, Code::InvalidValue, "a Group has no groups and no `any` in it", hint);
                None
            });
            Some(Body::Group(Group::Members(members)))
        }
        (Some(_), Some(_)) => {
            cx.error(root.at, Code::InvalidValue, "a Group has either `namespaces` or `members`", "remove one");
            None
        }
        (None, None) => {
            let hint = "namespaces: { label: value } or members: [namespace/name]";
            cx.error(root.at, Code::MissingKey, "the Group has neither `namespaces` nor `members`", hint);
            None
        }
    }
}

fn rules(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Body> {
    workload(cx, name, "name for Rules")?;
    let fields = cx.fields(root, "Rules", &["kind", "name", "allow", "deny", "require"]);
    let mut reader = RuleReader::new(Place::Rules);
    reader.section(cx, &fields);
    if reader.rules.is_empty() {
        cx.error(root.at, Code::Empty, "the Rules have no rule", "add allow, deny or require");
    }
    Some(Body::Rules(Rules { rules: reader.rules }))
}

fn namespace(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Body> {
    plain_name(cx, name, Kind::Namespace);
    if name.value == "mesh" {
        let message = "a namespace cannot be called `mesh`, which stands for the mesh itself in `owns`";
        cx.error(name.at, Code::InvalidValue, message, "");
    }
    if name.value == PEER_NAMESPACE {
        let message = "the namespace `peer` is that of plain WireGuard devices and need not be declared";
        cx.error(name.at, Code::InvalidValue, message, "declare each device: kind: Peer");
    }
    let known = ["kind", "name", "labels", "include", "deny", "require"];
    let has_allow = matches!(&root.value, Value::Map(entries) if entries.iter().any(|(key, _)| key.text == "allow"));
    if has_allow {
        let hint = "put it into Rules and include those";
        cx.error(root.at, Code::UnknownKey, "a Namespace has no `allow` of its own", hint);
        return None;
    }
    let fields = cx.fields(root, "a Namespace", &known);
    let mut labels = Vec::new();
    if let Some(node) = fields.get("labels") {
        for (key, value) in cx.entries(node, "labels") {
            let value = cx.name(value, "label value");
            if let (Some(key), Some(value)) = (cx.key_name(key, "label"), value) {
                labels.push((key, value));
            }
        }
    }
    let include = include(cx, &fields);
    let mut reader = RuleReader::new(Place::Namespace);
    reader.section(cx, &fields);
    Some(Body::Namespace(Namespace { labels, include, rules: reader.rules }))
}

/// `include: [<namespace>/<name>]`
pub(super) fn include(cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<At<String>> {
    let Some(node) = fields.get("include") else { return Vec::new() };
    let list = cx.each(node, "include", |cx, node| {
        let text = cx.text(node, "an include")?;
        workload(cx, text, "name of Rules").map(|name| At { value: name.as_str().to_owned(), at: text.at })
    });
    let mut seen = std::collections::BTreeSet::new();
    for name in &list {
        if !seen.insert(name.value.as_str()) {
            cx.error(name.at, Code::Duplicate, format!("`{}` is included twice", name.value), "");
        }
    }
    list
}

/// One term of `from`, `to` or `members`.
pub(super) fn selector(cx: &mut Context<'_>, node: &Node, what: &str) -> Option<At<Selector>> {
    let text = cx.text(node, what)?;
    let value = if text.value == "any" {
        Selector::Any
    } else if let Some(name) = text.value.strip_prefix("group:") {
        if !is_name(name) {
            cx.error(text.at, Code::InvalidValue, format!("`{name}` is not a group name"), "");
            return None;
        }
        Selector::Group(name.to_owned())
    } else if let Some(name) = text.value.strip_prefix("peer:") {
        let Ok(device) = WorkloadName::new(PEER_NAMESPACE, name) else {
            cx.error(text.at, Code::InvalidValue, format!("`{name}` is not a name for a Peer"), "peer/* means all");
            return None;
        };
        Selector::Workload(device)
    } else if let Some(namespace) = text.value.strip_suffix("/*") {
        if !is_name(namespace) {
            cx.error(text.at, Code::InvalidValue, format!("`{namespace}` is not a namespace name"), "");
            return None;
        }
        Selector::Namespace(namespace.to_owned())
    } else if !text.value.contains('/') {
        let message = format!("`{}` names no {what}", text.value);
        let hint = "write <namespace>/<name>, <namespace>/*, group:<name>, peer:<name> or any";
        cx.error(text.at, Code::InvalidValue, message, hint);
        return None;
    } else {
        Selector::Workload(workload(cx, text, what)?)
    };
    Some(At { value, at: text.at })
}

/// A list of selectors.
pub(super) fn selectors(cx: &mut Context<'_>, node: &Node, what: &str) -> Vec<At<Selector>> {
    cx.each(node, what, |cx, node| selector(cx, node, what))
}

/// `5432/tcp` or `16384-32767/udp`.
pub(super) fn port_range(cx: &mut Context<'_>, text: At<&str>) -> Option<PortRange> {
    let parsed = text.value.split_once('/').and_then(|(numbers, transport)| {
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return None,
        };
        let (first, last) = numbers_of(numbers)?;
        Some(PortRange { transport, first, last })
    });
    if parsed.is_none() {
        let message = format!("`{}` is not a port", text.value);
        cx.error(text.at, Code::InvalidValue, message, "write 5432/tcp or 16384-32767/udp");
    }
    parsed
}

/// `80` or `16384-32767`, without leading zeros, 1 to 65535.
pub(super) fn numbers_of(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| -> Option<u16> {
        let plain = matches!(text.as_bytes().first(), Some(b'1'..=b'9')) && text.bytes().all(|b| b.is_ascii_digit());
        if plain { text.parse().ok() } else { None }
    };
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

/// A calendar day; what it limits holds through the end of that day, UTC.
pub(super) fn end_of_day(cx: &mut Context<'_>, node: &Node, what: &str) -> Option<UnixTime> {
    let text = cx.text(node, what)?;
    let parsed = parse_end_of_day(text.value);
    if parsed.is_none() {
        let message = format!("{what} must be a day, not `{}`", text.value);
        cx.error(text.at, Code::InvalidValue, message, "write \"2027-01-31\", in quotes");
    }
    parsed
}

fn parse_end_of_day(text: &str) -> Option<UnixTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' || !text.is_ascii() {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u16> {
        let digits = &text[from..to];
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let month = time::Month::try_from(u8::try_from(number(5, 7)?).ok()?).ok()?;
    let day = u8::try_from(number(8, 10)?).ok()?;
    let date = time::Date::from_calendar_date(i32::from(number(0, 4)?), month, day).ok()?;
    let next = date.next_day()?;
    u64::try_from(next.midnight().assume_utc().unix_timestamp()).ok().map(UnixTime)
}
