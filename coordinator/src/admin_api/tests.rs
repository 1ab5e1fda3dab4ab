//! The admin API over real HTTPS on loopback: who may do what, what each route answers, and how it refuses.

use std::sync::Mutex;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;
use warren_proto::admin::Role;
use warren_proto::{Overlay, UnixTime};

use super::*;
use crate::ca::{Authority, CaParameters};
use crate::clock::{Source, WallClock};
use crate::registry::Caller;
use crate::state::records::MeshSettings;
use crate::store::{Options, Seams, SledStore};

mod attestation;
mod bounds;
mod nodes;
mod tls;
mod transparency;

const START: UnixTime = UnixTime(1_800_000_000);

const BANK: &str = "\
kind: Set
name: all
owns: [mesh, bank, shop]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: bank
---
kind: Namespace
name: shop
---
kind: Service
name: bank/banking-api
ports: { api: { port: 8443, protocol: tcp } }
allow:
  web: { from: [shop/web-frontend], ports: [api] }
---
kind: Service
name: shop/web-frontend
";

/// A coordinator's state behind the API, on a clock that only the test moves; no socket.
struct Fixture {
    api: Api,
    router: axum::Router,
    time: Arc<Mutex<UnixTime>>,
    first_run: String,
    _directory: tempfile::TempDir,
}

/// An answer, read whole.
struct Told {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Told {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let overlay = Overlay { v6: ("fd12:3456:789a::".parse().unwrap(), 48), v4: None };
        let trust_domain: warren_proto::TrustDomain = "bank.example".parse().unwrap();
        let parameters = CaParameters { trust_domain: trust_domain.clone(), coordinator: "alpha".to_owned(), overlay };
        let authority = Authority::init(&directory.path().join("ca"), &parameters, START).unwrap();
        let options = Options {
            keep_free: 0,
            keep_free_percent: 0,
            ballast: 0,
            any_file_system: true,
            ..Options::new(directory.path())
        };
        let store = SledStore::create(options, Seams::default()).unwrap();
        let time = Arc::new(Mutex::new(START));
        let source: Source = {
            let time = Arc::clone(&time);
            Arc::new(move || *time.lock().unwrap())
        };
        let clock = Arc::new(WallClock::open(&directory.path().join("clock"), source).unwrap());
        let advertised = vec!["192.0.2.1:8443".to_owned()];
        let registry = Registry::open(Arc::new(store), authority, clock, advertised).await.unwrap();
        let following = Arc::clone(&registry);
        tokio::spawn(async move { following.follow().await });
        let settings = MeshSettings {
            trust_domain,
            overlay,
            tunnel_certificate_lifetime: 86_400,
            node_certificate_lifetime: 7 * 86_400,
            max_certificate_lifetime: 86_400,
            stale_after: 600,
        };
        registry.create_mesh(&Caller::new("test"), settings).await.unwrap();
        let (record, first_run) = first_run_token(START);
        registry.create_admin_token(&Caller::new("test"), record, None).await.unwrap();
        let api = Api::new(registry, Arc::default(), vec!["coordinator.example".to_owned()]);
        let router = router(api.clone());
        Self { api, router, time, first_run: first_run.to_string(), _directory: directory }
    }

    async fn send(&self, request: Request<Body>) -> Told {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Told { status: parts.status, headers: parts.headers, body }
    }

    async fn call(&self, token: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Told {
        let mut request =
            Request::builder().method(method).uri(format!("/api/v1{path}")).header(header::HOST, "127.0.0.1:8444");
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    async fn get(&self, token: &str, path: &str) -> Told {
        self.call(token, "GET", path, &[], None).await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> Told {
        self.call(token, "POST", path, &[], Some(body)).await
    }

    /// The first administrator's token.
    async fn claim(&self) -> String {
        let told = self.post(&self.first_run, "/claim", json!({ "name": "ops" })).await;
        assert_eq!(told.status, StatusCode::CREATED, "{}", told.body);
        told.body["secret"].as_str().unwrap().to_owned()
    }

    async fn token(&self, admin: &str, name: &str, role: Role, namespaces: &[&str]) -> String {
        let body = json!({ "name": name, "role": role, "namespaces": namespaces });
        let told = self.post(admin, "/admin-tokens", body).await;
        assert_eq!(told.status, StatusCode::CREATED, "{}", told.body);
        told.body["secret"].as_str().unwrap().to_owned()
    }

    async fn apply(&self, token: &str, text: &str, revision: u64, query: &str) -> Told {
        let body = json!({ "files": [{ "name": "policy/bank.yaml", "text": text }], "allowDelete": 10 });
        let etag = format!("\"{revision}\"");
        self.call(token, "PUT", &format!("/policy{query}"), &[("if-match", &etag)], Some(body)).await
    }

    fn pass(&self, by: Duration) {
        let mut time = self.time.lock().unwrap();
        *time = time.plus(by);
    }
}

#[tokio::test]
async fn the_first_run_token_opens_one_door_and_only_once_even_when_fifty_try() {
    let fixture = Arc::new(Fixture::new().await);
    let first_run = fixture.first_run.clone();
    assert_eq!(fixture.get(&first_run, "/status").await.code(), "not-permitted");

    let mut claims = tokio::task::JoinSet::new();
    for number in 0..50 {
        let fixture = Arc::clone(&fixture);
        let claim = json!({ "name": format!("ops-{number}") });
        claims.spawn(async move { fixture.post(&fixture.first_run, "/claim", claim).await });
    }
    let mut secrets = Vec::new();
    while let Some(told) = claims.join_next().await {
        let told = told.unwrap();
        match told.status {
            StatusCode::CREATED => secrets.push(told.body["secret"].as_str().unwrap().to_owned()),
            status => assert_eq!(status, StatusCode::UNAUTHORIZED, "{}", told.body),
        }
    }
    assert_eq!(secrets.len(), 1);
    assert_eq!(fixture.get(&secrets[0], "/status").await.status, StatusCode::OK);
    assert_eq!(fixture.post(&secrets[0], "/claim", json!({ "name": "more" })).await.code(), "not-permitted");
}

/// Every operation, and the least role that may do it; `None` for the first-run token's.
const OPERATIONS: &[(&str, &str, Option<Role>)] = &[
    ("get", "/status", Some(Role::Viewer)),
    ("get", "/acknowledgements", Some(Role::Viewer)),
    ("get", "/tokens", Some(Role::Viewer)),
    ("post", "/tokens", Some(Role::Operator)),
    ("delete", "/tokens/{id}", Some(Role::Operator)),
    ("get", "/attestors", Some(Role::Viewer)),
    ("get", "/attestors/{name}", Some(Role::Viewer)),
    ("put", "/attestors/{name}", None),
    ("delete", "/attestors/{name}", None),
    ("get", "/registrations", Some(Role::Viewer)),
    ("post", "/registrations", Some(Role::Operator)),
    ("delete", "/registrations/{name}", Some(Role::Operator)),
    ("get", "/nodes", Some(Role::Viewer)),
    ("get", "/nodes/{id}", Some(Role::Viewer)),
    ("delete", "/nodes/{id}", Some(Role::Operator)),
    ("put", "/nodes/{id}/workloads", Some(Role::Operator)),
    ("delete", "/instances/{id}", Some(Role::Operator)),
    ("get", "/peers", Some(Role::Viewer)),
    ("post", "/peers", Some(Role::Operator)),
    ("get", "/peers/{name}", Some(Role::Viewer)),
    ("delete", "/peers/{name}", Some(Role::Operator)),
    ("get", "/ca", Some(Role::Viewer)),
    ("post", "/ca/rotation", None),
    ("get", "/workloads", Some(Role::Viewer)),
    ("get", "/workloads/{namespace}/{name}", Some(Role::Viewer)),
    ("get", "/services", Some(Role::Viewer)),
    ("get", "/services/{namespace}/{name}", Some(Role::Viewer)),
    ("get", "/policy", Some(Role::Viewer)),
    ("put", "/policy", Some(Role::PolicyAdmin)),
    ("post", "/policy/check", Some(Role::Viewer)),
    ("post", "/policy/why", Some(Role::Viewer)),
    ("post", "/policy/rollback", Some(Role::PolicyAdmin)),
    ("get", "/policy/revisions", Some(Role::Viewer)),
    ("get", "/policy/revisions/{number}", Some(Role::Viewer)),
    ("get", "/revocations", Some(Role::Viewer)),
    ("post", "/revocations", Some(Role::Operator)),
    ("get", "/audit", Some(Role::Viewer)),
    ("get", "/audit/rows", Some(Role::Viewer)),
    ("get", "/audit/verify", Some(Role::Viewer)),
    ("get", "/audit/proof", Some(Role::Viewer)),
    ("get", "/admin-tokens", Some(Role::CaAdmin)),
    ("post", "/admin-tokens", Some(Role::CaAdmin)),
    ("delete", "/admin-tokens/{id}", Some(Role::CaAdmin)),
    ("post", "/claim", None),
];

#[tokio::test]
async fn every_operation_asks_for_its_role_and_nothing_is_open() {
    let document: Value = serde_json::from_str(&openapi().unwrap()).unwrap();
    let mut documented: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in
            item.as_object().unwrap().keys().filter(|key| Method::from_bytes(key.to_uppercase().as_bytes()).is_ok())
        {
            if ["get", "put", "post", "delete"].contains(&method.as_str()) {
                documented.push((method.clone(), path.trim_start_matches("/api/v1").to_owned()));
                assert!(item[method]["security"].is_array(), "{method} {path} is documented as open");
            }
        }
    }
    let mut expected: Vec<_> =
        OPERATIONS.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    documented.sort();
    expected.sort();
    assert_eq!(documented, expected, "the matrix below covers every operation");

    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let mut holders = Vec::new();
    for role in [Role::Viewer, Role::Operator, Role::PolicyAdmin] {
        let name = serde_json::to_value(role).unwrap().as_str().unwrap().to_owned();
        holders.push((role, fixture.token(&admin, &name, role, &[]).await));
    }
    for (method, path, least) in OPERATIONS {
        let path = path
            .replace("{id}", &"0".repeat(32))
            .replace("{namespace}", "bank")
            .replace("{name}", "none")
            .replace("{number}", "7");
        let method = method.to_uppercase();
        let open = fixture.call("", &method, &path, &[], Some(json!({}))).await;
        assert_eq!((open.status, open.code()), (StatusCode::UNAUTHORIZED, "not-authenticated"), "{method} {path}");
        assert!(open.headers.contains_key(header::WWW_AUTHENTICATE));
        for (role, token) in &holders {
            let covered = least.is_some_and(|least| least == *role || least == Role::Viewer);
            let told = fixture.call(token, &method, &path, &[], Some(json!({}))).await;
            assert_eq!(told.status == StatusCode::FORBIDDEN, !covered, "{method} {path} by {role:?}: {}", told.body);
        }
    }
}

#[tokio::test]
async fn a_credential_that_is_unknown_misspelt_expired_or_deleted_is_refused() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let viewer = fixture.token(&admin, "eve", Role::Viewer, &[]).await;
    // The secret, in base64url, may hold the separator.
    let (known, other) =
        (viewer.splitn(3, '_').take(2).collect::<Vec<_>>().join("_"), admin.splitn(3, '_').nth(2).unwrap());
    let own_id_foreign_secret =
        warren_proto::admin::Credential::new(warren_proto::admin::Credential::parse(&viewer).unwrap().id(), [9; 32]);
    for wrong in
        ["x", "wa1_", &format!("{known}_{other}"), &own_id_foreign_secret.expose(), &viewer[..viewer.len() - 1]]
    {
        let told = fixture.get(wrong, "/status").await;
        assert_eq!((told.status, told.code()), (StatusCode::UNAUTHORIZED, "not-authenticated"), "{wrong}");
        assert_eq!(told.headers[header::CONTENT_TYPE], "application/problem+json");
        assert!(!told.body.to_string().contains(other));
    }
    assert_eq!(fixture.get(&viewer, "/status").await.status, StatusCode::OK);
    let id = viewer.split('_').nth(1).unwrap();
    let gone = fixture.call(&admin, "DELETE", &format!("/admin-tokens/{id}"), &[], None).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.body);
    assert_eq!(fixture.get(&viewer, "/status").await.code(), "not-authenticated");
    fixture.pass(Duration::from_secs(91 * 86_400));
    let told = fixture.get(&admin, "/status").await;
    assert_eq!(told.code(), "not-authenticated");
    assert!(told.body["detail"].as_str().unwrap().contains("expired"));
}

#[tokio::test]
async fn the_last_token_that_can_make_others_stays() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let id = admin.split('_').nth(1).unwrap().to_owned();
    let path = format!("/admin-tokens/{id}");
    assert_eq!(fixture.call(&admin, "DELETE", &path, &[], None).await.code(), "conflict");
    fixture.token(&admin, "second", Role::CaAdmin, &[]).await;
    assert_eq!(fixture.call(&admin, "DELETE", &path, &[], None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_under_another_name_is_not_answered() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let asked = |hosts: &[&str]| {
        let mut request =
            Request::builder().uri("/api/v1/status").header(header::AUTHORIZATION, format!("Bearer {admin}"));
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request.body(Body::empty()).unwrap()
    };
    for host in ["127.0.0.1:8444", "[::1]:8444", "localhost", "Coordinator.example:8444", "192.0.2.9"] {
        assert_eq!(fixture.send(asked(&[host])).await.status, StatusCode::OK, "{host}");
    }
    for hosts in
        [&["evil.example"][..], &["coordinator.example.evil.example"], &[], &["localhost", "evil.example"], &["a b"]]
    {
        let told = fixture.send(asked(hosts)).await;
        assert_eq!((told.status, told.code()), (StatusCode::MISDIRECTED_REQUEST, "invalid-field"), "{hosts:?}");
    }
}

#[tokio::test]
async fn what_is_misspelt_too_large_or_of_another_type_is_refused_with_its_field() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let good = json!({ "workloads": ["shop/web-frontend"] });
    for (query, body, about) in [
        ("", json!({ "workloads": ["shop/web-frontend"], "use": 2 }), "body"),
        ("", json!({ "workloads": ["Shop/web"] }), "body"),
        ("", json!({ "workloads": [] }), "workloads"),
        ("", json!({ "workloads": ["shop/web-frontend"], "uses": 0 }), "uses"),
        ("?dryrun=true", good.clone(), "query"),
        (&format!("?why={}", "y".repeat(300)), good.clone(), "why"),
    ] {
        let told = fixture.post(&admin, &format!("/tokens{query}"), body).await;
        assert_eq!(told.status, StatusCode::BAD_REQUEST, "{}", told.body);
        assert_eq!(told.body["field"], about, "{}", told.body);
        assert_eq!(told.headers["x-request-id"], told.body["requestId"].as_str().unwrap());
    }
    for (name, value) in [("if-match", "42"), ("if-match", "\"x\""), ("idempotency-key", "")] {
        let told = fixture.call(&admin, "POST", "/tokens", &[(name, value)], Some(good.clone())).await;
        assert_eq!(told.status, StatusCode::BAD_REQUEST, "{name}: {value}");
    }
    for (path, field) in [("/tokens?limit=0", "limit"), ("/tokens?limit=501", "limit"), ("/audit?cursor=%21", "cursor")]
    {
        let told = fixture.get(&admin, path).await;
        assert_eq!((told.status, told.body["field"].as_str()), (StatusCode::BAD_REQUEST, Some(field)), "{path}");
    }
    let form = Request::post("/api/v1/tokens")
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {admin}"))
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from(good.to_string()));
    assert_eq!(fixture.send(form.unwrap()).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let huge = json!({ "files": [{ "name": "x", "text": "x".repeat(limits::MAX_BODY) }] });
    assert_eq!(fixture.post(&admin, "/policy/check", huge).await.code(), "request-too-large");
    assert_eq!(fixture.get(&admin, "/nowhere").await.code(), "not-found");
    assert_eq!(fixture.call(&admin, "PATCH", "/nodes", &[], None).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(fixture.get(&admin, "/tokens").await.body["items"].as_array().unwrap().is_empty(), "nothing was made");
}

#[tokio::test]
async fn a_repeated_create_gives_the_same_token_and_another_request_under_the_key_none() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let body = json!({ "workloads": ["shop/web-frontend"], "note": "rack 4" });
    let key = [("idempotency-key", "k1")];
    let asked = || fixture.call(&admin, "POST", "/tokens?why=new+rack", &key, Some(body.clone()));
    let (first, again) = tokio::join!(asked(), asked());
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED), "{}", again.body);
    assert_eq!(first.body, again.body);
    assert!(first.body["secret"].as_str().unwrap().starts_with("wj1_"));
    let other = json!({ "workloads": ["bank/banking-api"] });
    let told = fixture.call(&admin, "POST", "/tokens", &key, Some(other)).await;
    assert_eq!(told.code(), "conflict");

    let dry = fixture.post(&admin, "/tokens?dry_run=true", body.clone()).await;
    assert_eq!((dry.status, dry.body.get("secret")), (StatusCode::OK, None));
    let list = fixture.get(&admin, "/tokens").await.body;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert!(!list.to_string().contains("wj1_"), "a secret is shown once");

    let id = first.body["id"].as_str().unwrap();
    let path = format!("/tokens/{id}");
    let dry = fixture.call(&admin, "DELETE", &format!("{path}?dry_run=true"), &[], None).await;
    assert_eq!(dry.body["committed"], false);
    assert_eq!(fixture.call(&admin, "DELETE", &path, &[("if-match", "\"1\"")], None).await.code(), "conflict");
    assert_eq!(fixture.call(&admin, "DELETE", &path, &[], None).await.status, StatusCode::OK);
    assert_eq!(fixture.call(&admin, "DELETE", &path, &[], None).await.code(), "not-found");
}

#[tokio::test]
async fn pages_join_to_the_whole_list() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    for _ in 0..7 {
        fixture.post(&admin, "/tokens", json!({ "workloads": ["shop/web-frontend"] })).await;
    }
    for path in ["/tokens", "/audit"] {
        let whole = fixture.get(&admin, path).await.body["items"].as_array().unwrap().clone();
        let mut joined = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = fixture.get(&admin, &format!("{path}?limit=3{cursor}")).await.body;
            joined.extend(page["items"].as_array().unwrap().clone());
            let Some(next) = page["nextCursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(joined, whole, "{path}");
    }
}

#[tokio::test]
async fn policy_is_applied_whole_on_what_its_author_saw_or_not_at_all() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let body = json!({ "files": [{ "name": "policy/bank.yaml", "text": BANK }] });
    let blind = fixture.call(&admin, "PUT", "/policy", &[], Some(body.clone())).await;
    assert_eq!(blind.status, StatusCode::PRECONDITION_REQUIRED);
    let report = fixture.post(&admin, "/policy/check", body).await.body;
    assert_eq!((&report["acceptable"], &report["kind"]), (&json!(true), &json!("PolicyReport")), "{report}");

    let dry = fixture.apply(&admin, BANK, 0, "?dry_run=true").await;
    assert_eq!((dry.status, &dry.body["committed"]), (StatusCode::OK, &json!(false)), "{}", dry.body);
    assert_eq!(fixture.get(&admin, "/policy").await.headers[header::ETAG], "\"0\"");
    let applied = fixture.apply(&admin, BANK, 0, "?why=first").await;
    assert_eq!((&applied.body["revision"], &applied.body["committed"]), (&json!(1), &json!(true)), "{}", applied.body);
    let opened = &applied.body["changes"]["access"];
    assert_eq!(opened[0]["destination"], "bank/banking-api", "{opened}");
    assert_eq!(fixture.apply(&admin, BANK, 0, "").await.code(), "conflict", "an author who has not seen revision 1");

    let asked = json!({ "source": "shop/web-frontend", "destination": "bank/banking-api", "port": 8443 });
    let why = fixture.post(&admin, "/policy/why", asked.clone()).await.body;
    assert_eq!(
        (&why["decision"]["verdict"], &why["decision"]["rule"]["file"]),
        (&json!("allow"), &json!("policy/bank.yaml")),
        "{why}"
    );

    let broken = fixture.apply(&admin, &BANK.replace("ports: [api]", "prots: [api]"), 1, "").await;
    assert_eq!((broken.status, broken.code()), (StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid"), "{}", broken.body);
    assert_eq!(
        (&broken.body["findings"][0]["file"], &broken.body["findings"][0]["line"]),
        (&json!("policy/bank.yaml"), &json!(18)),
        "{}",
        broken.body
    );
    assert_eq!(fixture.get(&admin, "/policy").await.headers[header::ETAG], "\"1\"");

    let closed = BANK.replace("allow:\n  web: { from: [shop/web-frontend], ports: [api] }\n", "");
    let applied = fixture.apply(&admin, &closed, 1, "?why=incident").await;
    assert_eq!(applied.body["revision"], 2, "{}", applied.body);
    let denied = fixture.post(&admin, "/policy/why", asked.clone()).await.body;
    assert_eq!(denied["decision"]["verdict"], "deny", "{denied}");

    let back = fixture
        .call(&admin, "POST", "/policy/rollback?why=over", &[("if-match", "\"2\"")], Some(json!({ "to": 1 })))
        .await;
    assert_eq!(back.body["revision"], 3, "{}", back.body);
    assert_eq!(fixture.post(&admin, "/policy/why", asked).await.body["decision"]["verdict"], "allow");
    let history = fixture.get(&admin, "/policy/revisions?limit=2").await.body;
    assert_eq!(
        (&history["items"][0]["cause"], &history["items"][1]["why"]),
        (&json!("rollback 1"), &json!("incident"))
    );
    assert!(history["nextCursor"].is_string());
    let first = fixture.get(&admin, "/policy/revisions/1").await.body;
    assert_eq!(first["items"].as_array().unwrap().len(), 6);
    let services = fixture.get(&admin, "/services").await.body;
    assert_eq!(services["items"][0]["callers"], json!(["shop/web-frontend"]), "{services}");
    assert_eq!(fixture.get(&admin, "/workloads/shop/web-frontend").await.body["declared"], true);
}

#[tokio::test]
async fn a_confined_token_changes_nothing_outside_its_namespaces() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    assert_eq!(fixture.apply(&admin, BANK, 0, "").await.status, StatusCode::OK);
    let author = fixture.token(&admin, "shop-team", Role::PolicyAdmin, &["shop"]).await;
    let foreign = BANK.replace("from: [shop/web-frontend]", "from: [any]");
    let told = fixture.apply(&author, &foreign, 1, "").await;
    assert_eq!((told.status, told.code()), (StatusCode::FORBIDDEN, "not-permitted"), "{}", told.body);
    let own = BANK.replace(
        "name: shop/web-frontend\n",
        "name: shop/web-frontend\nports: { web: { port: 443, protocol: tcp } }\n",
    );
    assert_eq!(fixture.apply(&author, &own, 1, "").await.status, StatusCode::OK);

    let operator = fixture.token(&admin, "shop-ops", Role::Operator, &["shop"]).await;
    let told =
        fixture.post(&operator, "/tokens", json!({ "workloads": ["shop/web-frontend", "bank/banking-api"] })).await;
    assert_eq!(told.code(), "not-permitted");
    let told = fixture.post(&operator, "/revocations", json!({ "target": { "identity": "bank/banking-api" } })).await;
    assert_eq!(told.code(), "not-permitted");
    let everywhere = fixture.token(&admin, "mesh-ops", Role::Operator, &[]).await;
    for operator in [&operator, &everywhere] {
        let told = fixture.post(operator, "/revocations", json!({ "target": { "issuer": "00ff" } })).await;
        assert_eq!(told.code(), "not-permitted");
    }
    assert_eq!(
        fixture.post(&operator, "/tokens", json!({ "workloads": ["shop/web-frontend"] })).await.status,
        StatusCode::CREATED
    );
    let told = fixture
        .post(&operator, "/revocations?why=leak", json!({ "target": { "identity": "shop/web-frontend" } }))
        .await;
    assert_eq!(told.status, StatusCode::CREATED, "{}", told.body);
    let generation = &told.body["generation"];
    let path =
        format!("/acknowledgements?epoch={}&revision={}&wait_seconds=5", generation["epoch"], generation["revision"]);
    let acknowledged = fixture.get(&operator, &path).await.body;
    assert_eq!((&acknowledged["pending"], &acknowledged["away"]), (&json!([]), &json!([])), "{acknowledged}");
}

#[tokio::test]
async fn every_change_leaves_one_row_with_who_and_why_and_the_chain_holds() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let before = fixture.get(&admin, "/audit/verify").await.body;
    fixture.post(&admin, "/tokens?why=rack+4", json!({ "workloads": ["shop/web-frontend"] })).await;
    fixture.post(&admin, "/tokens", json!({ "workloads": [] })).await;
    fixture.post(&admin, "/tokens?dry_run=true", json!({ "workloads": ["shop/web-frontend"] })).await;
    let after = fixture.get(&admin, "/audit/verify").await.body;
    assert_eq!(after["intact"], true);
    assert_eq!(after["entries"].as_u64(), before["entries"].as_u64().map(|entries| entries + 1));
    let newest = &fixture.get(&admin, "/audit?limit=1").await.body["items"][0];
    assert_eq!((&newest["who"], &newest["why"]), (&json!("admin:ops"), &json!("rack 4")), "{newest}");
    let log = fixture.get(&admin, "/audit").await.body.to_string();
    assert!(!log.contains("wj1_") && !log.contains("wa1_"), "the log holds no secret");
}

#[tokio::test]
async fn the_listener_speaks_tls_with_the_coordinators_certificate_and_stops_when_told() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio::sync::watch::Sender::new(false);
    let serving = tokio::spawn(serve(listener, fixture.api.clone(), stop.subscribe()));

    let authority = fixture.api.registry().authority();
    let seen = tls::fetch(
        address,
        &format!("GET /api/v1/status HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {admin}\r\n\r\n"),
    )
    .await;
    assert!(seen.answer.starts_with("HTTP/1.1 200 OK"), "{}", seen.answer);
    assert_eq!(seen.chain.last().unwrap().as_ref(), authority.root_der());
    let chain = warren_proto::certificate::Chain::new(seen.chain.iter().map(AsRef::as_ref)).unwrap();
    warren_proto::control_trust::verify_coordinator(chain, authority.bundle(), START).unwrap();

    let plain =
        tls::fetch(address, &format!("GET / HTTP/1.1\r\nHost: {address}\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024)))
            .await;
    assert!(plain.answer.starts_with("HTTP/1.1 431"), "{}", plain.answer);

    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[test]
fn the_document_is_openapi_3_1_names_every_answer_and_is_the_one_that_is_published() {
    let text = openapi().unwrap();
    let published = include_str!("../../../docs/reference/openapi.json");
    assert!(text == published.trim_end(), "write it anew: warren-coordinator openapi > docs/reference/openapi.json");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values().filter(|operation| operation.is_object()) {
            let answers = operation["responses"].as_object().unwrap();
            assert!(
                answers.values().all(|answer| answer["content"]["application/json"]["schema"].is_object()),
                "{path}"
            );
        }
    }
}
