//! A plain WireGuard device as a peer: a handshake tunnel without any of warren's additions is all it has.

use warren_proto::certificate::Capabilities;
use x25519_dalek::StaticSecret;

use super::*;
use crate::handshake::HandshakeTunnel;
use crate::key_exchange::Kind;
use crate::key_exchange::parts::split;

/// Node 0 of a world whose node 1 is a plain device.
struct Plain {
    world: World,
    device: HandshakeTunnel,
    from_node: Vec<Vec<u8>>,
}

fn inner(next_header: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, content.len() as u8, next_header, 64];
    packet.resize(40, 1);
    packet.extend_from_slice(content);
    packet
}

impl Plain {
    fn new() -> Self {
        Self::until(NOW.plus(DAY), NOW.plus(DAY))
    }

    /// The node's certificate and the device's end at these moments.
    fn until(node: UnixTime, device: UnixTime) -> Self {
        let mut world = World::pair_until(node);
        let secret = TunnelSecret::from_bytes([8; 32]);
        let peer = TestPeer::new(2, WORKLOADS[1], secret.public_key());
        let peer = TestPeer { capabilities: Capabilities::PLAIN, not_after: device, ..peer };
        let (key, verified) = issue_for(&world.mesh, &peer, secret);
        world.nodes[1].keys = vec![key];
        world.nodes[1].verified = vec![verified];
        world.apply(0, |_| ());
        let doorway = Arc::new(Doorway::new(StaticSecret::from([8; 32])));
        let node_key = world.nodes[0].keys[0].secret.public_key();
        let device = HandshakeTunnel::new(doorway, node_key, 0x77_7777);
        Self { world, device, from_node: Vec::new() }
    }

    /// The device's answer to a datagram.
    fn device_takes(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        match datagram[0] {
            1 => Some(self.device.handle_initiation(datagram).expect("stock WireGuard reads it")),
            2 => Some(self.device.handle_response(datagram).expect("stock WireGuard reads it")),
            4 => {
                self.from_node.extend(self.device.open(datagram).expect("stock WireGuard opens it"));
                None
            }
            other => panic!("message type {other}"),
        }
    }

    fn node_takes(&mut self, datagram: &[u8]) {
        let now = self.world.now;
        self.world.nodes[0].engine.handle_datagram(address(1), datagram, now);
        self.settle();
    }

    fn node_sends(&mut self, packet: &[u8]) {
        let (local, peer) = self.world.link(0);
        let now = self.world.now;
        self.world.nodes[0].unsent(local, peer, packet, now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(transmit) = self.world.nodes[0].engine.poll_transmit() {
            assert_eq!(transmit.to, address(1));
            if let Some(answer) = self.device_takes(&transmit.datagram) {
                let now = self.world.now;
                self.world.nodes[0].engine.handle_datagram(address(1), &answer, now);
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.world.set_time(self.world.now.monotonic + Duration::from_millis(250));
            let now = self.world.now;
            self.world.nodes[0].engine.handle_timeout(now);
            self.settle();
        }
    }

    fn opened(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.world.nodes[0].engine.poll_plain()).map(|plain| plain.packet).collect()
    }
}

#[test]
fn packets_that_waited_reach_a_stock_device_through_the_handshake_tunnel() {
    let mut plain = Plain::new();
    plain.node_sends(&inner(17, b"first"));
    plain.node_sends(&inner(17, b"second"));
    assert_eq!(plain.from_node, [inner(17, b"first"), inner(17, b"second")]);
    let answer = plain.device.seal(&inner(17, b"answer")).expect("established");
    plain.node_takes(&answer);
    assert_eq!(plain.opened(), [inner(17, b"answer")]);
}

#[test]
fn a_device_may_begin_and_needs_no_hint() {
    let mut plain = Plain::new();
    let initiation = plain.device.initiate().expect("initiation");
    assert_eq!(initiation[1..4], [0; 3]);
    plain.node_takes(&initiation);
    let packet = plain.device.seal(&inner(17, b"hello")).expect("established by the response");
    plain.node_takes(&packet);
    assert_eq!(plain.opened(), [inner(17, b"hello")]);
    plain.node_sends(&inner(17, b"answer"));
    assert_eq!(plain.from_node, [inner(17, b"answer")]);
}

/// What strangers make up names no key of ours; however much of it there is, a device that knows the key gets in.
#[test]
fn junk_without_a_hint_shuts_no_plain_device_out() {
    let mut plain = Plain::new();
    let mut junk = plain.device.initiate().expect("initiation");
    for number in 0..20_000_u32 {
        junk[8..12].copy_from_slice(&number.to_le_bytes());
        plain.node_takes(&junk);
    }
    assert_eq!(plain.world.drops(0, Reason::BadMac), 20_000);
    let initiation = plain.device.initiate().expect("initiation");
    plain.node_takes(&initiation);
    let packet = plain.device.seal(&inner(17, b"hello")).expect("established by the response");
    plain.node_takes(&packet);
    assert_eq!(plain.opened(), [inner(17, b"hello")]);
}

#[test]
fn congestion_marks_travel_with_a_plain_devices_packets_both_ways() {
    let mut plain = Plain::new();
    let mut packet = inner(17, b"first");
    ecn::set(&mut packet, ecn::ECT_0);
    let (local, peer) = plain.world.link(0);
    let now = plain.world.now;
    plain.world.nodes[0].unsent(local, peer, &packet, now);
    let mut marks = Vec::new();
    while let Some(transmit) = plain.world.nodes[0].engine.poll_transmit() {
        marks.push((transmit.datagram[0], transmit.ecn));
        if let Some(answer) = plain.device_takes(&transmit.datagram) {
            plain.world.nodes[0].engine.handle_datagram(address(1), &answer, now);
        }
    }
    assert_eq!(marks.first(), Some(&(1, ecn::NOT_ECT)), "handshakes carry none");
    assert_eq!(marks.last(), Some(&(4, ecn::ECT_0)), "a packet carries its own");
    let answer = plain.device.seal(&inner(17, b"answer")).expect("established");
    plain.world.nodes[0].engine.handle_marked(address(1), ecn::CE, &answer, now);
    let opened = plain.world.nodes[0].engine.poll_plain().expect("opened");
    assert_eq!((opened.ecn, opened.packet), (ecn::CE, inner(17, b"answer")));
}

#[test]
fn control_datagrams_of_a_plain_device_are_dropped_by_name() {
    let mut plain = Plain::new();
    plain.node_sends(&inner(17, b"first"));
    let offer = split(Kind::Offer, 1, &[0; 100], 1400).remove(0);
    let datagram = plain.device.seal(&offer).expect("established");
    plain.node_takes(&datagram);
    assert!(plain.opened().is_empty());
    assert_eq!(plain.world.drops(0, Reason::PlainPeerControl), 1);
}

/// WireGuard's timers begin a handshake every two minutes, and after silence: nothing on the link asked for it. They read a
/// clock of their own, so the test begins it in their place.
#[test]
fn a_handshake_that_the_tunnels_own_timers_began_is_completed() {
    let mut plain = Plain::new();
    plain.node_sends(&inner(17, b"first"));
    let id = plain.world.link(0);
    let initiation = plain.world.nodes[0].engine.with_link(id, |link, _| link.initiate_unasked());
    let initiation = initiation.flatten().expect("a tunnel that may ask");
    let response = plain.device_takes(&initiation).expect("an answer");
    plain.node_takes(&response);
    assert_eq!(plain.world.drops(0, Reason::StaleHandshake), 0);
    // The device opens what the new session sealed: its confirmation, then this.
    plain.node_sends(&inner(17, b"second"));
    assert_eq!(plain.from_node.last(), Some(&inner(17, b"second")));
}

#[test]
fn ticking_a_plain_peer_for_a_while_breaks_nothing() {
    let mut plain = Plain::new();
    plain.node_sends(&inner(17, b"first"));
    plain.run(60);
    plain.node_sends(&inner(17, b"second"));
    assert_eq!(plain.from_node.len(), 2);
}

#[test]
fn a_plain_peer_that_was_removed_opens_nothing() {
    let mut plain = Plain::new();
    plain.node_sends(&inner(17, b"first"));
    plain.world.apply(0, |update| update.peers.clear());
    let packet = plain.device.seal(&inner(17, b"late")).expect("established");
    plain.node_takes(&packet);
    assert!(plain.opened().is_empty());
    assert_eq!(plain.world.drops(0, Reason::UnknownReceiver), 1);
}

/// A stock device knows no certificates, and its tunnel no end: this end keeps to both.
#[test]
fn a_plain_peers_tunnel_ends_with_the_certificate_of_either_end() {
    let (minute, day) = (NOW.plus(Duration::from_secs(60)), NOW.plus(DAY));
    for (node, device) in [(minute, day), (day, minute)] {
        let mut plain = Plain::until(node, device);
        plain.node_sends(&inner(17, b"first"));
        assert_eq!(plain.from_node.len(), 1);
        plain.world.set_time(plain.world.now.monotonic + Duration::from_secs(60));
        let packet = plain.device.seal(&inner(17, b"late")).expect("established");
        plain.node_takes(&packet);
        assert!(plain.opened().is_empty());
        assert_eq!(plain.world.drops(0, Reason::CertificateExpired), 1);
        plain.node_sends(&inner(17, b"late"));
        assert_eq!(plain.from_node.len(), 1);
    }
}
