//! The signals that `warren run` hands on to its program.

use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// All that a person, a supervisor or a terminal sends. What reports a fault of our own is ours, and stops are the
/// terminal's to give.
const FORWARDED: [Signal; 13] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::CONT,
    Signal::WINCH,
    Signal::IO,
    Signal::POWER,
    Signal::VTALARM,
    Signal::PROF,
];

/// Waits for all of them.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        let listen = |signal: &Signal| Ok((*signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        FORWARDED.iter().map(listen).collect::<Result<_, _>>().map(Self)
    }

    /// The next signal that came.
    pub(super) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (name, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }
}
