//! The message headers of `recvmmsg` and `sendmmsg` with everything that they point at: addresses, buffers and control
//! messages.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::BATCH;

/// Two messages of 24 bytes, segment and ECN bits, and one to spare.
const CONTROL: usize = 72;

/// The headers that `recvmmsg` and `sendmmsg` work on, allocated once. Every pointer in them is set from a live
/// borrow right before the call that reads it, and never read by anything else.
pub(super) struct Vectors {
    pub(super) headers: [libc::mmsghdr; BATCH],
    pub(super) buffers: [libc::iovec; BATCH],
    pub(super) names: [libc::sockaddr_storage; BATCH],
    pub(super) controls: [Control; BATCH],
    pub(super) targets: [SocketAddr; BATCH],
    /// Bytes of each datagram but the last.
    pub(super) segments: [usize; BATCH],
    ecn: [u8; BATCH],
}

/// Room for the control messages of one entry, each with an `int` at most, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL]);

// SAFETY: the raw pointers inside are dead between calls (see `Vectors`), so another thread may own the memory.
unsafe impl Send for Vectors {}

impl Vectors {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: all-zero bytes are valid for these C structures: numbers, null pointers and an unspecified family.
        let (headers, buffers, names) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let controls = [Control([0; CONTROL]); BATCH];
        Box::new(Self {
            headers,
            buffers,
            names,
            controls,
            targets: [nobody; BATCH],
            segments: [0; BATCH],
            ecn: [0; BATCH],
        })
    }

    /// Points entry `position` at `bytes`, with room for an address of `name_length` bytes.
    pub(super) fn point(&mut self, position: usize, bytes: *mut u8, length: usize, name_length: usize) {
        self.buffers[position] = libc::iovec { iov_base: bytes.cast(), iov_len: length };
        let header = &mut self.headers[position];
        header.msg_len = 0;
        header.msg_hdr.msg_name = (&raw mut self.names[position]).cast();
        header.msg_hdr.msg_namelen = name_length as libc::socklen_t;
        header.msg_hdr.msg_iov = &raw mut self.buffers[position];
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = std::ptr::null_mut();
        header.msg_hdr.msg_controllen = 0;
        header.msg_hdr.msg_flags = 0;
    }

    /// Points entry `position` at a part of what it pointed at, which goes as one datagram.
    pub(super) fn point_at_part(&mut self, position: usize, bytes: *mut u8, length: usize) {
        self.buffers[position] = libc::iovec { iov_base: bytes.cast(), iov_len: length };
        self.describe(position, None, self.ecn[position]);
    }

    /// Gives entry `position` room for a control message from the kernel.
    pub(super) fn expect_control(&mut self, position: usize) {
        let header = &mut self.headers[position].msg_hdr;
        header.msg_control = (&raw mut self.controls[position]).cast();
        header.msg_controllen = size_of::<Control>() as _;
    }

    /// Has the kernel cut entry `position` into datagrams of `cut` bytes, and mark each with the ECN bits `ecn`. Without
    /// either it carries no control message.
    pub(super) fn describe(&mut self, position: usize, cut: Option<u16>, ecn: u8) {
        self.ecn[position] = ecn;
        let (level, kind) = match self.targets[position] {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        let Control(room) = &mut self.controls[position];
        let mut length = 0;
        if let Some(segment) = cut {
            length += write_message(&mut room[length..], libc::IPPROTO_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if ecn != 0 {
            length += write_message(&mut room[length..], level, kind, &libc::c_int::from(ecn).to_ne_bytes());
        }
        let header = &mut self.headers[position].msg_hdr;
        header.msg_control = if length == 0 { std::ptr::null_mut() } else { (&raw mut self.controls[position]).cast() };
        header.msg_controllen = length as _;
    }

    /// What the kernel said of what entry `position` received.
    pub(super) fn told(&self, position: usize) -> Told {
        // Another type on other C libraries.
        let length: usize = self.headers[position].msg_hdr.msg_controllen as _;
        let Control(room) = &self.controls[position];
        let mut rest = &room[..length.min(CONTROL)];
        let mut told = Told { stride: None, ecn: 0 };
        while let Some((level, kind, data, next)) = read_message(rest) {
            let int = || data.first_chunk().map(|bytes| libc::c_int::from_ne_bytes(*bytes));
            match (level, kind) {
                (libc::IPPROTO_UDP, libc::UDP_GRO) => {
                    told.stride = int().and_then(|stride| usize::try_from(stride).ok()).filter(|stride| *stride > 0);
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => told.ecn = data.first().map_or(0, |tos| tos & 3),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => told.ecn = int().map_or(0, |class| (class & 3) as u8),
                _ => {}
            }
            rest = next;
        }
        told
    }
}

/// What came with a datagram or a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    /// Bytes of each datagram but the last, if the kernel joined several.
    pub(super) stride: Option<usize>,
    /// The ECN bits of their IP headers.
    pub(super) ecn: u8,
}

/// A control message's own header: length, level and type.
const MESSAGE: usize = size_of::<libc::cmsghdr>();

/// Writes one control message to the front of `room`, and says how much of it that takes.
fn write_message(room: &mut [u8], level: libc::c_int, kind: libc::c_int, data: &[u8]) -> usize {
    let space = MESSAGE + data.len().next_multiple_of(size_of::<usize>());
    let Some(room) = room.get_mut(..space) else { return 0 };
    let (head, body) = room.split_at_mut(MESSAGE);
    head[..size_of::<usize>()].copy_from_slice(&(MESSAGE + data.len()).to_ne_bytes());
    head[MESSAGE - 8..MESSAGE - 4].copy_from_slice(&level.to_ne_bytes());
    head[MESSAGE - 4..].copy_from_slice(&kind.to_ne_bytes());
    body[..data.len()].copy_from_slice(data);
    space
}

/// The first control message in `bytes`, level, type and data, and what follows it.
fn read_message(bytes: &[u8]) -> Option<(libc::c_int, libc::c_int, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(*bytes.first_chunk()?);
    let int = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| libc::c_int::from_ne_bytes(*bytes));
    let data = bytes.get(MESSAGE..length)?;
    let next = bytes.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    Some((int(MESSAGE - 8)?, int(MESSAGE - 4)?, data, next))
}

pub(super) fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = std::ptr::from_ref(name);
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: `sockaddr_storage` is larger than and aligned for every address structure, and the family
            // says which one the kernel wrote.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            let (address, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
            // A dual-stack socket shows IPv4 sources as mapped addresses; nobody else should.
            Some(match address.to_ipv4_mapped() {
                Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
                None => SocketAddr::V6(SocketAddrV6::new(address, port, 0, v6.sin6_scope_id)),
            })
        }
        _ => None,
    }
}

/// Writes the address as the socket's family wants it; its length, or `None` where the socket cannot reach it.
pub(super) fn write_name(name: &mut libc::sockaddr_storage, to: SocketAddr, ipv6: bool) -> Option<usize> {
    let pointer = std::ptr::from_mut(name);
    let (address, scope) = match (to, ipv6) {
        (SocketAddr::V4(to), false) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is larger than and aligned for every address structure.
            unsafe { pointer.cast::<libc::sockaddr_in>().write(raw) };
            return Some(size_of::<libc::sockaddr_in>());
        }
        (SocketAddr::V6(_), false) => return None,
        (SocketAddr::V4(to), true) => (to.ip().to_ipv6_mapped(), 0),
        (SocketAddr::V6(to), true) => (*to.ip(), to.scope_id()),
    };
    let raw = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: to.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.octets() },
        sin6_scope_id: scope,
    };
    // SAFETY: as above.
    unsafe { pointer.cast::<libc::sockaddr_in6>().write(raw) };
    Some(size_of::<libc::sockaddr_in6>())
}
