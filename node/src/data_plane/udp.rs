//! The UDP sockets: one per worker, all on one port (`SO_REUSEPORT`), dual stack where the host has IPv6. A classic
//! BPF program gives transport messages to the worker that their receiver index names, so that a session's
//! datagrams meet its replay window on one thread; everything else goes to worker 0.
#![allow(unsafe_code)]

mod vectors;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use warren_engine::output::Transmit;

use super::io::{Fragments, OuterIo, ReceiveBatch, SendRefusal};
use super::io_errors::{Call, describe};
use super::offload::{Offload, Offloads, kernel_version};
use super::syscalls::{Kernel, Syscalls};
use vectors::{Told, Vectors, read_name, write_name};

/// Several milliseconds of a 10 Gbit/s path: a burst must not be lost while the worker is busy.
const BUFFER: usize = 7 * 1024 * 1024;
/// Datagrams or trains per system call.
const BATCH: usize = 64;
/// How long a worker waits for a full send buffer to drain before it drops: the path's own back-pressure.
const SEND_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How often a send is tried that a signal broke off or that found the send buffer full.
const MOST_TRIES: u32 = 8;

/// Endpoints whose route takes no trains at present; more are forgotten, oldest first, and tried again.
const MAX_RESTS: usize = 16;
/// Trains to such an endpoint that go datagram by datagram before one is tried again. Short: a refusal may be of the
/// moment, and on a route that takes none a try is one call among two thousand.
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
pub struct UdpSockets<S: Syscalls = Kernel> {
    /// One per worker, in the order that the steering program counts.
    pub sockets: Vec<UdpSocket<S>>,
    /// The first of them once more, for the engine's own messages.
    pub engine: UdpSocket<S>,
    /// The port, chosen by the kernel when 0 was asked for.
    pub port: u16,
    /// Whether peers can be reached over IPv6.
    pub ipv6: bool,
    /// What works less well than it could, for `warren status`.
    pub notes: Vec<String>,
}

/// One worker's socket.
pub struct UdpSocket<S: Syscalls = Kernel> {
    fd: OwnedFd,
    ipv6: bool,
    vectors: Box<Vectors>,
    offloads: Arc<Offloads>,
    /// Where trains were refused, with how many more go apart.
    rests: Vec<(SocketAddr, u32)>,
    /// Whose path turned out to be narrower than a datagram, with the payload that it takes.
    narrow: Vec<(SocketAddr, usize)>,
    kernel: S,
}

impl<S: Syscalls> std::fmt::Debug for UdpSocket<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpSocket").field("fd", &self.fd).field("ipv6", &self.ipv6).finish_non_exhaustive()
    }
}

/// Binds `count` sockets to one UDP port on every address of the host; port 0 lets the kernel choose. Of `offloads`
/// they use what is on and say what the kernel does not have.
pub fn bind(port: u16, count: usize, offloads: &Arc<Offloads>) -> Result<UdpSockets, UdpError> {
    bind_with(port, count, offloads, &Kernel)
}

fn bind_with<S: Syscalls>(
    port: u16,
    count: usize,
    offloads: &Arc<Offloads>,
    kernel: &S,
) -> Result<UdpSockets<S>, UdpError> {
    match bind_family(port, count, true, offloads, kernel) {
        Err(UdpError::Refused { error, .. })
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
            ) =>
        {
            bind_family(port, count, false, offloads, kernel)
        }
        outcome => outcome,
    }
}

fn bind_family<S: Syscalls>(
    asked: u16,
    count: usize,
    ipv6: bool,
    offloads: &Arc<Offloads>,
    kernel: &S,
) -> Result<UdpSockets<S>, UdpError> {
    let refused = |what| {
        move |errno: Errno| match errno {
            Errno::ADDRINUSE => UdpError::PortInUse(asked),
            Errno::ACCESS | Errno::PERM => UdpError::NotPermitted(asked),
            _ => UdpError::Refused { port: asked, what, error: errno.into() },
        }
    };
    let socket = |fd| UdpSocket {
        fd,
        ipv6,
        vectors: Vectors::new(),
        offloads: Arc::clone(offloads),
        rests: Vec::with_capacity(MAX_RESTS),
        narrow: Vec::new(),
        kernel: kernel.clone(),
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
        allow_fragments(fd.as_fd(), ipv6, kernel).map_err(refused("configure"))?;
        let hears_marks = hear_marks(fd.as_fd(), ipv6, kernel);
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
            let deaf =
                |errno| format!("the kernel does not tell of congestion marks on datagrams ({})", describe(errno));
            notes.extend(hears_marks.err().map(deaf));
        }
        request_offloads(fd.as_fd(), offloads, kernel);
        sockets.push(socket(fd));
    }
    if !ipv6 {
        notes.push("IPv6 is off on this host: peers are reached over IPv4 only".to_owned());
    }
    let failed = |what| move |error| UdpError::Refused { port: asked, what, error };
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "no worker to bind it for");
    let first: &UdpSocket<S> = sockets.first().ok_or_else(none).map_err(failed("bind"))?;
    if count > 1 {
        steer(&first.fd, count).map_err(failed("steer"))?;
    }
    let fd = first.fd.try_clone().map_err(failed("copy"))?;
    let engine = socket(fd);
    Ok(UdpSockets { sockets, engine, port, ipv6, notes })
}

/// Asks for trains in both directions.
fn request_offloads(fd: BorrowedFd<'_>, offloads: &Offloads, kernel: &impl Syscalls) {
    let version = kernel_version();
    // These kernels damage the UDP header of the last datagram of a train.
    if ((7, 0, 0)..(7, 1, 5)).contains(&version) {
        offloads.faulty(Offload::Gso);
    }
    // Earlier ones merge datagrams that they should not.
    if version < (5, 12, 0) {
        offloads.faulty(Offload::Gro);
    }
    // Zero: no train unless a message says so.
    if offloads.is_on(Offload::Gso)
        && let Err(errno) = kernel.set_option(fd, libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0)
    {
        offloads.unsupported(Offload::Gso, errno);
    }
    if offloads.is_on(Offload::Gro)
        && let Err(errno) = kernel.set_option(fd, libc::IPPROTO_UDP, libc::UDP_GRO, 1)
    {
        offloads.unsupported(Offload::Gro, errno);
    }
}

/// Has the kernel tell the ECN bits of each datagram, whichever family it came by.
fn hear_marks(fd: BorrowedFd<'_>, ipv6: bool, kernel: &impl Syscalls) -> Result<(), Errno> {
    kernel.set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    if ipv6 {
        kernel.set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    Ok(())
}

/// How datagrams of IPv4 and of IPv6 are fragmented: where their device demands it, whatever routers say.
const OMIT: (i32, i32) = (libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_OMIT);

/// Leaves outer datagrams without "don't fragment": a path narrower than the tunnel's MTU then costs speed and not
/// connections. What ICMP says of the path is not believed: one forged message would have this host cut everything to that
/// peer into fragments, trains included, for ten minutes. The engine asks the path itself.
fn allow_fragments(fd: BorrowedFd<'_>, ipv6: bool, kernel: &impl Syscalls) -> Result<(), Errno> {
    kernel.set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, OMIT.0)?;
    if ipv6 {
        kernel.set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, OMIT.1)?;
    }
    Ok(())
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
    let (pointer, length) = (&raw const filter, size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: the kernel copies `filter` and the program that it points at during the call, while both live.
    let outcome = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, pointer.cast(), length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl<S: Syscalls> OuterIo for UdpSocket<S> {
    fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.clear();
        let mut count = 0;
        for slot in batch.spare().take(BATCH) {
            self.vectors.point(count, slot.as_mut_ptr(), slot.len(), size_of::<libc::sockaddr_storage>());
            self.vectors.expect_control(count);
            count += 1;
        }
        // SAFETY: the first `count` headers point at distinct slots of `batch`, which is borrowed mutably through
        // the call, and at names and control messages inside `self.vectors`.
        let received = match unsafe { self.kernel.recvmmsg(self.fd.as_fd(), &mut self.vectors.headers[..count]) } {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(errno) => {
                self.offloads.errors().count(Call::UdpReceive, errno, 1);
                return Err(errno.into());
            }
        };
        for position in 0..received {
            let header = &self.vectors.headers[position];
            let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let length = if cut { usize::MAX } else { header.msg_len as usize };
            let Told { stride, ecn } = self.vectors.told(position);
            let stride = stride.unwrap_or(length);
            // The kernel writes no other family here; a source of nowhere is no peer's in any case.
            let from = read_name(&self.vectors.names[position]).unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            batch.fill(from, ecn, length, stride);
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
        self.flush(0, count, refused);
    }

    fn coalesces(&self) -> bool {
        self.offloads.is_on(Offload::Gro)
    }

    /// Fragmentation is a setting of the socket. For the moment of this send it holds for what others send through it too;
    /// whatever of theirs does not fit its device then is refused as too big, which is what the path is asked about.
    fn send_alone(
        &mut self,
        datagram: Transmit<'_>,
        fragments: Fragments,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    ) {
        let (endpoint, length) = (datagram.endpoint, datagram.bytes.len());
        let mut count = 0;
        self.add(&mut count, datagram, refused);
        if count == 0 {
            return;
        }
        let (level, name, setting, otherwise) = match (endpoint.is_ipv4(), fragments) {
            (true, Fragments::Nowhere) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE, OMIT.0),
            (true, Fragments::AsRoutersSay) => {
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT, OMIT.0)
            }
            (false, Fragments::Nowhere) => {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE, OMIT.1)
            }
            (false, Fragments::AsRoutersSay) => {
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT, OMIT.1)
            }
        };
        if let Err(errno) = self.kernel.set_option(self.fd.as_fd(), level, name, setting) {
            return self.refuse(endpoint, 1, SendRefusal::Failed(errno.raw_os_error()), refused);
        }
        // SAFETY: header 0 points at the datagram, which lives through the call, and at a name inside `self.vectors`.
        match unsafe { self.kernel.sendmmsg(self.fd.as_fd(), &mut self.vectors.headers[..count]) } {
            Ok(1..) => {}
            Err(Errno::MSGSIZE) if fragments == Fragments::Nowhere => self.note_path(endpoint, length),
            Ok(0) | Err(_) => self.flush(0, count, refused),
        }
        if let Err(errno) = self.kernel.set_option(self.fd.as_fd(), level, name, otherwise) {
            self.offloads.errors().count(Call::UdpSend, errno, 0);
        }
    }

    fn poll_path_mtu(&mut self) -> Option<(SocketAddr, usize)> {
        self.narrow.pop()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What becomes of datagrams that the kernel did not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Again,
    /// The train goes datagram by datagram.
    Apart,
    Refuse(SendRefusal),
}

impl<S: Syscalls> UdpSocket<S> {
    /// Adds an entry; sends first where there is no room. What the entries point at must live until they are sent.
    fn add(&mut self, count: &mut usize, train: Transmit<'_>, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        if *count == BATCH {
            self.flush(0, BATCH, refused);
            *count = 0;
        }
        let Transmit { endpoint, bytes, segment, ecn } = train;
        let position = *count;
        let Some(length) = write_name(&mut self.vectors.names[position], endpoint, self.ipv6) else {
            let datagrams = train.datagrams().count();
            return self.refuse(endpoint, datagrams, SendRefusal::Failed(libc::EAFNOSUPPORT), refused);
        };
        self.vectors.point(position, bytes.as_ptr().cast_mut(), bytes.len(), length);
        self.vectors.targets[position] = endpoint;
        self.vectors.segments[position] = segment.max(1);
        let cut = (bytes.len() > segment).then(|| u16::try_from(segment).unwrap_or(u16::MAX));
        self.vectors.describe(position, cut, ecn);
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

    /// Sends the entries `next..end`.
    fn flush(&mut self, mut next: usize, end: usize, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        let mut tries = 1;
        while next < end {
            // SAFETY: headers `next..end` point at datagrams that the caller of `send` still borrows and at names and
            // control messages inside `self.vectors`.
            let sent = unsafe { self.kernel.sendmmsg(self.fd.as_fd(), &mut self.vectors.headers[next..end]) };
            // None sent and no error is nothing that the call does; it must not be tried for ever.
            let errno = match sent {
                Ok(sent @ 1..) => {
                    (next, tries) = (next + sent, 1);
                    continue;
                }
                Ok(0) => Errno::IO,
                Err(errno) => errno,
            };
            let (to, segment) = (self.vectors.targets[next], self.vectors.segments[next]);
            let length = self.vectors.buffers[next].iov_len;
            match self.judge(errno, length > segment, tries) {
                Verdict::Again => {
                    tries += 1;
                    continue;
                }
                Verdict::Apart => {
                    self.rest(to, errno);
                    self.note_path(to, segment);
                    self.send_apart(next, refused);
                }
                Verdict::Refuse(refusal) => {
                    if refusal == SendRefusal::TooBig {
                        self.note_path(to, length);
                    }
                    self.refuse(to, length.div_ceil(segment).max(1), refusal, refused);
                }
            }
            (next, tries) = (next + 1, 1);
        }
    }

    fn judge(&self, errno: Errno, is_train: bool, tries: u32) -> Verdict {
        match errno {
            Errno::INTR if tries < MOST_TRIES => Verdict::Again,
            Errno::AGAIN if tries < MOST_TRIES && self.kernel.wait_writable(self.fd.as_fd(), SEND_PATIENCE) => {
                Verdict::Again
            }
            // EIO: the device computes no checksums, or the route transforms packets. EMSGSIZE, EINVAL before
            // Linux 6.14: a datagram does not fit the route; alone it may go in fragments.
            Errno::IO | Errno::INVAL | Errno::MSGSIZE if is_train => Verdict::Apart,
            Errno::MSGSIZE => Verdict::Refuse(SendRefusal::TooBig),
            // The first four report an earlier datagram's fate or a moment's: one more try.
            Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NOBUFS | Errno::NOMEM
                if tries == 1 =>
            {
                Verdict::Again
            }
            _ => Verdict::Refuse(SendRefusal::Failed(errno.raw_os_error())),
        }
    }

    /// Tells of each datagram that does not leave.
    fn refuse(
        &self,
        to: SocketAddr,
        datagrams: usize,
        why: SendRefusal,
        refused: &mut dyn FnMut(SocketAddr, SendRefusal),
    ) {
        let errno = match why {
            SendRefusal::TooBig => Errno::MSGSIZE,
            SendRefusal::Failed(errno) => Errno::from_raw_os_error(errno),
        };
        self.offloads.errors().count(Call::UdpSend, errno, datagrams as u64);
        (0..datagrams).for_each(|_| refused(to, why));
    }

    /// Sends no trains to `endpoint` for a while: its route does not take them.
    fn rest(&mut self, endpoint: SocketAddr, errno: Errno) {
        self.offloads.count_apart(Offload::Gso, errno);
        self.rests.retain(|(at, _)| *at != endpoint);
        if self.rests.len() == MAX_RESTS {
            self.rests.remove(0);
        }
        self.rests.push((endpoint, REST));
    }

    /// A datagram with `payload` bytes did not fit its device, or perhaps it was that: asks what the way to `endpoint` takes
    /// and keeps the answer for [`OuterIo::poll_path_mtu`] if it is less. Asked once until the answer is taken: however many
    /// datagrams are too long, the system calls are those of one.
    fn note_path(&mut self, endpoint: SocketAddr, payload: usize) {
        if self.narrow.len() == MAX_RESTS || self.narrow.iter().any(|(at, _)| *at == endpoint) {
            return;
        }
        let headers = if endpoint.is_ipv4() { 20 + 8 } else { 40 + 8 };
        if let Ok(mtu) = self.kernel.path_mtu(endpoint)
            && mtu < payload + headers
        {
            self.narrow.push((endpoint, mtu.saturating_sub(headers)));
        }
    }

    /// Sends the datagrams of the train at entry `position` one by one.
    fn send_apart(&mut self, position: usize, refused: &mut dyn FnMut(SocketAddr, SendRefusal)) {
        let segment = self.vectors.segments[position];
        let libc::iovec { iov_base, iov_len } = self.vectors.buffers[position];
        for at in (0..iov_len).step_by(segment) {
            // Inside the train: `at` is less than its length.
            let first = iov_base.cast::<u8>().wrapping_add(at);
            self.vectors.point_at_part(position, first, segment.min(iov_len - at));
            self.flush(position, position + 1, refused);
        }
    }
}

#[cfg(test)]
mod tests;
