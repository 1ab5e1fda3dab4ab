//! The fast facade: what one core does with a packet, from arrival to what must leave, without waiting for
//! anything. The shell lends it packets one by one and writes what the [`Outbox`] holds between batches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_proto::Reason;

use crate::Now;
use crate::admission::{Admission, Judgement, Run};
use crate::attribution;
use crate::counters::Counters;
use crate::ecn;
use crate::flows::{CutFlow, FlowCache, FlowTable, Side};
use crate::fragments::Fragments;
use crate::mesh::PlainPacket;
use crate::output::{Outbox, WorkerEvent};
use crate::packet::Inner;
use crate::records::{self, FlowRecord, Observation, Records};
use crate::refusals::{self, MAX_REFUSAL, Refusal, RefusalLimit};
use crate::segment::Split;
use crate::session::{DataSession, sealed_length, transport_header};
use crate::tables::{Generation, Link, Local, LocalIndex, Peer, PeerIndex, Receiver, Shared, Tables, UnderWay};

mod cut;
mod way;

use way::{Carrier, Judged, Stopped, Way};

/// Lengths of WireGuard's handshake initiation, handshake response and cookie reply.
const HANDSHAKE_LENGTHS: [usize; 3] = [148, 92, 64];

/// How often a datagram without a receiver is reported to the slow half: a flood of them costs nothing there.
const STRAY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a move of one peer is reported: a peer, or somebody on its path, who changes the source of every packet costs
/// the slow half nothing.
const MOVE_INTERVAL: Duration = Duration::from_millis(100);

/// Places in [`Desk::runs`].
const OUT: usize = 0;
const IN: usize = 1;

/// One core's half of the data plane.
#[derive(Debug)]
pub struct Worker {
    index: u16,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    parked: bool,
    reported: bool,
    desk: Desk,
}

/// What stays the same while one packet is handled.
#[derive(Debug, Clone, Copy)]
struct Moment<'a> {
    tables: &'a Tables,
    flows: &'a FlowTable,
    now: Now,
}

/// What a worker owns alone.
#[derive(Debug)]
struct Desk {
    /// Its number, and its lane in every link's counters.
    index: u16,
    /// The generation of the tables in use.
    generation: Generation,
    cache: FlowCache,
    /// The flows of the last packet that was let out and the last one let in.
    runs: [Option<Run>; 2],
    /// Receiver index and source that were last found to be where the session's peer is.
    at_home: Option<(u32, SocketAddr)>,
    fragments: Fragments,
    records: Records,
    counters: Arc<Counters>,
    limit: RefusalLimit,
    refusal: Box<[u8; MAX_REFUSAL]>,
    /// No stray datagram is reported before this.
    next_stray: Duration,
}

impl Worker {
    /// Worker number `index` of those that `shared` was made for. It begins parked, on deny-all tables.
    #[must_use]
    pub fn new(index: u16, shared: Arc<Shared>) -> Self {
        Self {
            index,
            shared,
            tables: Arc::new(Tables::deny_all()),
            parked: true,
            reported: false,
            desk: Desk {
                index,
                generation: Generation::default(),
                cache: FlowCache::default(),
                runs: [None, None],
                at_home: None,
                fragments: Fragments::default(),
                records: Records::default(),
                counters: Arc::default(),
                limit: RefusalLimit::default(),
                refusal: Box::new([0; MAX_REFUSAL]),
                next_stray: Duration::ZERO,
            },
        }
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// The generation it judges by.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.tables.generation
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.desk.counters)
    }

    /// Takes up the newest tables, which says that everything judged by older ones has been written. Call it
    /// before the first packet after a wait, and again after each batch whose output has been written.
    pub fn begin_batch(&mut self, outbox: &mut Outbox) {
        if self.parked {
            self.parked = false;
            self.shared.unpark(self.index);
        }
        self.desk.runs = [None, None];
        self.desk.at_home = None;
        let before = self.tables.generation;
        {
            let newest = self.shared.cell().load();
            if !Arc::ptr_eq(&newest, &self.tables) {
                self.tables = Arc::clone(&newest);
            }
        }
        self.desk.generation = self.tables.generation;
        self.shared.report(self.index, self.tables.generation);
        if self.tables.generation != before || !self.reported {
            self.reported = true;
            outbox.push_event(WorkerEvent::Loaded(self.tables.generation));
        }
    }

    /// Says that all output has been written and that the worker holds no packet until its next
    /// [`Self::begin_batch`]. Call it before waiting for input.
    pub fn park(&mut self) {
        self.parked = true;
        self.shared.park(self.index);
    }

    /// The next record for the flow log. Ask about once a second, until there is none.
    pub fn poll_flow_record(&mut self) -> Option<FlowRecord> {
        let lost = self.desk.records.take_lost();
        if lost > 0 {
            self.desk.counters.count_lost_records(lost);
        }
        self.desk.records.poll()
    }

    /// A packet that a local program sent, from the TUN device.
    pub fn handle_outbound(&mut self, packet: &[u8], now: Now, outbox: &mut Outbox) {
        if !outbox.has_room() {
            return self.desk.counters.drop_one(Reason::Backpressure);
        }
        let (desk, moment) = self.parts(now);
        let outcome = desk.outbound(moment, packet, packet.len(), outbox);
        let sent = outcome.and_then(|way| {
            desk.send(way, way.cut(packet), now, outbox).map_err(|reason| Stopped { reason, link: Some(way.link) })
        });
        if let Err(stopped) = sent {
            desk.drop_many(&stopped, 1);
        }
    }

    /// A packet or super-packet that a local program sent. What it is the header of is judged once, for all of its
    /// segments.
    pub fn handle_segments(&mut self, mut split: Split<'_>, now: Now, outbox: &mut Outbox) {
        let (desk, moment) = self.parts(now);
        let outcome = if outbox.has_room() {
            desk.outbound(moment, split.whole(), split.longest(), outbox)
        } else {
            Err(Reason::Backpressure.into())
        };
        match outcome {
            Ok(way) => {
                let carrier = way.carrier();
                while let Some(segment) = split.next_segment() {
                    if let Err(reason) = desk.send_by(carrier.as_ref(), way, way.cut(segment), now, outbox) {
                        desk.drop_many(&Stopped { reason, link: Some(way.link) }, 1);
                    }
                }
            }
            Err(stopped) => desk.drop_many(&stopped, split.remaining()),
        }
    }

    /// A datagram from the UDP socket, or handed over by another worker, whose IP header carried no ECN bits.
    pub fn handle_datagram(&mut self, source: SocketAddr, datagram: &[u8], now: Now, outbox: &mut Outbox) {
        self.handle_marked(source, ecn::NOT_ECT, datagram, now, outbox);
    }

    /// A datagram from the UDP socket, or handed over by another worker, with the ECN bits of its IP header.
    pub fn handle_marked(&mut self, source: SocketAddr, ecn: u8, datagram: &[u8], now: Now, outbox: &mut Outbox) {
        if !outbox.has_room() {
            return self.desk.counters.drop_one(Reason::Backpressure);
        }
        if let Err(reason) = self.datagram((source, ecn), datagram, now, outbox) {
            self.desk.counters.drop_one(reason);
        }
    }

    /// An inner packet of a plain WireGuard peer, opened by its handshake tunnel.
    pub fn handle_plain(&mut self, plain: &PlainPacket, now: Now, outbox: &mut Outbox) {
        let PlainPacket { local, peer, ecn, ref packet } = *plain;
        if !outbox.has_room() {
            return self.desk.counters.drop_one(Reason::Backpressure);
        }
        let (desk, moment) = self.parts(now);
        let link = moment.tables.link(local, peer);
        let outcome = match moment.tables.peer(peer) {
            Some(peer) if peer.is_plain => {
                let judged = desk.judge(moment, local, peer.index, packet);
                let staged = outbox.stage(packet).and_then(|()| judged.mark(ecn, outbox));
                staged.and_then(|()| desk.settle(&judged, link, now, outbox))
            }
            Some(_) => Err(Reason::ProtectionMismatch),
            None => Err(Reason::PeerRevoked),
        };
        if let Err(reason) = outcome {
            desk.drop_many(&Stopped { reason, link }, 1);
        }
    }

    /// Tells both ends of a TCP connection that was cut.
    pub fn handle_cut(&mut self, cut: &CutFlow, now: Now, outbox: &mut Outbox) {
        if !outbox.has_room() {
            return self.desk.counters.drop_one(Reason::Backpressure);
        }
        let (desk, moment) = self.parts(now);
        desk.cut(moment, cut, outbox);
    }

    fn parts(&mut self, now: Now) -> (&mut Desk, Moment<'_>) {
        let Self { tables, shared, desk, .. } = self;
        (desk, Moment { tables, flows: shared.flows(), now })
    }

    fn datagram(
        &mut self,
        (source, ecn): (SocketAddr, u8),
        datagram: &[u8],
        now: Now,
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        let kind = *datagram.first().ok_or(Reason::DatagramTooShort)?;
        if let 1..=3 = kind {
            let length = HANDSHAKE_LENGTHS[usize::from(kind) - 1];
            if datagram.len() != length {
                let short = datagram.len() < length;
                return Err(if short { Reason::DatagramTooShort } else { Reason::DatagramTooLong });
            }
            // An answer to a handshake of ours names its tunnel. Anybody can make up an initiation, nobody can guess this: only
            // what is for a tunnel of ours waits beside what peers send.
            if kind > 1 {
                let receiver = word(datagram, if kind == 2 { 8 } else { 4 }).ok_or(Reason::DatagramTooShort)?;
                if !matches!(self.tables.sessions.receiver(receiver), Some(Receiver::Handshake)) {
                    return Err(Reason::UnknownReceiver);
                }
            }
            return outbox.push_datagram((source, ecn), datagram);
        }
        let (receiver, _) = transport_header(datagram)?;
        let (index, workers) = (self.index, self.shared.workers());
        let (desk, moment) = self.parts(now);
        match moment.tables.sessions.receiver(receiver) {
            None => {
                if now.monotonic >= desk.next_stray {
                    desk.next_stray = now.monotonic + STRAY_INTERVAL;
                    outbox.push_event(WorkerEvent::Stray(source));
                }
                Err(Reason::UnknownReceiver)
            }
            Some(Receiver::Handshake) => outbox.push_datagram((source, ecn), datagram),
            Some(Receiver::Data(session)) => match owner(receiver, workers) {
                owner if owner == index => {
                    let link = moment.tables.link(session.local(), session.peer());
                    let opened = desk.open(moment, session, link, (source, ecn), datagram, outbox);
                    if let (Err(reason), Some(link)) = (opened, link) {
                        link.counters().drop_many(reason, 1);
                    }
                    opened
                }
                owner => outbox.push_handover(owner, (source, ecn), datagram),
            },
        }
    }
}

/// The little-endian 32-bit field at `at`.
fn word(datagram: &[u8], at: usize) -> Option<u32> {
    datagram.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The worker that owns the replay window of the session under a receiver index.
fn owner(receiver: u32, workers: u16) -> u16 {
    u16::try_from(receiver % u32::from(workers.max(1))).unwrap_or(0)
}

impl Desk {
    fn admission<'a>(&'a mut self, moment: Moment<'a>) -> Admission<'a> {
        let Moment { tables, flows, now } = moment;
        Admission { tables, flows, cache: &mut self.cache, fragments: &mut self.fragments, now }
    }

    /// Out: attribute, route, judge. The longest of the packets that `packet` becomes has `longest` bytes.
    fn outbound<'t>(
        &mut self,
        moment: Moment<'t>,
        packet: &[u8],
        longest: usize,
        outbox: &mut Outbox,
    ) -> Result<Way<'t>, Stopped<'t>> {
        let Moment { tables, now, .. } = moment;
        if tables.policy.is_none() {
            return Err(Reason::NotReady.into());
        }
        let inner = Inner::parse(packet)?;
        if let Some(way) = self.follow_out(moment, &inner, longest) {
            way.note_large(longest, outbox);
            return Ok(way);
        }
        let attributed = attribution::attribute(tables, inner)?;
        let local = attributed.local();
        let routed = match attributed.route(tables, now) {
            Ok(routed) => routed,
            // The host's own multicast; no program waits for an answer.
            Err(no_way) if no_way.reason == Reason::NotUnicast => return Err(no_way.reason.into()),
            Err(no_way) => {
                let judgement = Judgement::refuse(no_way.reason);
                self.record(moment, (Side::Local, Some(local), no_way.peer), &inner, &judgement);
                self.refuse_local(&inner, Refusal::Prohibited, local, now, outbox);
                let link = no_way.peer.and_then(|peer| peer.link(local.index)).map(|link| &*link.link);
                return Err(Stopped { reason: no_way.reason, link });
            }
        };
        let (peer, link) = (routed.peer(), &routed.link().link);
        let mtu = link.mtu();
        if u32::try_from(longest.min(inner.bytes().len())).is_ok_and(|length| length > mtu) {
            self.refuse_local(&inner, Refusal::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX)), local, now, outbox);
            return Err(Stopped { reason: Reason::PacketTooBig, link: Some(link) });
        }
        let admission = &mut self.admission(moment);
        let judgement = admission.release(&routed);
        self.runs[OUT] = admission.begin_run(Side::Local, &inner, &judgement);
        self.note_judgement(moment, (Side::Local, Some(local), Some(peer)), &inner, &judgement);
        if let Err(reason) = judgement.verdict {
            if is_answered(reason) {
                self.refuse_local(&inner, Refusal::Prohibited, local, now, outbox);
            }
            return Err(Stopped { reason, link: Some(link) });
        }
        let length = inner.bytes().len();
        let way = Way { peer, link, length };
        way.note_large(longest, outbox);
        Ok(way)
    }

    /// The way of a packet that goes where the last one went.
    fn follow_out<'t>(&mut self, moment: Moment<'t>, inner: &Inner<'_>, longest: usize) -> Option<Way<'t>> {
        let run = self.runs[OUT].take()?;
        let peer = moment.tables.peer(run.peer())?;
        let link = &peer.link(run.local())?.link;
        let length = inner.bytes().len();
        if u32::try_from(longest.min(length)).is_ok_and(|length| length > link.mtu()) {
            return None;
        }
        self.admission(moment).follow(&run, inner)?;
        self.runs[OUT] = Some(run);
        Some(Way { peer, link, length })
    }

    /// In: open, then identify and admit.
    fn open(
        &mut self,
        moment: Moment<'_>,
        session: &Arc<DataSession>,
        link: Option<&Link>,
        (source, ecn): (SocketAddr, u8),
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        let now = moment.now;
        let opened = session.open(datagram, outbox.inner_spare(), now)?;
        let is_first = opened.is_first();
        let packet = opened.plaintext();
        let judged = (!packet.is_empty()).then(|| self.judge(moment, session.local(), session.peer(), packet));
        if is_first {
            outbox.push_event(WorkerEvent::Confirmed(Arc::clone(session)));
        }
        self.follow_endpoint(link, session, source, now, outbox);
        match judged {
            Some(judged) => {
                judged.mark(ecn, outbox)?;
                self.settle(&judged, link, now, outbox)
            }
            // A keepalive.
            None => Ok(()),
        }
    }

    /// Identifies and judges a packet that authenticated, and builds the answer to it where one is due.
    fn judge<'t>(&mut self, moment: Moment<'t>, local: LocalIndex, peer: PeerIndex, packet: &[u8]) -> Judged<'t> {
        let Moment { tables, now, .. } = moment;
        let refused = |reason| Judged { judgement: Judgement::refuse(reason), length: 0, answer: None };
        if tables.policy.is_none() {
            return refused(Reason::NotReady);
        }
        let inner = match Inner::parse(packet) {
            Ok(inner) => inner,
            Err(reason) => return refused(reason),
        };
        if let Some(run) = self.runs[IN].take_if(|run| run.peer() == peer && run.local() == local)
            && let Some(judgement) = self.admission(moment).follow(&run, &inner)
        {
            self.runs[IN] = Some(run);
            return Judged { judgement, length: inner.bytes().len(), answer: None };
        }
        let identified = match attribution::identify(tables, peer, local, inner, now) {
            Ok(identified) => identified,
            // Silence: who speaks as somebody else learns nothing.
            Err(reason) => {
                let (local, peer) = (tables.local(local), tables.peer(peer).map(AsRef::as_ref));
                self.record(moment, (Side::Peer, local, peer), &inner, &Judgement::refuse(reason));
                return refused(reason);
            }
        };
        let admission = &mut self.admission(moment);
        let judgement = admission.admit(&identified);
        self.runs[IN] = admission.begin_run(Side::Peer, &inner, &judgement);
        let (local, peer) = (tables.local(local), tables.peer(peer).map(AsRef::as_ref));
        let mut answer = None;
        if let (Some(local), Some(peer)) = (local, peer) {
            self.note_judgement(moment, (Side::Peer, Some(local), Some(peer)), &inner, &judgement);
            if judgement.verdict.is_err_and(is_answered)
                && let Some(link) = peer.link(local.index)
                && self.limit.take(peer.index.0, now.monotonic)
            {
                let length = refusals::build(&inner, Refusal::Prohibited, &mut self.refusal);
                answer = length.map(|length| (length, peer, link));
            }
        }
        Judged { judgement, length: inner.bytes().len(), answer }
    }

    /// Delivers what passed; answers what did not.
    fn settle(
        &mut self,
        judged: &Judged<'_>,
        link: Option<&Link>,
        now: Now,
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        if let Some((length, peer, link)) = judged.answer {
            self.answer_peer(peer, &link.link, length, now, outbox);
        }
        judged.judgement.verdict?;
        outbox.deliver(&judged.judgement, judged.length)?;
        self.counters.count_in(judged.length);
        if let Some(link) = link {
            link.counters().count_in(self.index, judged.length);
        }
        Ok(())
    }

    /// Seals a judged packet, or leaves it to the slow half where there is no session to seal it with.
    fn send(&mut self, way: Way<'_>, packet: &[u8], now: Now, outbox: &mut Outbox) -> Result<(), Reason> {
        self.send_by(way.carrier().as_ref(), way, packet, now, outbox)
    }

    fn send_by(
        &mut self,
        carrier: Option<&Carrier>,
        way: Way<'_>,
        packet: &[u8],
        now: Now,
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        if let Some(carrier) = carrier
            && self.seal(carrier, way, packet, now, outbox)?
        {
            return Ok(());
        }
        let under_way = UnderWay::begin(way.link, self.generation).ok_or(Reason::QueueFull)?;
        // Counted, the packet keeps other sessions from workers. One that came before the count has nothing before it.
        if let Some(newer) = way.carrier()
            && !carrier.is_some_and(|tried| tried.is_same(&newer))
        {
            drop(under_way);
            return self.send_by(Some(&newer), way, packet, now, outbox);
        }
        outbox.push_unsent(under_way, packet)?;
        self.count_out(way.link, packet.len());
        Ok(())
    }

    /// Seals a packet; false when the session is over, and the slow half has to begin the next one and send this packet
    /// through it.
    fn seal(
        &self,
        carrier: &Carrier,
        way: Way<'_>,
        packet: &[u8],
        now: Now,
        outbox: &mut Outbox,
    ) -> Result<bool, Reason> {
        let Carrier { session, endpoint, mtu } = carrier;
        let Some(session) = session.as_ref() else { return Ok(false) };
        let spare = outbox.wire_spare();
        if spare.len() < sealed_length(packet.len()) {
            return Err(Reason::Backpressure);
        }
        match session.seal(packet, *mtu, spare, now) {
            Ok(length) => {
                outbox.transmit(*endpoint, ecn::of(packet), length);
                self.count_out(way.link, packet.len());
                if session.take_rekey_request(now) {
                    outbox.push_event(WorkerEvent::RekeyDue(Arc::clone(session)));
                }
                Ok(true)
            }
            Err(Reason::SessionExpired | Reason::CertificateExpired) => Ok(false),
            Err(reason) => Err(reason),
        }
    }

    fn count_out(&self, link: &Link, bytes: usize) {
        self.counters.count_out(bytes);
        link.counters().count_out(self.index, bytes);
    }

    fn drop_many(&self, stopped: &Stopped<'_>, count: usize) {
        (0..count).for_each(|_| self.counters.drop_one(stopped.reason));
        if let Some(link) = stopped.link {
            link.counters().drop_many(stopped.reason, count as u64);
        }
    }

    /// An authenticated datagram shows where the peer is now; the slow half decides whether to follow.
    fn follow_endpoint(
        &mut self,
        link: Option<&Link>,
        session: &Arc<DataSession>,
        source: SocketAddr,
        now: Now,
        outbox: &mut Outbox,
    ) {
        let arrival = (session.local_index(), source);
        if self.at_home == Some(arrival) {
            return;
        }
        let Some(link) = link else { return };
        if link.endpoint() == Some(source) {
            self.at_home = Some(arrival);
            return;
        }
        if link.take_move(MOVE_INTERVAL, now) {
            outbox.push_event(WorkerEvent::Moved(Arc::clone(session), source));
        }
    }

    /// Tells a local program that its packet was refused.
    fn refuse_local(&mut self, inner: &Inner<'_>, refusal: Refusal, local: &Local, now: Now, outbox: &mut Outbox) {
        // Local programs and peers share the buckets; counted from the other end they seldom meet.
        if self.limit.take(!local.index.0, now.monotonic)
            && let Some(length) = refusals::build(inner, refusal, &mut self.refusal)
        {
            self.counters.count_refusal();
            outbox.deliver_own(&self.refusal[..length]);
        }
    }

    /// Sends the answer in [`Self::refusal`] to a peer. It begins no session of its own.
    fn answer_peer(&mut self, peer: &Peer, link: &Arc<Link>, length: usize, now: Now, outbox: &mut Outbox) {
        if !peer.is_plain && link.egress().is_none() {
            return;
        }
        let answer = *self.refusal;
        if self.send(Way { peer, link, length }, &answer[..length], now, outbox).is_ok() {
            self.counters.count_refusal();
        }
    }

    /// Records what the flow log has to hear of: flows opened, flows given up, refusals.
    fn note_judgement(&mut self, moment: Moment<'_>, ends: Ends<'_>, inner: &Inner<'_>, judgement: &Judgement) {
        if judgement.evicted {
            self.counters.drop_one(Reason::EvictedFlow);
        }
        if judgement.opened || judgement.verdict.is_err() {
            self.record(moment, ends, inner, judgement);
        }
    }

    fn record(&mut self, moment: Moment<'_>, ends: Ends<'_>, inner: &Inner<'_>, judgement: &Judgement) {
        let (source, destination) = records::endpoints(inner);
        let (sender, local, peer) = ends;
        let Judgement { verdict, audit, rule, .. } = *judgement;
        let protocol = inner.protocol;
        let seen = Observation { sender, local, peer, source, destination, protocol, verdict, audit, rule };
        self.records.observe(&seen, moment.tables.policy.as_deref(), moment.now.unix);
    }
}

/// Who sent a packet, and the two ends as far as they are known.
type Ends<'a> = (Side, Option<&'a Local>, Option<&'a Peer>);

/// The refusals that their sender is told of. The others are attacks, defects or overload, and get silence.
const fn is_answered(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoRule
            | Reason::DeniedByRule
            | Reason::RequireFailed
            | Reason::NoService
            | Reason::NotAReply
            | Reason::PolicyChanged
            | Reason::NotEnforceable
            | Reason::NoGrant
    )
}

#[cfg(test)]
mod tests;
