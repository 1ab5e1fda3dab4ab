//! The page as a scraper reads it, line by line.

use super::*;

fn page(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut status = serde_json::json!({
        "version": "0.1.0", "node": "0707", "trustDomain": "bank.example", "ready": true, "waitingFor": [],
        "survives": { "until": "2026-01-01T00:00:00Z", "seconds": 43_200 },
        "control": { "up": false, "since": "", "coordinator": null, "cause": null },
        "mesh": {
            "epoch": 1, "revision": 9, "policyRevision": 4, "heard": "", "ageSeconds": 12, "stale": false,
            "revocations": 2, "generation": 30
        },
        "instances": [{
            "workload": "shop/web-frontend", "instance": "aa", "addresses": ["fd00::2"], "tunnelKey": "",
            "certificate": { "notBefore": "", "notAfter": "", "secondsLeft": 43_200, "renewalOverdue": true }
        }],
        "nodeCertificate": { "notBefore": "", "notAfter": "", "secondsLeft": 80_000, "renewalOverdue": false },
        "tunnelDevice": "warren0", "tunnelPort": 1, "tunnelMtu": 1420, "workers": 1, "notes": [],
        "offloads": [{ "name": "gso", "on": false, "detail": "", "fallback": "singly" }],
        "refused": [], "unknownKeys": [{ "keyHash": "00", "from": "198.51.100.9:1", "count": 5 }],
        "uptimeMilliseconds": 61_500, "flows": 3, "drops": { "no-rule": 7, "denied-by-rule": 1 },
        "traffic": { "packetsIn": 1, "bytesIn": 1_000, "packetsOut": 2, "bytesOut": 100 },
        "peers": [{
            "workload": "bank/banking-api", "instance": "bb", "addresses": ["fd00::1"], "plain": false, "validUntil": "",
            "endpoint": null, "session": "up", "suite": null, "sessionSeconds": null, "silentSeconds": null
        }]
    });
    change(&mut status);
    exposition(serde_json::from_value(status).expect("a status")).expect("a page")
}

#[test]
fn what_status_shows_stands_on_the_page_with_its_unit() {
    let page = page(|_| ());
    for line in [
        "warren_build{version=\"0.1.0\"} 1",
        "warren_uptime_seconds 61",
        "warren_ready 1",
        "warren_control_up 0",
        "warren_survival_seconds 43200",
        "warren_mesh_age_seconds 12",
        "warren_policy_revision 4",
        "warren_certificate_remaining_seconds{kind=\"node\",workload=\"\"} 80000",
        "warren_certificate_remaining_seconds{kind=\"tunnel\",workload=\"shop/web-frontend\"} 43200",
        "warren_certificate_renewal_overdue{kind=\"tunnel\",workload=\"shop/web-frontend\"} 1",
        "warren_peers{session=\"up\"} 1",
        "warren_peers{session=\"handshake\"} 0",
        "warren_unknown_key_handshakes_total 5",
        "warren_drops_total{reason=\"no-rule\"} 7",
        "warren_drops_total{reason=\"denied-by-rule\"} 1",
        "warren_packets_total{direction=\"out\"} 2",
        "warren_traffic_bytes_total{direction=\"in\"} 1000",
        "warren_flows 3",
        "warren_offload_on{offload=\"gso\"} 0",
    ] {
        assert!(page.lines().any(|of_page| of_page == line), "{line}\n--\n{page}");
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn every_sample_is_described_and_none_stands_twice() {
    let page = page(|_| ());
    let mut seen = std::collections::HashSet::new();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = sample.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok() && seen.insert(series), "{sample}");
        let name = series.split('{').next().unwrap_or_default();
        let family = name.strip_suffix("_total").unwrap_or(name);
        assert!(page.contains(&format!("# HELP {family} ")) && page.contains(&format!("# TYPE {family} ")), "{sample}");
    }
}

#[test]
fn a_node_that_knows_nothing_yet_shows_no_figure_that_it_does_not_have() {
    let page = page(|status| {
        status["mesh"] = serde_json::Value::Null;
        status["survives"] = serde_json::Value::Null;
    });
    assert!(!page.contains("warren_survival") && !page.contains("warren_mesh_age"), "{page}");
    assert!(page.contains("warren_ready 1"));
}

#[test]
fn a_label_cannot_begin_another_series() {
    let page = page(|status| status["version"] = "1\"} 1\nwarren_ready 0\n".into());
    assert!(!page.lines().any(|line| line == "warren_ready 0"), "{page}");
}
