//! What the local API answers to, over a real socket.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use warren_proto::{NodeId, Reason, UnixTime};

use super::MAX_REQUEST;
use super::client::{ask, ask_once};
use super::server::LocalApi;
use super::types::{Answer, FlowLine, FlowVerdict, Holders, Request, Status};
use crate::certificates::key_store::{Chain, NodeIdentity, SigningKey, StoredBundle};
use crate::certificates::renewal::Standing;
use crate::cli::Exit;
use crate::clock::{Clock, Reading};
use crate::config::Config;
use crate::control_client::session::LinkState;
use crate::daemon::meter::Meter;
use crate::daemon::reload::{Live, Reloader};
use crate::daemon::surface::Surface;
use crate::daemon::tunnel::TunnelFacts;
use crate::data_plane::offload::{Offloads, Switches};
use crate::flow_log::FlowLog;
use crate::placement::Placement;
use crate::stop;
use crate::test_mesh::NOW;

struct Rig {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    flows: Arc<FlowLog>,
    stop: stop::Stop,
    _kept: (watch::Sender<bool>, watch::Sender<LinkState>),
}

/// A daemon's local API with nothing behind it yet: no mesh, no data plane.
fn rig() -> Rig {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("run/warren.sock");
    let flows = Arc::new(FlowLog::default());
    let (stopper, stop) = stop::channel();
    let identity = NodeIdentity {
        trust_domain: "bank.example".parse().expect("name"),
        node_id: NodeId::from_bytes([7; 16]),
        coordinators: Vec::new(),
        workloads: Vec::new(),
        key: SigningKey::generate().expect("key"),
        chain: Chain(Vec::new()),
        bundle: StoredBundle { sequence: 0, roots: Chain(Vec::new()) },
        overlay: None,
    };
    let (ready, ready_watch) = watch::channel(false);
    let (link, link_watch) = watch::channel(LinkState::Down { since: NOW, cause: None });
    let surface = Surface {
        identity: watch::channel(Arc::new(identity)).1,
        view: watch::channel(None).1,
        link: link_watch,
        ready: ready_watch,
        tunnel: TunnelFacts {
            device: "warren0".into(),
            port: 1,
            mtu: 1420,
            workers: 1,
            notes: Vec::new(),
            offloads: Offloads::new(Switches::ON),
            outage: Arc::default(),
        },
        data_plane: mpsc::unbounded_channel().0,
        flows: flows.clone(),
        clock: Arc::new(Clock::new(|| Reading { boot: Duration::ZERO, wall: NOW }, UnixTime(0))),
        stopper: Arc::new(stopper),
        started: Duration::ZERO,
        meter: Meter::default(),
        assignments: format!("shop/web uid={}", rustix::process::geteuid().as_raw())
            .parse()
            .map(|entry| [entry].into())
            .expect("entry"),
        placement: Arc::new(Placement::of(None, &[])),
        standing: watch::channel(Standing::default()).1,
        workload_api: None,
        reloader: Reloader::new(
            Config::default(),
            Box::new(|| Ok(Config::default())),
            Live {
                level: Arc::new(|_| Ok(())),
                addresses: watch::channel(Vec::new()).0,
                coordinators: watch::channel(Vec::new()).0,
            },
        ),
    };
    let api = LocalApi::bind(&socket).expect("listens");
    tokio::spawn(api.run(Arc::new(surface), stop.clone()));
    Rig { _directory: directory, socket, flows, stop, _kept: (ready, link) }
}

async fn raw(rig: &Rig, bytes: &[u8]) -> Option<Answer> {
    let mut stream = UnixStream::connect(&rig.socket).await.expect("connects");
    stream.write_all(bytes).await.expect("taken");
    stream.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    serde_json::from_slice(&answer).ok()
}

fn line(verdict: FlowVerdict) -> FlowLine {
    serde_json::from_value(serde_json::json!({
        "at": 1, "time": "", "verdict": verdict, "source": "shop/web-frontend", "destination": null, "protocol": "tcp",
        "port": 80, "sourceAddress": "[::1]:1", "destinationAddress": "[::1]:2", "rule": null, "nearest": null,
        "file": null, "line": null, "reason": null, "audit": false, "count": 1
    }))
    .expect("a line")
}

#[tokio::test]
async fn only_the_daemons_own_user_may_reach_the_socket() {
    let rig = rig();
    let mode = std::fs::metadata(&rig.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_node_that_knows_nothing_yet_says_what_it_waits_for() {
    let rig = rig();
    let status: Status = ask_once(&rig.socket, &Request::Status).await.expect("answered");
    assert!(!status.ready && status.survives.is_none());
    assert_eq!(status.waiting_for.len(), 2, "{:?}", status.waiting_for);
    let refused = ask_once::<Holders>(&rig.socket, &Request::Whois { target: "a/b".into() }).await.expect_err("no");
    assert_eq!(refused.exit, Exit::NotReady);
}

#[tokio::test]
async fn questions_that_are_none_are_refused_by_reason() {
    let rig = rig();
    let mut long = vec![b' '; MAX_REQUEST + 10];
    long.push(b'\n');
    let cases: [(&[u8], Reason); 6] = [
        (b"\n", Reason::InvalidField),
        (b"{}\n", Reason::InvalidField),
        (b"{\"ask\":\"root-shell\"}\n", Reason::InvalidField),
        (b"{\"ask\":\"whois\",\"target\":\"a\",\"extra\":1}\n", Reason::InvalidField),
        (b"\xff\xfe\n", Reason::InvalidField),
        (&long, Reason::RequestTooLarge),
    ];
    for (bytes, reason) in cases {
        let Some(Answer::Refused(refusal)) = raw(&rig, bytes).await else {
            panic!("{:?} was not refused", String::from_utf8_lossy(bytes));
        };
        assert_eq!(refusal.reason, reason, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn a_question_cut_off_is_no_question() {
    let rig = rig();
    assert!(matches!(raw(&rig, b"{\"ask\":\"st").await, Some(Answer::Refused(_))));
    assert!(!*rig._kept.0.borrow());
    assert!(ask_once::<Status>(&rig.socket, &Request::Status).await.is_ok(), "and the next one is answered");
}

#[tokio::test]
async fn followers_get_the_past_then_every_new_flow_of_their_verdict() {
    let rig = rig();
    rig.flows.add(line(FlowVerdict::Denied));
    rig.flows.add(line(FlowVerdict::Allowed));
    let request = Request::Flows { verdict: Some(FlowVerdict::Denied), limit: 10, follow: true };
    let mut asked = ask(&rig.socket, &request).await.expect("asked");
    let first: FlowLine = asked.next().await.expect("line").expect("the past");
    rig.flows.add(line(FlowVerdict::Allowed));
    rig.flows.add(FlowLine { port: 81, ..line(FlowVerdict::Denied) });
    let second: FlowLine = asked.next().await.expect("line").expect("the new one");
    assert_eq!((first.port, second.port), (80, 81));
}

#[tokio::test]
async fn asking_to_stop_gives_the_word_and_holds_until_the_end() {
    let rig = rig();
    let mut asked = ask(&rig.socket, &Request::Stop).await.expect("asked");
    asked.next::<()>().await.expect("answered");
    rig.stop.stopped().await;
}

#[tokio::test]
async fn a_socket_somebody_answers_at_is_not_taken_over_and_a_left_over_one_is_replaced() {
    let rig = rig();
    let refusal = LocalApi::bind(&rig.socket).expect_err("taken");
    assert_eq!(refusal.reason, Reason::Conflict);
    let left = rig.socket.with_file_name("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).expect("bound"));
    LocalApi::bind(&left).expect("replaced");
}

#[tokio::test]
async fn no_daemon_is_told_with_the_command_that_starts_one() {
    let failure = ask_once::<Status>(std::path::Path::new("/nonexistent/warren.sock"), &Request::Status)
        .await
        .expect_err("nobody there");
    assert_eq!(failure.exit, Exit::NotReady);
    assert!(failure.to_string().contains("next:  warren up"), "{failure}");
}
