//! The roots of a trust domain: what a node was given at enrolment and what signed manifests replace it with.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::certificate::AuthorityCertificate;
use crate::reason::{Reason, Refusal};
use crate::{TrustDomain, UnixTime, wire};

/// Most roots in a bundle: a rotation needs two, the rest is room for crossed rotations.
pub const MAX_ROOTS: usize = 8;

/// A checked bundle: 1 to [`MAX_ROOTS`] authority certificates of one trust domain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    roots: Arc<[Root]>,
    renew_before: UnixTime,
}

#[derive(Debug)]
struct Root {
    certificate: AuthorityCertificate,
    anchor: TrustAnchor<'static>,
}

impl TrustBundle {
    /// Checks each root's profile and that none names another trust domain.
    pub fn new<'a>(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, Refusal> {
        let mut checked = Vec::new();
        for (index, der) in roots.into_iter().enumerate() {
            if index == MAX_ROOTS {
                return Err(Refusal::new(Reason::RecordTooLarge, format!("bundle.roots: more than {MAX_ROOTS}")));
            }
            let root = Root::new(der, &trust_domain).map_err(|refusal| Refusal {
                detail: format!("bundle.roots[{index}]: {}", refusal.detail),
                ..refusal
            })?;
            checked.push(root);
        }
        if checked.is_empty() {
            return Err(Refusal::new(Reason::CertificateMalformed, "bundle.roots: empty"));
        }
        Ok(Self { trust_domain, sequence, roots: checked.into(), renew_before: UnixTime(0) })
    }

    /// From a message.
    pub fn from_wire(raw: &wire::TrustBundle) -> Result<Self, Refusal> {
        let trust_domain = raw
            .trust_domain
            .parse()
            .map_err(|error| Refusal::new(Reason::InvalidField, format!("bundle.trust_domain: {error}")))?;
        let bundle = Self::new(trust_domain, raw.sequence, raw.roots.iter().map(AsRef::as_ref))?;
        Ok(bundle.renewing_before(UnixTime(raw.renew_before)))
    }

    /// The same roots, with the word that every certificate issued at `moment` or before is to be renewed now.
    #[must_use]
    pub fn renewing_before(self, moment: UnixTime) -> Self {
        Self { renew_before: moment, ..self }
    }

    /// As sent over the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::TrustBundle {
        wire::TrustBundle {
            trust_domain: self.trust_domain.as_str().to_owned(),
            sequence: self.sequence,
            roots: self.roots().map(|root| root.der().to_vec()).collect(),
            renew_before: self.renew_before.0,
        }
    }

    /// Whose roots these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with every change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Certificates issued at this moment or before are to be renewed now; 1970 for none.
    #[must_use]
    pub fn renew_before(&self) -> UnixTime {
        self.renew_before
    }

    /// The roots.
    pub fn roots(&self) -> impl Iterator<Item = &AuthorityCertificate> {
        self.roots.iter().map(|root| &root.certificate)
    }

    pub(crate) fn anchors(&self) -> impl Iterator<Item = (&AuthorityCertificate, &TrustAnchor<'static>)> {
        self.roots.iter().map(|root| (&root.certificate, &root.anchor))
    }
}

impl Root {
    fn new(der: &[u8], trust_domain: &TrustDomain) -> Result<Self, Refusal> {
        let certificate = AuthorityCertificate::parse(der)?;
        if certificate.trust_domain().is_some_and(|named| named != trust_domain) {
            return Err(Refusal::new(Reason::WrongTrustDomain, format!("the root does not belong to {trust_domain}")));
        }
        let anchor = webpki::anchor_from_trusted_cert(&CertificateDer::from(der))
            .map_err(|error| Refusal::new(Reason::CertificateMalformed, format!("the root does not parse: {error}")))?
            .to_owned();
        Ok(Self { certificate, anchor })
    }
}

#[cfg(test)]
mod tests;
