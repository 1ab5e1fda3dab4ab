//! A node believes nothing for lying on its disk: records and manifests are judged again at each start.
//!
//! ```text
//!   coordinator (stopped)   web-1 (its snapshot is altered)   bank-1
//!   ================================================================
//! ```

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::attacker::Key;
use warren_netns_tests::forge::{CaDirectory, Snapshot, Subject};
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{Coordinator, IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;
use warren_proto::peer_map::{Generation, ObjectKind, encode_instances, object_digest};
use warren_proto::{InstanceId, NodeId, wire};

use super::{claim, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("forged::a_node_started_without_its_coordinator_refuses_forged_records_one_by_one", records),
        claim("forged::a_manifest_with_a_deny_left_out_rolled_back_or_for_another_node_is_refused", manifests),
        claim("forged::a_node_is_not_ready_with_rules_that_were_not_chosen_for_its_instance", rules_of_another),
    ]
}

const SILENCE: Duration = Duration::from_secs(2);

/// A mesh whose coordinator is away and whose web-1 is stopped: its snapshot can be altered.
fn stopped() -> Result<(Mesh, Node, Node, CaDirectory)> {
    let (mut mesh, mut web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    mesh.coordinator.stop()?;
    web.stop()?;
    let ca = CaDirectory::at(mesh.coordinator.directory().join("ca"));
    Ok((mesh, web, bank, ca))
}

/// Starts web-1 on the altered snapshot: the log must name `reason`, and bank-1 must be out of reach.
fn must_refuse(web: &mut Node, bank: &Node, what: &str, reason: &str) -> Result<()> {
    let api = bank.at(8080)?;
    let out_of_reach = |web: &Node| {
        let (outcome, _) = web.host.tcp(api, b"question", SILENCE)?;
        ensure!(outcome != Outcome::Connected, "{what}: was admitted");
        Ok(())
    };
    web.must_refuse(reason, out_of_reach).with_context(|| what.to_owned())
}

fn records() -> Result<()> {
    let (mut mesh, mut web, bank, ca) = stopped()?;
    let other = Coordinator::on(mesh.lab.host("other-mesh")?, &["--overlay-v4", "10.77.0.0/16"])?;
    let other_ca = CaDirectory::at(other.directory().join("ca"));
    let good = Snapshot::open(&web.state())?;
    let subject = Subject::of(&good.peer()?);
    let own_key = Key::stolen(&web.state())?.public();

    let mut stranger = subject.clone();
    stranger.identity = "spiffe://bank.example/ns/lab/sa/rogue".to_owned();
    let mut own = subject.clone();
    own.binding.tunnel_key = own_key;
    let mut weak = subject.clone();
    weak.binding.tunnel_key = [0; 32];
    let mut outside = subject.clone();
    outside.addresses.v6 = Ipv6Addr::new(0xfd00, 0xdead, 0xbeef, 0, 0, 0, 0, 1);

    let mut key_swapped = good.update.peers[0].certificates[0].certificates.clone();
    let place = key_swapped[0].windows(32).position(|window| window == subject.binding.tunnel_key);
    let place = place.context("the key stands in the certificate")?;
    key_swapped[0][place..place + 32].copy_from_slice(&Key::unknown().public());

    let forged = [
        ("by another CA", other_ca.issue(&subject)?, "untrusted-issuer"),
        ("for another identity", ca.issue(&stranger)?, "not-linked"),
        ("with another key, unsigned", key_swapped, "untrusted-issuer"),
        ("with this node's own key", ca.issue(&own)?, "key-is-local"),
        ("with a key of low order", ca.issue(&weak)?, "key-low-order"),
        ("with an address outside the prefix", ca.issue(&outside)?, "address-outside-prefix"),
    ];
    for (what, chain, reason) in forged {
        let mut snapshot = Snapshot::open(&web.state())?;
        snapshot.set_peer_chain(chain)?;
        snapshot.sign(&good.manifest()?, &ca)?;
        snapshot.save()?;
        must_refuse(&mut web, &bank, what, reason)?;
        reopened(&good, &web)?.save()?;
    }
    // The scope as it was, signed anew with the same keys, is good: the refusals were about the records.
    let mut snapshot = Snapshot::open(&web.state())?;
    snapshot.sign(&good.manifest()?, &ca)?;
    snapshot.set_peer_chain(ca.issue(&subject)?)?;
    snapshot.save()?;
    web.start()?;
    web.say(&["status", "--check", "ready"])?.expect(0)?;
    Ok(())
}

/// The snapshot as it was before anything was forged, ready to be altered again.
fn reopened(good: &Snapshot, web: &Node) -> Result<Snapshot> {
    let mut snapshot = Snapshot::open(&web.state())?;
    snapshot.update = good.update.clone();
    Ok(snapshot)
}

fn manifests() -> Result<()> {
    let (_mesh, mut web, bank, ca) = stopped()?;
    let good = Snapshot::open(&web.state())?;
    let manifest = good.manifest()?;
    let is_deny = |object: &wire::ScopeObject| {
        object.kind == i32::from(wire::ObjectKind::Policy) && object.name.contains("banking-api")
    };
    ensure!(good.update.objects.iter().any(is_deny), "the scope holds the document with the deny");

    let mut left_out = reopened(&good, &web)?;
    left_out.update.objects.retain(|object| !is_deny(object));
    left_out.save()?;
    must_refuse(&mut web, &bank, "a deny left out", "manifest-incomplete")?;

    let mut rewritten = reopened(&good, &web)?;
    for object in rewritten.update.objects.iter_mut().filter(|object| is_deny(object)) {
        let text = String::from_utf8_lossy(&object.content).replace("no-admin", "no-admim");
        object.content = bytes::Bytes::from(text.into_bytes());
    }
    rewritten.save()?;
    must_refuse(&mut web, &bank, "a document rewritten", "manifest-digest")?;

    let mut rolled_back = reopened(&good, &web)?;
    let mut older = manifest.clone();
    older.generation = Generation { epoch: manifest.generation.epoch, revision: 1 };
    older.objects.retain(|key, _| key.kind != ObjectKind::Policy);
    rolled_back.update.objects.retain(|object| object.kind != i32::from(wire::ObjectKind::Policy));
    rolled_back.sign(&older, &ca)?;
    rolled_back.save()?;
    must_refuse(&mut web, &bank, "an older manifest", "manifest-rolled-back")?;

    let mut elsewhere = reopened(&good, &web)?;
    let mut other_node = manifest.clone();
    other_node.node = NodeId::from_bytes([9; 16]);
    elsewhere.sign(&other_node, &ca)?;
    elsewhere.save()?;
    must_refuse(&mut web, &bank, "a manifest for another node", "manifest-wrong-node")?;

    let mut unsigned = reopened(&good, &web)?;
    if let Some(signed) = unsigned.update.manifest.as_mut() {
        signed.signature[10] ^= 1;
    }
    unsigned.save()?;
    must_refuse(&mut web, &bank, "an altered signature", "manifest-signature")?;

    reopened(&good, &web)?.save()?;
    web.start()?;
    wait_until_allowed(&web, &bank)
}

/// What a node holds between the first manifest after its enrolment and the one that knows its instance, made to last.
fn rules_of_another() -> Result<()> {
    let (_mesh, mut web, bank, ca) = stopped()?;
    let good = Snapshot::open(&web.state())?;
    let mut early = reopened(&good, &web)?;
    let mut manifest = good.manifest()?;
    let content = encode_instances([InstanceId::from_bytes([9; 16])]);
    for object in early.update.objects.iter_mut().filter(|object| object.kind == wire::ObjectKind::Instances as i32) {
        object.content = content.clone();
    }
    for (_, named) in manifest.objects.iter_mut().filter(|(key, _)| key.kind == ObjectKind::Instances) {
        named.sha256 = object_digest(&content);
    }
    early.sign(&manifest, &ca)?;
    early.save()?;
    web.start_unready()?;
    eventually("the data plane runs and the node says what it waits for", IN_FORCE, || {
        let status = web.say(&["status", "--check", "ready"])?;
        let named = status.stderr.contains("not ready: waiting for the policy of its own instance");
        Ok(status.code == Some(4) && named)
    })?;
    let why = web.say(&["why", &web.workload, &format!("{}:8080", bank.workload)])?.expect(4)?;
    ensure!(why.stderr.contains("not-ready"), "{why:#?}");
    web.stop()?;
    reopened(&good, &web)?.save()?;
    web.start()?;
    wait_until_allowed(&web, &bank)
}
