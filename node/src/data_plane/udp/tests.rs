use std::net::UdpSocket as Plain;
use std::time::Duration;

use super::*;
use crate::data_plane::offload::Switches;

fn all() -> Arc<Offloads> {
    Offloads::new(Switches::ON)
}

fn train(endpoint: SocketAddr, bytes: &[u8], segment: usize) -> Transmit<'_> {
    Transmit { endpoint, bytes, segment }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Waits until the socket has something, then takes all of it.
fn take(socket: &mut UdpSocket) -> Vec<(SocketAddr, Vec<u8>)> {
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
    assert_eq!(gso.detail, "refused for 2 batches, which went packet by packet");
}

#[test]
fn an_endpoint_whose_route_refused_a_train_is_tried_again_later() {
    let bound = bind(0, 1, &all()).expect("bind");
    let [mut socket] = <[UdpSocket; 1]>::try_from(bound.sockets).expect("one");
    let (first, other) = (loopback(1), loopback(2));
    socket.rest(first);
    assert!(socket.takes_train(other));
    let refused = (0..REST).take_while(|_| !socket.takes_train(first)).count();
    assert_eq!(refused, REST as usize);
    assert!(socket.takes_train(first));
    // Many such endpoints: the oldest is forgotten, and no more memory taken.
    for port in 1..100 {
        socket.rest(loopback(port));
    }
    assert_eq!(socket.rests.len(), MAX_RESTS);
}
