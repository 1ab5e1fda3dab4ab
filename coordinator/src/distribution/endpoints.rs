//! Where a node may be reached, from what it reports and where it is seen. Hints only: unsigned, kept in memory, and
//! worth a datagram each to the peers that get them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use warren_proto::peer_map::MAX_HINTS;
use warren_proto::{Overlay, wire};

/// The endpoints of a node, the reported ones first, then the address that its link comes from. Empty when the report
/// names no port.
///
/// Left out is what no peer could use: addresses of the overlay itself (a tunnel in the tunnel), unspecified and
/// multicast ones, and loopback unless the node is on this very host.
pub(super) fn endpoints(report: &wire::Report, remote: IpAddr, overlay: &Overlay) -> Vec<SocketAddr> {
    let Some(port) = u16::try_from(report.data_port).ok().filter(|port| *port != 0) else {
        return Vec::new();
    };
    let remote = remote.to_canonical();
    let reported = report.addresses.iter().take(MAX_HINTS).filter_map(|text| text.parse::<IpAddr>().ok());
    let mut endpoints = Vec::new();
    for address in reported.map(|address| address.to_canonical()).chain([remote]) {
        let useless = address.is_unspecified()
            || address.is_multicast()
            || (address.is_loopback() && !remote.is_loopback())
            || overlay.contains(address);
        let endpoint = SocketAddr::new(address, port);
        if !useless && !endpoints.contains(&endpoint) && endpoints.len() < MAX_HINTS {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// How often a node's reports are passed on. Each one that changes something wakes every node linked with it.
const REPORTS: Duration = Duration::from_secs(1);

/// What a node reported last, passed on at a bounded rate: what came in between is forgotten for what came last.
#[derive(Debug, Default)]
pub(super) struct Reports {
    newest: Option<Vec<SocketAddr>>,
    not_before: Option<Instant>,
}

impl Reports {
    /// The node reports `endpoints`; none is no report.
    pub(super) fn put(&mut self, endpoints: Vec<SocketAddr>) {
        if !endpoints.is_empty() {
            self.newest = Some(endpoints);
        }
    }

    /// When a report may be taken, if one waits.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.newest.as_ref().map(|_| self.not_before.unwrap_or(now))
    }

    /// The report that waits, once it is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<SocketAddr>> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let newest = self.newest.take()?;
        self.not_before = Some(now + REPORTS);
        Some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints_of(port: u32, addresses: &[&str], remote: &str) -> Vec<String> {
        let overlay = Overlay {
            v6: ("fd12:3456:789a::".parse().expect("address"), 48),
            v4: Some(("10.77.0.0".parse().expect("address"), 16)),
        };
        let report =
            wire::Report { data_port: port, addresses: addresses.iter().map(|&text| text.to_owned()).collect() };
        let found = endpoints(&report, remote.parse().expect("address"), &overlay);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_addresses_that_a_peer_could_use_are_passed_on() {
        let reported =
            ["192.0.2.9", "10.77.0.4", "fd12:3456:789a::1", "::", "224.0.0.1", "127.0.0.1", "name", "192.0.2.9"];
        assert_eq!(endpoints_of(51820, &reported, "203.0.113.7"), ["192.0.2.9:51820", "203.0.113.7:51820"]);
        assert_eq!(endpoints_of(51820, &[], "::ffff:203.0.113.7"), ["203.0.113.7:51820"]);
        assert_eq!(endpoints_of(1, &["::1"], "::1"), ["[::1]:1"]);
    }

    #[test]
    fn reports_that_alternate_are_passed_on_once_a_second_and_the_last_one_is_not_lost() {
        let at = |port: u16| vec![SocketAddr::from(([192, 0, 2, 9], port))];
        let (mut reports, start) = (Reports::default(), Instant::now());
        let mut taken = Vec::new();
        for milliseconds in 0..=2_000_u16 {
            let now = start + Duration::from_millis(milliseconds.into());
            if milliseconds < 1_500 {
                reports.put(at(1 + milliseconds));
            }
            taken.extend(reports.take(now));
        }
        assert_eq!(taken, [at(1), at(1_001), at(1_500)]);
        assert_eq!(reports.due(start), None);
        reports.put(Vec::new());
        assert_eq!(reports.due(start), None);
        reports.put(at(7));
        assert_eq!(reports.due(start), Some(start + Duration::from_secs(3)));
    }

    #[test]
    fn a_port_that_is_none_gives_nothing_and_many_addresses_are_cut() {
        assert!(endpoints_of(0, &["192.0.2.9"], "203.0.113.7").is_empty());
        assert!(endpoints_of(70_000, &["192.0.2.9"], "203.0.113.7").is_empty());
        let many: Vec<_> = (1..40).map(|n| format!("192.0.2.{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(endpoints_of(1, &many, "203.0.113.7").len(), MAX_HINTS);
    }
}
