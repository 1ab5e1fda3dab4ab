//! The flow table: direction, expiry, eviction, generations.

use std::collections::HashMap as Model;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const LOCAL: LocalIndex = LocalIndex(0);
const START: Duration = Duration::from_secs(100);

/// Holds every lock of the table: what goes on meanwhile takes none.
pub(crate) fn hold_every_lock(table: &FlowTable) -> impl Sized + '_ {
    table.shards.iter().map(|shard| shard.lock().expect("not poisoned")).collect::<Vec<_>>()
}

fn key(peer: u32, protocol: u8, port: u16) -> FlowKey {
    let local = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), port);
    FlowKey::new(PeerIndex(peer), protocol, local, SocketAddr::new(Ipv4Addr::new(10, 0, 0, 2).into(), 80))
}

fn segment(flags: u8) -> Tcp {
    Tcp { source: 1, destination: 2, sequence: 10, acknowledgement: 20, flags, data: 5 }
}

fn open(table: &FlowTable, key: FlowKey, by: Side, now: Duration) -> Result<Inserted, Reason> {
    table.insert(key, LOCAL, by, 1, now)
}

#[test]
fn a_key_gives_back_its_addresses() {
    for text in ["10.0.0.1:80", "[fd00::1]:443"] {
        let address: SocketAddr = text.parse().expect("address");
        let key = FlowKey::new(PeerIndex(1), TCP, address, address);
        assert_eq!((key.local(), key.remote()), (address, address));
    }
}

#[test]
fn a_verdict_counts_at_its_own_generation_and_for_ten_seconds() {
    let table = FlowTable::new(4096);
    let flow = open(&table, key(1, TCP, 1), Side::Peer, START).expect("inserted").flow;
    assert!(flow.passes_at(1, START));
    assert!(!flow.passes_at(0, START) && !flow.passes_at(2, START));
    assert!(!flow.passes_at(1, START + VERDICT_LIFETIME));
    flow.set_verdict(2, false, START);
    assert!(!flow.passes_at(2, START) && !flow.passes_at(1, START));
}

#[test]
fn flows_end_by_protocol_and_state() {
    let idle = |protocol, notes: &[(Side, u8)]| {
        let table = FlowTable::new(4096);
        let flow = open(&table, key(1, protocol, 1), Side::Local, START).expect("inserted").flow;
        for (side, flags) in notes {
            flow.note(*side, (protocol == TCP).then(|| segment(*flags)).as_ref(), START);
        }
        (1..=TCP_IDLE).find(|seconds| flow.is_expired(seconds_of(START) + seconds)).expect("it ends")
    };
    let both = [(Side::Local, SYN), (Side::Peer, SYN | ACK)];
    assert_eq!(idle(UDP, &[(Side::Local, 0)]), UDP_IDLE);
    assert_eq!(idle(1, &[(Side::Local, 0)]), ECHO_IDLE);
    assert_eq!(idle(TCP, &both[..1]), TCP_TRANSIENT_IDLE, "half open");
    assert_eq!(idle(TCP, &both), TCP_IDLE);
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, FIN | ACK)]), TCP_IDLE, "half closed is alive");
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, FIN | ACK), (Side::Local, FIN | ACK)]), TCP_TRANSIENT_IDLE);
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, RST)]), TCP_RESET_IDLE);
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, RST), (Side::Local, ACK)]), TCP_IDLE, "a stray RST");
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, RST), (Side::Local, SYN)]), TCP_TRANSIENT_IDLE, "used anew");
    assert_eq!(idle(TCP, &[both[0], both[1], (Side::Peer, SYN)]), TCP_IDLE, "only who opened it uses it anew");
}

fn seconds_of(now: Duration) -> u32 {
    super::seconds(now)
}

#[test]
fn a_full_table_gives_up_idle_flows_and_no_busy_ones() {
    let table = FlowTable::new(SHARDS * 4);
    let mut refused = 0;
    for port in 0..2000 {
        refused += usize::from(open(&table, key(1, UDP, port), Side::Local, START).is_err());
    }
    assert!(refused > 0 && table.len() <= SHARDS * 4);
    let later = START + Duration::from_secs(u64::from(EVICTABLE_IDLE));
    let evicted = (2000..2100)
        .filter(|port| open(&table, key(1, UDP, *port), Side::Local, later).is_ok_and(|inserted| inserted.evicted));
    assert!(evicted.count() > 50, "an idle flow gives its place to a newer one");
    assert!(table.len() <= SHARDS * 4);
}

#[test]
fn a_connection_of_a_local_program_is_given_up_last() {
    let table = FlowTable::new(SHARDS);
    let fill = |by, port: u16| {
        let flow = open(&table, key(1, TCP, port), by, START).expect("an empty shard").flow;
        flow.note(Side::Local, Some(&segment(SYN)), START);
        flow.note(Side::Peer, Some(&segment(SYN | ACK)), START);
    };
    fill(Side::Local, 1);
    let later = START + Duration::from_secs(3600);
    let mut shard = table.shard(table.hash(&key(1, TCP, 1)));
    let young = Arc::new(Flow::new(key(1, UDP, 2), LOCAL, Side::Local, 1, later - Duration::from_secs(20)));
    shard.flows.insert_unique(7, Entry { hash: 7, flow: young }, |entry| entry.hash);
    shard.evict(None, false, later).expect("one is given up");
    assert_eq!(shard.flows.iter().map(|entry| entry.flow.key.protocol).collect::<Vec<_>>(), [TCP]);
}

#[test]
fn sequence_numbers_move_forward_and_wrap() {
    let table = FlowTable::new(4096);
    let flow = open(&table, key(1, TCP, 1), Side::Peer, START).expect("inserted").flow;
    let at = |sequence, flags| Tcp { sequence, flags, ..segment(0) };
    let next = |tcp: Tcp| {
        flow.note(Side::Peer, Some(&tcp), START);
        flow.cut(Reason::NoRule).local_next
    };
    assert_eq!(next(at(u32::MAX - 20, SYN)), u32::MAX - 14);
    assert_eq!(next(at(u32::MAX - 2, ACK)), 2, "over the top");
    assert_eq!(next(at(u32::MAX - 14, ACK)), 2, "a retransmission");
    assert_eq!(next(at(77, SYN)), 83, "a new connection");
}

#[test]
fn one_peer_cannot_fill_the_table() {
    let table = FlowTable::new(SHARDS * 64);
    for port in 0..20_000 {
        let _ = open(&table, key(1, UDP, port), Side::Peer, START);
    }
    assert!(table.len() <= SHARDS * 64 / PEER_SHARE);
    assert!((0..50).all(|port| open(&table, key(2, UDP, port), Side::Peer, START).is_ok()), "another peer has room");
}

/// A full table: four peers hold their share each, and every flow of theirs is in use at `now`.
fn filled_by_four(now: Duration) -> (FlowTable, impl Fn(&FlowTable, Duration)) {
    let table = FlowTable::new(SHARDS * 64);
    for port in 0..8000 {
        for peer in 1..=4 {
            let _ = open(&table, key(peer, UDP, port), Side::Peer, now);
        }
    }
    assert_eq!(table.len(), SHARDS * 64, "they fill it");
    let keep_busy = |table: &FlowTable, now: Duration| {
        for shard in &table.shards {
            let shard = shard.lock().expect("not poisoned");
            let theirs = shard.flows.iter().filter(|entry| (1..=4).contains(&entry.flow.key.peer.0));
            theirs.for_each(|entry| entry.flow.note(Side::Peer, None, now));
        }
    };
    (table, keep_busy)
}

#[test]
fn peers_who_fill_the_table_together_make_room_for_others() {
    let (table, _) = filled_by_four(START);
    for port in 0..200 {
        let inserted = open(&table, key(5, UDP, port), Side::Peer, START).expect("another peer has room");
        assert!(inserted.evicted);
        open(&table, key(6, TCP, port), Side::Local, START).expect("a local program has room");
    }
    assert_eq!(table.len(), SHARDS * 64);
    assert!((0..200).all(|port| table.find(&key(5, UDP, port), START).is_some()), "none of the few gave way");
    assert!((0..200).all(|port| table.find(&key(6, TCP, port), START).is_some()));
}

#[test]
fn peers_who_fill_the_table_together_never_displace_who_holds_less() {
    let (table, keep_busy) = filled_by_four(START);
    for port in 0..100 {
        let flow = open(&table, key(5, TCP, port), Side::Local, START).expect("room").flow;
        flow.note(Side::Local, Some(&segment(SYN)), START);
        flow.note(Side::Peer, Some(&segment(SYN | ACK)), START);
        open(&table, key(6, UDP, port), Side::Peer, START).expect("room");
    }
    // The few fall silent, the many keep every flow of theirs in use and ask for more and more.
    let later = START + Duration::from_secs(60);
    keep_busy(&table, later);
    for port in 8000..20_000 {
        for peer in 1..=4 {
            let _ = open(&table, key(peer, UDP, port), Side::Peer, later);
        }
    }
    assert!((0..100).all(|port| table.find(&key(5, TCP, port), later).is_some()), "a local program's connections");
    assert!((0..100).all(|port| table.find(&key(6, UDP, port), later).is_some()), "a peer's flows");
}

#[test]
fn local_programs_leave_room_to_peers() {
    let table = FlowTable::new(SHARDS * 64);
    for port in 0..20_000 {
        let _ = open(&table, key(1, UDP, port), Side::Local, START);
    }
    assert_eq!(table.len(), SHARDS * (64 - 64 / LEFT_TO_PEERS));
    // Few enough that no shard, whatever the hash, gets more than it has left.
    assert!((0..40).all(|port| open(&table, key(2, UDP, port), Side::Peer, START).is_ok()));
}

#[test]
fn a_removed_flow_is_not_served_from_a_cache() {
    let (table, mut cache) = (FlowTable::new(4096), FlowCache::default());
    let flow = key(1, UDP, 1);
    open(&table, flow, Side::Local, START).expect("inserted");
    assert!(cache.find(&table, &flow, START).is_some());
    table.remove(&flow);
    assert!(cache.find(&table, &flow, START).is_none());
    assert!(table.is_empty());
}

#[test]
fn a_sweep_cuts_once_and_forgets_the_expired() {
    let table = FlowTable::new(4096);
    let kept = open(&table, key(1, TCP, 1), Side::Peer, START).expect("inserted").flow;
    let refused = open(&table, key(2, TCP, 2), Side::Peer, START).expect("inserted").flow;
    let judge = |flow: &Flow| if flow.key().peer() == PeerIndex(1) { Ok(()) } else { Err(Reason::NoRule) };
    let cut = table.sweep(5, START, judge);
    assert_eq!(cut.iter().map(|cut| (cut.key, cut.reason)).collect::<Vec<_>>(), [(*refused.key(), Reason::NoRule)]);
    assert!(kept.passes_at(5, START) && !refused.passes_at(5, START));
    assert!(table.sweep(6, START, judge).is_empty());
    assert!(table.sweep(7, START + Duration::from_secs(1000), judge).is_empty());
    assert!(table.is_empty());
}

#[test]
fn a_flow_that_a_worker_judged_before_the_sweep_is_cut_all_the_same() {
    let table = FlowTable::new(4096);
    let flow = open(&table, key(1, TCP, 1), Side::Peer, START).expect("inserted").flow;
    let judge = |_: &Flow| Err(Reason::NoRule);
    flow.set_verdict(5, false, START);
    assert_eq!(table.sweep(5, START, judge).len(), 1);
    flow.set_verdict(6, false, START);
    assert!(table.sweep(6, START, judge).is_empty(), "its ends have been told");
    flow.set_verdict(7, true, START);
    assert_eq!(table.sweep(8, START, judge).len(), 1, "it passed again meanwhile");
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open(u16, bool),
    Find(u16, bool),
    Remove(u16),
    Wait(u64),
    Sweep(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..40, any::<bool>()).prop_map(|(port, local)| Step::Open(port, local)),
        6 => (0u16..40, any::<bool>()).prop_map(|(port, cache)| Step::Find(port, cache)),
        1 => (0u16..40).prop_map(Step::Remove),
        1 => (0u64..120).prop_map(Step::Wait),
        1 => (0u16..40).prop_map(Step::Sweep),
    ]
}

proptest! {
    /// Two caches in front of one table, against a map of what was opened and when it was last found.
    #[test]
    fn the_table_agrees_with_a_map(steps in prop::collection::vec(step(), 1..200)) {
        let (table, mut caches) = (FlowTable::new(1 << 16), [FlowCache::default(), FlowCache::default()]);
        let (mut model, mut now) = (Model::<u16, (Side, u64)>::new(), START);
        for step in steps {
            let alive = |seen: u64, now: Duration| now.as_secs() - seen < u64::from(UDP_IDLE);
            match step {
                Step::Open(port, local) => {
                    // As admission does: look first, so that what has expired is gone.
                    let by = if local { Side::Local } else { Side::Peer };
                    let found = table.find(&key(1, UDP, port), now).is_some();
                    let inserted = open(&table, key(1, UDP, port), by, now).expect("room");
                    prop_assert_eq!(inserted.is_new, !found);
                    if inserted.is_new {
                        model.insert(port, (by, now.as_secs()));
                    }
                }
                Step::Find(port, cache) => {
                    let flow = caches[usize::from(cache)].find(&table, &key(1, UDP, port), now);
                    let expected = model.get(&port).filter(|(_, seen)| alive(*seen, now)).map(|(by, _)| *by);
                    prop_assert_eq!(flow.map(Flow::opened_by), expected);
                    if let (Some(flow), Some((_, seen))) = (flow, model.get_mut(&port)) {
                        flow.note(Side::Local, None, now);
                        *seen = now.as_secs();
                    }
                }
                Step::Remove(port) => {
                    table.remove(&key(1, UDP, port));
                    model.remove(&port);
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Sweep(port) => {
                    table.sweep(1, now, |_| Ok(()));
                    model.retain(|_, (_, seen)| alive(*seen, now));
                    prop_assert_eq!(table.len(), model.len(), "after port {}", port);
                }
            }
        }
    }
}
