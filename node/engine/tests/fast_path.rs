//! The packet's way on a flow cache hit, under an allocator that counts: one worker seals, another opens and
//! admits, and neither asks for memory. (That it takes no lock either is shown beside the flow table's tests,
//! with every lock held.)

#![expect(clippy::expect_used, reason = "a test that cannot set up its world has failed")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use warren_engine::Now;
use warren_engine::allowed_ips::AllowedIps;
use warren_engine::output::{Outbox, OutboxLimits};
use warren_engine::packet::{ICMPV6, TCP, UDP};
use warren_engine::session::{DataSession, SessionParameters, Suite};
use warren_engine::tables::{Link, Local, LocalIndex, Peer, PeerIndex, PeerLink, Shared, Tables};
use warren_engine::worker::Worker;
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, OverlayAddresses, TrustDomain, UnixTime, WorkloadName};

const POLICY: &str = "
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
name: bank/api
ports: { api: { port: 8080, protocol: tcp }, dns: { port: 53, protocol: udp } }
allow: { web-calls: { from: [shop/web], ports: [api, dns] } }
";

const NOW: Now = Now { monotonic: Duration::from_secs(1000), unix: UnixTime(1_800_000_000) };
const LOCAL: LocalIndex = LocalIndex(0);
const PEER: PeerIndex = PeerIndex(0);
const NAMES: [&str; 2] = ["shop/web", "bank/api"];

fn addresses(node: usize) -> OverlayAddresses {
    let host = u16::try_from(node + 1).expect("few");
    OverlayAddresses {
        v4: Some(Ipv4Addr::new(10, 77, 0, host.to_le_bytes()[0])),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host),
    }
}

fn endpoint(node: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 51820 + u16::try_from(node).expect("few")))
}

/// Node 0 runs shop/web, node 1 bank/api; each is the other's only peer.
fn worker(node: usize, suite: Suite, policy: &Arc<CompiledPolicy>) -> Worker {
    let (other, domain) = (1 - node, "bank.example".parse::<TrustDomain>().expect("a domain"));
    let name = |node: usize| NAMES[node].parse::<WorkloadName>().expect("a name");
    let index = |node: usize| u32::try_from(node).expect("few");
    let parameters = SessionParameters {
        suite,
        send_key: &[u8::try_from(node).expect("few"); 32],
        receive_key: &[u8::try_from(other).expect("few"); 32],
        local_index: index(node),
        remote_index: index(other),
        local: LOCAL,
        peer: PEER,
        valid_until: UnixTime(u64::MAX),
        established: NOW,
    };
    let session = Arc::new(DataSession::new(&parameters).expect("keys"));
    let link = Arc::new(Link::new(LOCAL, PEER, 1420, 1));
    link.set_endpoint(Some(endpoint(other)));
    link.set_egress(Some(Arc::clone(&session)));
    let mut tables = Tables::deny_all();
    tables.generation = 1;
    tables.policy = Some(Arc::clone(policy));
    tables.sessions.insert(session);
    let mut routes = AllowedIps::default();
    for address in addresses(other).iter() {
        routes.insert(address, 128, PEER);
    }
    tables.routes = Arc::new(routes);
    tables.locals = Arc::new([Local {
        index: LOCAL,
        instance: InstanceId::from_bytes([0; 16]),
        identity: name(node).in_domain(&domain),
        addresses: addresses(node),
        ports: policy.port_table(&name(node)),
    }]);
    let peer = Peer {
        index: PEER,
        instance: InstanceId::from_bytes([1; 16]),
        identity: name(other).in_domain(&domain),
        source: policy.identities().index(&name(other)),
        valid_until: UnixTime(u64::MAX),
        is_plain: false,
        links: vec![PeerLink { may_call: node == 0, ingress: None, link }],
    };
    tables.peers.insert(PEER.0, Arc::new(peer));
    let shared = Arc::new(Shared::new(1));
    shared.publish(Arc::new(tables));
    Worker::new(0, shared)
}

/// A packet from web to api. Checksums are the hosts' business.
fn packet(v6: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u16::try_from(transport.len()).expect("short");
    let (from, to) = (addresses(0), addresses(1));
    let mut packet = if v6 {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([protocol, 64]);
        header.extend(from.v6.octets());
        header.extend(to.v6.octets());
        header
    } else {
        let mut header = vec![0x45, 0];
        header.extend((length + 20).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        header.extend(from.v4.expect("v4").octets());
        header.extend(to.v4.expect("v4").octets());
        header
    };
    packet.extend(transport);
    packet
}

fn tcp(flags: u8, data: usize) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    segment.extend(vec![7; data]);
    segment
}

fn udp(data: usize) -> Vec<u8> {
    let length = u16::try_from(data + 8).expect("short").to_be_bytes();
    let mut datagram = vec![0x9c, 0x40, 0, 53, length[0], length[1], 0, 0];
    datagram.extend(vec![7; data]);
    datagram
}

#[test]
fn admission_seal_and_open_allocate_nothing_on_a_cache_hit() {
    let file = SourceFile { name: "policy.yaml".into(), text: POLICY.into() };
    let documents = Documents::from_files(&[file]).expect("documents");
    let policy = Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("policy"));
    let instrument = allocation_counter::measure(|| drop(std::hint::black_box(vec![0; 9])));
    assert_eq!(instrument.count_total, 1, "the allocator counts");
    let echo = [128, 0, 0, 0, 0, 7, 0, 1];
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (mut web, mut api) = (worker(0, suite, &policy), worker(1, suite, &policy));
        let mut sent = Outbox::new(OutboxLimits::default());
        let mut received = Outbox::new(OutboxLimits::default());
        let openers = [packet(true, TCP, &tcp(0x02, 0)), packet(false, TCP, &tcp(0x02, 0))];
        let packets = [
            packet(true, TCP, &tcp(0x10, 1200)),
            packet(false, TCP, &tcp(0x18, 900)),
            packet(true, UDP, &udp(1)),
            packet(false, UDP, &udp(1300)),
            packet(true, ICMPV6, &echo),
        ];
        let mut exchange = |packets: &[Vec<u8>]| {
            sent.clear();
            web.begin_batch(&mut sent);
            for packet in packets {
                web.handle_outbound(packet, NOW, &mut sent);
            }
            received.clear();
            api.begin_batch(&mut received);
            let mut delivered = 0;
            for train in sent.transmits() {
                for datagram in train.datagrams() {
                    api.handle_datagram(endpoint(0), datagram, NOW, &mut received);
                }
            }
            for (admitted, packet) in received.deliveries().zip(packets) {
                assert_eq!(admitted.packet(), packet);
                delivered += 1;
            }
            delivered
        };
        assert_eq!(exchange(&openers), openers.len());
        assert_eq!(exchange(&packets), packets.len(), "the first of each flow is judged by policy");
        let mut delivered = 0;
        let counted = allocation_counter::measure(|| {
            for _ in 0..1000 {
                delivered += exchange(&packets);
            }
        });
        assert_eq!(delivered, 1000 * packets.len());
        assert_eq!((counted.count_total, counted.bytes_total), (0, 0), "{}", suite.name());
    }
}
