//! Compiles rules, once for each layer they act in, and gathers them per service.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::super::diagnostic::{Code, Diagnostic, Findings, Severity, nearest_hint};
use super::super::document::{
    Effect, Mesh, Namespace, PortProtocol, PortRange, PortTerm, RequestTerms, Rule, Rules, Selector, ServiceDocument,
};
use super::super::fields::At;
use super::super::identities::{IdentitySet, IdentityTable};
use super::link::{Declared, Source, boundaries};
use super::{CompiledExcept, CompiledMust, CompiledRule, Layer, MAX_BOUNDARIES, RuleIndex, RuleRef, Service};
use crate::WorkloadName;

/// The object a rule stands in.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    file: &'a str,
    id: &'a str,
    layer: Layer,
    /// Whose ports names mean.
    service: Option<&'a ServiceDocument>,
    /// What `to` may not leave.
    namespace: Option<&'a str>,
}

impl<'a> Owner<'a> {
    pub(super) fn mesh(source: Source<'a, Mesh>) -> Self {
        let file = &source.document.object.file;
        Self { file, id: "mesh", layer: Layer::Mesh, service: None, namespace: None }
    }

    pub(super) fn namespace(source: Source<'a, Namespace>) -> Self {
        let object = &source.document.object;
        Self {
            file: &object.file,
            id: &object.name,
            layer: Layer::Namespace,
            service: None,
            namespace: Some(&object.name),
        }
    }

    pub(super) fn service(source: Source<'a, ServiceDocument>) -> Self {
        let object = &source.document.object;
        Self {
            file: &object.file,
            id: source.body.workload.as_str(),
            layer: Layer::Service,
            service: Some(source.body),
            namespace: None,
        }
    }

    fn included(source: Source<'a, Rules>, layer: Layer) -> Self {
        let object = &source.document.object;
        Self { file: &object.file, id: &object.name, layer, service: None, namespace: None }
    }
}

/// Compiled rules and groups.
pub(super) struct Compiled<'a> {
    pub rules: Vec<CompiledRule>,
    pub groups: BTreeMap<&'a str, IdentitySet>,
}

pub(super) struct RuleCompiler<'c, 'a, 'f> {
    declared: &'c Declared<'a>,
    identities: &'c IdentityTable,
    groups: BTreeMap<&'a str, IdentitySet>,
    pub findings: &'f mut Findings,
    rules: Vec<CompiledRule>,
    /// For each rule, its destinations; `None` for all that its layer means.
    to: Vec<Option<IdentitySet>>,
}

impl<'c, 'a, 'f> RuleCompiler<'c, 'a, 'f> {
    pub(super) fn new(
        declared: &'c Declared<'a>,
        identities: &'c IdentityTable,
        groups: BTreeMap<&'a str, IdentitySet>,
        findings: &'f mut Findings,
    ) -> Self {
        Self { declared, identities, groups, findings, rules: Vec::new(), to: Vec::new() }
    }

    /// Compiles an object's rules.
    pub(super) fn add(&mut self, owner: Owner<'_>, rules: &[Rule]) -> Vec<RuleIndex> {
        rules.iter().map(|rule| self.rule(owner, rule)).collect()
    }

    /// Compiles the rules of an `include`, once per layer.
    pub(super) fn include(
        &mut self,
        file: &str,
        name: &At<String>,
        layer: Layer,
        included: &mut BTreeMap<(&'a str, Layer), Vec<RuleIndex>>,
    ) -> Vec<RuleIndex> {
        let Some((known, source)) = self.declared.rules.get_key_value(name.value.as_str()) else {
            let hint = nearest_hint(&name.value, self.declared.rules.keys().copied());
            let message = format!("there are no Rules `{}`", name.value);
            self.findings.error(file, name.at, Code::UnknownName, message, hint);
            return Vec::new();
        };
        if let Some(rules) = included.get(&(*known, layer)) {
            return rules.clone();
        }
        let rules = self.add(Owner::included(*source, layer), &source.body.rules);
        included.insert((known, layer), rules.clone());
        rules
    }

    /// Checks rules that act nowhere.
    pub(super) fn check_only(&mut self, source: Source<'_, Rules>) {
        let (rules, to) = (self.rules.len(), self.to.len());
        self.add(Owner::included(source, Layer::Service), &source.body.rules);
        self.rules.truncate(rules);
        self.to.truncate(to);
    }

    /// Those of the rules that mean a destination.
    pub(super) fn meaning(&self, rules: &[RuleIndex], destination: &WorkloadName) -> Vec<RuleIndex> {
        let index = self.identities.index(destination);
        let means = |rule: &&RuleIndex| match self.to.get(rule.0 as usize) {
            Some(Some(to)) => to.contains(self.identities, index),
            Some(None) => true,
            None => false,
        };
        rules.iter().filter(means).copied().collect()
    }

    fn set(&self, selectors: &[At<Selector>]) -> IdentitySet {
        IdentitySet::resolve(self.identities, &self.groups, selectors.iter().map(|selector| &selector.value))
    }

    fn check_all(&mut self, file: &str, selectors: &[At<Selector>]) {
        for selector in selectors {
            self.declared.check_selector(file, selector, self.findings);
        }
    }

    fn rule(&mut self, owner: Owner<'_>, rule: &Rule) -> RuleIndex {
        self.check_all(owner.file, &rule.from);
        self.check_to(owner, &rule.to);
        self.check_request(owner, &rule.request);
        self.check_protocol(owner, rule);
        for except in &rule.except {
            self.check_all(owner.file, &except.from);
            self.check_to(owner, &except.to);
        }
        if let Some(must) = &rule.must {
            self.check_all(owner.file, &must.from);
            self.check_request(owner, &must.request);
        }
        let from = if rule.from.is_empty() { IdentitySet::any() } else { self.set(&rule.from) };
        let optional = |compiler: &Self, selectors: &[At<Selector>]| {
            if selectors.is_empty() { None } else { Some(compiler.set(selectors)) }
        };
        let to = optional(self, &rule.to);
        let except = rule
            .except
            .iter()
            .map(|except| CompiledExcept {
                from: self.set(&except.from),
                to: optional(self, &except.to),
                ports: ranges(owner, &except.ports),
                until: except.until,
            })
            .collect();
        let must = rule
            .must
            .as_ref()
            .map(|must| CompiledMust { from: optional(self, &must.from), request: must.request.clone() });
        let index = RuleIndex(u32::try_from(self.rules.len()).unwrap_or(u32::MAX));
        let id = format!("{}:{}", owner.id, rule.name.value);
        self.rules.push(CompiledRule {
            reference: RuleRef { id, layer: owner.layer, file: owner.file.to_owned(), line: rule.name.at.line },
            at: rule.name.at,
            effect: rule.effect,
            from,
            ports: ranges(owner, &rule.ports),
            protocol: rule.protocol,
            request: rule.request.clone(),
            except,
            must,
        });
        self.to.push(to);
        index
    }

    fn check_to(&mut self, owner: Owner<'_>, to: &[At<Selector>]) {
        self.check_all(owner.file, to);
        let Some(namespace) = owner.namespace else { return };
        for selector in to {
            let inside = match &selector.value {
                Selector::Any | Selector::Group(_) => true,
                Selector::Namespace(name) => name == namespace,
                Selector::Workload(name) => name.namespace() == namespace,
            };
            if !inside {
                let message = format!("a rule of the Namespace {namespace} reaches its own services only");
                self.findings.error(
                    owner.file,
                    selector.at,
                    Code::ImpossibleRule,
                    message,
                    "rules of the Mesh reach all",
                );
            }
        }
    }

    fn check_request(&mut self, owner: Owner<'_>, request: &RequestTerms) {
        let Some(jwt) = &request.jwt else { return };
        let issuers = &self.declared.mesh.body.issuers;
        if !issuers.iter().any(|issuer| issuer.name.value == jwt.issuer.value) {
            let hint = nearest_hint(&jwt.issuer.value, issuers.iter().map(|issuer| issuer.name.value.as_str()));
            let message = format!("the mesh has no issuer `{}`", jwt.issuer.value);
            self.findings.error(owner.file, jwt.issuer.at, Code::UnknownName, message, hint);
        }
    }

    fn check_protocol(&mut self, owner: Owner<'_>, rule: &Rule) {
        let Some(protocol) = rule.protocol else { return };
        let at = rule.name.at;
        if has_request_terms(rule) && protocol != PortProtocol::Http {
            let message = format!("the rule `{}` judges requests, which only http ports carry", rule.name.value);
            self.findings.error(owner.file, at, Code::ImpossibleRule, message, "write protocol: http");
        }
        let ports = ranges(owner, &rule.ports);
        if !ports.is_empty() && !ports.iter().any(|range| range.transport == protocol.transport()) {
            let message = format!("none of the ports of the rule `{}` carries its protocol", rule.name.value);
            self.findings.error(owner.file, at, Code::ImpossibleRule, message, "");
        }
    }

    /// Puts a service together from the rules that mean it, in the order of layers.
    pub(super) fn service(&mut self, source: Source<'_, ServiceDocument>, applicable: &[RuleIndex]) -> Service {
        let object = &source.document.object;
        let body = source.body;
        let of = |effect: Effect| -> Vec<RuleIndex> {
            let has = |index: &&RuleIndex| self.rules.get(index.0 as usize).is_some_and(|rule| rule.effect == effect);
            applicable.iter().filter(has).copied().collect()
        };
        let mut service = Service {
            name: body.workload.clone(),
            index: self.identities.index(&body.workload),
            file: object.file.clone(),
            at: source.document.name_at,
            ports: body.ports.clone(),
            runs: body.runs.clone(),
            audit: body.audit.clone(),
            denies: of(Effect::Deny),
            requires: of(Effect::Require),
            allows: of(Effect::Allow),
            boundaries: [Vec::new(), Vec::new()],
        };
        let declared = body.ports.iter().flat_map(declared_ranges).map(|(range, _)| range);
        let named = applicable
            .iter()
            .filter_map(|index| self.rules.get(index.0 as usize))
            .flat_map(|rule| rule.ports.iter().chain(rule.except.iter().flat_map(|except| &except.ports)).copied());
        match boundaries(declared.chain(named)) {
            Some(points) => service.boundaries = points,
            None => {
                let message = format!("the rules that mean {} name too many different ports", service.name);
                let hint = format!("at most {MAX_BOUNDARIES} boundaries; use ranges");
                self.findings.error(&object.file, service.at, Code::TooLarge, message, hint);
            }
        }
        self.check_reach(&service, applicable);
        service
    }

    /// Request terms that would reach a port whose requests nobody sees.
    fn check_reach(&mut self, service: &Service, applicable: &[RuleIndex]) {
        for index in applicable {
            let Some(rule) = self.rules.get(index.0 as usize) else { continue };
            let terms = !rule.request.is_empty() || rule.must.as_ref().is_some_and(|must| !must.request.is_empty());
            if !terms {
                continue;
            }
            let reached = service.ports.iter().flat_map(|port| {
                declared_ranges(port).map(move |(range, protocol)| (port.name.value.clone(), range, protocol))
            });
            let mut blind = None;
            for (name, range, protocol) in reached {
                let meant = (rule.ports.is_empty() || rule.ports.iter().any(|wanted| wanted.overlaps(range)))
                    && match rule.protocol {
                        None => true,
                        Some(wanted) => wanted == protocol,
                    };
                if meant && protocol != PortProtocol::Http {
                    blind = Some(format!("the port `{name}` of {}", service.name));
                }
            }
            // An allow by number opens an undeclared port, whose requests nobody sees.
            if rule.effect == Effect::Allow {
                let undeclared = rule.ports.iter().find(|range| {
                    !service.ports.iter().flat_map(declared_ranges).any(|(declared, protocol)| {
                        protocol == PortProtocol::Http && declared.first <= range.first && range.last <= declared.last
                    })
                });
                if let Some(range) = undeclared {
                    blind = blind.or_else(|| Some(format!("{range} of {}", service.name)));
                }
            }
            if let Some(port) = blind {
                let id = &rule.reference.id;
                let message = format!("the rule `{id}` judges requests and reaches {port}, which is not http");
                let hint = if rule.effect == Effect::Allow {
                    "name http ports only"
                } else {
                    "add `protocol: http`, or name http ports only"
                };
                let (file, at) = (rule.reference.file.clone(), rule.at);
                self.findings.error(&file, at, Code::ImpossibleRule, message, hint);
            }
        }
    }

    pub(super) fn rule_ids(&self) -> BTreeSet<String> {
        self.rules.iter().map(|rule| rule.reference.id.clone()).collect()
    }

    /// What is checked but not enforced by this release.
    pub(super) fn later(&self, services: &BTreeMap<WorkloadName, Service>) -> Vec<Diagnostic> {
        let mut list = Vec::new();
        let mut add = |file: &str, at: super::Position, message: String| {
            list.push(Diagnostic {
                file: file.to_owned(),
                line: at.line,
                column: at.column,
                severity: Severity::Error,
                code: Code::NotEnforceable,
                message: format!("not enforceable yet: {message}"),
                hint: "remove it until a release that enforces it".to_owned(),
            });
        };
        for rule in &self.rules {
            let terms = terms(&rule.request).into_iter().chain(rule.must.iter().flat_map(|must| terms(&must.request)));
            let terms: Vec<_> = terms.collect();
            if !terms.is_empty() {
                let message = format!("{} needs {} at request time", rule.reference.id, terms.join(", "));
                add(&rule.reference.file, rule.at, message);
            }
        }
        for service in services.values() {
            for port in &service.ports {
                for (word, there) in [("target", port.target.is_some()), ("health", port.health.is_some())] {
                    if there {
                        let message = format!("`{word}` of the port {} of {}", port.name.value, service.name);
                        add(&service.file, port.name.at, message);
                    }
                }
            }
        }
        for source in self.declared.services.values() {
            for term in &source.body.traffic {
                add(source.file(), term.at, format!("{} of {}", term.value, source.name()));
            }
        }
        list.sort();
        list.dedup();
        list
    }

    pub(super) fn finish(self) -> Compiled<'a> {
        Compiled { rules: self.rules, groups: self.groups }
    }
}

fn has_request_terms(rule: &Rule) -> bool {
    !rule.request.is_empty() || rule.must.as_ref().is_some_and(|must| !must.request.is_empty())
}

fn terms(request: &RequestTerms) -> Vec<&'static str> {
    let mut terms = Vec::new();
    if !request.http.is_empty() {
        terms.push("http");
    }
    if request.jwt.is_some() {
        terms.push("jwt");
    }
    if request.when.is_some() {
        terms.push("when");
    }
    terms
}

/// A port's numbers, per protocol it carries.
fn declared_ranges(port: &super::Port) -> impl Iterator<Item = (PortRange, PortProtocol)> {
    let (first, last) = (port.first, port.last);
    port.protocols.iter().map(move |protocol| (PortRange { transport: protocol.transport(), first, last }, *protocol))
}

/// Numbers behind port terms. Names were checked when the document was read.
fn ranges(owner: Owner<'_>, terms: &[At<PortTerm>]) -> Vec<PortRange> {
    let mut list = Vec::new();
    for term in terms {
        match &term.value {
            PortTerm::Range(range) => list.push(*range),
            PortTerm::Named(name) => {
                let ports = owner.service.map(|service| service.ports.as_slice()).unwrap_or_default();
                let named = ports.iter().filter(|port| port.name.value == *name);
                list.extend(named.flat_map(declared_ranges).map(|(range, _)| range));
            }
        }
    }
    list
}
