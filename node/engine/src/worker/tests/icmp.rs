//! ICMP: errors that quote a live flow, echo, and what never passes.

use super::*;

/// A8.
#[test]
fn icmp_errors_pass_only_when_they_quote_a_live_flow_of_that_peer() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let back = there.reversed();
        let query = there.udp(40_000, 53, b"query");
        assert_eq!(world.inject(API, WEB, &back.unreachable(&query)), dropped(WEB, Reason::IcmpUnsolicited));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        let error = back.unreachable(&query);
        assert_eq!(world.send(API, &error), delivered(WEB, &error));
        // Another peer may quote what it never received.
        let [v6, v4] = between(BATCH, WEB);
        let batch = if there.source.is_ipv6() { v6 } else { v4 };
        assert_eq!(world.inject(BATCH, WEB, &batch.unreachable(&query)), dropped(WEB, Reason::IcmpUnsolicited));
        let other = there.udp(40_000, 54, b"query");
        assert_eq!(world.inject(API, WEB, &back.unreachable(&other)), dropped(WEB, Reason::IcmpUnsolicited));
        let turned = back.udp(53, 40_000, b"query");
        assert_eq!(world.inject(API, WEB, &back.unreachable(&turned)), dropped(WEB, Reason::IcmpUnsolicited));
        assert_eq!(world.inject(API, WEB, &back.unreachable(&[])), dropped(WEB, Reason::IcmpUnsolicited));
        assert_eq!(world.inject(API, WEB, &back.unreachable(&error)), dropped(WEB, Reason::IcmpUnsolicited));
    }
}

#[test]
fn an_icmp_error_about_a_flow_that_policy_has_cut_does_not_pass() {
    for family in [0, 1] {
        let mut world = World::new();
        let there = between(WEB, API)[family];
        let (query, answer) = (there.udp(40_000, 53, b"q"), there.reversed().udp(53, 40_000, b"a"));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        assert_eq!(world.send(API, &answer), delivered(WEB, &answer));
        let error = there.unreachable(&answer);
        assert_eq!(world.inject(WEB, API, &error), delivered(API, &error));
        world.publish(CLOSED);
        assert_eq!(world.inject(WEB, API, &error), dropped(API, Reason::IcmpUnsolicited));
    }
}

#[test]
fn an_icmp_error_in_parts_does_not_pass() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let query = there.udp(40_000, 53, &[7; 400]);
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        let error = there.reversed().unreachable(&query);
        let part = fragment(&error, 90, 0, true, 80);
        assert_eq!(world.inject(API, WEB, &part), dropped(WEB, Reason::IcmpForbidden));
    }
}

#[test]
fn an_error_about_an_echo_request_reaches_its_sender() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let request = there.echo(true, 9);
        assert_eq!(world.send(WEB, &request), delivered(API, &request));
        let error = there.reversed().unreachable(&request);
        assert_eq!(world.send(API, &error), delivered(WEB, &error));
    }
}

#[test]
fn icmp_that_configures_a_host_is_forbidden() {
    let mut world = World::new();
    let [v6, v4] = between(WEB, API);
    for kind in [130, 133, 134, 135, 136, 137, 138, 139, 143, 200] {
        assert_eq!(world.inject(WEB, API, &v6.icmp(&[kind; 24])), dropped(API, Reason::IcmpForbidden), "{kind}");
    }
    for kind in [4, 5, 9, 10, 13, 15, 17] {
        assert_eq!(world.inject(WEB, API, &v4.icmp(&[kind; 24])), dropped(API, Reason::IcmpForbidden), "{kind}");
    }
}

#[test]
fn both_sides_may_ping_with_the_same_identifier() {
    let mut world = World::with_policy(
        "
kind: Service
name: bank/api
ports: { api: { port: 8080, protocol: tcp } }
allow: { web-calls: { from: [shop/web], ports: [api] } }
",
    );
    let [there, _] = between(WEB, API);
    let ping = there.echo(true, 3);
    assert_eq!(world.send(WEB, &ping), delivered(API, &ping));
    // Api may not call web: its own request with that identifier is not carried by web's flow.
    assert_eq!(world.send(API, &there.reversed().echo(true, 3)).drops, [(API, Reason::NoGrant)]);
    let pong = there.reversed().echo(false, 3);
    assert_eq!(world.send(API, &pong), delivered(WEB, &pong));
}
