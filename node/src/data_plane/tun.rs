//! The TUN device (linux/if_tun.h): inner packets as the host's IP stack sends and takes them, over raw
//! descriptors. One queue per worker; the kernel spreads flows over the queues and remembers on which queue a
//! flow was written, so that its answers come back to the same worker.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use warren_engine::output::Delivery;
use warren_engine::segment::{MAX_PREFIX, MAX_SEGMENTS, Merge, Offload as Kind, VirtioNetHeader};

use super::io::{InnerIo, Received};
use super::offload::{Offload, Offloads};

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

/// One queue of a TUN device. The device goes when its last queue is dropped.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
    /// Every packet has a [`VirtioNetHeader`] in front.
    described: bool,
    offloads: Arc<Offloads>,
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
    let queue = |file| TunQueue { file, described, offloads: Arc::clone(offloads) };
    let first = attach(name, flags | libc::IFF_TUN_EXCL)?;
    request_offloads(&first, offloads);
    let mut all = vec![queue(first)];
    for _ in 1..queues {
        all.push(queue(attach(name, flags)?));
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
    Ok(Tun { name: name.to_owned(), index, queues: all })
}

/// Tells the kernel which super-packets it may hand over. The set belongs to the device, whichever queue asks.
fn request_offloads(queue: &File, offloads: &Offloads) {
    /// `TUN_F_USO4` and `TUN_F_USO6`; one without the other is refused.
    const USO: libc::c_uint = 0x20 | 0x40;
    let ask = |features: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let outcome =
            unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(features)) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
    };
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

fn attach(name: &str, flags: libc::c_int) -> Result<File, TunError> {
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
        return Ok(File::from(fd));
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted(name.to_owned()),
        // EINVAL: a device of the name exists and is no TUN.
        Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => TunError::Exists(name.to_owned()),
        _ => TunError::Refused { name: name.to_owned(), what: "create", error },
    })
}

impl InnerIo for TunQueue {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        if !self.described {
            let length = self.file.read(buffer)?;
            return Ok(Received { header: VirtioNetHeader::default(), length });
        }
        let mut header = [0; VirtioNetHeader::LENGTH];
        let length = self.file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let length = length.checked_sub(header.len()).ok_or(io::ErrorKind::InvalidData)?;
        let header = VirtioNetHeader::decode(&header).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Received { header, length })
    }

    fn deliver(&mut self, delivery: &Delivery<'_>) -> io::Result<()> {
        if self.described {
            match self.write_merged(delivery) {
                // Some kernels refuse what they offer, and some refuse short last segments (6.6.44, 6.10.3).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => match delivery.offload() {
                    Some(kind) => {
                        let offload = if kind == Kind::Udp { Offload::Uso } else { Offload::Tso };
                        self.offloads.count_apart(offload);
                        self.offloads.give_up(offload, libc::EINVAL);
                    }
                    None => return Err(error),
                },
                outcome => return outcome,
            }
        }
        // A TUN takes a packet whole or not at all.
        let plain = VirtioNetHeader::default().encode();
        let header = if self.described { &plain[..] } else { &[] };
        let mut outcome = Ok(());
        for packet in delivery.packets() {
            let parts = [IoSlice::new(header), IoSlice::new(packet.packet())];
            outcome = self.file.write_vectored(&parts).map(|_| ()).and(outcome);
        }
        outcome
    }

    fn merge(&self) -> Merge {
        let is_on = |offload| self.described && self.offloads.is_on(offload);
        Merge { tcp: is_on(Offload::Tso), udp: is_on(Offload::Uso) }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl TunQueue {
    fn write_merged(&mut self, delivery: &Delivery<'_>) -> io::Result<()> {
        let mut prefix = [0; MAX_PREFIX];
        let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
        parts[0] = IoSlice::new(delivery.prefix(&mut prefix));
        let mut count = 1;
        for (part, payload) in parts.iter_mut().skip(1).zip(delivery.payloads()) {
            *part = IoSlice::new(payload);
            count += 1;
        }
        self.file.write_vectored(&parts[..count]).map(|_| ())
    }
}
