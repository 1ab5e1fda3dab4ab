//! What crosses a wire in warren, and what both ends must decide alike.
//!
//! Identity names, certificate profiles, the peer map a node is told, enrolment and control messages, the
//! admin API's types, the closed set of reasons, and policy: its documents, its compiler and its one
//! evaluator. This crate has no runtime, no socket, no file and no clock; everything is told to it.

pub mod admin;
pub mod certificate;
pub mod codec;
pub mod control_trust;
pub mod id;
pub mod join_token;
pub mod merkle;
pub mod overlay;
pub mod peer_map;
pub mod policy;
pub mod possession;
pub mod reason;
pub mod root_hint;
pub mod spiffe;
pub mod time;
pub mod tree_head;
pub mod trust_bundle;

/// The protobuf messages, as generated from `proto/src/wire/*.proto`. Field comments stand there.
///
/// Raw messages are unchecked input. The modules beside this one turn them into checked values; nothing
/// else may act on a raw message.
#[allow(missing_docs, clippy::all, unreachable_pub, rustdoc::invalid_html_tags)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/warren.v1.rs"));
}

pub use id::{InstanceId, NodeId};
pub use overlay::{Overlay, OverlayAddresses};
pub use reason::Reason;
pub use spiffe::{SpiffeId, TrustDomain, WorkloadName};
pub use time::UnixTime;
pub use trust_bundle::TrustBundle;

/// The version of the enrolment and control protocols this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The highest object version (`min_reader`) this build understands. A node refuses what is above it.
pub const READER_VERSION: u32 = 1;

/// ALPN of enrolment: no client certificate.
pub const ALPN_ENROL: &[u8] = b"warren-enrol/1";

/// ALPN of the control link: node certificate required.
pub const ALPN_CONTROL: &[u8] = b"warren-control/1";
