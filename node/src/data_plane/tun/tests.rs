//! The TUN device's system calls under injected errors.

use std::os::unix::net::UnixDatagram;

use super::*;
use crate::data_plane::offload::Switches;
use crate::data_plane::syscalls::script::{End, On, Script, Times};

/// What an `errno` on the TUN device may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// Nothing is lost.
    Through,
    /// Every packet is told as refused and stands in the status.
    Refused,
    /// The device counts as lost.
    Lost,
}

const WRITE_ERRORS: [(Errno, bool); 12] = [
    // Whether the moment may pass.
    (Errno::AGAIN, true),
    (Errno::NOBUFS, true),
    (Errno::NOMEM, true),
    (Errno::INTR, true),
    (Errno::MSGSIZE, false),
    (Errno::INVAL, false),
    (Errno::IO, false),
    (Errno::PERM, false),
    (Errno::NETUNREACH, false),
    (Errno::CONNREFUSED, false),
    (Errno::FAULT, false),
    (Errno::OPNOTSUPP, false),
];

struct Bench {
    queue: TunQueue<Script>,
    /// The host's side.
    host: UnixDatagram,
    script: Script,
    offloads: Arc<Offloads>,
}

fn bench(described: bool) -> Bench {
    let (ours, host) = UnixDatagram::pair().expect("a pair");
    ours.set_nonblocking(true).expect("non-blocking");
    host.set_nonblocking(true).expect("non-blocking");
    let (script, offloads) = (Script::default(), Offloads::new(Switches::ON));
    let control = Some(Control { socket: ours.try_clone().expect("a copy").into(), device: "warren0".to_owned() });
    let kernel = script.clone();
    let queue = TunQueue { fd: ours.into(), writer: None, described, offloads: Arc::clone(&offloads), control, kernel };
    Bench { queue, host, script, offloads }
}

const PACKETS: [&[u8]; 3] = [b"one", b"two", b"three"];

impl Bench {
    /// Writes [`PACKETS`], merged; what came through and what was refused, and whether the device was lost.
    fn write_merged(&self) -> (Comes, Vec<Vec<u8>>) {
        let parts = [IoSlice::new(b"headers"), IoSlice::new(b"payloads")];
        let mut refused = 0;
        let outcome = self.queue.write_merged(Kind::TcpV4, &parts, PACKETS.into_iter(), &mut || refused += 1);
        self.settle(outcome, refused)
    }

    fn write_singly(&self) -> (Comes, Vec<Vec<u8>>) {
        let mut refused = 0;
        let outcome = self.queue.write_singly(PACKETS.into_iter(), &mut || refused += 1);
        self.settle(outcome, refused)
    }

    fn settle(&self, outcome: io::Result<()>, refused: usize) -> (Comes, Vec<Vec<u8>>) {
        let mut buffer = [0; 100];
        let taken: Vec<Vec<u8>> =
            std::iter::from_fn(|| self.host.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect();
        let comes = match (outcome, refused) {
            (Err(_), _) => Comes::Lost,
            (Ok(()), 0) => Comes::Through,
            (Ok(()), _) => Comes::Refused,
        };
        (comes, taken)
    }

    fn tso(&self) -> (bool, String) {
        let state = self.offloads.states().swap_remove(0);
        (state.on, state.detail)
    }
}

#[test]
fn an_error_of_the_moment_on_a_write_loses_nothing_and_one_that_stays_is_told_for_each_packet() {
    for described in [false, true] {
        for (errno, passes) in WRITE_ERRORS {
            let bench = bench(described);
            bench.script.let_end(On::Writev, End::Fails(errno), Times::Next(1));
            let (comes, taken) = bench.write_singly();
            if passes {
                assert_eq!((comes, taken.len()), (Comes::Through, 3), "{errno:?} once");
                assert_eq!(bench.offloads.errors().lines(), Vec::<String>::new());
            } else {
                assert_eq!((comes, taken.len()), (Comes::Refused, 2), "{errno:?} once");
            }
            bench.script.let_end(On::Writev, End::Fails(errno), Times::Forever);
            let before = bench.script.calls(On::Writev);
            assert_eq!(bench.write_singly(), (Comes::Refused, vec![]), "{errno:?} for ever");
            assert!(bench.script.calls(On::Writev) - before <= 3 * TRIES);
            let lines = bench.offloads.errors().lines();
            assert!(lines.len() == 1 && lines[0].starts_with("writing to the TUN device failed"), "{lines:?}");
            bench.script.let_end(On::Writev, End::Fails(errno), Times::Next(0));
            assert_eq!(bench.write_singly().0, Comes::Through, "{errno:?} over");
        }
    }
}

#[test]
fn a_device_that_is_gone_is_lost_whatever_was_written() {
    for errno in [Errno::BADFD, Errno::BADF, Errno::NODEV] {
        let bench = bench(true);
        bench.script.let_end(On::Writev, End::Fails(errno), Times::Forever);
        assert_eq!(bench.write_merged().0, Comes::Lost, "{errno:?}");
        assert_eq!(bench.write_singly().0, Comes::Lost, "{errno:?}");
        assert!(bench.tso().0, "it is no refusal of the offload");
    }
}

#[test]
fn a_write_that_takes_a_part_is_a_refusal() {
    let bench = bench(true);
    bench.script.let_end(On::Writev, End::Takes(1), Times::Forever);
    assert_eq!(bench.write_singly(), (Comes::Refused, vec![]));
    assert!(bench.offloads.errors().lines()[0].contains("3 times"), "{:?}", bench.offloads.errors().lines());
}

#[test]
fn a_super_packet_that_is_refused_goes_packet_by_packet_and_merging_stays_on() {
    let whole = bench(true);
    assert_eq!(whole.write_merged(), (Comes::Through, vec![b"headerspayloads".to_vec()]));
    for (errno, passes) in WRITE_ERRORS {
        let bench = bench(true);
        bench.script.let_end(On::Writev, End::Fails(errno), Times::Next(if passes { TRIES } else { 1 }));
        let (comes, taken) = bench.write_merged();
        let singles: Vec<Vec<u8>> =
            PACKETS.iter().map(|packet| [&[0; VirtioNetHeader::LENGTH][..], packet].concat()).collect();
        assert_eq!((comes, taken), (Comes::Through, singles), "{errno:?}");
        let (on, detail) = bench.tso();
        assert!(on && detail.starts_with("refused for one batch, which went packet by packet"), "{errno:?}: {detail}");
        assert!(bench.queue.merge().tcp);
    }
}

#[test]
fn refusals_of_super_packets_that_persist_turn_merging_off_for_a_while_by_name() {
    let bench = bench(true);
    bench.script.let_end(On::Writev, End::Fails(Errno::INVAL), Times::Forever);
    (0..10).for_each(|_| assert_eq!(bench.write_merged().0, Comes::Refused));
    assert_eq!(bench.queue.merge(), Merge { tcp: false, udp: true });
    let (on, detail) = bench.tso();
    assert!(!on && detail.starts_with("off for a while: the kernel refuses it again and again"), "{detail}");
    assert!(detail.ends_with("(last: Invalid argument (os error 22))"), "{detail}");
    bench.script.let_end(On::Writev, End::Fails(Errno::INVAL), Times::Next(0));
    while !bench.queue.merge().tcp {}
    assert_eq!(bench.write_merged().0, Comes::Through);
    assert!(bench.tso().0);
}

#[test]
fn what_a_read_ends_in_is_told_to_the_loop_and_stands_in_the_status() {
    let mut buffer = [0; 100];
    for errno in [Errno::IO, Errno::INVAL, Errno::FAULT, Errno::NOMEM, Errno::BADFD, Errno::PERM] {
        let mut bench = bench(true);
        bench.script.let_end(On::Readv, End::Fails(errno), Times::Next(1));
        let error = bench.queue.receive(&mut buffer).expect_err("scripted");
        assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
        let lines = bench.offloads.errors().lines();
        assert!(lines.len() == 1 && lines[0].starts_with("reading from the TUN device failed once"), "{lines:?}");
        bench.host.send(&[&[0; VirtioNetHeader::LENGTH][..], b"packet"].concat()).expect("send");
        assert_eq!(bench.queue.receive(&mut buffer).expect("over").length, 6);
    }
    for (errno, kind) in [(Errno::AGAIN, io::ErrorKind::WouldBlock), (Errno::INTR, io::ErrorKind::Interrupted)] {
        let mut bench = bench(true);
        bench.script.let_end(On::Readv, End::Fails(errno), Times::Next(1));
        assert_eq!(bench.queue.receive(&mut buffer).expect_err("scripted").kind(), kind);
        assert_eq!(bench.offloads.errors().lines(), Vec::<String>::new());
    }
    let mut short = bench(true);
    short.script.let_end(On::Readv, End::Takes(4), Times::Next(1));
    short.host.send(&[0; 60]).expect("send");
    assert_eq!(short.queue.receive(&mut buffer).expect_err("short").kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_kernel_without_super_packets_is_named_and_the_device_goes_without() {
    let (queue, _host) = UnixDatagram::pair().expect("a pair");
    for errno in [Errno::INVAL, Errno::PERM, Errno::BADFD] {
        let (script, offloads) = (Script::default(), Offloads::new(Switches::ON));
        script.let_end(On::SetTunOffload, End::Fails(errno), Times::Forever);
        request_offloads(queue.as_fd(), &offloads, &script);
        let states = offloads.states();
        assert!(states[..2].iter().all(|state| !state.on), "{states:?}");
        assert!(states[0].detail.starts_with("the kernel does not offer it"), "{states:?}");
        // TSO without USO is what kernels before 6.2 have.
        let (script, offloads) = (Script::default(), Offloads::new(Switches { tso: false, ..Switches::ON }));
        script.let_end(On::SetTunOffload, End::Fails(errno), Times::Next(1));
        request_offloads(queue.as_fd(), &offloads, &script);
        assert!(!offloads.is_on(Offload::Uso));
    }
}

#[test]
fn what_another_program_switches_off_at_the_device_is_named_and_counted_and_packets_go_on() {
    let bench = bench(true);
    let look = |end| {
        bench.script.let_end(On::GivesTso, end, Times::Forever);
        bench.queue.look_after();
        bench.tso()
    };
    assert_eq!(look(End::Takes(1)), (true, String::new()));
    for times in ["once", "2 times"] {
        for _ in 0..3 {
            let (on, detail) = look(End::Takes(0));
            assert!(!on && detail.starts_with("off: another program switched it off at the device"), "{detail}");
            assert!(detail.ends_with(&format!("found switched off {times}")), "{detail}");
            assert_eq!(
                bench.write_merged(),
                (Comes::Through, vec![b"headerspayloads".to_vec()]),
                "the way in is whole"
            );
        }
        assert!(!look(End::Fails(Errno::OPNOTSUPP)).0, "no answer changes nothing");
        assert_eq!(look(End::Takes(1)), (true, format!("found switched off {times}")));
    }
}
