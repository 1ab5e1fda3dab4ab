//! The network that carries the tunnel, where it is another network namespace than the one that the overlay is in.
//!
//! `warren run --network private` gives a program a namespace whose only way out is the overlay. The node lives in that
//! namespace, too: the TUN device, addresses, routes, the guard and the sockets that it looks at are all there, and every
//! thread with them. What must reach other hosts in clear sight of the network, the UDP sockets of the tunnel and of the
//! control link and the names looked up for them, is made by a thread that stayed behind. A socket belongs to the namespace
//! that it was made in, whichever thread uses it afterwards.
//!
//! The namespaces of a process are the process's, so there is one of this.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

type Work = Box<dyn FnOnce() + Send>;

/// To the thread that stayed behind. Empty where underlay and overlay share a namespace.
static BEHIND: OnceLock<Sender<Work>> = OnceLock::new();

/// Why the overlay cannot be in another network namespace.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// There is no such namespace.
    #[error("the network namespace {path} cannot be opened: {error}")]
    NotThere {
        /// As it was given.
        path: String,
        /// The system's answer.
        error: io::Error,
    },
    /// The process may not enter it.
    #[error("entering the network namespace takes CAP_SYS_ADMIN (containers: --cap-add SYS_ADMIN)")]
    NotPermitted,
    /// It cannot be entered for another reason.
    #[error("the network namespace cannot be entered: {0}")]
    Refused(io::Error),
}

/// Moves this process to the network namespace at `path`, but for one thread that makes the underlay's sockets.
///
/// Must come before any other thread is started: threads are where the one was that started them.
pub fn stay_behind(path: &Path) -> Result<(), UnderlayError> {
    let namespace =
        File::open(path).map_err(|error| UnderlayError::NotThere { path: path.display().to_string(), error })?;
    let (send, work) = channel();
    thread::Builder::new().name("underlay".to_owned()).spawn(move || serve(&work)).map_err(UnderlayError::Refused)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|errno| match errno {
        Errno::PERM => UnderlayError::NotPermitted,
        _ => UnderlayError::Refused(errno.into()),
    })?;
    BEHIND.set(send).map_err(|_| UnderlayError::Refused(io::Error::other("it was entered before")))
}

/// Each on a thread of its own, which begins where this one is: a name server that is silent keeps nobody else waiting.
fn serve(work: &Receiver<Work>) {
    for each in work {
        if let Err(error) = thread::Builder::new().name("underlay".to_owned()).spawn(each) {
            tracing::warn!("no thread for the underlay: {error}");
        }
    }
}

/// Whether the overlay is in another network namespace.
#[must_use]
pub fn is_apart() -> bool {
    BEHIND.get().is_some()
}

/// Does `work` in the underlay's namespace and waits for it; an error when no thread can be had for it.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let Some(behind) = BEHIND.get() else { return Ok(work()) };
    let (answer, done) = channel();
    let gone = || io::Error::other("no thread in the underlay's network namespace");
    behind.send(Box::new(move || drop(answer.send(work())))).map_err(|_| gone())?;
    done.recv().map_err(|_| gone())
}

/// The addresses of `host:port`, as the underlay's name servers know them.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let address = address.to_owned();
    let resolved = tokio::task::spawn_blocking(move || run(move || address.to_socket_addrs().map(Iterator::collect)));
    resolved.await.map_err(io::Error::other)??
}
