//! Whom to believe on the control link, and the one path validation that everything trusts by.
//!
//! [`anchor`] is RFC 5280 path validation (by rustls-webpki) against the roots of one trust domain, with this
//! project's conditions on intermediates and dates. [`verify_node`] and [`verify_coordinator`] are what the TLS
//! verifiers of coordinator and node ask; the engine's `identity` builds tunnel admission and manifest
//! signatures on the same [`anchor`]. Why it stands here: docs/decisions/0010-one-path-validation.md.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor};
use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::certificate::oid;
use crate::certificate::{
    AuthorityCertificate, CLOCK_SKEW, Chain, CoordinatorCertificate, KeyId, Leaf, NodeCertificate,
};
use crate::reason::{Reason, Refusal};
use crate::trust_bundle::TrustBundle;
use crate::{TrustDomain, UnixTime};

/// Signatures that a certificate on a path may carry; the same closed set as in the profiles.
const SIGNATURES: &[&dyn SignatureVerificationAlgorithm] =
    &[ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519];

/// What a certificate is presented for. It decides the extended key usage and who may have issued it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Admitting a tunnel: issued by a marked intermediate.
    Tunnel,
    /// A workload's own X.509-SVID: issued by a marked intermediate.
    WorkloadSvid,
    /// A node on the control link: issued by a marked intermediate.
    Node,
    /// A coordinator: issued by a root, so that a stolen intermediate cannot pose as one.
    Coordinator,
    /// Signing manifests: issued by a root.
    ManifestSigner,
}

impl Purpose {
    /// The purpose that no certificate on the path may exclude. That the leaf itself names it is its profile's
    /// to check: an intermediate of an outside CA may leave purposes open.
    const fn key_usage(self) -> KeyUsage {
        let oid = match self {
            Self::Tunnel => oid::MESH_TUNNEL,
            Self::WorkloadSvid => return KeyUsage::client_auth(),
            Self::Node => oid::NODE,
            Self::Coordinator => oid::COORDINATOR,
            Self::ManifestSigner => oid::MANIFEST_SIGNER,
        };
        KeyUsage::required_if_present(oid.der)
    }

    const fn issued_by_root(self) -> bool {
        matches!(self, Self::Coordinator | Self::ManifestSigner)
    }
}

/// A path from a leaf to a root, as validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnchoredPath {
    authorities: Vec<AuthorityCertificate>,
    valid_until: UnixTime,
}

impl AnchoredPath {
    /// Every issuer on the path, the leaf's first, the root last.
    #[must_use]
    pub fn authorities(&self) -> &[AuthorityCertificate] {
        &self.authorities
    }

    /// The key identifiers of those issuers.
    pub fn issuer_key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.authorities.iter().map(AuthorityCertificate::key_id)
    }

    /// The earliest end of validity on the path, the leaf's and the root's included.
    #[must_use]
    pub fn valid_until(&self) -> UnixTime {
        self.valid_until
    }
}

/// A node whose certificate holds on the control link.
#[derive(Debug, Clone)]
pub struct TrustedNode {
    /// Its certificate.
    pub certificate: NodeCertificate,
    /// The path that it was trusted by.
    pub path: AnchoredPath,
}

/// A coordinator whose certificate holds.
#[derive(Debug, Clone)]
pub struct TrustedCoordinator {
    /// Its certificate.
    pub certificate: CoordinatorCertificate,
    /// The path that it was trusted by.
    pub path: AnchoredPath,
}

/// Whether `chain` is a node's, for the coordinator's TLS verifier. Revocation and registration are the caller's
/// to check.
pub fn verify_node(chain: Chain<'_>, bundle: &TrustBundle, now: UnixTime) -> Result<TrustedNode, Refusal> {
    let certificate = NodeCertificate::parse(chain.leaf())?;
    let path = anchor(certificate.leaf(), chain, bundle, Purpose::Node, now)?;
    Ok(TrustedNode { certificate, path })
}

/// Whether `chain` is a coordinator's of the bundle's trust domain, for the node's and the CLI's TLS verifier.
/// The dialled name is of no account.
pub fn verify_coordinator(
    chain: Chain<'_>,
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<TrustedCoordinator, Refusal> {
    let certificate = CoordinatorCertificate::parse(chain.leaf())?;
    let path = anchor(certificate.leaf(), chain, bundle, Purpose::Coordinator, now)?;
    Ok(TrustedCoordinator { certificate, path })
}

/// Whether `leaf`, the checked form of `chain`'s first certificate, belongs to the bundle's trust domain and has
/// a valid path to one of its roots, for `purpose`, at `now`.
///
/// The path is the one that the validation found, not what was sent: a certificate that was sent and not used is
/// neither trusted nor held against the leaf. Beyond RFC 5280: the issuers are as [`Purpose`] says, roots are
/// held to their dates, the leaf names its issuer's key, and nothing lives at or past its notAfter.
pub fn anchor(
    leaf: &Leaf,
    chain: Chain<'_>,
    bundle: &TrustBundle,
    purpose: Purpose,
    now: UnixTime,
) -> Result<AnchoredPath, Refusal> {
    check_trust_domain(leaf.identity().trust_domain(), bundle)?;
    check_dates("certificate", leaf.not_before(), leaf.not_after(), now)?;
    let intermediates: Vec<_> = chain.intermediates().map(CertificateDer::from).collect();
    let roots: Vec<_> = bundle
        .anchors()
        .filter(|(root, _)| check_dates("root", root.not_before(), root.not_after(), now).is_ok())
        .map(|(_, anchor)| anchor.clone())
        .collect();
    if roots.is_empty() {
        return Err(Refusal::new(Reason::UntrustedIssuer, "bundle: none of its roots is in date"));
    }
    let der = CertificateDer::from(leaf.der().as_ref());
    let end_entity = EndEntityCert::try_from(&der).map_err(refusal_of)?;
    let time = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        // A path issued a moment ago by a clock slightly ahead is accepted.
        now.max(leaf.not_before()).0,
    ));
    let path = end_entity
        .verify_for_usage(SIGNATURES, &roots, &intermediates, time, purpose.key_usage(), None, None)
        .map_err(refusal_of)?;
    judge(leaf, &path, bundle, purpose, now)
}

fn judge(
    leaf: &Leaf,
    path: &VerifiedPath<'_>,
    bundle: &TrustBundle,
    purpose: Purpose,
    now: UnixTime,
) -> Result<AnchoredPath, Refusal> {
    let mut authorities = Vec::new();
    for certificate in path.intermediate_certificates() {
        let authority = AuthorityCertificate::parse(&certificate.der())?;
        if let Some(named) = authority.trust_domain() {
            check_trust_domain(named, bundle)?;
        }
        check_dates("issuer", authority.not_before(), authority.not_after(), now)?;
        authorities.push(authority);
    }
    let refuse = |detail: &str| Err(Refusal::new(Reason::UntrustedIssuer, detail));
    match authorities.first() {
        Some(_) if purpose.issued_by_root() => {
            return refuse("issuer: a certificate of this kind must be issued by a root itself");
        }
        None if !purpose.issued_by_root() => {
            return refuse(
                "issuer: a certificate of this kind must be issued by an issuing intermediate, not by a root",
            );
        }
        Some(issuer) if !issuer.issues_for_the_mesh() => {
            return refuse("issuer: it lacks the mesh-issuing policy or the path length of 0");
        }
        _ => {}
    }
    let Some(root) = find_root(path.anchor(), bundle) else {
        return refuse("root: not one of the bundle's");
    };
    authorities.push(root.clone());
    if authorities.first().map(AuthorityCertificate::key_id) != Some(leaf.issuer_key_id()) {
        return refuse("authorityKeyIdentifier: it is not the key identifier of the issuer");
    }
    let valid_until =
        authorities.iter().map(AuthorityCertificate::not_after).fold(leaf.not_after(), std::cmp::Ord::min);
    Ok(AnchoredPath { authorities, valid_until })
}

fn find_root<'b>(anchor: &TrustAnchor<'_>, bundle: &'b TrustBundle) -> Option<&'b AuthorityCertificate> {
    bundle
        .anchors()
        .find(|(_, known)| {
            known.subject == anchor.subject && known.subject_public_key_info == anchor.subject_public_key_info
        })
        .map(|(root, _)| root)
}

fn check_trust_domain(named: &TrustDomain, bundle: &TrustBundle) -> Result<(), Refusal> {
    if named == bundle.trust_domain() {
        return Ok(());
    }
    let detail = format!("trust domain {named}, expected {}", bundle.trust_domain());
    Err(Refusal::new(Reason::WrongTrustDomain, detail))
}

fn check_dates(what: &str, not_before: UnixTime, not_after: UnixTime, now: UnixTime) -> Result<(), Refusal> {
    if not_before > now.plus(CLOCK_SKEW) {
        let detail = format!("{what}: valid from {not_before}, now it is {now}");
        return Err(Refusal::new(Reason::CertificateNotYetValid, detail).hint("compare the clocks of the two machines"));
    }
    if not_after <= now {
        return Err(Refusal::new(Reason::CertificateEnded, format!("{what}: ended at {not_after}, now it is {now}")));
    }
    Ok(())
}

fn refusal_of(error: webpki::Error) -> Refusal {
    use webpki::Error;
    let reason = match &error {
        Error::CertExpired { .. } => Reason::CertificateEnded,
        Error::CertNotValidYet { .. } => Reason::CertificateNotYetValid,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Reason::CertificatePurpose,
        Error::NameConstraintViolation => Reason::AddressOutsidePrefix,
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Reason::CertificateAlgorithm
        }
        Error::CaUsedAsEndEntity
        | Error::EndEntityUsedAsCa
        | Error::PathLenConstraintViolated
        | Error::UnsupportedCriticalExtension
        | Error::ExtensionValueInvalid
        | Error::UnsupportedCertVersion => Reason::CertificateProfile,
        Error::BadDer
        | Error::BadDerTime
        | Error::InvalidCertValidity
        | Error::InvalidSerialNumber
        | Error::MalformedExtensions
        | Error::SignatureAlgorithmMismatch
        | Error::TrailingData(_) => Reason::CertificateMalformed,
        _ => Reason::UntrustedIssuer,
    };
    Refusal::new(reason, format!("certificate path: {error}"))
}

#[cfg(test)]
mod tests;
