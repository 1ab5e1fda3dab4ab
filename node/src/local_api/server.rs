//! The answering side.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, chmod};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};
use warren_proto::reason::{Reason, Refusal};

use super::MAX_REQUEST;
use super::types::{Answer, FlowVerdict, Request};
use crate::daemon::surface::Surface;
use crate::stop::Stop;

/// Questions at once: far above what people ask, far below what would hurt.
const CONNECTIONS: usize = 32;
/// A question must be complete, and an answer taken, within this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most past flows in one answer.
const MAX_FLOWS: usize = 10_000;

/// The listening socket. Its file goes away with it.
#[derive(Debug)]
pub struct LocalApi {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for LocalApi {
    fn drop(&mut self) {
        // A daemon that ends leaves nothing to connect to.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl LocalApi {
    /// Listens at `path`, for the daemon's user and root only. A socket that nobody listens on any more is replaced; one that
    /// answers belongs to another daemon and is left alone.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        let failed = |doing: &str, error: std::io::Error| {
            Refusal::new(Reason::Internal, format!("the local socket {} {doing}: {error}", path.display()))
                .hint("set socket in warren.yaml to a path in a directory that the daemon may write")
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed("has no directory", error))?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                let detail = format!("another warren daemon listens at {}", path.display());
                return Err(Refusal::new(Reason::Conflict, detail).hint("warren down stops it"));
            }
            // A plain file refuses connections, too, and is somebody's.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && is_socket(path) => {
                std::fs::remove_file(path).map_err(|error| failed("is left over and cannot be removed", error))?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(|error| failed("cannot be made", error))?;
        chmod(path, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("cannot be protected", errno.into()))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until told to stop.
    pub async fn run(self, surface: Arc<Surface>, stop: Stop) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!("the local socket does not accept: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.stopped() => return,
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                debug!(reason = Reason::RateLimited.name(), "too many local questions at once");
                continue;
            };
            let (surface, stop) = (surface.clone(), stop.clone());
            tokio::spawn(async move {
                let _slot = slot;
                serve(stream, &surface, &stop).await;
            });
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

async fn serve(stream: UnixStream, surface: &Surface, stop: &Stop) {
    let permitted = may_ask(&stream);
    let (receive, mut send) = stream.into_split();
    if let Err(refusal) = permitted {
        warn!(reason = refusal.reason.name(), "local question refused: {refusal}");
        let _ = reply(&mut send, &Answer::Refused(refusal)).await;
        return;
    }
    let mut receive = BufReader::new(receive);
    let request = match tokio::time::timeout(PATIENCE, read_request(&mut receive)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => {
            let _ = reply(&mut send, &Answer::Refused(refusal)).await;
            return;
        }
        Err(_) => return,
    };
    // An error here is an asker that went away.
    let answered = answer(&request, surface, &mut receive, &mut send);
    if request == Request::Stop {
        let _ = answered.await;
        // Held until the process ends: whoever asked learns of it by the end of the connection.
        return std::future::pending().await;
    }
    tokio::select! {
        _ = answered => {}
        () = stop.stopped() => {}
    }
}

/// Whoever the kernel says is at the other end must be root or the daemon's own user.
fn may_ask(stream: &UnixStream) -> Result<(), Refusal> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => Ok(()),
        Ok(peer) => Err(Refusal::new(Reason::NotPermitted, format!("user {} may not ask this daemon", peer.uid()))
            .hint(format!("run the command as root or as user {own}"))),
        Err(error) => Err(Refusal::new(Reason::NotPermitted, format!("who is asking cannot be told: {error}"))),
    }
}

async fn read_request(receive: &mut BufReader<OwnedReadHalf>) -> Result<Request, Refusal> {
    let mut line = Vec::new();
    let read = receive.take(MAX_REQUEST as u64).read_until(b'\n', &mut line).await;
    read.map_err(|error| Refusal::new(Reason::FrameMalformed, format!("the question cannot be read: {error}")))?;
    if line.len() >= MAX_REQUEST {
        return Err(Refusal::new(Reason::RequestTooLarge, format!("a question is at most {MAX_REQUEST} bytes long")));
    }
    serde_json::from_slice(&line).map_err(|error| {
        Refusal::new(Reason::InvalidField, format!("the question is not understood: {error}"))
            .hint("daemon and command may be of different versions: restart the daemon")
    })
}

async fn answer(
    request: &Request,
    surface: &Surface,
    receive: &mut BufReader<OwnedReadHalf>,
    send: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    match request {
        Request::Status => reply(send, &ok(&surface.status().await)).await,
        Request::Whois { target } => reply(send, &result(surface.whois(target))).await,
        Request::Why { source, destination, port, protocol } => {
            reply(send, &result(surface.why(source, destination, *port, protocol))).await
        }
        Request::Reload => reply(send, &result(surface.reload())).await,
        Request::Flows { verdict, limit, follow } => flows(surface, receive, send, *verdict, *limit, *follow).await,
        Request::Stop => {
            surface.stop();
            reply(send, &ok(&())).await
        }
    }
}

async fn flows(
    surface: &Surface,
    receive: &mut BufReader<OwnedReadHalf>,
    send: &mut OwnedWriteHalf,
    verdict: Option<FlowVerdict>,
    limit: usize,
    follow: bool,
) -> std::io::Result<()> {
    // First the subscription, then the past: nothing falls between; what is in both comes twice at most once.
    let mut new = follow.then(|| surface.flows().follow());
    for line in surface.flows().last(verdict, limit.min(MAX_FLOWS)) {
        reply(send, &ok(&line)).await?;
    }
    let Some(new) = &mut new else {
        return Ok(());
    };
    loop {
        let mut end = [0; 1];
        tokio::select! {
            line = new.recv() => match line {
                Ok(line) if verdict.is_none_or(|wanted| wanted == line.verdict) => reply(send, &ok(&line)).await?,
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    let detail = format!("{missed} flows were not shown: they came faster than they were read");
                    return reply(send, &Answer::Refused(Refusal::new(Reason::RateLimited, detail))).await;
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            // The asker says nothing more; an end means that it has gone.
            _ = receive.read(&mut end) => return Ok(()),
        }
    }
}

fn result<T: Serialize>(result: Result<T, Refusal>) -> Answer {
    match result {
        Ok(value) => ok(&value),
        Err(refusal) => Answer::Refused(refusal),
    }
}

fn ok<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Refused(Refusal::new(Reason::Internal, format!("the answer cannot be encoded: {error}"))),
    }
}

async fn reply(send: &mut OwnedWriteHalf, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, send.write_all(&line)).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_over_is_replaced_and_a_file_of_somebody_else_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("warren.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("left over"));
        drop(LocalApi::bind(&path).expect("replaced"));
        std::fs::write(&path, "notes").expect("write");
        LocalApi::bind(&path).expect_err("refused");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "notes");
    }
}
