//! Who must not get through, and what must not be believed.

use std::time::Duration;

use futures_util::FutureExt;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SigningKey};
use warren_coordinator::registry::{Caller, NewRegistration, Revoke};
use warren_proto::admin::{AttestorSettings, CertificateIssuer};
use warren_proto::codec::MAX_ENROL_FRAME;
use warren_proto::peer_map::Generation;
use warren_proto::possession::certificate_evidence_input;
use warren_proto::{ALPN_CONTROL, ALPN_ENROL, PROTOCOL_VERSION, Reason, wire};

use super::client::{
    Dial, EnrolAttempt, Frames, Identity, IssueAttempt, Link, Node, RequestAttempt, TunnelKeys, closed, node_frame,
    reason,
};
use super::mesh::Mesh;

/// How the coordinator ends a connection whose certificate it refuses: in or right after the handshake.
async fn refused(mesh: &Mesh, dial: Dial<'_>) -> String {
    match dial.connect(mesh, &mesh.bundle).await {
        Err(error) => error.to_string(),
        Ok(connection) => closed(&connection).await,
    }
}

#[tokio::test]
async fn the_control_link_takes_node_certificates_of_this_mesh_only() {
    let mesh = Mesh::new().await;
    let bare = refused(&mesh, Dial::new(ALPN_CONTROL, None)).await;
    assert!(bare.contains("peer-certificate-wrong"), "{bare}");

    // A workload certificate, issued by the same CA, does not pose as a node.
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let link = node.connect(&mesh).await;
    let keys = TunnelKeys::new();
    let attempt = super::client::IssueAttempt::begin(&link.connection, "shop/web", None, &keys).await;
    let issued = attempt.finish().await.unwrap();
    let workload = Identity { chain: issued.chain, key: keys.certificate };
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&workload))).await;
    assert!(answer.contains("peer-certificate-wrong"), "{answer}");

    // Nor does a node of a mesh with the same names under another root.
    let foreign = Mesh::new().await;
    let stranger = Node::with_token(&foreign, &["shop/web"]).await;
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&stranger.identity))).await;
    assert!(answer.contains("peer-certificate-wrong"), "{answer}");

    // Nor a self-made certificate.
    let key = KeyPair::generate().unwrap();
    let chain = vec![CertificateParams::default().self_signed(&key).unwrap().der().to_vec()];
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&Identity { chain, key }))).await;
    assert!(answer.contains("peer-certificate-wrong"), "{answer}");
}

#[tokio::test]
async fn a_node_of_another_mesh_does_not_take_this_coordinator_for_its_own() {
    let (mesh, foreign) = (Mesh::new().await, Mesh::new().await);
    let error = Dial::new(ALPN_ENROL, None).connect(&mesh, &foreign.bundle).await.expect_err("refused");
    assert!(error.to_string().contains("untrusted-issuer"), "{error}");
}

#[tokio::test]
async fn a_revoked_node_gets_no_session() {
    let mesh = Mesh::new().await;
    let node = Node::with_token(&mesh, &["shop/web"]).await;
    mesh.registry.revoke(&Caller::new("test"), Revoke::Node(node.id)).await.unwrap();
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&node.identity))).await;
    assert!(answer.starts_with("node-revoked"), "{answer}");
    mesh.registry.forget_node(&Caller::new("test"), node.id, None).await.unwrap();
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&node.identity))).await;
    assert!(answer.starts_with("node-unknown"), "{answer}");
}

#[tokio::test]
async fn no_other_key_exchange_and_no_other_protocol_is_spoken() {
    let mesh = Mesh::new().await;
    let mut weak = Dial::new(ALPN_ENROL, None);
    weak.groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    assert!(weak.connect(&mesh, &mesh.bundle).await.is_err());
    assert!(Dial::new(b"h3", None).connect(&mesh, &mesh.bundle).await.is_err());
}

#[tokio::test]
async fn malformed_and_oversized_enrolments_end_with_a_named_reason_and_cost_no_token() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    let key = KeyPair::generate().unwrap();
    let begin = || EnrolAttempt::begin(&mesh, &token, &key);

    let mut attempt = begin().await;
    attempt.request.csr = vec![0; 100];
    assert_eq!(reason(attempt.finish().await), Reason::CsrMalformed);
    let mut attempt = begin().await;
    attempt.request.evidence = None;
    assert_eq!(reason(attempt.finish().await), Reason::FrameMalformed);
    let mut attempt = begin().await;
    let evidence = wire::JoinTokenEvidence { token_id: "x".repeat(20_000), secret: vec![] };
    attempt.request.evidence = Some(wire::enrol_request::Evidence::JoinToken(evidence));
    assert_eq!(reason(attempt.finish().await), Reason::TokenMalformed);

    // A frame that announces more than the limit is refused before its body arrives.
    let mut attempt = begin().await;
    let announced = u32::try_from(MAX_ENROL_FRAME + 1).unwrap().to_be_bytes();
    attempt.frames.send.write_all(&announced).await.unwrap();
    let answer: wire::EnrolResponse = attempt.frames.next().await.unwrap();
    let Some(wire::enrol_response::Result::Refused(refusal)) = answer.result else { panic!("not refused") };
    assert_eq!(refusal.reason, "frame-too-large");
    // Bytes that are no message.
    let mut attempt = begin().await;
    attempt.frames.send.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff]).await.unwrap();
    let answer: wire::EnrolResponse = attempt.frames.next().await.unwrap();
    let Some(wire::enrol_response::Result::Refused(refusal)) = answer.result else { panic!("not refused") };
    assert_eq!(refusal.reason, "frame-malformed");
    // Another version.
    let connection = Dial::new(ALPN_ENROL, None).connect(&mesh, &mesh.bundle).await.unwrap();
    let mut frames = Frames::open(&connection).await;
    frames.send(&wire::EnrolHello { version: PROTOCOL_VERSION + 1 }).await;
    let answer: wire::EnrolResponse = frames.next().await.unwrap();
    let Some(wire::enrol_response::Result::Refused(refusal)) = answer.result else { panic!("not refused") };
    assert_eq!(refusal.reason, "version-unsupported");

    Node::enrol(&mesh, &token).await.expect("the token is as good as before");
    let counted = mesh.links.refused_enrolments();
    for reason in [Reason::CsrMalformed, Reason::TokenMalformed, Reason::FrameTooLarge, Reason::VersionUnsupported] {
        assert_eq!(counted.get(&reason), Some(&1), "{reason} is counted");
    }
}

/// What a false coordinator gets a machine to sign is of no use at the true one.
#[tokio::test]
async fn the_proof_of_another_authoritys_key_holds_for_one_connection_challenge_and_request_only() {
    let mesh = Mesh::new().await;
    let token = mesh.token(1, &["shop/web"]).await;
    let (authority, device, own) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let roots = root.self_signed(&authority).unwrap().pem();
    let leaf = CertificateParams::new(vec!["device.example".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&device, &Issuer::new(root, authority)).unwrap().der().to_vec();
    let ops = || Caller::new("test");
    let settings = AttestorSettings::X509(CertificateIssuer { roots, trust_domain: None });
    mesh.registry.set_attestor(&ops(), "devices", &settings, "", None).await.unwrap();
    let registration = NewRegistration {
        name: "device".to_owned(),
        attestor: "devices".to_owned(),
        selectors: vec!["x509:dns=device.example".parse().unwrap()],
        workloads: vec!["shop/web".parse().unwrap()],
        note: String::new(),
    };
    mesh.registry.create_registration(&ops(), &registration).await.unwrap();

    let elsewhere = EnrolAttempt::begin(&mesh, &token, &own).await;
    for (connection, challenge, request) in
        [(false, true, true), (true, false, true), (true, true, false), (true, true, true)]
    {
        let mut attempt = EnrolAttempt::begin(&mesh, &token, &own).await;
        let message = certificate_evidence_input(
            if challenge { &attempt.nonce } else { &elsewhere.nonce },
            if connection { &attempt.exporter } else { &elsewhere.exporter },
            if request { &attempt.request.csr } else { &elsewhere.request.csr },
        );
        attempt.request.evidence = Some(wire::enrol_request::Evidence::Certificate(wire::CertificateEvidence {
            attestor: "devices".to_owned(),
            chain: Some(wire::CertificateChain { certificates: vec![leaf.clone()] }),
            // ecdsa_secp256r1_sha256
            scheme: 0x0403,
            signature: device.sign(&message).unwrap(),
        }));
        let answer = attempt.finish().await;
        if connection && challenge && request {
            assert_eq!(answer.unwrap().workloads, ["shop/web"]);
        } else {
            assert_eq!(reason(answer), Reason::PossessionUnproven, "{connection} {challenge} {request}");
        }
    }
    assert_eq!(mesh.registry.state().nodes.len(), 1);
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_not_told_ends_the_link() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let mut link = node.connect(&mesh).await;
    link.update().await;
    let future = wire::Ack { epoch: 1, revision: 1_000_000 };
    link.frames.send(&node_frame(wire::node_frame::Frame::Ack(future))).await;
    assert!(closed(&link.connection).await.starts_with("frame-unexpected"));
    let told = mesh.registry.state().generation();
    let missing = mesh.links.unacknowledged(&mesh.registry.state(), told, mesh.registry.now());
    assert_eq!((missing.pending.len(), missing.away.len()), (0, 1));
}

#[tokio::test]
async fn a_session_that_breaks_the_protocol_is_ended_with_its_reason() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let hello = node.hello();
    let cases: [(wire::NodeFrame, &str); 4] = [
        (node_frame(wire::node_frame::Frame::Report(wire::Report::default())), "frame-unexpected"),
        (wire::NodeFrame { frame: None }, "frame-unexpected"),
        (
            node_frame(wire::node_frame::Frame::Hello(wire::Hello { version: 9, ..hello.clone() })),
            "version-unsupported",
        ),
        (node_frame(wire::node_frame::Frame::Hello(wire::Hello { reader: 0, ..hello.clone() })), "reader-too-old"),
    ];
    for (first, expected) in cases {
        let dial = Dial::new(ALPN_CONTROL, Some(&node.identity));
        let connection = dial.connect(&mesh, &node.bundle).await.unwrap();
        let mut frames = Frames::open(&connection).await;
        frames.send(&first).await;
        let answer = closed(&connection).await;
        assert!(answer.starts_with(expected), "{expected}: {answer}");
    }
    // A second Hello, and a length beyond the limit, on a session that runs.
    let mut link = node.connect(&mesh).await;
    link.frames.send(&node_frame(wire::node_frame::Frame::Hello(hello))).await;
    assert!(closed(&link.connection).await.starts_with("frame-unexpected"));
    let mut link = node.connect(&mesh).await;
    link.frames.send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert!(closed(&link.connection).await.starts_with("frame-too-large"));
}

#[tokio::test]
async fn a_copied_state_directory_takes_the_link_over_and_the_first_is_told() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let Link { connection: first, frames: _open, .. } = node.connect(&mesh).await;
    let _second = node.connect(&mesh).await;
    let answer = closed(&first).await;
    assert!(answer.starts_with("conflict"), "{answer}");
    assert_eq!(mesh.links.list().len(), 1);
}

#[tokio::test]
async fn a_node_whose_certificate_ended_long_ago_is_refused() {
    let mesh = Mesh::new().await;
    let node = Node::with_token(&mesh, &["shop/web"]).await;
    mesh.pass(Duration::from_secs(15 * 24 * 3600));
    let answer = refused(&mesh, Dial::new(ALPN_CONTROL, Some(&node.identity))).await;
    assert!(answer.contains("certificate-ended"), "{answer}");
}

#[tokio::test]
async fn a_link_ends_when_its_certificate_or_its_issuer_is_revoked() {
    let mesh = Mesh::new().await;
    let (mut first, mut second) =
        (Node::with_token(&mesh, &["shop/web"]).await, Node::with_token(&mesh, &["shop/web"]).await);
    let certificate = mesh.registry.state().nodes.get(&first.id).unwrap().certificate.clone();
    let (first, second) = (first.connect(&mesh).await, second.connect(&mesh).await);
    let serial = Revoke::Certificate { issuer_key_id: certificate.issuer_key_id.clone(), serial: certificate.serial };
    mesh.registry.revoke(&Caller::new("test"), serial).await.unwrap();
    assert!(closed(&first.connection).await.starts_with("revoked"));
    assert!(second.connection.close_reason().is_none());
    mesh.registry.revoke(&Caller::new("test"), Revoke::Issuer(certificate.issuer_key_id)).await.unwrap();
    assert!(closed(&second.connection).await.starts_with("revoked"));
}

/// Who holds a stolen node certificate parks a request at its challenge, learns by the revocation itself that time is up, and
/// then answers the challenge.
#[tokio::test]
async fn a_request_that_waited_at_its_challenge_outlives_no_revocation_of_its_certificate() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let certificate = mesh.registry.state().nodes.get(&node.id).unwrap().certificate.clone();
    let link = node.connect(&mesh).await;
    let keys = TunnelKeys::new();
    let tunnel = IssueAttempt::begin(&link.connection, "shop/web", None, &keys).await;
    let new = KeyPair::generate().unwrap();
    let renewal = RequestAttempt::renewal(&link.connection, &new).await;
    let serial =
        Revoke::Certificate { issuer_key_id: certificate.issuer_key_id.clone(), serial: certificate.serial.clone() };
    mesh.registry.revoke(&Caller::new("test"), serial).await.unwrap();
    // Refused by name, or the link was gone first: whichever comes, nothing was issued.
    let attempts = futures_util::future::join(
        std::panic::AssertUnwindSafe(tunnel.finish()).catch_unwind(),
        std::panic::AssertUnwindSafe(renewal.finish()).catch_unwind(),
    );
    let (tunnel, renewal) = attempts.await;
    assert!(!matches!(tunnel, Ok(Ok(_))), "a tunnel certificate for a revoked node certificate");
    assert!(!matches!(renewal, Ok(Ok(_))), "a node certificate for a revoked one");
    let state = mesh.registry.state();
    assert!(state.instances.is_empty());
    assert_eq!(state.nodes.get(&node.id).unwrap().certificate.serial, certificate.serial);
}

#[tokio::test]
async fn a_link_ends_with_the_certificate_that_it_was_made_with() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    let mut link = node.connect(&mesh).await;
    link.update().await;
    link.acknowledge().await;
    link.heartbeat().await;
    mesh.pass(Duration::from_secs(8 * 24 * 3600));
    // The link may have been closed before the question is answered.
    let connection = link.connection.clone();
    let asked = std::panic::AssertUnwindSafe(link.issue("shop/web", None));
    match asked.catch_unwind().await.map(reason) {
        Ok(refused) => assert_eq!(refused, Reason::CertificateEnded),
        Err(_) => assert!(connection.close_reason().is_some(), "no answer on a link that is open"),
    }
    mesh.registry.revoke(&Caller::new("test"), Revoke::TunnelKey([7; 32])).await.unwrap();
    assert!(closed(&connection).await.starts_with("certificate-ended"));
}

#[tokio::test]
async fn a_node_that_is_revoked_before_it_says_hello_gets_no_session() {
    let mesh = Mesh::new().await;
    let node = Node::with_token(&mesh, &["shop/web"]).await;
    let connection = Dial::new(ALPN_CONTROL, Some(&node.identity)).connect(&mesh, &node.bundle).await.unwrap();
    let mut frames = Frames::open(&connection).await;
    mesh.registry.revoke(&Caller::new("test"), Revoke::Node(node.id)).await.unwrap();
    frames.send(&node_frame(wire::node_frame::Frame::Hello(node.hello()))).await;
    assert!(closed(&connection).await.starts_with("node-revoked"));
}

#[tokio::test]
async fn a_generation_that_the_store_never_made_counts_as_no_acknowledgement() {
    let mesh = Mesh::new().await;
    let mut node = Node::with_token(&mesh, &["shop/web"]).await;
    node.held.manifest = None;
    let connection = Dial::new(ALPN_CONTROL, Some(&node.identity)).connect(&mesh, &node.bundle).await.unwrap();
    let mut frames = Frames::open(&connection).await;
    let ahead = wire::Hello { epoch: 1, revision: 1_000_000, ..node.hello() };
    frames.send(&node_frame(wire::node_frame::Frame::Hello(ahead))).await;
    let _: wire::CoordinatorFrame = frames.next().await.unwrap();
    assert_eq!(mesh.links.get(node.id).unwrap().acknowledged, Generation::default());
}

#[tokio::test]
async fn strangers_who_begin_an_enrolment_and_say_nothing_keep_nobody_out() {
    let mesh = Mesh::new().await;
    let mut silent = Vec::new();
    for _ in 0..140 {
        silent.push(Dial::new(ALPN_ENROL, None).connect(&mesh, &mesh.bundle).await.unwrap());
    }
    Node::with_token(&mesh, &["shop/web"]).await;
    assert!(silent.iter().all(|connection| connection.close_reason().is_none()), "they are still there");
}
