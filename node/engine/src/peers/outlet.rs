//! Everything a link reaches outside itself: what it sends, says and counts, and the receiver indices it holds in
//! the tables that workers read. One for the whole engine.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use warren_proto::Reason;

use crate::demux::{Indices, LinkId};
use crate::ecn;
use crate::mesh::{EngineConfig, Event, PlainPacket, Transmit};
use crate::session::DataSession;
use crate::tables::{Link, Shared, Tables, UnderWay};

pub(crate) struct Outlet {
    pub(crate) config: EngineConfig,
    /// How many workers there are.
    pub(crate) workers: u16,
    pub(crate) indices: Indices,
    /// The slow half's own copy; workers see it once it is published.
    pub(crate) tables: Tables,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) plain: VecDeque<PlainPacket>,
    pub(crate) events: VecDeque<Event>,
    /// Inner packets that wait for a session, over all links.
    pub(crate) waiting: usize,
    /// Of the packets whose datagrams lie in `transmits`.
    pub(crate) under_way: Vec<UnderWay>,
    /// Links whose workers may seal when `transmits` has been sent.
    opening: Vec<Arc<Link>>,
    random: StdRng,
    unpublished: bool,
    drops: [u64; Reason::ALL.len()],
}

impl Outlet {
    pub(crate) fn new(config: EngineConfig, workers: u16) -> Self {
        Self {
            random: StdRng::from_seed(config.seed),
            config,
            workers,
            indices: Indices::new(workers),
            tables: Tables::deny_all(),
            transmits: VecDeque::new(),
            plain: VecDeque::new(),
            events: VecDeque::new(),
            waiting: 0,
            under_way: Vec::new(),
            opening: Vec::new(),
            unpublished: false,
            drops: [0; Reason::ALL.len()],
        }
    }

    /// Sends a message of this node's own.
    pub(crate) fn send(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.send_marked(to, ecn::NOT_ECT, datagram);
    }

    /// Sends what carries an inner packet, with that one's ECN bits.
    pub(crate) fn send_marked(&mut self, to: SocketAddr, ecn: u8, datagram: Vec<u8>) {
        self.transmits.push_back(Transmit { to, ecn, datagram, whole: false });
    }

    /// Sends what must arrive in one piece or not at all.
    pub(crate) fn send_whole(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.transmits.push_back(Transmit { to, ecn: ecn::NOT_ECT, datagram, whole: true });
    }

    /// Workers may seal with the link's session when everything said before this has been sent.
    pub(crate) fn open_egress(&mut self, link: &Arc<Link>) {
        self.opening.push(Arc::clone(link));
    }

    /// Everything that was queued here lies on the wire.
    pub(crate) fn note_all_sent(&mut self) {
        self.under_way.clear();
        for link in self.opening.drain(..) {
            link.open_egress();
        }
    }

    pub(crate) fn say(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn count(&mut self, reason: Reason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub(crate) fn drops(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().copied().zip(self.drops).filter(|(_, count)| *count > 0)
    }

    /// A random time below `most`, so that many peers do not act at once.
    pub(crate) fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.random.random::<f64>())
    }

    pub(crate) fn take_prefix(&mut self, link: LinkId) -> u32 {
        let prefix = self.indices.take_prefix(link, &mut self.random);
        self.tables.sessions.insert_handshake_prefix(prefix);
        self.unpublished = true;
        prefix
    }

    pub(crate) fn release_prefix(&mut self, prefix: u32) {
        self.indices.release_prefix(prefix);
        self.tables.sessions.remove_handshake_prefix(prefix);
        self.unpublished = true;
    }

    pub(crate) fn take_index(&mut self, link: LinkId) -> u32 {
        self.indices.take_index(link, &mut self.random)
    }

    /// Gives an index back that named no session yet.
    pub(crate) fn release_index(&mut self, index: u32) {
        self.indices.release_index(index);
    }

    /// Lets workers open datagrams of this session.
    pub(crate) fn open_session(&mut self, session: &Arc<DataSession>) {
        self.tables.sessions.insert(Arc::clone(session));
        self.unpublished = true;
    }

    /// From the next publication on no worker opens datagrams of this session.
    pub(crate) fn close_session(&mut self, session: &DataSession) {
        self.tables.sessions.remove(session.local_index());
        self.indices.release_index(session.local_index());
        self.unpublished = true;
    }

    /// The tables were changed in place.
    pub(crate) fn mark_changed(&mut self) {
        self.unpublished = true;
    }

    /// Publishes what has changed. Called before anything that was queued for sending is polled, so that an answer
    /// never meets a worker that does not know its session.
    pub(crate) fn publish(&mut self, shared: &Shared) {
        if std::mem::take(&mut self.unpublished) {
            shared.publish(Arc::new(self.tables.clone()));
        }
    }
}
