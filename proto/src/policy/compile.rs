//! From documents to a policy that can decide: names resolved and interned, rules collected per service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::diagnostic::{Diagnostic, Position};
use super::document::{
    Audit, Documents, Effect, Issuer, Port, PortProtocol, PortRange, RequestTerms, Run, Tests, Transport,
};
use super::identities::{IdentitySet, IdentityTable, SourceIndex};
use crate::{TrustDomain, UnixTime, WorkloadName};

mod link;
mod rules;

/// Most distinct port boundaries of one service, over all rules that concern it, per transport.
pub const MAX_BOUNDARIES: usize = 1024;

/// How much of the mesh the documents describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything: a name that is declared nowhere is an error, and an undeclared identity is denied.
    Whole,
    /// What one node needs, cut from a whole that compiled: identities may be named that are not described.
    Slice,
}

/// Where a rule stands. A deny or a require of any layer holds for what lies below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The Mesh document.
    Mesh,
    /// The destination's namespace, with the Rules it includes.
    Namespace,
    /// The destination itself, with the Rules it includes.
    Service,
}

/// A rule's number in one [`CompiledPolicy`]; meaningless in any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleIndex(pub(super) u32);

/// A rule as a decision names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// `<object>:<rule>`, for example `bank/banking-api:desk-reads` or `mesh:prod-to-dev`.
    pub id: String,
    /// The layer it acts in.
    pub layer: Layer,
    /// The file it was written in.
    pub file: String,
    /// Its line there, from 1.
    pub line: u32,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    pub reference: RuleRef,
    pub at: Position,
    pub effect: Effect,
    pub from: IdentitySet,
    /// Empty for all.
    pub ports: Vec<PortRange>,
    pub protocol: Option<PortProtocol>,
    pub request: RequestTerms,
    pub except: Vec<CompiledExcept>,
    pub must: Option<CompiledMust>,
}

#[derive(Debug)]
pub(super) struct CompiledExcept {
    pub from: IdentitySet,
    /// `None` for every destination of the rule.
    pub to: Option<IdentitySet>,
    pub ports: Vec<PortRange>,
    pub until: Option<UnixTime>,
}

#[derive(Debug)]
pub(super) struct CompiledMust {
    /// `None` for no demand on the caller.
    pub from: Option<IdentitySet>,
    pub request: RequestTerms,
}

impl CompiledRule {
    /// Whether the rule means this port, given what the service declares there.
    pub(super) fn covers(&self, transport: Transport, port: u16, declared: Option<PortProtocol>) -> bool {
        let protocol = match self.protocol {
            None => true,
            Some(PortProtocol::Http) => declared == Some(PortProtocol::Http),
            // HTTP is TCP too: a rule on tcp cannot be evaded by declaring http.
            Some(PortProtocol::Tcp) => transport == Transport::Tcp,
            Some(PortProtocol::Udp) => transport == Transport::Udp,
        };
        protocol && in_ranges(&self.ports, transport, port)
    }
}

/// Whether a port is among the ranges; no range means every port.
pub(super) fn in_ranges(ranges: &[PortRange], transport: Transport, port: u16) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(transport, port))
}

/// A declared identity with everything that concerns it as a destination.
#[derive(Debug)]
pub struct Service {
    pub(super) name: WorkloadName,
    pub(super) index: SourceIndex,
    pub(super) file: String,
    pub(super) at: Position,
    pub(super) ports: Vec<Port>,
    pub(super) runs: Vec<Run>,
    pub(super) audit: Option<Audit>,
    pub(super) denies: Vec<RuleIndex>,
    pub(super) requires: Vec<RuleIndex>,
    pub(super) allows: Vec<RuleIndex>,
    /// First port of every range in which nothing changes, ascending, from 0; per transport.
    pub(super) boundaries: [Vec<u16>; 2],
}

impl Service {
    /// Its identity.
    #[must_use]
    pub fn name(&self) -> &WorkloadName {
        &self.name
    }

    /// Its declared ports.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The declared port at a number.
    #[must_use]
    pub fn port_at(&self, transport: Transport, port: u16) -> Option<&Port> {
        self.ports.iter().find(|declared| {
            declared.first <= port
                && port <= declared.last
                && declared.protocols.iter().any(|protocol| protocol.transport() == transport)
        })
    }

    /// What is declared at a number.
    #[must_use]
    pub fn protocol_at(&self, transport: Transport, port: u16) -> Option<PortProtocol> {
        let declared = self.port_at(transport, port)?;
        declared.protocols.iter().copied().find(|protocol| protocol.transport() == transport)
    }

    /// Who may become it: any one entry must hold.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The file that declares it.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line of its name in that file.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.at.line
    }

    /// One port of every range in which nothing changes: what must be looked at to have seen every port.
    pub(super) fn points(&self) -> impl Iterator<Item = (Transport, u16)> {
        let [tcp, udp] = &self.boundaries;
        let tcp = tcp.iter().map(|port| (Transport::Tcp, *port));
        tcp.chain(udp.iter().map(|port| (Transport::Udp, *port)))
    }
}

/// A policy that decides. Immutable; share it in an [`Arc`].
#[derive(Debug)]
pub struct CompiledPolicy {
    pub(super) mode: Mode,
    pub(super) trust_domain: TrustDomain,
    pub(super) digest: [u8; 32],
    pub(super) identities: Arc<IdentityTable>,
    pub(super) services: BTreeMap<WorkloadName, Service>,
    pub(super) rules: Vec<CompiledRule>,
    pub(super) issuers: Vec<Issuer>,
    pub(super) tests: Vec<TestFile>,
    pub(super) proofs: Vec<Proof>,
    later: Vec<Diagnostic>,
}

/// The cases of one Tests document.
#[derive(Debug)]
pub(super) struct TestFile {
    pub name: String,
    pub file: String,
    pub tests: Tests,
}

/// A compiled `never`.
#[derive(Debug)]
pub(super) struct Proof {
    pub name: String,
    pub file: String,
    pub line: u32,
    pub from: IdentitySet,
    pub to: IdentitySet,
    pub ports: Vec<PortRange>,
}

impl CompiledPolicy {
    /// Compiles documents. All errors are collected; nothing is compiled in part.
    pub fn compile(documents: &Documents, mode: Mode) -> Result<Self, Vec<Diagnostic>> {
        link::link(documents, mode)
    }

    /// A slice that does not know `undeclared` either: identities that exist although the whole does not declare them. Without
    /// their names a slice, which is not told of every declared identity, would take them for the rest of their namespace.
    #[must_use]
    pub fn excluding(mut self, undeclared: BTreeSet<WorkloadName>) -> Self {
        Arc::make_mut(&mut self.identities).exclude(undeclared);
        self
    }

    /// Whether an identity is of a declared namespace without being declared itself.
    #[must_use]
    pub fn leaves_out(&self, name: &WorkloadName) -> bool {
        self.identities.has_namespace(name.namespace()) && !self.services.contains_key(name)
    }

    /// SHA-256 over all documents in a fixed order: equal for equal policies.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether undeclared identities are errors here.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The name of the Mesh document.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A declared identity: its registration and its ports.
    #[must_use]
    pub fn service(&self, name: &WorkloadName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every declared identity, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The token issuers of the mesh.
    #[must_use]
    pub fn issuers(&self) -> &[Issuer] {
        &self.issuers
    }

    /// The numbers of identities, for [`PortTable::decide`](super::PortTable::decide).
    #[must_use]
    pub fn identities(&self) -> &Arc<IdentityTable> {
        &self.identities
    }

    /// The first moment after `after` from which a decision, or who is linked to whom, may be another without any change of
    /// the policy: an `audit` or an `except` ends.
    #[must_use]
    pub fn next_date(&self, after: UnixTime) -> Option<UnixTime> {
        let excepts = self.rules.iter().flat_map(|rule| rule.except.iter().filter_map(|except| except.until));
        let audits = self.services.values().filter_map(|service| service.audit.as_ref().map(|audit| audit.until));
        excepts.chain(audits).filter(|date| *date > after).min()
    }

    /// The rule behind a number that this policy gave.
    #[must_use]
    pub fn explain(&self, rule: RuleIndex) -> Option<&RuleRef> {
        self.rules.get(rule.0 as usize).map(|rule| &rule.reference)
    }

    /// `Err` names everything that was parsed and checked but that this release does not enforce: request
    /// terms, limits, routes, views, targets and health checks. A policy with such terms is refused whole.
    pub fn enforceable(&self) -> Result<(), Vec<Diagnostic>> {
        if self.later.is_empty() { Ok(()) } else { Err(self.later.clone()) }
    }

    pub(super) fn rules(&self, list: &[RuleIndex]) -> impl Iterator<Item = (RuleIndex, &CompiledRule)> {
        list.iter().filter_map(|index| self.rules.get(index.0 as usize).map(|rule| (*index, rule)))
    }
}

fn digest(documents: &Documents) -> [u8; 32] {
    let mut objects: Vec<_> = documents.objects().collect();
    objects.sort();
    let mut hash = Sha256::new();
    for object in objects {
        for part in [object.kind.name(), &object.name, &object.file, &object.text] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(object.line.to_be_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
