//! Runs the Tests documents: examples through the evaluator, `never` proofs over every identity and port.

use serde::{Deserialize, Serialize};

use super::compile::{CompiledPolicy, Proof, Service};
use super::document::{Attempt, Case, Transport};
use super::evaluate::{Decision, Verdict};
use crate::UnixTime;

/// What came out of one test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestResult {
    /// `<tests>:<case>`.
    pub name: String,
    /// The file it stands in.
    pub file: String,
    /// Its line there.
    pub line: u32,
    /// Whether it holds.
    pub passed: bool,
    /// Why not; empty when it holds.
    pub message: String,
    /// The decision of an example, or the counter-example of a proof.
    pub decision: Option<Decision>,
}

/// Runs every case and proof of a whole policy.
///
/// A proof holds at layer 4, over all declared identities and all ports, with request terms and CEL taken as
/// holding. What is let in only shrinks as dates pass, so a proof that holds now holds later.
#[must_use]
pub fn run_tests(policy: &CompiledPolicy, now: UnixTime) -> Vec<TestResult> {
    let mut results = Vec::new();
    for file in &policy.tests {
        for case in &file.tests.cases {
            let decision = decide(policy, case, now);
            let message = mismatch(case, &decision);
            results.push(TestResult {
                name: format!("{}:{}", file.name, case.name.value),
                file: file.file.clone(),
                line: case.name.at.line,
                passed: message.is_empty(),
                message,
                decision: Some(decision),
            });
        }
    }
    for proof in &policy.proofs {
        let counter = counter_example(policy, proof, now);
        let message = counter.as_ref().map(describe).unwrap_or_default();
        results.push(TestResult {
            name: proof.name.clone(),
            file: proof.file.clone(),
            line: proof.line,
            passed: counter.is_none(),
            message,
            decision: counter,
        });
    }
    results
}

fn decide(policy: &CompiledPolicy, case: &Case, now: UnixTime) -> Decision {
    let now = case.moment.unwrap_or(now);
    let (from, to) = (&case.from.value, &case.to.value);
    match &case.attempt {
        Attempt::Connect(transport, port) => policy.evaluate(from, to, *transport, *port, now),
        Attempt::Echo => policy.evaluate_echo(from, to, now),
        Attempt::Request(name, request) => {
            // The linker checked that the port exists; a range is asked at its first number.
            let ports = policy.service(to).map(Service::ports).unwrap_or_default();
            let port = ports.iter().find(|port| port.name.value == name.value).map_or(0, |port| port.first);
            policy.evaluate_request(from, to, port, request, now)
        }
    }
}

fn mismatch(case: &Case, decision: &Decision) -> String {
    let expect = &case.expect;
    let wanted = if expect.allow { Verdict::Allow } else { Verdict::Deny };
    let rule = decision.rule.as_ref().map(|rule| rule.id.as_str());
    if decision.verdict != wanted {
        let wanted = if expect.allow { "allow" } else { "deny" };
        return format!("expected {wanted}, but {}", describe(decision));
    }
    if let Some(wanted) = &expect.rule
        && rule != Some(wanted)
    {
        return format!("expected the rule {wanted} to decide, but {}", describe(decision));
    }
    if let Some(wanted) = expect.reason
        && decision.reason != Some(wanted)
    {
        return format!("expected the reason {wanted}, but {}", describe(decision));
    }
    String::new()
}

fn describe(decision: &Decision) -> String {
    let port = decision.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let verdict = match decision.verdict {
        Verdict::Allow => "is let in",
        Verdict::Deny => "is refused",
    };
    let by = match (&decision.rule, decision.audit, decision.reason) {
        (Some(rule), ..) => format!(" by {} ({}:{})", rule.id, rule.file, rule.line),
        (None, true, _) => " by audit mode".to_owned(),
        (None, false, Some(reason)) => format!(" ({reason})"),
        (None, false, None) => String::new(),
    };
    format!("{} -> {} {}{port} {verdict}{by}", decision.source, decision.destination, decision.protocol)
}

fn counter_example(policy: &CompiledPolicy, proof: &Proof, now: UnixTime) -> Option<Decision> {
    let table = policy.identities();
    for service in policy.services().filter(|service| proof.to.contains(table, service.index)) {
        for source in policy.linked_callers(service, now).filter(|source| proof.from.contains(table, *source)) {
            // In a whole policy every number has a name.
            let Some(name) = table.workload(source) else { continue };
            for (transport, port) in points_within(service, proof) {
                if policy.judge(source, service, transport, port, now).allow {
                    return Some(policy.evaluate(name, &service.name, transport, port, now));
                }
            }
        }
    }
    None
}

/// A port of every range in which nothing changes, as far as the proof means it.
fn points_within<'a>(service: &'a Service, proof: &'a Proof) -> impl Iterator<Item = (Transport, u16)> {
    let starts = proof.ports.iter().map(|range| (range.transport, range.first));
    let within = |(transport, port): &(Transport, u16)| {
        proof.ports.is_empty() || proof.ports.iter().any(|range| range.contains(*transport, *port))
    };
    service.points().chain(starts).filter(within)
}

#[cfg(test)]
mod tests;
