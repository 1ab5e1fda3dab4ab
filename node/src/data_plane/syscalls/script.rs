//! A script in the kernel's place: each call passes through to the kernel unless a test has said how the next ones end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::*;

/// A call of [`Syscalls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::data_plane) enum On {
    Readv,
    Writev,
    Recvmmsg,
    Sendmmsg,
    SetTunOffload,
    GivesTso,
    /// By the option's name.
    SetOption(i32),
    PathMtu,
}

/// How often a call ends as scripted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data_plane) enum Times {
    Next(u32),
    Forever,
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data_plane) enum End {
    Fails(Errno),
    /// It takes at most so many bytes, or messages.
    Takes(usize),
}

/// Shared by all who hold a clone.
#[derive(Clone, Default)]
pub(in crate::data_plane) struct Script(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    ends: HashMap<On, (End, Times)>,
    /// Holds for sends of trains only.
    trains_only: bool,
    calls: HashMap<On, u32>,
    path_mtu: Option<usize>,
}

impl Script {
    pub(in crate::data_plane) fn let_end(&self, call: On, end: End, times: Times) {
        self.0.lock().expect("script").ends.insert(call, (end, times));
    }

    /// As [`Self::let_end`], for `sendmmsg` calls that begin with a train.
    pub(in crate::data_plane) fn let_trains_end(&self, end: End, times: Times) {
        self.0.lock().expect("script").trains_only = true;
        self.let_end(On::Sendmmsg, end, times);
    }

    pub(in crate::data_plane) fn set_path_mtu(&self, mtu: usize) {
        self.0.lock().expect("script").path_mtu = Some(mtu);
    }

    /// How often `call` was made.
    pub(in crate::data_plane) fn calls(&self, call: On) -> u32 {
        self.0.lock().expect("script").calls.get(&call).copied().unwrap_or(0)
    }

    fn next(&self, call: On) -> Option<End> {
        let mut lines = self.0.lock().expect("script");
        *lines.calls.entry(call).or_default() += 1;
        let (end, times) = lines.ends.get_mut(&call)?;
        let end = *end;
        match times {
            Times::Forever => {}
            Times::Next(0) => return None,
            Times::Next(left) => *left -= 1,
        }
        Some(end)
    }
}

impl Syscalls for Script {
    fn readv(&self, fd: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>]) -> Result<usize, Errno> {
        match self.next(On::Readv) {
            Some(End::Fails(errno)) => Err(errno),
            Some(End::Takes(most)) => Kernel.readv(fd, parts).map(|length| length.min(most)),
            None => Kernel.readv(fd, parts),
        }
    }

    fn writev(&self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        match self.next(On::Writev) {
            Some(End::Fails(errno)) => Err(errno),
            Some(End::Takes(most)) => Ok(most),
            None => Kernel.writev(fd, parts),
        }
    }

    unsafe fn recvmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
        match self.next(On::Recvmmsg) {
            Some(End::Fails(errno)) => Err(errno),
            // SAFETY: as the caller's.
            Some(End::Takes(most)) => unsafe { Kernel.recvmmsg(fd, &mut headers[..most]) },
            // SAFETY: as the caller's.
            None => unsafe { Kernel.recvmmsg(fd, headers) },
        }
    }

    unsafe fn sendmmsg(&self, fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
        let is_train = headers.first().is_some_and(|header| header.msg_hdr.msg_controllen > 0);
        let concerned = is_train || !self.0.lock().expect("script").trains_only;
        match concerned.then(|| self.next(On::Sendmmsg)).flatten() {
            Some(End::Fails(errno)) => Err(errno),
            Some(End::Takes(0)) => Ok(0),
            Some(End::Takes(most)) => {
                let most = most.min(headers.len());
                // SAFETY: as the caller's.
                unsafe { Kernel.sendmmsg(fd, &mut headers[..most]) }
            }
            // SAFETY: as the caller's.
            None => unsafe { Kernel.sendmmsg(fd, headers) },
        }
    }

    fn set_tun_offload(&self, _fd: BorrowedFd<'_>, _features: libc::c_uint) -> Result<(), Errno> {
        match self.next(On::SetTunOffload) {
            Some(End::Fails(errno)) => Err(errno),
            _ => Ok(()),
        }
    }

    fn gives_tso(&self, _socket: BorrowedFd<'_>, _device: &str) -> Result<bool, Errno> {
        match self.next(On::GivesTso) {
            Some(End::Fails(errno)) => Err(errno),
            Some(End::Takes(count)) => Ok(count > 0),
            None => Ok(true),
        }
    }

    fn set_option(&self, fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        match self.next(On::SetOption(name)) {
            Some(End::Fails(errno)) => Err(errno),
            _ => Kernel.set_option(fd, level, name, value),
        }
    }

    fn wait_writable(&self, fd: BorrowedFd<'_>, at_most: Timespec) -> bool {
        Kernel.wait_writable(fd, at_most)
    }

    fn path_mtu(&self, to: SocketAddr) -> Result<usize, Errno> {
        let _ = self.next(On::PathMtu);
        let scripted = self.0.lock().expect("script").path_mtu;
        scripted.map_or_else(|| Kernel.path_mtu(to), Ok)
    }
}
