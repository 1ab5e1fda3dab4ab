//! A mesh for this crate's tests: a root, an issuing intermediate, a manifest signer, and what they sign.

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PublicKeyData, SanType, SerialNumber, SigningKey as _,
};
use warren_proto::certificate::{CLOCK_SKEW, Capabilities, TunnelBinding, oid};
use warren_proto::peer_map::{
    Generation, Heartbeat, Manifest, NamedDigest, Object, ObjectKey, ObjectKind, PeerRecord, Revocation, RevocationSet,
    Scope, encode_instances, object_digest, signing_input,
};
use warren_proto::{InstanceId, NodeId, Overlay, OverlayAddresses, SpiffeId, TrustBundle, TrustDomain, UnixTime, wire};

use crate::certificates::key_store::{
    Chain, Instance, NodeIdentity, SigningKey, StoredBundle, TunnelIdentity, TunnelKey,
};

/// When everything was issued.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(crate) const DAY: u64 = 86_400;
pub(crate) const OWN: &str = "bank/banking-api";
pub(crate) const CALLER: &str = "shop/web-frontend";
pub(crate) const STALE_AFTER: u32 = 600;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// The mesh `bank.example`.
pub(crate) struct TestMesh {
    root: Authority,
    issuing: Authority,
    signer: (KeyPair, Vec<u8>),
    pub(crate) overlay: Overlay,
    pub(crate) node: NodeId,
}

impl TestMesh {
    pub(crate) fn new() -> Self {
        let overlay = Overlay {
            v6: ("fd12:3456:789a::".parse().expect("address"), 48),
            v4: Some(("10.77.0.0".parse().expect("address"), 16)),
        };
        let root_key = KeyPair::generate().expect("key");
        let template = authority("root", BasicConstraints::Unconstrained);
        let root = Authority {
            der: template.self_signed(&root_key).expect("signed").der().to_vec(),
            issuer: Issuer::new(template, root_key),
        };
        let issuing_key = KeyPair::generate().expect("key");
        let template = issuing(&overlay);
        let issuing = Authority { der: root.sign(&template, &issuing_key), issuer: Issuer::new(template, issuing_key) };
        let signer_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        let mut template = leaf("signer", "spiffe://bank.example/signer/main");
        template.extended_key_usages = vec![own(oid::MANIFEST_SIGNER)];
        let signer = root.sign(&template, &signer_key);
        Self { root, issuing, signer: (signer_key, signer), overlay, node: NodeId::from_bytes([7; 16]) }
    }

    pub(crate) fn trust_domain(&self) -> TrustDomain {
        "bank.example".parse().expect("name")
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain(), 1, [self.root.der.as_slice()]).expect("bundle")
    }

    pub(crate) fn root_der(&self) -> &[u8] {
        &self.root.der
    }

    /// A coordinator's certificate, the root behind it, and its key.
    pub(crate) fn coordinator(&self) -> (Vec<Vec<u8>>, KeyPair) {
        let key = KeyPair::generate().expect("key");
        let mut template = leaf("coordinator", "spiffe://bank.example/coordinator/main");
        template.extended_key_usages = vec![Eku::ServerAuth, own(oid::COORDINATOR)];
        (vec![self.root.sign(&template, &key), self.root.der.clone()], key)
    }

    /// A workload's tunnel certificate, shown where a coordinator's belongs.
    pub(crate) fn workload_as_server(&self) -> (Vec<Vec<u8>>, KeyPair) {
        let key = KeyPair::generate().expect("key");
        let tunnel_key = TunnelKey::generate().public();
        let template = tunnel_template(1, CALLER, NodeId::from_bytes([1; 16]), tunnel_key);
        (vec![self.issuing.sign(&template, &key), self.issuing.der.clone(), self.root.der.clone()], key)
    }

    pub(crate) fn sign(&self, body: Vec<u8>) -> wire::SignedObject {
        let signature = self.signer.0.sign(&signing_input(&body)).expect("signed");
        let signer = wire::CertificateChain { certificates: vec![self.signer.1.clone()] };
        wire::SignedObject { body, signature, signer: Some(signer) }
    }

    /// A scope with bundle, the policy under test, revocations and the caller numbered 1.
    pub(crate) fn scope(&self, policy: &str, revocations: Vec<Revocation>) -> Scope {
        let mut scope = Scope::default();
        let mut add = |kind, name: &str, content: Vec<u8>| {
            let key = ObjectKey { kind, name: name.to_owned() };
            scope.objects.insert(key, Object { content: Bytes::from(content), min_reader: 1 });
        };
        use prost::Message;
        add(ObjectKind::TrustBundle, "", self.bundle().to_wire().encode_to_vec());
        add(ObjectKind::Revocations, "", RevocationSet::new(revocations).encode());
        add(ObjectKind::Instances, "", encode_instances([InstanceId::from_bytes([9; 16])]).to_vec());
        for (number, text) in policy.split("---\n").enumerate() {
            let document = wire::PolicyDocument { file: "mesh.yaml".into(), line: 1, text: text.to_owned() };
            add(ObjectKind::Policy, &format!("Document/{number}"), document.encode_to_vec());
        }
        let record = self.record(1, CALLER);
        scope.peers.insert(record.instance, record);
        scope
    }

    pub(crate) fn manifest(&self, revision: u64, scope: &Scope) -> Manifest {
        let named = |object: &Object| NamedDigest { sha256: object_digest(&object.content), min_reader: 1 };
        Manifest {
            trust_domain: self.trust_domain(),
            node: self.node,
            generation: Generation { epoch: 1, revision },
            issued_at: NOW,
            not_after: UnixTime(NOW.0 + DAY),
            overlay: self.overlay,
            stale_after_seconds: STALE_AFTER,
            max_certificate_lifetime_seconds: DAY as u32,
            policy_revision: revision,
            objects: scope.objects.iter().map(|(key, object)| (key.clone(), named(object))).collect(),
        }
    }

    /// The whole of `scope` as an update from nothing.
    pub(crate) fn update(&self, revision: u64, scope: &Scope) -> wire::Update {
        self.update_with(scope, &self.manifest(revision, scope))
    }

    pub(crate) fn update_with(&self, scope: &Scope, manifest: &Manifest) -> wire::Update {
        let difference = Scope::default().difference(scope);
        wire::Update {
            manifest: Some(self.sign(manifest.encode())),
            objects: difference.objects,
            peers: difference.peers,
            ..Default::default()
        }
    }

    pub(crate) fn heartbeat(&self, revision: u64, issued_at: UnixTime) -> wire::SignedObject {
        let generation = Generation { epoch: 1, revision };
        self.sign(Heartbeat { trust_domain: self.trust_domain(), node: self.node, generation, issued_at }.encode())
    }

    pub(crate) fn record(&self, number: u8, workload: &str) -> PeerRecord {
        let instance = InstanceId::from_bytes([number; 16]);
        let chain =
            self.tunnel_chain(number, workload, NodeId::from_bytes([number; 16]), TunnelKey::generate().public());
        PeerRecord { instance, chains: vec![chain.into_iter().map(Bytes::from).collect()] }
    }

    /// This node's own instance, with number 9.
    pub(crate) fn instance(&self) -> Instance {
        self.instance_of(9, OWN)
    }

    /// Another instance of this node.
    pub(crate) fn instance_of(&self, number: u8, workload: &str) -> Instance {
        let (key, tunnel) = (SigningKey::generate().expect("key"), TunnelKey::generate());
        let chain = Chain(self.tunnel_chain(number, workload, self.node, tunnel.public()));
        Instance {
            id: InstanceId::from_bytes([number; 16]),
            workload: workload.parse().expect("name"),
            addresses: addresses(number),
            identities: vec![TunnelIdentity { key, tunnel, chain }],
        }
    }

    /// The node's own identity, certified for a day.
    pub(crate) fn identity(&self) -> NodeIdentity {
        let key = SigningKey::generate().expect("key");
        let mut template = leaf("node", &SpiffeId::node(&self.trust_domain(), self.node).to_string());
        template.extended_key_usages = vec![Eku::ClientAuth, own(oid::NODE)];
        let chain = Chain(vec![self.issuing.sign(&template, &key), self.issuing.der.clone()]);
        NodeIdentity {
            trust_domain: self.trust_domain(),
            node_id: self.node,
            coordinators: Vec::new(),
            workloads: Vec::new(),
            key,
            chain,
            bundle: StoredBundle::from(&self.bundle()),
            overlay: Some(self.overlay),
        }
    }

    /// A workload's own SVID over `key`.
    pub(crate) fn svid_chain(&self, workload: &str, key: &SigningKey) -> Vec<Vec<u8>> {
        let (namespace, name) = workload.split_once('/').expect("a workload's name");
        let mut template = leaf("workload", &format!("spiffe://bank.example/ns/{namespace}/sa/{name}"));
        template.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        vec![self.issuing.sign(&template, key), self.issuing.der.clone()]
    }

    fn tunnel_chain(&self, number: u8, workload: &str, node: NodeId, tunnel_key: [u8; 32]) -> Vec<Vec<u8>> {
        let template = tunnel_template(number, workload, node, tunnel_key);
        vec![self.issuing.sign(&template, &KeyPair::generate().expect("key")), self.issuing.der.clone()]
    }
}

fn tunnel_template(number: u8, workload: &str, node: NodeId, tunnel_key: [u8; 32]) -> CertificateParams {
    let (namespace, name) = workload.split_once('/').expect("a workload's name");
    let mut template = leaf("tunnel", &format!("spiffe://bank.example/ns/{namespace}/sa/{name}"));
    template.subject_alt_names.extend(addresses(number).iter().map(SanType::IpAddress));
    template.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL)];
    let instance = InstanceId::from_bytes([number; 16]);
    let binding = TunnelBinding { tunnel_key, instance, node, capabilities: Capabilities::ML_KEM };
    let extension = CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, binding.to_der());
    template.custom_extensions.push(extension);
    template
}

impl Authority {
    fn sign(&self, template: &CertificateParams, key: &impl PublicKeyData) -> Vec<u8> {
        template.signed_by(key, &self.issuer).expect("signed").der().to_vec()
    }
}

fn addresses(number: u8) -> OverlayAddresses {
    OverlayAddresses {
        v6: std::net::Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 1, number.into()),
        v4: Some([10, 77, 0, number].into()),
    }
}

fn authority(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut template = bare(name, DAY * 30);
    template.subject_alt_names = vec![uri("spiffe://bank.example")];
    template.is_ca = IsCa::Ca(constraints);
    template.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    template
}

fn issuing(overlay: &Overlay) -> CertificateParams {
    let mut template = authority("issuing", BasicConstraints::Constrained(0));
    template.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL), own(oid::NODE)];
    let policy = [&[0x30, 14, 0x30, 12, 0x06, 10], oid::MESH_ISSUING.der].concat();
    template.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 32], policy));
    let subnet = |address, length| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, length));
    let v4 = overlay.v4.map(|(address, length)| subnet(address.into(), length));
    template.name_constraints = Some(NameConstraints {
        permitted_subtrees: [subnet(overlay.v6.0.into(), overlay.v6.1)].into_iter().chain(v4).collect(),
        excluded_subtrees: Vec::new(),
    });
    template
}

fn leaf(name: &str, identity: &str) -> CertificateParams {
    let mut template = bare(name, DAY);
    template.subject_alt_names = vec![uri(identity)];
    template.is_ca = IsCa::ExplicitNoCa;
    template.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    template
}

fn bare(name: &str, seconds: u64) -> CertificateParams {
    let mut template = CertificateParams::default();
    template.not_before = moment(NOW.minus(CLOCK_SKEW));
    template.not_after = moment(UnixTime(NOW.0 + seconds));
    let mut serial: [u8; 16] = rand::random();
    serial[0] = 0x40;
    template.serial_number = Some(SerialNumber::from_slice(&serial));
    template.distinguished_name = DistinguishedName::new();
    template.distinguished_name.push(DnType::CommonName, format!("{name} {}", rand::random::<u32>()));
    template.use_authority_key_identifier_extension = true;
    template
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("IA5 text"))
}

fn own(oid: oid::ObjectId) -> Eku {
    Eku::Other(oid.arcs.to_vec())
}

fn moment(at: UnixTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.0.try_into().expect("in range")).expect("in range")
}
