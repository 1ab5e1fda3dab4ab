//! Three nodes, two workers each, sessions between every pair, a wire that is a function call:
//!
//! ```text
//!   web (shop/web)            api (bank/api)            batch (bank/batch)
//!   10.77.0.1, fd00::1        10.77.0.2, fd00::2        10.77.0.3, fd00::3
//!        `----- may call ---------^   ^------ no rule --------'
//! ```

mod runs;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, OverlayAddresses, TrustDomain, UnixTime, WorkloadName};

use super::*;
use crate::allowed_ips::AllowedIps;
use crate::flows::tests::hold_every_lock;
use crate::output::{ForEngine, OutboxLimits};
use crate::packet::{ACK, FIN, Icmp, RST, SYN, TCP, Transport};
use crate::records::Place;
use crate::refusals::checksum_v4_header;
use crate::segment::{MAX_PREFIX, Merge, Merger, Offload, VirtioNetHeader};
use crate::session::{REKEY_AFTER, SessionParameters, Suite, sealed_length};
use crate::tables::PeerLink;
use crate::testing::{Build, fragment};

mod marks;

const WEB: usize = 0;
const API: usize = 1;
const BATCH: usize = 2;
const NAMES: [&str; 3] = ["shop/web", "bank/api", "bank/batch"];
const WORKERS: u16 = 2;

const HEAD: &str = "
kind: Set
name: everything
owns: [mesh, bank, shop]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: bank
---
kind: Namespace
name: shop
---
kind: Service
name: shop/web
---
kind: Service
name: bank/batch
---
";

const ALLOW: &str = "
kind: Service
name: bank/api
ports:
  api: { port: 8080, protocol: tcp }
  dns: { port: 53, protocol: udp }
allow:
  web-calls: { from: [shop/web], ports: [api, dns] }
";

const CLOSED: &str = "
kind: Service
name: bank/api
ports:
  api: { port: 8080, protocol: tcp }
  dns: { port: 53, protocol: udp }
";

fn policy(service: &str) -> Arc<CompiledPolicy> {
    let file = SourceFile { name: "policy.yaml".into(), text: format!("{HEAD}{service}") };
    let documents = Documents::from_files(&[file]).expect("documents");
    Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("policy"))
}

fn addresses(node: usize) -> OverlayAddresses {
    let host = u8::try_from(node + 1).expect("few");
    OverlayAddresses {
        v4: Some(Ipv4Addr::new(10, 77, 0, host)),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()),
    }
}

fn endpoint(node: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(node).expect("few"))), 51820)
}

fn peer_index(node: usize) -> PeerIndex {
    PeerIndex(100 + u32::try_from(node).expect("few"))
}

const LOCAL: LocalIndex = LocalIndex(7);

fn receiver(at: usize, from: usize) -> u32 {
    // Odd and even, so that both workers own sessions.
    u32::try_from(0x0a00_0000 + at * 16 + from).expect("small")
}

struct Node {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    outbox: Outbox,
    tables: Tables,
    /// Drops already accounted for.
    seen_drops: Vec<(Reason, u64)>,
}

struct World {
    nodes: Vec<Node>,
    now: Now,
}

/// What one packet brought about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Packets that entered a host, with the node.
    delivered: Vec<(usize, Vec<u8>)>,
    /// Named drops, with the node.
    drops: Vec<(usize, Reason)>,
}

impl Outcome {
    fn delivered_at(&self, node: usize) -> Vec<&[u8]> {
        self.delivered.iter().filter(|(at, _)| *at == node).map(|(_, packet)| packet.as_slice()).collect()
    }
}

impl World {
    fn new() -> Self {
        Self::with_policy(ALLOW)
    }

    fn with_policy(service: &str) -> Self {
        let now = Now { monotonic: Duration::from_secs(1000), unix: UnixTime(1_800_000_000) };
        let nodes = (0..3).map(|at| Node::new(at, now)).collect();
        let mut world = Self { nodes, now };
        world.publish(service);
        world
    }

    fn publish(&mut self, service: &str) {
        let policy = policy(service);
        for node in &mut self.nodes {
            node.apply(&policy);
        }
    }

    fn pass_time(&mut self, by: Duration) {
        self.now = Now { monotonic: self.now.monotonic + by, unix: self.now.unix.plus(by) };
    }

    /// A local program of `from` sends; everything that follows happens.
    fn send(&mut self, from: usize, packet: &[u8]) -> Outcome {
        let mut wire = self.seal(from, packet);
        let mut outcome = self.collect(from);
        while !wire.is_empty() {
            for (source, to, datagram) in std::mem::take(&mut wire) {
                wire.extend(self.receive(source, to, &datagram, &mut outcome));
            }
        }
        outcome
    }

    /// The datagrams that a packet becomes. Its other effects stay in the outbox.
    fn seal(&mut self, from: usize, packet: &[u8]) -> Vec<(usize, usize, Vec<u8>)> {
        let now = self.now;
        let node = &mut self.nodes[from];
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_outbound(packet, now, &mut node.outbox);
        node.wire(from)
    }

    /// A datagram arrives at the wrong worker first.
    fn receive(
        &mut self,
        from: usize,
        to: usize,
        datagram: &[u8],
        outcome: &mut Outcome,
    ) -> Vec<(usize, usize, Vec<u8>)> {
        let now = self.now;
        let node = &mut self.nodes[to];
        let mut wire = Vec::new();
        let mut queue = vec![(1usize, datagram.to_vec())];
        while let Some((worker, datagram)) = queue.pop() {
            let node = &mut *node;
            node.outbox.clear();
            node.workers[worker].begin_batch(&mut node.outbox);
            node.workers[worker].handle_datagram(endpoint(from), &datagram, now, &mut node.outbox);
            wire.extend(node.wire(to));
            queue.extend(node.outbox.handovers().map(|h| (usize::from(h.worker), h.datagram.to_vec())));
            outcome.delivered.extend(node.outbox.deliveries().map(|admitted| (to, admitted.packet().to_vec())));
        }
        outcome.drops.extend(node.new_drops().into_iter().map(|reason| (to, reason)));
        wire
    }

    fn collect(&mut self, at: usize) -> Outcome {
        let node = &mut self.nodes[at];
        let delivered = node.outbox.deliveries().map(|admitted| (at, admitted.packet().to_vec())).collect();
        Outcome { delivered, drops: node.new_drops().into_iter().map(|reason| (at, reason)).collect() }
    }

    /// What a hostile node sends: sealed in its session without its engine's checks.
    fn inject(&mut self, from: usize, to: usize, packet: &[u8]) -> Outcome {
        let datagram = self.seal_raw(from, to, packet);
        let mut outcome = Outcome::default();
        let mut wire = self.receive(from, to, &datagram, &mut outcome);
        while !wire.is_empty() {
            for (source, to, datagram) in std::mem::take(&mut wire) {
                wire.extend(self.receive(source, to, &datagram, &mut outcome));
            }
        }
        outcome
    }

    fn seal_raw(&self, from: usize, to: usize, packet: &[u8]) -> Vec<u8> {
        let session = self.nodes[from].link(to).egress().clone().expect("session");
        let mut datagram = vec![0; sealed_length(packet.len())];
        session.seal(packet, &mut datagram, self.now).expect("sealed");
        datagram
    }

    fn records(&mut self, at: usize) -> Vec<FlowRecord> {
        self.nodes[at].workers.iter_mut().flat_map(|worker| std::iter::from_fn(|| worker.poll_flow_record())).collect()
    }
}

impl Node {
    fn new(at: usize, now: Now) -> Self {
        let shared = Arc::new(Shared::new(WORKERS));
        let workers = (0..WORKERS).map(|index| Worker::new(index, Arc::clone(&shared))).collect();
        let mut tables = Tables::deny_all();
        let mut routes = AllowedIps::default();
        let policy = policy(ALLOW);
        for other in (0..3).filter(|other| *other != at) {
            let link = Arc::new(Link::new(LOCAL, peer_index(other), 1420, WORKERS));
            // One key per direction of each pair, known to both ends.
            let key = |from: usize, to: usize| [u8::try_from(from * 3 + to).expect("few"); 32];
            let session = Arc::new(
                DataSession::new(&SessionParameters {
                    suite: Suite::Aes256Gcm,
                    send_key: &key(at, other),
                    receive_key: &key(other, at),
                    local_index: receiver(at, other),
                    remote_index: receiver(other, at),
                    local: LOCAL,
                    peer: peer_index(other),
                    valid_until: now.unix.plus(Duration::from_secs(86_400)),
                    established: now,
                })
                .expect("keys"),
            );
            link.set_endpoint(Some(endpoint(other)));
            link.set_egress(Some(Arc::clone(&session)));
            tables.sessions.insert(session);
            for address in addresses(other).iter() {
                routes.insert(address, 128, peer_index(other));
            }
            tables.peers.insert(peer_index(other).0, Arc::new(Self::peer(other, link, &policy, now)));
        }
        tables.routes = Arc::new(routes);
        tables.locals = Arc::new([Local {
            index: LOCAL,
            instance: InstanceId::from_bytes([u8::try_from(at).expect("few"); 16]),
            identity: name(at).in_domain(&domain()),
            addresses: addresses(at),
            ports: policy.port_table(&name(at)),
        }]);
        Self { shared, workers, outbox: Outbox::new(OutboxLimits::default()), tables, seen_drops: Vec::new() }
    }

    fn peer(node: usize, link: Arc<Link>, policy: &CompiledPolicy, now: Now) -> Peer {
        Peer {
            index: peer_index(node),
            instance: InstanceId::from_bytes([u8::try_from(node).expect("few"); 16]),
            identity: name(node).in_domain(&domain()),
            source: policy.identities().index(&name(node)),
            valid_until: now.unix.plus(Duration::from_secs(86_400)),
            is_plain: false,
            links: vec![PeerLink { may_call: node == API, link }],
        }
    }

    fn apply(&mut self, policy: &Arc<CompiledPolicy>) {
        let mut local = self.tables.locals[0].clone();
        local.ports = policy.port_table(local.identity.workload().expect("workload"));
        self.tables.locals = Arc::new([local]);
        let peers: Vec<Arc<Peer>> = self.tables.peers.values().cloned().collect();
        for mut peer in peers {
            let workload = peer.identity.workload().expect("workload").clone();
            Arc::make_mut(&mut peer).source = policy.identities().index(&workload);
            self.tables.peers.insert(peer.index.0, peer);
        }
        self.tables.policy = Some(Arc::clone(policy));
        self.publish_next();
    }

    fn publish_next(&mut self) {
        self.tables.generation += 1;
        self.shared.publish(Arc::new(self.tables.clone()));
    }

    fn change_peer(&mut self, node: usize, change: impl FnOnce(&mut Peer)) {
        let mut peer = Arc::clone(self.tables.peer(peer_index(node)).expect("peer"));
        change(Arc::make_mut(&mut peer));
        self.tables.peers.insert(peer.index.0, peer);
        self.publish_next();
    }

    fn link(&self, to: usize) -> Arc<Link> {
        Arc::clone(&self.tables.peer(peer_index(to)).expect("peer").links[0].link)
    }

    fn wire(&self, at: usize) -> Vec<(usize, usize, Vec<u8>)> {
        let to = |address: SocketAddr| (0..3).find(|node| endpoint(*node) == address).expect("a node");
        let trains = self.outbox.transmits();
        trains.flat_map(|train| train.datagrams().map(move |d| (at, to(train.endpoint), d.to_vec()))).collect()
    }

    fn new_drops(&mut self) -> Vec<Reason> {
        let mut drops = Vec::new();
        for reason in Reason::ALL {
            let total: u64 = self.workers.iter().map(|worker| worker.counters().dropped(*reason)).sum();
            let seen = self.seen_drops.iter_mut().find(|(other, _)| other == reason);
            let before = seen.as_ref().map_or(0, |(_, count)| *count);
            drops.extend((before..total).map(|_| *reason));
            match seen {
                Some((_, count)) => *count = total,
                None => self.seen_drops.push((*reason, total)),
            }
        }
        drops
    }
}

fn name(node: usize) -> WorkloadName {
    NAMES[node].parse().expect("a name")
}

fn domain() -> TrustDomain {
    "bank.example".parse().expect("a domain")
}

/// Packets from one node to another, in both families.
fn between(from: usize, to: usize) -> [Build; 2] {
    let (from, to) = (addresses(from), addresses(to));
    [Build::between(from.v6, to.v6), Build::between(from.v4.expect("v4"), to.v4.expect("v4"))]
}

fn delivered(node: usize, packet: &[u8]) -> Outcome {
    Outcome { delivered: vec![(node, packet.to_vec())], drops: Vec::new() }
}

fn dropped(node: usize, reason: Reason) -> Outcome {
    Outcome { delivered: Vec::new(), drops: vec![(node, reason)] }
}

fn tcp_of(packet: &[u8]) -> crate::packet::Tcp {
    match Inner::parse(packet).expect("parsed").transport() {
        Ok(Transport::Tcp(tcp)) => tcp,
        other => panic!("TCP, not {other:?}"),
    }
}

#[test]
fn what_policy_allows_arrives_and_its_replies_return() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let back = there.reversed();
        for (from, packet) in [
            (WEB, there.tcp(40_000, 8080, SYN, b"")),
            (API, back.tcp(8080, 40_000, SYN | ACK, b"")),
            (WEB, there.tcp(40_000, 8080, ACK, b"GET /")),
            (API, back.tcp(8080, 40_000, ACK | FIN, b"200")),
            (WEB, there.udp(40_001, 53, b"query")),
            (API, back.udp(53, 40_001, b"answer")),
            (WEB, there.echo(true, 5)),
            (API, back.echo(false, 5)),
        ] {
            assert_eq!(world.send(from, &packet), delivered(WEB + API - from, &packet));
        }
    }
}

#[test]
fn a_caller_without_a_rule_is_refused_by_name_and_told() {
    let mut world = World::new();
    for there in between(BATCH, API) {
        let outcome = world.send(BATCH, &there.tcp_at(40_000, 8080, SYN, 9, 0, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        let [answer] = outcome.delivered_at(BATCH)[..] else { panic!("one RST: {outcome:?}") };
        let rst = tcp_of(answer);
        assert_eq!((rst.flags, rst.acknowledgement, rst.source), (RST | ACK, 10, 8080));

        let outcome = world.send(BATCH, &there.udp(40_000, 53, b"query"));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        let [answer] = outcome.delivered_at(BATCH)[..] else { panic!("one ICMP error: {outcome:?}") };
        let answer = Inner::parse(answer).expect("parsed");
        assert!(matches!(answer.transport(), Ok(Transport::Icmp(Icmp::Error { .. }))));

        let outcome = world.send(BATCH, &there.echo(true, 1));
        assert_eq!(outcome.drops, [(API, Reason::NoRule)]);
        assert!(outcome.delivered_at(API).is_empty());
    }
    assert!(world.nodes[API].shared.flows().is_empty(), "a refused flow leaves nothing behind");
}

#[test]
fn what_passes_a_link_is_counted_there_at_both_ends_and_what_does_not_under_its_reason() {
    let mut world = World::new();
    let there = &between(WEB, API)[0];
    let packet = there.udp(40_001, 53, b"query");
    for _ in 0..3 {
        world.send(WEB, &packet);
    }
    world.send(WEB, &there.tcp(40_000, 22, SYN, b""));
    let of = |at: usize, to: usize| world.nodes[at].link(to);
    let (sent, received) = (of(WEB, API).counters().volume(), of(API, WEB).counters().volume());
    let length = packet.len() as u64;
    // The refused SYN was sent as well, and its refusal came back.
    assert_eq!((sent.packets_out, sent.packets_in, received.packets_in, received.packets_out), (4, 1, 3, 1));
    assert_eq!(received.bytes_in, 3 * length);
    assert_eq!(of(API, WEB).counters().drops().collect::<Vec<_>>(), [(Reason::NoService, 1)]);
    assert_eq!(of(API, BATCH).counters().volume(), crate::counters::Volume::default());
    let all: Vec<_> = world.nodes[API].workers.iter().map(|worker| worker.counters().traffic()).collect();
    assert_eq!(all.iter().map(|worker| worker.bytes_in).sum::<u64>(), received.bytes_in);
}

#[test]
fn what_is_refused_before_it_leaves_is_counted_at_its_link() {
    let mut world = World::new();
    let packet = between(WEB, API)[0].udp(40_000, 53, &[0; 1500]);
    assert_eq!(world.send(WEB, &packet).drops, [(WEB, Reason::PacketTooBig)]);
    let drops: Vec<_> = world.nodes[WEB].link(API).counters().drops().collect();
    assert_eq!(drops, [(Reason::PacketTooBig, 1)]);
}

#[test]
fn an_undeclared_port_is_no_service() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let outcome = world.send(WEB, &there.tcp(40_000, 22, SYN, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoService)]);
        assert!(outcome.delivered_at(API).is_empty());
    }
}

#[test]
fn a_refusal_reaches_the_flow_log_with_identities_and_a_flood_is_one_record() {
    let mut world = World::new();
    let [there, _] = between(BATCH, API);
    for port in 0..5000 {
        world.inject(BATCH, API, &there.tcp(10_000 + port, 8080, SYN, b""));
    }
    let denied = world.records(API);
    let [record] = &denied[..] else { panic!("one record, not {}", denied.len()) };
    assert_eq!(record.count, 5000);
    assert_eq!((record.verdict, record.sender), (Err(Reason::NoRule), Side::Peer));
    assert_eq!(record.source.as_ref().and_then(|id| id.workload()), Some(&name(BATCH)));
    assert_eq!(record.destination.as_ref().and_then(|id| id.workload()), Some(&name(API)));
    assert_eq!(record.destination_address.port(), 8080);
    assert!(record.rule.is_none());
    let nearest = record.nearest.as_ref().expect("the rule that lacked only the caller");
    assert_eq!((nearest.rule.id.as_str(), nearest.failed.as_str()), ("bank/api:web-calls", "from"));
    assert_eq!(record.place, Some(Place { file: "policy.yaml".into(), line: nearest.rule.line }));
    world.inject(WEB, API, &between(WEB, API)[0].tcp(40_000, 22, SYN, b""));
    let undeclared = world.records(API);
    assert_eq!(undeclared[0].verdict, Err(Reason::NoService));
    assert!(undeclared[0].place.as_ref().is_some_and(|place| place.file == "policy.yaml"), "the service's document");
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
    let allowed = world.records(API);
    let [record] = &allowed[..] else { panic!("one record, not {}", allowed.len()) };
    let rule = record.rule.as_ref().expect("a rule");
    assert_eq!((record.verdict, rule.id.as_str(), rule.file.as_str()), (Ok(()), "bank/api:web-calls", "policy.yaml"));
    assert!(world.records(API).is_empty(), "each record is handed out once");
}

/// A9: nothing that looks like an answer passes without its question.
#[test]
fn replies_without_a_flow_are_refused() {
    let mut world = World::new();
    for there in between(BATCH, WEB) {
        for flags in [SYN | ACK, ACK, RST, RST | ACK, FIN | ACK, 0, SYN | RST, SYN | FIN] {
            let outcome = world.inject(BATCH, WEB, &there.tcp(8080, 40_000, flags, b""));
            assert_eq!(outcome.drops.first(), Some(&(WEB, Reason::NotAReply)), "{flags:#x}");
            assert!(outcome.delivered_at(WEB).is_empty());
        }
        assert!(world.inject(BATCH, WEB, &there.udp(53, 40_000, b"x")).delivered_at(WEB).is_empty());
        assert_eq!(world.inject(BATCH, WEB, &there.echo(false, 1)), dropped(WEB, Reason::NotAReply));
    }
}

#[test]
fn a_flow_opened_here_lets_no_connection_in_the_other_way() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let syn = there.tcp(40_000, 8080, SYN, b"");
        assert_eq!(world.send(WEB, &syn), delivered(API, &syn));
        let outcome = world.inject(API, WEB, &there.reversed().tcp(8080, 40_000, SYN, b""));
        assert!(outcome.delivered_at(WEB).is_empty(), "a simultaneous open needs a rule");
    }
}

#[test]
fn a_udp_reply_after_the_flow_went_idle_is_refused() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let (query, answer) = (there.udp(40_000, 53, b"q"), there.reversed().udp(53, 40_000, b"a"));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        assert_eq!(world.inject(API, WEB, &answer), delivered(WEB, &answer));
    }
    // A session would be over by then: judge without one.
    let Node { workers, outbox, .. } = &mut world.nodes[WEB];
    world.now.monotonic += Duration::from_secs(180);
    for there in between(WEB, API) {
        let answer = there.reversed().udp(53, 40_000, b"a");
        workers[0].begin_batch(outbox);
        let (desk, moment) = workers[0].parts(world.now);
        let judged = desk.judge(moment, LOCAL, peer_index(API), &answer);
        assert_eq!(judged.judgement.verdict, Err(Reason::NoService));
    }
}

/// A10: a live flow ends with the rule that let it in, and neither side can revive it.
#[test]
fn a_policy_change_cuts_live_flows_and_resets_both_ends() {
    for family in 0..2 {
        let mut world = World::new();
        let there = between(WEB, API)[family];
        let back = there.reversed();
        assert_eq!(world.send(WEB, &there.tcp_at(40_000, 8080, SYN, 100, 0, b"")).drops, []);
        assert_eq!(world.send(API, &back.tcp_at(8080, 40_000, SYN | ACK, 500, 101, b"")).drops, []);
        assert_eq!(world.send(WEB, &there.tcp_at(40_000, 8080, ACK, 101, 501, b"hello")).drops, []);
        world.publish(CLOSED);
        let node = &mut world.nodes[API];
        let generation = node.tables.generation;
        assert!(!node.shared.reached(generation), "a running worker has not loaded it yet");
        node.outbox.clear();
        for worker in &mut node.workers {
            worker.begin_batch(&mut node.outbox);
        }
        assert!(node.shared.reached(generation));
        let cuts = node.shared.sweep(world.now);
        let [cut] = cuts[..] else { panic!("one flow is cut: {cuts:?}") };
        assert_eq!((cut.local_next, cut.peer_next), (106, 501));
        assert!(node.shared.sweep(world.now).is_empty(), "a flow is cut once");

        node.outbox.clear();
        node.workers[0].handle_cut(&cut, world.now, &mut node.outbox);
        let local: Vec<_> = node.outbox.deliveries().map(|admitted| tcp_of(admitted.packet())).collect();
        assert_eq!((local[0].flags & RST, local[0].sequence, local[0].destination), (RST, 106, 8080));
        let wire = node.wire(API);
        let mut outcome = Outcome::default();
        world.receive(API, WEB, &wire[0].2, &mut outcome);
        let [reset] = outcome.delivered_at(WEB)[..] else { panic!("the peer is reset too: {outcome:?}") };
        assert_eq!((tcp_of(reset).flags & RST, tcp_of(reset).sequence), (RST, 501));

        // Neither what the peer still sends nor what the server still sends revives it.
        let late = world.send(WEB, &there.tcp_at(40_000, 8080, ACK, 106, 501, b"more"));
        assert!(late.drops.contains(&(API, Reason::PolicyChanged)) && late.delivered_at(API).is_empty(), "{late:?}");
        let late = world.send(API, &back.tcp_at(8080, 40_000, ACK, 501, 106, b"data"));
        assert_eq!(late.drops, [(API, Reason::PolicyChanged)]);
        assert_eq!(tcp_of(late.delivered_at(API)[0]).flags & RST, RST, "the server's socket is reset");
        let anew = world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
        assert!(anew.drops.contains(&(API, Reason::NoRule)), "a new attempt is told the rule's reason: {anew:?}");
        let logged = world.records(API);
        assert!(logged.iter().any(|record| record.verdict == Err(Reason::NoRule)));
    }
}

#[test]
fn a_cut_udp_flow_stays_cut_while_the_server_goes_on_sending() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.udp(40_000, 53, b"subscribe"));
    world.publish(CLOSED);
    for _ in 0..20 {
        world.pass_time(Duration::from_secs(5));
        assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"news")).drops, [(API, Reason::PolicyChanged)]);
        assert!(world.inject(WEB, API, &there.udp(40_000, 53, b"ack")).delivered_at(API).is_empty());
    }
}

#[test]
fn an_allowed_connection_survives_a_restart_of_the_destination() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    world.send(WEB, &there.tcp(40_000, 8080, SYN, b""));
    world.nodes[API].shared.flows().sweep(0, Duration::from_secs(1 << 30), |_| Ok(()));
    assert!(world.nodes[API].shared.flows().is_empty());
    let data = there.tcp(40_000, 8080, ACK, b"data");
    assert_eq!(world.inject(WEB, API, &data), delivered(API, &data));
}

#[test]
fn the_server_may_speak_first_after_a_restart() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let syn = there.tcp(40_000, 8080, SYN, b"");
    world.send(WEB, &syn);
    world.nodes[API].shared.flows().sweep(0, Duration::from_secs(1 << 30), |_| Ok(()));
    let data = there.reversed().tcp(8080, 40_000, ACK, b"data");
    assert_eq!(world.send(API, &data), delivered(WEB, &data));
}

/// A5: whose address it is decides the longest match over all peers.
#[test]
fn inner_sources_that_are_not_the_peers_are_silently_refused() {
    let mut world = World::new();
    let mut routes = (*world.nodes[API].tables.routes).clone();
    // A covering prefix must not let web speak as batch.
    routes.insert(Ipv4Addr::new(10, 77, 0, 0).into(), 16, peer_index(WEB));
    routes.insert(Ipv4Addr::UNSPECIFIED.into(), 0, peer_index(WEB));
    routes.insert(Ipv6Addr::UNSPECIFIED.into(), 0, peer_index(WEB));
    world.nodes[API].tables.routes = Arc::new(routes);
    world.nodes[API].publish_next();
    let (v4, v6) = (addresses(API).v4.expect("v4"), addresses(API).v6);
    for source in ["10.77.0.3", "10.77.0.2", "224.0.0.1", "0.1.2.3", "127.0.0.1", "255.255.255.255", "169.254.1.1"] {
        let packet = Build::between(source.parse::<Ipv4Addr>().expect("v4"), v4).tcp(1, 8080, SYN, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::SourceNotPeers), "{source}");
    }
    for source in ["fd00::3", "fd00::2", "ff02::1", "::1", "::", "::ffff:10.77.0.1", "::10.77.0.1", "fe80::1"] {
        let packet = Build::between(source.parse::<Ipv6Addr>().expect("v6"), v6).tcp(1, 8080, SYN, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::SourceNotPeers), "{source}");
    }
}

/// A6: a node forwards nothing.
#[test]
fn inner_destinations_that_are_not_local_are_silently_refused() {
    let mut world = World::new();
    for destination in ["fd00::3", "fd00::9", "ff02::1", "::1", "2001:db8::1"] {
        let destination: Ipv6Addr = destination.parse().expect("v6");
        let packet = Build::between(addresses(WEB).v6, destination).udp(1, 53, b"");
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::DestinationNotLocal), "{destination}");
    }
}

/// A session is between two instances: it reaches no other instance of the same node.
#[test]
fn inner_destinations_of_another_local_instance_are_silently_refused() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    let first = node.tables.locals[0].clone();
    let other: OverlayAddresses = addresses(5);
    let second = Local { index: LocalIndex(LOCAL.0 + 1), addresses: other, ..first.clone() };
    node.tables.locals = Arc::new([first, second]);
    node.publish_next();
    let packet = Build::between(addresses(WEB).v6, other.v6).udp(1, 53, b"");
    assert_eq!(world.inject(WEB, API, &packet), dropped(API, Reason::DestinationNotLocal));
}

#[test]
fn replayed_and_tampered_datagrams_enter_no_host() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let datagram = world.seal_raw(WEB, API, &there.udp(40_000, 53, b"once"));
    let mut outcome = Outcome::default();
    world.receive(WEB, API, &datagram, &mut outcome);
    assert_eq!(outcome.delivered.len(), 1);
    let mut again = Outcome::default();
    world.receive(WEB, API, &datagram, &mut again);
    assert_eq!(again, dropped(API, Reason::Replayed));
    let fresh = world.seal_raw(WEB, API, &there.udp(40_000, 53, b"twice"));
    for position in 0..fresh.len() {
        let mut tampered = fresh.clone();
        tampered[position] ^= 0x40;
        let mut outcome = Outcome::default();
        assert!(world.receive(WEB, API, &tampered, &mut outcome).is_empty(), "an answer to byte {position}");
        assert!(outcome.delivered.is_empty(), "byte {position}");
    }
}

/// A11: before the first policy nothing passes, whatever sessions there are.
#[test]
fn workers_deny_everything_until_a_policy_is_there() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    node.tables.policy = None;
    node.publish_next();
    let [there, _] = between(WEB, API);
    assert_eq!(world.send(WEB, &there.udp(40_000, 53, b"")), dropped(API, Reason::NotReady));
    assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"")), dropped(API, Reason::NotReady));

    let shared = Arc::new(Shared::new(1));
    let mut worker = Worker::new(0, Arc::clone(&shared));
    let mut outbox = Outbox::new(OutboxLimits::default());
    let datagram = world.seal_raw(WEB, API, &there.udp(40_000, 53, b""));
    worker.begin_batch(&mut outbox);
    worker.handle_datagram(endpoint(WEB), &datagram, world.now, &mut outbox);
    worker.handle_outbound(&there.udp(1, 53, b""), world.now, &mut outbox);
    assert_eq!(worker.counters().dropped(Reason::UnknownReceiver), 1);
    assert_eq!(worker.counters().dropped(Reason::NotReady), 1);
    assert_eq!(outbox.deliveries().count() + outbox.transmits().count() + outbox.for_engine().count(), 0);
}

#[test]
fn a_generation_is_reached_when_every_running_worker_has_loaded_it() {
    let mut world = World::new();
    let Node { shared, workers, outbox, tables, .. } = &mut world.nodes[API];
    assert!(shared.reached(tables.generation), "parked workers load before their first packet");
    workers[0].begin_batch(outbox);
    tables.generation += 1;
    shared.publish(Arc::new(tables.clone()));
    assert!(!shared.reached(tables.generation), "worker 0 may still write what it judged before");
    workers[0].begin_batch(outbox);
    assert!(shared.reached(tables.generation));
    workers[0].park();
    tables.generation += 1;
    shared.publish(Arc::new(tables.clone()));
    assert!(shared.reached(tables.generation));
    workers[0].begin_batch(outbox);
    assert_eq!(workers[0].generation(), tables.generation);
    let loaded = outbox.events().iter().filter(|event| matches!(event, WorkerEvent::Loaded(_))).count();
    assert_eq!(loaded, 3, "each generation is reported once");
}

#[test]
fn a_local_program_without_a_grant_is_refused_at_once() {
    let mut world = World::new();
    for there in between(API, WEB) {
        // The link exists, since web may call api; api may not call web.
        let outcome = world.send(API, &there.tcp(40_000, 80, SYN, b""));
        assert_eq!(outcome.drops, [(API, Reason::NoGrant)]);
        assert_eq!(tcp_of(outcome.delivered_at(API)[0]).flags, RST | ACK);
    }
    for there in [
        Build::between(addresses(API).v6, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99)),
        Build::between(addresses(API).v4.expect("v4"), Ipv4Addr::new(10, 77, 9, 9)),
    ] {
        let outcome = world.send(API, &there.udp(40_000, 80, b"x"));
        assert_eq!(outcome.drops, [(API, Reason::NoGrant)]);
        let answer = Inner::parse(outcome.delivered_at(API)[0]).expect("parsed");
        assert!(matches!(answer.transport(), Ok(Transport::Icmp(Icmp::Error { .. }))));
    }
    let records = world.records(API);
    assert_eq!(records.len(), 4);
    for record in records {
        assert_eq!((record.verdict, record.sender), (Err(Reason::NoGrant), Side::Local));
        assert_eq!(record.source.as_ref().and_then(|id| id.workload()), Some(&name(API)));
    }
}

#[test]
fn the_hosts_own_multicast_is_dropped_in_silence() {
    let mut world = World::new();
    let solicitation = Build::between(addresses(API).v6, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
    assert_eq!(world.send(API, &solicitation.icmp(&[133, 0, 0, 0, 0, 0, 0, 0])), dropped(API, Reason::NotUnicast));
    let foreign = Build::between(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), addresses(WEB).v6);
    assert_eq!(world.send(API, &foreign.udp(1, 53, b"")), dropped(API, Reason::NotAttributed));
    let own = Build::between(addresses(API).v6, addresses(API).v6);
    assert_eq!(world.send(API, &own.udp(1, 53, b"")).drops, [(API, Reason::LocalLoop)]);
}

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
fn a_flow_of_ones_own_ends_with_the_grant() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    assert_eq!(world.send(WEB, &query), delivered(API, &query));
    world.nodes[WEB].change_peer(API, |peer| peer.links[0].may_call = false);
    assert_eq!(world.nodes[WEB].shared.sweep(world.now).len(), 1, "it is cut");
    let answer = there.reversed().udp(53, 40_000, b"a");
    let outcome = world.inject(API, WEB, &answer);
    assert_eq!(outcome.delivered_at(WEB).len(), 0, "api is told, web hears nothing");
    assert_eq!(outcome.drops, [(WEB, Reason::PolicyChanged)]);
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

#[test]
fn fragments_share_the_verdict_of_their_first() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let whole = there.udp(40_000, 53, &[7; 3000]);
        let parts = [(0, true, 1200), (1200, true, 1200), (2400, false, 608)];
        for (offset, more, length) in parts {
            let part = fragment(&whole, 77, offset, more, length);
            assert_eq!(world.send(WEB, &part), delivered(API, &part), "{offset}");
        }
        let part = |id, offset| fragment(&whole, id, offset, true, 1200);
        assert_eq!(world.inject(WEB, API, &part(78, 1200)), dropped(API, Reason::UnknownFragment));
        assert_eq!(world.send(WEB, &part(79, 1200)), dropped(WEB, Reason::UnknownFragment));
        assert_eq!(world.inject(BATCH, API, &part(77, 1200)), dropped(API, Reason::SourceNotPeers));
        let refused = there.udp(40_000, 54, &[7; 3000]);
        let first = fragment(&refused, 80, 0, true, 1200);
        assert!(world.inject(WEB, API, &first).delivered_at(API).is_empty());
        let later = fragment(&refused, 80, 1200, true, 1200);
        assert_eq!(world.inject(WEB, API, &later), dropped(API, Reason::UnknownFragment));
    }
}

#[test]
fn packets_that_do_not_parse_are_refused_by_name() {
    let mut world = World::new();
    let [v6, v4] = between(WEB, API);
    let mut extended = v6.udp(1, 53, &[0; 64]);
    extended[6] = 0;
    let sctp = v4.ip(132, vec![0; 32], 100);
    for (packet, reason) in [
        (extended, Reason::UnsupportedHeader),
        (sctp, Reason::UnsupportedProtocol),
        (vec![0x45; 10], Reason::Malformed),
        (vec![0; 64], Reason::Malformed),
        (fragment(&v4.tcp(1, 8080, SYN, &[0; 64]), 1, 0, true, 8), Reason::TinyFragment),
        (fragment(&v4.tcp(1, 8080, SYN, &[0; 64]), 1, 8, true, 8), Reason::UnknownFragment),
    ] {
        assert_eq!(world.inject(WEB, API, &packet), dropped(API, reason));
    }
}

#[test]
fn datagrams_that_are_nobodys_are_dropped_without_an_answer() {
    let mut world = World::new();
    let mut message = |datagram: &[u8]| {
        let mut outcome = Outcome::default();
        assert!(world.receive(WEB, API, datagram, &mut outcome).is_empty());
        outcome
    };
    let typed = |kind: u8, length: usize| [vec![kind, 0, 0, 0], vec![0; length - 4]].concat();
    for (datagram, reason) in [
        (vec![], Reason::DatagramTooShort),
        (vec![4], Reason::DatagramTooShort),
        (typed(4, 31), Reason::DatagramTooShort),
        (typed(4, 64), Reason::UnknownReceiver),
        (typed(0, 64), Reason::UnknownMessage),
        (typed(5, 64), Reason::UnknownMessage),
        (typed(1, 147), Reason::DatagramTooShort),
        (typed(1, 149), Reason::DatagramTooLong),
        (typed(2, 93), Reason::DatagramTooLong),
        (typed(3, 63), Reason::DatagramTooShort),
        ([vec![4, 0, 1, 0], vec![0; 60]].concat(), Reason::ReservedBits),
    ] {
        assert_eq!(message(&datagram), dropped(API, reason), "{datagram:?}");
    }
}

#[test]
fn handshakes_and_their_tunnels_messages_go_to_the_slow_half() {
    let mut world = World::new();
    let node = &mut world.nodes[API];
    node.tables.sessions.insert_handshake_prefix(0x00_1234);
    node.publish_next();
    let transport = [vec![4, 0, 0, 0], 0x0012_3456u32.to_le_bytes().to_vec(), vec![0; 40]].concat();
    let hinted = [vec![1, 9, 9, 9], vec![0; 144]].concat();
    for datagram in [transport, hinted] {
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_datagram(endpoint(WEB), &datagram, world.now, &mut node.outbox);
        let sent: Vec<_> = node.outbox.for_engine().collect();
        let [ForEngine::Datagram { source, datagram: passed }] = sent[..] else { panic!("one datagram: {sent:?}") };
        assert_eq!((source, passed), (endpoint(WEB), &datagram[..]));
    }
    node.tables.sessions.remove_handshake_prefix(0x00_1234);
    assert!(node.tables.sessions.receiver(0x0012_3456).is_none());
}

#[test]
fn a_packet_without_a_session_waits_in_the_slow_half() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let syn = there.tcp(40_000, 8080, SYN, b"");
    for expire in [false, true] {
        if expire {
            world.pass_time(Duration::from_secs(180));
        } else {
            world.nodes[WEB].link(API).set_egress(None);
        }
        assert!(world.seal(WEB, &syn).is_empty());
        let outbox = &world.nodes[WEB].outbox;
        let sent: Vec<_> = outbox.for_engine().collect();
        let [ForEngine::Unsent { local, peer, packet }] = sent[..] else { panic!("one packet: {sent:?}") };
        assert_eq!((local, peer, packet), (LOCAL, peer_index(API), &syn[..]));
    }
}

#[test]
fn sessions_report_their_first_message_their_age_and_a_moved_peer_once() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let mut events = Vec::new();
    for port in 0..3 {
        let datagram = world.seal_raw(WEB, API, &there.udp(40_000 + port, 53, b""));
        let node = &mut world.nodes[API];
        node.outbox.clear();
        let owner = usize::from(super::owner(receiver(API, WEB), WORKERS));
        node.workers[owner].begin_batch(&mut node.outbox);
        node.workers[owner].handle_datagram(endpoint(BATCH), &datagram, world.now, &mut node.outbox);
        events.extend(node.outbox.events().iter().cloned());
    }
    assert_eq!(events.iter().filter(|event| matches!(event, WorkerEvent::Confirmed(_))).count(), 1);
    let moved: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            WorkerEvent::Moved(_, to) => Some(*to),
            _ => None,
        })
        .collect();
    assert_eq!(moved, [endpoint(BATCH)]);
    assert_eq!(world.nodes[API].link(WEB).endpoint(), Some(endpoint(WEB)), "the slow half decides");

    world.pass_time(REKEY_AFTER);
    let mut due = 0;
    for port in 0..3 {
        world.seal(WEB, &there.udp(50_000 + port, 53, b""));
        due +=
            world.nodes[WEB].outbox.events().iter().filter(|event| matches!(event, WorkerEvent::RekeyDue(_))).count();
    }
    assert_eq!(due, 1);
}

#[test]
fn a_peer_that_comes_from_elsewhere_with_every_packet_is_followed_a_few_times_a_second() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let owner = usize::from(super::owner(receiver(API, WEB), WORKERS));
    let moves = |world: &mut World| {
        let mut moved = 0;
        for port in 0..100 {
            let datagram = world.seal_raw(WEB, API, &there.udp(40_000, 53, b""));
            let node = &mut world.nodes[API];
            node.outbox.clear();
            node.workers[owner].begin_batch(&mut node.outbox);
            let from = SocketAddr::new(endpoint(BATCH).ip(), 1000 + port % 2);
            node.workers[owner].handle_datagram(from, &datagram, world.now, &mut node.outbox);
            moved += node.outbox.events().iter().filter(|event| matches!(event, WorkerEvent::Moved(..))).count();
        }
        moved
    };
    assert_eq!(moves(&mut world), 1);
    world.pass_time(MOVE_INTERVAL);
    assert_eq!(moves(&mut world), 1);
}

#[test]
fn a_peer_whose_certificate_ended_is_cut_off_in_both_directions() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"");
    world.send(WEB, &query);
    let end = world.now.unix;
    world.nodes[API].change_peer(WEB, |peer| peer.valid_until = end);
    assert_eq!(world.inject(WEB, API, &query), dropped(API, Reason::CertificateExpired));
    assert_eq!(world.send(API, &there.reversed().udp(53, 40_000, b"")).drops, [(API, Reason::NoPeer)]);
    let cuts = world.nodes[API].shared.sweep(world.now);
    assert_eq!(cuts.iter().map(|cut| cut.reason).collect::<Vec<_>>(), [Reason::CertificateExpired]);
}

#[test]
fn a_revoked_peers_flows_are_cut_and_its_packets_refused() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"");
    world.send(WEB, &query);
    let node = &mut world.nodes[API];
    node.tables.peers.remove(peer_index(WEB).0);
    node.publish_next();
    assert_eq!(world.inject(WEB, API, &query), dropped(API, Reason::PeerRevoked));
    let cuts = world.nodes[API].shared.sweep(world.now);
    assert_eq!(cuts.iter().map(|cut| cut.reason).collect::<Vec<_>>(), [Reason::PeerRevoked]);
}

/// A12: an address that changes hands brings nothing along.
#[test]
fn an_address_given_to_another_instance_inherits_no_flow() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    assert_eq!(world.send(WEB, &query), delivered(API, &query));
    let node = &mut world.nodes[WEB];
    let mut routes = (*node.tables.routes).clone();
    routes.insert(addresses(API).v6.into(), 128, peer_index(BATCH));
    node.tables.routes = Arc::new(routes);
    node.publish_next();
    let answer = there.reversed().udp(53, 40_000, b"a");
    assert_eq!(world.inject(API, WEB, &answer), dropped(WEB, Reason::SourceNotPeers));
    let outcome = world.inject(BATCH, WEB, &answer);
    assert!(outcome.delivered_at(WEB).is_empty(), "{outcome:?}");
    assert_eq!(world.nodes[WEB].shared.sweep(world.now).len(), 1, "the old owner's flow is cut");
}

#[test]
fn a_plain_peers_packets_are_judged_like_any_others() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"q");
    let plain = |world: &mut World, packet: &[u8]| {
        let now = world.now;
        let node = &mut world.nodes[API];
        node.outbox.clear();
        node.workers[1].begin_batch(&mut node.outbox);
        node.workers[1].handle_plain(LOCAL, peer_index(WEB), packet, now, &mut node.outbox);
        world.collect(API)
    };
    assert_eq!(plain(&mut world, &query), dropped(API, Reason::ProtectionMismatch), "a warren peer has data sessions");
    world.nodes[API].change_peer(WEB, |peer| peer.is_plain = true);
    assert_eq!(plain(&mut world, &query), delivered(API, &query));
    assert_eq!(plain(&mut world, &there.udp(1, 54, b"")).drops, [(API, Reason::NoService)]);
    let refusals: Vec<_> = world.nodes[API].outbox.for_engine().collect();
    assert!(matches!(refusals[..], [ForEngine::Unsent { .. }]), "the answer goes by the handshake tunnel");
    let answer = there.reversed().udp(53, 40_000, b"a");
    assert!(world.seal(API, &answer).is_empty());
    let sent: Vec<_> = world.nodes[API].outbox.for_engine().collect();
    assert!(matches!(sent[..], [ForEngine::Unsent { packet, .. }] if packet == answer));
}

#[test]
fn a_packet_too_big_for_the_path_is_answered_with_its_mtu() {
    let mut world = World::new();
    world.nodes[WEB].link(API).set_mtu(1300);
    for there in between(WEB, API) {
        let outcome = world.send(WEB, &there.tcp(40_000, 8080, ACK, &[0; 1280]));
        assert_eq!(outcome.drops, [(WEB, Reason::PacketTooBig)]);
        let answer = Inner::parse(outcome.delivered_at(WEB)[0]).expect("parsed");
        assert_eq!(answer.payload()[6..8], 1300u16.to_be_bytes());
    }
}

#[test]
fn equal_datagrams_to_one_peer_form_one_train() {
    let mut world = World::new();
    let ([api, _], [batch, _]) = (between(WEB, API), between(WEB, BATCH));
    let node = &mut world.nodes[WEB];
    for other in [API, BATCH] {
        let mut peer = Arc::clone(node.tables.peer(peer_index(other)).expect("peer"));
        Arc::make_mut(&mut peer).links[0].may_call = true;
        node.tables.peers.insert(peer.index.0, peer);
    }
    node.publish_next();
    node.outbox.clear();
    node.workers[0].begin_batch(&mut node.outbox);
    for (to, length) in [(api, 1000), (api, 1000), (api, 500), (api, 1000), (batch, 1000), (api, 100), (api, 1000)] {
        node.workers[0].handle_outbound(&to.udp(1, 53, &vec![0; length]), world.now, &mut node.outbox);
    }
    let shapes: Vec<_> = node.outbox.transmits().map(|train| (train.segment, train.datagrams().count())).collect();
    let sealed = |length: usize| sealed_length(48 + length);
    assert_eq!(shapes, [(sealed(1000), 3), (sealed(1000), 1), (sealed(1000), 1), (sealed(100), 1), (sealed(1000), 1)]);
}

#[test]
fn a_full_outbox_refuses_by_name_until_it_is_cleared() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let node = &mut world.nodes[WEB];
    node.outbox = Outbox::new(OutboxLimits { bytes: 4096, entries: 64 });
    node.workers[0].begin_batch(&mut node.outbox);
    let packet = there.udp(1, 53, &[0; 1200]);
    let fits = (0..).take_while(|_| {
        let room = node.outbox.has_room();
        node.workers[0].handle_outbound(&packet, world.now, &mut node.outbox);
        room
    });
    assert_eq!(fits.count(), 4);
    assert_eq!(node.workers[0].counters().dropped(Reason::Backpressure), 1);
    node.outbox.clear();
    assert!(node.outbox.has_room());
}

#[test]
fn what_audit_mode_lets_through_is_marked_and_ends_on_its_date() {
    let mut world =
        World::with_policy(&format!("{}audit: {{ until: \"2027-01-16\", ports: all }}\n", ALLOW.trim_start()));
    let node = &mut world.nodes[API];
    // Longer than a session lives: through the handshake tunnel.
    let years = world.now.unix.plus(Duration::from_secs(1 << 28));
    node.change_peer(BATCH, |peer| {
        peer.is_plain = true;
        peer.valid_until = years;
    });
    let [there, _] = between(BATCH, API);
    let arrive = |world: &mut World, flags: u8| {
        let (now, packet) = (world.now, there.tcp(40_000, 8080, flags, b""));
        let node = &mut world.nodes[API];
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_plain(LOCAL, peer_index(BATCH), &packet, now, &mut node.outbox);
        let outcome = world.collect(API);
        (outcome.delivered.len(), outcome.drops)
    };
    assert_eq!(arrive(&mut world, SYN), (1, vec![]));
    assert_eq!(world.seal(API, &there.reversed().tcp(8080, 40_000, SYN | ACK, b"")).len(), 0);
    let records = world.records(API);
    assert!(records[0].audit && records[0].verdict.is_ok(), "{records:?}");
    assert_eq!(arrive(&mut world, ACK), (1, vec![]));
    world.pass_time(Duration::from_secs(2 * 86_400));
    assert_eq!(arrive(&mut world, ACK), (0, vec![(API, Reason::PolicyChanged)]), "without any publication");
    assert_eq!(arrive(&mut world, SYN), (0, vec![(API, Reason::NoRule)]));
}

#[test]
fn records_beyond_the_limit_are_counted_as_lost() {
    let mut world = World::new();
    let [there, _] = between(BATCH, API);
    let limit = u16::try_from(records::MAX_RECORDS).expect("small");
    for port in 0..limit + 100 {
        world.inject(BATCH, API, &there.udp(40_000, 10_000 + port, b""));
    }
    assert_eq!(world.records(API).len(), records::MAX_RECORDS);
    let lost: u64 = world.nodes[API].workers.iter().map(|worker| worker.counters().traffic().records_lost).sum();
    assert_eq!(lost, 100);
    world.inject(BATCH, API, &there.udp(40_000, 1, b""));
    assert_eq!(world.records(API).len(), 1, "there is room again");
}

#[test]
fn a_cache_hit_takes_no_lock() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let (data, query) = (there.tcp(40_000, 8080, ACK, b"data"), there.udp(40_000, 53, b"query"));
        let syn = there.tcp(40_000, 8080, SYN, b"");
        assert_eq!(world.send(WEB, &syn), delivered(API, &syn));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        let shared: Vec<_> = world.nodes.iter().map(|node| Arc::clone(&node.shared)).collect();
        let held: Vec<_> = shared.iter().map(|shared| hold_every_lock(shared.flows())).collect();
        // A second lock on this thread would never return.
        assert_eq!(world.send(WEB, &data), delivered(API, &data));
        assert_eq!(world.send(WEB, &query), delivered(API, &query));
        drop(held);
    }
}

/// The generation protocol between threads: one worker works without pause, one waits between batches, and the
/// slow half closes the door a hundred times.
#[test]
fn nothing_judged_by_an_older_generation_is_written_once_the_newer_is_reached() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    let mut world = World::new();
    let now = world.now;
    let [there, _] = between(WEB, API);
    let query = there.udp(40_000, 53, b"query");
    let (open, closed) = (policy(ALLOW), policy(CLOSED));
    let node = &mut world.nodes[API];
    let (shut, done, passed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    // Judged without a session, which would be another's to open.
    node.change_peer(WEB, |peer| peer.is_plain = true);
    let workers = std::mem::take(&mut node.workers);
    std::thread::scope(|scope| {
        for (mut worker, rests) in workers.into_iter().zip([false, true]) {
            let (query, shut, done, passed) = (&query, &shut, &done, &passed);
            scope.spawn(move || {
                let mut outbox = Outbox::new(OutboxLimits::default());
                while !done.load(SeqCst) {
                    outbox.clear();
                    worker.begin_batch(&mut outbox);
                    for _ in 0..64 {
                        worker.handle_plain(LOCAL, peer_index(WEB), query, now, &mut outbox);
                    }
                    // Here the shell writes.
                    std::thread::yield_now();
                    let count = outbox.deliveries().count() as u64;
                    assert!(count == 0 || !shut.load(SeqCst), "written after the door was shut");
                    passed.fetch_add(count, SeqCst);
                    if rests {
                        worker.park();
                        std::thread::yield_now();
                    }
                }
                worker.park();
            });
        }
        let wait = |reached: &dyn Fn() -> bool| {
            while !reached() {
                std::thread::yield_now()
            }
        };
        for _ in 0..100 {
            let before = passed.load(SeqCst);
            wait(&|| passed.load(SeqCst) > before);
            node.apply(&closed);
            wait(&|| node.shared.reached(node.tables.generation));
            shut.store(true, SeqCst);
            (0..20).for_each(|_| std::thread::yield_now());
            shut.store(false, SeqCst);
            node.apply(&open);
        }
        done.store(true, SeqCst);
    });
    assert!(passed.load(SeqCst) > 100);
}

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

/// A super-packet of `web`'s to `api` with segments of `size` bytes, and the packets that it stands for.
fn super_packet(length: usize, size: u16) -> (VirtioNetHeader, Vec<u8>, Vec<Vec<u8>>) {
    let build = Build::between(addresses(WEB).v4.expect("v4"), addresses(API).v4.expect("v4"));
    let data: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).expect("small")).collect();
    let header = VirtioNetHeader {
        needs_checksum: true,
        offload: Some(Offload::TcpV4),
        header_length: 0,
        segment_size: size,
        checksum_start: 20,
        checksum_offset: 16,
    };
    let part = |(position, data): (usize, &[u8])| {
        let sequence = 1000 + u32::try_from(position * usize::from(size)).expect("small");
        let mut packet = build.tcp_at(4000, 8080, ACK, sequence, 2000, data);
        packet[4..6].copy_from_slice(&u16::try_from(position).expect("few").to_be_bytes());
        packet[10..12].fill(0);
        let checksum = checksum_v4_header(packet.first_chunk::<20>().expect("a header"));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    };
    let parts = data.chunks(usize::from(size)).enumerate().map(part).collect();
    (header, build.tcp_at(4000, 8080, ACK, 1000, 2000, &data), parts)
}

/// A world in which the connection of [`super_packet`] stands.
fn connected() -> World {
    let mut world = World::new();
    let build = Build::between(addresses(WEB).v4.expect("v4"), addresses(API).v4.expect("v4"));
    let outcome = world.send(WEB, &build.tcp(4000, 8080, SYN, &[]));
    assert_eq!(outcome.delivered_at(API).len(), 1);
    world.nodes.iter_mut().for_each(|node| node.outbox.clear());
    world
}

#[test]
fn a_super_packet_travels_as_one_train_and_arrives_as_one_super_packet() {
    let mut world = connected();
    let (header, mut whole, packets) = super_packet(30_000, 1368);
    let now = world.now;
    let node = &mut world.nodes[WEB];
    node.workers[0].begin_batch(&mut node.outbox);
    let split = Split::new(header, &mut whole).expect("a super-packet");
    node.workers[0].handle_segments(split, now, &mut node.outbox);
    let trains: Vec<_> = node.outbox.transmits().collect();
    assert_eq!((trains.len(), trains[0].segment), (1, sealed_length(1408)));
    assert_eq!(trains[0].datagrams().count(), packets.len());
    let datagrams: Vec<Vec<u8>> = trains[0].datagrams().map(<[u8]>::to_vec).collect();
    let node = &mut world.nodes[API];
    let worker = usize::try_from(receiver(API, WEB) % u32::from(WORKERS)).expect("few");
    node.workers[worker].begin_batch(&mut node.outbox);
    for datagram in &datagrams {
        node.workers[worker].handle_datagram(endpoint(WEB), datagram, now, &mut node.outbox);
    }
    assert!(node.outbox.deliveries().map(|admitted| admitted.packet()).eq(&packets), "what left is what came");
    let mut merger = Merger::new(Merge { tcp: true, udp: true }, 64);
    let deliveries: Vec<_> = node.outbox.merged(&mut merger).collect();
    assert_eq!((deliveries.len(), deliveries[0].count()), (1, packets.len()));
    assert_eq!(deliveries[0].offload(), Some(Offload::TcpV4));
    assert!(deliveries[0].packets().map(|admitted| admitted.packet()).eq(&packets));
    let mut out = [0; MAX_PREFIX];
    let mut merged = deliveries[0].prefix(&mut out)[VirtioNetHeader::LENGTH..].to_vec();
    deliveries[0].payloads().for_each(|payload| merged.extend(payload));
    assert_eq!(merged.len(), whole.len());
    assert_eq!(merged[40..], super_packet(30_000, 1368).1[40..]);
}

#[test]
fn a_super_packet_is_judged_once_and_its_refusal_counted_for_every_packet_in_it() {
    let mut world = World::with_policy(CLOSED);
    let mut refused = |header, whole: &mut [u8]| {
        let now = world.now;
        let node = &mut world.nodes[BATCH];
        node.outbox.clear();
        node.workers[0].begin_batch(&mut node.outbox);
        node.workers[0].handle_segments(Split::new(header, whole).expect("a packet"), now, &mut node.outbox);
        let told = node.outbox.deliveries().count();
        (node.new_drops(), told)
    };
    // Not this node's address.
    let (header, mut whole, packets) = super_packet(30_000, 1368);
    assert_eq!(refused(header, &mut whole), (vec![Reason::NotAttributed; packets.len()], 0));
}

#[test]
fn a_super_packet_whose_segments_do_not_fit_the_path_is_answered_with_its_size() {
    let mut world = connected();
    let (header, mut whole, packets) = super_packet(30_000, 1400);
    let now = world.now;
    let node = &mut world.nodes[WEB];
    node.workers[0].begin_batch(&mut node.outbox);
    node.workers[0].handle_segments(Split::new(header, &mut whole).expect("a packet"), now, &mut node.outbox);
    assert_eq!(node.outbox.transmits().count(), 0);
    assert_eq!(node.outbox.deliveries().count(), 1, "packet too big");
    assert_eq!(node.new_drops(), vec![Reason::PacketTooBig; packets.len()]);
}

#[test]
fn a_super_packet_of_very_many_segments_is_sent_as_far_as_there_is_room() {
    let mut world = connected();
    let (header, mut whole, packets) = super_packet(65_000, 8);
    let now = world.now;
    let node = &mut world.nodes[WEB];
    node.workers[0].begin_batch(&mut node.outbox);
    node.workers[0].handle_segments(Split::new(header, &mut whole).expect("a packet"), now, &mut node.outbox);
    let sent: usize = node.outbox.transmits().map(|train| train.datagrams().count()).sum();
    let dropped = node.new_drops();
    assert!(sent > 1000, "{sent}");
    assert_eq!(sent + dropped.len(), packets.len());
    assert!(dropped.iter().all(|reason| *reason == Reason::Backpressure));
}
