//! The asking side: what commands use.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use super::MAX_ANSWER;
use super::types::{Answer, Request};
use crate::cli::{Exit, Failure};

/// A daemon that runs answers at once; a stopped one (SIGSTOP, debugger) never.
const ANSWER: Duration = Duration::from_secs(10);

/// An open question. Answers come as lines.
#[derive(Debug)]
pub struct Asked {
    lines: BufReader<Take<OwnedReadHalf>>,
    // Held open: the daemon takes the end of our sending half as a wish to end.
    _send: tokio::net::unix::OwnedWriteHalf,
}

/// Asks the daemon behind `socket`.
pub async fn ask(socket: &Path, request: &Request) -> Result<Asked, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable_socket(socket, &error))?;
    let (receive, mut send) = stream.into_split();
    let mut line = serde_json::to_vec(request)
        .map_err(|error| Failure::new(Exit::Failed, "the question cannot be encoded").cause(&error))?;
    line.push(b'\n');
    send.write_all(&line).await.map_err(|error| cut(&error))?;
    Ok(Asked { lines: BufReader::new(receive.take(MAX_ANSWER as u64)), _send: send })
}

/// Asks and takes the one answer.
pub async fn ask_once<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, Failure> {
    let mut asked = ask(socket, request).await?;
    match tokio::time::timeout(ANSWER, asked.next()).await {
        Ok(answer) => answer?.ok_or_else(|| Failure::new(Exit::Failed, "the daemon closed without an answer")),
        Err(_) => {
            Err(Failure::new(Exit::NotReady, "the daemon does not answer")
                .next("look at its log: journalctl -u warren"))
        }
    }
}

impl Asked {
    /// The next line; `None` at the end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        self.lines.get_mut().set_limit(MAX_ANSWER as u64);
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).await.map_err(|error| cut(&error))?;
        if line.is_empty() {
            return Ok(None);
        }
        let answer: Answer = serde_json::from_slice(&line).map_err(|error| unreadable(&error))?;
        match answer {
            Answer::Ok(value) => serde_json::from_value(value).map(Some).map_err(|error| unreadable(&error)),
            Answer::Refused(refusal) => Err(refusal.into()),
        }
    }
}

fn unreachable_socket(socket: &Path, error: &std::io::Error) -> Failure {
    let shown = socket.display();
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            Failure::new(Exit::NotReady, "no warren daemon runs on this host")
                .because(format!("nothing listens at {shown}"))
                .next("warren up (or: systemctl start warren)")
        }
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::NotPermitted, format!("you may not ask the daemon at {shown}"))
                .next("run the command as root or as the daemon's user")
        }
        _ => Failure::new(Exit::Failed, format!("the daemon at {shown} cannot be reached")).cause(error),
    }
}

fn cut(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "the daemon cut the connection").cause(error).next("look at its log")
}

fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Failed, "the daemon's answer is not understood")
        .cause(error)
        .next("daemon and command may be of different versions: restart the daemon")
}
