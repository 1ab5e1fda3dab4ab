//! TLS on the control link: version 1.3, X25519MLKEM768 and nothing else, no resumption. The coordinator is
//! known by its SPIFFE ID, its key usage and a root this node holds; the dialled name is of no account.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use warren_proto::certificate::{Chain, CoordinatorCertificate};
use warren_proto::control_trust::verify_coordinator;
use warren_proto::peer_map::object_digest;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{ALPN_CONTROL, ALPN_ENROL, TrustBundle, root_hint};

use crate::certificates::key_store::{self, SigningKey};
use crate::clock::Clock;

/// By what a coordinator's certificate is judged.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Before enrolment: the root presented last must have this SHA-256, which the join token carries.
    Pinned([u8; 32]),
    /// Afterwards: the roots this node holds.
    Bundle(TrustBundle),
}

impl Trust {
    fn server_name(&self) -> String {
        match self {
            Self::Pinned(root_sha256) => root_hint::server_name([root_sha256]),
            Self::Bundle(bundle) => {
                let roots: Vec<_> = bundle.roots().map(|root| object_digest(root.der())).collect();
                root_hint::server_name(&roots)
            }
        }
    }
}

/// The provider with the one key exchange that the control link speaks.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768],
        ..rustls::crypto::aws_lc_rs::default_provider()
    })
}

/// A client configuration, and the place where its verifier leaves its refusal: TLS itself carries an alert only.
#[derive(Debug)]
pub struct ClientTls {
    /// For quinn.
    pub config: ClientConfig,
    /// The TLS server name: which roots this side can verify by, see [`root_hint`].
    pub server_name: String,
    /// Why the coordinator's certificate was refused, if it was.
    pub refused: Arc<Mutex<Option<Refusal>>>,
}

impl ClientTls {
    /// For enrolment: no client certificate.
    pub fn enrol(trust: Trust, clock: Arc<Clock>) -> Result<Self, Refusal> {
        Self::build(trust, clock, ALPN_ENROL, None)
    }

    /// For the control link, with the node's certificate.
    pub fn control(
        trust: Trust,
        clock: Arc<Clock>,
        chain: &key_store::Chain,
        key: &SigningKey,
    ) -> Result<Self, Refusal> {
        Self::build(trust, clock, ALPN_CONTROL, Some((chain, key)))
    }

    /// For the coordinator's admin API, which is HTTP/1.1 and knows its caller by a token.
    pub fn admin(trust: Trust, clock: Arc<Clock>) -> Result<Self, Refusal> {
        Self::build(trust, clock, b"http/1.1", None)
    }

    fn build(
        trust: Trust,
        clock: Arc<Clock>,
        protocol: &[u8],
        identity: Option<(&key_store::Chain, &SigningKey)>,
    ) -> Result<Self, Refusal> {
        let failed = |error: rustls::Error| Refusal::new(Reason::Internal, format!("TLS configuration: {error}"));
        let provider = provider();
        let server_name = trust.server_name();
        let refused = Arc::new(Mutex::new(None));
        let verifier = Verifier { trust, clock, provider: provider.clone(), refused: refused.clone() };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain.to_rustls(), key.to_rustls()).map_err(failed)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        // A resumed session would skip the certificate's verification; a revoked coordinator must not.
        config.resumption = Resumption::disabled();
        Ok(Self { config, server_name, refused })
    }
}

struct Verifier {
    trust: Trust,
    clock: Arc<Clock>,
    provider: Arc<CryptoProvider>,
    refused: Arc<Mutex<Option<Refusal>>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl Verifier {
    fn judge(&self, presented: &[&[u8]]) -> Result<(), Refusal> {
        let now = self.clock.now().unix;
        match &self.trust {
            Trust::Bundle(bundle) => verify_coordinator(Chain::new(presented.iter().copied())?, bundle, now).map(drop),
            Trust::Pinned(root_sha256) => {
                let bundle = pinned_bundle(presented, root_sha256)?;
                let path = presented.get(..presented.len() - 1).unwrap_or_default();
                verify_coordinator(Chain::new(path.iter().copied())?, &bundle, now).map(drop)
            }
        }
    }
}

/// The bundle of the one root whose hash the join token pins: the last certificate presented.
fn pinned_bundle(presented: &[&[u8]], root_sha256: &[u8; 32]) -> Result<TrustBundle, Refusal> {
    let (Some(leaf), Some(root)) = (presented.first(), presented.last()) else {
        return Err(Refusal::new(Reason::PeerCertificateWrong, "the coordinator presented no certificate"));
    };
    if <[u8; 32]>::from(Sha256::digest(root)) != *root_sha256 {
        let detail = "the coordinator's root is not the one that the join token names";
        return Err(Refusal::new(Reason::UntrustedIssuer, detail)
            .hint("the token is another mesh's, or something stands between: compare the coordinator's address and make a new token"));
    }
    let coordinator = CoordinatorCertificate::parse(leaf)?;
    TrustBundle::new(coordinator.leaf().identity().trust_domain().clone(), 0, [*root])
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented: Vec<&[u8]> = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref).collect();
        self.judge(&presented).map(|()| ServerCertVerified::assertion()).map_err(|refusal| {
            let text = refusal.to_string();
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            rustls::Error::General(text)
        })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
