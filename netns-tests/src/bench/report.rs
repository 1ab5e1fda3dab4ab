//! Figures of all rounds, their medians, and the machine they were taken on.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::iperf;

/// What is measured, in the order of the table.
pub const ROWS: &[(&str, &str)] = &[
    ("tcp-1", "TCP, 1 stream, Gbit/s"),
    ("tcp-1-cpu", "  daemons' CPU, s/GB"),
    ("tcp-1-retransmits", "  segments sent again"),
    ("tcp-reverse", "TCP, reverse, Gbit/s"),
    ("tcp-4", "TCP, 4 streams, Gbit/s"),
    ("tcp-4-cpu", "  daemons' CPU, s/GB"),
    ("udp-1372", "UDP flood, 1372 bytes, delivered Gbit/s"),
    ("udp-1372-cpu", "  daemons' CPU, s/GB"),
    ("udp-1372-loss", "  lost, %"),
    ("udp-64", "UDP flood, 64 bytes, delivered kpackets/s"),
    ("udp-64-cpu", "  daemons' CPU, us/packet"),
    ("reordered", "datagrams of both floods reordered"),
    ("rtt-udp-p50", "RTT UDP p50, us"),
    ("rtt-udp-p99", "RTT UDP p99, us"),
    ("rtt-tcp-p50", "RTT TCP p50, us"),
    ("rtt-tcp-p99", "RTT TCP p99, us"),
    ("loaded-udp-p50", "RTT UDP p50 beside a TCP stream, us"),
    ("loaded-udp-p99", "RTT UDP p99 beside a TCP stream, us"),
    ("loaded-tcp-p50", "RTT TCP p50 beside a TCP stream, us"),
    ("loaded-tcp-p99", "RTT TCP p99 beside a TCP stream, us"),
    ("first", "first packet answered, no session yet, ms"),
    ("rss", "resident memory after load, larger, MiB"),
];

/// Every figure of every round: contender -> row -> values.
#[derive(Debug, Default)]
pub struct Report {
    contenders: Vec<String>,
    figures: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Report {
    /// Columns in this order, whatever the order of measuring.
    #[must_use]
    pub fn of(contenders: Vec<String>) -> Self {
        Self { contenders, figures: BTreeMap::new() }
    }

    /// Adds one figure.
    pub fn add(&mut self, contender: &str, row: &'static str, value: f64) {
        self.figures.entry((contender.to_owned(), row)).or_default().push(value);
    }

    fn median(&self, contender: &str, row: &'static str) -> Option<f64> {
        let mut values = self.figures.get(&(contender.to_owned(), row))?.clone();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = values.get(middle).copied()?;
        if values.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(*values.get(middle - 1)?, upper)) }
    }

    /// The table of medians, a column for each contender, without rows that nobody filled.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.contenders.iter().map(|name| name.len() + 2).max().unwrap_or_default().max(12);
        let mut text = format!("{:<44}", "medians");
        for contender in &self.contenders {
            let _ = write!(text, "{contender:>width$}");
        }
        text.push('\n');
        for (row, name) in ROWS {
            let medians: Vec<_> = self.contenders.iter().map(|contender| self.median(contender, row)).collect();
            if medians.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(text, "{name:<44}");
            for median in medians {
                let _ = match median {
                    Some(value) if value >= 100.0 => write!(text, "{value:>width$.0}"),
                    Some(value) => write!(text, "{value:>width$.2}"),
                    None => write!(text, "{:>width$}", "-"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// Every figure, as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let figure = |((contender, row), values): (&(String, &'static str), &Vec<f64>)| json!({ "contender": contender, "row": row, "values": values, "median": self.median(contender, row) });
        self.figures.iter().map(figure).collect()
    }
}

/// The machine's facts, for the header.
#[must_use]
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches([':', '\t', ' ']).to_owned()
    };
    let processor = read("/proc/cpuinfo");
    let flags = field(&processor, "flags");
    let notable = ["aes", "vaes", "avx2", "avx512f", "hypervisor"];
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({
        "processor": field(&processor, "model name"),
        "flags": flags.split_whitespace().filter(|flag| notable.contains(flag)).collect::<Vec<_>>(),
        "cores": cores,
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "defaultReceiveBuffer": read("/proc/sys/net/core/rmem_default").parse::<u64>().ok(),
        "loadAverageAtStart": read("/proc/loadavg").split(' ').next().and_then(|load| load.parse::<f64>().ok()),
        "tcpGenerator": iperf::version().unwrap_or("own"),
    })
}
