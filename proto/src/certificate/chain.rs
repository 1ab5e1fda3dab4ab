//! A certificate with the intermediates above it, within limits, before anything in it is believed.

use super::MAX_CHAIN_BYTES;
use crate::peer_map::{MAX_CERTIFICATE, MAX_CHAIN};
use crate::reason::{Reason, Refusal};
use crate::wire;

/// DER certificates, leaf first, root left out: 1 to [`MAX_CHAIN`] of them, each and together within their size
/// limits. Their content is unchecked.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    leaf: &'a [u8],
    intermediates: [Option<&'a [u8]>; MAX_CHAIN - 1],
}

impl<'a> Chain<'a> {
    /// Checks number and sizes; the cost is bounded whatever the number of certificates.
    pub fn new(certificates: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Refusal> {
        let mut certificates = certificates.into_iter();
        let Some(leaf) = certificates.next() else {
            return Err(Refusal::new(Reason::CertificateMalformed, "certificate chain: empty"));
        };
        let mut chain = Self { leaf, intermediates: [None; MAX_CHAIN - 1] };
        let mut total = leaf.len();
        let mut largest = leaf.len();
        for (slot, certificate) in chain.intermediates.iter_mut().zip(certificates.by_ref()) {
            total += certificate.len();
            largest = largest.max(certificate.len());
            *slot = Some(certificate);
        }
        let too_large = |detail: String| Err(Refusal::new(Reason::RecordTooLarge, detail));
        if certificates.next().is_some() {
            return too_large(format!("certificate chain: more than {MAX_CHAIN} certificates"));
        }
        if largest > MAX_CERTIFICATE {
            return too_large(format!("certificate chain: a certificate of over {MAX_CERTIFICATE} bytes"));
        }
        if total > MAX_CHAIN_BYTES {
            return too_large(format!("certificate chain: {total} bytes, at most {MAX_CHAIN_BYTES} are accepted"));
        }
        Ok(chain)
    }

    /// From a message.
    pub fn from_wire(raw: &'a wire::CertificateChain) -> Result<Self, Refusal> {
        Self::new(raw.certificates.iter().map(AsRef::as_ref))
    }

    /// The end-entity certificate, DER.
    #[must_use]
    pub fn leaf(&self) -> &'a [u8] {
        self.leaf
    }

    /// What stands above it, nearest first as sent.
    pub fn intermediates(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.intermediates.into_iter().flatten()
    }
}
