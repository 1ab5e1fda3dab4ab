//! Admission: may this packet pass? The flow it belongs to answers, else policy.
//!
//! Into the host: the flow table at the current generation, else the local service's compiled table decides by
//! (source identity, protocol, port), whatever the TCP flags, so that connections to an allowed service survive
//! a restart of the node. Out of the host: a local program may open flows to peers that some rule lets it call,
//! and answer flows that peers were let open. Only this module makes an [`Admitted`].

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use warren_proto::Reason;
use warren_proto::policy::{PortTable, PortVerdict, RuleIndex, SourceIndex, Transport as PolicyTransport};

use crate::Now;
use crate::attribution::{Identified, Routed};
use crate::flows::{Flow, FlowCache, FlowKey, FlowTable, Side};
use crate::fragments::Fragments;
use crate::packet::{FIN, Fragment, Icmp, Inner, Quoted, RST, SYN, TCP, Tcp, Transport, UDP};
use crate::tables::{Generation, Ingress, Local, LocalIndex, Peer, PeerIndex, PeerLink, Tables};

/// A packet that may enter the host: judged, or made by this node itself. The TUN writer takes nothing else,
/// and only this module makes one.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    packet: &'a [u8],
}

impl<'a> Admitted<'a> {
    /// No packet at all.
    pub(crate) const NOTHING: Self = Self { packet: &[] };

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
    /// For a packet whose judgement let it pass.
    pub(crate) fn judged(judgement: &Judgement, range: Range<usize>) -> Option<Self> {
        judgement.verdict.is_ok().then_some(Self { range })
    }

    /// For a refusal that this node made for a local program.
    pub(crate) const fn own_refusal(range: Range<usize>) -> Self {
        Self { range }
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub(crate) const fn show<'a>(&self, packet: &'a [u8]) -> Admitted<'a> {
        Admitted { packet }
    }
}

/// What was decided of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) verdict: Result<(), Reason>,
    /// The rule that decided, where one did.
    pub(crate) rule: Option<RuleIndex>,
    pub(crate) audit: bool,
    /// The packet opened a flow.
    pub(crate) opened: bool,
    /// An idle flow was given up for it.
    pub(crate) evicted: bool,
}

impl Judgement {
    const PASS: Self = Self { verdict: Ok(()), rule: None, audit: false, opened: false, evicted: false };

    pub(crate) const fn refuse(reason: Reason) -> Self {
        Self { verdict: Err(reason), ..Self::PASS }
    }

    fn by_policy(verdict: PortVerdict) -> Self {
        let outcome = if verdict.allow { Ok(()) } else { Err(verdict.reason.unwrap_or(Reason::NoRule)) };
        Self { verdict: outcome, rule: verdict.rule, audit: verdict.audit, ..Self::PASS }
    }

    /// The same refusal under another name; a pass stays a pass.
    fn renamed(self, reason: Reason) -> Self {
        Self { verdict: self.verdict.map_err(|_| reason), ..self }
    }

    const fn passes(&self) -> bool {
        self.verdict.is_ok()
    }
}

/// What packets that follow one another on one flow have in common. The one that began the run was attributed,
/// routed or identified, and let pass; whatever shows the same addresses, ports and peer at the same moment, by the
/// same tables, comes out the same, and the flow's own verdict is asked for every packet all the same.
#[derive(Debug)]
pub(crate) struct Run {
    sender: Side,
    local: LocalIndex,
    peer: PeerIndex,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    key: FlowKey,
    /// In the worker's flow cache.
    place: usize,
    generation: Generation,
    now: Now,
}

impl Run {
    /// The local instance at its end.
    pub(crate) const fn local(&self) -> LocalIndex {
        self.local
    }

    /// The peer at the other end.
    pub(crate) const fn peer(&self) -> PeerIndex {
        self.peer
    }
}

/// The ports of a packet that neither opens nor ends anything; such packets make up a run.
fn ports_in_passing(inner: &Inner<'_>) -> Option<((u16, u16), Option<Tcp>)> {
    if inner.fragment != Fragment::Whole {
        return None;
    }
    match inner.transport().ok()? {
        Transport::Tcp(tcp) if tcp.flags & (SYN | FIN | RST) == 0 => Some(((tcp.source, tcp.destination), Some(tcp))),
        Transport::Udp(udp) => Some(((udp.source, udp.destination), None)),
        Transport::Tcp(_) | Transport::Icmp(_) => None,
    }
}

/// Everything a judgement looks at.
pub(crate) struct Admission<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) flows: &'a FlowTable,
    pub(crate) cache: &'a mut FlowCache,
    pub(crate) fragments: &'a mut Fragments,
    pub(crate) now: Now,
}

/// The flow that a packet belongs to, and what it does to it.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    key: FlowKey,
    sender: Side,
    local: &'a Local,
    peer: &'a Peer,
    tcp: Option<Tcp>,
}

impl Step<'_> {
    /// Whether it asks for a new TCP connection.
    fn opens_tcp(&self) -> bool {
        self.tcp.is_some_and(|tcp| tcp.opens())
    }
}

impl Admission<'_> {
    /// The run that a packet begins which was judged right before this call.
    pub(crate) fn begin_run(&self, sender: Side, inner: &Inner<'_>, judgement: &Judgement) -> Option<Run> {
        let ((source, destination), _) = ports_in_passing(inner).filter(|_| judgement.passes())?;
        let (place, flow) = self.cache.last()?;
        let key = *flow.key();
        let ends = [SocketAddr::new(inner.source, source), SocketAddr::new(inner.destination, destination)];
        let is_its_flow = key.protocol() == inner.protocol
            && match sender {
                Side::Local => ends == [key.local(), key.remote()],
                Side::Peer => ends == [key.remote(), key.local()],
            };
        is_its_flow.then(|| Run {
            sender,
            local: flow.local(),
            peer: key.peer(),
            source: inner.source,
            destination: inner.destination,
            protocol: inner.protocol,
            ports: (source, destination),
            key,
            place,
            generation: self.tables.generation,
            now: self.now,
        })
    }

    /// Judges a packet that continues `run`. None: it does not, or its flow has to be judged again.
    pub(crate) fn follow(&mut self, run: &Run, inner: &Inner<'_>) -> Option<Judgement> {
        let is_of_the_moment = run.now == self.now && run.generation == self.tables.generation;
        let is_alike =
            inner.source == run.source && inner.destination == run.destination && inner.protocol == run.protocol;
        if !is_of_the_moment || !is_alike {
            return None;
        }
        let (_, tcp) = ports_in_passing(inner).filter(|(ports, _)| *ports == run.ports)?;
        let flow = self.cache.at(run.place).filter(|flow| *flow.key() == run.key)?;
        if !flow.passes_at(run.generation, self.now.monotonic) {
            return None;
        }
        flow.note(run.sender, tcp.as_ref(), self.now.monotonic);
        Some(Judgement::PASS)
    }

    /// Judges a peer's packet for the host.
    pub(crate) fn admit(&mut self, packet: &Identified<'_>) -> Judgement {
        let (inner, local, peer) = (packet.inner(), packet.local(), packet.peer());
        self.whole_datagram(inner, peer, |admission, transport| {
            let step = |key, tcp| Step { key, sender: Side::Peer, local, peer, tcp };
            let key = |from: u16, to: u16| {
                let (local, remote) = (SocketAddr::new(inner.destination, to), SocketAddr::new(inner.source, from));
                FlowKey::new(peer.index, inner.protocol, local, remote)
            };
            let echo = |id, opened_by| {
                FlowKey::echo(peer.index, inner.protocol, inner.destination, inner.source, id, opened_by)
            };
            match transport {
                Transport::Tcp(tcp) => admission.incoming(&step(key(tcp.source, tcp.destination), Some(tcp))),
                Transport::Udp(udp) => admission.incoming(&step(key(udp.source, udp.destination), None)),
                Transport::Icmp(Icmp::Request { id }) => admission.incoming(&step(echo(id, Side::Peer), None)),
                Transport::Icmp(Icmp::Reply { id }) => admission.reply(&step(echo(id, Side::Local), None)),
                Transport::Icmp(Icmp::Error { quoted }) => admission.error(inner, Side::Peer, peer, quoted),
                Transport::Icmp(Icmp::Other) => Judgement::refuse(Reason::IcmpForbidden),
            }
        })
    }

    /// Judges a local program's packet for a peer.
    pub(crate) fn release(&mut self, packet: &Routed<'_, '_>) -> Judgement {
        let (inner, local, peer) = (packet.inner(), packet.local(), packet.peer());
        let link = packet.link();
        self.whole_datagram(inner, peer, |admission, transport| {
            let step = |key, tcp| Step { key, sender: Side::Local, local, peer, tcp };
            let key = |from: u16, to: u16| {
                let (local, remote) = (SocketAddr::new(inner.source, from), SocketAddr::new(inner.destination, to));
                FlowKey::new(peer.index, inner.protocol, local, remote)
            };
            let echo = |id, opened_by| {
                FlowKey::echo(peer.index, inner.protocol, inner.source, inner.destination, id, opened_by)
            };
            match transport {
                Transport::Tcp(tcp) => admission.outgoing(&step(key(tcp.source, tcp.destination), Some(tcp)), link),
                Transport::Udp(udp) => admission.outgoing(&step(key(udp.source, udp.destination), None), link),
                Transport::Icmp(Icmp::Request { id }) => admission.outgoing(&step(echo(id, Side::Local), None), link),
                Transport::Icmp(Icmp::Reply { id }) => admission.reply(&step(echo(id, Side::Peer), None)),
                Transport::Icmp(Icmp::Error { quoted }) => admission.error(inner, Side::Local, peer, quoted),
                Transport::Icmp(Icmp::Other) => Judgement::refuse(Reason::IcmpForbidden),
            }
        })
    }

    /// Judges whole packets and first fragments by their transport header, later fragments by their first.
    fn whole_datagram(
        &mut self,
        inner: &Inner<'_>,
        peer: &Peer,
        judge: impl FnOnce(&mut Self, Transport<'_>) -> Judgement,
    ) -> Judgement {
        let (generation, now) = (self.tables.generation, self.now.monotonic);
        if let Fragment::Later { .. } = inner.fragment {
            let verdict = self.fragments.follow(inner, peer.index, generation, now);
            return Judgement { verdict, ..Judgement::PASS };
        }
        let transport = match inner.transport() {
            Ok(transport) => transport,
            Err(reason) => return Judgement::refuse(reason),
        };
        // Nothing needs an ICMP error in parts, and its quotation could not be checked.
        if inner.fragment != Fragment::Whole && matches!(transport, Transport::Icmp(Icmp::Error { .. })) {
            return Judgement::refuse(Reason::IcmpForbidden);
        }
        let judgement = judge(self, transport);
        if judgement.passes()
            && let Err(reason) = self.fragments.begin(inner, peer.index, generation, now)
        {
            return Judgement::refuse(reason);
        }
        judgement
    }

    /// A packet of the peer's that may open a flow.
    fn incoming(&mut self, step: &Step<'_>) -> Judgement {
        if let Some(flow) = self.cache.find(self.flows, &step.key, self.now.monotonic) {
            // A flow that this node opened lets replies in, not a connection the other way.
            let reply = flow.opened_by() == Side::Peer || !step.opens_tcp();
            if reply {
                let judgement = standing(self.tables, flow, self.now);
                return note(flow, step, judgement, self.now);
            }
        }
        let judgement = decide(self.tables, step.local, step.peer, &step.key, self.now);
        if judgement.passes() {
            return self.open(step, Side::Peer, judgement);
        }
        let claims_a_connection = step.tcp.is_some() && !step.opens_tcp();
        if claims_a_connection { judgement.renamed(Reason::NotAReply) } else { judgement }
    }

    /// A packet of a local program that may open a flow.
    fn outgoing(&mut self, step: &Step<'_>, link: &PeerLink) -> Judgement {
        let may_call = link.may_call;
        if let Some(flow) = self.cache.find(self.flows, &step.key, self.now.monotonic) {
            let judgement = standing(self.tables, flow, self.now);
            if judgement.passes() || flow.opened_by() == Side::Local || !(step.opens_tcp() && may_call) {
                return note(flow, step, judgement, self.now);
            }
            // The peer's flow was cut; the local program now opens one over the same ports.
            self.flows.remove(&step.key);
            return self.call(step, link);
        }
        // What the peer may open, the local side may answer: flows that this node no longer remembers. A packet
        // that could be either counts as an answer, and so ends when the peer's right ends.
        let opens = step.opens_tcp() || step.key.protocol() != TCP;
        let answers = !step.opens_tcp() && is_port_protocol(step.key.protocol());
        if answers && decide(self.tables, step.local, step.peer, &step.key, self.now).passes() {
            return self.open(step, Side::Peer, Judgement::PASS);
        }
        match (opens, may_call) {
            (true, true) => self.call(step, link),
            (true, false) => Judgement::refuse(Reason::NoGrant),
            (false, _) => Judgement::refuse(Reason::NotAReply),
        }
    }

    /// A flow that a local program opens to a peer that it may call.
    fn call(&mut self, step: &Step<'_>, link: &PeerLink) -> Judgement {
        let judgement = let_out(self.tables, link, &step.key, self.now);
        if judgement.passes() { self.open(step, Side::Local, judgement) } else { judgement }
    }

    /// An echo reply: its request's flow must be there.
    fn reply(&mut self, step: &Step<'_>) -> Judgement {
        match self.cache.find(self.flows, &step.key, self.now.monotonic) {
            Some(flow) => {
                let judgement = standing(self.tables, flow, self.now);
                note(flow, step, judgement, self.now)
            }
            None => Judgement::refuse(Reason::NotAReply),
        }
    }

    /// An ICMP error: it must quote a packet that its receiver sent on a live flow between the two.
    fn error(&mut self, inner: &Inner<'_>, sender: Side, peer: &Peer, quoted: &[u8]) -> Judgement {
        let unsolicited = Judgement::refuse(Reason::IcmpUnsolicited);
        let Some(quoted) = Quoted::parse(quoted) else { return unsolicited };
        if quoted.source != inner.destination || quoted.destination != inner.source {
            return unsolicited;
        }
        // The quoted packet went from the error's receiver to the error's sender.
        let (local, remote, local_port, remote_port) = match sender {
            Side::Peer => (quoted.source, quoted.destination, quoted.ports.0, quoted.ports.1),
            Side::Local => (quoted.destination, quoted.source, quoted.ports.1, quoted.ports.0),
        };
        let key = if is_port_protocol(quoted.protocol) {
            let (local, remote) = (SocketAddr::new(local, local_port), SocketAddr::new(remote, remote_port));
            FlowKey::new(peer.index, quoted.protocol, local, remote)
        } else {
            let quoted_by_local = sender == Side::Peer;
            let opened_by = if quoted.is_request == quoted_by_local { Side::Local } else { Side::Peer };
            FlowKey::echo(peer.index, quoted.protocol, local, remote, local_port, opened_by)
        };
        match self.cache.find(self.flows, &key, self.now.monotonic) {
            Some(flow) if standing(self.tables, flow, self.now).passes() => Judgement::PASS,
            Some(_) | None => unsolicited,
        }
    }

    /// Records a flow that may pass.
    fn open(&mut self, step: &Step<'_>, opened_by: Side, judgement: Judgement) -> Judgement {
        let (generation, now) = (self.tables.generation, self.now.monotonic);
        match self.flows.insert(step.key, step.local.index, opened_by, generation, now) {
            Ok(inserted) => {
                let evicted = inserted.evicted;
                inserted.flow.note(step.sender, step.tcp.as_ref(), now);
                self.cache.put(self.flows, inserted.flow);
                Judgement { opened: inserted.is_new, evicted, ..judgement }
            }
            Err(reason) => Judgement::refuse(reason),
        }
    }
}

const fn is_port_protocol(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP)
}

/// The verdict on a known flow: the recorded one while it counts, else a fresh one.
fn standing(tables: &Tables, flow: &Flow, now: Now) -> Judgement {
    if flow.passes_at(tables.generation, now.monotonic) {
        return Judgement::PASS;
    }
    let judgement = judge(tables, flow, now);
    flow.set_verdict(tables.generation, judgement.passes(), now.monotonic);
    judgement
}

fn note(flow: &Flow, step: &Step<'_>, judgement: Judgement, now: Now) -> Judgement {
    if judgement.passes() {
        flow.note(step.sender, step.tcp.as_ref(), now.monotonic);
        return judgement;
    }
    // A packet that would open the flow anew is told what policy says of it; any other, that this has changed.
    if step.opens_tcp() { judgement } else { judgement.renamed(Reason::PolicyChanged) }
}

/// Judges a known flow as if it were new.
pub(crate) fn judge(tables: &Tables, flow: &Flow, now: Now) -> Judgement {
    judge_anew(tables, flow.key(), flow.local(), flow.opened_by(), now)
}

/// What the tables say of a flow between these two ends that `opened_by` opens.
pub(crate) fn judge_anew(tables: &Tables, key: &FlowKey, local: LocalIndex, opened_by: Side, now: Now) -> Judgement {
    let peer = match live_peer(tables, key.peer(), now) {
        Ok(peer) => peer,
        Err(reason) => return Judgement::refuse(reason),
    };
    let Some(local) = local_of(tables, local, key.local().ip()) else {
        return Judgement::refuse(Reason::DestinationNotLocal);
    };
    if tables.routes.longest_match(key.remote().ip()) != Some(&peer.index) {
        return Judgement::refuse(Reason::SourceNotPeers);
    }
    match opened_by {
        Side::Peer => decide(tables, local, peer, key, now),
        Side::Local => match peer.link(local.index) {
            Some(link) if link.may_call => let_out(tables, link, key, now),
            _ => Judgement::refuse(Reason::NoGrant),
        },
    }
}

fn live_peer(tables: &Tables, peer: PeerIndex, now: Now) -> Result<&Peer, Reason> {
    let peer = tables.peer(peer).ok_or(Reason::PeerRevoked)?;
    if now.unix >= peer.valid_until { Err(Reason::CertificateExpired) } else { Ok(peer) }
}

fn local_of(tables: &Tables, index: LocalIndex, address: IpAddr) -> Option<&Local> {
    tables.local_at(address).filter(|local| local.index == index)
}

/// What policy says of a flow that the peer opens.
fn decide(tables: &Tables, local: &Local, peer: &Peer, key: &FlowKey, now: Now) -> Judgement {
    by_table(tables, &local.ports, peer.source, (key.protocol(), key.local().port()), now)
}

/// What is said here of a flow that a local program opens to a peer that it may call. The peer's own node judges it; of a
/// device without one, this node does.
fn let_out(tables: &Tables, link: &PeerLink, key: &FlowKey, now: Now) -> Judgement {
    match &link.ingress {
        Some(Ingress { caller, ports }) => by_table(tables, ports, *caller, (key.protocol(), key.remote().port()), now),
        None => Judgement::PASS,
    }
}

fn by_table(
    tables: &Tables,
    ports: &PortTable,
    caller: SourceIndex,
    (protocol, port): (u8, u16),
    now: Now,
) -> Judgement {
    if tables.policy.is_none() {
        return Judgement::refuse(Reason::NotReady);
    }
    Judgement::by_policy(match PolicyTransport::from_ip_protocol(protocol) {
        Some(transport) => ports.decide(caller, transport, port, now.unix),
        None => ports.decide_echo(caller, now.unix),
    })
}
