//! The lab: several hosts on one machine, each a network namespace, joined by a wire that can be watched,
//! cut and tampered with. The demo, the multi-host tests and the benchmark are built from it.
//!
//! Everything runs inside namespaces of the process's own ([`namespace::enter`]); nothing on the machine is
//! changed, and when the process ends, its namespaces and processes end with it.

pub mod agent;
pub mod attacker;
pub mod bench;
pub mod capture;
pub mod cgroup;
pub mod device;
pub mod fake_time;
pub mod forge;
pub mod host;
pub mod lab;
pub mod mesh;
pub mod namespace;
pub mod processes;
pub mod sequence;
pub mod variant;
