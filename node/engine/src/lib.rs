//! The tunnel engine: what turns a local program's packet into a peer's datagram and back, and refuses the
//! rest by name. Two pure halves share immutable state; neither has a runtime, a socket, a file or a clock.
//!
//! ```text
//! Out:  TUN -> packet -> attribution -> tables (route) -> admission (may call?) -> flows -> session (seal) -> UDP
//! In:   UDP -> session (open) -> attribution (identify) -> fragments -> flows -> admission (admit) -> TUN
//! ```
//!
//! * The fast half is [`Worker`], as many as the shell runs threads. The shell lends it packets; it judges each one
//!   against the current [`Tables`](tables::Tables) and writes what must leave into an
//!   [`Outbox`](output::Outbox).
//! * The slow half is [`Engine`]; it has one owner: handshakes, key exchange, timers and the application of policy. It builds
//!   [`Tables`](tables::Tables) and publishes them through [`Shared`](tables::Shared).
//!
//! A packet on the fast path that hits the flow cache costs no allocation and no lock.

use std::time::Duration;

use warren_proto::UnixTime;

/// The time, as told by the shell. Both clocks are read together, once per batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since an arbitrary start, never going back and counting through suspend (`CLOCK_BOOTTIME`). Ages of
    /// sessions, flows and fragments are measured on it.
    pub monotonic: Duration,
    /// Wall clock above the node's persisted floor. Only certificates are compared with it.
    pub unix: UnixTime,
}

pub mod admission;
pub mod allowed_ips;
pub mod attribution;
pub mod counters;
pub mod demux;
pub mod ecn;
pub mod engine;
pub mod flows;
mod fragments;
mod handshake;
pub mod identity;
mod key_exchange;
pub mod mesh;
pub mod output;
pub mod packet;
mod path;
mod peers;
pub mod records;
pub mod refusals;
pub mod replay;
pub mod segment;
pub mod session;
#[cfg(test)]
mod sim;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod worker;

pub use engine::Engine;
pub use worker::Worker;
