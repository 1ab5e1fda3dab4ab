//! The node's figures in the OpenMetrics text format (openmetrics-text 1.0.0), for Prometheus and those who read what it
//! reads. They are the figures of `warren status`, taken when somebody asks: no second set of counters can disagree.
//!
//! Labels are of closed or small sets: reasons, this node's own workloads, directions. No address and no peer is a label, so
//! what a stranger sends makes no series.

mod server;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

pub use server::Server;

use crate::local_api::types::{Span, Status};

/// The whole page for one look at the node. An error is the formatter's own.
pub fn exposition(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("warren");
    registry.register_collector(Box::new(Look(status)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// One look at the node.
#[derive(Debug)]
struct Look(Status);

impl Collector for Look {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.node(&mut page)?;
        self.certificates(&mut page)?;
        self.peers(&mut page)?;
        self.packets(&mut page)?;
        self.workload_api(&mut page)
    }
}

impl Look {
    fn node(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.0;
        page.gauges("build", "The running version; always 1.", None, [([("version", status.version.as_str())], 1)])?;
        let uptime = status.uptime_milliseconds / 1000;
        page.gauge("uptime", "Time since the daemon started.", Some(Unit::Seconds), uptime)?;
        page.gauge("ready", "1 when packets are let through as policy says.", None, u64::from(status.ready))?;
        page.gauge("control_up", "1 when the link to the coordinator is up.", None, u64::from(status.control.up))?;
        if let Some(survives) = &status.survives {
            let help = "How long everything works with the coordinator away: until the first certificate ends that this \
                        node depends on.";
            page.gauge("survival", help, Some(Unit::Seconds), survives.seconds)?;
        }
        let Some(mesh) = &status.mesh else { return Ok(()) };
        let help = "Time since the coordinator last said that this node's picture of the mesh is the newest.";
        page.gauge("mesh_age", help, Some(Unit::Seconds), mesh.age_seconds)?;
        page.gauge("mesh_stale", "1 when that is too long ago to admit a new peer.", None, u64::from(mesh.stale))?;
        page.gauge("mesh_revision", "Revision of the manifest in force.", None, mesh.revision)?;
        page.gauge("policy_revision", "Revision of the policy in force.", None, mesh.policy_revision)?;
        page.gauge("revocations", "Revocations in force.", None, mesh.revocations as u64)
    }

    fn certificates(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.0;
        let tunnels = status.instances.iter().map(|own| ("tunnel", own.workload.as_str(), &own.certificate));
        let svids = status.workload_api.iter().flat_map(|api| &api.svids);
        let svids = svids.filter_map(|svid| Some(("svid", svid.workload.as_str(), svid.validity.as_ref()?)));
        let all: Vec<(&str, &str, &Span)> =
            [("node", "", &status.node_certificate)].into_iter().chain(tunnels).chain(svids).collect();
        let each = |value: fn(&Span) -> u64| {
            all.iter().map(move |(kind, workload, span)| ([("kind", *kind), ("workload", *workload)], value(span)))
        };
        let help =
            "How long this node's own certificates live on, by kind (node, tunnel, svid) and workload; 0 when ended.";
        page.gauges("certificate_remaining", help, Some(Unit::Seconds), each(|span| span.seconds_left))?;
        let help = "1 when less than a quarter of its life is left: renewal has not worked.";
        page.gauges("certificate_renewal_overdue", help, None, each(|span| u64::from(span.renewal_overdue)))
    }

    fn peers(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.0;
        // The states of the status, each also when nobody is in it.
        let states = ["idle", "handshake", "exchange", "confirming", "up"];
        let count = |state: &str| status.peers.iter().filter(|peer| peer.session == state).count() as u64;
        let peers = states.into_iter().map(|state| ([("session", state)], count(state)));
        page.gauges("peers", "Admitted peers, by the state of the session with them.", None, peers)?;
        page.gauge(
            "peers_refused",
            "Peer records that were refused; at most 100 are counted.",
            None,
            status.refused.len() as u64,
        )?;
        let unknown = status.unknown_keys.iter().map(|key| key.count).sum();
        page.counter("unknown_key_handshakes", "Handshakes under keys that are nobody's, of those remembered.", unknown)
    }

    fn packets(&self, page: &mut Page<'_>) -> fmt::Result {
        let (status, traffic) = (&self.0, &self.0.traffic);
        let directions = |let_in, sent| [([("direction", "in")], let_in), ([("direction", "out")], sent)];
        let help = "Inner packets: in is what was let into the host, out what was sealed for peers.";
        page.counters("packets", help, None, directions(traffic.packets_in, traffic.packets_out))?;
        let help = "The bytes of those packets.";
        page.counters("traffic", help, Some(Unit::Bytes), directions(traffic.bytes_in, traffic.bytes_out))?;
        let drops = status.drops.iter().map(|(reason, count)| ([("reason", reason.name())], *count));
        page.counters("drops", "Packets dropped, by reason.", None, drops)?;
        page.gauge("flows", "Live flows.", None, status.flows)?;
        let help = "Refusals sent to peers and local programs: resets, ICMP errors.";
        page.counter("refusals_sent", help, status.refusals_sent)?;
        let help = "Lines that the flow log should have and does not: they came faster than it takes them.";
        page.counter("flow_records_lost", help, status.flow_records_lost)?;
        let offloads =
            status.tunnel.offloads.iter().map(|each| ([("offload", each.name.as_str())], u64::from(each.on)));
        page.gauges("offload_on", "1 for each offload in use.", None, offloads)
    }

    fn workload_api(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(api) = &self.0.workload_api else { return Ok(()) };
        let calls = [([("outcome", "served")], api.served), ([("outcome", "refused")], api.refused)];
        page.counters("workload_api_calls", "Calls of the SPIFFE Workload API.", None, calls)
    }
}

/// The page as far as it is written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        each(&mut family, values, |value, one| ConstGauge::new(value).encode(one))
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        each(&mut family, values, |value, one| ConstCounter::new(value).encode(one))
    }
}

fn each<L: EncodeLabelSet>(
    family: &mut MetricEncoder<'_>,
    values: impl IntoIterator<Item = (L, u64)>,
    encode: impl Fn(u64, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    values.into_iter().try_for_each(|(labels, value)| encode(value, family.encode_family(&labels)?))
}

#[cfg(test)]
mod tests;
