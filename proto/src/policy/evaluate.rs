//! The one evaluator. What packets, requests, tests and `warren why` are told comes from here.
//!
//! Order: a deny of any layer wins unless one of its exceptions holds; then every require whose scope matches
//! must hold; then an allow of the destination lets in; nothing else does. At layer 4 a port that carries HTTP
//! lets a connection pass when some request on it might be allowed: request terms count as holding in an allow
//! and a require, and as not holding in a deny. Each request is then judged on its own.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::compile::{CompiledPolicy, CompiledRule, Layer, RuleIndex, RuleRef, Service, in_ranges};
use super::document::{Effect, PortProtocol, Transport};
use super::identities::SourceIndex;
use super::paths::is_normal_path;
use super::request::{Asked, Failed, Request};
use crate::reason::Reason;
use crate::{UnixTime, WorkloadName};

/// Let in or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Let in.
    Allow,
    /// Refused.
    Deny,
}

/// The allow that came nearest to letting in, and what it lacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// The rule.
    pub rule: RuleRef,
    /// The first term that failed: `from`, `ports`, `http`, `jwt` or `when`.
    pub failed: String,
    /// What was found there, for the policy's owner; never for the refused caller.
    pub detail: String,
}

/// A decision as a value: for the flow log, the access log, `warren why`, tests and the console alike.
///
/// Its JSON form is a promise: fields are added, not changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Let in or not.
    pub verdict: Verdict,
    /// Why not. With `audit` set it is why it would not have been let in.
    pub reason: Option<Reason>,
    /// True when only the destination's audit mode let it in.
    pub audit: bool,
    /// The caller.
    pub source: WorkloadName,
    /// The destination.
    pub destination: WorkloadName,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The port; none for an echo.
    pub port: Option<u16>,
    /// The name that the destination gives the port.
    pub port_name: Option<String>,
    /// The layer that decided.
    pub layer: Option<Layer>,
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// For a denial because nothing admits: the rule that came nearest.
    pub nearest: Option<Nearest>,
}

impl Decision {
    /// Whether it lets in.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

/// A decision in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Judgement {
    pub allow: bool,
    pub audit: bool,
    pub reason: Option<Reason>,
    pub rule: Option<RuleIndex>,
}

impl Judgement {
    const fn allow(rule: RuleIndex) -> Self {
        Self { allow: true, audit: false, reason: None, rule: Some(rule) }
    }

    pub(super) const fn deny(reason: Reason, rule: Option<RuleIndex>) -> Self {
        Self { allow: false, audit: false, reason: Some(reason), rule }
    }
}

/// The port that is tried.
#[derive(Clone, Copy)]
struct Target {
    transport: Transport,
    port: u16,
    declared: Option<PortProtocol>,
}

impl CompiledPolicy {
    /// Judges a connection or datagram at layer 4.
    #[must_use]
    pub fn evaluate(
        &self,
        source: &WorkloadName,
        destination: &WorkloadName,
        transport: Transport,
        port: u16,
        now: UnixTime,
    ) -> Decision {
        let index = self.identities.index(source);
        let Some(service) = self.services.get(destination) else {
            return self.without_service(source, destination, transport.name(), Some(port));
        };
        let judgement = self.judge(index, service, transport, port, now);
        let mut decision = self.decision(source, service, transport.name(), Some(port), judgement);
        decision.port_name = service.port_at(transport, port).map(|declared| declared.name.value.clone());
        if !judgement.allow && judgement.rule.is_none() {
            decision.nearest = self.nearest(index, service, transport, port, None);
        }
        decision
    }

    /// Judges an ICMP echo request: let in from whom some rule of the destination admits on any port.
    #[must_use]
    pub fn evaluate_echo(&self, source: &WorkloadName, destination: &WorkloadName, now: UnixTime) -> Decision {
        let Some(service) = self.services.get(destination) else {
            return self.without_service(source, destination, "icmp", None);
        };
        let judgement = self.judge_echo(self.identities.index(source), service, now);
        self.decision(source, service, "icmp", None, judgement)
    }

    /// Judges an HTTP request that arrives at a port declared `http`.
    ///
    /// A port that carries no HTTP has nothing to judge a request by; it is refused.
    #[must_use]
    pub fn evaluate_request(
        &self,
        source: &WorkloadName,
        destination: &WorkloadName,
        port: u16,
        request: &Request,
        now: UnixTime,
    ) -> Decision {
        let transport = Transport::Tcp;
        let index = self.identities.index(source);
        let Some(service) = self.services.get(destination) else {
            return self.without_service(source, destination, transport.name(), Some(port));
        };
        let connection = self.judge(index, service, transport, port, now);
        let judgement = if !connection.allow {
            connection
        } else if !is_normal_path(&request.path) {
            Judgement::deny(Reason::RequestMalformed, None)
        } else {
            self.judge_request(index, service, port, Asked { source, destination, request }, now)
        };
        let mut decision = self.decision(source, service, transport.name(), Some(port), judgement);
        decision.port_name = service.port_at(transport, port).map(|declared| declared.name.value.clone());
        if !judgement.allow && judgement.rule.is_none() {
            decision.nearest =
                self.nearest(index, service, transport, port, Some(Asked { source, destination, request }));
        }
        decision
    }

    /// Whether some rule, or audit mode, lets `source` reach `destination` at any port.
    ///
    /// Without it the two get no tunnel in this direction at all.
    #[must_use]
    pub fn linked(&self, source: &WorkloadName, destination: &WorkloadName, now: UnixTime) -> bool {
        let index = self.identities.index(source);
        let Some(service) = self.services.get(destination) else { return false };
        self.is_linked(index, service, now)
    }

    /// Whether some rule lets one of the two reach the other.
    #[must_use]
    pub fn linked_either_way(&self, one: &WorkloadName, other: &WorkloadName, now: UnixTime) -> bool {
        self.linked(one, other, now) || self.linked(other, one, now)
    }

    pub(super) fn is_linked(&self, index: SourceIndex, service: &Service, now: UnixTime) -> bool {
        let audited = service.audit.as_ref().is_some_and(|audit| now < audit.until);
        let named = || self.rules(&service.allows).any(|(_, rule)| rule.from.contains(&self.identities, index));
        (audited || named())
            && service.points().any(|(transport, port)| self.judge(index, service, transport, port, now).allow)
    }

    /// Every declared identity that is linked to `destination`: who could reach it.
    #[must_use]
    pub fn callers(&self, destination: &WorkloadName, now: UnixTime) -> Vec<WorkloadName> {
        let Some(service) = self.services.get(destination) else { return Vec::new() };
        self.linked_callers(service, now)
            .filter_map(|index| self.identities.workload(index))
            .filter(|name| self.services.contains_key(*name))
            .cloned()
            .collect()
    }

    /// The callers linked to a service, by number. Looks only at those whom some allow names, unless audit mode
    /// opens the service to all.
    pub(super) fn linked_callers(&self, service: &Service, now: UnixTime) -> impl Iterator<Item = SourceIndex> {
        let mut named: BTreeSet<SourceIndex> = BTreeSet::new();
        if service.audit.as_ref().is_some_and(|audit| now < audit.until) {
            named.extend(self.identities.iter().map(|(index, _)| index));
        } else {
            named.extend(self.rules(&service.allows).flat_map(|(_, rule)| rule.from.indices(&self.identities)));
        }
        named.into_iter().filter(move |index| self.is_linked(*index, service, now))
    }

    /// Every service that `source` is linked to: what it could reach.
    #[must_use]
    pub fn callees(&self, source: &WorkloadName, now: UnixTime) -> Vec<WorkloadName> {
        let index = self.identities.index(source);
        let linked = |service: &&Service| self.is_linked(index, service, now);
        self.services.values().filter(linked).map(|service| service.name.clone()).collect()
    }

    /// Layer 4, in numbers.
    pub(super) fn judge(
        &self,
        source: SourceIndex,
        service: &Service,
        transport: Transport,
        port: u16,
        now: UnixTime,
    ) -> Judgement {
        let target = Target { transport, port, declared: service.protocol_at(transport, port) };
        for (index, rule) in self.rules(&service.denies) {
            if rule.request.is_empty() && self.denies(rule, source, service, target, now) {
                return Judgement::deny(Reason::DeniedByRule, Some(index));
            }
        }
        for (index, rule) in self.rules(&service.requires) {
            if self.concerns(rule, source, target) && !self.caller_suffices(rule, source) {
                return Judgement::deny(Reason::RequireFailed, Some(index));
            }
        }
        let admits = |(_, rule): &(RuleIndex, &CompiledRule)| self.admits(rule, source, target);
        if let Some((index, _)) = self.rules(&service.allows).find(admits) {
            return Judgement::allow(index);
        }
        self.nothing_admits(source, service, target, now)
    }

    /// ICMP echo, in numbers.
    pub(super) fn judge_echo(&self, source: SourceIndex, service: &Service, now: UnixTime) -> Judgement {
        let admitted = service.points().find_map(|(transport, port)| {
            let judgement = self.judge(source, service, transport, port, now);
            (judgement.allow && !judgement.audit).then_some(judgement)
        });
        admitted.unwrap_or(Judgement::deny(Reason::NoRule, None))
    }

    fn judge_request(
        &self,
        source: SourceIndex,
        service: &Service,
        port: u16,
        asked: Asked<'_>,
        now: UnixTime,
    ) -> Judgement {
        let transport = Transport::Tcp;
        let target = Target { transport, port, declared: service.protocol_at(transport, port) };
        if target.declared != Some(PortProtocol::Http) {
            return Judgement::deny(Reason::RequestNotMatched, None);
        }
        for (index, rule) in self.rules(&service.denies) {
            if self.denies(rule, source, service, target, now) && rule.request.check(asked, Effect::Deny).is_ok() {
                return Judgement::deny(Reason::DeniedByRule, Some(index));
            }
        }
        for (index, rule) in self.rules(&service.requires) {
            if !self.concerns(rule, source, target) {
                continue;
            }
            if !self.caller_suffices(rule, source) {
                return Judgement::deny(Reason::RequireFailed, Some(index));
            }
            let Some(must) = &rule.must else { continue };
            if let Err(Failed { term, reason, .. }) = must.request.check(asked, Effect::Require) {
                let reason = if term == "jwt" { reason } else { Reason::RequireFailed };
                return Judgement::deny(reason, Some(index));
            }
        }
        let mut reason = None;
        for (index, rule) in self.rules(&service.allows) {
            if !self.admits(rule, source, target) {
                continue;
            }
            match rule.request.check(asked, Effect::Allow) {
                Ok(()) => return Judgement::allow(index),
                // The rule that got furthest speaks: a request it would have taken but for the token.
                Err(failed) if failed.term == "jwt" => reason = reason.or(Some(failed.reason)),
                Err(_) => {}
            }
        }
        let refused = self.nothing_admits(source, service, target, now);
        match reason {
            // Audit relaxes no-rule and nothing else: not a bad or missing token.
            Some(reason) => Judgement::deny(reason, None),
            None if refused.audit => refused,
            None => Judgement::deny(Reason::RequestNotMatched, None),
        }
    }

    /// Whether a deny's terms on caller and port hold and no exception does.
    fn denies(
        &self,
        rule: &CompiledRule,
        source: SourceIndex,
        service: &Service,
        target: Target,
        now: UnixTime,
    ) -> bool {
        self.concerns(rule, source, target)
            && !rule.except.iter().any(|except| {
                except.until.is_none_or(|until| now < until)
                    && except.from.contains(&self.identities, source)
                    && except.to.as_ref().is_none_or(|to| to.contains(&self.identities, service.index))
                    && in_ranges(&except.ports, target.transport, target.port)
            })
    }

    fn concerns(&self, rule: &CompiledRule, source: SourceIndex, target: Target) -> bool {
        rule.covers(target.transport, target.port, target.declared) && rule.from.contains(&self.identities, source)
    }

    fn caller_suffices(&self, rule: &CompiledRule, source: SourceIndex) -> bool {
        let demanded = rule.must.as_ref().and_then(|must| must.from.as_ref());
        demanded.is_none_or(|from| from.contains(&self.identities, source))
    }

    /// `any` in an allow is this trust domain, so an identity that the policy does not know is never admitted.
    fn admits(&self, rule: &CompiledRule, source: SourceIndex, target: Target) -> bool {
        source != SourceIndex::UNKNOWN && self.concerns(rule, source, target)
    }

    fn nothing_admits(&self, source: SourceIndex, service: &Service, target: Target, now: UnixTime) -> Judgement {
        let Target { transport, port, .. } = target;
        let Some(declared) = service.port_at(transport, port) else {
            // A number that an included rule opens is declared by that rule.
            let opened = self.rules(&service.allows).any(|(_, rule)| rule.covers(transport, port, None));
            return Judgement::deny(if opened { Reason::NoRule } else { Reason::NoService }, None);
        };
        let audited = service.audit.as_ref().is_some_and(|audit| {
            now < audit.until
                && (audit.ports.is_empty() || audit.ports.iter().any(|name| name.value == declared.name.value))
        });
        let audit = audited && source != SourceIndex::UNKNOWN;
        Judgement { allow: audit, audit, reason: Some(Reason::NoRule), rule: None }
    }

    fn nearest(
        &self,
        source: SourceIndex,
        service: &Service,
        transport: Transport,
        port: u16,
        asked: Option<Asked<'_>>,
    ) -> Option<Nearest> {
        let declared = service.protocol_at(transport, port);
        let mut best: Option<(u8, Nearest)> = None;
        for (_, rule) in self.rules(&service.allows) {
            let from = rule.from.contains(&self.identities, source) && source != SourceIndex::UNKNOWN;
            let ports = rule.covers(transport, port, declared);
            let (passed, failed, detail) = match (from, ports) {
                (false, false) => continue,
                (false, true) => (1, "from", "admits the port, but not this caller".to_owned()),
                (true, false) => {
                    let ports: Vec<_> = rule.ports.iter().take(8).map(ToString::to_string).collect();
                    (2, "ports", format!("admits the caller to {}", ports.join(", ")))
                }
                (true, true) => match asked.map(|asked| rule.request.check(asked, Effect::Allow)) {
                    Some(Err(Failed { term, detail, .. })) => {
                        let passed = match term {
                            "http" => 3,
                            "jwt" => 4,
                            _ => 5,
                        };
                        (passed, term, detail)
                    }
                    Some(Ok(())) | None => continue,
                },
            };
            if best.as_ref().is_none_or(|(most, _)| passed > *most) {
                let nearest = Nearest { rule: rule.reference.clone(), failed: failed.to_owned(), detail };
                best = Some((passed, nearest));
            }
        }
        best.map(|(_, nearest)| nearest)
    }

    fn decision(
        &self,
        source: &WorkloadName,
        service: &Service,
        protocol: &str,
        port: Option<u16>,
        judgement: Judgement,
    ) -> Decision {
        let rule = judgement.rule.and_then(|rule| self.explain(rule)).cloned();
        Decision {
            verdict: if judgement.allow { Verdict::Allow } else { Verdict::Deny },
            reason: judgement.reason,
            audit: judgement.audit,
            source: source.clone(),
            destination: service.name.clone(),
            protocol: protocol.to_owned(),
            port,
            port_name: None,
            layer: rule.as_ref().map(|rule| rule.layer),
            rule,
            nearest: None,
        }
    }

    fn without_service(
        &self,
        source: &WorkloadName,
        destination: &WorkloadName,
        protocol: &str,
        port: Option<u16>,
    ) -> Decision {
        Decision {
            verdict: Verdict::Deny,
            reason: Some(Reason::NoService),
            audit: false,
            source: source.clone(),
            destination: destination.clone(),
            protocol: protocol.to_owned(),
            port,
            port_name: None,
            layer: None,
            rule: None,
            nearest: None,
        }
    }
}

#[cfg(test)]
mod tests;
