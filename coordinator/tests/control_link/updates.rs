//! What nodes are told: their own scope, as deltas, acknowledged, resumed.

use std::time::Duration;

use tokio::time::Instant;
use warren_coordinator::registry::{Caller, Revoke};
use warren_proto::{InstanceId, wire};

use super::client::{Link, Node, closed, node_frame};
use super::mesh::{Mesh, POLICY};

async fn hold(link: &mut Link<'_>, workload: &str) -> InstanceId {
    link.issue(workload, None).await.unwrap().instance
}

#[tokio::test]
async fn a_node_is_told_its_own_scope_and_nothing_of_others() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let (mut web, mut api, mut other) = (
        Node::with_token(&mesh, &["shop/web"]).await,
        Node::with_token(&mesh, &["bank/api"]).await,
        Node::with_token(&mesh, &["shop/other"]).await,
    );
    let (mut web, mut api, mut other) =
        (web.connect(&mesh).await, api.connect(&mesh).await, other.connect(&mesh).await);
    let (web_id, api_id) = (hold(&mut web, "shop/web").await, hold(&mut api, "bank/api").await);
    hold(&mut other, "shop/other").await;
    web.until(|held| held.scope.peers.contains_key(&api_id)).await;
    api.until(|held| held.scope.peers.contains_key(&web_id)).await;
    other.until(|held| held.policies().contains(&"Service/shop/other")).await;
    mesh.settled().await;
    assert_eq!((web.node.held.scope.peers.len(), api.node.held.scope.peers.len()), (1, 1));
    assert!(other.node.held.scope.peers.is_empty(), "no rule links it to anybody");
    assert!(api.node.held.policies().contains(&"Service/bank/api"));
    assert!(!other.node.held.policies().contains(&"Service/bank/api"), "{:?}", other.node.held.policies());
    let manifest = api.node.held.manifest.clone().unwrap();
    assert_eq!((manifest.policy_revision, manifest.stale_after_seconds), (1, 600));
}

#[tokio::test]
async fn a_node_is_told_that_its_new_instance_is_known_even_when_no_rule_says_anything_of_it() {
    let mesh = Mesh::new().await;
    let mut web = Node::with_token(&mesh, &["shop/web"]).await;
    let mut web = web.connect(&mesh).await;
    web.update().await;
    assert!(web.node.held.covers().is_empty());
    web.acknowledge().await;
    let instance = hold(&mut web, "shop/web").await;
    web.until(|held| held.covers().contains(&instance)).await;
    mesh.settled().await;
}

#[tokio::test]
async fn a_policy_change_reaches_those_it_concerns_as_a_delta_and_is_acknowledged() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let (mut web, mut api) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["bank/api"]).await);
    let (mut web, mut api) = (web.connect(&mesh).await, api.connect(&mesh).await);
    let (web_id, api_id) = (hold(&mut web, "shop/web").await, hold(&mut api, "bank/api").await);
    web.until(|held| held.scope.peers.contains_key(&api_id)).await;
    api.until(|held| held.scope.peers.contains_key(&web_id)).await;
    mesh.settled().await;

    mesh.apply(&POLICY.replace("from: [shop/web]", "from: [shop/other]")).await.unwrap();
    let missing =
        mesh.links.unacknowledged(&mesh.registry.state(), mesh.registry.state().generation(), mesh.registry.now());
    assert_eq!(missing.pending.len(), 2, "an update that was not acknowledged counts as missing");
    let update = web.update().await;
    assert_ne!(update.from.revision, 0, "a delta");
    assert_eq!((update.tombstones >= 1, update.peers), (true, 0));
    assert!(web.node.held.scope.peers.is_empty(), "who lost its grant is told so");
    web.acknowledge().await;
    let update = api.update().await;
    assert!(update.objects >= 1 && update.tombstones >= 1);
    api.acknowledge().await;
    mesh.settled().await;
}

#[tokio::test]
async fn a_revocation_reaches_every_node_at_once_and_cuts_off_the_revoked_one() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let (mut web, mut api) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["bank/api"]).await);
    let api_id = api.id;
    let (mut web, mut api) = (web.connect(&mesh).await, api.connect(&mesh).await);
    let instance = hold(&mut api, "bank/api").await;
    hold(&mut web, "shop/web").await;
    web.until(|held| held.scope.peers.contains_key(&instance)).await;
    mesh.registry.revoke(&Caller::new("test"), Revoke::Node(api_id)).await.unwrap();
    let revoked = Instant::now();
    web.until(|held| held.revocations() == 1).await;
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    assert!(web.node.held.scope.peers.is_empty());
    assert!(closed(&api.connection).await.starts_with("node-revoked: "));
    drop(api);
    let mut moved = mesh.links.moved();
    while mesh.links.list().len() > 1 {
        moved.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_comes_back_with_all_it_should_hold_is_sent_no_snapshot() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let (mut web, mut api) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["bank/api"]).await);
    let api_instance = {
        let mut api = api.connect(&mesh).await;
        hold(&mut api, "bank/api").await
    };
    {
        let mut link = web.connect(&mesh).await;
        hold(&mut link, "shop/web").await;
        link.until(|held| held.scope.peers.contains_key(&api_instance)).await;
        mesh.settled().await;
    }
    // The same process remembers: not even a manifest is needed, the heartbeat says that all is current.
    let generation = web.held.generation();
    let mut link = web.connect(&mesh).await;
    assert_eq!(link.heartbeat().await.generation, generation);
    drop(link);

    // Something changed meanwhile: a delta from what it holds.
    mesh.apply(&POLICY.replace("port: 8080", "port: 8081")).await.unwrap();
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey([7; 32])).await.unwrap();
    let mut link = web.connect(&mesh).await;
    let update = link.update().await;
    assert_eq!((update.from, update.peers), (generation, 0));
    link.acknowledge().await;
    assert_eq!(link.node.held.revocations(), 1);
    mesh.settled().await;
    drop(link);

    // A coordinator that started anew recognises the scope by its digest and signs it again.
    let mesh = mesh.restart().await;
    let generation = web.held.generation();
    let mut link = web.connect(&mesh).await;
    let update = link.update().await;
    assert_eq!((update.from, update.peers, update.objects, update.tombstones), (generation, 0, 0, 0));
    link.acknowledge().await;
    mesh.settled().await;
}

#[tokio::test]
async fn a_node_with_another_history_is_sent_a_snapshot() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let mut web = Node::with_token(&mesh, &["shop/web"]).await;
    {
        let mut link = web.connect(&mesh).await;
        hold(&mut link, "shop/web").await;
        link.until(|held| !held.policies().is_empty()).await;
    }
    web.held.scope.objects.retain(|key, _| key.kind != warren_proto::peer_map::ObjectKind::Policy);
    let mut link = web.connect(&mesh).await;
    assert_eq!(link.update().await.from.revision, 0);
    assert!(!link.node.held.policies().is_empty());
}

#[tokio::test]
async fn a_refused_update_is_reported_and_followed_by_a_snapshot() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let mut web = Node::with_token(&mesh, &["shop/web"]).await;
    let id = web.id;
    let mut link = web.connect(&mesh).await;
    link.update().await;
    let generation = link.node.held.generation();
    let refusal =
        wire::Refusal { reason: "policy-invalid".into(), detail: "it does not compile".into(), hint: String::new() };
    let nack =
        wire::Nack { epoch: generation.epoch, revision: generation.revision, refusal: Some(refusal), items: vec![] };
    link.frames.send(&node_frame(wire::node_frame::Frame::Nack(nack))).await;
    let mut moved = mesh.links.moved();
    while mesh.links.get(id).unwrap().refused.is_none() {
        moved.changed().await.unwrap();
    }
    let refused = mesh.links.get(id).unwrap().refused.unwrap();
    assert_eq!(refused.refusal.unwrap().reason, warren_proto::Reason::PolicyInvalid);
    assert!(mesh.links.get(id).unwrap().acknowledged < generation);
    link.node.held = Default::default();
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey([7; 32])).await.unwrap();
    assert_eq!(link.update().await.from.revision, 0);
    link.acknowledge().await;
    mesh.settled().await;
    assert!(mesh.links.get(id).unwrap().refused.is_none());
}

#[tokio::test]
async fn endpoints_are_passed_on_to_linked_nodes_only() {
    let mesh = Mesh::new().await;
    mesh.apply(POLICY).await.unwrap();
    let (mut web, mut api) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["bank/api"]).await);
    let (mut web, mut api) = (web.connect(&mesh).await, api.connect(&mesh).await);
    let instance = hold(&mut api, "bank/api").await;
    hold(&mut web, "shop/web").await;
    web.until(|held| held.scope.peers.contains_key(&instance)).await;
    let report = wire::Report {
        data_port: 51820,
        addresses: ["192.0.2.9", "fd12:3456:789a::1", "::", "no address"].map(str::to_owned).to_vec(),
    };
    api.frames.send(&node_frame(wire::node_frame::Frame::Report(report))).await;
    let hints = web.hints().await;
    assert_eq!(hints.len(), 1);
    assert_eq!(hints[0].instance_id, instance.as_bytes());
    assert_eq!(hints[0].endpoints, ["192.0.2.9:51820", "127.0.0.1:51820"], "reported first, then observed");
}

#[tokio::test]
async fn a_stopping_coordinator_says_goodbye() {
    let mesh = Mesh::new().await;
    let mut web = Node::with_token(&mesh, &["shop/web"]).await;
    let mut link = web.connect(&mesh).await;
    link.update().await;
    link.acknowledge().await;
    mesh.settled().await;
    let restarted = tokio::spawn(mesh.restart());
    loop {
        match link.next().await.expect("a goodbye") {
            wire::coordinator_frame::Frame::GoAway(away) => {
                assert_eq!(away.refusal.unwrap().reason, "shutting-down");
                break;
            }
            wire::coordinator_frame::Frame::Heartbeat(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    restarted.await.unwrap();
}

#[tokio::test]
async fn a_scope_larger_than_a_frame_comes_in_parts_and_is_whole() {
    let mesh = Mesh::new().await;
    let padding = "# a long remark\n".repeat(700);
    let mut policy = POLICY.replace("kind: Namespace\nname: bank\n", &{
        let names: Vec<_> = (0..40).map(|n| format!("bank/extra-{n}")).collect();
        format!("kind: Namespace\nname: bank\ninclude: [{}]\n", names.join(", "))
    });
    for n in 0..40 {
        policy.push_str(&format!(
            "---\nkind: Rules\nname: bank/extra-{n}\n{padding}allow:\n  more: {{ from: [shop/web], ports: [{}/tcp] }}\n",
            9000 + n
        ));
    }
    mesh.apply(&policy).await.unwrap();
    let mut api = Node::with_token(&mesh, &["bank/api"]).await;
    let mut api = api.connect(&mesh).await;
    hold(&mut api, "bank/api").await;
    let mut parts = 0;
    while api.node.held.policies().len() < 41 {
        parts = api.update().await.parts;
        api.acknowledge().await;
    }
    assert!(parts > 1, "{parts}");
    mesh.settled().await;
}
