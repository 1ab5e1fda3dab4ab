//! Datagrams: whatever arrives at whichever worker has exactly one end: delivered, handed to the worker that owns its
//! session, handed to the slow half, or counted as dropped. What is delivered was sealed by the peer whose address it
//! carries, for a port that policy opens, and is delivered once.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use warren_engine::allowed_ips::AllowedIps;
use warren_engine::demux::classify;
use warren_engine::mesh::EngineConfig;
use warren_engine::output::{ForEngine, Outbox, OutboxLimits};
use warren_engine::packet::Inner;
use warren_engine::session::{DataSession, SessionParameters, Suite, sealed_length};
use warren_engine::tables::{Link, Local, LocalIndex, Peer, PeerIndex, PeerLink, Shared, Tables};
use warren_engine::{Engine, Now, Worker};
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{InstanceId, OverlayAddresses, Reason, TrustDomain, UnixTime, WorkloadName};

use super::{Input, Parts};

const POLICY: &str = "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\nkind: Namespace\n\
     name: bank\n---\nkind: Service\nname: bank/api\nports:\n  api: { port: 8080, protocol: [tcp, udp] }\n\
     allow:\n  all: { from: [bank/web], ports: [api] }\n---\nkind: Service\nname: bank/web\n";
const LOCAL: LocalIndex = LocalIndex(0);
const PEERS: u8 = 3;
/// Receiver indices of this prefix are handshake tunnels'.
const PREFIX: u32 = 0x77;
const START: Now = Now { monotonic: Duration::from_secs(1000), unix: UnixTime(1_800_000_000) };
/// A keepalive's datagram: no inner packet.
const EMPTY: usize = sealed_length(0);

/// The local service is at host 1, peer `p` at host `p + 2`, as [`Parts`] builds them.
fn addresses(host: u8) -> OverlayAddresses {
    OverlayAddresses {
        v4: Some(Ipv4Addr::new(10, 77, 0, host)),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)),
    }
}

fn endpoint(peer: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, peer], 51820))
}

fn receiver(peer: u8) -> u32 {
    1_000_000 + u32::from(peer)
}

static BASE: LazyLock<Tables> = LazyLock::new(|| {
    let file = SourceFile { name: "fuzz.yaml".into(), text: POLICY.into() };
    let documents = Documents::from_files(&[file]).expect("documents");
    let policy = Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy"));
    let domain: TrustDomain = "bank.example".parse().expect("a domain");
    let (api, web): (WorkloadName, WorkloadName) =
        ("bank/api".parse().expect("name"), "bank/web".parse().expect("name"));
    let mut tables = Tables::deny_all();
    tables.locals = Arc::new([Local {
        index: LOCAL,
        instance: InstanceId::from_bytes([1; 16]),
        identity: api.in_domain(&domain),
        addresses: addresses(1),
        ports: policy.port_table(&api),
    }]);
    let mut routes = AllowedIps::default();
    for peer in 0..PEERS {
        let index = PeerIndex(peer.into());
        let link = Arc::new(Link::new(LOCAL, index, 1420, 4));
        link.set_endpoint(Some(endpoint(peer)));
        for address in addresses(peer + 2).iter() {
            routes.insert(address, 128, index);
        }
        let peer = Peer {
            index,
            instance: InstanceId::from_bytes([peer + 2; 16]),
            identity: web.in_domain(&domain),
            source: policy.identities().index(&web),
            valid_until: START.unix.plus(Duration::from_secs(3600)),
            is_plain: false,
            links: vec![PeerLink { may_call: false, ingress: None, link }],
        };
        tables.peers.insert(index.0, Arc::new(peer));
    }
    tables.routes = Arc::new(routes);
    tables.sessions.insert_handshake_prefix(PREFIX);
    tables.policy = Some(policy);
    tables.generation = 1;
    tables
});

fn session(peer: u8, far: bool) -> DataSession {
    let (ours, theirs) = ([peer + 100; 32], [peer; 32]);
    let (send_key, receive_key) = if far { (&theirs, &ours) } else { (&ours, &theirs) };
    let (local_index, remote_index) = if far { (1, receiver(peer)) } else { (receiver(peer), 1) };
    DataSession::new(&SessionParameters {
        suite: if peer == 0 { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm },
        send_key,
        receive_key,
        local_index,
        remote_index,
        local: LOCAL,
        peer: PeerIndex(peer.into()),
        valid_until: START.unix.plus(Duration::from_secs(3600)),
        established: START,
    })
    .expect("keys")
}

/// One node under fire.
struct Node {
    workers: Vec<(Worker, Outbox)>,
    engine: Engine,
    far: Vec<DataSession>,
    now: Now,
    /// Sealed inner packets that have not been delivered, with the peer that sealed them.
    undelivered: Vec<(u8, Vec<u8>)>,
    /// Datagrams sent so far.
    sent: Vec<Vec<u8>>,
}

/// See the module. The first byte says how many workers; then datagram after datagram.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut node = Node::new([1, 2, 4][usize::from(input.byte()) % 3]);
    while !input.is_empty() && node.sent.len() < 64 {
        node.step(&mut input);
    }
}

impl Node {
    fn new(workers: u16) -> Self {
        let shared = Arc::new(Shared::new(workers));
        let mut tables = BASE.clone();
        for peer in 0..PEERS {
            let session = Arc::new(session(peer, false));
            let link = tables.peer(PeerIndex(peer.into())).and_then(|peer| peer.link(LOCAL)).map(|link| &link.link);
            link.expect("a link").set_egress(Some(Arc::clone(&session)));
            tables.sessions.insert(session);
        }
        shared.publish(Arc::new(tables));
        let limits = OutboxLimits { bytes: 4096, entries: 64 };
        Self {
            workers: (0..workers).map(|index| (Worker::new(index, Arc::clone(&shared)), Outbox::new(limits))).collect(),
            engine: Engine::new(EngineConfig::new([7; 32]), Arc::new(Shared::new(workers))),
            far: (0..PEERS).map(|peer| session(peer, true)).collect(),
            now: START,
            undelivered: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (kind, place) = (input.byte(), input.byte());
        let (peer, worker) = (place % PEERS, usize::from(place >> 4) % self.workers.len());
        let mut datagram = match kind & 7 {
            // A packet such as the peer may send, or almost.
            0..=2 => {
                let packet = Parts {
                    v6: kind & 8 != 0,
                    tcp: kind & 16 != 0,
                    service: 0,
                    hops: 64,
                    dont_fragment: true,
                    id: 1,
                    host: if kind & 32 != 0 { input.byte() } else { peer + 2 },
                    ports: (40_000, if kind & 64 != 0 { input.word() } else { 8080 }),
                    sequence: 1,
                    flags: if kind & 1 != 0 { 0x02 } else { 0x10 },
                    options: 0,
                    payload: vec![7; usize::from(input.byte()) * 6],
                };
                self.seal(peer, packet.bytes())
            }
            // Whatever the peer likes, nothing included.
            3 => {
                let length = usize::from(input.byte()) * 4;
                let packet = input.take(length).to_vec();
                self.seal(peer, packet)
            }
            // A datagram sent before, perhaps changed below.
            4 => match self.sent.len() {
                0 => Vec::new(),
                sent => self.sent[usize::from(input.byte()) % sent].clone(),
            },
            // What looks like a handshake message.
            5 => {
                let length = [148, 92, 64, 32, 31, 149][usize::from(input.byte()) % 6];
                let mut message = vec![0; length];
                message[0] = kind >> 4;
                let prefix = if kind & 8 != 0 { PREFIX << 8 } else { input.long() };
                message[4..8].copy_from_slice(&prefix.to_le_bytes());
                message[8..12].copy_from_slice(&prefix.to_le_bytes());
                message
            }
            6 => {
                self.now.monotonic += Duration::from_secs(u64::from(input.byte()));
                return;
            }
            _ => {
                let length = usize::from(input.byte()) * 4;
                input.take(length).to_vec()
            }
        };
        if kind & 128 != 0 {
            match input.byte() % 4 {
                0 => datagram.truncate(usize::from(input.byte())),
                1 => datagram.resize(datagram.len() + usize::from(input.byte()), 0),
                _ => {
                    let at = usize::from(input.byte());
                    if let Some(byte) = datagram.get_mut(at) {
                        *byte ^= input.byte();
                    }
                }
            }
        }
        // Two in one, as a lying receive offload would have it.
        if place & 8 != 0 {
            datagram.extend_from_within(..);
        }
        self.sent.push(datagram.clone());
        self.arrive(worker, endpoint(peer), &datagram, false);
    }

    fn seal(&mut self, peer: u8, packet: Vec<u8>) -> Vec<u8> {
        let mut out = vec![0; sealed_length(packet.len())];
        // Its session may have ended.
        let Ok(length) = self.far[usize::from(peer)].seal(&packet, 1420, &mut out, self.now) else { return Vec::new() };
        out.truncate(length);
        if !packet.is_empty() {
            self.undelivered.push((peer, packet));
        }
        out
    }

    fn arrive(&mut self, at: usize, from: SocketAddr, datagram: &[u8], handed_over: bool) {
        let now = self.now;
        let (worker, outbox) = &mut self.workers[at];
        let dropped = |worker: &Worker| worker.counters().drops().map(|(_, count)| count).sum::<u64>();
        worker.begin_batch(outbox);
        outbox.clear();
        let before = dropped(worker);
        worker.handle_datagram(from, datagram, now, outbox);
        let drops = dropped(worker) - before;
        let deliveries: Vec<Vec<u8>> = outbox.deliveries().map(|packet| packet.packet().to_vec()).collect();
        let handovers: Vec<_> = outbox.handovers().map(|one| (one.worker, one.datagram.to_vec())).collect();
        let for_engine: Vec<_> = outbox.for_engine().map(|one| describe(&one)).collect();
        let transmits: Vec<_> = outbox
            .transmits()
            .flat_map(|train| train.datagrams().map(move |bytes| (train.endpoint, bytes.len())))
            .collect();
        outbox.clear();
        worker.park();
        let ends = deliveries.len() + handovers.len() + for_engine.len() + drops as usize;
        let is_keepalive = ends == 0 && datagram.len() == EMPTY;
        assert!(ends == 1 || is_keepalive, "{ends} ends of a datagram of {} bytes", datagram.len());
        // A refusal goes to the peer's endpoint and to nobody else, and costs less than what it answers allows.
        assert!(transmits.len() <= usize::from(drops > 0));
        for (to, length) in transmits {
            assert!((0..PEERS).any(|peer| endpoint(peer) == to) && length <= sealed_length(1280));
        }
        deliveries.iter().for_each(|packet| self.check_delivery(packet));
        for (owner, bytes) in handovers {
            assert!(!handed_over && usize::from(owner) != at, "what was handed over is at home");
            assert_eq!(bytes, datagram);
            self.arrive(usize::from(owner), from, &bytes, true);
        }
        for bytes in for_engine {
            assert_eq!(bytes, datagram);
            let length = classify(&bytes).err();
            assert!(!matches!(length, Some(Reason::DatagramTooShort | Reason::DatagramTooLong)), "{length:?}");
            let before: u64 = self.engine.drops().map(|(_, count)| count).sum();
            self.engine.handle_datagram(from, &bytes, now);
            let after: u64 = self.engine.drops().map(|(_, count)| count).sum();
            assert_eq!(after, before + 1, "without peers every message is refused, once");
            assert!(self.engine.poll_transmit().is_none(), "a stranger gets no answer");
        }
        let _ = classify(datagram);
    }

    fn check_delivery(&mut self, packet: &[u8]) {
        let inner = Inner::parse(packet).expect("only packets are delivered");
        let sealed = self.undelivered.iter().position(|(peer, sent)| {
            let own = addresses(peer + 2);
            sent.starts_with(packet) && own.iter().any(|address| address == inner.source)
        });
        let sealed = sealed.expect("what is delivered was sealed by the owner of its source, and not delivered before");
        self.undelivered.remove(sealed);
        assert!(addresses(1).iter().any(|address| address == inner.destination));
        if let Ok(warren_engine::packet::Transport::Udp(udp)) = inner.transport() {
            assert_eq!(udp.destination, 8080);
        }
        if let Ok(warren_engine::packet::Transport::Tcp(tcp)) = inner.transport() {
            assert_eq!(tcp.destination, 8080);
        }
    }
}

fn describe(entry: &ForEngine<'_>) -> Vec<u8> {
    match entry {
        ForEngine::Datagram { datagram, .. } => datagram.to_vec(),
        ForEngine::Unsent { .. } => panic!("an arriving datagram made a packet that waits for a session"),
    }
}
