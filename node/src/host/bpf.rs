//! The bpf(2) system call, for the two small programs that [`super::programs`] writes: load one, and attach it to a cgroup for as
//! long as the descriptor is open, so that nothing outlives this process. The crates that exist load object files that a compiler
//! with a BPF back end made; there is none at build time.

#![allow(unsafe_code, reason = "bpf(2) has no wrapper in libc, nix or rustix")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction as the kernel takes it (linux/bpf.h, `struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// Destination and source, four bits each, in the order of the machine's bytes.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// What a program is for: `BPF_PROG_TYPE_…` and `BPF_CGROUP_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) program: u32,
    pub(super) attach: u32,
}

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// linux/socket.h; libc has it for some machines only.
const NETNS_COOKIE: libc::c_int = 71;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    program: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// A command that answers with a descriptor.
///
/// # Safety
///
/// `attributes` is the beginning of `union bpf_attr` for `command`, and what it points to is there, and as long as it says, until
/// this comes back.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller answers for what is in `attributes`, whose size is said; the kernel takes what lies beyond it as zero.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), std::mem::size_of::<T>()) };
    match i32::try_from(descriptor) {
        // SAFETY: such commands answer with a descriptor that is new and nobody else's.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number that programs know this thread's network namespace by (`SO_NETNS_COOKIE`, socket(7)).
pub(super) fn namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    let into = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: the kernel writes at most `length` bytes, which is what `cookie` has.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, NETNS_COOKIE, into, std::ptr::from_mut(&mut length))
    };
    if outcome == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Has the program run in this cgroup and all below it, beside whatever else runs there, until the descriptor is closed.
pub(super) fn attach(kind: Kind, program: &[Instruction], cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut name = [0; 16];
    name.iter_mut().zip(b"warren").for_each(|(to, from)| *to = *from);
    let load = Load {
        program: kind.program,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
        interface: 0,
        attach: kind.attach,
    };
    // SAFETY: `program` and `license` are borrowed until the end of this function, and `count` is the length of the one.
    let loaded = unsafe { bpf(PROG_LOAD, &load) }?;
    let number = |descriptor: i32| u32::try_from(descriptor).unwrap_or(u32::MAX);
    let link =
        Link { program: number(loaded.as_raw_fd()), target: number(cgroup.as_raw_fd()), attach: kind.attach, flags: 0 };
    // SAFETY: these attributes point to nothing.
    unsafe { bpf(LINK_CREATE, &link) }
}
