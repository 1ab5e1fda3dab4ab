//! The UDP sockets' system calls under injected errors.

use std::net::UdpSocket as Plain;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use warren_engine::ecn::NOT_ECT;

use super::*;
use crate::data_plane::offload::Switches;
use crate::data_plane::syscalls::script::{End, On, Script, Times};

fn all() -> Arc<Offloads> {
    Offloads::new(Switches::ON)
}

fn train(endpoint: SocketAddr, bytes: &[u8], segment: usize) -> Transmit<'_> {
    Transmit { endpoint, bytes, segment, ecn: NOT_ECT }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Waits until the socket has something, then takes all of it.
fn take<S: Syscalls>(socket: &mut UdpSocket<S>) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = ReceiveBatch::new(8, 2048);
    let mut descriptors = [PollFd::new(&socket.fd, PollFlags::IN)];
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(poll(&mut descriptors, Some(&patience)), Ok(1), "a datagram within five seconds");
    socket.receive(&mut batch).expect("receive");
    batch.datagrams().map(|(from, bytes)| (from, bytes.to_vec())).collect()
}

fn transport(index: u32) -> Vec<u8> {
    [&[4, 0, 0, 0][..], &index.to_le_bytes(), &[0; 24]].concat()
}

#[test]
fn transport_messages_reach_the_worker_their_index_names_and_the_rest_worker_0() {
    for count in [2, 3] {
        let mut bound = bind(0, count, &all()).expect("bind");
        let sender = Plain::bind(loopback(0)).expect("sender");
        for index in [0_u32, 1, 2, 3, 0x0102_0304, 0x0403_0201, u32::MAX] {
            sender.send_to(&transport(index), loopback(bound.port)).expect("send");
            let owner = &mut bound.sockets[index as usize % count];
            assert_eq!(take(owner), [(sender.local_addr().expect("address"), transport(index))], "{index} of {count}");
        }
        for other in [vec![1; 148], vec![2; 92], vec![3; 64], vec![4], vec![9; 40]] {
            sender.send_to(&other, loopback(bound.port)).expect("send");
            assert_eq!(take(&mut bound.sockets[0])[0].1, other);
        }
    }
}

#[test]
fn both_families_are_sent_to_and_received_from_with_plain_addresses() {
    let mut one = bind(0, 1, &all()).expect("bind");
    let mut two = bind(0, 1, &all()).expect("bind");
    let mut targets = vec![loopback(two.port)];
    if two.ipv6 && Plain::bind("[::1]:0").is_ok() {
        targets.push(SocketAddr::from((Ipv6Addr::LOCALHOST, two.port)));
    }
    for target in targets {
        let datagrams: Vec<_> = (0..5_u8).map(|number| vec![number; 100]).collect();
        one.sockets[0].send(&mut datagrams.iter().map(|bytes| train(target, bytes, bytes.len())), &mut |to, why| {
            panic!("{to} refused: {why:?}");
        });
        let mut received = Vec::new();
        while received.len() < datagrams.len() {
            received.extend(take(&mut two.sockets[0]));
        }
        assert!(received.iter().all(|(from, _)| *from == SocketAddr::from((target.ip(), one.port))));
        assert_eq!(received.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), datagrams);
    }
}

#[test]
fn a_port_in_use_is_named_even_when_its_owner_shares_it() {
    let shared = bind(0, 2, &all()).expect("bind");
    let error = bind(shared.port, 2, &all()).expect_err("in use");
    assert!(matches!(error, UdpError::PortInUse(port) if port == shared.port), "{error}");
    assert!(error.to_string().contains(&shared.port.to_string()));
}

#[test]
fn one_datagram_that_cannot_leave_does_not_hold_up_the_others() {
    let mut sender = bind(0, 1, &all()).expect("bind");
    let receiver = Plain::bind(loopback(0)).expect("receiver");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let to = receiver.local_addr().expect("address");
    let (small, huge) = (vec![7_u8; 50], vec![7_u8; 65_530]);
    let mut refusals = Vec::new();
    let datagrams = [&small, &huge, &small].map(|bytes| train(to, bytes, bytes.len()));
    sender.sockets[0].send(&mut datagrams.into_iter(), &mut |to, why| refusals.push((to, why)));
    assert_eq!(refusals, [(to, SendRefusal::TooBig)]);
    let mut buffer = [0; 100];
    for _ in 0..2 {
        assert_eq!(receiver.recv(&mut buffer).expect("receive"), small.len());
    }
}

#[test]
fn a_datagram_longer_than_a_slot_is_counted_and_not_shown() {
    let mut bound = bind(0, 1, &all()).expect("bind");
    let sender = Plain::bind(loopback(0)).expect("sender");
    sender.send_to(&[4; 300], loopback(bound.port)).expect("send");
    sender.send_to(&[4; 200], loopback(bound.port)).expect("send");
    let (mut batch, mut whole, mut too_long) = (ReceiveBatch::new(2, 200), Vec::new(), 0);
    while whole.len() + too_long < 2 {
        let mut descriptors = [PollFd::new(&bound.sockets[0].fd, PollFlags::IN)];
        assert_eq!(poll(&mut descriptors, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })), Ok(1));
        bound.sockets[0].receive(&mut batch).expect("receive");
        whole.extend(batch.datagrams().map(|(_, bytes)| bytes.len()));
        too_long += batch.too_long();
    }
    assert_eq!((whole, too_long), (vec![200], 1));
}

/// Sends trains over loopback and gives what arrives, with the sender's offloads.
fn pass(
    trains: &[Vec<u8>],
    segment: usize,
    switches: [Switches; 2],
) -> (Vec<Vec<u8>>, Vec<SendRefusal>, Arc<Offloads>) {
    let offloads = switches.map(Offloads::new);
    let mut one = bind(0, 1, &offloads[0]).expect("bind");
    let mut two = bind(0, 1, &offloads[1]).expect("bind");
    let (to, mut refusals) = (loopback(two.port), Vec::new());
    one.sockets[0].send(&mut trains.iter().map(|bytes| train(to, bytes, segment)), &mut |_, why| refusals.push(why));
    let expected = trains.iter().map(|bytes| bytes.len().div_ceil(segment)).sum::<usize>() - refusals.len();
    let mut batch = ReceiveBatch::new(8, 65_536);
    let mut received = Vec::new();
    while received.len() < expected {
        let mut descriptors = [PollFd::new(&two.sockets[0].fd, PollFlags::IN)];
        assert_eq!(poll(&mut descriptors, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })), Ok(1), "{} came", received.len());
        two.sockets[0].receive(&mut batch).expect("receive");
        received.extend(batch.datagrams().map(|(_, bytes)| bytes.to_vec()));
    }
    let [sender, _] = offloads;
    (received, refusals, sender)
}

#[test]
fn trains_arrive_as_their_datagrams_whichever_end_has_offloads() {
    let trains: Vec<Vec<u8>> = (0..70_u8).map(|number| vec![number; 1456 * 4 + 100]).collect();
    let datagrams: Vec<Vec<u8>> = trains.iter().flat_map(|train| train.chunks(1456)).map(<[u8]>::to_vec).collect();
    for switches in [
        [Switches::ON, Switches::ON],
        [Switches::ON, Switches::OFF],
        [Switches::OFF, Switches::ON],
        [Switches::OFF, Switches::OFF],
    ] {
        let (received, refusals, _) = pass(&trains, 1456, switches);
        assert_eq!(refusals, []);
        assert_eq!(received, datagrams, "{switches:?}");
    }
}

#[test]
fn a_train_that_the_kernel_refuses_goes_datagram_by_datagram_and_is_told() {
    // More segments than one send takes (UDP_MAX_SEGMENTS, 128 at most): EINVAL.
    let trains = [vec![1; 200], vec![2; 20], vec![3; 200]];
    let (received, refusals, offloads) = pass(&trains, 1, [Switches::ON, Switches::ON]);
    assert_eq!((received.len(), refusals), (420, vec![]));
    let gso = offloads.states().into_iter().find(|state| state.name == "gso").expect("gso");
    assert!(gso.on, "other routes are not concerned");
    let refused = "refused for 2 batches, which went packet by packet (last: Invalid argument (os error 22))";
    assert_eq!(gso.detail, refused);
}

#[test]
fn an_endpoint_whose_route_refused_a_train_is_tried_again_later() {
    let bound = bind(0, 1, &all()).expect("bind");
    let [mut socket] = <[UdpSocket; 1]>::try_from(bound.sockets).expect("one");
    let (first, other) = (loopback(1), loopback(2));
    socket.rest(first, Errno::IO);
    assert!(socket.takes_train(other));
    let refused = (0..REST).take_while(|_| !socket.takes_train(first)).count();
    assert_eq!(refused, REST as usize);
    assert!(socket.takes_train(first));
    // Many such endpoints: the oldest is forgotten, and no more memory taken.
    for port in 1..100 {
        socket.rest(loopback(port), Errno::IO);
    }
    assert_eq!(socket.rests.len(), MAX_RESTS);
}

/// How a send ends, scripted, of a train of three datagrams and of a single one after it.
struct Sent {
    datagrams: usize,
    refusals: Vec<SendRefusal>,
    calls: u32,
    lines: Vec<String>,
    gso: String,
}

fn send_by(script: &Script, path_mtu: usize) -> (Sent, Vec<(SocketAddr, usize)>) {
    script.set_path_mtu(path_mtu);
    let offloads = all();
    let mut one = bind_with(0, 1, &offloads, script).expect("bind");
    let receiver = Plain::bind(loopback(0)).expect("receiver");
    receiver.set_nonblocking(true).expect("non-blocking");
    let (to, mut refusals) = (receiver.local_addr().expect("address"), Vec::new());
    let (long, short) = (vec![7; 1000 + 1000 + 500], vec![8; 100]);
    let trains = [train(to, &long, 1000), train(to, &short, 100)];
    one.sockets[0].send(&mut trains.into_iter(), &mut |_, why| refusals.push(why));
    let narrow = std::iter::from_fn(|| one.sockets[0].poll_path_mtu()).collect();
    let mut buffer = [0; 2000];
    let datagrams = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
    let (calls, lines) = (script.calls(On::Sendmmsg), offloads.errors().lines());
    let gso = offloads.states().into_iter().find(|state| state.name == "gso").expect("gso").detail;
    (Sent { datagrams, refusals, calls, lines, gso }, narrow)
}

const SEND_ERRORS: [Errno; 13] = [
    Errno::AGAIN,
    Errno::INTR,
    Errno::NOBUFS,
    Errno::NOMEM,
    Errno::MSGSIZE,
    Errno::INVAL,
    Errno::IO,
    Errno::PERM,
    Errno::NETUNREACH,
    Errno::HOSTUNREACH,
    Errno::CONNREFUSED,
    Errno::NETDOWN,
    Errno::ADDRNOTAVAIL,
];

#[test]
fn whatever_a_send_ends_in_once_each_datagram_leaves_or_is_told() {
    for errno in SEND_ERRORS {
        let script = Script::default();
        script.let_end(On::Sendmmsg, End::Fails(errno), Times::Next(1));
        let (sent, narrow) = send_by(&script, 65_536);
        let of_the_moment = !matches!(errno, Errno::PERM | Errno::NETDOWN | Errno::ADDRNOTAVAIL);
        let lost = if of_the_moment { 0 } else { 3 };
        assert_eq!((sent.datagrams, sent.refusals.len()), (4 - lost, lost), "{errno:?}");
        assert_eq!(sent.lines.len(), usize::from(!of_the_moment), "{errno:?} {:?}", sent.lines);
        // What says nothing about trains does not speak against them.
        let concerns_trains = matches!(errno, Errno::IO | Errno::INVAL | Errno::MSGSIZE);
        assert_eq!(!sent.gso.is_empty(), concerns_trains, "{errno:?}: {}", sent.gso);
        assert_eq!(narrow, [], "the path is as wide as ever");
    }
}

#[test]
fn whatever_a_send_ends_in_for_ever_each_datagram_is_told_after_a_bounded_number_of_tries() {
    for errno in SEND_ERRORS {
        let script = Script::default();
        script.let_end(On::Sendmmsg, End::Fails(errno), Times::Forever);
        let (sent, _) = send_by(&script, 65_536);
        assert_eq!((sent.datagrams, sent.refusals.len()), (0, 4), "{errno:?}");
        assert!(sent.calls <= 5 * MOST_TRIES, "{errno:?}: {}", sent.calls);
        let too_big = sent.refusals.iter().filter(|why| **why == SendRefusal::TooBig).count();
        assert_eq!(too_big, if errno == Errno::MSGSIZE { 4 } else { 0 }, "{errno:?}");
        let said = format!("sending datagrams failed 4 times: {}", crate::data_plane::io_errors::describe(errno));
        assert!(sent.lines.len() == 1 && sent.lines[0].starts_with(&said), "{:?}", sent.lines);
    }
}

#[test]
fn a_train_that_one_route_refuses_leaves_datagram_by_datagram_and_the_error_is_named() {
    for errno in [Errno::IO, Errno::INVAL, Errno::MSGSIZE] {
        let script = Script::default();
        script.let_trains_end(End::Fails(errno), Times::Forever);
        let (sent, narrow) = send_by(&script, 65_536);
        assert_eq!((sent.datagrams, sent.refusals), (4, vec![]), "{errno:?}");
        let last = format!("(last: {})", crate::data_plane::io_errors::describe(errno));
        assert!(sent.gso.ends_with(&last), "{}", sent.gso);
        assert_eq!(narrow, []);
    }
}

#[test]
fn a_datagram_longer_than_the_path_makes_the_path_mtu_known_and_no_offload_rests_for_others() {
    for (errno, trains_only) in [(Errno::MSGSIZE, true), (Errno::INVAL, true), (Errno::MSGSIZE, false)] {
        let script = Script::default();
        if trains_only {
            script.let_trains_end(End::Fails(errno), Times::Forever);
        } else {
            script.let_end(On::Sendmmsg, End::Fails(errno), Times::Forever);
        }
        let (sent, narrow) = send_by(&script, 900);
        let payloads: Vec<usize> = narrow.iter().map(|(_, payload)| *payload).collect();
        assert_eq!(payloads, [900 - 28], "{errno:?} {trains_only}");
        assert_eq!(sent.datagrams, if trains_only { 4 } else { 0 });
    }
}

#[test]
fn however_many_datagrams_are_too_long_the_path_is_looked_up_once() {
    let script = Script::default();
    script.set_path_mtu(900);
    script.let_end(On::Sendmmsg, End::Fails(Errno::MSGSIZE), Times::Forever);
    let mut one = bind_with(0, 1, &all(), &script).expect("bind");
    let (to, long) = (loopback(9), vec![7; 1000]);
    let mut refused = 0;
    for looked_up in 1..=2 {
        one.sockets[0].send(&mut (0..40).map(|_| train(to, &long, 1000)), &mut |_, _| refused += 1);
        assert_eq!(script.calls(On::PathMtu), looked_up);
        assert_eq!(one.sockets[0].poll_path_mtu(), Some((to, 900 - 28)));
    }
    assert_eq!(refused, 80);
}

#[test]
fn a_send_that_takes_fewer_messages_than_it_was_given_goes_on_with_the_rest() {
    for most in [0, 1] {
        let script = Script::default();
        script.let_end(On::Sendmmsg, End::Takes(most), Times::Forever);
        let (sent, _) = send_by(&script, 65_536);
        assert_eq!((sent.datagrams, sent.refusals.len()), (4 * most, 4 * (1 - most)));
    }
}

#[test]
fn whatever_a_receive_ends_in_the_next_one_gets_what_waits() {
    for errno in SEND_ERRORS {
        let (script, offloads) = (Script::default(), all());
        let mut bound = bind_with(0, 1, &offloads, &script).expect("bind");
        let sender = Plain::bind(loopback(0)).expect("sender");
        sender.send_to(&[4; 100], loopback(bound.port)).expect("send");
        script.let_end(On::Recvmmsg, End::Fails(errno), Times::Next(2));
        let mut batch = ReceiveBatch::new(8, 2048);
        for _ in 0..2 {
            match bound.sockets[0].receive(&mut batch) {
                Ok(count) => assert!(count == 0 && matches!(errno, Errno::AGAIN | Errno::INTR), "{errno:?}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(errno.raw_os_error())),
            }
        }
        assert_eq!(take(&mut bound.sockets[0]).len(), 1);
        let lines = offloads.errors().lines();
        let named = lines.iter().filter(|line| line.starts_with("receiving datagrams failed 2 times")).count();
        assert_eq!(named, usize::from(!matches!(errno, Errno::AGAIN | Errno::INTR)), "{errno:?}: {lines:?}");
    }
}

#[test]
fn a_receive_that_takes_one_message_at_a_time_loses_none() {
    let script = Script::default();
    let mut bound = bind_with(0, 1, &all(), &script).expect("bind");
    let sender = Plain::bind(loopback(0)).expect("sender");
    for number in 0..5 {
        sender.send_to(&[number; 40], loopback(bound.port)).expect("send");
    }
    script.let_end(On::Recvmmsg, End::Takes(1), Times::Forever);
    let received: Vec<u8> = (0..5).map(|_| take(&mut bound.sockets[0])[0].1[0]).collect();
    assert_eq!(received, [0, 1, 2, 3, 4]);
}

#[test]
fn a_kernel_without_trains_is_named_and_the_socket_goes_without() {
    for errno in [Errno::NOPROTOOPT, Errno::INVAL, Errno::PERM] {
        for (option, name) in [(libc::UDP_SEGMENT, "gso"), (libc::UDP_GRO, "gro")] {
            let (script, offloads) = (Script::default(), all());
            script.let_end(On::SetOption(option), End::Fails(errno), Times::Forever);
            bind_with(0, 2, &offloads, &script).expect("bind");
            for state in offloads.states() {
                assert_eq!(state.on, state.name != name, "{state:?}");
                assert_eq!(state.detail.starts_with("the kernel does not offer it"), state.name == name);
            }
        }
    }
    let script = Script::default();
    script.let_end(On::SetOption(libc::IP_MTU_DISCOVER), End::Fails(Errno::PERM), Times::Forever);
    assert!(matches!(bind_with(0, 1, &all(), &script), Err(UdpError::NotPermitted(0))));
}

#[test]
fn a_datagram_that_must_stay_whole_and_does_not_fit_tells_of_the_path_and_counts_as_no_loss() {
    let (script, offloads) = (Script::default(), all());
    script.set_path_mtu(900);
    let mut one = bind_with(0, 1, &offloads, &script).expect("bind");
    let receiver = Plain::bind(loopback(0)).expect("receiver");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let to = receiver.local_addr().expect("address");
    let mut refusals = Vec::new();
    script.let_end(On::Sendmmsg, End::Fails(Errno::MSGSIZE), Times::Next(1));
    one.engine.send_alone(train(to, &[7; 1000], 1000), Fragments::Nowhere, &mut |_, why| refusals.push(why));
    assert_eq!(one.engine.poll_path_mtu(), Some((to, 900 - 28)));
    assert_eq!((refusals.len(), offloads.errors().lines().len()), (0, 0));
    // Setting and taking back "don't fragment", once for this send and once when the socket was made.
    assert_eq!(script.calls(On::SetOption(libc::IP_MTU_DISCOVER)), 3);
    one.engine.send_alone(train(to, &[7; 1000], 1000), Fragments::Nowhere, &mut |_, why| refusals.push(why));
    let mut buffer = [0; 2000];
    assert_eq!(receiver.recv(&mut buffer).expect("receive"), 1000);
    for errno in SEND_ERRORS {
        script.let_end(On::Sendmmsg, End::Fails(errno), Times::Forever);
        refusals.clear();
        one.engine.send_alone(train(to, &[7; 1000], 1000), Fragments::Nowhere, &mut |_, why| refusals.push(why));
        assert_eq!(refusals.len(), usize::from(errno != Errno::MSGSIZE), "{errno:?}");
    }
    script.let_end(On::SetOption(libc::IP_MTU_DISCOVER), End::Fails(Errno::PERM), Times::Forever);
    refusals.clear();
    one.engine.send_alone(train(to, &[7; 1000], 1000), Fragments::Nowhere, &mut |_, why| refusals.push(why));
    assert_eq!(refusals, [SendRefusal::Failed(libc::EPERM)], "it does not go without");
}

#[test]
fn what_routers_say_holds_for_the_one_datagram_that_is_to_go_by_it() {
    let (script, offloads) = (Script::default(), all());
    let mut one = bind_with(0, 1, &offloads, &script).expect("bind");
    let Ok(receiver) = Plain::bind("[::1]:0") else { return };
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let to = receiver.local_addr().expect("address");
    let before = script.calls(On::SetOption(libc::IPV6_MTU_DISCOVER));
    one.engine.send_alone(train(to, &[7; 1400], 1400), Fragments::AsRoutersSay, &mut |_, why| panic!("{why:?}"));
    assert_eq!(receiver.recv(&mut [0; 2000]).expect("receive"), 1400);
    assert_eq!(script.calls(On::SetOption(libc::IPV6_MTU_DISCOVER)), before + 2, "for this send, and back");
}

#[test]
fn the_bits_of_each_train_arrive_with_its_datagrams_over_both_families_with_and_without_offloads() {
    for switches in [Switches::ON, Switches::OFF] {
        let mut one = bind(0, 1, &Offloads::new(switches)).expect("bind");
        let mut two = bind(0, 1, &Offloads::new(switches)).expect("bind");
        let mut targets = vec![loopback(two.port)];
        if two.ipv6 && Plain::bind("[::1]:0").is_ok() {
            targets.push(SocketAddr::from((Ipv6Addr::LOCALHOST, two.port)));
        }
        for to in targets {
            let trains: Vec<(u8, Vec<u8>)> = (0..16).map(|number: u8| (number % 4, vec![number; 2500])).collect();
            let mut sent = trains.iter().map(|(ecn, bytes)| Transmit { ecn: *ecn, ..train(to, bytes, 1000) });
            one.sockets[0].send(&mut sent, &mut |_, why| panic!("{why:?}"));
            let mut batch = ReceiveBatch::new(8, 65_536);
            let mut received = Vec::new();
            while received.len() < 3 * trains.len() {
                let mut descriptors = [PollFd::new(&two.sockets[0].fd, PollFlags::IN)];
                assert_eq!(poll(&mut descriptors, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })), Ok(1));
                two.sockets[0].receive(&mut batch).expect("receive");
                received.extend(batch.marked().map(|(_, ecn, bytes)| (ecn, bytes[0], bytes.len())));
            }
            let lengths = [1000, 1000, 500];
            let expected: Vec<_> =
                (0..16_u8).flat_map(|number| lengths.map(|length| (number % 4, number, length))).collect();
            assert_eq!(received, expected, "{to} {switches:?}");
        }
    }
}
