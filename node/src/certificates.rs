//! This node's own keys and certificates: made here, kept here, renewed in time.

pub mod key_store;
pub mod renewal;
pub mod rotator;
pub mod svids;
