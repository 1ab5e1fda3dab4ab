//! Random packets panic nowhere; random walks deliver nothing that a model of two sentences forbids.

use super::*;

/// One step of a random walk: who sends what to whom.
#[derive(Debug, Clone, Copy)]
enum Walk {
    Tcp { from_web: bool, flags: u8, port: u16 },
    Udp { from_web: bool, port: u16 },
    Wait(u64),
    Policy { open: bool },
}

fn walk() -> impl Strategy<Value = Walk> {
    let flags = prop::sample::select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST]);
    prop_oneof![
        6 => (any::<bool>(), flags, 0u16..3).prop_map(|(from_web, flags, port)| Walk::Tcp { from_web, flags, port }),
        4 => (any::<bool>(), 0u16..3).prop_map(|(from_web, port)| Walk::Udp { from_web, port }),
        1 => (1u64..20).prop_map(Walk::Wait),
        1 => any::<bool>().prop_map(|open| Walk::Policy { open }),
    ]
}

proptest! {
    #[test]
    fn no_packet_and_no_datagram_panics_a_worker(
        mut packet in prop::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>(), protocol in 0usize..6,
        aimed in any::<bool>(),
    ) {
        let mut world = World::new();
        let build = between(WEB, API)[usize::from(!v6)];
        if aimed {
            let protocols = [TCP, 17, 1, 58, 44, 0];
            packet = build.ip(protocols[protocol], packet, 1000);
        }
        world.send(WEB, &packet);
        world.inject(WEB, API, &packet);
        let mut outcome = Outcome::default();
        world.receive(WEB, API, &packet, &mut outcome);
        packet.splice(0..0, [4, 0, 0, 0]);
        world.receive(WEB, API, &packet, &mut outcome);
        prop_assert!(outcome.delivered.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a model that knows two sentences: web's packets reach api's declared ports while the rule stands,
    /// and nothing reaches web but answers to what web began.
    #[test]
    fn nothing_is_delivered_that_the_model_forbids(steps in prop::collection::vec(walk(), 1..60)) {
        let mut world = World::new();
        let [there, _] = between(WEB, API);
        let mut open = true;
        let mut begun = std::collections::HashSet::new();
        for step in steps {
            match step {
                Walk::Wait(seconds) => {
                    // Beyond its age a session carries nothing; that is another test's claim.
                    if world.now.monotonic + Duration::from_secs(seconds) < Duration::from_secs(1000 + 170) {
                        world.pass_time(Duration::from_secs(seconds));
                    }
                }
                Walk::Policy { open: next } => {
                    open = next;
                    world.publish(if open { ALLOW } else { CLOSED });
                }
                Walk::Tcp { from_web: true, flags, port } => {
                    let packet = there.tcp(40_000 + port, 8080, flags, b"x");
                    let sent = !world.seal(WEB, &packet).is_empty();
                    if sent && flags == SYN {
                        begun.insert((TCP, port));
                    }
                    prop_assert!(!sent || begun.contains(&(TCP, port)), "web began nothing on {}", port);
                    let at_api = world.inject(WEB, API, &packet).delivered_at(API).len();
                    prop_assert_eq!(at_api, usize::from(open), "{:?}", step);
                }
                Walk::Udp { from_web: true, port } => {
                    let packet = there.udp(40_000 + port, 53, b"x");
                    prop_assert!(!world.seal(WEB, &packet).is_empty());
                    begun.insert((17, port));
                    let at_api = world.inject(WEB, API, &packet).delivered_at(API).len();
                    prop_assert_eq!(at_api, usize::from(open), "{:?}", step);
                }
                Walk::Tcp { from_web: false, flags, port } => {
                    let packet = there.reversed().tcp(8080, 40_000 + port, flags, b"x");
                    let at_web = world.inject(API, WEB, &packet).delivered_at(WEB).len();
                    let allowed = begun.contains(&(TCP, port)) && flags != SYN;
                    prop_assert!(at_web <= usize::from(allowed), "{:?}", step);
                }
                Walk::Udp { from_web: false, port } => {
                    let packet = there.reversed().udp(53, 40_000 + port, b"x");
                    let at_web = world.inject(API, WEB, &packet).delivered_at(WEB).len();
                    prop_assert_eq!(at_web, usize::from(begun.contains(&(17, port))), "{:?}", step);
                }
            }
        }
    }
}
