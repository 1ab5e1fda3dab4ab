//! A network namespace of the program's own, whose only way out is the overlay, and the thread of the wrapper that lives in it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use super::{Failure, OWN_FAILURE, failed, start};
use crate::host::bring_up_loopback;

/// Where a program's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Network {
    /// The network namespace that warren runs in: the overlay, and whatever else leads out of it
    Host,
    /// A network namespace of its own: a loopback device and the overlay, and no other way out
    Private,
}

type Work = Box<dyn FnOnce() + Send>;

/// The namespace. It lasts until the wrapper and the last process in it have ended.
pub(super) struct Private {
    namespace: File,
    work: Sender<Work>,
}

impl Private {
    /// Makes it, with its loopback device up.
    pub(super) fn new() -> Result<Self, Failure> {
        let (work, jobs) = channel();
        let (answer, made) = channel();
        let lives = move || live_in_a_new_one(&answer, &jobs);
        thread::Builder::new()
            .name("private network".to_owned())
            .spawn(lives)
            .map_err(failed("a thread cannot be started"))?;
        let ended = |_| Err(io::Error::other("its thread ended"));
        let namespace = made.recv().unwrap_or_else(ended).map_err(|error| {
            let failure = Failure::new(OWN_FAILURE, "a network namespace of the program's own cannot be made");
            if error.raw_os_error() != Some(Errno::PERM.raw_os_error()) {
                return failure.cause(&error);
            }
            failure
                .because("it takes CAP_SYS_ADMIN, which warren does not have")
                .next("give it the capability (containers: --cap-add SYS_ADMIN), or run the program in the network that is here: --network host")
        })?;
        Ok(Self { namespace, work })
    }

    /// What a process is given to enter it.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.namespace.try_clone()?.into())
    }

    /// Starts a child in it. To the kernel the thread that lives there is the child's parent, and that lives as long as the
    /// wrapper: a child that asked for it is told when that ends.
    pub(super) fn start(&self, mut command: Command) -> io::Result<Pid> {
        let (answer, started) = channel();
        let gone = || io::Error::other("the thread in the network namespace has ended");
        self.work.send(Box::new(move || drop(answer.send(start(&mut command))))).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }
}

fn live_in_a_new_one(answer: &Sender<io::Result<File>>, jobs: &Receiver<Work>) {
    let made = make();
    let goes_on = made.is_ok();
    if answer.send(made).is_ok() && goes_on {
        jobs.iter().for_each(|work| work());
    }
}

/// A new network namespace for the calling thread.
fn make() -> io::Result<File> {
    #[allow(deprecated, reason = "what replaces it is unsafe, on account of a flag that is not set here")]
    rustix::thread::unshare(UnshareFlags::NEWNET)?;
    bring_up_loopback().map_err(io::Error::other)?;
    File::open("/proc/thread-self/ns/net")
}

/// Hands `namespace` to a node as its standard input, which it has no other use for.
pub(super) fn hand_to(command: &mut Command, namespace: OwnedFd) {
    command.args(["--network-namespace", "/proc/self/fd/0"]).stdin(Stdio::from(namespace));
}
