//! TLS of the QUIC port: version 1.3, X25519MLKEM768 and nothing else, no tickets, no early data.
//!
//! A client certificate is asked for and may be left out: enrolment has none. One that is presented must be a
//! node's, or the handshake fails; that the control link has one is checked when the protocol is known.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime as TlsTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use warren_proto::certificate::{Chain, NodeCertificate};
use warren_proto::control_trust::{TrustedNode, verify_node};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::root_hint::{self, RootPrefix};
use warren_proto::{ALPN_CONTROL, ALPN_ENROL, TrustBundle, UnixTime};

use crate::ca::{Authority, choose};
use crate::registry::{RENEWAL_GRACE, Registry};

/// The provider with the one key exchange that is spoken.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768],
        ..rustls::crypto::aws_lc_rs::default_provider()
    })
}

/// The coordinator's certificates and keys as TLS presents them, one under each trusted root, that of the one that signs
/// first; replaced when they are renewed.
#[derive(Debug)]
pub(super) struct Presented(ArcSwap<Vec<(RootPrefix, Arc<CertifiedKey>)>>);

impl Presented {
    pub(super) fn new(authority: &Authority) -> Result<Self, rustls::Error> {
        Ok(Self(ArcSwap::from_pointee(certified(authority)?)))
    }

    pub(super) fn replace(&self, authority: &Authority) -> Result<(), rustls::Error> {
        self.0.store(Arc::new(certified(authority)?));
        Ok(())
    }
}

fn certified(authority: &Authority) -> Result<Vec<(RootPrefix, Arc<CertifiedKey>)>, rustls::Error> {
    let provider = provider();
    let load = |(root, chain, key)| Ok((root, Arc::new(CertifiedKey::from_der(chain, key, &provider)?)));
    authority.tls_identities().map(load).collect()
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = hello.server_name().map(root_hint::parse).unwrap_or_default();
        choose(&held, self.0.load().iter().map(|(root, certified)| (*root, Arc::clone(certified))))
    }
}

/// The server's configuration for both protocols.
pub(super) fn server_config(registry: Arc<Registry>, presented: Arc<Presented>) -> Result<ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = NodeVerifier { registry, provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_ENROL.to_vec()];
    // A resumed session would skip the certificate's verification, a revoked node's too.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The node that `chain` (leaf first) proves, now or, to be renewed, not long ago.
pub(super) fn trusted_node(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<TrustedNode, Refusal> {
    let wrong = |refusal: Refusal| match refusal.reason {
        Reason::CertificateEnded | Reason::CertificateNotYetValid => refusal,
        _ => Refusal::new(Reason::PeerCertificateWrong, format!("{} ({})", refusal.detail, refusal.reason))
            .hint("this port takes node certificates of its own mesh only"),
    };
    let chain = Chain::new(chain.iter().map(AsRef::as_ref)).map_err(wrong)?;
    let ended = NodeCertificate::parse(chain.leaf()).map_err(wrong)?.leaf().not_after();
    // One that ended lately is judged as of its last second: what it may still do is renew itself.
    let moment =
        if ended <= now && now < ended.plus(RENEWAL_GRACE) { UnixTime(ended.0.saturating_sub(1)) } else { now };
    verify_node(chain, bundle, moment).map_err(wrong)
}

#[derive(Debug)]
struct NodeVerifier {
    registry: Arc<Registry>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: TlsTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        match trusted_node(&chain, self.registry.authority().bundle(), self.registry.now()) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => {
                tracing::warn!(reason = %refusal.reason, detail = %refusal.detail, "a client certificate was refused");
                // The text reaches the other side in the connection's close.
                Err(rustls::Error::General(format!("{}: {}", refusal.reason, refusal.detail)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
