//! Admission: the only place that lets a packet into this host.

use std::ops::Range;

/// A packet that may enter the host: judged, or made by this node itself. The TUN writer takes nothing else,
/// and only this module makes one.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    packet: &'a [u8],
}

impl<'a> Admitted<'a> {
    /// The inner packet, exactly as long as its IP header says.
    #[must_use]
    pub const fn packet(&self) -> &'a [u8] {
        self.packet
    }
}

/// Admission's word for one range of an outbox's delivery arena.
#[derive(Debug)]
pub(crate) struct Pass {
    range: Range<usize>,
}

impl Pass {
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub(crate) const fn show<'a>(&self, packet: &'a [u8]) -> Admitted<'a> {
        Admitted { packet }
    }
}
