//! The CA's credentials: made, read, renewed at half of their life.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use warren_proto::certificate::{AuthorityCertificate, CoordinatorCertificate, SignerCertificate};
use warren_proto::peer_map::signing_input;
use warren_proto::{Overlay, SpiffeId, TrustBundle, TrustDomain, UnixTime, wire};
use zeroize::Zeroizing;

use super::files::{self, CaError};
use super::template::{self, Validity};

/// The shortest lifetime of a certificate, and how long before its issuer's end issuance stops.
pub(super) const MINIMUM_LIFETIME: Duration = Duration::from_secs(5 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3652);
/// The lifetime of an issuing certificate.
pub const ISSUING_LIFETIME: Duration = DAY.saturating_mul(30);
const COORDINATOR_LIFETIME: Duration = DAY.saturating_mul(30);
/// A node that starts without the coordinator checks the last manifest's signer, so the signer outlives
/// every tunnel certificate by far.
const SIGNER_LIFETIME: Duration = DAY.saturating_mul(90);

const ROOT_CERTIFICATE: &str = "root/root.crt";
const ROOT_KEY: &str = "root/root.key";
const ISSUING: &str = "issuing.pem";
const COORDINATOR: &str = "coordinator.pem";
const SIGNER: &str = "signer.pem";

/// What certificates say about the mesh and this coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaParameters {
    /// The name that every identity begins with.
    pub trust_domain: TrustDomain,
    /// This coordinator's name, as in `spiffe://<trust-domain>/coordinator/<name>`.
    pub coordinator: String,
    /// The prefixes that the intermediate is confined to.
    pub overlay: Overlay,
}

/// A CA ready to issue. Immutable: [`Authority::renewed`] gives the next one.
pub struct Authority {
    directory: PathBuf,
    parameters: CaParameters,
    root: AuthorityCertificate,
    bundle: TrustBundle,
    issuing: AuthorityCertificate,
    issuer: Issuer<'static, KeyPair>,
    coordinator: CoordinatorCertificate,
    coordinator_key: KeyPair,
    signer: SignerCertificate,
    signer_key: ed25519_dalek::SigningKey,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("directory", &self.directory)
            .field("root", &self.root)
            .field("issuing", &self.issuing)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a root in `directory`, which must hold none, and all that hangs under it.
    ///
    /// # Errors
    /// [`CaError`], naming the file.
    pub fn init(directory: &Path, parameters: &CaParameters, now: UnixTime) -> Result<Self, CaError> {
        let certificate_path = directory.join(ROOT_CERTIFICATE);
        if certificate_path.exists() {
            return Err(CaError::AlreadyInitialised { path: certificate_path });
        }
        files::ensure_directory(directory)?;
        files::ensure_directory(&directory.join("root"))?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?;
        let validity = Validity::new(now, ROOT_LIFETIME, None);
        let certificate = template::root(&parameters.trust_domain, validity)?.self_signed(&key)?;
        // The certificate last: a directory holds a root once it is there.
        files::write(&directory.join(ROOT_KEY), &Zeroizing::new(key.serialize_pem()))?;
        files::write(&certificate_path, &certificate.pem())?;
        Self::open(directory, parameters, now)
    }

    /// Reads the CA from `directory` and issues again what is missing or past half of its life.
    ///
    /// # Errors
    /// [`CaError`], naming the file. A damaged file is refused, not replaced.
    pub fn open(directory: &Path, parameters: &CaParameters, now: UnixTime) -> Result<Self, CaError> {
        files::ensure_directory(directory)?;
        let path = directory.join(ROOT_CERTIFICATE);
        let Some(pem) = files::read(&path)? else {
            return Err(CaError::NotInitialised { path });
        };
        let damaged = |what: String| CaError::Damaged { path: path.clone(), what };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        let root = AuthorityCertificate::parse(&der).map_err(|refusal| damaged(refusal.detail))?;
        let bundle = TrustBundle::new(parameters.trust_domain.clone(), 1, [der.as_ref()])
            .map_err(|refusal| damaged(refusal.detail))?;
        if now.until(root.not_after()) < MINIMUM_LIFETIME {
            return Err(CaError::RootEnds { not_after: root.not_after() });
        }
        let workshop = Workshop { directory, parameters, root: &root, now };
        let issuing = workshop.credential(ISSUING, "the issuing certificate", &Kind::ISSUING)?;
        let coordinator = workshop.credential(COORDINATOR, "the coordinator's certificate", &Kind::COORDINATOR)?;
        let signer = workshop.credential(SIGNER, "the manifest signer's certificate", &Kind::SIGNER)?;
        let signer_key = ed25519_dalek::SigningKey::from_pkcs8_der(signer.key.serialized_der())
            .map_err(|error| CaError::Damaged { path: directory.join(SIGNER), what: error.to_string() })?;
        Ok(Self {
            directory: directory.to_owned(),
            parameters: parameters.clone(),
            bundle,
            issuer: Issuer::from_ca_cert_der(&CertificateDer::from(issuing.checked.der().as_ref()), issuing.key)?,
            issuing: issuing.checked,
            coordinator: coordinator.checked,
            coordinator_key: coordinator.key,
            signer: signer.checked,
            signer_key,
            root,
        })
    }

    /// The CA with everything issued again that is past half of its life at `now`; `None` when nothing is. Reads
    /// and writes files.
    ///
    /// # Errors
    /// [`CaError`]; this one stays usable.
    pub fn renewed(&self, now: UnixTime) -> Result<Option<Self>, CaError> {
        let due = past_half(self.issuing.not_before(), self.issuing.not_after(), now)
            || past_half(self.coordinator.leaf().not_before(), self.coordinator.leaf().not_after(), now)
            || past_half(self.signer.leaf().not_before(), self.signer.leaf().not_after(), now);
        if due { Self::open(&self.directory, &self.parameters, now).map(Some) } else { Ok(None) }
    }

    /// The roots that nodes are given.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The root, DER: what join tokens pin the hash of.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        self.root.der()
    }

    /// The root.
    #[must_use]
    pub fn root_certificate(&self) -> &AuthorityCertificate {
        &self.root
    }

    /// The issuing intermediate.
    #[must_use]
    pub fn issuer_certificate(&self) -> &AuthorityCertificate {
        &self.issuing
    }

    /// The certificate that this coordinator presents.
    #[must_use]
    pub fn coordinator_certificate(&self) -> &CoordinatorCertificate {
        &self.coordinator
    }

    /// The certificate of the key that signs manifests.
    #[must_use]
    pub fn signer_certificate(&self) -> &SignerCertificate {
        &self.signer
    }

    /// What TLS presents: leaf, then root, which a node that enrols compares with its token's pin.
    #[must_use]
    pub fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        [self.coordinator.leaf().der(), self.root.der()].map(|der| CertificateDer::from(der.to_vec())).into()
    }

    /// The private key of that leaf.
    #[must_use]
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.coordinator_key.serialize_der()))
    }

    /// Signs the body of a manifest or heartbeat.
    #[must_use]
    pub fn sign(&self, body: Vec<u8>) -> wire::SignedObject {
        let signature = self.signer_key.sign(&signing_input(&body)).to_bytes().to_vec();
        let signer = wire::CertificateChain { certificates: vec![self.signer.leaf().der().to_vec()] };
        wire::SignedObject { body, signature, signer: Some(signer) }
    }

    pub(super) fn overlay(&self) -> &Overlay {
        &self.parameters.overlay
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// What makes and reads the credentials under a root.
struct Workshop<'a> {
    directory: &'a Path,
    parameters: &'a CaParameters,
    root: &'a AuthorityCertificate,
    now: UnixTime,
}

struct Credential<C> {
    key: KeyPair,
    checked: C,
}

/// How one kind of credential is made and read.
struct Kind<C> {
    algorithm: &'static SignatureAlgorithm,
    lifetime: Duration,
    template: fn(&CaParameters, Validity) -> Result<CertificateParams, rcgen::Error>,
    check: fn(&[u8]) -> Result<C, warren_proto::reason::Refusal>,
    dates: fn(&C) -> (UnixTime, UnixTime),
    spki: fn(&C) -> &[u8],
    /// Whether the certificate says what the parameters say now.
    fits: fn(&C, &CaParameters) -> bool,
}

impl Kind<AuthorityCertificate> {
    const ISSUING: Self = Self {
        algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
        lifetime: ISSUING_LIFETIME,
        template: |parameters, validity| {
            template::intermediate(&parameters.trust_domain, &parameters.overlay, validity)
        },
        check: AuthorityCertificate::parse,
        dates: |certificate| (certificate.not_before(), certificate.not_after()),
        spki: AuthorityCertificate::spki,
        fits: |certificate, parameters| {
            certificate.issues_for_the_mesh() && certificate.trust_domain() == Some(&parameters.trust_domain)
        },
    };
}

impl Kind<CoordinatorCertificate> {
    const COORDINATOR: Self = Self {
        algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
        lifetime: COORDINATOR_LIFETIME,
        template: |parameters, validity| {
            let identity = SpiffeId::coordinator(&parameters.trust_domain, &parameters.coordinator);
            template::coordinator(&identity.map_err(|_| rcgen::Error::InvalidNameType)?, validity)
        },
        check: CoordinatorCertificate::parse,
        dates: |certificate| (certificate.leaf().not_before(), certificate.leaf().not_after()),
        spki: |certificate| certificate.leaf().spki(),
        fits: |certificate, parameters| {
            certificate.name() == parameters.coordinator
                && *certificate.leaf().identity().trust_domain() == parameters.trust_domain
        },
    };
}

impl Kind<SignerCertificate> {
    const SIGNER: Self = Self {
        algorithm: &rcgen::PKCS_ED25519,
        lifetime: SIGNER_LIFETIME,
        template: |parameters, validity| {
            let identity = SpiffeId::signer(&parameters.trust_domain, &parameters.coordinator);
            template::signer(&identity.map_err(|_| rcgen::Error::InvalidNameType)?, validity)
        },
        check: SignerCertificate::parse,
        dates: |certificate| (certificate.leaf().not_before(), certificate.leaf().not_after()),
        spki: |certificate| certificate.leaf().spki(),
        fits: |certificate, parameters| {
            certificate.name() == parameters.coordinator
                && *certificate.leaf().identity().trust_domain() == parameters.trust_domain
        },
    };
}

impl Workshop<'_> {
    /// Reads the credential in `file`, or issues a new one when there is none, when it is past half of its life,
    /// or when it says something else than the parameters.
    fn credential<C>(&self, file: &str, what: &'static str, kind: &Kind<C>) -> Result<Credential<C>, CaError> {
        let path = self.directory.join(file);
        if let Some(pem) = files::read(&path)? {
            let held = read_credential(&path, &pem, kind)?;
            let (not_before, not_after) = (kind.dates)(&held.checked);
            if (kind.fits)(&held.checked, self.parameters) && !past_half(not_before, not_after, self.now) {
                return Ok(held);
            }
            // Without the root's key, what still holds is kept to its end.
            let holds = (kind.fits)(&held.checked, self.parameters) && self.now < not_after;
            if holds && !self.directory.join(ROOT_KEY).exists() {
                return Ok(held);
            }
        }
        self.make(&path, what, kind)
    }

    fn make<C>(&self, path: &Path, what: &'static str, kind: &Kind<C>) -> Result<Credential<C>, CaError> {
        let root_key_path = self.directory.join(ROOT_KEY);
        let Some(pem) = files::read(&root_key_path)? else {
            return Err(CaError::RootKeyAway { path: root_key_path, what });
        };
        let root_key = KeyPair::from_pem(&pem)
            .map_err(|error| CaError::Damaged { path: root_key_path.clone(), what: error.to_string() })?;
        if root_key.subject_public_key_info() != self.root.spki() {
            let what = "not the key of root.crt".to_owned();
            return Err(CaError::Damaged { path: root_key_path, what });
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(self.root.der().as_ref()), root_key)?;
        let key = KeyPair::generate_for(kind.algorithm)?;
        let validity = Validity::new(self.now, kind.lifetime, Some(self.root.not_after()));
        let certificate = (kind.template)(self.parameters, validity)?.signed_by(&key, &issuer)?;
        let pem = Zeroizing::new(format!("{}{}", *Zeroizing::new(key.serialize_pem()), certificate.pem()));
        let made = read_credential(path, &pem, kind)?;
        files::write(path, &pem)?;
        Ok(made)
    }
}

fn read_credential<C>(path: &Path, pem: &str, kind: &Kind<C>) -> Result<Credential<C>, CaError> {
    let damaged = |what: String| CaError::Damaged { path: path.to_owned(), what };
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(format!("key: {error}")))?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, kind.algorithm)
        .map_err(|error| damaged(format!("key: {error}")))?;
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(format!("certificate: {error}")))?;
    let checked = (kind.check)(&der).map_err(|refusal| damaged(refusal.detail))?;
    if key.subject_public_key_info() != (kind.spki)(&checked) {
        return Err(damaged("key and certificate do not belong together".to_owned()));
    }
    Ok(Credential { key, checked })
}

/// Whether half of a certificate's life is over.
fn past_half(not_before: UnixTime, not_after: UnixTime, now: UnixTime) -> bool {
    now >= not_before.plus(not_before.until(not_after) / 2)
}
