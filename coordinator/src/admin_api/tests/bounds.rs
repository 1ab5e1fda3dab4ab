//! What one caller may cost the others.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::admin_api::serve::MAX_OF_SOURCE;
use crate::audit::{Broken, PREFIX, Verifier};
use crate::store::{Commit, Read, Write};

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the other side closed it, with nothing said.
fn closed(read: std::io::Result<usize>) -> bool {
    read.map_or(true, |count| count == 0)
}

#[tokio::test]
async fn a_source_with_its_share_of_connections_gets_no_more_and_others_are_served() {
    let fixture = Fixture::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio::sync::watch::Sender::new(false);
    let serving = tokio::spawn(serve(listener, fixture.api.clone(), stop.subscribe()));
    let mut open = Vec::new();
    for _ in 0..MAX_OF_SOURCE {
        open.push(connect("127.0.0.2:0", address).await);
    }
    let mut surplus = connect("127.0.0.2:0", address).await;
    let read = tokio::time::timeout(Duration::from_secs(5), surplus.read(&mut [0])).await;
    assert!(read.is_ok_and(closed), "it is closed at once");
    let seen = tls::fetch(address, &format!("GET /api/v1/status HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    assert!(seen.answer.starts_with("HTTP/1.1 401"), "another source: {}", seen.answer);
    drop(open);
    stop.send_replace(true);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_log_that_does_not_grow_is_not_verified_as_often_as_somebody_asks() {
    let fixture = Fixture::new().await;
    let store = fixture.api.registry().store();
    let verifier = Verifier::default();
    let start = Instant::now();
    let verify = async |seconds| verifier.verify(&**store, start + Duration::from_secs(seconds)).await;
    let first = verify(0).await.unwrap();
    // Whether it was looked for again is seen by a break that the head does not show.
    let oldest = Read { descending: false, ..Read::newest(PREFIX, 1) };
    let key = store.snapshot(oldest).await.unwrap().entries[0].key.clone();
    store.commit(Commit::new(Vec::new(), vec![Write::put(key, b"{}".to_vec())])).await.unwrap();
    assert_eq!(verify(59).await, Ok(first));
    assert_eq!(verify(61).await, Err(Broken::Entry(1)), "a minute later it is looked for");
    assert_eq!(verify(62).await, Err(Broken::Entry(1)), "and a break each time");
}

#[tokio::test]
async fn a_log_that_has_grown_is_verified_anew() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let before = fixture.get(&admin, "/audit/verify").await.body["entries"].as_u64().unwrap();
    fixture.post(&admin, "/tokens", json!({ "workloads": ["shop/web-frontend"] })).await;
    assert_eq!(fixture.get(&admin, "/audit/verify").await.body["entries"], before + 1);
}

#[tokio::test]
async fn no_more_policies_are_judged_at_once_than_there_are_places_and_a_change_has_places_of_its_own() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let body = json!({ "files": [{ "name": "bank.yaml", "text": BANK }] });
    let held = fixture.api.registry().hold_checks();
    let told = fixture.post(&admin, "/policy/check", body.clone()).await;
    assert_eq!((told.status, told.code()), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"), "{}", told.body);
    assert!(told.body["hint"].as_str().is_some_and(|hint| hint.contains("again")), "{}", told.body);
    assert_eq!(fixture.apply(&admin, BANK, 0, "?dry_run=true").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(fixture.apply(&admin, BANK, 0, "").await.status, StatusCode::OK, "who changes it is not kept waiting");
    drop(held);
    assert_eq!(fixture.post(&admin, "/policy/check", body).await.status, StatusCode::OK);
}

/// Method, path, headers, body.
type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)], Value);

#[tokio::test]
async fn a_dry_run_says_no_where_the_change_would() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    assert_eq!(fixture.apply(&admin, BANK, 0, "").await.status, StatusCode::OK);
    let node = fixture.node(&["shop/web-frontend"]).await;
    let made = fixture.post(&admin, "/tokens", json!({ "workloads": ["shop/web-frontend"] })).await;
    let token = made.body["id"].as_str().unwrap().to_owned();
    let other = fixture.token(&admin, "other", Role::CaAdmin, &[]).await;
    let other = other.split('_').nth(1).unwrap().to_owned();
    let large = format!(
        "kind: Set\nname: large\nowns: [large]\n---\nkind: Namespace\nname: large\ndescription: {}\n",
        "x".repeat(40_000)
    );
    let stale: &[(&str, &str)] = &[("if-match", "\"1\"")];
    let cases: Vec<Case<'_>> = vec![
        ("POST", "/tokens".into(), &[], json!({ "workloads": [] })),
        ("POST", "/tokens".into(), &[], json!({ "workloads": ["shop/web-frontend"], "uses": 0 })),
        ("POST", "/tokens".into(), &[], json!({ "workloads": ["shop/web-frontend"], "lifetimeSeconds": 86_400 * 365 })),
        ("POST", "/tokens".into(), &[], json!({ "workloads": ["peer/laptop"] })),
        ("DELETE", format!("/tokens/{token}"), stale, Value::Null),
        ("DELETE", format!("/nodes/{node}"), &[], Value::Null),
        ("DELETE", format!("/admin-tokens/{other}"), stale, Value::Null),
        ("POST", "/admin-tokens".into(), &[], json!({ "name": "other", "role": "viewer" })),
        ("POST", "/revocations".into(), &[], json!({ "target": { "tunnelKey": "00" } })),
        ("PUT", "/policy".into(), stale, json!({ "files": [{ "name": "large.yaml", "text": large }] })),
    ];
    for (method, path, headers, body) in cases {
        let body = (!body.is_null()).then_some(body);
        let dry = fixture.call(&admin, method, &format!("{path}?dry_run=true"), headers, body.clone()).await;
        let change = fixture.call(&admin, method, &path, headers, body).await;
        assert!(change.status.is_client_error(), "{method} {path}: {}", change.body);
        assert_eq!((dry.status, dry.code()), (change.status, change.code()), "{method} {path}: {}", dry.body);
    }
    let before = fixture.get(&admin, "/audit/verify").await.body["entries"].clone();
    let dry = fixture.post(&admin, "/tokens?dry_run=true", json!({ "workloads": ["shop/web-frontend"] })).await;
    assert_eq!((dry.status, &dry.body["id"], &dry.body["secret"]), (StatusCode::OK, &json!(""), &Value::Null));
    let dry = fixture.call(&admin, "DELETE", &format!("/tokens/{token}?dry_run=true"), &[], None).await;
    assert_eq!((dry.status, &dry.body["committed"]), (StatusCode::OK, &json!(false)), "{}", dry.body);
    assert_eq!(
        fixture.get(&admin, "/audit/verify").await.body["entries"],
        before,
        "and where it says yes, changes nothing"
    );
}
