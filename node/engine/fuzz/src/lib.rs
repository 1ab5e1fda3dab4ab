//! What must hold of every input, one module per fuzz target. Each `check` reads an input out of plain bytes, runs it
//! and fails an assertion where a property is broken.
//!
//! The targets in `fuzz_targets/` search with them; `node/engine/tests/corpora.rs` replays the committed corpora with
//! the same functions on the stable toolchain. That is why nothing here needs the fuzzer.

pub mod demux;
pub mod merge;
pub mod packet;
pub mod split;

/// Bytes as a source of decisions. When they are used up, everything is zero.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn long(&mut self) -> u32 {
        u32::from(self.word()) << 16 | u32::from(self.word())
    }

    /// Up to `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}

/// The Internet checksum of `parts`, each padded to an even length, word by word (RFC 1071): slow, and not the engine's.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or_default());
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Where a whole TCP or UDP packet's transport header begins and which it is; none for what is something else or lies
/// about its length.
pub(crate) fn transport_of(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 if packet[0] == 0x45 && packet.len() >= 28 => {
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let is_part = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            (length == packet.len() && !is_part && matches!(packet[9], 6 | 17)).then_some((20, packet[9]))
        }
        6 if packet.len() >= 48 => {
            let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (length + 40 == packet.len() && matches!(packet[6], 6 | 17)).then_some((40, packet[6]))
        }
        _ => None,
    }
}

/// Whether a receiver that checks would take the checksums of a packet for which [`transport_of`] says something.
pub(crate) fn checksums_are_right(packet: &[u8]) -> bool {
    let Some((at, protocol)) = transport_of(packet) else { return false };
    if at == 20 && checksum(&[&packet[..20]]) != 0 {
        return false;
    }
    let (addresses, transport) = (if at == 20 { &packet[12..20] } else { &packet[8..40] }, &packet[at..]);
    if protocol == 17 && transport[6..8] == [0, 0] {
        // None; only IPv4 knows that.
        return at == 20;
    }
    let length = (transport.len() as u32).to_be_bytes();
    checksum(&[addresses, &length, &[0, protocol], transport]) == 0
}

/// A packet's parts, and the naive way to its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    pub(crate) service: u8,
    pub(crate) hops: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) id: u16,
    pub(crate) host: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// Words of TCP options, 0 to 10.
    pub(crate) options: u8,
    pub(crate) payload: Vec<u8>,
}

impl Parts {
    /// Bytes with right lengths and checksums. The payload must fit.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut transport = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.tcp {
            let words = 5 + self.options.min(10);
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 9, words << 4, self.flags, 1, 0, 0, 0, 0, 0]);
            transport.resize(usize::from(words) * 4, 1);
        } else {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(&self.payload);
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = if self.v6 {
            let mut header = vec![0x60 | self.service >> 4, self.service << 4, 0, 0];
            header.extend((transport.len() as u16).to_be_bytes());
            header.extend([protocol, self.hops]);
            for host in [self.host, 1] {
                header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
            header
        } else {
            let mut header = vec![0x45, self.service];
            header.extend(((transport.len() + 20) as u16).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hops, protocol, 0, 0]);
            header.extend([10, 77, 0, self.host, 10, 77, 0, 1]);
            header
        };
        packet.extend(transport);
        make_checksums_right(&mut packet);
        packet
    }
}

/// Computes the checksums of a packet for which [`transport_of`] says something anew.
pub(crate) fn make_checksums_right(packet: &mut [u8]) {
    let Some((at, protocol)) = transport_of(packet) else { return };
    if at == 20 {
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let field = at + if protocol == 6 { 16 } else { 6 };
    if packet.len() < field + 2 {
        return;
    }
    packet[field..field + 2].fill(0);
    let length = ((packet.len() - at) as u32).to_be_bytes();
    let addresses = if at == 20 { 12..20 } else { 8..40 };
    let sum = match checksum(&[&packet[addresses], &length, &[0, protocol], &packet[at..]]) {
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
