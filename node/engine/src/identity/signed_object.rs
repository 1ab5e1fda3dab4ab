//! Manifests and heartbeats: whose key signed them, and that a root this node holds certified that key.

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use warren_proto::certificate::{Chain, SignerCertificate};
use warren_proto::control_trust::{Purpose, anchor};
use warren_proto::peer_map::signing_input;
use warren_proto::reason::Refusal;
use warren_proto::{Reason, TrustBundle, UnixTime, wire};

/// The body of a signed object whose signature and signer hold. What it says is still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBody {
    body: Bytes,
    signer: SignerCertificate,
}

impl VerifiedBody {
    /// The bytes that were signed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.body
    }

    /// Who signed them.
    #[must_use]
    pub fn signer(&self) -> &SignerCertificate {
        &self.signer
    }
}

/// Checks an object's signer against the roots of `bundle`, then its signature, strictly: one signature has one
/// encoding.
///
/// # Errors
/// [`Reason::ManifestSigner`] when the signer is not certified, with the cause in the detail;
/// [`Reason::ManifestSignature`] when the signature does not hold.
pub fn verify_signed_object(
    object: &wire::SignedObject,
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<VerifiedBody, Refusal> {
    let signer = certified_signer(object, bundle, now).map_err(|cause| {
        Refusal::new(Reason::ManifestSigner, format!("signer: {} ({})", cause.detail, cause.reason)).hint(cause.hint)
    })?;
    let refuse = |what: &str| Refusal::new(Reason::ManifestSignature, format!("signature: {what}"));
    let signature = Signature::from_slice(&object.signature).map_err(|_| refuse("not 64 bytes long"))?;
    let key = VerifyingKey::from_bytes(signer.key()).map_err(|_| refuse("the signer's key is not a point"))?;
    key.verify_strict(&signing_input(&object.body), &signature).map_err(|_| refuse("it does not hold"))?;
    Ok(VerifiedBody { body: Bytes::copy_from_slice(&object.body), signer })
}

fn certified_signer(
    object: &wire::SignedObject,
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<SignerCertificate, Refusal> {
    let Some(raw) = &object.signer else {
        return Err(Refusal::new(Reason::CertificateMalformed, "missing"));
    };
    let chain = Chain::from_wire(raw)?;
    let signer = SignerCertificate::parse(chain.leaf())?;
    anchor(signer.leaf(), chain, bundle, Purpose::ManifestSigner, now)?;
    Ok(signer)
}
