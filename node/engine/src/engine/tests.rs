//! The slow path with virtual time: peers, handshakes, generations, attacks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::certificate::TunnelCertificate;
use warren_proto::policy::CompiledPolicy;
use warren_proto::{Reason, UnixTime};

use super::*;
use crate::identity::VerifiedPeer;
use crate::identity::test_mesh::{DAY, NOW, TestMesh, TestPeer};
use crate::mesh::{LocalKey, Stage, TunnelSecret};
use crate::session::{DataSession, Suite, transport_header};
use crate::tables::{LocalIndex, PeerIndex, Receiver};

mod attacks;
mod plain;
mod rotation;

/// One node: the engine, and a hand that opens data sessions as a worker would.
struct Node {
    engine: Engine,
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Newest first.
    keys: Vec<LocalKey>,
    verified: Vec<VerifiedPeer>,
    inbox: Vec<Vec<u8>>,
    events: Vec<Event>,
}

/// Nodes on a wire that a test decides about, datagram by datagram.
struct World {
    mesh: TestMesh,
    nodes: Vec<Node>,
    now: Now,
    /// Sender, receiver, bytes.
    wire: VecDeque<(usize, SocketAddr, Vec<u8>)>,
    sent: usize,
    /// How often the `n`-th datagram ever sent arrives.
    fate: Box<dyn Fn(usize) -> usize>,
    /// Longer datagrams are lost.
    largest: usize,
    generation: u64,
}

const WORKLOADS: [&str; 2] = ["bank/web", "bank/api"];

fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number as u8 + 1], 51820))
}

/// The key of node `number`: node 0 has the smaller public key.
fn secrets() -> [TunnelSecret; 2] {
    let (a, b) = (TunnelSecret::from_bytes([1; 32]), TunnelSecret::from_bytes([2; 32]));
    if a.public_key() < b.public_key() { [a, b] } else { [b, a] }
}

fn everybody() -> Arc<CompiledPolicy> {
    let [web, api] = WORKLOADS;
    crate::sim::policy(&WORKLOADS, &[(web, api, 80), (api, web, 80)])
}

/// One tunnel certificate, as its holder and as everybody else has it.
fn issue(mesh: &TestMesh, number: usize, secret: TunnelSecret, not_after: UnixTime) -> (LocalKey, VerifiedPeer) {
    let peer = TestPeer::new(number as u16 + 1, WORKLOADS[number], secret.public_key());
    issue_for(mesh, &TestPeer { not_after, ..peer }, secret)
}

fn issue_for(mesh: &TestMesh, peer: &TestPeer, secret: TunnelSecret) -> (LocalKey, VerifiedPeer) {
    let chain = mesh.chain(&TestMesh::template(peer));
    let certificate = TunnelCertificate::parse(&chain[0]).expect("a tunnel certificate");
    (LocalKey { secret, certificate, valid_until: peer.not_after }, mesh.admit_chain(peer, &chain))
}

impl Node {
    /// A packet that a worker judged by the tables in force and could not seal.
    fn unsent(&mut self, local: LocalIndex, peer: PeerIndex, packet: &[u8], now: Now) {
        let under_way = self.under_way(local, peer);
        self.engine.handle_unsent(under_way, packet, now);
    }

    fn under_way(&self, local: LocalIndex, peer: PeerIndex) -> UnderWay {
        let tables = self.shared.tables();
        let link = &tables.peer(peer).expect("a peer").link(local).expect("a way").link;
        UnderWay::begin(link, tables.generation).expect("room")
    }
}

impl World {
    fn pair() -> Self {
        Self::pair_until(NOW.plus(DAY))
    }

    fn pair_until(not_after: UnixTime) -> Self {
        let mesh = TestMesh::new();
        let nodes = secrets().into_iter().enumerate().map(|(number, secret)| {
            let (key, verified) = issue(&mesh, number, secret, not_after);
            let shared = Arc::new(Shared::new(2));
            Node {
                engine: Engine::new(EngineConfig::new([number as u8; 32]), Arc::clone(&shared)),
                shared,
                address: address(number),
                keys: vec![key],
                verified: vec![verified],
                inbox: Vec::new(),
                events: Vec::new(),
            }
        });
        let mut world = Self {
            nodes: nodes.collect(),
            mesh,
            now: Now { monotonic: Duration::from_secs(1000), unix: NOW },
            wire: VecDeque::new(),
            sent: 0,
            fate: Box::new(|_| 1),
            largest: 1452,
            generation: 0,
        };
        world.apply_all();
        world
    }

    fn update(&self, of: usize) -> MeshUpdate {
        let other = &self.nodes[1 - of];
        MeshUpdate {
            generation: self.generation,
            policy: everybody(),
            locals: self.nodes[of].keys.clone(),
            peers: other.verified.clone(),
            endpoints: [(other.verified[0].instance(), vec![other.address])].into(),
        }
    }

    fn apply_all(&mut self) {
        self.generation += 1;
        for of in 0..2 {
            let update = self.update(of);
            self.nodes[of].engine.apply(&update, self.now);
        }
        self.settle();
    }

    fn apply(&mut self, of: usize, change: impl FnOnce(&mut MeshUpdate)) {
        self.generation += 1;
        let mut update = self.update(of);
        change(&mut update);
        self.nodes[of].engine.apply(&update, self.now);
        self.collect(of);
    }

    fn link(&self, of: usize) -> (LocalIndex, PeerIndex) {
        let tables = self.nodes[of].shared.tables();
        let peer = tables.peers.values().next().expect("a peer");
        (tables.locals[0].index, peer.index)
    }

    fn session(&self, of: usize) -> Option<Arc<DataSession>> {
        let (local, peer) = self.link(of);
        let tables = self.nodes[of].shared.tables();
        let link = tables.peer(peer)?.link(local)?;
        link.link.egress().clone()
    }

    /// A local program's packet, as a worker would treat it.
    fn send(&mut self, of: usize, content: &str) {
        let (local, peer) = self.link(of);
        let packet = content.as_bytes();
        match self.session(of) {
            Some(session) => {
                let mut datagram = vec![0; 2048];
                match session.seal(packet, 1420, &mut datagram, self.now) {
                    Ok(length) => {
                        datagram.truncate(length);
                        let to = self.nodes[1 - of].address;
                        self.wire.push_back((of, to, datagram));
                        if session.take_rekey_request(self.now) {
                            let event = WorkerEvent::RekeyDue(session);
                            self.nodes[of].engine.handle_worker_event(&event, self.now);
                        }
                    }
                    Err(_) => self.nodes[of].unsent(local, peer, packet, self.now),
                }
            }
            None => self.nodes[of].unsent(local, peer, packet, self.now),
        }
        self.collect(of);
    }

    fn collect(&mut self, of: usize) {
        let node = &mut self.nodes[of];
        while let Some(transmit) = node.engine.poll_transmit() {
            self.wire.push_back((of, transmit.to, transmit.datagram));
        }
        while let Some(event) = node.engine.poll_event() {
            node.events.push(event);
        }
    }

    fn receive(&mut self, of: usize, from: SocketAddr, datagram: &[u8]) {
        let now = self.now;
        let node = &mut self.nodes[of];
        let tables = node.shared.tables();
        let session = transport_header(datagram).ok().and_then(|(index, _)| match tables.sessions.receiver(index) {
            Some(Receiver::Data(session)) => Some(Arc::clone(session)),
            _ => None,
        });
        match session {
            None => node.engine.handle_datagram(from, datagram, now),
            Some(session) => {
                let mut plain = vec![0; datagram.len()];
                if let Ok(opened) = session.open(datagram, &mut plain, now) {
                    let first = opened.is_first();
                    if !opened.plaintext().is_empty() {
                        node.inbox.push(opened.plaintext().to_vec());
                    }
                    if first {
                        node.engine.handle_worker_event(&WorkerEvent::Confirmed(session), now);
                    }
                }
            }
        }
        self.collect(of);
    }

    /// Delivers what is on the wire until nothing is.
    fn settle(&mut self) {
        for of in 0..2 {
            self.collect(of);
        }
        while let Some((sender, to, datagram)) = self.wire.pop_front() {
            let copies = if datagram.len() > self.largest { 0 } else { (self.fate)(self.sent) };
            self.sent += 1;
            let from = self.nodes[sender].address;
            for _ in 0..copies {
                if let Some(of) = self.nodes.iter().position(|node| node.address == to) {
                    self.receive(of, from, &datagram);
                }
            }
        }
    }

    /// Lets time pass, timer by timer.
    fn run(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        self.settle();
        while let Some(next) = self.nodes.iter().filter_map(|node| node.engine.poll_timeout()).min()
            && next <= end
        {
            self.set_time(next);
            for of in 0..2 {
                let now = self.now;
                self.nodes[of].engine.handle_timeout(now);
            }
            self.settle();
        }
        self.set_time(end);
    }

    fn set_time(&mut self, monotonic: Duration) {
        let monotonic = monotonic.max(self.now.monotonic);
        let unix = UnixTime(NOW.0 + monotonic.as_secs() - 1000);
        self.now = Now { monotonic, unix };
    }

    fn received(&self, of: usize, content: &str) -> bool {
        self.nodes[of].inbox.iter().any(|packet| packet.starts_with(content.as_bytes()))
    }

    fn drops(&self, of: usize, reason: Reason) -> u64 {
        self.nodes[of].engine.drops().find(|(name, _)| *name == reason).map_or(0, |(_, count)| count)
    }

    fn stage(&self, of: usize) -> Stage {
        self.nodes[of].engine.peers(self.now)[0].stage
    }
}

#[test]
fn a_packet_that_waits_is_delivered_by_handshake_exchange_and_confirmation() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    assert!(world.received(1, "hello"));
    assert_eq!(world.sent, 7, "initiation, response, offer, accept, two empty packets, the packet");
    let session = world.session(0).expect("a session");
    assert_eq!(session.suite(), Suite::Aes256Gcm);
    world.send(1, "answer");
    world.settle();
    assert!(world.received(0, "answer"));
}

#[test]
fn losing_any_one_datagram_delays_and_loses_nothing() {
    for lost in 0..8 {
        let mut world = World::pair();
        world.fate = Box::new(move |number| usize::from(number != lost));
        world.send(0, "hello");
        world.run(Duration::from_secs(10));
        assert!(world.received(1, "hello") || lost == 6, "datagram {lost}");
        world.fate = Box::new(|_| 1);
        world.send(0, "again");
        world.settle();
        assert!(world.received(1, "again"), "datagram {lost}");
        assert_eq!(world.stage(0), Stage::Idle);
        assert_eq!(world.stage(1), Stage::Idle);
    }
}

#[test]
fn losing_every_datagram_from_one_on_heals_when_the_link_does() {
    for from in 0..8 {
        let mut world = World::pair();
        world.fate = Box::new(move |number| usize::from(number < from));
        world.send(0, "hello");
        world.run(Duration::from_secs(40));
        world.fate = Box::new(|_| 1);
        world.run(Duration::from_secs(20));
        world.send(0, "again");
        world.settle();
        assert!(world.received(1, "again"), "from datagram {from}");
    }
}

#[test]
fn every_datagram_twice_makes_one_session() {
    let mut world = World::pair();
    world.fate = Box::new(|_| 2);
    world.send(0, "hello");
    world.run(Duration::from_secs(10));
    assert_eq!(world.nodes[1].inbox.len(), 1);
    assert_eq!(world.nodes[0].shared.tables().sessions.iter().count(), 1);
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 1);
}

#[test]
fn crossed_handshakes_converge_on_one_session_whatever_is_lost() {
    for lost in 0..16 {
        let mut world = World::pair();
        world.fate = Box::new(move |number| usize::from(number != lost));
        world.send(0, "from a");
        world.send(1, "from b");
        world.run(Duration::from_secs(20));
        world.fate = Box::new(|_| 1);
        for (sender, receiver) in [(0, 1), (1, 0)] {
            world.send(sender, "again");
            world.settle();
            assert!(world.received(receiver, "again"), "datagram {lost} lost, {sender} to {receiver}");
        }
        let (a, b) = (world.session(0).expect("a session"), world.session(1).expect("a session"));
        assert_eq!((a.local_index(), a.remote_index()), (b.remote_index(), b.local_index()), "datagram {lost} lost");
    }
}

#[test]
fn sessions_are_renewed_without_a_gap_for_hours() {
    let mut world = World::pair();
    for minute in 0..180 {
        for second in 0..12 {
            let content = format!("packet {minute}:{second}");
            world.send(second % 2, &content);
            world.run(Duration::from_secs(5));
            assert!(world.received(1 - second % 2, &content), "{content}");
        }
        for node in &mut world.nodes {
            node.inbox.clear();
        }
    }
    let renewed = |event: &&Event| matches!(event, Event::SessionUp { rekey: true, .. });
    let count = world.nodes[0].events.iter().filter(renewed).count();
    assert!((80..=95).contains(&count), "{count} renewals in three hours");
    assert!(!world.nodes[0].events.iter().any(|event| matches!(event, Event::SessionDown { .. })));
    assert!(world.nodes[0].shared.tables().sessions.iter().count() <= 3);
}

#[test]
fn an_idle_session_ends_and_leaves_no_timer() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.run(Duration::from_secs(400));
    for of in 0..2 {
        assert!(world.session(of).is_none());
        assert_eq!(world.nodes[of].shared.tables().sessions.iter().count(), 0);
        assert_eq!(world.nodes[of].engine.poll_timeout(), None);
    }
    world.send(1, "later");
    world.settle();
    assert!(world.received(0, "later"));
}

#[test]
fn a_peer_that_lost_its_session_is_found_out_and_met_again() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    // The peer's node restarts: same keys, no sessions.
    let fresh = Arc::new(Shared::new(2));
    world.nodes[1].engine = Engine::new(EngineConfig::new([9; 32]), Arc::clone(&fresh));
    world.nodes[1].shared = fresh;
    world.apply_all();
    for _ in 0..25 {
        world.send(0, "into the void");
        world.run(Duration::from_secs(1));
    }
    world.send(0, "again");
    world.settle();
    assert!(world.received(1, "again"));
}

#[test]
fn one_way_traffic_is_answered_so_that_silence_means_loss() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    let before = world.nodes[0].events.len();
    for _ in 0..60 {
        world.send(0, "one way");
        world.run(Duration::from_secs(1));
    }
    assert_eq!(world.nodes[0].events.len(), before, "no new handshake within a minute: {:?}", world.nodes[0].events);
}

#[test]
fn a_session_ends_with_the_certificate() {
    let mut world = World::pair_until(NOW.plus(Duration::from_secs(60)));
    world.send(0, "hello");
    world.run(Duration::from_secs(70));
    assert!(world.session(0).is_none());
    let ended = |event: &&Event| matches!(event, Event::SessionDown { reason: Reason::CertificateEnded, .. });
    assert_eq!(world.nodes[0].events.iter().filter(ended).count(), 1);
    world.send(0, "late");
    world.run(Duration::from_secs(5));
    assert!(!world.received(1, "late"));
    assert_eq!(world.drops(0, Reason::NoPeer), 1);
}

#[test]
fn a_removed_peer_loses_its_session_before_the_update_counts_as_applied() {
    let mut world = World::pair();
    world.send(0, "hello");
    world.settle();
    world.apply(1, |update| update.peers.clear());
    assert_eq!(world.nodes[1].shared.tables().sessions.iter().count(), 0);
    let events = &world.nodes[1].events;
    let applied = events.iter().position(|event| matches!(event, Event::Applied { generation } if *generation == 2));
    let down = events.iter().position(|event| matches!(event, Event::SessionDown { reason: Reason::PeerRevoked, .. }));
    assert!(down.expect("session down") < applied.expect("applied"));
    world.nodes[1].inbox.clear();
    world.send(0, "after");
    world.run(Duration::from_secs(30));
    assert!(!world.received(1, "after"));
}

#[test]
fn an_unknown_key_is_counted_with_its_hash_and_gets_no_answer() {
    let mut world = World::pair();
    world.apply(1, |update| update.peers.clear());
    world.send(0, "hello");
    world.run(Duration::from_secs(100));
    assert_eq!(world.wire.len(), 0);
    assert!(world.nodes[1].engine.poll_transmit().is_none());
    let unknown = world.nodes[1].engine.unknown_keys();
    let expected: [u8; 32] = Sha256::digest(world.nodes[0].keys[0].secret.public_key()).into();
    assert_eq!(unknown.len(), 1);
    assert_eq!((unknown[0].hash, unknown[0].from), (expected, address(0)));
    assert_eq!(unknown[0].count, world.drops(1, Reason::UnknownKey));
    assert_eq!(world.drops(0, Reason::HandshakeTimeout), 1);
}
