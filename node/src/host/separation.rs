//! The separation of several instances on one host: one nftables table by which a program uses its own instance's addresses
//! and no other, hears what is sent to its own and nothing else, and talks to another instance of this host where policy says so.
//!
//! What leaves with an instance's source passes `from-N`, what arrives for it `to-N`, and what arrives from this very host
//! `near-N`. A program is known by its socket: on its way out a packet carries the socket, on its way in the kernel looks up the
//! one that would take it (`socket cgroupv2`). A connection that is half open or in TIME_WAIT is less than a socket: it came to
//! be by a packet that was judged, so its other packets pass, but no new connection does.

use std::net::IpAddr;

use warren_proto::overlay::OverlayAddresses;

use super::cgroups::{Level, Place};
use super::nftables::{
    Chain, FAMILY_V4, FAMILY_V6, Header, Ids, LOOPBACK, Meta, Operation, PRIORITY_AFTER_NAT, Set, Step, Table, Verdict,
};
use super::{Allows, LocalOpening, programs};

/// The table's name in `nft list tables`; family `inet`.
pub const SEPARATION_TABLE: &str = "warren_instances";

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
// Flags of the TCP header (RFC 9293, section 3.1).
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Hooks of netfilter.
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;

/// How long an instance waits for an answer over UDP, in milliseconds: what RFC 4787, REQ-5, asks of a translation of addresses.
const ANSWER_WITHIN: u64 = 120_000;
/// The most that one instance can wait for, of each family: some 1000 new questions each second. One that asks more harms itself.
const MOST_ASKED: u32 = 1 << 17;
/// What the offset of a fragment takes of its field (RFC 8200, section 4.5).
const FRAGMENT_OFFSET: u16 = 0xfff8;

const REFUSED: &str = "refused";
const CLOSED: &str = "closed";

/// What a packet's socket must be for one tie to hold at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) user: Option<u32>,
    pub(super) place: Option<Place>,
}

/// Whose an instance's addresses are at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// Whoever fits none of the others' conditions, and is in a cgroup that was looked at.
    Rest,
    /// Whoever fits one of these; with none nobody.
    Any(Vec<Condition>),
}

/// One instance, as the table is made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    pub(super) addresses: OverlayAddresses,
    pub(super) owner: Owner,
}

type Rule = Vec<Step>;

/// The table for these instances. `known` are the cgroups that were looked at, from depth 1 on; none where nobody is told by them.
/// A program looks at each socket that receives for an instance whose owner takes a look at the user
/// ([`super::programs::judge_receivers`]).
pub(super) fn table(parties: &[Party], openings: &[LocalOpening], known: &[Level]) -> Table {
    let mut chains = vec![
        // A program is told at once: its connection is refused, its datagram not permitted.
        Chain::new(REFUSED, None, vec![rule([protocol(TCP), vec![Step::Reset]]), vec![decide(Verdict::Drop)]]),
        // As if nobody listened.
        Chain::new(CLOSED, None, vec![rule([protocol(TCP), vec![Step::Reset]]), vec![Step::Closed]]),
    ];
    for (number, party) in parties.iter().enumerate() {
        chains.push(Chain::new(from(number), None, leaving(number, party, parties, known)));
        chains.push(Chain::new(near(number), None, coming_near(number, party, parties, openings)));
        chains.push(Chain::new(to(number), None, arriving(number, party, parties, known)));
        if party.owner == Owner::Rest && !known.is_empty() {
            chains.push(Chain::new(stranger(number), None, strangers(REFUSED)));
            chains.push(Chain::new(unheard(number), None, strangers(CLOSED)));
        }
    }
    for (v4, version) in [(true, "v4"), (false, "v6")] {
        for (destination, way) in [(false, "sends"), (true, "hears")] {
            let rules = parties.iter().enumerate().flat_map(|(number, party)| {
                let address = party.addresses.iter().find(|address| address.is_ipv4() == v4);
                let chain = if destination { to(number) } else { from(number) };
                address.map(|address| rule([is_address(address, destination), vec![decide(Verdict::Jump(chain))]]))
            });
            chains.push(Chain::new(format!("{way}-{version}"), None, rules.collect()));
        }
    }
    for (hook, way) in [(LOCAL_OUT, "sends"), (LOCAL_IN, "hears")] {
        let versions = [(FAMILY_V4, "v4"), (FAMILY_V6, "v6")]
            .map(|(number, version)| rule([family(number), vec![decide(Verdict::Jump(format!("{way}-{version}")))]]));
        chains.push(Chain::new(way, Some((hook, PRIORITY_AFTER_NAT)), versions.to_vec()));
    }
    let asking = parties.iter().enumerate().filter(|(number, _)| asks_over_udp(*number, openings));
    let sets = asking.flat_map(|(number, party)| party.addresses.iter().map(move |own| set(number, own.is_ipv4())));
    let mut ids: Vec<_> = known
        .iter()
        .zip(1..)
        .flat_map(|(level, depth)| {
            let Level { above: ways, others: ends } = level.clone();
            [Ids { name: above(depth), ids: ways }, Ids { name: others(depth), ids: ends }]
        })
        .collect();
    ids.sort_by(|a, b| a.name.cmp(&b.name));
    Table { name: SEPARATION_TABLE, sets: sets.collect(), ids, chains }
}

/// The number of the instance that the chain counts refusals of.
pub(super) fn instance_of(chain: &str) -> Option<usize> {
    ["from-", "near-", "to-", "stranger-", "unheard-"].iter().find_map(|kind| chain.strip_prefix(kind)?.parse().ok())
}

fn from(number: usize) -> String {
    format!("from-{number}")
}

fn near(number: usize) -> String {
    format!("near-{number}")
}

fn to(number: usize) -> String {
    format!("to-{number}")
}

/// Whether the instance may ask another one of this host over UDP.
fn asks_over_udp(number: usize, openings: &[LocalOpening]) -> bool {
    openings.iter().any(|opening| opening.from == number && matches!(opening.allows, Allows::Udp(_)))
}

/// The set of what the instance asked over UDP, at which port and from which.
fn asked(number: usize, v4: bool) -> String {
    format!("asked-{number}-{}", if v4 { "v4" } else { "v6" })
}

fn set(number: usize, v4: bool) -> Set {
    // TYPE_IPADDR or TYPE_IP6ADDR, and twice TYPE_INET_SERVICE.
    let (address, length) = if v4 { (7, 4) } else { (8, 16) };
    let kind = address << 12 | 13 << 6 | 13;
    Set { name: asked(number, v4), kind, length: length + 4 + 4, size: MOST_ASKED, lifetime: ANSWER_WITHIN }
}

/// Loads what was asked, at which port and from which, of a datagram that asks or answers.
fn exchange(v4: bool, asks: bool) -> Vec<Step> {
    // Numbers of registers: of 16 bytes up to 4, of 4 bytes from 8.
    let (length, registers) = if v4 { (4, [9, 10]) } else { (16, [2, 13]) };
    let offset = match (asks, v4) {
        (true, true) => 16,
        (true, false) => 24,
        (false, true) => 12,
        (false, false) => 8,
    };
    let ports = registers.into_iter().zip(if asks { [2, 0] } else { [0, 2] });
    let address = Step::LoadHeader { base: Header::Network as u32, offset, length };
    let ports = ports.map(|(register, offset)| Step::LoadBeside {
        register,
        base: Header::Transport as u32,
        offset,
        length: 2,
    });
    std::iter::once(address).chain(ports).collect()
}

/// Judges what leaves a program in a cgroup that was not looked at yet.
fn stranger(number: usize) -> String {
    format!("stranger-{number}")
}

/// The same for what arrives for one.
fn unheard(number: usize) -> String {
    format!("unheard-{number}")
}

/// The set of cgroups at this depth below which others were looked at.
fn above(depth: u32) -> String {
    format!("above-{depth}")
}

/// The set of the other cgroups at this depth.
fn others(depth: u32) -> String {
    format!("others-{depth}")
}

/// Accepts what is of a cgroup that was looked at, and leads what is of any other to `strange`. Goes on with what is of the root, or
/// of none.
fn of_known(known: &[Level], strange: &str) -> Vec<Rule> {
    let levels = (1..).take(known.len()).flat_map(|level| {
        let load = Step::LoadCgroup { level };
        [
            vec![load.clone(), Step::Holds(others(level)), decide(Verdict::Accept)],
            vec![load, Step::Lacks(above(level)), decide(Verdict::Goto(strange.to_owned()))],
        ]
    });
    levels.collect()
}

/// Leads to `end` what a program has open, and what begins anything. What is left ends what a program in a cgroup did that has gone
/// since.
fn strangers(end: &str) -> Vec<Rule> {
    vec![
        rule([vec![Step::LoadMeta(Meta::User as u32)], count_and_go(end)]),
        rule([tcp_flags(SYN | ACK, SYN), count_and_go(end)]),
        rule([protocol(UDP), count_and_go(end)]),
        vec![decide(Verdict::Accept)],
    ]
}

/// Leads what fits another instance's condition to `end`, and counts it: it is not the rest's.
fn of_others(parties: &[Party], end: &str) -> Vec<Rule> {
    let others = parties.iter().filter_map(|party| match &party.owner {
        Owner::Any(conditions) => Some(conditions),
        Owner::Rest => None,
    });
    others.flatten().map(|condition| rule([condition.holds(), count_and_go(end)])).collect()
}

/// What a packet needs whose source is the instance's.
fn leaving(number: usize, party: &Party, parties: &[Party], known: &[Level]) -> Vec<Rule> {
    let accept = || vec![decide(Verdict::Accept)];
    // The kernel's own answer for a port that is closed, and ours.
    let mut rules = vec![rule([tcp_flags(RST, RST), accept()])];
    match &party.owner {
        Owner::Rest => {
            rules.extend(of_others(parties, REFUSED));
            rules.extend(of_known(known, &stranger(number)));
        }
        Owner::Any(conditions) => {
            rules.extend(conditions.iter().map(|condition| rule([condition.holds(), accept()])));
            // By a listener that was found to be the instance's when the connection was asked for.
            rules.push(rule([tcp_flags(SYN | ACK, SYN | ACK), accept()]));
            // Whatever else a program sends.
            rules.push(rule([vec![Step::LoadMeta(Meta::User as u32)], count_and_go(REFUSED)]));
            // What is left nobody has open any more, or the kernel sends of itself: the end of what was let in, not a start.
            rules.push(rule([tcp_flags(SYN | ACK, SYN), count_and_go(REFUSED)]));
            rules.push(rule([protocol(UDP), count_and_go(REFUSED)]));
        }
    }
    rules.push(accept());
    rules
}

/// What a packet needs that is for the instance.
fn arriving(number: usize, party: &Party, parties: &[Party], known: &[Level]) -> Vec<Rule> {
    let accept = || vec![decide(Verdict::Accept)];
    let mut rules = vec![
        // IPv6 is put together later than here. The first fragment bears the ports, is judged, and without it these are nothing.
        rule([family(FAMILY_V6), later_fragment(), accept()]),
        rule([compare(Step::LoadMeta(Meta::InDevice as u32), &LOOPBACK.to_ne_bytes()), jump(near(number))]),
        rule([tcp_flags(RST, RST), accept()]),
        rule([protocol(ICMP), accept()]),
        rule([protocol(ICMP_V6), accept()]),
    ];
    if programs::needs_user(party, parties) {
        if party.owner == Owner::Rest {
            rules.extend(of_known(known, &unheard(number)));
        }
        rules.push(accept());
        return rules;
    }
    match &party.owner {
        Owner::Rest => {
            rules.extend(of_others(parties, CLOSED));
            rules.extend(of_known(known, &unheard(number)));
            rules.push(rule([tcp_flags(SYN | ACK, SYN), vec![Step::LoadSocket], accept()]));
            rules.push(rule([tcp_flags(SYN | ACK, SYN), vec![decide(Verdict::Goto(CLOSED.to_owned()))]]));
            rules.push(accept());
        }
        Owner::Any(conditions) => {
            rules.extend(conditions.iter().map(|condition| rule([condition.holds(), accept()])));
            rules.push(rule([vec![Step::LoadSocket], count_and_go(CLOSED)]));
            rules.push(rule([tcp_flags(SYN, 0), accept()]));
            rules.push(vec![decide(Verdict::Goto(CLOSED.to_owned()))]);
        }
    }
    rules
}

/// What a packet from this host needs to be heard further by the instance: to be its own, or to be what policy opens.
fn coming_near(number: usize, party: &Party, parties: &[Party], openings: &[LocalOpening]) -> Vec<Rule> {
    let back = || vec![decide(Verdict::Return)];
    let mut rules: Vec<_> =
        party.addresses.iter().map(|own| rule([family_of(own), is_address(own, false), back()])).collect();
    for opening in openings {
        let (other, replies) = match (opening.from, opening.to) {
            (from, to) if to == number => (from, false),
            (from, to) if from == number => (to, true),
            _ => continue,
        };
        for source in parties.get(other).into_iter().flat_map(|other| other.addresses.iter()) {
            let whence = || rule([family_of(source), is_address(source, false)]);
            let (first, last) = match &opening.allows {
                Allows::Tcp(ports) | Allows::Udp(ports) => (*ports.start(), *ports.end()),
                Allows::Echo => (0, 0),
            };
            match (&opening.allows, replies) {
                (Allows::Tcp(_), false) => rules.push(rule([whence(), protocol(TCP), port(true, first, last), back()])),
                (Allows::Tcp(_), true) => {
                    for answer in [tcp_flags(SYN | ACK, SYN | ACK), tcp_flags(SYN, 0)] {
                        rules.push(rule([whence(), answer, port(false, first, last), back()]));
                    }
                }
                (Allows::Udp(_), false) => {
                    let remember = vec![Step::Remember(asked(other, source.is_ipv4()))];
                    let question = rule([exchange(source.is_ipv4(), true), remember]);
                    rules.push(rule([whence(), protocol(UDP), port(true, first, last), question, back()]));
                }
                (Allows::Udp(_), true) => {}
                (Allows::Echo, false) => {
                    let kind = if source.is_ipv4() { (ICMP, ECHO_REQUEST) } else { (ICMP_V6, ECHO_REQUEST_V6) };
                    rules.push(rule([whence(), icmp(kind.0, kind.1, Operation::Equal), back()]));
                }
                (Allows::Echo, true) => {}
            }
        }
    }
    // A datagram from another instance is an answer to what this one asked not long ago, or it is nothing.
    if asks_over_udp(number, openings) {
        for own in party.addresses.iter() {
            let answer = vec![Step::Holds(asked(number, own.is_ipv4()))];
            rules.push(rule([family_of(own), protocol(UDP), exchange(own.is_ipv4(), false), answer, back()]));
        }
    }
    // Answers and errors: of what was let through, and of the kernel.
    rules.push(rule([tcp_flags(RST, RST), back()]));
    rules.push(rule([icmp(ICMP, ECHO_REQUEST, Operation::Differs), back()]));
    rules.push(rule([icmp(ICMP_V6, ECHO_REQUEST_V6, Operation::Differs), back()]));
    rules.push(count_and_go(CLOSED));
    rules
}

impl Condition {
    fn holds(&self) -> Vec<Step> {
        let place = self.place.map(|place| compare(Step::LoadCgroup { level: place.level }, &place.id.to_ne_bytes()));
        let user = self.user.map(|user| compare(Step::LoadMeta(Meta::User as u32), &user.to_ne_bytes()));
        [place, user].into_iter().flatten().flatten().collect()
    }
}

fn rule<const N: usize>(parts: [Vec<Step>; N]) -> Rule {
    parts.concat()
}

fn decide(verdict: Verdict) -> Step {
    Step::Verdict(verdict)
}

fn jump(chain: String) -> Vec<Step> {
    vec![decide(Verdict::Jump(chain))]
}

fn count_and_go(chain: &str) -> Vec<Step> {
    vec![Step::Count, decide(Verdict::Goto(chain.to_owned()))]
}

fn compare(load: Step, value: &[u8]) -> Vec<Step> {
    vec![load, Step::Compare { operation: Operation::Equal as u32, value: value.to_vec() }]
}

fn family(number: u8) -> Vec<Step> {
    compare(Step::LoadMeta(Meta::Family as u32), &[number])
}

fn family_of(address: IpAddr) -> Vec<Step> {
    family(if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 })
}

fn protocol(number: u8) -> Vec<Step> {
    compare(Step::LoadMeta(Meta::Protocol as u32), &[number])
}

/// The packet, of the address's family, has it as its source or destination (RFC 791, RFC 8200).
fn is_address(address: IpAddr, destination: bool) -> Vec<Step> {
    let (offset, value) = match address {
        IpAddr::V4(address) => (if destination { 16 } else { 12 }, address.octets().to_vec()),
        IpAddr::V6(address) => (if destination { 24 } else { 8 }, address.octets().to_vec()),
    };
    compare(Step::LoadHeader { base: Header::Network as u32, offset, length: value.len() as u32 }, &value)
}

/// The packet is a fragment of IPv6, and not the first one.
fn later_fragment() -> Vec<Step> {
    vec![
        Step::LoadFragment,
        Step::Mask(FRAGMENT_OFFSET.to_be_bytes().to_vec()),
        Step::Compare { operation: Operation::Differs as u32, value: vec![0; 2] },
    ]
}

/// The packet is TCP, and of the flags in `among` those in `set` are set.
fn tcp_flags(among: u8, set: u8) -> Vec<Step> {
    let flags = Step::LoadHeader { base: Header::Transport as u32, offset: 13, length: 1 };
    let steps =
        vec![flags, Step::Mask(vec![among]), Step::Compare { operation: Operation::Equal as u32, value: vec![set] }];
    rule([protocol(TCP), steps])
}

/// The source or destination port of TCP or UDP lies between these.
fn port(destination: bool, first: u16, last: u16) -> Vec<Step> {
    let offset = if destination { 2 } else { 0 };
    vec![
        Step::LoadHeader { base: Header::Transport as u32, offset, length: 2 },
        Step::Compare { operation: Operation::AtLeast as u32, value: first.to_be_bytes().to_vec() },
        Step::Compare { operation: Operation::AtMost as u32, value: last.to_be_bytes().to_vec() },
    ]
}

/// The packet is of this ICMP, and its type is, or is not, this one.
fn icmp(version: u8, kind: u8, operation: Operation) -> Vec<Step> {
    let load = Step::LoadHeader { base: Header::Transport as u32, offset: 0, length: 1 };
    rule([protocol(version), vec![load, Step::Compare { operation: operation as u32, value: vec![kind] }]])
}
