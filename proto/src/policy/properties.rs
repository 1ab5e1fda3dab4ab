//! Random policies, judged twice: by the compiled evaluator and by a naive one written from the words of the
//! policy chapter, which knows neither indices nor tables nor layers of lists. The packet table and a node's
//! slice are held against the same policies.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::document::Transport;
use super::slice::slice;
use super::{CompiledPolicy, Documents, Mode, SourceFile};
use crate::reason::Reason;
use crate::{UnixTime, WorkloadName, wire};

mod generate;

use generate::{Deny, Mesh, NAMES, PORTS, Port, Require, SPACES, Scope, Set};

/// Between and at the dates that the generator uses.
const MOMENTS: [UnixTime; 5] = [
    UnixTime(1_795_219_200), // 2026-11-21
    UnixTime(1_796_083_199), // 2026-11-30T23:59:59
    UnixTime(1_796_083_200), // 2026-12-01: "2026-11-30" has ended
    UnixTime(1_797_379_200), // 2026-12-16: "2026-12-15" has ended
    UnixTime(1_900_000_000),
];

fn ends(date: &str) -> UnixTime {
    match date {
        "2026-11-30" => MOMENTS[2],
        "2026-12-15" => MOMENTS[3],
        other => panic!("{other}"),
    }
}

/// What the naive evaluator says.
#[derive(Debug, PartialEq, Eq)]
struct Naive {
    allow: bool,
    audit: bool,
    reason: Option<Reason>,
    /// Any of these may be named as the rule that decided; empty for none.
    rules: BTreeSet<String>,
}

struct Question<'a> {
    mesh: &'a Mesh,
    source: &'a str,
    destination: usize,
    transport: Transport,
    port: u16,
    now: UnixTime,
}

impl Question<'_> {
    fn means(&self, set: &Set, who: &str) -> bool {
        if !NAMES.contains(&who) {
            // Nobody declared it: only `any` means it.
            return set.0.iter().any(|term| term == "any");
        }
        let space = who.split('/').next().unwrap();
        set.0.iter().any(|term| match term.as_str() {
            "any" => true,
            "group:prod" => SPACES.iter().zip(&self.mesh.prod).any(|(name, prod)| *name == space && *prod),
            "group:list" => self.mesh.members.0.iter().any(|member| self.is(member, who)),
            other => self.is(other, who),
        })
    }

    fn is(&self, term: &str, who: &str) -> bool {
        term == who || term.strip_suffix("/*").is_some_and(|space| who.split('/').next() == Some(space))
    }

    /// What the destination declares at the port.
    fn declared(&self) -> Option<&Port> {
        let service = &self.mesh.services[self.destination];
        PORTS
            .iter()
            .enumerate()
            .filter(|(i, _)| service.ports[*i])
            .map(|(_, port)| port)
            .find(|port| port.transports.contains(&self.transport) && (port.first..=port.last).contains(&self.port))
    }

    fn in_scope(&self, scope: &Scope) -> bool {
        match scope {
            Scope::All => true,
            Scope::Http => self.declared().is_some_and(|port| port.http),
            // HTTP is TCP too.
            Scope::Carrying(transport) => *transport == self.transport,
            Scope::Names(names) => self.declared().is_some_and(|port| names.contains(&port.name)),
            Scope::Numbers(list) => list
                .iter()
                .any(|(first, last, transport)| *transport == self.transport && (*first..=*last).contains(&self.port)),
        }
    }

    fn denies(&self, deny: &Deny) -> bool {
        let destination = NAMES[self.destination];
        !deny.http
            && self.means(&deny.from, self.source)
            && deny.to.as_ref().is_none_or(|to| self.means(to, destination))
            && self.in_scope(&deny.scope)
            && !deny.except.iter().any(|except| {
                self.means(&except.from, self.source)
                    && self.in_scope(&except.scope)
                    && except.until.is_none_or(|date| self.now < ends(date))
            })
    }

    fn fails(&self, require: &Require) -> bool {
        let destination = NAMES[self.destination];
        require.from.as_ref().is_none_or(|from| self.means(from, self.source))
            && require.to.as_ref().is_none_or(|to| self.means(to, destination))
            && self.in_scope(&require.scope)
            && !self.means(&require.must, self.source)
    }

    fn answer(&self) -> Naive {
        let destination = NAMES[self.destination];
        let space = SPACES.iter().position(|space| destination.starts_with(&format!("{space}/")));
        let service = &self.mesh.services[self.destination];
        let namespace = space.map(|space| (SPACES[space], &self.mesh.namespaces[space]));
        let included: Vec<(String, &generate::Rules)> = (0..self.mesh.rules.len())
            .filter(|i| {
                namespace.is_some_and(|(_, namespace)| namespace.include.contains(i)) || service.include.contains(i)
            })
            .map(|i| (format!("alpha/rules{i}"), &self.mesh.rules[i]))
            .collect();
        let mut denies: Vec<(String, &Deny)> = Vec::new();
        let mut requires: Vec<(String, &Require)> = Vec::new();
        let owners = [("mesh".to_owned(), &self.mesh.guards), (destination.to_owned(), &service.guards)];
        let namespaces = namespace.map(|(name, namespace)| (name.to_owned(), &namespace.guards));
        let owners =
            owners.into_iter().chain(namespaces).chain(included.iter().map(|(id, rules)| (id.clone(), &rules.guards)));
        for (id, guards) in owners {
            denies.extend(guards.deny.iter().enumerate().map(|(i, deny)| (format!("{id}:d{i}"), deny)));
            requires.extend(guards.require.iter().enumerate().map(|(i, require)| (format!("{id}:r{i}"), require)));
        }
        let known = NAMES.contains(&self.source);
        let deny: BTreeSet<String> =
            denies.iter().filter(|(_, deny)| self.denies(deny)).map(|(id, _)| id.clone()).collect();
        if !deny.is_empty() {
            return Naive { allow: false, audit: false, reason: Some(Reason::DeniedByRule), rules: deny };
        }
        let failed: BTreeSet<String> =
            requires.iter().filter(|(_, require)| self.fails(require)).map(|(id, _)| id.clone()).collect();
        if !failed.is_empty() {
            return Naive { allow: false, audit: false, reason: Some(Reason::RequireFailed), rules: failed };
        }
        let own = service.allow.iter().enumerate().map(|(i, allow)| (format!("{destination}:a{i}"), allow));
        let allows = own.chain(
            included
                .iter()
                .flat_map(|(id, rules)| rules.allow.iter().enumerate().map(move |(i, a)| (format!("{id}:a{i}"), a))),
        );
        let allows: Vec<_> = allows.collect();
        let admitting: BTreeSet<String> = allows
            .iter()
            .filter(|(_, allow)| known && self.means(&allow.from, self.source) && self.in_scope(&allow.scope))
            .map(|(id, _)| id.clone())
            .collect();
        if !admitting.is_empty() {
            return Naive { allow: true, audit: false, reason: None, rules: admitting };
        }
        let rules = BTreeSet::new();
        if self.declared().is_none() {
            let opened = allows.iter().any(|(_, allow)| self.in_scope(&allow.scope));
            let reason = if opened { Reason::NoRule } else { Reason::NoService };
            return Naive { allow: false, audit: false, reason: Some(reason), rules };
        }
        let audit = known
            && service.audit.as_ref().is_some_and(|audit| {
                self.now < ends(audit.until)
                    && (audit.ports.is_empty() || self.declared().is_some_and(|port| audit.ports.contains(&port.name)))
            });
        Naive { allow: audit, audit, reason: Some(Reason::NoRule), rules }
    }
}

const TRIED: [u16; 15] = [0, 1, 52, 53, 54, 80, 81, 99, 100, 150, 200, 201, 443, 9100, 65535];
const SOURCES: [&str; 9] = [
    "alpha/one",
    "alpha/two",
    "beta/one",
    "beta/two",
    "gamma/one",
    "peer/device",
    "alpha/undeclared",
    "peer/undeclared",
    "nowhere/one",
];

fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}

fn compile(text: &str) -> (Documents, CompiledPolicy) {
    let documents = Documents::from_files(&[SourceFile { name: "p.yaml".to_owned(), text: text.to_owned() }]);
    let documents = documents.unwrap_or_else(|list| panic!("{list:#?}\n{text}"));
    let policy = CompiledPolicy::compile(&documents, Mode::Whole).unwrap_or_else(|list| panic!("{list:#?}\n{text}"));
    (documents, policy)
}

fn every_port() -> impl Iterator<Item = (Transport, u16)> {
    TRIED.into_iter().flat_map(|port| [(Transport::Tcp, port), (Transport::Udp, port)])
}

fn assert_equals_naive(mesh: &Mesh) {
    let text = mesh.render();
    let (_, policy) = compile(&text);
    for (destination, to) in NAMES.into_iter().enumerate() {
        let table = policy.port_table(&name(to));
        for source in SOURCES {
            let index = policy.identities().index(&name(source));
            for now in MOMENTS {
                let mut admitted = false;
                let mut open = false;
                for (transport, port) in every_port() {
                    let expected = Question { mesh, source, destination, transport, port, now }.answer();
                    let decision = policy.evaluate(&name(source), &name(to), transport, port, now);
                    let rule = decision.rule.as_ref().map(|rule| rule.id.clone());
                    let place = format!("{source} -> {to} {port}/{transport} at {now}\n{decision:#?}\n{text}");
                    let told = (decision.is_allowed(), decision.audit, decision.reason);
                    assert_eq!(told, (expected.allow, expected.audit, expected.reason), "{place}");
                    match rule {
                        Some(rule) => assert!(expected.rules.contains(&rule), "{:?} {place}", expected.rules),
                        None => assert!(expected.rules.is_empty(), "{:?} {place}", expected.rules),
                    }
                    let verdict = table.decide(index, transport, port, now);
                    assert_eq!((verdict.allow, verdict.audit, verdict.reason), told, "table: {place}");
                    assert_eq!(
                        verdict.rule.and_then(|rule| policy.explain(rule)),
                        decision.rule.as_ref(),
                        "table: {place}"
                    );
                    admitted |= expected.allow && !expected.audit;
                    open |= expected.allow;
                }
                let echo = policy.evaluate_echo(&name(source), &name(to), now);
                assert_eq!(echo.is_allowed(), admitted, "echo {source} -> {to} at {now}\n{text}");
                assert_eq!(table.decide_echo(index, now).allow, admitted, "echo table {source} -> {to}\n{text}");
                assert_eq!(
                    policy.linked(&name(source), &name(to), now),
                    open,
                    "linked {source} -> {to} at {now}\n{text}"
                );
            }
        }
    }
}

fn assert_slice_equals_whole(mesh: &Mesh, local: &BTreeSet<usize>) {
    let text = mesh.render();
    let (documents, whole) = compile(&text);
    let local: Vec<WorkloadName> = local.iter().map(|i| name(NAMES[*i])).collect();
    let cut = slice(&documents, &whole, &local, MOMENTS[0]);
    let sent: Vec<_> = cut.iter().copied().map(wire::PolicyDocument::from).collect();
    let received = Documents::from_wire(&sent).unwrap();
    let part = CompiledPolicy::compile(&received, Mode::Slice).unwrap_or_else(|list| panic!("{list:#?}\n{text}"));
    for to in NAMES.map(name) {
        let concerns = local.contains(&to) || local.iter().any(|from| whole.linked(from, &to, MOMENTS[0]));
        assert_eq!(part.service(&to).is_some(), concerns, "{to}\n{text}");
        let tables = concerns.then(|| (whole.port_table(&to), part.port_table(&to)));
        for now in MOMENTS {
            for from in &local {
                assert_eq!(
                    part.linked(from, &to, now),
                    whole.linked(from, &to, now),
                    "{from} -> {to} at {now}\n{text}"
                );
            }
            let Some((whole_table, part_table)) = &tables else { continue };
            for from in NAMES.map(name) {
                let (a, b) = (whole.identities().index(&from), part.identities().index(&from));
                assert_eq!(part.evaluate_echo(&from, &to, now), whole.evaluate_echo(&from, &to, now));
                let open = part.openings(&from, &to, now);
                assert_eq!(open, whole.openings(&from, &to, now), "{from} -> {to} at {now}\n{text}");
                for (transport, port) in every_port() {
                    let expected = whole.evaluate(&from, &to, transport, port, now);
                    assert_eq!(open.allows(transport, port), expected.is_allowed(), "{from} -> {to}\n{text}");
                    assert_eq!(part.evaluate(&from, &to, transport, port, now), expected, "{text}");
                    let (a, b) =
                        (whole_table.decide(a, transport, port, now), part_table.decide(b, transport, port, now));
                    assert_eq!((a.allow, a.audit, a.reason), (b.allow, b.audit, b.reason), "{text}");
                }
            }
            let stranger = part.evaluate(&name("nowhere/one"), &to, Transport::Tcp, 80, now);
            assert!(!stranger.is_allowed(), "a namespace that the slice does not hold is unknown\n{text}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn evaluator_and_table_equal_the_naive_evaluator(mesh in generate::mesh()) {
        assert_equals_naive(&mesh);
    }

    #[test]
    fn a_slice_decides_like_the_whole(mesh in generate::mesh(), local in proptest::collection::btree_set(0..NAMES.len(), 1..3)) {
        assert_slice_equals_whole(&mesh, &local);
    }
}
