//! What daemons cost while a load runs: processor time and resident memory, from /proc.

use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of some processes so far.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    total: Duration,
}

impl Meter {
    /// Reads it now, for all of `processes` together.
    pub fn read(processes: &[u32]) -> Result<Self> {
        let mut total = Duration::ZERO;
        for id in processes {
            total += processor_time(*id)?;
        }
        Ok(Self { total })
    }

    /// Time spent since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        self.total.saturating_sub(earlier.total)
    }
}

/// User and system time of one process (proc_pid_stat(5), fields 14 and 15).
fn processor_time(id: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).with_context(|| format!("process {id}"))?;
    // The name in parentheses may hold anything; the fields begin behind it with the third.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = |index: usize| fields.split_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    // USER_HZ is 100 on every Linux that runs here.
    ticks.map(|ticks| Duration::from_millis(ticks * 10)).with_context(|| format!("process {id} has no times"))
}

/// Resident memory in bytes (proc_pid_status(5), VmRSS).
pub fn resident(id: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).with_context(|| format!("process {id}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).with_context(|| format!("process {id} shows no VmRSS"))
}
