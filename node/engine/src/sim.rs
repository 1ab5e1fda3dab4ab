//! A simulation: several nodes, each with its engine and two workers, on one virtual clock and a wire that loses,
//! delays, reorders, doubles, replays, mutates and partitions. Nothing sleeps; a seed decides everything but key
//! generation, so runs compare behaviour, not bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use warren_proto::certificate::TunnelCertificate;
use warren_proto::policy::{CompiledPolicy, Documents, Mode, SourceFile};
use warren_proto::{Reason, UnixTime};

use crate::Now;
use crate::engine::Engine;
use crate::identity::VerifiedPeer;
use crate::identity::test_mesh::{DAY, NOW, TestMesh, TestPeer};
use crate::mesh::{EngineConfig, Event, LocalKey, MeshUpdate, TunnelSecret};
use crate::output::{Delivery, ForEngine, Outbox, OutboxLimits, WorkerEvent};
use crate::segment::{MAX_PREFIX, Merge, Merger, Offload, Split, VirtioNetHeader};
use crate::tables::{Shared, UnderWay};
use crate::testing::Build;
use crate::worker::Worker;

mod order;
mod tests;

/// Workers of a host that is not told otherwise.
const WORKERS: u16 = 2;
const START: Duration = Duration::from_secs(1000);

/// Who may call whom at which UDP port: the reference model's whole knowledge of policy.
pub(super) type Rules = BTreeSet<(usize, usize, u16)>;

/// A packet of an application: what it was for and whether it may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) port: u16,
    pub(super) id: u64,
}

/// How the wire treats datagrams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    pub(super) loss: f64,
    pub(super) doubled: f64,
    /// Each datagram takes between this...
    pub(super) least: Duration,
    /// ... and this.
    pub(super) delay: Duration,
    /// Chance that some earlier datagram is sent again, perhaps from somewhere else.
    pub(super) replayed: f64,
    /// Chance that a copy from somewhere else overtakes the datagram itself: a neighbour on the wire can do that.
    pub(super) overtaken: f64,
    /// Chance that a bit of a copy is flipped.
    pub(super) mutated: f64,
}

impl Wire {
    pub(super) const CLEAN: Self = Self {
        loss: 0.0,
        doubled: 0.0,
        least: Duration::from_millis(1),
        delay: Duration::from_millis(2),
        replayed: 0.0,
        overtaken: 0.0,
        mutated: 0.0,
    };
    pub(super) const HOSTILE: Self = Self {
        loss: 0.2,
        doubled: 0.2,
        least: Duration::from_millis(1),
        delay: Duration::from_millis(200),
        replayed: 0.1,
        overtaken: 0.02,
        mutated: 0.1,
    };
}

/// How the kernel chooses the worker whose socket a datagram lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steering {
    /// By receiver index, now and then wrongly.
    Careless,
    /// By receiver index, as the steering program does.
    ByReceiver,
    /// By the sender's address, as the kernel does without that program: most arrive at another worker than the
    /// session's and are handed over.
    BySource,
}

/// What waits for a worker that has not been woken yet.
enum Input {
    Datagram(SocketAddr, Vec<u8>),
    Packet(VirtioNetHeader, Vec<u8>),
}

pub(super) struct Host {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    workers: Vec<(Worker, Outbox)>,
    /// Of each worker: what has come, and when it wakes to take it.
    queues: Vec<(VecDeque<Input>, Option<Duration>)>,
    /// Packets for the slow half, each with when it is taken out.
    mailbox: VecDeque<(Duration, UnderWay, Vec<u8>)>,
    /// Datagrams that workers sent.
    pub(super) sealed_by_workers: usize,
    merger: Merger,
    pub(super) address: SocketAddr,
    pub(super) key: LocalKey,
    pub(super) verified: VerifiedPeer,
    pub(super) delivered: Vec<(Duration, Vec<u8>)>,
    pub(super) events: Vec<Event>,
}

pub(super) struct World {
    pub(super) hosts: Vec<Host>,
    pub(super) now: Now,
    pub(super) wire: Wire,
    /// Longer datagrams vanish on the wire.
    pub(super) widest: usize,
    /// Longer ones that must not be fragmented vanish.
    pub(super) widest_whole: usize,
    /// Pairs between which nothing passes.
    pub(super) cut: HashSet<(usize, usize)>,
    pub(super) random: StdRng,
    pub(super) rules: Rules,
    /// Hosts that others are not told of.
    pub(super) removed: HashSet<usize>,
    /// Of each host's instance: the host that it lives on, which is its own unless a test moves it in with another.
    pub(super) lives_on: Vec<usize>,
    pub(super) steering: Steering,
    /// The longest time that a worker sleeps while packets wait for it; each sleeps for a time of its own.
    pub(super) sleep: Duration,
    /// How long packets lie in the slow half's mailbox, which facts and handshakes overtake.
    pub(super) queueing: Duration,
    /// Super-packets that hosts were given, of two packets at least.
    pub(super) merged: usize,
    in_flight: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    recorded: Vec<(Duration, SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    generation: u64,
    next_id: u64,
    pub(super) calls: HashMap<u64, Call>,
}

pub(super) const WORKLOADS: [&str; 3] = ["bank/web", "bank/api", "bank/db"];

impl World {
    pub(super) fn new(seed: u64, rules: &[(usize, usize, u16)]) -> Self {
        let mesh = TestMesh::new();
        let hosts = WORKLOADS.iter().enumerate().map(|(number, workload)| {
            let secret = TunnelSecret::from_bytes([number as u8 + 11; 32]);
            let peer = TestPeer {
                not_after: NOW.plus(DAY),
                ..TestPeer::new(number as u16 + 1, workload, secret.public_key())
            };
            let chain = mesh.chain(&TestMesh::template(&peer));
            let certificate = TunnelCertificate::parse(&chain[0]).expect("a tunnel certificate");
            let shared = Arc::new(Shared::new(WORKERS));
            let mut config = EngineConfig::new([seed as u8; 32]);
            config.seed[1] = number as u8;
            Host {
                engine: Engine::new(config, Arc::clone(&shared)),
                workers: workers(&shared),
                queues: queues(WORKERS),
                mailbox: VecDeque::new(),
                sealed_by_workers: 0,
                merger: Merger::new(Merge { tcp: true, udp: true }, OutboxLimits::default().entries),
                shared,
                address: SocketAddr::from(([192, 0, 2, number as u8 + 1], 51820)),
                key: LocalKey { secret, certificate, valid_until: peer.not_after },
                verified: mesh.admit_chain(&peer, &chain),
                delivered: Vec::new(),
                events: Vec::new(),
            }
        });
        let mut world = Self {
            hosts: hosts.collect(),
            now: Now { monotonic: START, unix: NOW },
            wire: Wire::CLEAN,
            widest: usize::MAX,
            widest_whole: usize::MAX,
            cut: HashSet::new(),
            random: StdRng::seed_from_u64(seed),
            rules: rules.iter().copied().collect(),
            removed: HashSet::new(),
            lives_on: (0..WORKLOADS.len()).collect(),
            steering: Steering::Careless,
            sleep: Duration::ZERO,
            queueing: Duration::ZERO,
            merged: 0,
            in_flight: BTreeMap::new(),
            recorded: Vec::new(),
            sequence: 0,
            generation: 0,
            next_id: 0,
            calls: HashMap::new(),
        };
        world.apply();
        world
    }

    fn compiled(&self) -> Arc<CompiledPolicy> {
        let allow: Vec<_> =
            self.rules.iter().map(|(from, to, port)| (WORKLOADS[*from], WORKLOADS[*to], *port)).collect();
        policy(&WORKLOADS, &allow)
    }

    /// Tells every host the rules and hosts in force.
    pub(super) fn apply(&mut self) {
        self.generation += 1;
        let policy = self.compiled();
        for of in 0..self.hosts.len() {
            let here = |instance: &usize| self.lives_on[*instance] == of;
            let others = || (0..self.hosts.len()).filter(|other| !here(other) && !self.removed.contains(other));
            let update = MeshUpdate {
                generation: self.generation,
                policy: Arc::clone(&policy),
                locals: (0..self.hosts.len()).filter(here).map(|instance| self.hosts[instance].key.clone()).collect(),
                peers: others().map(|other| self.hosts[other].verified.clone()).collect(),
                endpoints: others()
                    .map(|other| {
                        (self.hosts[other].verified.instance(), vec![self.hosts[self.lives_on[other]].address])
                    })
                    .collect(),
            };
            self.hosts[of].engine.apply(&update, self.now);
            self.pump(of);
        }
    }

    /// Whether host `of` has said that the newest update is in force.
    pub(super) fn has_applied(&self, of: usize) -> bool {
        let newest = |event: &Event| matches!(event, Event::Applied { generation } if *generation == self.generation);
        self.hosts[of].events.iter().any(newest)
    }

    /// The node loses everything but its keys.
    pub(super) fn restart(&mut self, of: usize) {
        self.restart_with(of, WORKERS);
    }

    /// The same, and it comes back with another number of workers.
    pub(super) fn restart_with(&mut self, of: usize, count: u16) {
        let shared = Arc::new(Shared::new(count));
        let host = &mut self.hosts[of];
        host.engine = Engine::new(EngineConfig::new([self.random.random(); 32]), Arc::clone(&shared));
        host.workers = workers(&shared);
        host.queues = queues(count);
        host.mailbox.clear();
        host.shared = shared;
        self.apply();
    }

    /// A host's overlay address of either family.
    fn overlay(&self, of: usize, v4: bool) -> IpAddr {
        let addresses = self.hosts[of].verified.addresses();
        addresses.v4.filter(|_| v4).map_or(addresses.v6.into(), IpAddr::V4)
    }

    /// An application calls another at a UDP port.
    pub(super) fn call(&mut self, from: usize, to: usize, port: u16) -> Call {
        self.call_sized(from, to, port, 0)
    }

    /// As [`Self::call`], with an IPv6 packet of `length` bytes, or a short one of either family where that is 0.
    pub(super) fn call_sized(&mut self, from: usize, to: usize, port: u16, length: usize) -> Call {
        self.next_id += 1;
        let call = Call { from, to, port, id: self.next_id };
        self.calls.insert(call.id, call);
        let source_port = 20_000 + (self.next_id % 200) as u16;
        let v4 = self.random.random::<bool>() && length == 0;
        let way = Build::between(self.overlay(from, v4), self.overlay(to, v4));
        let mut payload = call.id.to_be_bytes().to_vec();
        payload.resize(payload.len().max(length.saturating_sub(48)), 0);
        let packet = way.udp(source_port, port, &payload);
        self.outbound(self.lives_on[from], &packet);
        call
    }

    /// A program sends `count` packets of one flow at once, as one super-packet: calls by a source port of its own.
    pub(super) fn call_in_a_train(&mut self, from: usize, to: usize, port: u16, count: u64) -> Vec<Call> {
        const SIZE: usize = 100;
        let calls: Vec<_> = (1..=count).map(|step| Call { from, to, port, id: self.next_id + step }).collect();
        self.next_id += count;
        self.calls.extend(calls.iter().map(|call| (call.id, *call)));
        let mut payload = vec![7; SIZE * calls.len()];
        for (part, call) in payload.chunks_mut(SIZE).zip(&calls) {
            part[..8].copy_from_slice(&call.id.to_be_bytes());
        }
        let way = Build::between(self.overlay(from, true), self.overlay(to, true));
        let packet = way.udp(SEQUENCED_PORT, port, &payload);
        let header = VirtioNetHeader {
            needs_checksum: true,
            offload: Some(Offload::Udp),
            header_length: 28,
            segment_size: u16::try_from(SIZE).expect("small"),
            checksum_start: 20,
            checksum_offset: 6,
        };
        // The TUN hashes a flow to a queue.
        let at = (from + to) % self.hosts[from].workers.len();
        self.arrive_at_worker(from, at, Input::Packet(header, packet));
        calls
    }

    /// A local program's packet reaches some worker of host `of`.
    pub(super) fn outbound(&mut self, of: usize, packet: &[u8]) {
        let at = self.random.random_range(0..self.hosts[of].workers.len());
        self.arrive_at_worker(of, at, Input::Packet(VirtioNetHeader::default(), packet.to_vec()));
    }

    /// Something lies in a queue or socket of worker `at`, which takes it when it wakes: now, if nobody sleeps here.
    fn arrive_at_worker(&mut self, of: usize, at: usize, input: Input) {
        let sleep = self.sleep.as_micros() as u64;
        let wakes = self.now.monotonic + Duration::from_micros(self.random.random_range(0..=sleep));
        let (queue, wake) = &mut self.hosts[of].queues[at];
        queue.push_back(input);
        wake.get_or_insert(wakes);
        if sleep == 0 {
            self.wake(of, at);
        }
    }

    /// Worker `at` takes everything that waits for it.
    fn wake(&mut self, of: usize, at: usize) {
        let now = self.now;
        let (queue, wake) = &mut self.hosts[of].queues[at];
        *wake = None;
        for input in std::mem::take(queue) {
            let (worker, outbox) = &mut self.hosts[of].workers[at];
            worker.begin_batch(outbox);
            match input {
                Input::Datagram(from, datagram) => worker.handle_datagram(from, &datagram, now, outbox),
                Input::Packet(header, mut packet) => {
                    let split = Split::new(header, &mut packet).expect("the kernel's description fits");
                    worker.handle_segments(split, now, outbox);
                }
            }
            if !self.hosts[of].workers[at].1.has_room() {
                self.empty_outbox(of, at);
            }
        }
        self.pump(of);
    }

    fn inbound(&mut self, of: usize, from: SocketAddr, datagram: &[u8]) {
        let workers = self.hosts[of].workers.len();
        let by_receiver = match datagram {
            [4, _, _, _, a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]) as usize % workers,
            _ => 0,
        };
        let at = match self.steering {
            Steering::Careless if self.random.random_bool(0.1) => self.random.random_range(0..workers),
            Steering::Careless | Steering::ByReceiver => by_receiver,
            Steering::BySource => usize::from(from.port()) % workers,
        };
        self.arrive_at_worker(of, at, Input::Datagram(from, datagram.to_vec()));
    }

    /// Moves what workers and engine of one host have for each other and for the wire until nothing is left.
    pub(super) fn pump(&mut self, of: usize) {
        let now = self.now;
        loop {
            let mut moved = self.empty_mailbox(of);
            for at in 0..self.hosts[of].workers.len() {
                moved |= self.empty_outbox(of, at);
            }
            let host = &mut self.hosts[of];
            let mut sent = Vec::new();
            while let Some(transmit) = host.engine.poll_transmit() {
                if !transmit.whole || transmit.datagram.len() <= self.widest_whole {
                    sent.push((transmit.to, transmit.datagram));
                }
            }
            while let Some(plain) = host.engine.poll_plain() {
                let (worker, outbox) = &mut host.workers[0];
                worker.begin_batch(outbox);
                worker.handle_plain(&plain, now, outbox);
                moved = true;
            }
            while let Some(event) = host.engine.poll_event() {
                if let Event::FlowsCut(cuts) = &event {
                    let (worker, outbox) = &mut host.workers[0];
                    worker.begin_batch(outbox);
                    for cut in cuts {
                        worker.handle_cut(cut, now, outbox);
                    }
                }
                host.events.push(event);
                moved = true;
            }
            let from = host.address;
            for (to, datagram) in sent {
                moved = true;
                self.transmit(from, to, datagram);
            }
            if !moved {
                break;
            }
        }
        for (worker, _) in &mut self.hosts[of].workers {
            worker.park();
        }
    }

    /// The slow half takes what has lain in its mailbox for long enough, and has sent all else before.
    fn empty_mailbox(&mut self, of: usize) -> bool {
        let (host, now) = (&mut self.hosts[of], self.now);
        let due = host.mailbox.pop_front_if(|(at, ..)| *at <= now.monotonic);
        let Some((_, under_way, packet)) = due else { return false };
        host.engine.handle_unsent(under_way, &packet, now);
        true
    }

    fn empty_outbox(&mut self, of: usize, at: usize) -> bool {
        let now = self.now;
        let host = &mut self.hosts[of];
        let (worker, outbox) = &mut host.workers[at];
        worker.begin_batch(outbox);
        let transmits: Vec<_> = outbox
            .transmits()
            .flat_map(|transmit| transmit.datagrams().map(move |datagram| (transmit.endpoint, datagram.to_vec())))
            .collect();
        let mut deliveries = Vec::new();
        for delivery in outbox.merged(&mut host.merger) {
            self.merged += usize::from(delivery.count() > 1);
            deliveries.extend(taken_by_the_host(&delivery));
        }
        let handovers: Vec<_> =
            outbox.handovers().map(|handover| (handover.worker, handover.source, handover.datagram.to_vec())).collect();
        for entry in outbox.for_engine() {
            match entry {
                ForEngine::Datagram { source, datagram, .. } => host.engine.handle_datagram(source, datagram, now),
                ForEngine::Unsent { under_way, packet } => {
                    host.mailbox.push_back((now.monotonic + self.queueing, under_way, packet.to_vec()));
                }
            }
        }
        let events: Vec<WorkerEvent> = outbox.events().to_vec();
        for event in &events {
            host.engine.handle_worker_event(event, now);
        }
        let moved = !(transmits.is_empty()
            && deliveries.is_empty()
            && handovers.is_empty()
            && events.is_empty()
            && outbox.for_engine().next().is_none());
        outbox.clear();
        host.sealed_by_workers += transmits.len();
        host.delivered.extend(deliveries.into_iter().map(|packet| (now.monotonic, packet)));
        let from = host.address;
        for (owner, source, datagram) in handovers {
            self.arrive_at_worker(of, usize::from(owner), Input::Datagram(source, datagram));
        }
        for (to, datagram) in transmits {
            self.transmit(from, to, datagram);
        }
        moved
    }

    fn transmit(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        const ELSEWHERE: ([u8; 4], u16) = ([203, 0, 113, 9], 666);
        if datagram.len() > self.widest {
            return;
        }
        if self.random.random_bool(self.wire.overtaken) {
            self.arrive(SocketAddr::from(ELSEWHERE), to, &datagram);
        }
        let copies = if self.random.random_bool(self.wire.loss) {
            0
        } else {
            1 + usize::from(self.random.random_bool(self.wire.doubled))
        };
        for _ in 0..copies {
            self.launch(from, to, datagram.clone());
        }
        if self.random.random_bool(self.wire.mutated) {
            let mut mutant = datagram.clone();
            let bit = self.random.random_range(0..mutant.len() * 8);
            mutant[bit / 8] ^= 1 << (bit % 8);
            self.launch(from, to, mutant);
        }
        // What was sent longer ago than the wire delays anything has arrived or is lost.
        let settled = self.recorded.partition_point(|(at, ..)| *at + self.wire.delay < self.now.monotonic);
        if settled > 0 && self.random.random_bool(self.wire.replayed) {
            let (_, from, to, datagram) = self.recorded[self.random.random_range(0..settled)].clone();
            let from = if self.random.random() { from } else { SocketAddr::from(ELSEWHERE) };
            self.launch(from, to, datagram);
        }
        self.recorded.push((self.now.monotonic, from, to, datagram));
    }

    fn launch(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let least = self.wire.least.as_micros() as u64;
        let most = (self.wire.delay.as_micros() as u64).max(least + 1);
        let delay = Duration::from_micros(self.random.random_range(least..most));
        self.sequence += 1;
        self.in_flight.insert((self.now.monotonic + delay, self.sequence), (from, to, datagram));
    }

    /// Lets time pass, event by event.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        loop {
            let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
            let timeout = self.hosts.iter().filter_map(|host| host.engine.poll_timeout()).min();
            let wake = self.hosts.iter().flat_map(|host| host.queues.iter().filter_map(|(_, wake)| *wake)).min();
            let mail = self.hosts.iter().filter_map(|host| host.mailbox.front().map(|(at, ..)| *at)).min();
            let next = arrival.into_iter().chain(timeout).chain(wake).chain(mail).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.set_time(next);
            for of in 0..self.hosts.len() {
                let host = &mut self.hosts[of];
                if host.engine.poll_timeout().is_some_and(|at| at <= next) {
                    host.engine.handle_timeout(self.now);
                    self.pump(of);
                }
                if self.hosts[of].mailbox.front().is_some_and(|(at, ..)| *at <= next) {
                    self.pump(of);
                }
                for at in 0..self.hosts[of].queues.len() {
                    if self.hosts[of].queues[at].1.is_some_and(|wake| wake <= next) {
                        self.wake(of, at);
                    }
                }
            }
            while let Some(entry) = self.in_flight.first_entry()
                && entry.key().0 <= next
            {
                let (from, to, datagram) = entry.remove();
                self.arrive(from, to, &datagram);
            }
        }
        self.set_time(end);
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let host = |address| self.hosts.iter().position(|host| host.address == address);
        let Some(receiver) = host(to) else { return };
        if let Some(sender) = host(from)
            && (self.cut.contains(&(sender, receiver)) || self.cut.contains(&(receiver, sender)))
        {
            return;
        }
        self.inbound(receiver, from, datagram);
    }

    fn set_time(&mut self, monotonic: Duration) {
        let monotonic = monotonic.max(self.now.monotonic);
        self.now = Now { monotonic, unix: UnixTime(NOW.0 + (monotonic - START).as_secs()) };
    }

    /// The calls that reached host `of`, in order, with the time of arrival.
    pub(super) fn arrived(&self, of: usize) -> Vec<(Duration, Call)> {
        let addresses = self.hosts[of].verified.addresses();
        let calls = self.hosts[self.lives_on[of]].delivered.iter().filter_map(|(at, packet)| {
            let (protocol, destination, id) = match packet[..] {
                [0x60, ..] => (packet[6], &packet[24..40], packet.get(48..56)?),
                _ => (packet[9], &packet[16..20], packet.get(28..36)?),
            };
            let mine =
                destination == addresses.v6.octets() || addresses.v4.is_some_and(|v4| destination == v4.octets());
            let id = u64::from_be_bytes(id.try_into().ok()?);
            (protocol == 17 && mine).then(|| self.calls.get(&id).map(|call| (*at, *call)))?
        });
        calls.filter(|(_, call)| call.to == of).collect()
    }

    pub(super) fn has_arrived(&self, call: Call) -> bool {
        self.arrived(call.to).iter().any(|(_, arrived)| *arrived == call)
    }

    /// What workers and engine of a host dropped, by reason.
    pub(super) fn drops(&self, of: usize) -> BTreeMap<Reason, u64> {
        let mut all = BTreeMap::new();
        let host = &self.hosts[of];
        for (reason, count) in host.engine.drops() {
            *all.entry(reason).or_default() += count;
        }
        for (worker, _) in &host.workers {
            for (reason, count) in worker.counters().drops() {
                *all.entry(reason).or_default() += count;
            }
        }
        all
    }
}

/// The source port of calls that [`World::call_in_a_train`] makes: one flow for each pair and port.
const SEQUENCED_PORT: u16 = 30_000;

fn queues(count: u16) -> Vec<(VecDeque<Input>, Option<Duration>)> {
    (0..count).map(|_| Default::default()).collect()
}

/// The packets that a host's IP stack makes of what it was given, which are those that were admitted.
fn taken_by_the_host(delivery: &Delivery<'_>) -> Vec<Vec<u8>> {
    let admitted: Vec<Vec<u8>> = delivery.packets().map(|packet| packet.packet().to_vec()).collect();
    let mut prefix = [0; MAX_PREFIX];
    let prefix = delivery.prefix(&mut prefix);
    let (device, head) = prefix.split_first_chunk::<{ VirtioNetHeader::LENGTH }>().expect("a header");
    let mut bytes = head.to_vec();
    delivery.payloads().for_each(|payload| bytes.extend(payload));
    let header = VirtioNetHeader::decode(device).expect("a header");
    let mut split = Split::new(header, &mut bytes).expect("the host understands it");
    let mut taken = Vec::new();
    while let Some(segment) = split.next_segment() {
        taken.push(segment.to_vec());
    }
    assert_eq!(taken, admitted, "merging changed what was admitted");
    taken
}

fn workers(shared: &Arc<Shared>) -> Vec<(Worker, Outbox)> {
    (0..shared.workers())
        .map(|index| (Worker::new(index, Arc::clone(shared)), Outbox::new(OutboxLimits::default())))
        .collect()
}

/// A policy in which each `(from, to, port)` may call that UDP port and nobody anything else.
pub(crate) fn policy(workloads: &[&str], allow: &[(&str, &str, u16)]) -> Arc<CompiledPolicy> {
    let mut text = String::from(
        "kind: Set\nname: all\nowns: [mesh, bank]\n---\nkind: Mesh\nname: bank.example\n---\n\
         kind: Namespace\nname: bank\n",
    );
    for workload in workloads {
        text += &format!("---\nkind: Service\nname: {workload}\n");
        let here: Vec<_> = allow.iter().filter(|(_, to, _)| to == workload).collect();
        let ports: BTreeSet<_> = here.iter().map(|(_, _, port)| port).collect();
        if !ports.is_empty() {
            text += "ports:\n";
            for port in &ports {
                text += &format!("  p{port}: {{ port: {port}, protocol: udp }}\n");
            }
            text += "allow:\n";
            for (at, (from, _, port)) in here.iter().enumerate() {
                text += &format!("  rule-{at}: {{ from: [{from}], ports: [p{port}] }}\n");
            }
        }
    }
    let documents = Documents::from_files(&[SourceFile { name: "sim.yaml".into(), text }]).expect("documents");
    Arc::new(CompiledPolicy::compile(&documents, Mode::Whole).expect("a policy"))
}
