//! The message headers of `recvmmsg` and `sendmmsg` with everything that they point at: addresses, buffers and control
//! messages.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::BATCH;

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
}

/// Room for one control message that carries an `int`, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 32]);

// SAFETY: the raw pointers inside are dead between calls (see `Vectors`), so another thread may own the memory.
unsafe impl Send for Vectors {}

impl Vectors {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: all-zero bytes are valid for these C structures: numbers, null pointers and an unspecified family.
        let (headers, buffers, names) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let controls = [Control([0; 32]); BATCH];
        Box::new(Self { headers, buffers, names, controls, targets: [nobody; BATCH], segments: [0; BATCH] })
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
        let header = &mut self.headers[position].msg_hdr;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
    }

    /// Gives entry `position` room for a control message from the kernel.
    pub(super) fn expect_control(&mut self, position: usize) {
        let header = &mut self.headers[position].msg_hdr;
        header.msg_control = (&raw mut self.controls[position]).cast();
        header.msg_controllen = size_of::<Control>() as _;
    }

    /// Has the kernel cut entry `position` into datagrams of `segment` bytes.
    pub(super) fn cut(&mut self, position: usize, segment: u16) {
        self.expect_control(position);
        let header = &mut self.headers[position].msg_hdr;
        // SAFETY: `CMSG_SPACE` and `CMSG_LEN` only compute; `msg_control` points at a `Control`, which is aligned for a
        // `cmsghdr` and larger than one with 2 bytes of data.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(2) as _;
            let message = header.msg_control.cast::<libc::cmsghdr>();
            (*message).cmsg_level = libc::IPPROTO_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(segment);
        }
    }

    /// Bytes of each datagram but the last in what entry `position` received, if the kernel joined several.
    pub(super) fn stride(&self, position: usize) -> Option<usize> {
        let header = &self.headers[position].msg_hdr;
        // Another type on other C libraries.
        let length: usize = header.msg_controllen as _;
        if length < size_of::<libc::cmsghdr>() + size_of::<libc::c_int>() {
            return None;
        }
        // SAFETY: the kernel wrote `msg_controllen` bytes of control messages into a `Control`, at least one header and
        // an `int` by the check above.
        let (level, kind, value) = unsafe {
            let message = header.msg_control.cast::<libc::cmsghdr>();
            let value = libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned();
            ((*message).cmsg_level, (*message).cmsg_type, value)
        };
        let stride = usize::try_from(value).ok().filter(|stride| *stride > 0)?;
        (level == libc::IPPROTO_UDP && kind == libc::UDP_GRO).then_some(stride)
    }
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
