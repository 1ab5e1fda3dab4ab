//! The node: the IO shell around the pure tunnel engine, and the command line.
//!
//! Knowledge flows one way: the control client verifies what the coordinator signed, the daemon hands it to
//! the engine, and what comes back is an acknowledgement or a fact. Everything that touches a socket, a
//! file, a clock or the operating system lives in this crate and nowhere below it.

pub mod admin_client;
pub mod certificates;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control_client;
pub mod daemon;
pub mod data_plane;
pub mod flow_log;
pub mod host;
pub mod local_api;
pub mod mesh;
pub mod mesh_view;
pub mod metrics;
pub mod placement;
pub mod selectors;
pub mod snapshot;
pub mod sockets;
pub mod state_dir;
pub mod stop;
pub mod telemetry;
pub mod underlay;
pub mod unix_socket;
pub mod workload_api;

#[cfg(test)]
mod test_mesh;
