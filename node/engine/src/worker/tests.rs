//! Three nodes, two workers each, sessions between every pair, a wire that is a function call:
//!
//! ```text
//!   web (shop/web)            api (bank/api)            batch (bank/batch)
//!   10.77.0.1, fd00::1        10.77.0.2, fd00::2        10.77.0.3, fd00::3
//!        `----- may call ---------^   ^------ no rule --------'
//! ```

mod changes;
mod datagrams;
mod devices;
mod icmp;
mod marks;
mod random_walk;
mod runs;
mod trains;
mod verdicts;

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
        let length = session.seal(packet, 1420, &mut datagram, self.now).expect("sealed");
        datagram.truncate(length);
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
            links: vec![PeerLink { may_call: node == API, ingress: None, link }],
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

/// A plain device's packet, without ECN bits on its outer header.
fn from_plain(from: usize, packet: &[u8]) -> PlainPacket {
    PlainPacket { local: LOCAL, peer: peer_index(from), ecn: ecn::NOT_ECT, packet: packet.to_vec() }
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
