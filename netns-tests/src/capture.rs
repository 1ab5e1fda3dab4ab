//! What crosses the wire: a packet socket in the wire's namespace, the same view that tcpdump has, and the
//! means to put a frame back on it, altered or not.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// ETH_P_ALL in network byte order, as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0300;

/// Frames kept at the most: a bound on memory, far above what any test sends.
const MOST_FRAMES: usize = 200_000;

/// How often the kernel's queue is emptied while nobody asks: often enough that it does not overflow.
const PAUSE: Duration = Duration::from_millis(2);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// The packet socket and what came out of it. Whoever asks empties the socket first: what has crossed the wire before the
/// question is in the answer, whether or not the reader's thread has had its turn on a busy machine.
#[derive(Debug)]
struct Record {
    socket: Socket,
    frames: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Record {
    fn drain(&mut self) -> &mut Vec<Vec<u8>> {
        while let Ok(length) = self.socket.read(&mut self.buffer) {
            if self.frames.len() < MOST_FRAMES {
                self.frames.push(self.buffer[..length].to_vec());
            }
        }
        &mut self.frames
    }
}

impl Capture {
    /// Records every frame on every device of `wire` from now on.
    pub fn start(wire: &Namespace) -> Result<Self> {
        let socket = wire.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))
                .context("open a packet socket")?;
            socket.set_recv_buffer_size(16 << 20)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let record = Arc::new(Mutex::new(Record { socket, frames: Vec::new(), buffer: vec![0; 70_000] }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&record), Arc::clone(&stop));
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                lock(&shared).drain();
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { record, stop, reader: Some(reader) })
    }

    /// Copies of the frames so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        lock(&self.record).drain().clone()
    }

    /// How many frames so far hold `marker` anywhere.
    #[must_use]
    pub fn frames_with(&self, marker: &[u8]) -> usize {
        let holds = |frame: &&Vec<u8>| frame.windows(marker.len()).any(|window| window == marker);
        lock(&self.record).drain().iter().filter(holds).count()
    }

    /// Stops and gives the frames.
    #[must_use]
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.end();
        std::mem::take(lock(&self.record).drain())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
