//! Whom a node takes for its coordinator, against a real QUIC server on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use quinn::crypto::rustls::QuicServerConfig;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use warren_proto::UnixTime;

use super::*;
use crate::clock::Reading;
use crate::control_client::link::Link;
use crate::test_mesh::{NOW, TestMesh};

/// What a server on loopback shows.
struct Shown {
    chain: Vec<Vec<u8>>,
    key: rcgen::KeyPair,
    groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
    protocol: &'static [u8],
}

impl Shown {
    fn coordinator(mesh: &TestMesh) -> Self {
        let (chain, key) = mesh.coordinator();
        Self { chain, key, groups: vec![X25519MLKEM768], protocol: ALPN_ENROL }
    }

    fn serve(self) -> (SocketAddr, quinn::Endpoint) {
        let provider = CryptoProvider { kx_groups: self.groups, ..rustls::crypto::aws_lc_rs::default_provider() };
        let chain = self.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("certificate");
        config.alpn_protocols = vec![self.protocol.to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).expect("crypto")));
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("socket");
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = accepting.accept().await {
                if let Ok(connection) = incoming.await {
                    held.push(connection);
                }
            }
        });
        (endpoint.local_addr().expect("address"), endpoint)
    }
}

fn clock() -> Arc<Clock> {
    Arc::new(Clock::new(|| Reading { boot: std::time::Duration::ZERO, wall: NOW }, UnixTime(0)))
}

async fn dial(shown: Shown, trust: Trust) -> Result<Link, Refusal> {
    let (address, _endpoint) = shown.serve();
    Link::connect(&[address.to_string()], ClientTls::enrol(trust, clock())?).await
}

fn pin(mesh: &TestMesh) -> Trust {
    Trust::Pinned(Sha256::digest(mesh.root_der()).into())
}

#[tokio::test]
async fn a_coordinator_is_taken_by_the_pinned_root_and_later_by_the_bundle() {
    let mesh = TestMesh::new();
    let link = dial(Shown::coordinator(&mesh), pin(&mesh)).await.expect("taken");
    assert_ne!(link.exporter().expect("exporter"), [0; 32]);
    dial(Shown::coordinator(&mesh), Trust::Bundle(mesh.bundle())).await.expect("taken");
}

#[tokio::test]
async fn another_mesh_is_refused_before_a_secret_leaves() {
    let (mesh, other) = (TestMesh::new(), TestMesh::new());
    let refusal = dial(Shown::coordinator(&other), pin(&mesh)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::UntrustedIssuer);
    assert!(!refusal.hint.is_empty());
    let refusal = dial(Shown::coordinator(&other), Trust::Bundle(mesh.bundle())).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::UntrustedIssuer);
}

#[tokio::test]
async fn the_right_root_behind_a_chain_of_another_is_refused() {
    let (mesh, other) = (TestMesh::new(), TestMesh::new());
    let mut shown = Shown::coordinator(&other);
    shown.chain.pop();
    shown.chain.push(mesh.root_der().to_vec());
    assert!(dial(shown, pin(&mesh)).await.is_err());
}

#[tokio::test]
async fn a_workloads_certificate_is_no_coordinators() {
    let mesh = TestMesh::new();
    let (chain, key) = mesh.workload_as_server();
    let shown = Shown { chain, key, groups: vec![X25519MLKEM768], protocol: ALPN_ENROL };
    let refusal = dial(shown, Trust::Bundle(mesh.bundle())).await.expect_err("refused");
    assert!(
        matches!(refusal.reason, Reason::CertificateIdentity | Reason::CertificatePurpose | Reason::CertificateProfile),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn a_key_exchange_without_ml_kem_is_not_spoken() {
    let mesh = TestMesh::new();
    let shown = Shown { groups: vec![X25519, SECP256R1], ..Shown::coordinator(&mesh) };
    let refusal = dial(shown, pin(&mesh)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::CoordinatorUnreachable);
}

#[tokio::test]
async fn another_protocol_on_the_port_is_refused() {
    let mesh = TestMesh::new();
    let shown = Shown { protocol: b"h3", ..Shown::coordinator(&mesh) };
    assert!(dial(shown, pin(&mesh)).await.is_err());
}

#[tokio::test]
async fn addresses_that_do_not_answer_are_named_and_none_is_a_usage_error() {
    let mesh = TestMesh::new();
    let none = Link::connect(&[], ClientTls::enrol(pin(&mesh), clock()).expect("tls")).await.expect_err("refused");
    assert_eq!(none.reason, Reason::InvalidField);
    let wrong = ["no-such-host.invalid:1".to_owned()];
    let refusal =
        Link::connect(&wrong, ClientTls::enrol(pin(&mesh), clock()).expect("tls")).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::CoordinatorUnreachable);
    assert!(refusal.detail.contains("no-such-host.invalid:1"), "{refusal:?}");
}
