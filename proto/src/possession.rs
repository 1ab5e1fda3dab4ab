//! Proofs that whoever asks for a certificate holds the private keys, bound to one connection.
//!
//! Both proofs cover a fresh challenge of the coordinator and the TLS exporter (RFC 9266's idea: a value that
//! only the two ends of this very connection can compute), so that a proof relayed from another connection is
//! worthless. A P-256 key signs; an X25519 key, which cannot sign, shows that it can agree with the challenge's
//! ephemeral key.
//!
//! Only the inputs and the X25519 proof are here. Signing and verifying ECDSA is each end's own business.

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::reason::{Reason, Refusal};
use crate::wire;

/// Label of the TLS exporter that proofs are bound to; the context is empty, the length 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-warren-possession-v1";
/// Bytes of exporter, nonce and keys.
pub const LENGTH: usize = 32;

const ENROL: &[u8] = b"warren enrol v1";
const ISSUE: &[u8] = b"warren issue v1";
const CERTIFICATE_EVIDENCE: &[u8] = b"warren certificate evidence v1";
const TUNNEL_KEY: &[u8] = b"warren dh-pop v1";

/// A challenge whose fields have the right lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Random, used once.
    pub nonce: [u8; LENGTH],
    /// Public half of the coordinator's one-time X25519 key.
    pub ephemeral_x25519: [u8; LENGTH],
}

impl TryFrom<&wire::Challenge> for Challenge {
    type Error = Refusal;

    fn try_from(raw: &wire::Challenge) -> Result<Self, Refusal> {
        let field = |bytes: &[u8], name: &str| {
            <[u8; LENGTH]>::try_from(bytes)
                .map_err(|_| Refusal::new(Reason::FrameMalformed, format!("challenge.{name} is not 32 bytes long")))
        };
        Ok(Self {
            nonce: field(&raw.nonce, "nonce")?,
            ephemeral_x25519: field(&raw.ephemeral_x25519, "ephemeral_x25519")?,
        })
    }
}

impl From<&Challenge> for wire::Challenge {
    fn from(challenge: &Challenge) -> Self {
        Self { nonce: challenge.nonce.to_vec(), ephemeral_x25519: challenge.ephemeral_x25519.to_vec() }
    }
}

/// What the CSR's key signs to enrol.
#[must_use]
pub fn enrol_input(nonce: &[u8; LENGTH], exporter: &[u8; LENGTH], csr: &[u8]) -> Vec<u8> {
    signature_input(ENROL, nonce, exporter, csr)
}

/// What the CSR's key signs to be issued a certificate over the control link.
#[must_use]
pub fn issue_input(nonce: &[u8; LENGTH], exporter: &[u8; LENGTH], csr: &[u8]) -> Vec<u8> {
    signature_input(ISSUE, nonce, exporter, csr)
}

/// What the key of a certificate of another authority signs to enrol by that certificate.
#[must_use]
pub fn certificate_evidence_input(nonce: &[u8; LENGTH], exporter: &[u8; LENGTH], csr: &[u8]) -> Vec<u8> {
    signature_input(CERTIFICATE_EVIDENCE, nonce, exporter, csr)
}

fn signature_input(purpose: &[u8], nonce: &[u8; LENGTH], exporter: &[u8; LENGTH], csr: &[u8]) -> Vec<u8> {
    [purpose, nonce, exporter, Sha256::digest(csr).as_slice()].concat()
}

/// What a tunnel key's proof covers beside the challenge.
#[derive(Debug, Clone, Copy)]
pub struct TunnelKeyClaim<'a> {
    /// TLS exporter of the connection.
    pub exporter: &'a [u8; LENGTH],
    /// The request's PKCS#10, as sent.
    pub csr: &'a [u8],
    /// `<namespace>/<name>`, as sent.
    pub workload: &'a str,
    /// The X25519 public key claimed.
    pub tunnel_key: &'a [u8; LENGTH],
}

/// The proof that a tunnel key's private half took part: `shared` is X25519 of the tunnel key and the
/// challenge's ephemeral key. The caller refuses a `shared` of all zeros (a low-order key).
#[must_use]
pub fn tunnel_key_proof(shared: &[u8; LENGTH], nonce: &[u8; LENGTH], claim: &TunnelKeyClaim<'_>) -> [u8; LENGTH] {
    tunnel_key_mac(shared, nonce, claim).finalize().into_bytes().into()
}

/// Compares `proof` with the right one in constant time.
#[must_use]
pub fn tunnel_key_proof_holds(
    shared: &[u8; LENGTH],
    nonce: &[u8; LENGTH],
    claim: &TunnelKeyClaim<'_>,
    proof: &[u8],
) -> bool {
    tunnel_key_mac(shared, nonce, claim).verify_slice(proof).is_ok()
}

fn tunnel_key_mac(shared: &[u8; LENGTH], nonce: &[u8; LENGTH], claim: &TunnelKeyClaim<'_>) -> Hmac<Sha256> {
    let mut key = zeroize::Zeroizing::new([0; 64]);
    // One block of HMAC-SHA-256 takes a key of 64 bytes as it is, and HKDF gives up to 8160: neither can fail.
    let _ = Hkdf::<Sha256>::new(None, shared).expand(TUNNEL_KEY, key.as_mut_slice());
    let mut mac = Hmac::<Sha256>::new((&*key).into());
    mac.update(nonce);
    mac.update(claim.exporter);
    mac.update(&Sha256::digest(claim.csr));
    mac.update(claim.workload.as_bytes());
    mac.update(claim.tunnel_key);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_key_proof_holds_for_its_own_claim_only() {
        let claim = TunnelKeyClaim { exporter: &[1; 32], csr: b"csr", workload: "shop/web", tunnel_key: &[2; 32] };
        let proof = tunnel_key_proof(&[3; 32], &[4; 32], &claim);
        assert!(tunnel_key_proof_holds(&[3; 32], &[4; 32], &claim, &proof));
        let others = [
            TunnelKeyClaim { exporter: &[9; 32], ..claim },
            TunnelKeyClaim { csr: b"other", ..claim },
            TunnelKeyClaim { workload: "shop/wec", ..claim },
            TunnelKeyClaim { tunnel_key: &[9; 32], ..claim },
        ];
        for other in others {
            assert!(!tunnel_key_proof_holds(&[3; 32], &[4; 32], &other, &proof), "{other:?}");
        }
        assert!(!tunnel_key_proof_holds(&[9; 32], &[4; 32], &claim, &proof));
        assert!(!tunnel_key_proof_holds(&[3; 32], &[9; 32], &claim, &proof));
        assert!(!tunnel_key_proof_holds(&[3; 32], &[4; 32], &claim, &proof[..31]));
        assert!(!tunnel_key_proof_holds(&[3; 32], &[4; 32], &claim, &[]));
    }

    #[test]
    fn enrolment_issuance_and_evidence_cannot_be_taken_for_each_other() {
        let inputs = [enrol_input, issue_input, certificate_evidence_input].map(|of| of(&[1; 32], &[2; 32], b"csr"));
        let different: std::collections::BTreeSet<_> = inputs.iter().collect();
        assert_eq!(different.len(), inputs.len());
    }
}
