//! What a worker's loop needs of its devices, as traits: the TUN queue and UDP socket of production, or anything
//! else that behaves like them. A loop is given its devices and never opens any.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use warren_engine::admission::Admitted;

/// Inner packets: from and to the host's IP stack. Calls never block; `WouldBlock` means nothing (more) to do.
pub trait InnerIo: Send {
    /// Reads one packet; a longer one is cut to the buffer.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet.
    fn deliver(&mut self, packet: Admitted<'_>) -> io::Result<()>;

    /// Becomes readable when there is a packet, or an error to learn of.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// Datagrams: from and to peers.
pub trait OuterIo: Send {
    /// Fills `batch` with what waits; 0 when nothing does.
    fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<usize>;

    /// Sends every datagram it can, in order, and tells `refused` about each it could not send.
    fn send(
        &mut self,
        datagrams: &mut dyn Iterator<Item = (SocketAddr, &[u8])>,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    );

    /// Becomes readable when there is a datagram, or an error to learn of.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// Why a datagram did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendRefusal {
    /// `EMSGSIZE`: it does not fit the path.
    TooBig,
    /// Anything else; the error number.
    Failed(i32),
}

/// A batch of received datagrams in memory that is allocated once.
#[derive(Debug)]
pub struct ReceiveBatch {
    bytes: Box<[u8]>,
    slot: usize,
    /// Source and length of each; no length for one that was longer than its slot.
    filled: Vec<(SocketAddr, Option<usize>)>,
    slots: usize,
}

impl ReceiveBatch {
    /// Room for `slots` datagrams of up to `slot` bytes.
    #[must_use]
    pub fn new(slots: usize, slot: usize) -> Self {
        Self { bytes: vec![0; slots * slot].into_boxed_slice(), slot, filled: Vec::with_capacity(slots), slots }
    }

    /// How many datagrams fit.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Forgets the datagrams and keeps the memory.
    pub fn clear(&mut self) {
        self.filled.clear();
    }

    /// The free slots, for a socket to write into.
    pub fn spare(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.slot).skip(self.filled.len())
    }

    /// Says what the socket wrote into the next slot: a datagram of `length` bytes, or the front of one that is
    /// longer than the slot.
    pub fn fill(&mut self, from: SocketAddr, length: usize) {
        if self.filled.len() < self.slots {
            self.filled.push((from, (length <= self.slot).then_some(length)));
        }
    }

    /// How many datagrams were longer than their slot. They are lost.
    #[must_use]
    pub fn too_long(&self) -> usize {
        self.filled.iter().filter(|(_, length)| length.is_none()).count()
    }

    /// The whole datagrams with their sources.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let slots = self.filled.iter().zip(self.bytes.chunks(self.slot));
        slots.filter_map(|((from, length), slot)| Some((*from, slot.get(..(*length)?)?)))
    }
}
