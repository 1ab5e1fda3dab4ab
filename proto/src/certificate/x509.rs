//! The one parse of a certificate: DER to checked common fields. Everything later reads the result, so no second
//! parser can disagree with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, X509Version};

use super::oid;
use super::{KeyAlgorithm, KeyId, SerialNumber};
use crate::peer_map::MAX_CERTIFICATE;
use crate::reason::{Reason, Refusal};
use crate::{SpiffeId, UnixTime};

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const CURVE_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const CURVE_P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

/// Bit 0 of a key usage: digitalSignature (RFC 5280, 4.2.1.3), in x509-parser's order of bits.
const DIGITAL_SIGNATURE: u16 = 1;

/// Purposes as a set: what an extended key usage extension holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Purposes {
    pub(super) server_auth: bool,
    pub(super) client_auth: bool,
    /// Our own, in the order of the certificate.
    pub(super) own: Vec<oid::ObjectId>,
    /// Any that no profile of ours holds.
    pub(super) foreign: bool,
}

/// Subject alternative names, by kind.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) uris: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) others: usize,
}

/// What every certificate of ours has, checked, and the parts that profiles judge.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) der: Arc<[u8]>,
    pub(super) serial: SerialNumber,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    pub(super) spki: Arc<[u8]>,
    pub(super) public_key: Vec<u8>,
    pub(super) key_algorithm: KeyAlgorithm,
    pub(super) names: Names,
    /// cA and pathLenConstraint, when the extension is there.
    pub(super) basic_constraints: Option<(bool, Option<u32>)>,
    /// The bits, and whether the extension is critical.
    pub(super) key_usage: Option<(u16, bool)>,
    pub(super) purposes: Option<Purposes>,
    pub(super) subject_key_id: Option<KeyId>,
    pub(super) authority_key_id: Option<KeyId>,
    pub(super) binding: Option<Vec<u8>>,
    pub(super) mesh_issuing: bool,
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::CertificateMalformed, detail)
}

fn profile(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::CertificateProfile, detail)
}

/// The serial number of any X.509 certificate, of whatever profile and whoever issued it. Nothing else of it is judged: it is
/// what a foreign certificate is looked for by where issuances are written down.
///
/// # Errors
/// [`Reason::RecordTooLarge`], [`Reason::CertificateMalformed`].
pub fn serial_number(der: &[u8]) -> Result<SerialNumber, Refusal> {
    if der.len() > MAX_CERTIFICATE {
        let detail = format!("certificate: {} bytes, at most {MAX_CERTIFICATE} are read", der.len());
        return Err(Refusal::new(Reason::RecordTooLarge, detail));
    }
    match X509Certificate::from_der(der) {
        Ok(([], x509)) => SerialNumber::from_der(x509.raw_serial()),
        _ => Err(malformed("certificate: not one DER X.509 certificate")),
    }
}

impl Parsed {
    /// Parses one certificate within its size limit and checks what holds for every kind: version 3, no trailing
    /// bytes, algorithms, serial number, dates, no extension twice, no unknown critical extension.
    pub(super) fn from_der(der: &[u8]) -> Result<Self, Refusal> {
        if der.len() > MAX_CERTIFICATE {
            return Err(Refusal::new(
                Reason::RecordTooLarge,
                format!("certificate: {} bytes, at most {MAX_CERTIFICATE} are accepted", der.len()),
            ));
        }
        let (rest, x509) =
            X509Certificate::from_der(der).map_err(|_| malformed("certificate: not a DER X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(malformed(format!("certificate: {} bytes follow it", rest.len())));
        }
        if x509.version() != X509Version::V3 {
            return Err(profile("certificate: not of version 3"));
        }
        if x509.signature_algorithm != x509.tbs_certificate.signature {
            return Err(malformed("certificate: its two signature algorithms differ"));
        }
        check_signature_algorithm(&x509.signature_algorithm)?;
        let spki = x509.public_key();
        let mut parsed = Self {
            der: der.into(),
            serial: SerialNumber::from_der(x509.raw_serial())?,
            not_before: moment(x509.validity().not_before.timestamp(), "notBefore")?,
            not_after: moment(x509.validity().not_after.timestamp(), "notAfter")?,
            spki: spki.raw.into(),
            public_key: spki.subject_public_key.data.to_vec(),
            key_algorithm: key_algorithm(&spki.algorithm)?,
            names: Names::default(),
            basic_constraints: None,
            key_usage: None,
            purposes: None,
            subject_key_id: None,
            authority_key_id: None,
            binding: None,
            mesh_issuing: false,
        };
        let mut seen = Vec::with_capacity(x509.extensions().len());
        for extension in x509.extensions() {
            let id = extension.oid.as_bytes();
            if seen.contains(&id) {
                return Err(profile(format!("extension {} stands twice", extension.oid)));
            }
            seen.push(id);
            parsed.take(extension)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, extension: &X509Extension<'_>) -> Result<(), Refusal> {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                self.basic_constraints = Some((constraints.ca, constraints.path_len_constraint));
            }
            ParsedExtension::KeyUsage(usage) => self.key_usage = Some((usage.flags, extension.critical)),
            ParsedExtension::ExtendedKeyUsage(usage) => self.purposes = Some(Purposes::from_extension(usage)),
            ParsedExtension::SubjectAlternativeName(names) => {
                self.names = Names::from_general_names(&names.general_names)?;
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(KeyId::new(id.0)?),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| KeyId::new(id.0)).transpose()?;
            }
            ParsedExtension::CertificatePolicies(policies) => {
                self.mesh_issuing = policies.iter().any(|policy| policy.policy_id.as_bytes() == oid::MESH_ISSUING.der);
            }
            // The path validation reads and applies them; parsing them here shows that they are well-formed.
            ParsedExtension::NameConstraints(_) => {}
            ParsedExtension::ParseError { .. } => {
                return Err(malformed(format!("extension {} does not parse", extension.oid)));
            }
            _ if extension.oid.as_bytes() == oid::TUNNEL_BINDING.der => {
                if extension.critical {
                    return Err(profile("the tunnel binding is marked critical"));
                }
                self.binding = Some(extension.value.to_vec());
            }
            _ if extension.critical => {
                return Err(profile(format!("critical extension {} is not known", extension.oid)));
            }
            _ => {}
        }
        Ok(())
    }

    /// The one URI name as a SPIFFE ID; `with_addresses` says whether IP names may stand beside it.
    pub(super) fn identity(&self, with_addresses: bool) -> Result<SpiffeId, Refusal> {
        let refuse = |detail: String| Refusal::new(Reason::CertificateIdentity, detail);
        let [uri] = self.names.uris.as_slice() else {
            return Err(refuse(format!(
                "subjectAltName: {} URI names, exactly one is required",
                self.names.uris.len()
            )));
        };
        if self.names.others > 0 || (!with_addresses && !self.names.addresses.is_empty()) {
            return Err(refuse("subjectAltName: names of a kind that this certificate may not carry".to_owned()));
        }
        uri.parse().map_err(|error| refuse(format!("subjectAltName: {error}")))
    }

    /// Checks that this is an end-entity certificate for signing and for exactly `purposes`.
    pub(super) fn check_leaf(&self, purposes: &Purposes) -> Result<(), Refusal> {
        match self.basic_constraints {
            Some((false, None)) => {}
            Some(_) => return Err(profile("basicConstraints: an end-entity certificate must say cA=FALSE")),
            None => return Err(profile("basicConstraints: missing; it must be present and say cA=FALSE")),
        }
        match self.key_usage {
            Some((DIGITAL_SIGNATURE, true)) => {}
            Some((DIGITAL_SIGNATURE, false)) => return Err(profile("keyUsage: it must be critical")),
            Some(_) => return Err(profile("keyUsage: it must be digitalSignature and nothing else")),
            None => return Err(profile("keyUsage: missing; it must be digitalSignature")),
        }
        if self.purposes.as_ref() != Some(purposes) {
            return Err(Refusal::new(
                Reason::CertificatePurpose,
                "extendedKeyUsage: not exactly the purposes of this kind of certificate",
            ));
        }
        if self.mesh_issuing {
            return Err(profile("certificatePolicies: an end-entity certificate carries the issuing mark"));
        }
        Ok(())
    }
}

impl Purposes {
    pub(super) fn of(server_auth: bool, client_auth: bool, own: oid::ObjectId) -> Self {
        Self { server_auth, client_auth, own: vec![own], foreign: false }
    }

    /// What any X.509-SVID is for (SPIFFE X509-SVID, 4.4): TLS, on either side.
    pub(super) fn ordinary() -> Self {
        Self { server_auth: true, client_auth: true, own: Vec::new(), foreign: false }
    }

    fn from_extension(usage: &ExtendedKeyUsage<'_>) -> Self {
        const OWN: [oid::ObjectId; 4] = [oid::MESH_TUNNEL, oid::NODE, oid::COORDINATOR, oid::MANIFEST_SIGNER];
        let known = |id: &x509_parser::der_parser::oid::Oid<'_>| OWN.into_iter().find(|own| own.der == id.as_bytes());
        Self {
            server_auth: usage.server_auth,
            client_auth: usage.client_auth,
            own: usage.other.iter().filter_map(known).collect(),
            foreign: usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || usage.other.iter().any(|id| known(id).is_none()),
        }
    }
}

impl Names {
    fn from_general_names(names: &[GeneralName<'_>]) -> Result<Self, Refusal> {
        let mut sorted = Self::default();
        for name in names {
            match name {
                GeneralName::URI(uri) => sorted.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => sorted.addresses.push(address(bytes)?),
                _ => sorted.others += 1,
            }
        }
        Ok(sorted)
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, Refusal> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(IpAddr::V6(Ipv6Addr::from(octets))),
        Err(_) => Err(malformed(format!("subjectAltName: an IP address of {} bytes", bytes.len()))),
    }
}

fn moment(seconds: i64, field: &str) -> Result<UnixTime, Refusal> {
    u64::try_from(seconds).map(UnixTime).map_err(|_| malformed(format!("{field}: before 1970")))
}

fn check_signature_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> Result<(), Refusal> {
    match algorithm.algorithm.as_bytes() {
        ECDSA_SHA256 | ECDSA_SHA384 | ED25519 if algorithm.parameters.is_none() => Ok(()),
        _ => Err(Refusal::new(
            Reason::CertificateAlgorithm,
            format!("signature algorithm {} is not accepted", algorithm.algorithm),
        )
        .hint("ECDSA with SHA-256 or SHA-384 and Ed25519 are")),
    }
}

fn key_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> Result<KeyAlgorithm, Refusal> {
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let known = match (algorithm.algorithm.as_bytes(), curve.as_ref().map(|curve| curve.as_bytes())) {
        (EC_PUBLIC_KEY, Some(CURVE_P256)) => Some(KeyAlgorithm::P256),
        (EC_PUBLIC_KEY, Some(CURVE_P384)) => Some(KeyAlgorithm::P384),
        (ED25519, None) if algorithm.parameters.is_none() => Some(KeyAlgorithm::Ed25519),
        _ => None,
    };
    known.ok_or_else(|| {
        Refusal::new(
            Reason::CertificateAlgorithm,
            format!("public key algorithm {} is not accepted", algorithm.algorithm),
        )
        .hint("P-256, P-384 and Ed25519 keys are")
    })
}
