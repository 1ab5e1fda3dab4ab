//! A worker's thread: waits on its TUN queue, its UDP socket and its mailbox, lends what arrives to the pure
//! [`Worker`] and writes what that hands back. One turn of the loop is one batch: judged by one set of tables and
//! written before the next is loaded.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc::UnboundedSender;
use warren_engine::Now;
use warren_engine::counters::Counters;
use warren_engine::flows::CutFlow;
use warren_engine::mesh::PlainPacket;
use warren_engine::output::{ForEngine, Outbox, OutboxLimits};
use warren_engine::segment::{Merger, Split};
use warren_engine::worker::Worker;
use warren_proto::Reason;

use super::engine_loop::ToEngine;
use super::io::{InnerIo, OuterIo, ReceiveBatch, Received, SendRefusal};
use super::mailbox::{Lane, Mail, Mailbox};
use super::{DataPlaneEvent, TimeSource};

/// Datagrams, and packets, per turn: the latency of one direction under load of the other.
const TURN: usize = 64;
/// The largest packet or super-packet that a TUN device gives.
const LARGEST_PACKET: usize = 65_536;
/// Bytes of packets per turn: super-packets fill this long before there are [`TURN`] of them.
const TURN_BYTES: usize = 4 * LARGEST_PACKET;
/// Receives per turn: 256 single datagrams, of which the host gets few and large packets where they are of one flow.
const RECEIVES: usize = 4;
/// How often flow records are collected and the device is looked after; also the longest wait.
const RECORDS_INTERVAL: Duration = Duration::from_secs(1);
/// Errors in a row, without one success, after which a device counts as lost.
const ERRORS_IN_A_ROW: u32 = 1_000;

/// What others hand to a worker.
#[derive(Debug)]
pub(super) enum ToWorker {
    /// A datagram of a session whose replay window is this worker's, with its ECN bits. Nothing of it is judged yet.
    Datagram(SocketAddr, u8, Box<[u8]>),
    /// An opened packet of a plain WireGuard peer.
    Plain(PlainPacket),
    /// Connections to reset at both ends.
    Cut(Vec<CutFlow>),
}

impl Mail for ToWorker {
    /// A session by its receiver index, a plain peer by its number.
    type Sender = u64;

    fn sender(&self) -> (Lane, u64) {
        let sender = match self {
            Self::Datagram(_, _, datagram) => {
                let receiver = datagram.get(4..8).and_then(|bytes| bytes.try_into().ok());
                u64::from(receiver.map_or(0, u32::from_le_bytes))
            }
            Self::Plain(packet) => 1 << 32 | u64::from(packet.peer.0),
            Self::Cut(_) => 2 << 32,
        };
        (Lane::Known, sender)
    }
}

/// What all threads share.
pub(super) struct Wiring {
    pub(super) workers: Box<[Mailbox<ToWorker>]>,
    pub(super) engine: Mailbox<ToEngine>,
    pub(super) stop: AtomicBool,
    pub(super) time: TimeSource,
    pub(super) events: UnboundedSender<DataPlaneEvent>,
}

impl Wiring {
    /// Ends every worker at the end of its turn.
    pub(super) fn stop_workers(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for mailbox in &self.workers {
            mailbox.wake();
        }
    }
}

/// Says so when a worker's thread fails: a data plane that lacks a worker must end.
struct Alarm(Arc<Wiring>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = "a worker failed; see the log".to_owned();
            self.0.engine.insist(ToEngine::Lost { what: "data plane", error });
        }
    }
}

/// One worker with its devices.
pub(super) struct WorkerLoop {
    worker: Worker,
    outbox: Outbox,
    ports: Ports,
    received: ReceiveBatch,
    packet: Box<[u8]>,
    mail: VecDeque<ToWorker>,
    inner_errors: u32,
    outer_errors: u32,
    records_due: Duration,
}

/// Where everything that a worker hands back goes.
struct Ports {
    inner: Box<dyn InnerIo>,
    merger: Merger,
    outer: Box<dyn OuterIo>,
    wiring: Arc<Wiring>,
    counters: Arc<Counters>,
}

/// A device that can no longer be used.
struct Lost {
    what: &'static str,
    error: io::Error,
}

/// Which of a worker's inputs have something.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    inner: bool,
    outer: bool,
    mail: bool,
}

impl WorkerLoop {
    /// Devices and memory for `worker`; its datagrams are at most `largest_datagram` bytes long.
    pub(super) fn new(
        worker: Worker,
        inner: Box<dyn InnerIo>,
        outer: Box<dyn OuterIo>,
        wiring: Arc<Wiring>,
        largest_datagram: usize,
    ) -> Self {
        let counters = worker.counters();
        let limits = OutboxLimits::default();
        let merger = Merger::new(inner.merge(), limits.entries);
        let slot = if outer.coalesces() { LARGEST_PACKET } else { largest_datagram };
        Self {
            worker,
            outbox: Outbox::new(limits),
            ports: Ports { inner, merger, outer, wiring, counters },
            received: ReceiveBatch::new(TURN, slot),
            packet: vec![0; LARGEST_PACKET].into_boxed_slice(),
            mail: VecDeque::new(),
            inner_errors: 0,
            outer_errors: 0,
            records_due: Duration::ZERO,
        }
    }

    /// Runs until told to stop, or until a device is lost.
    pub(super) fn run(mut self) {
        let wiring = Arc::clone(&self.ports.wiring);
        let _alarm = Alarm(Arc::clone(&wiring));
        while !wiring.stop.load(Ordering::SeqCst) {
            if let Err(Lost { what, error }) = self.turn(&wiring) {
                // Parked, it is not waited for while the engine closes everything.
                self.worker.park();
                wiring.engine.insist(ToEngine::Lost { what, error: error.to_string() });
                return;
            }
        }
    }

    fn turn(&mut self, wiring: &Wiring) -> Result<(), Lost> {
        self.worker.park();
        let mailbox = &wiring.workers[usize::from(self.worker.index())];
        let ready = self.ports.wait(mailbox);
        let now = (wiring.time)();
        if ready.inner || ready.outer || ready.mail {
            self.worker.begin_batch(&mut self.outbox);
            if ready.mail {
                self.take_mail(mailbox, now)?;
            }
            if ready.outer {
                self.take_datagrams(now)?;
            }
            if ready.inner {
                self.take_packets(now)?;
            }
            self.ports.flush(&mut self.outbox)?;
        }
        if now.monotonic >= self.records_due {
            self.records_due = now.monotonic + RECORDS_INTERVAL;
            self.ports.inner.look_after();
            while let Some(record) = self.worker.poll_flow_record() {
                // Without a listener the daemon is ending, and this thread is told next.
                let _ = wiring.events.send(DataPlaneEvent::Flow(Box::new(record)));
            }
        }
        Ok(())
    }

    fn take_mail(&mut self, mailbox: &Mailbox<ToWorker>, now: Now) -> Result<(), Lost> {
        mailbox.silence();
        mailbox.take(&mut self.mail);
        while let Some(item) = self.mail.pop_front() {
            self.ports.make_room(&mut self.outbox)?;
            match item {
                ToWorker::Datagram(from, ecn, datagram) => {
                    self.worker.handle_marked(from, ecn, &datagram, now, &mut self.outbox);
                }
                ToWorker::Plain(packet) => {
                    self.worker.handle_plain(&packet, now, &mut self.outbox);
                }
                ToWorker::Cut(cuts) => {
                    for cut in &cuts {
                        self.ports.make_room(&mut self.outbox)?;
                        self.worker.handle_cut(cut, now, &mut self.outbox);
                    }
                    self.ports.flush(&mut self.outbox)?;
                    self.ports.wiring.engine.insist(ToEngine::CutDone);
                }
            }
        }
        Ok(())
    }

    /// Takes what waits, until a turn's worth is opened: the longer the run of one flow, the fewer packets it becomes.
    fn take_datagrams(&mut self, now: Now) -> Result<(), Lost> {
        for _ in 0..RECEIVES {
            self.receive(now)?;
            if !self.received.is_full() || self.outbox.delivery_bytes() >= TURN_BYTES / 2 {
                break;
            }
        }
        Ok(())
    }

    fn receive(&mut self, now: Now) -> Result<(), Lost> {
        if let Err(error) = self.ports.outer.receive(&mut self.received) {
            // Most errors tell of an earlier datagram's fate and are over once read.
            self.ports.counters.drop_one(Reason::ReceiveFailed);
            self.outer_errors += 1;
            let gone = matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK));
            if gone || self.outer_errors > ERRORS_IN_A_ROW {
                return Err(Lost { what: "UDP socket", error });
            }
            return Ok(());
        }
        self.outer_errors = 0;
        for _ in 0..self.received.too_long() {
            self.ports.counters.drop_one(Reason::DatagramTooLong);
        }
        for (from, ecn, datagram) in self.received.marked() {
            self.ports.make_room(&mut self.outbox)?;
            self.worker.handle_marked(from, ecn, datagram, now, &mut self.outbox);
        }
        Ok(())
    }

    fn take_packets(&mut self, now: Now) -> Result<(), Lost> {
        let mut bytes = 0;
        for _ in 0..TURN {
            self.ports.make_room(&mut self.outbox)?;
            let Received { header, length } = match self.ports.inner.receive(&mut self.packet) {
                Ok(received) => {
                    self.inner_errors = 0;
                    received
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.ports.counters.drop_one(Reason::Malformed);
                    continue;
                }
                Err(error) => {
                    self.ports.counters.drop_one(Reason::ReceiveFailed);
                    self.inner_errors += 1;
                    if is_gone(&error) || self.inner_errors > ERRORS_IN_A_ROW {
                        return Err(Lost { what: "TUN device", error });
                    }
                    break;
                }
            };
            let packet = self.packet.get_mut(..length).unwrap_or_default();
            match Split::new(header, packet) {
                Ok(split) => self.worker.handle_segments(split, now, &mut self.outbox),
                Err(reason) => self.ports.counters.drop_one(reason),
            }
            bytes += length;
            if bytes >= TURN_BYTES {
                break;
            }
        }
        Ok(())
    }
}

impl Ports {
    /// Waits for input.
    fn wait(&self, mailbox: &Mailbox<ToWorker>) -> Ready {
        let mut descriptors = [
            PollFd::from_borrowed_fd(self.inner.descriptor(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.outer.descriptor(), PollFlags::IN),
            PollFd::from_borrowed_fd(mailbox.descriptor(), PollFlags::IN),
        ];
        let timeout = Timespec { tv_sec: RECORDS_INTERVAL.as_secs().cast_signed(), tv_nsec: 0 };
        if poll(&mut descriptors, Some(&timeout)).is_err() {
            return Ready::default();
        }
        let [inner, outer, mail] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
        Ready { inner, outer, mail }
    }

    /// Empties the outbox where it is full.
    fn make_room(&mut self, outbox: &mut Outbox) -> Result<(), Lost> {
        if outbox.has_room() { Ok(()) } else { self.flush(outbox) }
    }

    /// Writes everything that the outbox holds.
    fn flush(&mut self, outbox: &mut Outbox) -> Result<(), Lost> {
        let Self { inner, merger, outer, wiring, counters } = self;
        let merge = inner.merge();
        if merger.merge() != merge {
            merger.set_merge(merge);
        }
        for delivery in outbox.merged(merger) {
            let delivered = inner.deliver(&delivery, &mut || counters.drop_one(Reason::DeliverFailed));
            delivered.map_err(|error| Lost { what: "TUN device", error })?;
        }
        outer.send(&mut outbox.transmits(), &mut |_, why| counters.drop_one(reason(why)));
        while let Some((to, payload)) = outer.poll_path_mtu() {
            // It is noticed again as long as it holds.
            wiring.engine.offer(ToEngine::PathMtu(to, payload));
        }
        for handover in outbox.handovers() {
            let mailbox = wiring.workers.get(usize::from(handover.worker));
            let item = ToWorker::Datagram(handover.source, handover.ecn, handover.datagram.into());
            if !mailbox.is_some_and(|mailbox| mailbox.offer(item)) {
                counters.drop_one(Reason::HandoverFull);
            }
        }
        for item in outbox.for_engine() {
            let item = match item {
                ForEngine::Datagram { source, ecn, datagram } => ToEngine::Datagram(source, ecn, datagram.into()),
                ForEngine::Unsent { under_way, packet } => ToEngine::Unsent(under_way, packet.into()),
            };
            if !wiring.engine.offer(item) {
                counters.drop_one(Reason::HandoverFull);
            }
        }
        for event in outbox.events() {
            wiring.engine.insist(ToEngine::Event(event.clone()));
        }
        outbox.clear();
        Ok(())
    }
}

/// Whether an error says that the TUN device was removed under us.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// The name under which a datagram that did not leave is counted.
pub(super) fn reason(refusal: SendRefusal) -> Reason {
    match refusal {
        SendRefusal::TooBig => Reason::PacketTooBig,
        SendRefusal::Failed(_) => Reason::SendFailed,
    }
}
