//! Flow records: one for every new flow that was let pass and for every refusal, gathered so that a flood
//! becomes a count and not a flood of records.

use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use warren_proto::policy::{CompiledPolicy, Nearest, RuleIndex, RuleRef, Transport as PolicyTransport};
use warren_proto::{Reason, SpiffeId, UnixTime};

use crate::flows::Side;
use crate::packet::{Icmp, Inner, Transport};
use crate::tables::{Local, Peer};

/// Records held until the shell takes them; further kinds of refusals are counted as lost.
pub const MAX_RECORDS: usize = 1024;

/// One entry of the flow log.
#[derive(Debug, Clone)]
pub struct FlowRecord {
    /// When the first of them happened.
    pub time: UnixTime,
    /// Which side sent the packet that was judged: [`Side::Peer`] for traffic coming in.
    pub sender: Side,
    /// Who sent it, where that is proven.
    pub source: Option<SpiffeId>,
    /// Who it was for, where that is known.
    pub destination: Option<SpiffeId>,
    /// The first one's source; port 0 where there is none.
    pub source_address: SocketAddr,
    /// The destination; port 0 where there is none.
    pub destination_address: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Let pass, or refused for this reason.
    pub verdict: Result<(), Reason>,
    /// Let pass by audit mode alone: without it the reason would have been `no-rule`.
    pub audit: bool,
    /// The rule that decided; none where no rule did (`no-rule`).
    pub rule: Option<RuleRef>,
    /// For a peer's packet that no rule decided: the allow that came nearest.
    pub nearest: Option<Nearest>,
    /// Where to look: at the rule that decided, else at the nearest one, else at the destination's document.
    pub place: Option<Place>,
    /// How many alike, the first included.
    pub count: u64,
}

/// A line of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file it was written in.
    pub file: String,
    /// Its line there, from 1.
    pub line: u32,
}

/// Alike are records that differ in time and source port only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    sender: Side,
    source: IpAddr,
    destination: SocketAddr,
    protocol: u8,
    verdict: Result<(), Reason>,
    audit: bool,
    rule: Option<RuleIndex>,
}

/// What a record is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation<'a> {
    pub(crate) sender: Side,
    pub(crate) local: Option<&'a Local>,
    pub(crate) peer: Option<&'a Peer>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) verdict: Result<(), Reason>,
    pub(crate) audit: bool,
    pub(crate) rule: Option<RuleIndex>,
}

/// The records of one worker.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pending: Vec<(Kind, FlowRecord)>,
    places: HashMap<Kind, usize, RandomState>,
    lost: u64,
}

impl Records {
    pub(crate) fn observe(&mut self, seen: &Observation<'_>, policy: Option<&CompiledPolicy>, time: UnixTime) {
        let Observation { sender, protocol, verdict, audit, rule, .. } = *seen;
        let kind =
            Kind { sender, source: seen.source.ip(), destination: seen.destination, protocol, verdict, audit, rule };
        if let Some((_, record)) = self.places.get(&kind).and_then(|place| self.pending.get_mut(*place)) {
            record.count += 1;
            return;
        }
        if self.pending.len() >= MAX_RECORDS {
            self.lost += 1;
            return;
        }
        let (local, peer) =
            (seen.local.map(|local| local.identity.clone()), seen.peer.map(|peer| peer.identity.clone()));
        let (source, destination) = match sender {
            Side::Local => (local, peer),
            Side::Peer => (peer, local),
        };
        let rule = rule.zip(policy).and_then(|(rule, policy)| policy.explain(rule).cloned());
        let nearest = match rule {
            None => policy.and_then(|policy| nearest(policy, seen, time)),
            Some(_) => None,
        };
        let place = match rule.as_ref().or(nearest.as_ref().map(|nearest| &nearest.rule)) {
            Some(rule) => Some(Place { file: rule.file.clone(), line: rule.line }),
            None if matches!(verdict, Err(Reason::NoRule | Reason::NoService)) => {
                policy.zip(destination.as_ref()).and_then(|(policy, destination)| declaration(policy, destination))
            }
            None => None,
        };
        self.places.insert(kind, self.pending.len());
        self.pending.push((
            kind,
            FlowRecord {
                time,
                sender,
                source,
                destination,
                source_address: seen.source,
                destination_address: seen.destination,
                protocol,
                verdict,
                audit,
                rule,
                nearest,
                place,
                count: 1,
            },
        ));
    }

    pub(crate) fn poll(&mut self) -> Option<FlowRecord> {
        let (kind, record) = self.pending.pop()?;
        self.places.remove(&kind);
        Some(record)
    }

    /// Observations that found no place, since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

/// Asks the evaluator, which explains what the packet's table only decides. Once per record, not per packet.
fn nearest(policy: &CompiledPolicy, seen: &Observation<'_>, now: UnixTime) -> Option<Nearest> {
    if seen.sender == Side::Local || seen.verdict != Err(Reason::NoRule) {
        return None;
    }
    let (local, peer) = (seen.local?.identity.workload()?, seen.peer?.identity.workload()?);
    let decision = match PolicyTransport::from_ip_protocol(seen.protocol) {
        Some(transport) => policy.evaluate(peer, local, transport, seen.destination.port(), now),
        None => policy.evaluate_echo(peer, local, now),
    };
    decision.nearest
}

fn declaration(policy: &CompiledPolicy, destination: &SpiffeId) -> Option<Place> {
    let service = policy.service(destination.workload()?)?;
    Some(Place { file: service.file().to_owned(), line: service.line() })
}

/// The addresses of a packet with the ports that its transport header shows, else 0.
pub(crate) fn endpoints(inner: &Inner<'_>) -> (SocketAddr, SocketAddr) {
    let (source, destination) = match inner.transport() {
        Ok(Transport::Tcp(tcp)) => (tcp.source, tcp.destination),
        Ok(Transport::Udp(udp)) => (udp.source, udp.destination),
        Ok(Transport::Icmp(Icmp::Request { .. } | Icmp::Reply { .. } | Icmp::Error { .. } | Icmp::Other)) | Err(_) => {
            (0, 0)
        }
    };
    (SocketAddr::new(inner.source, source), SocketAddr::new(inner.destination, destination))
}
