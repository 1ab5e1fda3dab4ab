//! Attestors and registrations over the API: who may set what, and what is told of it.

use super::*;
use crate::attestation::tests::{ISSUER, Signer};

fn attestor(signer: &Signer) -> Value {
    json!({ "settings": { "kubernetes": { "issuer": ISSUER, "audience": "warren", "jwks": signer.jwks() } }, "note": "blue" })
}

fn registration(name: &str, attestor: &str, namespace: &str, workload: &str) -> Value {
    json!({ "name": name, "attestor": attestor, "workloads": [workload],
        "selectors": [{ "name": "k8s:ns", "value": namespace }, { "name": "k8s:sa", "value": "web" }] })
}

#[tokio::test]
async fn an_attestor_takes_an_administrator_of_the_whole_mesh_and_leaves_a_row() {
    let fixture = Fixture::new().await;
    let (admin, signer) = (fixture.claim().await, Signer::new("a"));
    let operator = fixture.token(&admin, "op", Role::Operator, &[]).await;
    let confined = fixture.token(&admin, "shop", Role::CaAdmin, &["shop"]).await;
    let put = |token: String, query: &str| {
        let path = format!("/attestors/blue{query}");
        let (fixture, body) = (&fixture, attestor(&signer));
        async move { fixture.call(&token, "PUT", &path, &[], Some(body)).await }
    };
    assert_eq!(put(operator.clone(), "").await.code(), "not-permitted");
    assert_eq!(put(confined.clone(), "").await.code(), "not-permitted");
    let planned = put(admin.clone(), "?dry_run=true").await;
    assert_eq!((planned.status, planned.body["name"].as_str()), (StatusCode::OK, Some("blue")), "{}", planned.body);
    assert_eq!(fixture.get(&admin, "/attestors/blue").await.code(), "not-found");

    let set = put(admin.clone(), "?why=new%20cluster").await;
    assert_eq!(set.status, StatusCode::OK, "{}", set.body);
    assert_eq!(set.body["settings"]["kubernetes"]["maxLifetimeSeconds"], 3600);
    let shown = fixture.get(&operator, "/attestors/blue").await;
    assert_eq!((shown.status, &shown.body["changedBy"]), (StatusCode::OK, &json!("admin:ops")));
    assert!(shown.headers.contains_key(header::ETAG));
    let row = fixture.get(&admin, "/audit?limit=1").await.body["items"][0].clone();
    assert_eq!(
        (&row["action"], &row["object"], &row["why"]),
        (&json!("attestor.set"), &json!("blue"), &json!("new cluster"))
    );

    let (etag, old) = ("\"1\"", attestor(&signer));
    let stale = fixture.call(&admin, "PUT", "/attestors/blue", &[("if-match", etag)], Some(old)).await;
    assert_eq!(stale.code(), "conflict");
    let wrong = json!({ "settings": { "kubernetes": { "issuer": ISSUER, "audience": "warren", "jwks": "{}" } } });
    let told = fixture.call(&admin, "PUT", "/attestors/blue", &[], Some(wrong)).await;
    assert_eq!((told.code(), told.body["field"].as_str()), ("invalid-field", Some("jwks")), "{}", told.body);
    for token in [&operator, &confined] {
        assert_eq!(fixture.call(token, "DELETE", "/attestors/blue", &[], None).await.code(), "not-permitted");
    }
    assert_eq!(fixture.call(&admin, "DELETE", "/attestors/blue", &[], None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_registration_is_made_and_deleted_by_those_whose_identities_they_are() {
    let fixture = Fixture::new().await;
    let (admin, signer) = (fixture.claim().await, Signer::new("a"));
    let shop = fixture.token(&admin, "shop", Role::Operator, &["shop"]).await;
    let set = fixture.call(&admin, "PUT", "/attestors/blue", &[], Some(attestor(&signer))).await;
    assert_eq!(set.status, StatusCode::OK, "{}", set.body);

    let own = registration("web", "blue", "shop", "shop/web");
    let foreign = registration("api", "blue", "bank", "bank/api");
    assert_eq!(fixture.post(&shop, "/registrations", foreign.clone()).await.code(), "not-permitted");
    assert_eq!(fixture.post(&shop, "/registrations?dry_run=true", own.clone()).await.status, StatusCode::OK);
    assert_eq!(fixture.get(&shop, "/registrations").await.body["items"], json!([]));
    let made = fixture.post(&shop, "/registrations", own.clone()).await;
    assert_eq!((made.status, &made.body["workloads"]), (StatusCode::CREATED, &json!(["shop/web"])), "{}", made.body);
    assert_eq!(fixture.post(&shop, "/registrations", own).await.code(), "conflict");
    assert_eq!(fixture.post(&admin, "/registrations", foreign).await.status, StatusCode::CREATED);
    assert_eq!(fixture.call(&shop, "DELETE", "/registrations/api", &[], None).await.code(), "not-permitted");
    assert_eq!(fixture.get(&shop, "/attestors").await.body["items"][0]["registrations"], 2);
    assert_eq!(fixture.call(&admin, "DELETE", "/attestors/blue", &[], None).await.code(), "conflict");
    assert_eq!(fixture.call(&shop, "DELETE", "/registrations/web", &[], None).await.status, StatusCode::OK);
    let row = fixture.get(&admin, "/audit?limit=1").await.body["items"][0].clone();
    assert_eq!((&row["action"], &row["who"]), (&json!("registration.delete"), &json!("admin:shop")));

    let mut anybody = registration("any", "blue", "shop", "shop/web");
    anybody["selectors"] = json!([]);
    assert_eq!(fixture.post(&admin, "/registrations", anybody).await.code(), "invalid-field");
    assert_eq!(fixture.post(&admin, "/registrations", registration("x", "none", "a", "a/b")).await.code(), "not-found");
}
