//! Certificate requests: PKCS#10 in, one checked public key out. Subject, extensions and attributes are not
//! looked at, for whoever asks has no say in what is certified.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use warren_proto::Reason;
use warren_proto::reason::Refusal;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Largest request; a P-256 one has some 300 bytes.
const MAX_REQUEST: usize = 4 << 10;
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// The P-256 public key of a request whose own signature holds.
#[derive(Debug, Clone)]
pub struct RequesterKey {
    pub(super) key: SubjectPublicKeyInfo,
    spki: Vec<u8>,
    point: Vec<u8>,
}

impl RequesterKey {
    /// Takes the key out of a PKCS#10 request (DER, no trailing bytes, ECDSA P-256 with SHA-256) and checks the
    /// request's signature by it.
    ///
    /// # Errors
    /// [`Reason::CsrMalformed`], or [`Reason::PossessionUnproven`] when the signature does not hold.
    pub fn from_csr(der: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: &str| {
            Refusal::new(Reason::CsrMalformed, format!("csr: {what}"))
                .hint("send a PKCS#10 request by an ECDSA P-256 key, signed with SHA-256")
        };
        if der.len() > MAX_REQUEST {
            return Err(malformed("over 4096 bytes"));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| malformed("not a DER PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        if csr.signature_algorithm.algorithm.as_bytes() != ECDSA_WITH_SHA256 {
            return Err(malformed("signed with another algorithm than ECDSA with SHA-256"));
        }
        let info = &csr.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| malformed("unknown key type"))?;
        if !key.algorithm().eq(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(malformed("the key is not of the curve P-256"));
        }
        let checked =
            Self { key, spki: info.subject_pki.raw.to_vec(), point: info.subject_pki.subject_public_key.data.to_vec() };
        checked.verify(info.raw, &csr.signature_value.data)?;
        Ok(checked)
    }

    /// A key that nobody holds: its private half is gone when this returns. For the certificate of a plain device, which
    /// speaks WireGuard alone and proves possession of no other key.
    ///
    /// # Errors
    /// [`Reason::Internal`] when no key can be made.
    pub fn of_nobody() -> Result<Self, Refusal> {
        let failed = |error: rcgen::Error| Refusal::new(Reason::Internal, format!("making a key: {error}"));
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let spki = pair.subject_public_key_info();
        let key = SubjectPublicKeyInfo::from_der(&spki).map_err(failed)?;
        Ok(Self { key, spki, point: pair.public_key_raw().to_vec() })
    }

    /// Whether `signature` (ECDSA, DER) over `message` is by this key: the proof of possession.
    ///
    /// # Errors
    /// [`Reason::PossessionUnproven`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(message, signature).map_err(|_| {
            Refusal::new(Reason::PossessionUnproven, "possession: the signature by the request's key does not hold")
        })
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}
