//! The documents that one node needs, cut from a whole that compiled.
//!
//! A slice holds what concerns the services that the node's workloads are, and those they are linked to: the
//! node judges what comes in, and refuses at once what would be refused there. It decides about them exactly as
//! the whole does for every declared identity; with the names of those that exist undeclared
//! ([`CompiledPolicy::excluding`]) also for them.

use std::collections::BTreeSet;

use super::compile::{CompiledPolicy, Service};
use super::document::{Body, Document, Documents, PolicyObject, Rule, Selector};
use crate::{UnixTime, WorkloadName};

/// The documents of `whole` that a node with these workloads needs, in the order of `whole`.
///
/// Every Namespace is among them: a caller's namespace decides through its labels to which groups it belongs,
/// and a namespace that a node is not told of is unknown there and denied.
#[must_use]
pub fn slice<'a>(
    whole: &'a Documents,
    policy: &CompiledPolicy,
    local: &[WorkloadName],
    now: UnixTime,
) -> Vec<&'a PolicyObject> {
    let mut services: BTreeSet<&WorkloadName> = BTreeSet::new();
    let linked = |service: &Service, index| policy.is_linked(index, service, now);
    for workload in local {
        let index = policy.identities().index(workload);
        services.extend(policy.service(workload).map(Service::name));
        services.extend(policy.services().filter(|service| linked(service, index)).map(Service::name));
    }
    let namespaces: BTreeSet<&str> = services.iter().map(|service| service.namespace()).collect();
    let mut needed = Needed::default();
    for document in whole.iter() {
        match &document.body {
            Body::Mesh(mesh) => needed.rules(&mesh.rules),
            Body::Namespace(namespace) if namespaces.contains(document.object.name.as_str()) => {
                needed.included.extend(namespace.include.iter().map(|name| name.value.as_str()));
                needed.rules(&namespace.rules);
            }
            Body::Service(service) if services.contains(&service.workload) => {
                needed.included.extend(service.include.iter().map(|name| name.value.as_str()));
                needed.rules(&service.rules);
            }
            Body::Set(_) | Body::Namespace(_) | Body::Service(_) | Body::Group(_) | Body::Rules(_) | Body::Tests(_) => {
            }
        }
    }
    for document in whole.iter() {
        if let Body::Rules(rules) = &document.body
            && needed.included.contains(document.object.name.as_str())
        {
            needed.rules(&rules.rules);
        }
    }
    let wanted = |document: &&Document| match &document.body {
        Body::Mesh(_) | Body::Namespace(_) => true,
        Body::Service(service) => services.contains(&service.workload),
        Body::Rules(_) => needed.included.contains(document.object.name.as_str()),
        Body::Group(_) => needed.groups.contains(document.object.name.as_str()),
        Body::Set(_) | Body::Tests(_) => false,
    };
    whole.iter().filter(wanted).map(|document| &document.object).collect()
}

#[derive(Default)]
struct Needed<'a> {
    included: BTreeSet<&'a str>,
    groups: BTreeSet<&'a str>,
}

impl<'a> Needed<'a> {
    fn rules(&mut self, rules: &'a [Rule]) {
        self.groups.extend(rules.iter().flat_map(groups_of));
    }
}

/// The groups a rule names.
pub(super) fn groups_of(rule: &Rule) -> impl Iterator<Item = &str> {
    let excepts = rule.except.iter().flat_map(|except| except.from.iter().chain(&except.to));
    let must = rule.must.iter().flat_map(|must| &must.from);
    rule.from.iter().chain(&rule.to).chain(excepts).chain(must).filter_map(|selector| match &selector.value {
        Selector::Group(name) => Some(name.as_str()),
        Selector::Any | Selector::Namespace(_) | Selector::Workload(_) => None,
    })
}

#[cfg(test)]
mod tests;
