//! The coordinator: it certifies nodes and workloads, keeps who they are and what they may do, and tells every node
//! what concerns it.

pub mod audit;
pub mod ca;
pub mod store;
