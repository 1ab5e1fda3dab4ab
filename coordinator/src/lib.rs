//! The coordinator: it certifies nodes and workloads, keeps who they are and what they may do, and tells every node
//! what concerns it.

pub mod admin_api;
pub mod attestation;
pub mod audit;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod config;
pub mod distribution;
pub mod failure;
pub mod peer_map;
pub mod policy;
pub mod registry;
pub mod server;
pub mod state;
pub mod status;
pub mod store;
