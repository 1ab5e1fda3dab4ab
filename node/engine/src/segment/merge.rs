//! Merging: packets that peers sent, as admitted, into super-packets for the host.
//!
//! The rules are those of the kernel's own receive offload, so that what the host sees is what a network card could
//! have shown it. Packets of one flow keep their order; packets of different flows may pass each other. Payload
//! stays where it was decrypted: a merged packet is a header of its own and a list of payloads.

use crate::packet::ACK;

use super::checksum::Sum;
use super::headers::{Headers, MAX_HEADERS, Protocol, TCP_FLAGS, TCP_SEQUENCE, UDP_CHECKSUM, UDP_LENGTH};
use super::{Offload, VirtioNetHeader};

/// TCP's PSH and ECE flags.
const PSH: u8 = 0x08;
const ECE: u8 = 0x40;
/// IPv4's "don't fragment", in the upper byte of its field.
const DONT_FRAGMENT: u8 = 0x40;

/// Flows that can be merged side by side; the kernel's own table is of this size per bucket.
const OPEN: usize = 8;
/// Segments in one super-packet. Kernels before 6.9 take 64 UDP segments and no more.
pub const MAX_SEGMENTS: usize = 64;
/// The largest packet that an IPv4 header can describe.
const MAX_LENGTH: usize = 65_535;

/// The longest [`Merged::prefix`].
pub const MAX_PREFIX: usize = VirtioNetHeader::LENGTH + MAX_HEADERS;

/// What may be merged: what the device takes as a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merge {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

/// Plans what a batch of packets becomes. Its memory is kept from batch to batch.
#[derive(Debug)]
pub struct Merger {
    merge: Merge,
    runs: Vec<Run>,
    /// The packet that follows each one in its run, by number.
    next: Vec<Option<usize>>,
    open: [Option<OpenRun>; OPEN],
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    last: usize,
    count: usize,
    /// Set for more than one packet.
    joint: Option<Joint>,
}

/// What the packets of one run have in common.
#[derive(Debug, Clone, Copy)]
struct Joint {
    headers: Headers,
    /// Payload bytes of all but the last.
    size: usize,
    /// Bytes of the merged packet.
    length: usize,
    /// The last one's PSH.
    push: u8,
}

/// A run that may still grow.
#[derive(Debug)]
struct OpenRun {
    run: usize,
    joint: Joint,
    /// The first packet's headers.
    head: [u8; MAX_HEADERS],
    /// What the next packet's TCP sequence number must be.
    sequence: u32,
}

/// One packet for the host: one that came, or several merged.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'m> {
    run: &'m Run,
    next: &'m [Option<usize>],
}

impl Merger {
    /// With memory for `packets` in one batch.
    #[must_use]
    pub fn new(merge: Merge, packets: usize) -> Self {
        Self { merge, runs: Vec::with_capacity(packets), next: Vec::with_capacity(packets), open: Default::default() }
    }

    /// What it merges.
    #[must_use]
    pub const fn merge(&self) -> Merge {
        self.merge
    }

    /// Merges other things from the next batch on.
    pub fn set_merge(&mut self, merge: Merge) {
        self.merge = merge;
        self.clear();
    }

    /// Begins a batch.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.next.clear();
        self.close_all();
    }

    /// Adds the next packet of the batch. Its number is how many came before it.
    pub fn push(&mut self, packet: &[u8]) {
        let number = self.next.len();
        self.next.push(None);
        if self.merge == Merge::default() {
            return self.alone(number);
        }
        // What shows no flow might belong to any: a fragment must not be overtaken by what follows it.
        let Some(headers) = Headers::parse(packet) else {
            self.close_all();
            return self.alone(number);
        };
        let candidate = Candidate::new(headers, packet);
        let slot = self.open.iter().position(|open| open.as_ref().is_some_and(|open| open.is_same_flow(&candidate)));
        if let Some(open) = slot.and_then(|slot| self.open[slot].as_mut()) {
            if open.takes(&candidate) {
                let closed = open.join(&candidate);
                let run = &mut self.runs[open.run];
                if let Some(before) = self.next.get_mut(run.last) {
                    *before = Some(number);
                }
                run.last = number;
                run.count += 1;
                run.joint = Some(open.joint);
                if closed || run.count == MAX_SEGMENTS {
                    self.open[slot.unwrap_or_default()] = None;
                }
                return;
            }
            self.open[slot.unwrap_or_default()] = None;
        }
        let may_grow = candidate.may_begin(self.merge);
        let run = self.runs.len();
        self.alone(number);
        if may_grow {
            // A free place, else the oldest run's.
            let oldest = || (0..OPEN).min_by_key(|slot| self.open[*slot].as_ref().map_or(0, |open| open.run));
            let place = slot.or_else(|| self.open.iter().position(Option::is_none)).or_else(oldest);
            self.open[place.unwrap_or_default()] = Some(OpenRun::new(run, &candidate));
        }
    }

    /// What the batch became, in the order in which the first packet of each came.
    pub fn merged(&self) -> impl ExactSizeIterator<Item = Merged<'_>> {
        self.runs.iter().map(|run| Merged { run, next: &self.next })
    }

    fn alone(&mut self, number: usize) {
        self.runs.push(Run { first: number, last: number, count: 1, joint: None });
    }

    fn close_all(&mut self) {
        self.open = Default::default();
    }
}

/// A packet with its headers.
struct Candidate<'p> {
    headers: Headers,
    packet: &'p [u8],
}

impl<'p> Candidate<'p> {
    const fn new(headers: Headers, packet: &'p [u8]) -> Self {
        Self { headers, packet }
    }

    fn payload(&self) -> usize {
        self.packet.len() - self.headers.all
    }

    fn transport(&self) -> &'p [u8] {
        &self.packet[self.headers.ip..self.headers.all]
    }

    fn sequence(&self) -> u32 {
        match self.transport().get(TCP_SEQUENCE..TCP_SEQUENCE + 4).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) if self.headers.protocol == Protocol::Tcp => u32::from_be_bytes(bytes),
            _ => 0,
        }
    }

    fn push_flag(&self) -> u8 {
        match self.headers.protocol {
            Protocol::Tcp => self.transport()[TCP_FLAGS] & PSH,
            Protocol::Udp => 0,
        }
    }

    /// Whether it is of a kind that merges at all: TCP data with nothing to say but ACK, PSH and ECE, or a UDP
    /// datagram with data and a checksum (one without must stay without), of the length that its header says.
    fn is_plain(&self) -> bool {
        let transport = self.transport();
        self.payload() > 0
            && match self.headers.protocol {
                Protocol::Tcp => transport[TCP_FLAGS] & !(PSH | ECE) == ACK,
                Protocol::Udp => {
                    let length = u16::from_be_bytes([transport[UDP_LENGTH], transport[UDP_LENGTH + 1]]);
                    usize::from(length) == self.packet.len() - self.headers.ip
                        && transport[UDP_CHECKSUM..UDP_CHECKSUM + 2] != [0, 0]
                }
            }
    }

    fn may_begin(&self, merge: Merge) -> bool {
        let is_wanted = match self.headers.protocol {
            Protocol::Tcp => merge.tcp,
            Protocol::Udp => merge.udp,
        };
        is_wanted && self.push_flag() == 0 && self.is_plain() && self.checksums_are_right()
    }

    /// Whether a host that checks would take it. Merged, it is checked no more, so what is wrong has to stay alone.
    fn checksums_are_right(&self) -> bool {
        const RIGHT: [u8; 2] = [0xff; 2];
        let Headers { v6, ip, .. } = self.headers;
        let length = narrow(self.packet.len() - ip);
        let transport = self.headers.pseudo(self.packet).field(length).bytes(&self.packet[ip..]);
        transport.folded() == RIGHT && (v6 || Sum::default().bytes(&self.packet[..ip]).folded() == RIGHT)
    }
}

impl OpenRun {
    fn new(run: usize, first: &Candidate<'_>) -> Self {
        let mut head = [0; MAX_HEADERS];
        head[..first.headers.all].copy_from_slice(&first.packet[..first.headers.all]);
        let (size, length) = (first.payload(), first.packet.len());
        let joint = Joint { headers: first.headers, size, length, push: 0 };
        Self { run, joint, head, sequence: first.sequence().wrapping_add(wide(size)) }
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.joint.headers.all]
    }

    /// Whether protocol, addresses and ports are the same.
    fn is_same_flow(&self, candidate: &Candidate<'_>) -> bool {
        let (own, other) = (self.joint.headers, candidate.headers);
        let flow = if own.v6 { 8..44 } else { 12..24 };
        own.v6 == other.v6 && own.protocol == other.protocol && self.head[flow.clone()] == candidate.packet[flow]
    }

    /// Whether a packet of its flow continues it.
    fn takes(&self, candidate: &Candidate<'_>) -> bool {
        let Joint { headers, size, length, .. } = self.joint;
        let (payload, other) = (candidate.payload(), candidate.packet);
        candidate.headers == headers
            && payload <= size
            && length + payload <= MAX_LENGTH
            && candidate.is_plain()
            && self.has_same_ip_header(other)
            && match headers.protocol {
                Protocol::Tcp => candidate.sequence() == self.sequence && self.has_same_tcp_header(candidate),
                Protocol::Udp => true,
            }
            && candidate.checksums_are_right()
    }

    fn has_same_ip_header(&self, other: &[u8]) -> bool {
        let head = self.head();
        if self.joint.headers.v6 {
            // Version, traffic class and flow label; next header and hop limit.
            return head[..4] == other[..4] && head[6..8] == other[6..8];
        }
        // Type of service; flags; time to live and protocol.
        let is_same = head[1] == other[1] && head[6..10] == other[6..10];
        // With "don't fragment" the identification says nothing (RFC 6864, section 4.1).
        let position = narrow((self.joint.length - head.len()).div_ceil(self.joint.size));
        let id = |bytes: &[u8]| u16::from_be_bytes([bytes[4], bytes[5]]);
        is_same && (head[6] & DONT_FRAGMENT != 0 || id(other) == id(head).wrapping_add(position))
    }

    /// Acknowledgement, header length, window, urgent pointer, options, and the flags but PSH.
    fn has_same_tcp_header(&self, candidate: &Candidate<'_>) -> bool {
        let (own, other) = (&self.head()[self.joint.headers.ip..], candidate.transport());
        own[8..TCP_FLAGS] == other[8..TCP_FLAGS]
            && (own[TCP_FLAGS] ^ other[TCP_FLAGS]) & !PSH == 0
            && own[14..16] == other[14..16]
            && own[18..] == other[18..]
    }

    /// Counts a packet in, and says whether it must be the last.
    fn join(&mut self, candidate: &Candidate<'_>) -> bool {
        let payload = candidate.payload();
        self.joint.length += payload;
        self.joint.push = candidate.push_flag();
        self.sequence = self.sequence.wrapping_add(wide(payload));
        payload < self.joint.size || self.joint.push != 0
    }
}

impl<'m> Merged<'m> {
    /// How many packets it stands for.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.run.count
    }

    /// What is merged in it, if anything is.
    #[must_use]
    pub fn offload(&self) -> Option<Offload> {
        self.run.joint.as_ref().map(Joint::offload)
    }

    /// The numbers of its packets, in order.
    pub fn packets(&self) -> impl Iterator<Item = usize> + use<'m> {
        let next = self.next;
        std::iter::successors(Some(self.run.first), move |number| next.get(*number).copied().flatten())
    }

    /// Where the part of each packet begins that follows the [`Self::prefix`]: its payload, or for a single packet
    /// all of it.
    #[must_use]
    pub fn payload_at(&self) -> usize {
        self.run.joint.map_or(0, |joint| joint.headers.all)
    }

    /// What goes before the payloads: the device's header, and for a merged packet its IP and transport header,
    /// made from those of `first`, the first of [`Self::packets`].
    pub fn prefix<'o>(&self, first: &[u8], out: &'o mut [u8; MAX_PREFIX]) -> &'o [u8] {
        let joint = self.run.joint.and_then(|joint| Some((joint, first.get(..joint.headers.all)?)));
        let Some((joint, first)) = joint else {
            out[..VirtioNetHeader::LENGTH].copy_from_slice(&VirtioNetHeader::default().encode());
            return &out[..VirtioNetHeader::LENGTH];
        };
        let (device, head) = out.split_at_mut(VirtioNetHeader::LENGTH);
        let Headers { protocol, ip, all, .. } = joint.headers;
        let header = VirtioNetHeader {
            needs_checksum: true,
            offload: Some(joint.offload()),
            header_length: narrow(all),
            segment_size: narrow(joint.size),
            checksum_start: narrow(ip),
            checksum_offset: narrow(joint.headers.checksum_offset()),
        };
        device.copy_from_slice(&header.encode());
        let head = &mut head[..all];
        head.copy_from_slice(first);
        let (length, transport_length) = (narrow(joint.length), narrow(joint.length - ip));
        joint.headers.write_length(head, length);
        match protocol {
            Protocol::Tcp => head[ip + TCP_FLAGS] |= joint.push,
            Protocol::Udp => head[ip + UDP_LENGTH..][..2].copy_from_slice(&transport_length.to_be_bytes()),
        }
        let pseudo = joint.headers.pseudo(head).field(transport_length).folded();
        head[ip + joint.headers.checksum_offset()..][..2].copy_from_slice(&pseudo);
        &out[..VirtioNetHeader::LENGTH + all]
    }
}

impl Joint {
    const fn offload(&self) -> Offload {
        match (self.headers.protocol, self.headers.v6) {
            (Protocol::Tcp, false) => Offload::TcpV4,
            (Protocol::Tcp, true) => Offload::TcpV6,
            (Protocol::Udp, _) => Offload::Udp,
        }
    }
}

/// Lengths here are at most [`MAX_LENGTH`].
fn narrow(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn wide(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
