//! The benchmark's parts: the wire, the contenders, loads that measure themselves, what the daemons cost meanwhile, and
//! the table that results.

pub mod contender;
pub mod cost;
pub mod ethtool;
pub mod iperf;
pub mod link;
pub mod load;
pub mod report;
pub mod round_trips;
