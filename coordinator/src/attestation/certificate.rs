//! Certificates of another authority, SPIFFE SVIDs among them: a chain to a configured root, and a signature by the leaf's
//! key over this very connection and certificate request, so that neither the certificate nor the proof is of use to whoever
//! sees it.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime as TlsTime};
use sha2::{Digest, Sha256};
use warren_proto::admin::{CertificateIssuer, Selector};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{SpiffeId, TrustDomain, UnixTime};
use webpki::aws_lc_rs as signatures;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::json::malformed;
use super::{Findings, Rejected};

/// Most certificates of a chain, the leaf counted.
const MAX_CHAIN: usize = 4;
/// Largest certificate, in bytes.
const MAX_CERTIFICATE: usize = 6 * 1024;
/// Largest signature: of an RSA key of 4096 bits.
const MAX_SIGNATURE: usize = 512;
/// Most roots of one attestor.
const MAX_ROOTS: usize = 8;
/// Largest PEM text of roots: with the rest it must fit a value of the store.
pub(super) const MAX_PEM: usize = 12 * 1024;
/// Largest RSA key: the cost of verifying grows with its square.
const MAX_RSA: usize = 4096;

/// How certificates may be signed.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 8] = [
    signatures::ECDSA_P256_SHA256,
    signatures::ECDSA_P256_SHA384,
    signatures::ECDSA_P384_SHA256,
    signatures::ECDSA_P384_SHA384,
    signatures::ED25519,
    signatures::RSA_PKCS1_2048_8192_SHA256,
    signatures::RSA_PKCS1_2048_8192_SHA384,
    signatures::RSA_PKCS1_2048_8192_SHA512,
];

/// How the proof of possession may be signed: TLS 1.3's scheme (RFC 8446, 4.2.3) and what verifies it.
static SCHEMES: [(u32, &dyn SignatureVerificationAlgorithm); 4] = [
    (0x0403, signatures::ECDSA_P256_SHA256),
    (0x0503, signatures::ECDSA_P384_SHA384),
    (0x0804, signatures::RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
    (0x0807, signatures::ED25519),
];

/// A certificate and the proof that its key is at hand, as they came.
#[derive(Debug)]
pub struct CertificateProof {
    /// DER, leaf first, root left out.
    pub chain: Vec<Vec<u8>>,
    /// A TLS 1.3 signature scheme.
    pub scheme: u32,
    /// By the leaf's key, over `message`.
    pub signature: Vec<u8>,
    /// What must be signed: challenge, connection, certificate request.
    pub message: Vec<u8>,
}

/// Another authority as an attestor knows it.
#[derive(Debug)]
pub(super) struct Authority {
    roots: Vec<Root>,
    trust_domain: Option<TrustDomain>,
}

#[derive(Debug)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
}

/// The certificates of a PEM text, 1 to `most` of them.
pub(super) fn certificates(field: &str, pem: &str, most: usize) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    use rustls_pki_types::pem::PemObject;
    let invalid = |detail: String| Refusal::new(Reason::InvalidField, format!("{field}: {detail}"));
    if pem.len() > MAX_PEM {
        return Err(invalid(format!("{} bytes, at most {MAX_PEM}", pem.len())));
    }
    if pem.contains("PRIVATE KEY") {
        return Err(invalid("it holds a private key: give certificates only".to_owned()));
    }
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("not PEM: {error}")))?;
    if !(1..=most).contains(&found.len()) {
        return Err(invalid(format!("{} certificates, expected 1 to {most}", found.len())));
    }
    Ok(found)
}

impl Authority {
    pub(super) fn new(settings: &CertificateIssuer) -> Result<Self, Refusal> {
        let trust_domain = settings
            .trust_domain
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|error| Refusal::new(Reason::InvalidField, format!("trust_domain: {error}")))?;
        let mut roots = Vec::new();
        for (index, der) in certificates("roots", &settings.roots, MAX_ROOTS)?.into_iter().enumerate() {
            let invalid =
                |what: &str| Refusal::new(Reason::InvalidField, format!("roots: certificate {}: {what}", index + 1));
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| invalid("not an X.509 certificate"))?;
            // A leaf as a root would vouch for what it never could sign.
            if !matches!(parsed.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca) {
                return Err(invalid("not a certificate authority's (basicConstraints cA)"));
            }
            let anchor =
                webpki::anchor_from_trusted_cert(&der).map_err(|_| invalid("not usable as a root"))?.to_owned();
            roots.push(Root { der, anchor });
        }
        Ok(Self { roots, trust_domain })
    }

    /// Refuses when one of `own`, DER, is among the roots.
    pub(super) fn refuse_roots<'r>(&self, own: impl IntoIterator<Item = &'r [u8]>) -> Result<(), Refusal> {
        for own in own {
            if self.roots.iter().any(|root| root.der.as_ref() == own) {
                return Err(Refusal::new(Reason::InvalidField, "roots: this mesh's own root vouches for nobody")
                    .hint("what a node of this mesh holds must not make further nodes"));
            }
        }
        Ok(())
    }

    pub(super) fn attest(&self, proof: &CertificateProof, now: UnixTime) -> Result<Findings, Rejected> {
        let (leaf, intermediates) = within_limits(proof)?;
        let root = self.anchored(&leaf, &intermediates, proof, now)?;
        // From here on the certificate is known to be the authority's, and its key to be at hand.
        let names = names(&leaf);
        let subject = names.as_ref().ok().and_then(Names::shown).unwrap_or_default();
        let rejected = |refusal| Rejected { refusal, subject: Some(subject.clone()) };
        let names = names.map_err(rejected)?;
        self.check_domain(&names).map_err(rejected)?;
        let mut facts = vec![Selector::text("x509:root-sha256", hex::encode(Sha256::digest(root)))];
        facts.extend(names.spiffe.as_ref().map(|id| Selector::text("x509:spiffe-id", id.to_string())));
        facts.extend(names.dns.iter().map(|name| Selector::text("x509:dns", name)));
        Ok(Findings { facts, subject, unique: vec![names.key], until: UnixTime(0) })
    }

    /// The root that the chain ends in, after the proof was found to hold.
    fn anchored(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        proof: &CertificateProof,
        now: UnixTime,
    ) -> Result<&[u8], Refusal> {
        let parsed = EndEntityCert::try_from(leaf).map_err(refused)?;
        let time = TlsTime::since_unix_epoch(std::time::Duration::from_secs(now.0));
        let mut first = None;
        let mut found = None;
        // One root at a time, so that it is known which of them it was.
        for root in &self.roots {
            let anchors = std::slice::from_ref(&root.anchor);
            let usage = KeyUsage::client_auth();
            match parsed.verify_for_usage(&ALGORITHMS, anchors, intermediates, time, usage, None, None) {
                Ok(_) => {
                    found = Some(root);
                    break;
                }
                // The most telling refusal: the chain that does end in a root, and is only out of date.
                Err(error) => match refused(error) {
                    refusal if refusal.reason == Reason::EvidenceSignature => drop(first.get_or_insert(refusal)),
                    refusal => first = Some(refusal),
                },
            }
        }
        let root = found.ok_or_else(|| first.unwrap_or_else(|| malformed("chain: no root to judge by")))?;
        let (_, algorithm) = SCHEMES.iter().find(|(scheme, _)| *scheme == proof.scheme).ok_or_else(|| {
            Refusal::new(Reason::EvidenceAlgorithm, format!("scheme: {:#06x} is not accepted", proof.scheme))
                .hint("keys of RSA (2048 to 4096 bits), P-256, P-384 and Ed25519 are")
        })?;
        parsed.verify_signature(*algorithm, &proof.message, &proof.signature).map_err(|_| {
            Refusal::new(Reason::PossessionUnproven, "signature: not by the certificate's key over this connection")
        })?;
        Ok(root.der.as_ref())
    }

    fn check_domain(&self, names: &Names) -> Result<(), Refusal> {
        let Some(expected) = &self.trust_domain else { return Ok(()) };
        match &names.spiffe {
            Some(id) if id.trust_domain() == expected => Ok(()),
            Some(id) => Err(Refusal::new(
                Reason::EvidenceIssuer,
                format!("chain[0]: {id} is not of the trust domain {expected}"),
            )),
            None => Err(Refusal::new(Reason::EvidenceIssuer, format!("chain[0]: no SPIFFE ID of {expected}"))),
        }
    }
}

/// The chain, when its number, sizes and RSA keys are such that judging it is cheap.
fn within_limits(proof: &CertificateProof) -> Result<(CertificateDer<'_>, Vec<CertificateDer<'_>>), Refusal> {
    if !(1..=MAX_CHAIN).contains(&proof.chain.len()) {
        return Err(malformed(format!("chain: {} certificates, expected 1 to {MAX_CHAIN}", proof.chain.len())));
    }
    if proof.signature.len() > MAX_SIGNATURE {
        return Err(malformed(format!("signature: over {MAX_SIGNATURE} bytes")));
    }
    let mut all = Vec::with_capacity(proof.chain.len());
    for (index, der) in proof.chain.iter().enumerate() {
        if der.len() > MAX_CERTIFICATE {
            return Err(malformed(format!("chain[{index}]: over {MAX_CERTIFICATE} bytes")));
        }
        let parsed = parse(der).ok_or_else(|| malformed(format!("chain[{index}]: not a DER X.509 certificate")))?;
        if let Ok(PublicKey::RSA(key)) = parsed.public_key().parsed()
            && key.key_size() > MAX_RSA
        {
            let detail = format!("chain[{index}]: an RSA key of over {MAX_RSA} bits");
            return Err(Refusal::new(Reason::EvidenceAlgorithm, detail));
        }
        all.push(CertificateDer::from(der.as_slice()));
    }
    let leaf = all.remove(0);
    Ok((leaf, all))
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

/// What a leaf says of its holder.
struct Names {
    spiffe: Option<SpiffeId>,
    dns: Vec<String>,
    /// SubjectPublicKeyInfo, DER: what makes one node.
    key: Vec<u8>,
}

impl Names {
    fn shown(&self) -> Option<String> {
        self.spiffe
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| self.dns.first().cloned())
            .map(|text| super::printable(&text))
    }
}

/// The names of a leaf, after what the path validation leaves unjudged: key usage, and that there is one URI at most.
fn names(leaf: &[u8]) -> Result<Names, Refusal> {
    let leaf = parse(leaf).ok_or_else(|| malformed("chain[0]: not a DER X.509 certificate"))?;
    let unreadable = |_| malformed("chain[0]: an extension that stands twice or does not parse");
    if leaf.basic_constraints().map_err(unreadable)?.is_some_and(|constraints| constraints.value.ca) {
        return Err(malformed("chain[0]: a certificate authority's"));
    }
    if leaf.key_usage().map_err(unreadable)?.is_some_and(|usage| !usage.value.digital_signature()) {
        return Err(malformed("chain[0]: its key is not for signatures (keyUsage)"));
    }
    let mut names = Names { spiffe: None, dns: Vec::new(), key: leaf.public_key().raw.to_vec() };
    let mut uris = 0;
    let alternative = leaf.subject_alternative_name().map_err(unreadable)?;
    for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.dns.push(name.to_ascii_lowercase()),
            GeneralName::URI(uri) => {
                uris += 1;
                if uri.starts_with("spiffe:") {
                    let id = uri.parse().map_err(|error| malformed(format!("chain[0]: its SPIFFE ID: {error}")))?;
                    names.spiffe = Some(id);
                }
            }
            _ => {}
        }
    }
    // X509-SVID, section 2: exactly one; a reader that takes the first and one that takes the last must not differ.
    if uris > 1 {
        return Err(malformed(format!("chain[0]: {uris} URI names, at most one is accepted")));
    }
    Ok(names)
}

fn refused(error: webpki::Error) -> Refusal {
    use webpki::Error;
    let reason = match error {
        Error::CertExpired { .. } => Reason::EvidenceExpired,
        Error::CertNotValidYet { .. } => Reason::EvidenceNotYetValid,
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => Reason::EvidenceMalformed,
        _ => Reason::EvidenceSignature,
    };
    Refusal::new(reason, format!("chain: {error}"))
}
