//! The evaluator's layer-4 answers, laid out for packets: one local service, every caller, every port.
//!
//! A lookup is one binary search over the few ports at which something changes and two array reads; it neither
//! allocates nor takes a lock. Dates are part of the table, so a table is right for as long as its policy is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::compile::{CompiledPolicy, RuleIndex, Service};
use super::document::Transport;
use super::evaluate::Judgement;
use super::identities::SourceIndex;
use crate::reason::Reason;
use crate::{UnixTime, WorkloadName};

/// What a packet is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVerdict {
    /// Let in.
    pub allow: bool,
    /// Only audit mode lets it in; `reason` says what it lacks.
    pub audit: bool,
    /// Why not.
    pub reason: Option<Reason>,
    /// The rule that decided; [`CompiledPolicy::explain`] names it.
    pub rule: Option<RuleIndex>,
}

impl From<Judgement> for PortVerdict {
    fn from(judgement: Judgement) -> Self {
        let Judgement { allow, audit, reason, rule } = judgement;
        Self { allow, audit, reason, rule }
    }
}

/// What to say where the table has no entry: it never has more rows than the policy it was built from.
const ABSENT: PortVerdict = PortVerdict { allow: false, audit: false, reason: Some(Reason::NoRule), rule: None };

/// The layer-4 decisions of one local service.
#[derive(Debug, Clone)]
pub struct PortTable {
    /// One per stretch of time in which no date passes, in order.
    spans: Box<[Span]>,
    /// By source index: which column decides for that caller. Callers that no rule tells apart share one.
    columns: Box<[u32]>,
    width: usize,
    verdicts: Box<[PortVerdict]>,
}

#[derive(Debug, Clone)]
struct Span {
    /// The first moment after it; none for the last.
    until: Option<UnixTime>,
    tcp: Box<[u16]>,
    udp: Box<[u16]>,
    /// For TCP, then UDP: row by row, one verdict number per column. Behind them one row for echo.
    cells: Box<[u32]>,
}

impl PortTable {
    /// Judges one packet that opens a flow.
    #[must_use]
    pub fn decide(&self, source: SourceIndex, transport: Transport, port: u16, now: UnixTime) -> PortVerdict {
        let Some(span) = self.span(now) else { return ABSENT };
        let (starts, before) = match transport {
            Transport::Tcp => (&span.tcp, 0),
            Transport::Udp => (&span.udp, span.tcp.len()),
        };
        let row = starts.partition_point(|start| *start <= port);
        // Starts begin at port 0, so there is always a row at or before the port.
        self.cell(span, before + row.saturating_sub(1), source)
    }

    /// Judges an ICMP echo request.
    #[must_use]
    pub fn decide_echo(&self, source: SourceIndex, now: UnixTime) -> PortVerdict {
        let Some(span) = self.span(now) else { return ABSENT };
        self.cell(span, span.tcp.len() + span.udp.len(), source)
    }

    fn span(&self, now: UnixTime) -> Option<&Span> {
        self.spans.iter().find(|span| span.until.is_none_or(|until| now < until))
    }

    fn cell(&self, span: &Span, row: usize, source: SourceIndex) -> PortVerdict {
        let column = self.columns.get(source.as_usize()).copied().unwrap_or(0);
        let number = span.cells.get(row * self.width + column as usize);
        number.and_then(|number| self.verdicts.get(*number as usize)).copied().unwrap_or(ABSENT)
    }
}

impl CompiledPolicy {
    /// The table of one local service. A name without a Service document denies everything as `no-service`.
    ///
    /// Costs time in proportion to the identities known here; build it once per policy.
    #[must_use]
    pub fn port_table(&self, service: &WorkloadName) -> PortTable {
        let Some(service) = self.services.get(service) else {
            let verdicts = vec![Judgement::deny(Reason::NoService, None).into()];
            let start: Box<[u16]> = Box::new([0]);
            let span = Span { until: None, tcp: start.clone(), udp: start, cells: Box::new([0; 3]) };
            let columns = Box::new([0]);
            return PortTable { spans: Box::new([span]), columns, width: 1, verdicts: verdicts.into() };
        };
        let mut columns = Vec::with_capacity(self.identities.len());
        let mut sources = vec![SourceIndex::UNKNOWN];
        // What the service's rules say about a caller, apart from ports and dates.
        let mut seen = BTreeMap::from([(self.signature(SourceIndex::UNKNOWN, service), 0_u32)]);
        columns.push(0);
        for (source, _) in self.identities.iter() {
            let next = u32::try_from(sources.len()).unwrap_or(0);
            let column = *seen.entry(self.signature(source, service)).or_insert_with(|| {
                sources.push(source);
                next
            });
            columns.push(column);
        }
        let mut verdicts: Vec<PortVerdict> = Vec::new();
        let mut numbers = BTreeMap::new();
        let mut spans = Vec::new();
        let mut from = UnixTime(0);
        for until in self.dates_of(service).into_iter().map(Some).chain([None]) {
            let mut cells = Vec::new();
            let mut put = |judgement: Judgement| {
                let number = *numbers.entry(judgement).or_insert_with(|| {
                    verdicts.push(judgement.into());
                    u32::try_from(verdicts.len() - 1).unwrap_or(0)
                });
                cells.push(number);
            };
            for (transport, port) in service.points() {
                for source in &sources {
                    put(self.judge(*source, service, transport, port, from));
                }
            }
            for source in &sources {
                put(self.judge_echo(*source, service, from));
            }
            let [tcp, udp] = service.boundaries.clone();
            spans.push(Span { until, tcp: tcp.into(), udp: udp.into(), cells: cells.into() });
            from = until.unwrap_or(from);
        }
        PortTable { spans: spans.into(), columns: columns.into(), width: sources.len(), verdicts: verdicts.into() }
    }
}

impl CompiledPolicy {
    /// Everything that the rules of a service ask about a caller. Callers with the same answers get the same
    /// verdicts everywhere.
    fn signature(&self, source: SourceIndex, service: &Service) -> Vec<bool> {
        let table = &self.identities;
        let mut answers = vec![source == SourceIndex::UNKNOWN];
        for (_, rule) in self.rules(&service.denies) {
            answers.push(rule.from.contains(table, source));
            answers.extend(rule.except.iter().map(|except| except.from.contains(table, source)));
        }
        for (_, rule) in self.rules(&service.requires) {
            answers.push(rule.from.contains(table, source));
            let demanded = rule.must.as_ref().and_then(|must| must.from.as_ref());
            answers.push(demanded.is_none_or(|from| from.contains(table, source)));
        }
        answers.extend(self.rules(&service.allows).map(|(_, rule)| rule.from.contains(table, source)));
        answers
    }

    /// The dates at which something ends that concerns a service, ascending.
    fn dates_of(&self, service: &Service) -> BTreeSet<UnixTime> {
        let excepts = self.rules(&service.denies).flat_map(|(_, rule)| rule.except.iter());
        let ends = excepts.filter_map(|except| except.until);
        ends.chain(service.audit.as_ref().map(|audit| audit.until)).collect()
    }
}

#[cfg(test)]
mod tests;
