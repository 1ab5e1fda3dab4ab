//! The TUN device (linux/if_tun.h): inner packets as the host's IP stack sends and takes them, over raw
//! descriptors. One queue per worker, over which the kernel spreads flows by their hash.
//!
//! The kernel also remembers on which queue a flow's answers were written and moves the flow there, for as long as
//! answers come: each move may let packets overtake those still waiting in the queue before. Only what is written
//! through a *detached* queue leaves no such memory, so where there are several workers each has one of those to write to.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use warren_engine::output::Delivery;
use warren_engine::segment::{MAX_PREFIX, MAX_SEGMENTS, Merge, Offload as Kind, VirtioNetHeader};

use super::io::{InnerIo, Received};
use super::io_errors::Call;
use super::offload::{Offload, Offloads};
use super::syscalls::{Kernel, Syscalls};

const CLONE_DEVICE: &str = "/dev/net/tun";
/// `IFNAMSIZ` without the terminating zero.
const LONGEST_NAME: usize = 15;

/// Why there is no TUN device. Each text ends in the next step.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name is none that Linux takes.
    #[error("{0:?} is no name for a network device: use 1 to 15 letters, digits, '-', '_' or '.'")]
    InvalidName(String),
    /// `/dev/net/tun` does not exist.
    #[error(
        "there is no {CLONE_DEVICE}: load the module with `modprobe tun`, or give it to the container (--device {CLONE_DEVICE})"
    )]
    NoTun,
    /// The process may not create the device.
    #[error(
        "creating the TUN device {0} is not permitted: run warren as root or give it CAP_NET_ADMIN and {CLONE_DEVICE}"
    )]
    NotPermitted(String),
    /// The name is taken.
    #[error(
        "a network device named {0} exists: see `ip link show {0}`; stop what made it, or set tunnel.device to another name"
    )]
    Exists(String),
    /// Anything else the kernel said.
    #[error("cannot {what} the TUN device {name}: {error}; see the kernel's log (dmesg)")]
    Refused {
        /// The device's name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// How often a write that the kernel had no memory for, or that a signal broke off, is tried.
const TRIES: u32 = 3;

/// One queue of a TUN device. The device goes when its last queue is dropped.
#[derive(Debug)]
pub struct TunQueue<S: Syscalls = Kernel> {
    fd: OwnedFd,
    /// A detached queue to write to, where the device has several queues.
    writer: Option<OwnedFd>,
    /// Every packet has a [`VirtioNetHeader`] in front.
    described: bool,
    offloads: Arc<Offloads>,
    /// One queue of a device asks how its switches stand.
    control: Option<Control>,
    kernel: S,
}

/// What a device is asked by.
#[derive(Debug)]
struct Control {
    socket: OwnedFd,
    device: String,
}

/// A TUN device.
#[derive(Debug)]
pub struct Tun {
    /// The kernel's name for it.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// One per worker.
    pub queues: Vec<TunQueue>,
}

/// Creates the device `name` with `queues` queues, down and without addresses. A device of that name that exists
/// already is refused, whoever made it. Of `offloads` it uses what is on and says what the kernel does not have.
pub fn open(name: &str, queues: usize, offloads: &Arc<Offloads>) -> Result<Tun, TunError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(usable) || matches!(name, "." | "..") {
        return Err(TunError::InvalidName(name.to_owned()));
    }
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // The header costs each single packet about 5 %, so there is none where nothing can come of it.
    let described = offloads.is_on(Offload::Tso) || offloads.is_on(Offload::Uso);
    if described {
        flags |= libc::IFF_VNET_HDR;
    }
    let queue =
        |fd| TunQueue { fd, writer: None, described, offloads: Arc::clone(offloads), control: None, kernel: Kernel };
    let first = attach(name, flags | libc::IFF_TUN_EXCL)?;
    if described {
        request_offloads(first.as_fd(), offloads, &Kernel);
    }
    let mut all = vec![queue(first)];
    for _ in 1..queues {
        all.push(queue(attach(name, flags)?));
    }
    if queues > 1 {
        for queue in &mut all {
            queue.writer = Some(detached(name, flags)?);
        }
    }
    let refused =
        |error: rustix::io::Errno| TunError::Refused { name: name.to_owned(), what: "find", error: error.into() };
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(refused)?;
    let index = rustix::net::netdevice::name_to_index(&socket, name).map_err(refused)?;
    if let Some(first) = all.first_mut().filter(|_| described) {
        first.control = Some(Control { socket, device: name.to_owned() });
    }
    Ok(Tun { name: name.to_owned(), index, queues: all })
}

/// Tells the kernel which super-packets it may hand over. The set belongs to the device, whichever queue asks.
fn request_offloads(queue: BorrowedFd<'_>, offloads: &Offloads, kernel: &impl Syscalls) {
    /// `TUN_F_USO4` and `TUN_F_USO6`; one without the other is refused.
    const USO: libc::c_uint = 0x20 | 0x40;
    let ask = |features| kernel.set_tun_offload(queue, features);
    let mut features = libc::TUN_F_CSUM;
    if offloads.is_on(Offload::Tso) {
        match ask(features | libc::TUN_F_TSO4 | libc::TUN_F_TSO6) {
            Ok(()) => features |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
            Err(errno) => offloads.unsupported(Offload::Tso, errno),
        }
    }
    if offloads.is_on(Offload::Uso)
        && let Err(errno) = ask(features | USO)
    {
        offloads.unsupported(Offload::Uso, errno);
    }
}

/// A queue that gives no packets and takes them, without a trace in the kernel's memory of flows.
fn detached(name: &str, flags: libc::c_int) -> Result<OwnedFd, TunError> {
    let fd = attach(name, flags)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which lives through the call.
    let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE as _, &raw mut request) };
    if outcome == 0 {
        return Ok(fd);
    }
    let error = io::Error::last_os_error();
    Err(TunError::Refused { name: name.to_owned(), what: "detach a queue of", error })
}

fn attach(name: &str, flags: libc::c_int) -> Result<OwnedFd, TunError> {
    let fd = rustix::fs::open(CLONE_DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(
        |errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => TunError::NoTun,
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => TunError::NotPermitted(name.to_owned()),
            _ => TunError::Refused { name: name.to_owned(), what: "open", error: errno.into() },
        },
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`: a C structure of characters, numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The flags are 16 bits on this interface; IFF_TUN_EXCL is the highest of them.
    request.ifr_ifru.ifru_flags = (flags as u16).cast_signed();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call; the name ends in a zero
    // because it is at most 15 of 16 bytes long.
    let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if outcome == 0 {
        return Ok(fd);
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted(name.to_owned()),
        // EINVAL: a device of the name exists and is no TUN.
        Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => TunError::Exists(name.to_owned()),
        _ => TunError::Refused { name: name.to_owned(), what: "create", error },
    })
}

impl<S: Syscalls> InnerIo for TunQueue<S> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut header = [0; VirtioNetHeader::LENGTH];
        let prefix = if self.described { &mut header[..] } else { &mut [] };
        let ahead = prefix.len();
        let read = self.kernel.readv(self.fd.as_fd(), &mut [IoSliceMut::new(prefix), IoSliceMut::new(buffer)]);
        let length = read.inspect_err(|errno| {
            if !matches!(*errno, Errno::AGAIN | Errno::INTR) {
                self.offloads.errors().count(Call::TunRead, *errno, 1);
            }
        })?;
        let length = length.checked_sub(ahead).ok_or(io::ErrorKind::InvalidData)?;
        if ahead == 0 {
            return Ok(Received { header: VirtioNetHeader::default(), length });
        }
        let header = VirtioNetHeader::decode(&header).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Received { header, length })
    }

    fn deliver(&mut self, delivery: &Delivery<'_>, refused: &mut dyn FnMut()) -> io::Result<()> {
        let packets = delivery.packets().map(|packet| packet.packet());
        let Some(kind) = delivery.offload().filter(|_| self.described) else {
            return self.write_singly(packets, refused);
        };
        let mut prefix = [0; MAX_PREFIX];
        let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
        parts[0] = IoSlice::new(delivery.prefix(&mut prefix));
        let mut count = 1;
        for (part, payload) in parts.iter_mut().skip(1).zip(delivery.payloads()) {
            *part = IoSlice::new(payload);
            count += 1;
        }
        self.write_merged(kind, &parts[..count], packets, refused)
    }

    fn merge(&self) -> Merge {
        let may_use = |offload| self.described && self.offloads.may_use(offload);
        Merge { tcp: may_use(Offload::Tso), udp: may_use(Offload::Uso) }
    }

    fn look_after(&self) {
        if let Some(Control { socket, device }) = &self.control
            && self.offloads.is_on(Offload::Tso)
            // Where the kernel does not tell, nobody can switch it.
            && let Ok(on) = self.kernel.gives_tso(socket.as_fd(), device)
        {
            self.offloads.switched(Offload::Tso, on);
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<S: Syscalls> TunQueue<S> {
    /// Writes the super-packet in `parts`, or where the kernel does not take it the `packets` that it was merged from.
    fn write_merged<'p>(
        &self,
        kind: Kind,
        parts: &[IoSlice<'_>],
        packets: impl Iterator<Item = &'p [u8]>,
        refused: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let offload = if kind == Kind::Udp { Offload::Uso } else { Offload::Tso };
        match self.write(parts) {
            Ok(()) => {
                self.offloads.taken(offload);
                Ok(())
            }
            Err(errno) if is_gone(errno) => Err(self.lost(errno)),
            // EINVAL: some kernels refuse what they offer, and some refuse short last segments (6.6.44, 6.10.3).
            // Whatever it was, each packet has a chance of its own.
            Err(errno) => {
                self.offloads.refused(offload, errno);
                self.write_singly(packets, refused)
            }
        }
    }

    fn write_singly<'p>(&self, packets: impl Iterator<Item = &'p [u8]>, refused: &mut dyn FnMut()) -> io::Result<()> {
        let plain = VirtioNetHeader::default().encode();
        let header = if self.described { &plain[..] } else { &[] };
        for packet in packets {
            match self.write(&[IoSlice::new(header), IoSlice::new(packet)]) {
                Ok(()) => {}
                Err(errno) if is_gone(errno) => return Err(self.lost(errno)),
                // The device is down, or the host's stack does not take the packet.
                Err(errno) => {
                    self.offloads.errors().count(Call::TunWrite, errno, 1);
                    refused();
                }
            }
        }
        Ok(())
    }

    /// A TUN takes a packet whole or not at all; a part of one is as lost as the whole.
    fn write(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        let mut tries = 1;
        loop {
            match self.kernel.writev(self.writer.as_ref().unwrap_or(&self.fd).as_fd(), parts) {
                Ok(taken) if taken == parts.iter().map(|part| part.len()).sum::<usize>() => return Ok(()),
                Ok(_) => return Err(Errno::IO),
                Err(Errno::INTR | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) if tries < TRIES => tries += 1,
                Err(errno) => return Err(errno),
            }
        }
    }

    fn lost(&self, errno: Errno) -> io::Error {
        self.offloads.errors().count(Call::TunWrite, errno, 1);
        errno.into()
    }
}

/// Whether the TUN device was removed under us.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::BADFD | Errno::BADF | Errno::NODEV)
}

#[cfg(test)]
mod tests;
