//! Claims about enrolment and the control link, over real UDP on loopback.
//!
//! ```text
//!   test client  --- QUIC, warren-enrol/1 or warren-control/1 --->  Listener -> Registry -> store on disk
//! ```
//!
//! The client here is a second, small implementation of the protocol: what it accepts, a node can rely on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;
mod mesh;

mod attacks;
mod enrolment;
mod process;
mod updates;
