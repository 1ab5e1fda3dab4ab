//! The UDP sockets: one per worker, all on one port (`SO_REUSEPORT`), dual stack where the host has IPv6. A classic
//! BPF program gives transport messages to the worker that their receiver index names, so that a session's
//! datagrams meet its replay window on one thread; everything else goes to worker 0.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use warren_engine::output::Transmit;

use super::io::{OuterIo, ReceiveBatch, SendRefusal};
use super::offload::{Offload, Offloads, kernel_version};

/// Several milliseconds of a 10 Gbit/s path: a burst must not be lost while the worker is busy.
const BUFFER: usize = 7 * 1024 * 1024;
/// Datagrams or trains per system call.
const BATCH: usize = 64;
/// How long a worker waits for a full send buffer to drain before it drops: the path's own back-pressure.
const SEND_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Endpoints whose route takes no trains at present; more are forgotten, oldest first, and tried again.
const MAX_RESTS: usize = 16;
/// Trains to such an endpoint that go datagram by datagram before one is tried again. Short: a refusal may be of the
/// moment (one start in ten sees one), and on a route that takes none a try is one call among two thousand.
const REST: u32 = 64;

/// Why there is no socket. Each text ends in the next step.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The port is taken.
    #[error(
        "UDP port {0} is in use by another process: see `ss -ulpn sport = :{0}`; stop it, or set tunnel.port to another port"
    )]
    PortInUse(u16),
    /// The process may not use the port.
    #[error("UDP port {0} is not permitted for this process: use a port above 1023, or give it CAP_NET_BIND_SERVICE")]
    NotPermitted(u16),
    /// Anything else the kernel said.
    #[error("cannot {what} the UDP socket on port {port}: {error}; check the host's limits and its IP configuration")]
    Refused {
        /// The port that was asked for.
        port: u16,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// The sockets of one port.
#[derive(Debug)]
pub struct UdpSockets {
    /// One per worker, in the order that the steering program counts.
    pub sockets: Vec<UdpSocket>,
    /// The first of them once more, for the engine's own messages.
    pub engine: UdpSocket,
    /// The port, chosen by the kernel when 0 was asked for.
    pub port: u16,
    /// Whether peers can be reached over IPv6.
    pub ipv6: bool,
    /// What works less well than it could, for `warren status`.
    pub notes: Vec<String>,
}

/// One worker's socket.
pub struct UdpSocket {
    fd: OwnedFd,
    ipv6: bool,
    vectors: Box<Vectors>,
    offloads: Arc<Offloads>,
    /// Where trains were refused, with how many more go apart.
    rests: Vec<(SocketAddr, u32)>,
}

/// The headers that `recvmmsg` and `sendmmsg` work on, allocated once. Every pointer in them is set from a live
/// borrow right before the call that reads it, and never read by anything else.
struct Vectors {
    headers: [libc::mmsghdr; BATCH],
    buffers: [libc::iovec; BATCH],
    names: [libc::sockaddr_storage; BATCH],
    controls: [Control; BATCH],
    targets: [SocketAddr; BATCH],
    /// Bytes of each datagram but the last.
    segments: [usize; BATCH],
}

/// Room for one control message that carries an `int`, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 32]);

// SAFETY: the raw pointers inside are dead between calls (see `Vectors`), so another thread may own the memory.
unsafe impl Send for Vectors {}

impl std::fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpSocket").field("fd", &self.fd).field("ipv6", &self.ipv6).finish_non_exhaustive()
    }
}

/// Binds `count` sockets to one UDP port on every address of the host; port 0 lets the kernel choose. Of `offloads`
/// they use what is on and say what the kernel does not have.
pub fn bind(port: u16, count: usize, offloads: &Arc<Offloads>) -> Result<UdpSockets, UdpError> {
    match bind_family(port, count, true, offloads) {
        Err(UdpError::Refused { error, .. })
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
            ) =>
        {
            bind_family(port, count, false, offloads)
        }
        outcome => outcome,
    }
}

fn bind_family(asked: u16, count: usize, ipv6: bool, offloads: &Arc<Offloads>) -> Result<UdpSockets, UdpError> {
    let refused = |what| {
        move |errno: rustix::io::Errno| match errno {
            rustix::io::Errno::ADDRINUSE => UdpError::PortInUse(asked),
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => UdpError::NotPermitted(asked),
            _ => UdpError::Refused { port: asked, what, error: errno.into() },
        }
    };
    let socket = |fd| UdpSocket {
        fd,
        ipv6,
        vectors: Vectors::new(),
        offloads: Arc::clone(offloads),
        rests: Vec::with_capacity(MAX_RESTS),
    };
    let mut sockets = Vec::with_capacity(count);
    let mut notes = Vec::new();
    let mut port = asked;
    for position in 0..count {
        let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).map_err(refused("create"))?;
        if ipv6 {
            sockopt::set_ipv6_v6only(&fd, false).map_err(refused("make dual stack"))?;
        }
        allow_fragments(&fd, ipv6).map_err(|error| UdpError::Refused { port: asked, what: "configure", error })?;
        // The first socket is bound before it shares its port, so that a port of another process is noticed
        // even when that one shares too.
        if position > 0 {
            sockopt::set_socket_reuseport(&fd, true).map_err(refused("share the port of"))?;
        }
        let everywhere = if ipv6 {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
        } else {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        };
        rustix::net::bind(&fd, &everywhere).map_err(refused("bind"))?;
        if position == 0 {
            sockopt::set_socket_reuseport(&fd, true).map_err(refused("share the port of"))?;
            let bound = rustix::net::getsockname(&fd).map_err(refused("read the address of"))?;
            port = SocketAddr::try_from(bound).map_err(refused("read the address of"))?.port();
        }
        let note = enlarge_buffers(&fd);
        if position == 0 {
            notes.extend(note);
        }
        request_offloads(&fd, offloads);
        sockets.push(socket(fd));
    }
    if !ipv6 {
        notes.push("IPv6 is off on this host: peers are reached over IPv4 only".to_owned());
    }
    let failed = |what| move |error| UdpError::Refused { port: asked, what, error };
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "no worker to bind it for");
    let first: &UdpSocket = sockets.first().ok_or_else(none).map_err(failed("bind"))?;
    if count > 1 {
        steer(&first.fd, count).map_err(failed("steer"))?;
    }
    let fd = first.fd.try_clone().map_err(failed("copy"))?;
    let engine = socket(fd);
    Ok(UdpSockets { sockets, engine, port, ipv6, notes })
}

/// Asks for trains in both directions.
fn request_offloads(fd: &OwnedFd, offloads: &Offloads) {
    let version = kernel_version();
    // These kernels damage the UDP header of the last datagram of a train.
    if ((7, 0, 0)..(7, 1, 5)).contains(&version) {
        offloads.faulty(Offload::Gso);
    }
    // Earlier ones merge datagrams that they should not.
    if version < (5, 12, 0) {
        offloads.faulty(Offload::Gro);
    }
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    // Zero: no train unless a message says so.
    if offloads.is_on(Offload::Gso)
        && let Err(error) = set_option(fd, libc::IPPROTO_UDP, libc::UDP_SEGMENT, &0)
    {
        offloads.unsupported(Offload::Gso, errno(error));
    }
    if offloads.is_on(Offload::Gro)
        && let Err(error) = set_option(fd, libc::IPPROTO_UDP, libc::UDP_GRO, &1)
    {
        offloads.unsupported(Offload::Gro, errno(error));
    }
}

/// Leaves outer datagrams without "don't fragment": a path narrower than the tunnel's MTU then costs speed and not
/// connections.
fn allow_fragments(fd: &OwnedFd, ipv6: bool) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DONT)?;
    if ipv6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IP_PMTUDISC_DONT)?;
    }
    Ok(())
}

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which lives through the call; every caller passes the
    // plain C type that the option takes.
    let outcome = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for large buffers, past the system's limit where that is permitted; says so where they stay small.
fn enlarge_buffers(fd: &OwnedFd) -> Option<String> {
    if sockopt::set_socket_recv_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(fd, BUFFER);
    }
    if sockopt::set_socket_send_buffer_size_force(fd, BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(fd, BUFFER);
    }
    // The kernel reports twice what it was asked for, to cover its own bookkeeping.
    let got = sockopt::socket_recv_buffer_size(fd).unwrap_or(0) / 2;
    (got < BUFFER).then(|| {
        format!(
            "the UDP receive buffer is {got} bytes instead of {BUFFER}: bursts may be lost; \
             set net.core.rmem_max={BUFFER} and net.core.wmem_max={BUFFER}, or give the node CAP_NET_ADMIN"
        )
    })
}

/// Attaches the steering program: `receiver index % count` for transport messages, 0 for the rest. A load beyond
/// the datagram's end also ends in 0.
fn steer(fd: &OwnedFd, count: usize) -> io::Result<()> {
    const TRANSPORT_DATA: u32 = 4;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load_byte = |offset| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset);
    let shift = |bits| step(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, bits);
    let mut program = vec![
        load_byte(0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 1,
            jf: 0,
            k: TRANSPORT_DATA,
        },
        step(libc::BPF_RET | libc::BPF_K, 0),
        load_byte(7),
    ];
    // The index is little-endian on the wire and the filter machine loads big-endian: put together byte by byte.
    for offset in [6, 5, 4] {
        program.extend([
            shift(8),
            step(libc::BPF_MISC | libc::BPF_TAX, 0),
            load_byte(offset),
            step(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0),
        ]);
    }
    program.push(step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, u32::try_from(count).unwrap_or(u32::MAX)));
    program.push(step(libc::BPF_RET | libc::BPF_A, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // The kernel copies the program during the call, while `program` lives.
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &filter)
}

impl Vectors {
    fn new() -> Box<Self> {
        // SAFETY: all-zero bytes are valid for these C structures: numbers, null pointers and an unspecified family.
        let (headers, buffers, names) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let controls = [Control([0; 32]); BATCH];
        Box::new(Self { headers, buffers, names, controls, targets: [nobody; BATCH], segments: [0; BATCH] })
    }

    /// Points entry `position` at `bytes`, with room for an address of `name_length` bytes.
    fn point(&mut self, position: usize, bytes: *mut u8, length: usize, name_length: usize) {
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

    /// Gives entry `position` room for a control message from the kernel.
    fn expect_control(&mut self, position: usize) {
        let header = &mut self.headers[position].msg_hdr;
        header.msg_control = (&raw mut self.controls[position]).cast();
        header.msg_controllen = size_of::<Control>() as _;
    }

    /// Has the kernel cut entry `position` into datagrams of `segment` bytes.
    fn cut(&mut self, position: usize, segment: u16) {
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
    fn stride(&self, position: usize) -> Option<usize> {
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

impl OuterIo for UdpSocket {
    fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.clear();
        let mut count = 0;
        let coalesces = self.coalesces();
        for slot in batch.spare().take(BATCH) {
            self.vectors.point(count, slot.as_mut_ptr(), slot.len(), size_of::<libc::sockaddr_storage>());
            if coalesces {
                self.vectors.expect_control(count);
            }
            count += 1;
        }
        // SAFETY: the first `count` headers point at distinct slots of `batch`, which is borrowed mutably through
        // the call, and at names inside `self.vectors`.
        let received = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                self.vectors.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        }
        let received = received.unsigned_abs() as usize;
        for position in 0..received {
            let header = &self.vectors.headers[position];
            let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let length = if cut { usize::MAX } else { header.msg_len as usize };
            let stride = self.vectors.stride(position).unwrap_or(length);
            // The kernel writes no other family here; a source of nowhere is no peer's in any case.
            let from = read_name(&self.vectors.names[position]).unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            batch.fill(from, length, stride);
        }
        Ok(received)
    }

    fn send<'a>(
        &mut self,
        trains: &mut dyn Iterator<Item = Transmit<'a>>,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    ) {
        let mut count = 0;
        for train in trains {
            let is_train = train.bytes.len() > train.segment;
            if !is_train || self.takes_train(train.endpoint) {
                self.add(&mut count, train, refused);
            } else {
                for bytes in train.datagrams() {
                    self.add(&mut count, Transmit { bytes, ..train }, refused);
                }
            }
        }
        self.flush(count, refused);
    }

    fn coalesces(&self) -> bool {
        self.offloads.is_on(Offload::Gro)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UdpSocket {
    /// Adds an entry; sends first where there is no room. What the entries point at must live until they are sent.
    fn add(&mut self, count: &mut usize, train: Transmit<'_>, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        if *count == BATCH {
            self.flush(BATCH, refused);
            *count = 0;
        }
        let Transmit { endpoint, bytes, segment } = train;
        let position = *count;
        let Some(length) = write_name(&mut self.vectors.names[position], endpoint, self.ipv6) else {
            let failed = SendRefusal::Failed(libc::EAFNOSUPPORT);
            return train.datagrams().for_each(|_| refused(endpoint, failed));
        };
        self.vectors.point(position, bytes.as_ptr().cast_mut(), bytes.len(), length);
        self.vectors.targets[position] = endpoint;
        self.vectors.segments[position] = segment.max(1);
        if bytes.len() > segment {
            self.vectors.cut(position, u16::try_from(segment).unwrap_or(u16::MAX));
        }
        *count += 1;
    }

    /// Whether the route to `endpoint` is believed to take trains.
    fn takes_train(&mut self, endpoint: SocketAddr) -> bool {
        if !self.offloads.is_on(Offload::Gso) {
            return false;
        }
        let Some(place) = self.rests.iter().position(|(at, _)| *at == endpoint) else { return true };
        self.rests[place].1 -= 1;
        if self.rests[place].1 == 0 {
            self.rests.remove(place);
        }
        false
    }

    /// Sends the first `count` entries.
    fn flush(&mut self, count: usize, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        let mut next = 0;
        // `ECONNREFUSED` and the like report an earlier datagram's fate; `ENOBUFS` may pass: one more try each.
        let mut retried = None;
        while next < count {
            // SAFETY: headers `next..count` point at datagrams that the caller of `send` still borrows and at
            // names and control messages inside `self.vectors`; `sendmmsg` only reads what they point at.
            let sent = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    self.vectors.headers.as_mut_ptr().add(next),
                    (count - next) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            if sent > 0 {
                next += sent.unsigned_abs() as usize;
                continue;
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            let to = self.vectors.targets[next];
            let is_train = self.vectors.buffers[next].iov_len > self.vectors.segments[next];
            match errno {
                libc::EINTR => {}
                libc::EAGAIN if self.becomes_writable() => {}
                // EIO: the device computes no checksums, or the route transforms packets. EMSGSIZE, EINVAL before
                // Linux 6.14: a datagram does not fit the route; alone it may go in fragments.
                libc::EIO | libc::EINVAL | libc::EMSGSIZE if is_train => {
                    self.rest(to);
                    self.send_apart(next, refused);
                    next += 1;
                }
                libc::EMSGSIZE => {
                    refused(to, SendRefusal::TooBig);
                    next += 1;
                }
                libc::ENOBUFS | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH
                    if retried != Some(next) =>
                {
                    retried = Some(next);
                }
                _ => {
                    let length = self.vectors.buffers[next].iov_len;
                    let datagrams = length.div_ceil(self.vectors.segments[next]).max(1);
                    (0..datagrams).for_each(|_| refused(to, SendRefusal::Failed(errno)));
                    next += 1;
                }
            }
        }
    }

    /// Sends no trains to `endpoint` for a while: its route does not take them.
    fn rest(&mut self, endpoint: SocketAddr) {
        self.offloads.count_apart(Offload::Gso);
        self.rests.retain(|(at, _)| *at != endpoint);
        if self.rests.len() == MAX_RESTS {
            self.rests.remove(0);
        }
        self.rests.push((endpoint, REST));
    }

    /// Sends the datagrams of the train at entry `position` one by one.
    fn send_apart(&mut self, position: usize, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        let (to, segment) = (self.vectors.targets[position], self.vectors.segments[position]);
        let libc::iovec { iov_base, iov_len } = self.vectors.buffers[position];
        let name_length = self.vectors.headers[position].msg_hdr.msg_namelen;
        let mut retried = None;
        let mut at = 0;
        while at < iov_len {
            let length = segment.min(iov_len - at);
            // SAFETY: the entry points at `iov_len` bytes that the caller of `send` still borrows, and at a name of
            // `name_length` bytes inside `self.vectors`; `sendto` only reads both.
            let sent = unsafe {
                libc::sendto(
                    self.fd.as_raw_fd(),
                    iov_base.cast::<u8>().add(at).cast(),
                    length,
                    libc::MSG_DONTWAIT,
                    (&raw const self.vectors.names[position]).cast(),
                    name_length,
                )
            };
            if sent >= 0 {
                at += length;
                continue;
            }
            match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                libc::EAGAIN if self.becomes_writable() => {}
                libc::ENOBUFS | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH if retried != Some(at) => {
                    retried = Some(at);
                }
                errno => {
                    refused(to, if errno == libc::EMSGSIZE { SendRefusal::TooBig } else { SendRefusal::Failed(errno) });
                    at += length;
                }
            }
        }
    }

    fn becomes_writable(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.fd, PollFlags::OUT)];
        poll(&mut descriptors, Some(&SEND_PATIENCE)).is_ok_and(|ready| ready > 0)
    }
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
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
fn write_name(name: &mut libc::sockaddr_storage, to: SocketAddr, ipv6: bool) -> Option<usize> {
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

#[cfg(test)]
mod tests;
