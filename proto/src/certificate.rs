//! The profiles of warren's certificates: DER in, a checked certificate of one kind out.
//!
//! A certificate is parsed once. What comes out carries everything that later checks need, so that no second
//! parser can read it otherwise. These types say that a certificate *has the form* of its kind; that somebody
//! trusted signed it is shown by [`crate::control_trust`] (control link) and the engine's `identity` (tunnels),
//! never here.
//!
//! | kind | identity | key | key usage purposes | issued by |
//! |---|---|---|---|---|
//! | [`TunnelCertificate`] | `/ns/../sa/..`, IP names | ECDSA | serverAuth, clientAuth, mesh-tunnel | marked intermediate |
//! | [`WorkloadSvid`] | `/ns/../sa/..` | ECDSA | serverAuth, clientAuth | marked intermediate |
//! | [`NodeCertificate`] | `/node/<id>` | ECDSA | clientAuth, node | marked intermediate |
//! | [`CoordinatorCertificate`] | `/coordinator/<name>` | ECDSA | serverAuth, coordinator | root |
//! | [`SignerCertificate`] | `/signer/<name>` | Ed25519 | manifest-signer | root |
//! | [`AuthorityCertificate`] | trust domain | any | any that it confines its certificates to | itself or another |
//!
//! The profile is that of X.509-SVIDs (SPIFFE X509-SVID sections 2 to 4) over RFC 5280, made narrower.

mod authority;
mod binding;
mod chain;
pub mod oid;
mod x509;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use authority::AuthorityCertificate;
pub use binding::{Capabilities, TunnelBinding, is_canonical, is_low_order};
pub use chain::Chain;

use crate::reason::{Reason, Refusal};
use crate::spiffe::Subject;
use crate::{NodeId, OverlayAddresses, SpiffeId, UnixTime, WorkloadName};
pub use x509::serial_number;
use x509::{Parsed, Purposes};

/// Largest chain, in bytes of DER.
pub const MAX_CHAIN_BYTES: usize = 16 << 10;
/// How far a certificate's notBefore may lie ahead of the local clock. Issuers date back by as much.
pub const CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(60);

/// A certificate's serial number: its magnitude, big-endian, without leading zeros, at most 20 bytes (RFC 5280,
/// 4.1.2.2).
///
/// Together with the issuer's [`KeyId`] it names a certificate for revocation. A hash of the certificate would not:
/// an ECDSA signature can be re-encoded by anybody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber(Box<[u8]>);

impl SerialNumber {
    /// Takes the magnitude as revocations and stores spell it; leading zeros are dropped.
    pub fn new(magnitude: &[u8]) -> Result<Self, Refusal> {
        let start = magnitude.iter().position(|byte| *byte != 0).unwrap_or(magnitude.len());
        match magnitude.get(start..) {
            Some(digits) if (1..=20).contains(&digits.len()) => Ok(Self(digits.into())),
            _ => Err(Refusal::new(
                Reason::CertificateMalformed,
                "serialNumber: not a number of 1 to 20 bytes above zero",
            )),
        }
    }

    fn from_der(integer: &[u8]) -> Result<Self, Refusal> {
        if integer.first().is_none_or(|byte| byte & 0x80 != 0) {
            return Err(Refusal::new(Reason::CertificateMalformed, "serialNumber: negative or empty"));
        }
        Self::new(integer)
    }

    /// The magnitude, big-endian, no leading zero.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An issuer's key identifier as its certificate states it (RFC 5280, 4.2.1.2), 1 to 32 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Box<[u8]>);

impl KeyId {
    /// Takes the bytes as they are.
    pub fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        if !(1..=32).contains(&bytes.len()) {
            return Err(Refusal::new(Reason::CertificateMalformed, "key identifier: not 1 to 32 bytes long"));
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

macro_rules! shown_as_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

shown_as_hex!(SerialNumber, KeyId);

/// The public key algorithms that a certificate of ours may hold. RSA is left out: its verification cost is the
/// sender's to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA over NIST P-256.
    P256,
    /// ECDSA over NIST P-384.
    P384,
    /// Ed25519 (RFC 8410).
    Ed25519,
}

/// What every end-entity certificate has.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    der: Arc<[u8]>,
    identity: SpiffeId,
    serial: SerialNumber,
    issuer_key_id: KeyId,
    not_before: UnixTime,
    not_after: UnixTime,
    spki: Arc<[u8]>,
}

impl Leaf {
    /// The certificate as received.
    #[must_use]
    pub fn der(&self) -> &Arc<[u8]> {
        &self.der
    }

    /// The one URI name.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Unique under its issuer.
    #[must_use]
    pub fn serial(&self) -> &SerialNumber {
        &self.serial
    }

    /// The key identifier of the issuer that the certificate names. The path check compares it with the issuer's own.
    #[must_use]
    pub fn issuer_key_id(&self) -> &KeyId {
        &self.issuer_key_id
    }

    /// First moment of validity.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Last moment of validity.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn new(parsed: Parsed, identity: SpiffeId) -> Result<Self, Refusal> {
        if parsed.not_before > parsed.not_after {
            return Err(Refusal::new(Reason::CertificateMalformed, "validity: notBefore lies behind notAfter"));
        }
        let issuer_key_id = parsed.authority_key_id.ok_or_else(|| {
            Refusal::new(Reason::CertificateProfile, "authorityKeyIdentifier: missing; revocation needs it")
        })?;
        Ok(Self {
            der: parsed.der,
            identity,
            serial: parsed.serial,
            issuer_key_id,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            spki: parsed.spki,
        })
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("issuer_key_id", &self.issuer_key_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn unexpected_identity(identity: &SpiffeId, expected: &str) -> Refusal {
    Refusal::new(Reason::CertificateIdentity, format!("subjectAltName: {identity} is not {expected}"))
}

fn require_ecdsa(parsed: &Parsed) -> Result<(), Refusal> {
    match parsed.key_algorithm {
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => Ok(()),
        KeyAlgorithm::Ed25519 => {
            Err(Refusal::new(Reason::CertificateAlgorithm, "public key: Ed25519, but this kind has an ECDSA key"))
        }
    }
}

/// A certificate that binds a tunnel key and overlay addresses to a workload's instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelCertificate {
    leaf: Leaf,
    workload: WorkloadName,
    addresses: OverlayAddresses,
    binding: TunnelBinding,
}

impl TunnelCertificate {
    /// Parses and checks the profile; signatures, dates and trust are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let parsed = Parsed::from_der(der)?;
        let identity = parsed.identity(true)?;
        let workload = workload_of(&identity)?;
        require_ecdsa(&parsed)?;
        parsed.check_leaf(&Purposes::of(true, true, oid::MESH_TUNNEL))?;
        let addresses = overlay_addresses(&parsed.names.addresses)?;
        let Some(binding) = &parsed.binding else {
            return Err(Refusal::new(Reason::CertificateProfile, "tunnel binding: missing"));
        };
        let binding = TunnelBinding::from_der(binding)?;
        Ok(Self { leaf: Leaf::new(parsed, identity)?, workload, addresses, binding })
    }

    /// The common part.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Whom it identifies.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        &self.workload
    }

    /// The IP names: the instance's overlay addresses.
    #[must_use]
    pub fn addresses(&self) -> OverlayAddresses {
        self.addresses
    }

    /// Tunnel key, instance, node and capabilities.
    #[must_use]
    pub fn binding(&self) -> &TunnelBinding {
        &self.binding
    }

    /// Whether it stands for a plain WireGuard device.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.binding.capabilities.contains(Capabilities::PLAIN)
    }
}

/// An X.509-SVID that a workload holds itself, for its own TLS. It names no address and no tunnel key and lacks the
/// mesh-tunnel purpose: whoever has its key can speak for the workload to those who verify it, and open no tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadSvid {
    leaf: Leaf,
    workload: WorkloadName,
}

impl WorkloadSvid {
    /// Parses and checks the profile; signatures, dates and trust are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let parsed = Parsed::from_der(der)?;
        let identity = parsed.identity(false)?;
        let workload = workload_of(&identity)?;
        require_ecdsa(&parsed)?;
        parsed.check_leaf(&Purposes::ordinary())?;
        if parsed.binding.is_some() {
            return Err(Refusal::new(Reason::CertificateProfile, "tunnel binding: a workload's own SVID has none"));
        }
        Ok(Self { leaf: Leaf::new(parsed, identity)?, workload })
    }

    /// The common part.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Whom it identifies.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        &self.workload
    }
}

fn workload_of(identity: &SpiffeId) -> Result<WorkloadName, Refusal> {
    identity
        .workload()
        .cloned()
        .ok_or_else(|| unexpected_identity(identity, "a workload's, spiffe://<trust-domain>/ns/<namespace>/sa/<name>"))
}

fn overlay_addresses(names: &[IpAddr]) -> Result<OverlayAddresses, Refusal> {
    match *names {
        [IpAddr::V6(v6)] => Ok(OverlayAddresses { v6, v4: None }),
        [IpAddr::V6(v6), IpAddr::V4(v4)] | [IpAddr::V4(v4), IpAddr::V6(v6)] => {
            Ok(OverlayAddresses { v6, v4: Some(v4) })
        }
        _ => Err(Refusal::new(
            Reason::CertificateProfile,
            "subjectAltName: the IP names must be one IPv6 and at most one IPv4 address",
        )),
    }
}

/// A node's own certificate, for the control link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    leaf: Leaf,
    node: NodeId,
}

impl NodeCertificate {
    /// Parses and checks the profile; signatures, dates and trust are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let parsed = Parsed::from_der(der)?;
        let identity = parsed.identity(false)?;
        let Subject::Node(node) = *identity.subject() else {
            return Err(unexpected_identity(&identity, "a node's, spiffe://<trust-domain>/node/<id>"));
        };
        require_ecdsa(&parsed)?;
        parsed.check_leaf(&Purposes::of(false, true, oid::NODE))?;
        Ok(Self { leaf: Leaf::new(parsed, identity)?, node })
    }

    /// The common part.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Which node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }
}

/// A coordinator's certificate, for enrolment, control link and admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorCertificate {
    leaf: Leaf,
    name: Arc<str>,
}

impl CoordinatorCertificate {
    /// Parses and checks the profile; signatures, dates and trust are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let parsed = Parsed::from_der(der)?;
        let identity = parsed.identity(false)?;
        let Subject::Coordinator(name) = identity.subject().clone() else {
            return Err(unexpected_identity(&identity, "a coordinator's, spiffe://<trust-domain>/coordinator/<name>"));
        };
        require_ecdsa(&parsed)?;
        parsed.check_leaf(&Purposes::of(true, false, oid::COORDINATOR))?;
        Ok(Self { leaf: Leaf::new(parsed, identity)?, name })
    }

    /// The common part.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Which coordinator.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The certificate of the key that signs manifests and heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerCertificate {
    leaf: Leaf,
    name: Arc<str>,
    key: [u8; 32],
}

impl SignerCertificate {
    /// Parses and checks the profile; signatures, dates and trust are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let parsed = Parsed::from_der(der)?;
        let identity = parsed.identity(false)?;
        let Subject::Signer(name) = identity.subject().clone() else {
            return Err(unexpected_identity(&identity, "a signer's, spiffe://<trust-domain>/signer/<name>"));
        };
        let (KeyAlgorithm::Ed25519, Ok(key)) =
            (parsed.key_algorithm, <[u8; 32]>::try_from(parsed.public_key.as_slice()))
        else {
            return Err(Refusal::new(Reason::CertificateAlgorithm, "public key: a signer has an Ed25519 key"));
        };
        parsed.check_leaf(&Purposes::of(false, false, oid::MANIFEST_SIGNER))?;
        Ok(Self { leaf: Leaf::new(parsed, identity)?, name, key })
    }

    /// The common part.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Which signer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ed25519 public key.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }
}

#[cfg(test)]
pub(crate) mod test_certificates;
#[cfg(test)]
mod tests;
