//! The table says what the evaluator says.

use super::super::fixtures::{BANK, NOW, name, whole};
use super::*;
use crate::policy::Mode;

/// Every port that could matter, for every known caller and a stranger, at every date that could matter.
pub(in super::super) fn assert_table_equals_evaluator(policy: &CompiledPolicy, moments: &[UnixTime]) {
    let mut sources: Vec<WorkloadName> = policy.services().map(|service| service.name().clone()).collect();
    sources.push(name("nowhere/stranger"));
    sources.push(name("shop/undeclared"));
    for service in policy.services() {
        let table = policy.port_table(service.name());
        let ports: BTreeSet<u16> = service
            .points()
            .flat_map(|(_, port)| [port.saturating_sub(1), port, port.saturating_add(1)])
            .chain([0, u16::MAX])
            .collect();
        for source in &sources {
            let index = policy.identities().index(source);
            for now in moments.iter().copied() {
                for transport in [Transport::Tcp, Transport::Udp] {
                    for port in ports.iter().copied() {
                        let decision = policy.evaluate(source, service.name(), transport, port, now);
                        let verdict = table.decide(index, transport, port, now);
                        let rule = verdict.rule.and_then(|rule| policy.explain(rule)).cloned();
                        let told = (verdict.allow, verdict.audit, verdict.reason, rule);
                        let judged = (decision.is_allowed(), decision.audit, decision.reason, decision.rule);
                        assert_eq!(told, judged, "{source} -> {} {transport} {port} at {now}", service.name());
                    }
                }
                let echo = policy.evaluate_echo(source, service.name(), now);
                let told = table.decide_echo(index, now);
                assert_eq!((told.allow, told.reason), (echo.is_allowed(), echo.reason), "{source} echo");
            }
        }
    }
}

#[test]
fn the_table_of_every_service_equals_the_evaluator_at_every_date() {
    let moments = [0, NOW.0, 1_797_379_199, 1_797_379_200, 1_801_439_999, 1_801_440_000, u64::MAX].map(UnixTime);
    assert_table_equals_evaluator(&whole(BANK), &moments);
}

#[test]
fn a_workload_without_a_service_document_has_a_table_that_denies() {
    let policy = whole(BANK);
    let table = policy.port_table(&name("bank/none"));
    let caller = policy.identities().index(&name("shop/cart"));
    for verdict in [table.decide(caller, Transport::Tcp, 80, NOW), table.decide_echo(caller, NOW)] {
        assert_eq!((verdict.allow, verdict.reason), (false, Some(Reason::NoService)));
    }
}

#[test]
fn an_index_of_another_policy_is_denied_rather_than_out_of_bounds() {
    let small = whole(
        "kind: Mesh\nname: m\n---\nkind: Namespace\nname: a\n---\nkind: Service\nname: a/b\nports: { p: { port: 1, protocol: tcp } }\nallow: { all: { from: [any], ports: [p] } }\n",
    );
    let foreign = whole(BANK).identities().index(&name("shop/web-frontend"));
    assert_eq!(small.mode(), Mode::Whole);
    assert!(!small.port_table(&name("a/b")).decide(foreign, Transport::Tcp, 1, NOW).allow);
}
