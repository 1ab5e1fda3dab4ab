//! Figures of all rounds, their medians, and the machine they were taken on.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// What is measured, in the order of the table.
pub const ROWS: &[(&str, &str)] = &[
    ("tcp-1", "TCP, 1 stream, Gbit/s"),
    ("tcp-1-cpu", "  daemons' CPU, s/GB"),
    ("tcp-reverse", "TCP, reverse, Gbit/s"),
    ("tcp-4", "TCP, 4 streams, Gbit/s"),
    ("tcp-4-cpu", "  daemons' CPU, s/GB"),
    ("udp-1372", "UDP flood, 1372 bytes, delivered Gbit/s"),
    ("udp-1372-cpu", "  daemons' CPU, s/GB"),
    ("udp-1372-loss", "  lost, %"),
    ("udp-64", "UDP flood, 64 bytes, delivered kpackets/s"),
    ("reordered", "datagrams reordered"),
    ("rtt-udp-p50", "RTT UDP p50, us"),
    ("rtt-udp-p99", "RTT UDP p99, us"),
    ("rtt-tcp-p50", "RTT TCP p50, us"),
    ("rtt-tcp-p99", "RTT TCP p99, us"),
    ("rss", "resident memory under load, MiB"),
];

/// Every figure of every round: contender -> row -> values.
#[derive(Debug, Default)]
pub struct Report {
    contenders: Vec<String>,
    figures: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Report {
    /// Adds one figure.
    pub fn add(&mut self, contender: &str, row: &'static str, value: f64) {
        if !self.contenders.iter().any(|known| known == contender) {
            self.contenders.push(contender.to_owned());
        }
        self.figures.entry((contender.to_owned(), row)).or_default().push(value);
    }

    fn median(&self, contender: &str, row: &'static str) -> Option<f64> {
        let mut values = self.figures.get(&(contender.to_owned(), row))?.clone();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The table of medians, a column for each contender.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<44}", "medians");
        for contender in &self.contenders {
            let _ = write!(text, "{contender:>14}");
        }
        text.push('\n');
        for (row, name) in ROWS {
            let _ = write!(text, "{name:<44}");
            for contender in &self.contenders {
                match self.median(contender, row) {
                    Some(value) if value >= 100.0 => {
                        let _ = write!(text, "{value:>14.0}");
                    }
                    Some(value) => {
                        let _ = write!(text, "{value:>14.2}");
                    }
                    None => {
                        let _ = write!(text, "{:>14}", "-");
                    }
                }
            }
            text.push('\n');
        }
        text
    }

    /// Everything, as JSON.
    #[must_use]
    pub fn json(&self, machine: &Value) -> Value {
        let figure = |((contender, row), values): (&(String, &'static str), &Vec<f64>)| json!({ "contender": contender, "row": row, "values": values, "median": self.median(contender, row) });
        json!({
            "apiVersion": "warren-bench/v1",
            "machine": machine,
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
        })
    }
}

/// The machine's facts, for the header.
#[must_use]
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches([':', '\t', ' ']).to_owned())
        })
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "processor": model, "cores": cores, "kernel": read("/proc/sys/kernel/osrelease") })
}
