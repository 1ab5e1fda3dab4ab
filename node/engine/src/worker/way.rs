//! A packet once it was judged: where it goes, and what it is sealed with.

use std::net::SocketAddr;
use std::sync::Arc;

use warren_proto::Reason;

use crate::admission::Judgement;
use crate::ecn;
use crate::output::{Outbox, WorkerEvent};
use crate::session::{DataSession, sealed_length};
use crate::tables::{Link, Peer, PeerLink};

/// A packet longer than this may not fit a path: IPv6's smallest MTU less IPv6, UDP, and header and tag of ours.
const LARGE: usize = 1280 - 48 - sealed_length(0);

/// Where a judged packet of a local program goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'t> {
    pub(super) peer: &'t Peer,
    pub(super) link: &'t Arc<Link>,
    /// Of the packet as its IP header says.
    pub(super) length: usize,
}

/// A packet that goes no further, and the way it was on as far as that is known.
#[derive(Debug)]
pub(super) struct Stopped<'t> {
    pub(super) reason: Reason,
    pub(super) link: Option<&'t Link>,
}

impl From<Reason> for Stopped<'_> {
    fn from(reason: Reason) -> Self {
        Self { reason, link: None }
    }
}

/// What packets are sealed with, and where they go then.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) session: arc_swap::Guard<Option<Arc<DataSession>>>,
    pub(super) endpoint: SocketAddr,
    /// Padding ends here.
    pub(super) mtu: usize,
}

impl Carrier {
    /// Whether both would seal with the same session.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        matches!((&*self.session, &*other.session), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }
}

impl Way<'_> {
    /// None where the slow half has to take the packet: it has the plain peers' tunnels.
    pub(super) fn carrier(&self) -> Option<Carrier> {
        let session = (!self.peer.is_plain).then(|| self.link.egress()).filter(|session| session.is_some())?;
        Some(Carrier { session, endpoint: self.link.endpoint()?, mtu: self.link.mtu() as usize })
    }

    /// Has the path asked whether it takes packets as long as this one, if nothing as long was sent of late.
    pub(super) fn note_large(&self, longest: usize, outbox: &mut Outbox) {
        let Self { peer, link, length } = *self;
        if longest.min(length) > LARGE && !peer.is_plain && link.note_large() {
            outbox.push_event(WorkerEvent::LargeSent(link.local(), link.peer()));
        }
    }

    /// The packet, or a segment of it, without anything behind its end.
    pub(super) fn cut<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet.get(..self.length).unwrap_or(packet)
    }
}

/// A peer's packet after judgement, while its bytes still lie in the spare part of the delivery arena.
#[derive(Debug)]
pub(super) struct Judged<'t> {
    pub(super) judgement: Judgement,
    /// Of the packet.
    pub(super) length: usize,
    /// The answer that waits in the worker's refusal buffer: its length and whom it goes to.
    pub(super) answer: Option<(usize, &'t Peer, &'t PeerLink)>,
}

impl Judged<'_> {
    /// Gives the packet in the spare part, if it may pass, the ECN bits that its outer header's say.
    pub(super) fn mark(&self, outer: u8, outbox: &mut Outbox) -> Result<(), Reason> {
        if outer != ecn::NOT_ECT
            && self.judgement.verdict.is_ok()
            && let Some(packet) = outbox.inner_spare().get_mut(..self.length)
        {
            ecn::decapsulate(packet, outer)?;
        }
        Ok(())
    }
}
