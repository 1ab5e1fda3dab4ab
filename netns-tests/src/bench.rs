//! The benchmark's parts: loads that measure themselves, what the daemons cost meanwhile, the contenders, and
//! the table that results.

pub mod contender;
pub mod cost;
pub mod load;
pub mod report;
