//! The link to the coordinator: enrolment, the control session, issuance.
//!
//! ```text
//! enrol:    EnrolHello -> EnrolChallenge -> EnrolRequest -> EnrolResponse        ALPN warren-enrol/1, no client certificate
//! session:  Hello, Ack, Nack, Report  <->  Welcome, Update, heartbeat, Hints     ALPN warren-control/1, mutual TLS
//! issuance: IssueBegin -> Challenge -> IssueRequest -> IssueResponse             a stream each, beside the session
//! ```
//!
//! The link is believed for nothing but delivery: what governs the mesh is signed (see [`crate::mesh`]), and
//! whoever holds the link can delay or withhold, never invent.

pub mod backoff;
pub mod enrol;
pub mod issue;
pub mod link;
pub mod session;
pub mod tls;
