//! Where a node may be reached, from what it reports and where it is seen. Hints only: unsigned, kept in memory, and
//! worth a datagram each to the peers that get them.

use std::net::{IpAddr, SocketAddr};

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
    fn a_port_that_is_none_gives_nothing_and_many_addresses_are_cut() {
        assert!(endpoints_of(0, &["192.0.2.9"], "203.0.113.7").is_empty());
        assert!(endpoints_of(70_000, &["192.0.2.9"], "203.0.113.7").is_empty());
        let many: Vec<_> = (1..40).map(|n| format!("192.0.2.{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(endpoints_of(1, &many, "203.0.113.7").len(), MAX_HINTS);
    }
}
