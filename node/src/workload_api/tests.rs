//! The Workload API on its socket, through the `spiffe` crate, with a coordinator that the test plays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Mutex;

use futures_util::StreamExt;
use spiffe::{WorkloadApiClient, X509Context};
use tokio::sync::mpsc;
use tonic::{Code, Request};
use warren_proto::reason::Reason;
use warren_proto::{UnixTime, WorkloadName};

use super::wire::spiffe_workload_api_server::SpiffeWorkloadApi;
use super::*;
use crate::certificates::key_store::{Chain, SigningKey};
use crate::certificates::svids::{Around, Svid, SvidKeeper};
use crate::clock::{Clock, Reading};
use crate::control_client::session::{LinkState, Wanted};
use crate::stop;
use crate::test_mesh::{CALLER, NOW, OWN, TestMesh};

/// The API over a coordinator that the test plays.
struct Api {
    path: PathBuf,
    bundle: watch::Sender<TrustBundle>,
    link: watch::Sender<LinkState>,
    /// What was asked for, by workload.
    asked: Arc<Mutex<BTreeMap<WorkloadName, usize>>>,
    counts: Arc<Counts>,
    stopper: stop::Stopper,
    serving: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
    _view: watch::Sender<Option<Arc<crate::mesh_view::MeshView>>>,
}

fn up() -> LinkState {
    LinkState::Up { since: NOW, coordinator: "alpha".to_owned(), workloads: Vec::new(), spread: Duration::ZERO }
}

fn down() -> LinkState {
    let cause = Refusal::new(Reason::CoordinatorUnreachable, "nobody answers");
    LinkState::Down { since: NOW, cause: Some(cause) }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Api {
    fn new(entries: &[String]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("workload.sock");
        let mesh = TestMesh::new();
        let (bundle, roots) = watch::channel(mesh.bundle());
        let (link, link_seen) = watch::channel(up());
        let (view, view_seen) = watch::channel(None);
        let (wanted, mut coordinator) = mpsc::channel(4);
        let around = Around {
            node: mesh.node,
            wanted,
            link: link_seen,
            bundle: roots.clone(),
            view: view_seen,
            clock: Arc::new(Clock::new(|| Reading { boot: Duration::ZERO, wall: NOW }, UnixTime(0))),
        };
        let asked: Arc<Mutex<BTreeMap<WorkloadName, usize>>> = Arc::default();
        let count = asked.clone();
        tokio::spawn(async move {
            while let Some(wanted) = coordinator.recv().await {
                let Wanted::Svid(workload, answer) = wanted else { panic!("only SVIDs are asked for") };
                *count.lock().expect("count").entry(workload.clone()).or_default() += 1;
                let refused = || Refusal::new(Reason::IdentityNotAllowed, "the node may not hold it");
                let _ =
                    answer.send(if workload.as_str() == CALLER { Err(refused()) } else { Ok(mesh.svid(&workload)) });
            }
        });
        let (keeper, svids) = SvidKeeper::new(around);
        let (stopper, stop) = stop::channel();
        tokio::spawn(keeper.run(stop.clone()));
        let counts = Arc::new(Counts::default());
        let assignments = entries.iter().map(|entry| entry.parse().expect("entry")).collect();
        let offer = Offer { assignments, svids, bundle: roots, counts: counts.clone() };
        let serving = tokio::spawn(WorkloadApi::bind(&path).expect("listen").run(offer, stop));
        Self { path, bundle, link, asked, counts, stopper, serving, _directory: directory, _view: view }
    }

    async fn client(&self) -> WorkloadApiClient {
        WorkloadApiClient::connect_to(format!("unix:{}", self.path.display())).await.expect("connect")
    }

    fn asked(&self, workload: &str) -> usize {
        self.asked.lock().expect("count").get(&workload.parse().expect("name")).copied().unwrap_or_default()
    }
}

impl TestMesh {
    fn svid(&self, workload: &WorkloadName) -> Svid {
        let key = SigningKey::generate().expect("key");
        let chain = self.svid_chain(workload.as_str(), &key);
        let certificate = warren_proto::certificate::WorkloadSvid::parse(&chain[0]).expect("an SVID");
        let valid_until = certificate.leaf().not_after();
        Svid { key, chain: Chain(chain), certificate, valid_until }
    }
}

fn serial(context: &X509Context) -> Vec<u8> {
    let leaf = context.default_svid().expect("an SVID").cert_chain()[0].as_bytes().to_vec();
    let parsed = warren_proto::certificate::WorkloadSvid::parse(&leaf).expect("a workload's SVID");
    parsed.leaf().serial().as_bytes().to_vec()
}

#[tokio::test]
async fn a_workload_gets_its_svid_and_roots_and_each_new_one() {
    let api = Api::new(&[format!("{OWN} uid={}", own_uid())]);
    let client = api.client().await;
    let mut contexts = pin!(client.stream_x509_contexts().await.expect("stream"));
    let first = contexts.next().await.expect("first").expect("context");
    let svid = first.default_svid().expect("an SVID");
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://bank.example/ns/bank/sa/banking-api");
    assert_eq!(svid.cert_chain().len(), 2, "with the intermediate");
    assert_eq!(first.bundle_set().iter().map(|(domain, _)| domain.to_string()).collect::<Vec<_>>(), ["bank.example"]);
    // A second caller gets the same one: there is one key for the workload at a time.
    let again = client.fetch_x509_context().await.expect("context");
    assert_eq!((serial(&again), api.asked(OWN)), (serial(&first), 1));
    // The coordinator says that everything issued until now is to be replaced.
    let renewing = api.bundle.borrow().clone().renewing_before(UnixTime(NOW.0 + 1));
    api.bundle.send_replace(renewing);
    let second = contexts.next().await.expect("second").expect("context");
    assert_ne!(serial(&second), serial(&first));
    // That word is followed once, however the moments fall: another caller does not find it being renewed again.
    let again = client.fetch_x509_context().await.expect("context");
    assert_eq!((serial(&again), api.asked(OWN)), (serial(&second), 2));
}

#[tokio::test]
async fn a_caller_that_fits_no_entry_is_refused_by_name_and_nothing_is_asked_for_it() {
    let api = Api::new(&[format!("{OWN} uid={}", own_uid() + 1), format!("{OWN} unit=other.service")]);
    let client = api.client().await;
    for refused in [
        client.fetch_x509_context().await.map(drop).expect_err("refused"),
        client.fetch_x509_bundles().await.map(drop).expect_err("refused"),
    ] {
        let text = refused.to_string();
        let named = ["permission denied", "no-workload", &format!("uid {}", own_uid())];
        assert!(named.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!((api.asked(OWN), api.counts.refused()), (0, 2));
}

#[tokio::test]
async fn of_several_that_fit_the_first_is_the_default_and_a_refused_one_is_left_out() {
    let uid = own_uid();
    let entries = [format!("bank/second uid={uid}"), format!("{CALLER} uid={uid}"), format!("{OWN} uid={uid}")];
    let api = Api::new(&entries);
    let svids = api.client().await.fetch_all_x509_svids().await.expect("SVIDs");
    let ids: Vec<_> = svids.iter().map(|svid| svid.spiffe_id().path().to_owned()).collect();
    assert_eq!(ids, ["/ns/bank/sa/second", "/ns/bank/sa/banking-api"]);
    let hints: Vec<_> = svids.iter().map(|svid| svid.hint()).collect();
    assert_eq!(hints, [Some("bank/second"), Some(OWN)]);
}

#[tokio::test]
async fn what_the_coordinator_refuses_and_its_absence_are_told_apart() {
    let api = Api::new(&[format!("{CALLER} uid={}", own_uid())]);
    let text = api.client().await.fetch_x509_svid().await.expect_err("refused").to_string();
    assert!(text.contains("permission denied") && text.contains("identity-not-allowed"), "{text}");
    let api = Api::new(&[format!("{OWN} uid={}", own_uid())]);
    api.link.send_replace(down());
    let text = api.client().await.fetch_x509_svid().await.expect_err("refused").to_string();
    assert!(text.contains("coordinator-unreachable") && text.contains("nobody answers"), "{text}");
    // It is back: whoever asks again is served.
    api.link.send_replace(up());
    loop {
        match api.client().await.fetch_x509_svid().await {
            Ok(svid) => break assert!(svid.spiffe_id().to_string().ends_with("banking-api")),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn a_call_without_the_header_that_no_web_page_can_send_is_refused() {
    let api = Api::new(&[format!("{OWN} uid={}", own_uid())]);
    let (keeper, svids) = idle_keeper(&api);
    let assignments = [format!("{OWN} uid={}", own_uid()).parse().expect("entry")].into();
    let offer = Offer { assignments, svids, bundle: api.bundle.subscribe(), counts: Arc::default() };
    let service = Service::new(offer, stop::channel().1);
    for values in [&[][..], &["false"], &["True"], &["true", "true"]] {
        let mut request = Request::new(wire::X509svidRequest {});
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", value.parse().expect("text"));
        }
        let refused = service.fetch_x509svid(request).await.map(drop).expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{values:?}");
    }
    // With it, the JWT profile says that it is not there.
    let mut request = Request::new(wire::JwtsvidRequest { audience: vec!["a".to_owned()], spiffe_id: String::new() });
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("text"));
    assert_eq!(service.fetch_jwtsvid(request).await.expect_err("refused").code(), Code::Unimplemented);
    drop(keeper);
}

fn idle_keeper(api: &Api) -> (SvidKeeper, Svids) {
    let (wanted, _) = mpsc::channel(1);
    SvidKeeper::new(Around {
        node: TestMesh::new().node,
        wanted,
        link: api.link.subscribe(),
        bundle: api.bundle.subscribe(),
        view: watch::channel(None).1,
        clock: Arc::new(Clock::new(|| Reading { boot: Duration::ZERO, wall: NOW }, UnixTime(0))),
    })
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_every_call_and_takes_the_socket_along() {
    let api = Api::new(&[format!("{OWN} uid={}", own_uid())]);
    let client = api.client().await;
    let mut contexts = pin!(client.stream_x509_contexts().await.expect("stream"));
    contexts.next().await.expect("first").expect("context");
    api.stopper.stop();
    let text = contexts.next().await.expect("an end").expect_err("an end by name").to_string();
    assert!(text.contains("shutting-down"), "{text}");
    api.serving.await.expect("it ends");
    assert!(!api.path.exists());
}
