//! Plain devices: whose key may be bound to what, and for how long.

use warren_proto::certificate::TunnelCertificate;

use super::*;
use crate::registry::peers::devices;
use crate::state::records::KeyOwner;

const LAPTOP: &str = "---
kind: Peer
name: laptop
ports: { ssh: { port: 22, protocol: tcp } }
allow: { desk: { from: [shop/web], ports: [ssh] } }
---
kind: Peer
name: phone
";

async fn mesh_with_devices() -> Mesh {
    let mesh = Mesh::new().await;
    let policy = POLICY.replace("owns: [shop,", "owns: [peer, shop,");
    mesh.registry.apply_policy(&Caller::new("test"), set(&format!("{policy}{LAPTOP}"))).await.expect("applied");
    mesh
}

fn peer(name: &str, key: [u8; 32]) -> NewPeer {
    NewPeer { workload: format!("peer/{name}").parse().expect("name"), key, endpoint: None, note: "of a test".into() }
}

async fn register(mesh: &Mesh, name: &str, key: [u8; 32]) -> Result<Instance, Refusal> {
    mesh.registry.register_peer(&Caller::new("admin:eve"), peer(name, key)).await
}

async fn remove(mesh: &Mesh, name: &str) -> Result<(), Refusal> {
    mesh.registry.remove_peer(&Caller::new("admin:eve"), &format!("peer/{name}").parse().expect("name"), None).await
}

fn count(mesh: &Mesh) -> usize {
    devices(&mesh.registry.state()).count()
}

#[tokio::test]
async fn a_registered_key_is_bound_to_its_identity_by_a_certificate_marked_plain() {
    let mesh = mesh_with_devices().await;
    let key = Keys::new().tunnel;
    let device = register(&mesh, "laptop", key).await.expect("registered");
    let leaf = TunnelCertificate::parse(&device.certificates[0].chain[0].0).expect("what nodes read");
    assert!(leaf.is_plain());
    assert_eq!(
        (leaf.workload().as_str(), leaf.binding().tunnel_key, leaf.addresses()),
        ("peer/laptop", key, device.addresses)
    );
    assert_eq!(leaf.binding().node.as_bytes(), device.id.as_bytes(), "it stands for itself");
    let again = register(&mesh, "laptop", key).await.expect("the answer was lost");
    assert_eq!((again.id, count(&mesh)), (device.id, 1));
    let verified = crate::audit::verify(&**mesh.registry.store()).await;
    assert!(verified.is_ok(), "{verified:?}");
}

#[tokio::test]
async fn a_key_that_is_low_order_or_a_nodes_or_another_devices_or_a_name_that_policy_lacks_is_refused_by_name() {
    let mesh = mesh_with_devices().await;
    let node = mesh.node(&["shop/web"]).await;
    let keys = Keys::new();
    mesh.issue(node, "shop/web", &keys, None).await.expect("issued");
    let of_a_node = register(&mesh, "laptop", keys.tunnel).await.expect_err("refused");
    assert_eq!(of_a_node.reason, Reason::KeyInUse);
    assert!(of_a_node.detail.contains("bound to shop/web"), "{of_a_node}");
    assert_eq!(reason(register(&mesh, "laptop", [0; 32]).await), Reason::KeyLowOrder);
    let mut one = [0; 32];
    one[0] = 1;
    assert_eq!(reason(register(&mesh, "laptop", one).await), Reason::KeyLowOrder);
    assert_eq!(reason(register(&mesh, "laptop", [0xff; 32]).await), Reason::InvalidField, "a second spelling");
    assert_eq!(reason(register(&mesh, "desktop", Keys::new().tunnel).await), Reason::NotFound);
    let key = Keys::new().tunnel;
    register(&mesh, "laptop", key).await.expect("registered");
    let taken = register(&mesh, "phone", key).await.expect_err("refused");
    assert_eq!(taken.reason, Reason::KeyInUse);
    assert!(taken.detail.contains("peer/laptop"), "{taken}");
    assert_eq!(reason(register(&mesh, "laptop", Keys::new().tunnel).await), Reason::Conflict);
    let stolen = Keys { tunnel: key, ..Keys::new() };
    assert_eq!(reason(mesh.issue(node, "shop/web", &stolen, None).await), Reason::KeyInUse);
    assert_eq!(count(&mesh), 1);
}

#[tokio::test]
async fn an_endpoint_that_no_node_could_or_should_send_to_is_refused() {
    let mesh = mesh_with_devices().await;
    for endpoint in ["0.0.0.0:1", "192.0.2.1:0", "[::]:1", "224.0.0.1:1", "10.77.0.2:1", "[fd12:3456:789a::7]:1"] {
        let new = NewPeer { endpoint: Some(endpoint.parse().expect("address")), ..peer("laptop", Keys::new().tunnel) };
        let refused = mesh.registry.register_peer(&Caller::new("test"), new).await;
        assert_eq!(reason(refused), Reason::InvalidField, "{endpoint}");
    }
}

#[tokio::test]
async fn no_node_holds_the_identity_of_a_device() {
    let mesh = mesh_with_devices().await;
    let workloads = || vec!["peer/laptop".parse().expect("name")];
    let new = NewJoinToken { lifetime: Duration::from_secs(60), uses: 1, workloads: workloads(), note: String::new() };
    assert_eq!(reason(mesh.registry.create_join_token(&Caller::new("test"), new).await), Reason::IdentityNotAllowed);
    let node = mesh.node(&["shop/web"]).await;
    let set = mesh.registry.set_node_workloads(&Caller::new("test"), node, workloads(), None).await;
    assert_eq!(reason(set), Reason::IdentityNotAllowed);
}

#[tokio::test]
async fn a_device_is_renewed_for_as_long_as_it_stands_also_after_days_without_a_coordinator() {
    let mesh = mesh_with_devices().await;
    let key = Keys::new().tunnel;
    let first = register(&mesh, "laptop", key).await.expect("registered");
    assert_eq!(mesh.registry.renew_peers().await, Ok(0), "nothing is due");
    mesh.pass(DAY / 2);
    assert_eq!(mesh.registry.renew_peers().await, Ok(1));
    let held = |mesh: &Mesh| mesh.registry.state().instances.get(&first.id).map(|stored| stored.value.clone());
    let renewed = held(&mesh).expect("there");
    assert_eq!((renewed.certificates.len(), renewed.addresses), (2, first.addresses));
    assert!(renewed.certificates.iter().all(|certificate| certificate.tunnel_key.0 == key));
    mesh.pass(4 * DAY);
    let mesh = mesh.restart().await;
    while mesh.registry.sweep().await.expect("swept") {}
    assert_eq!(mesh.registry.renew_peers().await, Ok(1));
    let late = held(&mesh).expect("it was not forgotten");
    assert!(late.valid_until() > mesh.registry.now());
    assert_eq!(reason(register(&mesh, "phone", key).await), Reason::KeyInUse);
}

#[tokio::test]
async fn what_is_revoked_of_a_device_ends_it_until_it_is_registered_anew() {
    let revocations: [fn(&Instance) -> Revoke; 4] = [
        |device| Revoke::TunnelKey(device.certificates[0].tunnel_key.0),
        |device| Revoke::Identity(device.workload.clone()),
        |device| Revoke::Instance(device.id),
        |device| Revoke::Certificate {
            issuer_key_id: device.certificates[0].issuer_key_id.clone(),
            serial: device.certificates[0].serial.clone(),
        },
    ];
    for revoke in revocations {
        let mesh = mesh_with_devices().await;
        let device = register(&mesh, "laptop", Keys::new().tunnel).await.expect("registered");
        let what = revoke(&device);
        mesh.registry.revoke(&Caller::new("test"), what.clone()).await.expect("revoked");
        let now = mesh.registry.now();
        let state = mesh.registry.state();
        assert!(state.peer_record(&device, now).is_none(), "{what:?}: no node is told of it");
        assert!(state.instances.get(&device.id).is_some_and(|device| device.revoked_at.is_some()), "{what:?}");
        for _ in 0..4 {
            mesh.pass(DAY / 3);
            assert_eq!(mesh.registry.renew_peers().await, Ok(0), "{what:?}: nor is it renewed");
        }
        remove(&mesh, "laptop").await.expect("removed");
        register(&mesh, "laptop", Keys::new().tunnel).await.expect("registered anew");
    }
}

#[tokio::test]
async fn a_device_whose_issuer_is_revoked_gets_a_certificate_of_the_next_intermediate() {
    let mesh = mesh_with_devices().await;
    let device = register(&mesh, "laptop", Keys::new().tunnel).await.expect("registered");
    let issuer = device.certificates[0].issuer_key_id.clone();
    mesh.registry.revoke(&Caller::new("test"), Revoke::Issuer(issuer.clone())).await.expect("revoked");
    assert_eq!(mesh.registry.renew_peers().await.map_err(|refusal| refusal.reason), Err(Reason::Revoked));
    let nobody_is_missing = |_: &State, _: &crate::ca::rotation::TrustRoots, _: UnixTime| Vec::new();
    let step = warren_proto::admin::RotationStep::Intermediate;
    let rotate = Rotate { step, force: false, missing: &nobody_is_missing };
    mesh.pass(Duration::from_secs(120));
    mesh.registry.rotate(&Caller::new("test"), rotate).await.expect("rotated");
    assert_eq!(mesh.registry.renew_peers().await, Ok(1));
    let state = mesh.registry.state();
    let renewed = state.instances.get(&device.id).expect("there");
    assert_ne!(renewed.certificates[0].issuer_key_id, issuer);
    assert!(state.peer_record(renewed, mesh.registry.now()).is_some());
}

#[tokio::test]
async fn a_new_intermediate_renews_every_device_once() {
    let mesh = mesh_with_devices().await;
    let device = register(&mesh, "laptop", Keys::new().tunnel).await.expect("registered");
    mesh.pass(Duration::from_secs(120));
    assert_eq!(mesh.registry.renew_peers().await, Ok(0), "not due by itself");
    let nobody_is_missing = |_: &State, _: &crate::ca::rotation::TrustRoots, _: UnixTime| Vec::new();
    let step = warren_proto::admin::RotationStep::Intermediate;
    let rotate = Rotate { step, force: false, missing: &nobody_is_missing };
    mesh.registry.rotate(&Caller::new("test"), rotate).await.expect("rotated");
    mesh.pass(Duration::from_secs(1));
    assert_eq!([mesh.registry.renew_peers().await, mesh.registry.renew_peers().await], [Ok(1), Ok(0)]);
    let state = mesh.registry.state();
    let renewed = state.instances.get(&device.id).expect("there");
    assert_ne!(renewed.certificates[0].issuer_key_id, device.certificates[0].issuer_key_id);
}

#[tokio::test]
async fn what_a_removed_device_leaves_is_given_to_nobody_before_its_certificate_has_ended() {
    let mesh = mesh_with_devices().await;
    let key = Keys::new().tunnel;
    let device = register(&mesh, "laptop", key).await.expect("registered");
    remove(&mesh, "laptop").await.expect("removed");
    assert_eq!(reason(remove(&mesh, "laptop").await), Reason::NotFound);
    let state = mesh.registry.state();
    assert!(device.addresses.iter().all(|address| state.addresses.get(&address).is_some()), "in quarantine");
    let owners: Vec<_> = state.keys.iter().map(|(_, used)| (used.owner, used.until)).collect();
    assert_eq!(owners, [(KeyOwner::Instance(device.id), device.valid_until())]);
    assert_eq!(reason(register(&mesh, "phone", key).await), Reason::KeyInUse);
    mesh.pass(DAY);
    register(&mesh, "phone", key).await.expect("the binding has ended");
}

#[tokio::test]
async fn an_instance_keeps_its_tunnel_key_over_renewals_only_while_a_device_may_talk_to_it() {
    let mesh = mesh_with_devices().await;
    let node = mesh.node(&["shop/web", "bank/api"]).await;
    let (web_keys, api_keys) = (Keys::new(), Keys::new());
    let web = mesh.issue(node, "shop/web", &web_keys, None).await.expect("issued");
    let api = mesh.issue(node, "bank/api", &api_keys, None).await.expect("issued");
    let kept = |keys: &Keys| Keys { tunnel: keys.tunnel, ..Keys::new() };
    assert_eq!(reason(mesh.issue(node, "shop/web", &kept(&web_keys), Some(web.id)).await), Reason::KeyInUse);
    register(&mesh, "laptop", Keys::new().tunnel).await.expect("registered");
    let renewed = mesh.issue(node, "shop/web", &kept(&web_keys), Some(web.id)).await.expect("shop/web may call it");
    let keys: Vec<_> = renewed.certificates.iter().map(|certificate| certificate.tunnel_key.0).collect();
    assert_eq!(keys, [web_keys.tunnel; 2]);
    let unlinked = mesh.issue(node, "bank/api", &kept(&api_keys), Some(api.id)).await;
    assert_eq!(reason(unlinked), Reason::KeyInUse, "no rule links the two");
    let foreign = mesh.issue(node, "shop/web", &kept(&api_keys), Some(web.id)).await;
    assert_eq!(reason(foreign), Reason::KeyInUse, "another instance's");
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey(web_keys.tunnel)).await.expect("revoked");
    let revoked = mesh.issue(node, "shop/web", &kept(&web_keys), Some(web.id)).await;
    assert_eq!(reason(revoked), Reason::Revoked);
    remove(&mesh, "laptop").await.expect("removed");
    let fresh = mesh.issue(node, "shop/web", &Keys::new(), Some(web.id)).await.expect("a new key is always taken");
    let again = mesh.issue(node, "shop/web", &kept(&web_keys), Some(fresh.id)).await;
    assert_eq!(reason(again), Reason::KeyInUse, "one that it gave up");
}

#[tokio::test]
async fn a_revoked_device_keeps_nobodys_tunnel_key() {
    let mesh = mesh_with_devices().await;
    let node = mesh.node(&["shop/web"]).await;
    let (web_keys, device_key) = (Keys::new(), Keys::new().tunnel);
    let web = mesh.issue(node, "shop/web", &web_keys, None).await.expect("issued");
    register(&mesh, "laptop", device_key).await.expect("registered");
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey(device_key)).await.expect("revoked");
    let kept = Keys { tunnel: web_keys.tunnel, ..Keys::new() };
    assert_eq!(reason(mesh.issue(node, "shop/web", &kept, Some(web.id)).await), Reason::KeyInUse);
}
