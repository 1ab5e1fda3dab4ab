//! Loads between two hosts of the lab, bounded in time: streams over TCP, and datagrams over UDP whose order is checked.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::iperf;
use crate::host::Host;
use crate::processes::eventually;

/// Bytes written and read at once: what an ordinary server uses.
const CHUNK: usize = 128 * 1024;

/// How long a connection may take: the first one includes the tunnel's handshake.
pub(super) const CONNECT: Duration = Duration::from_secs(15);

/// What a stream load carried.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// Bytes that the receiver has read.
    pub bytes: u64,
    /// For how long.
    pub elapsed: Duration,
    /// TCP segments sent again meanwhile by the sending host (tcp(7), RetransSegs).
    pub retransmits: u64,
}

impl Carried {
    /// Gigabits per second.
    #[must_use]
    pub fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.elapsed.as_secs_f64()
    }
}

/// What a datagram load carried.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    /// Sent by the generator.
    pub sent: u64,
    /// Arrived, each once.
    pub delivered: u64,
    /// Arrived after a later one.
    pub reordered: u64,
    /// Payload bytes of one.
    pub size: usize,
    /// For how long.
    pub elapsed: Duration,
}

impl Datagrams {
    /// Gigabits of payload per second that arrived.
    #[must_use]
    pub fn gigabits(&self) -> f64 {
        (self.delivered * self.size as u64) as f64 * 8.0 / 1e9 / self.elapsed.as_secs_f64()
    }
}

/// `streams` TCP streams from `from` to `to`, whose address is `address`, for `time`: iperf3's where it is installed.
pub fn tcp(from: &Host, to: &Host, address: SocketAddr, streams: usize, time: Duration) -> Result<Carried> {
    if iperf::version().is_some() {
        iperf::tcp(from, to, address, streams, time)
    } else {
        own(from, to, address, streams, time)
    }
}

fn own(from: &Host, to: &Host, address: SocketAddr, streams: usize, time: Duration) -> Result<Carried> {
    let listener = to.namespace.run(|| TcpListener::bind(address).with_context(|| format!("bind {address}")))?;
    let (stop, before) = (AtomicBool::new(false), retransmitted(from)?);
    thread::scope(|scope| {
        let receivers = scope.spawn(|| -> Result<Vec<TcpStream>> {
            (0..streams).map(|_| Ok(listener.accept().context("accept")?.0)).collect()
        });
        let senders = from.namespace.run(|| {
            (0..streams).map(|_| Ok(TcpStream::connect_timeout(&address, CONNECT)?)).collect::<Result<Vec<_>>>()
        })?;
        let receivers = join(receivers)??;
        for mut sender in senders {
            let stop = &stop;
            scope.spawn(move || {
                let chunk = vec![0x5a; CHUNK];
                while !stop.load(Ordering::Relaxed) && sender.write_all(&chunk).is_ok() {}
            });
        }
        let received = AtomicU64::new(0);
        let begun = Instant::now();
        thread::scope(|inner| {
            for mut receiver in receivers {
                let (received, stop) = (&received, &stop);
                inner.spawn(move || {
                    let mut chunk = vec![0; CHUNK];
                    let _ = receiver.set_read_timeout(Some(Duration::from_millis(500)));
                    while begun.elapsed() < time {
                        match receiver.read(&mut chunk) {
                            Ok(0) => break,
                            Ok(length) => {
                                received.fetch_add(length as u64, Ordering::Relaxed);
                            }
                            Err(_) => {}
                        }
                    }
                    stop.store(true, Ordering::Relaxed);
                });
            }
        });
        let (bytes, elapsed) = (received.load(Ordering::Relaxed), begun.elapsed());
        Ok(Carried { bytes, elapsed, retransmits: retransmitted(from)? - before })
    })
}

/// A flood of datagrams of `size` bytes (at least 8, for the sequence number), as fast as one thread can send.
pub fn udp(from: &Host, to: &Host, address: SocketAddr, size: usize, time: Duration) -> Result<Datagrams> {
    let receiver = to.namespace.run(|| {
        let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    })?;
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let sender = from.namespace.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        Ok(socket)
    })?;
    warm_up(&sender, &receiver)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| count(&receiver, &stop));
        let mut payload = vec![0; size.max(8)];
        let (mut sent, begun) = (0u64, Instant::now());
        while begun.elapsed() < time {
            for _ in 0..64 {
                payload[..8].copy_from_slice(&sent.to_le_bytes());
                if sender.send(&payload).is_ok() {
                    sent += 1;
                }
            }
        }
        let elapsed = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        let (delivered, reordered) = join(counting)?;
        Ok(Datagrams { sent, delivered, reordered, size, elapsed })
    })
}

/// One datagram must have arrived before a flood is timed: the tunnel is up.
fn warm_up(sender: &UdpSocket, receiver: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 64];
    for _ in 0..50 {
        let _ = sender.send(&u64::MAX.to_le_bytes());
        if receiver.recv(&mut buffer).is_ok() {
            return Ok(());
        }
    }
    bail!("no datagram arrived before the flood");
}

fn count(receiver: &UdpSocket, stop: &AtomicBool) -> (u64, u64) {
    let (mut delivered, mut reordered, mut highest) = (0, 0, None);
    let mut buffer = vec![0; 65_536];
    loop {
        match receiver.recv(&mut buffer) {
            Ok(length) => {
                let Some(number) = buffer[..length].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
                    continue;
                };
                if number == u64::MAX {
                    continue;
                }
                delivered += 1;
                if highest.is_some_and(|highest| number < highest) {
                    reordered += 1;
                }
                highest = highest.max(Some(number));
            }
            // Nothing for a while after the end: all that will come has come.
            Err(_) if stop.load(Ordering::Relaxed) => return (delivered, reordered),
            Err(_) => {}
        }
    }
}

/// Runs `work` while one TCP stream crosses, for `time` and a second: the stream has the wire before `work` begins.
pub fn beside_stream<T: Send>(
    from: &Host,
    to: &Host,
    address: SocketAddr,
    time: Duration,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let before = sent_segments(from)?;
        let stream = scope.spawn(|| tcp(from, to, address, 1, time + Duration::from_secs(1)));
        eventually("a stream crosses", CONNECT, || {
            Ok(stream.is_finished() || sent_segments(from)? > before + UNDER_WAY)
        })?;
        let result = work()?;
        join(stream)??;
        Ok(result)
    })
}

/// Segments after which a stream counts as under way: many a window of them.
const UNDER_WAY: u64 = 10_000;

fn sent_segments(host: &Host) -> Result<u64> {
    counter(host, "OutSegs")
}

/// Segments that this host has sent again so far.
pub(super) fn retransmitted(host: &Host) -> Result<u64> {
    counter(host, "RetransSegs")
}

/// A counter of the host's TCP.
fn counter(host: &Host, name: &str) -> Result<u64> {
    host.namespace.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").context("read the TCP counters")?;
        // Two lines begin with the protocol: names, then values.
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let value = pairs.find(|(it, _)| *it == name).map(|(_, value)| value);
        value.and_then(|value| value.parse().ok()).with_context(|| format!("no TCP counter {name}"))
    })
}

pub(super) fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a load's thread panicked"))
}
