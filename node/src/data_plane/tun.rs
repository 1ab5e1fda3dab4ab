//! The TUN device (linux/if_tun.h): inner packets as the host's IP stack sends and takes them, over raw
//! descriptors. One queue per worker; the kernel spreads flows over the queues and remembers on which queue a
//! flow was written, so that its answers come back to the same worker.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use warren_engine::admission::Admitted;

use super::io::InnerIo;

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
/// already is refused, whoever made it.
pub fn open(name: &str, queues: usize) -> Result<Tun, TunError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(usable) || matches!(name, "." | "..") {
        return Err(TunError::InvalidName(name.to_owned()));
    }
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let first = attach(name, flags | libc::IFF_TUN_EXCL)?;
    let mut all = vec![first];
    for _ in 1..queues {
        all.push(attach(name, flags)?);
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

fn attach(name: &str, flags: libc::c_int) -> Result<TunQueue, TunError> {
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
        return Ok(TunQueue { file: File::from(fd) });
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
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }

    fn deliver(&mut self, packet: Admitted<'_>) -> io::Result<()> {
        // A TUN takes a packet whole or not at all.
        self.file.write(packet.packet()).map(|_| ())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
