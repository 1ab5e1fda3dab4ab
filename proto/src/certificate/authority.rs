//! Certificates that sign others: roots and issuing intermediates.

use std::fmt;
use std::sync::Arc;

use super::x509::Parsed;
use super::{KeyId, SerialNumber};
use crate::reason::{Reason, Refusal};
use crate::spiffe::Subject;
use crate::{TrustDomain, UnixTime};

/// keyCertSign and the two bits that may stand beside it (RFC 5280, 4.2.1.3), in x509-parser's order of bits.
const CERT_SIGN: u16 = 1 << 5;
const CERT_SIGN_AND_RELATED: u16 = CERT_SIGN | (1 << 6) | 1;

/// A checked CA certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityCertificate {
    der: Arc<[u8]>,
    trust_domain: Option<TrustDomain>,
    key_id: KeyId,
    serial: SerialNumber,
    not_before: UnixTime,
    not_after: UnixTime,
    spki: Arc<[u8]>,
    path_length: Option<u32>,
    mesh_issuing: bool,
}

impl AuthorityCertificate {
    /// Parses and checks the profile: cA=TRUE, keyCertSign, a subject key identifier, and where it has a URI
    /// name, that of a trust domain. Signatures, dates, trust and the purposes that it confines its certificates
    /// to are not judged.
    pub fn parse(der: &[u8]) -> Result<Self, Refusal> {
        let refuse = |detail: &str| Refusal::new(Reason::CertificateProfile, format!("authority: {detail}"));
        let parsed = Parsed::from_der(der)?;
        let Some((true, path_length)) = parsed.basic_constraints else {
            return Err(refuse("basicConstraints do not say cA=TRUE"));
        };
        if !parsed.key_usage.is_some_and(|(bits, _)| bits & CERT_SIGN != 0 && bits & !CERT_SIGN_AND_RELATED == 0) {
            return Err(refuse("keyUsage does not hold keyCertSign, or holds more than an authority needs"));
        }
        let trust_domain = if parsed.names.uris.is_empty() {
            None
        } else {
            let identity = parsed.identity(false)?;
            match identity.subject() {
                Subject::TrustDomain => Some(identity.trust_domain().clone()),
                _ => return Err(refuse("its SPIFFE ID has a path")),
            }
        };
        let Some(key_id) = parsed.subject_key_id else {
            return Err(refuse("subjectKeyIdentifier missing"));
        };
        Ok(Self {
            der: parsed.der,
            trust_domain,
            key_id,
            serial: parsed.serial,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            spki: parsed.spki,
            path_length,
            mesh_issuing: parsed.mesh_issuing,
        })
    }

    /// The certificate as received.
    #[must_use]
    pub fn der(&self) -> &Arc<[u8]> {
        &self.der
    }

    /// The trust domain that it names itself, if it does.
    #[must_use]
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }

    /// Its subject key identifier: what revocations name an issuer by.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// Unique under its issuer.
    #[must_use]
    pub fn serial(&self) -> &SerialNumber {
        &self.serial
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

    /// Whether it carries the mark of a mesh-issuing intermediate and may sign no further authority.
    #[must_use]
    pub fn issues_for_the_mesh(&self) -> bool {
        self.mesh_issuing && self.path_length == Some(0)
    }
}

impl fmt::Debug for AuthorityCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityCertificate")
            .field("key_id", &self.key_id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
