//! The system calls by which packets pass and devices are asked for what they can do: one narrow seam between the
//! device modules and the kernel. [`Kernel`] is the only one there is outside tests; a test puts a script in its place
//! and shows what becomes of a packet for every error that a call can end in.
#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// What the device modules ask of the kernel. No call blocks but [`Self::wait_writable`].
pub trait Syscalls: Clone + Send {
    /// `readv(2)`: one packet.
    fn readv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>]) -> Result<usize, Errno>;

    /// `writev(2)`: one packet; the bytes that were taken.
    fn writev(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize, Errno>;

    /// `recvmmsg(2)`: how many of `headers` were filled.
    ///
    /// # Safety
    /// Every pointer in `headers` points at memory that is writable for the length beside it and not borrowed
    /// otherwise during the call.
    unsafe fn recvmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno>;

    /// `sendmmsg(2)`: how many of `headers` were sent, from the first on.
    ///
    /// # Safety
    /// Every pointer in `headers` points at memory that is readable for the length beside it.
    unsafe fn sendmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno>;

    /// `ioctl(TUNSETOFFLOAD)`: the super-packets that the device may give.
    fn set_tun_offload(&self, fd: BorrowedFd<'_>, features: libc::c_uint) -> Result<(), Errno>;

    /// `ioctl(SIOCETHTOOL)` with `ETHTOOL_GTSO`, on any socket: whether the host's stack gives TCP super-packets to `device`.
    fn gives_tso(&self, socket: BorrowedFd<'_>, device: &str) -> Result<bool, Errno>;

    /// `setsockopt(2)` with an option that takes an `int`.
    fn set_option(&self, fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<(), Errno>;

    /// Waits until the send buffer has room; whether it has.
    fn wait_writable(&self, fd: BorrowedFd<'_>, at_most: Timespec) -> bool;

    /// The largest IP packet that this host believes the path to `to` takes: the route's device, or less where the route
    /// says so or some other socket's ICMP did.
    fn path_mtu(&self, to: SocketAddr) -> Result<usize, Errno>;
}

/// The kernel itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Syscalls for Kernel {
    #[inline]
    fn readv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>]) -> Result<usize, Errno> {
        rustix::io::readv(fd, parts)
    }

    #[inline]
    fn writev(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        rustix::io::writev(fd, parts)
    }

    #[inline]
    unsafe fn recvmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
        let (first, count) = (headers.as_mut_ptr(), headers.len() as libc::c_uint);
        // SAFETY: the caller answers for what the headers point at; the headers themselves are borrowed.
        count_of(unsafe { libc::recvmmsg(fd.as_raw_fd(), first, count, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) })
    }

    #[inline]
    unsafe fn sendmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
        let (first, count) = (headers.as_mut_ptr(), headers.len() as libc::c_uint);
        // SAFETY: as above; the kernel writes `msg_len` of each header and reads everything else.
        count_of(unsafe { libc::sendmmsg(fd.as_raw_fd(), first, count, libc::MSG_DONTWAIT as _) })
    }

    fn set_tun_offload(&self, fd: BorrowedFd<'_>, features: libc::c_uint) -> Result<(), Errno> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(features)) };
        count_of(outcome).map(|_| ())
    }

    fn gives_tso(&self, socket: BorrowedFd<'_>, device: &str) -> Result<bool, Errno> {
        /// linux/ethtool.h.
        const ETHTOOL_GTSO: u32 = 0x1e;
        // A command and what it gives: `struct ethtool_value`.
        let mut value = [ETHTOOL_GTSO, 0];
        // SAFETY: all-zero bytes are a valid `ifreq`: a C structure of characters, numbers and null pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(room)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the kernel reads `request`, whose name ends in a zero, and reads and writes the two words that it points
        // at; all of them live through the call.
        let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        count_of(outcome).map(|_| value[1] != 0)
    }

    fn set_option(&self, fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        let (pointer, length) = (&raw const value, size_of::<i32>() as libc::socklen_t);
        // SAFETY: the kernel reads `length` bytes of `value`, which lives through the call.
        count_of(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer.cast(), length) }).map(|_| ())
    }

    fn wait_writable(&self, fd: BorrowedFd<'_>, at_most: Timespec) -> bool {
        let mut descriptors = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
        poll(&mut descriptors, Some(&at_most)).is_ok_and(|ready| ready > 0)
    }

    fn path_mtu(&self, to: SocketAddr) -> Result<usize, Errno> {
        let (family, anywhere, level, name) = if to.is_ipv4() {
            let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            (AddressFamily::INET, anywhere, libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            let anywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            (AddressFamily::INET6, anywhere, libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        // The kernel tells it of connected sockets only; connecting a UDP socket looks the route up and sends nothing.
        let made = move || rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = crate::underlay::run(made).map_err(|_| Errno::AGAIN)??;
        rustix::net::bind(&socket, &anywhere)?;
        rustix::net::connect(&socket, &to)?;
        let mut value: libc::c_int = 0;
        let mut length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `value`; both live through the call.
        let outcome =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
        count_of(outcome)?;
        usize::try_from(value).map_err(|_| Errno::INVAL)
    }
}

/// What a call of C's kind returned.
fn count_of(outcome: libc::c_int) -> Result<usize, Errno> {
    usize::try_from(outcome).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

#[cfg(test)]
pub(super) mod script;
