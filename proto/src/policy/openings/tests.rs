//! The stretches say, port by port, what the evaluator says.

use super::super::fixtures::{BANK, NOW, name, whole};
use super::*;

/// Every port that could matter, for every known pair and a stranger, at these moments.
fn assert_openings_equal_evaluator(policy: &CompiledPolicy, moments: &[UnixTime]) {
    let mut sources: Vec<WorkloadName> = policy.services().map(|service| service.name().clone()).collect();
    sources.extend([name("nowhere/stranger"), name("shop/undeclared")]);
    for service in policy.services() {
        let ports: Vec<u16> = service
            .points()
            .flat_map(|(_, port)| [port.saturating_sub(1), port, port.saturating_add(1)])
            .chain([0, u16::MAX])
            .collect();
        for source in &sources {
            for now in moments.iter().copied() {
                let openings = policy.openings(source, service.name(), now);
                for (transport, open) in [(Transport::Tcp, &openings.tcp), (Transport::Udp, &openings.udp)] {
                    let apart = open.windows(2).all(|two| two[0].end() + 1 < *two[1].start());
                    assert!(apart && open.iter().all(|range| !range.is_empty()), "{open:?}");
                    for port in &ports {
                        let decision = policy.evaluate(source, service.name(), transport, *port, now);
                        assert_eq!(
                            openings.allows(transport, *port),
                            decision.is_allowed(),
                            "{source} -> {decision:?} at {now}"
                        );
                    }
                }
                let echo = policy.evaluate_echo(source, service.name(), now);
                assert_eq!(openings.echo, echo.is_allowed(), "{source} -> {} echo", service.name());
            }
        }
    }
}

#[test]
fn openings_equal_the_evaluator_for_every_pair_at_every_date() {
    let moments = [0, NOW.0, 1_797_379_199, 1_797_379_200, 1_801_439_999, 1_801_440_000, u64::MAX].map(UnixTime);
    assert_openings_equal_evaluator(&whole(BANK), &moments);
}

#[test]
fn a_deny_cuts_a_hole_and_neighbouring_ports_are_one_stretch() {
    let policy = whole(
        "kind: Mesh\nname: m\n---\nkind: Namespace\nname: a\ndeny:\n  admin: { from: [any], ports: [1005/tcp] }\n---\n\
         kind: Service\nname: a/caller\n---\nkind: Service\nname: a/b\nports:\n  \
         low: { port: \"1000-1009\", protocol: tcp }\n  next: { port: 1010, protocol: tcp }\n  dns: { port: 53, protocol: udp }\n\
         allow:\n  low: { from: [a/caller], ports: [low] }\n  next: { from: [a/caller], ports: [next] }\n  \
         dns: { from: [a/b], ports: [dns] }\n",
    );
    let openings = policy.openings(&name("a/caller"), &name("a/b"), NOW);
    assert_eq!(openings, Openings { tcp: vec![1000..=1004, 1006..=1010], udp: Vec::new(), echo: true });
    assert!(policy.openings(&name("a/b"), &name("a/caller"), NOW).is_empty(), "one way only");
}

#[test]
fn who_is_not_declared_opens_nothing_and_to_an_undeclared_nothing_is_open() {
    let policy = whole(BANK);
    assert!(policy.openings(&name("nowhere/stranger"), &name("bank/ledger"), NOW).is_empty());
    assert!(policy.openings(&name("bank/banking-api"), &name("bank/none"), NOW).is_empty());
}
