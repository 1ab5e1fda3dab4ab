//! What a worker hands back: one preallocated [`Outbox`] per worker, filled by its `handle_*` calls and emptied
//! by the shell at the end of a batch.
//!
//! Packets live in arenas of fixed size and are referred to by range, so that nothing is allocated per packet.
//! Consecutive datagrams of equal length to one endpoint lie next to each other and form one [`Transmit`], whose
//! last one may be shorter: the shape that UDP segmentation offload takes.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use warren_proto::Reason;

use crate::admission::{Admitted, Judgement, Pass};
use crate::segment::{MAX_PREFIX, Merged, Merger, Offload};
use crate::session::{DataSession, sealed_length};
use crate::tables::{Generation, LocalIndex, PeerIndex, UnderWay};

/// The largest packet or datagram that one call can add to an arena.
pub const MAX_PACKET: usize = 65_536;

/// Room for what one super-packet becomes: with segments of 100 bytes it more than doubles. The packets of one with
/// segments still shorter are dropped from where the room ends.
const MAX_SEALED: usize = 3 * MAX_PACKET;

/// How much an [`Outbox`] holds before [`Outbox::has_room`] says no.
#[derive(Debug, Clone, Copy)]
pub struct OutboxLimits {
    /// Bytes of datagrams to transmit, of packets to deliver, and of packets for others; each.
    pub bytes: usize,
    /// Number of entries of each kind.
    pub entries: usize,
}

impl Default for OutboxLimits {
    /// 64 packets of 1500 bytes come in at a time; refusals and the like share the entries.
    fn default() -> Self {
        Self { bytes: 256 * 1024, entries: 256 }
    }
}

/// Datagrams to send to one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Where they go.
    pub endpoint: SocketAddr,
    /// Their bytes, end to end.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
    /// The ECN bits that their IP headers are to carry ([`crate::ecn`]).
    pub ecn: u8,
}

impl<'a> Transmit<'a> {
    /// One by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// What goes into the TUN device at once: one packet, or several of one flow, merged.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    merged: Merged<'a>,
    deliveries: &'a [Pass],
    inner: &'a Arena,
}

impl<'a> Delivery<'a> {
    fn packet(&self, number: usize) -> Admitted<'a> {
        match self.deliveries.get(number) {
            Some(pass) => pass.show(self.inner.slice(pass.range())),
            None => Admitted::NOTHING,
        }
    }

    /// Its packets, as they came.
    pub fn packets(&self) -> impl Iterator<Item = Admitted<'a>> + use<'a> {
        let this = *self;
        self.merged.packets().map(move |number| this.packet(number))
    }

    /// How many they are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.merged.count()
    }

    /// What is merged in it, if anything is.
    #[must_use]
    pub fn offload(&self) -> Option<Offload> {
        self.merged.offload()
    }

    /// The device's header, and the headers of what was merged.
    #[must_use]
    pub fn prefix<'o>(&self, out: &'o mut [u8; MAX_PREFIX]) -> &'o [u8] {
        let first = self.merged.packets().next().unwrap_or_default();
        self.merged.prefix(self.packet(first).packet(), out)
    }

    /// What follows the prefix, end to end; at most [`MAX_SEGMENTS`](crate::segment::MAX_SEGMENTS) parts.
    pub fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let start = self.merged.payload_at();
        self.packets().map(move |packet| packet.packet().get(start..).unwrap_or_default())
    }
}

/// What the slow half has to deal with.
#[derive(Debug, Clone)]
pub enum ForEngine<'a> {
    /// A handshake message, or a transport message of a handshake tunnel.
    Datagram {
        /// Its UDP source.
        source: SocketAddr,
        /// The ECN bits of its IP header.
        ecn: u8,
        /// Unchecked but for its length and message type.
        datagram: &'a [u8],
    },
    /// A judged packet of a local program to a peer without a usable session. Its flow is recorded; it wants
    /// sealing and nothing else.
    Unsent {
        /// Its way. Nothing that workers seal overtakes the packet as long as this exists.
        under_way: UnderWay,
        /// The inner packet.
        packet: &'a [u8],
    },
}

/// A datagram whose session belongs to another worker; give it to that one's `handle_datagram`.
#[derive(Debug, Clone, Copy)]
pub struct Handover<'a> {
    /// The owner.
    pub worker: u16,
    /// Its UDP source.
    pub source: SocketAddr,
    /// The ECN bits of its IP header.
    pub ecn: u8,
    /// As received: nothing of it is judged yet.
    pub datagram: &'a [u8],
}

/// What the slow half should know. Each is said once, not per packet.
#[derive(Debug, Clone)]
pub enum WorkerEvent {
    /// The worker judges by this generation from now on.
    Loaded(Generation),
    /// The peer's first message on this session authenticated.
    Confirmed(Arc<DataSession>),
    /// The session carries traffic and has come of age.
    RekeyDue(Arc<DataSession>),
    /// The first packet since the slow half last asked that a path of IPv6's smallest MTU would not take whole.
    LargeSent(LocalIndex, PeerIndex),
    /// A message of this session authenticated and came from another endpoint than its link's.
    Moved(Arc<DataSession>, SocketAddr),
    /// A transport message for no receiver of ours came from here: perhaps a peer that still holds a session which this
    /// node, restarted, does not. Said of a few of them only.
    Stray(SocketAddr),
}

/// Everything one batch brought about.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    wire: Arena,
    transmits: Vec<Train>,
    inner: Arena,
    deliveries: Vec<Pass>,
    others: Arena,
    for_engine: Vec<EngineEntry>,
    handovers: Vec<HandoverEntry>,
    events: Vec<WorkerEvent>,
}

#[derive(Debug)]
struct Train {
    endpoint: SocketAddr,
    range: Range<usize>,
    segment: usize,
    ecn: u8,
    /// A shorter datagram ended it.
    closed: bool,
}

/// What one send with UDP segmentation offload takes: kernels before 6.9 count the header among 64 segments.
const MAX_SEGMENTS: usize = 60;
/// The largest UDP payload over IPv4.
const MAX_TRAIN: usize = 65_507;

/// How many packets of up to `packet` bytes travel in one train.
#[must_use]
pub const fn packets_per_train(packet: usize) -> usize {
    let fitting = MAX_TRAIN / sealed_length(packet);
    if fitting < MAX_SEGMENTS { fitting } else { MAX_SEGMENTS }
}

impl Train {
    fn takes(&self, endpoint: SocketAddr, ecn: u8, range: &Range<usize>) -> bool {
        let bytes = range.end - self.range.start;
        !self.closed
            && self.endpoint == endpoint
            && self.ecn == ecn
            && self.range.end == range.start
            && range.len() <= self.segment
            && bytes <= MAX_TRAIN.min(self.segment * MAX_SEGMENTS)
    }
}

#[derive(Debug)]
enum EngineEntry {
    Datagram { source: SocketAddr, ecn: u8, range: Range<usize> },
    Unsent { under_way: UnderWay, range: Range<usize> },
}

#[derive(Debug)]
struct HandoverEntry {
    worker: u16,
    source: SocketAddr,
    ecn: u8,
    range: Range<usize>,
}

/// Bytes handed out from front to back and taken back all at once.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Box<[u8]>,
    used: usize,
}

impl Arena {
    fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes].into_boxed_slice(), used: 0 }
    }

    /// All that is left, for the next packet to be written to the front of.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    /// Keeps the first `length` bytes of [`Self::spare`].
    fn keep(&mut self, length: usize) -> Range<usize> {
        let start = self.used;
        self.used = (start + length).min(self.bytes.len());
        start..self.used
    }

    fn push(&mut self, packet: &[u8]) -> Option<Range<usize>> {
        self.spare().get_mut(..packet.len())?.copy_from_slice(packet);
        Some(self.keep(packet.len()))
    }

    fn slice(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }
}

impl Outbox {
    /// Allocates all it will ever use.
    #[must_use]
    pub fn new(limits: OutboxLimits) -> Self {
        let arena = |spare| Arena::new(limits.bytes.max(MAX_PACKET) + spare);
        // One call adds at most a few entries of a kind.
        let entries = limits.entries + 8;
        Self {
            limits,
            wire: arena(MAX_SEALED),
            transmits: Vec::with_capacity(entries),
            inner: arena(MAX_PACKET),
            deliveries: Vec::with_capacity(entries),
            others: arena(MAX_SEALED),
            for_engine: Vec::with_capacity(entries),
            handovers: Vec::with_capacity(entries),
            events: Vec::with_capacity(entries),
        }
    }

    /// Whether one more packet of any size can be handled. Ask before each; when it says no, send what is here
    /// and [`Self::clear`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        let bytes = self.wire.used.max(self.inner.used).max(self.others.used);
        let entries = self
            .transmits
            .len()
            .max(self.deliveries.len())
            .max(self.for_engine.len())
            .max(self.handovers.len())
            .max(self.events.len());
        bytes < self.limits.bytes && entries < self.limits.entries
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.wire.used = 0;
        self.inner.used = 0;
        self.others.used = 0;
        self.transmits.clear();
        self.deliveries.clear();
        self.for_engine.clear();
        self.handovers.clear();
        self.events.clear();
    }

    /// Bytes of packets that wait for the TUN device.
    #[must_use]
    pub const fn delivery_bytes(&self) -> usize {
        self.inner.used
    }

    /// Where the next datagram is sealed into.
    pub(crate) fn wire_spare(&mut self) -> &mut [u8] {
        self.wire.spare()
    }

    /// Keeps a datagram of `length` bytes that was sealed into [`Self::wire_spare`].
    pub(crate) fn transmit(&mut self, endpoint: SocketAddr, ecn: u8, length: usize) {
        let range = self.wire.keep(length);
        if let Some(train) = self.transmits.last_mut()
            && train.takes(endpoint, ecn, &range)
        {
            train.range.end = range.end;
            train.closed = length < train.segment;
            return;
        }
        self.transmits.push(Train { endpoint, range, segment: length, ecn, closed: false });
    }

    /// Where the next inner packet is opened into.
    pub(crate) fn inner_spare(&mut self) -> &mut [u8] {
        self.inner.spare()
    }

    /// Copies a packet to the front of [`Self::inner_spare`].
    pub(crate) fn stage(&mut self, packet: &[u8]) -> Result<(), Reason> {
        let space = self.inner.spare().get_mut(..packet.len()).ok_or(Reason::Malformed)?;
        space.copy_from_slice(packet);
        Ok(())
    }

    /// Keeps the first `length` bytes of [`Self::inner_spare`] for the host, if they may pass.
    pub(crate) fn deliver(&mut self, judgement: &Judgement, length: usize) -> Result<(), Reason> {
        judgement.verdict?;
        let range = self.inner.keep(length);
        self.deliveries.extend(Pass::judged(judgement, range));
        Ok(())
    }

    /// Adds a refusal of this node's own for a local program.
    pub(crate) fn deliver_own(&mut self, refusal: &[u8]) {
        let range = self.inner.push(refusal);
        self.deliveries.extend(range.map(Pass::own_refusal));
    }

    pub(crate) fn push_datagram(&mut self, (source, ecn): (SocketAddr, u8), datagram: &[u8]) -> Result<(), Reason> {
        let range = self.others.push(datagram).ok_or(Reason::Backpressure)?;
        self.for_engine.push(EngineEntry::Datagram { source, ecn, range });
        Ok(())
    }

    pub(crate) fn push_unsent(&mut self, under_way: UnderWay, packet: &[u8]) -> Result<(), Reason> {
        let range = self.others.push(packet).ok_or(Reason::Backpressure)?;
        self.for_engine.push(EngineEntry::Unsent { under_way, range });
        Ok(())
    }

    pub(crate) fn push_handover(
        &mut self,
        worker: u16,
        (source, ecn): (SocketAddr, u8),
        datagram: &[u8],
    ) -> Result<(), Reason> {
        let range = self.others.push(datagram).ok_or(Reason::Backpressure)?;
        self.handovers.push(HandoverEntry { worker, source, ecn, range });
        Ok(())
    }

    pub(crate) fn push_event(&mut self, event: WorkerEvent) {
        self.events.push(event);
    }

    /// What goes out of the UDP socket, in order.
    pub fn transmits(&self) -> impl Iterator<Item = Transmit<'_>> {
        self.transmits.iter().map(|train| Transmit {
            endpoint: train.endpoint,
            bytes: self.wire.slice(train.range.clone()),
            segment: train.segment,
            ecn: train.ecn,
        })
    }

    /// What goes into the TUN device, in order.
    pub fn deliveries(&self) -> impl Iterator<Item = Admitted<'_>> {
        self.deliveries.iter().map(|pass| pass.show(self.inner.slice(pass.range())))
    }

    /// What goes into the TUN device, merged as `merger` does it: in order, but that packets of different flows may
    /// pass each other.
    pub fn merged<'a>(&'a self, merger: &'a mut Merger) -> impl Iterator<Item = Delivery<'a>> {
        merger.clear();
        for packet in self.deliveries() {
            merger.push(packet.packet());
        }
        let (deliveries, inner) = (self.deliveries.as_slice(), &self.inner);
        merger.merged().map(move |merged| Delivery { merged, deliveries, inner })
    }

    /// What goes to the slow half, in order.
    pub fn for_engine(&self) -> impl Iterator<Item = ForEngine<'_>> {
        self.for_engine.iter().map(|entry| match entry {
            EngineEntry::Datagram { source, ecn, range } => {
                ForEngine::Datagram { source: *source, ecn: *ecn, datagram: self.others.slice(range.clone()) }
            }
            EngineEntry::Unsent { under_way, range } => {
                ForEngine::Unsent { under_way: under_way.clone(), packet: self.others.slice(range.clone()) }
            }
        })
    }

    /// What goes to other workers, in order.
    pub fn handovers(&self) -> impl Iterator<Item = Handover<'_>> {
        self.handovers.iter().map(|entry| Handover {
            worker: entry.worker,
            source: entry.source,
            ecn: entry.ecn,
            datagram: self.others.slice(entry.range.clone()),
        })
    }

    /// What the slow half should know, in order.
    pub fn events(&self) -> &[WorkerEvent] {
        &self.events
    }
}
