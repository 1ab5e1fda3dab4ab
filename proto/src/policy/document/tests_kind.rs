//! `kind: Tests`: examples and proofs that travel with the policy they are about.

use std::collections::BTreeMap;

use super::super::diagnostic::{Code, nearest_hint};
use super::super::fields::{At, Context};
use super::super::paths::is_normal_path;
use super::super::request::{Request, Token};
use super::super::yaml::{Node, Value};
use super::read::{end_of_day, plain_name, port_range, selectors, workload};
use super::{Attempt, Case, Expect, Kind, Never, Tests};
use crate::WorkloadName;
use crate::reason::Reason;

pub(super) fn read(cx: &mut Context<'_>, root: &Node, name: At<&str>) -> Option<Tests> {
    plain_name(cx, name, Kind::Tests);
    let fields = cx.fields(root, "Tests", &["kind", "name", "cases", "never"]);
    let mut cases = Vec::new();
    if let Some(node) = fields.get("cases") {
        for (key, value) in cx.entries(node, "cases") {
            let Some(name) = cx.key_name(key, "case name") else { continue };
            cases.extend(case(cx, name, value));
        }
    }
    let mut proofs = Vec::new();
    if let Some(node) = fields.get("never") {
        for (key, value) in cx.entries(node, "never") {
            let Some(name) = cx.key_name(key, "name of a proof") else { continue };
            proofs.extend(never(cx, name, value));
        }
    }
    if fields.get("cases").or(fields.get("never")).is_none() {
        cx.error(root.at, Code::Empty, "the Tests have no test", "add cases or never");
    }
    Some(Tests { cases, never: proofs })
}

fn party(cx: &mut Context<'_>, node: &Node, what: &str) -> Option<At<WorkloadName>> {
    let text = cx.text(node, what)?;
    workload(cx, text, what).map(|value| At { value, at: text.at })
}

fn case(cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Case> {
    let fields = cx.fields(node, "a case", &["from", "to", "connect", "request", "jwt", "at", "expect"]);
    let from = fields.need(cx, "from", "one caller: <namespace>/<name>");
    let to = fields.need(cx, "to", "one service: <namespace>/<name>");
    let expect = fields.need(cx, "expect", "expect: { verdict: allow } or { verdict: deny }");
    let token = match fields.get("jwt") {
        Some(node) => Some(token(cx, node)?),
        None => None,
    };
    let attempt = match (fields.get("connect"), fields.get("request")) {
        (Some(node), None) => {
            if token.is_some() {
                cx.error(
                    node.at,
                    Code::ImpossibleRule,
                    "a connection carries no token",
                    "use `request`, or remove `jwt`",
                );
                return None;
            }
            connect(cx, node)?
        }
        (None, Some(node)) => request(cx, node, token)?,
        (Some(_), Some(_)) | (None, None) => {
            let hint = "connect: 5432/tcp, connect: echo, or request: { port: api, method: GET, path: / }";
            cx.error(fields.at, Code::MissingKey, "a case has either `connect` or `request`", hint);
            return None;
        }
    };
    let moment = match fields.get("at") {
        // The last second of that day: dates hold through their day.
        Some(node) => Some(end_of_day(cx, node, "at")?.minus(std::time::Duration::from_secs(1))),
        None => None,
    };
    let from = party(cx, from?, "caller")?;
    let to = party(cx, to?, "service")?;
    Some(Case { name, from, to, attempt, moment, expect: expected(cx, expect?)? })
}

fn connect(cx: &mut Context<'_>, node: &Node) -> Option<Attempt> {
    let text = cx.text(node, "connect")?;
    if text.value == "echo" {
        return Some(Attempt::Echo);
    }
    let range = port_range(cx, text)?;
    if range.first != range.last {
        cx.error(text.at, Code::InvalidValue, "a case tries one port", "name a single number");
        return None;
    }
    Some(Attempt::Connect(range.transport, range.first))
}

fn request(cx: &mut Context<'_>, node: &Node, token: Option<Token>) -> Option<Attempt> {
    let fields = cx.fields(node, "a request", &["port", "method", "path", "upgrade", "grpc", "headers"]);
    let port = fields.need(cx, "port", "the name of a port of the service");
    let path = fields.need(cx, "path", "for example path: /v1/accounts");
    let grpc = match fields.get("grpc") {
        Some(node) => cx.boolean(node, "grpc")?,
        None => false,
    };
    let method = match fields.get("method") {
        Some(node) => cx.line(node, "method", 32)?.value,
        None if grpc => "POST".to_owned(),
        None => {
            fields.need(cx, "method", "for example method: GET");
            return None;
        }
    };
    let upgrade = match fields.get("upgrade") {
        Some(node) => Some(cx.name(node, "protocol to upgrade to")?.value),
        None => None,
    };
    let mut headers = BTreeMap::new();
    if let Some(node) = fields.get("headers") {
        for (key, value) in cx.entries(node, "headers") {
            if let Some(value) = cx.line(value, "a header's value", 4096) {
                headers.insert(key.text.to_ascii_lowercase(), value.value);
            }
        }
    }
    let path = cx.text(path?, "path")?;
    if !is_normal_path(path.value) {
        let message = format!("`{}` is not a path in its normal form", path.value);
        let hint = "requests are judged on their normal form: no `//`, `.`, `..`, `%2F` or `;`";
        cx.error(path.at, Code::InvalidValue, message, hint);
        return None;
    }
    let path = path.value.to_owned();
    let port = cx.name(port?, "port name")?;
    Some(Attempt::Request(port, Box::new(Request { method, path, upgrade, grpc, headers, token })))
}

fn token(cx: &mut Context<'_>, node: &Node) -> Option<Token> {
    let fields = cx.fields(node, "jwt", &["issuer", "issued_to", "claims"]);
    let issuer = fields.need(cx, "issuer", "an issuer of the Mesh document")?;
    let issuer = cx.name(issuer, "issuer name")?.value;
    let issued_to = match fields.get("issued_to") {
        Some(node) => Some(party(cx, node, "workload")?.value),
        None => None,
    };
    let claims = match fields.get("claims").map(|node| (node, json(node))) {
        Some((_, serde_json::Value::Object(claims))) => claims,
        Some((node, _)) => {
            cx.invalid(node, "claims", "a mapping");
            return None;
        }
        None => serde_json::Map::new(),
    };
    Some(Token { issuer, issued_to, claims })
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Text(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, value)| (key.text.clone(), json(value))).collect(),
    }
}

fn expected(cx: &mut Context<'_>, node: &Node) -> Option<Expect> {
    let fields = cx.fields(node, "expect", &["verdict", "rule", "reason"]);
    let verdict = fields.need(cx, "verdict", "allow or deny")?;
    let verdict = cx.text(verdict, "verdict")?;
    let allow = match verdict.value {
        "allow" => true,
        "deny" => false,
        other => {
            let hint = nearest_hint(other, ["allow", "deny"]);
            cx.error(verdict.at, Code::InvalidValue, format!("`{other}` is not a verdict"), hint);
            return None;
        }
    };
    let rule = match fields.get("rule") {
        Some(node) => Some(cx.line(node, "rule", 255)?.value),
        None => None,
    };
    let reason = match fields.get("reason") {
        Some(node) => {
            let text = cx.text(node, "reason")?;
            match text.value.parse::<Reason>() {
                Ok(reason) => Some(reason),
                Err(_) => {
                    let hint = nearest_hint(text.value, Reason::ALL.iter().map(|reason| reason.name()));
                    cx.error(text.at, Code::UnknownName, format!("`{}` is not a reason", text.value), hint);
                    return None;
                }
            }
        }
        None => None,
    };
    Some(Expect { allow, rule, reason })
}

fn never(cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Never> {
    let fields = cx.fields(node, "a proof", &["from", "to", "ports"]);
    let from = fields.need(cx, "from", "name the callers");
    let to = fields.need(cx, "to", "name the destinations");
    let ports = match fields.get("ports") {
        Some(node) => cx.each(node, "ports", |cx, node| {
            let text = cx.text(node, "a port")?;
            port_range(cx, text)
        }),
        None => Vec::new(),
    };
    Some(Never { name, from: selectors(cx, from?, "caller"), to: selectors(cx, to?, "destination"), ports })
}
