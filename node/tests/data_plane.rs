//! The data plane's threads with real engines: over real TUN devices and sockets in network namespaces, and over
//! devices that fail on demand.
//!
//! ```text
//!   host a (bank/web)                 host b (bank/api)
//!    warren0  fd12:3456:789a::1:1      warren0  fd12:3456:789a::1:2
//!             10.77.0.1                         10.77.0.2
//!    eth0     198.51.100.1             eth0     198.51.100.2
//!     |                                 |
//!   ==+=================================+====   wire0
//! ```

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "everything here is a test")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::mpsc;
use warren_engine::Now;
use warren_engine::identity::{LocalView, VerifiedPeer, verify};
use warren_engine::mesh::{EngineConfig, Event, LocalKey, MeshUpdate, TunnelSecret};
use warren_engine::output::{Delivery, Transmit};
use warren_engine::segment::VirtioNetHeader;
use warren_netns_tests::host::{self as lab_host, Outcome, netlink};
use warren_netns_tests::lab::Lab;
use warren_node::clock;
use warren_node::data_plane::io::{Fragments, InnerIo, OuterIo, ReceiveBatch, Received, SendRefusal};
use warren_node::data_plane::offload::{Offloads, Switches};
use warren_node::data_plane::{DataPlane, DataPlaneConfig, DataPlaneEvent, Devices, Status, tun, udp};
use warren_node::host::{Desired, Host, HostInstance, Keeper};
use warren_node::selectors::Members;
use warren_proto::Reason;
use warren_proto::certificate::TunnelCertificate;
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};

/// The engine tests' own mesh: authorities and peers that really go through admission.
#[allow(dead_code, reason = "what the engine's tests need and these do not")]
#[path = "../engine/src/identity/test_mesh.rs"]
mod test_mesh;

use test_mesh::{DAY, NOW, TestMesh, TestPeer};

const WORKLOADS: [&str; 2] = ["bank/web", "bank/api"];
/// Long enough for anything that happens on one machine without a fault.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(500);
const PORT: u16 = 51820;
const WORKERS: usize = 2;
/// Allowed for `bank/web` at `bank/api`, over TCP and UDP.
const OPEN: u16 = 7000;
/// Declared there, and allowed for nobody.
const CLOSED: u16 = 7001;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    warren_netns_tests::namespace::enter()?;
    libtest_mimic::run(
        &arguments,
        vec![
            claim("two_hosts_talk_through_the_tunnel", two_hosts_talk_through_the_tunnel),
            claim(
                "megabytes_arrive_whole_with_and_without_offloads_and_with_1_2_and_4_workers",
                megabytes_arrive_whole_with_and_without_offloads_and_with_1_2_and_4_workers,
            ),
            claim(
                "a_flow_stays_with_one_worker_whichever_writes_its_answers",
                a_flow_stays_with_one_worker_whichever_writes_its_answers,
            ),
            claim(
                "a_policy_change_cuts_a_live_flow_before_it_counts",
                a_policy_change_cuts_a_live_flow_before_it_counts,
            ),
            claim("a_removed_device_ends_the_data_plane_closed", a_removed_device_ends_the_data_plane_closed),
            claim(
                "packets_pass_between_workers_that_do_not_own_them",
                packets_pass_between_workers_that_do_not_own_them,
            ),
            claim(
                "what_a_socket_refuses_is_counted_and_passes_later",
                what_a_socket_refuses_is_counted_and_passes_later,
            ),
            claim("what_the_tun_refuses_is_counted_and_passes_later", what_the_tun_refuses_is_counted_and_passes_later),
            claim("a_tun_that_fails_for_good_is_named", a_tun_that_fails_for_good_is_named),
            claim("a_socket_that_reports_errors_keeps_working", a_socket_that_reports_errors_keeps_working),
            claim("devices_that_do_not_pair_are_refused", devices_that_do_not_pair_are_refused),
        ],
    )
    .exit()
}

fn claim(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// What a test decides about who may do what.
fn policy(allow: bool) -> Arc<CompiledPolicy> {
    let mut text = format!(
        "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\nkind: Namespace\nname: bank\n\
         ---\nkind: Service\nname: bank/web\n---\nkind: Service\nname: bank/api\nports:\n\
         \x20 tcp: {{ port: {OPEN}, protocol: tcp }}\n  udp: {{ port: {OPEN}, protocol: udp }}\n\
         \x20 tcp-closed: {{ port: {CLOSED}, protocol: tcp }}\n  udp-closed: {{ port: {CLOSED}, protocol: udp }}\n\
         \x20 other: {{ port: 9, protocol: udp }}\nallow:\n  linked: {{ from: [bank/web], ports: [other] }}\n",
    );
    if allow {
        text += "  web: { from: [bank/web], ports: [tcp, udp] }\n";
    }
    let documents = Documents::from_files(&[SourceFile { name: "test.yaml".into(), text }]).expect("documents");
    Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy"))
}

/// Two instances that know each other's certificates.
struct Pair {
    mesh: TestMesh,
    peers: [TestPeer; 2],
    keys: [LocalKey; 2],
    verified: [VerifiedPeer; 2],
}

impl Pair {
    fn new() -> Self {
        let mesh = TestMesh::new();
        let made = [0, 1].map(|number: u8| {
            let secret = TunnelSecret::from_bytes([number + 11; 32]);
            let peer = TestPeer::new(u16::from(number) + 1, WORKLOADS[usize::from(number)], secret.public_key());
            let chain = mesh.chain(&TestMesh::template(&peer));
            let certificate = TunnelCertificate::parse(&chain[0]).expect("a tunnel certificate");
            let verified = mesh.admit_chain(&peer, &chain);
            (LocalKey { secret, certificate, valid_until: NOW.plus(DAY) }, verified, peer)
        });
        let [(key_a, verified_a, peer_a), (key_b, verified_b, peer_b)] = made;
        Self { mesh, peers: [peer_a, peer_b], keys: [key_a, key_b], verified: [verified_a, verified_b] }
    }

    /// The picture of end `of`, which reaches the other at `other`.
    fn update(&self, of: usize, other: SocketAddr, generation: u64, allow: bool) -> MeshUpdate {
        let peer = &self.verified[1 - of];
        MeshUpdate {
            generation,
            policy: policy(allow),
            locals: vec![self.keys[of].clone()],
            peers: vec![peer.clone()],
            endpoints: HashMap::from([(peer.instance(), vec![other])]),
        }
    }

    fn address(&self, of: usize, v4: bool) -> IpAddr {
        self.peers[of].addresses.iter().find(|address| address.is_ipv4() == v4).expect("an address")
    }
}

/// A data plane with the events it has said.
struct Running {
    plane: DataPlane,
    events: mpsc::UnboundedReceiver<DataPlaneEvent>,
}

impl Running {
    fn start(seed: u8, devices: Devices) -> Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let time = Arc::new(|| Now { monotonic: clock::read().boot, unix: NOW });
        let config = DataPlaneConfig { engine: EngineConfig::new([seed; 32]), time };
        Ok(Self { plane: DataPlane::start(config, devices, sender)?, events })
    }

    /// Waits for an event that `wanted` knows.
    fn wait_for(&mut self, what: &str, wanted: impl Fn(&DataPlaneEvent) -> bool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, async {
                while let Some(event) = self.events.recv().await {
                    if wanted(&event) {
                        return Ok(());
                    }
                }
                bail!("the data plane ended before {what}")
            })
            .await
            .with_context(|| format!("no {what}"))?
        })
    }

    fn apply(&mut self, update: MeshUpdate) -> Result<()> {
        let wanted = update.generation;
        self.plane.apply(update);
        self.wait_for(
            "acknowledgement",
            |event| matches!(event, DataPlaneEvent::Engine(Event::Applied { generation }) if *generation == wanted),
        )
    }

    fn status(&self) -> Result<Status> {
        Ok(self.plane.status().blocking_recv()?)
    }

    fn dropped(&self, reason: Reason) -> Result<u64> {
        Ok(self.status()?.drops.iter().find(|(each, _)| *each == reason).map_or(0, |(_, count)| *count))
    }

    fn is_lost(&mut self, device: &str) -> Result<()> {
        self.wait_for("loss", |event| matches!(event, DataPlaneEvent::DeviceLost { what, .. } if *what == device))
    }
}

/// How a node's devices are opened.
#[derive(Debug, Clone, Copy)]
struct Setting {
    workers: usize,
    switches: Switches,
}

impl Setting {
    const DEFAULT: Self = Self { workers: WORKERS, switches: Switches::ON };
}

/// A host of the lab with a data plane on it.
struct Node {
    host: lab_host::Host,
    running: Running,
    device: u32,
    _keeper: Keeper,
}

fn devices(tun: tun::Tun, sockets: udp::UdpSockets) -> Devices {
    Devices {
        inner: tun.queues.into_iter().map(|queue| Box::new(queue) as _).collect(),
        outer: sockets.sockets.into_iter().map(|socket| Box::new(socket) as _).collect(),
        engine: Box::new(sockets.engine),
    }
}

fn node(lab: &mut Lab, pair: &Pair, of: usize, setting: Setting) -> Result<Node> {
    let host = lab.host(["a", "b"][of])?;
    let (running, device, keeper) = host.namespace.run(|| {
        let claimed = Host::claim()?;
        let offloads = Offloads::new(setting.switches);
        let tun = tun::open("warren0", setting.workers, &offloads)?;
        let sockets = udp::bind(PORT, setting.workers, &offloads)?;
        let device = tun.index;
        let desired = Desired {
            overlay: pair.mesh.overlay,
            instances: vec![HostInstance { addresses: pair.peers[of].addresses, members: Members::Rest }],
            openings: Vec::new(),
            device,
            mtu: 1420,
        };
        let (keeper, _) = Keeper::start(claimed, desired, |_| {})?;
        Ok((Running::start(of as u8, devices(tun, sockets))?, device, keeper))
    })?;
    Ok(Node { host, running, device, _keeper: keeper })
}

/// Both hosts, with the mesh in force.
fn two_nodes(lab: &mut Lab, pair: &Pair) -> Result<[Node; 2]> {
    two_nodes_with(lab, pair, [Setting::DEFAULT; 2])
}

fn two_nodes_with(lab: &mut Lab, pair: &Pair, settings: [Setting; 2]) -> Result<[Node; 2]> {
    let mut nodes = [node(lab, pair, 0, settings[0])?, node(lab, pair, 1, settings[1])?];
    let at = [nodes[0].host.at(PORT), nodes[1].host.at(PORT)];
    for (of, node) in nodes.iter_mut().enumerate() {
        node.running.apply(pair.update(of, at[1 - of], 1, true))?;
    }
    Ok(nodes)
}

fn two_hosts_talk_through_the_tunnel() -> Result<()> {
    let (mut lab, pair) = (Lab::new()?, Pair::new());
    let [a, b] = two_nodes(&mut lab, &pair)?;
    for v4 in [false, true] {
        let to = |port| SocketAddr::from((pair.address(1, v4), port));
        b.host.serve_udp(to(OPEN))?;
        b.host.serve_tcp(to(OPEN), b"hello from api")?;
        b.host.serve_tcp(to(CLOSED), b"never")?;
        let (outcome, answer) = a.host.udp(to(OPEN), b"through the tunnel", PATIENCE)?;
        ensure!((outcome, &answer[..]) == (Outcome::Connected, b"through the tunnel"), "udp v4={v4}: {outcome:?}");
        let (outcome, answer) = a.host.tcp(to(OPEN), b"hello", PATIENCE)?;
        ensure!((outcome, &answer[..]) == (Outcome::Connected, b"hello from api"), "tcp v4={v4}: {outcome:?}");
        let (outcome, _) = a.host.tcp(to(CLOSED), b"hello", PATIENCE)?;
        ensure!(outcome == Outcome::Refused, "closed v4={v4}: {outcome:?}");
    }
    ensure!(b.running.dropped(Reason::NoRule)? > 0, "{:?}", b.running.status()?.drops);
    let status = a.running.status()?;
    ensure!(status.peers.len() == 1 && status.peers[0].session.is_some(), "{:?}", status.peers);
    ensure!(status.peers[0].endpoint == Some(b.host.at(PORT)));
    ensure!(status.flows > 0 && status.generation == 1);
    Ok(())
}

fn megabytes_arrive_whole_with_and_without_offloads_and_with_1_2_and_4_workers() -> Result<()> {
    const LENGTH: usize = 8 << 20;
    let content: &'static [u8] = (0..LENGTH).map(|at| (at % 251) as u8).collect::<Vec<_>>().leak();
    let (on, off) = (Switches::ON, Switches::OFF);
    let setting = |workers, switches| Setting { workers, switches };
    for settings in [
        [setting(1, on), setting(1, on)],
        [setting(2, on), setting(2, on)],
        [setting(4, on), setting(4, on)],
        [setting(2, off), setting(2, off)],
        [setting(1, on), setting(4, off)],
        [setting(2, off), setting(1, on)],
        [setting(1, Switches { gso: false, uso: false, ..on }), setting(1, Switches { tso: false, ..on })],
    ] {
        let (mut lab, pair) = (Lab::new()?, Pair::new());
        let [a, b] = two_nodes_with(&mut lab, &pair, settings)?;
        for v4 in [false, true] {
            let to = SocketAddr::from((pair.address(1, v4), OPEN));
            b.host.serve_tcp(to, content)?;
            let mut stream = a.host.connect(to, PATIENCE)?;
            let mut received = Vec::with_capacity(LENGTH);
            std::io::Write::write_all(&mut stream, b"please")?;
            std::io::Read::read_to_end(&mut stream, &mut received)?;
            ensure!(received == content, "v4={v4} {settings:?}: {} bytes", received.len());
        }
        // What went as super-packets was taken as such.
        let traffic = a.running.status()?.traffic;
        ensure!(traffic.iter().map(|each| each.packets_in).sum::<u64>() > 2 * LENGTH as u64 / 1420, "{traffic:?}");
    }
    Ok(())
}

/// The kernel would move a flow to the queue that its answers are written to, and packets that wait in the one before
/// would be overtaken.
fn a_flow_stays_with_one_worker_whichever_writes_its_answers() -> Result<()> {
    const FLOWS: usize = 16;
    let (mut lab, pair) = (Lab::new()?, Pair::new());
    let setting = Setting { workers: 4, switches: Switches::ON };
    let [a, b] = two_nodes_with(&mut lab, &pair, [setting; 2])?;
    let to = SocketAddr::from((pair.address(1, true), OPEN));
    b.host.serve_udp(to)?;
    ensure!(a.host.udp(to, b"the session is there", PATIENCE)?.0 == Outcome::Connected);
    let sent = || Ok::<_, anyhow::Error>(a.running.status()?.traffic.iter().map(|each| each.packets_out).collect());
    let mut spread = Vec::new();
    for _ in 0..FLOWS {
        let before: Vec<u64> = sent()?;
        a.host.namespace.run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            for number in 0..8u8 {
                socket.send(&[number])?;
                socket.recv(&mut [0; 8])?;
            }
            Ok(())
        })?;
        let after: Vec<u64> = sent()?;
        let by: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        spread.push(by);
    }
    // The host itself may say something of its own meanwhile (neighbour discovery, group membership).
    let moved = spread.iter().filter(|by| by.iter().filter(|count| **count > 0).count() > 1).count();
    ensure!(moved <= 1, "{moved} of {FLOWS} flows went through several workers: {spread:?}");
    Ok(())
}

fn a_policy_change_cuts_a_live_flow_before_it_counts() -> Result<()> {
    let (mut lab, pair) = (Lab::new()?, Pair::new());
    let [a, mut b] = two_nodes(&mut lab, &pair)?;
    let to = SocketAddr::from((pair.address(1, false), OPEN));
    b.host.serve_tcp(to, b"answer")?;
    let mut stream = a.host.connect(to, PATIENCE)?;
    b.running.apply(pair.update(1, a.host.at(PORT), 2, false))?;
    // The change has been acknowledged: not one more byte is answered, and the connection is gone. Whichever call
    // comes first after the reset learns of it.
    use std::io::{Read, Write};
    let mut answer = Vec::new();
    let outcomes = [stream.write_all(b"more"), stream.read_to_end(&mut answer).map(drop)];
    ensure!(answer.is_empty(), "{:?} after the change", String::from_utf8_lossy(&answer));
    let is_reset = |outcome: &io::Result<()>| matches!(outcome, Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
    ensure!(outcomes.iter().any(is_reset), "{outcomes:?}");
    ensure!(b.running.status()?.generation == 2);
    Ok(())
}

fn a_removed_device_ends_the_data_plane_closed() -> Result<()> {
    let (mut lab, pair) = (Lab::new()?, Pair::new());
    let [a, mut b] = two_nodes(&mut lab, &pair)?;
    let to = SocketAddr::from((pair.address(1, false), OPEN));
    b.host.serve_udp(to)?;
    ensure!(a.host.udp(to, b"before", PATIENCE)?.0 == Outcome::Connected);
    let device = b.device;
    b.host.namespace.run_async(|| async move { Ok(netlink().await?.link().del(device).execute().await?) })?;
    b.running.is_lost("TUN device")?;
    ensure!(b.running.plane.status().blocking_recv().is_err(), "something still answers");
    ensure!(a.host.udp(to, b"after", SILENCE)?.0 != Outcome::Connected);
    b.running.plane.shut_down();
    Ok(())
}

/// A TUN queue of a test: one end of a pair of packet sockets, failing with `errno` while that is not 0.
struct Queue {
    socket: UnixDatagram,
    receive_errno: Arc<AtomicI32>,
    deliver_errno: Arc<AtomicI32>,
}

fn failing(errno: &AtomicI32) -> io::Result<()> {
    match errno.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl InnerIo for Queue {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        failing(&self.receive_errno)?;
        Ok(Received { header: VirtioNetHeader::default(), length: self.socket.recv(buffer)? })
    }

    fn deliver(&mut self, delivery: &Delivery<'_>, refused: &mut dyn FnMut()) -> io::Result<()> {
        for packet in delivery.packets() {
            match failing(&self.deliver_errno) {
                Ok(()) => self.socket.send(packet.packet()).map(|_| ())?,
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(error),
                Err(_) => refused(),
            }
        }
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A UDP socket that fails with `errno` while that is not 0.
struct Flaky {
    socket: udp::UdpSocket,
    send_errno: Arc<AtomicI32>,
    receive_errno: Arc<AtomicI32>,
}

impl OuterIo for Flaky {
    fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        let received = self.socket.receive(batch);
        if failing(&self.receive_errno).is_err() && matches!(received, Ok(0)) {
            failing(&self.receive_errno)?;
        }
        received
    }

    fn send<'a>(
        &mut self,
        trains: &mut dyn Iterator<Item = Transmit<'a>>,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    ) {
        match self.send_errno.load(Ordering::SeqCst) {
            0 => self.socket.send(trains, refused),
            libc::EMSGSIZE => trains.for_each(|train| refused(train.endpoint, SendRefusal::TooBig)),
            errno => trains.for_each(|train| refused(train.endpoint, SendRefusal::Failed(errno))),
        }
    }

    fn send_alone(
        &mut self,
        datagram: Transmit<'_>,
        fragments: Fragments,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    ) {
        self.socket.send_alone(datagram, fragments, refused);
    }

    fn coalesces(&self) -> bool {
        self.socket.coalesces()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }
}

/// One end over test devices, on loopback.
struct End {
    running: Running,
    /// The host's side of each queue.
    stack: Vec<UnixDatagram>,
    at: SocketAddr,
    inner_receive: Arc<AtomicI32>,
    inner_deliver: Arc<AtomicI32>,
    outer_send: Arc<AtomicI32>,
    outer_receive: Arc<AtomicI32>,
}

fn end(seed: u8, workers: usize, swapped: bool) -> Result<End> {
    let errno = || Arc::new(AtomicI32::new(0));
    let (inner_receive, inner_deliver, outer_send, outer_receive) = (errno(), errno(), errno(), errno());
    let sockets = udp::bind(0, workers, &Offloads::new(Switches::ON))?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.port));
    let mut stack = Vec::new();
    let mut inner: Vec<Box<dyn InnerIo>> = Vec::new();
    for _ in 0..workers {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        theirs.set_nonblocking(true)?;
        stack.push(ours);
        let (receive_errno, deliver_errno) = (Arc::clone(&inner_receive), Arc::clone(&inner_deliver));
        inner.push(Box::new(Queue { socket: theirs, receive_errno, deliver_errno }));
    }
    let flaky = |socket| -> Box<dyn OuterIo> {
        Box::new(Flaky { socket, send_errno: Arc::clone(&outer_send), receive_errno: Arc::clone(&outer_receive) })
    };
    let mut outer: Vec<_> = sockets.sockets.into_iter().map(flaky).collect();
    if swapped {
        outer.reverse();
    }
    let running = Running::start(seed, Devices { inner, outer, engine: Box::new(sockets.engine) })?;
    Ok(End { running, stack, at, inner_receive, inner_deliver, outer_send, outer_receive })
}

fn ends(workers: usize) -> Result<(Pair, End, End)> {
    ends_with(workers, false)
}

fn ends_with(workers: usize, swapped: bool) -> Result<(Pair, End, End)> {
    // Loopback is down in a new namespace.
    bring_up_loopback()?;
    let pair = Pair::new();
    let (mut a, mut b) = (end(1, workers, swapped)?, end(2, workers, swapped)?);
    let (at_a, at_b) = (a.at, b.at);
    a.running.apply(pair.update(0, at_b, 1, true))?;
    b.running.apply(pair.update(1, at_a, 1, true))?;
    Ok((pair, a, b))
}

fn bring_up_loopback() -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let handle = netlink().await?;
        let loopback = lab_host::device(&handle, "lo").await?;
        let up = rtnetlink::LinkUnspec::new_with_index(loopback).up().build();
        Ok(handle.link().change(up).execute().await?)
    })
}

/// A UDP packet from `bank/web` to `bank/api` as the host's stack would hand it to the TUN device.
fn packet(pair: &Pair, source_port: u16, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (pair.address(0, false), pair.address(1, false)) else {
        panic!("IPv6 addresses");
    };
    let length = u16::try_from(8 + payload.len()).expect("short");
    let mut udp = [source_port.to_be_bytes(), OPEN.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    udp.extend(payload);
    let checksum = checksum(&from, &to, &udp);
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([17, 64]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(udp);
    packet
}

/// RFC 8200, section 8.1.
fn checksum(from: &Ipv6Addr, to: &Ipv6Addr, udp: &[u8]) -> u16 {
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend(u32::try_from(udp.len()).expect("short").to_be_bytes());
    bytes.extend([0, 0, 0, 17]);
    bytes.extend(udp);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// The packet that arrives at one of the queues of an end.
fn arrives(end: &End) -> Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2000];
    while Instant::now() < deadline {
        for queue in &end.stack {
            queue.set_read_timeout(Some(Duration::from_millis(20)))?;
            if let Ok(length) = queue.recv(&mut buffer) {
                return Ok(buffer[..length].to_vec());
            }
        }
    }
    bail!("nothing arrived; drops {:?}", end.running.status()?.drops)
}

/// Sends until `done` says that it has had its effect.
fn send_until(end: &End, packet: &[u8], mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        end.stack[0].send(packet)?;
        if done()? {
            return Ok(());
        }
    }
    bail!("it did not come about; drops {:?}", end.running.status()?.drops)
}

fn packets_pass_between_workers_that_do_not_own_them() -> Result<()> {
    // The workers' sockets change places: each datagram comes in at the worker that does not own its window.
    let (pair, a, b) = ends_with(2, true)?;
    for port in 0..60 {
        let packet = packet(&pair, 20_000 + port, &port.to_be_bytes());
        a.stack[usize::from(port) % 2].send(&packet)?;
        ensure!(arrives(&b)? == packet, "port {port}");
    }
    let opened = b.running.status()?.traffic;
    ensure!(opened.len() == 2, "{opened:?}");
    a.running.plane.shut_down();
    b.running.plane.shut_down();
    Ok(())
}

fn what_a_socket_refuses_is_counted_and_passes_later() -> Result<()> {
    let (pair, a, b) = ends(1)?;
    let packet = packet(&pair, 20_000, b"hello");
    a.stack[0].send(&packet)?;
    ensure!(arrives(&b)? == packet);
    for (errno, reason) in [(libc::ENOBUFS, Reason::SendFailed), (libc::EMSGSIZE, Reason::PacketTooBig)] {
        a.outer_send.store(errno, Ordering::SeqCst);
        send_until(&a, &packet, || Ok(a.running.dropped(reason)? > 0))?;
        a.outer_send.store(0, Ordering::SeqCst);
        let mut buffer = [0; 2000];
        b.stack[0].set_read_timeout(Some(Duration::from_millis(50)))?;
        send_until(&a, &packet, || Ok(b.stack[0].recv(&mut buffer).is_ok()))?;
    }
    Ok(())
}

fn what_the_tun_refuses_is_counted_and_passes_later() -> Result<()> {
    let (pair, a, b) = ends(1)?;
    let packet = packet(&pair, 20_000, b"hello");
    for errno in [libc::EIO, libc::ENOBUFS, libc::EINVAL] {
        b.inner_deliver.store(errno, Ordering::SeqCst);
        let before = b.running.dropped(Reason::DeliverFailed)?;
        send_until(&a, &packet, || Ok(b.running.dropped(Reason::DeliverFailed)? > before))?;
        b.inner_deliver.store(0, Ordering::SeqCst);
        let mut buffer = [0; 2000];
        b.stack[0].set_read_timeout(Some(Duration::from_millis(50)))?;
        send_until(&a, &packet, || Ok(b.stack[0].recv(&mut buffer).is_ok()))?;
    }
    Ok(())
}

fn a_tun_that_fails_for_good_is_named() -> Result<()> {
    let (pair, mut a, mut b) = ends(2)?;
    let packet = packet(&pair, 20_000, b"hello");
    b.inner_deliver.store(libc::EBADFD, Ordering::SeqCst);
    a.stack[0].send(&packet)?;
    b.running.is_lost("TUN device")?;
    a.inner_receive.store(libc::EBADFD, Ordering::SeqCst);
    a.stack[1].send(&packet)?;
    a.running.is_lost("TUN device")?;
    ensure!(a.running.plane.status().blocking_recv().is_err(), "something still answers");
    Ok(())
}

fn a_socket_that_reports_errors_keeps_working() -> Result<()> {
    let (pair, a, b) = ends(1)?;
    b.outer_receive.store(libc::ECONNREFUSED, Ordering::SeqCst);
    for port in 0..20 {
        let packet = packet(&pair, 20_000 + port, b"hello");
        a.stack[0].send(&packet)?;
        ensure!(arrives(&b)? == packet);
    }
    Ok(())
}

fn devices_that_do_not_pair_are_refused() -> Result<()> {
    bring_up_loopback()?;
    let sockets = udp::bind(0, 1, &Offloads::new(Switches::ON))?;
    let outer: Vec<Box<dyn OuterIo>> = sockets.sockets.into_iter().map(|socket| Box::new(socket) as _).collect();
    let refused = Running::start(1, Devices { inner: Vec::new(), outer, engine: Box::new(sockets.engine) });
    let error = refused.err().context("started without a TUN queue")?;
    ensure!(error.to_string().contains("0 TUN queues and 1 UDP sockets"), "{error}");
    Ok(())
}
