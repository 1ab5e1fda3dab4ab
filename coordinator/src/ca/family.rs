//! One root and what hangs under it: the files of its directory, read, or issued again where half of a life is over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use warren_proto::certificate::{AuthorityCertificate, CLOCK_SKEW, CoordinatorCertificate, SignerCertificate};
use warren_proto::peer_map::{object_digest, signing_input};
use warren_proto::{SpiffeId, UnixTime, wire};
use zeroize::Zeroizing;

use super::authority::{CaParameters, ISSUING_LIFETIME, MINIMUM_LIFETIME};
use super::files::{self, CaError};
use super::sealing::KeyFiles;
use super::template::{self, Validity};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3652);
const COORDINATOR_LIFETIME: Duration = DAY.saturating_mul(30);
/// A node that starts without the coordinator checks the last manifest's signer, so the signer outlives
/// every tunnel certificate by far.
const SIGNER_LIFETIME: Duration = DAY.saturating_mul(90);

pub(super) const ROOT_CERTIFICATE: &str = "root/root.crt";
pub(super) const ROOT_KEY: &str = "root/root.key";
const ISSUING: &str = "issuing.pem";
const COORDINATOR: &str = "coordinator.pem";
const SIGNER: &str = "signer.pem";
/// The files of a family that hold private keys.
pub(super) const PRIVATE_FILES: [&str; 4] = [ROOT_KEY, ISSUING, COORDINATOR, SIGNER];

/// What certificates of nodes and workloads are signed with.
pub(super) struct Issuing {
    pub(super) certificate: AuthorityCertificate,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

/// A root with the coordinator's certificate and the manifest signer under it. Its intermediate is read besides: only a
/// root that signs needs one.
pub(super) struct Family {
    directory: PathBuf,
    pub(super) root: AuthorityCertificate,
    pub(super) sha256: [u8; 32],
    pub(super) coordinator: CoordinatorCertificate,
    coordinator_key: KeyPair,
    pub(super) signer: SignerCertificate,
    signer_key: ed25519_dalek::SigningKey,
}

/// A new root's certificate and key, on no disk yet.
pub(super) struct NewRoot {
    key: KeyPair,
    certificate: rcgen::Certificate,
}

impl NewRoot {
    pub(super) fn generate(parameters: &CaParameters, now: UnixTime) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?;
        let validity = Validity::new(now, ROOT_LIFETIME, None);
        let certificate = template::root(&parameters.trust_domain, validity)?.self_signed(&key)?;
        Ok(Self { key, certificate })
    }

    pub(super) fn sha256(&self) -> [u8; 32] {
        object_digest(self.certificate.der())
    }

    /// Writes it. The certificate last: a directory holds a root once it is there.
    pub(super) fn write(&self, keys: &KeyFiles, directory: &Path) -> Result<(), CaError> {
        files::ensure_directory(directory)?;
        files::ensure_directory(&directory.join("root"))?;
        keys.write(&directory.join(ROOT_KEY), &Zeroizing::new(self.key.serialize_pem()))?;
        files::write(&directory.join(ROOT_CERTIFICATE), &self.certificate.pem())
    }
}

/// The root of a directory; `None` when it holds none.
pub(super) fn read_root(directory: &Path) -> Result<Option<AuthorityCertificate>, CaError> {
    let path = directory.join(ROOT_CERTIFICATE);
    let Some(pem) = files::read(&path)? else { return Ok(None) };
    let damaged = |what: String| CaError::Damaged { path: path.clone(), what };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
    AuthorityCertificate::parse(&der).map(Some).map_err(|refusal| damaged(refusal.detail))
}

/// Deletes what a retired root leaves: its keys first.
pub(super) fn delete(directory: &Path) -> Result<(), CaError> {
    for file in PRIVATE_FILES.into_iter().chain([ROOT_CERTIFICATE]) {
        files::remove(&directory.join(file))?;
    }
    Ok(())
}

impl Family {
    /// Reads `directory` and issues again what is missing or past half of its life.
    pub(super) fn open(
        keys: &KeyFiles,
        directory: &Path,
        parameters: &CaParameters,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        files::ensure_directory(directory)?;
        let root =
            read_root(directory)?.ok_or_else(|| CaError::NotInitialised { path: directory.join(ROOT_CERTIFICATE) })?;
        if now.until(root.not_after()) < MINIMUM_LIFETIME {
            return Err(CaError::RootEnds { not_after: root.not_after() });
        }
        let workshop = Workshop { keys, directory, parameters, root: &root, now, writes: true };
        let never = UnixTime(0);
        let coordinator =
            workshop.credential(COORDINATOR, "the coordinator's certificate", &Kind::COORDINATOR, never)?;
        let signer = workshop.credential(SIGNER, "the manifest signer's certificate", &Kind::SIGNER, never)?;
        let signer_key = ed25519_dalek::SigningKey::from_pkcs8_der(signer.key.serialized_der())
            .map_err(|error| CaError::Damaged { path: directory.join(SIGNER), what: error.to_string() })?;
        Ok(Self {
            directory: directory.to_owned(),
            sha256: object_digest(root.der()),
            coordinator: coordinator.checked,
            coordinator_key: coordinator.key,
            signer: signer.checked,
            signer_key,
            root,
        })
    }

    /// Whether [`Family::open`] and [`Family::issuing`] would succeed. Nothing is written.
    pub(super) fn rehearse(
        keys: &KeyFiles,
        directory: &Path,
        parameters: &CaParameters,
        made_after: UnixTime,
        now: UnixTime,
    ) -> Result<(), CaError> {
        let root =
            read_root(directory)?.ok_or_else(|| CaError::NotInitialised { path: directory.join(ROOT_CERTIFICATE) })?;
        if now.until(root.not_after()) < MINIMUM_LIFETIME {
            return Err(CaError::RootEnds { not_after: root.not_after() });
        }
        let workshop = Workshop { keys, directory, parameters, root: &root, now, writes: false };
        let never = UnixTime(0);
        workshop.credential(COORDINATOR, "the coordinator's certificate", &Kind::COORDINATOR, never)?;
        workshop.credential(SIGNER, "the manifest signer's certificate", &Kind::SIGNER, never)?;
        workshop.credential(ISSUING, "the issuing certificate", &Kind::ISSUING, made_after)?;
        Ok(())
    }

    /// Reads the intermediate under this root, and issues it again when it is missing, past half of its life or older than
    /// `made_after`.
    pub(super) fn issuing(
        &self,
        keys: &KeyFiles,
        parameters: &CaParameters,
        made_after: UnixTime,
        now: UnixTime,
    ) -> Result<Issuing, CaError> {
        let workshop = Workshop { keys, directory: &self.directory, parameters, root: &self.root, now, writes: true };
        let issuing = workshop.credential(ISSUING, "the issuing certificate", &Kind::ISSUING, made_after)?;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(issuing.checked.der().as_ref()), issuing.key)?;
        Ok(Issuing { certificate: issuing.checked, issuer })
    }

    /// Whether something is past half of its life.
    pub(super) fn is_due(&self, now: UnixTime) -> bool {
        let (coordinator, signer) = (self.coordinator.leaf(), self.signer.leaf());
        past_half(coordinator.not_before(), coordinator.not_after(), now)
            || past_half(signer.not_before(), signer.not_after(), now)
    }

    /// Whether the root's key is where new certificates under it can be signed.
    pub(super) fn holds_root_key(&self) -> bool {
        self.directory.join(ROOT_KEY).exists()
    }

    pub(super) fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        [self.coordinator.leaf().der(), self.root.der()].map(|der| CertificateDer::from(der.to_vec())).into()
    }

    pub(super) fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.coordinator_key.serialize_der()))
    }

    pub(super) fn sign(&self, body: Vec<u8>) -> wire::SignedObject {
        let signature = self.signer_key.sign(&signing_input(&body)).to_bytes().to_vec();
        let signer = wire::CertificateChain { certificates: vec![self.signer.leaf().der().to_vec()] };
        wire::SignedObject { body, signature, signer: Some(signer) }
    }
}

impl Issuing {
    /// Whether it is past half of its life.
    pub(super) fn is_due(&self, now: UnixTime) -> bool {
        past_half(self.certificate.not_before(), self.certificate.not_after(), now)
    }
}

/// What makes and reads the credentials under a root.
struct Workshop<'a> {
    keys: &'a KeyFiles,
    directory: &'a Path,
    parameters: &'a CaParameters,
    root: &'a AuthorityCertificate,
    now: UnixTime,
    /// Whether what is made is kept.
    writes: bool,
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
    /// Reads the credential in `file`, or issues a new one when there is none, when it is past half of its life, when it
    /// was made before `made_after`, or when it says something else than the parameters.
    fn credential<C>(
        &self,
        file: &str,
        what: &'static str,
        kind: &Kind<C>,
        made_after: UnixTime,
    ) -> Result<Credential<C>, CaError> {
        let path = self.directory.join(file);
        if let Some(pem) = self.keys.read(&path)? {
            let held = read_credential(&path, &pem, kind)?;
            let (not_before, not_after) = (kind.dates)(&held.checked);
            let asked_for = not_before.plus(CLOCK_SKEW) >= made_after;
            let fits = (kind.fits)(&held.checked, self.parameters);
            if fits && asked_for && !past_half(not_before, not_after, self.now) {
                return Ok(held);
            }
            // Without the root's key, what still holds is kept to its end.
            if fits && self.now < not_after && !self.directory.join(ROOT_KEY).exists() {
                return Ok(held);
            }
        }
        self.make(&path, what, kind)
    }

    fn make<C>(&self, path: &Path, what: &'static str, kind: &Kind<C>) -> Result<Credential<C>, CaError> {
        let root_key_path = self.directory.join(ROOT_KEY);
        let Some(pem) = self.keys.read(&root_key_path)? else {
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
        if self.writes {
            self.keys.write(path, &pem)?;
        }
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
