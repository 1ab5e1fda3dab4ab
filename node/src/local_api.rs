//! The daemon's local API: a Unix socket on which the commands of this host ask. One JSON line asks; one or more JSON
//! lines answer; then the connection ends.
//!
//! Only root and the daemon's own user may ask: the socket's mode says so, and the peer's credentials are checked again,
//! for a mode can be changed behind the daemon's back. Requests are bounded in size, time and number.

pub mod client;
pub mod server;
pub mod types;

/// Longest request line, in bytes.
pub const MAX_REQUEST: usize = 4 * 1024;
/// Longest answer line, in bytes.
pub const MAX_ANSWER: usize = 32 * 1024 * 1024;

#[cfg(test)]
mod tests;
