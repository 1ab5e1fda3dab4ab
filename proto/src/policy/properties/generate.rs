//! Random policies as plain data, and their text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::document::Transport;

pub(super) const SPACES: [&str; 3] = ["alpha", "beta", "gamma"];
/// The last one is a plain device: no namespace document and no audit mode speaks of it.
pub(super) const NAMES: [&str; 6] = ["alpha/one", "alpha/two", "beta/one", "beta/two", "gamma/one", DEVICE];
pub(super) const DEVICE: &str = "peer/device";

/// A port that services may declare.
pub(super) struct Port {
    pub name: &'static str,
    pub first: u16,
    pub last: u16,
    pub transports: &'static [Transport],
    pub http: bool,
}

pub(super) const PORTS: [Port; 4] = [
    Port { name: "plain", first: 80, last: 80, transports: &[Transport::Tcp], http: false },
    Port { name: "web", first: 443, last: 443, transports: &[Transport::Tcp], http: true },
    Port { name: "media", first: 100, last: 200, transports: &[Transport::Udp], http: false },
    Port { name: "dns", first: 53, last: 53, transports: &[Transport::Udp, Transport::Tcp], http: false },
];

/// Terms of `from`, `to` or `members`, as written.
#[derive(Debug, Clone)]
pub(super) struct Set(pub Vec<String>);

#[derive(Debug, Clone)]
pub(super) enum Scope {
    All,
    Http,
    Carrying(Transport),
    Names(Vec<&'static str>),
    Numbers(Vec<(u16, u16, Transport)>),
}

#[derive(Debug, Clone)]
pub(super) struct Except {
    pub from: Set,
    pub scope: Scope,
    pub until: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct Deny {
    pub from: Set,
    pub to: Option<Set>,
    pub scope: Scope,
    pub except: Vec<Except>,
    /// With request terms, which layer 4 cannot answer.
    pub http: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Require {
    pub from: Option<Set>,
    pub to: Option<Set>,
    pub scope: Scope,
    pub must: Set,
}

#[derive(Debug, Clone)]
pub(super) struct Allow {
    pub from: Set,
    pub scope: Scope,
    pub http: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Guards {
    pub deny: Vec<Deny>,
    pub require: Vec<Require>,
}

#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub allow: Vec<Allow>,
    pub guards: Guards,
}

#[derive(Debug, Clone)]
pub(super) struct Audit {
    pub until: &'static str,
    pub ports: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct Service {
    pub ports: [bool; 4],
    pub allow: Vec<Allow>,
    pub guards: Guards,
    pub include: BTreeSet<usize>,
    pub audit: Option<Audit>,
}

#[derive(Debug, Clone)]
pub(super) struct Namespace {
    pub guards: Guards,
    pub include: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Mesh {
    /// Which namespaces are `env: prod`.
    pub prod: [bool; 3],
    /// Of the group `list`.
    pub members: Set,
    pub guards: Guards,
    pub rules: Vec<Rules>,
    pub namespaces: Vec<Namespace>,
    pub services: Vec<Service>,
}

fn set() -> impl Strategy<Value = Set> {
    let named = NAMES.iter().copied().chain(["alpha/*", "beta/*", "gamma/*", "peer/*", "group:prod", "group:list"]);
    let term = prop_oneof![6 => select(named.collect::<Vec<_>>()), 1 => Just("any")];
    btree_set(term, 1..4).prop_map(|terms| Set(terms.into_iter().map(str::to_owned).collect()))
}

/// Sets that mean many, so that requires do not close everything.
fn wide_set() -> impl Strategy<Value = Set> {
    prop_oneof![set(), Just(Set(vec!["alpha/*".to_owned(), "beta/*".to_owned(), "group:list".to_owned()]))]
}

fn members() -> impl Strategy<Value = Set> {
    let named: Vec<_> = NAMES.iter().copied().chain(["alpha/*", "gamma/*"]).collect();
    btree_set(select(named), 1..3).prop_map(|terms| Set(terms.into_iter().map(str::to_owned).collect()))
}

fn numbers() -> impl Strategy<Value = Vec<(u16, u16, Transport)>> {
    let range = select(vec![(80, 80), (53, 53), (443, 443), (9100, 9100), (90, 150), (150, 300), (1, 65535)]);
    let transport = select(vec![Transport::Tcp, Transport::Udp]);
    vec((range, transport).prop_map(|((first, last), transport)| (first, last, transport)), 1..3)
}

/// Above a service: numbers, all, or http ports.
fn scope_above() -> impl Strategy<Value = Scope> {
    prop_oneof![2 => Just(Scope::All), 1 => Just(Scope::Http), 1 => select(vec![Scope::Carrying(Transport::Tcp), Scope::Carrying(Transport::Udp)]), 3 => numbers().prop_map(Scope::Numbers)]
}

/// Within a service: names of the ports it declares.
fn names(ports: [bool; 4]) -> BoxedStrategy<Option<Vec<&'static str>>> {
    let declared: Vec<_> = PORTS.iter().zip(ports).filter(|(_, there)| *there).map(|(port, _)| port.name).collect();
    if declared.is_empty() {
        return Just(None).boxed();
    }
    let most = declared.len();
    proptest::sample::subsequence(declared, 1..=most).prop_map(Some).boxed()
}

fn until() -> impl Strategy<Value = Option<&'static str>> {
    select(vec![None, Some("2026-11-30"), Some("2026-12-15")])
}

fn guards(scope: BoxedStrategy<Scope>, to: BoxedStrategy<Option<Set>>, most: usize) -> BoxedStrategy<Guards> {
    let except = (wide_set(), scope.clone(), until()).prop_map(|(from, scope, until)| {
        // `protocol` is not a term of an exception.
        let scope = if matches!(scope, Scope::Http | Scope::Carrying(_)) { Scope::All } else { scope };
        Except { from, scope, until }
    });
    let deny = (set(), to.clone(), scope.clone(), vec(except, 0..3), proptest::bool::weighted(0.2));
    let deny = deny.prop_map(|(from, to, scope, except, http)| {
        // Request terms need a scope that holds http ports only.
        let blind = !matches!(&scope, Scope::Http) && !matches!(&scope, Scope::Names(names) if names == &["web"]);
        Deny { from, to, scope, except, http: http && !blind }
    });
    let require = (option::of(set()), to, scope, wide_set());
    let require = require.prop_map(|(from, to, scope, must)| Require { from, to, scope, must });
    (vec(deny, 0..most), vec(require, 0..most)).prop_map(|(deny, require)| Guards { deny, require }).boxed()
}

fn rules() -> impl Strategy<Value = Rules> {
    let allow = (set(), numbers().prop_map(Scope::Numbers));
    let allow = allow.prop_map(|(from, scope)| Allow { from, scope, http: false });
    (vec(allow, 0..3), guards(scope_above().boxed(), Just(None).boxed(), 2)).prop_filter_map(
        "a rule",
        |(allow, guards)| {
            let empty = allow.is_empty() && guards.deny.is_empty() && guards.require.is_empty();
            (!empty).then_some(Rules { allow, guards })
        },
    )
}

fn service(rules: usize) -> impl Strategy<Value = Service> {
    any::<[bool; 4]>().prop_flat_map(move |ports| {
        let scope = names(ports).prop_map(|names| names.map_or(Scope::All, Scope::Names));
        let allow = (set(), names(ports), any::<bool>());
        let allow = allow.prop_filter_map("a port", |(from, names, http)| {
            let names = names?;
            let http = http && names == ["web"];
            Some(Allow { from, scope: Scope::Names(names), http })
        });
        let allow = if ports == [false; 4] { Just(Vec::new()).boxed() } else { vec(allow, 0..3).boxed() };
        let audit = (select(vec!["2026-11-30", "2026-12-15"]), option::of(names(ports)));
        let audit = audit.prop_map(|(until, ports)| Audit { until, ports: ports.flatten().unwrap_or_default() });
        let include = btree_set(0..rules.max(1), 0..2);
        let guards = guards(scope.boxed(), Just(None).boxed(), 2);
        (allow, guards, include, proptest::option::weighted(0.3, audit)).prop_map(
            move |(allow, guards, mut include, audit)| {
                include.retain(|i| *i < rules);
                Service { ports, allow, guards, include, audit }
            },
        )
    })
}

pub(super) fn mesh() -> impl Strategy<Value = Mesh> {
    vec(rules(), 0..3).prop_flat_map(|rules| {
        let count = rules.len();
        let namespace = move |i: usize| {
            let own: Vec<_> = NAMES.into_iter().filter(|name| name.starts_with(SPACES[i])).collect();
            let to = option::of(select(own).prop_map(|name| Set(vec![name.to_owned()])));
            (guards(scope_above().boxed(), to.boxed(), 2), btree_set(0..count.max(1), 0..2)).prop_map(
                move |(guards, mut include)| {
                    include.retain(|i| *i < count);
                    Namespace { guards, include }
                },
            )
        };
        (
            any::<[bool; 3]>(),
            members(),
            guards(scope_above().boxed(), set().prop_map(Some).boxed(), 2),
            Just(rules),
            (namespace(0), namespace(1), namespace(2)),
            vec(service(count), NAMES.len()),
        )
            .prop_map(|(prod, members, guards, rules, (a, b, c), mut services)| {
                services.iter_mut().skip(NAMES.len() - 1).for_each(|device| device.audit = None);
                Mesh { prod, members, guards, rules, namespaces: vec![a, b, c], services }
            })
    })
}

fn list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let written = |item: &str| if item == DEVICE { "peer:device".to_owned() } else { item.to_owned() };
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", written(item.as_ref()))).collect();
    format!("[{}]", items.join(", "))
}

fn scope(scope: &Scope) -> String {
    match scope {
        Scope::All => String::new(),
        Scope::Http => ", protocol: http".to_owned(),
        Scope::Carrying(transport) => format!(", protocol: {transport}"),
        Scope::Names(names) => format!(", ports: {}", list(names)),
        Scope::Numbers(ranges) => {
            let ranges = ranges.iter().map(|(first, last, transport)| {
                if first == last { format!("{first}/{transport}") } else { format!("{first}-{last}/{transport}") }
            });
            format!(", ports: {}", list(ranges))
        }
    }
}

fn to(to: Option<&Set>) -> String {
    to.map(|to| format!(", to: {}", list(&to.0))).unwrap_or_default()
}

const HTTP: &str = ", http: [{ methods: [GET] }]";

impl Guards {
    fn render(&self, text: &mut String) {
        for (i, deny) in self.deny.iter().enumerate() {
            if i == 0 {
                text.push_str("deny:\n");
            }
            let excepts: Vec<String> = deny
                .except
                .iter()
                .map(|except| {
                    let until = except.until.map(|date| format!(", until: \"{date}\"")).unwrap_or_default();
                    format!("{{ from: {}{}{until} }}", list(&except.from.0), scope(&except.scope))
                })
                .collect();
            let excepts =
                if excepts.is_empty() { String::new() } else { format!(", except: [{}]", excepts.join(", ")) };
            let http = if deny.http { HTTP } else { "" };
            let (from, to, scope) = (list(&deny.from.0), to(deny.to.as_ref()), scope(&deny.scope));
            let _ = writeln!(text, "  d{i}: {{ from: {from}{to}{scope}{excepts}{http} }}");
        }
        for (i, require) in self.require.iter().enumerate() {
            if i == 0 {
                text.push_str("require:\n");
            }
            let from = require.from.as_ref().map(|from| format!(", from: {}", list(&from.0))).unwrap_or_default();
            let (to, scope) = (to(require.to.as_ref()), scope(&require.scope));
            let _ = writeln!(text, "  r{i}: {{ must: {{ from: {} }}{from}{to}{scope} }}", list(&require.must.0));
        }
    }
}

fn allows(allows: &[Allow], text: &mut String) {
    for (i, allow) in allows.iter().enumerate() {
        if i == 0 {
            text.push_str("allow:\n");
        }
        let http = if allow.http { HTTP } else { "" };
        let _ = writeln!(text, "  a{i}: {{ from: {}{}{http} }}", list(&allow.from.0), scope(&allow.scope));
    }
}

fn include(include: &BTreeSet<usize>, text: &mut String) {
    if !include.is_empty() {
        let _ = writeln!(text, "include: {}", list(include.iter().map(|i| format!("alpha/rules{i}"))));
    }
}

impl Mesh {
    /// The policy's text.
    pub(super) fn render(&self) -> String {
        let mut text = "kind: Mesh\nname: test.example\nlabels: { env: [prod, dev] }\n".to_owned();
        self.guards.render(&mut text);
        text.push_str("---\nkind: Group\nname: prod\nnamespaces: { env: prod }\n");
        let _ = writeln!(text, "---\nkind: Group\nname: list\nmembers: {}", list(&self.members.0));
        for (i, rules) in self.rules.iter().enumerate() {
            let _ = writeln!(text, "---\nkind: Rules\nname: alpha/rules{i}");
            allows(&rules.allow, &mut text);
            rules.guards.render(&mut text);
        }
        for ((name, namespace), prod) in SPACES.iter().zip(&self.namespaces).zip(self.prod) {
            let env = if prod { "prod" } else { "dev" };
            let _ = writeln!(text, "---\nkind: Namespace\nname: {name}\nlabels: {{ env: {env} }}");
            include(&namespace.include, &mut text);
            namespace.guards.render(&mut text);
        }
        for (name, service) in NAMES.iter().zip(&self.services) {
            let _ = match name.strip_prefix("peer/") {
                Some(device) => writeln!(text, "---\nkind: Peer\nname: {device}"),
                None => writeln!(text, "---\nkind: Service\nname: {name}"),
            };
            for (position, (port, _)) in PORTS.iter().zip(service.ports).filter(|(_, there)| *there).enumerate() {
                if position == 0 {
                    text.push_str("ports:\n");
                }
                let numbers = if port.first == port.last {
                    port.first.to_string()
                } else {
                    format!("\"{}-{}\"", port.first, port.last)
                };
                let protocol = match (port.http, port.transports) {
                    (true, _) => "http".to_owned(),
                    (false, transports) => list(transports.iter().map(|transport| transport.name())),
                };
                let _ = writeln!(text, "  {}: {{ port: {numbers}, protocol: {protocol} }}", port.name);
            }
            include(&service.include, &mut text);
            allows(&service.allow, &mut text);
            service.guards.render(&mut text);
            if let Some(audit) = &service.audit {
                let ports = if audit.ports.is_empty() { "all".to_owned() } else { list(&audit.ports) };
                let _ = writeln!(text, "audit: {{ until: \"{}\", ports: {ports} }}", audit.until);
            }
        }
        text
    }
}
