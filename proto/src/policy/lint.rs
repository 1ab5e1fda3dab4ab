//! What compiles and is likely not what was meant.

use std::collections::BTreeSet;

use super::compile::{CompiledPolicy, CompiledRule, RuleIndex, Service};
use super::diagnostic::{Code, Diagnostic, Findings};
use super::document::{Body, Documents, Effect, Group, PortRange, Rule, Selector, Transport};
use super::slice::groups_of;
use crate::UnixTime;

/// Warnings about a whole policy: rules that another makes superfluous or that can never match, objects that
/// nothing uses, and dates that have passed.
#[must_use]
pub fn lint(documents: &Documents, policy: &CompiledPolicy, now: UnixTime) -> Vec<Diagnostic> {
    let mut findings = Findings::default();
    unused(documents, &mut findings);
    expired(documents, now, &mut findings);
    for service in policy.services() {
        shadowed(policy, service, &mut findings);
        dead(policy, service, &mut findings);
    }
    nobody(policy, &mut findings);
    findings.into_sorted()
}

fn rules_of(body: &Body) -> &[Rule] {
    match body {
        Body::Mesh(mesh) => &mesh.rules,
        Body::Rules(rules) => &rules.rules,
        Body::Namespace(namespace) => &namespace.rules,
        Body::Service(service) => &service.rules,
        Body::Set(_) | Body::Group(_) | Body::Tests(_) => &[],
    }
}

fn unused(documents: &Documents, findings: &mut Findings) {
    let (mut groups, mut included) = (BTreeSet::new(), BTreeSet::new());
    for document in documents.iter() {
        groups.extend(rules_of(&document.body).iter().flat_map(groups_of));
        match &document.body {
            Body::Namespace(namespace) => included.extend(namespace.include.iter().map(|name| name.value.as_str())),
            Body::Service(service) => included.extend(service.include.iter().map(|name| name.value.as_str())),
            Body::Tests(tests) => {
                let selectors = tests.never.iter().flat_map(|proof| proof.from.iter().chain(&proof.to));
                groups.extend(selectors.filter_map(|selector| match &selector.value {
                    Selector::Group(name) => Some(name.as_str()),
                    Selector::Any | Selector::Namespace(_) | Selector::Workload(_) => None,
                }));
            }
            Body::Set(_) | Body::Mesh(_) | Body::Group(_) | Body::Rules(_) => {}
        }
    }
    for document in documents.iter() {
        let name = document.object.name.as_str();
        let file = &document.object.file;
        match &document.body {
            Body::Group(group) => {
                if !groups.contains(name) {
                    let message = format!("no rule uses the Group {name}");
                    findings.warning(file, document.name_at, Code::Unused, message, "");
                }
                if let Group::Members(members) = group {
                    let mut seen = BTreeSet::new();
                    for member in members.iter().filter(|member| !seen.insert(&member.value)) {
                        findings.warning(file, member.at, Code::Shadowed, "the member stands twice", "");
                    }
                }
            }
            Body::Rules(_) if !included.contains(name) => {
                let message = format!("nothing includes the Rules {name}: they grant nothing");
                findings.warning(
                    file,
                    document.name_at,
                    Code::Unused,
                    message,
                    "include them in a Namespace or Service",
                );
            }
            Body::Set(_) | Body::Mesh(_) | Body::Rules(_) | Body::Namespace(_) | Body::Service(_) | Body::Tests(_) => {}
        }
    }
}

fn expired(documents: &Documents, now: UnixTime, findings: &mut Findings) {
    for document in documents.iter() {
        let file = &document.object.file;
        for rule in rules_of(&document.body) {
            for except in &rule.except {
                if except.until.is_some_and(|until| until <= now) {
                    let message = format!("an exception of the rule `{}` has ended", rule.name.value);
                    findings.warning(file, except.at, Code::Expired, message, "remove it");
                }
            }
        }
        if let Body::Service(service) = &document.body
            && let Some(audit) = &service.audit
            && audit.until <= now
        {
            let message = format!("the audit mode of {} has ended", service.workload);
            findings.warning(file, audit.at, Code::Expired, message, "remove it");
        }
    }
}

/// Rules whose `from` means no declared identity: an empty group, for example.
fn nobody(policy: &CompiledPolicy, findings: &mut Findings) {
    let used: BTreeSet<_> =
        policy.services().flat_map(|s| s.denies.iter().chain(&s.requires).chain(&s.allows)).collect();
    for (position, rule) in policy.rules.iter().enumerate() {
        let means = policy.identities().iter().any(|(index, _)| rule.from.contains(policy.identities(), index));
        if rule.from.is_empty() || !means {
            let message = format!("the rule {} names callers of whom none is declared", rule.reference.id);
            findings.warning(&rule.reference.file, rule.at, Code::NeverMatches, message, "");
        }
        let concerns = u32::try_from(position).is_ok_and(|position| used.contains(&RuleIndex(position)));
        if !concerns {
            let message = format!("the rule {} concerns no declared service", rule.reference.id);
            findings.warning(&rule.reference.file, rule.at, Code::NeverMatches, message, "");
        }
    }
}

/// Allows that an earlier or wider allow makes superfluous.
fn shadowed(policy: &CompiledPolicy, service: &Service, findings: &mut Findings) {
    let allows: Vec<_> = policy.rules(&service.allows).collect();
    for (position, (index, rule)) in allows.iter().enumerate() {
        let wider = allows.iter().enumerate().find(|(other_position, (other_index, other))| {
            let covers = other.request.is_empty()
                && other.from.covers(policy.identities(), &rule.from)
                && covers_ports(&other.ports, &rule.ports);
            // Of two equal rules the second is superfluous.
            let equal = covers
                && rule.request.is_empty()
                && rule.from.covers(policy.identities(), &other.from)
                && covers_ports(&rule.ports, &other.ports);
            other_index != index && covers && (!equal || *other_position < position)
        });
        if let Some((_, (_, wider))) = wider {
            let message = format!("the rule {} admits nothing that {} does not", rule.reference.id, wider.reference.id);
            let hint = if rule.request.is_empty() {
                "remove it"
            } else {
                "its request terms narrow nothing while the other rule stands"
            };
            findings.warning(&rule.reference.file, rule.at, Code::Shadowed, message, hint);
        }
    }
}

/// Allows that a deny without exceptions always overrules, and rules on ports that the service does not have.
fn dead(policy: &CompiledPolicy, service: &Service, findings: &mut Findings) {
    for (_, rule) in policy.rules(&service.allows) {
        let overruling = policy.rules(&service.denies).find(|(_, deny)| {
            deny.request.is_empty()
                && deny.except.is_empty()
                && deny.protocol.is_none()
                && deny.from.covers(policy.identities(), &rule.from)
                && covers_ports(&deny.ports, &rule.ports)
        });
        if let Some((_, deny)) = overruling {
            let message = format!("the deny {} overrules the rule {} everywhere", deny.reference.id, rule.reference.id);
            findings.warning(&rule.reference.file, rule.at, Code::NeverMatches, message, "");
        }
    }
    for (_, rule) in policy.rules(&service.denies).chain(policy.rules(&service.requires)) {
        if rule.reference.layer == super::Layer::Service && !touches(service, rule) {
            let message = format!("the rule {} concerns no port of {}", rule.reference.id, service.name());
            findings.warning(&rule.reference.file, rule.at, Code::NeverMatches, message, "");
        }
    }
}

fn touches(service: &Service, rule: &CompiledRule) -> bool {
    service.points().any(|(transport, port)| {
        rule.covers(transport, port, service.protocol_at(transport, port))
            && (rule.effect != Effect::Require || service.port_at(transport, port).is_some())
    })
}

/// Whether every port of `inner` is one of `outer`; an empty list is every port.
fn covers_ports(outer: &[PortRange], inner: &[PortRange]) -> bool {
    if outer.is_empty() {
        return true;
    }
    let whole = [Transport::Tcp, Transport::Udp].map(|transport| PortRange { transport, first: 0, last: u16::MAX });
    let inner = if inner.is_empty() { &whole } else { inner };
    inner.iter().all(|range| {
        let mut next = u32::from(range.first);
        // Each step passes at least one range of `outer`, so this ends.
        while next <= u32::from(range.last) {
            let port = u16::try_from(next).unwrap_or(u16::MAX);
            let Some(cover) = outer.iter().find(|cover| cover.contains(range.transport, port)) else { return false };
            next = u32::from(cover.last) + 1;
        }
        true
    })
}

#[cfg(test)]
mod tests;
