//! What somebody can forge who can write a node's state directory, and even holds the CA directory: scopes
//! with other objects or records, manifests signed anew, certificates of any content.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use prost::Message;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use warren_proto::certificate::oid::{self, ObjectId};
use warren_proto::certificate::{TunnelBinding, TunnelCertificate};
use warren_proto::peer_map::{Manifest, signing_input};
use warren_proto::{OverlayAddresses, wire};

use crate::attacker::control::state_file;

/// The snapshot in a node's state directory, opened for alteration.
pub struct Snapshot {
    state: PathBuf,
    /// The update from nothing that the node keeps: manifest, objects, records.
    pub update: wire::Update,
}

impl Snapshot {
    /// Reads it.
    pub fn open(state: &Path) -> Result<Self> {
        let content = std::fs::read(state.join("snapshot")).context("read the snapshot")?;
        let line = content.iter().position(|byte| *byte == b'\n').context("the snapshot has no header")?;
        let update = wire::Update::decode(&content[line + 1..]).context("decode the snapshot")?;
        Ok(Self { state: state.to_owned(), update })
    }

    /// Writes it back with a good digest, as both of the copies that the node keeps.
    pub fn save(&self) -> Result<()> {
        let body = self.update.encode_to_vec();
        ["snapshot", "snapshot.previous"].iter().try_for_each(|name| write_state(&self.state, name, &body))
    }

    /// The manifest as it is signed now.
    pub fn manifest(&self) -> Result<Manifest> {
        let signed = self.update.manifest.as_ref().context("the snapshot has no manifest")?;
        Manifest::decode(&signed.body).map_err(|refusal| anyhow::anyhow!("{refusal}"))
    }

    /// Puts another manifest in, signed with `ca`'s own key.
    pub fn sign(&mut self, manifest: &Manifest, ca: &CaDirectory) -> Result<()> {
        self.update.manifest = Some(ca.sign(manifest.encode())?);
        Ok(())
    }

    /// The tunnel certificate of the only peer.
    pub fn peer(&self) -> Result<TunnelCertificate> {
        let record = self.update.peers.first().context("the snapshot has no peer")?;
        let leaf = record.certificates.first().and_then(|chain| chain.certificates.first());
        TunnelCertificate::parse(leaf.context("the record is empty")?).map_err(|refusal| anyhow::anyhow!("{refusal}"))
    }

    /// Replaces the only peer's chains by `chain`.
    pub fn set_peer_chain(&mut self, chain: Vec<Vec<u8>>) -> Result<()> {
        let record = self.update.peers.first_mut().context("the snapshot has no peer")?;
        record.certificates = vec![wire::CertificateChain { certificates: chain }];
        Ok(())
    }
}

/// Writes a state file with a good digest.
fn write_state(state: &Path, name: &str, body: &[u8]) -> Result<()> {
    let header = format!("warren-state/1 {} {}\n", body.len(), hex::encode(Sha256::digest(body)));
    std::fs::write(state.join(name), [header.as_bytes(), body].concat()).with_context(|| format!("write {name}"))
}

/// What a node is, in its own state directory, opened for alteration: tampering with a sender.
pub struct OwnInstance {
    state: PathBuf,
    held: Value,
}

impl OwnInstance {
    /// Reads it.
    pub fn open(state: &Path) -> Result<Self> {
        Ok(Self { state: state.to_owned(), held: state_file(state, "instance")? })
    }

    /// Makes the node take `addresses` for its own: it sends from them as the instance that it is. The certificate that says so
    /// has the key, the issuer and the serial number of the real one, so that in the key exchange both ends mean the one that
    /// the peers were sent and admitted; nobody but the tampered node ever sees the other.
    pub fn claim(&mut self, addresses: OverlayAddresses, ca: &CaDirectory) -> Result<()> {
        let newest = &self.held["identities"][0];
        let decoded = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).context("base64 is expected");
        let real = TunnelCertificate::parse(&decoded(&newest["chain"][0])?).map_err(|refusal| anyhow!("{refusal}"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(decoded(&newest["key"])?));
        let key = KeyPair::try_from(&key).context("the instance's key")?;
        let mut template = Subject { addresses, ..Subject::of(&real) }.template()?;
        template.serial_number = Some(real.leaf().serial().as_bytes().to_vec().into());
        let chain: Vec<_> = ca.sign_leaf(template, &key)?.iter().map(|der| STANDARD.encode(der)).collect();
        self.held["identities"][0]["chain"] = chain.into();
        self.held["addresses"] = serde_json::to_value(addresses)?;
        Ok(())
    }

    /// Writes it back.
    pub fn save(&self) -> Result<()> {
        write_state(&self.state, "instance", &serde_json::to_vec(&self.held)?)
    }
}

/// The CA directory of a coordinator, as `init` made it.
pub struct CaDirectory(PathBuf);

impl CaDirectory {
    /// At `directory`.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn credential(&self, name: &str) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let path = self.0.join(name);
        let pem = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let certificate = CertificateDer::from_pem_slice(&pem).context("the credential's certificate")?;
        Ok((certificate, PrivateKeyDer::from_pem_slice(&pem).context("the credential's key")?))
    }

    /// Signs a manifest's body as the coordinator would.
    pub fn sign(&self, body: Vec<u8>) -> Result<wire::SignedObject> {
        let (certificate, key) = self.credential("signer.pem")?;
        let key = ed25519_dalek::SigningKey::from_pkcs8_der(key.secret_der()).context("the signer's key")?;
        let signature = key.sign(&signing_input(&body)).to_bytes().to_vec();
        let signer = wire::CertificateChain { certificates: vec![certificate.to_vec()] };
        Ok(wire::SignedObject { body, signature, signer: Some(signer) })
    }

    /// A tunnel certificate of any content under the issuing intermediate: the chain, leaf first.
    pub fn issue(&self, subject: &Subject) -> Result<Vec<Vec<u8>>> {
        self.sign_leaf(subject.template()?, &KeyPair::generate().context("a key")?)
    }

    fn sign_leaf(&self, template: CertificateParams, leaf_key: &KeyPair) -> Result<Vec<Vec<u8>>> {
        let (certificate, key) = self.credential("issuing.pem")?;
        let key = KeyPair::try_from(key.secret_der()).context("the issuing key")?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("the issuing certificate")?;
        let leaf = template.signed_by(leaf_key, &issuer).context("sign")?;
        Ok(vec![leaf.der().to_vec(), certificate.to_vec()])
    }
}

/// What a forged tunnel certificate says.
#[derive(Debug, Clone)]
pub struct Subject {
    /// A SPIFFE ID.
    pub identity: String,
    /// Overlay addresses.
    pub addresses: OverlayAddresses,
    /// Key, instance, node.
    pub binding: TunnelBinding,
}

impl Subject {
    /// What a real certificate says.
    #[must_use]
    pub fn of(certificate: &TunnelCertificate) -> Self {
        Self {
            identity: certificate.leaf().identity().to_string(),
            addresses: certificate.addresses(),
            binding: *certificate.binding(),
        }
    }

    fn template(&self) -> Result<CertificateParams> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?;
        let now = time::OffsetDateTime::from_unix_timestamp(i64::try_from(now.as_secs())?)?;
        let mut template = CertificateParams::default();
        template.not_before = now - time::Duration::minutes(1);
        template.not_after = now + time::Duration::hours(12);
        template.subject_alt_names = vec![SanType::URI(self.identity.as_str().try_into()?)];
        template.subject_alt_names.extend(self.addresses.iter().map(SanType::IpAddress));
        template.is_ca = IsCa::ExplicitNoCa;
        template.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        template.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth, own(oid::MESH_TUNNEL)];
        template.use_authority_key_identifier_extension = true;
        template
            .custom_extensions
            .push(CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, self.binding.to_der()));
        Ok(template)
    }
}

fn own(oid: ObjectId) -> ExtendedKeyUsagePurpose {
    ExtendedKeyUsagePurpose::Other(oid.arcs.to_vec())
}
