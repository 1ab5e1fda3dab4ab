//! The linker: resolves what documents say about each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::Diagnostic;
use super::super::diagnostic::{Code, Findings, Position, nearest_hint};
use super::super::document::{
    Attempt, Body, Document, Documents, Group, Mesh, Namespace, PortRange, Rules, Selector, ServiceDocument, Tests,
    Transport,
};
use super::super::fields::At;
use super::super::identities::{IdentitySet, IdentityTable};
use super::rules::{Owner, RuleCompiler};
use super::{CompiledPolicy, Layer, MAX_BOUNDARIES, Mode, Proof, RuleIndex, Service, TestFile, digest};
use crate::WorkloadName;
use crate::spiffe::PEER_NAMESPACE;

/// A document of one kind with where it came from.
pub(super) struct Source<'a, T> {
    pub document: &'a Document,
    pub body: &'a T,
}

impl<T> Clone for Source<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Source<'_, T> {}

impl<'a, T> Source<'a, T> {
    pub(super) fn file(&self) -> &'a str {
        &self.document.object.file
    }

    pub(super) fn name(&self) -> &'a str {
        &self.document.object.name
    }
}

/// The documents by kind and name.
pub(super) struct Declared<'a> {
    pub mode: Mode,
    pub mesh: Source<'a, Mesh>,
    pub groups: BTreeMap<&'a str, Source<'a, Group>>,
    pub rules: BTreeMap<&'a str, Source<'a, Rules>>,
    pub namespaces: BTreeMap<&'a str, Source<'a, Namespace>>,
    pub services: BTreeMap<&'a WorkloadName, Source<'a, ServiceDocument>>,
    pub tests: Vec<Source<'a, Tests>>,
}

pub(super) fn link(documents: &Documents, mode: Mode) -> Result<CompiledPolicy, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let Some(declared) = Declared::collect(documents, mode, &mut findings) else {
        return Err(findings.into_sorted());
    };
    declared.check_labels(&mut findings);
    let identities = declared.identities();
    let groups = declared.groups(&identities, &mut findings);
    let mut compiler = RuleCompiler::new(&declared, &identities, groups, &mut findings);
    let mut inhabitants: BTreeMap<&str, Vec<&WorkloadName>> = BTreeMap::new();
    for workload in declared.services.keys() {
        inhabitants.entry(workload.namespace()).or_default().push(workload);
    }
    let mut services = BTreeMap::new();
    let mesh_rules = compiler.add(Owner::mesh(declared.mesh), &declared.mesh.body.rules);
    let mut included: BTreeMap<(&str, Layer), Vec<RuleIndex>> = BTreeMap::new();
    // The namespace of devices has no document of its own.
    let spaces = declared.namespaces.iter().map(|(name, namespace)| (*name, Some(namespace)));
    for (name, namespace) in spaces.chain([(PEER_NAMESPACE, None)]) {
        let here = inhabitants.get(name).map(Vec::as_slice).unwrap_or_default();
        // A node is sent every namespace for its labels; rules of one that holds no destination of the slice
        // decide nothing there, and the groups they name were not sent.
        let mut namespace_rules = Vec::new();
        if let Some(namespace) = namespace.filter(|_| !here.is_empty() || mode == Mode::Whole) {
            namespace_rules = compiler.add(Owner::namespace(*namespace), &namespace.body.rules);
            for include in &namespace.body.include {
                namespace_rules.extend(compiler.include(namespace.file(), include, Layer::Namespace, &mut included));
            }
        }
        for (workload, source) in here.iter().filter_map(|workload| declared.services.get_key_value(*workload)) {
            let own = compiler.add(Owner::service(*source), &source.body.rules);
            let mut applicable = compiler.meaning(&mesh_rules, workload);
            applicable.extend(compiler.meaning(&namespace_rules, workload));
            for include in &source.body.include {
                applicable.extend(compiler.include(source.file(), include, Layer::Service, &mut included));
            }
            applicable.extend(own);
            services.insert((*workload).clone(), (*source, applicable));
        }
    }
    if mode == Mode::Whole {
        for (name, rules) in &declared.rules {
            // Rules that nobody includes are checked all the same.
            if !included.keys().any(|(known, _)| known == name) {
                compiler.check_only(*rules);
            }
        }
    }
    let services: BTreeMap<_, _> = services
        .into_iter()
        .map(|(name, (source, applicable))| {
            let service = compiler.service(source, &applicable);
            (name, service)
        })
        .collect();
    let tests = declared.tests(&mut compiler, &services);
    let later = compiler.later(&services);
    let rules = compiler.finish();
    let proofs = declared.proofs(&identities, &rules.groups);
    if !findings.is_empty() {
        return Err(findings.into_sorted());
    }
    Ok(CompiledPolicy {
        mode,
        trust_domain: declared.mesh.body.trust_domain.clone(),
        digest: digest(documents),
        identities: Arc::new(identities),
        services,
        rules: rules.rules,
        issuers: declared.mesh.body.issuers.clone(),
        tests,
        proofs,
        later,
    })
}

impl<'a> Declared<'a> {
    fn collect(documents: &'a Documents, mode: Mode, findings: &mut Findings) -> Option<Self> {
        let mut meshes: Vec<Source<'a, Mesh>> = Vec::new();
        let (mut groups, mut rules, mut namespaces) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut services = BTreeMap::new();
        let mut tests = Vec::new();
        for document in documents.iter() {
            let name = document.object.name.as_str();
            match &document.body {
                Body::Set(_) => {}
                Body::Mesh(body) => meshes.push(Source { document, body }),
                Body::Group(body) => drop(groups.insert(name, Source { document, body })),
                Body::Rules(body) => drop(rules.insert(name, Source { document, body })),
                Body::Namespace(body) => drop(namespaces.insert(name, Source { document, body })),
                Body::Service(body) => drop(services.insert(&body.workload, Source { document, body })),
                Body::Tests(body) => tests.push(Source { document, body }),
            }
        }
        let file = documents.objects().next().map_or("policy", |object| object.file.as_str());
        let Some(mesh) = meshes.first().copied() else {
            let at = Position { line: 1, column: 1 };
            findings.error(file, at, Code::MissingKey, "there is no Mesh document", "kind: Mesh, name: <trust domain>");
            return None;
        };
        for second in meshes.iter().skip(1) {
            let message = format!("a second Mesh, `{}`", second.name());
            let hint = format!("the first is at {}:{}", mesh.file(), mesh.document.name_at.line);
            findings.error(second.file(), second.document.name_at, Code::Duplicate, message, hint);
        }
        Some(Self { mode, mesh, groups, rules, namespaces, services, tests })
    }

    fn check_labels(&self, findings: &mut Findings) {
        let labels = &self.mesh.body.labels;
        for namespace in self.namespaces.values() {
            for (key, value) in &namespace.body.labels {
                self.check_label(namespace.file(), key, &value.value, value.at, findings);
            }
            for (label, values) in labels {
                if !namespace.body.labels.iter().any(|(key, _)| key.value == label.value) {
                    let message =
                        format!("the Namespace {} does not set the label `{}`", namespace.name(), label.value);
                    let hint = format!("one of {}", values.join(", "));
                    findings.error(namespace.file(), namespace.document.name_at, Code::MissingKey, message, hint);
                }
            }
        }
        for group in self.groups.values() {
            if let Group::Labels(wanted) = group.body {
                for (key, value) in wanted {
                    self.check_label(group.file(), key, value, key.at, findings);
                }
            }
        }
        for (workload, service) in &self.services {
            if !self.has_namespace(workload.namespace()) {
                let message = format!("the namespace `{}` is not declared", workload.namespace());
                let hint = self.namespace_hint(workload.namespace());
                findings.error(service.file(), service.document.name_at, Code::UnknownName, message, hint);
            }
        }
    }

    fn has_namespace(&self, name: &str) -> bool {
        name == PEER_NAMESPACE || self.namespaces.contains_key(name)
    }

    fn namespace_hint(&self, given: &str) -> String {
        let hint = nearest_hint(given, self.namespaces.keys().copied());
        if hint.is_empty() { format!("add kind: Namespace, name: {given}") } else { hint }
    }

    fn check_label(&self, file: &str, key: &At<String>, value: &str, at: Position, findings: &mut Findings) {
        let labels = &self.mesh.body.labels;
        let Some((_, values)) = labels.iter().find(|(label, _)| label.value == key.value) else {
            let hint = nearest_hint(&key.value, labels.iter().map(|(label, _)| label.value.as_str()));
            let message = format!("the mesh has no label `{}`", key.value);
            findings.error(file, key.at, Code::UnknownName, message, hint);
            return;
        };
        if !values.iter().any(|known| known == value) {
            let message = format!("the label `{}` has no value `{value}`", key.value);
            findings.error(
                file,
                at,
                Code::UnknownName,
                message,
                nearest_hint(value, values.iter().map(String::as_str)),
            );
        }
    }

    /// In a whole mesh the declared identities; in a slice also those that are merely named.
    fn identities(&self) -> IdentityTable {
        let mut names: BTreeSet<&WorkloadName> = self.services.keys().copied().collect();
        let open = self.mode == Mode::Slice;
        if open {
            let mut note = |selectors: &'a [At<Selector>]| {
                names.extend(selectors.iter().filter_map(|selector| match &selector.value {
                    Selector::Workload(name) => Some(name),
                    Selector::Any | Selector::Namespace(_) | Selector::Group(_) => None,
                }));
            };
            for group in self.groups.values() {
                if let Group::Members(members) = group.body {
                    note(members);
                }
            }
            let rules = self.mesh.body.rules.iter();
            let rules = rules.chain(self.rules.values().flat_map(|source| &source.body.rules));
            let rules = rules.chain(self.namespaces.values().flat_map(|source| &source.body.rules));
            for rule in rules.chain(self.services.values().flat_map(|source| &source.body.rules)) {
                note(&rule.from);
                note(&rule.to);
                for except in &rule.except {
                    note(&except.from);
                    note(&except.to);
                }
                if let Some(must) = &rule.must {
                    note(&must.from);
                }
            }
        }
        let spaces = self.namespaces.keys().copied().chain([PEER_NAMESPACE]);
        IdentityTable::new(spaces, names.into_iter(), open)
    }

    fn groups(&self, identities: &IdentityTable, findings: &mut Findings) -> BTreeMap<&'a str, IdentitySet> {
        let none = BTreeMap::new();
        let mut groups = BTreeMap::new();
        for (name, source) in &self.groups {
            let set = match source.body {
                Group::Members(members) => {
                    for member in members {
                        self.check_selector(source.file(), member, findings);
                    }
                    IdentitySet::resolve(identities, &none, members.iter().map(|member| &member.value))
                }
                Group::Labels(wanted) => {
                    let carries = |namespace: &Namespace| {
                        wanted.iter().all(|(key, value)| {
                            namespace.labels.iter().any(|(k, v)| k.value == key.value && v.value == *value)
                        })
                    };
                    let spaces: Vec<Selector> = self
                        .namespaces
                        .iter()
                        .filter(|(_, namespace)| carries(namespace.body))
                        .map(|(name, _)| Selector::Namespace((*name).to_owned()))
                        .collect();
                    IdentitySet::resolve(identities, &none, spaces.iter())
                }
            };
            groups.insert(*name, set);
        }
        groups
    }

    /// Reports a selector that names nothing. A slice may name identities and namespaces that it does not hold.
    pub(super) fn check_selector(&self, file: &str, selector: &At<Selector>, findings: &mut Findings) {
        match &selector.value {
            Selector::Any => {}
            Selector::Group(name) => {
                if !self.groups.contains_key(name.as_str()) {
                    let hint = nearest_hint(name, self.groups.keys().copied());
                    let message = format!("there is no Group `{name}`");
                    findings.error(file, selector.at, Code::UnknownName, message, hint);
                }
            }
            Selector::Namespace(_) | Selector::Workload(_) if self.mode == Mode::Slice => {}
            Selector::Namespace(name) => {
                if !self.has_namespace(name) {
                    let message = format!("there is no Namespace `{name}`");
                    findings.error(file, selector.at, Code::UnknownName, message, self.namespace_hint(name));
                }
            }
            Selector::Workload(name) => self.check_workload(file, name, selector.at, findings),
        }
    }

    fn check_workload(&self, file: &str, name: &WorkloadName, at: Position, findings: &mut Findings) {
        if !self.services.contains_key(name) {
            let (message, near, otherwise) = if name.is_peer() {
                let known = self.services.keys().filter(|known| known.is_peer()).map(|known| known.name());
                let near = nearest_hint(name.name(), known);
                (format!("there is no Peer `{}`", name.name()), near, format!("add kind: Peer, name: {}", name.name()))
            } else {
                let near = nearest_hint(name.as_str(), self.services.keys().map(|known| known.as_str()));
                (format!("there is no Service `{name}`"), near, "a job is a Service without ports".to_owned())
            };
            findings.error(file, at, Code::UnknownName, message, if near.is_empty() { otherwise } else { near });
        }
    }

    fn tests(
        &self,
        compiler: &mut RuleCompiler<'_, 'a, '_>,
        services: &BTreeMap<WorkloadName, Service>,
    ) -> Vec<TestFile> {
        if self.mode == Mode::Slice {
            return Vec::new();
        }
        let rule_ids: BTreeSet<String> = compiler.rule_ids();
        for source in &self.tests {
            let file = source.file();
            for case in &source.body.cases {
                self.check_workload(file, &case.from.value, case.from.at, compiler.findings);
                self.check_workload(file, &case.to.value, case.to.at, compiler.findings);
                if let Attempt::Request(port, _) = &case.attempt
                    && let Some(service) = services.get(&case.to.value)
                    && !service.ports.iter().any(|known| known.name.value == port.value)
                {
                    let message = format!("{} has no port `{}`", case.to.value, port.value);
                    let hint = nearest_hint(&port.value, service.ports.iter().map(|known| known.name.value.as_str()));
                    compiler.findings.error(file, port.at, Code::UnknownName, message, hint);
                }
                if let Some(rule) = &case.expect.rule
                    && !rule_ids.contains(rule)
                {
                    let hint = nearest_hint(rule, rule_ids.iter().map(String::as_str));
                    let message = format!("case {}: there is no rule `{rule}`", case.name.value);
                    compiler.findings.error(file, case.name.at, Code::UnknownName, message, hint);
                }
            }
            for proof in &source.body.never {
                for selector in proof.from.iter().chain(&proof.to) {
                    self.check_selector(file, selector, compiler.findings);
                }
            }
        }
        let own = |source: &Source<'a, Tests>| TestFile {
            name: source.name().to_owned(),
            file: source.file().to_owned(),
            tests: source.body.clone(),
        };
        self.tests.iter().map(own).collect()
    }

    fn proofs(&self, identities: &IdentityTable, groups: &BTreeMap<&'a str, IdentitySet>) -> Vec<Proof> {
        if self.mode == Mode::Slice {
            return Vec::new();
        }
        let set = |selectors: &[At<Selector>]| {
            IdentitySet::resolve(identities, groups, selectors.iter().map(|selector| &selector.value))
        };
        let mut proofs = Vec::new();
        for source in &self.tests {
            for never in &source.body.never {
                proofs.push(Proof {
                    name: format!("{}:{}", source.name(), never.name.value),
                    file: source.file().to_owned(),
                    line: never.name.at.line,
                    from: set(&never.from),
                    to: set(&never.to),
                    ports: never.ports.clone(),
                });
            }
        }
        proofs
    }
}

/// First port of every range in which no rule changes.
pub(super) fn boundaries(ranges: impl Iterator<Item = PortRange>) -> Option<[Vec<u16>; 2]> {
    let mut tcp = BTreeSet::from([0]);
    let mut udp = BTreeSet::from([0]);
    for range in ranges {
        let set = match range.transport {
            Transport::Tcp => &mut tcp,
            Transport::Udp => &mut udp,
        };
        set.insert(range.first);
        set.extend(range.last.checked_add(1));
    }
    if tcp.len() > MAX_BOUNDARIES || udp.len() > MAX_BOUNDARIES {
        return None;
    }
    Some([tcp.into_iter().collect(), udp.into_iter().collect()])
}
