//! What passed between two looks at the daemon.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;
use warren_proto::Reason;

use crate::local_api::types::{Offload, Peer, Rates, Roamed, Status, Traffic};

/// One interval, as `-o json` prints it: fields are added, never renamed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Top {
    /// When it ended, RFC 3339.
    pub(super) time: String,
    /// This node.
    pub(super) node: String,
    /// Packets are let through as policy says.
    pub(super) ready: bool,
    /// The whole node per second.
    pub(super) rates: Rates,
    /// The whole node since the daemon's start.
    pub(super) traffic: Traffic,
    /// Live flows.
    pub(super) flows: u64,
    /// Drops by reason.
    pub(super) drops: BTreeMap<Reason, Drops>,
    /// Offloads of the tunnel's devices.
    pub(super) offloads: Vec<Offload>,
    /// What else the node remarks on its devices.
    pub(super) notes: Vec<String>,
    /// Each peer.
    pub(super) peers: Vec<TopPeer>,
}

/// Packets that were dropped for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Drops {
    /// Since the start.
    pub(super) total: u64,
    /// Per second of the interval.
    pub(super) per_second: u64,
    /// Within the interval.
    pub(super) new: u64,
}

/// One peer in an interval.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TopPeer {
    /// `<namespace>/<name>`.
    pub(super) workload: String,
    /// Its id.
    pub(super) instance: String,
    /// `idle`, `handshake`, `exchange`, `confirming` or `up`.
    pub(super) session: String,
    /// The cipher, when a session is up.
    pub(super) suite: Option<String>,
    /// Where datagrams go.
    pub(super) endpoint: Option<std::net::SocketAddr>,
    /// The largest inner packet that the path takes.
    pub(super) path_mtu: Option<u32>,
    /// Its newest move.
    pub(super) roamed: Option<Roamed>,
    /// Per second.
    pub(super) rates: Rates,
    /// Since some rule has linked the two.
    pub(super) traffic: Traffic,
    /// Drops by reason.
    pub(super) drops: BTreeMap<Reason, Drops>,
}

/// Compares each look with the one before it.
pub(super) struct Sampler {
    before: Status,
}

impl Sampler {
    pub(super) const fn new(first: Status) -> Self {
        Self { before: first }
    }

    /// The first look by itself: totals, and nothing per second yet.
    pub(super) fn empty(&self) -> Top {
        let rates: HashMap<&str, Rates> = HashMap::new();
        Self::top(&self.before, Rates::default(), &rates, |drops, _| {
            drops.iter().map(|(reason, total)| (*reason, Drops { total: *total, per_second: 0, new: 0 })).collect()
        })
    }

    /// What passed between the look before and this one.
    pub(super) fn next(&mut self, now: Status) -> Top {
        let over = Duration::from_millis(now.uptime_milliseconds.saturating_sub(self.before.uptime_milliseconds));
        // A daemon that began anew counts from zero.
        let again = now.uptime_milliseconds < self.before.uptime_milliseconds;
        let over = if again { Duration::from_millis(now.uptime_milliseconds) } else { over };
        let (empty, none) = (BTreeMap::new(), Traffic::default());
        let before: HashMap<&str, &Peer> =
            self.before.peers.iter().filter(|_| !again).map(|peer| (peer.instance.as_str(), peer)).collect();
        let rates = now
            .peers
            .iter()
            .map(|peer| {
                let earlier = before.get(peer.instance.as_str()).map_or(&none, |peer| &peer.traffic);
                (peer.instance.as_str(), peer.traffic.since(earlier, over))
            })
            .collect();
        let node = now.traffic.since(if again { &none } else { &self.before.traffic }, over);
        let top = Self::top(&now, node, &rates, |drops, peer| {
            let earlier = match peer {
                Some(instance) => before.get(instance).map_or(&empty, |peer| &peer.drops),
                None if again => &empty,
                None => &self.before.drops,
            };
            drops.iter().map(|(reason, total)| (*reason, since(*total, earlier.get(reason).copied(), over))).collect()
        });
        self.before = now;
        top
    }

    fn top(
        status: &Status,
        rates: Rates,
        peers: &HashMap<&str, Rates>,
        drops: impl Fn(&BTreeMap<Reason, u64>, Option<&str>) -> BTreeMap<Reason, Drops>,
    ) -> Top {
        let peer = |peer: &Peer| TopPeer {
            workload: peer.workload.clone(),
            instance: peer.instance.clone(),
            session: peer.session.clone(),
            suite: peer.suite.clone(),
            endpoint: peer.endpoint,
            path_mtu: peer.path_mtu,
            roamed: peer.roamed.clone(),
            rates: peers.get(peer.instance.as_str()).copied().unwrap_or_default(),
            traffic: peer.traffic,
            drops: drops(&peer.drops, Some(&peer.instance)),
        };
        Top {
            time: crate::clock::read().wall.to_string(),
            node: status.node.clone(),
            ready: status.ready,
            rates,
            traffic: status.traffic,
            flows: status.flows,
            drops: drops(&status.drops, None),
            offloads: status.tunnel.offloads.clone(),
            notes: status.tunnel.notes.clone(),
            peers: status.peers.iter().map(peer).collect(),
        }
    }
}

fn since(total: u64, earlier: Option<u64>, over: Duration) -> Drops {
    let earlier = earlier.filter(|earlier| *earlier <= total).unwrap_or_default();
    let new = total - earlier;
    let milliseconds = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    Drops { total, new, per_second: new.saturating_mul(1000) / milliseconds }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A status as the daemon sends it, with one peer.
    pub(in crate::cli::top) fn status(uptime: u64, bytes_in: u64, no_rule: u64) -> Status {
        serde_json::from_value(serde_json::json!({
            "version": "0", "node": "0707", "trustDomain": "bank.example", "ready": true, "waitingFor": [],
            "survives": null, "control": { "up": true, "since": "", "coordinator": "c", "cause": null }, "mesh": null,
            "instances": [],
            "nodeCertificate": { "notBefore": "", "notAfter": "", "secondsLeft": 1, "renewalOverdue": false },
            "tunnelDevice": "warren0", "tunnelPort": 1, "tunnelMtu": 1420, "workers": 1, "notes": [],
            "offloads": [{ "name": "gso", "on": false, "detail": "off by tunnel.offload.gso", "fallback": "singly" }],
            "refused": [], "unknownKeys": [], "uptimeMilliseconds": uptime, "flows": 3,
            "drops": { "no-rule": no_rule },
            "traffic": { "packetsIn": 1, "bytesIn": bytes_in, "packetsOut": 2, "bytesOut": 100 },
            "peers": [{
                "workload": "shop/web-frontend", "instance": "aa", "addresses": ["fd00::1"], "plain": false,
                "validUntil": "", "endpoint": "198.51.100.2:51820", "session": "up", "suite": "aes-256-gcm",
                "sessionSeconds": 1, "silentSeconds": 0, "pathMtu": 1420,
                "traffic": { "packetsIn": 1, "bytesIn": bytes_in, "packetsOut": 2, "bytesOut": 100 },
                "drops": { "no-rule": no_rule }
            }]
        }))
        .expect("a status")
    }

    #[test]
    fn an_interval_holds_what_came_between_two_looks() {
        let mut sampler = Sampler::new(status(1_000, 1_000, 5));
        let top = sampler.next(status(3_000, 3_000, 15));
        assert_eq!((top.rates.bits_in, top.rates.bits_out, top.peers[0].rates.bits_in), (8_000, 0, 8_000));
        assert_eq!(top.drops[&Reason::NoRule], Drops { total: 15, per_second: 5, new: 10 });
        assert_eq!(top.peers[0].drops[&Reason::NoRule].new, 10);
        assert_eq!(sampler.next(status(4_000, 3_000, 15)).rates.bits_in, 0);
    }

    #[test]
    fn a_daemon_that_began_anew_counts_from_zero() {
        let mut sampler = Sampler::new(status(90_000, 1_000_000, 500));
        let top = sampler.next(status(500, 50, 1));
        assert_eq!((top.rates.bits_in, top.peers[0].rates.bits_in), (800, 800));
        assert_eq!(top.drops[&Reason::NoRule], Drops { total: 1, per_second: 2, new: 1 });
    }
}
