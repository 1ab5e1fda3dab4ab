//! The certificate authority: every trusted root with its family, one of which signs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use warren_proto::certificate::{AuthorityCertificate, CoordinatorCertificate, SignerCertificate};
use warren_proto::root_hint::{self, RootPrefix};
use warren_proto::{Overlay, TrustBundle, TrustDomain, UnixTime, wire};

use super::family::{self, Family, Issuing, NewRoot, ROOT_CERTIFICATE};
use super::files::{self, CaError};
use super::rotation::TrustRoots;
use super::sealing::{KeyFiles, Passphrase};

/// The shortest lifetime of a certificate, and how long before its issuer's end issuance stops.
pub(super) const MINIMUM_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The lifetime of an issuing certificate.
pub const ISSUING_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Directory of the families of later roots. The first root's is the CA's directory itself.
pub(super) const LATER_ROOTS: &str = "roots";

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

/// A CA ready to issue. Immutable: [`Authority::renewed`] and [`Authority::under`] give the next one.
pub struct Authority {
    keys: Arc<KeyFiles>,
    parameters: CaParameters,
    trust: TrustRoots,
    bundle: TrustBundle,
    signing: Family,
    issuing: Issuing,
    /// Trusted, and not signing: yet or any more. One whose key is away and whose certificates here have ended is not among
    /// them: nobody is served under it, and nobody else is kept from being served.
    other: Vec<Family>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("keys", &self.keys)
            .field("root", &self.signing.root)
            .field("issuing", &self.issuing.certificate)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a root in `directory`, which must hold none, and all that hangs under it.
    ///
    /// # Errors
    /// [`CaError`], naming the file.
    pub fn init(directory: &Path, parameters: &CaParameters, now: UnixTime) -> Result<Self, CaError> {
        Self::init_sealed(directory, None, parameters, now)
    }

    /// The same with its keys sealed under a passphrase, where there is one.
    ///
    /// # Errors
    /// [`CaError`], naming the file.
    pub fn init_sealed(
        directory: &Path,
        passphrase: Option<&Passphrase>,
        parameters: &CaParameters,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let certificate_path = directory.join(ROOT_CERTIFICATE);
        if certificate_path.exists() {
            return Err(CaError::AlreadyInitialised { path: certificate_path });
        }
        let keys = Arc::new(KeyFiles::create(directory, passphrase)?);
        NewRoot::generate(parameters, now)?.write(&keys, directory)?;
        Self::open_with(keys, parameters, None, now)
    }

    /// Reads the CA from `directory` and issues again what is missing or past half of its life. `trust` is what the
    /// store says of the roots; none where they were never rotated, and the directory's own root is the only one.
    ///
    /// # Errors
    /// [`CaError`], naming the file. A damaged file is refused, not replaced. Keys that are sealed are not opened.
    pub fn open(
        directory: &Path,
        parameters: &CaParameters,
        trust: Option<&TrustRoots>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::open_with(Arc::new(KeyFiles::open(directory, None)?), parameters, trust, now)
    }

    /// The same over key files that were opened.
    ///
    /// # Errors
    /// As [`Authority::open`].
    pub fn open_with(
        keys: Arc<KeyFiles>,
        parameters: &CaParameters,
        trust: Option<&TrustRoots>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let directory = keys.directory();
        files::ensure_directory(directory)?;
        let first = family::read_root(directory)?;
        let trust = match (trust, &first) {
            (Some(trust), _) => trust.clone(),
            (None, Some(root)) => TrustRoots::first(root, now),
            (None, None) => return Err(CaError::NotInitialised { path: directory.join(ROOT_CERTIFICATE) }),
        };
        let path = directory.join(ROOT_CERTIFICATE);
        let damaged = |what: String| CaError::Damaged { path: path.clone(), what };
        let first = first.map(|root| warren_proto::peer_map::object_digest(root.der()));
        let place = |sha256: &[u8; 32]| match first == Some(*sha256) {
            true => directory.to_owned(),
            false => later_root(directory, sha256),
        };
        for retired in trust.retired() {
            family::delete(&place(retired))?;
        }
        let bundle = trust.bundle(&parameters.trust_domain).map_err(|refusal| damaged(refusal.detail))?;
        let (mut signing, mut other) = (None, Vec::new());
        for root in trust.roots() {
            let signs = root.sha256.0 == *trust.signing();
            let family = match Family::open(&keys, &place(&root.sha256.0), parameters, now) {
                Err(error @ (CaError::RootKeyAway { .. } | CaError::RootEnds { .. })) if !signs => {
                    tracing::warn!(root = ?root.sha256, %error, "nobody is served under a root that does not sign");
                    continue;
                }
                family => family?,
            };
            if family.sha256 != root.sha256.0 {
                return Err(damaged("not the root that the store names".to_owned()));
            }
            if signs {
                signing = Some(family);
            } else {
                other.push(family);
            }
        }
        let signing = signing.ok_or_else(|| damaged("the store names no root that signs".to_owned()))?;
        let issuing = signing.issuing(&keys, parameters, trust.issuing_after(), now)?;
        Ok(Self { parameters: parameters.clone(), trust, bundle, signing, issuing, other, keys })
    }

    /// The CA with everything issued again that is past half of its life at `now`; `None` when nothing is. Reads
    /// and writes files.
    ///
    /// # Errors
    /// [`CaError`]; this one stays usable.
    pub fn renewed(&self, now: UnixTime) -> Result<Option<Self>, CaError> {
        // A root's key that was away may be back.
        let missing = self.families().count() < self.trust.roots().len();
        let due = missing || self.issuing.is_due(now) || self.families().any(|family| family.is_due(now));
        if due { self.under(&self.trust, now).map(Some) } else { Ok(None) }
    }

    /// The CA as the store now says that it is. Reads and writes files.
    ///
    /// # Errors
    /// [`CaError`]; this one stays usable.
    pub fn under(&self, trust: &TrustRoots, now: UnixTime) -> Result<Self, CaError> {
        Self::open_with(Arc::clone(&self.keys), &self.parameters, Some(trust), now)
    }

    /// Whether the root that would sign under `trust` could: what [`Authority::under`] reads is read, what it would make is made,
    /// and nothing is written.
    ///
    /// # Errors
    /// [`CaError`], as there.
    pub fn rehearse(&self, trust: &TrustRoots, now: UnixTime) -> Result<(), CaError> {
        let directory = self.keys.directory();
        let first = family::read_root(directory)?.map(|root| warren_proto::peer_map::object_digest(root.der()));
        let place = match first == Some(*trust.signing()) {
            true => directory.to_owned(),
            false => later_root(directory, trust.signing()),
        };
        Family::rehearse(&self.keys, &place, &self.parameters, trust.issuing_after(), now)
    }

    /// Makes a root that nobody trusts yet, with all that hangs under it, and gives its DER. It is of no account until
    /// the store names it.
    ///
    /// # Errors
    /// [`CaError`], naming the file.
    pub fn make_root(&self, now: UnixTime) -> Result<Vec<u8>, CaError> {
        let root = NewRoot::generate(&self.parameters, now)?;
        files::ensure_directory(&self.keys.directory().join(LATER_ROOTS))?;
        let directory = later_root(self.keys.directory(), &root.sha256());
        root.write(&self.keys, &directory)?;
        let family = Family::open(&self.keys, &directory, &self.parameters, now)?;
        family.issuing(&self.keys, &self.parameters, UnixTime(0), now)?;
        Ok(family.root.der().to_vec())
    }

    /// The roots as the store names them.
    #[must_use]
    pub fn trust(&self) -> &TrustRoots {
        &self.trust
    }

    /// The roots that nodes are given.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The root that signs, DER: what join tokens pin the hash of.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        self.signing.root.der()
    }

    /// The root that signs.
    #[must_use]
    pub fn root_certificate(&self) -> &AuthorityCertificate {
        &self.signing.root
    }

    /// Whether that root's key is at hand.
    #[must_use]
    pub fn holds_root_key(&self) -> bool {
        self.signing.holds_root_key()
    }

    /// Whether the private keys on disk are sealed under a passphrase.
    #[must_use]
    pub fn keys_are_sealed(&self) -> bool {
        self.keys.is_sealed()
    }

    /// The issuing intermediate.
    #[must_use]
    pub fn issuer_certificate(&self) -> &AuthorityCertificate {
        &self.issuing.certificate
    }

    /// The certificate that this coordinator presents.
    #[must_use]
    pub fn coordinator_certificate(&self) -> &CoordinatorCertificate {
        &self.signing.coordinator
    }

    /// The certificate of the key that signs manifests.
    #[must_use]
    pub fn signer_certificate(&self) -> &SignerCertificate {
        &self.signing.signer
    }

    /// What TLS presents: leaf, then root, which a node that enrols compares with its token's pin.
    #[must_use]
    pub fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        self.signing.tls_chain()
    }

    /// The private key of that leaf.
    #[must_use]
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        self.signing.tls_key()
    }

    /// What TLS can present, the one of the root that signs first: the root's prefix, the chain, the leaf's key.
    pub fn tls_identities(
        &self,
    ) -> impl Iterator<Item = (RootPrefix, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        self.families().map(|family| (root_hint::prefix(&family.sha256), family.tls_chain(), family.tls_key()))
    }

    /// Signs the body of a manifest or heartbeat for who said that it holds `roots`: under the root that signs, or
    /// where it does not hold that one, under one that it does.
    #[must_use]
    pub fn sign(&self, body: Vec<u8>, roots: &[RootPrefix]) -> wire::SignedObject {
        choose(roots, self.families().map(|family| (root_hint::prefix(&family.sha256), family)))
            .unwrap_or(&self.signing)
            .sign(body)
    }

    fn families(&self) -> impl Iterator<Item = &Family> {
        std::iter::once(&self.signing).chain(&self.other)
    }

    pub(super) fn overlay(&self) -> &Overlay {
        &self.parameters.overlay
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuing.issuer
    }
}

/// Of what hangs under several roots, the one whose root signs first, that for a caller who holds `held`: the first
/// whose root it holds, or the first of all for one who said nothing or holds none.
pub fn choose<T>(held: &[RootPrefix], offered: impl IntoIterator<Item = (RootPrefix, T)>) -> Option<T> {
    let mut first = None;
    for (root, what) in offered {
        if held.contains(&root) {
            return Some(what);
        }
        first.get_or_insert(what);
    }
    first
}

fn later_root(directory: &Path, sha256: &[u8; 32]) -> PathBuf {
    directory.join(LATER_ROOTS).join(hex::encode(root_hint::prefix(sha256)))
}
