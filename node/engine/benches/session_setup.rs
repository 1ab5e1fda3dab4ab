//! What bringing up a session costs each end: the WireGuard handshake, the key exchange with ML-KEM-768 inside it, and
//! the certificate path that says who the other end is. `cargo bench -p warren-engine --bench session_setup`.
//!
//! One end's figure is the time spent in that end's engine from the first waiting packet to the confirmed session; a
//! core sets up as many sessions a second as its reciprocal says. The path is verified once for each certificate, not at
//! each rekey, and stands apart.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark: it reads the clock that the engine does not have"
)]

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use warren_engine::identity::VerifiedPeer;
use warren_engine::mesh::{EngineConfig, LocalKey, MeshUpdate, TunnelSecret};
use warren_engine::output::WorkerEvent;
use warren_engine::session::{DataSession, sealed_length, transport_header};
use warren_engine::tables::{Receiver, Shared, UnderWay};
use warren_engine::{Engine, Now};
use warren_proto::certificate::TunnelCertificate;
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};

use identity::test_mesh::{NOW, TestMesh, TestNode, TestPeer};

/// The mesh of the crate's own tests, which stands beside the module that it is for.
#[allow(dead_code, reason = "the crate's tests use more of it")]
#[path = "."]
mod identity {
    pub(crate) use warren_engine::identity::{LocalView, VerifiedPeer, verify};

    #[path = "../src/identity/test_mesh.rs"]
    pub(crate) mod test_mesh;
}

const WORKLOADS: [&str; 2] = ["bank/web", "bank/api"];
const TIME: Now = Now { monotonic: Duration::from_secs(1000), unix: NOW };

/// Both ends as their authority made them.
struct Mesh {
    mesh: TestMesh,
    policy: Arc<CompiledPolicy>,
    ends: Vec<(LocalKey, VerifiedPeer)>,
}

impl Mesh {
    fn new() -> Self {
        let text = "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\nkind: Namespace\n\
             name: bank\n---\nkind: Service\nname: bank/web\n---\nkind: Service\nname: bank/api\n\
             ports:\n  api: { port: 8080, protocol: tcp }\nallow:\n  web: { from: [bank/web], ports: [api] }\n";
        let file = SourceFile { name: "bench.yaml".into(), text: text.into() };
        let documents = Documents::from_files(&[file]).expect("documents");
        let mesh = TestMesh::new();
        let end = |number: u16| {
            let secret = TunnelSecret::from_bytes([number as u8 + 1; 32]);
            let peer = TestPeer::new(number + 1, WORKLOADS[usize::from(number)], secret.public_key());
            let chain = mesh.chain(&TestMesh::template(&peer));
            let certificate = TunnelCertificate::parse(&chain[0]).expect("a tunnel certificate");
            (LocalKey { secret, certificate, valid_until: peer.not_after }, mesh.admit_chain(&peer, &chain))
        };
        let ends = vec![end(0), end(1)];
        Self { mesh, policy: Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy")), ends }
    }
}

/// One end, and how long it has worked.
struct End {
    engine: Engine,
    shared: Arc<Shared>,
    worked: Duration,
    /// Datagrams that came out as packets.
    delivered: usize,
}

fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number as u8 + 1], 51820))
}

impl End {
    fn new(mesh: &Mesh, number: usize) -> Self {
        let shared = Arc::new(Shared::new(1));
        let mut engine = Engine::new(EngineConfig::new(rand::random()), Arc::clone(&shared));
        let other = &mesh.ends[1 - number].1;
        let update = MeshUpdate {
            generation: 1,
            policy: Arc::clone(&mesh.policy),
            locals: vec![mesh.ends[number].0.clone()],
            peers: vec![other.clone()],
            endpoints: [(other.instance(), vec![address(1 - number)])].into(),
        };
        engine.apply(&update, TIME);
        Self { engine, shared, worked: Duration::ZERO, delivered: 0 }
    }

    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let begun = Instant::now();
        let result = work(self);
        self.worked += begun.elapsed();
        result
    }

    /// A datagram, dealt with as by a worker in front of the engine.
    fn receive(&mut self, from: SocketAddr, datagram: &[u8]) {
        let tables = self.shared.tables();
        let session = transport_header(datagram).ok().and_then(|(index, _)| match tables.sessions.receiver(index) {
            Some(Receiver::Data(session)) => Some(Arc::clone(session)),
            _ => None,
        });
        let Some(session) = session else { return self.engine.handle_datagram(from, datagram, TIME) };
        let mut plain = vec![0; sealed_length(datagram.len())];
        if let Ok(opened) = session.open(datagram, &mut plain, TIME) {
            self.delivered += usize::from(!opened.plaintext().is_empty());
            if opened.is_first() {
                self.engine.handle_worker_event(&WorkerEvent::Confirmed(session), TIME);
            }
        }
    }

    fn egress(&self) -> Option<Arc<DataSession>> {
        let tables = self.shared.tables();
        let peer = tables.peers.values().next()?;
        peer.links.first()?.link.egress().clone()
    }
}

/// A packet waits at the first end; when it is delivered, both ends hold a confirmed session. The time each worked.
fn set_up(mesh: &Mesh) -> [Duration; 2] {
    let mut ends = [End::new(mesh, 0), End::new(mesh, 1)];
    let under_way = {
        let tables = ends[0].shared.tables();
        let link = &tables.peers.values().next().expect("a peer").links[0].link;
        UnderWay::begin(link, tables.generation).expect("room")
    };
    ends[0].timed(|end| end.engine.handle_unsent(under_way, b"a packet", TIME));
    let mut wire = VecDeque::new();
    loop {
        for (number, end) in ends.iter_mut().enumerate() {
            end.timed(|end| {
                while let Some(transmit) = end.engine.poll_transmit() {
                    wire.push_back((number, transmit.datagram));
                }
                while let Some(event) = end.engine.poll_event() {
                    black_box(event);
                }
            });
        }
        let Some((sender, datagram)) = wire.pop_front() else { break };
        ends[1 - sender].timed(|end| end.receive(address(sender), &datagram));
    }
    assert_eq!(ends[1].delivered, 1, "the packet that waited is delivered");
    assert!(ends.iter().all(|end| end.egress().is_some()), "both ends send through the session");
    ends.map(|end| end.worked)
}

fn setup(c: &mut Criterion) {
    let mesh = Mesh::new();
    let mut group = c.benchmark_group("session set-up");
    for (number, name) in ["initiator", "responder"].into_iter().enumerate() {
        group.bench_function(name, |b| b.iter_custom(|count| (0..count).map(|_| set_up(&mesh)[number]).sum()));
    }
    let peer = TestPeer::new(3, WORKLOADS[0], TunnelSecret::from_bytes([3; 32]).public_key());
    let chain = mesh.mesh.chain(&TestMesh::template(&peer));
    let bundle = mesh.mesh.bundle();
    group.bench_function("verify a certificate path", |b| {
        TestNode::default().with_view(&mesh.mesh.overlay, |view| {
            b.iter(|| identity::verify(peer.instance, black_box(&chain), &bundle, view, NOW).expect("verified"));
        });
    });
    group.finish();
}

criterion_group! {
    name = session_setup;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = setup
}
criterion_main!(session_setup);
