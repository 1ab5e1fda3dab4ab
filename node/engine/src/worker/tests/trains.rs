//! Super-packets of the kernel and trains of datagrams, and what does not fit.

use super::*;

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
