//! What crosses the wire: a packet socket in the wire's namespace, the same view that tcpdump has, and the
//! means to put a frame back on it, altered or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// ETH_P_ALL in network byte order, as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0300;

/// Frames kept at the most: a bound on memory, far above what any test sends.
const MOST_FRAMES: usize = 200_000;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Records every frame on every device of `wire` from now on.
    pub fn start(wire: &Namespace) -> Result<Self> {
        let socket = wire.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))
                .context("open a packet socket")?;
            socket.set_recv_buffer_size(16 << 20)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let reader = std::thread::spawn(move || record(socket, &kept, &stopped));
        Ok(Self { frames, stop, reader: Some(reader) })
    }

    /// Copies of the frames so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many frames so far hold `marker` anywhere.
    #[must_use]
    pub fn frames_with(&self, marker: &[u8]) -> usize {
        let holds = |frame: &Vec<u8>| frame.windows(marker.len()).any(|window| window == marker);
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|frame| holds(frame)).count()
    }

    /// Stops and gives the frames.
    #[must_use]
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.end();
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
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

fn record(socket: Socket, frames: &Mutex<Vec<Vec<u8>>>, stop: &AtomicBool) {
    use std::io::Read;
    let mut socket = socket;
    let mut buffer = vec![0; 70_000];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(length) = socket.read(&mut buffer) {
            let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
            if frames.len() < MOST_FRAMES {
                frames.push(buffer[..length].to_vec());
            }
        }
    }
}
