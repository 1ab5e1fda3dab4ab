//! Round trips of 64 bytes, one after another, over UDP and TCP; and the first one, which finds no session.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::CONNECT;
use crate::host::Host;

/// The first round trips are not counted: caches are cold, neighbours unknown.
const UNCOUNTED: usize = 50;

/// No load under which round trips are taken lasts longer.
const LONGEST: Duration = Duration::from_secs(20);

/// Median and tail of round trips, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrips {
    /// Half of them were faster.
    pub p50: f64,
    /// One in a hundred was slower.
    pub p99: f64,
}

/// Whether to take another round trip: so many, or as many as fit the time.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// A number of them.
    Count(usize),
    /// For so long.
    Elapsed(Duration),
}

impl Until {
    fn goes_on(self, taken: usize, begun: Instant) -> bool {
        match self {
            Self::Count(count) => taken < count && begun.elapsed() < LONGEST,
            Self::Elapsed(time) => begun.elapsed() < time.min(LONGEST),
        }
    }
}

/// Over UDP.
pub fn udp(from: &Host, to: &Host, address: SocketAddr, until: Until) -> Result<RoundTrips> {
    let _echo = Echo::start(to, address)?;
    let socket = client(from, address, Duration::from_secs(1))?;
    let mut buffer = [0; 64];
    collect(until, || {
        socket.send(&[7; 64])?;
        // A lost datagram is no round trip; the flood measures loss.
        Ok(socket.recv(&mut buffer).is_ok())
    })
}

/// Over one TCP connection.
pub fn tcp(from: &Host, to: &Host, address: SocketAddr, until: Until) -> Result<RoundTrips> {
    let listener = to.namespace.run(|| TcpListener::bind(address).with_context(|| format!("bind {address}")))?;
    let mut stream = from.namespace.run(|| Ok(TcpStream::connect_timeout(&address, CONNECT)?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut other, _) = listener.accept().context("accept")?;
    other.set_nodelay(true)?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while other.read_exact(&mut buffer).is_ok() && other.write_all(&buffer).is_ok() {}
    });
    let mut buffer = [0; 64];
    collect(until, || {
        stream.write_all(&[7; 64])?;
        stream.read_exact(&mut buffer)?;
        Ok(true)
    })
}

/// From the first datagram's departure to its answer, when nobody has spoken before. A datagram that is lost on the way
/// is sent again after 100 ms, and that time counts.
pub fn first(from: &Host, to: &Host, address: SocketAddr) -> Result<Duration> {
    let _echo = Echo::start(to, address)?;
    let socket = client(from, address, Duration::from_millis(100))?;
    let (mut buffer, begun) = ([0; 64], Instant::now());
    while begun.elapsed() < CONNECT {
        socket.send(&[7; 64])?;
        if socket.recv(&mut buffer).is_ok() {
            return Ok(begun.elapsed());
        }
    }
    bail!("no answer from {address} in {CONNECT:?}");
}

/// Sends every datagram back, until the value goes: a socket that stayed would keep its network namespace.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let socket = host.namespace.run(|| UdpSocket::bind(address).with_context(|| format!("bind {address}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn client(host: &Host, address: SocketAddr, patience: Duration) -> Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    host.namespace.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    })
}

fn collect(until: Until, mut once: impl FnMut() -> Result<bool>) -> Result<RoundTrips> {
    for _ in 0..UNCOUNTED {
        once()?;
    }
    let (mut times, begun) = (Vec::new(), Instant::now());
    while until.goes_on(times.len(), begun) {
        let sent = Instant::now();
        if once()? {
            times.push(sent.elapsed());
        }
    }
    percentiles(times)
}

fn percentiles(mut times: Vec<Duration>) -> Result<RoundTrips> {
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() as f64 - 1.0) * share).round() as usize;
        times.get(index).map(|time| time.as_secs_f64() * 1e6)
    };
    match (at(0.5), at(0.99)) {
        (Some(p50), Some(p99)) => Ok(RoundTrips { p50, p99 }),
        _ => bail!("no round trip succeeded"),
    }
}
