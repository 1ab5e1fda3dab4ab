//! Private keys: made on this host, written only to the state directory, wiped when dropped.
//!
//! A node has one P-256 key for the control link. An instance has, for each of its certificates, a P-256 key (the
//! X.509-SVID's) and an X25519 key (the tunnel's). Nothing here can be printed.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use warren_proto::join_token::JoinTokenId;
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{InstanceId, NodeId, Overlay, OverlayAddresses, TrustBundle, TrustDomain, WorkloadName, wire};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::state_dir::{StateDir, StateError};

const NODE_FILE: &str = "node";
const PENDING_FILE: &str = "node.pending";
/// The instance of whoever fits no entry of the configuration's `workloads`.
const REST_FILE: &str = "instance";
/// `instance.<namespace>.<name>`: the instance of one entry's workload. No name of a workload has a dot.
const TIED_FILE: &str = "instance.";

/// An ECDSA P-256 key. Clones share one copy of the secret.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<EcdsaKeyPair>,
    pkcs8: Arc<Zeroizing<Vec<u8>>>,
}

impl SigningKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self, Refusal> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| Refusal::new(Reason::Internal, "the P-256 key cannot be generated"))?;
        Self::from_pkcs8(document.as_ref())
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, Refusal> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|_| Refusal::new(Reason::StateCorrupt, "the private key is not a PKCS#8 P-256 key"))?;
        Ok(Self { pair: Arc::new(pair), pkcs8: Arc::new(Zeroizing::new(der.to_vec())) })
    }

    /// The public key as an uncompressed point (65 bytes), as a certificate's subjectPublicKey holds it.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A PKCS#10 request with an empty subject: nothing in it but the public key is believed.
    pub fn request(&self) -> Result<Vec<u8>, Refusal> {
        let failed = |error: rcgen::Error| Refusal::new(Reason::Internal, format!("certificate request: {error}"));
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).map_err(failed)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        Ok(parameters.serialize_request(self).map_err(failed)?.der().to_vec())
    }

    /// An ECDSA signature over SHA-256 of `message`, DER.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| Refusal::new(Reason::Internal, "the P-256 key does not sign"))
    }

    /// PKCS#8, DER, for the workload that the key is made for.
    #[must_use]
    pub fn to_workload(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pkcs8.to_vec())
    }

    /// A copy for rustls, which keeps it inside the TLS configuration.
    #[must_use]
    pub fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }
}

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.public()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Self::sign(self, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// An X25519 tunnel key. Clones share one copy of the secret.
#[derive(Clone)]
pub struct TunnelKey(Arc<StaticSecret>);

impl TunnelKey {
    /// Makes a new key.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::RngCore::fill_bytes(&mut rand::rng(), bytes.as_mut_slice());
        Self(Arc::new(StaticSecret::from(*bytes)))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&*self.0).to_bytes()
    }

    /// X25519 with a challenge's ephemeral key; a result of low order is refused.
    pub fn agree(&self, with: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, Refusal> {
        let shared = self.0.diffie_hellman(&PublicKey::from(*with));
        if shared.was_contributory() {
            Ok(Zeroizing::new(shared.to_bytes()))
        } else {
            Err(Refusal::new(Reason::LowOrderPoint, "the challenge's X25519 key is of low order"))
        }
    }

    /// The secret, for the engine alone.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelKey(..)")
    }
}

/// A chain of DER certificates, leaf first, without the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(pub Vec<Vec<u8>>);

impl Chain {
    /// From the wire; sizes are checked by whoever verifies it.
    #[must_use]
    pub fn from_wire(raw: wire::CertificateChain) -> Self {
        Self(raw.certificates)
    }

    /// For rustls.
    #[must_use]
    pub fn to_rustls(&self) -> Vec<CertificateDer<'static>> {
        self.0.iter().map(|der| CertificateDer::from(der.clone())).collect()
    }
}

/// What enrolment gave this node, and its own key. One file, so that it is there whole or not at all.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node.
    pub node_id: NodeId,
    /// Coordinators, `host:port`, in the order to try.
    pub coordinators: Vec<String>,
    /// Identities this node may hold.
    pub workloads: Vec<WorkloadName>,
    /// The control link's key.
    pub key: SigningKey,
    /// Its certificate.
    pub chain: Chain,
    /// The trust anchors: those of enrolment, replaced by each newer signed bundle.
    pub bundle: StoredBundle,
    /// The overlay's prefixes as enrolment told them: what the host is closed for until a signed manifest says it. An identity
    /// stored by an older node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
}

/// The roots of the mesh's trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredBundle {
    /// Rises with every change.
    pub sequence: u64,
    /// DER.
    pub roots: Chain,
}

impl From<&TrustBundle> for StoredBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self { sequence: bundle.sequence(), roots: Chain(bundle.roots().map(|root| root.der().to_vec()).collect()) }
    }
}

impl NodeIdentity {
    /// The roots this node trusts, checked.
    pub fn trust_bundle(&self) -> Result<TrustBundle, Refusal> {
        TrustBundle::new(self.trust_domain.clone(), self.bundle.sequence, self.bundle.roots.0.iter().map(Vec::as_slice))
    }
}

/// One of an instance's certificates with its two keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelIdentity {
    /// The X.509-SVID's key.
    pub key: SigningKey,
    /// The tunnel's key, bound into the certificate.
    pub tunnel: TunnelKey,
    /// The tunnel certificate.
    pub chain: Chain,
}

/// An instance on this node: its address, and at most two certificates (rotation), newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The id the coordinator gave.
    pub id: InstanceId,
    /// Whose copy it is.
    pub workload: WorkloadName,
    /// Its overlay addresses.
    pub addresses: OverlayAddresses,
    /// One or two.
    pub identities: Vec<TunnelIdentity>,
}

/// Where an instance is kept: each in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// That of whoever fits no entry of the configuration's `workloads`.
    Rest,
    /// That of an entry's workload.
    Tied(WorkloadName),
}

impl Place {
    fn file(&self) -> String {
        match self {
            Self::Rest => REST_FILE.to_owned(),
            Self::Tied(workload) => format!("{TIED_FILE}{}.{}", workload.namespace(), workload.name()),
        }
    }

    fn of_file(name: &str) -> Option<Self> {
        if name == REST_FILE {
            return Some(Self::Rest);
        }
        let (namespace, name) = name.strip_prefix(TIED_FILE)?.split_once('.')?;
        WorkloadName::new(namespace, name).ok().map(Self::Tied)
    }
}

/// The key of an enrolment whose answer has not come.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<JoinTokenId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attestor: Option<String>,
    key: SigningKey,
}

/// By what a node enrols, as far as its key must know: see [`KeyStore::pending_key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolsBy {
    /// One join token.
    Token(JoinTokenId),
    /// Evidence for the attestor of this name.
    Attestor(String),
}

/// Reads and writes what this node is.
#[derive(Debug)]
pub struct KeyStore<'a> {
    state: &'a StateDir,
}

impl<'a> KeyStore<'a> {
    /// Keys in this state directory.
    #[must_use]
    pub fn new(state: &'a StateDir) -> Self {
        Self { state }
    }

    /// The node's identity; `None` before enrolment.
    pub fn node(&self) -> Result<Option<NodeIdentity>, StateError> {
        self.load(NODE_FILE)
    }

    /// Writes the node's identity; the key that was pending is now in it.
    pub fn save_node(&self, node: &NodeIdentity) -> Result<(), StateError> {
        self.save(NODE_FILE, node)?;
        self.state.remove(PENDING_FILE)
    }

    /// The key to enrol with. It is written before it is used: if the answer is lost, asking again with the same key gets
    /// the same answer instead of using up the token or the evidence. Another token or attestor gets a key of its own, for
    /// the coordinator may have bound this one to the node of the answer that was lost. Evidence may be fresh each time: the
    /// coordinator knows the node by its key.
    pub fn pending_key(&self, by: &EnrolsBy) -> Result<SigningKey, Refusal> {
        let (token, attestor) = match by {
            EnrolsBy::Token(token) => (Some(*token), None),
            EnrolsBy::Attestor(name) => (None, Some(name.clone())),
        };
        let pending = self.load::<Pending>(PENDING_FILE)?;
        if let Some(pending) = pending.filter(|pending| pending.token == token && pending.attestor == attestor) {
            return Ok(pending.key);
        }
        let key = SigningKey::generate()?;
        self.save(PENDING_FILE, &Pending { token, attestor, key: key.clone() })?;
        Ok(key)
    }

    /// Every instance that is stored, by its place; none before the first tunnel certificate.
    pub fn instances(&self) -> Result<Vec<(Place, Instance)>, StateError> {
        let mut places: Vec<Place> = self.state.names()?.iter().filter_map(|name| Place::of_file(name)).collect();
        places.sort();
        let mut instances = Vec::with_capacity(places.len());
        for place in places {
            if let Some(instance) = self.load(&place.file())? {
                instances.push((place, instance));
            }
        }
        Ok(instances)
    }

    /// Writes an instance with all its keys, in one replacement.
    pub fn save_instance(&self, place: &Place, instance: &Instance) -> Result<(), StateError> {
        self.save(&place.file(), instance)
    }

    /// Removes every instance but those at `kept`, with their keys.
    pub fn release_instances(&self, kept: &[Place]) -> Result<Vec<Place>, StateError> {
        let places = self.state.names()?.into_iter().filter_map(|name| Place::of_file(&name));
        let released: Vec<_> = places.filter(|place| !kept.contains(place)).collect();
        released.iter().try_for_each(|place| self.state.remove(&place.file()))?;
        Ok(released)
    }

    fn load<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(body) = self.state.read(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&body)
            .map(Some)
            // The error's text could quote a key; its place cannot.
            .map_err(|error| {
                let what = format!("does not parse at line {} column {}", error.line(), error.column());
                StateError::corrupt(&self.state.path_of(name), what)
            })
    }

    fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
        serde_json::to_writer(&mut *body, value)
            .map_err(|_| StateError::corrupt(&self.state.path_of(name), "cannot be encoded"))?;
        self.state.write(name, &body)
    }
}

impl Serialize for SigningKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.pkcs8.as_slice())))
    }
}

impl<'de> Deserialize<'de> for SigningKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let der = Zeroizing::new(STANDARD.decode(&*text).map_err(|_| serde::de::Error::custom("not base64"))?);
        Self::from_pkcs8(&der).map_err(serde::de::Error::custom)
    }
}

impl Serialize for TunnelKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.secret().as_slice())))
    }
}

impl<'de> Deserialize<'de> for TunnelKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(STANDARD.decode(&*text).map_err(|_| serde::de::Error::custom("not base64"))?);
        let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| serde::de::Error::custom("not 32 bytes"))?;
        Ok(Self(Arc::new(StaticSecret::from(bytes))))
    }
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|der| STANDARD.encode(der)))
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| STANDARD.decode(text))
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| serde::de::Error::custom("not base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> TunnelIdentity {
        TunnelIdentity {
            key: SigningKey::generate().expect("key"),
            tunnel: TunnelKey::generate(),
            chain: Chain(vec![vec![1, 2], vec![3]]),
        }
    }

    #[test]
    fn keys_come_back_from_disk_as_they_were() {
        let directory = tempfile::tempdir().expect("directory");
        let state = StateDir::open(&directory.path().join("s")).expect("open");
        let store = KeyStore::new(&state);
        assert!(store.instances().expect("read").is_empty());
        let instance = instance("shop/web");
        store.save_instance(&Place::Rest, &instance).expect("save");
        let (place, back) = store.instances().expect("read").pop().expect("there");
        assert_eq!(place, Place::Rest);
        for (was, is) in instance.identities.iter().zip(&back.identities) {
            assert_eq!((was.key.public(), was.tunnel.public()), (is.key.public(), is.tunnel.public()));
            assert_eq!(was.chain, is.chain);
        }
        assert_eq!((back.id, back.workload, back.addresses), (instance.id, instance.workload, instance.addresses));
    }

    fn instance(workload: &str) -> Instance {
        Instance {
            id: InstanceId::from_bytes([7; 16]),
            workload: workload.parse().expect("name"),
            addresses: OverlayAddresses { v6: "fd00::1".parse().expect("v6"), v4: None },
            identities: vec![identity(), identity()],
        }
    }

    #[test]
    fn each_instance_has_a_file_of_its_own_and_those_that_are_released_are_gone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("directory");
        let state = StateDir::open(&directory.path().join("s")).expect("open");
        let store = KeyStore::new(&state);
        let tied = |text: &str| Place::Tied(text.parse().expect("name"));
        let places = [Place::Rest, tied("a-b/c"), tied("shop/web")];
        for (place, workload) in places.iter().zip(["shop/host", "a-b/c", "shop/web"]) {
            store.save_instance(place, &instance(workload)).expect("save");
            let mode = std::fs::metadata(state.path_of(&place.file())).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{place:?}");
        }
        for other in ["instance.x", "instance.A.b", "instance.a.b.c", "instances"] {
            state.write(other, b"{}").expect("write");
        }
        let found: Vec<_> = store.instances().expect("read").into_iter().map(|(place, _)| place).collect();
        assert_eq!(found, places);
        let mut released = store.release_instances(&places[..1]).expect("released");
        released.sort();
        assert_eq!(released, places[1..]);
        assert_eq!(store.instances().expect("read").len(), 1);
        assert!(!state.path_of("instance.shop.web").exists());
    }

    #[test]
    fn an_enrolment_that_is_repeated_uses_the_same_key() {
        let directory = tempfile::tempdir().expect("directory");
        let state = StateDir::open(&directory.path().join("s")).expect("open");
        let store = KeyStore::new(&state);
        let token = |byte| EnrolsBy::Token(JoinTokenId::from_bytes([byte; 8]));
        let attestor = |name: &str| EnrolsBy::Attestor(name.to_owned());
        let mut seen = Vec::new();
        for by in [token(1), token(2), attestor("cluster"), attestor("ci")] {
            let first = store.pending_key(&by).expect("key").public().to_vec();
            assert_eq!(store.pending_key(&by).expect("key").public(), first);
            assert!(!seen.contains(&first), "another token or attestor, another key");
            seen.push(first);
        }
    }

    #[test]
    fn no_private_key_can_be_printed() {
        let identity = identity();
        let shown = format!("{identity:?}");
        assert!(shown.contains("SigningKey(..)") && shown.contains("TunnelKey(..)"), "{shown}");
        assert!(!shown.contains(&STANDARD.encode(identity.tunnel.secret().as_slice())));
    }

    #[test]
    fn a_key_file_that_does_not_parse_is_named_without_quoting_it() {
        let directory = tempfile::tempdir().expect("directory");
        let state = StateDir::open(&directory.path().join("s")).expect("open");
        state.write(PENDING_FILE, b"\"c2VjcmV0\"").expect("write");
        let refusal =
            KeyStore::new(&state).pending_key(&EnrolsBy::Token(JoinTokenId::from_bytes([1; 8]))).expect_err("refused");
        assert_eq!(refusal.reason, Reason::StateCorrupt);
        assert!(refusal.detail.contains("node.pending") && !refusal.detail.contains("c2VjcmV0"), "{refusal:?}");
    }

    #[test]
    fn a_challenge_of_low_order_is_refused() {
        let refusal = TunnelKey::generate().agree(&[0; 32]).expect_err("refused");
        assert_eq!(refusal.reason, Reason::LowOrderPoint);
    }

    #[test]
    fn a_request_carries_no_name_and_a_valid_signature() {
        let key = SigningKey::generate().expect("key");
        let request = key.request().expect("request");
        let parsed = rcgen::CertificateSigningRequestParams::from_der(&request.as_slice().into()).expect("valid");
        assert_eq!(rcgen::PublicKeyData::der_bytes(&parsed.public_key), key.public());
        assert_eq!(parsed.params.distinguished_name.iter().count(), 0);
        assert!(parsed.params.subject_alt_names.is_empty());
    }
}
