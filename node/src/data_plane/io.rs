//! What a worker's loop needs of its devices, as traits: the TUN queue and UDP socket of production, or anything
//! else that behaves like them. A loop is given its devices and never opens any.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use warren_engine::output::{Delivery, Transmit};
use warren_engine::segment::{Merge, VirtioNetHeader};

/// A packet or super-packet that was read.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// What the device says of it.
    pub header: VirtioNetHeader,
    /// Its length.
    pub length: usize,
}

/// Inner packets: from and to the host's IP stack. Calls never block; `WouldBlock` means nothing (more) to do.
pub trait InnerIo: Send {
    /// Reads one packet or super-packet; a longer one is cut to the buffer. `InvalidData`: it came with a description
    /// that nobody asked for, and is lost.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes the packets of one delivery, at once or one by one, and calls `refused` for each that the device did not
    /// take. An error says that the device is gone.
    fn deliver(&mut self, delivery: &Delivery<'_>, refused: &mut dyn FnMut()) -> io::Result<()>;

    /// What it takes merged in the next batch; asked once a batch.
    fn merge(&self) -> Merge {
        Merge::default()
    }

    /// Looks whether others have changed the device; asked about once a second.
    fn look_after(&self) {}

    /// Becomes readable when there is a packet, or an error to learn of.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// Datagrams: from and to peers.
pub trait OuterIo: Send {
    /// Fills `batch` with what waits; 0 when nothing does.
    fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<usize>;

    /// Sends every datagram of every train that it can, in order, and tells `refused` about each it could not send.
    fn send<'a>(
        &mut self,
        trains: &mut dyn Iterator<Item = Transmit<'a>>,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    );

    /// Sends one datagram whose fragmentation is another than that of the rest.
    fn send_alone(
        &mut self,
        datagram: Transmit<'_>,
        fragments: Fragments,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    );

    /// An endpoint whose path turned out to be narrower than what was sent there, and the UDP payload that it takes. Ask
    /// after a send, until there is none.
    fn poll_path_mtu(&mut self) -> Option<(SocketAddr, usize)> {
        None
    }

    /// Whether one receive may give a whole train, which takes slots of 64 KiB.
    fn coalesces(&self) -> bool {
        false
    }

    /// Becomes readable when there is a datagram, or an error to learn of.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// Where a datagram may be fragmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// Nowhere. That it is longer than the path takes is no loss: it asks for that.
    Nowhere,
    /// Here, to what routers have said that the path takes. No router cuts IPv6, and a plain device answers no probe: for it
    /// nothing else finds out.
    AsRoutersSay,
}

/// Why a datagram did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendRefusal {
    /// `EMSGSIZE`: it does not fit the path.
    TooBig,
    /// Anything else; the error number.
    Failed(i32),
}

/// A batch of received datagrams in memory that is allocated once. Each slot takes one datagram, or one train of
/// datagrams of equal length from one source, of which the last may be shorter.
#[derive(Debug)]
pub struct ReceiveBatch {
    bytes: Box<[u8]>,
    slot: usize,
    filled: Vec<Filled>,
    slots: usize,
    /// How many of them the next receive may fill.
    offered: usize,
}

/// Trains in one batch: as many as stay in a core's cache.
const TRAINS: usize = 8;
/// Bytes between slots, so that their beginnings do not all fall on the same few lines of the cache.
const SKEW: usize = 1600;

#[derive(Debug)]
struct Filled {
    from: SocketAddr,
    /// None: it was longer than its slot.
    length: Option<usize>,
    ecn: u8,
    /// Bytes of each datagram but the last.
    stride: usize,
}

impl ReceiveBatch {
    /// Room for `slots` datagrams or trains of up to `slot` bytes.
    #[must_use]
    pub fn new(slots: usize, slot: usize) -> Self {
        let bytes = vec![0; slots * (slot + SKEW)].into_boxed_slice();
        Self { bytes, slot, filled: Vec::with_capacity(slots), slots, offered: slots.min(TRAINS) }
    }

    /// How many datagrams or trains fit.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Forgets the datagrams and keeps the memory. Offers many slots after a batch of single datagrams, few after trains:
    /// about as many bytes either way.
    pub fn clear(&mut self) {
        let is_train = |filled: &Filled| filled.length.is_some_and(|length| length > filled.stride);
        if self.filled.iter().any(is_train) {
            self.offered = self.slots.min(TRAINS);
        } else if self.is_full() {
            self.offered = self.slots;
        }
        self.filled.clear();
    }

    /// Whether every slot that was offered was filled: more may wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filled.len() == self.offered
    }

    /// The free slots, for a socket to write into.
    pub fn spare(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let (slot, filled) = (self.slot, self.filled.len());
        self.bytes.chunks_mut(slot + SKEW).map(move |bytes| &mut bytes[..slot]).take(self.offered).skip(filled)
    }

    /// Says what the socket wrote into the next slot: `length` bytes in datagrams of `stride` bytes each, or the front
    /// of what is longer than the slot. `ecn` is what the IP headers of all of them carried.
    pub fn fill(&mut self, from: SocketAddr, ecn: u8, length: usize, stride: usize) {
        if self.filled.len() < self.slots {
            let length = (length <= self.slot).then_some(length);
            self.filled.push(Filled { from, length, ecn, stride: stride.max(1) });
        }
    }

    /// How many slots were too short for what came. It is lost.
    #[must_use]
    pub fn too_long(&self) -> usize {
        self.filled.iter().filter(|filled| filled.length.is_none()).count()
    }

    /// The whole datagrams with their sources.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.marked().map(|(from, _, datagram)| (from, datagram))
    }

    /// The whole datagrams with their sources and the ECN bits of their IP headers.
    pub fn marked(&self) -> impl Iterator<Item = (SocketAddr, u8, &[u8])> {
        self.filled.iter().zip(self.bytes.chunks(self.slot + SKEW)).flat_map(|(filled, slot)| {
            let Filled { from, length, ecn, stride } = *filled;
            let train = length.and_then(|length| slot.get(..length));
            // An empty datagram has no chunk, and is one all the same.
            let empty = train.filter(|train| train.is_empty());
            train.unwrap_or_default().chunks(stride).chain(empty).map(move |datagram| (from, ecn, datagram))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slots_are_offered_after_single_datagrams_and_few_after_trains() {
        let from = SocketAddr::from(([192, 0, 2, 1], 51820));
        let mut batch = ReceiveBatch::new(64, 2048);
        let offered = |batch: &mut ReceiveBatch| batch.spare().count();
        assert_eq!(offered(&mut batch), TRAINS);
        (0..TRAINS - 1).for_each(|_| batch.fill(from, 0, 100, 100));
        assert!(!batch.is_full());
        batch.clear();
        assert_eq!(offered(&mut batch), TRAINS, "nothing more waited");
        (0..TRAINS).for_each(|_| batch.fill(from, 0, 100, 100));
        assert!(batch.is_full());
        batch.clear();
        assert_eq!(offered(&mut batch), 64);
        batch.fill(from, 0, 2000, 1000);
        batch.clear();
        assert_eq!(offered(&mut batch), TRAINS);
    }
}
