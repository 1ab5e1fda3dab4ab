//! What a packet of 64 bytes costs among many: 1, 10 and 1000 peers, and 1, 1000 and 100,000 live flows, taken in turn so
//! that nothing is warm but what has to be; and the memory that they hold. `cargo bench -p warren-engine --bench scale`.

#![allow(clippy::expect_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warren_engine::allowed_ips::AllowedIps;
use warren_engine::output::{Outbox, OutboxLimits};
use warren_engine::session::{DataSession, SessionParameters, Suite, sealed_length};
use warren_engine::tables::{Link, Local, LocalIndex, Peer, PeerIndex, PeerLink, Shared, Tables};
use warren_engine::{Now, Worker};
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, OverlayAddresses, TrustDomain, UnixTime, WorkloadName};

const LOCAL: LocalIndex = LocalIndex(0);
const PORT: u16 = 8080;
const NOW: Now = Now { monotonic: Duration::from_secs(1000), unix: UnixTime(1_800_000_000) };
/// Packets per measured round: as many as a worker takes at a time.
const BATCH: usize = 64;
const PAYLOAD: usize = 64;
const MTU: usize = 1420;

/// The node itself is host 0.
fn addresses(host: u32) -> OverlayAddresses {
    let [_, _, high, low] = (host + 1).to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
    OverlayAddresses { v4: Some(Ipv4Addr::new(10, 77, high, low)), v6 }
}

fn endpoint(peer: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], u16::try_from(10_000 + peer).expect("few")))
}

/// The session between the node and a peer, at either end. Every key is the same.
fn session(peer: u32, far: bool) -> DataSession {
    let (near_index, far_index) = (peer + 1, peer + 1_000_000);
    let (local_index, remote_index) = if far { (far_index, near_index) } else { (near_index, far_index) };
    DataSession::new(&SessionParameters {
        suite: Suite::Aes256Gcm,
        send_key: &[1; 32],
        receive_key: &[1; 32],
        local_index,
        remote_index,
        local: LOCAL,
        peer: PeerIndex(peer),
        valid_until: NOW.unix.plus(Duration::from_secs(86_400)),
        established: NOW,
    })
    .expect("keys")
}

fn tables(peers: u32) -> Tables {
    let text = "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\nkind: Namespace\nname: bank\n\
         ---\nkind: Service\nname: bank/api\nports:\n  api: { port: 8080, protocol: udp }\n\
         allow:\n  all: { from: [bank/api], ports: [api] }\n";
    let file = SourceFile { name: "bench.yaml".into(), text: text.into() };
    let documents = Documents::from_files(&[file]).expect("documents");
    let policy = Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy"));
    let name: WorkloadName = "bank/api".parse().expect("a name");
    let domain: TrustDomain = "bank.example".parse().expect("a domain");
    let instance = |host: u32| InstanceId::from_bytes([host.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
    let mut tables = Tables::deny_all();
    let mut routes = AllowedIps::default();
    for peer in 0..peers {
        let link = Arc::new(Link::new(LOCAL, PeerIndex(peer), MTU as u32, 1));
        let session = Arc::new(session(peer, false));
        link.set_endpoint(Some(endpoint(peer)));
        link.set_egress(Some(Arc::clone(&session)));
        tables.sessions.insert(session);
        for address in addresses(peer + 1).iter() {
            routes.insert(address, 128, PeerIndex(peer));
        }
        let peer = Peer {
            index: PeerIndex(peer),
            instance: instance(peer + 1),
            identity: name.in_domain(&domain),
            source: policy.identities().index(&name),
            valid_until: NOW.unix.plus(Duration::from_secs(86_400)),
            is_plain: false,
            links: vec![PeerLink { may_call: true, ingress: None, link }],
        };
        tables.peers.insert(peer.index.0, Arc::new(peer));
    }
    tables.routes = Arc::new(routes);
    tables.locals = Arc::new([Local {
        index: LOCAL,
        instance: instance(0),
        identity: name.in_domain(&domain),
        addresses: addresses(0),
        ports: policy.port_table(&name),
    }]);
    tables.policy = Some(policy);
    tables.generation = 1;
    tables
}

/// Flow number `flow` among those that `peers` peers open, as a packet from its peer or, answered, to it.
fn packet(flow: usize, peers: u32, to_peer: bool) -> (u32, Vec<u8>) {
    let flow = u32::try_from(flow).expect("few");
    let (peer, source_port) = (flow % peers, u16::try_from(1024 + flow / peers % 60_000).expect("a port"));
    let (near, far) = (addresses(0).v6.octets(), addresses(peer + 1).v6.octets());
    // More flows than ports of one peer: its other flows are of the other family.
    let second = flow / peers >= 60_000;
    let mut packet = Vec::with_capacity(48 + PAYLOAD);
    let length = u16::try_from(8 + PAYLOAD).expect("small");
    if second {
        let (near, far) = (addresses(0).v4.expect("v4").octets(), addresses(peer + 1).v4.expect("v4").octets());
        packet.extend([0x45, 0]);
        packet.extend((length + 20).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet.extend(if to_peer { [near, far].concat() } else { [far, near].concat() });
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([17, 64]);
        packet.extend(if to_peer { [near, far].concat() } else { [far, near].concat() });
    }
    let ports = if to_peer { [PORT, source_port] } else { [source_port, PORT] };
    packet.extend(ports.map(u16::to_be_bytes).concat());
    packet.extend(length.to_be_bytes());
    packet.extend([0xff, 0xff]);
    packet.resize(packet.len() + PAYLOAD, 7);
    (peer, packet)
}

/// A worker with its flows open, and the far ends of its sessions.
struct Node {
    worker: Worker,
    outbox: Outbox,
    shared: Arc<Shared>,
    far: Vec<DataSession>,
    peers: u32,
    flows: usize,
    next: usize,
}

impl Node {
    fn new(peers: u32, flows: usize) -> Self {
        let shared = Arc::new(Shared::new(1));
        shared.publish(Arc::new(tables(peers)));
        let mut outbox = Outbox::new(OutboxLimits::default());
        let mut worker = Worker::new(0, Arc::clone(&shared));
        worker.begin_batch(&mut outbox);
        let far = (0..peers).map(|peer| session(peer, true)).collect();
        let mut node = Self { worker, outbox, shared, far, peers, flows, next: 0 };
        for _ in 0..flows {
            let (peer, packet) = node.next_packet(false);
            node.open(peer, &packet);
        }
        assert_eq!(node.shared.flows().len(), flows, "every flow is open");
        node
    }

    /// The flows in turn, in steps that leave no neighbour warm.
    fn next_packet(&mut self, to_peer: bool) -> (u32, Vec<u8>) {
        // 7919 is prime and divides none of the numbers of flows, so every flow has its turn.
        self.next = (self.next + 7919) % self.flows;
        let (peer, inner) = packet(self.next, self.peers, to_peer);
        if to_peer {
            return (peer, inner);
        }
        let mut sealed = vec![0; sealed_length(inner.len())];
        let length = self.far[peer as usize].seal(&inner, MTU, &mut sealed, NOW).expect("sealed");
        sealed.truncate(length);
        (peer, sealed)
    }

    fn open(&mut self, peer: u32, datagram: &[u8]) {
        if !self.outbox.has_room() {
            self.outbox.clear();
        }
        self.worker.handle_datagram(endpoint(peer), datagram, NOW, &mut self.outbox);
    }

    fn drops(&self) -> u64 {
        self.worker.counters().drops().map(|(_, count)| count).sum()
    }
}

fn cost(c: &mut Criterion) {
    for (peers, flows) in [(1, 1), (10, 1000), (1000, 1000), (10, 100_000), (1000, 100_000)] {
        let mut node = Node::new(peers, flows);
        let mut group = c.benchmark_group(format!("{peers} peers, {flows} flows"));
        group.throughput(Throughput::Elements(BATCH as u64));
        // `node` is needed by both closures of a round, one after the other.
        let cell = std::cell::RefCell::new(&mut node);
        for to_peer in [false, true] {
            let name = if to_peer { "out: judge, seal" } else { "in: open, admit" };
            group.bench_function(name, |b| {
                b.iter_batched(
                    || {
                        let mut node = cell.borrow_mut();
                        (0..BATCH).map(|_| node.next_packet(to_peer)).collect::<Vec<_>>()
                    },
                    |packets| {
                        let node = &mut **cell.borrow_mut();
                        node.outbox.clear();
                        for (peer, packet) in &packets {
                            if to_peer {
                                node.worker.handle_outbound(packet, NOW, &mut node.outbox);
                            } else {
                                node.open(*peer, packet);
                            }
                        }
                        packets
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
        assert_eq!(node.drops(), 0, "nothing was dropped");
    }
}

/// What tables and flows hold, by an allocator that counts.
fn memory(_: &mut Criterion) {
    for (peers, flows) in [(1, 1), (10, 1000), (1000, 1), (1000, 1000), (1000, 100_000)] {
        let measured = |flows| allocation_counter::measure(|| std::mem::forget(Node::new(peers, flows))).bytes_current;
        let (few, all) = (measured(1), measured(flows));
        let (far, tables) = (u64::from(peers) * FAR, few.unsigned_abs());
        println!(
            "{peers} peers, {flows} flows: {} KiB without flows (far ends of {} KiB included), {} bytes per flow",
            tables / 1024,
            far / 1024,
            (all - few) / i64::try_from(flows).expect("few").max(1),
        );
    }
}

/// About what a far end's session holds, which a real node does not have.
const FAR: u64 = size_of::<DataSession>() as u64;

criterion_group! {
    name = scale;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = memory, cost
}
criterion_main!(scale);
