//! Runs: packets of one batch that follow one another on one flow share most of their judgement.

use super::*;

/// One packet of a batch, as a well-behaved or a hostile node sends it to api.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// `web`, which may call, or `batch`, which may not.
    from_web: bool,
    /// With the other one's source address.
    is_spoofed: bool,
    v6: bool,
    /// None: UDP.
    flags: Option<u8>,
    port: u16,
    sequence: u32,
}

impl Sent {
    fn from(self) -> usize {
        if self.from_web { WEB } else { BATCH }
    }

    fn packet(self) -> Vec<u8> {
        let source = if self.from_web == self.is_spoofed { BATCH } else { WEB };
        let build = between(source, API)[usize::from(!self.v6)];
        match self.flags {
            Some(flags) => build.tcp_at(40_000 + self.port, 8080, flags, self.sequence, 2000, b"data"),
            None => build.udp(40_000 + self.port, 53, b"data"),
        }
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let flags = prop_oneof![
        6 => Just(Some(ACK)),
        2 => Just(Some(SYN)),
        1 => Just(Some(ACK | FIN)),
        1 => Just(Some(RST)),
        4 => Just(None),
    ];
    let from_web = prop::bool::weighted(0.8);
    let is_spoofed = prop::bool::weighted(0.1);
    (from_web, is_spoofed, prop::bool::weighted(0.8), flags, 0u16..2, 0u32..20).prop_map(
        |(from_web, is_spoofed, v6, flags, port, sequence)| {
            let sequence = 1000 + sequence * 4;
            Sent { from_web, is_spoofed, v6, flags, port, sequence }
        },
    )
}

/// What a node made of packets: those for its host, those for the wire, the drops, and its flows with the sequence
/// numbers that a RST of each would carry.
type Made = (Vec<Vec<u8>>, Vec<(usize, usize)>, Vec<Reason>, Vec<String>);

/// Gives everything to `work` in one batch, or in a batch each.
fn make(at: usize, all: &[Sent], in_one: bool, work: impl Fn(&mut Worker, &mut Outbox, &World, Sent, Now)) -> Made {
    let mut world = World::new();
    // Worker 1 owns web's session with api and worker 0 batch's: whichever takes all, half is handed over.
    let now = world.now;
    let (mut delivered, mut wire) = (Vec::new(), Vec::new());
    let mut node = std::mem::replace(&mut world.nodes[at], Node::new(at, now));
    node.outbox.clear();
    for worker in &mut node.workers {
        worker.begin_batch(&mut node.outbox);
    }
    for sent in all {
        for worker in &mut node.workers {
            node.outbox.clear();
            if !in_one {
                worker.begin_batch(&mut node.outbox);
            }
            work(worker, &mut node.outbox, &world, *sent, now);
            delivered.extend(node.outbox.deliveries().map(|admitted| admitted.packet().to_vec()));
            // Counters differ between worlds; lengths and receivers do not.
            let trains = node.outbox.transmits();
            wire.extend(trains.flat_map(|train| {
                let port = usize::from(train.endpoint.port());
                train.datagrams().map(move |datagram| (port, datagram.len())).collect::<Vec<_>>()
            }));
        }
    }
    let drops = node.new_drops();
    let cut_all = |_: &crate::flows::Flow| Err(Reason::NoRule);
    let cuts = node.shared.flows().sweep(node.tables.generation + 1, now.monotonic, cut_all);
    let mut flows: Vec<String> = cuts.iter().map(|cut| format!("{cut:?}")).collect();
    flows.sort();
    (delivered, wire, drops, flows)
}

proptest! {
    #[test]
    fn a_batch_comes_out_as_its_packets_would_one_by_one(all in prop::collection::vec(sent(), 1..40)) {
        let take = |worker: &mut Worker, outbox: &mut Outbox, world: &World, sent: Sent, now| {
            let index = receiver(API, sent.from());
            if u32::from(worker.index()) == index % u32::from(WORKERS) {
                let datagram = world.seal_raw(sent.from(), API, &sent.packet());
                worker.handle_datagram(endpoint(sent.from()), &datagram, now, outbox);
            }
        };
        prop_assert_eq!(make(API, &all, true, take), make(API, &all, false, take));
    }

    #[test]
    fn a_batch_leaves_as_its_packets_would_one_by_one(all in prop::collection::vec(sent(), 1..40)) {
        let send = |worker: &mut Worker, outbox: &mut Outbox, _: &World, sent: Sent, now| {
            if worker.index() == 0 {
                worker.handle_outbound(&sent.packet(), now, outbox);
            }
        };
        prop_assert_eq!(make(WEB, &all, true, send), make(WEB, &all, false, send));
    }
}

#[test]
fn a_flow_that_is_cut_in_the_middle_of_a_batch_ends_with_the_next_packet() {
    let mut world = World::new();
    let [there, _] = between(WEB, API);
    let packet = there.udp(40_000, 53, b"x");
    let datagrams: Vec<_> = (0..3).map(|_| world.seal_raw(WEB, API, &packet)).collect();
    let now = world.now;
    let node = &mut world.nodes[API];
    let worker = usize::try_from(receiver(API, WEB)).expect("small") % usize::from(WORKERS);
    node.outbox.clear();
    node.workers[worker].begin_batch(&mut node.outbox);
    for datagram in &datagrams[..2] {
        node.workers[worker].handle_datagram(endpoint(WEB), datagram, now, &mut node.outbox);
    }
    assert_eq!(node.outbox.deliveries().count(), 2);
    let generation = node.tables.generation;
    assert_eq!(node.shared.flows().sweep(generation + 1, now.monotonic, |_| Err(Reason::NoRule)).len(), 1);
    // By its own, older tables the worker may still let it pass; what it may not is take the run's word for it.
    node.workers[worker].handle_datagram(endpoint(WEB), &datagrams[2], now, &mut node.outbox);
    let flow = node.shared.flows().sweep(generation + 1, now.monotonic, |_| Err(Reason::NoRule));
    assert_eq!(flow.len(), 1, "judged anew by the tables that this worker still has");
}
