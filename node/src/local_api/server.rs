//! The answering side.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};
use warren_proto::reason::{Reason, Refusal};

use super::MAX_REQUEST;
use super::types::{Answer, FlowVerdict, Request};
use crate::daemon::surface::Surface;
use crate::stop::Stop;
use crate::unix_socket::Listening;

/// Questions at once: far above what people ask, far below what would hurt.
const CONNECTIONS: usize = 32;
/// A question must be complete, and an answer taken, within this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most past flows in one answer.
const MAX_FLOWS: usize = 10_000;

/// The listening socket.
#[derive(Debug)]
pub struct LocalApi(Listening);

impl LocalApi {
    /// Listens at `path`, for the daemon's user and root only.
    pub fn bind(path: &Path) -> Result<Self, Refusal> {
        Listening::bind(path, Mode::RUSR | Mode::WUSR, "socket").map(Self)
    }

    /// Answers until told to stop.
    pub async fn run(self, surface: Arc<Surface>, stop: Stop) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = tokio::select! {
                accepted = self.0.accept() => match accepted {
                    Ok(stream) => stream,
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

async fn serve(stream: UnixStream, surface: &Arc<Surface>, stop: &Stop) {
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
    surface: &Arc<Surface>,
    receive: &mut BufReader<OwnedReadHalf>,
    send: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    match request {
        Request::Status => reply(send, &ok(&surface.status().await)).await,
        Request::Whois { target } => {
            let (asked, target) = (surface.clone(), target.clone());
            // It may read much of /proc.
            let answered = tokio::task::spawn_blocking(move || asked.whois(&target)).await;
            let crashed = |error| Err(Refusal::new(Reason::Internal, format!("the answer crashed: {error}")));
            reply(send, &result(answered.unwrap_or_else(crashed))).await
        }
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
