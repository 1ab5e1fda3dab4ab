//! Explicit congestion notification from one host's packet to the other's (RFC 6040).

use super::*;
use crate::ecn::{self, CE, ECT_0, NOT_ECT};

fn with_bits(mut packet: Vec<u8>, bits: u8) -> Vec<u8> {
    ecn::set(&mut packet, bits);
    packet
}

/// The trains that packets of web become, by bits and number of datagrams.
fn trains(world: &mut World, packets: &[Vec<u8>]) -> Vec<(u8, usize)> {
    let now = world.now;
    let node = &mut world.nodes[WEB];
    node.outbox.clear();
    node.workers[0].begin_batch(&mut node.outbox);
    for packet in packets {
        node.workers[0].handle_outbound(packet, now, &mut node.outbox);
    }
    node.outbox.transmits().map(|train| (train.ecn, train.datagrams().count())).collect()
}

/// Gives api a datagram of web's whose outer header says `outer`, at the worker that does not own its session.
fn arrive(world: &mut World, outer: u8, datagram: &[u8]) -> Outcome {
    let now = world.now;
    let node = &mut world.nodes[API];
    let mut queue = vec![(1, outer, datagram.to_vec())];
    let mut all = Outcome::default();
    while let Some((at, bits, datagram)) = queue.pop() {
        let node = &mut *node;
        node.outbox.clear();
        node.workers[at].begin_batch(&mut node.outbox);
        node.workers[at].handle_marked(endpoint(WEB), bits, &datagram, now, &mut node.outbox);
        queue.extend(node.outbox.handovers().map(|h| (usize::from(h.worker), h.ecn, h.datagram.to_vec())));
        all.delivered.extend(node.outbox.deliveries().map(|admitted| (API, admitted.packet().to_vec())));
    }
    all.drops.extend(node.new_drops().into_iter().map(|reason| (API, reason)));
    all
}

#[test]
fn the_bits_of_a_packet_stand_outside_and_packets_of_other_bits_begin_another_train() {
    let mut world = World::new();
    for there in between(WEB, API) {
        let packets: Vec<_> =
            [0, 0, 2, 2, 2, 1, 3, 0].map(|bits| with_bits(there.udp(40_000, 53, b"question"), bits)).into();
        assert_eq!(trains(&mut world, &packets), [(0, 2), (2, 3), (1, 1), (3, 1), (0, 1)]);
    }
}

#[test]
fn a_mark_made_on_the_way_reaches_the_host_and_one_on_an_unmarkable_packet_is_a_drop() {
    let mut world = World::new();
    for there in between(WEB, API) {
        for inner in 0..4 {
            for outer in 0..4 {
                let packet = with_bits(there.udp(40_000, 53, b"question"), inner);
                let [(_, _, datagram)] = <[_; 1]>::try_from(world.seal(WEB, &packet)).expect("one");
                let outcome = arrive(&mut world, outer, &datagram);
                if (inner, outer) == (NOT_ECT, CE) {
                    assert_eq!(outcome, dropped(API, Reason::CongestionMarked));
                    continue;
                }
                let bits = match (inner, outer) {
                    (NOT_ECT, _) => NOT_ECT,
                    (_, CE) => CE,
                    (ECT_0, 1) => 1,
                    _ => inner,
                };
                assert_eq!(outcome, delivered(API, &with_bits(packet, bits)), "{inner} in {outer}");
            }
        }
    }
}

#[test]
fn a_mark_on_a_plain_devices_datagram_reaches_the_host() {
    let mut world = World::new();
    world.nodes[API].change_peer(WEB, |peer| peer.is_plain = true);
    for there in between(WEB, API) {
        for (inner, expected) in [(ECT_0, CE), (NOT_ECT, NOT_ECT)] {
            let packet = with_bits(there.udp(40_000, 53, b"question"), inner);
            let (now, node) = (world.now, &mut world.nodes[API]);
            node.outbox.clear();
            node.workers[0].begin_batch(&mut node.outbox);
            let plain = PlainPacket { ecn: CE, ..from_plain(WEB, &packet) };
            node.workers[0].handle_plain(&plain, now, &mut node.outbox);
            let outcome = world.collect(API);
            if inner == NOT_ECT {
                assert_eq!(outcome, dropped(API, Reason::CongestionMarked));
            } else {
                assert_eq!(outcome, delivered(API, &with_bits(packet, expected)));
            }
        }
    }
}
