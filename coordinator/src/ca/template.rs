//! What goes into each kind of certificate. Nothing is left to the builder's defaults, several of which are
//! unfit: a validity from 1975 to 4096, a serial number derived from the key, no authority key identifier, no
//! BasicConstraints on leaves.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyIdMethod, KeyUsagePurpose, NameConstraints, SanType,
    SerialNumber,
};
use time::OffsetDateTime;
use warren_proto::certificate::oid::{self, ObjectId};
use warren_proto::certificate::{CLOCK_SKEW, TunnelBinding};
use warren_proto::{Overlay, OverlayAddresses, SpiffeId, TrustDomain, UnixTime};

const CERTIFICATE_POLICIES: &[u64] = &[2, 5, 29, 32];
const EVERY_IPV4: GeneralSubtree = GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4]));

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Validity {
    /// From a little before `now`, so that a clock slightly behind accepts it, for `lifetime`, but never past
    /// its issuer.
    pub(super) fn new(now: UnixTime, lifetime: Duration, issuer_ends: Option<UnixTime>) -> Self {
        let not_after = now.plus(lifetime);
        Self { not_before: now.minus(CLOCK_SKEW), not_after: issuer_ends.map_or(not_after, |ends| ends.min(not_after)) }
    }
}

/// A template with every field set that all kinds share.
fn base(identity: &SpiffeId, common_name: &str, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = moment(validity.not_before);
    params.not_after = moment(validity.not_after);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "warren");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::Sha256;
    Ok(params)
}

fn authority(
    trust_domain: &TrustDomain,
    kind: &str,
    path_length: u8,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    // No two authorities share a subject: validators find issuers by it.
    let name = format!("warren {kind} {}", hex::encode(rand::random::<[u8; 4]>()));
    let mut params = base(&SpiffeId::authority(trust_domain), &name, validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The root: it signs one level of intermediates and the coordinator's own leaves.
pub(super) fn root(trust_domain: &TrustDomain, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    authority(trust_domain, "root", 1, validity)
}

/// The issuing intermediate: marked, path length 0, confined to the purposes of workloads and nodes, and unable
/// to certify an address outside the overlay.
pub(super) fn intermediate(
    trust_domain: &TrustDomain,
    overlay: &Overlay,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = authority(trust_domain, "issuing", 0, validity)?;
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL), own(oid::NODE)];
    params
        .custom_extensions
        .push(CustomExtension::from_oid_content(CERTIFICATE_POLICIES, policy_information(oid::MESH_ISSUING)));
    let subnet = |address, length| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, length));
    let mut permitted_subtrees = vec![subnet(overlay.v6.0.into(), overlay.v6.1)];
    let mut excluded_subtrees = Vec::new();
    match overlay.v4 {
        Some((address, length)) => permitted_subtrees.push(subnet(address.into(), length)),
        None => excluded_subtrees.push(EVERY_IPV4),
    }
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
    Ok(params)
}

/// A tunnel certificate.
pub(super) fn tunnel(
    identity: &SpiffeId,
    addresses: OverlayAddresses,
    binding: &TunnelBinding,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(identity, "tunnel", validity)?;
    params.subject_alt_names.extend(addresses.iter().map(SanType::IpAddress));
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth, own(oid::MESH_TUNNEL)];
    params.custom_extensions.push(CustomExtension::from_oid_content(oid::TUNNEL_BINDING.arcs, binding.to_der()));
    Ok(params)
}

/// A workload's own X.509-SVID: no address, no tunnel key, and not the purpose that admits a tunnel.
pub(super) fn svid(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(identity, "workload", validity)?;
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    Ok(params)
}

/// A node's own certificate.
pub(super) fn node(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(identity, "node", validity)?;
    params.extended_key_usages = vec![Eku::ClientAuth, own(oid::NODE)];
    Ok(params)
}

/// A coordinator's certificate.
pub(super) fn coordinator(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(identity, "coordinator", validity)?;
    params.extended_key_usages = vec![Eku::ServerAuth, own(oid::COORDINATOR)];
    Ok(params)
}

/// The manifest signer's certificate.
pub(super) fn signer(identity: &SpiffeId, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(identity, "signer", validity)?;
    params.extended_key_usages = vec![own(oid::MANIFEST_SIGNER)];
    Ok(params)
}

fn own(oid: ObjectId) -> Eku {
    Eku::Other(oid.arcs.to_vec())
}

/// `SEQUENCE { SEQUENCE { policyIdentifier } }` (RFC 5280, 4.2.1.4).
fn policy_information(policy: ObjectId) -> Vec<u8> {
    fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
        // Three levels around ten bytes stay below the 128 that one length byte can say.
        [&[tag, content.len() as u8], content].concat()
    }
    wrapped(0x30, &wrapped(0x30, &wrapped(0x06, policy.der)))
}

/// 128 random bits at most, positive and of constant length.
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn moment(at: UnixTime) -> OffsetDateTime {
    // X.509 ends with the year 9999; no validity of ours comes near.
    i64::try_from(at.0)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(time::macros::datetime!(9999-12-31 23:59:59 UTC))
}
