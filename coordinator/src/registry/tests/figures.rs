//! How many tunnel certificates a coordinator issues, over a real store on the disk; asserts nothing of it:
//! `cargo test --profile dist -p warren-coordinator issuance -- --ignored --nocapture`.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::*;

/// Instances, and how often each of them asks.
const INSTANCES: usize = 200;
const RENEWALS: usize = 10;
/// What nodes ask at once when a fleet renews.
const AT_ONCE: usize = 32;

/// Processor time of this whole process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).expect("positive"), u32::try_from(time.tv_nsec).expect("below a second"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; asserts nothing"]
#[allow(clippy::print_stderr, reason = "the figures are what it is run for")]
async fn measure_the_rate_of_issuance() {
    let mesh = Arc::new(
        Mesh::new_with(MeshSettings { overlay: Overlay { v4: None, ..settings().overlay }, ..settings() }).await,
    );
    let node = mesh.node(&["bank/api"]).await;
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(mesh.issue(node, "bank/api", &Keys::new(), None).await.expect("issued").id);
    }
    for at_once in [1, AT_ONCE] {
        // What nodes do is not measured: keys and requests are made before. Their check is the coordinator's. An instance asks
        // again when it has its answer, so each belongs to one of those that ask at once.
        let mut shares: Vec<Vec<_>> = (0..at_once).map(|_| Vec::new()).collect();
        for number in 0..INSTANCES * RENEWALS {
            let (instance, keys) = (number % INSTANCES, Keys::new());
            let request = CertificateParams::default().serialize_request(&keys.certificate).expect("request");
            shares[instance % at_once].push((instances[instance], keys.tunnel, request.der().to_vec()));
        }
        let (begun, spent) = (Instant::now(), processor_time());
        let mut tasks = tokio::task::JoinSet::new();
        for share in shares {
            let mesh = Arc::clone(&mesh);
            tasks.spawn(async move {
                for (instance, tunnel_key, request) in share {
                    let request = TunnelRequest {
                        node,
                        workload: "bank/api".parse().expect("name"),
                        instance: Some(instance),
                        key: RequesterKey::from_csr(&request).expect("checked"),
                        tunnel_key,
                        capabilities: Capabilities::NONE,
                    };
                    mesh.registry.issue_tunnel(request, &|_| Ok(())).await.expect("issued");
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("every request is answered");
        }
        let (took, spent) = (begun.elapsed(), processor_time() - spent);
        let count = INSTANCES * RENEWALS;
        eprintln!(
            "{count} tunnel certificates, {at_once} asking at once: {:.0} a second; {:.2} ms of processor time each, {:.0} a second and core",
            count as f64 / took.as_secs_f64(),
            spent.as_secs_f64() * 1e3 / count as f64,
            count as f64 / spent.as_secs_f64(),
        );
    }
}
