//! What each step of a packet's way costs. `cargo bench -p warren-engine`; figures compare within one run only.
//!
//! The mesh is of a thousand peers, so that tables are as cold as they are in use. Rates are of inner bytes.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warren_engine::allowed_ips::AllowedIps;
use warren_engine::output::{Outbox, OutboxLimits};
use warren_engine::segment::{Merge, Merger, Offload, Split, VirtioNetHeader};
use warren_engine::session::{DataSession, SessionParameters, Suite, sealed_length};
use warren_engine::tables::{Link, Local, LocalIndex, Peer, PeerIndex, PeerLink, Shared, Tables};
use warren_engine::{Now, Worker};
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, OverlayAddresses, TrustDomain, UnixTime, WorkloadName};

const PEERS: u32 = 1000;
const LOCAL: LocalIndex = LocalIndex(0);
const PORT: u16 = 8080;
/// A segment of TCP with time stamps over an MTU of 1420.
const SEGMENT: usize = 1368;
const HEADERS: usize = 52;
/// As many as one send takes.
const SEGMENTS: usize = 44;
const NOW: Now = Now { monotonic: Duration::from_secs(1000), unix: UnixTime(1_800_000_000) };

fn addresses(node: u32) -> OverlayAddresses {
    let [_, _, high, low] = (node + 1).to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
    OverlayAddresses { v4: Some(Ipv4Addr::new(10, 77, high, low)), v6 }
}

fn endpoint(node: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], u16::try_from(10_000 + node).expect("few")))
}

/// A session at node `at` with node `other`. Every key is the same.
fn session(suite: Suite, at: u32, other: u32) -> DataSession {
    DataSession::new(&SessionParameters {
        suite,
        send_key: &[1; 32],
        receive_key: &[1; 32],
        local_index: at * PEERS + other,
        remote_index: other * PEERS + at,
        local: LOCAL,
        peer: PeerIndex(other),
        valid_until: NOW.unix.plus(Duration::from_secs(86_400)),
        established: NOW,
    })
    .expect("keys")
}

/// The tables of `node`, which knows everybody else in the mesh.
fn tables(node: u32) -> Tables {
    let text = "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\nkind: Namespace\nname: bank\n\
         ---\nkind: Service\nname: bank/api\nports:\n  api: { port: 8080, protocol: tcp }\n\
         allow:\n  all: { from: [bank/api], ports: [api] }\n";
    let file = SourceFile { name: "bench.yaml".into(), text: text.into() };
    let documents = Documents::from_files(&[file]).expect("documents");
    let policy = Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy"));
    let name: WorkloadName = "bank/api".parse().expect("a name");
    let domain: TrustDomain = "bank.example".parse().expect("a domain");
    let instance = |node: u32| InstanceId::from_bytes([node.to_be_bytes(); 4].concat().try_into().expect("16 bytes"));
    let mut tables = Tables::deny_all();
    let mut routes = AllowedIps::default();
    for other in (0..PEERS).filter(|other| *other != node) {
        let link = Arc::new(Link::new(LOCAL, PeerIndex(other), 1420, 1));
        let session = Arc::new(session(Suite::Aes256Gcm, node, other));
        link.set_endpoint(Some(endpoint(other)));
        link.set_egress(Some(Arc::clone(&session)));
        tables.sessions.insert(session);
        for address in addresses(other).iter() {
            routes.insert(address, 128, PeerIndex(other));
        }
        let peer = Peer {
            index: PeerIndex(other),
            instance: instance(other),
            identity: name.in_domain(&domain),
            source: policy.identities().index(&name),
            valid_until: NOW.unix.plus(Duration::from_secs(86_400)),
            is_plain: false,
            links: vec![PeerLink { may_call: true, ingress: None, link }],
        };
        tables.peers.insert(other, Arc::new(peer));
    }
    tables.routes = Arc::new(routes);
    tables.locals = Arc::new([Local {
        index: LOCAL,
        instance: instance(node),
        identity: name.in_domain(&domain),
        addresses: addresses(node),
        ports: policy.port_table(&name),
    }]);
    tables.policy = Some(policy);
    tables.generation = 1;
    tables
}

/// A TCP super-packet from one node to another, as a TUN gives it.
fn super_packet(from: u32, to: u32) -> (VirtioNetHeader, Vec<u8>) {
    let (from, to) = (addresses(from).v4.expect("v4"), addresses(to).v4.expect("v4"));
    let length = u16::try_from(HEADERS + SEGMENT * SEGMENTS).expect("fits");
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend([40_000_u16.to_be_bytes(), PORT.to_be_bytes()].concat());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 8 << 4, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.resize(usize::from(length), 7);
    let header = VirtioNetHeader {
        needs_checksum: true,
        offload: Some(Offload::TcpV4),
        header_length: 52,
        segment_size: 1368,
        checksum_start: 20,
        checksum_offset: 16,
    };
    (header, packet)
}

/// A packet that asks for the connection of [`super_packet`].
fn opening(from: u32, to: u32) -> Vec<u8> {
    let (_, mut packet) = super_packet(from, to);
    packet.truncate(HEADERS);
    packet[2..4].copy_from_slice(&52_u16.to_be_bytes());
    packet[33] = 2;
    packet
}

fn segments() -> Vec<Vec<u8>> {
    let (header, mut packet) = super_packet(0, 1);
    let mut split = Split::new(header, &mut packet).expect("a super-packet");
    let mut segments = Vec::new();
    while let Some(segment) = split.next_segment() {
        segments.push(segment.to_vec());
    }
    segments
}

fn segmentation(c: &mut Criterion) {
    let mut group = c.benchmark_group("super-packet of 44");
    group.throughput(Throughput::Bytes((SEGMENTS * SEGMENT) as u64));
    let (header, packet) = super_packet(0, 1);
    group.bench_function("split", |b| {
        let mut copy = packet.clone();
        b.iter(|| {
            // Splitting writes over payload: only the headers must be right again.
            copy[..HEADERS].copy_from_slice(&packet[..HEADERS]);
            let mut split = Split::new(header, &mut copy).expect("a super-packet");
            while let Some(segment) = split.next_segment() {
                black_box(segment);
            }
        });
    });
    let segments = segments();
    let mut merger = Merger::new(Merge { tcp: true, udp: true }, SEGMENTS);
    group.bench_function("merge", |b| {
        b.iter(|| {
            merger.clear();
            segments.iter().for_each(|segment| merger.push(segment));
            black_box(merger.merged().len())
        });
    });
    group.finish();
}

fn sessions(c: &mut Criterion) {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut group = c.benchmark_group(suite.name());
        for length in [64, 1420] {
            group.throughput(Throughput::Bytes(length as u64));
            let packet = vec![7; length];
            let mut sealed = vec![0; sealed_length(length)];
            let mut opened = vec![0; sealed_length(length)];
            let sender = session(suite, 0, 0);
            group.bench_function(format!("seal {length}"), |b| {
                b.iter(|| sender.seal(black_box(&packet), 1420, &mut sealed, NOW).expect("sealed"));
            });
            let (sender, receiver) = (session(suite, 0, 0), session(suite, 0, 0));
            group.bench_function(format!("open {length}"), |b| {
                b.iter_batched_ref(
                    || {
                        let mut sealed = vec![0; sealed_length(length)];
                        let end = sender.seal(&packet, 1420, &mut sealed, NOW).expect("sealed");
                        sealed.truncate(end);
                        sealed
                    },
                    |sealed| receiver.open(sealed, &mut opened, NOW).expect("opened").plaintext().len(),
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

fn lookups(c: &mut Criterion) {
    let tables = tables(0);
    let mut group = c.benchmark_group("a thousand peers");
    let mut turn = 0;
    let mut next = move || {
        turn = (turn + 7) % (PEERS - 1);
        turn + 1
    };
    group.bench_function("peer at address", |b| {
        b.iter(|| tables.peer_at(IpAddr::V6(addresses(next()).v6)).is_some());
    });
    group.bench_function("session of receiver index", |b| b.iter(|| tables.sessions.receiver(next()).is_some()));
    group.finish();
}

fn worker(c: &mut Criterion) {
    let end = |node| {
        let shared = Arc::new(Shared::new(1));
        shared.publish(Arc::new(tables(node)));
        let mut outbox = Outbox::new(OutboxLimits::default());
        let mut worker = Worker::new(0, shared);
        worker.begin_batch(&mut outbox);
        outbox.clear();
        (worker, outbox)
    };
    let ((mut web, mut sent), (mut api, mut taken)) = (end(0), end(1));
    web.handle_outbound(&opening(0, 1), NOW, &mut sent);
    for train in sent.transmits() {
        train.datagrams().for_each(|datagram| api.handle_datagram(endpoint(0), datagram, NOW, &mut taken));
    }
    assert_eq!(taken.deliveries().count(), 1, "the connection is open");
    let (header, packet) = super_packet(0, 1);
    let mut group = c.benchmark_group("worker, 44 packets of one flow");
    group.throughput(Throughput::Bytes((SEGMENTS * SEGMENT) as u64));
    let mut copy = packet.clone();
    let mut seal = |sent: &mut Outbox| {
        sent.clear();
        copy[..HEADERS].copy_from_slice(&packet[..HEADERS]);
        let split = Split::new(header, &mut copy).expect("a super-packet");
        web.handle_segments(split, NOW, sent);
    };
    group.bench_function("out: judge, split, seal", |b| b.iter(|| seal(&mut sent)));
    group.bench_function("in: open, admit", |b| {
        b.iter_batched(
            || {
                seal(&mut sent);
                sent.transmits().flat_map(|train| train.datagrams().map(<[u8]>::to_vec)).collect::<Vec<_>>()
            },
            |datagrams| {
                taken.clear();
                datagrams.iter().for_each(|bytes| api.handle_datagram(endpoint(0), bytes, NOW, &mut taken));
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    assert_eq!(taken.deliveries().count(), SEGMENTS);
}

criterion_group! {
    name = data_path;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = segmentation, sessions, lookups, worker
}
criterion_main!(data_path);
