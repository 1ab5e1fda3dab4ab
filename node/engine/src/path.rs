//! Where a peer may be reached: addresses that somebody reported, and the one that an authenticated packet came
//! from. Only the latter carries data; the former are tried by handshakes, one after the other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Most reported addresses that are tried for one peer.
const MAX_REPORTED: usize = 8;

/// The addresses of one peer.
#[derive(Debug, Default)]
pub(crate) struct Path {
    reported: Vec<SocketAddr>,
    authenticated: Option<SocketAddr>,
    roam: Option<Roam>,
}

/// The peer's newest move from one address to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roam {
    /// Where it was before.
    pub(crate) from: SocketAddr,
    /// When, on the axis of [`crate::Now::monotonic`].
    pub(crate) at: Duration,
    /// How many moves there were.
    pub(crate) count: u64,
}

impl Path {
    /// Replaces what was reported, and says whether that brought an address not known before. What was authenticated
    /// stays: a report cannot move a live path.
    pub(crate) fn report(&mut self, addresses: &[SocketAddr]) -> bool {
        let before = std::mem::take(&mut self.reported);
        self.reported = addresses.iter().copied().take(MAX_REPORTED).filter(may_be_a_peer).collect();
        self.reported.iter().any(|address| !before.contains(address))
    }

    /// Whether the peer may be the one who sends from `address`.
    pub(crate) fn knows(&self, address: SocketAddr) -> bool {
        self.authenticated == Some(address) || self.reported.contains(&address)
    }

    /// The source of a packet that authenticated `at` this time. Says whether the endpoint moved.
    pub(crate) fn authenticate(&mut self, from: SocketAddr, at: Duration) -> bool {
        let before = self.authenticated.replace(from);
        if let Some(before) = before.filter(|before| *before != from) {
            let count = self.roam.map_or(0, |roam| roam.count) + 1;
            self.roam = Some(Roam { from: before, at, count });
        }
        before != Some(from)
    }

    /// The newest move, where there was one.
    pub(crate) const fn roam(&self) -> Option<Roam> {
        self.roam
    }

    /// The address that data goes to.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.authenticated
    }

    /// The address of the `attempt`-th handshake initiation: the authenticated one first, then the reported ones in
    /// their order, and over again.
    pub(crate) fn candidate(&self, attempt: usize) -> Option<SocketAddr> {
        let reported = self.reported.iter().copied().filter(|address| Some(*address) != self.authenticated);
        let all: Vec<_> = self.authenticated.into_iter().chain(reported).collect();
        all.get(attempt.checked_rem(all.len())?).copied()
    }
}

/// Reports are unsigned: one must not turn handshakes into what a whole network hears.
fn may_be_a_peer(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn handshakes_try_every_address_the_authenticated_one_first() {
        let mut path = Path::default();
        assert_eq!(path.candidate(3), None);
        path.report(&[address(1), address(2), address(0)]);
        assert_eq!([0, 1, 2].map(|attempt| path.candidate(attempt)), [1, 2, 1].map(|port| Some(address(port))));
        assert!(path.authenticate(address(2), Duration::ZERO));
        assert_eq!([0, 1, 2].map(|attempt| path.candidate(attempt)), [2, 1, 2].map(|port| Some(address(port))));
    }

    #[test]
    fn a_report_never_moves_the_endpoint() {
        let mut path = Path::default();
        path.report(&[address(1)]);
        assert_eq!(path.endpoint(), None);
        assert!(path.authenticate(address(9), Duration::ZERO));
        assert!(!path.authenticate(address(9), Duration::ZERO));
        path.report(&[address(2)]);
        assert_eq!(path.endpoint(), Some(address(9)));
    }

    #[test]
    fn a_move_is_remembered_with_its_time_and_the_first_address_is_none() {
        let mut path = Path::default();
        let second = Duration::from_secs(1);
        path.authenticate(address(1), second);
        path.authenticate(address(1), 2 * second);
        assert_eq!(path.roam(), None);
        path.authenticate(address(2), 3 * second);
        path.authenticate(address(1), 4 * second);
        assert_eq!(path.roam(), Some(Roam { from: address(2), at: 4 * second, count: 2 }));
    }

    #[test]
    fn what_no_single_peer_can_have_is_not_tried() {
        let mut path = Path::default();
        let reported =
            ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1", "[::ffff:224.0.0.1]:1", "[::]:1"];
        assert!(!path.report(&reported.map(|text| text.parse().expect("an address"))));
        assert_eq!(path.candidate(0), None);
    }
}
