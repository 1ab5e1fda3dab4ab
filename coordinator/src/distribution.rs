//! The coordinator's QUIC port: enrolment, and the link over which every node is kept up to date.
//!
//! ```text
//! enrol:    EnrolHello -> EnrolChallenge -> EnrolRequest -> EnrolResponse        ALPN warren-enrol/1, no client certificate
//! session:  Hello, Ack, Nack, Report  <->  Welcome, Update, heartbeat, Hints     ALPN warren-control/1, node certificate
//! issuance: IssueBegin -> Challenge -> IssueRequest -> IssueResponse             a stream each, beside the session
//! ```
//!
//! Knowledge flows one way: the registry publishes a picture, `dispatch` marks the nodes it concerns, and the
//! task of each node's `session` projects its scope, compares it with what the node was told, and sends the
//! difference under a signed manifest. There is no queue per node, only a mark: a slow node costs no more than
//! its own scope and always gets the newest. What comes back is an acknowledgement.

mod clones;
mod dispatch;
mod endpoints;
mod enrol;
mod framing;
mod issuance;
mod limits;
mod links;
mod listener;
mod readiness;
mod session;
mod tls;
mod update;

use std::time::Duration;

pub use clones::ClonedNode;
pub(crate) use limits::network;
pub use links::{LinkStatus, Links, RefusedUpdate, Unacknowledged};
pub use listener::{Listener, ListenerError};
pub use readiness::not_ready;

/// What an operator may set about the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSettings {
    /// Between two signed heartbeats.
    pub heartbeat: Duration,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(20) }
    }
}
