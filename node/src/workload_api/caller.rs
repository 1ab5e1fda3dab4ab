//! Who is at the other end of the socket, without a race: the kernel's own handle on the process that connected (a pidfd),
//! and what `/proc` says of its number while that handle says that it lives.
//!
//! A number alone could have passed to another process meanwhile. Since Linux 6.5 the socket itself gives the handle
//! (`SO_PEERPIDFD`). Before that it is opened by number when the connection is accepted; that the process has the user of
//! the connection, and the same start time at every later look, narrows what is left: a caller that ends, and whose number is
//! given to another process of the same user, between its connecting and our accepting.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;
use warren_proto::reason::{Reason, Refusal};

use crate::selectors::{NetnsId, Process};

/// Largest file of `/proc` that is read (a cgroup's path has at most 4096 bytes).
const MAX_PROC: u64 = 64 << 10;

/// The process that connected, held so that its number cannot come to mean another one unnoticed.
#[derive(Debug)]
pub struct Caller {
    pidfd: OwnedFd,
    pid: Pid,
    uid: u32,
    started: u64,
}

impl Caller {
    /// Takes hold of the process that connected `stream`.
    ///
    /// # Errors
    /// [`Reason::CallerGone`] when there is no such process any more, or none that this daemon can see.
    pub fn of(stream: &UnixStream) -> Result<Self, Refusal> {
        let credentials = stream.peer_cred().map_err(|error| gone(format!("who connected cannot be told: {error}")))?;
        let pid = credentials.pid().and_then(Pid::from_raw).ok_or_else(|| {
            gone("the caller is in a PID namespace that this daemon cannot see".to_owned())
                .hint("run the workload in the daemon's PID namespace or in one below it")
        })?;
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(Errno::ENOPROTOOPT) => open_by_number(pid, credentials.uid())?,
            Err(errno) => return Err(gone(format!("process {} that connected: {errno}", pid.as_raw_nonzero()))),
        };
        let mut caller = Self { pidfd, pid, uid: credentials.uid(), started: 0 };
        caller.started = caller.start_time()?;
        caller.check_alive()?;
        Ok(caller)
    }

    /// Takes hold of the process that has this number now, for whoever asks who that is.
    ///
    /// # Errors
    /// [`Reason::NotFound`] when there is none.
    pub fn with_number(number: i32) -> Result<Self, Refusal> {
        let none = || Refusal::new(Reason::NotFound, format!("there is no process {number} that this daemon can see"));
        let pid = Pid::from_raw(number).ok_or_else(none)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| none())?;
        let uid = std::fs::metadata(format!("/proc/{number}")).map_err(|_| none())?.uid();
        let mut caller = Self { pidfd, pid, uid, started: 0 };
        caller.started = caller.start_time().map_err(|_| none())?;
        caller.check_alive().map_err(|_| none())?;
        Ok(caller)
    }

    /// The user that connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// What the process is at this moment.
    ///
    /// # Errors
    /// [`Reason::CallerGone`] when it has ended, be it while it was looked at.
    pub fn identify(&self) -> Result<Process, Refusal> {
        let process = Process {
            pid: self.pid.as_raw_nonzero().get(),
            uid: self.uid,
            cgroup: cgroup_of(&self.read("cgroup")?),
            netns: netns_of(Path::new(&self.path("ns/net"))),
        };
        // What was read is this process's only if it is there still: its number was its own all the while.
        if self.start_time()? != self.started {
            return Err(self.ended());
        }
        self.check_alive()?;
        Ok(process)
    }

    fn check_alive(&self) -> Result<(), Refusal> {
        // A pidfd can be read from once its process has ended (pidfd_open(2)).
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) => Ok(()),
            Ok(_) | Err(_) => Err(self.ended()),
        }
    }

    fn ended(&self) -> Refusal {
        gone(format!("process {} that connected has ended", self.pid.as_raw_nonzero()))
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid.as_raw_nonzero())
    }

    fn read(&self, name: &str) -> Result<String, Refusal> {
        let path = self.path(name);
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_PROC).read_to_string(&mut text))
            .map_err(|error| gone(format!("{path}: {error}")))?;
        Ok(text)
    }

    /// When it started, in ticks since boot (proc_pid_stat(5), field 22).
    fn start_time(&self) -> Result<u64, Refusal> {
        start_time_of(&self.read("stat")?).ok_or_else(|| gone(format!("{} does not parse", self.path("stat"))))
    }
}

fn gone(detail: String) -> Refusal {
    Refusal::new(Reason::CallerGone, detail)
}

fn open_by_number(pid: Pid, uid: u32) -> Result<OwnedFd, Refusal> {
    let number = pid.as_raw_nonzero();
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|errno| gone(format!("process {number} that connected: {errno}")))?;
    let owner =
        std::fs::metadata(format!("/proc/{number}")).map_err(|error| gone(format!("/proc/{number}: {error}")))?;
    if owner.uid() != uid {
        return Err(gone(format!("process {number} is of user {}, the connection of user {uid}", owner.uid())));
    }
    Ok(pidfd)
}

/// The path in the hierarchy of version 2, which has number 0 and no controllers (cgroups(7)). One outside the root that the
/// daemon sees is none.
fn cgroup_of(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (path.starts_with('/') && !path.starts_with("/..")).then(|| path.to_owned())
}

/// The command's name may hold anything, parentheses too: what follows the last of them is numbers.
fn start_time_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// The namespace that a file stands for.
#[must_use]
pub fn netns_of(file: &Path) -> Option<NetnsId> {
    std::fs::metadata(file).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn the_cgroup_is_that_of_version_2_and_none_outside_the_visible_root() {
        let hybrid = "12:pids:/user.slice\n1:name=systemd:/init.scope\n0::/system.slice/web.service\n";
        assert_eq!(cgroup_of(hybrid).as_deref(), Some("/system.slice/web.service"));
        assert_eq!(cgroup_of("1:name=systemd:/system.slice/web.service\n"), None);
        assert_eq!(cgroup_of("0::/../other.service\n"), None);
        assert_eq!(cgroup_of("0::/\n").as_deref(), Some("/"));
    }

    #[test]
    fn a_commands_name_cannot_move_the_fields_behind_it() {
        let rest = (4..=22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time_of(&format!("7 (a) R 1 2) S {rest} 0 0")), Some(22));
        assert_eq!(start_time_of("7 (cut"), None);
        assert_eq!(start_time_of("7 (a) S 1 2 3"), None);
    }

    #[tokio::test]
    async fn a_caller_is_known_by_its_kernel_handle_and_refused_by_name_once_it_has_ended() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("listen");
        let _own = UnixStream::connect(&path).await.expect("connect");
        let caller = Caller::of(&listener.accept().await.expect("accept").0).expect("caller");
        let known = caller.identify().expect("alive");
        assert_eq!(known.pid, i32::try_from(std::process::id()).expect("pid"));
        assert_eq!(known.uid, rustix::process::geteuid().as_raw());
        assert_eq!(known.netns, netns_of(Path::new("/proc/self/ns/net")));

        // Another process connects and goes away; its end of the connection lives on in nobody.
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdin.read()\n";
        let spawned = Command::new("python3").args(["-c", script]).arg(&path).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else { return };
        let (stream, _) = listener.accept().await.expect("accept");
        let caller = Caller::of(&stream).expect("caller");
        assert_eq!(caller.identify().expect("alive").pid, i32::try_from(child.id()).expect("pid"));
        drop(child.stdin.take());
        // Ended and not yet waited for: its number is still its own, and `/proc` still shows it.
        let number = Pid::from_child(&child);
        waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("ended");
        assert_eq!(caller.identify().expect_err("gone").reason, Reason::CallerGone);
        child.wait().expect("ended");
        assert_eq!(caller.identify().expect_err("gone").reason, Reason::CallerGone);
        assert_eq!(Caller::of(&stream).expect_err("gone").reason, Reason::CallerGone);
    }
}
