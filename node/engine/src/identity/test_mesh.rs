//! A mesh for this crate's tests: a root, an issuing intermediate, and peers that really went through admission.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PublicKeyData, SanType, SerialNumber,
};
use warren_proto::certificate::{CLOCK_SKEW, Capabilities, TunnelBinding, oid};
use warren_proto::peer_map::{PeerRecord, RevocationSet};
use warren_proto::{InstanceId, NodeId, Overlay, OverlayAddresses, TrustBundle, UnixTime, WorkloadName};

use super::{LocalView, VerifiedPeer, verify};

/// The moment at which the test mesh's certificates were issued.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const TRUST_DOMAIN: &str = "bank.example";

/// An authority of the test mesh.
pub(crate) struct TestCa {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: Bytes,
}

/// A root, its issuing intermediate and an overlay.
pub(crate) struct TestMesh {
    pub(crate) root: TestCa,
    pub(crate) issuing: TestCa,
    pub(crate) overlay: Overlay,
}

/// What one certificate of a test peer says.
#[derive(Debug, Clone)]
pub(crate) struct TestPeer {
    pub(crate) workload: WorkloadName,
    pub(crate) instance: InstanceId,
    pub(crate) node: NodeId,
    pub(crate) addresses: OverlayAddresses,
    pub(crate) tunnel_key: [u8; 32],
    pub(crate) capabilities: Capabilities,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl TestPeer {
    /// The `number`th peer: ids and addresses follow from the number; valid from [`NOW`] for a day.
    pub(crate) fn new(number: u16, workload: &str, tunnel_key: [u8; 32]) -> Self {
        let [high, low] = number.to_be_bytes();
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[high, low]);
        Self {
            workload: workload.parse().expect("a workload's name"),
            instance: InstanceId::from_bytes(id),
            node: NodeId::from_bytes(id),
            addresses: OverlayAddresses {
                v6: std::net::Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 1, number),
                v4: Some([10, 77, high, low].into()),
            },
            tunnel_key,
            capabilities: Capabilities::ML_KEM.with(Capabilities::AES),
            not_before: NOW.minus(CLOCK_SKEW),
            not_after: NOW.plus(DAY),
        }
    }
}

impl TestMesh {
    /// A mesh in [`TRUST_DOMAIN`] over fd12:3456:789a::/48 and 10.77.0.0/16.
    pub(crate) fn new() -> Self {
        Self::in_domain(TRUST_DOMAIN)
    }

    pub(crate) fn in_domain(trust_domain: &str) -> Self {
        let overlay = Overlay {
            v6: ("fd12:3456:789a::".parse().expect("address"), 48),
            v4: Some(("10.77.0.0".parse().expect("address"), 16)),
        };
        let root = TestCa::root(Self::authority(trust_domain, "root", None));
        let issuing = root.intermediate(Self::issuing(trust_domain, &overlay));
        Self { root, issuing, overlay }
    }

    /// The template of an authority certificate.
    pub(crate) fn authority(trust_domain: &str, name: &str, path_length: Option<u8>) -> CertificateParams {
        let mut params = bare(name, NOW.minus(DAY), NOW.plus(DAY * 30));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    /// The template of an issuing intermediate.
    pub(crate) fn issuing(trust_domain: &str, overlay: &Overlay) -> CertificateParams {
        let mut params = Self::authority(trust_domain, "issuing", Some(0));
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL), own(oid::NODE)];
        let policy = [&[0x30, 14, 0x30, 12, 0x06, 10], oid::MESH_ISSUING.der].concat();
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 32], policy));
        let subnet = |address, length| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, length));
        let v4 = overlay.v4.map(|(address, length)| subnet(address.into(), length));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: [subnet(overlay.v6.0.into(), overlay.v6.1)].into_iter().chain(v4).collect(),
            excluded_subtrees: Vec::new(),
        });
        params
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(TRUST_DOMAIN.parse().expect("name"), 1, [&*self.root.der]).expect("bundle")
    }

    /// The template of `peer`'s tunnel certificate.
    pub(crate) fn template(peer: &TestPeer) -> CertificateParams {
        let mut params = bare("tunnel", peer.not_before, peer.not_after);
        let identity = peer.workload.in_domain(&TRUST_DOMAIN.parse().expect("name"));
        params.subject_alt_names = vec![uri(&identity.to_string())];
        params.subject_alt_names.extend(peer.addresses.iter().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL)];
        let binding = TunnelBinding {
            tunnel_key: peer.tunnel_key,
            instance: peer.instance,
            node: peer.node,
            capabilities: peer.capabilities,
        };
        let extension = CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, binding.to_der());
        params.custom_extensions.push(extension);
        params
    }

    /// `params` signed by the issuing intermediate for a fresh key, with that intermediate above it.
    pub(crate) fn chain(&self, params: &CertificateParams) -> Vec<Bytes> {
        vec![self.issuing.sign(params, &KeyPair::generate().expect("key")), self.issuing.der.clone()]
    }

    /// `peer`'s record with one certificate.
    pub(crate) fn record(&self, peer: &TestPeer) -> PeerRecord {
        PeerRecord { instance: peer.instance, chains: vec![self.chain(&Self::template(peer))] }
    }

    /// `peer`, admitted by a node that is linked to everybody.
    pub(crate) fn admit(&self, peer: &TestPeer) -> VerifiedPeer {
        self.admit_chain(peer, &self.chain(&Self::template(peer)))
    }

    /// [`Self::admit`] by this very chain, for tests that hold the other end of it too.
    pub(crate) fn admit_chain(&self, peer: &TestPeer, chain: &[Bytes]) -> VerifiedPeer {
        let judge = |view: &LocalView<'_>| verify(peer.instance, chain, &self.bundle(), view, NOW);
        TestNode::default().with_view(&self.overlay, judge).expect("admitted")
    }
}

impl TestCa {
    pub(crate) fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key");
        let certificate = params.self_signed(&key).expect("signed");
        Self { der: certificate.der().to_vec().into(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn intermediate(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("key");
        Self { der: self.sign(&params, &key), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Bytes {
        params.signed_by(key, &self.issuer).expect("signed").der().to_vec().into()
    }
}

/// The node that judges: what it holds locally, everything permissive unless a test sets it otherwise.
pub(crate) struct TestNode {
    pub(crate) local_addresses: HashSet<IpAddr>,
    pub(crate) local_keys: HashSet<[u8; 32]>,
    pub(crate) revocations: RevocationSet,
    pub(crate) fresh_until: UnixTime,
    pub(crate) admitted: HashSet<InstanceId>,
    pub(crate) linked: fn(&WorkloadName) -> bool,
}

impl Default for TestNode {
    fn default() -> Self {
        Self {
            local_addresses: HashSet::new(),
            local_keys: HashSet::new(),
            revocations: RevocationSet::default(),
            fresh_until: NOW.plus(DAY * 365),
            admitted: HashSet::new(),
            linked: |_| true,
        }
    }
}

impl TestNode {
    /// What a closure of this node's knowledge sees during `judge`.
    pub(crate) fn with_view<T>(&self, overlay: &Overlay, judge: impl FnOnce(&LocalView<'_>) -> T) -> T {
        judge(&LocalView {
            overlay,
            max_certificate_lifetime: DAY,
            local_addresses: &self.local_addresses,
            local_keys: &self.local_keys,
            revocations: &self.revocations,
            fresh_until: self.fresh_until,
            admitted: &|instance| self.admitted.contains(&instance),
            linked: &self.linked,
        })
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

fn bare(name: &str, not_before: UnixTime, not_after: UnixTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = moment(not_before);
    params.not_after = moment(not_after);
    params.serial_number = Some(SerialNumber::from_slice(&{
        let mut serial: [u8; 16] = rand::random();
        serial[0] = 0x40;
        serial
    }));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name} {}", rand::random::<u32>()));
    params.use_authority_key_identifier_extension = true;
    params
}
