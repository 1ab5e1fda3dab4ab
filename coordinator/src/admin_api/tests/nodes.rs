//! What administrators do to nodes and to what runs on them.

use rcgen::{CertificateParams, KeyPair};
use warren_proto::NodeId;
use warren_proto::certificate::Capabilities;
use warren_proto::join_token::JoinToken;

use super::*;
use crate::ca::RequesterKey;
use crate::registry::{Enrolment, Evidence, NewJoinToken, TunnelRequest};

fn key() -> RequesterKey {
    let pair = KeyPair::generate().unwrap();
    RequesterKey::from_csr(CertificateParams::default().serialize_request(&pair).unwrap().der()).unwrap()
}

impl Fixture {
    /// A node that may hold these, by its id.
    pub(super) async fn node(&self, workloads: &[&str]) -> String {
        let registry = self.api.registry();
        let new = NewJoinToken {
            lifetime: Duration::from_secs(3600),
            uses: 1,
            workloads: workloads.iter().map(|name| name.parse().unwrap()).collect(),
            note: String::new(),
        };
        let (_, text) = registry.create_join_token(&Caller::new("test"), new).await.unwrap();
        let token = JoinToken::parse(&text).unwrap();
        let enrolment = Enrolment {
            evidence: Evidence::JoinToken { id: token.id, secret: token.secret.clone() },
            key: key(),
            host_name: "web-1".to_owned(),
            from: "192.0.2.7".parse().unwrap(),
        };
        registry.enrol(enrolment).await.unwrap().node.id.to_string()
    }

    /// An instance on it, by its id.
    pub(super) async fn instance(&self, node: &str, workload: &str) -> String {
        let mut tunnel_key: [u8; 32] = rand::random();
        // RFC 7748, section 5: the bit that a canonical encoding leaves clear.
        tunnel_key[31] &= 0x7f;
        let request = TunnelRequest {
            node: node.parse::<NodeId>().unwrap(),
            workload: workload.parse().unwrap(),
            instance: None,
            key: key(),
            tunnel_key,
            capabilities: Capabilities::NONE,
        };
        self.api.registry().issue_tunnel(request, &|_| Ok(())).await.unwrap().id.to_string()
    }
}

#[tokio::test]
async fn what_a_node_may_hold_is_changed_by_those_whose_identities_they_are_and_leaves_a_row() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let shop = fixture.token(&admin, "shop", Role::Operator, &["shop"]).await;
    let id = fixture.node(&["shop/web-frontend"]).await;
    let path = format!("/nodes/{id}/workloads");
    let put = async |token: &str, path: &str, headers: &[(&str, &str)], workloads: &[&str]| {
        fixture.call(token, "PUT", path, headers, Some(json!({ "workloads": workloads }))).await
    };
    let refused = put(&shop, &path, &[], &["shop/web-frontend", "bank/banking-api"]).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "not-permitted"));
    let dry = put(&shop, &format!("{path}?dry_run=true"), &[], &["shop/checkout"]).await;
    assert_eq!((dry.status, &dry.body["workloads"]), (StatusCode::OK, &json!(["shop/checkout"])), "{}", dry.body);
    let get = fixture.get(&admin, &format!("/nodes/{id}")).await;
    assert_eq!(get.body["workloads"], json!(["shop/web-frontend"]), "a dry run changes nothing");
    let etag = get.headers[header::ETAG].to_str().unwrap().to_owned();
    let wanted = ["shop/web-frontend", "shop/checkout", "shop/checkout"];
    let done = put(&shop, &format!("{path}?why=moved"), &[("if-match", &etag)], &wanted).await;
    assert_eq!(
        (done.status, &done.body["workloads"]),
        (StatusCode::OK, &json!(["shop/checkout", "shop/web-frontend"]))
    );
    assert_eq!(put(&shop, &path, &[("if-match", &etag)], &[]).await.code(), "conflict", "it has changed since");
    let row = &fixture.get(&admin, "/audit?limit=1").await.body["items"][0];
    let told = (&row["who"], &row["action"], &row["object"], &row["why"]);
    assert_eq!(told, (&json!("admin:shop"), &json!("node.set-workloads"), &json!(id), &json!("moved")), "{row}");
    assert_eq!(row["old"]["workloads"], json!(["shop/web-frontend"]));
    // An identity of another namespace that stays needs no right in that namespace; taking it away does.
    assert_eq!(put(&admin, &path, &[], &["bank/banking-api", "shop/checkout"]).await.status, StatusCode::OK);
    assert_eq!(put(&shop, &path, &[], &["bank/banking-api"]).await.status, StatusCode::OK);
    assert_eq!(put(&shop, &path, &[], &[]).await.code(), "not-permitted");
    assert_eq!(put(&admin, &path, &[], &["not a name"]).await.code(), "invalid-field");
    let many: Vec<_> = (0..97).map(|n| format!("shop/w{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(put(&admin, &path, &[], &many).await.code(), "invalid-field");
}

#[tokio::test]
async fn an_instance_is_forgotten_once_it_is_revoked_and_not_before() {
    let fixture = Fixture::new().await;
    let admin = fixture.claim().await;
    let shop = fixture.token(&admin, "shop", Role::Operator, &["shop"]).await;
    let node = fixture.node(&["bank/banking-api"]).await;
    let id = fixture.instance(&node, "bank/banking-api").await;
    let path = format!("/instances/{id}");
    let delete = async |token: &str, path: &str| fixture.call(token, "DELETE", path, &[], None).await;
    assert_eq!(delete(&shop, &path).await.code(), "not-permitted");
    for path in [&path, &format!("{path}?dry_run=true")] {
        let refused = delete(&admin, path).await;
        assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "conflict"), "it is still trusted");
    }
    fixture.post(&admin, "/revocations", json!({ "target": { "instance": id } })).await;
    assert_eq!(delete(&admin, &format!("{path}?dry_run=true")).await.body["committed"], false);
    assert_eq!(delete(&admin, &format!("{path}?why=gone")).await.body["committed"], true);
    let row = &fixture.get(&admin, "/audit?limit=1").await.body["items"][0];
    assert_eq!((&row["action"], &row["why"]), (&json!("instance.forget"), &json!("gone")), "{row}");
    assert_eq!(delete(&admin, &path).await.code(), "not-found");
    assert_eq!(fixture.get(&admin, &format!("/nodes/{node}")).await.body["instances"], json!([]));
}
