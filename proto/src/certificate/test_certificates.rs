//! Certificates for this crate's tests: a root, an issuing intermediate and a template of each kind, to be bent
//! by a test.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};

use super::{Capabilities, TunnelBinding, oid};
use crate::{InstanceId, NodeId, TrustBundle, UnixTime};

pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An authority with its key.
pub(crate) struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: Vec<u8>,
}

impl Ca {
    pub(crate) fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key");
        let der = params.self_signed(&key).expect("signed").der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub(crate) fn intermediate(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("key");
        Self { der: self.sign(&params, &key), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Vec<u8> {
        params.signed_by(key, &self.issuer).expect("signed").der().to_vec()
    }

    /// Signed for a fresh P-256 key.
    pub(crate) fn issue(&self, params: &CertificateParams) -> Vec<u8> {
        self.sign(params, &KeyPair::generate().expect("key"))
    }
}

/// A root of bank.example and its issuing intermediate.
pub(crate) struct Mesh {
    pub(crate) root: Ca,
    pub(crate) issuing: Ca,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let root = Ca::root(authority("root", None));
        let issuing = root.intermediate(issuing());
        Self { root, issuing }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new("bank.example".parse().expect("name"), 1, [&*self.root.der]).expect("bundle")
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("IA5 text"))
}

pub(crate) fn own(oid: oid::ObjectId) -> Eku {
    Eku::Other(oid.arcs.to_vec())
}

pub(crate) fn moment(at: UnixTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.0.try_into().expect("in range")).expect("in range")
}

pub(crate) fn authority(name: &str, path_length: Option<u8>) -> CertificateParams {
    let mut params = bare("spiffe://bank.example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn issuing() -> CertificateParams {
    let mut params = authority("issuing", Some(0));
    let policy = [&[0x30, 14, 0x30, 12, 0x06, 10], oid::MESH_ISSUING.der].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 32], policy));
    params
}

fn leaf(identity: &str, purposes: Vec<Eku>) -> CertificateParams {
    let mut params = bare(identity);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes;
    params
}

pub(crate) fn tunnel() -> CertificateParams {
    let purposes = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL)];
    let mut params = leaf("spiffe://bank.example/ns/shop/sa/web", purposes);
    params.subject_alt_names.push(SanType::IpAddress("fd12:3456:789a::1".parse().expect("address")));
    let binding = TunnelBinding {
        tunnel_key: [9; 32],
        instance: InstanceId::from_bytes([1; 16]),
        node: NodeId::from_bytes([2; 16]),
        capabilities: Capabilities::NONE,
    };
    params.custom_extensions.push(CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, binding.to_der()));
    params
}

pub(crate) fn svid() -> CertificateParams {
    leaf("spiffe://bank.example/ns/shop/sa/web", vec![Eku::ServerAuth, Eku::ClientAuth])
}

pub(crate) fn node() -> CertificateParams {
    leaf("spiffe://bank.example/node/02020202020202020202020202020202", vec![Eku::ClientAuth, own(oid::NODE)])
}

pub(crate) fn coordinator() -> CertificateParams {
    leaf("spiffe://bank.example/coordinator/alpha", vec![Eku::ServerAuth, own(oid::COORDINATOR)])
}

pub(crate) fn signer() -> CertificateParams {
    leaf("spiffe://bank.example/signer/alpha", vec![own(oid::MANIFEST_SIGNER)])
}

fn bare(identity: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = moment(NOW);
    params.not_after = moment(NOW.plus(DAY));
    params.subject_alt_names = vec![uri(identity)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "warren");
    params.use_authority_key_identifier_extension = true;
    params
}
