//! Requests against the rules that judge them, with the bypasses that other meshes had.

use serde_json::json;

use super::super::fixtures::{NOW, name, whole};
use super::super::{CompiledPolicy, Decision};
use super::*;

const POLICY: &str = r#"
kind: Mesh
name: bank.example
issuers:
  corp-idp: { issuer: "https://idp.bank.example", audiences: [banking-api], jwks_url: "https://idp.bank.example/keys" }
  other-idp: { issuer: "https://other.example", audiences: [banking-api], jwks_url: "https://other.example/keys" }
require:
  tokens: { to: [guarded/*], protocol: http, must: { jwt: { issuer: corp-idp } } }
---
kind: Namespace
name: bank
---
kind: Namespace
name: guarded
---
kind: Namespace
name: shop
---
kind: Service
name: shop/web
---
kind: Service
name: shop/other
---
kind: Service
name: bank/api
ports: { api: { port: 8080, protocol: http }, raw: { port: 9000, protocol: tcp } }
allow:
  read: { from: [shop/web], ports: [api], http: [{ methods: [GET, HEAD], paths: ["/v1/accounts/{id}"] }] }
  admin: { from: [shop/web], ports: [api], http: [{ paths: ["/v1/admin/**"] }] }
  stream: { from: [shop/web], ports: [api], http: [{ upgrade: websocket, paths: ["/v1/stream"] }] }
  rpc: { from: [shop/web], ports: [api], http: [{ grpc: [bank.v1.Accounts/Get, bank.v1.Ledger/*] }] }
  teller:
    from: [shop/web]
    ports: [api]
    http: [{ paths: ["/v1/teller"] }]
    jwt:
      issuer: corp-idp
      bound_to_peer: true
      claims:
        - { claim: [realm_access, roles], any_of: [teller, branch-manager] }
        - { claim: ["https://bank.example/branch"], equals: "0710" }
  canary: { from: [shop/web], ports: [api], http: [{ paths: ["/v1/canary"] }], when: 'request.headers["x-env"] == "prod"' }
  raw: { from: [shop/web], ports: [raw] }
deny:
  no-admin: { from: [any], ports: [api], http: [{ paths: ["/v1/admin/**"] }] }
  no-beta: { from: [any], ports: [api], http: [{ paths: ["/v1/accounts/**"] }], when: 'request.headers["x-beta"] == "yes"' }
---
kind: Service
name: guarded/api
ports: { api: { port: 80, protocol: http } }
allow: { all: { from: [shop/web], ports: [api] } }
---
kind: Service
name: guarded/audited
ports: { api: { port: 80, protocol: http } }
allow: { a: { from: [shop/web], ports: [api], http: [{ paths: ["/a"] }] } }
audit: { until: "2026-12-15", ports: all }
---
kind: Service
name: bank/audited
ports: { api: { port: 80, protocol: http } }
allow: { a: { from: [shop/web], ports: [api], http: [{ paths: ["/a"] }], jwt: { issuer: corp-idp } } }
audit: { until: "2026-12-15", ports: all }
"#;

fn get(path: &str) -> Request {
    Request {
        method: "GET".to_owned(),
        path: path.to_owned(),
        upgrade: None,
        grpc: false,
        // `no-beta` reads this header: without it, it denies.
        headers: BTreeMap::from([("x-beta".to_owned(), "no".to_owned())]),
        token: None,
    }
}

fn ask(policy: &CompiledPolicy, from: &str, to: &str, port: u16, request: &Request) -> Decision {
    policy.evaluate_request(&name(from), &name(to), port, request, NOW)
}

fn rule_of(decision: &Decision) -> &str {
    decision.rule.as_ref().map_or("", |rule| rule.id.as_str())
}

#[test]
fn methods_paths_upgrades_and_grpc_are_judged_and_the_rest_is_refused() {
    let policy = whole(POLICY);
    let judged = |request: &Request| {
        let decision = ask(&policy, "shop/web", "bank/api", 8080, request);
        (decision.is_allowed(), rule_of(&decision).to_owned())
    };
    assert_eq!(judged(&get("/v1/accounts/42")), (true, "bank/api:read".to_owned()));
    assert!(!judged(&get("/v1/accounts/42/x")).0);
    assert!(!judged(&get("/V1/accounts/42")).0);
    for method in ["POST", "get", "FOO"] {
        assert!(!judged(&Request { method: method.to_owned(), ..get("/v1/accounts/42") }).0, "{method}");
    }
    let upgrade = |path: &str, to: &str| Request { upgrade: Some(to.to_owned()), ..get(path) };
    assert!(judged(&upgrade("/v1/stream", "websocket")).0);
    assert!(!judged(&get("/v1/stream")).0, "the rule is about upgrades");
    assert!(!judged(&upgrade("/v1/stream", "h2c")).0);
    assert!(!judged(&upgrade("/v1/accounts/42", "websocket")).0, "a rule without upgrade lets none through");
    let rpc = |path: &str, grpc| Request { method: "POST".to_owned(), grpc, ..get(path) };
    assert!(judged(&rpc("/bank.v1.Accounts/Get", true)).0);
    assert!(judged(&rpc("/bank.v1.Ledger/Anything", true)).0);
    assert!(!judged(&rpc("/bank.v1.Accounts/Set", true)).0);
    assert!(!judged(&rpc("/bank.v1.Accounts/Get", false)).0, "not gRPC");
}

#[test]
fn a_deny_with_request_terms_lets_the_connection_pass_and_stops_the_request_whatever_its_method_or_upgrade() {
    let policy = whole(POLICY);
    let connection = policy.evaluate(&name("shop/web"), &name("bank/api"), crate::policy::Transport::Tcp, 8080, NOW);
    assert!(connection.is_allowed());
    for request in [
        get("/v1/admin"),
        get("/v1/admin/users"),
        Request { method: "DELETE".to_owned(), ..get("/v1/admin/users") },
        Request { upgrade: Some("websocket".to_owned()), ..get("/v1/admin/users") },
    ] {
        let decision = ask(&policy, "shop/web", "bank/api", 8080, &request);
        assert_eq!((rule_of(&decision), decision.reason), ("bank/api:no-admin", Some(Reason::DeniedByRule)));
    }
}

#[test]
fn a_path_outside_of_its_normal_form_is_refused_before_any_rule() {
    let policy = whole(POLICY);
    for path in [
        "//v1/admin",
        "/v1//admin",
        "/v1/accounts/..%2fadmin",
        "/v1/./admin",
        "/v1/accounts/%2e%2e",
        "v1",
        "/v1/accounts/42;x",
    ] {
        let decision = ask(&policy, "shop/web", "bank/api", 8080, &get(path));
        assert_eq!(decision.reason, Some(Reason::RequestMalformed), "{path}");
    }
}

fn teller() -> Token {
    let claims = json!({ "realm_access": { "roles": ["clerk", "teller"] }, "https://bank.example/branch": "0710" });
    let serde_json::Value::Object(claims) = claims else { panic!("an object") };
    Token { issuer: "corp-idp".to_owned(), issued_to: Some(name("shop/web")), claims }
}

fn with_token(token: Option<Token>) -> Request {
    Request { token, ..get("/v1/teller") }
}

#[test]
fn a_token_must_be_there_of_the_issuer_bound_to_its_sender_with_every_claim_typed() {
    let policy = whole(POLICY);
    let judged = |token: Option<Token>| {
        let decision = ask(&policy, "shop/web", "bank/api", 8080, &with_token(token));
        (decision.is_allowed(), decision.reason)
    };
    let change = |change: fn(&mut Token)| {
        let mut token = teller();
        change(&mut token);
        Some(token)
    };
    assert_eq!(judged(Some(teller())), (true, None));
    assert_eq!(judged(None), (false, Some(Reason::JwtMissing)));
    assert_eq!(judged(change(|t| t.issuer = "other-idp".to_owned())), (false, Some(Reason::JwtIssuer)));
    assert_eq!(judged(change(|t| t.issued_to = None)), (false, Some(Reason::JwtNotBound)));
    assert_eq!(judged(change(|t| t.issued_to = Some(name("shop/other")))), (false, Some(Reason::JwtNotBound)));
    let claims: [fn(&mut Token); 6] = [
        |t| drop(t.claims.remove("realm_access")),
        |t| drop(t.claims.insert("realm_access".to_owned(), json!({ "roles": null }))),
        |t| drop(t.claims.insert("realm_access".to_owned(), json!({ "roles": "clerk" }))),
        |t| drop(t.claims.insert("realm_access".to_owned(), json!("teller"))),
        |t| drop(t.claims.insert("https://bank.example/branch".to_owned(), json!(710))),
        |t| drop(t.claims.insert("realm_access".to_owned(), json!({ "roles": [["teller"]] }))),
    ];
    for claim in claims {
        assert_eq!(judged(change(claim)), (false, Some(Reason::JwtClaim)));
    }
    let single = change(|t| drop(t.claims.insert("realm_access".to_owned(), json!({ "roles": "teller" }))));
    assert_eq!(judged(single), (true, None));
}

#[test]
fn a_denial_for_lack_of_a_match_names_the_nearest_rule_and_its_first_failed_term() {
    let policy = whole(POLICY);
    let decision = ask(&policy, "shop/web", "bank/api", 8080, &with_token(None));
    let nearest = decision.nearest.unwrap();
    assert_eq!((nearest.rule.id.as_str(), nearest.failed.as_str()), ("bank/api:teller", "jwt"));
    let decision = ask(&policy, "shop/web", "bank/api", 8080, &get("/nothing"));
    assert_eq!(decision.reason, Some(Reason::RequestNotMatched));
    assert_eq!(decision.nearest.unwrap().failed, "http");
}

#[test]
fn an_error_in_when_is_no_match_in_an_allow_and_denies_in_a_deny() {
    let policy = whole(POLICY);
    let header = |path: &str, headers: &[(&str, &str)]| Request {
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..get(path)
    };
    let judged = |request: &Request| {
        let decision = ask(&policy, "shop/web", "bank/api", 8080, request);
        (decision.is_allowed(), rule_of(&decision).to_owned())
    };
    assert!(judged(&header("/v1/canary", &[("x-env", "prod")])).0);
    assert!(!judged(&header("/v1/canary", &[("x-env", "dev")])).0);
    assert!(!judged(&header("/v1/canary", &[])).0, "an absent header is an error, and no match");
    assert!(judged(&header("/v1/accounts/1", &[("x-beta", "no")])).0);
    assert_eq!(judged(&header("/v1/accounts/1", &[("x-beta", "yes")])), (false, "bank/api:no-beta".to_owned()));
    assert_eq!(judged(&header("/v1/accounts/1", &[])), (false, "bank/api:no-beta".to_owned()), "an error denies");
}

#[test]
fn a_require_on_tokens_holds_for_every_request_below_it_and_service_rules_cannot_lift_it() {
    let policy = whole(POLICY);
    let denied = ask(&policy, "shop/web", "guarded/api", 80, &get("/x"));
    assert_eq!((rule_of(&denied), denied.reason), ("mesh:tokens", Some(Reason::JwtMissing)));
    let request = Request { token: Some(teller()), ..get("/x") };
    assert!(ask(&policy, "shop/web", "guarded/api", 80, &request).is_allowed());
}

#[test]
fn audit_mode_relaxes_what_no_rule_matches_and_neither_tokens_nor_malformed_requests() {
    let policy = whole(POLICY);
    let with = |path: &str, token| Request { token, ..get(path) };
    let audited = ask(&policy, "shop/other", "guarded/audited", 80, &with("/b", Some(teller())));
    assert!(audited.is_allowed() && audited.audit);
    assert_eq!(ask(&policy, "shop/other", "guarded/audited", 80, &with("/b", None)).reason, Some(Reason::JwtMissing));
    // A rule that takes the request but for its token speaks, and audit mode does not overrule it.
    let refused = ask(&policy, "shop/web", "bank/audited", 80, &with("/a", None));
    assert_eq!((refused.is_allowed(), refused.reason), (false, Some(Reason::JwtMissing)));
    let malformed = ask(&policy, "shop/other", "guarded/audited", 80, &with("//b", Some(teller())));
    assert_eq!(malformed.reason, Some(Reason::RequestMalformed));
}

#[test]
fn a_request_to_a_port_without_http_or_from_a_stranger_is_refused() {
    let policy = whole(POLICY);
    assert!(!ask(&policy, "shop/web", "bank/api", 9000, &get("/")).is_allowed());
    assert_eq!(ask(&policy, "shop/other", "bank/api", 8080, &get("/v1/accounts/1")).reason, Some(Reason::NoRule));
    assert!(!ask(&policy, "shop/stranger", "guarded/audited", 80, &get("/")).is_allowed());
}
