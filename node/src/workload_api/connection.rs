//! A connection with its caller, and the bound on how many there are.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;
use warren_proto::reason::{Reason, Refusal};

use super::caller::Caller;

/// Connections at once; each may hold a watch for as long as its process lives.
const MAX_CONNECTIONS: usize = 1_024;
/// Connections of one user at once, so that none can shut out the others.
const MAX_PER_USER: usize = 128;

/// Counts who is connected.
#[derive(Debug, Default)]
pub(super) struct Gate {
    users: Mutex<HashMap<u32, usize>>,
}

/// One connection's place.
#[derive(Debug)]
struct Place {
    gate: Arc<Gate>,
    user: u32,
}

impl Gate {
    fn enter(self: &Arc<Self>, user: u32) -> Result<Place, Refusal> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = users.values().sum();
        let own = users.entry(user).or_default();
        if all >= MAX_CONNECTIONS || *own >= MAX_PER_USER {
            let detail = format!("user {user} has {own} connections to the Workload API, all users together {all}");
            return Err(Refusal::new(Reason::RateLimited, detail).hint("keep one connection and watch"));
        }
        *own += 1;
        Ok(Place { gate: self.clone(), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.gate.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = users.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// A connection whose caller is held.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    caller: Arc<Caller>,
    _place: Place,
}

impl Connection {
    /// Takes hold of the caller and a place.
    pub(super) fn new(stream: UnixStream, gate: &Arc<Gate>) -> Result<Self, Refusal> {
        let caller = Caller::of(&stream)?;
        let place = gate.enter(caller.uid())?;
        Ok(Self { stream, caller: Arc::new(caller), _place: place })
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_places_of_all() {
        let gate = Arc::new(Gate::default());
        let mut greedy: Vec<_> = (0..MAX_PER_USER).map(|_| gate.enter(1).expect("place")).collect();
        assert_eq!(gate.enter(1).expect_err("full").reason, Reason::RateLimited);
        let other = gate.enter(2).expect("another user's place");
        greedy.pop();
        gate.enter(1).expect("given back");
        drop((greedy, other));
        assert!(gate.users.lock().expect("users").is_empty(), "nobody is remembered");
    }
}
