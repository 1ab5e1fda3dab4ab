//! Rules as written: `allow`, `deny`, `require` and the terms in them.

use super::super::diagnostic::Code;
use super::super::fields::{At, Context, Fields};
use super::super::guard::Guard;
use super::super::paths::PathTemplate;
use super::super::yaml::{Node, Value};
use super::read::{end_of_day, port_range, selectors};
use super::{
    ClaimTerm, ClaimValue, Effect, Except, HttpTerm, JwtTerm, Must, PortProtocol, PortTerm, RequestTerms, Rule,
};
use crate::spiffe::is_name;

/// Longest key of a claim path, path template or gRPC name, in bytes.
const MAX_TERM: usize = 1024;

/// The kind of object a rule stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Mesh,
    Namespace,
    Rules,
    Service,
}

impl Place {
    /// Rules that name destinations.
    const fn has_destinations(self) -> bool {
        matches!(self, Self::Mesh | Self::Namespace)
    }
}

/// Reads the rules of one object, section by section, and keeps rule names unique in it.
pub(super) struct RuleReader {
    place: Place,
    pub rules: Vec<Rule>,
}

impl RuleReader {
    pub(super) fn new(place: Place) -> Self {
        Self { place, rules: Vec::new() }
    }

    /// Reads the sections that stand in `fields`.
    pub(super) fn section(&mut self, cx: &mut Context<'_>, fields: &Fields<'_>) {
        for (effect, key) in [(Effect::Allow, "allow"), (Effect::Deny, "deny"), (Effect::Require, "require")] {
            let Some(node) = fields.get(key) else { continue };
            for (name, body) in cx.entries(node, key) {
                let Some(name) = cx.key_name(name, "rule name") else { continue };
                if self.rules.iter().any(|rule| rule.name.value == name.value) {
                    let message = format!("the rule name `{}` stands twice in this object", name.value);
                    cx.error(name.at, Code::Duplicate, message, "a decision names its rule: rename one");
                }
                let rule = match effect {
                    Effect::Allow => self.allow(cx, name, body),
                    Effect::Deny => self.deny(cx, name, body),
                    Effect::Require => self.require(cx, name, body),
                };
                self.rules.extend(rule);
            }
        }
    }

    fn allow(&self, cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Rule> {
        let fields = cx.fields(node, "an allow", &["from", "ports", "http", "jwt", "when"]);
        let from = fields.need(cx, "from", "name the callers, or say from: [any]");
        let ports = fields.need(cx, "ports", "name the ports");
        let request = request_terms(cx, &fields);
        let from = selectors(cx, from?, "caller");
        let ports = self.ports(cx, ports?);
        let effect = Effect::Allow;
        let (to, except) = (Vec::new(), Vec::new());
        Some(Rule { name, effect, from, to, ports, protocol: None, request, except, must: None })
    }

    fn deny(&self, cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Rule> {
        let mut known = vec!["from", "ports", "protocol", "http", "jwt", "when", "except"];
        if self.place.has_destinations() {
            known.push("to");
        }
        let fields = cx.fields(node, "a deny", &known);
        let from = fields.need(cx, "from", "name the callers, or say from: [any]");
        let to = self.to(cx, &fields);
        let ports = self.optional_ports(cx, &fields);
        let protocol = protocol(cx, &fields);
        let request = request_terms(cx, &fields);
        let except = match fields.get("except") {
            Some(node) => cx.each(node, "except", |cx, node| self.except(cx, node)),
            None => Vec::new(),
        };
        let from = selectors(cx, from?, "caller");
        Some(Rule { name, effect: Effect::Deny, from, to: to?, ports, protocol, request, except, must: None })
    }

    fn require(&self, cx: &mut Context<'_>, name: At<String>, node: &Node) -> Option<Rule> {
        let mut known = vec!["from", "ports", "protocol", "must"];
        if self.place.has_destinations() {
            known.push("to");
        }
        let fields = cx.fields(node, "a require", &known);
        let from = fields.get("from").map(|node| selectors(cx, node, "caller")).unwrap_or_default();
        let to = self.to(cx, &fields);
        let ports = self.optional_ports(cx, &fields);
        let protocol = protocol(cx, &fields);
        let must = fields.need(cx, "must", "say what must hold: from, http, jwt or when")?;
        let must = cx.fields(must, "must", &["from", "http", "jwt", "when"]);
        let must_from = must.get("from").map(|node| selectors(cx, node, "caller")).unwrap_or_default();
        let must = Must { from: must_from, request: request_terms(cx, &must) };
        let request = RequestTerms::default();
        let effect = Effect::Require;
        Some(Rule { name, effect, from, to: to?, ports, protocol, request, except: Vec::new(), must: Some(must) })
    }

    fn except(&self, cx: &mut Context<'_>, node: &Node) -> Option<Except> {
        let mut known = vec!["from", "ports", "until"];
        if self.place.has_destinations() {
            known.push("to");
        }
        let fields = cx.fields(node, "an except", &known);
        let from = fields.need(cx, "from", "name the callers that the deny leaves alone");
        let to = fields.get("to").map(|node| selectors(cx, node, "destination")).unwrap_or_default();
        let ports = self.optional_ports(cx, &fields);
        let until = match fields.get("until") {
            // A date that does not read must not become an exception without end.
            Some(node) => Some(end_of_day(cx, node, "until")?),
            None => None,
        };
        Some(Except { at: node.at, from: selectors(cx, from?, "caller"), to, ports, until })
    }

    fn to(&self, cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<Vec<At<super::Selector>>> {
        match (self.place, fields.get("to")) {
            (Place::Mesh | Place::Namespace, Some(node)) => Some(selectors(cx, node, "destination")),
            (Place::Mesh, None) => {
                fields.need(cx, "to", "name the destinations, or say to: [any]");
                None
            }
            (Place::Namespace | Place::Rules | Place::Service, _) => Some(Vec::new()),
        }
    }

    fn optional_ports(&self, cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<At<PortTerm>> {
        fields.get("ports").map(|node| self.ports(cx, node)).unwrap_or_default()
    }

    fn ports(&self, cx: &mut Context<'_>, node: &Node) -> Vec<At<PortTerm>> {
        cx.each(node, "ports", |cx, node| {
            if let Value::Integer(number) = node.value {
                let message = format!("`{number}` is not a port");
                let hint = if self.place == Place::Service {
                    "name a port of this service".to_owned()
                } else {
                    format!("write {number}/tcp or {number}/udp")
                };
                cx.error(node.at, Code::InvalidValue, message, hint);
                return None;
            }
            let text = cx.text(node, "a port")?;
            if self.place != Place::Service {
                if is_name(text.value) {
                    let message = format!("`{}`: above a service, ports are numbers", text.value);
                    cx.error(text.at, Code::InvalidValue, message, "a name could be evaded; write 5432/tcp");
                    return None;
                }
                return port_range(cx, text).map(|range| At { value: PortTerm::Range(range), at: text.at });
            }
            if is_name(text.value) {
                return Some(At { value: PortTerm::Named(text.value.to_owned()), at: text.at });
            }
            let message = format!("`{}`: a service's own rules name its ports", text.value);
            cx.error(text.at, Code::InvalidValue, message, "declare the port under `ports` and use its name");
            None
        })
    }
}

/// `tcp`, `udp` or `http`.
pub(super) fn port_protocol(cx: &mut Context<'_>, text: At<&str>) -> Option<PortProtocol> {
    match text.value {
        "tcp" => Some(PortProtocol::Tcp),
        "udp" => Some(PortProtocol::Udp),
        "http" => Some(PortProtocol::Http),
        other => {
            cx.error(text.at, Code::InvalidValue, format!("`{other}` is not a protocol"), "tcp, udp or http");
            None
        }
    }
}

fn protocol(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<PortProtocol> {
    let text = cx.text(fields.get("protocol")?, "protocol")?;
    port_protocol(cx, text)
}

/// `http`, `jwt` and `when`.
fn request_terms(cx: &mut Context<'_>, fields: &Fields<'_>) -> RequestTerms {
    let http = fields.get("http").map(|node| cx.each(node, "http", http_term)).unwrap_or_default();
    let jwt = fields.get("jwt").and_then(|node| jwt_term(cx, node));
    let when = fields.get("when").and_then(|node| {
        let text = cx.text(node, "when")?;
        match Guard::compile(text.value) {
            Ok(guard) => Some(guard),
            Err(error) => {
                cx.error(text.at, Code::InvalidValue, format!("`when`: {error}"), "");
                None
            }
        }
    });
    RequestTerms { http, jwt, when }
}

fn http_term(cx: &mut Context<'_>, node: &Node) -> Option<HttpTerm> {
    let fields = cx.fields(node, "an http term", &["methods", "paths", "upgrade", "grpc"]);
    let methods = fields.get("methods").map(|node| cx.each(node, "methods", method)).unwrap_or_default();
    let paths = fields.get("paths").map(|node| cx.each(node, "paths", path_template)).unwrap_or_default();
    let upgrade = match fields.get("upgrade") {
        Some(node) => {
            let text = cx.text(node, "upgrade")?;
            if !is_name(text.value) {
                let message = format!("`{}` is not a protocol to upgrade to", text.value);
                cx.error(text.at, Code::InvalidValue, message, "for example upgrade: websocket");
                return None;
            }
            Some(text.value.to_owned())
        }
        None => None,
    };
    let grpc = fields.get("grpc").map(|node| cx.each(node, "grpc", grpc_method)).unwrap_or_default();
    if fields.get("grpc").is_some() && (fields.get("methods").or(fields.get("paths")).is_some() || upgrade.is_some()) {
        let message = "`grpc` stands alone in its alternative: it fixes method and path";
        cx.error(node.at, Code::ImpossibleRule, message, "write two alternatives");
    }
    Some(HttpTerm { methods, paths, upgrade, grpc })
}

fn method(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = cx.text(node, "a method")?;
    let token = |b: u8| b.is_ascii_uppercase() || b == b'-' || b == b'_';
    if (1..=32).contains(&text.value.len()) && text.value.bytes().all(token) {
        return Some(text.value.to_owned());
    }
    let message = format!("`{}` is not an HTTP method", text.value);
    cx.error(text.at, Code::InvalidValue, message, format!("methods are upper case: {}", text.value.to_uppercase()));
    None
}

fn path_template(cx: &mut Context<'_>, node: &Node) -> Option<PathTemplate> {
    let text = cx.text(node, "a path")?;
    match text.value.parse() {
        Ok(template) => Some(template),
        Err(error) => {
            cx.error(text.at, Code::InvalidValue, format!("`{}`: {error}", text.value), "");
            None
        }
    }
}

fn grpc_method(cx: &mut Context<'_>, node: &Node) -> Option<(String, String)> {
    let text = cx.text(node, "a gRPC method")?;
    let word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    match text.value.split_once('/') {
        Some((service, method)) if word(service) && (word(method) || method == "*") && text.value.len() <= MAX_TERM => {
            Some((service.to_owned(), method.to_owned()))
        }
        _ => {
            let message = format!("`{}` is not a gRPC method", text.value);
            cx.error(text.at, Code::InvalidValue, message, "write package.Service/Method or package.Service/*");
            None
        }
    }
}

fn jwt_term(cx: &mut Context<'_>, node: &Node) -> Option<JwtTerm> {
    let fields = cx.fields(node, "jwt", &["issuer", "bound_to_peer", "claims"]);
    let issuer = fields.need(cx, "issuer", "name an issuer of the Mesh document");
    let bound_to_peer = match fields.get("bound_to_peer") {
        Some(node) => cx.boolean(node, "bound_to_peer")?,
        None => false,
    };
    let claims = fields.get("claims").map(|node| cx.each(node, "claims", claim_term)).unwrap_or_default();
    let issuer = cx.name(issuer?, "issuer name")?;
    Some(JwtTerm { issuer, bound_to_peer, claims })
}

fn claim_term(cx: &mut Context<'_>, node: &Node) -> Option<ClaimTerm> {
    let fields = cx.fields(node, "a claim", &["claim", "equals", "any_of"]);
    let path = fields.need(cx, "claim", "the keys from the top of the token: [realm_access, roles]")?;
    let claim = cx.each(path, "claim", |cx, node| cx.line(node, "claim key", MAX_TERM).map(|text| text.value));
    let any_of = match (fields.get("equals"), fields.get("any_of")) {
        (Some(node), None) => vec![claim_value(cx, node)?],
        (None, Some(node)) => cx.each(node, "any_of", claim_value),
        (Some(_), Some(_)) | (None, None) => {
            let message = "a claim has either `equals` or `any_of`";
            cx.error(fields.at, Code::MissingKey, message, "equals: value, or any_of: [value, value]");
            return None;
        }
    };
    Some(ClaimTerm { claim, any_of })
}

fn claim_value(cx: &mut Context<'_>, node: &Node) -> Option<ClaimValue> {
    match &node.value {
        Value::Text(text) if text.len() <= MAX_TERM => Some(ClaimValue::Text(text.clone())),
        Value::Integer(number) => Some(ClaimValue::Integer(*number)),
        Value::Bool(value) => Some(ClaimValue::Bool(*value)),
        Value::Text(_) => {
            cx.error(node.at, Code::TooLarge, format!("a claim value is at most {MAX_TERM} bytes"), "");
            None
        }
        Value::List(_) | Value::Map(_) => {
            cx.invalid(node, "a claim value", "text, a number, true or false");
            None
        }
    }
}
