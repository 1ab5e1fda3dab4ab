//! A load that notices when a flow overtakes itself or loses something: datagrams with consecutive numbers, sent and sent
//! back, and both ends look at the numbers they get.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::host::Host;
use crate::processes::eventually;

/// Datagrams sent one after the other, as fast as the host takes them.
const BURST: u64 = 24;
/// Between two bursts: a load that every machine carries, a few thousand datagrams a second.
const PAUSE: Duration = Duration::from_millis(8);
const LENGTH: usize = 600;
/// So many may be on their way there and back: what every socket's buffer holds, so that a program that does not get the
/// processor for a while loses nothing.
const WINDOW: u64 = 96;
/// Without an answer for so long, more is sent all the same: it was lost.
const GIVE_UP: Duration = Duration::from_millis(500);
/// How long what is on its way may take to come back.
const LAST_ONES: Duration = Duration::from_secs(10);

/// What one end has seen of the numbers that come to it.
#[derive(Debug, Default)]
pub struct Seen {
    received: AtomicU64,
    newest: AtomicU64,
    overtaken: AtomicU64,
    /// The first one, in case there is one.
    first_overtaken: AtomicU64,
}

impl Seen {
    fn note(&self, number: u64) {
        self.received.fetch_add(1, Ordering::Relaxed);
        if self.newest.fetch_max(number, Ordering::Relaxed) >= number
            && self.overtaken.fetch_add(1, Ordering::Relaxed) == 0
        {
            self.first_overtaken.store(number, Ordering::Relaxed);
        }
    }

    /// Datagrams.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The number of the first that came after one with a higher number.
    #[must_use]
    pub fn first_overtaken(&self) -> Option<u64> {
        Some(self.first_overtaken.load(Ordering::Relaxed)).filter(|number| *number > 0)
    }

    /// Those that came after one with a higher number, or twice.
    #[must_use]
    pub fn overtaken(&self) -> u64 {
        self.overtaken.load(Ordering::Relaxed)
    }
}

/// A running load. It ends with the value.
#[derive(Debug)]
pub struct Sequence {
    /// At the host that was called.
    pub there: Arc<Seen>,
    /// At the caller: what was sent back.
    pub back: Arc<Seen>,
    sent: Arc<AtomicU64>,
    rests: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Sequence {
    /// One flow from `caller` to a service that is started at `address` of `called`.
    pub fn start(caller: &Host, called: &Host, address: SocketAddr) -> Result<Self> {
        let bind = |host: &Host, at: SocketAddr| {
            let socket = host.namespace.run(|| UdpSocket::bind(at).with_context(|| format!("bind {at}")))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok::<_, anyhow::Error>(socket)
        };
        let service = bind(called, address)?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = bind(caller, any.parse()?)?;
        caller.namespace.run(|| socket.connect(address).with_context(|| format!("connect to {address}")))?;
        let mut load = Self {
            there: Arc::default(),
            back: Arc::default(),
            sent: Arc::default(),
            rests: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let (answers, seen, stop) = (socket.try_clone()?, Arc::clone(&load.back), Arc::clone(&load.stop));
        load.threads.push(std::thread::spawn(move || receive(&answers, &seen, &stop, |_, _| {})));
        let (seen, stop) = (Arc::clone(&load.there), Arc::clone(&load.stop));
        load.threads.push(std::thread::spawn(move || {
            receive(&service, &seen, &stop, |datagram, from| {
                let _ = service.send_to(datagram, from);
            });
        }));
        let (sent, back) = (Arc::clone(&load.sent), Arc::clone(&load.back));
        let (rests, stop) = (Arc::clone(&load.rests), Arc::clone(&load.stop));
        load.threads.push(std::thread::spawn(move || send(&socket, &sent, &back, &rests, &stop)));
        Ok(load)
    }

    /// Datagrams that the caller has sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether either end has seen `more` datagrams than `before`, each way.
    #[must_use]
    pub fn has_gone_on(&self, before: [u64; 2], more: u64) -> bool {
        let now = self.received();
        now[0] >= before[0] + more && now[1] >= before[1] + more
    }

    /// Received there and back.
    #[must_use]
    pub fn received(&self) -> [u64; 2] {
        [self.there.received(), self.back.received()]
    }

    /// Sends nothing until [`Self::resume`], and waits until everything has come back. Answers with how many were lost on the
    /// way there, and on the way there and back.
    pub fn rest(&self) -> Result<[u64; 2]> {
        self.rests.store(true, Ordering::Relaxed);
        let lost = || {
            let (sent, [there, back]) = (self.sent(), self.received());
            [sent.saturating_sub(there), sent.saturating_sub(back)]
        };
        // The burst that was under way is sent to its end.
        std::thread::sleep(4 * PAUSE);
        if eventually("everything has come back", LAST_ONES, || Ok(lost() == [0, 0])).is_err() {
            return Ok(lost());
        }
        Ok([0, 0])
    }

    /// Goes on after [`Self::rest`].
    pub fn resume(&self) {
        self.rests.store(false, Ordering::Relaxed);
    }

    /// Ends it.
    pub fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).try_for_each(|thread| thread.join().map_err(|_| anyhow!("a part of the load failed")))
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(socket: &UdpSocket, sent: &AtomicU64, back: &Seen, rests: &AtomicBool, stop: &AtomicBool) {
    let mut datagram = [7; LENGTH];
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let under_way = sent.load(Ordering::Relaxed) - back.newest.load(Ordering::Relaxed);
        let room = under_way + BURST <= WINDOW || last.elapsed() >= GIVE_UP;
        if room && !rests.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                let number = sent.fetch_add(1, Ordering::Relaxed) + 1;
                datagram[..8].copy_from_slice(&number.to_be_bytes());
                // While the host has no address, nothing leaves; that is a loss like any other.
                let _ = socket.send(&datagram);
            }
            last = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
}

fn receive(socket: &UdpSocket, seen: &Seen, stop: &AtomicBool, answer: impl Fn(&[u8], SocketAddr)) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if let Some(number) = buffer[..length].first_chunk::<8>() {
                    seen.note(u64::from_be_bytes(*number));
                    answer(&buffer[..length], from);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error of an earlier datagram.
            Err(_) => std::thread::yield_now(),
        }
    }
}
