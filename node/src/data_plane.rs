//! The data plane's shell: moves bytes between the devices and the pure halves of the engine. The device modules
//! `tun` and `udp` are the only home of `unsafe` in the project.

pub mod io;
pub mod tun;
pub mod udp;
