//! What the packet filter cannot do by itself, as small BPF programs on cgroups: give a tied program that names no source its own
//! instance's, and judge what arrives by the user of the very socket that would take it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};

use warren_proto::overlay::{Overlay, OverlayAddresses};

use super::bpf::{self, Instruction, Kind};
use super::separation::{Condition, Owner, Party};

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` and `BPF_PROG_TYPE_CGROUP_SKB`.
const SOCK_ADDR: u32 = 18;
const SKB: u32 = 8;
const INGRESS: Kind = Kind { program: SKB, attach: 0 };
const CONNECT_V4: Kind = Kind { program: SOCK_ADDR, attach: 10 };
const CONNECT_V6: Kind = Kind { program: SOCK_ADDR, attach: 11 };
const SEND_V4: Kind = Kind { program: SOCK_ADDR, attach: 14 };
const SEND_V6: Kind = Kind { program: SOCK_ADDR, attach: 15 };

// Offsets in `struct bpf_sock_addr`, `struct bpf_sock` and `struct __sk_buff` (linux/bpf.h).
const TO_V4: i16 = 4;
const TO_V6: i16 = 8;
const SOURCE_V4: i16 = 40;
const SOURCE_V6: i16 = 44;
const SOCKET: i16 = 64;
const SOCKET_V4: i16 = 24;
const SOCKET_V6: i16 = 28;
const PACKET_PROTOCOL: i16 = 16;

// Helpers of the kernel, by number.
const SKB_LOAD_BYTES: i32 = 26;
const GET_SOCKET_UID: i32 = 47;
const BIND: i32 = 64;
const SKB_ANCESTOR_CGROUP_ID: i32 = 83;
const GET_NETNS_COOKIE: i32 = 122;

// Operations (linux/bpf_common.h, linux/bpf.h).
const LOAD_WORD: u8 = 0x61;
const LOAD_LONG: u8 = 0x79;
const STORE_WORD: u8 = 0x62;
const STORE_WORD_OF: u8 = 0x63;
const LOAD_CONSTANT: u8 = 0x18;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const SET_WORD: u8 = 0xb4;
const ADD: u8 = 0x07;
const AND_WORD: u8 = 0x54;
const JUMP: u8 = 0x05;
const JUMP_UNLESS_WORD: u8 = 0x56;
const JUMP_IF_SAME: u8 = 0x1d;
const JUMP_UNLESS_SAME: u8 = 0x5d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// A place that jumps lead to.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

/// A program that is being written. Jumps lead forwards only.
#[derive(Default)]
struct Writer {
    instructions: Vec<Instruction>,
    /// Where the jumps to each label stand.
    jumps: Vec<Vec<usize>>,
}

impl Writer {
    fn put(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: u32) {
        let immediate = immediate.cast_signed();
        let registers =
            if cfg!(target_endian = "little") { source << 4 | destination } else { destination << 4 | source };
        self.instructions.push(Instruction { code, registers, offset, immediate });
    }

    fn label(&mut self) -> Label {
        self.jumps.push(Vec::new());
        Label(self.jumps.len() - 1)
    }

    fn jump(&mut self, code: u8, destination: u8, source: u8, immediate: u32, to: Label) {
        let here = self.instructions.len();
        self.put(code, destination, source, 0, immediate);
        if let Some(jumps) = self.jumps.get_mut(to.0) {
            jumps.push(here);
        }
    }

    /// `to` is here.
    fn land(&mut self, to: Label) {
        let here = self.instructions.len();
        for jump in self.jumps.get_mut(to.0).map(std::mem::take).unwrap_or_default() {
            if let Some(instruction) = self.instructions.get_mut(jump) {
                instruction.offset = i16::try_from(here - jump - 1).unwrap_or(i16::MAX);
            }
        }
    }

    fn call(&mut self, helper: i32) {
        self.put(CALL, 0, 0, 0, helper.cast_unsigned());
    }

    fn end(&mut self, value: u32) {
        self.put(SET, 0, 0, 0, value);
        self.put(EXIT, 0, 0, 0, 0);
    }

    /// Goes on if the words at `offset` of what register `base` points to are `words` under `masks`, and to `otherwise` if not.
    fn expect(&mut self, base: u8, offset: i16, words: &[u32], masks: &[u32], otherwise: Label) {
        for ((word, mask), at) in words.iter().zip(masks).zip((offset..).step_by(4)) {
            if *mask != 0 {
                self.put(LOAD_WORD, 2, base, at, 0);
                self.put(AND_WORD, 2, 0, 0, *mask);
                self.jump(JUMP_UNLESS_WORD, 2, 0, word & mask, otherwise);
            }
        }
    }

    /// Binds the socket to the address, given as the words of a socket address, of which there are at most eight.
    fn bind(&mut self, address: &[u32]) {
        for (word, at) in address.iter().zip((-32_i16..).step_by(4)) {
            self.put(STORE_WORD, 10, 0, at, *word);
        }
        self.put(COPY, 1, 6, 0, 0);
        self.put(COPY, 2, 10, 0, 0);
        self.put(ADD, 2, 0, 0, (-32_i32).cast_unsigned());
        self.put(SET, 3, 0, 0, u32::try_from(4 * address.len()).unwrap_or(0));
        // A socket that cannot be bound any more keeps the source it has, and the packet filter judges it.
        self.call(BIND);
    }
}

/// Every bit.
const WHOLE: [u32; 4] = [u32::MAX; 4];

fn words_v6(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| octets[4 * word + byte])))
}

fn word_v4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn mask_v6(length: u8) -> [u32; 4] {
    words_v6(Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)))
}

fn mask_v4(length: u8) -> u32 {
    word_v4(Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)))
}

/// Has every program in the cgroup that names no source use the instance's towards the overlay, while the descriptors are open.
pub(super) fn choose_sources(
    cgroup: BorrowedFd<'_>,
    overlay: &Overlay,
    own: &OverlayAddresses,
) -> io::Result<Vec<OwnedFd>> {
    let mut programs = vec![(CONNECT_V6, connect_v6(overlay, own)), (SEND_V6, send_v6(overlay, own))];
    if let (Some(prefix), Some(address)) = (overlay.v4, own.v4) {
        programs.push((CONNECT_V4, connect_v4(prefix, address)));
        programs.push((SEND_V4, send_v4(prefix, address)));
    }
    programs.into_iter().map(|(kind, program)| bpf::attach(kind, &program, cgroup)).collect()
}

fn connect_v6(overlay: &Overlay, own: &OverlayAddresses) -> Vec<Instruction> {
    let mut program = Writer::default();
    let (mapped, out) = (program.label(), program.label());
    let family = |address: Ipv6Addr| {
        let [a, b, c, d] = words_v6(address);
        // `sockaddr_in6`: family and no port, flow label, address, scope.
        [u32::from(libc::AF_INET6.cast_unsigned() as u16), 0, a, b, c, d, 0]
    };
    program.put(COPY, 6, 1, 0, 0);
    program.put(LOAD_LONG, 7, 6, SOCKET, 0);
    // One that was bound keeps its source, right or wrong.
    program.expect(7, SOCKET_V6, &[0; 4], &WHOLE, out);
    program.expect(6, TO_V6, &words_v6(overlay.v6.0), &mask_v6(overlay.v6.1), mapped);
    program.bind(&family(own.v6));
    program.jump(JUMP, 0, 0, 0, out);
    program.land(mapped);
    if let (Some((prefix, length)), Some(address)) = (overlay.v4, own.v4) {
        // A socket of IPv6 that speaks IPv4 (RFC 4291, section 2.5.5.2).
        let to = words_v6(prefix.to_ipv6_mapped());
        program.expect(6, TO_V6, &to, &[u32::MAX, u32::MAX, u32::MAX, mask_v4(length)], out);
        program.bind(&family(address.to_ipv6_mapped()));
    }
    program.land(out);
    program.end(1);
    program.instructions
}

fn connect_v4((prefix, length): (Ipv4Addr, u8), own: Ipv4Addr) -> Vec<Instruction> {
    let mut program = Writer::default();
    let out = program.label();
    program.put(COPY, 6, 1, 0, 0);
    program.put(LOAD_LONG, 7, 6, SOCKET, 0);
    program.expect(7, SOCKET_V4, &[0], &WHOLE, out);
    program.expect(6, TO_V4, &[word_v4(prefix)], &[mask_v4(length)], out);
    // `sockaddr_in`: family and no port, address, nothing.
    program.bind(&[u32::from(libc::AF_INET.cast_unsigned() as u16), word_v4(own), 0, 0]);
    program.land(out);
    program.end(1);
    program.instructions
}

fn send_v6(overlay: &Overlay, own: &OverlayAddresses) -> Vec<Instruction> {
    let mut program = Writer::default();
    let out = program.label();
    program.put(COPY, 6, 1, 0, 0);
    program.expect(6, TO_V6, &words_v6(overlay.v6.0), &mask_v6(overlay.v6.1), out);
    program.expect(6, SOURCE_V6, &[0; 4], &WHOLE, out);
    for (word, at) in words_v6(own.v6).into_iter().zip((SOURCE_V6..).step_by(4)) {
        program.put(SET_WORD, 2, 0, 0, word);
        program.put(STORE_WORD_OF, 6, 2, at, 0);
    }
    program.land(out);
    program.end(1);
    program.instructions
}

fn send_v4((prefix, length): (Ipv4Addr, u8), own: Ipv4Addr) -> Vec<Instruction> {
    let mut program = Writer::default();
    let out = program.label();
    program.put(COPY, 6, 1, 0, 0);
    program.expect(6, TO_V4, &[word_v4(prefix)], &[mask_v4(length)], out);
    program.expect(6, SOURCE_V4, &[0], &WHOLE, out);
    program.put(SET_WORD, 2, 0, 0, word_v4(own));
    program.put(STORE_WORD_OF, 6, 2, SOURCE_V4, 0);
    program.land(out);
    program.end(1);
    program.instructions
}

/// Whether anything can be told by a socket's user only, so that [`judge_receivers`] is needed.
pub(super) fn by_user(parties: &[Party]) -> bool {
    conditions(parties).any(|condition| condition.user.is_some())
}

fn conditions(parties: &[Party]) -> impl Iterator<Item = &Condition> {
    let conditions = parties.iter().filter_map(|party| match &party.owner {
        Owner::Any(conditions) => Some(conditions),
        Owner::Rest => None,
    });
    conditions.flatten()
}

/// Whether what arrives for this party takes a look at the user.
pub(super) fn needs_user(party: &Party, parties: &[Party]) -> bool {
    match &party.owner {
        Owner::Any(conditions) => conditions.iter().any(|condition| condition.user.is_some()),
        Owner::Rest => by_user(parties),
    }
}

/// Has every socket of the host refuse what is for an instance that it does not belong to, for those instances where that takes a
/// look at the user, while the descriptor is open. `root` is the hierarchy's.
pub(super) fn judge_receivers(root: BorrowedFd<'_>, parties: &[Party]) -> io::Result<OwnedFd> {
    let everywhere = || bpf::attach(INGRESS, &receivers(parties, None), root);
    // The hierarchy is the whole machine's, containers' network namespaces included. A kernel before 6.15 does not tell a program
    // which one it is in: then the addresses are these instances' everywhere.
    let Ok(cookie) = bpf::namespace_cookie() else { return everywhere() };
    bpf::attach(INGRESS, &receivers(parties, Some(cookie)), root).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::EACCES) => everywhere(),
        _ => Err(error),
    })
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u32 = 6;
const LOAD_BYTE: u8 = 0x71;
const TCP_RST: u32 = 0x04;

/// In the network namespace with this cookie, where there is one.
fn receivers(parties: &[Party], namespace: Option<u64>) -> Vec<Instruction> {
    let mut program = Writer::default();
    program.put(COPY, 6, 1, 0, 0);
    if let Some(cookie) = namespace {
        let here = program.label();
        program.call(GET_NETNS_COOKIE);
        program.constant(1, cookie);
        program.jump(JUMP_IF_SAME, 0, 1, 0, here);
        program.end(1);
        program.land(here);
    }
    for party in parties.iter().filter(|party| needs_user(party, parties)) {
        for address in party.addresses.iter() {
            let next = program.label();
            let (protocol, offset, words) = match address {
                IpAddr::V4(address) => (IPV4, 16, vec![word_v4(address)]),
                IpAddr::V6(address) => (IPV6, 24, words_v6(address).to_vec()),
            };
            let protocol = u32::from(protocol.to_be());
            program.expect(6, PACKET_PROTOCOL, &[protocol], &WHOLE, next);
            program.load_bytes(offset, u32::try_from(4 * words.len()).unwrap_or(0), next);
            program.expect(10, -16, &words, &WHOLE, next);
            program.pass_resets(address.is_ipv4());
            let theirs: Vec<_> = match &party.owner {
                Owner::Any(conditions) => conditions.iter().collect(),
                Owner::Rest => conditions(parties).collect(),
            };
            let holds = party.owner != Owner::Rest;
            for condition in theirs {
                let not = program.label();
                program.expect_socket(condition, not);
                program.end(u32::from(holds));
                program.land(not);
            }
            program.end(u32::from(!holds));
            program.land(next);
        }
    }
    program.end(1);
    program.instructions
}

impl Writer {
    /// Puts bytes of the packet at the stack's end, or goes to `otherwise` where it has none there.
    fn load_bytes(&mut self, offset: u32, length: u32, otherwise: Label) {
        self.put(COPY, 1, 6, 0, 0);
        self.put(SET, 2, 0, 0, offset);
        self.put(COPY, 3, 10, 0, 0);
        self.put(ADD, 3, 0, 0, (-16_i32).cast_unsigned());
        self.put(SET, 4, 0, 0, length);
        self.call(SKB_LOAD_BYTES);
        self.jump(JUMP_UNLESS_WORD, 0, 0, 0, otherwise);
    }

    /// Goes on if that byte of the packet is `value` under `mask`.
    fn expect_byte(&mut self, offset: u32, mask: u32, value: u32, otherwise: Label) {
        self.load_bytes(offset, 1, otherwise);
        self.put(LOAD_BYTE, 2, 10, -16, 0);
        self.put(AND_WORD, 2, 0, 0, mask);
        self.jump(JUMP_UNLESS_WORD, 2, 0, value, otherwise);
    }

    /// A reset without options and extension headers passes: it ends what a program was refused, and bears nothing.
    fn pass_resets(&mut self, v4: bool) {
        let none = self.label();
        let (protocol, flags) = if v4 { (9, 20 + 13) } else { (6, 40 + 13) };
        if v4 {
            self.expect_byte(0, 0xff, 0x45, none);
        }
        self.expect_byte(protocol, 0xff, TCP, none);
        self.expect_byte(flags, TCP_RST, TCP_RST, none);
        self.end(1);
        self.land(none);
    }

    /// A constant of 64 bits, which takes two instructions.
    fn constant(&mut self, register: u8, value: u64) {
        self.put(LOAD_CONSTANT, register, 0, 0, value as u32);
        self.put(0, 0, 0, 0, (value >> 32) as u32);
    }

    /// Goes on if the socket that would take the packet fits.
    fn expect_socket(&mut self, condition: &Condition, otherwise: Label) {
        if let Some(user) = condition.user {
            self.put(COPY, 1, 6, 0, 0);
            self.call(GET_SOCKET_UID);
            self.jump(JUMP_UNLESS_WORD, 0, 0, user, otherwise);
        }
        if let Some(place) = condition.place {
            self.put(COPY, 1, 6, 0, 0);
            self.put(SET, 2, 0, 0, place.level);
            self.call(SKB_ANCESTOR_CGROUP_ID);
            self.constant(1, place.id);
            self.jump(JUMP_UNLESS_SAME, 0, 1, 0, otherwise);
        }
    }
}
